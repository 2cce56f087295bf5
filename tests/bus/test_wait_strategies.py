"""Waiting for records: spinning, yielding or asleep. Who sleeps is woken, costs nothing meanwhile, and can be called off."""

from __future__ import annotations

import asyncio
import math
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ringmain.bus import Batch, Writer, attach
from ringmain.bus._segment import WATERMARKS
from ringmain.subscribers import RealTime
from support.children import Child, Children
from support.logs import FILE_BYTES, POINTS, wait_until
from support.streams import TIMEOUT_S, check_batch, publish, read

SLOTS = 256
STRATEGIES = ["spin", "yield", "futex"]
SLICE_S = 0.5  # as wait.hpp has it: nobody sleeps longer without a look at what there is

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


def open_writer(bus: str, data_dir=None, **settings) -> Writer:
    return Writer(bus, [POINTS], **{"data_dir": data_dir, "slots": SLOTS, "log_file_bytes": FILE_BYTES, **settings})


def subscribe(bus: str, strategy: Any = "futex", **settings) -> RealTime:
    return RealTime(f"{bus}/points", wait=strategy, **settings)


def door(bus: str, follow: str = "published") -> tuple[bool, int]:
    """Whether somebody sleeps on a watermark and wants to be woken, and how often its bell was rung (FORMAT.md)."""
    control, which = attach(f"{bus}/points").control.memory, WATERMARKS.index(follow)
    want, bell = struct.unpack_from("<II", control, 256 + 128 * which)
    if follow == "published":
        (want,) = struct.unpack_from("<I", control, 128)
    return bool(want), bell


def wait_for_sleeper(bus: str, follow: str = "published") -> None:
    wait_until(lambda: door(bus, follow)[0], TIMEOUT_S)


