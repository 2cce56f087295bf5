"""Ticks of an index future from their original file: a packed, unaligned 402-byte struct, compressed as one frame.

The file is little-endian. Bytes 0..7: magic, `&^%$#@!` and a NUL. 8..9: u16, 24 for historical ticks. 10..11: u16, 2
for the old struct, compressed. 12..19: u64, the bytes of the zstd frame that follows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard
from ringmain.storage import Schema

Rows = npt.NDArray[np.void]

FOLDER = "cffex_if_ticks_202101"
FILES = ("CFFEX.IF.HOT_tick_20210104.dsb", "CFFEX.IF.HOT_tick_20210105.dsb")
TICKS = Schema.from_toml(Path(__file__).with_name("schemas.toml"))["futures_ticks"]
PACKED = np.dtype([(field.name, TICKS.payload_dtype[field.name]) for field in TICKS.fields])
RECORD_BYTES = 402
PAYLOAD_BYTES_MAX = 1 << 30

_HEADER = struct.Struct("<8sHHQ")
_MAGIC, _HISTORICAL_TICKS, _OLD_COMPRESSED = b"&^%$#@!\0", 24, 2

assert PACKED.itemsize == RECORD_BYTES


def load_ticks(path: Path) -> dict[str, Rows]:
    """Return the file's ticks as {"futures_ticks": rows}. ValueError names the file and what is wrong with it."""
    packed = np.frombuffer(read_records(path), PACKED)
    rows = np.zeros(len(packed), TICKS.payload_dtype)
    for name in PACKED.names or ():
        rows[name] = packed[name]
    return {TICKS.name: rows}


def read_records(path: Path) -> bytes:
    """Return the packed records of a file, decompressed."""
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise ValueError(f"{path}: {len(data)} bytes are too few for the header of {_HEADER.size}")
    magic, kind, version, frame_bytes = _HEADER.unpack_from(data)
    if (magic, kind, version) != (_MAGIC, _HISTORICAL_TICKS, _OLD_COMPRESSED):
        raise ValueError(f"{path}: magic {magic!r}, type {kind}, version {version}; expected {_MAGIC!r}, 24, 2")
    frame = data[_HEADER.size :]
    if len(frame) != frame_bytes:
        raise ValueError(f"{path}: the header tells of {frame_bytes} bytes, {len(frame)} follow it")
    try:
        if not 0 < zstandard.frame_content_size(frame) <= PAYLOAD_BYTES_MAX:
            raise ValueError(f"{path}: the frame does not hold between 1 and {PAYLOAD_BYTES_MAX} bytes")
        records = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise ValueError(f"{path}: byte {_HEADER.size}: {error}") from error
    if len(records) % RECORD_BYTES:
        raise ValueError(f"{path}: {len(records)} bytes are not a whole number of {RECORD_BYTES}-byte records")
    return records


def to_records(rows: Rows) -> bytes:
    """Return the packed records of the original file; rows may carry the 16-byte stamp."""
    packed = np.zeros(len(rows), PACKED)
    for name in PACKED.names or ():
        packed[name] = rows[name]
    return packed.tobytes()


def to_columns(rows: Rows) -> Mapping[str, list[str]]:
    """Return the columns of the set's CSV file as text: of the ten levels, it has only the best."""
    columns: dict[str, list[str]] = {}
    for name in PACKED.names or ():
        if TICKS.payload_dtype[name].shape:
            continue
        values = rows[name].tolist()
        columns[name] = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    for side in ("bid", "ask"):
        columns[f"{side}_price1"] = [str(value) for value in rows[f"{side}_prices"][:, 0].tolist()]
        columns[f"{side}_qty1"] = [str(value) for value in rows[f"{side}_qty"][:, 0].tolist()]
    return columns
