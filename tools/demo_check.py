"""What the demo proves, from the log that is left: nothing lost, nothing twice, nothing altered, and by whom it was read.

The order flow follows from the seed alone, so it is computed anew and compared with the log record by record; what each
subscriber read is compared with the log by its own count, sequences and checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ..subscribers import Historical
from .demo_play import Outcome
from .demo_publisher import SCHEMAS
from .demo_subscribers import TAPE
from .exchange import Exchange

__all__ = ["ReaderSummary", "Summary", "check"]

Rows = npt.NDArray[np.void]

STEP_EVENTS = 10_000
STAMP_FIELDS = ("sequence", "timestamp_ns")


class ReaderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one subscriber read of one topic."""

    name: str
    topic: str
    read_count: int
    from_log_count: int
    gap_count: int
    repeat_count: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The demo's result. Counts are of records."""

    ok: bool
    problems: list[str]
    seconds: float
    published: dict[str, int]  # by topic
    published_count: int
    published_per_s: float  # while a publisher was publishing
    recovered_from_log_count: int
    recovered_from_rings_count: int
    lost_count: int
    outage_s: float  # from the killed publisher's last record to the next one's first
    readers: list[ReaderSummary]
    gap_count: int
    repeat_count: int


class LogTopic:
    """One topic's records in the log, taken in order, and what is to be known of them afterwards."""

    def __init__(self, address: str, data_dir: Path) -> None:
        self.count = self.gap_count = self.repeat_count = self.digest = self.volume = self._last = 0
        self._batches = iter(Historical(address, data_dir=data_dir))
        self._rows: Rows | None = None

    def take(self, count: int) -> list[Rows]:
        """The next `count` records, or as many as there are."""
        parts: list[Rows] = []
        while count > 0:
            if self._rows is None or not len(self._rows):
                batch = next(self._batches, None)
                if batch is None:
                    break
                self._rows = batch.rows
            part, self._rows = self._rows[:count], self._rows[count:]
            self._account(part)
            parts.append(part)
            count -= len(part)
        return parts

    def _account(self, rows: Rows) -> None:
        steps = np.diff(rows["sequence"].astype(np.int64), prepend=self._last)
        self.gap_count += int((steps[steps > 1] - 1).sum())
        self.repeat_count += int((steps < 1).sum())
        self._last = int(rows["sequence"][-1])
        self.count += len(rows)
        self.digest = zlib.crc32(rows.tobytes(), self.digest)
        if "quantity" in (rows.dtype.names or ()):
            self.volume += int(rows["quantity"].sum())


def check(bus: str, data_dir: Path, seed: int, outcome: Outcome, progress: Callable[[float], None]) -> Summary:
    """Compare everything with everything. progress: called with the part that is done, 0 to 1."""
    problems: list[str] = []
    first, second = outcome.publishers
    published = second.published
    lost_count = sum(max(0, last - second.opened_at[topic]) for topic, last in outcome.killed_at.items())
    for topic, last in outcome.killed_at.items():
        if second.opened_at[topic] != last:
            problems.append(
                f"{topic}: {last:,} records were published before the kill, {second.opened_at[topic]:,} after"
            )
        if first.published[topic] > last:
            problems.append(
                f"{topic}: the killed publisher told of {first.published[topic]:,} records, its ring of {last:,}"
            )
    log = {schema.name: LogTopic(f"{bus}/{schema.name}", data_dir) for schema in SCHEMAS}
    stamps = _compare_with_exchange(log, seed, [second.opened_at, published], problems, progress)
    for topic, kept in log.items():
        if extra := sum(map(len, kept.take(1 << 62))):
            problems.append(f"{topic}: the log holds {extra:,} records more than were published")
        if kept.gap_count or kept.repeat_count:
            problems.append(f"{topic}: {kept.gap_count:,} gaps and {kept.repeat_count:,} repeats in the log")
    readers = _check_readers(outcome, log, published, problems)
    (begin_ns, killed_ns), (again_ns, end_ns) = stamps
    return Summary(
        ok=not problems,
        problems=problems,
        seconds=round(outcome.seconds, 3),
        published=published,
        published_count=sum(published.values()),
        published_per_s=round(sum(published.values()) * 1e9 / max(1, killed_ns - begin_ns + end_ns - again_ns), 1),
        recovered_from_log_count=second.from_log_count,
        recovered_from_rings_count=second.from_rings_count,
        lost_count=lost_count,
        outage_s=round((again_ns - killed_ns) / 1e9, 4),
        readers=readers,
        gap_count=sum(reader.gap_count for reader in readers) + sum(kept.gap_count for kept in log.values()),
        repeat_count=sum(reader.repeat_count for reader in readers) + sum(kept.repeat_count for kept in log.values()),
    )


