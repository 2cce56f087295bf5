"""A tree that another process writes: its tables as the manifest names them, and memtables of what the log holds behind them.

1. The manifest is looked at before the log: rows up to its checkpoint are in its tables, and those behind are in the log. Where
   the writer has removed one of them meanwhile, the manifest says something newer, and both are taken from there.
2. The memtables hold the rows behind the checkpoint without a gap, oldest first. One goes when a checkpoint covers all of it; in
   one that is covered in part some rows are in a table as well, which changes no answer: the newest row of a key decides.
3. Who reads takes the state and the newest sequence in it together (`_seen`), which are replaced together: a thread that reads
   while another takes in what is new sees a moment before or after, and never half of a batch.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._tree import KeyCodec, Memtable, State, Table
from .errors import Corruption, FormatMismatch, StorageError
from .log_files import list_files
from .log_reader import HistoryGone, LogReader
from .manifest_reader import ManifestFollower
from .schema import Schema
from .table_files import TableFiles
from .tree import Rows, Tree, View, ViewGone
from .version import TableInfo, Version

__all__ = ["ReaderSettings", "Refreshed", "TreeReader"]

TRIES_MAX = 100  # each one more means that the writer has changed the topic's tables since the one before
GROWTH = 4  # a new memtable takes at most this part of the memory


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """refresh_s: how old what is read may be. memtable_bytes: of the smallest memtable. memory_bytes: of a topic's memtables."""

    refresh_s: float
    memtable_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh found: rows in the log (tombstones count), tables that were not there before. False where nothing is new."""

    row_count: int = 0
    table_count: int = 0

    def __bool__(self) -> bool:
        return bool(self.row_count or self.table_count)

    def __add__(self, other: Refreshed) -> Refreshed:
        return Refreshed(self.row_count + other.row_count, self.table_count + other.table_count)


class FrozenView(View):
    """A view that holds the state it reads: the writer knows nothing of it, and may drop what it likes."""

    def __init__(self, tree: TreeReader, sequence: int, state: State) -> None:
        super().__init__(tree, sequence)
        self._state: State | None = state

    def close(self) -> None:
        self._state = None

    def _now(self) -> tuple[State, int]:
        if self._state is None:
            raise ValueError(f"topic {self._tree.schema.name!r}: this view is closed")
        return self._state, self.sequence


class TreeReader(Tree):
    """One topic of a store that another process writes: `get(*key)`, `get_many`, `scan`, `history`, `at`. Nothing can be put.

    lock: held while something is taken in; the follower is only used under it. Any thread may read.
    What is read is at most `refresh_s` old. Raises Corruption, FormatMismatch, StorageError, OSError.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        keeps_versions: bool,
        log_directory: Path,
        files: TableFiles,
        follower: ManifestFollower,
        lock: threading.RLock,
        settings: ReaderSettings,
    ) -> None:
        codec = KeyCodec(schema)
        super().__init__(schema, codec, State(codec, (), (), ()), keeps_versions=keeps_versions)
        self.lock = lock
        self.get = self._get
        self._log_directory, self._files, self._follower, self._settings = log_directory, files, follower, settings
        self._log: LogReader | None = None
        self._version = Version()
        self._tables: dict[int, Table] = {}
        self._memtables: list[Memtable] = []  # the oldest first
        self._position = 0  # the newest sequence that is in the memtables, or covered by the checkpoint
        self._seen = self.core.state, self._position  # what reading sees
        self._refreshed_at, self._refresh_s = float("-inf"), settings.refresh_s
        self._closed = False
        self.refresh()

    @property
    def sequence(self) -> int:
        """The newest sequence that is read now."""
        return self._now()[1]

    @property
    def checkpoint(self) -> int:
        """The newest sequence that is in tables, as of the last refresh."""
        return self.dropped_through

    @property
    def memory_bytes(self) -> int:
        """What the memtables take now."""
        return sum(memtable.memory_bytes for memtable in self._memtables)

    def at(self, sequence: int | None = None) -> View:
        """A view of the tree as of a sequence (now, by default) that stays as it is. Use it in a `with` statement.

        A sequence that lies ahead is looked for at once; where it is not there yet, the view ends with the newest one.
        Raises ViewGone where rows that were visible then may have been dropped.
        """
        if sequence is not None and sequence > self.sequence:
            self.refresh()
        with self.lock:
            state, visible = self._now()
            wanted = self.wanted_sequence(sequence, visible)
            if wanted < self.dropped_through and not self.keeps_versions:
                raise ViewGone(self.schema.name, wanted, self.dropped_through)
            return FrozenView(self, wanted, state)

    def refresh(self) -> Refreshed:
        """Take in what the writer has done since the last time, and say how much it was."""
        with self.lock:
            if self._closed:
                raise ValueError(f"topic {self.schema.name!r}: the store that this belongs to is closed")
            now = time.monotonic()
            self._follower.refresh()
            found = self._follow()
            self._refreshed_at = now
            return found

    def close(self) -> None:
        """Let the files go. Views, and rows that were handed out, stay valid."""
        with self.lock:
            self._closed = True
            self._refresh_s = -1.0  # so that whoever reads comes to `refresh`, which says so
            self._log = None
            self._memtables, self._tables = [], {}
            self.core.set_state(State(self.codec, (), (), ()))
            self._seen = self.core.state, 0

    def _get(self, *key: Any) -> np.void | None:
        """The newest row of a key, as a record of its own (a copy), or None where there is none."""
        self._look()
        state, visible = self._seen
        return state.get(key, visible)

    def _now(self) -> tuple[State, int]:
        self._look()
        return self._seen

    def _look(self) -> None:
        """Refresh, if it is time to."""
        if time.monotonic() - self._refreshed_at > self._refresh_s:
            with self.lock:
                if time.monotonic() - self._refreshed_at > self._refresh_s:  # nobody else has meanwhile
                    self.refresh()

    # --- following --------------------------------------------------------------------------------------------------

    def _follow(self) -> Refreshed:
        """Take in what manifest and log say, again while the writer removes files that are being opened."""
        tried: tuple[Version, int] | None = None
        error: StorageError | None = None
        for _ in range(TRIES_MAX):
            state, topic = self._follower.state, self.schema.name
            now = state.versions[topic], state.checkpoints[topic]
            if error is not None and now == tried:
                break  # the writer had nothing to do with it
            tried = now
            try:
                return self._take_in(*now)
            except FileNotFoundError as missing:
                error = Corruption(missing.filename, 0, "a file that the store's manifest or log needs", "no file")
            except HistoryGone as gone:
                error = StorageError(
                    f"{gone.directory}: topic {topic!r}: sequence {gone.wanted} is missing in the log, though the tables hold "
                    f"only up to {now[1]}"
                )
            except Corruption as damage:
                error = damage
            self._follower.refresh()
        assert error is not None
        raise error

    def _take_in(self, version: Version, checkpoint: int) -> Refreshed:
        if checkpoint < self.dropped_through:  # another store has come into the place of the one that was read
            self._memtables, self._position, self._log = [], checkpoint, None
        table_count = self._open_tables(version)
        self._memtables = [memtable for memtable in self._memtables if memtable.sequences[1] > checkpoint]
        self._position = max(self._position, checkpoint)
        row_count = self._read_log(checkpoint)
        self.core.visible = self._position
        if version is not self._version or tuple(reversed(self._memtables)) != self.core.state.memtables:
            self._show(version)
        self._seen = self.core.state, self._position
        self.dropped_through = checkpoint
        return Refreshed(row_count, table_count)

    def _open_tables(self, version: Version) -> int:
        """Open the tables of a version that are not open yet. Returns how many."""
        if version is self._version:
            return 0
        missing = [info for info in version.tables() if not _is_open(self._tables.get(info.number), info)]
        for info in missing:
            self._tables[info.number] = self._files.open(info, self.schema, self.codec)
        return len(missing)

    def _show(self, version: Version) -> None:
        self._version = version
        self._tables = {info.number: self._tables[info.number] for info in version.tables()}
        self.core.set_state(
            State(
                self.codec,
                tuple(reversed(self._memtables)),
                tuple(self._tables[info.number] for info in version.level0),
                tuple(tuple(self._tables[info.number] for info in level) for level in version.levels),
            )
        )

    # --- the log ----------------------------------------------------------------------------------------------------

    def _read_log(self, checkpoint: int) -> int:
        """Put into memtables what the log holds by now behind the checkpoint. Returns how many rows."""
        log = self._log = self._log or self._open_log()
        newest, count = log.newest, 0
        if (
            newest < checkpoint
        ):  # the file that it had open, and those behind, may have gone meanwhile: look at what there is now
            log = self._log = self._open_log()
            newest = log.newest
        if newest < checkpoint:
            what = f"topic {self.schema.name!r} up to sequence {checkpoint}, which tables have"
            raise Corruption(list_files(self._log_directory)[-1][1], 0, what, newest)
        while self._position < newest:
            found = log.read_all(self._position + 1, newest)
            if found is None:  # a repair gave up the rest
                self._position = newest
                break
            count += len(found[0])
            self._insert(*found)
        return count

    def _open_log(self) -> LogReader:
        log = LogReader(self._log_directory, self.schema.name)
        if log.log_id != self._files.log_id:
            raise FormatMismatch(
                self._log_directory,
                "log_id",
                f"{self._files.log_id:#x}",
                f"{log.log_id:#x}",
                "this log is not the one that the store was made with: put that back",
            )
        if log.schema.hash != self.schema.hash:
            raise FormatMismatch(
                self._log_directory,
                f"schema of topic {self.schema.name!r}",
                "the store's",
                "another",
                "put its log back",
            )
        return log

    def _insert(self, rows: Rows, tombstones: bool) -> None:
        while len(rows):
            if not self._memtables or not self._memtables[-1].room:
                self._memtables.append(self._make_memtable())
            active = self._memtables[-1]
            fits = min(len(rows), active.room)
            active.insert(rows[:fits], tombstones)
            self._position = int(rows["sequence"][fits - 1])
            rows = rows[fits:]

    def _make_memtable(self) -> Memtable:
        """A memtable as large as those there are together, so that there are few of them."""
        held, allowed = self.memory_bytes, self._settings.memory_bytes
        budget = min(max(self._settings.memtable_bytes, held), allowed // GROWTH, allowed - held)
        if budget < min(self._settings.memtable_bytes, allowed // GROWTH):
            raise StorageError(
                f"topic {self.schema.name!r}: the rows behind sequence {self._position} are in no table yet, and take more than "
                f"memory_bytes ({allowed}); allow this reader more, or let the writer keep less in memory"
            )
        return Memtable(self.codec, budget)


def _is_open(table: Table | None, info: TableInfo) -> bool:
    """Whether this is the table that the manifest names, and not one of that number in a store that was here before."""
    return table is not None and (table.sequence_min, table.sequence_max) == (info.sequence_min, info.sequence_max)
