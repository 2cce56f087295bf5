"""What a log directory holds: every file read and every checksum proven, without changing anything.

The rule (FORMAT.md, "Torn or damaged"): frames end at the first invalid place. In a file that has a successor that place
must be the one which the successor's header names. In the last file it is a torn tail, unless something valid behind it, or
anywhere in the log, says that it was on the disk already: then it is damage.

One file at a time is mapped, and its successor: a log may have more files than a process may map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from . import _log
from .errors import Corruption, StorageError
from .log_files import (
    FileHeader,
    Frames,
    LogFile,
    LogTopic,
    chain_files,
    file_path,
    last_timestamp,
    list_files,
    lost_ranges,
    open_file,
    read_header,
    read_topics,
    row_frames,
    whole_batches,
)

__all__ = ["Contents", "FileContents", "describe", "examine", "newest_durable"]


@dataclass(frozen=True, slots=True)
class FileContents:
    """One file: where its frames end, and what they hold. Sizes in bytes."""

    path: Path
    header: FileHeader
    end: int  # behind the last frame that counts
    closed: bool  # that frame says that the writer closed in good order
    frame_count: int
    record_count: int
    durable_position: int  # the newest one that this file knows
    durable_end: int  # where the first frame begins that is not known to be on the disk
    begins: Mapping[str, int]  # where each topic that it declares stood: its next sequence


@dataclass(slots=True)
class Contents:
    """A whole log. `topics` says where each topic stands behind the last valid record."""

    directory: Path
    files: list[FileContents] = field(default_factory=list[FileContents])
    topics: dict[str, LogTopic] = field(default_factory=dict[str, LogTopic])
    problems: list[StorageError] = field(default_factory=list[StorageError])
    torn_bytes: int = 0  # behind the last valid frame, part of one that was never finished
    record_count: int = 0
    lost_count: int = 0  # records given up by an earlier repair
    checked_bytes: int = 0

    @property
    def end(self) -> tuple[int, int, int]:
        """(number of the next file, position where the log ends, bytes of the last file that count)."""
        if not self.files:
            return 1, 0, 0
        last = self.files[-1]
        return last.header.file_number + 1, last.header.start_position + last.end, last.end

    @property
    def epoch(self) -> int:
        return max((item.header.epoch for item in self.files), default=0)

    @property
    def log_id(self) -> int:
        return self.files[-1].header.log_id if self.files else 0

    @property
    def ends(self) -> dict[str, int]:
        """Each topic's last sequence."""
        return {name: topic.next_sequence - 1 for name, topic in self.topics.items()}

    def is_still(self, directory: Path) -> bool:
        """Whether a directory has these files, by names, headers and sizes. Who asks knows that nobody has written to it since."""
        try:
            paths = list_files(directory)
            return [path for _, path in paths] == [item.path for item in self.files] and all(
                read_header(path, number) == item.header and path.stat().st_size >= item.end
                for (number, path), item in zip(paths, self.files, strict=True)
            )
        except (StorageError, FileNotFoundError):
            return False

    def moved_to(self, directory: Path) -> Contents:
        """The same of the directory alone, without its archive (but for `lost_count`), once it has another name."""
        files = [
            replace(item, path=directory / item.path.name) for item in self.files if item.path.parent == self.directory
        ]
        return replace(
            self,
            directory=directory,
            files=files,
            record_count=sum(item.record_count for item in files),
            checked_bytes=sum(item.end for item in files),
        )


def examine(
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
    archive: Path | None = None,
    read: Callable[[Path], None] = lambda _path: None,
) -> Contents:
    """Read a log from beginning to end. Findings are collected in `problems`, as met; nothing is raised for them.

    progress: called with (bytes looked at, bytes in all) after each file. A living writer may go on meanwhile.
    archive: read before the directory, as one log with it; it may be missing.
    read: called with each file but the last, once it was read and is mapped no more.
    Raises FileNotFoundError where there is no directory, FormatMismatch for files of another version.
    """
    contents = Contents(directory)
    paths = chain_files(directory, archive)
    for (before, _), (after, _) in pairwise(paths):
        if after != before + 1:
            found = "no file" if after == before + 2 else f"no file, nor any other before {after:010d}.log"
            contents.problems.append(
                Corruption(file_path(directory, before + 1), 0, "a file between its neighbours", found)
            )
    sizes_bytes = {number: _size_bytes(path) for number, path in paths}
    total_bytes, done_bytes = sum(sizes_bytes.values()), 0
    passed: Path | None = None
    for file, successor in _open_in_turn(contents, paths):
        if passed is not None:
            read(passed)
        number, passed = file.header.file_number, file.path
        _examine_file(contents, file, successor, last=number == paths[-1][0])
        done_bytes += sizes_bytes[number]
        if progress is not None:
            progress(done_bytes, total_bytes)
    return contents