class Waiting:
    """A reader that waits in a thread of its own."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.result: object = "still waiting"

        def run() -> None:
            self.result = wait()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def end(self) -> object:
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()
        return self.result


# --- delivering -----------------------------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("follow", ["published", "logged", "durable"])
def test_every_strategy_delivers_every_record(bus_name, tmp_path, children, strategy, follow):
    total, child = 400, children.start()
    child.run(
        f"writer = Writer(bus, [POINTS], data_dir=data_dir, log_file_bytes={FILE_BYTES})",
        bus=bus_name,
        data_dir=tmp_path,
    )
    with subscribe(bus_name, strategy, follow=follow) as reader:
        child.begin(
            """if True:
            for first in range(1, total + 1):
                writer["points"].publish_batch(make_rows(POINTS, first, 1))
                if first % 7 == 0:
                    time.sleep(0.001 * (first % 5))
            """,
            total=total,
        )
        read(reader, total)
        child.settle()
        assert reader.poll() is None


@pytest.mark.parametrize("follow", ["published", "logged", "durable"])
def test_a_sleeping_subscriber_is_woken_by_the_record_it_waits_for(bus_name, tmp_path, children, follow):
    child = children.start()
    with open_writer(bus_name, tmp_path) as writer:
        child.run(
            "reader = RealTime(address, follow=follow, wait='futex')", address=f"{bus_name}/points", follow=follow
        )
        waited_s = []
        for sequence in range(1, 21):
            _, bell = door(bus_name, follow)
            child.begin("batch = reader.take(30.0); at = time.monotonic()")
            wait_for_sleeper(bus_name, follow)
            published_at = time.monotonic()
            publish(writer["points"], 1)
            assert child.ask("(batch.first, batch.last)") == (sequence, sequence)
            waited_s.append(child.ask("at") - published_at)
            assert door(bus_name, follow)[1] > bell
    assert min(waited_s) < SLICE_S / 2  # woken: it has not just slept to the end of its slice every time


def test_one_record_wakes_everybody_who_sleeps(bus_name):
    with open_writer(bus_name) as writer:
        everybody = [subscribe(bus_name) for _ in range(8)]
        waiting = [Waiting(lambda reader=reader: reader.take(TIMEOUT_S)) for reader in everybody]
        wait_for_sleeper(bus_name)
        publish(writer["points"], 1)
        for one in waiting:
            batch = one.end()
            assert isinstance(batch, Batch)
            check_batch(batch, 1)
        for reader in everybody:
            reader.close()


def test_nobody_is_woken_where_nobody_sleeps(bus_name):
    with open_writer(bus_name) as writer, subscribe(bus_name, "spin") as spinning, subscribe(bus_name) as busy:
        waiting = Waiting(lambda: read(spinning, 100))
        for last in range(1, 101):
            publish(writer["points"], 1)
            read(busy, last)  # it never has to wait
        waiting.end()
        assert spinning.position == 100
        assert door(bus_name) == (False, 0)


def test_a_sleeper_moves_to_the_ring_of_a_writer_that_takes_over(bus_name, tmp_path):
    first = open_writer(bus_name, tmp_path)
    with subscribe(bus_name) as reader:
        read(reader, publish(first["points"], 5))
        waiting = Waiting(lambda: reader.take(TIMEOUT_S))
        wait_for_sleeper(bus_name)
        with open_writer(bus_name, tmp_path, take_over=True) as second:
            publish(second["points"], 1)
            batch = waiting.end()
            assert isinstance(batch, Batch)
            check_batch(batch, 6)
            assert reader.stats.reopen_count == 1
        first.close()


# --- what it costs --------------------------------------------------------------------------------------------------------


def cpu_s(child: Child, wait: str) -> float:
    child.run(f"begin = time.process_time(); {wait}; used = time.process_time() - begin")
    return child.ask("used")


def test_idle_processes_use_next_to_no_processor_time(bus_name, tmp_path, children):
    writer, reader, busy = children.start(), children.start(), children.start()
    writer.run("writer = Writer(bus, [POINTS], data_dir=data_dir)", bus=bus_name, data_dir=tmp_path)
    writer.run("writer['points'].wait(writer['points'].publish(1, 1, b''), 'durable', 30.0)")
    reader.run("reader = RealTime(address, wait='futex')", address=f"{bus_name}/points")
    busy.run(
        "readers = {wait: RealTime(address, wait=wait) for wait in ('spin', 'yield')}", address=f"{bus_name}/points"
    )
    spinning = cpu_s(busy, "readers['spin'].take(0.5)")
    yielding = cpu_s(busy, "readers['yield'].take(0.5)")
    sleeping = cpu_s(reader, "reader.take(0.5)")
    idle_writer = cpu_s(writer, "time.sleep(0.5)")
    assert sleeping < spinning / 4
    assert sleeping < yielding / 4
    assert idle_writer < spinning / 4


# --- ending a wait --------------------------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("way", ["take", "for"])
def test_closing_the_reader_from_another_thread_ends_its_wait(bus_name, strategy, way):
    with open_writer(bus_name):
        reader, begun = subscribe(bus_name, strategy), threading.Event()

        def wait() -> object:
            begun.set()
            return reader.take() if way == "take" else list(reader)

        waiting = Waiting(wait)
        assert begun.wait(TIMEOUT_S)
        if strategy == "futex":
            wait_for_sleeper(bus_name)
        reader.close()
        assert waiting.end() == (None if way == "take" else [])
        assert reader.ended


def test_closing_the_reader_ends_an_async_for(bus_name):
    async def main() -> int:
        count = 0
        with open_writer(bus_name) as writer:
            reader = subscribe(bus_name)

            async def collect() -> None:
                nonlocal count
                async for batch in reader:
                    count += len(batch)

            task = asyncio.create_task(collect())
            publish(writer["points"], 3)
            while count < 3 or not door(bus_name)[0]:
                await asyncio.sleep(0.001)
            reader.close()
            await task
        return count

    assert asyncio.run(asyncio.wait_for(main(), TIMEOUT_S)) == 3


@every_strategy
def test_the_writers_end_ends_a_wait(bus_name, strategy):
    writer = open_writer(bus_name)
    with subscribe(bus_name, strategy) as reader:
        waiting = Waiting(reader.take)
        writer.close()
        assert waiting.end() is None
        assert reader.ended


@every_strategy
@pytest.mark.parametrize("way", ["take", "for"])
def test_a_signal_is_served_while_waiting_and_the_reader_can_go_on(bus_name, strategy, way):
    class Called(Exception):
        pass

    def handler(*_: object) -> None:
        raise Called

    def wait(reader: RealTime) -> None:
        timer.start()
        reader.take() if way == "take" else list(reader)

    timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with open_writer(bus_name) as writer, subscribe(bus_name, strategy) as reader:
            with pytest.raises(Called):
                wait(reader)
            read(reader, publish(writer["points"], 3))
    finally:
        if timer.is_alive():
            timer.join()
        signal.signal(signal.SIGUSR1, before)


# --- time limits ----------------------------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("timeout", [-1, 0, 0.0, 0.02])
def test_a_wait_that_is_over_returns_nothing_and_takes_nothing(bus_name, strategy, timeout):
    with open_writer(bus_name) as writer, subscribe(bus_name, strategy) as reader:
        for last in (3, 6):
            assert reader.take(timeout) is None
            assert reader.position == last - 3
            assert not reader.ended
            publish(writer["points"], 3)
            batch = reader.take(timeout)  # what is there is handed out whatever the limit
            assert batch is not None
            assert check_batch(batch, last - 2) == last + 1


@every_strategy
@pytest.mark.parametrize("timeout", [None, math.inf, 1e9, TIMEOUT_S])
def test_a_wait_within_its_time_goes_on_until_there_is_a_record(bus_name, strategy, timeout):
    with open_writer(bus_name) as writer, subscribe(bus_name, strategy) as reader:
        waiting = Waiting(lambda: reader.take(timeout))
        if strategy == "futex":
            wait_for_sleeper(bus_name)
        assert waiting.result == "still waiting"
        publish(writer["points"], 1)
        batch = waiting.end()
        assert isinstance(batch, Batch)
        check_batch(batch, 1)


@every_strategy
def test_a_wait_longer_than_a_slice_is_one_wait_for_the_caller(bus_name, strategy):
    with open_writer(bus_name) as writer, subscribe(bus_name, strategy) as reader:
        waiting = Waiting(lambda: reader.take(TIMEOUT_S))
        waiting.thread.join(2.5 * SLICE_S)
        assert waiting.thread.is_alive()
        publish(writer["points"], 1)
        assert isinstance(waiting.end(), Batch)
