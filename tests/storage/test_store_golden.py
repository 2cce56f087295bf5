"""The formats of a store's own files, pinned: what lies in golden/ must stay readable, and is written the same today."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from ringmain.storage import Schema, _log
from ringmain.storage._log import crc32c
from ringmain.storage.manifest import Edit, Manifest, TopicInfo, read_manifest
from ringmain.storage.manifest_reader import MANIFEST_NAME, ManifestFile
from ringmain.storage.version import TableInfo
from support.keyed import Rows, key_values
from support.sstables import LOG_ID, blocks, info_of, opened, sections, write_table

GOLDEN = Path(__file__).parent / "golden"
CREATED_NS = 1_700_000_000_000_000_000
PAIRS = Schema("pairs", {"left": "i8"}, description="the smallest row there is")
LEVELS = Schema("levels", {"price": "i8", "size": "u4", "side": "S1"}, key=("price", "side"))
TABLE = TableInfo(
    number=1,
    topic="pairs",
    level=0,
    file_bytes=12_288,
    row_count=2,
    tombstone_count=0,
    sequence_min=1,
    sequence_max=2,
    timestamp_min_ns=CREATED_NS,
    timestamp_max_ns=CREATED_NS + 5,
    key_min=(1,),
    key_max=(2,),
)


def write_manifest(directory: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(time, "time_ns", lambda: CREATED_NS)
    with Manifest(directory, LOG_ID) as manifest:
        manifest.commit(Edit(topics={"pairs": TopicInfo(schema=PAIRS.to_json().decode())}))
        manifest.commit(Edit(added=[TABLE], checkpoints={"pairs": 2}))
        manifest.commit(
            Edit(
                added=[msgspec.structs.replace(TABLE, level=3)],
                removed=[1],
                next_number=7,
            )
        )
        return manifest.path.read_bytes()


def rows() -> Rows:
    """Two versions of some keys, negative ones among them."""
    found = np.zeros(9, LEVELS.dtype)
    found["price"] = [-3, -3, -1, 0, 0, 2, 2, 2, 1 << 40]
    found["side"] = [b"A", b"A", b"B", b"A", b"B", b"A", b"A", b"B", b"A"]
    found["sequence"] = [9, 2, 3, 4, 8, 6, 1, 7, 5]
    found["size"] = found["sequence"] * 10
    found["timestamp_ns"] = CREATED_NS + found["sequence"].astype("i8")
    found["size"][4] = 0
    return found


def write_sstable(directory: Path) -> bytes:
    flags = np.arange(9) == 4
    return write_table(directory / "0000000005.sst", LEVELS, rows(), flags, number=5, block_bytes=128).read_bytes()


def test_a_manifest_is_written_as_it_was(tmp_path, monkeypatch):
    written = write_manifest(tmp_path, monkeypatch)
    assert written.hex(" ", 8) == (GOLDEN / "manifest-v1.bin").read_bytes().hex(" ", 8)


def test_a_manifest_reads_as_it_did(tmp_path):
    (tmp_path / MANIFEST_NAME).write_bytes((GOLDEN / "manifest-v1.bin").read_bytes())
    state = read_manifest(tmp_path, LOG_ID)
    assert state.topics == {"pairs": TopicInfo(schema=PAIRS.to_json().decode())}
    (moved,) = state.versions["pairs"].tables()
    assert (moved.number, moved.level, moved.sequence_max, moved.key_max) == (1, 3, 2, (2,))
    assert (state.checkpoints, state.next_number, state.log_id) == ({"pairs": 2}, 7, LOG_ID)
    file = ManifestFile(tmp_path / MANIFEST_NAME, LOG_ID)
    file.close()
    assert (file.header.generation, file.header.created_ns, file.torn_bytes) == (1, CREATED_NS, 0)
    with Manifest(tmp_path, LOG_ID) as manifest:
        assert manifest.state == state


def test_an_sstable_is_written_as_it_was(tmp_path):
    assert write_sstable(tmp_path).hex(" ", 8) == (GOLDEN / "sstable-v1.bin").read_bytes().hex(" ", 8)


def test_an_sstable_reads_as_it_did():
    data = (GOLDEN / "sstable-v1.bin").read_bytes()
    table = opened(GOLDEN / "sstable-v1.bin", LEVELS)
    assert table.problems() == []
    assert table.rows().tobytes() == rows().tobytes()
    assert table.flags(0, 9).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert table.schema_json() == LEVELS.to_json()
    info = info_of(table)
    assert (info.number, info.row_count, info.tombstone_count, table.shadowed_count) == (5, 9, 1, 2)
    assert (info.sequence_min, info.sequence_max) == (1, 9)
    assert table.codec.values(info.key_min) == key_values(LEVELS, rows()[0])
    assert table.codec.values(info.key_max) == key_values(LEVELS, rows()[-1])
    assert (table.block_rows, table.compression, table.log_id, table.created_ns) == (4, "none", LOG_ID, CREATED_NS)
    assert blocks(data) == [(4096, 128), (4224, 128), (4352, 32)]
    assert {name: offset for name, (offset, _) in sections(data).items()} == {
        "keys": 4416,
        "blocks": 4480,
        "tags": 4608,
        "bloom": 4672,
        "tombstones": 4736,
        "schema": 4800,
    }


# --- readers made from the format page and nothing else ------------------------------------------------------------------


def page_of(part: str) -> str:
    """A part of the page, from its heading to the next one of its kind."""
    page = (Path(_log.__file__).parent / "FORMAT.md").read_text()
    return page.split(f"\n# {part}\n")[1].split("\n# ")[0]


def described(part: str, heading: str, data: bytes) -> dict[str, Any]:
    """The numbers and texts that a table of the page finds in bytes which begin where its offset 0 is."""
    text = page_of(part).split(f"# {heading}\n")[1].split("\n#")[0]
    found: dict[str, Any] = {}
    for offsets, kind, names in re.findall(r"^\| ([\d, ]+) \| (u32|u64|i64|\d+ bytes) \| ([^|]*) \|", text, re.M):
        for offset, name in zip(offsets.split(", "), re.findall(r"`(\w+)`", names), strict=True):
            field = data[int(offset) :]
            size = {"u32": 4, "u64": 8, "i64": 8}.get(kind) or int(kind.split()[0])
            is_number = kind[0] in "ui"
            found[name] = int.from_bytes(field[:size], "little", signed=kind[0] == "i") if is_number else field[:size]
    return found


def test_the_format_page_says_where_everything_is_in_a_manifest():
    data = (GOLDEN / "manifest-v1.bin").read_bytes()
    assert described("The manifest", "Header, 64 bytes", data) == {
        "magic": b"RMAINMAN",
        "version": 1,
        "byte_order": 0x01020304,
        "log_id": LOG_ID,
        "generation": 1,
        "created_ns": CREATED_NS,
        "header_bytes": 64,
        "crc": crc32c(data[:44]),
        "durable_bytes": len(data),
        "durable_crc": crc32c(struct.pack("<QQ", LOG_ID, 1) + data[48:60]),
    }
    at, edits = 64, list[Any]()
    while at < len(data):
        size, crc = struct.unpack_from("<II", data, at)
        payload = data[at + 8 : at + 8 + size]
        assert crc == crc32c(struct.pack("<QQQI", LOG_ID, 1, at, size) + payload)
        edits.append(json.loads(payload))
        at += 8 + size
    assert at == len(data)
    table = json.loads(msgspec.json.encode(TABLE))
    assert edits == [
        {"next_number": 1},
        {"topics": {"pairs": {"schema": PAIRS.to_json().decode(), "keep_versions": False}}},
        {"added": [table], "checkpoints": {"pairs": 2}},
        {"removed": [1], "added": [table | {"level": 3}], "next_number": 7},
    ]
    text = page_of("The manifest").split("## Edits")[1].split("\n## ")[0]
    assert {name for edit in edits for name in edit} == set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert table.keys() == set(re.findall(r"`(\w+)`", text.split("\nA table: ")[1].split("All are there")[0]))


def key_words(price: int, side: bytes) -> tuple[int, int]:
    key = (price + (1 << 63)).to_bytes(8, "big") + side
    first, second = struct.unpack(">QQ", key.ljust(16, b"\0"))
    return first, second


def hash_of(words: tuple[int, ...]) -> int:
    low, found = (1 << 64) - 1, 0x9E3779B97F4A7C15
    for word in words:
        product = (word ^ 0xA0761D6478BD642F) * (found ^ 0xE7037ED1A0B428DB)
        found = (product >> 64) ^ (product & low)
    found = (found ^ found >> 32) * 0xD6E8FEB86659FD93 & low
    return found ^ found >> 32


def test_the_format_page_says_where_everything_is_in_an_sstable():
    data, low = (GOLDEN / "sstable-v1.bin").read_bytes(), (1 << 64) - 1
    foot = data[-4096:]
    header = described("Sstables", "Header", data)
    assert header == {
        "magic": b"RMAINSST",
        "version": 1,
        "byte_order": 0x01020304,
        "table_number": 5,
        "schema_hash": LEVELS.hash,
        "log_id": LOG_ID,
        "created_ns": CREATED_NS,
        "row_bytes": LEVELS.row_bytes,
        "key_bytes": 9,
        "block_rows": 4,
        "compression": 0,
        "topic": b"levels".ljust(64, b"\0"),
        "crc": crc32c(data[:4092]),
    }
    footer = described("Sstables", "Footer, the last 4096 bytes", foot)
    assert footer == {
        "magic": b"RMAINEND",
        "table_number": 5,
        "file_bytes": len(data),
        "row_count": 9,
        "block_count": 3,
        "tombstone_count": 1,
        "shadowed_count": 2,
        "sequence_min": 1,
        "sequence_max": 9,
        "timestamp_min_ns": CREATED_NS + 1,
        "timestamp_max_ns": CREATED_NS + 9,
        "bloom_lines": 1,
        "crc": crc32c(foot[:4092]),
    }
    section = dict[str, bytes]()
    names = re.findall(r"^\| (\d) \| (\w+) \|", page_of("Sstables").split("### Sections")[1].split("###")[0], re.M)
    for number, name in names:
        offset, size, crc, zero = struct.unpack_from("<QQII", foot, 96 + 24 * int(number))
        section[name] = data[offset : offset + size]
        assert (offset % 64, crc32c(section[name]), zero) == (0, crc, 0), name
    assert len(names) == 6
    entries = list(struct.iter_unpack("<QQII", section["blocks"]))
    stored = [data[offset : offset + size] for offset, _, size, _ in entries]
    assert [crc32c(block) for block in stored] == [crc for *_, crc in entries]
    assert b"".join(stored) == rows().tobytes()
    assert [sequence for _, sequence, _, _ in entries] == rows()["sequence"][::4].tolist()
    keys = [key_words(price, side.ljust(1, b"\0")) for price, side in rows()[["price", "side"]].tolist()]
    assert section["keys"] == b"".join(struct.pack("<QQ", *key) for key in keys[::4])
    for at, key in ((288, keys[0]), (544, keys[-1])):
        assert struct.unpack_from("<32Q", foot, at) == key + (0,) * 30
    hashes = [hash_of(key) for key in keys]
    assert section["tags"] == bytes(found >> 56 for found in hashes)
    line = 0
    for found in hashes:
        assert found * footer["bloom_lines"] >> 64 == 0
        mixed = found * 0x9E3779B97F4A7C15 & low
        for bit in range(7):
            line |= 1 << (mixed >> 9 * bit & 511)
    assert section["bloom"] == line.to_bytes(64, "little")
    assert section["tombstones"] == (1 << 4).to_bytes(8, "little")
    assert section["schema"] == LEVELS.to_json()


def test_the_worked_examples_of_the_format_page_are_these_files():
    for part, name, line_count in (("The manifest", "manifest-v1.bin", 12), ("Sstables", "sstable-v1.bin", 19)):
        text = page_of(part).split(f"`tests/storage/golden/{name}`")[1]
        lines = re.findall(
            r"^    ([0-9a-f]{8})  ((?:[0-9a-f]{2} {1,2})+|(?:[0-9a-f]{2} {1,2})*[0-9a-f]{2}$)", text, re.M
        )
        assert len(lines) == line_count, name
        for offset, shown in lines:
            data = bytes.fromhex(shown)
            assert (GOLDEN / name).read_bytes()[int(offset, 16) :][: len(data)] == data, (name, offset)
