"""Rows as columns: Arrow tables, and the data frames of pandas and polars.

1. In rows the fields of a record lie side by side, in a column those of all records do: each column is copied once here, as a
   whole, and a data frame then shares what it can with the table. What comes out holds on to no row.
2. units.py says what a field means. Times become timestamps in UTC, whole numbers of "1/10,000 EUR" decimals, bytes strings
   (with \\x escapes where they are not UTF-8; fixed-size binary where the unit says bytes), arrays fixed-size lists.
3. pyarrow is an extra, and nobody has to have pandas or polars: each is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .field_types import read_type
from .schema import Field, Schema
from .units import all_fields, decimal_places, is_text, time_unit

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

__all__ = ["to_arrow", "to_pandas", "to_polars"]

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
Column: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PIECE_BYTES_MAX = (1 << 31) - 1  # of text in a column's piece: Arrow counts them in 32 bits
DIGITS = {"i1": 3, "u1": 3, "i2": 5, "u2": 5, "i4": 10, "u4": 10, "i8": 19, "u8": 20}
DIGITS_MAX = 38  # of a decimal
SCHEMA_KEY = b"ringmain.schema"


def to_arrow(rows: Rows, schema: Schema) -> pyarrow.Table:
    """Rows as an Arrow table.

    rows: of the schema's dtype, or some of its fields, as `rows[["sequence", "price"]]` has them.
    The table's metadata holds the schema, as JSON, under "ringmain.schema". Raises ModuleNotFoundError saying what to install,
    TypeError where these are no rows of the schema.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to_arrow needs `pip install ringmain[arrow]`") from None
    fields = _fields_of(rows, schema)
    described = pa.schema([(field.name, _type(pa, field)) for field in fields], {SCHEMA_KEY: schema.to_json()})
    step = PIECE_BYTES_MAX // schema.row_bytes
    pieces = [
        pa.record_batch([_array(pa, field, rows[field.name][at : at + step]) for field in fields], schema=described)
        for at in range(0, len(rows), step)
    ]
    return pa.Table.from_batches(pieces, described)


def to_pandas(rows: Rows, schema: Schema) -> pandas.DataFrame:
    """Rows as a pandas data frame. Decimals and arrays are columns of Arrow's, all others as pandas has them.

    Raises as `to_arrow`.
    """
    table = to_arrow(rows, schema)
    try:
        import pandas
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to_pandas needs `pip install pandas`") from None
    import pyarrow.types as types

    def column_type(kind: Any) -> Any:
        return pandas.ArrowDtype(kind) if types.is_decimal(kind) or types.is_fixed_size_list(kind) else None

    return table.to_pandas(types_mapper=column_type)


def to_polars(rows: Rows, schema: Schema) -> polars.DataFrame:
    """Rows as a polars data frame. Raises as `to_arrow`."""
    table = to_arrow(rows, schema)
    try:
        import polars
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to_polars needs `pip install polars`") from None
    return polars.from_arrow(table)


def _fields_of(rows: Rows, schema: Schema) -> list[Field]:
    """The fields that rows have."""
    fields = {field.name: field for field in all_fields(schema)}
    names = rows.dtype.names or ()
    if rows.ndim != 1 or not names or any(rows.dtype[name] != schema.dtype[name] for name in names if name in fields):
        raise TypeError(
            f"topic {schema.name!r}: a one-dimensional array of its rows is expected, got {rows.ndim} dimensions of {rows.dtype}"
        )
    if unknown := [name for name in names if name not in fields]:
        raise TypeError(f"topic {schema.name!r}: it has no fields {', '.join(unknown)}")
    return [fields[name] for name in names]


def _type(pa: Any, field: Field) -> Any:
    kind = _scalar_type(pa, field)
    for length in reversed(read_type(field.type).shape):
        kind = pa.list_(kind, length)
    return kind


def _scalar_type(pa: Any, field: Field) -> Any:
    scalar, places = read_type(field.type).scalar, decimal_places(field)
    if (unit := time_unit(field)) is not None:
        return pa.timestamp(unit, "UTC")
    if places is not None:
        return pa.decimal128(min(max(DIGITS[scalar], places), DIGITS_MAX), places)
    if scalar[0] == "S":
        return pa.string() if is_text(field) else pa.binary(int(scalar[1:]))
    return pa.from_numpy_dtype(np.dtype(scalar))


def _array(pa: Any, field: Field, column: Column) -> Any:
    """A column of rows as an Arrow array of its own memory."""
    values = np.array(column, order="C").reshape(-1)  # a copy in any case: the rows may be overwritten, or hold a file
    kind = _scalar_type(pa, field)
    if time_unit(field) is not None:
        array = pa.array(values.astype("i8", copy=False)).view(kind)
    elif decimal_places(field) is not None:
        array = _decimals(pa, values, kind)
    elif is_text(field):
        array = _strings(pa, values)
    elif values.dtype.kind == "S":
        array = pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    else:
        array = pa.array(values)
    for length in reversed(column.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def _decimals(pa: Any, values: Column, kind: Any) -> Any:
    """Whole numbers as decimals: 128 bits each, the lower half first, the sign going on in the upper one."""
    halves = np.empty((len(values), 2), "i8")
    halves[:, 0] = values if values.dtype.kind == "i" else values.astype("u8").view("i8")
    halves[:, 1] = halves[:, 0] >> 63 if values.dtype.kind == "i" else 0
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(halves)])


def _strings(pa: Any, values: Column) -> Any:
    """Texts without the zeros behind them, as numpy reads them. (Given the array itself, Arrow would end at the first zero.)"""
    sizes = np.strings.str_len(values)
    offsets = np.zeros(len(values) + 1, "i4")
    np.cumsum(sizes, out=offsets[1:])
    cells = values.view("u1").reshape(len(values), values.dtype.itemsize)
    packed = cells[np.arange(values.dtype.itemsize) < sizes[:, np.newaxis]]
    array = pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(packed)])
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:  # not all of it is UTF-8
        return pa.array([value.decode("utf-8", "backslashreplace") for value in values.tolist()], pa.string())
