"""What it costs to keep a position on the disk while reading, and how fast a group shares its work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, cycle, permutations
from statistics import median

import numpy as np

from ...bus import Writer
from ...subscribers import Acknowledged, Historical, Resumable
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import BLOCK, NS, SCHEMA, TOPIC, clock, make_block
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

EVERY_S = 0.01
BATCH_ROWS = 1000
MEMBERS = 2
ROWS_A_SECOND = 2_000_000  # of the measurement's length
READ_ROWS = 2048 * BLOCK  # at most, in one reading: short ones side by side meet the same machine


def _run(plan: Plan) -> Figures:
    with bench_directory(plan) as directory, bench_bus() as bus:
        overhead, noise, checkpoint_us = run_together(
            Job(_read_over_and_over, (bus, plan.seconds, directory)), seconds_max=30 * plan.seconds + 30
        )[0]
    with bench_directory(plan) as directory, bench_bus() as bus:
        rows_per_s, *shares = run_together(
            Job(_wait_for_group, (bus, plan.seconds, directory)),
            *[Job(_work, (bus,))] * MEMBERS,
            seconds_max=60 * plan.seconds + 30,
        )
    if sum(shares) < _row_count(plan.seconds):
        raise BenchFailed(f"{_row_count(plan.seconds)} records were published, the members got {sum(shares)}")
    return {
        "checkpoint_overhead_percent": overhead,
        "checkpoint_noise_percent": noise,
        "checkpoint_p50_us": checkpoint_us,
        f"group{MEMBERS}_rows_per_s": rows_per_s,
    }


def _row_count(seconds: float) -> int:
    return max(1, int(seconds * ROWS_A_SECOND / BLOCK)) * BLOCK


def _publish(writer: Writer, row_count: int) -> int:
    """Publish, until all of it is on the disk. Returns the last sequence."""
    block, last = make_block(), 0
    for _ in range(row_count // BLOCK):
        last = writer[TOPIC].publish_batch(block)
    writer[TOPIC].wait(last, "durable")
    return last


# --- a position -----------------------------------------------------------------------------------------------------


def _read_over_and_over(stage: Stage, bus: str, seconds: float, directory: str) -> tuple[float, float, float]:
    """A worker: (percent, percent, us). Read the log without a position, without one again, and with one, in every order by turns:
    what a position costs, against the mean of both others, and how far these are apart. Then store one position after the other.
    """
    with Writer(bus, [SCHEMA], data_dir=directory) as writer:
        address, last = f"{bus}/{TOPIC}", _publish(writer, min(READ_ROWS, _row_count(seconds)))
        numbers = count()
        kinds: dict[str, Callable[[], int]] = {
            "plain": lambda: _read_plainly(address, last),
            "again": lambda: _read_plainly(address, last),
            "kept": lambda: _read_with_position(address, f"n{next(numbers)}", last),
        }
        stage.begin()
        overheads: list[float] = []
        differences: list[float] = []
        end = clock() + int(10 * seconds * NS)
        for order in cycle(permutations(kinds)):
            took_ns = {kind: kinds[kind]() for kind in order}
            overheads.append(2 * took_ns["kept"] / (took_ns["plain"] + took_ns["again"]) - 1)
            differences.append(took_ns["again"] / took_ns["plain"] - 1)
            if clock() >= end:
                break
        overhead, noise = max(0.0, 100 * median(overheads)), abs(100 * median(differences))
        return overhead, noise, _store_one_by_one(address, seconds)


def _read_plainly(address: str, last: int) -> int:
    with Historical(address, start=1, live=True) as plain:
        return _read_all(plain, last)


def _read_with_position(address: str, name: str, last: int) -> int:
    kept: Resumable[bytes] = Resumable(address, name, start=1, every=EVERY_S)
    with kept:
        kept.sync()  # the first one makes the file
        return _read_all(kept, last)


def _read_all(reader: Historical | Resumable[bytes], last: int) -> int:
    """Add up a field of every record; how long it took, in ns."""
    total, position, start = 0, 0, clock()
    while position < last:
        batch = reader.poll()
        if batch is None:
            continue
        total += int(batch.rows["quantity"].sum())
        position = batch.last
    took = clock() - start
    if total != last // BLOCK * sum(range(BLOCK)):
        raise BenchFailed("the sum of a field is not what was published")
    return took


def _store_one_by_one(address: str, seconds: float) -> float:
    """Median time until a position is on the disk, in us."""
    times_us: list[float] = []
    with Resumable(address, "one-by-one", start=1, every=1e-6, state=bytes, batch_rows=1) as reader:
        reader.sync()
        end = clock() + int(seconds * NS / 4)
        while clock() < end and reader.poll() is not None:
            start = clock()
            reader.commit(b"a state of 16 B.")
            reader.sync()
            times_us.append((clock() - start) / 1000)
    return float(np.percentile(times_us, 50))


# --- a group --------------------------------------------------------------------------------------------------------


def _wait_for_group(stage: Stage, bus: str, seconds: float, directory: str) -> float:
    """A worker: let the members work on what was published; rows a second until all is acknowledged."""
    with Writer(bus, [SCHEMA], data_dir=directory) as writer:
        last = _publish(writer, _row_count(seconds))
        stage.begin()
        start = clock()
        writer[TOPIC].wait(last, acknowledged_by=["group"])
        return last / (clock() - start) * NS


def _work(stage: Stage, bus: str) -> int:
    """A worker: a member of the group; how many rows it got."""
    with Acknowledged(f"{bus}/{TOPIC}", "group", start=1, batch_rows=BATCH_ROWS, open_timeout=60) as member:
        stage.begin()
        for batch in member:
            member.ack(batch)
        return member.stats.read_count


BENCH = Bench(
    "resumable",
    "A position on the disk every 10 ms while a log is read, against none; two members of a group that share one.",
    {"checkpoint_overhead_percent": Bar(2)},
    _run,
    {
        "every_s": EVERY_S,
        "batch_rows": f"as they come from the log; in the group at most {BATCH_ROWS}",
        "rows_read": f"{READ_ROWS} from the log each time; by the group {ROWS_A_SECOND} for each second of the measurement",
        "noise": "how far two readings without a position are apart",
        "members": MEMBERS,
        "group": "batches, each acknowledged by one call",
    },
)
