"""The compiled half of the store; see _tree.pyx."""

from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from typing_extensions import Buffer

from ._log import LogAppender
from .errors import Corruption
from .schema import Schema

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
_Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]

KEY_BYTES_MAX: int
COMPRESSIONS: tuple[str, str, str]
TABLE_MAGIC: bytes

class KeyCodec:
    topic: str
    names: tuple[str, ...]
    dtype: np.dtype[np.void]
    row_bytes: int
    key_bytes: int
    key_words: int
    def __init__(self, schema: Schema) -> None: ...
    def encode(self, rows: _Rows) -> np.ndarray[Any, np.dtype[np.uint64]]: ...
    def hashes(self, rows: _Rows) -> np.ndarray[Any, np.dtype[np.uint64]]: ...
    def values(self, key: Iterable[int]) -> tuple[Any, ...]: ...

class MemoryPool:
    def __init__(self, keep_bytes: int = 0) -> None: ...

class Memtable:
    codec: KeyCodec
    capacity: int
    room: int
    memory_bytes: int
    address: int
    tombstone_count: int
    sequences: tuple[int, int]
    def __init__(
        self, codec: KeyCodec, budget_bytes: int = 0, pool: MemoryPool | None = None, *, rows_elsewhere: int = 0
    ) -> None: ...
    def __len__(self) -> int: ...
    def touch(self, ahead_bytes: int) -> int: ...
    def capsule(self) -> object: ...
    def insert(self, rows: _Rows, tombstones: bool = False) -> None: ...
    def replay(self, data: Buffer, frames: _Rows, first: int, end: int) -> None: ...
    def rows(self) -> tuple[_Rows, np.ndarray[Any, np.dtype[np.bool_]]]: ...

class TableWriter:
    row_count: int
    data_bytes: int
    def __init__(
        self,
        codec: KeyCodec,
        fd: int,
        path: str | PathLike[str],
        *,
        schema: Schema,
        table_number: int,
        log_id: int,
        created_ns: int,
        block_bytes: int,
        compression: str = "none",
        compress: Callable[[bytes], bytes] | None = None,
    ) -> None: ...
    def add(self, rows: _Rows, flags: _Array | None = None) -> None: ...
    def finish(self) -> None: ...

class Table:
    codec: KeyCodec
    path: Path
    number: int
    file_bytes: int
    row_count: int
    block_count: int
    block_rows: int
    tombstone_count: int
    shadowed_count: int
    schema_hash: int
    log_id: int
    sequence_min: int
    sequence_max: int
    timestamp_min_ns: int
    timestamp_max_ns: int
    created_ns: int
    compression: str
    topic: str
    key_min: tuple[int, ...]
    key_max: tuple[int, ...]
    def __init__(self, path: str | PathLike[str], codec: KeyCodec, schema_hash: int) -> None: ...
    def decompress_with(self, decompress: Callable[[bytes, int], bytes] | None) -> None: ...
    def problems(self) -> list[Corruption]: ...
    def verify(self) -> None: ...
    def rows(self, first: int = 0, end: int | None = None) -> _Rows: ...
    def bounds(self, first: object = None, last: object = None) -> tuple[int, int]: ...
    def flags(self, first: int, end: int) -> _Array: ...
    def schema_json(self) -> bytes: ...

def table_schema_json(path: Path) -> bytes: ...

class Merge:
    within_key: bool
    read_count: int
    def __init__(
        self,
        codec: KeyCodec,
        memtables: Iterable[tuple[Memtable, int]],
        tables: Iterable[Table],
        first: object = None,
        last: object = None,
        reverse: bool = False,
    ) -> None: ...
    def begin_scan(self, visible: int, all_versions: bool = False) -> None: ...
    def begin_compaction(self, views: Iterable[int], *, all_versions: bool, bottom: bool) -> None: ...
    def fill(self, rows: _Rows, flags: _Array | None = None) -> int: ...

class State:
    codec: KeyCodec
    memtables: tuple[Memtable, ...]
    level0: tuple[Table, ...]
    levels: tuple[tuple[Table, ...], ...]
    def __init__(
        self,
        codec: KeyCodec,
        memtables: tuple[Memtable, ...],
        level0: tuple[Table, ...],
        levels: tuple[tuple[Table, ...], ...],
    ) -> None: ...
    def get(self, values: tuple[Any, ...], visible: int) -> np.void | None: ...
    def get_many(self, keys: _Rows, visible: int = ...) -> tuple[_Rows, np.ndarray[Any, np.dtype[np.bool_]]]: ...

class TreeCore:
    codec: KeyCodec
    visible: int
    next_sequence: int
    last_timestamp_ns: int
    state: State
    get: Callable[..., np.void | None]
    put: Callable[..., int]
    delete: Callable[..., int]
    def __init__(self, codec: KeyCodec, schema: Schema, state: State) -> None: ...
    def set_state(self, state: State, active: Memtable | None = None) -> bool: ...
    def open_log(
        self,
        appender: LogAppender,
        topic: int,
        next_sequence: int,
        last_timestamp_ns: int,
        full: Callable[[], None],
        appended: Callable[[], None] | None = None,
    ) -> None: ...
    def close_log(self) -> bool: ...
    def feed_capsule(self) -> object: ...
    def put_batch(self, rows: _Rows) -> int: ...
