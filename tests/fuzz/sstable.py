"""Fuzzing the reader of sstables, its verification, and what repair makes of a damaged one.

python tests/fuzz/sstable.py -max_total_time=60
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for whoever runs this file

import numpy as np
from ringmain.storage import Schema, StorageError
from ringmain.storage._log import crc32c
from ringmain.storage._tree import KeyCodec, Merge, State, Table, table_schema_json
from ringmain.storage.table_files import describe, open_table
from ringmain.storage.table_salvage import read_table_file, salvage
from support.keyed import rows_of
from support.sstables import in_table_order, write_table

from fuzz.harness import Given, Target, main

PAGE = 4096
SEQUENCE_MAX = (1 << 64) - 1
POINTS = Schema("points", {"key": "u4", "value": "u8"}, key=("key",))
PAIRS = Schema("pairs", {"a": "S9", "b": "i2", "value": "u8"}, key=("a", "b"))
PLAIN = Schema("plain", {"value": "i4"})
SCHEMAS = (POINTS, PAIRS, PLAIN)


def read(data: bytes, folder: Path) -> Given:
    """Everything that reads a table, with each schema that it could be of."""
    given = Given()
    path = folder / "0000000001.sst"
    path.unlink(missing_ok=True)  # a new file each time: an old one may still be mapped
    path.write_bytes(data)
    with contextlib.suppress(StorageError):
        Schema.from_json(table_schema_json(path))
    for schema in SCHEMAS:
        codec = KeyCodec(schema)
        try:
            table = open_table(path, schema, codec)
        except StorageError:
            continue
        sound = not table.problems()
        try:
            _use(table, given.rows)
        except StorageError:
            assert not sound, "a table that is sound cannot be read"
        if sound:
            given.is_sound = True
            describe(table, schema.name, 0)
    _salvage(path, given.rows)
    return given


def _take(given: set[tuple[Any, ...]], rows: np.ndarray[Any, Any], flags: np.ndarray[Any, Any] | None = None) -> None:
    """Put rows with their flags to what was given; without flags they are no tombstones."""
    marks = [0] * len(rows) if flags is None else flags.tolist()
    given |= {(mark, *row) for mark, row in zip(marks, rows.tolist(), strict=True)}


def _use(table: Table, given: set[tuple[Any, ...]]) -> None:
    codec = table.codec
    rows = table.rows()
    assert len(rows) == table.row_count
    _take(given, rows, table.flags(0, len(rows)))
    table.rows(table.row_count // 2, table.row_count // 2 + 3)
    table.schema_json()
    low, high = (codec.values(table.key_min), codec.values(table.key_max))
    begin, end = table.bounds(low, high)
    assert 0 <= begin <= end <= table.row_count
    state = State(codec, (), (table,), ())
    found, is_there = state.get_many(np.ascontiguousarray(rows[:50]))
    _take(given, found[is_there])
    for row in rows[:: max(1, len(rows) // 8)]:
        state.get(tuple(row[name].item() for name in codec.names), SEQUENCE_MAX)
    out = np.empty(64, codec.dtype)
    for reverse in (False, True):
        merge = Merge(codec, [], [table], low, high, reverse)
        merge.begin_scan(SEQUENCE_MAX)
        while count := merge.fill(out):
            _take(given, out[:count])
    merge = Merge(codec, [], [table])
    merge.begin_compaction([], all_versions=False, bottom=True)
    flags = np.zeros(64, "u1")
    while count := merge.fill(out, flags):
        _take(given, out[:count], flags[:count])


def _salvage(path: Path, given: set[tuple[Any, ...]]) -> None:
    try:
        file = read_table_file(path)
    except StorageError:
        return
    for schema in SCHEMAS:
        if file.schema_hash not in (None, schema.hash):
            continue
        found = salvage(file, schema, None)
        assert found.flags.max(initial=0) <= 1
        _take(given, found.rows, found.flags)


def reseal(data: bytearray, chosen: random.Random) -> None:
    """Right checksums for header, footer, index, sections and blocks; now and then not for all of them."""
    if len(data) < 2 * PAGE:
        return
    foot = len(data) - PAGE
    keep = chosen.random()
    if keep < 0.9:  # the index's checksums of blocks
        offset, size = struct.unpack_from("<QQ", data, foot + 96 + 24)
        for at in range(offset, min(offset + size, len(data) - 24), 24) if size < 1 << 16 else ():
            start, _, length, _ = struct.unpack_from("<QQII", data, at)
            if start < len(data) and length < len(data):
                struct.pack_into("<I", data, at + 20, crc32c(bytes(data[start : start + length])))
    for which in range(6):
        offset, size = struct.unpack_from("<QQ", data, foot + 96 + 24 * which)
        if offset < len(data) and size < len(data) and chosen.random() < 0.97:
            struct.pack_into("<I", data, foot + 96 + 24 * which + 16, crc32c(bytes(data[offset : offset + size])))
    if chosen.random() < 0.9:
        struct.pack_into("<Q", data, foot + 16, len(data))
    for page in (0, foot):
        if chosen.random() < 0.97:
            struct.pack_into("<I", data, page + PAGE - 4, crc32c(bytes(data[page : page + PAGE - 4])))


def make_seeds(folder: Path) -> dict[str, bytes]:
    """Tables of each schema: with and without tombstones and older versions, compressed and not."""
    keys = {
        POINTS: [(key // 2,) for key in range(24)],
        PAIRS: [(b"%d" % (key % 5), key % 3 - 1) for key in range(20)],
    }
    seeds: dict[str, bytes] = {}
    for name, schema, compression, flags in (
        ("points", POINTS, "none", True),
        ("pairs", PAIRS, "none", False),
        ("plain", PLAIN, "none", False),
        ("points-zstd", POINTS, "zstd", True),
        ("pairs-lz4", PAIRS, "lz4", True),
    ):
        if schema is PLAIN:
            rows = np.zeros(9, schema.dtype)
            rows["sequence"], rows["value"] = np.arange(1, 10), np.arange(9)
        else:
            rows = rows_of(schema, keys[schema])
        rows = rows[in_table_order(schema, rows)]
        marks = [number % 5 == 2 for number in range(len(rows))] if flags else None
        path = folder / f"{name}.sst"
        seeds[name] = write_table(path, schema, rows, marks, block_bytes=100, compression=compression).read_bytes()
    return seeds


TARGET = Target("sstable", read, reseal, make_seeds)

if __name__ == "__main__":
    main(TARGET)