def _compare_with_exchange(
    log: dict[str, LogTopic],
    seed: int,
    session_ends: list[dict[str, int]],
    problems: list[str],
    progress: Callable[[float], None],
) -> list[tuple[int, int]]:
    """Hold the log against the order flow computed anew; gives the time stamps of each session's first and last record."""
    total = sum(session_ends[-1].values())
    different = dict.fromkeys(log, 0)
    stamps: list[tuple[int, int]] = []
    done = dict.fromkeys(log, 0)
    for session, ends in enumerate(session_ends):
        exchange, begin_ns, end_ns = Exchange(seed, session=session), 1 << 63, 0
        while any(done[topic] < ends[topic] for topic in log):
            for topic, expected in exchange.step(STEP_EVENTS).items():
                expected = expected[: ends[topic] - done[topic]]
                done[topic] += len(expected)
                place = 0
                for rows in log[topic].take(len(expected)):
                    same = np.ones(len(rows), np.bool_)
                    for name in expected.dtype.names or ():
                        equal = rows[name] == expected[name][place : place + len(rows)]
                        same &= equal.all(axis=1) if equal.ndim > 1 else equal
                    place += len(rows)
                    different[topic] += int((~same).sum())
                    begin_ns = min(begin_ns, int(rows["timestamp_ns"][0]))
                    end_ns = max(end_ns, int(rows["timestamp_ns"][-1]))
                different[topic] += len(expected) - place
            progress(sum(done.values()) / max(1, total))
        stamps.append((min(begin_ns, end_ns), end_ns))
    problems += [
        f"{topic}: {count:,} records are missing from the log or are not what the exchange made"
        for topic, count in different.items()
        if count
    ]
    return stamps


def _check_readers(
    outcome: Outcome, log: dict[str, LogTopic], published: dict[str, int], problems: list[str]
) -> list[ReaderSummary]:
    readers: list[ReaderSummary] = []
    for name, report in outcome.subscribers.items():
        for topic in report.topics:
            readers.append(
                ReaderSummary(
                    name=name,
                    topic=topic.topic,
                    read_count=topic.read_count,
                    from_log_count=topic.from_log_count,
                    gap_count=topic.gap_count,
                    repeat_count=topic.repeat_count,
                )
            )
            if (topic.first, topic.last, topic.read_count) != (1, published[topic.topic], published[topic.topic]):
                problems.append(
                    f"{name}: read {topic.read_count:,} of {topic.topic}, {topic.first:,} to {topic.last:,}; "
                    f"{published[topic.topic]:,} were published"
                )
            elif topic.digest != log[topic.topic].digest:
                problems.append(f"{name}: what it read of {topic.topic} is not what the log holds")
            if topic.gap_count or topic.repeat_count:
                problems.append(f"{name}: {topic.gap_count:,} gaps and {topic.repeat_count:,} repeats in {topic.topic}")
        if report.fault_count:
            problems.append(f"{name}: {report.fault_count:,} records whose content cannot be")
        if not report.ended:
            problems.append(f"{name}: it did not come to the end of the bus")
        if name == TAPE and sum(entry.volume for entry in report.market) != log["trades"].volume:
            problems.append(f"{name}: its volumes do not add up to the log's {log['trades'].volume:,}")
    return readers
