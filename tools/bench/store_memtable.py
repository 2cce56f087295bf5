"""What a row costs in the memtable alone, beside a plain skip list that takes the same rows."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ...storage._tree import KeyCodec, Memtable
from ._skip_list import SkipList
from .measuring import Bar, Bench, Figures, Plan
from .peer import Library
from .rows import NS, Rows, batches_of, clock
from .store_filling import memtable_bytes_for
from .store_rows import BATCH, SCHEMA, make_keys, make_rows
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["BENCH", "PlainSkipList"]

SINGLES_SHARE = 5  # of so many rows one more is inserted alone afterwards


class PlainSkipList(Library):
    """Not a library: LevelDB's structure in a page of C++, built with the package."""

    name, module = "skip_list", f"{__package__}._skip_list"


class _Takes(Protocol):
    def insert(self, rows: Rows) -> None: ...
    def __len__(self) -> int: ...


def _run(plan: Plan) -> Figures:
    return run_together(Job(_insert, (plan.rows, False)), seconds_max=300)[0]


def _run_peer(plan: Plan, peer: Any) -> Figures:
    if not issubclass(peer, PlainSkipList):
        return {}  # theirs cannot be had alone
    return run_together(Job(_insert, (plan.rows, True)), seconds_max=300)[0]


def _insert(stage: Stage, row_count: int, plain: bool) -> Figures:
    """A worker: all rows in batches, then some more one by one."""
    rows = make_rows(make_keys(row_count + row_count // SINGLES_SHARE))
    batches = batches_of(rows[:row_count], BATCH)
    singles = batches_of(rows[row_count:], 1)
    into: _Takes = SkipList(SCHEMA.dtype, "key") if plain else Memtable(KeyCodec(SCHEMA), memtable_bytes_for(len(rows)))
    insert, times_ns = into.insert, list[int]()
    stage.begin(settle=True)
    start = clock()
    for batch in batches:
        insert(batch)
    batches_ns = clock() - start
    for single in singles:
        start = clock()
        insert(single)
        times_ns.append(clock() - start)
    if len(into) != len(rows):
        raise BenchFailed(f"{len(rows)} rows were inserted, {len(into)} are there")
    return {
        "memtable_insert_p50_us": float(np.percentile(times_ns, 50)) / 1000,
        "memtable_insert_p99_us": float(np.percentile(times_ns, 99)) / 1000,
        "memtable_rows_per_s": row_count / batches_ns * NS,
    }


BENCH = Bench(
    "store memtable",
    "A memtable alone: one row at a time into all the others, and numpy batches; beside a plain skip list.",
    {"memtable_insert_p99_us": Bar(1), "memtable_rows_per_s": Bar(3e6)},
    _run,
    {
        "batch_rows": BATCH,
        "skip_list": "rows in the nodes, 12 levels, every fourth node a level higher, as LevelDB's",
        "order": "the memtable sorts when a scan or the flush asks for order, which is not in these figures",
    },
    _run_peer,
)
