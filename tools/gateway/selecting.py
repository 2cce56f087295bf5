"""Which rows a client wants, and which of their fields. Anybody may ask: what they say is compared, and never run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...bus import Batch
from ...bus._read import owned_batch
from ...storage import Schema
from ...subscribers import Filtered, Stats, Subscriber
from ...subscribers.folding import Rows

__all__ = ["Selection", "project", "projected"]

Value: TypeAlias = int | float | str | bool
Condition: TypeAlias = tuple[str, str, Value]

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Selection:
    """Of the batches that it is handed, the rows with these keys of which these conditions are true.

    One thread at a time. Raises ValueError naming the field, and what was expected of it.
    """

    def __init__(self, schema: Schema, key: Mapping[str, Sequence[Value]], where: Sequence[Condition]) -> None:
        self._handed = _Handed(schema)
        self._filtered: Filtered | None = None  # where every row is wanted
        if key or where:
            conditions = [_condition(schema, *condition) for condition in where]
            wanted = {name: [_as_field(value) for value in values] for name, values in key.items()}
            self._filtered = Filtered(
                self._handed,
                key=wanted or None,
                where=(lambda rows: _all_true(conditions, rows)) if conditions else None,
            )

    def select(self, batch: Batch) -> Batch | None:
        """The rows wanted, or None where there are none. What was lost is told at once, if need be with no rows."""
        if self._filtered is None:
            return batch
        self._handed.batch = batch if not batch.lost else _of_rows(batch, batch.rows)
        selected = self._filtered.poll()
        if batch.lost:
            selected = selected if selected is not None else _of_rows(batch, batch.rows[:0])
            selected.lost = batch.lost
        return selected


class _Handed(Subscriber):
    """A subscriber that has the one batch it was handed."""

    def __init__(self, schema: Schema) -> None:
        self._schema, self.batch = schema, None
        self.batch: Batch | None

    @property
    def schema(self) -> Schema:
        return self._schema

    @property
    def position(self) -> int:
        return 0

    @property
    def ended(self) -> bool:
        return False

    @property
    def stats(self) -> Stats:
        return Stats(0, 0, 0, 0, 0, 0, 0, 0)

    def poll(self) -> Batch | None:
        batch, self.batch = self.batch, None
        return batch

    def _wait(self, seconds: float) -> None:
        pass


def _of_rows(batch: Batch, rows: Rows) -> Batch:
    """Some rows of a batch, which tells of no loss."""
    return owned_batch(rows, batch.schema, batch.first, batch.last, 0)


def _as_field(value: Value) -> int | float | bytes:
    return value.encode() if isinstance(value, str) else value


def _condition(schema: Schema, name: str, comparison: str, value: Value) -> Callable[[Rows], npt.NDArray[np.bool_]]:
    if name not in (schema.dtype.names or ()):
        raise ValueError(
            f"where: topic {schema.name!r} has no field {name!r}; it has {', '.join(schema.dtype.names or ())}"
        )
    kind = schema.dtype[name]
    if kind.shape:
        raise ValueError(f"where: {name}: an array; one value a row can be compared")
    if (kind.kind == "S") != isinstance(value, str):
        expected = "text" if kind.kind == "S" else "a number"
        raise ValueError(f"where: {name}: {expected} is expected, got {value!r}")
    compare, wanted = OPERATORS[comparison], _as_field(value)
    try:
        compare(np.zeros(1, kind), wanted)
    except (OverflowError, TypeError):
        raise ValueError(f"where: {name}: no value of type {kind} can be compared with {str(value)[:40]}") from None
    return lambda rows: compare(rows[name], wanted)


def _all_true(conditions: Sequence[Callable[[Rows], npt.NDArray[np.bool_]]], rows: Rows) -> npt.NDArray[np.bool_]:
    marks = conditions[0](rows)
    for condition in conditions[1:]:
        marks = marks & condition(rows)
    return marks


def projected(schema: Schema, fields: Sequence[str]) -> Schema:
    """The schema of rows that have these fields only, behind their stamp. Raises ValueError naming the field."""
    given = {field.name: field for field in schema.fields}
    names = [name for name in fields if name not in ("sequence", "timestamp_ns")]
    for name in names:
        if name not in given:
            raise ValueError(f"fields: topic {schema.name!r} has no field {name!r}; it has {', '.join(given)}")
    if len(set(names)) != len(names):
        raise ValueError("fields: each field once")
    if not names:
        return schema
    key = schema.key if set(schema.key) <= set(names) else ()
    types = {name: given[name].type for name in names}
    return Schema(schema.name, types, key, {name: given[name].unit for name in names}, schema.description)


def project(rows: Rows, dtype: np.dtype[np.void]) -> Rows:
    """The same rows with the fields of `dtype` only."""
    if rows.dtype == dtype:
        return rows
    chosen = np.zeros(len(rows), dtype)
    for name in dtype.names or ():
        chosen[name] = rows[name]
    return chosen
