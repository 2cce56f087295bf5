"""Reading a topic's past from the log, while another process may be writing it.

1. Rows come out as views over the mapped file, or, where the writer made many small frames, gathered into one array. Both
   stay valid for as long as they are kept: a file that is mapped is not recycled.
2. Every frame's checksum is proven before its rows are handed out.
3. The reader believes frames, not sizes: what it has not found yet is not there yet. A hole between sequences is an error.
4. A topic's sequences number its rows and its tombstones alike. `read` hands out rows, `read_all` both.
5. The rows of a batch that takes several frames are there once the last of them is.
6. The directory may give way to another, of a log with the same rows: files of the two are not read as one log's.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import _log
from .errors import Corruption, FormatMismatch, StorageError
from .log_files import (
    FileHeader,
    Frames,
    LogFile,
    LogTopic,
    file_path,
    list_files,
    open_file,
    read_header,
    read_topics,
    row_frames,
    whole_batches,
)
from .recovery import describe, newest_durable
from .schema import Schema

__all__ = ["HistoryGone", "LogReader", "Rows"]

Rows = Frames
VIEW_ROWS_MIN = 256  # frames with fewer rows are gathered, this many rows at least at a time
BATCH_ROWS_MAX = 65_536
FRAMES_MIN = 1_024
SKIP_FRAMES = 4_096  # looked at together when passing over tombstones


class HistoryGone(StorageError):
    """The records asked for are no longer kept. wanted, oldest: the first sequence asked for, and the first one there is."""

    def __init__(self, directory: str | os.PathLike[str], topic: str, wanted: int, oldest: int) -> None:
        self.directory, self.topic, self.wanted, self.oldest = os.fspath(directory), topic, wanted, oldest
        super().__init__(
            f"{self.directory}: topic {topic!r}: sequence {wanted} is no longer kept; the oldest record is {oldest}. Start there, "
            "read sooner, or raise the writer's retention"
        )

    def __reduce__(self) -> tuple[type[HistoryGone], tuple[str, str, int, int]]:
        return type(self), (self.directory, self.topic, self.wanted, self.oldest)


@dataclass(frozen=True, slots=True)
class _Joined:
    """The rows of small frames that follow each other. A row's place among them is its sequence minus `first`."""

    first: int
    rows: Rows
    ends: np.ndarray[Any, np.dtype[np.uint64]]  # places behind which the kind changes, and the end
    tombstones_first: bool

    def batch(self, sequence: int, count_max: int) -> tuple[Rows, bool] | None:
        """The rows of one kind from a sequence on, and whether they are tombstones."""
        at = sequence - self.first
        if not 0 <= at < len(self.rows):
            return None
        run = int(np.searchsorted(self.ends, at, side="right"))
        return self.rows[at : min(at + count_max, int(self.ends[run]))], self.tombstones_first ^ bool(run % 2)


@dataclass(slots=True)
class _Part:
    """The topic's frames in one file, as far as they were found, and where to look for more."""

    file: LogFile
    topic: LogTopic | None
    frames: Frames
    lost: Frames
    end: int
    joined: _Joined | None = None
    room: Frames | None = None  # what `frames` is the beginning of

    def add(self, frames: Frames) -> None:
        """Append to `frames`. Whoever follows a living writer does so often: there is room ahead."""
        count = len(self.frames) + len(frames)
        if self.room is None or count > len(self.room):
            grown = np.empty(max(FRAMES_MIN, 2 * count), _log.FRAME_DTYPE)
            grown[: len(self.frames)] = self.frames
            self.room = grown
        self.room[len(self.frames) : count] = frames
        self.frames = self.room[:count]


