"""Bringing back into memtables what the log holds behind the checkpoints, when a store opens.

1. The log was examined by this process, which holds its lock: checksums are proven there, and nobody appends yet. What an archive
   holds of it is proven here.
2. A memtable's worth of rows stays where it is, in the mapped log, until it is flushed: only the index is made. A little that is
   left over is copied into the memtable that takes new rows.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from ._tree import KeyCodec, MemoryPool, Memtable
from .errors import Corruption, StorageError
from .log_files import FileHeader, Frames, LogFile, LogTopic, file_path, open_file, read_topics, row_frames
from .recovery import FileContents, describe

__all__ = ["Unflushed", "replay", "unflushed"]

COPIED_SHARE = 4  # at most this part of a memtable is copied
AHEAD = 4  # memtables that are filled at a time


@dataclass(frozen=True, slots=True)
class Unflushed:
    """A file of the log whose rows may have to come back.

    end: of its frames, in bytes. begins: each topic's next sequence where the file begins. proven: its checksums.
    """

    path: Path
    header: FileHeader
    end: int
    begins: Mapping[str, int]
    proven: bool

    def open(self) -> tuple[LogFile, Frames]:
        """The file, mapped, and those of its frames that hold rows. Raises Corruption."""
        file = open_file(self.path, self.header.file_number)
        frames, end = file.scan(limit=self.end, proven=self.proven)
        if end != self.end:
            raise Corruption(self.path, end, "a valid frame", describe(file, end))
        return file, row_frames(frames)


def unflushed(
    directory: Path, files: Sequence[FileContents], archive: Path, checkpoints: Mapping[str, int]
) -> list[Unflushed]:
    """The files that hold the rows behind these checkpoints, by topic, oldest first. files: of the log, examined.

    Raises StorageError where rows are missing, Corruption.
    """
    found: list[Unflushed] = []
    waiting = dict(checkpoints)
    examined = (Unflushed(item.path, item.header, item.end, item.begins, proven=True) for item in reversed(files))
    for file in itertools.chain(examined, _archived(archive, files[0].header) if files else ()):
        if not waiting:
            break
        found.append(file)
        waiting = {topic: last for topic, last in waiting.items() if file.begins.get(topic, 0) > last + 1}
    for topic, last in waiting.items():
        raise StorageError(
            f"{directory}: topic {topic!r}: sequence {last + 1} is missing in the log, though the tables hold only up to {last}"
        )
    return found[::-1]


def _archived(archive: Path, following: FileHeader) -> Iterator[Unflushed]:
    """The files in an archive that come right before the one with this header, newest first."""
    while True:
        number = following.file_number - 1
        try:
            file = open_file(file_path(archive, number), number)
        except FileNotFoundError:
            return
        header = file.header
        for what, place, expected, found in (
            ("log", 16, following.log_id, header.log_id),
            ("position", 32, following.start_position - following.previous_end, header.start_position),
        ):
            if expected != found:
                raise Corruption(file.path, place, f"{what} {expected:#x}", f"{found:#x}")
        frames, _ = file.scan(limit=header.start_bytes)
        begins = {topic.schema.name: topic.next_sequence for topic in read_topics(file, frames)}
        yield Unflushed(file.path, header, following.previous_end, begins, proven=False)
        following = header


def replay(
    pool: Executor,
    files: Sequence[Unflushed],
    topic: LogTopic,
    checkpoint: int,
    codec: KeyCodec,
    active: Memtable,
    memory: MemoryPool,
) -> Iterator[Memtable]:
    """Put a topic's rows behind its checkpoint into memtables: the oldest rows first, the last ones perhaps into `active`.

    Begins at once, in the pool, and goes on as memtables are taken from what this returns. Raises Corruption there.
    """

    def fill(first: int, end: int) -> Memtable:
        if end - first <= active.capacity // COPIED_SHARE:
            memtable = active
        else:
            memtable = Memtable(codec, 0, memory, rows_elsewhere=end - first)
        later = [topic.next_sequence, *(begin for begin in begins if begin >= end)]
        for source in _holding(files, begins, first, end):
            file, frames = source.open()
            mine = frames[frames["topic"] == topic.number]
            memtable.replay(file.data, mine, first, end)
            later += mine["first_sequence"][mine["first_sequence"] >= end][:1].tolist()
        if not len(memtable):
            hole_ends.append(min(later))
        return memtable

    def ranges() -> Iterator[tuple[int, int]]:
        first = checkpoint + 1
        while first < topic.next_sequence:
            end = min(first + active.capacity, topic.next_sequence)
            yield first, end
            first = max(end, hole_ends[-1])

    begins = [file.begins.get(topic.schema.name, 0) for file in files]
    hole_ends = [0]  # of the holes that a repair left in the sequences: they may be wide
    jobs = ranges()
    filling = deque(pool.submit(fill, *job) for job in itertools.islice(jobs, AHEAD))

    def in_turn() -> Iterator[Memtable]:
        while filling:
            memtable = filling.popleft().result()
            filling.extend(pool.submit(fill, *job) for job in itertools.islice(jobs, 1))
            yield memtable

    return in_turn()


def _holding(files: Sequence[Unflushed], begins: Sequence[int], first: int, end: int) -> Sequence[Unflushed]:
    """Those of the files that may hold a topic's rows from `first` to before `end`. begins: the topic's next row in each."""
    return files[max(0, bisect_right(begins, first) - 1) : bisect_left(begins, end)]
