"""What Delayed makes of the rows of an interval: all of them, or the newest of each key.

A fold reads a batch's rows in place, has them proven whole, and only then keeps what it read: where the writer has come round
meanwhile, `take_in` raises Overrun and nothing has changed.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..bus import Batch
from ..storage import Schema
from ._grouping import Keys

__all__ = ["All", "Fold", "Newest", "Rows", "by_sequence", "pick", "whole", "with_room"]

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]

CAPACITY_MIN = 1024


class Fold(Protocol):
    """Takes batches in, and hands out what they come to."""

    schema: Schema  # of what is handed out

    def take_in(self, batch: Batch) -> None: ...

    def __len__(self) -> int:
        """How many rows it holds in memory."""
        ...

    def hand_out(self) -> Rows:
        """What it has made since it last handed out. It then holds nothing."""
        ...


def whole(rows: Rows) -> Rows:
    """The same rows without their fields: numpy moves them as they are, several times faster than field by field."""
    return rows.view(np.dtype((np.void, rows.itemsize)))


def pick(rows: Rows, index: npt.NDArray[Any]) -> Rows:
    """The rows at these places, or where these marks are true, as a copy."""
    return whole(rows)[index].view(rows.dtype)


def by_sequence(rows: Rows) -> Rows:
    """Rows in the order of their sequences, without those that have none: groups of rows that were overwritten unread."""
    order = np.argsort(rows["sequence"])
    return pick(rows, order[np.count_nonzero(rows["sequence"] == 0) :])


def with_room(rows: Rows, count: int) -> Rows:
    """The same rows with room for `count`; what is new is zero."""
    if count <= len(rows):
        return rows
    larger = np.zeros(max(count, 2 * len(rows), CAPACITY_MIN), rows.dtype)
    whole(larger)[: len(rows)] = whole(rows)
    return larger


class All:
    """Every row."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._rows, self._count = np.empty(0, schema.dtype), 0

    def take_in(self, batch: Batch) -> None:
        end = self._count + len(batch)
        if end > len(self._rows):
            larger = np.empty(max(2 * end, CAPACITY_MIN), self.schema.dtype)
            whole(larger)[: self._count] = whole(self._rows)[: self._count]
            self._rows = larger
        whole(self._rows)[self._count : end] = whole(batch.rows)
        batch.validate()
        self._count = end

    def __len__(self) -> int:
        return self._count

    def hand_out(self) -> Rows:
        rows = self._rows[: self._count]
        self._rows, self._count = np.empty(len(rows) + len(rows) // 4, self.schema.dtype), 0
        return rows


class Newest:
    """The newest row of each key, in the order of their sequences."""

    def __init__(self, schema: Schema, fields: tuple[str, ...]) -> None:
        self.schema = schema
        self._keys = Keys(schema.dtype, fields)
        self._rows = np.zeros(0, schema.dtype)  # by group; sequence 0: none yet

    def take_in(self, batch: Batch) -> None:
        rows = batch.rows
        groups = self._keys.number(rows)
        newest = np.full(len(self._keys), -1)
        newest[groups] = np.arange(len(rows))  # the last of those with the same group stays
        touched = np.flatnonzero(newest >= 0)
        found = pick(rows, newest[touched])
        batch.validate()
        self._rows = with_room(self._rows, len(newest))
        whole(self._rows)[touched] = whole(found)

    def __len__(self) -> int:
        return len(self._keys)

    def hand_out(self) -> Rows:
        held = self._rows[: len(self._keys)]
        rows = by_sequence(held)
        held["sequence"] = 0
        self._keys.clear()
        return rows