def newest_durable(file: LogFile, frames: Frames) -> int:
    """The newest position that a file knows to be on the disk."""
    newest = int(frames["durable_position"].max()) if len(frames) else 0
    return max(newest, file.header.start_position + file.header.start_bytes)


def describe(file: LogFile, offset: int) -> str:
    """What stands where a frame should be, in words."""
    head = bytes(file.data[offset : offset + _log.FRAME_HEADER_BYTES])
    if len(head) < _log.FRAME_HEADER_BYTES:
        return "the end of the file"
    if not head.strip(b"\0"):
        return "zeros"
    if head[:4] != b"RMF1":
        return f"bytes {head[:8].hex(' ')} …"
    position = int.from_bytes(head[16:24], "little")
    if position != file.header.start_position + offset:
        return f"a frame for position {position}"
    return "a frame whose checksum does not match"


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _open_in_turn(contents: Contents, paths: list[tuple[int, Path]]) -> Iterator[tuple[LogFile, LogFile | None]]:
    """Each file with a sound header, and the one right behind it where there is one."""
    waiting: LogFile | None = None
    for number, path in paths:
        try:
            file = open_file(path, number)
        except FileNotFoundError:
            if waiting is not None:
                raise
            continue  # the oldest files expire while we look
        except Corruption as error:
            contents.problems.append(error)
            continue
        if waiting is not None:
            yield waiting, file if number == waiting.header.file_number + 1 else None
        waiting = file
    if waiting is not None:
        yield waiting, None


def _examine_file(contents: Contents, file: LogFile, successor: LogFile | None, *, last: bool) -> None:
    if contents.files:
        _check_chain(contents, contents.files[-1], file)
    limit = successor.header.previous_end if successor is not None else len(file.data)
    frames, end = file.scan(limit=limit)
    if successor is not None and end != limit:
        contents.problems.append(Corruption(file.path, end, "a valid frame", describe(file, end)))
    elif successor is None:
        frames, end = _judge_tail(contents, file, frames, end, last=last)
    rows = row_frames(frames)
    begins = _follow_topics(contents, file, frames)
    durable_position = newest_durable(file, frames)
    item = FileContents(
        path=file.path,
        header=file.header,
        end=end,
        closed=_closed(frames),
        frame_count=len(frames),
        record_count=int(rows["row_count"].sum()),
        durable_position=durable_position,
        durable_end=_frame_at(frames, durable_position - file.header.start_position, end),
        begins=begins,
    )
    contents.files.append(item)
    contents.record_count += item.record_count
    contents.checked_bytes += end


def _frame_at(frames: Frames, offset: int, end: int) -> int:
    """Where the frame that holds `offset` begins: there, unless a repair's gap lies over it. `end` where there is none."""
    place = int(np.searchsorted(frames["offset"], offset, side="right"))
    return int(frames["offset"][place - 1]) if place and offset < end else end


def _closed(frames: Frames) -> bool:
    return bool(len(frames)) and int(frames["kind"][-1]) == _log.FRAME_CLOSE


def _check_chain(contents: Contents, before: FileContents, file: LogFile) -> None:
    header, previous = file.header, before.header
    if header.log_id != previous.log_id:
        contents.problems.append(Corruption(file.path, 16, f"log {previous.log_id:#x}", f"log {header.log_id:#x}"))
    expected = previous.start_position + header.previous_end
    if header.file_number == previous.file_number + 1 and header.start_position != expected:
        contents.problems.append(Corruption(file.path, 32, f"position {expected}", header.start_position))


def _judge_tail(contents: Contents, file: LogFile, frames: Frames, end: int, *, last: bool) -> tuple[Frames, int]:
    """The end of a file that has no sound successor: nothing, a torn tail, or damage. Returns its frames and their end.

    A batch whose last frame is not there belongs to the torn tail, whether its first frames were on the disk or not.
    Where a successor was there once (not `last`), everything in the file was on the disk before that began.
    """
    while True:
        known_durable = max(newest_durable(file, frames), *(item.durable_position for item in contents.files), 0)
        last_valid = search = end
        while (found := file.find_frame(search)) is not None:
            later, stop = file.scan(found)
            known_durable = max(known_durable, newest_durable(file, later))
            last_valid = search = stop
        more, end_now = file.scan(end)
        if end_now == end:
            break
        frames, end = np.concatenate([frames, more]), end_now  # its writer lives and has gone on meanwhile
    if _closed(frames):
        return frames, end  # what lies behind does not exist
    if known_durable > file.header.start_position + end or (not last and last_valid > end):
        contents.problems.append(
            Corruption(file.path, end, "a valid frame, since it was on the disk", describe(file, end))
        )
    elif last:
        torn_end = max(last_valid, end + _unfinished_bytes(file, end))
        frames, end = whole_batches(frames, end)
        contents.torn_bytes = torn_end - end
    return frames, end


