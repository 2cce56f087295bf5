"""What one publish call takes with the log on: at a pace that the disk follows, and flat out."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from ...bus import Writer
from ...storage import LogReader
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, SCHEMA, TOPIC, clock, fields_of, make_block
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

RATE = 100_000  # records a second
CALLS_MAX = 4_000_000


def _run(plan: Plan) -> Figures:
    paced, flat_out = _times(plan, NS // RATE), _times(plan, 0)
    return {
        "append_p50_us": float(np.percentile(paced, 50)),
        "append_p99_us": float(np.percentile(paced, 99)),
        "append_p999_us": float(np.percentile(paced, 99.9)),
        "append_flat_out_p50_us": float(np.percentile(flat_out, 50)),
        "append_flat_out_p99_us": float(np.percentile(flat_out, 99)),
    }


def _times(plan: Plan, period_ns: int) -> Any:
    with bench_directory(plan) as directory, bench_bus() as bus:
        job = Job(_publish, (bus, plan.seconds, period_ns, directory), core=0)
        (times_us,) = run_together(job, seconds_max=4 * plan.seconds + 30)
        log = LogReader(f"{directory}/log", TOPIC)
        if log.read(len(times_us)) is None or log.read(len(times_us) + 1) is not None:
            raise BenchFailed(f"{len(times_us)} records were published, the log does not end there")
    return times_us


def _publish(stage: Stage, bus: str, seconds: float, period_ns: int, directory: str) -> Any:
    """A worker: microseconds of every call, two looks at the clock included."""
    values = fields_of(make_block())
    times_ns = array("q", bytes(8 * CALLS_MAX))
    with Writer(bus, [SCHEMA], data_dir=directory) as writer:
        publish, mask = writer[TOPIC].publish, len(values) - 1
        stage.begin(settle=True)
        due = clock()
        end, count = due + int(seconds * NS), 0
        while due < end and count < CALLS_MAX:
            fields = values[count & mask]
            while clock() < due:
                pass
            start = clock()
            publish(*fields)
            stop = clock()
            times_ns[count] = stop - start
            count += 1
            due = due + period_ns if period_ns else stop
    return np.array(times_ns[:count]) / 1000


BENCH = Bench(
    "append",
    "What one publish call takes with the journal running, at 100,000 records a second.",
    {"append_p99_us": Bar(10)},
    _run,
    {
        "slots": 65_536,
        "sync": "interval (1 ms)",
        "retention": "everything is kept",
        "rate_per_s": RATE,
        "pinned": "publisher 0, journal free",
    },
)
