"""What a look at a bus means: writer, publishers and subscribers, each healthy, degraded or failed, and why. Nothing else.

1. What is certain is told at once: a process that is dead or stopped, a log that failed, a reader that was dropped.
2. What is an age or a lag is held against a threshold, and against what was seen before, by a clock that nobody sets.
3. Nothing is older than the first look. What was so then and still is, for less than its threshold, leaves the judge `undecided`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..bus.snapshot import BusFacts, LaneFacts, ReaderFacts, TopicFacts

__all__ = ["Condition", "Health", "Judge", "Subject", "Thresholds", "worst"]

Health: TypeAlias = Literal["healthy", "degraded", "failed"]
ORDER: tuple[Health, ...] = ("healthy", "degraded", "failed")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is unwell. Seconds and records.

    writer_silent: since a writer's heartbeat, which comes four times a second. reader_silent: since a subscriber looked for rows
    while there were some. lag_seconds, lag_records: how far behind a subscriber may be; records None: half of what the ring holds.
    overrun_memory: how long having been lapped, or having lost records, counts. leaderless: since a node of a replicated bus last
    knew who leads; unreplicated: since something that is durable on a leader waits to be replicated.
    Raises ValueError for what is not above 0.
    """

    writer_silent: float = 0.8
    reader_silent: float = 5.0
    lag_seconds: float = 1.0
    lag_records: int | None = None
    overrun_memory: float = 10.0
    leaderless: float = 2.0
    unreplicated: float = 2.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: above 0 is expected, got {value}")


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Whose health it is. node: of a replicated bus, on this host. topic: of a publisher (who has a lane) or a subscriber.
    entry: the latter's in the reader table."""

    kind: Literal["writer", "node", "publisher", "subscriber"]
    bus: str
    name: str
    topic: str = ""
    pid: int = 0
    entry: int = -1


@dataclass(frozen=True, slots=True)
class Condition:
    """How a subject is. reason: a word or two, "" while it is healthy. amount: records behind or lost, where it is about those."""

    health: Health = "healthy"
    reason: str = ""
    amount: int = 0


def worst(conditions: list[Condition]) -> Health:
    """The state of the sickest; healthy where there is none."""
    states = [condition.health for condition in conditions]
    return ORDER[max(map(ORDER.index, states), default=0)]


@dataclass(slots=True)
class _Seen:
    """What is remembered of a subscriber."""

    overruns: int
    lost: int
    consumed: int
    moved_at: float  # when that changed last, or was seen first
    wounded_at: float | None = None  # when it was last lapped
    wound: Condition = Condition()


@dataclass(slots=True)
class _Course:
    """When a watermark of a topic stood where, so that a lag in records is one in seconds."""

    points: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def add(self, now: float, sequence: int, keep: float) -> None:
        if self.points and sequence < self.points[-1][1]:  # the topic has begun anew, or was opened again with less
            self.points.clear()
        if not self.points or sequence > self.points[-1][1]:
            self.points.append((now, sequence))
        while len(self.points) > 1 and self.points[1][0] < now - keep:
            self.points.popleft()

    def behind_since(self, consumed: int) -> float | None:
        """When the first record behind `consumed` was seen to be there."""
        return next((at for at, sequence in self.points if sequence > consumed), None)


