"""Where a log is cut so that it ends with given rows, and cutting it there. Sequences by topic say where each topic ends.

1. The log keeps its bytes up to the first frame that has a row to go, or to the beginning of that frame's batch. Rows behind
   that place which are to stay are appended as a writer would, in a file of their own.
2. A log begins no topic later than it did: cuts lie at or behind where the topic stood when the first file began.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import _log
from .errors import StorageError
from .log import Log
from .log_files import (
    Frames,
    LogFile,
    LogTopic,
    lost_ranges,
    open_file,
    read_topics,
    row_frames,
    starting_topics,
    whole_batches,
)
from .schema import Schema

__all__ = ["LogCut", "append_kept", "cuts_at_rows", "cuts_at_time", "log_ends", "plan_cut", "rows_behind", "stands"]

Numbered = tuple[int, Path]


@dataclass(slots=True)
class LogCut:
    """The log ends behind byte `offset` of file `number`, and then has the rows `kept`: (schema, rows, whether tombstones)."""

    number: int
    offset: int
    bus: str = ""
    file_bytes: int = 0
    kept: list[tuple[Schema, Frames, bool]] = field(default_factory=list[tuple[Schema, Frames, bool]])


class LogSeries:
    """The files of a log, oldest first, some of them open at a time. ends: how many bytes of each count."""

    def __init__(self, files: Sequence[Numbered]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def open(self, at: int) -> LogFile:
        number, path = self.files[at]
        return open_file(path, number)

    def frames(self, at: int, file: LogFile) -> Frames:
        """The frames that count."""
        if at + 1 < len(self.files):
            return file.scan(limit=self.open(at + 1).header.previous_end)[0]
        return whole_batches(*file.scan())[0]

    def find_sequence(self, topic: str, sequence: int) -> int:
        """The newest file before which the topic had not gone past a sequence."""
        return self._find(topic, sequence, lambda stood: stood.next_sequence)

    def find_time(self, topic: str, time_ns: int) -> int:
        """The newest file before which the topic had no row stamped after a time."""
        return self._find(topic, time_ns, lambda stood: stood.last_timestamp_ns)

    def _find(self, topic: str, value: int, what: Callable[[LogTopic], int]) -> int:
        def began(at: int) -> int:
            stood = starting_topics(self.open(at)).get(topic)
            return what(stood) if stood is not None else 0

        return max(0, bisect_right(range(len(self)), value, key=began) - 1)


def log_ends(files: Sequence[Numbered]) -> dict[str, LogTopic]:
    """Where each topic stands at the end."""
    series = LogSeries(files)
    file = series.open(len(series) - 1)
    frames = series.frames(len(series) - 1, file)
    return {topic.schema.name: stands(file, frames, topic) for topic in read_topics(file, frames)}


def cuts_at_time(files: Sequence[Numbered], time_ns: int) -> dict[str, int]:
    """Of every topic the last row stamped at or before a time."""
    series, cuts = LogSeries(files), dict[str, int]()
    for name in log_ends(files):
        at = series.find_time(name, time_ns)
        file = series.open(at)
        frames = series.frames(at, file)
        topic = _topic(file, frames, name)
        if topic is None:
            cuts[name] = 0
            continue
        mine = _rows_of(frames, topic)
        before = int(np.searchsorted(mine["first_timestamp_ns"], time_ns, side="right"))
        cuts[name] = topic.next_sequence - 1
        if before:
            frame = mine[before - 1]
            inside = int(np.searchsorted(_rows(file, topic, frame)["timestamp_ns"], time_ns, side="right"))
            cuts[name] = int(frame["first_sequence"]) + inside - 1
    return cuts


def cuts_at_rows(files: Sequence[Numbered], rows: Mapping[str, int]) -> dict[str, int]:
    """Of the topics named just these sequences, of all others what the log held when the last of these rows came into it."""
    series = LogSeries(files)
    at, offset = max(_place(series, name, sequence) for name, sequence in rows.items())
    file = series.open(at)
    frames = series.frames(at, file)
    before = frames[frames["offset"] <= offset]
    cuts = {topic.schema.name: stands(file, before, topic).next_sequence - 1 for topic in read_topics(file, frames)}
    return {**dict.fromkeys(log_ends(files), 0), **cuts, **rows}


def plan_cut(files: Sequence[Numbered], cuts: Mapping[str, int]) -> LogCut:
    """Say where a log is to be cut. cuts: of all of its topics."""
    series = LogSeries(files)
    at = min((series.find_sequence(name, cut + 1) for name, cut in cuts.items()), default=0)
    cut: LogCut | None = None
    for place in range(at, len(series)):
        file = series.open(place)
        frames = series.frames(place, file)
        topics = {topic.number: topic for topic in read_topics(file, frames)}
        if cut is None:
            offset = _first_too_new(file, frames, topics, cuts)
            if offset is None and place + 1 < len(series):
                continue
            end = _end(frames, file)
            cut = LogCut(
                series.files[place][0], end if offset is None else offset, file.header.bus, file.header.file_bytes
            )
            frames = frames[frames["offset"] >= cut.offset]
        elif {topic.schema.name for topic in topics.values() if topic.next_sequence > cuts[topic.schema.name]} == set(
            cuts
        ):
            break  # no topic has anything to keep from here on
        cut.kept += _kept(file, frames, topics, cuts)
    assert cut is not None
    return cut


def rows_behind(files: Sequence[Numbered], cuts: Mapping[str, int]) -> Iterator[tuple[str, Frames | int, bool]]:
    """What a cut takes away, in the log's order: (topic, rows, whether tombstones). cuts: of all of the log's topics.

    Instead of rows, where a repair gave some up: the sequence behind them.
    """
    series = LogSeries(files)
    for place in range(len(series)):
        file = series.open(place)
        frames = series.frames(place, file)
        topics = {topic.number: topic for topic in read_topics(file, frames)}
        for frame in frames:
            if frame["kind"] == _log.FRAME_GAP:
                for entry in lost_ranges(file, frame[None]):
                    name, behind = (
                        topics[int(entry["topic"])].schema.name,
                        int(entry["first_sequence"] + entry["count"]),
                    )
                    if behind > cuts[name] + 1:
                        yield name, behind, False
            if frame["kind"] not in (_log.FRAME_ROWS, _log.FRAME_TOMBSTONES):
                continue
            topic = topics[int(frame["topic"])]
            rows = _rows(file, topic, frame)[max(0, cuts[topic.schema.name] - int(frame["first_sequence"]) + 1) :]
            if len(rows):
                yield topic.schema.name, rows, bool(frame["kind"] == _log.FRAME_TOMBSTONES)


def append_kept(directory: Path, cut: LogCut, schemas: Iterable[Schema] = (), epoch: int = 0) -> None:
    """Append the rows of a cut to a log that has been cut there, in files of their own.

    schemas: topics that are to be in the log, also where it did not know them yet. epoch: at least this.
    """
    named = {schema.name: schema for schema in [*schemas, *(schema for schema, _, _ in cut.kept)]}
    log = Log(directory, named.values(), bus=cut.bus, epoch=epoch, file_bytes=cut.file_bytes)
    try:
        for schema, rows, tombstones in cut.kept:
            log.keep(0)
            log.appender.append(log.topic(schema.name).number, rows, tombstones)
    finally:
        log.close()


def _place(series: LogSeries, name: str, sequence: int) -> tuple[int, int]:
    """Which file a row is in, and the offset of its frame; of one that is not there, of what came before."""
    at = series.find_sequence(name, sequence)
    file = series.open(at)
    frames = series.frames(at, file)
    topic = _topic(file, frames, name)
    if topic is None:
        return at, 0
    mine = _rows_of(frames, topic)
    before = int(np.searchsorted(mine["first_sequence"], np.uint64(sequence), side="right"))
    return at, int(mine["offset"][before - 1]) if before else 0


def _first_too_new(
    file: LogFile, frames: Frames, topics: Mapping[int, LogTopic], cuts: Mapping[str, int]
) -> int | None:
    """Where the batch begins that has the first row, or row given up, behind its topic's cut."""
    rows = row_frames(frames)
    offsets: list[int] = []
    for number, topic in topics.items():
        mine = rows[rows["topic"] == number]
        too_new = mine[mine["first_sequence"] + mine["row_count"] > cuts[topic.schema.name] + 1]
        offsets += too_new["offset"][:1].tolist()
    for at in np.flatnonzero(frames["kind"] == _log.FRAME_GAP):
        lost = lost_ranges(file, frames[at : at + 1])
        if any(
            int(entry["first_sequence"]) + int(entry["count"]) > cuts[topics[int(entry["topic"])].schema.name] + 1
            for entry in lost
        ):
            offsets.append(int(frames["offset"][at]))
    if not offsets:
        return None
    at = int(np.searchsorted(frames["offset"], np.uint64(min(offsets))))
    while at and frames["flags"][at - 1] & _log.CONTINUES:
        at -= 1
    return int(frames["offset"][at])


