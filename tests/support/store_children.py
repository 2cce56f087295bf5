"""The processes that the store's kill tests kill: a writer and a reader (forked.py runs them), and what a store must hold.

1. Row `n` of a topic follows from `n`: its key, whether it deletes that, and every byte of it. So all that a store may hold follows
   from the newest sequence of each topic, and nothing that the store says has to be believed.
2. The writer stores `attempted` before a call and `returned` after it, by topic: what it was told is stored, and what may be.
3. A reader checks all that it sees, and ends with an error at the first thing that is wrong.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ringmain.storage import Schema, Shape, Store, StoreReader
from ringmain.storage.tree import KeysAt, Tree
from support import forked

MIXES = ("mix0", "mix1", "mix2")
KEY_COUNT = 300
LOG_FILE_BYTES = 4 << 20
MIXER = np.uint64(0x9E3779B97F4A7C15)

Rows = np.ndarray[Any, np.dtype[np.void]]
Numbers = np.ndarray[Any, np.dtype[np.uint64]]


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topic:
    """How a topic's rows follow from their sequences. keys: in the order of their encoding; none for a topic without a key."""

    schema: Schema
    keys: Rows | None = None
    keeps_versions: bool = False

    @property
    def name(self) -> str:
        return self.schema.name

    def key_at(self, sequences: Numbers) -> np.ndarray[Any, Any]:
        """Which of `keys` each row has."""
        return ((sequences * MIXER >> np.uint64(40)) % np.uint64(KEY_COUNT)).astype(np.intp)

    def deletes(self, sequences: Numbers) -> np.ndarray[Any, Any]:
        """Which rows delete their key. Times with many deletes take turns with times with few."""
        if self.keys is None:
            return np.zeros(len(sequences), bool)
        share = np.where(sequences // np.uint64(3000) % np.uint64(3) == 2, 60, 15).astype("u8")
        return (sequences * MIXER >> np.uint64(20)) % np.uint64(100) < share

    def rows(self, sequences: Numbers) -> Rows:
        """The payloads of these rows."""
        rows = np.zeros(len(sequences), self.schema.payload_dtype)
        if self.keys is not None:
            for name in self.schema.key:
                rows[name] = self.keys[name][self.key_at(sequences)]
        rows["number"] = sequences
        for index, name in enumerate(MIXES):
            rows[name] = (sequences * MIXER) >> np.uint64(index) ^ sequences
        return rows

    def expect(self, sequence: int) -> Numbers:
        """The sequences of the rows that are there as of a sequence, in the order of their keys."""
        if self.keys is None:
            return numbers(1, sequence)
        newest = np.zeros(KEY_COUNT, "u8")
        for first in range(1, sequence + 1, 1 << 16):
            some = numbers(first, min(sequence, first + (1 << 16) - 1))
            np.maximum.at(newest, self.key_at(some), some)
        there = newest[newest > 0]
        return there[~self.deletes(there)]

    def expect_history(self, sequence: int, key: int) -> Numbers:
        """The sequences of a key's rows that are not tombstones, the newest first."""
        some = numbers(1, sequence)
        mine = some[self.key_at(some) == key]
        return mine[~self.deletes(mine)][::-1]

    def check(self, rows: Rows, expected: Numbers) -> None:
        assert np.array_equal(rows["sequence"], expected), f"{self.name}: {_difference(rows['sequence'], expected)}"
        payloads = self.rows(expected)
        for name in payloads.dtype.names or ():
            assert (rows[name] == payloads[name]).all(), f"{self.name}: {name}"
        stamps = rows["timestamp_ns"][np.argsort(rows["sequence"])]
        assert (np.diff(stamps) >= 0).all(), f"{self.name}: time runs backwards"

    def check_row(self, row: np.void, key: int) -> None:
        """It is one that some sequence gives to the key, whole."""
        rows = np.array([row], self.schema.dtype)
        self.check(rows, rows["number"])
        assert self.key_at(rows["number"]) == [key]
        assert not self.deletes(rows["number"])[0]

    def check_all(self, tree: KeysAt, sequence: int, choice: random.Random) -> None:
        """A tree or view holds exactly what it should as of a sequence: forwards, backwards, by keys, and by history."""
        expected = self.expect(sequence)
        empty = np.empty(0, self.schema.dtype)
        self.check(np.concatenate([empty, *tree.scan(batch_rows=choice.choice([50, 500, 8192]))]), expected)
        self.check(np.concatenate([empty, *tree.scan(reverse=True)]), expected[::-1])
        if self.keys is None:
            return
        rows, found = tree.get_many(self.keys)
        self.check(rows[found], expected)
        assert np.flatnonzero(found).tolist() == self.key_at(expected).tolist(), (
            f"{self.name}: deleted, and there again"
        )
        key = choice.randrange(KEY_COUNT)
        history = tree.history(*self.keys[key].item())
        wanted = self.expect_history(sequence, key)
        if not self.keeps_versions:  # some may be gone, but never the newest
            current = expected[self.key_at(expected) == key]
            assert history["sequence"][:1].tolist() == current.tolist() or not len(current)
            wanted = wanted[np.isin(wanted, history["sequence"])]
        self.check(history, wanted)


def _difference(found: Numbers, expected: Numbers) -> str:
    count = min(len(found), len(expected))
    different = np.flatnonzero(found[:count] != expected[:count])
    at = int(different[0]) if len(different) else count
    return f"{len(found)} rows, {len(expected)} expected, from {at} on {found[at : at + 5]} instead of {expected[at : at + 5]}"


def numbers(first: int, last: int) -> Numbers:
    return np.arange(first, last + 1, dtype="u8")


def _names() -> Rows:
    """Keys of two fields, with bytes that a comparison as text would order otherwise."""
    keys = np.zeros(KEY_COUNT, [("name", "S9"), ("side", "<i2")])
    keys["name"] = [b"%c%d" % (0x40 + 3 * (at // 2) % 0xC0, at // 2) for at in range(KEY_COUNT)]
    keys["side"] = [-1 if at % 2 == 0 else 1 for at in range(KEY_COUNT)]
    return np.sort(keys, order=("name", "side"))


def _prices() -> Rows:
    keys = np.zeros(KEY_COUNT, [("price", "<i8")])
    keys["price"] = np.arange(KEY_COUNT) - KEY_COUNT // 2
    return keys


MARKS = {"number": "u8", **dict.fromkeys(MIXES, "u8")}
TOPICS = (
    Topic(Schema("book", {"price": "i8", **MARKS}, key=("price",)), _prices()),
    Topic(Schema("names", {"name": "S9", "side": "i2", **MARKS}, key=("name", "side")), _names(), keeps_versions=True),
    Topic(Schema("tape", MARKS)),
)


# --- the store --------------------------------------------------------------------------------------------------------


def open_store(directory: Path | str, choice: random.Random, topics: Sequence[Topic] = TOPICS) -> Store:
    """The store, small everywhere: it flushes and compacts all the time, each time it is opened in another way."""
    return Store(
        directory,
        [topic.schema for topic in topics],
        sync=choice.choice(["interval", "always", "never"]),
        keep_versions=[topic.name for topic in topics if topic.keeps_versions],
        memtable_bytes=choice.choice([1 << 12, 1 << 13, 1 << 15]),
        immutable_max=choice.choice([1, 2, 3]),
        block_bytes=choice.choice([200, 1000, 4096]),
        compression=choice.choice(["none", "zstd", "lz4"]),
        shape=Shape(level0_tables=2, ratio=3, table_bytes=1 << 16, level1_bytes=1 << 16, stop_tables=16),
        snapshot_interval=choice.choice([None, 0.01]),
        compaction_bytes_per_s=choice.choice([None, 16 << 20]),
        log_file_bytes=LOG_FILE_BYTES,
        archive=choice.choice([True, False])
        or (Path(directory) / "archive").exists(),  # no store is opened without its own
        archive_bytes=choice.choice([16 << 30, 0]),
    )


NAMES = tuple(topic.name for topic in TOPICS)


class Place(forked.Place):
    """Of each topic, by its name behind the word."""

    WORDS = (
        "stop",  # the test: end in good order
        "open",  # the store is open; the reader has looked once
        "closed",  # it ended in good order
        *(f"opened_{name}" for name in NAMES),  # writer: the newest sequence when it had opened
        *(f"attempted_{name}" for name in NAMES),  # writer: the last sequence that the call under way would give
        *(f"returned_{name}" for name in NAMES),  # writer: the last sequence that a call has returned
        *(f"tables_{name}" for name in NAMES),  # writer: up to here a snapshot that has returned put it into tables
        *(f"position_{name}" for name in NAMES),  # reader: the newest sequence that it has found good
        "looks",  # reader: how often it has looked at all topics
    )


# --- roles ------------------------------------------------------------------------------------------------------------


def write(place: Place, directory: str, seed: int, topics: Sequence[str] = NAMES) -> None:
    """Put one by one and in batches, delete, and now and then snapshot and compact, until told to stop or killed."""
    choice = random.Random(seed)
    mine = [topic for topic in TOPICS if topic.name in topics]
    with open_store(directory, choice, mine) as store:
        for topic in mine:
            last = store[topic.name].core.visible
            for word in ("opened", "attempted", "returned"):
                place[f"{word}_{topic.name}"] = last
        place["open"] = 1
        while not place["stop"]:
            for _ in range(choice.randint(1, 30)):
                write_some(store[(topic := choice.choice(mine)).name], topic, place, choice)
            kind = choice.random()
            if kind < 0.05:
                lasts = {topic.name: place[f"returned_{topic.name}"] for topic in mine}
                if kind < 0.01:
                    store.compact()
                else:
                    store.snapshot()
                for name, last in lasts.items():
                    place[f"tables_{name}"] = last
            elif kind < 0.1:
                store.sync()
    place["closed"] = 1


def write_some(tree: Tree, topic: Topic, place: Place, choice: random.Random) -> None:
    """One delete, one put, or a batch that ends before the next delete."""
    attempted, returned = f"attempted_{topic.name}", f"returned_{topic.name}"
    first = place[returned] + 1
    ahead = numbers(first, first + choice.choice([0, 0, 0, 3, 20]))
    deletes = topic.deletes(ahead)
    if deletes[0]:
        assert topic.keys is not None
        place[attempted] = first
        assert tree.delete(*topic.keys[topic.key_at(ahead)[0]].item()) == first
        place[returned] = first
        return
    count = int(np.argmax(deletes)) or len(ahead)
    rows = topic.rows(ahead[:count])
    place[attempted] = first + count - 1
    assert (tree.put(*rows[0].item()) if count == 1 else tree.put_batch(rows)) == first + count - 1
    place[returned] = first + count - 1


def read(place: Place, directory: str, seed: int) -> None:
    """Follow the store and check everything again and again, until told to stop or killed."""
    choice = random.Random(seed)
    with StoreReader(directory, refresh_s=choice.choice([0, 0.002]), memtable_bytes=1 << 13) as store:
        while not place["stop"]:
            for topic in TOPICS:
                if topic.name not in store:
                    continue
                with store[topic.name].at() as view:
                    word = f"position_{topic.name}"
                    assert view.sequence >= place[word], f"{topic.name} went back from {place[word]} to {view.sequence}"
                    topic.check_all(view, view.sequence, choice)
                    place[word] = view.sequence
            place["looks"] += 1
            place["open"] = 1
            time.sleep(choice.random() * 0.01)
    place["closed"] = 1


ROLES = {"write": write, "read": read}

if __name__ == "__main__":
    forked.serve(ROLES, Place)
