"""How fast a subscriber that is far behind catches up with a publisher that goes on, from the log into the ring."""

from __future__ import annotations

import time

from ...bus import Overrun, Writer
from ...subscribers import RealTime
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import BATCH, BLOCK, NS, SCHEMA, TOPIC, clock, make_block
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

BEHIND, BEHIND_PER_S = 10_000_000, 3_333_334  # rows; and for every second of a measurement, where that is less
RATE = 500_000  # rows a second that arrive meanwhile
PATIENCE_PER_S = 2_000_000  # they arrive for as long as a subscriber would need that is so fast, and a little longer
OPEN_S = 30.0


def _run(plan: Plan) -> Figures:
    behind = -(-min(BEHIND, int(plan.seconds * BEHIND_PER_S)) // BLOCK) * BLOCK
    arriving = -(-int(RATE * (behind / PATIENCE_PER_S + 0.2)) // BATCH) * BATCH
    with bench_bus() as bus, bench_directory(plan) as directory:
        _, (read, caught_up, seconds) = run_together(
            Job(_publish, (bus, directory, behind, arriving)), Job(_catch_up, (bus,)), seconds_max=600
        )
    if read != behind + arriving:
        raise BenchFailed(f"{behind + arriving} records were published, the subscriber got {read}")
    return {"catchup_rows_per_s": caught_up / seconds}


def _publish(stage: Stage, bus: str, directory: str, behind: int, arriving: int) -> None:
    """A worker: what lies behind, all in the log, and then a steady stream."""
    block = make_block()
    with Writer(bus, [SCHEMA], data_dir=directory) as writer:
        topic = writer[TOPIC]
        for _ in range(0, behind, BLOCK):
            topic.publish_batch(block)
        topic.wait(behind, "durable")
        stage.begin(settle=True)
        start = clock()
        for at in range(0, arriving, BATCH):
            while (early_s := at / RATE - (clock() - start) / NS) > 0:
                time.sleep(early_s)
            topic.publish_batch(block[at % BLOCK : at % BLOCK + BATCH])


def _catch_up(stage: Stage, bus: str) -> tuple[int, int, float]:
    """A worker: records read in all; and how many when nothing more was behind, after how many seconds."""
    total = caught_up = position = 0
    seconds = 0.0
    with RealTime(f"{bus}/{TOPIC}", start="earliest", open_timeout=OPEN_S) as subscriber:
        stage.begin(settle=True)
        start = clock()
        for batch in subscriber:
            try:
                rows = batch.rows
                numbers, summed = (int(rows["quantity"][0]), int(rows["quantity"][-1])), int(rows["price"].sum())
                batch.validate()
            except Overrun:
                continue  # it comes again, from the log
            expected = (batch.first - 1) % BLOCK, (batch.last - 1) % BLOCK
            if batch.first != position + 1 or batch.lost or numbers != expected or summed < 18_250_000 * len(batch):
                raise BenchFailed(f"a gap, a repeat or a wrong row between {position} and {batch.last}")
            position = batch.last
            total += len(batch)
            if not caught_up and subscriber.newest == position:
                caught_up, seconds = total, (clock() - start) / NS
    return total, caught_up or total, seconds or (clock() - start) / NS


BENCH = Bench(
    "catchup",
    "A subscriber that begins 10 million records behind while 500,000 a second arrive, until it has read all that is there.",
    {"catchup_rows_per_s": Bar(5e6)},
    _run,
    {
        "behind": f"{BEHIND}, or {BEHIND_PER_S} for each second where that is less",
        "arriving_per_s": RATE,
        "read": "one field of every row summed, order and gaps checked",
        "cache": "warm",
    },
)
