"""`ringmain clean`: it removes what the dead left in shared memory, and nothing of the living.

Every test names the bus that it cleans, or has a /dev/shm of its own: other runs may have dead writers of their own just now.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ringmain.bus import _segment
from ringmain.bus.segments import Segment, control_name, data_name
from ringmain.bus.segments import bus_name as bus_segment
from ringmain.subscribers import RealTime
from ringmain.tools.exit_codes import FAILED, MISSING, OK
from support.children import Child, Children
from support.command import SHM, facts, private_shm, ringmain, ringmain_in, segments, succeed

pytestmark = pytest.mark.process
TIMEOUT_S = 30.0

PUBLISH = (
    "rows = make_rows(POINTS, 1, 10)[list(POINTS.payload_dtype.names)].astype(POINTS.payload_dtype)\n"
    "last = writer['points'].publish_batch(rows)\n"
)


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


@pytest.fixture
def writer(children: Children, bus_name: str, tmp_path: Path) -> Child:
    """Has published ten durable records."""
    child = children.start()
    child.run("writer = Writer(name, [POINTS, PAIRS], data_dir=folder)", name=bus_name, folder=str(tmp_path))
    child.run(PUBLISH + "writer['points'].wait(last, 'durable', 30)")
    return child


@pytest.fixture
def rings_only(children: Children, bus_name: str) -> Child:
    child = children.start()
    child.run("writer = Writer(name, [POINTS])", name=bus_name)
    child.run(PUBLISH)
    return child


# --- the living -------------------------------------------------------------------------------------------------------


def test_a_living_writers_bus_is_left_alone(writer: Child, bus_name: str) -> None:
    before = segments(bus_name).keys()
    for options in ((), ("--force",), ("--dry-run",)):
        done = ringmain("clean", bus_name, *options)
        assert done.returncode == FAILED
        assert done.stdout.decode() == f"{bus_name}: left alone; its writer is alive, process {writer.pid}\n"
    assert segments(bus_name).keys() == before
    assert writer.ask("writer['points'].publish(1, 2, b'x')") == 11


def test_a_stopped_writers_bus_is_left_alone(writer: Child, bus_name: str) -> None:
    writer.pause()
    before = segments(bus_name)
    assert ringmain("clean", bus_name, "--force").returncode == FAILED
    assert segments(bus_name) == before
    writer.resume()
    assert writer.ask("writer['points'].publish(1, 2, b'x')") == 11


def test_a_writer_that_is_just_opening_is_left_alone(children: Children, bus_name: str) -> None:
    """It holds the lock of a segment that says nothing yet."""
    path = SHM / bus_segment(bus_name)[1:]
    path.touch()
    opening = children.start()
    opening.run("import fcntl; file = open(path); fcntl.flock(file, fcntl.LOCK_EX)", path=str(path))
    done = ringmain("clean", bus_name, "--force")
    assert done.returncode == FAILED
    assert done.stdout.decode() == f"{bus_name}: left alone; its writer is starting, process {opening.pid}\n"
    assert path.exists()
    opening.kill()
    succeed("clean", bus_name)
    assert not path.exists()


def test_a_living_writer_whose_own_segment_was_removed_keeps_its_rings(writer: Child, bus_name: str) -> None:
    (SHM / bus_segment(bus_name)[1:]).unlink()
    assert ringmain("clean", bus_name, "--force").returncode == FAILED
    assert len(segments(bus_name)) == 4
    assert writer.ask("writer['points'].publish(1, 2, b'x')") == 11


def test_no_writer_can_open_a_bus_while_it_is_cleaned(writer: Child, bus_name: str) -> None:
    """And cleaning waits for nobody: who holds the lock has the bus."""
    writer.kill()
    before = segments(bus_name)
    with (SHM / bus_segment(bus_name)[1:]).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = ringmain("clean", bus_name)
        assert done.returncode == FAILED
        assert f"process {os.getpid()}" in done.stdout.decode()
    assert segments(bus_name) == before


# --- the dead ---------------------------------------------------------------------------------------------------------


def test_a_dead_writers_segments_are_removed(writer: Child, bus_name: str, tmp_path: Path) -> None:
    writer.kill()
    left = segments(bus_name)
    assert len(left) == 5
    size = sum(map(len, left.values()))
    done = ringmain("clean", bus_name)
    assert (done.returncode, done.stderr) == (OK, b"")
    assert done.stdout.decode().startswith(f"{bus_name}: removed 5 segments, ")
    assert size > 0
    assert segments(bus_name) == {}
    assert ringmain("clean", bus_name).returncode == MISSING
    assert facts("log", "verify", tmp_path)["record_count"] == 10  # the log is not what it cleans


def test_a_dry_run_says_what_would_go_and_removes_nothing(writer: Child, bus_name: str) -> None:
    writer.kill()
    left = segments(bus_name)
    assert succeed("clean", bus_name, "--dry-run").startswith(f"{bus_name}: would remove 5 segments, ")
    shown = facts("clean", bus_name, "--dry-run")
    (bus,) = shown["buses"]
    assert (shown["dry_run"], bus["action"]) == (True, "would remove")
    assert {name.removeprefix("/") for name in bus["segments"]} == left.keys()
    assert bus["freed_bytes"] == sum(map(len, left.values()))
    assert segments(bus_name) == left
    (done,) = facts("clean", bus_name)["buses"]
    assert (done["action"], done["segments"], done["freed_bytes"]) == ("removed", bus["segments"], bus["freed_bytes"])


def test_records_that_only_a_ring_holds_are_not_removed_unasked(
    writer: Child, children: Children, bus_name: str, tmp_path: Path
) -> None:
    """The killed writer's watermarks say that its last three records are in no log."""
    writer.kill()
    ring = Segment.open(data_name(bus_name, "points"), writable=True)
    _segment.set_watermarks(ring.memory, claimed=10, published=10, logged=7, durable=7, indexed=0)
    left = segments(bus_name)
    done = ringmain("clean", bus_name)
    assert done.returncode == FAILED
    told = done.stdout.decode()
    assert f"{bus_name}: refused; 3 records are published and not in its log {tmp_path}/log" in told
    assert "open its writer again to save them, or lose them with --force" in told
    assert segments(bus_name) == left
    (bus,) = facts("clean", bus_name, code=FAILED)["buses"]
    assert (bus["action"], bus["lost_count"], bus["segments"]) == ("refused", 3, [])
    done = ringmain("clean", bus_name, "--force")
    assert done.returncode == OK
    assert f"warning: {bus_name}: 3 records are only in its rings, and are lost with them" in done.stderr.decode()
    assert segments(bus_name) == {}


