"""Reading a topic's past from wherever it is kept: the log, its archive, or the store's tables."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ._tree import KeyCodec, Table
from .log_reader import BATCH_ROWS_MAX, HistoryGone, LogReader, Rows
from .manifest_reader import ManifestFollower
from .table_files import TableFiles
from .tree import WINDOW_ROWS, rows_by_sequence

__all__ = ["PastReader"]


class PastReader(LogReader):
    """The records of one topic of a data directory, by sequence. Like a LogReader; for one thread, any number of processes.

    What the log and the archive have given up is read from the tables of a topic that keeps all versions there, or has no key.
    directory: the data directory, with `log`, and `archive` and `store` where there are such.
    Raises as LogReader does; Corruption and FormatMismatch for the tables too.
    """

    def __init__(self, directory: str | os.PathLike[str], topic: str) -> None:
        super().__init__(Path(directory) / "log", topic, Path(directory) / "archive")
        self._store, self._held = Path(directory) / "store", np.empty(0, self.schema.dtype)
        self._tables: tuple[Table, ...] = ()
        try:
            with ManifestFollower(self._store, self.log_id) as manifest:
                info = manifest.state.topics.get(topic)
        except FileNotFoundError:
            info = None
        self._codec = (
            KeyCodec(self.schema) if info is not None and (info.keep_versions or not self.schema.key) else None
        )

    def forget(self) -> None:
        super().forget()
        self._tables = ()

    @property
    def oldest(self) -> int:
        """The first sequence that is still kept (or would be, where the topic is empty)."""
        oldest = super().oldest
        return min((table.sequence_min for table in self._open_tables()), default=oldest) if oldest > 1 else oldest

    def read(self, sequence: int, last: int | None = None, rows_max: int = BATCH_ROWS_MAX) -> Rows | None:
        """As LogReader.read."""
        if last is not None and sequence > last:
            return None
        rows = self._slice(sequence, last, rows_max)
        if rows is not None:
            return rows
        try:
            return super().read(sequence, last, rows_max)
        except HistoryGone:
            if sequence < self.oldest or not self._hold_rows(sequence, super().oldest - 1):
                raise
        first = int(self._held["sequence"][0])
        if last is not None and first > last:
            return None
        self.lost_count += first - sequence
        return self._slice(first, last, rows_max)

    def find_time(self, timestamp_ns: int) -> int:
        """As LogReader.find_time."""
        found = super().find_time(timestamp_ns)
        if found > 1 and found <= super().oldest:
            for table in self._open_tables():
                if table.sequence_min < found and table.timestamp_max_ns >= timestamp_ns:
                    rows = table.rows()
                    found = min(found, int(rows["sequence"][rows["timestamp_ns"] >= timestamp_ns].min()))
        return found

    def _slice(self, sequence: int, last: int | None, rows_max: int) -> Rows | None:
        """Consecutive rows of those that are held, from `sequence` on."""
        held = self._held["sequence"]
        at = int(np.searchsorted(held, sequence))
        if at == len(held) or int(held[at]) != sequence:
            return None
        end = min(len(held), at + rows_max) if last is None else min(len(held), at + rows_max, at + last - sequence + 1)
        behind = held[at:end] != np.arange(sequence, sequence + end - at, dtype="u8")
        return self._held[at : at + int(np.argmax(behind)) if behind.any() else end]

    def _hold_rows(self, sequence: int, last: int) -> bool:
        """Hold the rows from `sequence` on that are in tables, as far as that goes at once. False where there are none."""
        if self._codec is None:
            return False
        tables = self._open_tables()
        last = min(last, max((table.sequence_max for table in tables), default=0))
        while sequence <= last:
            end = min(sequence + WINDOW_ROWS - 1, last)
            self._held = rows_by_sequence(self._codec, self.schema, [], tables, end, sequence, end, all_versions=True)
            self._held.flags.writeable = False
            if len(self._held):
                return True
            sequence = end + 1
        return False

    def _open_tables(self) -> tuple[Table, ...]:
        """The topic's tables, as the manifest has them now; again while the writer removes some of them."""
        if self._codec is None:
            return ()
        files = TableFiles(self._store, self.log_id, 0)
        for tries_left in reversed(range(10)):
            with ManifestFollower(self._store, self.log_id) as manifest:
                infos = list(manifest.state.versions[self.topic].tables())
            known = {table.number: table for table in self._tables}
            try:
                self._tables = tuple(
                    known[info.number] if info.number in known else files.open(info, self.schema, self._codec)
                    for info in infos
                )
                break
            except FileNotFoundError:
                if not tries_left:
                    raise
        return self._tables
