"""What publishing one record of eight fields costs the publisher, nobody reading."""

from __future__ import annotations

from ...bus import Writer
from .measuring import Bar, Bench, Figures, Plan
from .rows import BLOCK, NS, SCHEMA, TOPIC, clock, fields_of, make_block
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]


def _run(plan: Plan) -> Figures:
    with bench_bus() as bus:
        (publish_ns,) = run_together(Job(_publish, (bus, plan.seconds), core=0), seconds_max=4 * plan.seconds)
    return {"publish_ns": publish_ns}


def _publish(stage: Stage, bus: str, seconds: float) -> float:
    """A worker: nanoseconds a call, the loop around it included."""
    values, count = fields_of(make_block()), 0
    with Writer(bus, [SCHEMA]) as writer:
        publish = writer[TOPIC].publish
        stage.begin(settle=True)
        start = now = clock()
        end = start + int(seconds * NS)
        while now < end:
            for fields in values:
                publish(*fields)
            count += BLOCK
            now = clock()
        if writer[TOPIC].watermarks.published != count:
            raise BenchFailed(f"{writer[TOPIC].watermarks.published} records were published, not {count}")
        return (now - start) / count


BENCH = Bench(
    "publish",
    "One publish call of 8 fields by position, nobody reading.",
    {"publish_ns": Bar(150)},
    _run,
    {"slots": 65_536, "log": "none"},
)
