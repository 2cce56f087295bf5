"""How many rows a delayed subscriber takes in, how late its batches are, and what its waiting costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...bus import Writer
from ...subscribers import Delayed, ohlcv
from .measuring import Bar, Bench, Figures, Plan
from .rows import BATCH, BLOCK, NS, SCHEMA, TOPIC, Rows, batches_of, clock, make_block
from .streaming import Read, Sent
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

INTERVAL_S = 0.1
KEYS = 1_000
RATE = 1_000  # records a second where lateness is measured
INTERVALS_MIN = 5
KINDS: dict[str, dict[str, Any]] = {"conflate": {"last": "instrument"}, "ohlcv": {"reduce": ohlcv()}, "gather": {}}


def _run(plan: Plan) -> Figures:
    figures = {f"{kind}_rows_per_s": _stream(plan.seconds, kind) for kind in KINDS}
    seconds = max(plan.seconds, INTERVALS_MIN * INTERVAL_S)
    with bench_bus() as bus:
        _, (late_us, busy_s) = run_together(
            Job(_publish_slowly, (bus, seconds)), Job(_read_lateness, (bus,)), seconds_max=4 * seconds
        )
    with bench_bus() as bus:
        _, idle_s = run_together(
            Job(_publish_nothing, (bus, plan.seconds)), Job(_read_nothing, (bus, plan.seconds)), seconds_max=4 * seconds
        )
    return figures | {
        "late_p50_us": float(np.percentile(late_us, 50)),
        "late_p99_us": float(np.percentile(late_us, 99)),
        "waiting_cpu_percent": 100 * busy_s / seconds,
        "idle_cpu_percent": 100 * idle_s / plan.seconds,
    }


def _stream(seconds: float, kind: str) -> float:
    with bench_bus() as bus:
        sent, read = run_together(
            Job(_publish, (bus, seconds), core=0), Job(_read, (bus, kind), core=1), seconds_max=20 * seconds
        )
    if read.count != sent.count:
        raise BenchFailed(f"{sent.count} records were published, the subscriber took {read.count} in")
    return sent.count / (read.last_ns - sent.start_ns) * NS


def _many_keys() -> list[Rows]:
    block = make_block()
    block["instrument"] = np.arange(BLOCK) * 7 % KEYS
    return batches_of(block)


def _publish(stage: Stage, bus: str, seconds: float) -> Sent:
    """A worker: publish batches of BATCH without a pause."""
    with Writer(bus, [SCHEMA]) as writer:
        batches, publish_batch, count = _many_keys(), writer[TOPIC].publish_batch, 0
        stage.begin(settle=True)
        start = clock()
        end = start + int(seconds * NS)
        while clock() < end:
            for batch in batches:
                publish_batch(batch)
            count += BLOCK
        return Sent(count, start, writer[TOPIC].watermarks.published)


def _read(stage: Stage, bus: str, kind: str) -> Read:
    """A worker: hold the writer back; check that every row was taken in, and that each batch has every key's newest row."""
    with Delayed(
        f"{bus}/{TOPIC}", INTERVAL_S, start="earliest", reliable=True, open_timeout=30, **KINDS[kind]
    ) as subscriber:
        subscriber.poll()
        stage.begin()
        expected = 1
        for batch in subscriber:
            if batch.first != expected or batch.lost:
                raise BenchFailed(f"expected record {expected}, got {batch}")
            rows = batch.rows
            if kind == "gather" and len(rows) != batch.last - batch.first + 1:
                raise BenchFailed(f"{len(rows)} rows in {batch}")
            if kind != "gather" and (int(rows["sequence"][-1]) != batch.last or len(rows) > KEYS):
                raise BenchFailed(f"{len(rows)} keys in {batch}, the newest of {rows['sequence'][-1]}")
            expected = batch.last + 1
        return Read(expected - 1, clock())


def _publish_slowly(stage: Stage, bus: str, seconds: float) -> None:
    with Writer(bus, [SCHEMA]) as writer:
        publish_batch, batch = writer[TOPIC].publish_batch, _many_keys()[0][:1]
        stage.begin(settle=True)
        start = clock()
        for number in range(int(seconds * RATE)):
            publish_batch(batch)
            time.sleep(max(0.0, (start - clock()) / NS + (number + 1) / RATE))


def _read_lateness(stage: Stage, bus: str) -> tuple[list[float], float]:
    """A worker: how long after its interval's end each batch came, in µs, and the CPU seconds that took."""
    with Delayed(f"{bus}/{TOPIC}", INTERVAL_S, last="instrument", open_timeout=30) as subscriber:
        subscriber.poll()
        stage.begin()
        before = time.process_time()
        late_us = [subscriber.stats.lateness_ns_last / 1000 - INTERVAL_S * 1e6 for _ in subscriber]
        busy_s = time.process_time() - before
    return late_us[:-1], busy_s  # the last one came when the writer closed


def _publish_nothing(stage: Stage, bus: str, seconds: float) -> None:
    with Writer(bus, [SCHEMA]):
        stage.begin(settle=True)
        time.sleep(seconds)


def _read_nothing(stage: Stage, bus: str, seconds: float) -> float:
    """A worker: CPU seconds of waiting for a row that never comes."""
    with Delayed(f"{bus}/{TOPIC}", INTERVAL_S, last="instrument", open_timeout=30) as subscriber:
        subscriber.poll()
        stage.begin(settle=True)
        before = time.process_time()
        if subscriber.take(seconds) is not None:
            raise BenchFailed("a record came that nobody had published")
        return time.process_time() - before


BENCH = Bench(
    "delayed",
    "Batches every 100 ms, of 1,000 keys: rows taken in (newest of each key; bars; all copied), lateness, CPU time of waiting.",
    {"conflate_rows_per_s": Bar(20e6), "idle_cpu_percent": Bar(0, slack=0.05)},
    _run,
    {
        "slots": 65_536,
        "log": "none",
        "batch_rows": BATCH,
        "keys": KEYS,
        "interval_s": INTERVAL_S,
        "late_rate_per_s": RATE,
        "reliable": "where rows are counted",
        "pinned": "publisher 0, subscriber 1, where rows are counted",
    },
)
