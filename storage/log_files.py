"""The files of one log: their names, their headers, and what is in them, each read and checked without changing anything.

A log is a directory of files `0000000001.log`, `0000000002.log`, … without a gap. `spare-*` are files ready for use.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from . import _log
from .errors import Corruption
from .files import data_ranges, map_file, naming, open_log_file
from .schema import Schema

__all__ = [
    "FileHeader",
    "Frames",
    "LogFile",
    "LogTopic",
    "chain_files",
    "file_path",
    "last_timestamp",
    "list_files",
    "lost_ranges",
    "open_file",
    "read_header",
    "read_topics",
    "row_frames",
    "starting_topics",
    "whole_batches",
]

Frames: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
NAME = re.compile(r"(\d{10})\.log")


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What a log file says about itself. See FORMAT.md."""

    log_id: int
    file_number: int
    start_position: int
    previous_end: int
    epoch: int
    created_ns: int
    file_bytes: int
    start_bytes: int
    bus: str


@dataclass(frozen=True, slots=True)
class LogTopic:
    """A topic as a log file declares it: where it stood when the file began."""

    number: int
    schema: Schema
    next_sequence: int
    last_timestamp_ns: int


@dataclass(frozen=True, slots=True)
class LogFile:
    """A log file with a sound header, mapped: `data` keeps it from being recycled for as long as that is referred to.

    Repair holds files in memory instead.
    """

    path: Path
    header: FileHeader
    data: mmap.mmap | bytearray

    def scan(
        self, offset: int = _log.LOG_HEADER_BYTES, limit: int = 2**63, *, proven: bool = False
    ) -> tuple[Frames, int]:
        """The valid frames from `offset` on, and the offset where the first invalid one would begin.

        proven: leave out the checksums up to `limit`, which were proven before.
        """
        return _log.scan(
            self.data,
            start_position=self.header.start_position,
            epoch=self.header.epoch,
            offset=offset,
            limit=limit,
            proven=proven,
        )

    def find_frame(self, offset: int, limit: int = 2**63) -> int | None:
        """The offset of the first valid frame at or behind `offset`, or None. Room that was never written is not read."""
        ranges = [(offset, len(self.data))]
        if isinstance(self.data, mmap.mmap):
            with contextlib.suppress(FileNotFoundError):
                ranges = data_ranges(self.path, offset, self.data[: _log.LOG_HEADER_BYTES])
        for start, end in ranges:
            at = _log.find_frame(
                self.data,
                start_position=self.header.start_position,
                epoch=self.header.epoch,
                offset=start,
                end=end,
                limit=limit,
            )
            if at is not None:
                return at
        return None


def file_path(directory: Path, number: int) -> Path:
    """Where log file `number` lies."""
    return directory / f"{number:010d}.log"


def list_files(directory: Path) -> list[tuple[int, Path]]:
    """The log files of a directory by number, oldest first. FileNotFoundError where there is no such directory."""
    found: list[tuple[int, Path]] = []
    for path in directory.iterdir():
        match = NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def chain_files(directory: Path, archive: Path | None) -> list[tuple[int, Path]]:
    """The files of a directory and, before them, those of its archive (which may be missing), as `list_files`."""
    here = dict(list_files(directory))  # first, since files move that way
    archived = dict(list_files(archive)) if archive is not None and archive.is_dir() else {}
    return sorted((archived | here).items())


def open_file(path: Path, number: int) -> LogFile:
    """Map a log file and check its header. Raises as `read_header`."""
    data = map_file(path)
    header = _checked_header(data or b"", path, number)
    assert data is not None
    return LogFile(path, header, data)


def read_header(path: Path, number: int) -> FileHeader:
    """A log file's header, checked.

    Raises Corruption for a damaged one, FormatMismatch for another version, FileNotFoundError when the file is gone.
    """
    descriptor = open_log_file(path)
    try:
        with naming(path):
            return _checked_header(os.pread(descriptor, _log.LOG_HEADER_BYTES, 0), path, number)
    finally:
        os.close(descriptor)


def _checked_header(data: mmap.mmap | bytes, path: Path, number: int) -> FileHeader:
    fields = _log.decode_file_header(memoryview(data)[: _log.LOG_HEADER_BYTES], path)
    if fields is None:
        raise Corruption(path, 0, "a log file's header with a matching checksum", "something else")
    header = FileHeader(**fields)
    if header.file_number != number:
        raise Corruption(path, 24, f"the number in the file's name, {number}", header.file_number)
    return header


def read_topics(file: LogFile, frames: Frames) -> Iterator[LogTopic]:
    """The topics that a file declares, from its frames."""
    for frame in frames[frames["kind"] == _log.FRAME_TOPIC]:
        start = int(frame["offset"]) + _log.FRAME_HEADER_BYTES
        schema = Schema.from_json(file.data[start : start + int(frame["payload_bytes"])])
        yield LogTopic(int(frame["topic"]), schema, int(frame["first_sequence"]), int(frame["first_timestamp_ns"]))


def starting_topics(file: LogFile) -> dict[str, LogTopic]:
    """By name, the topics that a file declares at its beginning: where each stood when it began."""
    frames, _ = file.scan(limit=file.header.start_bytes)
    return {topic.schema.name: topic for topic in read_topics(file, frames)}


def row_frames(frames: Frames) -> Frames:
    """Those of the frames that hold rows of a topic: rows to keep, or tombstones."""
    return frames[(frames["kind"] == _log.FRAME_ROWS) | (frames["kind"] == _log.FRAME_TOMBSTONES)]


def whole_batches(frames: Frames, end: int) -> tuple[Frames, int]:
    """Frames and the offset behind them, without those at the end that count only together with a frame that is not there."""
    continued = (frames["flags"] & _log.CONTINUES) != 0
    if not len(frames) or not continued[-1]:
        return frames, end
    finished = np.flatnonzero(~continued)
    first = int(finished[-1]) + 1 if len(finished) else 0
    return frames[:first], int(frames["offset"][first])


def lost_ranges(file: LogFile, frames: Frames) -> Frames:
    """What the gaps among these frames say was given up: an array of LOST_DTYPE."""
    parts = [np.empty(0, _log.LOST_DTYPE)]
    for frame in frames[frames["kind"] == _log.FRAME_GAP]:
        start = int(frame["offset"]) + _log.FRAME_HEADER_BYTES
        parts.append(np.frombuffer(file.data, _log.LOST_DTYPE, int(frame["row_count"]), start))
    return np.concatenate(parts)


def last_timestamp(file: LogFile, topic: LogTopic, frame: np.void) -> int:
    """The time stamp of a frame's last row."""
    rows = np.frombuffer(
        file.data, topic.schema.dtype, int(frame["row_count"]), int(frame["offset"]) + _log.FRAME_HEADER_BYTES
    )
    return int(rows["timestamp_ns"][-1])
