"""Backing up a store, or a directory with a log only, while it is being written: whole, by what is new, and all the time.

1. A backup holds at least what was acknowledged when it began. Nothing is written to the store, and its writer waits for nothing.
2. Files that never change, tables and archived log files, are given a second name where that can be; all others are copied.
3. Everything a backup lists is on the disk, and was read and proven, before its list is written. Killed, failed or out of room
   at any instant, the backups before it are as they were; what it left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import files
from ._tree import KeyCodec
from .backup_list import BackupDamaged, BackupList, ListedFile, TopicRange
from .backup_log import LogCopy, LogWentBack
from .backup_repository import BackupBusy, Repository
from .backup_source import Source, SourceLog, find_log_file, log_end
from .checked_copy import Progress, Tally, checksum, copy_file, link_or_copy
from .errors import Corruption, StorageError
from .log_files import file_path, list_files, open_file, starting_topics
from .parallel import side_by_side
from .schema import Schema
from .table_files import TableFiles
from .version import TableInfo

__all__ = ["BackupMade", "backup", "follow"]

INTERVAL_S, BACKUP_INTERVAL_S = 1.0, 3600.0
TRIES_MAX = 10
PAGE = 4096  # header and footer of a table


@dataclass(frozen=True, slots=True)
class BackupMade:
    """A backup, and what making it took. new_bytes: of files that were copied or given a second name for it."""

    backup: BackupList
    new_file_count: int
    new_bytes: int
    seconds: float


def backup(
    directory: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    full: bool = False,
    keep: int | None = None,
    link: bool = True,
    progress: Progress | None = None,
) -> BackupMade:
    """Make a backup of a store's directory in a folder of backups, which is made if missing.

    A store has a folder to itself. After the first, a backup adds what is new; full: it takes nothing from earlier ones.
    keep: remove all but the newest so many backups afterwards. link: give files that never change a second name where target
    is on the same file system, instead of copying them; that costs no room, and what damages the one damages the other.
    progress: called with (bytes done, bytes in all), from any thread.

    Raises FileNotFoundError where there is neither store nor log, Corruption where it is damaged, BackupBusy, StorageError,
    ValueError, OSError.
    """
    began, created_ns = time.monotonic(), time.time_ns()
    if keep is not None and keep < 1:
        raise ValueError(f"keep: 1 or more is expected, got {keep}")
    source_path, target_path = Path(directory).absolute(), Path(target).absolute()
    if target_path.resolve().is_relative_to(source_path.resolve()):
        raise ValueError(f"{target}: lies in what is to be backed up; give a folder elsewhere")
    if not source_path.is_dir():
        raise FileNotFoundError(2, "no such directory", str(directory))
    with Source.open(source_path):  # before anything is made
        pass
    repository = Repository.make(target_path)
    with repository.locked():
        repository.clean()
        try:
            for _ in range(TRIES_MAX):
                with contextlib.suppress(_ExpiredMeanwhile), Source.open(source_path) as source:
                    making = _Making(source, repository, created_ns, full=full, link=link, progress=progress)
                    made = making.make()
                    break
                repository.clean()
            else:
                raise StorageError(f"{directory}: log files expire faster than they can be copied; try again")
        except BaseException:
            with contextlib.suppress(OSError):
                repository.clean()
            raise
        if keep is not None:
            repository.keep(keep)
    return BackupMade(made, making.new_file_count, making.new_bytes, time.monotonic() - began)


def follow(
    directory: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    stop: threading.Event,
    interval_s: float = INTERVAL_S,
    backup_interval_s: float = BACKUP_INTERVAL_S,
    keep: int | None = None,
    link: bool = True,
    report: Callable[[BackupMade | int], None] = lambda what: None,
) -> None:
    """Make a backup, then copy the log as it grows, so that any row of it can be restored to, until `stop` is set.

    interval_s: how long what the log has may be missing here. backup_interval_s: after so long another backup is made, so that
    a restore need not read all of the log since the first. report: told each backup, and each time how many bytes of log came.
    Other backups into the same folder may be made meanwhile. Raises as `backup`.
    """
    following = _Following(Path(directory).absolute(), Repository(Path(target).absolute()))
    due = 0.0
    while True:
        stopping = stop.is_set()  # before looking: what was logged by then is copied
        with contextlib.suppress(BackupBusy):  # the next time, then
            if following.copy is None or (time.monotonic() >= due and not stopping):
                report(backup(directory, target, keep=keep, link=link))
                due = time.monotonic() + backup_interval_s
            if new_bytes := following.look():
                report(new_bytes)
        if stopping:
            return
        stop.wait(interval_s)


class _Following:
    """Copies what a log has grown by to where the newest backup has it. copy: None where that needs a backup first."""

    def __init__(self, source_path: Path, repository: Repository) -> None:
        self.source_path, self.repository = source_path, repository
        self.copy: LogCopy | None = None
        self._newest = 0

    def look(self) -> int:
        """Copy, and return how many bytes that were. Raises BackupBusy, Corruption, OSError."""
        with self.repository.locked():
            try:
                self.copy = self._current()
                return self.copy.follow(self.source_path)
            except LogWentBack:
                self.copy = None
                return 0

    def _current(self) -> LogCopy:
        """The copy there was, or another one where somebody has made a backup, or copied as well. Raises LogWentBack."""
        newest = self.repository.newest()
        if self.copy is not None and newest == self._newest:
            numbers = [number for number, _ in list_files(self.copy.folder)]
            if numbers and numbers[-1] == self.copy.number:
                return self.copy
        try:
            copy = LogCopy(self.repository.folder(self.repository.read_one(newest).log_folder))
            with contextlib.closing(find_log_file(self.source_path, copy.number)) as log:
                _, log.end = log.file.scan()
                copy.check_beginning(log)
        except (FileNotFoundError, BackupDamaged):
            raise LogWentBack from None
        self._newest = newest
        return copy


class _ExpiredMeanwhile(Exception):
    """A log file that was to be copied is gone."""


class _Making:
    """One attempt at a backup. new_file_count, new_bytes: what it had to copy, or to give a second name."""

    def __init__(
        self,
        source: Source,
        repository: Repository,
        created_ns: int,
        *,
        full: bool,
        link: bool,
        progress: Progress | None,
    ) -> None:
        self.source, self.repository, self.created_ns, self.link = source, repository, created_ns, link
        self.new_file_count = self.new_bytes = 0
        backups, _ = repository.read()
        for other in backups[-1:]:
            if other.log_id != source.log_id:
                raise StorageError(
                    f"{repository.path}: holds backups of another store, {other.source}; give this one a folder of its own"
                )
        self.base = backups[-1] if backups and not full else None
        self._known = {file.base_name: file for file in self.base.files} if self.base is not None else {}
        self._progress = progress

    def make(self) -> BackupList:
        source = self.source
        self._number = self.repository.new_folder()
        self._folder = self.repository.folder(self._number)
        tables = {table: self._known_table(table) for table in source.tables_named()}
        new = [table for table, known in tables.items() if known is None]
        copy = self._log_copy()
        total = sum(table.file_bytes for table in new) + sum(
            log.end for log in source.logs if log.number >= copy.number
        )
        self._tally = Tally(self._progress, total)
        listed = [known for known in tables.values() if known is not None] + side_by_side(self._take_table, new)
        self.new_file_count += len(new)
        self.new_bytes += sum(table.file_bytes for table in new)
        files.sync_directory(self._folder)
        self._take_log(copy)
        listed += self._list_log(copy)
        made = BackupList(
            number=self._number,
            log_id=source.log_id,
            created_ns=self.created_ns,
            source=str(source.directory),
            is_full=all(file.folder == self._number for file in listed),
            manifest=source.state.as_edit() if source.state is not None else None,
            topics=_ranges(source, min(self.repository.find(file) for file in listed if file.is_log)),
            files=tuple(sorted(listed, key=lambda file: file.name)),
        )
        self.repository.write_list(made)
        return made

    # --- tables -----------------------------------------------------------------------------------------------------

    def _known_table(self, table: TableInfo) -> ListedFile | None:
        """The table in the repository, where that has a file of its name with the same header and footer."""
        file = self._known.get(self.source.table_path(table.number).name)
        if file is None or file.file_bytes != table.file_bytes:
            return None
        try:
            copy = files.open_file_to_read(self.repository.find(file))
        except FileNotFoundError:
            return None
        try:
            is_same = all(
                files.read_from(copy, at, PAGE) == files.read_from(self.source.tables[table.number], at, PAGE)
                for at in (0, table.file_bytes - PAGE)
            )
        finally:
            os.close(copy)
        return file if is_same else None

    def _take_table(self, table: TableInfo) -> ListedFile:
        path, descriptor = self.source.table_path(table.number), self.source.tables[table.number]
        target = self._folder / path.name
        try:
            crc = (
                link_or_copy(descriptor, path, table.file_bytes, target, self._tally)
                if self.link
                else copy_file(descriptor, table.file_bytes, target, self._tally)
            )
            self._prove(table)
        except EOFError:
            raise Corruption(path, os.fstat(descriptor).st_size, f"{table.file_bytes} bytes", "its end") from None
        except Corruption as error:  # the copy is as the table was
            raise Corruption(path, error.offset, error.expected, error.found) from None
        return ListedFile(name=f"store/{path.name}", folder=self._number, file_bytes=table.file_bytes, crc32c=crc)

    def _prove(self, table: TableInfo) -> None:
        """Raises Corruption unless every checksum in the copy of a table is right."""
        state = self.source.state
        assert state is not None
        schema = Schema.from_json(state.topics[table.topic].schema.encode())
        TableFiles(self._folder, state.log_id, 0).open(table, schema, KeyCodec(schema)).verify()

    # --- the log ----------------------------------------------------------------------------------------------------

    def _log_copy(self) -> LogCopy:
        """Where the log's files go: to those of the backup before, if the log has gone on from them; otherwise here."""
        if self.base is not None:
            with contextlib.suppress(LogWentBack, Corruption, FileNotFoundError, _ExpiredMeanwhile):
                copy = LogCopy(self.repository.folder(self.base.log_folder))
                for log in self._logs_from(copy.number):
                    copy.check_beginning(log)
                    return copy
        return LogCopy(self._folder)

    def _take_log(self, copy: LogCopy) -> None:
        if copy.folder != self._folder:
            for log in self._logs_from(copy.number):
                self._count_log(copy.take(log, self._tally, link=self.link))
            return
        for log in self.source.logs:
            self._count_log(copy.take(log, self._tally, link=self.link))
        for log in self.source.history():
            with contextlib.closing(log):
                self._tally.total_bytes += log.end
                self._count_log(copy.take_whole(log, self._tally, link=self.link))

    def _logs_from(self, number: int) -> Iterator[SourceLog]:
        """The log's files from that one on, oldest first. Raises _ExpiredMeanwhile where one is gone."""
        source = self.source
        while number < source.logs[0].number:
            try:
                with (
                    contextlib.closing(find_log_file(source.directory, number)) as log,
                    contextlib.closing(find_log_file(source.directory, number + 1)) as following,
                ):
                    log.end = log_end(log.file, following.file)
                    yield log
            except FileNotFoundError:
                raise _ExpiredMeanwhile from None
            number += 1
        yield from (log for log in source.logs if log.number >= number)

    def _count_log(self, new_bytes: int) -> None:
        self.new_file_count += bool(new_bytes)
        self.new_bytes += new_bytes

    def _list_log(self, copy: LogCopy) -> list[ListedFile]:
        """All of the log's files that the store has, its archive's too, newest first."""
        source, end = self.source, copy.end
        archive = source.directory / "archive"
        archived = {number for number, _ in list_files(archive)} if archive.is_dir() else set[int]()
        kept = archived | {number for number, _ in list_files(source.directory / "log")}
        needed = source.logs[0].number
        listed: list[ListedFile] = []
        for number in range(copy.number, 0, -1):
            path = file_path(copy.folder, number)
            if (number < needed and number not in kept) or not path.exists():
                break
            place = "archive" if number < needed and number in archived else "log"
            listed.append(
                ListedFile(
                    name=f"{place}/{path.name}",
                    folder=int(copy.folder.name),
                    file_bytes=end,
                    crc32c=self._log_checksum(copy, number, end),
                )
            )
            end = open_file(path, number).header.previous_end
        return listed

    def _log_checksum(self, copy: LogCopy, number: int, end: int) -> int:
        if (crc := copy.checksums.get(number)) is not None:
            return crc
        path = file_path(copy.folder, number)
        known = self._known.get(path.name)
        if known is not None and known.file_bytes == end and self.repository.find(known) == path:
            return known.crc32c
        descriptor = files.open_file_to_read(path)
        try:
            return checksum(descriptor, [end], Tally(None, 0))[0]
        finally:
            os.close(descriptor)


def _ranges(source: Source, oldest_log: Path) -> dict[str, TopicRange]:
    """Where each topic stands. oldest_log: the first log file of the backup."""
    checkpoints = source.state.checkpoints if source.state is not None else dict[str, int]()
    oldest = starting_topics(open_file(oldest_log, int(oldest_log.stem)))
    found: dict[str, TopicRange] = {}
    for name, topic in source.topics().items():
        begins = oldest.get(name)
        in_tables = [table.timestamp_max_ns for table in source.tables_named() if table.topic == name]
        found[name] = TopicRange(
            lowest=max(checkpoints.get(name, 0), begins.next_sequence - 1 if begins is not None else 0),
            lowest_timestamp_ns=max([*in_tables, begins.last_timestamp_ns if begins is not None else 0]),
            last=topic.next_sequence - 1,
            last_timestamp_ns=topic.last_timestamp_ns,
        )
    return found
