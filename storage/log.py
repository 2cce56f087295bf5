"""The log, opened for writing: lock, recovery, files kept ready ahead, retention. Appending itself is the LogAppender's.

1. One living process writes to a directory (LOCK). It begins a new file and a new epoch, and never touches an older file's
   content; what a process that lost the lock still writes lies behind the end that the new file's header names.
   Such a process finds its spares gone and its next file's name taken, and its keeper does nothing more.
2. `keep` is the keeper's work: called by one thread, it makes spare files and gives back expired ones. The appender never
   waits for it unless it has used up every spare.
3. A file expires when retention allows it and, where checkpoints are told (`release`, `hold_back`), no row in it is needed any
   more.
4. An expired file goes into the archive, if there is one. Without one it becomes a spare if this writer wrote it, no reader has it
   mapped, and there are not SPARE_COUNT_MAX yet; otherwise it is unlinked. Archive and log follow each other without a gap: a log
   that has an archive is not opened without it where files may expire.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import select
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import _log
from .errors import Corruption, FormatMismatch, StorageError
from .files import (
    allocate,
    free_tail,
    holds_lock,
    lock_directory,
    make_directory,
    naming,
    open_file_to_change,
    open_file_to_read,
    sync_data,
    sync_directory,
    sync_file,
    write_around_cache,
    write_at,
)
from .log_files import LogTopic, file_path, list_files, open_file, read_header
from .log_retention import Archive, Numbered, Retention
from .recovery import Contents, FileContents, examine
from .schema import Schema
from .unfinished_cut import finish_cut

__all__ = ["LOG_FILE_BYTES", "Log", "Recovered"]

LOG_FILE_BYTES = 64 << 20
LOG_FILE_BYTES_MIN = 4 << 20
SPARE_COUNT = 2  # made ahead
SPARE_COUNT_MAX = 8  # with expired ones: a store gives up several files at a time, and fills as many until the next
WRITE_AGAIN_BYTES = 8 << 20  # at a time: more than a frame
DIRECT_BYTES = 4096  # what writing past the page cache goes by
BUS_BYTES_MAX = 63


@dataclass(frozen=True, slots=True)
class Recovered:
    """What opening a log found. Times in seconds."""

    record_count: int
    file_count: int
    checked_bytes: int
    torn_bytes: int
    closed: bool  # the writer before ended in good order (or there was none)
    seconds: float


class Log:
    """A log directory, held for writing by this process.

    directory: made if missing. schemas: the topics, in any order; those of earlier writers keep their place in the log even
    when they are not named. bus: the log's owner; a directory belongs to one. epoch: at least this (0: the log's own next).
    log_id: the id of a log that is made now, for one that has the same rows as others elsewhere; 0: any.
    sync_files: False never waits for the disk (a power cut may then lose everything). mode: the permissions of the files.
    retention_bytes, retention_age_s: how much of the past to keep here. Files go when those behind them hold so many bytes, or when
    they are older; with both, whichever comes first. Both None keep everything.
    archive: a directory on the same file system (made if missing) for the files that are not kept here; archive_bytes,
    archive_age_s: how much to keep there, as above. A file that cannot be moved stays here; `archive.error` says why. None, with a
    retention, is refused where the folder `archive` beside the directory has files of this log.
    checkpoints: what `release` is told, from the beginning; None lets retention alone decide.
    proven: what was found when its files were examined before; where they are still the same, that is not done again.
    map_small_groups: copy small groups into the mapped file instead of calling the system, where the file system allows it.

    found: the files that were there when this was opened, examined, oldest first. recovered: that in figures.
    Raises LogLocked, Corruption (nothing is changed then; see `ringmain log repair`), FormatMismatch (also for a log with another
    log_id), StorageError for an archive that is not named, or for an end that the disk never had, OSError.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        schemas: Iterable[Schema],
        *,
        bus: str = "",
        epoch: int = 0,
        log_id: int = 0,
        sync_files: bool = True,
        mode: int = 0o600,
        file_bytes: int = LOG_FILE_BYTES,
        retention_bytes: int | None = None,
        retention_age_s: float | None = None,
        archive: str | os.PathLike[str] | None = None,
        archive_bytes: int | None = None,
        archive_age_s: float | None = None,
        checkpoints: Mapping[str, int] | None = None,
        map_small_groups: bool = False,
        take_over: bool = False,
        proven: Contents | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if file_bytes < LOG_FILE_BYTES_MIN:
            raise ValueError(f"file_bytes: at least {LOG_FILE_BYTES_MIN} are needed, got {file_bytes}")
        if len(bus.encode()) > BUS_BYTES_MAX:
            raise ValueError(f"bus: a name of at most {BUS_BYTES_MAX} bytes is needed, got {len(bus.encode())}")
        if not 0 <= log_id < 1 << 64:
            raise ValueError(f"log_id: 0 to 2**64 - 1 is expected, got {log_id}")
        self.directory = Path(directory)
        self._file_bytes, self._sync_files, self._mode = file_bytes, sync_files, mode
        self._retention = Retention(retention_bytes, retention_age_s)
        self._archive_path, self._archive_retention = archive, Retention(archive_bytes, archive_age_s)
        self._checkpoints = dict(checkpoints) if checkpoints is not None else None
        self._held_back: Mapping[str, int] | None = None
        self._map_small_groups = map_small_groups
        self._spare_number = 0
        make_directory(self.directory)
        self.epoch = 0
        self._directory_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held = contextlib.ExitStack()
        self._held.callback(os.close, self._directory_fd)
        try:
            self._lock = lock_directory(self.directory, take_over=take_over)
        except BaseException:
            os.close(self._directory_fd)
            raise
        _OPEN.add(self)
        try:
            self._open(list(schemas), bus, epoch, log_id, None if take_over else proven, progress)
        except BaseException:
            self._drop_spares()
            self._release()
            raise

    def _open(
        self,
        schemas: list[Schema],
        bus: str,
        epoch: int,
        log_id: int,
        proven: Contents | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        started = time.monotonic()
        finish_cut(self.directory)
        contents = (
            proven if proven is not None and proven.is_still(self.directory) else examine(self.directory, progress)
        )
        for problem in contents.problems:
            raise problem
        # One that is known by its id may come from another host, where the bus has another name. Unnamed: nobody's yet.
        if not log_id and contents.files and contents.files[-1].header.bus not in ("", bus):
            raise FormatMismatch(
                self.directory,
                "bus",
                repr(bus),
                repr(contents.files[-1].header.bus),
                "a data directory belongs to one bus: give the bus its old name, or another directory",
            )
        if log_id and contents.files and contents.log_id != log_id:
            raise FormatMismatch(
                self.directory,
                "log_id",
                f"{log_id:#x}",
                f"{contents.log_id:#x}",
                "these are the rows of another log: give an empty directory, or the one that belongs here",
            )
        if self._archive_path is None:
            self._check_archive(contents)
        self.archive = (
            Archive(Path(self._archive_path), self.directory, contents.log_id or None, self._archive_retention)
            if self._archive_path is not None
            else None
        )
        self.topics = _merge_topics(self.directory, contents, schemas)
        for item in contents.files:  # what a killed writer left in the system's hands
            item.path.chmod(self._mode)
            if self._sync_files and item is contents.files[-1]:
                _write_again(item)
            sync_file(item.path)
        for path in self.directory.glob("spare-*"):
            path.unlink()
        number, position, used_bytes = contents.end
        self.epoch = max(epoch, contents.epoch + 1)
        self.log_id = contents.log_id or log_id or secrets.randbits(63) | 1
        self._first_own_number = number
        self.found = contents.files
        self.recovered = Recovered(
            record_count=contents.record_count,
            file_count=len(contents.files),
            checked_bytes=contents.checked_bytes,
            torn_bytes=contents.torn_bytes,
            closed=not contents.files or contents.files[-1].closed,
            seconds=time.monotonic() - started,
        )
        self.appender = _log.LogAppender(
            self.directory,
            self._directory_fd,
            log_id=self.log_id,
            epoch=self.epoch,
            bus=bus,
            next_file_number=number,
            start_position=position,
            previous_end=used_bytes,
            file_bytes=self._file_bytes,
            sync_files=self._sync_files,
            map_small_groups=self._map_small_groups,
        )
        self._held.callback(self.appender.close)
        for topic in self.topics:
            self.appender.add_topic(
                topic.schema.to_json(), topic.schema.dtype, topic.next_sequence, topic.last_timestamp_ns
            )
        if contents.files:
            free_tail(contents.files[-1].path, used_bytes)
        refused = self._make_spares()
        if refused is not None and not self.appender.spare_count:
            raise refused
        self.appender.open_first()
        self._make_spares()

    def _check_archive(self, contents: Contents) -> None:
        """Let no file expire behind an archive that was not named: it would be missing there. Raises StorageError."""
        archive = self.directory.absolute().parent / "archive"
        may_expire = self._retention.size_bytes is not None or self._retention.age_s is not None
        if may_expire and contents.files and _has_files(archive, contents.log_id):
            raise StorageError(
                f"{self.directory}: files of this log are in {archive}, and it is opened without an archive: those that expire "
                f"would be missing between the two. Open it with an archive, or without a retention, or move {archive} away"
            )

    @property
    def syncs_files(self) -> bool:
        """Whether it ever waits for the disk."""
        return self._sync_files

    def holds_lock(self) -> bool:
        """Whether the directory is still this log's to write: no other writer has taken it over."""
        return self._lock >= 0 and holds_lock(self.directory, self._lock)

    def topic(self, name: str) -> LogTopic:
        """Where a topic stood when this log was opened."""
        return next(topic for topic in self.topics if topic.schema.name == name)

    def release(self, checkpoints: Mapping[str, int]) -> None:
        """Say up to which sequence each topic's rows are safe elsewhere. Files with rows behind that do not expire.

        checkpoints: by topic; a topic that is not named has none. Any thread may call; `keep` acts on it.
        """
        self._checkpoints = dict(checkpoints)

    def hold_back(self, ends: Mapping[str, int]) -> None:
        """Say up to which sequence each topic's rows may go, as `release`, for another reason. A file expires when both let it."""
        self._held_back = dict(ends)

    def keep(self, timeout_s: float) -> None:
        """The keeper's turn: wait up to `timeout_s` for the appender to want a file, make spares, give back what has expired."""
        poll = select.poll()
        poll.register(self.appender.wants_spare_fd, select.POLLIN)
        if poll.poll(timeout_s * 1000):
            os.read(self.appender.wants_spare_fd, 8)
        if not self.holds_lock():
            self.appender.refuse_spare(errno.ESTALE)
            return
        self._give_back_expired()
        self._make_spares()

    def close(self, *, finish: bool = True) -> None:
        """Write and sync what is left, mark the end, give back spare room, and release the directory.

        finish: False where the journal has done the first part already, or the log has failed. In a forked child it does nothing.
        """
        if self._lock < 0:
            return
        try:
            if finish and self.appender.failure() is None:
                self.appender.finish()
            if self.appender.failure() is None and self.holds_lock():
                free_tail(file_path(self.directory, self.appender.file_number), self.appender.offset)
        finally:
            self._drop_spares()
            self._release()

    def _release(self) -> None:
        self._held.close()
        self._leave_lock()

    def _leave_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- the keeper -------------------------------------------------------------------------------------------------

    def _make_spares(self) -> OSError | None:
        """Allocate what is missing. Returns what the system said where it refused."""
        while self.appender.spare_count < SPARE_COUNT:
            name = self._spare_name()
            try:
                descriptor = allocate(self.directory / name, self._file_bytes, self._mode)
            except OSError as error:
                self.appender.refuse_spare(error.errno or errno.EIO)
                return error
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.appender.add_spare(descriptor, name)
        return None

    def _spare_name(self) -> str:
        self._spare_number += 1
        return f"spare-{self.epoch}-{self._spare_number}"

    def _drop_spares(self) -> None:
        """Remove the spares of this epoch; a writer that took over has its own. What cannot be removed, the next one does."""
        with contextlib.suppress(OSError):
            for path in self.directory.glob(f"spare-{self.epoch}-*"):
                path.unlink(missing_ok=True)

    def _give_back_expired(self) -> None:
        if self.archive is not None:
            self.archive.take(path for _, path in self._expired())
            return
        for number, path in self._expired():
            if not self._recycle(number, path):
                path.unlink()
                # Before the next: no file may be missing between two others after a power cut.
                sync_directory(self.directory)

    def _expired(self) -> Iterator[Numbered]:
        """The files that neither retention nor a checkpoint keeps, the oldest first."""
        current = self.appender.file_number
        files = [(number, path) for number, path in list_files(self.directory) if number < current]
        for file, following in self._retention.expired(files, (current, file_path(self.directory, current))):
            if not self._is_released(following):
                return
            yield file

    def _is_released(self, following: Numbered) -> bool:
        """Whether no row before the file `following` is needed any more: what it declares says where each topic stood."""
        needed = [ends for ends in (self._checkpoints, self._held_back) if ends is not None]
        if not needed:
            return True
        try:
            file = open_file(following[1], following[0])
        except (Corruption, FileNotFoundError):
            return False
        frames, end = file.scan(limit=file.header.start_bytes)
        if end != file.header.start_bytes:
            return False
        names = {topic.number: topic.schema.name for topic in self.topics}
        declared = frames[frames["kind"] == _log.FRAME_TOPIC]
        stood = zip(declared["topic"].tolist(), declared["first_sequence"].tolist(), strict=True)
        return all(sequence - 1 <= min(ends.get(names[number], 0) for ends in needed) for number, sequence in stood)

    def _recycle(self, number: int, path: Path) -> bool:
        """Turn an expired file into a spare, unless it was another writer's or somebody has it mapped (sync LOGFILE)."""
        if number < self._first_own_number or self.appender.spare_count >= SPARE_COUNT_MAX:
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        name = self._spare_name()
        path.rename(self.directory / name)
        sync_directory(self.directory)  # before a new header is written into it: its old name must not come back then
        self.appender.add_spare(descriptor, name)
        return True


def _write_again(item: FileContents) -> None:
    """Write what a log's last file does not know to be on the disk once more, byte for byte, and sync it.

    A writer before may have failed to sync it. The kernel then takes its pages for written: they are still read from memory, and
    a sync alone would say that all is well. It is written past the page cache: there ext4 has also noted that the file's reserved
    blocks are in use, and would never say so on the disk. Where it had failed, who has the file mapped may for that moment read
    there what the disk has. Raises StorageError where it is not what was examined any more.
    """
    buffer = memoryview(mmap.mmap(-1, WRITE_AGAIN_BYTES))  # a map begins where a page does
    start, at = item.header.start_position, item.durable_end
    source, target = open_file_to_read(item.path), open_file_to_change(item.path)
    try:
        with naming(item.path):
            while at < item.end:
                first = at // DIRECT_BYTES * DIRECT_BYTES
                part = buffer[: min(len(buffer), _whole_pages(item.end) - first)]
                part = part[: os.preadv(source, [part], first)]
                _, proven_bytes = _log.scan(
                    part,
                    start_position=start + first,
                    epoch=item.header.epoch,
                    offset=at - first,
                    limit=item.end - first,
                )
                if first + proven_bytes == at:  # memory has let go of it meanwhile
                    raise StorageError(
                        f"{item.path}: what was read at byte {at} is gone, since the disk never had it. Open the log again: it "
                        "then ends before"
                    )
                _write_past_memory(target, part[: _whole_pages(proven_bytes)], first)
                at = first + proven_bytes
            sync_data(target)  # through this descriptor, which no error since can have passed by
    finally:
        os.close(source)
        os.close(target)


def _write_past_memory(descriptor: int, part: memoryview, offset: int) -> None:
    """Write into an open file around the page cache, where the file system can."""
    write_around_cache(descriptor, len(part) % DIRECT_BYTES == 0)
    try:
        write_at(descriptor, part, offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        write_around_cache(descriptor, False)  # a file system with rules of its own
        write_at(descriptor, part, offset)


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // DIRECT_BYTES) * DIRECT_BYTES


def _has_files(archive: Path, log_id: int) -> bool:
    """Whether an archive is this log's, by the newest of its files that is not damaged."""
    for number, path in reversed(list_files(archive) if archive.is_dir() else []):
        with contextlib.suppress(Corruption):
            return read_header(path, number).log_id == log_id
    return False


_OPEN: weakref.WeakSet[Log] = weakref.WeakSet()


def _leave_locks() -> None:
    """In a forked child: the logs are the parent's alone, and its locks end with it."""
    for log in _OPEN:
        log._leave_lock()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_leave_locks)


def _merge_topics(directory: Path, contents: Contents, schemas: list[Schema]) -> list[LogTopic]:
    """The log's topics by number: those it has, then new ones. The schema of an old topic must not have changed."""
    topics = sorted(contents.topics.values(), key=lambda topic: topic.number)
    for schema in schemas:
        known = contents.topics.get(schema.name)
        if known is None:
            topics.append(LogTopic(len(topics), schema, 1, 0))
        elif known.schema.hash != schema.hash:
            raise FormatMismatch(
                directory,
                f"schema of topic {schema.name!r}",
                "the logged one",
                "another",
                f"{known.schema.describe_difference(schema)}; keep the schema, or publish under a new topic name",
            )
        else:
            topics[known.number] = LogTopic(known.number, schema, known.next_sequence, known.last_timestamp_ns)
    declared_bytes = sum(len(topic.schema.to_json()) + _log.FRAME_HEADER_BYTES + 8 for topic in topics)
    if len(topics) > _log.TOPIC_COUNT_MAX or declared_bytes > LOG_FILE_BYTES_MIN // 4:
        raise StorageError(
            f"{directory}: {len(topics)} topics with {declared_bytes} bytes of schema are too many for one log; at most "
            f"{_log.TOPIC_COUNT_MAX} and {LOG_FILE_BYTES_MIN // 4} bytes"
        )
    return topics
