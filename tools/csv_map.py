"""MAP.toml: how the fields of a schema are made from the columns of a CSV file.

    [csv]                                   # all optional
    delimiter = ","
    header = true                           # the first row names the columns; without such a row: ["A", "B", …]
    encoding = "utf-8"

    [fields]                                # every field of the schema, once
    order_id = "OrderNO"                                                    # the column's text, read as the type says
    price = {column = "OrderPrice", scale = 10000, round = true}            # decimal text -> scaled integer
    kind = {column = "OrderType", map = {A = "A", D = "D"}}                 # text -> value, nothing else allowed
    instrument = {constant = 600519}
    exchange_ns = {column = "OrderTime", time = "%H:%M:%S.%f", date = "2023-02-01", zone = "Asia/Shanghai"}
    bid_price = {columns = "BidPrice{1..10}", scale = 10000, round = true, empty = 0}    # or a list of names

    [filter]                                # rows whose columns hold other texts are left out
    OrderType = ["A", "D"]

    [pace]
    field = "exchange_ns"                   # the recorded time, in ns, that --speed keeps to

`empty` is the value of an empty cell; without it an empty cell makes a bad row (but in a text field it is an empty
text). A `time` may be made of several `columns`, joined by one blank; `pad = 9` puts zeros before a cell up to nine
characters, for times stored as a number; without `zone` it is UTC. A constant may be a list, for a field that is an
array. Text is kept as the bytes in the file. A map is checked against a schema as a whole, before any row is read.
"""

from __future__ import annotations

import codecs
import datetime
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import numpy as np

from ..storage import Schema
from .csv_cells import (
    BoolCell,
    Cell,
    CellError,
    ChoiceCell,
    FloatCell,
    IntegerCell,
    ScaledCell,
    TextCell,
    TimeCell,
    code,
    fixed_value,
)
from .toml_document import TomlDocument, TomlError

Scalar: TypeAlias = bool | int | float | str

COLUMNS_MAX = 4096


class MapError(TomlError):
    """A map that is not TOML, says what maps cannot say, or does not fit the schema or the file."""


@dataclass(frozen=True, slots=True)
class FieldPlan:
    """How one field is filled: from a constant (then `cell` is None), or from columns, each holding one element."""

    name: str
    columns: tuple[str, ...]
    cell: Cell | None
    constant: Any = None
    joined: bool = False  # the columns are the parts of one text


@dataclass(frozen=True, slots=True)
class CsvPlan:
    """A map that was checked against a schema: all that is needed to turn cells into rows."""

    path: str
    schema: Schema
    fields: tuple[FieldPlan, ...]
    filters: tuple[tuple[str, frozenset[str]], ...]
    pace: str | None
    delimiter: str
    header: tuple[str, ...] | None  # None: the first row of the file is the header
    encoding: str
    lines: Mapping[str, int | None]  # where in the map each use of a column stands, for the messages

    def positions(self, header: Sequence[str]) -> dict[str, int]:
        """Return where each column used here stands in a file with this header. Raises MapError if one is not there."""
        found: dict[str, int] = {}
        uses = [(f"fields.{plan.name}", name) for plan in self.fields for name in plan.columns]
        uses += [(f"filter.{name}", name) for name, _ in self.filters]
        for where, name in uses:
            count = header.count(name)
            if count != 1:
                what = "no column" if count == 0 else f"{count} columns"
                expected = f"the file has {what} {name!r}; it has {_listed(header)}"
                raise MapError(self.path, where, expected, self.lines.get(where))
            found[name] = header.index(name)
        return found


def load_map(path: str | Path, schema: Schema) -> CsvPlan:
    """Read a map and check it against the schema. Raises MapError (and OSError when it cannot be read)."""
    return parse_map(Path(path).read_bytes(), schema, str(path))


def parse_map(content: bytes, schema: Schema, path: str = "map") -> CsvPlan:
    """Check the content of a map against the schema; `path` is for the messages. Raises MapError."""
    return _Checker(TomlDocument(content, path, MapError), schema).plan()


class _CsvTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    delimiter: str = ","
    header: bool | list[str] = True
    encoding: str = "utf-8"


class _PaceTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    field: str


