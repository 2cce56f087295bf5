"""How soon a record is with a subscriber that another process publishes through a lane, and how much four lanes carry."""

from __future__ import annotations

import os
import time

import numpy as np

from ...bus import Writer, attach, open_lane
from ...bus.segments import list_lanes
from ...subscribers import RealTime
from .measuring import Bar, Bench, Figures, Plan
from .rows import BATCH, BLOCK, NS, SCHEMA, TOPIC, batches_of, clock, make_block
from .streaming import read_batches
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

RATE = 10_000  # records a second
PERIOD_NS = NS // RATE
REST = (3, 17, b"600519.SH", b"limit order, good for the day")  # of a record's fields
APART = (os.cpu_count() or 1) > 3
LOOK_S = 0.25  # between the writer's looks at how far it is: each may take the core from its drain for some 100 us
WARM_UP = 200  # records whose times do not count
LANES = 4
OPEN_S = 30


def _run(plan: Plan) -> Figures:
    times_us = np.array(_latencies_ns(plan.seconds)[WARM_UP:]) / 1000
    p50, p99 = np.percentile(times_us, [50, 99]).tolist()
    return {"lane_p50_us": p50, "lane_p99_us": p99, "lanes4_rows_per_s": _throughput(plan.seconds)}


# --- latency ----------------------------------------------------------------------------------------------------------
# Three parties are at work at once: a publisher, the writer's drain and a subscriber. Where there are fewer cores than that, one
# process publishes and then waits for its record as a subscriber: anything else would measure the scheduler.


def _latencies_ns(seconds: float) -> list[int]:
    count = max(2 * WARM_UP, int(seconds * RATE))
    with bench_bus() as bus:
        if APART:
            jobs = [
                Job(_write, (bus, count), core=2),
                Job(_publish_paced, (bus, count), core=0),
                Job(_time, (bus, count), core=1),
            ]
        else:
            jobs = [Job(_write, (bus, count), core=1), Job(_publish_and_time, (bus, count), core=0)]
        return run_together(*jobs, seconds_max=4 * seconds)[-1]


def _write(stage: Stage, bus: str, count: int) -> None:
    """A worker: hold the bus open until so many records are in its topic. Its drain thread does the work, on this worker's core."""
    stage.pin()
    with Writer(bus, [SCHEMA], lanes=[TOPIC]):
        topic = attach(f"{bus}/{TOPIC}")
        stage.begin()
        while topic.watermarks().published < count:
            time.sleep(LOOK_S)


def _publish_paced(stage: Stage, bus: str, count: int) -> None:
    with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA, open_timeout=OPEN_S) as lane:
        publish = lane.publish
        stage.begin(settle=True)
        due = clock()
        for number in range(count):
            due += PERIOD_NS
            while clock() < due:
                pass
            publish(600_519, clock(), 100, number, *REST)


def _time(stage: Stage, bus: str, count: int) -> list[int]:
    times: list[int] = []
    with RealTime(f"{bus}/{TOPIC}", start="earliest", reliable=True, wait="spin", open_timeout=OPEN_S) as subscriber:
        subscriber.poll()
        stage.begin()
        for batch in subscriber:
            now = clock()
            times += [now - sent for sent in batch.rows["price"].tolist()]
            if len(times) == count:
                break
    if len(times) != count:
        raise BenchFailed(f"{count} records were published, the subscriber got {len(times)}")
    return times


def _publish_and_time(stage: Stage, bus: str, count: int) -> list[int]:
    times: list[int] = []
    with (
        open_lane(f"{bus}/{TOPIC}", schema=SCHEMA, open_timeout=OPEN_S) as lane,
        RealTime(f"{bus}/{TOPIC}", start="earliest", reliable=True, wait="spin", open_timeout=OPEN_S) as subscriber,
    ):
        publish, take = lane.publish, subscriber.take
        subscriber.poll()
        stage.begin(settle=True)
        due = clock()
        for number in range(count):
            due += PERIOD_NS
            while clock() < due:
                pass
            sent = clock()
            publish(600_519, sent, 100, number, *REST)
            batch = take(OPEN_S)
            times.append(clock() - sent)
            if batch is None or batch.rows["price"].tolist() != [sent]:
                raise BenchFailed(f"record {number} came as {batch}")
    return times


# --- throughput -------------------------------------------------------------------------------------------------------


def _throughput(seconds: float) -> float:
    """Records a second that four processes publish, until a subscriber has the last."""
    with bench_bus() as bus:
        _, read, *sent = run_together(
            Job(_write_until_left, (bus,)),
            Job(read_batches, (bus, "yield", False)),
            *[Job(_publish_batches, (bus, seconds))] * LANES,
            seconds_max=20 * seconds,
        )
    count, start_ns = sum(each[0] for each in sent), min(each[1] for each in sent)
    if read.count != count:
        raise BenchFailed(f"{count} records were published, the subscriber got {read.count}")
    return count / (read.last_ns - start_ns) * NS


def _write_until_left(stage: Stage, bus: str) -> None:
    """A worker: hold the bus open until the lanes' publishers have come and gone. Closing drains what is left."""
    with Writer(bus, [SCHEMA], lanes=[TOPIC]):
        stage.begin()
        while not list_lanes(bus, TOPIC):
            time.sleep(0.01)
        while list_lanes(bus, TOPIC):
            time.sleep(LOOK_S)


def _publish_batches(stage: Stage, bus: str, seconds: float) -> tuple[int, int]:
    """A worker: publish batches of BATCH; how many records, and when it began."""
    block = make_block()
    batches = batches_of(block)
    with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA, open_timeout=OPEN_S) as lane:
        publish_batch, count = lane.publish_batch, 0
        stage.begin(settle=True)
        start = clock()
        end = start + int(seconds * NS)
        while clock() < end:
            for batch in batches:
                publish_batch(batch)
            count += BLOCK
        return count, start


BENCH = Bench(
    "lanes",
    "Through the writer to a subscriber: another process at 10,000 records a second; and four that never pause, in batches of 64.",
    {"lane_p50_us": Bar(3), "lane_p99_us": Bar(20), "lanes4_rows_per_s": Bar(5e6)},
    _run,
    {
        "slots": 65_536,
        "lane_slots": 16_384,
        "log": "none",
        "rate_per_s": RATE,
        "batch_rows": BATCH,
        "reliable": True,
        "wait": "spin for latency, yield for lanes4",
        "latency_processes": "publisher, writer, subscriber" if APART else "publisher with subscriber, writer",
        "latency_cores": "one for each process",
    },
    between_cores=True,
)
