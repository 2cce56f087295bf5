"""Repairing one topic's tables: sound ones are kept, others written again from what is good in them and in the log.

A new table has the level of the one that it replaces, since its keys lie within that one's. In level 0, where tables stand in
the order of their sequences, it takes nothing newer from the log than that one can have had. In a deeper level it takes the
newest row of a key, even if that is in a table above as well: a row further down, or a tombstone that is gone, may be newer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ._tree import KeyCodec, State
from .errors import StorageError
from .history_rows import Again, take_again
from .log_reader import LogReader
from .manifest_reader import MANIFEST_NAME
from .manifest_state import TopicInfo
from .repaired import LostRows, Notes
from .schema import Schema
from .table_files import TableFiles, describe, open_table
from .table_rebuild import Placed, arrange, merged, write_rows
from .table_salvage import LostBlocks, Salvaged, TableFile, read_table_file, salvage
from .version import Key, TableInfo, Version

__all__ = ["TopicRepair"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

COUNTED_SEQUENCES = 1 << 31  # of which it is kept in mind whether a table has them
SEQUENCE_MAX = (1 << 64) - 1


@dataclass(slots=True)
class TopicRepair:
    """A topic's tables, one after the other, then `arrange`.

    checkpoint: the newest sequence that the tables had. log, archive: repaired. next_number: of a table.
    """

    info: TopicInfo
    schema: Schema
    checkpoint: int
    files: TableFiles
    log: Path
    archive: Path
    next_number: Callable[[], int]
    notes: Notes
    manifest_is_whole: bool
    codec: KeyCodec = field(init=False)
    placed: list[Placed] = field(default_factory=list[Placed])
    version: Version = field(default_factory=Version)
    _missing: list[TableInfo] = field(default_factory=list[TableInfo])
    _hole: tuple[Path, int, int] | None = None  # the file behind rows that the log's folder lacks; their sequences
    _reader: LogReader | None = None

    def __post_init__(self) -> None:
        self.codec = KeyCodec(self.schema)

    # --- tables -----------------------------------------------------------------------------------------------------

    def keep_or_rebuild(self, number: int, info: TableInfo | None) -> None:
        """Take a table in. info: what the manifest says of it; None where it says nothing."""
        if self._hole is not None and any(one.info.number == number for one in self.placed):
            return  # `take_missing` has made it
        path = self.files.path(number)
        if not path.exists():
            if info is not None and self.manifest_is_whole:
                self.notes.change(path, "the table is missing")
                self._rebuild(path, self._nothing(info, ""), info)
            elif info is not None:  # or gone, as something that is not known anymore said
                self._missing.append(info)
            return
        if self._is_sound(path, number, info):
            kept = (
                info if info is not None else describe(open_table(path, self.schema, self.codec), self.schema.name, 0)
            )
            self.placed.append(Placed(kept, has_level=info is not None))
            return
        file = read_table_file(path, info.file_bytes if info is not None else None)
        if file.number not in (None, number) or not self._is_ours(file):
            found = self._nothing(info, "it is another table")
        else:
            found = salvage(file, self.schema, info)
        self.notes.bad.append((path, "; ".join(found.wrong) or "what it says of its rows is wrong"))
        self._rebuild(path, found, info)

    def take_missing(self, path: Path, last: int) -> None:
        """Rows behind the checkpoint, up to `last`, are not in the log's own folder. path: of the file that begins behind them."""
        whole = (self.checkpoint + 1, last)
        again = self._again([None], whole[0], last)
        self.checkpoint = last
        if self.manifest_is_whole:
            self.notes.lose(self.schema.name, path, None, whole, last - whole[0] + 1, again.gone)
        else:  # a table whose footer is damaged may have them: `look_for_unknown_loss` tells
            self._hole = path, *whole
        self._write([(again.rows, again.flags)], 0, "none", "made from what the archive had", has_level=True)

    def _is_sound(self, path: Path, number: int, info: TableInfo | None) -> bool:
        try:
            if info is not None:
                table = self.files.open(info, self.schema, self.codec)
                fits = table.tombstone_count == info.tombstone_count
            else:
                table = open_table(path, self.schema, self.codec)
                fits = (table.number, table.log_id, table.topic) == (number, self.files.log_id, self.schema.name)
            return fits and not table.problems()
        except StorageError:
            return False

    def _is_ours(self, file: TableFile) -> bool:
        header = file.header
        if header is not None and (header.log_id, header.topic) != (self.files.log_id, self.schema.name):
            return False
        return file.schema_hash in (None, self.schema.hash)

    def _nothing(self, info: TableInfo | None, wrong: str) -> Salvaged:
        found = Salvaged(np.empty(0, self.schema.dtype), np.empty(0, "u1"), wrong=[wrong])
        if info is not None:
            found.lost.append(LostBlocks((info.key_min, info.key_max), info.row_count))
            found.sequences = info.sequence_min, info.sequence_max
        return found

    def _rebuild(self, path: Path, found: Salvaged, info: TableInfo | None) -> None:
        """Write tables from what was found of one, and from what the log still has of the rest."""
        parts, whole = [(found.rows, found.flags)], found.sequences or (1, self.checkpoint)
        if found.lost:
            deep = info is not None and info.level > 0
            again = self._again([part.keys for part in found.lost], whole[0], self.checkpoint if deep else whole[1])
            parts.append((again.rows, again.flags))
            for part in found.lost:
                keys = None
                if part.keys is not None:
                    keys = self.codec.values(part.keys[0]), self.codec.values(part.keys[1])
                self.notes.lose(self.schema.name, path, keys, whole, part.row_count, again.gone)
        level = info.level if info is not None else 0
        self._write(
            parts, level, found.compression, f"made from what is left of {path.name}", has_level=info is not None
        )

    def _again(
        self, keys: Sequence[tuple[Key, Key] | None], first: int, last: int, known: Array | None = None
    ) -> Again:
        again = take_again(
            self.reader(), self.codec, keys, first, last, all_versions=self.info.keep_versions, known=known
        )
        self.notes.taken_again_count += len(again.rows)
        return again

    def reader(self) -> LogReader | None:
        """Who reads the topic's history, or None where there is none."""
        for log, archive in ((self.log, self.archive), (self.archive, None)):
            with contextlib.suppress(StorageError, FileNotFoundError):
                self._reader = self._reader or LogReader(log, self.schema.name, archive)
        return self._reader

    def _write(
        self, parts: list[tuple[Array, Array]], level: int, compression: str, what: str, *, has_level: bool
    ) -> None:
        if not any(len(rows) for rows, _ in parts):
            return
        for table in write_rows(self.files, self.schema, self.codec, parts, level, compression, self.next_number):
            self.placed.append(Placed(table, has_level))
            self.notes.change(self.files.path(table.number), what)

    # --- where nobody knows which tables there were -----------------------------------------------------------------

    def look_for_unknown_loss(self, *, all_accounted: bool) -> None:
        """Take what only the log has. Tell what sequences are nowhere, unless every table is accounted for."""
        # How far a table goes whose footer is damaged, and of which the manifest says nothing, is known only by its rows.
        self.checkpoint = max([self.checkpoint, *(one.info.sequence_max for one in self.placed)])
        if not self.checkpoint:
            return
        first = max(1, self.checkpoint - COUNTED_SEQUENCES)
        known = self._known_sequences(first)
        again = self._again([None], first, self.checkpoint, known)
        # A tombstone is needed where it hides a row: one of a table, or with old versions kept one of these.
        needed = ~again.flags.astype(bool) | self.info.keep_versions
        needed |= self._has_rows(again.rows)
        self.notes.taken_again_count -= int((~needed).sum())
        whole = f"V{self.schema.row_bytes}"  # with the bytes between the fields
        rows = again.rows.view(whole)[needed].view(self.schema.dtype)
        self._write([(rows, again.flags[needed])], 0, "none", "made from what only the log had", has_level=False)
        gone = [low + np.flatnonzero(~known[low - first : high - first + 1]) for low, high in again.gone]
        nowhere = np.concatenate([np.empty(0, "i8"), *gone])
        if self._hole is not None:
            nowhere = self._tell_of_hole(nowhere, first, *self._hole)
        self._tell_of_unknown_loss(nowhere, all_accounted)

    def _tell_of_hole(self, nowhere: Array, counted: int, path: Path, first: int, last: int) -> Array:
        """Tell which of the rows that the log's folder lacks are nowhere; returns the rest of `nowhere`.

        counted: from which sequence on `nowhere` tells; all before are taken for lost.
        """
        inside = (nowhere >= first) & (nowhere <= last)
        mine, before = nowhere[inside], max(0, min(counted, last + 1) - first)
        if count := len(mine) + before:
            begins, ends = first if before else int(mine[0]), int(mine[-1]) if len(mine) else first + before - 1
            at_most = count != last - first + 1 or not self.placed  # without a table they may have been deleted as well
            relative = self.notes.relative(path)
            self.notes.lost.append(LostRows(self.schema.name, relative, None, begins, ends, count, at_most))
        return nowhere[~inside]

    def _tell_of_unknown_loss(self, nowhere: Array, all_accounted: bool) -> None:
        """nowhere: the sequences that neither table nor log has: replaced, deleted, or lost with a table."""
        name = self.schema.name
        if not all_accounted and len(nowhere):
            path, count = Path("store", MANIFEST_NAME), len(nowhere)
            self.notes.lost.append(LostRows(name, path, None, int(nowhere[0]), int(nowhere[-1]), count, at_most=True))
            return
        for info in self._missing:
            mine = nowhere[(nowhere >= info.sequence_min) & (nowhere <= info.sequence_max)]
            if len(mine):
                keys = self.codec.values(info.key_min), self.codec.values(info.key_max)
                path, count = self.notes.relative(self.files.path(info.number)), min(len(mine), info.row_count)
                self.notes.lost.append(LostRows(name, path, keys, int(mine[0]), int(mine[-1]), count, at_most=True))

    def _known_sequences(self, first: int) -> Array:
        """Which sequences, from `first` to the checkpoint, the tables have."""
        known = np.zeros(self.checkpoint - first + 1, bool)
        for one in self.placed:
            table = open_table(self.files.path(one.info.number), self.schema, self.codec)
            for at in range(0, table.row_count, 1 << 20):
                places = table.rows(at, at + (1 << 20))["sequence"].astype("i8") - first
                known[places[places >= 0]] = True
        return known

    def _has_rows(self, rows: Array) -> Array:
        """Whether a table has a row of the same key that is no tombstone, for each of some rows."""
        found = np.zeros(len(rows), bool)
        for one in self.placed:
            table = open_table(self.files.path(one.info.number), self.schema, self.codec)
            found |= State(self.codec, (), (table,), ()).get_many(rows, SEQUENCE_MAX)[1]
        return found

    # --- levels -----------------------------------------------------------------------------------------------------

    def arrange(self) -> None:
        """Give each table its level; merge them where no levels fit."""
        version = arrange(self.placed)
        if version is None:
            tables = [one.info for one in self.placed]
            keeps = self.info.keep_versions
            new = merged(self.files, self.schema, self.codec, tables, self.next_number, all_versions=keeps)
            for table in tables:
                self.notes.bad.append((self.files.path(table.number), "merged, as nothing tells its level"))
            for table in new:
                self.notes.change(self.files.path(table.number), f"made from the tables of topic {self.schema.name!r}")
            version = Version().edit(new, ())
        self.version = version
