"""How fast a killed writer's log is read and proven when it is opened again."""

from __future__ import annotations

import signal

import numpy as np

from ...bus import Writer
from ...storage import Log
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, SCHEMA, TOPIC, clock, make_block
from .workers import BenchFailed, Job, Stage, bench_bus, run_and_kill

__all__ = ["BENCH"]

LOG_BYTES = 1 << 30


def _run(plan: Plan) -> Figures:
    log_bytes = LOG_BYTES if plan.seconds >= 1 else int(LOG_BYTES * plan.seconds)
    with bench_directory(plan) as directory, bench_bus() as bus:
        written = run_and_kill(Job(_write, (bus, directory, log_bytes // SCHEMA.row_bytes)), seconds_max=120)
        start = clock()
        log = Log(f"{directory}/log", [SCHEMA], bus=bus)
        seconds = (clock() - start) / NS
        log.close()
        if log.recovered.record_count != written:
            raise BenchFailed(f"{written} records were logged before the kill, {log.recovered.record_count} after it")
    return {"recover_gb_per_s": log.recovered.checked_bytes / seconds / 1e9, "recover_seconds": seconds}


def _write(stage: Stage, bus: str, directory: str, count: int) -> None:
    """A worker, which is killed after its report."""
    rows = np.resize(make_block(), 1 << 14)
    with Writer(bus, [SCHEMA], data_dir=directory) as writer:
        topic = writer[TOPIC]
        while topic.watermarks.published < count:
            topic.publish_batch(rows)
        topic.wait(topic.watermarks.published, "durable")
        stage.report(topic.watermarks.published)
        signal.pause()


BENCH = Bench(
    "recover",
    "Opening the log again after SIGKILL, 1 GiB in it, in the page cache, every checksum proven.",
    {"recover_gb_per_s": Bar(2)},
    _run,
    {"log_bytes": LOG_BYTES, "log_file_bytes": 64 << 20, "cache": "warm"},
)
