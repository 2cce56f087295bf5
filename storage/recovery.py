"""What a log directory holds: every file read and every checksum proven, without changing anything.

The rule (FORMAT.md, "Torn or damaged"): frames end at the first invalid place. In a file that has a successor that place
must be the one which the successor's header names. In the last file it is a torn tail, unless something valid behind it, or
anywhere in the log, says that it was on the disk already: then it is damage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import _log
from .errors import Corruption, StorageError
from .log_files import Frames, LogFile, LogTopic, file_path, list_files, open_file, read_topics

__all__ = ["Contents", "FileContents", "examine"]


@dataclass(slots=True)
class FileContents:
    """One file: its frames, where they end, and what is wrong with it."""

    file: LogFile
    frames: Frames
    end: int
    closed: bool


@dataclass(slots=True)
class Contents:
    """A whole log. `topics` says where each topic stands behind the last valid record."""

    directory: Path
    files: list[FileContents] = field(default_factory=list[FileContents])
    topics: dict[str, LogTopic] = field(default_factory=dict[str, LogTopic])
    problems: list[StorageError] = field(default_factory=list[StorageError])
    torn_bytes: int = 0       # behind the last valid frame, part of one that was never finished
    record_count: int = 0
    lost_count: int = 0       # records given up by an earlier repair
    checked_bytes: int = 0

    @property
    def end(self) -> tuple[int, int, int]:
        """(number of the next file, position where the log ends, bytes of the last file that count)."""
        if not self.files:
            return 1, 0, 0
        last = self.files[-1]
        return last.file.header.file_number + 1, last.file.header.start_position + last.end, last.end

    @property
    def epoch(self) -> int:
        return max((item.file.header.epoch for item in self.files), default=0)

    @property
    def log_id(self) -> int:
        return self.files[-1].file.header.log_id if self.files else 0


def examine(directory: Path, progress: Callable[[int, int], None] | None = None) -> Contents:
    """Read a log from beginning to end. Findings are collected in `problems`, worst first met first; nothing is raised for them.

    progress: called with (bytes checked, bytes in all) after each file.
    Raises FileNotFoundError where there is no directory, FormatMismatch for files of another version.
    """
    contents = Contents(directory)
    paths = list_files(directory)
    total_bytes = sum(path.stat().st_size for _, path in paths)
    if paths:
        missing = sorted(set(range(paths[0][0], paths[-1][0])) - {number for number, _ in paths})
        contents.problems += [
            Corruption(file_path(directory, number), 0, "a file between its neighbours", "no file") for number in missing
        ]
    opened: list[LogFile] = []
    for number, path in paths:
        try:
            opened.append(open_file(path, number))
        except Corruption as error:
            contents.problems.append(error)
    for index, file in enumerate(opened):
        successor = opened[index + 1] if index + 1 < len(opened) else None
        if successor is not None and successor.header.file_number != file.header.file_number + 1:
            successor = None
        _examine_file(contents, file, successor)
        contents.checked_bytes += contents.files[-1].end
        if progress is not None:
            progress(sum(len(item.data) for item in opened[: index + 1]), total_bytes)
    return contents


def _examine_file(contents: Contents, file: LogFile, successor: LogFile | None) -> None:
    if contents.files:
        _check_chain(contents, contents.files[-1], file)
    limit = successor.header.previous_end if successor is not None else len(file.data)
    frames, end = file.scan(limit=limit)
    closed = bool(len(frames)) and int(frames["kind"][-1]) == _log.FRAME_CLOSE
    contents.files.append(FileContents(file, frames, end, closed))
    if successor is not None and end != limit:
        contents.problems.append(Corruption(file.path, end, "a valid frame", _describe(file, end)))
    elif successor is None:
        _judge_tail(contents, file, end, closed)
    _follow_topics(contents, file, frames)


def _check_chain(contents: Contents, before: FileContents, file: LogFile) -> None:
    header, previous = file.header, before.file.header
    if header.log_id != previous.log_id:
        contents.problems.append(Corruption(file.path, 16, f"log {previous.log_id:#x}", f"log {header.log_id:#x}"))
    expected = previous.start_position + header.previous_end
    if header.file_number == previous.file_number + 1 and header.start_position != expected:
        contents.problems.append(Corruption(file.path, 32, f"position {expected}", header.start_position))


def _judge_tail(contents: Contents, file: LogFile, end: int, closed: bool) -> None:
    """The last file's end: nothing, a torn tail, or damage."""
    known_durable = _known_durable(contents)
    last_valid, search = end, end
    while (found := file.find_frame(search)) is not None:
        later, stop = file.scan(found)
        known_durable = max(known_durable, int(later["durable_position"].max()))
        last_valid = search = max(stop, found + 8)
    if known_durable > file.header.start_position + end and not closed:
        contents.problems.append(Corruption(file.path, end, "a valid frame, since it was on the disk", _describe(file, end)))
    else:
        contents.torn_bytes = max(last_valid - end, _unfinished_bytes(file, end))