def test_a_ring_that_cannot_be_read_is_not_removed_unasked(writer: Child, bus_name: str) -> None:
    """As another release wrote it: nobody here knows whether there is something in it that the log lacks."""
    writer.kill()
    ring = Segment.open(data_name(bus_name, "points"), writable=True)
    ring.memory[8] += 1  # the format's version
    left = segments(bus_name)
    for options in (("--dry-run",), ()):
        (bus,) = facts("clean", bus_name, *options, code=FAILED)["buses"]
        assert (bus["action"], bus["unread"], bus["segments"]) == ("refused", ["points"], [])
        assert "topic 'points' cannot be read" in bus["reason"]
        assert "format version" in bus["reason"]
    assert segments(bus_name) == left
    done = ringmain("clean", bus_name, "--force")
    assert done.returncode == OK
    assert "what is only in the rings of points could not be read, and is lost" in done.stderr.decode()
    assert segments(bus_name) == {}


def test_a_bus_without_a_log_is_removed_with_a_word_about_its_records(rings_only: Child, bus_name: str) -> None:
    rings_only.kill()
    done = ringmain("clean", bus_name)
    assert done.returncode == OK
    assert done.stderr.decode() == f"warning: {bus_name}: 10 records are only in its rings, and are lost with them\n"
    assert segments(bus_name) == {}


def test_readers_do_not_keep_a_dead_bus(writer: Child, children: Children, bus_name: str) -> None:
    reader = children.start()
    reader.run("reader = RealTime(address, start='earliest')", address=f"{bus_name}/points")
    writer.kill()
    succeed("clean", bus_name)
    assert segments(bus_name) == {}
    assert reader.ask("read_now(reader)") == list(range(1, 11))  # it has what it has mapped


@pytest.mark.parametrize("has_log", [True, False], ids=["with log", "rings only"])
def test_a_reader_that_lives_goes_on_with_the_next_writer(
    has_log: bool, children: Children, bus_name: str, tmp_path: Path
) -> None:
    def start() -> Child:
        child = children.start()
        child.run(
            "writer = Writer(name, [POINTS], data_dir=folder)", name=bus_name, folder=str(tmp_path) if has_log else None
        )
        return child

    first = start()
    with RealTime(f"{bus_name}/points", reopen=True) as reader:
        first.run(PUBLISH + "if folder: writer['points'].wait(last, 'durable', 30)")
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        assert batch.last == 10
        first.kill()
        succeed("clean", bus_name)
        assert reader.take(0.01) is None
        second = start()
        wanted = second.ask("writer['points'].publish(1, 2, b'x')")
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        assert (batch.first, batch.last, batch.lost) == (wanted, wanted, 0)
        assert wanted == (11 if has_log else 1)


