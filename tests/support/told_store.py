"""A small store for tests of what it keeps, and what is known of the rows in it: tried, or acknowledged as durable."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from ringmain.storage import Schema
from ringmain.storage.levels import Shape
from ringmain.storage.log import LOG_FILE_BYTES_MIN
from ringmain.storage.store import Store
from ringmain.storage.store_verify import verify_store
from ringmain.storage.tree import Tree

THINGS = Schema("things", {"key": "u2", "value": "u8"}, key=["key"])
KEPT = Schema("kept", {"key": "u1", "value": "u8"}, key=["key"])  # all versions
FILLER = Schema("filler", {"key": "u1", "value": "u8", "nothing": "S60000"}, key=["key"])  # fills log files; all zeros
SCHEMAS = (THINGS, KEPT, FILLER)
KEYS = 12
FILLER_ROWS, GROUPS_OF_A_FILE = 17, 3  # rows of one group of the log, 1 MB; more groups do not fit into a file


def open_store(directory: Path, **settings: Any) -> Store:
    """A store with tables of a few rows, log files of 4 MiB, and a flush only when it is asked for."""
    fixed: dict[str, Any] = {
        "keep_versions": ["kept"],
        "memtable_bytes": 4 << 20,
        "block_bytes": 256,
        "shape": Shape(level0_tables=2, ratio=2, table_bytes=400, level1_bytes=30_000),
        "snapshot_interval": None,
        "log_file_bytes": LOG_FILE_BYTES_MIN,
    }
    return Store(directory, SCHEMAS, **{**fixed, **settings})


def value_of(sequence: int) -> int:
    """What a row with this sequence holds."""
    return sequence * 0x9E3779B97F4A7C15 % (1 << 64)


def file_kind(name: str) -> str:
    """A file's name without what differs from one to the next."""
    for differs, same in ((r"\d{10}", "N"), (r"spare-.*", "spare"), (r"MANIFEST\..*", "MANIFEST.new")):
        name = re.sub(differs, same, name)
    return name


# --- what is known ----------------------------------------------------------------------------------------------------


class Note(msgspec.Struct, omit_defaults=True):
    """What the process says of a topic of the store in a directory, `where` by name; it is busy with that store from then on.

    trying: the next rows, (key, whether it is deleted), as one batch. durable: everything so far is acknowledged.
    stands: the store was opened, and has the rows up to this one. begun, done: something else that is done with the directory.
    """

    where: str
    topic: str
    trying: list[tuple[int, bool]] = []
    durable: bool = False
    stands: int | None = None
    begun: str = ""
    done: str = ""


@dataclass
class Topic:
    """A topic by the notes so far. history: (key, deleted) of each sequence, from 1 on."""

    history: list[tuple[int, bool]] = field(default_factory=list[tuple[int, bool]])
    ends: list[int] = field(default_factory=lambda: [0])  # of the batches: all or nothing of one is there
    durable: int = 0

    def add(self, rows: list[tuple[int, bool]]) -> None:
        """These are tried next, as one batch."""
        self.history += rows
        self.ends.append(len(self.history))

    def cut_off(self, sequence: int) -> None:
        """What was tried behind a sequence is not there."""
        del self.history[sequence:]
        self.ends = [end for end in self.ends if end <= sequence]

    def newest(self, sequence: int) -> dict[int, int]:
        """The sequence of each key's row, as of a sequence."""
        return {
            key: versions[0] for key, versions in self.versions(sequence).items() if not self._is_gone(key, sequence)
        }

    def versions(self, sequence: int) -> dict[int, list[int]]:
        """The sequences of each key's rows, the newest first, as of a sequence."""
        found: dict[int, list[int]] = {}
        for at, (key, deleted) in enumerate(self.history[:sequence], 1):
            if not deleted:
                found.setdefault(key, []).insert(0, at)
        return found

    def _is_gone(self, key: int, sequence: int) -> bool:
        return next(deleted for other, deleted in reversed(self.history[:sequence]) if other == key)


@dataclass
class Told:
    """What the notes say: what was tried, and what of it was acknowledged as durable."""

    topics: dict[str, Topic] = field(default_factory=lambda: {schema.name: Topic() for schema in SCHEMAS})

    def take(self, note: Note) -> None:
        topic = self.topics[note.topic]
        if note.stands is not None:
            topic.cut_off(note.stands)
        if note.trying:
            topic.add(note.trying)
        if note.durable:
            topic.durable = len(topic.history)


# --- what must be there -----------------------------------------------------------------------------------------------


def check_opened(store: Store, told: Told) -> dict[str, int]:
    """All that was durable is there, nothing is invented, nothing is missing in between. Returns where each topic stands."""
    stood = {name: stats.sequence for name, stats in store.stats().items()}
    for name, topic in told.topics.items():
        last = stood[name]
        assert topic.durable <= last <= len(topic.history), f"{name}: {topic.durable} were durable, {last} are there"
        assert last in topic.ends, f"{name}: a batch was cut in two at {last}"
        check_rows(store[name], topic, last)
    return stood


def check_rows(tree: Tree, topic: Topic, last: int) -> None:
    """A topic is just what it was at a sequence."""
    newest, versions = topic.newest(last), topic.versions(last)
    found = {int(row["key"]): (int(row["sequence"]), int(row["value"])) for rows in tree.scan() for row in rows}
    assert found == {key: (sequence, value_of(sequence)) for key, sequence in newest.items()}, tree.schema.name
    for key in range(KEYS):
        row = tree.get(key)
        assert (None if row is None else int(row["sequence"])) == newest.get(key), (tree.schema.name, key)
        if tree.keeps_versions:
            assert tree.history(key)["sequence"].tolist() == versions.get(key, []), (tree.schema.name, key)


def check_goes_on(store: Store, stood: dict[str, int]) -> None:
    """Writing continues with the next sequence, and what is written reaches a table."""
    for name, last in stood.items():
        assert store[name].delete(0) == last + 1
        assert store[name].put(key=1, value=1, **({"nothing": b""} if name == "filler" else {})) == last + 2
    store.snapshot()
    for name in stood:
        assert store[name].get(0) is None
        row = store[name].get(1)
        assert row is not None
        assert int(row["value"]) == 1


def check_tidy(directory: Path) -> None:
    """Everything in a closed store's directory is proven, and nothing is left there that no opening would remove."""
    verified = verify_store(directory)
    assert verified.findings == ()
    assert verified.strays == ()
    assert verified.lost_count == 0
    assert not list((directory / "log").glob("spare-*"))
    assert {path.name for path in directory.iterdir()} <= {"log", "store", "archive"}
