"""Watching real processes: what happens to them is a change, once, with the reason."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator

import pytest
from ringmain.bus import NotFound, Writer
from ringmain.subscribers import HealthMonitor, RealTime
from ringmain.subscribers.health import HEALTH, Change, publish_change
from ringmain.subscribers.judging import Condition, Subject, Thresholds
from ringmain.tools.exit_codes import FAILED, OK
from support.children import Child, Children
from support.command import facts
from support.logs import POINTS, wait_until
from support.replicas import open_replicated

pytestmark = pytest.mark.process
TIMEOUT_S = 30.0
SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
ROUNDS = 300 if NIGHTLY else 15
INTERVAL_S = 0.05  # between two looks
STARTS = {
    "writer": "opened = Writer(name, [POINTS], slots=1024, lanes=True)",
    "publisher": "opened = open_lane(f'{name}/points')",
    "subscriber": "opened = RealTime(f'{name}/points')",
}


@pytest.fixture
def writer(bus_name: str) -> Iterator[Child]:
    with Children() as children:
        child = children.start()
        child.run(
            "writer = Writer(name, [POINTS], slots=1024)\n"
            "publish = lambda first, count: writer['points'].publish_batch(\n"
            "    make_rows(POINTS, first, count)[list(POINTS.payload_dtype.names)].astype(POINTS.payload_dtype))",
            name=bus_name,
        )
        yield child


@pytest.fixture
def subscriber(bus_name: str, writer: Child) -> Iterator[Child]:
    with Children() as children:
        child = children.start()
        child.run("reader = RealTime(address, name='risk')", address=f"{bus_name}/points")
        yield child


class Watch:
    """A monitor and what it has told. Use in a `with` statement."""

    def __init__(self, bus: str, thresholds: Thresholds = Thresholds()) -> None:  # noqa: B008  frozen
        self.told: list[Change] = []
        self.monitor = HealthMonitor(bus, thresholds=thresholds, interval=INTERVAL_S, on_change=self.told.append)

    def wait_for(self, kind: str, state: str, reason: str = "", *, pid: int | None = None) -> Change:
        def there() -> list[Change]:
            return [
                change
                for change in list(self.told)
                if (change.subject.kind, change.state) == (kind, state)
                and (change.after.reason if change.after is not None else "") == reason
                and pid in (None, change.subject.pid)
            ]

        wait_until(lambda: bool(there()), TIMEOUT_S)
        return there()[-1]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.monitor.close()


def test_whoever_is_there_is_told_first_and_then_nothing_while_all_is_well(bus_name, writer, subscriber):
    with Watch(bus_name) as watch:
        first = watch.wait_for("writer", "healthy")
        assert (first.before, first.after) == (None, Condition())
        assert first.subject == Subject("writer", bus_name, bus_name, pid=writer.pid)
        second = watch.wait_for("subscriber", "healthy")
        assert (second.subject.topic, second.subject.name, second.subject.pid) == ("points", "risk", subscriber.pid)
        looks = watch.monitor.conditions
        wait_until(lambda: watch.monitor.conditions is not looks, TIMEOUT_S)
        assert len(watch.told) == 2
        assert set(watch.monitor.conditions.values()) == {Condition()}


def test_a_stopped_and_a_killed_subscriber_are_seen_and_that_it_goes_on_too(bus_name, writer, subscriber):
    with Watch(bus_name) as watch:
        watch.wait_for("subscriber", "healthy")
        subscriber.pause()
        stopped = watch.wait_for("subscriber", "failed", "stopped")
        assert stopped.before == Condition()
        del watch.told[:]
        subscriber.resume()
        watch.wait_for("subscriber", "healthy")
        subscriber.kill()
        watch.wait_for("subscriber", "failed", "dead")


def test_a_stopped_and_a_killed_publisher_are_seen(bus_name, writer):
    with Watch(bus_name) as watch:
        watch.wait_for("writer", "healthy")
        writer.pause()
        watch.wait_for("writer", "failed", "stopped")
        writer.resume()
        writer.kill()
        killed_at = time.monotonic()
        watch.wait_for("writer", "failed", "dead")
        print(f"a killed publisher was seen after {time.monotonic() - killed_at:.3f} s")


@pytest.mark.timeout(1800 if NIGHTLY else 120)
def test_whoever_is_stopped_or_killed_at_any_instant_is_told_as_that_and_nobody_else_is(bus_name):
    """In rounds; RINGMAIN_SEED gives other instants, RINGMAIN_NIGHTLY 100 rounds of each kind and more."""
    choice = random.Random(SEED)
    print(f"RINGMAIN_SEED={SEED}")
    running: dict[str, Child] = {}
    with Children() as children:

        def start(kind: str) -> None:
            running[kind] = children.start()
            running[kind].run(STARTS[kind], name=bus_name)

        fresh = list(STARTS)
        for kind in fresh:
            start(kind)
        with Watch(bus_name, Thresholds(writer_silent=TIMEOUT_S, reader_silent=TIMEOUT_S)) as watch:
            for _ in range(ROUNDS):
                for kind in fresh:
                    watch.wait_for(kind, "healthy", pid=running[kind].pid)
                del watch.told[:]
                fresh.clear()
                kind, is_killed = choice.choice(list(STARTS)), choice.random() < 0.5
                victim = running[kind]
                time.sleep(choice.random() * 2 * INTERVAL_S)
                if is_killed:
                    victim.kill()
                    watch.wait_for(kind, *(("gone",) if kind == "publisher" else ("failed", "dead")), pid=victim.pid)
                else:
                    victim.pause()
                    watch.wait_for(kind, "failed", "stopped", pid=victim.pid)
                    victim.resume()
                    watch.wait_for(kind, "healthy", pid=victim.pid)
                assert {change.subject.pid for change in watch.told} == {victim.pid}
                if is_killed:
                    fresh += (
                        STARTS if kind == "writer" else [kind]
                    )  # who is in the rings of a dead writer is started again too
                for kind in fresh:
                    running[kind].kill()
                    start(kind)


def test_a_publisher_with_a_lane_is_seen_stopped_and_gone_once_its_lane_is_drained(bus_name):
    with Children() as children, Writer(bus_name, [POINTS], slots=1024, lanes=True), Watch(bus_name) as watch:
        publisher = children.start()
        publisher.run("lane = open_lane(address); lane.publish(1, 2, b'x')", address=f"{bus_name}/points")
        there = watch.wait_for("publisher", "healthy")
        assert (there.subject.topic, there.subject.pid) == ("points", publisher.pid)
        publisher.pause()
        watch.wait_for("publisher", "failed", "stopped")
        publisher.kill()
        watch.wait_for("publisher", "gone")


def test_one_that_closes_in_good_order_is_gone(bus_name, writer, subscriber):
    with Watch(bus_name) as watch:
        watch.wait_for("subscriber", "healthy")
        subscriber.run("reader.close()")
        gone = watch.wait_for("subscriber", "gone")
        assert (gone.before, gone.after) == (Condition(), None)
        writer.run("writer.close()")
        watch.wait_for("writer", "gone")


def test_a_subscriber_that_lags_and_is_lapped_is_degraded_until_it_has_caught_up(bus_name, writer, subscriber):
    with Watch(bus_name, Thresholds(lag_records=100, lag_seconds=60.0, overrun_memory=0.5)) as watch:
        watch.wait_for("subscriber", "healthy")
        writer.run("publish(1, 101)")
        lagging = watch.wait_for("subscriber", "degraded", "lagging")
        assert lagging.after == Condition("degraded", "lagging", 101)
        del watch.told[:]
        subscriber.run("read_now(reader)")
        watch.wait_for("subscriber", "healthy")
        writer.run("for first in range(102, 5000, 500): publish(first, 500)")
        subscriber.run("while reader.poll() is None or reader.stats.lag: pass\nreader.poll()")
        lost = watch.wait_for("subscriber", "degraded", "lost")  # no log: what was lapped is lost
        assert lost.after is not None
        assert lost.after.amount > 0
        del watch.told[:]
        watch.wait_for("subscriber", "healthy")


# --- the command: every reason in one run of it -----------------------------------------------------------------------


def told_of(bus: str, kind: str, code: int = FAILED) -> tuple[str, str]:
    """What `ringmain health` says about the only one of a kind."""
    (found,) = [entry for entry in facts("health", bus, code=code)["subjects"] if entry["kind"] == kind]
    return found["state"], found["reason"]


@pytest.fixture
def flowing(writer: Child) -> Child:
    """The writer, which publishes fifty records a second."""
    writer.run(
        "def flow():\n"
        "    for number in range(1, 1 << 30):\n"
        "        publish(number, 1)\n"
        "        time.sleep(0.02)\n"
        "threading.Thread(target=flow, daemon=True).start()"
    )
    return writer


def test_the_command_finds_a_subscriber_that_has_not_looked_silent(bus_name, flowing, subscriber):
    wait_until(lambda: subscriber.ask("reader.stats.lag") > 0, TIMEOUT_S)
    assert told_of(bus_name, "subscriber") == ("degraded", "silent")


def test_the_command_finds_a_subscriber_that_reads_too_slowly_lagging(bus_name, writer, subscriber):
    writer.run("publish(1, 500)")
    subscriber.run(
        "def read():\n"
        "    while True:\n"
        "        reader.poll(1)\n"
        "        time.sleep(0.1)\n"
        "threading.Thread(target=read, daemon=True).start()"
    )
    assert told_of(bus_name, "subscriber") == ("degraded", "lagging")


def test_the_command_finds_a_subscriber_that_keeps_up_healthy(bus_name, flowing, subscriber):
    subscriber.run("threading.Thread(target=lambda: [None for _ in reader], daemon=True).start()")
    assert told_of(bus_name, "subscriber", OK) == ("healthy", "")


def test_the_command_finds_a_node_that_knows_no_leader(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path):
        assert told_of(bus_name, "node") == ("degraded", "no leader")


def test_the_command_finds_a_leader_whose_records_are_not_replicated(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path) as writer:
        writer.replicating.lead()
        writer["pairs"].wait(writer["pairs"].publish(1), "durable", TIMEOUT_S)
        assert told_of(bus_name, "node") == ("degraded", "not replicated")


def test_nothing_is_undecided_about_a_bus_that_is_gone(bus_name, writer, subscriber):
    writer.run("publish(1, 5)")
    with HealthMonitor(bus_name) as monitor:
        monitor.look()
        assert monitor.undecided
        writer.run("writer.close()")
        monitor.look()
        assert not monitor.undecided


def test_a_change_becomes_a_row_that_any_subscriber_reads(bus_name):
    with Writer(bus_name, [HEALTH]) as writer:
        subject = Subject("subscriber", "exchange", "risk", "orders", 7, 0)
        publish_change(writer[HEALTH.name], Change(subject, Condition(), Condition("degraded", "lagging", 1234), 1))
        publish_change(writer[HEALTH.name], Change(subject, Condition("degraded"), None, 2))
        with RealTime(f"{bus_name}/{HEALTH.name}", start=1) as reader:
            batch = reader.take(TIMEOUT_S)
            assert batch is not None
            rows = [row.item()[2:] for row in batch.copy()]
    assert rows == [
        (b"subscriber", b"risk", b"orders", 7, b"degraded", b"healthy", b"lagging", 1234),
        (b"subscriber", b"risk", b"orders", 7, b"gone", b"degraded", b"", 0),
    ]


def test_a_loop_over_changes_ends_when_the_monitor_is_closed(bus_name, writer):
    monitor = HealthMonitor(bus_name, interval=0.01)
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.extend(map(str, monitor)))
    thread.start()
    try:
        wait_until(lambda: bool(monitor.conditions), TIMEOUT_S)
        assert thread.is_alive()
    finally:
        monitor.close()
        thread.join(TIMEOUT_S)
    assert told == [f"writer of {bus_name}, process {writer.pid}, is healthy"]


def test_a_bus_that_is_not_there_is_an_error_and_a_name_that_cannot_be_as_well(bus_name):
    with pytest.raises(NotFound, match="no bus"):
        HealthMonitor(bus_name)
    with pytest.raises(ValueError, match="bus name"):
        HealthMonitor("../x")
    with pytest.raises(ValueError, match="interval"):
        HealthMonitor(bus_name, interval=0)
