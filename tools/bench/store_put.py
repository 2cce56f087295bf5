"""What storing takes: one row a call, batches, and batches of which each is on the disk before the next."""

from __future__ import annotations

from typing import Any

from ...storage.store import Store
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, batches_of, clock
from .store_filling import check_stored
from .store_peer import MEMTABLE_BYTES, StorePeer
from .store_rows import BATCH, PEER_VALUES, SCHEMA, TOPIC, VALUES, make_keys, make_payloads, pairs_of
from .store_timing import percentiles, time_puts
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["BENCH"]

DURABLE_ROWS_MAX = 400_000


def _run(plan: Plan) -> Figures:
    figures: Figures = {}
    durable_rows = min(plan.rows, DURABLE_ROWS_MAX)
    for job, row_count in ((_put_ones, plan.rows), (_put_batches, plan.rows), (_put_durable_batches, durable_rows)):
        with bench_directory(plan) as directory:
            figures |= run_together(Job(job, (directory, row_count)), seconds_max=300)[0]
    return figures


def _put_ones(stage: Stage, directory: str, row_count: int) -> Figures:
    keys = make_keys(row_count)
    with Store(directory, [SCHEMA], sync="never") as store:
        stage.begin(settle=True)
        figures = percentiles("put", time_puts(store[TOPIC].put, pairs_of(keys, VALUES)))
        check_stored(store, keys)
    return figures


def _put_batches(stage: Stage, directory: str, row_count: int) -> Figures:
    return {"put_batch_rows_per_s": _batch_rate(stage, directory, row_count, durable=False)}


def _put_durable_batches(stage: Stage, directory: str, row_count: int) -> Figures:
    return {"durable_batch1000_rows_per_s": _batch_rate(stage, directory, row_count, durable=True)}


def _batch_rate(stage: Stage, directory: str, row_count: int, *, durable: bool) -> float:
    keys = make_keys(row_count)
    batches = batches_of(make_payloads(keys), BATCH)
    with Store(directory, [SCHEMA], sync="always" if durable else "never") as store:
        put_batch = store[TOPIC].put_batch
        stage.begin(settle=True)
        start = clock()
        for batch in batches:
            put_batch(batch)
        seconds = (clock() - start) / NS
        check_stored(store, keys)
    return row_count / seconds


def _run_peer(plan: Plan, peer: Any) -> Figures:
    if not issubclass(peer, StorePeer):
        return {}
    figures: Figures = {}
    durable_rows = min(plan.rows, DURABLE_ROWS_MAX)
    for name, row_count, durable in (
        ("put", plan.rows, False),
        ("put_batch_rows_per_s", plan.rows, False),
        ("durable_batch1000_rows_per_s", durable_rows, True),
    ):
        with bench_directory(plan) as directory:
            job = Job(_put_peer, (peer, directory, row_count, name, durable))
            figures |= run_together(job, seconds_max=300)[0]
    return figures


def _put_peer(stage: Stage, peer: type[StorePeer], directory: str, row_count: int, name: str, durable: bool) -> Figures:
    keys = make_keys(row_count)
    store = peer(directory, durable=durable)
    if name == "put":
        stage.begin(settle=True)
        figures = percentiles(name, time_puts(store.put, pairs_of(keys, PEER_VALUES)))
    else:
        pairs = list(pairs_of(keys, PEER_VALUES))
        batches = [pairs[at : at + BATCH] for at in range(0, row_count, BATCH)]
        stage.begin(settle=True)
        start = clock()
        for batch in batches:
            store.put_batch(batch)
        figures = {name: row_count / (clock() - start) * NS}
    store.begin_reading()
    if store.get(keys[-1]) is None:
        raise BenchFailed("the last key put is not there")
    store.close()
    return figures


BENCH = Bench(
    "store put",
    "Putting rows with the log on: one a call and batches, unsynced; batches of 1,000, each synced.",
    {
        "put_p50_us": Bar(0.6),
        "put_p99_us": Bar(3),
        "put_batch_rows_per_s": Bar(3e6),
        "durable_batch1000_rows_per_s": Bar(2e6),
    },
    _run,
    {
        "batch_rows": BATCH,
        "sync": "never; durable: each batch before the call returns. The same of the peers",
        "durable_rows": f"{DURABLE_ROWS_MAX} at most",
        "memtable_bytes": MEMTABLE_BYTES,
        "row": "16 bytes of key, 128 in all; a peer's value is 112 bytes",
    },
    _run_peer,
)