def _kept(
    file: LogFile, frames: Frames, topics: Mapping[int, LogTopic], cuts: Mapping[str, int]
) -> Iterator[tuple[Schema, Frames, bool]]:
    """The rows in these frames that stay. Raises StorageError where rows were given up between them."""
    for frame in frames:
        if frame["kind"] == _log.FRAME_GAP:
            for entry in lost_ranges(file, frame[None]):
                name = topics[int(entry["topic"])].schema.name
                if int(entry["first_sequence"]) <= cuts[name]:
                    raise StorageError(
                        f"{file.path}: topic {name!r}: records from {entry['first_sequence']} on were given up by a repair, and "
                        "the log cannot be cut just behind them; choose a place before or well after"
                    )
        if frame["kind"] not in (_log.FRAME_ROWS, _log.FRAME_TOMBSTONES):
            continue
        topic = topics[int(frame["topic"])]
        count = cuts[topic.schema.name] - int(frame["first_sequence"]) + 1
        if count > 0:
            yield topic.schema, _rows(file, topic, frame)[:count], bool(frame["kind"] == _log.FRAME_TOMBSTONES)


def _topic(file: LogFile, frames: Frames, name: str) -> LogTopic | None:
    return next((topic for topic in read_topics(file, frames) if topic.schema.name == name), None)


