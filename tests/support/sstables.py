"""Sstables for tests: written from plain rows, opened, and taken apart into the kinds of bytes that a file has."""

from __future__ import annotations

import importlib.util
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.storage import Schema
from ringmain.storage._log import crc32c
from ringmain.storage._tree import KeyCodec, Table, TableWriter
from ringmain.storage.table_files import compressor, open_table
from ringmain.storage.version import TableInfo
from support.keyed import Rows, key_order, key_values

PAGE_BYTES = 4096  # header and footer
SECTIONS = ("keys", "blocks", "tags", "bloom", "tombstones", "schema")
LOG_ID = 0x1234_5678_9ABC_DEF0
MODULES = {"zstd": "zstandard", "lz4": "lz4"}


def needs(compression: str) -> str:
    """A compression's name; skips the test where it cannot be had."""
    module = MODULES.get(compression)
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"the package {module} is not installed; `pip install ringmain[compression]` brings it")
    return compression


COMPRESSIONS = ("none", "zstd", "lz4")


def in_table_order(schema: Schema, rows: Rows) -> np.ndarray[Any, Any]:
    """The indices that bring rows into a table's order: keys rising, within a key the newest first."""
    order = [(key_order(schema, key_values(schema, row)), -int(row["sequence"])) for row in rows]
    return np.array(sorted(range(len(rows)), key=order.__getitem__), np.intp)


def write_table(
    path: Path,
    schema: Schema,
    rows: Rows,
    flags: Sequence[Any] | np.ndarray[Any, Any] | None = None,
    *,
    number: int = 1,
    block_bytes: int = 256,
    compression: str = "none",
    log_id: int = LOG_ID,
    created_ns: int = 1_700_000_000_000_000_000,
    add_rows: int = 1 << 30,
) -> Path:
    """Write rows, which are in order already, `add_rows` at a time. flags: which are tombstones."""
    marks = None if flags is None else np.array(flags, "u1")
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        writer = TableWriter(
            KeyCodec(schema),
            descriptor,
            path,
            schema=schema,
            table_number=number,
            log_id=log_id,
            created_ns=created_ns,
            block_bytes=block_bytes,
            compression=compression,
            compress=compressor(compression)[0],
        )
        for first in range(0, len(rows), add_rows):
            part = slice(first, min(first + add_rows, len(rows)))
            writer.add(rows[part], None if marks is None else marks[part].copy())
        writer.finish()
        assert writer.row_count == len(rows)
    finally:
        os.close(descriptor)
    return path


def opened(path: Path, schema: Schema) -> Table:
    return open_table(path, schema, KeyCodec(schema))


def info_of(table: Table, level: int = 0) -> TableInfo:
    """What the manifest would say of a table."""
    fields = {name: getattr(table, name) for name in TableInfo.__struct_fields__ if name != "level"}
    return TableInfo(level=level, **fields)


def sections(data: bytes) -> dict[str, tuple[int, int]]:
    """(offset, bytes) of each section, as the footer has it."""
    at = len(data) - PAGE_BYTES + 96
    return {name: struct.unpack_from("<QQ", data, at + 24 * place) for place, name in enumerate(SECTIONS)}


def blocks(data: bytes) -> list[tuple[int, int]]:
    """(offset, bytes) of each block, as the index has it."""
    offset, size = sections(data)["blocks"]
    return [
        (start, length)
        for start, _, length, _ in (struct.unpack_from("<QQII", data, at) for at in range(offset, offset + size, 24))
    ]


def parts(data: bytes) -> list[tuple[str, int, int]]:
    """A file's parts as (kind, offset, end), without gaps: header, block, each section, padding, footer."""
    known = [("header", 0, PAGE_BYTES), ("footer", len(data) - PAGE_BYTES, len(data))]
    known += [("block", offset, offset + size) for offset, size in blocks(data)]
    known += [(name, offset, offset + size) for name, (offset, size) in sections(data).items() if size]
    found: list[tuple[str, int, int]] = []
    position = 0
    for kind, offset, end in sorted(known, key=lambda part: part[1]):
        assert offset >= position, "parts overlap"
        if offset > position:
            found.append(("padding", position, offset))
        found.append((kind, offset, end))
        position = end
    assert position == len(data)
    return found


def sealed(data: bytes | bytearray, *, header: bool = True, footer: bool = True) -> bytes:
    """The same file with the right checksums of header and footer."""
    changed = bytearray(data)
    for wanted, start in ((header, 0), (footer, len(changed) - PAGE_BYTES)):
        if wanted:
            struct.pack_into("<I", changed, start + 4092, crc32c(bytes(changed[start : start + 4092])))
    return bytes(changed)
