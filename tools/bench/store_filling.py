"""Bringing a store of ours into the state that a bench wants."""

from __future__ import annotations

import time

from ...storage.levels import Shape
from ...storage.store import Store
from .rows import Rows, batches_of
from .store_rows import SCHEMA, TOPIC
from .workers import BenchFailed

__all__ = ["check_stored", "load", "memtable_bytes_for", "settle"]

LOAD_BATCH = 10_000
SETTLE_S_MAX = 600
LOOK_S = 0.02


def memtable_bytes_for(row_count: int) -> int:
    """Enough for one memtable to hold so many rows, its hash table at the most thinly filled."""
    return row_count * (SCHEMA.row_bytes + 40) + (1 << 20)


def load(store: Store, rows: Rows) -> None:
    """Put rows, quickly."""
    for batch in batches_of(rows, LOAD_BATCH):
        store[TOPIC].put_batch(batch)


def settle(store: Store, shape: Shape) -> None:
    """Return when everything is in tables and no more compaction is due."""
    store.snapshot()
    deadline = time.monotonic() + SETTLE_S_MAX
    while not _at_rest(store, shape):
        if time.monotonic() > deadline:
            raise BenchFailed(f"compactions did not come to rest within {SETTLE_S_MAX} s")
        time.sleep(LOOK_S)


def _at_rest(store: Store, shape: Shape) -> bool:
    stats = store.stats()[TOPIC]
    return stats.tables_by_level[0] < shape.level0_tables and all(
        level_bytes < shape.target_bytes(level) for level, level_bytes in enumerate(stats.bytes_by_level[:-1]) if level
    )


def check_stored(store: Store, keys: list[bytes]) -> None:
    """Raise BenchFailed unless the keys, which were put one after the other, are all there, as far as a few looks tell."""
    tree = store[TOPIC]
    if tree.core.visible != len(keys):
        raise BenchFailed(f"{len(keys)} rows were put, the store is at {tree.core.visible}")
    for place in range(0, len(keys), max(1, len(keys) // 100)):
        row = tree.get(keys[place])
        if row is None or row["sequence"] != place + 1:
            raise BenchFailed(f"row {place + 1} is not what was put")
