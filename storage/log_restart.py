"""Letting a log go on where a store's tables end, for a store whose own log is gone, or ends before them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import _log
from .drafts import Lost
from .files import create_file, make_directory, rename_file, sync_data, sync_directory, write_at
from .log_files import LogTopic, file_path
from .recovery import examine
from .repair import TEMPORARY, gaps

__all__ = ["continue_log"]

FRAME, HEADER = _log.FRAME_HEADER_BYTES, _log.LOG_HEADER_BYTES
FILE_BYTES = 4 << 20


def continue_log(
    directory: Path, archive: Path, log_id: int, topics: Sequence[LogTopic], next_sequences: Mapping[str, int]
) -> Path:
    """Add a file to a log, in which each topic gives up all sequences before the one it is to go on with. Returns its path.

    The directory may be empty, or missing, and so may the archive; what is there is sound. topics: of the store; their numbers
    do not matter, and their next sequences only where nothing is left of the log.
    """
    make_directory(directory)
    before = examine(directory, archive=archive)
    declared = sorted(before.topics.values(), key=lambda topic: topic.number)
    if before.files:
        (file_number, position, previous_end), bus = before.end, before.files[-1].header.bus
        topics = [replace(topic, next_sequence=1) for topic in topics]
    else:
        file_number, position, previous_end, bus = 2, HEADER, 0, ""  # not the first: that is gone
    declared += [topic for topic in topics if topic.schema.name not in before.topics]
    declared = [replace(topic, number=number) for number, topic in enumerate(declared)]
    epoch = before.epoch + 1
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
        Lost(topic.number, topic.next_sequence, next_sequences[topic.schema.name] - topic.next_sequence)
        for topic in declared
        if next_sequences.get(topic.schema.name, 0) > topic.next_sequence
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
        bus=bus,
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
