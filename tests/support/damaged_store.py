"""A small store with every kind of byte in its files, what it holds, and how to damage a copy of it.

`Whole` is the store and all that was ever put into it. A damaged copy may give right answers, or documented errors; what repair
makes of it must be right but for what it lists.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ringmain.storage import LogReader, Schema, StorageError, _log
from ringmain.storage._tree import KeyCodec
from ringmain.storage.levels import Shape
from ringmain.storage.log_files import list_files, open_file
from ringmain.storage.manifest import read_manifest
from ringmain.storage.store import Store
from ringmain.storage.store_reader import StoreReader
from ringmain.storage.store_repair import LostRows
from support.keyed import key_values
from support.logs import trim, wait_until
from support.sstables import parts

BOOK = Schema("book", {"key": "u2", "side": "S1", "number": "u8", "note": "S9"}, key=("side", "key"))
TAPE = Schema("tape", {"number": "u4"})
KEPT = Schema("kept", {"key": "i4", "value": "f8"}, key=("key",))
TOPICS = (BOOK, TAPE, KEPT)
SHAPE = Shape(level0_tables=2, ratio=2, table_bytes=1500, level1_bytes=30_000, slowdown_tables=30, stop_tables=40)
PAGE_BYTES = 4096

Key = tuple[Any, ...]
HEADER_FIELDS = {  # by kind of file: the ends of the fields at its beginning
    "table": (8, 12, 16, 24, 32, 40, 48, 52, 56, 60, 64, 128),
    "footer": (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, *range(104, 289, 8), 544, 800),
    "log": (8, 12, 16, 24, 32, 40, 48, 52, 56, 64, 72, 136, 144),
    "manifest": (8, 12, 16, 24, 32, 40, 44, 48, 56, 60, 64),
    "frame": (4, 8, 12, 13, 14, 16, 24, 32, 36, 40, 48, 56, 60, 64),
}


def open_store(directory: Path, compression: Any = "none") -> Store:
    return Store(
        directory,
        TOPICS,
        keep_versions=["kept"],
        sync="never",
        memtable_bytes=1 << 17,
        block_bytes=150,
        compression=compression,
        shape=SHAPE,
        compaction_bytes_per_s=None,
        log_file_bytes=4 << 20,
    )


@dataclass(frozen=True)
class Part:
    """Bytes of a file that are proven together, and what kind they are. offset, end: in the file."""

    kind: str
    offset: int
    end: int


@dataclass
class Whole:
    """A closed store, and all rows and tombstones that were ever put into it, by topic and key: (sequence, bytes or None)."""

    directory: Path
    history: dict[str, dict[Key, dict[int, bytes | None]]] = field(default_factory=dict)
    older: Path = Path()  # as it was at an earlier time

    def newest(self, topic: str, key: Key, until: int = 1 << 63) -> tuple[int, bytes | None]:
        """What a key has as of a sequence."""
        versions = self.history[topic].get(key, {})
        sequence = max((one for one in versions if one <= until), default=0)
        return sequence, versions.get(sequence)

    def copy(self, target: Path) -> Path:
        """A copy made of links: whoever changes a file replaces it."""
        shutil.copytree(self.directory, target, copy_function=os.link, ignore=shutil.ignore_patterns("LOCK"))
        return target

    def files(self) -> list[Path]:
        """All files that count, relative to the directory."""
        return sorted(
            path.relative_to(self.directory)
            for path in self.directory.rglob("*")
            if path.is_file() and path.name != "LOCK"
        )

    def tables(self, topic: str) -> list[Path]:
        infos = read_manifest(self.directory / "store").versions[topic].tables()
        return [Path("store", f"{info.number:010d}.sst") for info in infos]


def make_whole(directory: Path, compression: str) -> Whole:
    """Several sessions of writing, each in a log file of its own; the last rows are in no table yet."""
    random = np.random.default_rng(11)
    number = 0
    for session in range(5):
        with open_store(directory, compression) as store:
            for turn in range(3):
                for _ in range(18):
                    number += 1
                    key, side = int(random.integers(0, 40)), b"BS"[number % 2 : number % 2 + 1]
                    if number % 4 == 3:
                        store["book"].delete(side, key)
                    else:
                        store["book"].put(key, side, number, b"n%d" % number)
                    kept = int(random.integers(-8, 8))
                    if number % 6 == 5:
                        store["kept"].delete(kept)
                    else:
                        store["kept"].put(kept, number / 8)
                if turn != 1:
                    store["tape"].put_batch(np.array([(number + at,) for at in range(20)], TAPE.payload_dtype))
                store.snapshot()
                if turn == 1:
                    store.compact("book" if session % 2 else "kept")
            if session == 4:
                for _ in range(12):
                    number += 1
                    store["book"].put(number % 40, b"B", number, b"late")
                    store["kept"].put(number % 8, float(number))
                store["book"].delete(b"B", number % 40)
                store["kept"].delete(number % 8)
            wait_until(lambda: len(list_files(directory / "log")) == 1)  # the keeper moves what is in tables
        if session == 2:
            shutil.copytree(directory, directory.with_name(directory.name + "-older"))
    older = directory.with_name(directory.name + "-older")
    for part in ("log", "archive"):
        trim(directory / part)
        trim(older / part)
    return Whole(directory, {schema.name: _history(directory, schema) for schema in TOPICS}, older)


def _history(directory: Path, schema: Schema) -> dict[Key, dict[int, bytes | None]]:
    reader = LogReader(directory / "log", schema.name, directory / "archive")
    found: dict[Key, dict[int, bytes | None]] = {}
    sequence = 1
    while (batch := reader.read_all(sequence)) is not None:
        rows, tombstones = batch
        for row in rows:
            found.setdefault(key_values(schema, row), {})[int(row["sequence"])] = None if tombstones else row.tobytes()
        sequence = int(rows["sequence"][-1]) + 1
    return found


# --- what a file's bytes are ------------------------------------------------------------------------------------------


def parts_of(path: Path) -> list[Part]:
    """A file's bytes by kind, without gaps."""
    if path.name == "MANIFEST":
        return list(_manifest_parts(path.read_bytes()))
    if path.suffix == ".sst":
        return [Part(kind, offset, end) for kind, offset, end in parts(path.read_bytes())]
    return list(_log_parts(path))


