"""What finding a row by its key takes: in a memtable, in sstables, where it is missing, and for many keys at once."""

from __future__ import annotations

from typing import Any

from ...storage.levels import Shape
from ...storage.store import Store
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, clock
from .store_filling import check_stored, load, memtable_bytes_for, settle
from .store_peer import CACHE_BYTES, MEMTABLE_BYTES, StorePeer
from .store_rows import BATCH, PEER_VALUES, SCHEMA, TOPIC, key_array, lookups, make_keys, make_payloads, pairs_of
from .store_timing import percentiles, time_gets
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["BENCH"]

GETS_MAX = 500_000
MISSING_SEED = 2
LOAD_BATCH = 1000


def _run(plan: Plan) -> Figures:
    figures: Figures = {}
    for job in (_get_from_memtable, _get_from_tables):
        with bench_directory(plan) as directory:
            figures |= run_together(Job(job, (directory, plan.rows)), seconds_max=300)[0]
    return figures


def _get_from_memtable(stage: Stage, directory: str, row_count: int) -> Figures:
    keys = make_keys(row_count)
    wanted = lookups(keys, min(row_count, GETS_MAX))
    with Store(directory, [SCHEMA], sync="never", memtable_bytes=memtable_bytes_for(row_count)) as store:
        load(store, make_payloads(keys))
        check_stored(store, keys)
        stage.begin(settle=True)
        figures = percentiles("get_memtable", time_gets(store[TOPIC].get, wanted))
        if any(store.stats()[TOPIC].tables_by_level):
            raise BenchFailed("not all rows were in the memtable")
    return figures


def _get_from_tables(stage: Stage, directory: str, row_count: int) -> Figures:
    keys = make_keys(row_count)
    gets = min(row_count, GETS_MAX)
    wanted, missing = lookups(keys, gets), make_keys(gets, MISSING_SEED)
    calls = [key_array(wanted[at : at + BATCH]) for at in range(0, gets, BATCH)]
    with Store(directory, [SCHEMA], sync="never") as store:
        load(store, make_payloads(keys))
        settle(store, Shape())
    with Store(directory, [SCHEMA], sync="never") as store:
        tree = store[TOPIC]
        if any(tree.get(key) is None for key in keys):  # and all blocks are in memory, their checksums proven
            raise BenchFailed("a key that was put is not there")
        stage.begin(settle=True)
        figures = percentiles("get_sstable", time_gets(tree.get, wanted))
        figures |= percentiles("get_missing", time_gets(tree.get, missing))
        start = clock()
        for call in calls:
            tree.get_many(call)
        figures["get_many_keys_per_s"] = gets / (clock() - start) * NS
        if not tree.get_many(calls[-1])[1].all() or tree.get_many(key_array(missing[:BATCH]))[1].any():
            raise BenchFailed("get_many does not find what there is, or finds what there is not")
    return figures


def _run_peer(plan: Plan, peer: Any) -> Figures:
    if not issubclass(peer, StorePeer):
        return {}
    figures: Figures = {}
    for job in (_get_from_peers_memory, _get_from_peers_tables):
        with bench_directory(plan) as directory:
            figures |= run_together(Job(job, (peer, directory, plan.rows)), seconds_max=300)[0]
    return figures


def _load_peer(store: StorePeer, keys: list[bytes]) -> None:
    pairs = list(pairs_of(keys, PEER_VALUES))
    for at in range(0, len(pairs), LOAD_BATCH):
        store.put_batch(pairs[at : at + LOAD_BATCH])


def _get_from_peers_memory(stage: Stage, peer: type[StorePeer], directory: str, row_count: int) -> Figures:
    keys = make_keys(row_count)
    wanted = lookups(keys, min(row_count, GETS_MAX))
    store = peer(directory, in_memory=True)
    _load_peer(store, keys)
    store.begin_reading()
    stage.begin(settle=True)
    figures = percentiles("get_memtable", time_gets(store.get, wanted))
    store.close()
    return figures


def _get_from_peers_tables(stage: Stage, peer: type[StorePeer], directory: str, row_count: int) -> Figures:
    keys = make_keys(row_count)
    gets = min(row_count, GETS_MAX)
    wanted, missing = lookups(keys, gets), make_keys(gets, MISSING_SEED)
    calls = [wanted[at : at + BATCH] for at in range(0, gets, BATCH)]
    store = peer(directory)
    _load_peer(store, keys)
    store.settle()
    store.close()
    store = peer(directory)
    store.begin_reading()
    if any(store.get(key) is None for key in keys):
        raise BenchFailed("a key that was put is not there")
    stage.begin(settle=True)
    figures = percentiles("get_sstable", time_gets(store.get, wanted))
    figures |= percentiles("get_missing", time_gets(store.get, missing))
    if store.get_many is not None:
        start = clock()
        for call in calls:
            store.get_many(call)
        figures["get_many_keys_per_s"] = gets / (clock() - start) * NS
    store.close()
    return figures


BENCH = Bench(
    "store get",
    "Getting rows by random keys: from the memtable, from warm sstables of a store opened again, and keys that are not there.",
    {
        "get_memtable_p50_us": Bar(0.8),
        "get_memtable_p99_us": Bar(2),
        "get_sstable_p50_us": Bar(1.2),
        "get_sstable_p99_us": Bar(3),
        "get_missing_p50_us": Bar(0.4),
        "get_missing_p99_us": Bar(1),
        "get_many_keys_per_s": Bar(3e6),
    },
    _run,
    {
        "gets": f"{GETS_MAX} at most",
        "keys_a_call": BATCH,
        "sstables": "as flushes and compactions leave them; every block was read before",
        "missing": "in the sstables",
        "memtable_bytes": f"{MEMTABLE_BYTES}; get_memtable: enough for all rows",
        "peers_cache_bytes": CACHE_BYTES,
    },
    _run_peer,
)
