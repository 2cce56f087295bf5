"""A store's life on a recording disk (`recording_disk.c`): what it is about to do and what was acknowledged goes into the journal.

Run as `python -m support.recorded_store KIND SEED DIRECTORY…`. `Told`, made from the notes, is what must be there after a cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ringmain.storage import Log, Schema, log, manifest
from ringmain.storage.backup import backup
from ringmain.storage.log import LOG_FILE_BYTES_MIN
from ringmain.storage.log_files import NAME
from ringmain.storage.log_tail import cut_tail
from ringmain.storage.restore import restore
from ringmain.storage.store import Store
from support.logs import append, wait_until
from support.told_store import FILLER_ROWS, GROUPS_OF_A_FILE, KEYS, SCHEMAS, Note, open_store, value_of

ROUNDS_MAX = 12
NEVER_S = 1e6
CUT = Schema("cut", {"value": "u8", "nothing": "S60000"})  # rows fill log files, and are nearly all zeros
CUT_ROWS, CUT_AT = 150, 30

# --- the process ------------------------------------------------------------------------------------------------------


class Life:
    """Puts and deletes by chance, each told before it begins and when it is acknowledged."""

    store: Store

    def __init__(self, directory: Path, seed: str) -> None:
        self.directory, self.rng = directory, random.Random(seed)
        self._sync = ""
        self._tell: Callable[[bytes], None] = ctypes.CDLL(None).recording_note

    @contextlib.contextmanager
    def open(self, sync: str, **settings: Any) -> Iterator[None]:
        """Live with an open store for a while. sync: "always", "never", or "on demand"."""
        self._note(SCHEMAS[0].name)
        with open_store(
            self.directory, sync="interval" if sync == "on demand" else sync, sync_interval=NEVER_S, **settings
        ) as self.store:
            self._sync = sync
            for topic, stats in self.store.stats().items():
                self._note(topic, stands=stats.sequence, durable=sync != "never")
            yield
        self._all_is_durable()

    def write(self) -> None:
        """One put, delete or batch."""
        topic = self.rng.choice(("things", "things", "kept"))
        kind = self.rng.choice(("put", "put", "delete", "batch"))
        keys = [self.rng.randrange(KEYS) for _ in range(self.rng.randint(2, 8) if kind == "batch" else 1)]
        tree = self.store[topic]
        first = tree.core.next_sequence
        self._note(topic, trying=[(key, kind == "delete") for key in keys])
        if kind == "put":
            tree.put(keys[0], value_of(first))
        elif kind == "delete":
            tree.delete(keys[0])
        else:
            rows = np.zeros(len(keys), tree.schema.payload_dtype)
            rows["key"], rows["value"] = keys, [value_of(first + at) for at in range(len(keys))]
            tree.put_batch(rows)
        if self._sync == "always":
            self._note(topic, durable=True)

    def fill(self, groups: int = 1) -> None:
        """A batch that takes whole groups of the log, of rows that are zeros."""
        tree, count = self.store["filler"], groups * FILLER_ROWS
        rows = np.zeros(count, tree.schema.payload_dtype)
        rows["value"] = [value_of(tree.core.next_sequence + at) for at in range(count)]
        self._note("filler", trying=[(0, False)] * count)
        tree.put_batch(rows)
        if self._sync == "always":
            self._note("filler", durable=True)

    def sync(self) -> None:
        self.store.sync()
        self._all_is_durable()

    def snapshot(self) -> None:
        """Everything so far is then in tables that a committed manifest names."""
        self.store.snapshot()
        self._all_is_durable()

    def compact(self) -> None:
        self.store.compact()
        self._all_is_durable()

    def log_files(self) -> dict[int, int]:
        """The numbers of the log files, by inode."""
        with os.scandir(self.directory / "log") as entries:  # no stat: another thread may move a file meanwhile
            return {entry.inode(): int(match[1]) for entry in entries if (match := NAME.fullmatch(entry.name))}

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Something that is not the store's own work, told as it begins and as it is done."""
        self._note(SCHEMAS[0].name, begun=what)
        yield
        self._note(SCHEMAS[0].name, done=what)

    def _all_is_durable(self) -> None:
        for schema in SCHEMAS if self._sync != "never" else ():
            self._note(schema.name, durable=True)

    def _note(self, topic: str, **what: Any) -> None:
        self._tell(msgspec.json.encode(Note(self.directory.name, topic, **what)))


