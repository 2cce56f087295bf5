"""Processes killed, stopped and continued at random instants, 200 rounds: what they leave, the others can go on with.

A round is one such event. The rounds of a test share one bus, and so every restart begins with what all the rounds before
have left. RINGMAIN_KILL_SEED gives other instants; a failure names the seed and the round.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus import Writer, WriterAlive, _segment, attach
from ringmain.bus.segments import open_control
from ringmain.subscribers import Historical
from support.forked import Child, Server
from support.kill_children import MARKS, Place, find_fault

SEED = int(os.environ.get("RINGMAIN_KILL_SEED", "20240229"))
SLOTS = 4096
CHILDREN = Path(__file__).parents[1] / "support" / "kill_children.py"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, CHILDREN, Place)
    yield server
    server.close()


@dataclass
class Story:
    """What the writers of one bus have said, one after another, and whether it fits together."""

    opened: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (writer, where it began)
    returned: int = 0  # the last writer's
    attempted: int = 0

    def tell(self, writer: int, place: Place) -> None:
        """The next writer's part, once it has ended, or whenever more is known."""
        if not place["ready"]:
            return  # it has not come as far as to change anything
        if not self.opened or self.opened[-1][0] != writer:
            assert self.returned <= place["opened"], "published, and gone after the restart"
            assert place["opened"] <= self.attempted, "more than was ever published"
            self.opened.append((writer, place["opened"]))
        self.returned, self.attempted = place["returned"], place["attempted"]

    def check(self, reader: Place, *, ended: bool = True) -> None:
        """Each sequence is the row of the writer that published it, and of no other. ended: the last writer has."""
        ends = [*(first for _, first in self.opened[1:]), self.attempted if ended else math.inf]
        for (writer, began), ended in zip(self.opened, ends, strict=True):
            first, last = reader.seen(writer)
            assert first == 0 or began < first <= last <= ended, f"writer {writer} had {began + 1} to {ended}"