class LogReader:
    """The records of one topic, by sequence. For one thread; any number of processes.

    directory: the log's (a data directory's `log`). archive: where files go that are not kept there any more; it may be missing.
    bus: whose log it is, as of when it was opened; "" where it is no bus's.
    Raises FileNotFoundError where there is no log, StorageError where the topic is not in it, FormatMismatch for an archive of
    another log.
    """

    def __init__(
        self, directory: str | os.PathLike[str], topic: str, archive: str | os.PathLike[str] | None = None
    ) -> None:
        self.directory, self.topic = Path(directory), topic
        self.archive = Path(archive) if archive is not None else None
        self.lost_count = 0  # records passed over because an earlier repair gave them up
        self.tombstone_count = 0  # passed over by `read`
        self._part: _Part | None = None
        self._checked_end = -1
        self._inode = 0
        self._notice_replacement()
        numbers = list_files(self.directory)
        if not numbers:
            raise FileNotFoundError(2, "holds no log files", str(self.directory))
        self.schema = self._find_schema(numbers[-1][0])
        assert self._part is not None
        self.log_id, self.bus = self._part.file.header.log_id, self._part.file.header.bus

    def _find_schema(self, newest: int) -> Schema:
        part = self._load(newest)
        self.log_id = part.file.header.log_id
        if part.topic is None:
            raise StorageError(f"{self.directory}: no topic {self.topic!r} in this log")
        return part.topic.schema

    def _notice_replacement(self) -> bool:
        """Whether another directory has come into the place of the one that was read. Nothing of that is held then."""
        try:
            inode = self.directory.stat().st_ino
        except FileNotFoundError:  # it is just coming
            inode = 0
        if inode == self._inode:
            return False
        self._inode = inode
        self.forget()
        return True

    def forget(self) -> None:
        """Hold nothing of what was read; what a cut has taken away is not found any more."""
        self._part, self._checked_end = None, -1

    @property
    def oldest(self) -> int:
        """The first sequence that is still kept (or would be, where the topic is empty)."""
        self._notice_replacement()
        for number in self._numbers():
            try:
                topic = self._begins(number) or self._load(number).topic
            except FileNotFoundError:
                continue
            if topic is not None:
                return topic.next_sequence
        raise StorageError(f"{self.directory}: no topic {self.topic!r} in this log")

    @property
    def newest(self) -> int:
        """The last sequence there is now, or that a repair gave up; 0 where the topic is empty. Raises Corruption for damage."""
        self._notice_replacement()
        part = self._part
        if part is None or self._following(part) is not None:
            part = self._load(self._numbers()[-1])
        else:
            self._extend(part)
        if part.topic is None:
            raise StorageError(f"{self.directory}: no topic {self.topic!r} in this log")
        self._check_end()
        return self._end_of(part) - 1

    def read(self, sequence: int, last: int | None = None, rows_max: int = BATCH_ROWS_MAX) -> Rows | None:
        """Rows from `sequence` on: consecutive, at least one, at most `rows_max`, none behind `last`; None when not written yet.

        What a repair gave up is passed over and counted in `lost_count`, tombstones in `tombstone_count`, each when rows behind
        them are returned; the first row's sequence tells.
        Raises HistoryGone when they are no longer kept, Corruption for damage.
        """
        found = self._read(sequence, last, rows_max, tombstones=False)
        return None if found is None else found[0]

    def read_all(
        self, sequence: int, last: int | None = None, rows_max: int = BATCH_ROWS_MAX
    ) -> tuple[Rows, bool] | None:
        """As `read`, but tombstones too, in their place: (rows, whether they are tombstones). A batch is of one kind."""
        part, room = self._part, rows_max if last is None else min(rows_max, last - sequence + 1)
        if part is not None and part.joined is not None and room > 0:
            batch = part.joined.batch(sequence, room)
            if batch is not None:
                return batch
        return self._read(sequence, last, rows_max, tombstones=True)

    def _read(self, sequence: int, last: int | None, rows_max: int, *, tombstones: bool) -> tuple[Rows, bool] | None:
        if last is not None and sequence > last:
            return None
        lost_count = tombstone_count = 0
        part = self._seek(sequence)
        while part is not None:
            behind = sequence if tombstones else self._skip_tombstones(part, sequence)
            tombstone_count += behind - sequence
            sequence = behind
            if last is not None and sequence > last:
                return None
            rows = self._read_part(part, sequence, last, rows_max)
            if rows is not None:
                self.lost_count += lost_count
                self.tombstone_count += tombstone_count
                return rows
            behind = self._skip_lost(part, sequence)
            lost_count += behind - sequence
            if part.topic is None or behind >= self._end_of(part):
                part = self._next_part(part, behind)
            elif behind == sequence:
                raise Corruption(part.file.path, part.end, f"sequence {sequence} of topic {self.topic!r}", "a hole")
            sequence = behind
            if last is not None and sequence > last:
                return None
        self._check_end()
        return None

    def _check_end(self) -> None:
        """Whether the newest file merely ends here, or something valid behind says that this place was on the disk already."""
        part = self._part
        if part is None or part.end == self._checked_end:
            return
        end, limit = part.end, part.end + 2 * _log.GROUP_BYTES_MAX
        found = part.file.find_frame(end, limit)
        if found is not None:
            later, _ = part.file.scan(found)
            damaged = newest_durable(part.file, later) > part.file.header.start_position + end
            if damaged and not len(part.file.scan(end, limit)[0]):  # and it was not just being written
                raise Corruption(
                    part.file.path, end, "a valid frame, since it was on the disk", describe(part.file, end)
                )
        self._checked_end = end

    def find_time(self, timestamp_ns: int) -> int:
        """The sequence of the first record stamped at or after that time; one behind the last where all are earlier."""
        self._notice_replacement()
        numbers = self._numbers()
        at = behind = self._newest(numbers, lambda topic: topic.last_timestamp_ns < timestamp_ns)
        found, end = None, 1
        while found is None and behind < len(numbers):  # one file, unless a repair gave up what was there
            part = self._load_kept(numbers[behind])
            if part is not None and part.topic is not None:
                found, end = self._find_time_in(part, timestamp_ns), self._end_of(part)
            behind = max(behind + 1, self._newest(numbers, lambda topic, end=end: topic.next_sequence <= end))
        while at:  # a time that a repair declared may be too early: look at the rows just before the file too
            part = self._load_kept(numbers[at])
            if part is None or part.topic is None or part.topic.next_sequence == 1:
                break
            if len(part.frames) and int(part.frames["first_timestamp_ns"][0]) < timestamp_ns:
                break
            first = part.topic.next_sequence
            at = self._newest(numbers[:at], lambda topic, first=first: topic.next_sequence < first)
            part = self._load_kept(numbers[at])
            found = (self._find_time_in(part, timestamp_ns) if part is not None else None) or found
        return found or end

    # --- files ------------------------------------------------------------------------------------------------------

    def _numbers(self) -> list[int]:
        """The numbers of the files there are, archived ones too, in order."""
        numbers = {number for number, _ in list_files(self.directory)}  # the archive second: files move that way only
        if self.archive is not None:
            with contextlib.suppress(FileNotFoundError):
                numbers |= {number for number, _ in list_files(self.archive)}
        return sorted(numbers)

    def _open(self, number: int) -> LogFile:
        """Map a file, from the archive if it is not in the log any more. Raises FileNotFoundError where it is in neither."""
        try:
            return open_file(file_path(self.directory, number), number)
        except FileNotFoundError:
            if self.archive is None:
                raise
        file = open_file(file_path(self.archive, number), number)
        if file.header.log_id != self.log_id:
            raise FormatMismatch(
                file.path, "log", f"{self.log_id:#x}", f"{file.header.log_id:#x}", "give the archive of this log"
            )
        return file

    def _load(self, number: int) -> _Part:
        """Map a file and index the topic's frames in it."""
        if self._part is not None and self._part.file.header.file_number == number:
            self._extend(self._part)
            return self._part
        file = self._open(number)
        part = _Part(file, None, np.empty(0, _log.FRAME_DTYPE), np.empty(0, _log.LOST_DTYPE), _log.LOG_HEADER_BYTES)
        self._extend(part)
        self._part = part
        return part

    def _load_kept(self, number: int) -> _Part | None:
        """As `_load`; None where the file has expired."""
        try:
            return self._load(number)
        except FileNotFoundError:
            return None

    def _extend(self, part: _Part) -> None:
        """Find what was appended since the last look, up to where the next file says that this one ends."""
        found, end = whole_batches(*part.file.scan(part.end))
        if end == part.end:
            return
        following = self._following(part)
        if following is not None and end > following.previous_end:  # a writer that was taken over wrote on
            found, end = whole_batches(*part.file.scan(part.end, max(part.end, following.previous_end)))
        part.end = end
        if part.topic is None:
            for topic in read_topics(part.file, found):
                if topic.schema.name == self.topic:
                    part.topic = topic
        if part.topic is None:
            return
        mine = row_frames(found)
        mine = mine[mine["topic"] == part.topic.number]
        if len(mine) and int(mine["row_bytes"][0]) != part.topic.schema.row_bytes:
            raise FormatMismatch(
                part.file.path, "bytes of a row", part.topic.schema.row_bytes, int(mine["row_bytes"][0])
            )
        part.add(mine)
        for gap in found[found["kind"] == _log.FRAME_GAP]:
            start = int(gap["offset"]) + _log.FRAME_HEADER_BYTES
            lost = np.frombuffer(part.file.data, _log.LOST_DTYPE, int(gap["row_count"]), start)
            part.lost = np.concatenate([part.lost, lost[lost["topic"] == part.topic.number]])

    def _seek(self, sequence: int) -> _Part | None:
        """The file that holds a sequence, or will: it, or the one before it."""
        part = self._part
        if part is not None and part.topic is not None and part.topic.next_sequence <= sequence:
            self._extend(part)
            if sequence <= self._end_of(part):
                return part
        self._notice_replacement()
        numbers = self._numbers()
        newest = self._newest(numbers, lambda topic: topic.next_sequence <= sequence)
        try:
            part = self._load(numbers[newest])
        except FileNotFoundError:
            return self._gone(sequence)
        if part.topic is None:
            return self._next_part(part, sequence)
        if part.topic.next_sequence > sequence:
            return self._gone(sequence)
        return part

    def _newest(self, numbers: list[int], began: Callable[[LogTopic], bool]) -> int:
        """Which is the newest file with `began` true of the topic as it stood when the file began; the oldest where none is.

        Only what files declare at their beginnings is read. Files that are gone, or are from before the topic, count as true.
        """

        def is_later(at: int) -> bool:
            try:
                topic = self._begins(numbers[at])
            except FileNotFoundError:  # expired or recycled meanwhile: it was too old anyway
                return False
            return topic is not None and not began(topic)

        return bisect_left(range(1, len(numbers)), True, key=is_later)

    def _begins(self, number: int) -> LogTopic | None:
        """The topic as it stood when a file began; None where the file does not know it then."""
        if self._part is not None and self._part.file.header.file_number == number:
            return self._part.topic
        file = self._open(number)
        offset = _log.LOG_HEADER_BYTES
        while True:
            frames, end = file.scan(offset, min(offset + 4096, len(file.data)))
            if not len(frames):  # a frame that does not fit into what was looked at: look at all of it
                frames, end = file.scan(offset)
            for topic in read_topics(file, frames):
                if topic.schema.name == self.topic:
                    return topic
            if not len(frames) or (frames["kind"] != _log.FRAME_TOPIC).any():
                return None
            offset = end

    def _gone(self, sequence: int) -> None:
        raise HistoryGone(self.directory, self.topic, sequence, self.oldest)

    def _next_part(self, part: _Part, sequence: int) -> _Part | None:
        """The file behind `part`, once that has ended. Its header says where; frames missing before are damage."""
        if self._notice_replacement():
            return self._seek(sequence)
        following = self._following(part)
        if following is None:
            self._check_last(part, sequence)
            return None
        self._extend(part)
        if part.end < following.previous_end:
            raise Corruption(part.file.path, part.end, "a valid frame", "something else")
        if part.topic is not None and sequence < self._end_of(part):
            return part  # appended between the two looks
        loaded = self._load(following.file_number)
        if loaded.topic is not None and loaded.topic.next_sequence > sequence:
            raise Corruption(
                loaded.file.path,
                _log.LOG_HEADER_BYTES,
                f"topic {self.topic!r} at sequence {sequence}",
                loaded.topic.next_sequence,
            )
        return loaded

    def _following(self, part: _Part) -> FileHeader | None:
        """What the next file says of itself, where there is one. It is not mapped for that: to take maps away again interrupts
        every thread of the process.
        """
        number = part.file.header.file_number + 1
        for directory in (self.directory, self.archive):
            if directory is not None:
                with contextlib.suppress(FileNotFoundError):
                    return read_header(file_path(directory, number), number)
        return None

    def _check_last(self, part: _Part, sequence: int) -> None:
        """Whether a file that nothing follows is the newest. If there are newer ones, some between have gone."""
        number, numbers = part.file.header.file_number, self._numbers()
        if numbers[-1] <= number or self._following(part) is not None:
            return
        if numbers[0] > number:  # expired, and this one too, while it was read
            self._gone(sequence)
        missing = next(item for item in range(number + 1, numbers[-1]) if item not in numbers)
        raise Corruption(file_path(self.directory, missing), 0, "a file between its neighbours", "no file")

    # --- rows -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _end_of(part: _Part) -> int:
        """The sequence behind the last one that this file holds or gave up."""
        assert part.topic is not None
        end = part.topic.next_sequence
        if len(part.frames):
            end = max(end, int(part.frames["first_sequence"][-1]) + int(part.frames["row_count"][-1]))
        if len(part.lost):
            end = max(end, int((part.lost["first_sequence"] + part.lost["count"]).max()))
        return end

    @staticmethod
    def _find(part: _Part, sequence: int) -> int | None:
        """Which of the topic's frames in this file holds a sequence."""
        at = bisect_right(part.frames["first_sequence"], sequence) - 1  # numpy's would copy the column first
        if at < 0 or sequence >= int(part.frames["first_sequence"][at]) + int(part.frames["row_count"][at]):
            return None
        return at

    def _read_part(self, part: _Part, sequence: int, last: int | None, rows_max: int) -> tuple[Rows, bool] | None:
        room = rows_max if last is None else min(rows_max, last - sequence + 1)
        if part.joined is not None and (batch := part.joined.batch(sequence, room)) is not None:
            return batch
        at = self._find(part, sequence)
        if part.topic is None or at is None:
            return None
        frame = part.frames[at]
        if int(frame["row_count"]) < VIEW_ROWS_MIN:
            part.joined = self._join(part, at, part.topic.schema.dtype)
            return part.joined.batch(sequence, room)
        rows = np.frombuffer(
            part.file.data,
            part.topic.schema.dtype,
            int(frame["row_count"]),
            int(frame["offset"]) + _log.FRAME_HEADER_BYTES,
        )
        first = sequence - int(frame["first_sequence"])
        return rows[first : first + room], bool(frame["kind"] == _log.FRAME_TOMBSTONES)

    @staticmethod
    def _join(part: _Part, at: int, dtype: np.dtype[np.void]) -> _Joined:
        """Join small frames that follow each other, up to a good view's worth of rows."""
        frames = part.frames[at : at + 4 * VIEW_ROWS_MIN]
        take = _run_length(frames, frames["row_count"] < VIEW_ROWS_MIN)
        frames = frames[:take]
        counts = frames["row_count"].astype("u8")
        totals = np.cumsum(counts)
        rows = np.empty(int(totals[-1]), dtype)
        _log.gather(part.file.data, np.ascontiguousarray(frames["offset"]), counts, dtype.itemsize, rows)
        rows.flags.writeable = False
        tombstones = frames["kind"] == _log.FRAME_TOMBSTONES
        ends = totals[np.append(np.flatnonzero(tombstones[1:] != tombstones[:-1]), take - 1)]
        return _Joined(int(frames["first_sequence"][0]), rows, ends, bool(tombstones[0]))

    def _skip_tombstones(self, part: _Part, sequence: int) -> int:
        """The sequence behind the run of tombstones that begins with `sequence`; itself where it is a row's, or not here."""
        if part.joined is not None:
            while (batch := part.joined.batch(sequence, BATCH_ROWS_MAX)) is not None:
                if not batch[1]:
                    return sequence
                sequence += len(batch[0])
        while (at := self._find(part, sequence)) is not None and part.frames["kind"][at] == _log.FRAME_TOMBSTONES:
            frames = part.frames[at : at + SKIP_FRAMES]
            end = at + _run_length(frames, frames["kind"] == _log.FRAME_TOMBSTONES)
            sequence = int(part.frames["first_sequence"][end - 1]) + int(part.frames["row_count"][end - 1])
        return sequence

    @staticmethod
    def _skip_lost(part: _Part, sequence: int) -> int:
        for lost in part.lost:
            first, count = int(lost["first_sequence"]), int(lost["count"])
            if first <= sequence < first + count:
                sequence = first + count
        return sequence

    @staticmethod
    def _find_time_in(part: _Part, timestamp_ns: int) -> int | None:
        """The first sequence in this file at or after a time, or None where all its records are earlier."""
        if part.topic is None or not len(part.frames):
            return None
        at = int(np.searchsorted(part.frames["first_timestamp_ns"], timestamp_ns, side="left"))
        if at > 0:  # it may lie inside the frame before
            frame = part.frames[at - 1]
            rows = np.frombuffer(
                part.file.data,
                part.topic.schema.dtype,
                int(frame["row_count"]),
                int(frame["offset"]) + _log.FRAME_HEADER_BYTES,
            )
            inside = int(np.searchsorted(rows["timestamp_ns"], timestamp_ns, side="left"))
            if inside < len(rows):
                return int(frame["first_sequence"]) + inside
        return int(part.frames["first_sequence"][at]) if at < len(part.frames) else None


def _run_length(frames: Frames, wanted: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """How many of the frames, from the first on, follow each other and are wanted. The first one is."""
    counts = frames["row_count"].astype("u8")
    fits = (frames["first_sequence"] == frames["first_sequence"][0] + np.cumsum(counts) - counts) & wanted
    return len(frames) if fits.all() else int(np.argmin(fits))
