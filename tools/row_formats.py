"""Rows as bytes for people and programs: an aligned table, CSV, JSON lines, one .npy file.

In every format text fields (S) are text, bytes that are not UTF-8 shown as \\x escapes. An array is a list in JSON, one
column an element in CSV (`bid_price_0`, …), `[a b c …]` in a table, and itself in .npy.
"""

from __future__ import annotations

import csv
import datetime
import io
import shutil
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence, Set
from enum import StrEnum
from typing import IO, Any, Protocol, TypeAlias, cast

import msgspec
import numpy as np

from ..storage import Schema
from ..storage.units import all_fields, time_unit

__all__ = [
    "Format",
    "RowWriter",
    "TableFormat",
    "choose_fields",
    "column_values",
    "open_format",
    "read_fields",
    "shown",
    "times_of",
]

RowType: TypeAlias = np.dtype[np.void]
Rows: TypeAlias = np.ndarray[Any, RowType]

TABLE_ELEMENTS_MAX = 3


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    csv = "csv"
    json = "json"
    npy = "npy"


class RowWriter(Protocol):
    """Writes rows of one schema to a binary stream, which stays open."""

    def write(self, rows: Rows) -> None: ...

    def close(self) -> None:
        """Write what is still missing."""
        ...


def open_format(
    kind: Format, out: IO[bytes], schema: Schema, names: Sequence[str] = (), width: int | None = None
) -> RowWriter:
    """A writer of that format. names: the fields to write, all by default. width: of the terminal, which a table must fit."""
    chosen = choose_fields(schema, names)
    if kind is Format.csv:
        return CsvFormat(out, schema.dtype, chosen)
    if kind is Format.json:
        return JsonFormat(out, chosen)
    if kind is Format.npy:
        return NpyFormat(out, schema.dtype, chosen)
    return TableFormat(out, schema.dtype, chosen, times_of(schema), width)


def read_fields(text: str | None) -> list[str]:
    """What was given for --fields; empty where nothing was."""
    return [] if text is None else [name.strip() for name in text.split(",")]


def choose_fields(schema: Schema, names: Sequence[str]) -> tuple[str, ...]:
    """These fields, or all where none is named. Raises ValueError for one that the topic has not."""
    all_names = schema.dtype.names or ()
    for name in names:
        if name not in all_names:
            raise ValueError(f"topic {schema.name!r} has no field {name!r}; it has {', '.join(all_names)}")
    return tuple(names) or all_names


def times_of(schema: Schema) -> set[str]:
    """The fields that are ns since the Unix epoch."""
    return {field.name for field in all_fields(schema) if time_unit(field) == "ns"}


def column_values(column: np.ndarray[Any, Any]) -> list[Any]:
    """A column as Python values: numbers, text, and lists of them."""
    if column.dtype.kind == "S":
        return _decoded(column.tolist())
    return column.tolist()


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return [_decoded(item) for item in value]


class CsvFormat:
    """RFC 4180 with a header row, a line end after every row."""

    def __init__(self, out: IO[bytes], dtype: RowType, names: Sequence[str]) -> None:
        self._out = out
        self._columns: list[tuple[str, tuple[int, ...]]] = []  # field and place in it
        header: list[str] = []
        for name in names:
            for place in np.ndindex(dtype[name].shape):
                self._columns.append((name, place))
                header.append("_".join((name, *map(str, place))))
        self._write_lines([header])

    def write(self, rows: Rows) -> None:
        columns = [column_values(rows[name][(slice(None), *place)]) for name, place in self._columns]
        self._write_lines(zip(*columns, strict=True))

    def close(self) -> None:
        pass

    def _write_lines(self, lines: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._out.write(text.getvalue().encode())


class JsonFormat:
    """One JSON object a line. A number that is not finite becomes null."""

    def __init__(self, out: IO[bytes], names: Sequence[str]) -> None:
        self._out, self._names = out, names
        self._encoder = msgspec.json.Encoder()

    def write(self, rows: Rows) -> None:
        columns = [column_values(rows[name]) for name in self._names]
        objects = [dict(zip(self._names, values, strict=True)) for values in zip(*columns, strict=True)]
        self._out.write(self._encoder.encode_lines(objects))

    def close(self) -> None:
        pass


class NpyFormat:
    """One array of all rows, as numpy.load reads it.

    Its length stands at the beginning and is known at the end: a file is corrected there, a pipe is served from a spool.
    """

    def __init__(self, out: IO[bytes], dtype: RowType, names: Sequence[str]) -> None:
        self._out, self._names, self._count = out, list(names), 0
        whole = self._names == list(dtype.names or ())
        self._dtype: RowType = dtype if whole else np.dtype([(name, dtype[name]) for name in self._names])
        self._spool: IO[bytes] = out if out.seekable() else tempfile.TemporaryFile()  # noqa: SIM115
        self._start = self._spool.tell()
        self._header = self._encode_header()
        self._spool.write(self._header)

    def write(self, rows: Rows) -> None:
        chosen = rows if rows.dtype == self._dtype else rows[self._names].astype(self._dtype)
        self._spool.write(np.ascontiguousarray(chosen).view("u1").data)
        self._count += len(rows)

    def close(self) -> None:
        header = self._encode_header()
        assert len(header) == len(self._header)  # numpy leaves room for the length to grow
        self._spool.seek(self._start)
        self._spool.write(header)
        self._spool.seek(0, io.SEEK_END)
        if self._spool is not self._out:
            self._spool.seek(0)
            shutil.copyfileobj(self._spool, self._out)
            self._spool.close()

    def _encode_header(self) -> bytes:
        described = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count,),
        }
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(header, described)
        return header.getvalue()


