"""Reading a topic's past from wherever it is kept: the log, its archive, or the store's tables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ._tree import KeyCodec, Merge, Table
from .log_reader import BATCH_ROWS_MAX, HistoryGone, LogReader, Rows
from .manifest_reader import ManifestFollower
from .table_files import TableFiles
from .tree import BATCH_ROWS, WINDOW_ROWS

__all__ = ["PastReader"]

Sequences: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class _Window:
    """What tables hold of the sequences from `first` to `last`: the rows in that order, and where there were deletes.

    sequences: the rows'. ends: places in `rows` behind which sequences are missing, and the end. tombstones: their sequences.
    """

    first: int
    last: int
    rows: Rows
    sequences: Sequences
    ends: np.ndarray[Any, np.dtype[np.int64]]
    tombstones: Sequences

    def find(self, sequence: int) -> tuple[int, int, int]:
        """The first row at or behind a sequence: its place and sequence (one behind `last` for none), tombstones before it."""
        at = int(np.searchsorted(self.sequences, np.uint64(sequence)))
        found = int(self.sequences[at]) if at < len(self.sequences) else self.last + 1
        begin, end = np.searchsorted(self.tombstones, np.array([sequence, found], "u8"))
        return at, found, int(end - begin)

    def batch(self, at: int, count_max: int) -> Rows:
        """Consecutive rows from a place on."""
        end = int(self.ends[np.searchsorted(self.ends, at, side="right")])
        return self.rows[at : min(end, at + count_max)]


class PastReader(LogReader):
    """The records of one topic of a data directory, by sequence. Like a LogReader; for one thread, any number of processes.

    What the log and the archive have given up is read from the tables of a topic that keeps all versions there, or has no key.
    directory: the data directory, with `log`, and `archive` and `store` where there are such.
    Raises as LogReader does; Corruption and FormatMismatch for the tables too.
    """

    def __init__(self, directory: str | os.PathLike[str], topic: str) -> None:
        self._store = Path(directory) / "store"
        self._tables: tuple[Table, ...] = ()
        self._window: _Window | None = None
        super().__init__(Path(directory) / "log", topic, Path(directory) / "archive")
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
        self._tables, self._window = (), None

    @property
    def oldest(self) -> int:
        """The first sequence that is still kept (or would be, where the topic is empty)."""
        oldest = super().oldest
        return min((table.sequence_min for table in self._open_tables()), default=oldest) if oldest > 1 else oldest

    def read(self, sequence: int, last: int | None = None, rows_max: int = BATCH_ROWS_MAX) -> Rows | None:
        """As LogReader.read. What is neither in the log nor in a table, nor was deleted, is counted in `lost_count`."""
        lost_count = tombstone_count = 0
        rows: Rows | None = None
        while rows is None:
            if last is not None and sequence > last:
                return None
            window = self._window
            if window is None or not window.first <= sequence <= window.last:
                try:
                    rows = super().read(sequence, last, rows_max)
                    if rows is None:
                        return None
                    break
                except HistoryGone as gone:
                    if sequence < gone.oldest:
                        raise
                    window = self._hold_rows(sequence, super().oldest - 1)
                    if window is None:
                        raise
            at, found, deleted = window.find(sequence)
            tombstone_count += deleted
            lost_count += found - sequence - deleted
            sequence = found
            if found <= window.last and (last is None or found <= last):
                rows = window.batch(at, rows_max if last is None else min(rows_max, last - found + 1))
        self.lost_count += lost_count
        self.tombstone_count += tombstone_count
        return rows

    def find_time(self, timestamp_ns: int) -> int:
        """As LogReader.find_time."""
        found = super().find_time(timestamp_ns)
        if found > 1 and found <= super().oldest:
            for table in self._open_tables():
                if table.sequence_min < found and table.timestamp_max_ns >= timestamp_ns:
                    rows = table.rows()
                    found = min(found, int(rows["sequence"][rows["timestamp_ns"] >= timestamp_ns].min()))
        return found

    def _hold_rows(self, sequence: int, last: int) -> _Window | None:
        """Hold what tables have from `sequence` to `last`, as far as that goes at once. None where there is nowhere to look."""
        if self._codec is None or sequence > last:
            return None
        tables = [table for table in self._open_tables() if table.sequence_max >= sequence]
        begins = max(sequence, min((table.sequence_min for table in tables), default=last))
        end = min(begins + WINDOW_ROWS - 1, last)
        self._window = _merge(self._codec, [table for table in tables if table.sequence_min <= end], sequence, end)
        return self._window

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


def _merge(codec: KeyCodec, tables: list[Table], first: int, last: int) -> _Window:
    """Bring all versions that some tables have of the sequences from `first` to `last` into order."""
    merge = Merge(codec, [], tables)
    merge.begin_scan(last, True)
    chunk, flags = np.empty(BATCH_ROWS, codec.dtype), np.empty(BATCH_ROWS, "u1")
    parts, marks = [chunk[:0]], [flags[:0]]
    while count := merge.fill(chunk, flags):
        wanted = chunk["sequence"][:count] >= first
        parts.append(chunk[:count][wanted])
        marks.append(flags[:count][wanted])
    rows, deleted = np.concatenate(parts), np.concatenate(marks) != 0
    order = np.argsort(rows["sequence"], kind="stable")
    deleted = deleted[order]
    tombstones = rows["sequence"][order[deleted]]
    rows = rows[order[~deleted]]
    rows.flags.writeable = False
    sequences = np.ascontiguousarray(rows["sequence"])
    ends = np.append(np.flatnonzero(np.diff(sequences) != 1) + 1, len(sequences))
    return _Window(first, last, rows, sequences, ends, tombstones)
