"""What a look at the buses of this machine finds: values that are read, compared and printed, never changed.

Every fact is named with its unit; these structures are also, field for field, what `--json` prints. A count is of records
unless named otherwise. What another process claims about itself (a reader's name, its counters) is only its word.
"""

from __future__ import annotations

import msgspec

from ..storage import Field

__all__ = [
    "BusFacts",
    "LaneFacts",
    "PositionFacts",
    "ReaderFacts",
    "SchemaFacts",
    "Snapshot",
    "TopicFacts",
    "WriterFacts",
    "with_rates",
]


class ReaderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a topic's reader table."""

    index: int
    name: str
    pid: int
    process: str  # alive, stopped, dead
    entry: str  # active, joining, dropped (by the writer, for being too slow)
    policy: str  # lossy, reliable
    follow: str  # the watermark it reads up to
    consumed: int  # sequence
    acknowledged: int  # sequence up to which it is done with for good; 0 where it does not say
    lag_count: int  # the watermark that it follows minus consumed
    overrun_count: int  # times lapped
    lost_count: int
    refilled_count: int  # read from the log after being lapped
    heartbeat_age_s: float
    attached_age_s: float
    consumed_per_s: float | None = None


class LaneFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One lane of a topic: through which another process publishes. Sequences are the lane's own."""

    lane: str  # its number, hexadecimal, as in the name of its segment
    pid: int  # the publisher's
    process: str  # alive, stopped, dead
    entry: str  # taken, asked, open, left, refused; "" where it is not in the lane table: of a writer that is no more
    slot_count: int
    published: int
    drained: int  # in the topic
    waiting_count: int  # published and not drained


class SchemaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A topic's record type."""

    description: str
    key: tuple[str, ...]
    fields: tuple[Field, ...]
    hash: str  # hexadecimal
    row_bytes: int  # the 16-byte stamp included


class PositionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored under a name, for those who go on after their end. Where it cannot be read, `problem` says why."""

    name: str
    problem: str = ""
    kind: str | None = None  # resumable, group
    acknowledged: int | None = None  # sequence
    behind_count: int | None = None  # published minus acknowledged
    open_count: int | None = None  # of a group: handed out and not settled
    member_count: int | None = None


class TopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One topic. Where its segments cannot be read, `problem` says why, and what could not be read is None."""

    topic: str
    problem: str = ""
    epoch: int | None = None
    writer_pid: int | None = None
    writer_process: str | None = None  # alive, stopped, dead
    slot_count: int | None = None
    segment_bytes: int | None = None
    opened_age_s: float | None = None
    heartbeat_age_s: float | None = None
    status: tuple[str, ...] = ()  # fenced, closed, log failed
    log_error: str = ""
    log_directory: str | None = None
    schema: SchemaFacts | None = None
    claimed: int | None = None  # sequences
    published: int | None = None
    logged: int | None = None
    durable: int | None = None
    indexed: int | None = None  # where the topic is kept by key
    replicated: int | None = None  # where other hosts hold the bus as well
    published_per_s: float | None = None
    logged_per_s: float | None = None
    durable_per_s: float | None = None
    readers: tuple[ReaderFacts, ...] = ()
    lanes: tuple[LaneFacts, ...] = ()
    positions: tuple[PositionFacts, ...] = ()

    @property
    def waiting_count(self) -> int:
        """Records that are in lanes, and not in the topic yet."""
        return sum(lane.waiting_count for lane in self.lanes)

    @property
    def unlogged_count(self) -> int:
        """Published records that a log should hold and does not yet; 0 without a log."""
        if self.log_directory is None or self.published is None or self.logged is None:
            return 0
        return max(0, self.published - self.logged) + self.waiting_count


class WriterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Who writes a bus."""

    state: str  # alive, stopped, dead, closed, starting
    pid: int | None = None
    epoch: int | None = None
    heartbeat_age_s: float | None = None
    role: str | None = None  # of a replicated bus: leads, follows
    leader: str = ""  # the node that leads, where it follows and knows


class BusFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One bus and its topics."""

    bus: str
    writer: WriterFacts
    problem: str = ""
    data_dir: str | None = None
    topics: tuple[TopicFacts, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The buses of this machine at one instant."""

    taken_ns: int  # since the Unix epoch
    buses: tuple[BusFacts, ...]


def with_rates(before: Snapshot, after: Snapshot) -> Snapshot:
    """`after`, with the rates since `before`. A topic whose writer changed between the two has none."""
    seconds = (after.taken_ns - before.taken_ns) / 1e9
    if seconds <= 0:
        return after
    known = {(bus.bus, topic.topic, topic.epoch): topic for bus in before.buses for topic in bus.topics}
    buses: list[BusFacts] = []
    for bus in after.buses:
        topics = [_topic_rates(known.get((bus.bus, topic.topic, topic.epoch)), topic, seconds) for topic in bus.topics]
        buses.append(msgspec.structs.replace(bus, topics=tuple(topics)))
    return Snapshot(taken_ns=after.taken_ns, buses=tuple(buses))


def _topic_rates(before: TopicFacts | None, after: TopicFacts, seconds: float) -> TopicFacts:
    if before is None:
        return after
    earlier = {(reader.index, reader.pid): reader for reader in before.readers}
    readers = [_reader_rate(earlier.get((reader.index, reader.pid)), reader, seconds) for reader in after.readers]
    return msgspec.structs.replace(
        after,
        published_per_s=_rate(before.published, after.published, seconds),
        logged_per_s=_rate(before.logged, after.logged, seconds),
        durable_per_s=_rate(before.durable, after.durable, seconds),
        readers=tuple(readers),
    )


def _reader_rate(before: ReaderFacts | None, after: ReaderFacts, seconds: float) -> ReaderFacts:
    if before is None:
        return after
    return msgspec.structs.replace(after, consumed_per_s=_rate(before.consumed, after.consumed, seconds))


def _rate(before: int | None, after: int | None, seconds: float) -> float | None:
    return None if before is None or after is None else round((after - before) / seconds, 1)
