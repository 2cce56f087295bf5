"""Publishers and writers of lanes, killed, stopped and taken over at random instants: each row is in the topic exactly once.

A round is one such event. The rounds of a test share one bus, and so each begins with what all the rounds before have left.
RINGMAIN_KILL_SEED gives other instants, RINGMAIN_NIGHTLY 100 rounds of each; a failure names the seed and the round.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ringmain.bus import _lanes
from ringmain.bus.segments import list_lanes, open_control
from ringmain.subscribers import Historical
from support.forked import Child, Server
from support.lane_children import MARKS, Place
from support.logs import wait_until

SEED = int(os.environ.get("RINGMAIN_KILL_SEED", "20240229"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
CHILDREN = Path(__file__).parents[1] / "support" / "lane_children.py"
TIMEOUT_S = 30.0

pytestmark = [pytest.mark.process, pytest.mark.timeout(1800 if NIGHTLY else 180)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, CHILDREN, Place)
    yield server
    server.close()


@contextlib.contextmanager
def reported(number: int) -> Iterator[None]:
    """Name the seed and the round in whatever fails within."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"RINGMAIN_KILL_SEED={SEED}, round {number}")
        raise


class Play:
    """A bus with a writer, a reader of everything, and some publishers."""

    def __init__(self, server: Server, bus: str, data_dir: Path | None, choice: random.Random, slots: int) -> None:
        self._server, self.bus, self.data_dir, self._choice, self._slots = server, bus, data_dir, choice, slots
        self._count = 0
        self.publishers: dict[int, Child] = {}
        self.killed: dict[int, Child] = {}
        self.writer = self.start_writer()
        self.writer.wait_for("ready")
        self.reader = server.start("read", bus=bus)
        self.reader.wait_for("ready")

    def start_writer(self, **settings: object) -> Child:
        data_dir = self.data_dir and str(self.data_dir)
        return self._server.start("write", bus=self.bus, data_dir=data_dir, slots=self._slots, **settings)

    def start_publisher(self) -> Child:
        number, self._count = self._count, self._count + 1
        self.publishers[number] = self._server.start(
            "publish",
            bus=self.bus,
            publisher=number,
            seed=self._choice.randrange(1 << 30),
            slots=self._choice.choice([64, 1024, 4096]),
            durable=self.data_dir is not None,
        )
        return self.publishers[number]

    def kill_publisher(self) -> None:
        number = self._choice.choice(sorted(self.publishers))
        victim = self.publishers.pop(number)
        victim.kill()
        self.killed[number] = victim

    def check(self) -> None:
        """What has come so far fits what was published; the reader has checked the order."""
        for number, child in {**self.publishers, **self.killed}.items():
            seen = self.reader.place.seen(number)
            assert seen <= child["attempted"], f"publisher {number}: more came than was published"

    def end(self) -> None:
        for child in self.publishers.values():
            child.finish()
        wait_until(lambda: list_lanes(self.bus, MARKS.name) == [], TIMEOUT_S)
        assert _lanes.list_entries(open_control(self.bus, MARKS.name).memory) == []
        self.writer.finish()
        self.reader.end()
        for place in self._all_readings():
            for number, child in self.publishers.items():
                assert place.seen(number) == child["returned"] == child["attempted"]
            for number, child in self.killed.items():
                assert child["returned"] <= place.seen(number) <= child["attempted"], (
                    f"publisher {number}, which was killed"
                )
        assert sorted(path.name for path in Path("/dev/shm").glob(f"ringmain.{self.bus}*")) == []

    def _all_readings(self) -> Iterator[Place]:
        """What the reader has seen, and, by itself, that the log holds an end of the same."""
        assert isinstance(self.reader.place, Place)
        yield self.reader.place
        if self.data_dir is None:
            return
        position = 0
        with Historical(f"{self.bus}/{MARKS.name}", data_dir=self.data_dir) as reader:
            for batch in reader:
                assert position in (0, batch.first - 1)
                position = batch.last
        assert position == self.reader["position"]


