"""Some of the rows of another subscriber: those with certain keys, of a partition, or for which a predicate is true.

1. Keys and partitions are looked at by compiled code, before the predicate; it sees only what they have let through.
2. A batch all of whose rows pass is handed on as it is, in place. Of others the rows that pass are copied, and proven whole; a
   batch of which none pass is not handed out.
3. A batch that was overwritten while it was looked at is asked for again: it then comes from the log, or is counted as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ..bus import Batch, Overrun
from ..bus._read import owned_batch
from ..storage import Schema
from ._grouping import Keys
from .folding import Rows, pick
from .subscriber import Stats, Subscriber

__all__ = ["Filtered", "Predicate"]

Predicate: TypeAlias = Callable[[Rows], npt.NDArray[np.bool_]]


class Filtered(Subscriber):
    """Hands out the rows of `source` that pass: `Filtered(RealTime("exchange/trades"), key={"instrument": [600519, 600520]})`

    source: any other subscriber; it is closed with this one.
    key: for each field the values that pass: integers, truth values or bytes.
    partition: (i, n) lets the rows through whose key hash leaves i when divided by n, so that n consumers share a topic by key; by:
    the fields of that key, the topic's own unless told. Which key is in which partition no release, process or machine changes.
    where: a function of the rows (a structured array, not to be kept) that says for each whether it passes, as an array of truth
    values. What it raises comes out of `poll`, and the batch has then been read.

    `batch.first` and `batch.last` remain those of the source's batch, `batch.lost` counts what was missed since the one before.
    Positions and stats are the source's. Over an Acknowledged, `ack` a batch there; that counts for its rows that do not pass as
    well, and a batch of which none pass is acknowledged here. So all members of a group must let the same rows through.
    Raises ValueError naming the argument, TypeError where `where` returns something else.
    """

    def __init__(
        self,
        source: Subscriber,
        *,
        key: Mapping[str, Iterable[Any]] | None = None,
        partition: tuple[int, int] | None = None,
        by: str | Iterable[str] | None = None,
        where: Predicate | None = None,
    ) -> None:
        if key is None and partition is None and where is None:
            raise ValueError("key, partition, where: at least one of them is expected")
        if by is not None and partition is None:
            raise ValueError("by: it names the key of a partition, and partition is not given")
        self._source = source
        self._tests: list[Predicate] = []
        for name, values in (key or {}).items():
            self._tests.append(_known(source.schema, name, values).known)
        if partition is not None:
            self._tests.append(_in_partition(source.schema, partition, by))
        if where is not None:
            self._tests.append(_checked(where))
        self._lost = 0  # before batches that were not handed out

    @property
    def schema(self) -> Schema:
        return self._source.schema

    @property
    def position(self) -> int:
        """The last sequence that it is done with, or has handed out."""
        return self._source.position

    @property
    def ended(self) -> bool:
        return self._source.ended

    @property
    def stats(self) -> Stats:
        return self._source.stats

    def poll(self) -> Batch | None:
        """The next batch of which rows pass, or None when there is none now. Never waits.

        Asking for the next batch says that everything handed out before is done with.
        """
        until = None  # what comes meanwhile is looked at in the next call, or this one might not end
        while (batch := self._source.poll()) is not None:
            self._lost += batch.lost
            try:
                passed = self._pass(batch)
            except Overrun:  # the source has stepped back
                continue
            if passed is not None:
                passed.lost, self._lost = self._lost, 0
                return passed
            self._source._pass_over(batch)
            if until is None:
                stats = self._source.stats
                until = stats.position + stats.lag if stats.lag else None
            if until is not None and batch.last >= until:
                return None
        return None

    def _wait(self, seconds: float) -> None:
        self._source._wait(seconds)

    def _pass_over(self, batch: Batch) -> None:
        self._source._pass_over(batch)

    def _pass(self, batch: Batch) -> Batch | None:
        """A batch of the rows that pass; None where there are none. Raises Overrun for one that was overwritten meanwhile."""
        rows = batch.rows
        for test in self._tests:
            try:
                marks = test(rows)
            except Exception:
                batch.validate()  # half a row may be the reason
                raise
            if marks.all():
                continue
            rows = pick(rows, marks)
            if len(rows) == 0:
                break
        if rows is batch.rows:
            return batch
        batch.validate()
        if len(rows) == 0:
            return None
        passed = owned_batch(rows, batch.schema, batch.first, batch.last, 0)
        passed.deliveries = batch.deliveries
        return passed

    def close(self) -> None:
        """Close the source."""
        self._source.close()
        super().close()


def _known(schema: Schema, name: str, values: Iterable[Any]) -> Keys:
    """Keys that know these values of a field."""
    try:
        keys = Keys(schema.dtype, (name,))
    except ValueError as error:
        raise ValueError(f"key: {error}") from None
    if isinstance(values, str | bytes):
        raise ValueError(f"key: {name}: several values are expected, such as [{values!r}]; got {values!r}")
    wanted, kind = list(values), schema.dtype[name]
    held = _held(kind, wanted)
    if held is None:
        raise ValueError(f"key: {name}: a value of type {kind} is expected, got {_first_wrong(kind, wanted)!r}")
    rows = np.zeros(len(wanted), schema.dtype)
    rows[name] = held
    keys.number(rows)
    return keys


def _held(kind: np.dtype[Any], values: list[Any]) -> npt.NDArray[Any] | None:
    """The values as a field of that type holds them; None where it cannot hold one of them as it is."""
    try:
        held = np.fromiter(values, kind, len(values))
        return held if held.tolist() == values else None
    except (TypeError, ValueError, OverflowError):
        return None


def _first_wrong(kind: np.dtype[Any], values: list[Any]) -> Any:
    """The first value that a field of that type cannot hold, of some among which there is one."""
    while len(values) > 1:
        half = values[: len(values) // 2]
        values = half if _held(kind, half) is None else values[len(half) :]
    return values[0]


def _in_partition(schema: Schema, partition: tuple[int, int], by: str | Iterable[str] | None) -> Predicate:
    index, count = partition
    if not 0 <= index < count:
        raise ValueError(f"partition: (i, n) with 0 <= i < n is expected, got {partition!r}")
    fields = schema.key if by is None else (by,) if isinstance(by, str) else tuple(by)
    if not fields:
        raise ValueError(f"by: topic {schema.name!r} has no key; say which fields are one")
    try:
        keys = Keys(schema.dtype, fields)
    except ValueError as error:
        raise ValueError(f"by: {error}") from None
    return lambda rows: keys.partition(rows, index, count)


def _checked(where: Predicate) -> Predicate:
    def test(rows: Rows) -> npt.NDArray[np.bool_]:
        marks = cast("npt.NDArray[Any]", where(rows))
        if not isinstance(marks, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"where: an array of truth values is expected, got {type(marks).__name__}")
        if marks.dtype != np.bool_ or marks.shape != rows.shape:
            raise TypeError(
                f"where: {len(rows)} truth values are expected, one a row; got {marks.dtype} of shape {marks.shape}"
            )
        return marks

    return test
