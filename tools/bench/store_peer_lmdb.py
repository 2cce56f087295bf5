"""LMDB: a B+ tree in a mapped file. It has no log, no levels and no compaction; a put alone is a transaction of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .store_peer import StorePeer

__all__ = ["Lmdb"]

MAP_BYTES = 32 << 30


class Lmdb(StorePeer):
    name = module = "lmdb"

    def open(self) -> None:
        self._environment: Any = self.load().open(
            self.directory, map_size=MAP_BYTES, sync=self.durable, metasync=self.durable
        )
        begin = self._environment.begin

        def put(key: bytes, value: bytes) -> None:
            with begin(write=True) as transaction:
                transaction.put(key, value)

        self.put = put
        self._reading: Any = None

    def begin_reading(self) -> None:
        self._reading = self._environment.begin()
        self.get = self._reading.get
        getmulti = self._reading.cursor().getmulti
        self.get_many = lambda keys: list(getmulti(keys))

    def put_batch(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.cursor().putmulti(pairs)

    def scan(self) -> Iterable[tuple[bytes, bytes]]:
        with self._environment.begin() as transaction:
            yield from transaction.cursor()

    def settle(self) -> None:
        self._environment.sync(True)

    def close(self) -> None:
        if self._reading is not None:
            self._reading.abort()
        self._environment.close()