def test_a_reader_of_a_bus_that_had_closed_still_ends(writer: Child, bus_name: str) -> None:
    """Its writer was killed when it had said so, and before all was removed."""
    with RealTime(f"{bus_name}/points") as reader:
        writer.kill()
        ring = Segment.open(data_name(bus_name, "points"), writable=True)
        control = Segment.open(control_name(bus_name, "points"), writable=True)
        _segment.add_status(ring.memory, control.memory, _segment.STATUS_CLOSED)
        succeed("clean", bus_name)
        assert segments(bus_name) == {}
        assert reader.take(0.01) is None
        assert reader.ended


@pytest.mark.parametrize(
    "left",
    [
        [bus_segment],
        [data_name],
        [control_name],
        [data_name, control_name],
    ],
    ids=["bus", "ring", "readers", "topic"],
)
def test_what_a_writer_left_that_died_while_it_opened_is_removed(
    left: list[Callable[..., str]], rings_only: Child, bus_name: str
) -> None:
    rings_only.kill()
    wanted = {(which(bus_name) if which is bus_segment else which(bus_name, "points"))[1:] for which in left}
    for name in segments(bus_name).keys() - wanted:
        (SHM / name).unlink()
    for name in wanted:
        (SHM / name).write_bytes(b"")  # made, and not yet given its size
    succeed("clean", bus_name)
    assert segments(bus_name) == {}


def test_the_next_writer_takes_a_bus_that_was_cleaned(
    writer: Child, children: Children, bus_name: str, tmp_path: Path
) -> None:
    writer.kill()
    succeed("clean", bus_name)
    second = children.start()
    second.run("writer = Writer(name, [POINTS, PAIRS], data_dir=folder)", name=bus_name, folder=str(tmp_path))
    assert second.ask("writer['points'].publish(1, 2, b'x')") == 11


# --- all buses --------------------------------------------------------------------------------------------------------

SEVERAL = """
import os, subprocess, sys
from ringmain.bus import Writer
from ringmain.storage import Schema
schema = Schema("points", {"x": "i8"})
for name in ("dead-a", "dead-b"):
    if os.fork() == 0:
        writer = Writer(name, [schema])
        os._exit(9)
    os.wait()
with Writer("living", [schema]):
    before = sorted(os.listdir("/dev/shm"))
    done = subprocess.run([sys.executable, "-P", "-m", "ringmain.tools", "clean", "--json"], capture_output=True)
    print(done.returncode, before, sorted(os.listdir("/dev/shm")), done.stdout.decode(), sep="\\n")
"""


def test_without_a_name_it_cleans_every_dead_bus_and_only_these(tmp_path: Path) -> None:
    program = tmp_path / "several.py"
    program.write_text(SEVERAL)
    done = ringmain_in(private_shm(), program, command=False)
    assert done.returncode == 0, done.stderr.decode()
    code, before, after, shown = done.stdout.decode().split("\n", 3)
    buses = {bus["bus"]: bus["action"] for bus in json.loads(shown)["buses"]}
    assert int(code) == OK
    assert len(json.loads(before.replace("'", '"'))) == 9
    assert json.loads(after.replace("'", '"')) == [
        "ringmain.living",
        "ringmain.living.points",
        "ringmain.living.points.ctl",
    ]
    assert buses == {"dead-a": "removed", "dead-b": "removed", "living": "left alone"}


def test_files_of_others_in_shared_memory_are_none_of_its_business() -> None:
    private = private_shm()
    script = "touch /dev/shm/other /dev/shm/ringmain /dev/shm/ringmain.UPPER /dev/shm/ringmain.a.b.c; "
    done = ringmain_in((*private, "sh", "-c", script + '"$@"; echo $?; ls /dev/shm', "sh"), "clean", "--force")
    assert done.stdout.decode().split() == ["0", "other", "ringmain", "ringmain.UPPER", "ringmain.a.b.c"]
    assert done.stderr.decode() == "nothing to clean: no buses are open on this machine\n"
