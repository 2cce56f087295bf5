"""Reductions: of many rows of a key one row, such as the bars of a chart.

Each piece of an interval is reduced as it comes, into one row a key; nothing else is kept. Numbers are counted in the widest
type of their kind: integers in 64 bits, where a sum that does not fit wraps around as numpy's do, and floats in 64 bits. A NaN
makes its key's min, max and sum NaN, as in numpy; first and last are what they were in the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..bus import Batch
from ..storage import Schema
from ..storage.units import all_fields
from ._grouping import Keys
from .folding import Rows, by_sequence, pick, with_room

__all__ = ["Operation", "Reduced", "Reduction", "ohlcv"]

Operation: TypeAlias = Literal["first", "last", "min", "max", "sum"]

OPERATIONS = ("first", "last", "min", "max", "sum")
NUMBERS = "iufb"  # kinds that can be compared and added


class Reduction:
    """What becomes of the rows of a key: `Reduction("instrument", price=("first", "last"), quantity="sum")`.

    by: the key, one field or several; integers, truth values or bytes. The others say for a field which of "first", "last",
    "min", "max" and "sum" are wanted: they become fields named `price_first`, `quantity_sum`. The last three want one number a
    row, first and last take any field. `as_schema` tells the rows that come of it.
    """

    def __init__(self, by: str | Iterable[str], /, **fields: Operation | Iterable[Operation]) -> None:
        self.by = (by,) if isinstance(by, str) else tuple(by)
        self.fields: Mapping[str, tuple[Operation, ...]] = {
            name: (wanted,) if isinstance(wanted, str) else tuple(wanted) for name, wanted in fields.items()
        }
        for name, wanted in self.fields.items():
            for operation in wanted:
                if operation not in OPERATIONS:
                    raise ValueError(f"reduce: {name}: one of {', '.join(OPERATIONS)} is expected, got {operation!r}")

    def as_schema(self, source: Schema) -> Schema:
        """The schema of the reduced rows of a topic: they are rows like any others, and may be published as they are.

        Their stamp is that of the key's newest row. Behind it come the key, `first_sequence` and `first_timestamp_ns` of its
        oldest row, `row_count`, and the fields asked for. Raises ValueError naming the field that cannot be had.
        """
        given = {field.name: field for field in all_fields(source)}
        fields, units = dict[str, str](), dict[str, str]()

        def add(name: str, kind: str, unit: str) -> None:
            if name in fields:
                raise ValueError(f"reduce: two fields would be named {name!r}")
            fields[name], units[name] = kind, unit

        for name in self.by:
            if name not in given:
                raise ValueError(f"reduce: by: the topic has no field {name!r}; it has {', '.join(given)}")
            add(name, given[name].type, given[name].unit)
        add("first_sequence", "u8", "")
        add("first_timestamp_ns", "i8", given["timestamp_ns"].unit)
        add("row_count", "u8", "rows")
        for name, wanted in self.fields.items():
            if name not in given:
                raise ValueError(f"reduce: the topic has no field {name!r}; it has {', '.join(given)}")
            kind = source.dtype[name]
            for operation in wanted:
                if operation in ("min", "max", "sum") and (kind.shape or kind.kind not in NUMBERS):
                    raise ValueError(
                        f"reduce: {name}: {operation} wants one number a row, and this is {given[name].type}"
                    )
                spelt = _sum_type(kind) if operation == "sum" else given[name].type
                add(f"{name}_{operation}", spelt, given[name].unit)
        return Schema(source.name, fields, self.by, units)


def ohlcv(price: str = "price", volume: str = "quantity", by: str | Iterable[str] = "instrument") -> Reduction:
    """Bars: the first, highest, lowest and last price and the volume of each key, as `price_first` … and `quantity_sum`."""
    wanted: dict[str, tuple[Operation, ...]] = {price: ("first", "max", "min", "last"), volume: ("sum",)}
    return Reduction(by, **wanted)


def _sum_type(kind: np.dtype[Any]) -> str:
    return {"i": "i8", "u": "u8", "b": "u8", "f": "f8"}[kind.kind]


def _plain(kind: np.dtype[Any]) -> np.dtype[Any]:
    """The same type as numpy itself writes it: its fast ways do not know the "<" of a schema's fields, 30 times slower ones do."""
    return np.dtype(kind.type)


def _numbers(rows: Rows, name: str) -> npt.NDArray[Any]:
    return rows[name].view(_plain(rows.dtype[name]))


class Reduced:
    """The fold of a reduction: one row a key, in the order of the keys' newest rows."""

    def __init__(self, source: Schema, reduction: Reduction) -> None:
        self.schema = reduction.as_schema(source)
        self._keys = Keys(source.dtype, reduction.by)
        self._rows: Rows = np.zeros(0, self.schema.dtype)  # by group; sequence 0: none yet
        self._firsts = [("sequence", "first_sequence"), ("timestamp_ns", "first_timestamp_ns")]
        self._firsts += [(name, name) for name in reduction.by]
        self._lasts = [("sequence", "sequence"), ("timestamp_ns", "timestamp_ns")]
        self._mins, self._maxs, self._sums = list[tuple[str, str]](), list[tuple[str, str]](), list[tuple[str, str]]()
        lists = {"first": self._firsts, "last": self._lasts, "min": self._mins, "max": self._maxs, "sum": self._sums}
        for name, wanted in reduction.fields.items():
            for operation in wanted:
                lists[operation].append((name, f"{name}_{operation}"))
        self._compared = list({name: None for name, _ in self._mins + self._maxs})

    def take_in(self, batch: Batch) -> None:
        rows, places = batch.rows, np.arange(len(batch))
        groups = self._keys.number(rows)
        group_count = len(self._keys)
        newest, oldest = np.full(group_count, -1), np.full(group_count, -1)
        newest[groups] = places  # the last of those with the same group stays
        oldest[groups[::-1]] = places[::-1]
        touched = np.flatnonzero(newest >= 0)
        first_rows, last_rows = pick(rows, oldest[touched]), pick(rows, newest[touched])
        with np.errstate(invalid="ignore", over="ignore"):
            compared = {name: rows[name].astype(_plain(rows.dtype[name])) for name in self._compared}
            added = {name: rows[name].astype(_plain(self.schema.dtype[to])) for name, to in self._sums}
            batch.validate()
            self._keep(groups, touched, first_rows, last_rows, compared, added)

    def _keep(
        self,
        groups: npt.NDArray[np.int64],
        touched: npt.NDArray[np.int64],
        first_rows: Rows,
        last_rows: Rows,
        compared: Mapping[str, npt.NDArray[Any]],
        added: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        held = self._rows = with_room(self._rows, len(self._keys))
        is_new = held["sequence"][touched] == 0
        new, first_rows = touched[is_new], first_rows[is_new]
        for name, to in self._firsts:
            held[to][new] = first_rows[name]
        for name, to in self._lasts:
            held[to][touched] = last_rows[name]
        for name, to in self._mins:
            held[to][new] = first_rows[name]
            np.minimum.at(_numbers(held, to), groups, compared[name])
        for name, to in self._maxs:
            held[to][new] = first_rows[name]
            np.maximum.at(_numbers(held, to), groups, compared[name])
        for name, to in self._sums:
            np.add.at(_numbers(held, to), groups, added[name])
        held["row_count"][touched] += np.bincount(groups)[touched].astype("u8")

    def __len__(self) -> int:
        return len(self._keys)

    def hand_out(self) -> Rows:
        held = self._rows[: len(self._keys)]
        rows = by_sequence(held)
        held.view(np.uint8)[:] = 0
        self._keys.clear()
        return rows
