"""How fast a store is read through in the order of keys: out of one table, and out of a memtable and two levels together."""

from __future__ import annotations

from typing import Any

from ...storage.levels import Shape
from ...storage.store import Store
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, clock
from .store_filling import load
from .store_peer import StorePeer
from .store_rows import PEER_VALUES, SCHEMA, TOPIC, make_keys, make_payloads, pairs_of
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["BENCH"]

ONE_TABLE = Shape(table_bytes=1 << 40)
LOAD_BATCH = 1000
SCANS = 3  # the median counts


def _run(plan: Plan) -> Figures:
    figures: Figures = {}
    for job in (_scan_one_table, _scan_merged):
        with bench_directory(plan) as directory:
            figures |= run_together(Job(job, (directory, plan.rows)), seconds_max=300)[0]
    return figures


def _scan_one_table(stage: Stage, directory: str, row_count: int) -> Figures:
    with Store(directory, [SCHEMA], sync="never", shape=ONE_TABLE) as store:
        load(store, make_payloads(make_keys(row_count)))
        store.compact()
        if sum(store.stats()[TOPIC].tables_by_level) != 1:
            raise BenchFailed("the rows are not in one table")
    with Store(directory, [SCHEMA], sync="never", shape=ONE_TABLE) as store:
        stage.begin(settle=True)
        first, warm = _scans(store, row_count)
    return {"scan_first_rows_per_s": first, "scan_rows_per_s": warm}


def _scan_merged(stage: Stage, directory: str, row_count: int) -> Figures:
    rows = make_payloads(make_keys(row_count))
    half, three_quarters = row_count // 2, row_count * 3 // 4
    with Store(directory, [SCHEMA], sync="never") as store:
        load(store, rows[:half])
        store.compact()
        load(store, rows[half:three_quarters])
        store.snapshot()
        load(store, rows[three_quarters:])
        stage.begin(settle=True)
        first, warm = _scans(store, row_count)
        stats = store.stats()[TOPIC]
        if not (stats.tables_by_level[0] and any(stats.tables_by_level[1:])):
            raise BenchFailed("the rows are not spread over levels")
    return {"scan_merged_first_rows_per_s": first, "scan_merged_rows_per_s": warm}


def _scans(store: Store, row_count: int) -> tuple[float, float]:
    """Rows a second of a first scan and of later ones. One field of every row is added up."""
    rates: list[float] = []
    for _ in range(1 + SCANS):
        total, start = 0, clock()
        for rows in store[TOPIC].scan():
            total += int(rows["sequence"].sum())
        rates.append(row_count / (clock() - start) * NS)
        if total != row_count * (row_count + 1) // 2:
            raise BenchFailed("a scan does not give every row once")
    return rates[0], sorted(rates[1:])[SCANS // 2]


def _run_peer(plan: Plan, peer: Any) -> Figures:
    if not issubclass(peer, StorePeer):
        return {}
    figures: Figures = {}
    for merged in (False, True):
        with bench_directory(plan) as directory:
            figures |= run_together(Job(_scan_peer, (peer, directory, plan.rows, merged)), seconds_max=300)[0]
    return figures


def _scan_peer(stage: Stage, peer: type[StorePeer], directory: str, row_count: int, merged: bool) -> Figures:
    pairs = list(pairs_of(make_keys(row_count), PEER_VALUES))
    store = peer(directory)
    half, three_quarters = row_count // 2, row_count * 3 // 4
    for first, end in ((0, half), (half, three_quarters), (three_quarters, row_count)):
        for at in range(first, end, LOAD_BATCH):
            store.put_batch(pairs[at : min(at + LOAD_BATCH, end)])
        if merged and first == 0:
            store.compact()
        elif merged and end != row_count:
            store.settle()
    if not merged:
        store.settle()
        store.compact()
        store.close()
        store = peer(directory)
    name = "scan_merged" if merged else "scan"
    rates: list[float] = []
    stage.begin(settle=True)
    for _ in range(1 + SCANS):
        count, start = 0, clock()
        for _pair in store.scan():
            count += 1
        rates.append(row_count / (clock() - start) * NS)
        if count != row_count:
            raise BenchFailed(f"{row_count} rows were put, a scan gives {count}")
    store.close()
    return {f"{name}_first_rows_per_s": rates[0], f"{name}_rows_per_s": sorted(rates[1:])[SCANS // 2]}


BENCH = Bench(
    "store scan",
    "Reading everything in the order of keys: one sstable, and the memtable merged with two levels.",
    {"scan_rows_per_s": Bar(30e6), "scan_merged_rows_per_s": Bar(8e6)},
    _run,
    {
        "read": "ours: numpy batches, one field of all rows added up; the peers: each pair as Python objects",
        "first": "checksums are proven, the memtable is sorted; the others find that done",
        "merged": "half of the rows in level 1, a quarter in level 0, a quarter in the memtable",
    },
    _run_peer,
)
