"""The rows that a client is too slow for, held back until it has caught up: of each key the newest, or the newest of all."""

from __future__ import annotations

import numpy as np

from ...bus import Batch
from ...bus._read import owned_batch
from ...storage import Schema
from ...subscribers.folding import Fold, Newest, Rows
from .requests import Slow

__all__ = ["Held", "fold_of"]


class Held:
    """Rows folded while their client does not take them. It has rows from the first `take_in` until `hand_out`."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._first = self._last = self._lost = 0

    def __len__(self) -> int:
        """Rows that it holds."""
        return len(self._fold)

    def take_in(self, batch: Batch) -> None:
        self._fold.take_in(batch)
        self._first, self._last, self._lost = self._first or batch.first, batch.last, self._lost + batch.lost

    def hand_out(self) -> Batch | None:
        """All of it as one batch; None where it holds nothing."""
        if not len(self._fold):
            return None
        batch = owned_batch(self._fold.hand_out(), self._fold.schema, self._first, self._last, self._lost)
        self._first = self._last = self._lost = 0
        return batch


def fold_of(schema: Schema, slow: Slow) -> Fold:
    """Raises ValueError naming the field that cannot be a key."""
    if slow.newest is not None:
        return _NewestOfAll(schema, slow.newest)
    try:
        return Newest(schema, tuple(slow.conflate or ()))
    except ValueError as error:
        raise ValueError(f"slow: conflate: {error}") from None


class _NewestOfAll:
    """The newest rows, a number of them."""

    def __init__(self, schema: Schema, count: int) -> None:
        self.schema, self._count_max = schema, count
        self._pieces: list[Rows] = []
        self._count = 0

    def take_in(self, batch: Batch) -> None:
        self._pieces.append(batch.rows[-self._count_max :])
        self._count += len(self._pieces[-1])
        while self._count - len(self._pieces[0]) >= self._count_max:
            self._count -= len(self._pieces.pop(0))

    def __len__(self) -> int:
        return min(self._count, self._count_max)

    def hand_out(self) -> Rows:
        rows = np.concatenate(self._pieces)[-self._count_max :]
        self._pieces, self._count = [], 0
        return rows