def _rows_of(frames: Frames, topic: LogTopic) -> Frames:
    rows = row_frames(frames)
    return rows[rows["topic"] == topic.number]


def _rows(file: LogFile, topic: LogTopic, frame: Any) -> Frames:
    start = int(frame["offset"]) + _log.FRAME_HEADER_BYTES
    return np.frombuffer(file.data, topic.schema.dtype, int(frame["row_count"]), start)


def _end(frames: Frames, file: LogFile) -> int:
    if not len(frames):
        return _log.LOG_HEADER_BYTES
    size = _log.FRAME_HEADER_BYTES + int(frames["payload_bytes"][-1])
    return int(frames["offset"][-1]) + (size + 7) // 8 * 8


def stands(file: LogFile, frames: Frames, topic: LogTopic) -> LogTopic:
    """Where a topic stands behind these frames of a file, what a repair gave up included."""
    mine = _rows_of(frames, topic)
    lost = lost_ranges(file, frames)
    lost = lost[lost["topic"] == topic.number]
    ends = [topic.next_sequence, *(lost["first_sequence"] + lost["count"]).tolist()]
    if not len(mine):
        return LogTopic(topic.number, topic.schema, max(ends), topic.last_timestamp_ns)
    ends.append(int(mine["first_sequence"][-1]) + int(mine["row_count"][-1]))
    return LogTopic(topic.number, topic.schema, max(ends), int(_rows(file, topic, mine[-1])["timestamp_ns"][-1]))
