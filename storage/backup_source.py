"""What a backup takes of a store's directory while another process, or this one, may be writing it.

1. The manifest is read first, then the tables it names are opened, then the log: so what the tables do not hold is in the log.
2. What the writer may remove meanwhile, and no newer state makes up for, is held open: the tables, and the log behind them.
3. Older log files are history. They are taken as they are met, newest first, and the oldest may go before it is their turn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from . import _log, files
from .errors import Corruption, StorageError
from .log_cut import stands
from .log_files import (
    LogFile,
    LogTopic,
    file_path,
    list_files,
    open_file,
    read_topics,
    starting_topics,
    whole_batches,
)
from .manifest_state import State
from .recovery import describe, newest_durable
from .store_reader import follow_manifest
from .version import TableInfo

__all__ = ["Source", "SourceLog", "allow_many_files", "find_log_file", "log_end"]

TRIES_MAX = 100  # each one more means that the writer has changed the store's tables since the one before


@dataclass(slots=True)
class SourceLog:
    """A log file, open and mapped. end: so many of its bytes count, by now. place: "log" or "archive"."""

    number: int
    path: Path
    place: str
    descriptor: int
    file: LogFile
    end: int

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(slots=True)
class Source:
    """A directory at one instant. Use it in a `with` statement.

    state: what the manifest says, None where there is no store. tables: a descriptor of each table that is wanted, by number.
    logs: the log from the first row on that is in no table, oldest first.
    """

    directory: Path
    state: State | None = None
    tables: dict[int, int] = field(default_factory=dict[int, int])
    logs: list[SourceLog] = field(default_factory=list[SourceLog])

    @classmethod
    def open(cls, directory: Path) -> Source:
        """Take hold of a store, or of a directory with a log only.

        Raises FileNotFoundError where there is neither, Corruption for what is damaged or missing, FormatMismatch.
        """
        tried: State | None = None
        for _ in range(TRIES_MAX):
            source = cls(directory)
            try:
                source._take()
                return source
            except FileNotFoundError as missing:
                source.close()
                if source.state is None or source.state == tried:  # the writer has nothing to do with it
                    raise _lacking(missing) from None
                tried = source.state
            except BaseException:
                source.close()
                raise
        raise StorageError(f"{directory}: its tables change faster than they can be opened; try again")

    @property
    def log_id(self) -> int:
        return self.logs[-1].file.header.log_id

    def tables_named(self) -> Iterator[TableInfo]:
        """The tables that the manifest names."""
        for version in self.state.versions.values() if self.state is not None else ():
            yield from version.tables()

    def table_path(self, number: int) -> Path:
        return self.directory / "store" / f"{number:010d}.sst"

    def topics(self) -> dict[str, LogTopic]:
        """Each topic of the log, where it stands at the end of it."""
        last = self.logs[-1]
        frames, _ = last.file.scan(limit=last.end)
        return {topic.schema.name: stands(last.file, frames, topic) for topic in read_topics(last.file, frames)}

    def history(self) -> Iterator[SourceLog]:
        """The log files before `logs`, newest first, as far as there are any. The caller closes them."""
        following = self.logs[0].file
        for number in range(self.logs[0].number - 1, 0, -1):
            try:
                found = find_log_file(self.directory, number)
            except FileNotFoundError:
                return
            found.end = log_end(found.file, following)
            following = found.file
            yield found

    def close(self) -> None:
        """Let go of everything. Does nothing the second time."""
        for descriptor in self.tables.values():
            os.close(descriptor)
        self.tables.clear()
        for log in self.logs:
            log.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- taking hold ------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        with contextlib.suppress(FileNotFoundError), follow_manifest(self.directory / "store") as follower:
            self.state = follower.state
        for info in self.tables_named():
            self.tables[info.number] = _open_many(self.table_path(info.number))
        self._take_log()

    def _take_log(self) -> None:
        """Open the log from its newest file back to the one that holds the first row that is in no table."""
        here = self.directory / "log"
        newest = max((number for number, _ in list_files(here)), default=0) if here.is_dir() else 0
        if not newest:
            raise FileNotFoundError(2, "holds no log: no files such as log/0000000001.log", str(self.directory))
        for number in range(newest, 0, -1):
            log = find_log_file(self.directory, number)
            self.logs.insert(0, log)
            log.end = log_end(log.file, self.logs[1].file if len(self.logs) > 1 else None)
            if self.state is None:
                return
            if log.file.header.log_id != self.state.log_id:
                raise StorageError(f"{log.path}: this log is not the one that the store was made with: put that back")
            if _begins_within(log, self.state.checkpoints):
                return


def find_log_file(directory: Path, number: int) -> SourceLog:
    """Open a log file of a store, from the archive where it is not in the log any more. Raises FileNotFoundError."""
    for place in ("log", "archive"):  # files move that way only
        path = file_path(directory / place, number)
        try:
            file = open_file(path, number)
            return SourceLog(number, path, place, files.open_log_file(path), file, 0)
        except FileNotFoundError:
            continue
    raise FileNotFoundError(2, "no such file in the log, nor in the archive", str(file_path(directory / "log", number)))


def log_end(file: LogFile, following: LogFile | None) -> int:
    """How many bytes of a log file count: up to where its successor says, or up to where its frames end by now.

    Raises Corruption where one is missing before.
    """
    if following is not None:
        limit = following.header.previous_end
        frames, end = file.scan(limit=limit)
        if end != limit:
            raise Corruption(file.path, end, "a valid frame", describe(file, end))
        return end
    frames, end = file.scan()
    while True:
        durable = newest_durable(file, frames)
        if len(frames) and frames["kind"][-1] == _log.FRAME_CLOSE:
            return end  # what lies behind does not exist
        found = file.find_frame(end)
        if found is not None:
            durable = max(durable, newest_durable(file, file.scan(found)[0]))
        more, now = file.scan(end)
        if now == end:
            break
        frames, end = np.concatenate([frames, more]), now  # its writer has gone on meanwhile
    if durable > file.header.start_position + end:
        raise Corruption(file.path, end, "a valid frame, since it was on the disk", describe(file, end))
    return whole_batches(frames, end)[1]  # the next writer would cut off a batch that is not finished


def _begins_within(log: SourceLog, checkpoints: Mapping[str, int]) -> bool:
    """Whether every row before this file is in tables. Topics that the store does not have need not be."""
    return all(
        topic.next_sequence - 1 <= checkpoints.get(name, topic.next_sequence)
        for name, topic in starting_topics(log.file).items()
    )


def _open_many(path: Path) -> int:
    """Open a file, also where many are open already."""
    try:
        return files.open_file_to_read(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    allow_many_files()
    return files.open_file_to_read(path)


def allow_many_files() -> None:
    """Let this process have as many files open as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _lacking(missing: FileNotFoundError) -> Exception:
    """What it means that a file is not there."""
    if str(missing.filename).endswith((".sst", ".log")):
        return Corruption(missing.filename, 0, "a file that the store's manifest or log needs", "no file")
    return missing
