"""How much goes through with the log on, and what it takes to know one record to be on the disk."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...bus import Writer
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .peer_mmbus import Mmbus
from .peer_streaming import peer_stream
from .rows import BATCH, NS, SCHEMA, TOPIC, clock, fields_of, make_block
from .streaming import Read, Sent, check, publish_batches, read_batches
from .workers import Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

RETENTION_BYTES = 256 << 20
WARM_UP_BYTES = 640 << 20  # behind this every file is a recycled one


def _run(plan: Plan) -> Figures:
    recycled = {"sync": "interval", "retention_bytes": RETENTION_BYTES}
    warm_up_bytes = WARM_UP_BYTES if plan.seconds >= 1 else 0
    logged, durable = _stream(plan, recycled, warm_up_bytes)
    logged_new, durable_new = _stream(plan, {"sync": "interval"}, 0)
    never_synced, _ = _stream(plan, {**recycled, "sync": "never"}, warm_up_bytes)
    one_us = _publish_one_by_one(plan)
    return {
        "logged_per_s": logged,
        "durable_per_s": durable,
        "logged_new_files_per_s": logged_new,
        "durable_new_files_per_s": durable_new,
        "logged_never_synced_per_s": never_synced,
        "durable_one_p50_us": float(np.percentile(one_us, 50)),
        "durable_one_p99_us": float(np.percentile(one_us, 99)),
    }


def _stream(plan: Plan, options: dict[str, Any], warm_up_bytes: int) -> tuple[float, float]:
    """(logged, durable) records a second, from the first's publishing to when the last is, and the subscriber has it too."""
    sent: Sent
    read: Read
    with bench_directory(plan) as directory, bench_bus() as bus:
        sent, read = run_together(
            Job(publish_batches, (bus, plan.seconds, {**options, "data_dir": directory}, warm_up_bytes), core=0),
            Job(read_batches, (bus, "spin", False), core=1),
            seconds_max=20 * plan.seconds + 30,
        )
    check(sent.last_sequence, [read])
    logged = sent.count / (max(sent.logged_ns, read.last_ns) - sent.start_ns) * NS
    return logged, sent.count / (max(sent.durable_ns, read.last_ns) - sent.start_ns) * NS


def _publish_one_by_one(plan: Plan) -> list[float]:
    with bench_directory(plan) as directory, bench_bus() as bus:
        job = Job(_publish_durably, (bus, plan.seconds, directory), core=0)
        return run_together(job, seconds_max=4 * plan.seconds)[0]


def _publish_durably(stage: Stage, bus: str, seconds: float, directory: str) -> list[float]:
    """A worker: publish a record, wait for the disk, and again; microseconds each."""
    values, times_us = fields_of(make_block()), list[float]()
    with Writer(bus, [SCHEMA], data_dir=directory, sync="always", retention_bytes=RETENTION_BYTES) as writer:
        topic = writer[TOPIC]
        stage.begin(settle=True)
        end = clock() + int(seconds * NS)
        while (start := clock()) < end:
            topic.wait(topic.publish(*values[len(times_us) % len(values)]), "durable")
            times_us.append((clock() - start) / 1000)
    return times_us


def _run_peer(plan: Plan, peer: type[Mmbus]) -> Figures:
    return {"logged_per_s": peer_stream(peer(batches=True, logging=True, directory=plan.directory), plan.seconds)}


BENCH = Bench(
    "log",
    "The log on: batches of 64 with a subscriber reading, and single records of which each is waited for until it is durable.",
    {"logged_per_s": Bar(5e6), "durable_per_s": Bar(3e6), "durable_one_p50_us": Bar(250)},
    _run,
    {
        "slots": 65_536,
        "batch_rows": BATCH,
        "sync": "interval (1 ms) where not named otherwise; durable_one: always",
        "log_file_bytes": 64 << 20,
        "retention": f"{RETENTION_BYTES >> 20} MiB, so that files are recycled; new_files: everything is kept",
        "warm_up": f"{WARM_UP_BYTES >> 20} MiB before the clock starts, where files are recycled",
        "wait": "spin",
        "reliable": True,
        "pinned": "publisher 0, subscriber 1, journal free",
        "mmbus": "its write-ahead log on, which it syncs now and then",
    },
    _run_peer,
    Mmbus,  # the others write no log
)
