"""A log that goes on where a store's tables end, for a store whose own log is gone or ends before them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import _log
from .drafts import Draft, Lost
from .files import create_file, make_directory, rename_file, sync_data, sync_directory, write_at
from .log_files import LogTopic, file_path
from .recovery import examine
from .repair import TEMPORARY, RepairedFile, gaps, replace_file

__all__ = ["give_up_sequences", "make_log"]

FRAME, HEADER = _log.FRAME_HEADER_BYTES, _log.LOG_HEADER_BYTES
FILE_BYTES = 4 << 20


def give_up_sequences(directory: Path, next_sequences: Mapping[str, int]) -> RepairedFile:
    """Write behind a sound log's end that no record has the sequences from each topic's next one up to these."""
    contents = examine(directory)
    last = contents.files[-1]
    lost = [
        Lost(topic.number, topic.next_sequence, next_sequences[name] - topic.next_sequence)
        for name, topic in contents.topics.items()
        if next_sequences.get(name, 0) > topic.next_sequence
    ]
    end = last.end - FRAME if last.closed else last.end  # behind a close nothing exists
    return replace_file(directory, Draft(last.header, last.path, last.path.stat().st_size, end=end, reserved=lost))


def make_log(directory: Path, archive: Path, log_id: int, topics: Sequence[LogTopic], given_up_count: int) -> Path:
    """Make the one file of a new log. Returns its path.

    topics: each with the next sequence behind the store's tables. From there on `given_up_count` sequences are given up, since
    records may have had them. archive: where older files may be, which the log then goes on from; sound.
    """
    make_directory(directory)
    before = examine(archive) if archive.is_dir() else None
    if before is None or not before.files:
        file_number, position, previous_end, epoch, known = (
            2,
            HEADER,
            0,
            1,
            dict[str, LogTopic](),
        )  # not the first: that is gone
    else:
        (file_number, position, previous_end), epoch, known = before.end, before.epoch + 1, before.topics
    declared = sorted(known.values(), key=lambda topic: topic.number)
    declared += [topic for topic in topics if topic.schema.name not in known]
    declared = [replace(topic, number=number) for number, topic in enumerate(declared)]
    wanted = {topic.schema.name: topic.next_sequence + given_up_count for topic in topics}
    data = bytearray(HEADER)
    for topic in declared:
        json = topic.schema.to_json()
        data += _log.encode_frame(
            _log.FRAME_TOPIC,
            json,
            position=position + len(data),
            epoch=epoch,
            frame_bytes=FRAME + (len(json) + 7) // 8 * 8,
            topic=topic.number,
            first_sequence=topic.next_sequence,
            first_timestamp_ns=topic.last_timestamp_ns,
            row_bytes=topic.schema.row_bytes,
        )
    start_bytes = len(data)
    lost = [
        Lost(topic.number, topic.next_sequence, wanted[topic.schema.name] - topic.next_sequence)
        for topic in declared
        if wanted.get(topic.schema.name, 0) > topic.next_sequence
    ]
    data += gaps(position + len(data), epoch, FRAME + len(lost) * _log.LOST_DTYPE.itemsize, lost)
    data[:HEADER] = _log.encode_file_header(
        log_id=log_id,
        file_number=file_number,
        start_position=position,
        previous_end=previous_end,
        epoch=epoch,
        created_ns=time.time_ns(),
        file_bytes=FILE_BYTES,
        start_bytes=start_bytes,
        bus="",
    )
    path, temporary = file_path(directory, file_number), directory / TEMPORARY
    temporary.unlink(missing_ok=True)
    descriptor = create_file(temporary)
    try:
        write_at(descriptor, bytes(data), 0)
        os.ftruncate(descriptor, FILE_BYTES)
        sync_data(descriptor)
    finally:
        os.close(descriptor)
    rename_file(temporary, path)
    sync_directory(directory)
    return path
