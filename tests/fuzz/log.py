"""Fuzzing the readers of a log: recovery, history, and what repair plans for a damaged one.

python tests/fuzz/log.py -max_total_time=60
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
from ringmain.storage import LogReader, Schema, StorageError, _log
from ringmain.storage._log import crc32c
from ringmain.storage.damage import plan
from ringmain.storage.recovery import examine
from support.logs import PAIRS, POINTS, Builder, make_rows

from fuzz.harness import Given, Target, main

PAGE, FRAME = _log.LOG_HEADER_BYTES, _log.FRAME_HEADER_BYTES
RUN_MAX = 10_000  # batches of one topic that are read


def read(data: bytes, folder: Path) -> Given:
    """Everything that reads a log of one file."""
    given = Given()
    path = folder / "0000000001.log"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    try:
        contents = examine(folder)
    except StorageError:
        return given
    for name in {*contents.topics, "points", "pairs"}:
        try:
            _read_topic(folder, name, given.rows)
        except StorageError:
            assert contents.problems or name not in contents.topics, f"topic {name} of a sound log cannot be read"
    with contextlib.suppress(StorageError):
        plan(folder)
    given.is_sound = not contents.problems
    return given


def _read_topic(folder: Path, name: str, given: set[tuple[Any, ...]]) -> None:
    reader = LogReader(folder, name)
    sequence, newest = reader.oldest, reader.newest
    for _ in range(RUN_MAX):
        found = reader.read_all(sequence, newest)
        if found is None:
            break
        rows, _ = found
        assert len(rows) > 0
        given |= {(name, *row) for row in rows.tolist()}
        sequence += len(rows)
    reader.find_time(1_700_000_000_000_000_000)
    reader.read(reader.oldest)


def reseal(data: bytearray, chosen: random.Random) -> None:
    """Right checksums for the header and for each frame that begins where one ends."""
    if len(data) < PAGE:
        return
    if chosen.random() < 0.95:
        struct.pack_into("<I", data, PAGE - 4, crc32c(bytes(data[: PAGE - 4])))
    at = PAGE
    while at + FRAME <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 8)
        if size < FRAME or size > len(data) - at or chosen.random() < 0.02:
            break
        if chosen.random() < 0.5:
            struct.pack_into("<Q", data, at + 16, (int.from_bytes(data[32:40], "little") + at) % (1 << 64))
        struct.pack_into("<I", data, at + 4, crc32c(bytes(data[at + 8 : at + size])))
        at += size


def make_seeds(folder: Path) -> dict[str, bytes]:
    """A log with frames of every kind, one that was never written to, and one that a repair has gone over."""
    builder = Builder(folder / "full")
    builder.begin()
    builder.rows(POINTS, 3)
    builder.rows(PAIRS, 1)
    builder.mark()
    tombstones = make_rows(POINTS, builder.next["points"], 2)
    builder._add(
        _log.FRAME_TOMBSTONES,
        tombstones.tobytes(),
        topic=0,
        first_sequence=int(tombstones["sequence"][0]),
        row_count=2,
        first_timestamp_ns=int(tombstones["timestamp_ns"][0]),
        row_bytes=POINTS.row_bytes,
    )
    builder.next["points"] += 2
    builder.rows(POINTS, 2)
    builder.close()
    empty = Builder(folder / "empty", [Schema("only", {"value": "f8"})])
    empty.begin()
    gap = Builder(folder / "gap")
    gap.begin()
    gap.rows(PAIRS, 2)
    lost = np.array([(3, 4, 1, 0)], _log.LOST_DTYPE)
    gap._add(_log.FRAME_GAP, lost.tobytes(), row_count=1)
    gap.next["pairs"] = 7
    gap.rows(PAIRS, 2)
    gap.mark()
    return {
        "every-kind": bytes(builder.data),
        "empty": bytes(empty.data),
        "gap": bytes(gap.data),
    }


TARGET = Target("log", read, reseal, make_seeds)

if __name__ == "__main__":
    main(TARGET)
