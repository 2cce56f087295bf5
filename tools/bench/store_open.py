"""How soon a store with a thousand tables is open and gives its first row."""

from __future__ import annotations

import time
from typing import Any

from ...storage.levels import Shape
from ...storage.store import Store
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import clock
from .store_peer import StorePeer
from .store_rows import PEER_VALUES, SCHEMA, TOPIC, make_keys, make_payloads, pairs_of
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["BENCH"]

TABLES = 1000
TABLE_ROWS_MIN = 100
AS_FLUSHED = Shape(level0_tables=1, table_bytes=1)  # tables that do not overlap sink to level 1 as they are
LOOK_S = 0.001


def _run(plan: Plan) -> Figures:
    with bench_directory(plan) as directory:
        key = run_together(Job(_make, (directory, plan.rows)), seconds_max=600)[0]
        return {"open_1000_tables_ms": run_together(Job(_open, (directory, key)), seconds_max=60)[0]}


def _parts(row_count: int) -> list[list[bytes]]:
    """The keys of each table: its own stretch of all keys."""
    keys, tables = sorted(make_keys(row_count)), min(TABLES, row_count // TABLE_ROWS_MIN)
    each = row_count // tables
    return [keys[at : at + each] for at in range(0, each * tables, each)]


def _make(stage: Stage, directory: str, row_count: int) -> bytes:
    parts = _parts(row_count)
    with Store(directory, [SCHEMA], sync="never", memtable_bytes=1 << 20, shape=AS_FLUSHED) as store:
        for keys in parts:
            store[TOPIC].put_batch(make_payloads(keys))
            store.snapshot()
        while store.stats()[TOPIC].tables_by_level[0]:
            time.sleep(LOOK_S)
        if store.stats()[TOPIC].tables_by_level[1] != len(parts):
            raise BenchFailed(f"{len(parts)} tables were to be made: {store.stats()[TOPIC].tables_by_level}")
    return parts[len(parts) // 2][0]


def _open(stage: Stage, directory: str, key: bytes) -> float:
    stage.begin(settle=True)
    start = clock()
    with Store(directory, [SCHEMA], sync="never") as store:
        row = store[TOPIC].get(key)
        milliseconds = (clock() - start) / 1e6
    if row is None:
        raise BenchFailed("a key that was put is not there")
    return milliseconds


def _run_peer(plan: Plan, peer: Any) -> Figures:
    if not issubclass(peer, StorePeer) or not peer.keeps_tables:
        return {}
    with bench_directory(plan) as directory:
        key = run_together(Job(_make_peer, (peer, directory, plan.rows)), seconds_max=600)[0]
        return {"open_1000_tables_ms": run_together(Job(_open_peer, (peer, directory, key)), seconds_max=60)[0]}


def _make_peer(stage: Stage, peer: type[StorePeer], directory: str, row_count: int) -> bytes:
    parts = _parts(row_count)
    store = peer(directory, keep_tables=True)
    for keys in parts:
        store.put_batch(list(pairs_of(keys, PEER_VALUES)))
        store.flush()
    if store.table_count() != len(parts):
        raise BenchFailed(f"{len(parts)} tables were to be made, not {store.table_count()}")
    store.close()
    return parts[len(parts) // 2][0]


def _open_peer(stage: Stage, peer: type[StorePeer], directory: str, key: bytes) -> float:
    peer.load()
    stage.begin(settle=True)
    start = clock()
    store = peer(directory, keep_tables=True)
    store.begin_reading()
    found = store.get(key)
    milliseconds = (clock() - start) / 1e6
    if found is None:
        raise BenchFailed("a key that was put is not there")
    store.close()
    return milliseconds


BENCH = Bench(
    "store open",
    "Opening a store with 1,000 sstables, until it gives a row.",
    {"open_1000_tables_ms": Bar(200)},
    _run,
    {
        "tables": f"{TABLES}, or one for every {TABLE_ROWS_MIN} rows where that is less; all in level 1, a peer's in level 0",
        "cache": "warm",
    },
    _run_peer,
)
