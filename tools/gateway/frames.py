"""What the server sends: rows as bytes or as JSON, and everything else as JSON. The prose is FORMAT.md; change both together."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from ...storage import Schema
from ...subscribers.folding import Rows
from ..row_formats import column_values

__all__ = [
    "HEADER",
    "Frame",
    "Message",
    "decode_rows",
    "describe",
    "encode_binary",
    "encode_json",
    "encode_message",
    "json_row_bytes_max",
]

Message: TypeAlias = bytes | str

VERSION = 1
CONFLATED = 1
HEADER = struct.Struct("<BBHIIIQQQ")  # version, flags, header bytes, stream, row count, row bytes, first, last, lost
assert HEADER.size == 40


class Frame(NamedTuple):
    """A binary message, decoded. rows: a view of the message."""

    stream: int
    first: int
    last: int
    lost: int
    conflated: bool
    rows: Rows


def encode_binary(stream: int, rows: Rows, first: int, last: int, lost: int, conflated: bool) -> bytes:
    flags = CONFLATED if conflated else 0
    header = HEADER.pack(VERSION, flags, HEADER.size, stream, len(rows), rows.itemsize, first, last, lost)
    return header + rows.tobytes()


def decode_rows(message: bytes, dtype: np.dtype[np.void]) -> Frame:
    """Decode what `encode_binary` made. Raises ValueError where that cannot be."""
    if len(message) < HEADER.size:
        raise ValueError(f"{HEADER.size} bytes of a header are expected, got {len(message)}")
    version, flags, header_bytes, stream, count, row_bytes, first, last, lost = HEADER.unpack_from(message)
    if version != VERSION:
        raise ValueError(f"version {VERSION} is expected, got {version}")
    if row_bytes != dtype.itemsize or len(message) != header_bytes + count * row_bytes:
        raise ValueError(
            f"{count} rows of {dtype.itemsize} bytes are expected, got rows of {row_bytes} and {len(message)} bytes in all"
        )
    rows = np.frombuffer(message, dtype, count, header_bytes)
    return Frame(stream, first, last, lost, bool(flags & CONFLATED), rows)


def encode_json(stream: int, rows: Rows, first: int, last: int, lost: int, conflated: bool) -> str:
    names = rows.dtype.names or ()
    columns = [column_values(rows[name]) for name in names]
    objects = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return encode_message("rows", stream=stream, first=first, last=last, lost=lost, conflated=conflated, rows=objects)


def json_row_bytes_max(dtype: np.dtype[np.void]) -> int:
    """How long a row can be as JSON, whatever is in it."""
    return sum(len(f'"{name}":,'.encode()) + _json_bytes_max(dtype[name]) for name in dtype.names or ()) + len("{},")


def _json_bytes_max(kind: np.dtype[Any]) -> int:
    if kind.shape:
        length = _json_bytes_max(kind.base)
        for count in reversed(kind.shape):
            length = len("[]") + count * (length + len(","))
        return length
    match kind.kind:
        case "S":
            return len('""') + len("\\u0000") * kind.itemsize
        case "b":
            return len("false")
        case "f":
            return len("-2.2250738585072014e-308")
        case _:
            limits = np.iinfo(kind)
            return max(len(str(limits.min)), len(str(limits.max)))


def encode_message(kind: str, **facts: Any) -> str:
    return msgspec.json.encode({"type": kind, **facts}).decode()


def describe(schema: Schema) -> dict[str, Any]:
    """The schema and the dtype of rows, for a message."""
    fields = schema.dtype.fields or {}
    names = list(fields)
    kinds = [fields[name][0] for name in names]
    formats = [f"{kind.shape}{kind.base.str}" if kind.shape else kind.str for kind in kinds]
    return {
        "schema": msgspec.Raw(schema.to_json()),
        "dtype": {
            "names": names,
            "formats": [spelling.replace("|b1", "?").replace("|", "") for spelling in formats],
            "offsets": [fields[name][1] for name in names],
            "itemsize": schema.row_bytes,
        },
    }
