"""How soon a killed store is there again: a log that was never flushed, and (--large) 10 GB with a snapshot not long ago."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from ...storage.levels import Shape
from ...storage.store import Store
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, clock
from .store_filling import load, memtable_bytes_for, settle
from .store_peer import StorePeer
from .store_rows import PEER_VALUES, SCHEMA, TOPIC, make_keys, make_payloads, pairs_of
from .workers import BenchFailed, Job, Stage, run_and_kill, run_together

__all__ = ["BENCH"]

LOG_BYTES = 1_000_000_000
STORED_BYTES, LOG_BEHIND_BYTES = 10_000_000_000, 100_000_000
PEERS_SHARE = 4  # a peer's log is so many times smaller: the slow ones need minutes
CHUNK_ROWS = 1_000_000
LOAD_BATCH = 1000


def _run(plan: Plan) -> Figures:
    row_count = min(LOG_BYTES // SCHEMA.row_bytes, 8 * plan.rows)
    seconds = _recover(plan, 0, row_count)
    figures = {"recover_gb_per_s": row_count * SCHEMA.row_bytes / seconds / 1e9, "recover_seconds": seconds}
    if plan.large:
        stored, behind = (size // SCHEMA.row_bytes for size in (STORED_BYTES, LOG_BEHIND_BYTES))
        figures["recover_10gb_s"] = _recover(plan, stored, behind)
    return figures


def _recover(plan: Plan, stored: int, behind: int) -> float:
    """Seconds until a store with `stored` rows in tables and `behind` in its log gives a row that was in the log."""
    with bench_directory(plan) as directory:
        last_key = run_and_kill(Job(_write, (directory, stored, behind)), seconds_max=900)
        return run_together(Job(_open, (directory, last_key, stored + behind)), seconds_max=300)[0]


def _write(stage: Stage, directory: str, stored: int, behind: int) -> None:
    """A worker, which is killed after its report."""
    last_key = b""
    if stored:
        with Store(directory, [SCHEMA], sync="never") as store:
            for at in range(0, stored, CHUNK_ROWS):
                load(store, make_payloads(make_keys(min(CHUNK_ROWS, stored - at), 1000 + at)))
            settle(store, Shape())
    with Store(directory, [SCHEMA], sync="never", memtable_bytes=memtable_bytes_for(behind)) as store:
        for at in range(0, behind, CHUNK_ROWS):
            keys = make_keys(min(CHUNK_ROWS, behind - at), 1 + at)
            load(store, make_payloads(keys))
            last_key = keys[-1]
        store.sync()
        if store.stats()[TOPIC].checkpoint != stored:
            raise BenchFailed("the log was flushed before the kill")
        stage.report(last_key)
        signal.pause()


def _open(stage: Stage, directory: str, last_key: bytes, row_count: int) -> float:
    stage.begin(settle=True)
    start = clock()
    with Store(directory, [SCHEMA]) as store:
        row = store[TOPIC].get(last_key)
        seconds = (clock() - start) / NS
        if row is None or row["sequence"] != row_count or store[TOPIC].core.visible != row_count:
            raise BenchFailed(f"{row_count} rows were stored before the kill, not all are there after it")
    return seconds


def _run_peer(plan: Plan, peer: Any) -> Figures:
    if not issubclass(peer, StorePeer) or not peer.log_bytes_max:
        return {}
    row_count = min(LOG_BYTES // SCHEMA.row_bytes, 8 * plan.rows) // PEERS_SHARE
    with bench_directory(plan) as directory:
        last_key, log_bytes = run_and_kill(Job(_write_peer, (peer, directory, row_count)), seconds_max=300)
        seconds = run_together(Job(_open_peer, (peer, directory, last_key)), seconds_max=300)[0]
    if log_bytes < row_count * SCHEMA.row_bytes:
        raise BenchFailed("its log was flushed before the kill")
    return {"recover_gb_per_s": row_count * SCHEMA.row_bytes / seconds / 1e9}


def _write_peer(stage: Stage, peer: type[StorePeer], directory: str, row_count: int) -> None:
    keys = make_keys(row_count)
    pairs = list(pairs_of(keys, PEER_VALUES))
    store = peer(directory, in_memory=True)
    for at in range(0, row_count, LOAD_BATCH):
        store.put_batch(pairs[at : at + LOAD_BATCH])
    log_bytes = sum(os.path.getsize(path) for path in Path(directory).glob("*.log"))
    stage.report((keys[-1], log_bytes))
    signal.pause()


def _open_peer(stage: Stage, peer: type[StorePeer], directory: str, last_key: bytes) -> float:
    peer.load()
    stage.begin(settle=True)
    start = clock()
    store = peer(directory, in_memory=True)
    store.begin_reading()
    found = store.get(last_key)
    seconds = (clock() - start) / NS
    if found is None:
        raise BenchFailed("the last key put before the kill is not there after it")
    store.close()
    return seconds


BENCH = Bench(
    "store recover",
    "Opening a store after SIGKILL, until it gives the last row: 1 GB of log never flushed; with --large also 10 GB stored.",
    {"recover_gb_per_s": Bar(1), "recover_10gb_s": Bar(2)},
    _run,
    {
        "log_bytes": f"{LOG_BYTES}, or 8 times the rows where that is less; of the peers {PEERS_SHARE} times less",
        "large": f"{STORED_BYTES} bytes in tables, {LOG_BEHIND_BYTES} in the log",
        "cache": "warm",
    },
    _run_peer,
)