def _unfinished_bytes(file: LogFile, offset: int) -> int:
    """How much of a frame was begun at `offset` but never finished. What a recycled file held before does not count."""
    head = bytes(file.data[offset : offset + _log.FRAME_HEADER_BYTES])
    right_magic, position = head[:4] == b"RMF1", int.from_bytes(head[16:24], "little")
    if right_magic and position < file.header.start_position and len(head) == _log.FRAME_HEADER_BYTES:
        return 0
    if len(file.data) < file.header.file_bytes and head.strip(b"\0"):
        return len(file.data) - offset  # the file itself is cut off
    if not right_magic and position != file.header.start_position + offset:
        return 0
    frame_bytes = int.from_bytes(head[8:12], "little")
    return max(_log.FRAME_HEADER_BYTES, min(frame_bytes, _log.GROUP_BYTES_MAX, len(file.data) - offset))


def _follow_topics(contents: Contents, file: LogFile, frames: Frames) -> dict[str, int]:
    """Check that every topic's records run on without a gap, and note where each stands now. Returns where each stood."""
    lost = lost_ranges(file, frames)
    contents.lost_count += int(lost["count"].sum())
    try:
        declared = {topic.number: topic for topic in read_topics(file, frames)}
    except StorageError as error:
        contents.problems.append(error)
        return {}
    explained = bool(contents.problems)  # a problem already found explains a step between two files
    undeclared = contents.topics.keys() - {topic.schema.name for topic in declared.values()}
    for name in [] if explained else sorted(undeclared):
        contents.problems.append(
            Corruption(file.path, _log.LOG_HEADER_BYTES, f"a declaration of topic {name!r}", "none in this file")
        )
    rows = row_frames(frames)
    if stray := set(rows["topic"].tolist()) - declared.keys():
        place = int(rows["offset"][np.isin(rows["topic"], list(stray))][0])
        contents.problems.append(Corruption(file.path, place, "rows of a declared topic", f"topic number {min(stray)}"))
    for number, topic in declared.items():
        before = contents.topics.get(topic.schema.name)
        began = before.next_sequence if before else 1 if contents.files or file.header.file_number == 1 else None
        if began not in (None, topic.next_sequence) and not explained:
            contents.problems.append(
                Corruption(
                    file.path,
                    _log.LOG_HEADER_BYTES,
                    f"topic {topic.schema.name!r} at sequence {began}",
                    topic.next_sequence,
                )
            )
        mine = rows[rows["topic"] == number]
        if (wrong := mine[mine["row_bytes"] != topic.schema.row_bytes]).size:
            contents.problems.append(
                Corruption(
                    file.path,
                    int(wrong["offset"][0]),
                    f"rows of {topic.schema.row_bytes} bytes",
                    int(wrong["row_bytes"][0]),
                )
            )
            continue
        gone = lost[lost["topic"] == number]
        next_sequence = _check_sequences(contents, file, topic, mine, gone)
        last_ns = last_timestamp(file, topic, mine[-1]) if len(mine) else topic.last_timestamp_ns
        contents.topics[topic.schema.name] = LogTopic(number, topic.schema, next_sequence, last_ns)
    return {topic.schema.name: topic.next_sequence for topic in declared.values()}


def _check_sequences(contents: Contents, file: LogFile, topic: LogTopic, mine: Frames, gone: Frames) -> int:
    """Whether rows, and records given up, follow each other. Returns the sequence behind the last of them."""
    starts = np.concatenate([mine["first_sequence"], gone["first_sequence"]])
    counts = np.concatenate([mine["row_count"].astype("u8"), gone["count"]])
    order = np.argsort(starts, kind="stable")
    expected = np.uint64(topic.next_sequence) + np.concatenate([[0], np.cumsum(counts[order])]).astype("u8")
    wrong = np.flatnonzero(starts[order] != expected[:-1])
    if len(wrong):
        place = int(order[wrong[0]])
        offset = int(mine["offset"][place]) if place < len(mine) else _log.LOG_HEADER_BYTES
        contents.problems.append(
            Corruption(
                file.path, offset, f"sequence {expected[wrong[0]]} of topic {topic.schema.name!r}", int(starts[place])
            )
        )
    return int(expected[-1])