@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_what_a_killed_publisher_had_published_is_there_once_and_nobody_waits_for_it(
    tmp_path, bus_name, server, logged
):
    """Killed while it opens its lane, or while it publishes one by one, in batches and in claims."""
    rounds = 100 if NIGHTLY else 20
    choice = random.Random(f"{SEED} publishers {logged}")
    play = Play(server, bus_name, tmp_path / "data" if logged else None, choice, slots=4096)
    for _ in range(3):
        play.start_publisher()
    for number in range(rounds):
        with reported(number):
            if choice.random() < 0.3:
                time.sleep(choice.random() * 0.01)  # the newest may be opening its lane still
            else:
                for child in play.publishers.values():
                    child.wait_for("returned", child["returned"] + 1)
                time.sleep(choice.random() * 0.01)
            play.kill_publisher()
            play.start_publisher()
            play.check()
    with reported(rounds):
        play.end()


@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_a_killed_writer_costs_its_publishers_no_row_and_makes_none_come_twice(tmp_path, bus_name, server, logged):
    """Killed while it opens, drains what the one before has left, or drains. Now and then a publisher dies as well."""
    rounds = 100 if NIGHTLY else 12
    choice = random.Random(f"{SEED} writers {logged}")
    play = Play(server, bus_name, tmp_path / "data" if logged else None, choice, slots=1024)
    for _ in range(3):
        play.start_publisher()
    opening_s = 0.0
    for number in range(rounds):
        with reported(number):
            if number and choice.random() < 0.4:
                time.sleep(choice.random() * 1.5 * opening_s)  # it may be opening still
            else:
                play.writer.wait_for("ready")
                position = play.reader["position"]
                play.reader.wait_for("position", position + 1)
                time.sleep(choice.random() * 0.02)
            opening_s = play.writer["opening_ns"] / 1e9 or opening_s
            play.writer.kill()
            if choice.random() < 0.2:
                play.kill_publisher()
                play.start_publisher()
            play.writer = play.start_writer()
            play.check()
    with reported(rounds):
        play.writer.wait_for("ready")
        play.end()


@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_a_writer_that_was_taken_over_changes_nothing_when_it_wakes(tmp_path, bus_name, server, logged):
    """Most take-overs are of a stopped writer, which wakes at any instant; some of the new ones are killed."""
    rounds = 100 if NIGHTLY else 5
    choice = random.Random(f"{SEED} taken over {logged}")
    play = Play(server, bus_name, tmp_path / "data" if logged else None, choice, slots=1024)
    for _ in range(3):
        play.start_publisher()
    for number in range(rounds):
        with reported(number):
            old = play.writer
            old.wait_for("ready")
            play.reader.wait_for("position", play.reader["position"] + 1)
            time.sleep(choice.random() * 0.02)
            stopped = choice.random() < 0.8
            if stopped:
                old.pause()
            play.writer = play.start_writer(take_over=True)
            if choice.random() < 0.5:
                play.writer.wait_for("ready")
                time.sleep(choice.random() * 0.01)
            if stopped:
                old.resume()
            if choice.random() < 0.3:
                play.writer.wait_for("ready")
                play.writer.kill()
                play.writer = play.start_writer()
            play.writer.wait_for("ready")
            old.finish()
            play.check()
    with reported(rounds):
        play.end()


@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_a_stopped_publisher_keeps_its_lane_and_nobody_waits_for_it(tmp_path, bus_name, server, logged):
    rounds = 100 if NIGHTLY else 4
    choice = random.Random(f"{SEED} stopped {logged}")
    play = Play(server, bus_name, tmp_path / "data" if logged else None, choice, slots=4096)
    for _ in range(3):
        play.start_publisher().wait_for("returned")
    for number in range(rounds):
        with reported(number):
            time.sleep(choice.random() * 0.01)
            stopped = choice.choice(sorted(play.publishers))
            play.publishers[stopped].pause()
            for other, child in play.publishers.items():
                if other != stopped:
                    child.wait_for("returned", child["returned"] + 5000)
            returned = play.publishers[stopped]["returned"]
            play.reader.wait(lambda at=stopped, returned=returned: play.reader.place.seen(at) >= returned)
            play.publishers[stopped].resume()
            play.publishers[stopped].wait_for("returned", returned + 1)
    with reported(rounds):
        play.end()