def live_with_log_files(life: Life) -> None:
    """Log files fill, and snapshots release them: one by one, to be recycled, then several, to be recycled, removed or archived."""
    with life.open("always", archive=False):
        numbers: dict[int, int] = {}
        for _ in range(ROUNDS_MAX):
            for _ in range(GROUPS_OF_A_FILE):
                life.write()
                life.fill()
            life.snapshot()
            now = life.log_files()
            if any(numbers.setdefault(inode, number) != number for inode, number in now.items()):
                break
    for archive, spare_count_max in ((False, log.SPARE_COUNT_MAX), (False, log.SPARE_COUNT), (True, log.SPARE_COUNT)):
        log.SPARE_COUNT_MAX = spare_count_max
        with life.open("on demand", archive=archive, archive_bytes=2 * LOG_FILE_BYTES_MIN):
            for groups in (1, 2) * GROUPS_OF_A_FILE:
                life.write()
                life.fill(groups)
                life.sync()
            life.write()
            life.snapshot()
            wait_until(lambda: len(life.log_files()) == 1)
            for _ in range(5):
                life.write()


def live_with_tables(life: Life) -> None:
    """Small memtables are flushed and compacted while putting goes on; the manifest is written anew every few edits."""
    manifest.REWRITE_BYTES_MIN = 1
    for sync in ("always", "on demand"):
        with life.open(sync, memtable_bytes=900):
            for step in range(24):
                life.write()
                if step % 9 == 8 and sync == "on demand":
                    life.sync()
                if step == 11:
                    life.snapshot()
                if step == 20:
                    life.compact()


def live_without_syncs(life: Life) -> None:
    """Nobody waits for the log to be on the disk; the tables are."""
    for _ in range(2):
        with life.open("never", memtable_bytes=900):
            for _ in range(10):
                life.write()
            life.snapshot()
            life.write()


def recover(life: Life) -> None:
    """What a store does after a cut, and a few puts."""
    with life.open("always"):
        for _ in range(3):
            life.write()
        life.snapshot()


def be_backed_up(life: Life) -> None:
    """Backups are made as a log grows by whole files, only the newest two are kept, and the newest is restored."""
    place = life.directory.parent
    with life.open("always"):
        for _ in range(4):
            for _ in range(GROUPS_OF_A_FILE):
                life.fill()
            life.snapshot()
            life.write()
            with life.step("backup"):
                backup(life.directory, place / "backups", keep=2)
    with life.step("restore"):
        restore(place / "backups", place / "restored")


def be_archived(life: Life) -> None:
    """Several log files go into the archive at once, and as many from there, for which there is no room."""
    archive = life.directory / "archive"
    with life.open("always", memtable_bytes=64 << 20, archive_bytes=LOG_FILE_BYTES_MIN):
        for _ in range(5 * GROUPS_OF_A_FILE):
            life.fill()
        with life.step("archive"):
            life.snapshot()
            wait_until(lambda: len(life.log_files()) == 1 and len(os.listdir(archive)) < 3)


def be_cut(life: Life) -> None:
    """A log's end is cut off, of which there are several files."""
    log = Log(life.directory / "log", [CUT], file_bytes=LOG_FILE_BYTES_MIN)
    for _ in range(CUT_ROWS // 10):
        append(log, CUT, 10)
    log.close()
    with life.step("cut"):
        cut_tail(life.directory, {"cut": CUT_AT})


LIVES = {
    "log files": live_with_log_files,
    "tables": live_with_tables,
    "no syncs": live_without_syncs,
    "recovery": recover,
    "backup": be_backed_up,
    "archive": be_archived,
    "cut": be_cut,
}


def main() -> None:
    kind, seed, *directories = sys.argv[1:]
    for directory in directories:
        LIVES[kind](Life(Path(directory), f"{seed} {Path(directory).name}"))


if __name__ == "__main__":
    main()
