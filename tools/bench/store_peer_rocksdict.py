"""RocksDB through rocksdict."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

from .store_peer import BLOOM_BITS, CACHE_BYTES, MEMTABLE_BYTES, StorePeer

__all__ = ["Rocksdict"]

BUSY = ("rocksdb.num-running-compactions", "rocksdb.compaction-pending", "rocksdb.num-running-flushes")
QUIET_LOOKS = 5  # a compaction may begin a moment after the one before it
NEVER = 1 << 30


class Rocksdict(StorePeer):
    name = module = "rocksdict"
    log_bytes_max = 1 << 30
    has_levels = keeps_tables = True
    compaction_threads = "rocksdb:low"

    def open(self) -> None:
        library = self.load()
        options = self._options = library.Options(raw_mode=True)
        options.create_if_missing(True)
        if self.count_writes:
            options.enable_statistics()
        options.set_write_buffer_size(4 << 30 if self.in_memory else MEMTABLE_BYTES)
        options.set_compression_type(library.DBCompressionType.none())
        tables = library.BlockBasedOptions()
        tables.set_bloom_filter(BLOOM_BITS, False)
        tables.set_block_cache(library.Cache(CACHE_BYTES))
        options.set_block_based_table_factory(tables)
        if self.keep_tables:
            options.set_disable_auto_compactions(True)
            options.set_level_zero_slowdown_writes_trigger(NEVER)
            options.set_level_zero_stop_writes_trigger(NEVER)
        # Without column_families a reopened store silently uses the options that it was made with.
        self._database: Any = library.Rdict(self.directory, options, column_families={"default": options})
        write_options = library.WriteOptions()
        write_options.sync = self.durable
        self._database.set_write_options(write_options)
        self.put, self._batch = self._database.put, library.WriteBatch

    def begin_reading(self) -> None:
        self.get = self.get_many = self._database.get

    def put_batch(self, pairs: list[tuple[bytes, bytes]]) -> None:
        batch = self._batch(raw_mode=True)
        for key, value in pairs:
            batch[key] = value
        self._database.write(batch)

    def scan(self) -> Iterable[tuple[bytes, bytes]]:
        return self._database.items()

    def settle(self) -> None:
        self._database.flush()
        quiet = 0
        while quiet < QUIET_LOOKS:
            quiet = 0 if any(self._database.property_int_value(what) for what in BUSY) else quiet + 1
            time.sleep(0.02)

    def compact(self) -> None:
        self._database.flush()
        self._database.compact_range(None, None)

    def written_bytes(self) -> int:
        counts = dict(re.findall(r"^(\S+) COUNT : (\d+)$", self._options.get_statistics(), re.MULTILINE))
        return int(counts["rocksdb.flush.write.bytes"]) + int(counts["rocksdb.compact.write.bytes"])

    def flush(self) -> None:
        self._database.flush()

    def table_count(self) -> int:
        return int(self._database.property_value("rocksdb.num-files-at-level0"))

    def close(self) -> None:
        self._database.close()
