"""LevelDB through plyvel."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .store_peer import BLOOM_BITS, CACHE_BYTES, MEMTABLE_BYTES, StorePeer

__all__ = ["Plyvel"]

LOOK_S = 0.1
QUIET_LOOKS = 5  # it does not say that a compaction is under way: only its thread's work shows it
IDLE_S_MAX = 0.001


class Plyvel(StorePeer):
    name = module = "plyvel"
    log_bytes_max = 512 << 20  # its memtable ends at 1 GiB, in which rows take half as much again
    has_levels = True

    _written_before = 0  # it was opened last

    def open(self) -> None:
        self._database: Any = self.load().DB(
            self.directory,
            create_if_missing=True,
            compression=None,
            bloom_filter_bits=BLOOM_BITS,
            write_buffer_size=1 << 30 if self.in_memory else MEMTABLE_BYTES,
            lru_cache_size=CACHE_BYTES,
        )
        put = self._database.put
        self.put = (lambda key, value: put(key, value, sync=True)) if self.durable else put

    def begin_reading(self) -> None:
        self.get = self._database.get

    def put_batch(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self._database.write_batch(sync=self.durable) as batch:
            for key, value in pairs:
                batch.put(key, value)

    def scan(self) -> Iterable[tuple[bytes, bytes]]:
        return self._database.iterator()

    def settle(self) -> None:
        self._written_before = self.written_bytes()
        self.close()
        self.open()  # which writes what its log holds to a table
        worked_s, quiet = _background_s(), 0
        while quiet < QUIET_LOOKS:
            time.sleep(LOOK_S)
            before, worked_s = worked_s, _background_s()
            quiet = quiet + 1 if worked_s - before < IDLE_S_MAX else 0

    def compact(self) -> None:
        self._database.compact_range()

    def written_bytes(self) -> int:
        levels = self._database.get_property(b"leveldb.stats").decode().splitlines()[3:]
        return self._written_before + sum(
            int(float(level.split()[5])) << 20 for level in levels
        )  # MiB, the last of six

    def close(self) -> None:
        self._database.close()


def _background_s() -> float:
    return time.process_time() - time.thread_time()
