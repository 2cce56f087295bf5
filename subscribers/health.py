"""Watching a bus: who writes it, publishes to it and reads it, how they are, and every change of that as it comes.

It only looks, a few times a second, at shared memory mapped read-only and at /proc: those who are watched do nothing for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

from ..bus import NotFound, Publisher
from ..bus.observing import Observer
from ..bus.segments import check_bus_name
from ..storage import Schema
from .judging import Condition, Judge, Subject, Thresholds

__all__ = ["HEALTH", "Change", "HealthMonitor", "publish_change"]

INTERVAL_S = 0.2

HEALTH = Schema(
    "_health",
    {
        "kind": "S12",
        "name": "S64",
        "topic": "S32",
        "pid": "u4",
        "state": "S8",
        "before": "S8",
        "reason": "S16",
        "amount": "i8",
    },
    units={
        "kind": "writer, node, publisher or subscriber",
        "state": "healthy, degraded, failed, or gone",
        "before": "the state before; empty for one that came",
        "amount": "records behind, lost or lapped, where the reason is about those",
    },
    description="Changes of the health of a bus",
)


@dataclass(frozen=True, slots=True)
class Change:
    """Somebody's condition is another now. before: None for one that came; after: None for one that went in good order."""

    subject: Subject
    before: Condition | None
    after: Condition | None
    timestamp_ns: int

    @property
    def state(self) -> str:
        return self.after.health if self.after is not None else "gone"

    def __str__(self) -> str:
        subject, condition = self.subject, self.after or Condition()
        where = f"{subject.bus}/{subject.topic}" if subject.topic else subject.bus
        amount = f" ({condition.amount:,} records)" if condition.amount else ""
        reason = f": {condition.reason}{amount}" if condition.reason else ""
        name = "" if subject.kind in ("writer", "node") else f" {subject.name!r}"
        return f"{subject.kind}{name} of {where}, process {subject.pid}, is {self.state}{reason}"


class HealthMonitor:
    """Watches one bus: `for change in HealthMonitor("exchange"): print(change)`, or on_change, called from a thread of its own.

    thresholds: see Thresholds. interval: seconds between looks. Everybody who is there at first is a change too.
    A process that died or stopped, and a log that failed, is seen at the next look; a silent writer within 1 s and a little.
    Raises NotFound where there is no such bus when it begins; afterwards a bus that goes is a change.
    """

    def __init__(
        self,
        bus: str,
        *,
        thresholds: Thresholds = Thresholds(),  # noqa: B008  frozen
        interval: float = INTERVAL_S,
        on_change: Callable[[Change], object] | None = None,
    ) -> None:
        if interval <= 0:
            raise ValueError(f"interval: a positive number of seconds is expected, got {interval}")
        self.bus = check_bus_name(bus)
        self._interval, self._on_change = interval, on_change
        self._observer, self._judge = Observer(), Judge(thresholds)
        self._conditions: dict[Subject, Condition] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if not self._observer.look(self.bus).buses:
            raise NotFound(f"no bus {self.bus!r} is open on this machine; start its writer, or see `ringmain ls`")
        if on_change is not None:
            self._thread = threading.Thread(target=self._watch, args=(on_change,), name="ringmain-health", daemon=True)
            self._thread.start()

    @property
    def conditions(self) -> Mapping[Subject, Condition]:
        """How everybody was at the last look."""
        return MappingProxyType(self._conditions)

    @property
    def undecided(self) -> bool:
        """Whether somebody may turn out not to be healthy, by what the looks until now were too few to tell: an age or a lag."""
        return bool(self._conditions) and self._judge.undecided

    def look(self) -> list[Change]:
        """Look now; what has changed since the last look. Not beside `on_change` or a loop."""
        snapshot = self._observer.look(self.bus)
        now = time.monotonic()
        found: dict[Subject, Condition] = {}
        for facts in snapshot.buses:
            found = self._judge.judge(facts, now)
        changes = [
            Change(subject, self._conditions.get(subject), found.get(subject), snapshot.taken_ns)
            for subject in sorted({*found, *self._conditions})
            if self._is_another(self._conditions.get(subject), found.get(subject))
        ]
        self._conditions = found
        return changes

    @staticmethod
    def _is_another(before: Condition | None, after: Condition | None) -> bool:
        if before is None or after is None:
            return before is not after
        return (before.health, before.reason) != (after.health, after.reason)

    def __iter__(self) -> Iterator[Change]:
        """Changes as they come, until it is closed."""
        while not self._closed.is_set():
            yield from self.look()
            self._closed.wait(self._interval)

    def _watch(self, on_change: Callable[[Change], object]) -> None:
        for change in self:
            on_change(change)

    def close(self) -> None:
        """Watch no more. May be called again."""
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def publish_change(publisher: Publisher, change: Change) -> int:
    """Publish a change into a topic of the schema HEALTH; returns its sequence."""
    subject, condition = change.subject, change.after or Condition()
    return publisher.publish(
        subject.kind.encode(),
        subject.name.encode()[:64],
        subject.topic.encode(),
        subject.pid,
        change.state.encode(),
        change.before.health.encode() if change.before is not None else b"",
        condition.reason.encode(),
        condition.amount,
    )
