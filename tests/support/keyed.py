"""Keys for tests: schemas of every key type, values for them, and what order means, said in plain Python."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from ringmain.storage import Schema

Rows = np.ndarray[Any, np.dtype[np.void]]
Order = tuple[Any, ...]

NUMBERS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
BYTES = ("S1", "S3", "S7", "S8", "S9", "S16", "S40")
KEY_TYPES = NUMBERS + BYTES


def order(kind: str, value: Any) -> Order:
    """What to compare instead of a key field's value: two values are one key exactly when these are equal."""
    if kind.startswith("S"):
        return (bytes(value).ljust(int(kind[1:]), b"\0"),)
    if not kind.startswith("f"):
        return (int(value),)
    sign = -1 if math.copysign(1.0, value) < 0 else 1
    if math.isnan(value):  # outside of the infinities, and one beside another by its bits
        size, code = (4, "<f") if kind == "f4" else (8, "<d")
        payload = int.from_bytes(struct.pack(code, value), "little") & ((1 << (8 * size - 1)) - 1)
        return (sign, sign * payload)
    return (0, float(value), sign)  # -0.0 comes before 0.0


def key_order(schema: Schema, values: Sequence[Any]) -> Order:
    """What to compare instead of a key, given by its values (all of them, or the first ones)."""
    kinds = {column.name: column.type for column in schema.fields} | {"sequence": "u8"}
    names = schema.key or ("sequence",)
    return tuple(order(kinds[name], value) for name, value in zip(names, values, strict=False))


def key_values(schema: Schema, row: np.void) -> tuple[Any, ...]:
    """A row's key, as Python values."""
    return tuple(row[name].item() for name in schema.key or ("sequence",))


def values_of(kind: str) -> st.SearchStrategy[Any]:
    """Values that a field of this type can hold, the extreme ones among them."""
    if kind == "?":
        return st.booleans()
    if kind.startswith("S"):
        length = int(kind[1:])
        edges = [b"", b"\0", b"\0" * (length - 1) + b"\1", b"\x7f" * length, b"\x80", b"\xff" * length]
        return st.sampled_from([edge for edge in edges if len(edge) <= length]) | st.binary(max_size=length)
    if kind.startswith("f"):
        width = 8 * int(kind[1:])
        edges = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 5e-324 if width == 64 else 2.0**-149, 1.0, -1.0]
        return st.sampled_from(edges) | st.floats(width=32 if width == 32 else 64)
    bits = 8 * int(kind[1:])
    low, high = (0, (1 << bits) - 1) if kind.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    near = [low, low + 1, -1, 0, 1, high // 2, high // 2 + 1, high - 1, high, 255, 256]
    return st.sampled_from([value for value in near if low <= value <= high]) | st.integers(low, high)


def keyed(*kinds: str, name: str = "keyed", value: str = "u8", backwards: bool = False) -> Schema:
    """A schema with key fields k0, k1, … of these types, and a field `value`; backwards: the row has them the other way round."""
    fields = {f"k{place}": kind for place, kind in enumerate(kinds)} | {"value": value}
    if backwards:
        fields = dict(reversed(fields.items()))
    return Schema(name, fields, key=[f"k{place}" for place in range(len(kinds))])


@st.composite
def keyed_schemas(draw: st.DrawFn, fields_max: int = 4) -> Schema:
    """Schemas with 1 to `fields_max` key fields of any types."""
    kinds = draw(st.lists(st.sampled_from(KEY_TYPES), min_size=1, max_size=fields_max))
    return keyed(*kinds, backwards=draw(st.booleans()))


@st.composite
def keys_of(draw: st.DrawFn, schema: Schema, count_max: int = 12, count_min: int = 1) -> list[tuple[Any, ...]]:
    """Keys of a schema as value tuples, many with the same first values, and some twice."""
    kinds = {column.name: column.type for column in schema.fields}
    few = [
        draw(st.lists(values_of(kinds[name]), min_size=1, max_size=4 if len(schema.key) > 1 else count_max))
        for name in schema.key
    ]
    one = st.tuples(*(st.sampled_from(values) for values in few))
    return draw(st.lists(one, min_size=count_min, max_size=count_max))


def rows_of(schema: Schema, keys: Sequence[tuple[Any, ...]], first_sequence: int = 1) -> Rows:
    """Rows with these keys and sequences from `first_sequence` on; `value` and the time follow from the sequence."""
    rows = np.zeros(len(keys), schema.dtype)
    rows["sequence"] = np.arange(first_sequence, first_sequence + len(keys))
    rows["timestamp_ns"] = rows["sequence"].astype("i8") * 1000 + 7
    for place, name in enumerate(schema.key):
        for at, key in enumerate(keys):
            rows[name][at] = key[place]
    rows["value"] = rows["sequence"] * np.uint64(0x9E3779B97F4A7C15) if schema.dtype["value"] == "u8" else 0
    return rows


def taken(rows: Rows, index: Any) -> Rows:
    """The same as `rows[index]`, with the bytes between the fields, which numpy leaves behind."""
    return rows.view(f"V{rows.dtype.itemsize}")[index].view(rows.dtype)