class TableFormat:
    """Aligned columns for reading. Columns that the terminal has no room for are left out, and the header says so."""

    def __init__(
        self, out: IO[bytes], dtype: RowType, names: Sequence[str], times: Set[str], width: int | None
    ) -> None:
        self._out, self._width, self._dtype, self._wanted, self._times = out, width, dtype, names, times
        self._names: list[str] = []  # those there is room for
        self._widths: list[int] = []

    def write(self, rows: Rows) -> None:
        names = self._names or list(self._wanted)
        columns = [self._cells(name, rows[name]) for name in names]
        if not self._names:
            self._lay_out(names, columns)
        for index, cells in enumerate(columns[: len(self._names)]):
            self._widths[index] = max(self._widths[index], max(map(len, cells)))
        text = "".join(self._line(values) for values in zip(*columns[: len(self._names)], strict=True))
        self._out.write(text.encode())

    def close(self) -> None:
        pass

    def _lay_out(self, names: list[str], columns: list[list[str]]) -> None:
        """Choose the columns that fit, by the first rows, and write the header."""
        room = self._width
        for name, cells in zip(names, columns, strict=True):
            width = max(len(self._title(name)), *map(len, cells))
            if room is not None and sum(self._widths) + 2 * len(self._widths) + width > room and self._names:
                break
            self._names.append(name)
            self._widths.append(width)
        left_out = names[len(self._names) :]
        header = self._line([self._title(name) for name in self._names])
        if left_out:
            told = f"(no room for {', '.join(left_out)}: widen the terminal, choose --fields, or --format csv)"
            header = f"{textwrap.fill(told, room or len(told))}\n{header}"
        self._out.write(header.encode())

    def _title(self, name: str) -> str:
        return name.removesuffix("_ns") if name in self._times else name

    def _line(self, values: Iterable[str]) -> str:
        parts = zip(self._names, values, self._widths, strict=True)
        cells = [cell.ljust(width) if self._is_text(name) else cell.rjust(width) for name, cell, width in parts]
        return "  ".join(cells).rstrip() + "\n"

    def _is_text(self, name: str) -> bool:
        return self._dtype[name].base.kind == "S"

    def _cells(self, name: str, column: np.ndarray[Any, Any]) -> list[str]:
        values = column_values(column)
        if name in self._times and column.ndim == 1:
            return [_time_of_day(value) for value in values]
        return [shown(value) for value in values]


def shown(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, str):
        return "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        items = list(_flattened(cast("Any", value)))
        more = " …" if len(items) > TABLE_ELEMENTS_MAX else ""
        return f"[{' '.join(shown(item) for item in items[:TABLE_ELEMENTS_MAX])}{more}]"
    return str(value)


def _flattened(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _flattened(item)
    else:
        yield value


def _time_of_day(time_ns: int) -> str:
    """UTC time of day to the microsecond; the raw number where it is not a time."""
    try:
        moment = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000, datetime.UTC)
    except (ValueError, OSError, OverflowError):
        return str(time_ns)
    return f"{moment:%H:%M:%S}.{time_ns % 1_000_000_000 // 1000:06d}"
