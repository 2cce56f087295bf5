"""Fuzzing the readers of a manifest: at once, as a follower, and what repair makes of a damaged one.

python tests/fuzz/manifest.py -max_total_time=60
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for whoever runs this file

import msgspec
from ringmain.storage import Schema, StorageError, manifest_salvage
from ringmain.storage._log import crc32c
from ringmain.storage.manifest import Edit, Manifest, ManifestFollower, TopicInfo
from ringmain.storage.manifest_format import (
    DURABLE,
    DURABLE_OFFSET,
    FIXED,
    HEADER_BYTES,
    Header,
    encode_durable,
    encode_record,
)
from ringmain.storage.manifest_reader import ManifestFile
from ringmain.storage.manifest_salvage import read_evidence
from ringmain.storage.manifest_state import State
from support.tables import table

from fuzz.harness import Given, Target, main

LOG_ID = 0x1234_5678_9ABC_DEF0


def read(data: bytes, folder: Path) -> Given:
    """Everything that reads a manifest. What it gives as rows are tables."""
    given = Given()
    path = folder / "MANIFEST"
    path.write_bytes(data)
    state: State | None = None
    try:
        file = ManifestFile(path, None)
        state = file.state
        file.close()
        assert State.empty(state.log_id).edit(state.as_edit()) == state
        given.rows |= {msgspec.structs.astuple(table) for table in state.as_edit().added}
    except StorageError:
        state = None
    half = HEADER_BYTES + (len(data) - HEADER_BYTES) // 2
    path.write_bytes(data[:half])
    with contextlib.suppress(StorageError), ManifestFollower(folder) as follower:
        path.write_bytes(data)
        follower.refresh()
    path.write_bytes(data)
    try:
        with patch.object(
            manifest_salvage, "GENERATION_MAX", 1_000
        ):  # a search that takes long and always does the same
            evidence = read_evidence(path, LOG_ID)
        assert state is None or evidence.is_whole
        given.rows |= {msgspec.structs.astuple(table) for table in evidence.tables.values()}
    except StorageError:
        assert state is None
    given.is_sound = state is not None
    return given


def reseal(data: bytearray, chosen: random.Random) -> None:
    """Right checksums for the header and for each record that begins where one ends."""
    if len(data) < HEADER_BYTES:
        return
    if chosen.random() < 0.95:
        struct.pack_into("<I", data, FIXED.size, crc32c(bytes(data[: FIXED.size])))
    header = Header(*FIXED.unpack_from(data)[3:6])
    at = HEADER_BYTES
    while at + 8 < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        if size > len(data) - at - 8 or chosen.random() < 0.02:
            break
        data[at : at + 8] = encode_record(header, at, bytes(data[at + 8 : at + 8 + size]))[:8]
        at += 8 + size
    (durable,) = struct.unpack_from("<Q", data, DURABLE_OFFSET)
    data[DURABLE_OFFSET : DURABLE_OFFSET + DURABLE.size + 4] = encode_durable(
        header, at if chosen.random() < 0.8 else durable
    )


def make_seeds(folder: Path) -> dict[str, bytes]:
    """One that was just made, one after edits of every kind, before and after a writer has begun it anew, and two on the way.

    Each table stands in the state of one of them.
    """
    topic = TopicInfo(schema=Schema("points", {"value": "u8"}).to_json().decode(), keep_versions=True)
    with Manifest(folder, LOG_ID) as manifest:
        empty = manifest.path.read_bytes()
        manifest.commit(Edit(topics={"points": topic}))
        manifest.commit(Edit(added=[table(1, 0, 9)], checkpoints={"points": 19}))
        manifest.commit(Edit(added=[table(2, 5, 20), table(3, 30, 40)], checkpoints={"points": 39}))
        grown = manifest.path.read_bytes()
        manifest.commit(Edit(added=[table(4, 0, 40, level=1)], removed=[1, 2, 3]))
        merged = manifest.path.read_bytes()
        manifest.commit(Edit(added=[table(4, 0, 40, level=2)], removed=[4], next_number=9))
        edited = manifest.path.read_bytes()
    with Manifest(folder, LOG_ID) as manifest:
        rewritten = manifest.path.read_bytes()
    return {"empty": empty, "grown": grown, "merged": merged, "edits": edited, "rewritten": rewritten}


TARGET = Target("manifest", read, reseal, make_seeds)

if __name__ == "__main__":
    main(TARGET)
