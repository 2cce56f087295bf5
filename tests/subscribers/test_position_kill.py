"""Subscribers and writers killed, stopped and continued at random instants, with an account of every row.

At least once misses none; exactly once counts each once; the rows of a group's dead member are worked on by the living.
RINGMAIN_KILL_SEED gives other instants; RINGMAIN_NIGHTLY makes it 100 rounds of each. A failure names the seed and the round.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus.positions import read_position
from ringmain.subscribers import Resumable
from support.forked import Child, Server
from support.kill_children import MARKS, Place
from support.position_children import ROWS_MAX, Tally, tally_of

SEED = int(os.environ.get("RINGMAIN_KILL_SEED", "20240611"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
ROUNDS = 100 if NIGHTLY else 14
SLOTS = 2048
GROUP_TIMEOUT_S = 0.4
CHILDREN = Path(__file__).parents[1] / "support" / "position_children.py"
pytestmark = [pytest.mark.process, pytest.mark.timeout(1800 if NIGHTLY else 180)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, CHILDREN, Place)
    yield server
    server.close()


class Cast:
    """The processes of a bus: a writer and some subscribers, each of which is replaced when it is killed."""

    def __init__(self, server: Server, choice: random.Random, bus: str, folder: Path) -> None:
        self.server, self.choice, self.bus, self.folder = server, choice, bus, folder
        self.counts = folder / "counts"
        with self.counts.open("wb") as file:
            file.truncate(ROWS_MAX)
        self.children: dict[str, Child] = {}
        self.starts: dict[str, Callable[[], Child]] = {}

    def add(self, name: str, role: str, **arguments: object) -> None:
        def start() -> Child:
            return self.server.start(role, bus=self.bus, seed=self.choice.randrange(1 << 30), **arguments)

        self.starts[name] = start
        self.children[name] = start()
        self.children[name].wait_for("ready")

    def disturb(self, name: str) -> None:
        """Kill it and start the next one, or let it stand still for a while; sometimes while it is only starting."""
        child = self.children[name]
        if self.choice.random() < 0.6:
            if self.choice.random() < 0.8:
                child.wait_for("ready")
            time.sleep(self.choice.random() * 0.02)
            child.kill()
            self.children[name] = self.starts[name]()
        else:
            child.pause()
            time.sleep(self.choice.random() * (1.5 if self.choice.random() < 0.2 else 0.1))
            child.resume()

    def play(self) -> None:
        for number in range(ROUNDS):
            with reported(number):
                time.sleep(self.choice.random() * 0.25)
                self.disturb(self.choice.choice(list(self.children)))

    def finish(self, position: Callable[[], int]) -> int:
        """Let the writer close, wait until the subscribers are done with all, and close them. Returns how much it was.

        position: how far they are. One that has not found this writer's ring when it closes would wait for the next writer.
        """
        for child in self.children.values():
            child.wait_for("ready")
        writer = self.children.pop("writer")
        writer.wait(lambda: position() > writer["opened"])
        writer.finish()
        last = writer["returned"]
        for child in self.children.values():
            child.wait(lambda: position() == last)
        for child in self.children.values():
            child.finish()
        assert last > 1000
        return last

    def counted(self) -> np.ndarray:
        return np.memmap(self.counts, "u1", "r")


@contextlib.contextmanager
def reported(number: int) -> Iterator[None]:
    """Name the seed and the round in whatever fails within."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"RINGMAIN_KILL_SEED={SEED}, round {number}")
        raise


@pytest.fixture
def cast(server, tmp_path, bus_name, request) -> Cast:
    cast = Cast(server, random.Random(f"{SEED} {request.node.name}"), bus_name, tmp_path)
    cast.add("writer", "write", data_dir=str(tmp_path / "data"), slots=SLOTS)
    return cast


def acknowledged(cast: Cast, name: str) -> int:
    position = read_position(cast.folder / "data" / "positions" / MARKS.name / name)
    return position.sequence if position is not None else 0


@pytest.mark.parametrize("exactly_once", [False, True], ids=["at least once", "exactly once"])
def test_a_resumable_subscriber_misses_no_row_and_counts_none_twice(cast, exactly_once):
    cast.add("reader", "resume", exactly_once=exactly_once, counts=str(cast.counts))
    cast.play()
    with reported(ROUNDS):
        reader = cast.children["reader"]
        last = cast.finish(lambda: reader["position"])
        name = "exactly-once" if exactly_once else "at-least-once"
        assert acknowledged(cast, name) == last
        if exactly_once:
            cast.add("writer", "write", data_dir=str(cast.folder / "data"), slots=SLOTS)
            with Resumable(f"{cast.bus}/{MARKS.name}", name, state=Tally) as resumed:
                assert resumed.state == tally_of(last)
        else:
            assert cast.counted()[1 : last + 1].min() >= 1
            assert not cast.counted()[last + 1 :].any()


def test_a_group_misses_no_row_whoever_dies(cast):
    for number in range(3):
        cast.add(f"member {number}", "share", counts=str(cast.counts), timeout=GROUP_TIMEOUT_S)
    cast.play()
    with reported(ROUNDS):
        last = cast.finish(lambda: acknowledged(cast, "group"))
        counts = cast.counted()[1 : last + 1]
        assert counts.min() >= 1