class Judge:
    """Judges one look after another; remembers what it must."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.undecided = False  # whether looking on may show that somebody is worse than it seems
        self._began = math.inf  # the first look
        self._seen: dict[Subject, _Seen] = {}
        self._courses: dict[tuple[str, str], _Course] = {}  # by topic and watermark
        self._silent_since: float | None = None
        self._led_at: float | None = None  # when somebody led last, as this host's node knew
        self._replicated = -1, 0.0  # of all topics, and since when nothing was added although there was something

    def judge(self, facts: BusFacts, now: float) -> dict[Subject, Condition]:
        """The condition of everybody there. now: seconds, of a clock that only goes on."""
        self.undecided = False
        self._began = min(self._began, now)
        found = {Subject("writer", facts.bus, facts.bus, pid=facts.writer.pid or 0): self._writer(facts, now)}
        if facts.writer.role is not None and facts.writer.state == "alive":
            found[Subject("node", facts.bus, facts.bus, pid=facts.writer.pid or 0)] = self._node(facts, now)
        for topic in facts.topics:
            for watermark in {"published", *(reader.follow for reader in topic.readers)}:
                newest: int | None = getattr(topic, watermark, None)
                if newest is not None:
                    course = self._courses.setdefault((topic.topic, watermark), _Course())
                    limits = self.thresholds
                    course.add(now, newest, max(4 * limits.lag_seconds, 2 * limits.reader_silent))
            for lane in topic.lanes:
                found[Subject("publisher", facts.bus, lane.lane, topic.topic, lane.pid)] = self._publisher(lane)
            for reader in topic.readers:
                if reader.entry == "joining":
                    continue
                subject = Subject("subscriber", facts.bus, reader.name, topic.topic, reader.pid, reader.index)
                course = self._courses.get((topic.topic, reader.follow)) or _Course()
                found[subject] = self._reader(subject, topic, reader, course, now)
        self._seen = {subject: seen for subject, seen in self._seen.items() if subject in found}
        return found

    def _lasts(self, since: float, now: float, limit: float) -> bool:
        """Whether something has been so for longer than `limit`. If not, and if it was so at the first look, that is undecided."""
        lasts = now - since > limit
        self.undecided |= not lasts and since == self._began
        return lasts

    def _writer(self, facts: BusFacts, now: float) -> Condition:
        writer = facts.writer
        if writer.state in ("dead", "stopped"):
            return Condition("failed", writer.state)
        if facts.problem:
            return Condition("failed", "unreadable")
        for topic in facts.topics:
            if topic.log_error or "log failed" in topic.status:
                return Condition("failed", "log failed")
        if writer.state in ("starting", "closed"):
            return Condition("degraded" if writer.state == "starting" else "healthy", writer.state)
        if writer.heartbeat_age_s is None or writer.heartbeat_age_s <= self.thresholds.writer_silent:
            self._silent_since = None
            return Condition()
        if self._silent_since is None:  # the wall clock may have jumped: its next heartbeat would show
            self._silent_since = now
        lasts = now - self._silent_since > 0.3
        self.undecided |= not lasts
        return Condition("failed", "silent") if lasts else Condition()

    def _node(self, facts: BusFacts, now: float) -> Condition:
        led = facts.writer.role == "leads" or bool(facts.writer.leader)
        if self._led_at is None or led:
            self._led_at = now
        if not led and self._lasts(self._led_at, now, self.thresholds.leaderless):
            return Condition("degraded", "no leader")
        waiting = sum(max(0, (topic.durable or 0) - (topic.replicated or 0)) for topic in facts.topics)
        replicated = sum(topic.replicated or 0 for topic in facts.topics)
        stands = waiting > 0 and facts.writer.role == "leads"
        if not stands or replicated != self._replicated[0]:
            self._replicated = replicated, now
        if stands and self._lasts(self._replicated[1], now, self.thresholds.unreplicated):
            return Condition("degraded", "not replicated", waiting)
        return Condition()

    @staticmethod
    def _publisher(lane: LaneFacts) -> Condition:
        if lane.process in ("dead", "stopped"):
            return Condition("failed", lane.process, lane.waiting_count)
        if lane.waiting_count > lane.slot_count // 2:  # the writer does not come for its rows
            return Condition("degraded", "waiting", lane.waiting_count)
        return Condition()

    def _reader(
        self, subject: Subject, topic: TopicFacts, reader: ReaderFacts, course: _Course, now: float
    ) -> Condition:
        seen = self._seen.setdefault(subject, _Seen(reader.overrun_count, reader.lost_count, reader.consumed, now))
        if reader.lost_count > seen.lost:
            seen.wounded_at, seen.wound = now, Condition("degraded", "lost", reader.lost_count - seen.lost)
        elif reader.overrun_count > seen.overruns:
            seen.wounded_at, seen.wound = now, Condition("degraded", "overrun", reader.overrun_count - seen.overruns)
        seen.overruns, seen.lost = reader.overrun_count, reader.lost_count
        if reader.consumed != seen.consumed:
            seen.consumed, seen.moved_at = reader.consumed, now
        if reader.process in ("dead", "stopped"):
            return Condition("failed", reader.process, reader.lag_count)
        if reader.entry == "dropped":
            return Condition("failed", "dropped", reader.lag_count)
        limits = self.thresholds
        wounded = seen.wounded_at is not None and now - seen.wounded_at <= limits.overrun_memory
        if wounded and seen.wound.reason == "lost":
            return seen.wound
        records = limits.lag_records if limits.lag_records is not None else (topic.slot_count or 0) // 2
        since = course.behind_since(reader.consumed) if reader.lag_count else None
        if since is not None and self._is_silent(reader, max(since, seen.moved_at), now):
            return Condition("degraded", "silent", reader.lag_count)
        if reader.lag_count > records or (since is not None and self._lasts(since, now, limits.lag_seconds)):
            return Condition("degraded", "lagging", reader.lag_count)
        return seen.wound if wounded else Condition()

    def _is_silent(self, reader: ReaderFacts, since: float, now: float) -> bool:
        """since: from when on it had something to read and read nothing. (One that reads on may store few heartbeats.)"""
        limit = self.thresholds.reader_silent
        if reader.heartbeat_age_s <= min(
            limit, now - self._began
        ):  # it has looked since the first look, or not long before
            return False
        return self._lasts(since, now, limit) and reader.heartbeat_age_s > limit
