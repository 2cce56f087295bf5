"""What a log directory holds, as facts to print."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..bus import NotFound
from ..bus.processes import flock_holder
from ..storage import Corruption, LogReader, StorageError, _log
from ..storage.log_files import list_files, open_file, read_topics
from ..storage.recovery import Contents, examine

__all__ = [
    "DamageFacts",
    "FileFacts",
    "LogFacts",
    "LogTopicFacts",
    "find_log",
    "look_at_log",
    "open_topic",
    "writer_of",
]

FRAME_KINDS = {
    _log.FRAME_ROWS: "rows",
    _log.FRAME_TOPIC: "topic",
    _log.FRAME_MARK: "mark",
    _log.FRAME_CLOSE: "close",
    _log.FRAME_GAP: "gap",
    _log.FRAME_TOMBSTONES: "tombstones",
}
ROW_KINDS = ("rows", "tombstones")
TRIES = 5  # a living writer's retention may take a file away between the listing and the reading


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One log file."""

    path: str
    number: int
    epoch: int
    created_ns: int
    frame_count: int
    used_bytes: int
    closed: bool  # its writer ended in good order


class LogTopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One topic's kept records: sequences, and the time of the last one. Empty where last < oldest."""

    topic: str
    oldest: int
    last: int
    last_timestamp_ns: int
    row_bytes: int


class DamageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One damaged place. offset: bytes from the file's beginning; None where the whole file is at fault."""

    path: str
    offset: int | None
    message: str


class LogFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A whole log, read from beginning to end with every checksum."""

    directory: str
    bus: str
    log_id: str  # hexadecimal
    writer_pid: int | None  # who is writing it now
    files: tuple[FileFacts, ...]
    topics: tuple[LogTopicFacts, ...]
    record_count: int
    checked_bytes: int
    seconds: float
    torn_bytes: int  # of a last frame that was never finished; the next writer cuts it off
    lost_count: int  # records that an earlier repair gave up
    damage: tuple[DamageFacts, ...]

    @property
    def is_sound(self) -> bool:
        return not self.damage


def find_log(path: Path) -> Path:
    """The log directory that is meant by a data directory or by the log directory itself. FileNotFoundError otherwise."""
    for directory in (path, path / "log"):
        if directory.is_dir() and list_files(directory):
            return directory
    raise FileNotFoundError(2, "holds no log: no files such as 0000000001.log here or in its folder log", str(path))


def open_topic(directory: Path, topic: str) -> LogReader:
    """A topic of a log. Raises NotFound, with the topics there are, where it is not one of them."""
    try:
        return LogReader(directory, topic)
    except StorageError:
        if topic in (names := _newest_topics(directory)):
            raise
        raise NotFound(f"{directory}: no topic {topic!r} in this log; it has {', '.join(names) or 'none'}") from None


def _newest_topics(directory: Path) -> list[str]:
    number, path = list_files(directory)[-1]
    file = open_file(path, number)
    return [declared.schema.name for declared in read_topics(file, file.scan()[0])]


def look_at_log(directory: Path, progress: Callable[[int, int], None] | None = None) -> LogFacts:
    """Read a log from beginning to end. Raises FormatMismatch for files of another release."""
    started = time.monotonic()
    for attempt in range(TRIES):
        writer_pid = writer_of(directory)
        try:
            contents = examine(directory, progress)
        except FileNotFoundError:
            if attempt == TRIES - 1:
                raise
            continue
        break
    else:
        raise AssertionError
    oldest = _oldest(contents)
    last_header = contents.files[-1].header if contents.files else None
    return LogFacts(
        directory=str(directory),
        bus=last_header.bus if last_header is not None else "",
        log_id=f"{contents.log_id:016x}",
        writer_pid=writer_pid,
        files=tuple(
            FileFacts(
                path=str(item.path),
                number=item.header.file_number,
                epoch=item.header.epoch,
                created_ns=item.header.created_ns,
                frame_count=item.frame_count,
                used_bytes=item.end,
                closed=item.closed,
            )
            for item in contents.files
        ),
        topics=tuple(
            LogTopicFacts(
                topic=name,
                oldest=oldest.get(name, topic.next_sequence),
                last=topic.next_sequence - 1,
                last_timestamp_ns=topic.last_timestamp_ns,
                row_bytes=topic.schema.row_bytes,
            )
            for name, topic in contents.topics.items()
        ),
        record_count=contents.record_count,
        checked_bytes=contents.checked_bytes,
        seconds=round(time.monotonic() - started, 3),
        torn_bytes=contents.torn_bytes if writer_pid is None else 0,
        lost_count=contents.lost_count,
        damage=tuple(_damage(problem) for problem in contents.problems),
    )


def writer_of(directory: Path) -> int | None:
    """The pid of the process that is writing to a log, or None."""
    return flock_holder(directory / "LOCK", any_device=True)


def _oldest(contents: Contents) -> dict[str, int]:
    """Each topic's first kept sequence: where the oldest file that declares it begins."""
    found: dict[str, int] = {}
    for item in contents.files:
        if found.keys() >= contents.topics.keys():
            break
        try:
            file = open_file(item.path, item.header.file_number)
            frames, _ = file.scan()
            declared = list(read_topics(file, frames))
        except (FileNotFoundError, StorageError):  # expired since, or damaged: a later file tells
            continue
        for topic in declared:
            found.setdefault(topic.schema.name, topic.next_sequence)
    return found


def _damage(problem: StorageError) -> DamageFacts:
    return DamageFacts(
        path=str(getattr(problem, "path", "")),
        offset=getattr(problem, "offset", None),
        message=f"expected {problem.expected}, found {problem.found}"
        if isinstance(problem, Corruption)
        else str(problem),
    )
