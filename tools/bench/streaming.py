"""As many records as will go through: a publisher that never pauses, and subscribers that check what they get.

The clock runs from the first record's sending to the slowest subscriber's having the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ...bus import Writer
from ...subscribers import RealTime
from .rows import BLOCK, NS, SCHEMA, TOPIC, batches_of, clock, fields_of, make_block
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["Read", "Sent", "check", "publish_batches", "publish_ones", "read_batches", "stream"]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a publisher did. Times by `clock`; logged_ns, durable_ns: when the last record was, where the bus has a log."""

    count: int  # while the clock ran
    start_ns: int
    last_sequence: int
    logged_ns: int = 0
    durable_ns: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """What a subscriber got. `total` is of one field of every record, where it was to add them up."""

    count: int
    last_ns: int
    total: int = 0


def publish_ones(stage: Stage, bus: str, seconds: float, options: dict[str, Any]) -> Sent:
    """A worker: publish one record a call, from values made before."""
    values = fields_of(make_block())
    with Writer(bus, [SCHEMA], **options) as writer:
        publish, count = writer[TOPIC].publish, 0
        stage.begin(settle=True)
        start = clock()
        end = start + int(seconds * NS)
        while clock() < end:
            for fields in values:
                publish(*fields)
            count += BLOCK
        return _sent(writer, count, start)


def publish_batches(stage: Stage, bus: str, seconds: float, options: dict[str, Any], warm_up_bytes: int = 0) -> Sent:
    """A worker: publish batches of BATCH, from rows made before. `warm_up_bytes` go ahead and are not timed."""
    block = make_block()
    batches = batches_of(block)
    with Writer(bus, [SCHEMA], **options) as writer:
        topic, count = writer[TOPIC], 0
        publish_batch, durable = topic.publish_batch, options.get("sync") != "never"
        stage.begin(settle=True)
        for _ in range(warm_up_bytes // (BLOCK * SCHEMA.row_bytes)):
            for batch in batches:
                publish_batch(batch)
        before = topic.watermarks.published
        if before:
            topic.wait(before, "durable" if durable else "logged")
        start = clock()
        end = start + int(seconds * NS)
        while clock() < end:
            for batch in batches:
                publish_batch(batch)
            count += BLOCK
        if topic.watermarks.published != before + count:
            raise BenchFailed(f"{topic.watermarks.published - before} records were published, not {count}")
        return _sent(writer, count, start, durable)


def _sent(writer: Writer, count: int, start: int, durable: bool = True) -> Sent:
    topic = writer[TOPIC]
    last = topic.watermarks.published
    if writer.data_dir is None:
        return Sent(count, start, last)
    topic.wait(last, "logged")
    logged = clock()
    if durable:
        topic.wait(last, "durable")
    return Sent(count, start, last, logged, clock())


def read_batches(stage: Stage, bus: str, wait: Literal["spin", "yield"], add_up: bool) -> Read:
    """A worker: read reliably until the writer closes; check the first and last sequence of every batch."""
    with RealTime(f"{bus}/{TOPIC}", start="earliest", reliable=True, wait=wait, open_timeout=30) as subscriber:
        subscriber.poll()  # from here on it holds the writer back
        stage.begin()
        expected, total, last = 1, 0, 0
        for batch in subscriber:
            rows = batch.rows
            sequence = rows["sequence"]
            following = expected + len(rows)
            if sequence[0] != expected or sequence[-1] != following - 1:
                raise BenchFailed(
                    f"expected records {expected} to {following - 1}, got {sequence[0]} to {sequence[-1]}"
                )
            if add_up:
                total += int(rows["quantity"].sum())
            expected = following
            last = clock()
        return Read(expected - 1, last, total)


def stream(publisher: Any, seconds: float, *, subscriber_count: int = 1, add_up: bool = False) -> float:
    """Records a second through a bus without a log. `publisher`: publish_ones or publish_batches."""
    alone = subscriber_count == 1
    with bench_bus() as bus:
        sent, *read = run_together(
            Job(publisher, (bus, seconds, {}), core=0 if alone else None),
            *[Job(read_batches, (bus, "spin" if alone else "yield", add_up), core=1 if alone else None)]
            * subscriber_count,
            seconds_max=20 * seconds,
        )
    check(sent.last_sequence, read, add_up)
    return sent.count / (max(each.last_ns for each in read) - sent.start_ns) * NS


def check(count: int, read: list[Read], add_up: bool = False) -> None:
    """Raise BenchFailed unless every subscriber got exactly what was published."""
    for each in read:
        if each.count != count:
            raise BenchFailed(f"{count} records were published, a subscriber got {each.count}")
        if add_up and each.total != count // BLOCK * sum(range(BLOCK)):
            raise BenchFailed("the sum of a field is not what was published")
