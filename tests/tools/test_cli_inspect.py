"""`ringmain ls`, `inspect` and `top`: what they show, and that they only look, whatever state the writer is in."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ringmain.bus.segments import bus_name as bus_segment
from ringmain.bus.segments import control_name, data_name
from ringmain.subscribers import Acknowledged, Resumable
from ringmain.tools.exit_codes import INTERRUPTED, MISSING, OK
from support.children import Child, Children
from support.command import (
    SHM,
    TIMEOUT_S,
    facts,
    mapped_as,
    on_terminal,
    private_shm,
    ringmain,
    ringmain_in,
    segments,
    started,
    stop,
    succeed,
)
from support.logs import wait_until

pytestmark = pytest.mark.process

WRITERS = ("alive", "stopped", "dead")


class Scene(NamedTuple):
    """A bus with two topics, 300 points published, and two readers of these, one of them 100 behind."""

    bus: str
    log: Path
    writer: Child
    readers: tuple[Child, Child]
    children: Children

    def enter(self, state: str) -> None:
        """Let the writer be alive, stopped or dead; the readers are stopped, so that they too leave all bytes as they are."""
        for reader in self.readers:
            stop(reader.pid)
        if state == "stopped":
            stop(self.writer.pid)
        elif state == "dead":
            self.writer.kill()


@pytest.fixture
def scene(tmp_path: Path, bus_name: str) -> Iterator[Scene]:
    with Children() as children:
        writer, quick, slow = children.start(), children.start(), children.start()
        writer.run(
            "writer = Writer(name, [POINTS, PAIRS], data_dir=folder, slots={'points': 1024, 'pairs': 16384})\n"
            "topic = writer['points']\n"
            "publish = lambda first, count: topic.publish_batch(\n"
            "    make_rows(POINTS, first, count)[list(POINTS.payload_dtype.names)].astype(POINTS.payload_dtype))",
            name=bus_name,
            folder=str(tmp_path),
        )
        quick.run("reader = RealTime(address, name='quick')", address=f"{bus_name}/points")
        slow.run(
            "reader = RealTime(address, name='slow', reliable=True, follow='durable')", address=f"{bus_name}/points"
        )
        writer.run("topic.wait(publish(1, 200), 'durable', 30)")
        quick.run("read_now(reader)")
        slow.run("read_now(reader)")
        writer.run("topic.wait(publish(201, 100), 'durable', 30)")
        quick.run("read_now(reader)")
        yield Scene(bus_name, tmp_path, writer, (quick, slow), children)


def one(shown: dict[str, Any], bus: str) -> dict[str, Any]:
    return next(entry for entry in shown["buses"] if entry["bus"] == bus)


def words_of(text: str) -> str:
    return " ".join(text.split())


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_inspect_shows_everything_about_a_topic(scene: Scene) -> None:
    bus = facts("inspect", f"{scene.bus}/points", "--interval", "0.1")
    assert bus["bus"] == scene.bus
    assert (bus["writer"]["state"], bus["writer"]["pid"], bus["writer"]["epoch"]) == ("alive", scene.writer.pid, 1)
    assert bus["data_dir"] == str(scene.log)
    assert [entry["topic"] for entry in bus["topics"]] == ["points"]
    topic = bus["topics"][0]
    assert {name: topic[name] for name in ("problem", "status", "log_error", "slot_count", "log_directory")} == {
        "problem": "",
        "status": [],
        "log_error": "",
        "slot_count": 1024,
        "log_directory": str(scene.log / "log"),
    }
    assert [topic[name] for name in ("published", "logged", "durable")] == [300] * 3
    assert 300 <= topic["claimed"] <= 300 + 1024  # a writer claims slots ahead
    assert [topic[f"{name}_per_s"] for name in ("published", "logged", "durable")] == [0.0] * 3
    assert topic["segment_bytes"] == (SHM / data_name(scene.bus, "points")[1:]).stat().st_size
    assert [field["name"] for field in topic["schema"]["fields"]] == ["value", "check", "tag"]
    assert topic["schema"]["fields"][0] == {"name": "value", "type": "u8", "unit": "made up"}
    assert topic["schema"]["row_bytes"] == 40
    readers = {reader["name"]: reader for reader in topic["readers"]}
    shown = ("pid", "process", "entry", "policy", "follow", "consumed", "lag_count", "overrun_count", "lost_count")
    quick, slow = scene.readers
    assert [readers["quick"][name] for name in shown] == [
        quick.pid,
        "alive",
        "active",
        "lossy",
        "published",
        300,
        0,
        0,
        0,
    ]
    assert [readers["slow"][name] for name in shown] == [
        slow.pid,
        "alive",
        "active",
        "reliable",
        "durable",
        200,
        100,
        0,
        0,
    ]
    for reader in readers.values():
        assert reader["consumed_per_s"] == 0.0
        assert 0 <= reader["heartbeat_age_s"] <= reader["attached_age_s"]


def test_inspect_tells_people_the_same(scene: Scene) -> None:
    text = words_of(succeed("inspect", f"{scene.bus}/points", "--interval", "0"))
    assert f"{scene.bus}/points writer alive, pid {scene.writer.pid}, epoch 1, heartbeat" in text
    assert f"log {scene.log}/log" in text
    assert "ring 1,024 slots of 40 bytes, 52.0 KiB; opened" in text
    assert re.search(r"published 300 - logged 300 0 - durable 300 0 -", text)
    assert "value u8 made up check u4 tag S5" in text
    assert re.search(rf"slow {scene.readers[1].pid} 200 - 0 0 durable, reliable alive 100 [\d.]+ s ago 0", text)


def test_inspect_shows_the_positions_that_subscribers_have_stored(scene: Scene) -> None:
    address = f"{scene.bus}/points"
    with Resumable(address, "audit", start=1) as audit, Acknowledged(address, "risk", start=1, batch_rows=100) as risk:
        assert audit.take(30) is not None
        audit.commit()
        audit.sync(30)
        batch = risk.take(30)
        assert batch is not None
        risk.ack(batch)
        assert risk.take(30) is not None
        (scene.log / "positions" / "points" / "damaged").mkdir()
        (scene.log / "positions" / "points" / "damaged" / "position").write_bytes(b"x" * 8192)
        topic = facts("inspect", address, "--interval", "0")["topics"][0]
        shown = {position["name"]: position for position in topic["positions"]}
        assert shown["audit"] == {
            "name": "audit",
            "problem": "",
            "kind": "resumable",
            "acknowledged": audit.position,
            "behind_count": 300 - audit.position,
            "open_count": None,
            "member_count": None,
        }
        assert [
            shown["risk"][name] for name in ("kind", "acknowledged", "behind_count", "open_count", "member_count")
        ] == [
            "group",
            100,
            200,
            100,
            1,
        ]
        assert "neither of its two slots" in shown["damaged"]["problem"]
        readers = {reader["name"]: reader["acknowledged"] for reader in topic["readers"]}
        assert (readers["risk"], readers["quick"]) == (100, 0)
        text = words_of(succeed("inspect", address, "--interval", "0"))
        assert "positions (3)" in text
        assert "risk group 100 200 100 1" in text
    shown = facts("inspect", address, "--interval", "0")["topics"][0]["positions"]
    assert [position["open_count"] for position in shown if position["name"] == "risk"] == [
        100
    ]  # given back, not settled
    assert [position["member_count"] for position in shown if position["name"] == "risk"] == [0]


def test_inspect_shows_a_bus_with_all_its_topics(scene: Scene) -> None:
    text = words_of(succeed("inspect", scene.bus, "--interval", "0"))
    assert re.search(
        r"pairs 0 0 0 16,384 24 0 - 0 0 [\d.]+ KiB - points 300 300 300 1,024 40 2 - 0 0 52.0 KiB 100", text
    )
    assert "readers of points" in text
    assert f"ringmain inspect {scene.bus}/pairs shows a topic's schema" in text
    shown = facts("inspect", scene.bus, "--interval", "0")
    assert [topic["topic"] for topic in shown["topics"]] == ["pairs", "points"]


def test_ls_lists_every_topic_on_a_line(scene: Scene) -> None:
    lines = [words_of(line) for line in succeed("ls").splitlines() if line.startswith(scene.bus)]
    assert len(lines) == 2
    assert re.fullmatch(rf"{scene.bus}/pairs alive {scene.writer.pid} 1 0 [\d.]+ KiB 0 0", lines[0])
    assert re.fullmatch(rf"{scene.bus}/points alive {scene.writer.pid} 1 300 52.0 KiB 2 0", lines[1])
    topics = one(facts("ls"), scene.bus)["topics"]
    assert {topic["topic"]: topic["published"] for topic in topics} == {"pairs": 0, "points": 300}


def test_top_shows_topics_with_their_readers(scene: Scene) -> None:
    lines = [words_of(line) for line in succeed("top", scene.bus, "--once").splitlines()]
    pid, (quick, slow) = scene.writer.pid, scene.readers
    assert f"{scene.bus}/points {pid} alive 300 0 0" in lines
    assert f"quick {quick.pid} alive 300 0 0 0 0" in lines
    assert f"slow {slow.pid} alive 200 0 100 0 0" in lines
    shown = one(facts("top", scene.bus, "--once"), scene.bus)
    assert {topic["topic"]: topic["published_per_s"] for topic in shown["topics"]} == {"pairs": 0.0, "points": 0.0}


def test_rates_are_records_per_second(scene: Scene) -> None:
    """A writer that publishes all the time: some hundreds a second at least, and the reader of all keeps up."""
    scene.writer.begin("while True: publish(1, 1); time.sleep(0.001)")
    scene.readers[0].begin("while True: reader.take(1)")
    scene.readers[1].kill()
    bus = facts("inspect", f"{scene.bus}/points", "--interval", "1")
    (topic,) = bus["topics"]
    (reader,) = (reader for reader in topic["readers"] if reader["name"] == "quick")
    assert topic["published_per_s"] > 0
    assert topic["durable_per_s"] > 0
    assert reader["consumed_per_s"] > 0


def test_a_reader_that_was_lapped_shows_it(scene: Scene) -> None:
    scene.readers[1].kill()
    scene.writer.run("topic.wait(publish(301, 3000), 'durable', 30)")
    scene.readers[0].run("read_now(reader)")
    (topic,) = facts("inspect", f"{scene.bus}/points", "--interval", "0")["topics"]
    readers = {reader["name"]: reader for reader in topic["readers"]}
    assert readers["quick"]["consumed"] == 3300
    assert readers["quick"]["overrun_count"] >= 1
    assert readers["quick"]["lost_count"] == 0
    assert readers["quick"]["refilled_count"] >= 3000 - 1024
    assert readers.get("slow", {"process": "dead"})["process"] == "dead"  # shown until the writer has let go of it


def test_a_name_cannot_steer_the_terminal(scene: Scene) -> None:
    scene.readers[0].run("other = RealTime(address, name='\\x1b[2Jred\\n\\x07')")
    for line in (("inspect", scene.bus, "--interval", "0"), ("top", scene.bus, "--once")):
        text = succeed(*line)
        assert not set(text) & {"\x1b", "\x07"}
        assert "�[2Jred" in text


def test_names_are_never_cut_where_there_is_no_terminal(bus_name: str, scene: Scene) -> None:
    long = "x" * 32
    writer = scene.children.start()
    writer.run("writer = Writer(name, [Schema(topic, {'x': 'i8'})])", name=f"{bus_name}-2", topic=long)
    assert f"{bus_name}-2/{long} " in succeed("ls")
    assert f"{bus_name}-2/{long} " in succeed("top", f"{bus_name}-2", "--once")
    assert f"{long} " in succeed("inspect", f"{bus_name}-2", "--interval", "0")


def test_a_terminal_is_never_too_narrow_for_a_number(scene: Scene) -> None:
    scene.writer.run("writer['pairs'].publish_batch(np.zeros(2_000_000, PAIRS.payload_dtype))")
    for line in (("ls",), ("inspect", scene.bus, "--interval", "0"), ("top", scene.bus, "--once")):
        with on_terminal(*line, columns=80) as terminal:
            assert terminal.finish() == OK
            assert "2,000,000" in terminal.text
            assert max(map(len, terminal.text.splitlines())) <= 80


# --- beside a hung or dead writer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["stopped", "dead"])
def test_they_look_beside_a_writer_that_hangs_or_is_dead_and_write_nothing(state: str, scene: Scene) -> None:
    scene.enter(state)
    before = segments(scene.bus)
    assert len(before) == 5
    for line in (("inspect", f"{scene.bus}/points"), ("inspect", scene.bus), ("top", scene.bus, "--once"), ("ls",)):
        assert state in succeed(*line)
    shown = one(facts("ls"), scene.bus)
    assert (shown["writer"]["state"], shown["writer"]["pid"]) == (state, scene.writer.pid)
    topic = facts("inspect", f"{scene.bus}/points", "--interval", "0.1")["topics"][0]
    assert (topic["published"], topic["writer_process"]) == (300, state)
    assert [reader["process"] for reader in topic["readers"]] == ["stopped", "stopped"]
    assert segments(scene.bus) == before


@pytest.mark.parametrize("state", WRITERS)
def test_top_maps_segments_only_to_read_and_changes_none(state: str, scene: Scene) -> None:
    scene.enter(state)
    before = segments(scene.bus)
    with on_terminal("top", scene.bus, "--interval", "0.05") as terminal:
        terminal.wait_for("slow")
        frames = terminal.raw.count("ringmain top")
        wait_until(lambda: terminal.raw.count("ringmain top") > frames + 5, TIMEOUT_S)
        assert state in terminal.text
        assert mapped_as(terminal.process.pid, scene.bus) == {"r--s"}
        terminal.type("q")
        assert terminal.finish() == OK
    if state != "alive":  # a living one beats
        assert segments(scene.bus) == before


def test_a_writer_that_closed_in_good_order_is_gone(scene: Scene) -> None:
    scene.writer.run("writer.close()")
    done = ringmain("inspect", scene.bus)
    assert (done.returncode, done.stdout) == (MISSING, b"")
    assert scene.bus not in succeed("ls")


def test_a_failed_log_is_told(tmp_path: Path, bus_name: str) -> None:
    """Its directory takes no more files: /dev/full would do for one, a limit on file sizes does for all."""
    with Children() as children:
        writer = children.start()
        writer.run("writer = Writer(name, [POINTS], data_dir=folder)", name=bus_name, folder=str(tmp_path))
        writer.run("stop_the_log(folder)\nwriter['points'].publish(1, 2, b'x')")
        wait_until(lambda: facts("inspect", bus_name, "--interval", "0")["topics"][0]["log_error"] != "", TIMEOUT_S)
        topic = facts("inspect", bus_name, "--interval", "0")["topics"][0]
        assert topic["status"] == ["log failed"]
        assert topic["log_error"] == os.strerror(27)
        assert "log failed: File too large" in words_of(succeed("inspect", f"{bus_name}/points", "--interval", "0"))
        assert "log failed" in succeed("top", bus_name, "--once")


# --- segments that are not what they should be ------------------------------------------------------------------------


@pytest.mark.parametrize("which", [bus_segment, data_name, control_name], ids=["bus", "ring", "readers"])
@pytest.mark.parametrize("damage", ["empty", "zeros", "gone"])
def test_what_cannot_be_read_is_said_and_the_rest_is_shown(which: Any, damage: str, scene: Scene) -> None:
    scene.enter("dead")
    name = which(scene.bus) if which is bus_segment else which(scene.bus, "points")
    path = SHM / name[1:]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else bytes(path.stat().st_size))
    shown = one(facts("ls"), scene.bus)
    topics = {topic["topic"]: topic for topic in shown["topics"]}
    assert topics["pairs"]["problem"] == ""
    assert topics["pairs"]["published"] == 0
    problem = shown["problem"] if which is bus_segment else topics["points"]["problem"]
    assert name in problem
    assert topics["points"]["published"] == (None if which is data_name else 300)
    for line in (("inspect", scene.bus), ("inspect", f"{scene.bus}/points")):
        assert problem in words_of(succeed(*line, "--interval", "0"))
    assert scene.bus in succeed("top", scene.bus, "--once")
    assert problem in ringmain("ls").stderr.decode()


def test_a_machine_without_buses_says_so() -> None:
    private = private_shm()
    for line in ("ls", "top --once"):
        done = ringmain_in(private, *line.split())
        assert done.returncode == OK
        assert "no buses are open on this machine" in (done.stdout + done.stderr).decode()
    done = ringmain_in(private, "ls", "--json")
    assert b'"buses": []' in done.stdout


# --- top on a terminal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (100, 40), (40, 10)])
def test_top_fits_its_terminal_and_gives_it_back(columns: int, lines: int, scene: Scene) -> None:
    scene.readers[0].run("more = [RealTime(address, name=f'm{n}') for n in range(20)]")
    with on_terminal("top", scene.bus, "--interval", "0.05", columns=columns, lines=lines) as terminal:
        terminal.wait_for("slow" if lines > 10 else "points")
        terminal.type("xqx")  # any other key does nothing
        assert terminal.finish() == OK
        frame = terminal.text.rpartition("ringmain top")[2].splitlines()
        assert len(frame) <= lines
        assert max(map(len, frame)) <= columns
        assert ("more lines do not fit" in words_of(terminal.text)) == (lines < 30)
        assert terminal.raw.count("\x1b[?1049h") == terminal.raw.count("\x1b[?1049l") == 1  # the other screen, and back
        assert terminal.attributes_after == terminal.attributes_before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, OK), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_ends_top_and_the_terminal_is_as_before(number: signal.Signals, code: int, scene: Scene) -> None:
    with on_terminal("top", scene.bus) as terminal:
        terminal.wait_for("slow")
        terminal.process.send_signal(number)
        assert terminal.finish() == code
        assert "Traceback" not in terminal.text
        assert terminal.raw.count("\x1b[?1049h") == terminal.raw.count("\x1b[?1049l") == 1
        assert terminal.attributes_after == terminal.attributes_before


def test_top_goes_on_when_a_writer_dies_and_another_comes(scene: Scene) -> None:
    with on_terminal("top", scene.bus, "--interval", "0.05") as terminal:
        terminal.wait_for("slow")
        scene.writer.kill()
        terminal.wait_for("dead")
        second = scene.children.start()
        second.run("writer = Writer(name, [POINTS, PAIRS], data_dir=folder)", name=scene.bus, folder=str(scene.log))
        terminal.wait_for(str(second.pid))
        second.run("writer.close()")
        terminal.wait_for(f"bus '{scene.bus}' is not open")
        terminal.type("q")
        assert terminal.finish() == OK


def test_top_as_json_is_a_line_for_each_look(scene: Scene) -> None:
    with started("top", scene.bus, "--json", "--interval", "0.05") as process:
        assert process.stdout is not None
        for _ in range(3):
            assert f'"bus":"{scene.bus}"' in process.stdout.readline().decode()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == INTERRUPTED