def _manifest_parts(data: bytes) -> Iterator[Part]:
    yield Part("manifest header", 0, 48)
    yield Part("manifest durable", 48, 64)
    at = 64
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        yield Part("manifest record", at, at + 8 + size)
        at += 8 + size


def _log_parts(path: Path) -> Iterator[Part]:
    names = {
        _log.FRAME_ROWS: "rows",
        _log.FRAME_TOPIC: "topic",
        _log.FRAME_MARK: "mark",
        _log.FRAME_CLOSE: "close",
        _log.FRAME_TOMBSTONES: "tombstones",
    }
    yield Part("log header", 0, PAGE_BYTES)
    file = open_file(path, int(path.name[:10]))
    frames, end = file.scan()
    ends = [*frames["offset"].tolist()[1:], end]
    for frame, behind in zip(frames, ends, strict=True):
        yield Part(f"frame {names[int(frame['kind'])]}", int(frame["offset"]), behind)


def edges_of(part: Part) -> list[int]:
    """Offsets in a part, at least one in each of its fields."""
    kind = part.kind
    fields = {"header": "table", "footer": "footer", "log header": "log", "manifest header": "manifest"}.get(kind)
    fields = "frame" if kind.startswith("frame") else fields
    ends = [part.offset + end for end in HEADER_FIELDS[fields]] if fields is not None else []
    ends = [end for end in ends if end <= part.end]
    return sorted({part.offset, *ends, part.end - 1, (part.offset + part.end) // 2} & set(range(part.offset, part.end)))


# --- damage ------------------------------------------------------------------------------------------------------------


def replace(directory: Path, name: Path, data: bytes) -> None:
    """Give a file of a copy other content; the file that it is a link of stays as it is."""
    path = directory / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def flipped(data: bytes, offset: int, change: int = 0x20) -> bytes:
    return data[:offset] + bytes([data[offset] ^ change]) + data[offset + 1 :]


# --- what a store may answer ---------------------------------------------------------------------------------------------


def every_key(whole: Whole, schema: Schema) -> list[Key]:
    """All keys that ever were, and some that were not."""
    others: Sequence[Key] = {
        "book": [(b"B", 777), (b"X", 1)],
        "tape": [(0,), (10_000,)],
        "kept": [(-99,), (99,)],
    }[schema.name]
    return [*whole.history[schema.name], *others]


def check_reads(whole: Whole, directory: Path, *, to_its_end: bool = False) -> int:
    """Ask a store for everything. Each answer is right, or a documented error. Returns how many errors there were.

    to_its_end: right as of the newest sequence that the store has, which may be an earlier one than there was.
    """
    errors = 0
    try:
        reader = StoreReader(directory, refresh_s=math.inf)
    except (StorageError, FileNotFoundError):
        return 1
    with reader:
        for schema in TOPICS:
            try:
                tree = reader[schema.name]
            except (StorageError, KeyError):
                errors += 1
                continue
            until = tree.sequence if to_its_end else 1 << 63
            for key in every_key(whole, schema):
                try:
                    row = tree.get(*key)
                except StorageError:
                    errors += 1
                    continue
                found = None if row is None else row.tobytes()
                assert found == whole.newest(schema.name, key, until)[1], f"{schema.name} {key}: a wrong row"
            try:
                rows = [row for batch in tree.scan() for row in batch]
            except StorageError:
                errors += 1
                continue
            assert [row.tobytes() for row in rows] == all_rows(whole, schema, until), f"{schema.name}: a wrong scan"
    return errors


def all_rows(whole: Whole, schema: Schema, until: int) -> list[bytes]:
    """What a scan gives as of a sequence."""
    keys = whole.history[schema.name]
    found = [row for key in keys if (row := whole.newest(schema.name, key, until)[1]) is not None]
    rows = np.frombuffer(b"".join(found), schema.dtype)
    words = KeyCodec(schema).encode(rows)
    return [found[at] for at in sorted(range(len(found)), key=lambda at: tuple(words[at].tolist()))]


def check_repaired(whole: Whole, directory: Path, lost: Iterable[LostRows]) -> int:
    """All rows of a repaired store are right but for those that are listed. Returns how many keys are not as they were."""
    listed = list(lost)
    changed = 0
    with StoreReader(directory, refresh_s=math.inf) as reader:
        for schema in TOPICS:
            tree = reader[schema.name]
            got: list[bytes] = []
            for key in every_key(whole, schema):
                row = tree.get(*key)
                found = None if row is None else row.tobytes()
                sequence, right = whole.newest(schema.name, key)
                got += [] if found is None else [found]
                if found == right:
                    continue
                changed += 1
                assert _is_listed(schema, key, sequence, listed), (
                    f"{schema.name} {key}, sequence {sequence}: lost, not listed"
                )
                older = [row for number, row in whole.history[schema.name][key].items() if number < sequence]
                assert found is None or found in older, f"{schema.name} {key}: a row that never was"
            scanned = [row.tobytes() for batch in tree.scan() for row in batch]
            assert sorted(scanned) == sorted(got)
            if schema is KEPT:
                _check_versions(whole, tree.history, listed)
    return changed


def _check_versions(whole: Whole, history: Callable[..., Any], listed: Sequence[LostRows]) -> None:
    for key, versions in whole.history["kept"].items():
        found = [row.tobytes() for row in history(*key)]
        right = [row for _, row in sorted(versions.items(), reverse=True) if row is not None]
        missing = {sequence for sequence, row in versions.items() if row is not None and row not in found}
        assert found == [row for row in right if row in found]
        assert all(_is_listed(KEPT, key, sequence, listed) for sequence in missing), (key, missing)


def _is_listed(schema: Schema, key: Key, sequence: int, lost: Sequence[LostRows]) -> bool:
    codec = KeyCodec(schema)

    def words(values: Key) -> tuple[int, ...]:
        row = np.zeros(1, schema.dtype)
        for name, value in zip(codec.names, values, strict=True):
            row[name] = value
        return tuple(codec.encode(row)[0].tolist())

    return any(
        entry.topic == schema.name
        and entry.first <= sequence <= entry.last
        and (entry.keys is None or words(entry.keys[0]) <= words(key) <= words(entry.keys[1]))
        for entry in lost
    )