@contextlib.contextmanager
def reported(number: int) -> Iterator[None]:
    """Name the seed and the round in whatever fails within."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"RINGMAIN_KILL_SEED={SEED}, round {number}")
        raise


def left_in_memory(bus: str) -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").glob(f"ringmain.{bus}*"))


def check_log(data_dir: Path, bus: str, story: Story) -> None:
    """What the log keeps is whole, without a hole, of the right writers, and reaches to the end."""
    position = 0
    kept = Place(data_dir / "kept.place")
    with Historical(f"{bus}/{MARKS.name}", data_dir=data_dir) as reader:
        for batch in reader:
            assert position in (0, batch.first - 1)
            assert find_fault(batch.rows) == ""
            kept.see(batch.rows)
            position = batch.last
    assert position == story.returned == story.attempted
    story.check(kept)


def entries(bus: str, reader: Child) -> list[dict[str, Any]]:
    """What the reader table says of a reader."""
    control = open_control(bus, MARKS.name)
    return [entry for entry in _segment.list_readers(control.memory) if entry["pid"] == reader.pid]


@pytest.mark.process
@pytest.mark.parametrize(
    "sync", ["interval", "never", "always", None], ids=lambda sync: f"sync {sync}" if sync else "rings only"
)
def test_what_a_killed_writer_had_published_is_there_after_the_restart(tmp_path, bus_name, server, sync):
    """20 kills each: while it opens, or while it publishes one by one, in batches and in claims."""
    choice = random.Random(f"{SEED} {sync}")
    data_dir = tmp_path / "data" if sync else None
    settings = {"bus": bus_name, "data_dir": data_dir and str(data_dir), "slots": SLOTS, "sync": sync or "interval"}
    story = Story()
    writer = server.start("write", writer=0, seed=choice.randrange(1 << 30), wait=True, **settings)
    writer.wait_for("ready")
    reliable = server.start("read", bus=bus_name, seed=choice.randrange(1 << 30), reliable=True, nap_s=0.004)
    lossy = server.start("read", bus=bus_name, seed=choice.randrange(1 << 30), nap_s=0.01)
    readers = [reliable, lossy]
    for reader in readers:
        reader.wait_for("ready")
    writer.place["go"] = 1

    opening_s = 0.0
    for number in range(20):
        with reported(number):
            if number and choice.random() < 0.5:
                time.sleep(choice.random() * 1.2 * opening_s)  # it may be opening still
            else:
                writer.wait_for("returned", writer["opened"] + 1)
                time.sleep(choice.random() * 0.06)
            writer.kill()
            opening_s = writer["opening_ns"] / 1e9 or opening_s
            story.tell(number, writer.place)
            if choice.random() < 0.5:  # all that it had published can be read without it
                for reader in readers:
                    reader.wait_for("position", story.returned)
            writer = server.start("write", writer=number + 1, seed=choice.randrange(1 << 30), **settings)
            for reader in readers:
                story.check(reader.place)
    with reported(20):
        writer.wait_for("ready")
        for reader in readers:  # one that has not found this writer's ring when it closes would wait for the next
            reader.wait_for("position", writer["opened"] + 1)
        writer.finish()
        story.tell(20, writer.place)
        for reader in readers:
            reader.end()
            story.check(reader.place)
            assert reader["position"] == story.returned == story.attempted
            assert reader["row_count"] + reader["lost_count"] == story.returned
        assert reliable["overrun_count"] == reliable["lost_count"] == 0
        if data_dir is not None:
            check_log(data_dir, bus_name, story)
        assert left_in_memory(bus_name) == []


@pytest.mark.process
@pytest.mark.parametrize("full", ["block", "drop"])
@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_a_killed_reader_never_keeps_the_writer_and_its_successor_goes_on_behind_it(
    tmp_path, bus_name, server, logged, full
):
    """15 kills each, of reliable and lossy readers: while they attach, catch up, or follow."""
    choice = random.Random(f"{SEED} readers {logged} {full}")
    data_dir = tmp_path / "data" if logged else None
    writer = server.start(
        "write",
        bus=bus_name,
        writer=0,
        seed=choice.randrange(1 << 30),
        data_dir=data_dir and str(data_dir),
        slots=SLOTS,
        full=full,
    )
    writer.wait_for("ready")

    def start(reliable: bool, begin: int) -> Child:
        nap_s = 0.004 if reliable else 0.01
        seed = choice.randrange(1 << 30)
        return server.start("read", bus=bus_name, seed=seed, reliable=reliable, nap_s=nap_s, start=begin)

    kinds = [True, True, False]
    readers = [start(reliable, 1) for reliable in kinds]
    begun = [1] * len(kinds)
    for number in range(15):
        with reported(number):
            at = choice.randrange(len(kinds))
            victim = readers[at]
            if choice.random() < 0.7:
                victim.wait_for("position", begun[at])
            time.sleep(choice.random() * choice.choice([0.005, 0.05]))
            victim.kill()
            writer.wait_for("returned", writer["returned"] + 2 * SLOTS)
            begun[at] = max(begun[at], victim["position"] + 1)
            readers[at] = start(kinds[at], begun[at])
    with reported(15):
        for reader, first in zip(readers, begun, strict=True):
            reader.wait_for("position", first)
            reader.finish()
            assert reader["row_count"] + reader["lost_count"] == reader["position"] - first + 1
        writer.finish()
        assert left_in_memory(bus_name) == []


@pytest.mark.process
@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_stopped_processes_are_not_dead_ones_and_go_on_where_they_were(tmp_path, bus_name, server, logged):
    """20 stops each: of the writer, of a reliable reader, of a lossy one."""
    choice = random.Random(f"{SEED} stopped {logged}")
    data_dir = tmp_path / "data" if logged else None
    settings = {"bus": bus_name, "data_dir": data_dir and str(data_dir), "slots": SLOTS}
    writer = server.start("write", writer=0, seed=choice.randrange(1 << 30), wait=True, **settings)
    writer.wait_for("ready")
    reliable = server.start("read", bus=bus_name, seed=choice.randrange(1 << 30), reliable=True, nap_s=0.002)
    lossy = server.start("read", bus=bus_name, seed=choice.randrange(1 << 30), nap_s=0.006)
    readers = [reliable, lossy]
    for reader in readers:
        reader.wait_for("ready")
    writer.place["go"] = 1
    ring = attach(f"{bus_name}/{MARKS.name}")

    for number in range(20):
        with reported(number):
            writer.wait_for("returned", writer["returned"] + 1)
            time.sleep(choice.random() * 0.02)
            target = choice.choice([writer, reliable, lossy])
            target.pause()
            before, lost = writer["returned"], lossy["lost_count"]
            if target is writer:
                for reader in readers:
                    reader.wait_for("position", before)
                with pytest.raises(WriterAlive):
                    Writer(bus_name, [MARKS], data_dir=data_dir, slots=SLOTS)
                target.resume()
                writer.wait_for("returned", before + SLOTS)
            elif target is reliable:
                (entry,) = entries(bus_name, reliable)
                writer.wait_for("attempted", entry["consumed"] + SLOTS + 1)  # it wants more than it may
                assert ring.watermarks().published <= entry["consumed"] + SLOTS
                lossy.wait_for("position", writer["returned"])
                assert ring.watermarks().published <= entry["consumed"] + SLOTS
                assert entries(bus_name, reliable) == [entry]
                target.resume()
                writer.wait_for("returned", before + 2 * SLOTS)
            else:
                writer.wait_for("returned", before + 3 * SLOTS)
                target.resume()
                lossy.wait_for("position", before + 3 * SLOTS)
                assert logged or lossy["lost_count"] > lost
    with reported(20):
        writer.finish()
        for reader in readers:
            reader.end()
            assert reader["position"] == writer["returned"]
            assert reader["row_count"] + reader["lost_count"] == writer["returned"]
        assert reliable["overrun_count"] == reliable["lost_count"] == 0
        assert left_in_memory(bus_name) == []


@pytest.mark.process
@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_a_writer_that_was_taken_over_cannot_write_when_it_wakes(tmp_path, bus_name, server, logged):
    """10 take-overs each, most of them of a stopped writer. It wakes at any instant, and closes beside the new one."""
    choice = random.Random(f"{SEED} taken over {logged}")
    data_dir = tmp_path / "data" if logged else None
    settings = {"bus": bus_name, "data_dir": data_dir and str(data_dir), "slots": SLOTS}
    story = Story()
    writer = server.start("write", writer=0, seed=choice.randrange(1 << 30), wait=True, **settings)
    writer.wait_for("ready")
    readers = [
        server.start("read", bus=bus_name, seed=choice.randrange(1 << 30), reliable=True, nap_s=0.002),
        server.start("read", bus=bus_name, seed=choice.randrange(1 << 30), nap_s=0.006),
        server.start("read", bus=bus_name, seed=choice.randrange(1 << 30)),
    ]
    for reader in readers:
        reader.wait_for("ready")
    writer.place["go"] = 1

    for number in range(10):
        with reported(number):
            old = writer
            old.wait_for("returned", old["opened"] + 1)
            time.sleep(choice.random() * 0.04)
            stopped = choice.random() < 0.8
            if stopped:
                old.pause()
            writer = server.start(
                "write", writer=number + 1, seed=choice.randrange(1 << 30), take_over=True, **settings
            )
            if choice.random() < 0.3:
                time.sleep(choice.random() * 0.01)  # the new one may be opening still
            else:
                writer.wait_for("returned", writer["opened"] + 1)
            if stopped:
                old.resume()
            old.wait_for("fenced")
            old.end()
            writer.wait_for("ready")
            story.tell(number, old.place)
            story.tell(number + 1, writer.place)
            writer.wait_for("returned", writer["opened"] + 2 * SLOTS)
            for reader in readers:
                reader.wait_for("position", writer["opened"] + 1)
                story.check(reader.place, ended=False)
    with reported(10):
        writer.finish()
        story.tell(10, writer.place)
        for reader in readers:
            reader.end()
            story.check(reader.place)
            assert reader["position"] == story.returned == story.attempted
            assert reader["row_count"] + reader["lost_count"] == story.returned
        assert readers[0]["overrun_count"] == readers[0]["lost_count"] == 0
        if data_dir is not None:
            check_log(data_dir, bus_name, story)
        assert left_in_memory(bus_name) == []
