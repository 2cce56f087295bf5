"""What a store bench needs of another store: one adapter a library, all with the same calls, opened as its users would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from .peer import Library

__all__ = ["CACHE_BYTES", "MEMTABLE_BYTES", "StorePeer"]

MEMTABLE_BYTES = 128 << 20  # as ours
CACHE_BYTES = 512 << 20  # of blocks: ours lie in the page cache and take none
BLOOM_BITS = 10  # a key: 1 % go wrong


class StorePeer(Library):
    """One store, in one directory. Keys and values are bytes.

    durable: every put and batch is on the disk when the call returns. in_memory: nothing is to be written to tables.
    keep_tables: nothing is to be compacted. count_writes: for `written_bytes`, which may cost something.
    """

    log_bytes_max: ClassVar[int] = 0  # what it can have in a log without writing tables; 0 where it has none
    has_levels: ClassVar[bool] = False
    keeps_tables: ClassVar[bool] = False  # whether keep_tables, `flush` and `table_count` are there
    compaction_threads: ClassVar[str] = ""  # what the names begin with of the threads that compact and do nothing else

    put: Callable[[bytes, bytes], object]
    get: Callable[[bytes], Any]
    get_many: Callable[[list[bytes]], list[Any]] | None = None

    def __init__(
        self,
        directory: str,
        *,
        durable: bool = False,
        in_memory: bool = False,
        keep_tables: bool = False,
        count_writes: bool = False,
    ) -> None:
        self.directory, self.durable, self.in_memory = directory, durable, in_memory
        self.keep_tables, self.count_writes = keep_tables, count_writes
        self.open()

    def open(self) -> None:
        """Open or make it, and set `put`."""
        raise NotImplementedError

    def begin_reading(self) -> None:
        """Set `get`, for what has been put so far."""
        raise NotImplementedError

    def put_batch(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Store all or none."""
        raise NotImplementedError

    def scan(self) -> Iterable[tuple[bytes, bytes]]:
        """Everything in the order of keys."""
        raise NotImplementedError

    def settle(self) -> None:
        """Return when everything is in tables and no more compaction is due."""
        raise NotImplementedError

    def compact(self) -> None:
        """Merge everything, where there are levels."""

    def flush(self) -> None:
        """Write what was put as a table of its own."""
        raise NotImplementedError

    def table_count(self) -> int:
        raise NotImplementedError

    def written_bytes(self) -> int:
        """Written to tables so far, where there are levels."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
