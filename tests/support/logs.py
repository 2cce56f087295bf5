"""Logs for tests: rows whose content follows from their sequence, tiny logs built frame by frame, and a plain way to read one."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ringmain.storage import Log, Schema, _log
from ringmain.storage.log_files import file_path, list_files, open_file, read_topics

Rows = np.ndarray[Any, np.dtype[np.void]]

POINTS = Schema("points", {"value": "u8", "check": "u4", "tag": "S5"}, units={"value": "made up"})  # 40 bytes a row
PAIRS = Schema("pairs", {"left": "i8"}, description="the smallest row there is")  # 24 bytes a row
FILE_BYTES = 4 << 20
START_NS = 1_700_000_000_000_000_000


def make_rows(schema: Schema, first: int, count: int) -> Rows:
    """Rows `first` to `first + count - 1`; every byte of them follows from the sequence."""
    rows = np.zeros(count, schema.dtype)
    sequence = np.arange(first, first + count, dtype="u8")
    rows["sequence"] = sequence
    rows["timestamp_ns"] = START_NS + sequence.astype("i8") * 1000
    mixed = sequence * np.uint64(0x9E3779B97F4A7C15)
    for index, column in enumerate(schema.fields):
        if column.type.startswith("S"):
            rows[column.name] = np.char.mod("%d", sequence % 9973).astype("S")
        else:
            rows[column.name] = (mixed >> np.uint64(3 * index)).astype(rows.dtype[column.name])
    return rows


def check_rows(schema: Schema, rows: Rows, first: int) -> None:
    """Assert that these are exactly the rows from `first` on."""
    assert (rows == make_rows(schema, first, len(rows))).all()


def append(log: Log, schema: Schema, count: int) -> int:
    """Append the topic's next rows, as the keeper and the journal would. Returns the last sequence."""
    number = log.topic(schema.name).number
    first = log.appender.next_sequence(number)
    log.keep(0)
    log.appender.append(number, make_rows(schema, first, count))
    return first + count - 1


def read_rows(directory: Path, schema: Schema) -> Rows:
    """All rows of a topic that the log holds, read in the plainest way: each file up to where its successor says it ends."""
    paths = list_files(directory)
    parts: list[Rows] = [np.empty(0, schema.dtype)]
    for number, path in paths:
        file = open_file(path, number)
        following = file_path(directory, number + 1)
        limit = open_file(following, number + 1).header.previous_end if following.exists() else len(file.data)
        frames, _ = file.scan(limit=limit)
        numbers = {topic.schema.name: topic.number for topic in read_topics(file, frames)}
        mine = frames[(frames["kind"] == _log.FRAME_ROWS) & (frames["topic"] == numbers.get(schema.name, -1))]
        parts += [
            np.frombuffer(
                file.data, schema.dtype, int(frame["row_count"]), int(frame["offset"]) + _log.FRAME_HEADER_BYTES
            )
            for frame in mine
        ]
    return np.concatenate(parts)


def flip(path: Path, offset: int, change: int = 0x40) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ change]))


def trim(directory: Path) -> None:
    """Cut the unused room off every file, so that it is quick to copy."""
    for number, path in list_files(directory):
        file = open_file(path, number)
        _, end = file.scan()
        del file
        os.truncate(path, end)


class Builder:
    """Writes tiny logs with the encode functions, as the appender would, with every choice in the test's hands.

    What was appended before the last `sync` is durable according to the frames behind it.
    """

    def __init__(self, directory: Path, schemas: Iterable[Schema] = (POINTS, PAIRS), number: int = 1) -> None:
        self.directory = directory
        self.schemas = list(schemas)
        self.number, self.epoch, self.start = number - 1, 0, 0
        self.next = {schema.name: 1 for schema in self.schemas}
        self.last_ns = {schema.name: 0 for schema in self.schemas}
        self.data = bytearray()
        self.durable = 0
        self.frames: list[tuple[int, int, str, int, int]] = []  # file number, offset, topic or "", first, count
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def position(self) -> int:
        return self.start + len(self.data)

    @property
    def path(self) -> Path:
        return file_path(self.directory, self.number)

    def begin(self, *, new_writer: bool = False, previous_end: int | None = None) -> Path:
        """Begin the next file. previous_end: where the file before ends, if not behind its last frame."""
        if new_writer or self.epoch == 0:
            self.epoch += 1
        end = len(self.data) if previous_end is None else previous_end
        self.start, self.number = self.start + end, self.number + 1
        self.durable = self.start
        self.data = bytearray(_log.LOG_HEADER_BYTES)
        for number, schema in enumerate(self.schemas):
            name = schema.name
            self._add(
                _log.FRAME_TOPIC,
                schema.to_json(),
                topic=number,
                first_sequence=self.next[name],
                first_timestamp_ns=self.last_ns[name],
                row_bytes=schema.row_bytes,
            )
        self.data[: _log.LOG_HEADER_BYTES] = _log.encode_file_header(
            log_id=0x1234567890ABCDEF,
            file_number=self.number,
            start_position=self.start,
            previous_end=end,
            epoch=self.epoch,
            created_ns=START_NS + self.number,
            file_bytes=FILE_BYTES,
            start_bytes=len(self.data),
            bus="test",
        )
        self.durable = self.position
        self._save()
        return self.path

    def rows(self, schema: Schema, count: int) -> int:
        """Append a frame of rows; returns its offset."""
        offset, first = len(self.data), self.next[schema.name]
        rows = make_rows(schema, first, count)
        self._add(
            _log.FRAME_ROWS,
            rows.tobytes(),
            topic=self.schemas.index(schema),
            first_sequence=first,
            row_count=count,
            first_timestamp_ns=int(rows["timestamp_ns"][0]),
            row_bytes=schema.row_bytes,
        )
        self.frames.append((self.number, offset, schema.name, first, count))
        self.next[schema.name], self.last_ns[schema.name] = first + count, int(rows["timestamp_ns"][-1])
        self._save()
        return offset

    def sync(self) -> None:
        self.durable = self.position

    def mark(self) -> int:
        """A frame that says that everything before it is on the disk; returns its offset."""
        self.sync()
        offset = len(self.data)
        self._add(_log.FRAME_MARK, b"")
        self._save()
        return offset

    def close(self) -> None:
        self.sync()
        self._add(_log.FRAME_CLOSE, b"")
        self._save()

    def _add(self, kind: int, payload: bytes, **fields: int) -> None:
        frame_bytes = _log.FRAME_HEADER_BYTES + (len(payload) + 7) // 8 * 8
        self.data += _log.encode_frame(
            kind,
            payload,
            position=self.position,
            epoch=self.epoch,
            frame_bytes=frame_bytes,
            durable_position=self.durable,
            **fields,
        )

    def _save(self) -> None:
        self.path.write_bytes(self.data)


def log_rests(data_dir: str | Path) -> bool:
    """Whether a log has left word that all of it is durable, as its writer does once there is nothing to log."""
    number, path = list_files(Path(data_dir) / "log")[-1]
    frames, _ = open_file(path, number).scan()
    return len(frames) > 0 and int(frames["kind"][-1]) == _log.FRAME_MARK


def stop_the_log(data_dir: str | Path) -> None:
    """Have a log whose writer is in this process refuse everything that is published from now on: it stays in the ring."""
    wait_until(lambda: log_rests(data_dir))  # it would stop over its own word, before anything is published
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Poll a condition until it holds, with a deadline; the more seldom, the longer that takes."""
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < timeout_s, f"waited {timeout_s} s in vain"
        time.sleep(min(max(0.002, waited / 20), 0.02))
