"""The demo's plot: a publisher and its subscribers start, one joins late, the publisher is killed half-way and replaced.

Whatever happens, `Play` leaves no process and no shared memory behind when it is left.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from ..bus import Watermarks, attach
from ..bus.observing import Observer
from ..bus.segments import Segment, bus_name, control_name, data_name, list_names
from ..bus.snapshot import BusFacts, Snapshot, with_rates
from .demo_child import Child, ChildFailed
from .demo_publisher import SCHEMAS
from .demo_reports import PublisherReport, SubscriberReport
from .demo_subscribers import AUDITOR, LATE_JOINER, TAPE, TOPICS_READ

__all__ = ["Event", "Outcome", "Play"]

LOOK_EVERY_S = 0.2
LOOKS_KEPT = 6  # rates are over the time between the first and the last of these
PATIENCE_S = 30.0  # for a child that is to start, to catch up or to end
CAUGHT_UP_US = 100_000
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in words. mood: "", "bad" or "good"."""

    at_s: float
    words: str
    mood: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the processes told until their end, and the parent saw, to be checked against the log."""

    seconds: float
    killed_at: dict[str, int]  # the killed publisher's last sequences, read from its rings when it was gone
    publishers: tuple[PublisherReport, PublisherReport]
    subscribers: dict[str, SubscriberReport]


@dataclass
class Play:
    """Performs the demo. `show` is called several times a second, and reads what it likes from here."""

    bus: str
    data_dir: Path  # for the log
    folder: Path  # for what the children write to standard error
    seconds: float
    rate: float
    seed: int
    show: Callable[[Play], None]
    events: list[Event] = field(default_factory=list[Event])
    subscribers: dict[str, Child[SubscriberReport]] = field(default_factory=dict[str, Child[SubscriberReport]])
    publishers: list[Child[PublisherReport]] = field(default_factory=list[Child[PublisherReport]])
    checked: float | None = None  # how much of the log is checked, 0 to 1; None before

    def __post_init__(self) -> None:
        self._observer = Observer()
        self._looks: deque[Snapshot] = deque(maxlen=LOOKS_KEPT)
        self._started = time.monotonic()
        self._caught_up = self._moved = False

    # --- the plot ---------------------------------------------------------------------------------------------------

    def perform(self) -> Outcome:
        """Play it through. Raises ChildFailed where a process does what it should not."""
        self._started = time.monotonic()
        first = self._start_publisher()
        for name in (TAPE, AUDITOR):
            self._start_subscriber(name)
        self._wait(lambda: first.report is not None)
        self.tell(f"publisher {first.pid} opens the bus and publishes on four topics")
        self._wait(lambda: all(child.report for child in self.subscribers.values()))
        self.tell("tape and auditor read: trades once published, orders once durable")
        self._play_until(self.seconds / 4)
        self._start_subscriber(LATE_JOINER)
        self.tell("a late joiner reads quotes and accounts from the log, from record 1")
        self._wait(lambda: self.subscribers[LATE_JOINER].report is not None)
        self._play_until(self.seconds / 2)

        first.kill()
        killed_at = {topic: marks.published for topic, marks in self._watermarks().items()}
        self.tell(f"SIGKILL: publisher {first.pid} is dead after {sum(killed_at.values()):,} records", "bad")
        second = self._start_publisher()
        self._wait(lambda: second.report is not None)
        assert first.report is not None
        assert second.report is not None
        self.tell(
            f"the next one recovers {second.report.from_log_count:,} from the log and "
            f"{second.report.from_rings_count:,} from the rings",
            "good",
        )
        self._wait(lambda: self._moved)
        self._play_until(self.seconds)

        second.request_stop()
        self.tell("the publisher closes the bus; the subscribers read to its end")
        self._wait(lambda: not any(child.running for child in (second, *self.subscribers.values())), may_end=True)
        for child in (second, *self.subscribers.values()):
            child.join(PATIENCE_S)
        seconds = time.monotonic() - self._started
        reports = {name: child.report for name, child in self.subscribers.items()}
        return Outcome(
            seconds,
            killed_at,
            (first.report, second.report),
            {name: report for name, report in reports.items() if report is not None},
        )

    def tell(self, words: str, mood: str = "") -> None:
        """Add an event and show it."""
        self.events.append(Event(self.now_s, words, mood))
        self.show(self)

    def tell_checked(self, part: float) -> None:
        """Show how far the check of the log has come."""
        self.checked = part
        self.show(self)

    # --- what a view reads ------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def facts(self) -> BusFacts | None:
        """The bus as seen from outside, with rates over the last second; None while there is none."""
        if not self._looks:
            return None
        return next(iter(with_rates(self._looks[0], self._looks[-1]).buses), None)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _start_publisher(self) -> Child[PublisherReport]:
        session = len(self.publishers)
        options = [f"--seed={self.seed}", f"--session={session}", f"--rate={self.rate}"]
        with _endings_held():
            child = Child(
                "publisher",
                PublisherReport,
                "demo_publisher",
                [self.bus, str(self.data_dir), *options],
                self.folder / f"publisher-{session}.err",
            )
            self.publishers.append(child)
        return child

    def _start_subscriber(self, name: str) -> None:
        errors = self.folder / f"{name.replace(' ', '-')}.err"
        with _endings_held():
            self.subscribers[name] = Child(name, SubscriberReport, "demo_subscribers", [name, self.bus], errors)

    def _watermarks(self) -> dict[str, Watermarks]:
        return {schema.name: attach(f"{self.bus}/{schema.name}").watermarks() for schema in SCHEMAS}

    def _play_until(self, at_s: float) -> None:
        while self.now_s < at_s:
            self._look()
            time.sleep(max(0.0, min(LOOK_EVERY_S, at_s - self.now_s)))

    def _wait(self, done: Callable[[], bool], *, may_end: bool = False) -> None:
        """Play on until something has come true."""
        patient_until = time.monotonic() + PATIENCE_S
        while not done():
            self._look(may_end=may_end)
            if time.monotonic() > patient_until:
                raise ChildFailed(f"nothing happened for {PATIENCE_S:.0f} s after: {self.events[-1].words}")
            time.sleep(LOOK_EVERY_S / 10)

    def _look(self, *, may_end: bool = False) -> None:
        for child in (*self.publishers, *self.subscribers.values()):
            child.check(may_end=may_end)
        look = self._observer.look(self.bus)
        if look.buses or not self._looks:
            self._looks.append(look)
        else:  # closed: it stays as it was last, without rates
            self._looks = deque([self._looks[-1]], LOOKS_KEPT)
        self._notice()
        self.show(self)

    def _notice(self) -> None:
        """Tell what the reports say has come to pass."""
        reports = {name: child.report for name, child in self.subscribers.items() if child.report is not None}
        late = reports.get(LATE_JOINER)
        if late is not None and not self._caught_up:
            self._caught_up = all((topic.delay_us or CAUGHT_UP_US) < CAUGHT_UP_US for topic in late.topics)
            if self._caught_up:
                from_log = sum(topic.from_log_count for topic in late.topics)
                self.tell(f"it has caught up after {from_log:,} records from the log: live from now on")
        if len(self.publishers) > 1 and len(reports) == len(TOPICS_READ) and not self._moved:
            self._moved = all(topic.reopen_count for report in reports.values() for topic in report.topics)
            if self._moved:
                self.tell("every subscriber has found the new rings and reads on", "good")

    # --- the end, whatever happened ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End what still runs, and remove what a killed publisher left in shared memory."""
        before = {
            number: signal.signal(number, signal.SIG_IGN) for number in ENDINGS
        }  # an impatient second Ctrl-C changes nothing
        try:
            children = (*self.publishers, *self.subscribers.values())
            for child in children:
                child.request_stop()
            for child in children:
                child.clear_away()
            if self.bus in (names := list_names()):
                for topic in names[self.bus]:
                    Segment.unlink(data_name(self.bus, topic))
                    Segment.unlink(control_name(self.bus, topic))
                Segment.unlink(bus_name(self.bus))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> Play:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _endings_held() -> Generator[None, None, None]:
    """Signals that end the demo wait until we are through: amid its start, nobody would know of a child."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: arrived.append(number)) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in arrived[:1]:
        signal.raise_signal(number)
