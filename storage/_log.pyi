"""The compiled half of the log; see _log.pyx."""

from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from typing_extensions import Buffer

from .errors import LogFailed

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FRAME_DTYPE: np.dtype[np.void]
LOST_DTYPE: np.dtype[np.void]
FRAME_ROWS: int
FRAME_TOPIC: int
FRAME_MARK: int
FRAME_CLOSE: int
FRAME_GAP: int
FRAME_TOMBSTONES: int
CONTINUES: int
LOG_HEADER_BYTES: int
FRAME_HEADER_BYTES: int
GROUP_BYTES_MAX: int
TOPIC_COUNT_MAX: int

def crc32c(data: Buffer, crc: int = 0, *, portable: bool = False) -> int: ...
def decode_file_header(data: Buffer, path: str | PathLike[str]) -> dict[str, Any] | None: ...
def encode_file_header(
    *,
    log_id: int,
    file_number: int,
    start_position: int,
    previous_end: int,
    epoch: int,
    created_ns: int,
    file_bytes: int,
    start_bytes: int,
    bus: str,
) -> bytes: ...
def encode_frame(
    kind: int,
    payload: Buffer,
    *,
    position: int,
    epoch: int,
    frame_bytes: int,
    row_count: int = 0,
    topic: int = 0,
    first_sequence: int = 0,
    durable_position: int = 0,
    first_timestamp_ns: int = 0,
    row_bytes: int = 0,
) -> bytes: ...
def scan(
    data: Buffer, *, start_position: int, epoch: int, offset: int, limit: int = ..., proven: bool = False
) -> tuple[np.ndarray[Any, np.dtype[np.void]], int]: ...
def find_frame(
    data: Buffer, *, start_position: int, epoch: int, offset: int, end: int = ..., limit: int = ...
) -> int | None: ...
def gather(data: Buffer, offsets: _Array, counts: _Array, row_bytes: int, out: _Array) -> None: ...

class LogAppender:
    path: str
    def __init__(
        self,
        path: str | PathLike[str],
        directory_fd: int,
        *,
        log_id: int,
        epoch: int,
        bus: str,
        next_file_number: int,
        start_position: int,
        previous_end: int,
        file_bytes: int,
        sync_files: bool,
        map_small_groups: bool = False,
    ) -> None: ...
    def add_topic(
        self, schema_json: bytes, dtype: np.dtype[np.void], next_sequence: int, last_timestamp_ns: int
    ) -> None: ...
    def capsule(self) -> object: ...
    def failure(self) -> LogFailed | None: ...
    def open_first(self) -> None: ...
    def append(self, topic: int, rows: _Array, tombstones: bool = False) -> None: ...
    def append_one(self, topic: int, row: _Array, tombstone: bool = False) -> None: ...
    def make_room(self) -> None: ...
    def sync(self) -> None: ...
    def sync_behind(self) -> None: ...
    def mark(self) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...
    def next_sequence(self, topic: int) -> int: ...
    def add_spare(self, fd: int, name: str) -> None: ...
    def refuse_spare(self, error: int) -> None: ...
    @property
    def spare_count(self) -> int: ...
    @property
    def wants_spare_fd(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def durable_position(self) -> int: ...
    @property
    def file_number(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def written_bytes(self) -> int: ...
    @property
    def sync_count(self) -> int: ...
    @property
    def is_mapped(self) -> bool: ...