def _known_durable(contents: Contents) -> int:
    newest = 0
    for item in contents.files:
        if len(item.frames):
            newest = max(newest, int(item.frames["durable_position"].max()))
    return newest


def _unfinished_bytes(file: LogFile, offset: int) -> int:
    """How much of a frame was begun at `offset` but never finished. What a recycled file held before does not count."""
    head = bytes(file.data[offset : offset + _log.FRAME_HEADER_BYTES])
    if len(file.data) < file.header.file_bytes and head.strip(b"\0"):
        return len(file.data) - offset  # the file itself is cut off
    right_magic, right_position = head[:4] == b"RMF1", head[16:24] == (file.header.start_position + offset).to_bytes(8, "little")
    stale = right_magic and int.from_bytes(head[16:24], "little") < file.header.start_position
    if stale or not (right_magic or right_position):
        return 0
    frame_bytes = int.from_bytes(head[8:12], "little")
    return max(_log.FRAME_HEADER_BYTES, min(frame_bytes, _log.GROUP_BYTES_MAX, len(file.data) - offset))


def _describe(file: LogFile, offset: int) -> str:
    head = bytes(file.data[offset : offset + _log.FRAME_HEADER_BYTES])
    if len(head) < _log.FRAME_HEADER_BYTES:
        return "the end of the file"
    if not head.strip(b"\0"):
        return "zeros"
    return "a frame whose checksum does not match" if head[:4] == b"RMF1" else f"bytes {head[:8].hex(' ')} …"


def _follow_topics(contents: Contents, file: LogFile, frames: Frames) -> None:
    """Check that every topic's records run on without a gap, and note where each stands now."""
    try:
        declared = {topic.number: topic for topic in read_topics(file, frames)}
    except StorageError as error:
        contents.problems.append(error)
        return
    lost = _lost_ranges(file, frames)
    contents.lost_count += int(lost["count"].sum())
    for number, topic in declared.items():
        before = contents.topics.get(topic.schema.name)
        if before is not None and before.next_sequence != topic.next_sequence and not _excused(contents, file):
            contents.problems.append(
                Corruption(file.path, _log.LOG_HEADER_BYTES, f"topic {topic.schema.name!r} at sequence {before.next_sequence}",
                           topic.next_sequence)
            )
        mine = frames[(frames["kind"] == _log.FRAME_ROWS) & (frames["topic"] == number)]
        contents.record_count += int(mine["row_count"].sum())
        gone = lost[lost["topic"] == number]
        starts = np.concatenate([mine["first_sequence"], gone["first_sequence"]])
        counts = np.concatenate([mine["row_count"].astype("u8"), gone["count"]])
        order = np.argsort(starts, kind="stable")
        expected = topic.next_sequence + np.concatenate([[0], np.cumsum(counts[order])]).astype("u8")
        wrong = np.flatnonzero(starts[order] != expected[:-1])
        if len(wrong):
            place = int(order[wrong[0]])
            offset = int(mine["offset"][place]) if place < len(mine) else _log.LOG_HEADER_BYTES
            contents.problems.append(
                Corruption(file.path, offset, f"sequence {expected[wrong[0]]} of topic {topic.schema.name!r}",
                           int(starts[place]))
            )
        last_ns = _last_timestamp(file, topic, mine) if len(mine) else topic.last_timestamp_ns
        contents.topics[topic.schema.name] = LogTopic(number, topic.schema, int(expected[-1]), last_ns)


def _excused(contents: Contents, file: LogFile) -> bool:
    """Whether a problem already found explains a step between this file and the one before."""
    return bool(contents.problems)


def _lost_ranges(file: LogFile, frames: Frames) -> Frames:
    parts = [np.empty(0, _log.LOST_DTYPE)]
    for frame in frames[frames["kind"] == _log.FRAME_GAP]:
        start = int(frame["offset"]) + _log.FRAME_HEADER_BYTES
        parts.append(np.frombuffer(file.data, _log.LOST_DTYPE, int(frame["row_count"]), start))
    return np.concatenate(parts)


def _last_timestamp(file: LogFile, topic: LogTopic, mine: Frames) -> int:
    frame = mine[-1]
    rows = np.frombuffer(
        file.data, topic.schema.dtype, int(frame["row_count"]), int(frame["offset"]) + _log.FRAME_HEADER_BYTES
    )
    return int(rows["timestamp_ns"][-1])
