"""A position that a thread keeps on the disk without the interpreter: what it stores, and when it comes back."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ringmain.bus import Writer, attach
from ringmain.bus._slots import KeptPosition, SlotWriter
from ringmain.bus.positions import KIND_RESUMABLE, Position
from ringmain.bus.slot_file import SlotFile
from support.logs import POINTS
from support.streams import TIMEOUT_S, publish

NAP_S = 0.001
LONG_S = 600  # far more than what is waited for here
PAYLOAD = Position(KIND_RESUMABLE, 7, 0, b"\0").encode()


class Topic(NamedTuple):
    writer: Writer
    segment: memoryview


@pytest.fixture
def durable() -> int:
    return 10


@pytest.fixture
def topic(bus_name, tmp_path, durable) -> Iterator[Topic]:
    """A topic with so many durable records, and one that never will be."""
    with Writer(bus_name, [POINTS], data_dir=tmp_path / "data") as writer:
        publish(writer["points"], durable)
    with Writer(bus_name, [POINTS], data_dir=tmp_path / "data", sync_interval=3600) as writer:
        publish(writer["points"], 1)
        yield Topic(writer, memoryview(attach(f"{bus_name}/points").data.memory))


@pytest.fixture
def file(tmp_path) -> Iterator[SlotFile]:
    file = SlotFile.replace(tmp_path / "position", PAYLOAD)
    yield file
    file.close()


@pytest.fixture
def kept() -> KeptPosition:
    position = KeptPosition()
    position.begin(0, 0)
    return position


def keep(position: KeptPosition, file: SlotFile, topic: Topic, first_nap: float = NAP_S, nap: float = NAP_S) -> bool:
    assert file.writer is not None
    return position.keep(file.writer, PAYLOAD, topic.segment, first_nap, nap)


def stored(file: SlotFile) -> Position:
    payload = file.read()
    assert payload is not None
    return Position.decode(payload, Path("position"))


@contextlib.contextmanager
def beside(function: Callable[..., object], *arguments: object) -> Iterator[threading.Thread]:
    """Another thread runs it meanwhile; one that does not end, in a test that failed, holds up nothing."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_it_stores_what_is_done_with_and_comes_back(topic, file, kept):
    for sequence in (3, 7, 5):
        assert not kept.move_to(sequence)
        assert keep(kept, file, topic)
        assert kept.stored == sequence
        assert stored(file) == Position(KIND_RESUMABLE, 7, sequence, b"\0")


def test_it_stores_no_more_than_what_is_durable(topic, file, kept):
    kept.move_to(11)
    assert not keep(kept, file, topic)  # the first time up to 10, then nothing
    assert kept.stored == stored(file).sequence == 10


def test_it_comes_back_when_it_is_asked(topic, file, kept):
    kept.move_to(5)
    kept.ask()
    assert not keep(kept, file, topic, LONG_S)
    with beside(keep, kept, file, topic, LONG_S) as keeper:
        time.sleep(0.05)
        assert keeper.is_alive()
        kept.ask()
    assert kept.stored == stored(file).sequence == 0


def test_it_sleeps_while_nothing_moves_and_stores_the_next_at_once(topic, file, kept):
    kept.move_to(3)
    assert keep(kept, file, topic)
    with beside(keep, kept, file, topic, NAP_S, LONG_S) as keeper:
        time.sleep(0.05)
        assert keeper.is_alive()
        kept.move_to(4)
    assert kept.stored == stored(file).sequence == 4


def test_many_rows_are_stored_sooner(topic, file):
    kept = KeptPosition()
    kept.begin(0, 0, every_rows=5)
    with beside(keep, kept, file, topic, LONG_S):
        kept.move_to(4)
        time.sleep(0.05)
        assert kept.stored == 0
        kept.move_to(5)
    assert kept.stored == stored(file).sequence == 5


@pytest.mark.parametrize("durable", [100_000])
def test_it_comes_back_now_and_then_from_a_subscriber_that_goes_on(topic, file, kept, durable):
    over = threading.Event()

    def go_on() -> None:  # only ahead: one that is back where it was has nothing to store
        for sequence in range(1, durable + 1):
            if over.is_set():
                break
            kept.move_to(sequence)
            time.sleep(50e-6)

    with beside(go_on) as subscriber:
        try:
            for _ in range(3):
                assert keep(kept, file, topic)
                assert subscriber.is_alive()
                assert kept.stored == stored(file).sequence > 0
        finally:
            over.set()


def test_it_says_what_the_disk_refuses(topic, file, kept):
    kept.move_to(3)
    closed = os.open(file.path, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kept.keep(SlotWriter(closed, 4096, 2, 1), PAYLOAD, topic.segment, NAP_S, NAP_S)
    os.close(closed)
    assert kept.stored == stored(file).sequence == 0
    kept.fail()
    assert not kept.move_to(3)  # it has been there
    assert kept.move_to(4)


def test_a_payload_that_holds_no_position_is_refused(topic, file, kept):
    with pytest.raises(ValueError, match="at least 40 bytes are expected, got 39"):
        kept.keep(file.writer, PAYLOAD[:39], topic.segment, NAP_S, NAP_S)


def test_nothing_of_the_interpreter_is_needed_meanwhile(topic, file, kept):
    interval = sys.getswitchinterval()
    kept.move_to(3)
    sys.setswitchinterval(2 * TIMEOUT_S)
    try:
        with beside(keep, kept, file, topic, 0.1):
            deadline = time.monotonic() + TIMEOUT_S
            while not kept.stored and time.monotonic() < deadline:  # and this thread has the interpreter all the time
                pass
            assert kept.stored == 3
    finally:
        sys.setswitchinterval(interval)