class _Document(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    fields: dict[str, Any]
    csv: dict[str, Any] = {}
    filter: dict[str, Any] = {}
    pace: dict[str, Any] | None = None


class _Source(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    column: str | None = None
    columns: str | list[str] | None = None
    constant: Scalar | list[Scalar] | None = None
    scale: Annotated[int, msgspec.Meta(ge=1)] | None = None
    round: bool = False
    map: dict[str, Scalar] | None = None
    time: str | None = None
    date: str | None = None
    zone: str | None = None
    pad: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    empty: Scalar | None = None


class _Checker:
    """Turns the tables of one map into a plan."""

    def __init__(self, document: TomlDocument, schema: Schema) -> None:
        self._document, self._schema = document, schema
        self._convert, self._error = document.convert, document.error
        self._encoding = "utf-8"

    def plan(self) -> CsvPlan:
        tables = self._convert(self._document.tables, _Document, "")
        csv = self._convert(tables.csv, _CsvTable, "csv")
        self._encoding = self._checked_encoding(csv.encoding)
        delimiter = csv.delimiter
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0':
            raise self._error("csv.delimiter", "one ASCII character, not a quote, a line end or NUL")
        header = self._checked_header(csv.header)
        fields = self._checked_fields(tables.fields)
        pace = None
        if tables.pace is not None:
            pace = self._checked_pace(self._convert(tables.pace, _PaceTable, "pace").field)
        filters = tuple(self._checked_filter(name, accepted) for name, accepted in tables.filter.items())
        places = [f"fields.{field.name}" for field in fields] + [f"filter.{name}" for name, _ in filters]
        lines = {place: self._document.line_of(place) for place in places}
        plan = CsvPlan(
            self._document.path, self._schema, fields, filters, pace, delimiter, header, self._encoding, lines
        )
        if header is not None:
            plan.positions(header)
        return plan

    def _checked_fields(self, sources: dict[str, Any]) -> tuple[FieldPlan, ...]:
        dtype = self._schema.payload_dtype
        names = cast("tuple[str, ...]", dtype.names)
        for name in sources:
            if name not in names:
                known = f"schema {self._schema.name!r} has the fields {_listed(names)}"
                raise self._error(f"fields.{name}", f"no such field; {known}")
        for name in names:
            if name not in sources:
                advice = f"give it a column or, to leave it out, {name} = {{constant = …}}"
                raise self._error("fields", f"nothing for the field {name!r} of schema {self._schema.name!r}; {advice}")
        return tuple(self._field(name, dtype[name], sources[name]) for name in names)

    def _field(self, name: str, dtype: np.dtype[Any], given: Any) -> FieldPlan:
        where = f"fields.{name}"
        if not isinstance(given, str | dict):
            raise self._error(where, 'a column\'s name, or a table such as {column = "Price", scale = 100}')
        table = {"column": given} if isinstance(given, str) else cast("dict[str, Any]", given)
        if isinstance(table.get("date"), datetime.date):
            table = {**table, "date": str(table["date"])}
        source: _Source = self._convert(table, _Source, where)
        base, shape = dtype.subdtype or (dtype, ())
        count = math.prod(shape)
        if sum(given is not None for given in (source.column, source.columns, source.constant)) != 1:
            raise self._error(where, "exactly one of column, columns, constant")
        if source.constant is not None:
            others = [key for key in table if key != "constant"]
            if others:
                raise self._error(f"{where}.{others[0]}", "nothing beside constant")
            return FieldPlan(name, (), None, self._constant(where, base, shape, source.constant))
        columns = self._columns(where, source)
        joined = source.columns is not None and source.time is not None
        if joined and shape:
            raise self._error(where, f"a field of one value for a time made of columns, not {count} values")
        if not joined and len(columns) != count:
            need = f'columns with {count} names, such as "Name{{1..{count}}}"' if shape else "one column"
            raise self._error(where, f"{need}, since the type is {_type(dtype)}; got {len(columns)}")
        if not joined and not shape and source.columns is not None:
            raise self._error(where, f"column, not columns, since the type is {_type(dtype)}")
        return FieldPlan(name, columns, self._cell(where, base, source), joined=joined)

    def _cell(self, where: str, base: np.dtype[Any], source: _Source) -> Cell:
        if sum(given is not None for given in (source.scale, source.map, source.time)) > 1:
            raise self._error(where, "at most one of scale, map, time")
        if source.round and source.scale is None:
            raise self._error(f"{where}.round", "scale beside it")
        if source.pad is not None and source.columns is not None:
            raise self._error(f"{where}.pad", "a time made of one column beside it")
        for key in ("date", "zone", "pad"):
            if getattr(source, key) is not None and source.time is None:
                raise self._error(f"{where}.{key}", "time beside it")
        empty = None if source.empty is None else self._fixed(f"{where}.empty", base, source.empty)
        if source.map is not None:
            if not source.map:
                raise self._error(f"{where}.map", "at least one text and its value")
            values = {text: self._fixed(f"{where}.map.{text}", base, value) for text, value in source.map.items()}
            return ChoiceCell(base, values, empty)
        if source.scale is not None:
            if base.kind not in "iu":
                raise self._error(f"{where}.scale", f"an integer field; the type is {code(base)}")
            return ScaledCell(base, source.scale, source.round, empty)
        if source.time is not None:
            if code(base) not in ("i8", "u8"):
                raise self._error(f"{where}.time", f"an i8 or u8 field, for nanoseconds; the type is {code(base)}")
            return self._time_cell(where, base, source, empty)
        if base.kind == "S":
            return TextCell(base, self._encoding, empty)
        return {"f": FloatCell, "b": BoolCell}.get(base.kind, IntegerCell)(base, empty)

    def _time_cell(self, where: str, base: np.dtype[Any], source: _Source, empty: Any) -> Cell:
        try:
            day = None if source.date is None else datetime.date.fromisoformat(source.date)
        except ValueError as error:
            raise self._error(f"{where}.date", "a date as YYYY-MM-DD") from error
        try:
            zone = ZoneInfo(source.zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise self._error(f"{where}.zone", f'a time zone such as "Asia/Shanghai"; {error}') from error
        try:
            return TimeCell(base, source.time or "", day, zone, source.pad or 0, empty)
        except ValueError as error:
            raise self._error(f"{where}.time", str(error)) from error

    def _columns(self, where: str, source: _Source) -> tuple[str, ...]:
        if source.column is not None:
            return (source.column,)
        if isinstance(source.columns, list):
            return tuple(source.columns)
        pattern = source.columns or ""
        match = re.fullmatch(r"([^{}]*)\{([0-9]{1,9})\.\.([0-9]{1,9})\}([^{}]*)", pattern)
        if match is None:
            raise self._error(f"{where}.columns", 'a list of names or a pattern such as "BidPrice{1..10}"')
        before, first, last, after = match.groups()
        if not int(first) <= int(last) < int(first) + COLUMNS_MAX:
            raise self._error(f"{where}.columns", f"a rising range of at most {COLUMNS_MAX} numbers")
        return tuple(f"{before}{number}{after}" for number in range(int(first), int(last) + 1))

    def _constant(self, where: str, base: np.dtype[Any], shape: tuple[int, ...], given: Scalar | list[Scalar]) -> Any:
        where = f"{where}.constant"
        if not isinstance(given, list):
            return self._fixed(where, base, given)
        if not shape or len(given) != math.prod(shape):
            raise self._error(where, f"a list of {math.prod(shape)}" if shape else "one value, not a list")
        return np.array([self._fixed(where, base, value) for value in given], base).reshape(shape)

    def _fixed(self, where: str, base: np.dtype[Any], given: Scalar) -> Any:
        try:
            return fixed_value(base, given, self._encoding)
        except CellError as error:
            raise self._error(where, f"{error.expected}, not {given!r}") from error

    def _checked_pace(self, name: str) -> str:
        dtype = self._schema.payload_dtype
        names = cast("tuple[str, ...]", dtype.names)
        if name not in names or dtype[name].str not in ("<i8", "<u8"):
            raise self._error("pace.field", f"an i8 or u8 field of schema {self._schema.name!r} with a time in ns")
        return name

    def _checked_filter(self, name: str, accepted: Any) -> tuple[str, frozenset[str]]:
        texts = self._convert(accepted, list[str], f"filter.{name}")
        if not texts:
            raise self._error(f"filter.{name}", "a list of at least one accepted text")
        return name, frozenset(texts)

    def _checked_header(self, header: bool | list[str]) -> tuple[str, ...] | None:
        if header is True:
            return None
        if header is False or not header:
            raise self._error("csv.header", "true, or the list of the column names if the file has no header row")
        return tuple(header)

    def _checked_encoding(self, name: str) -> str:
        """Only encodings in which a byte below 128 that could be a quote, digit or line end is nothing else."""
        problem = "a text encoding that contains ASCII, such as utf-8, latin-1 or gb18030"
        ascii_text = bytes(range(1, 127)).decode("ascii")
        try:
            canonical = codecs.lookup(name).name
            canonical = "utf-8" if canonical == "utf-8-sig" else canonical
            same = ascii_text.encode(canonical) == ascii_text.encode("ascii")
        except (LookupError, ValueError) as error:
            raise self._error("csv.encoding", problem) from error
        if not same or canonical.startswith("iso2022"):
            raise self._error("csv.encoding", problem)
        return canonical


def _type(dtype: np.dtype[Any]) -> str:
    base, shape = dtype.subdtype or (dtype, ())
    return f"{shape}{code(base)}".replace(" ", "") if shape else code(base)


def _listed(names: Sequence[str], limit: int = 40) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
