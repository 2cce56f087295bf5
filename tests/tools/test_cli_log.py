"""`ringmain log`: looking into a log, proving it sound or naming the damage, and giving up what is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.storage import Log, Schema, _log
from ringmain.storage.log_files import file_path
from ringmain.storage.store import Store
from ringmain.tools.exit_codes import FAILED, MISSING, OK, USAGE
from support.children import Children
from support.command import facts, on_terminal, ringmain, succeed
from support.logs import PAIRS, POINTS, Builder, Rows, append, check_rows, flip, read_rows

pytestmark = pytest.mark.process

KEYED = Schema("keyed", {"number": "u8"}, key=("number",))
FRAME_ROWS = 100
PAYLOAD = _log.FRAME_HEADER_BYTES + 16  # a byte of a frame's first row


class Built:
    """A log of two files: five frames of points and one of pairs in each. `data` is its data directory."""

    def __init__(self, data: Path) -> None:
        self.data, self.log = data, data / "log"
        builder = Builder(self.log)
        self.offsets: list[tuple[Path, int]] = []
        for _ in range(2):
            path = builder.begin()
            self.offsets += [(path, builder.rows(POINTS, FRAME_ROWS)) for _ in range(5)]
            builder.rows(PAIRS, 7)
            builder.mark()
        builder.close()

    def damage(self, frame: int) -> tuple[Path, int]:
        """Flip a bit in one of the frames of points."""
        path, offset = self.offsets[frame]
        flip(path, offset + PAYLOAD)
        return path, offset


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return Built(tmp_path / "data")


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def words_of(text: str) -> str:
    return " ".join(text.split())


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["data", "log"])
def test_a_sound_log_is_called_sound(where: str, built: Built) -> None:
    before = content(built.data)
    directory = built.data if where == "data" else built.log
    text = words_of(succeed("log", "verify", directory))
    assert f"log {built.log} bus test" in text
    assert "points 1,000 1 1,000" in text
    assert "pairs 14 1 14" in text
    assert "sound checked 2 files, 1,014 records" in text
    shown = facts("log", "verify", directory)
    assert (shown["directory"], shown["bus"], shown["record_count"]) == (str(built.log), "test", 1014)
    assert (shown["damage"], shown["torn_bytes"], shown["lost_count"], shown["writer_pid"]) == ([], 0, 0, None)
    assert [(topic["topic"], topic["oldest"], topic["last"]) for topic in shown["topics"]] == [
        ("points", 1, 1000),
        ("pairs", 1, 14),
    ]
    assert [file["closed"] for file in shown["files"]] == [False, True]
    assert content(built.data) == before


@pytest.mark.parametrize("frame", range(10))
def test_damage_is_named_with_its_file_and_byte(frame: int, built: Built) -> None:
    path, offset = built.damage(frame)
    before = content(built.data)
    done = ringmain("log", "verify", built.data)
    assert done.returncode == FAILED
    text = done.stdout.decode()
    assert f"DAMAGED {path}, byte {offset:,}: expected " in text
    assert "restore a copy, or give up what is damaged with `ringmain log repair`" in text
    assert "sound" not in text
    (found,) = facts("log", "verify", built.data, code=FAILED)["damage"]
    assert (found["path"], found["offset"]) == (str(path), offset)
    assert content(built.data) == before


def test_the_first_damage_of_every_file_is_named(built: Built) -> None:
    places = [built.damage(frame) for frame in (1, 6)]
    built.damage(3)
    shown = facts("log", "verify", built.data, code=FAILED)
    assert [(found["path"], found["offset"]) for found in shown["damage"]] == [(str(path), at) for path, at in places]


def test_a_file_that_is_missing_in_the_middle_is_damage(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "log")
    for _ in range(3):
        builder.begin()
        builder.rows(POINTS, 10)
    builder.close()
    file_path(tmp_path / "log", 2).unlink()
    (found,) = facts("log", "verify", tmp_path, code=FAILED)["damage"]
    assert "0000000002.log" in found["path"] + found["message"]


def test_a_torn_tail_is_no_damage(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "log")
    path = builder.begin()
    builder.rows(POINTS, 10)
    builder.mark()
    offset = builder.rows(POINTS, 100)
    os.truncate(path, offset + 1000)
    done = ringmain("log", "verify", tmp_path)
    assert done.returncode == OK
    text = words_of(done.stdout.decode())
    assert "the last 1,000 bytes were never finished; the next writer cuts them off. That is no damage" in text
    assert "sound" in text
    assert facts("log", "verify", tmp_path)["record_count"] == 10


def test_a_file_of_another_release_is_refused_and_not_called_damaged(built: Built) -> None:
    path = file_path(built.log, 1)
    data = bytearray(path.read_bytes())
    data[8] += 1  # the format's version
    data[_log.LOG_HEADER_BYTES - 4 : _log.LOG_HEADER_BYTES] = bytes(4)
    path.write_bytes(data)
    done = ringmain("log", "verify", built.data)
    assert done.returncode == FAILED
    assert "0000000001.log" in (done.stdout + done.stderr).decode()
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize("command", ["verify", "dump", "repair"])
def test_a_folder_without_a_log_is_told_from_a_bad_one(command: str, tmp_path: Path) -> None:
    done = ringmain("log", command, tmp_path)
    assert done.returncode == MISSING
    assert f"{tmp_path}: holds no log" in done.stderr.decode()


def test_a_log_that_is_being_written_can_be_verified(tmp_path: Path, bus_name: str) -> None:
    with Children() as children:
        writer = children.start()
        writer.run("writer = Writer(name, [POINTS], data_dir=folder)", name=bus_name, folder=str(tmp_path))
        writer.begin(
            "rows = make_rows(POINTS, 1, 500)[list(POINTS.payload_dtype.names)].astype(POINTS.payload_dtype)\n"
            "while True: writer['points'].publish_batch(rows); time.sleep(0.002)"
        )
        seen = 0
        for _ in range(5):
            shown = facts("log", "verify", tmp_path)
            assert (shown["damage"], shown["torn_bytes"], shown["writer_pid"]) == ([], 0, writer.pid)
            assert shown["record_count"] >= seen
            seen = shown["record_count"]
        text = words_of(succeed("log", "verify", tmp_path))
        assert f"writer process {writer.pid} is writing it; this is what was there when it was read" in text
        writer.kill()
        assert facts("log", "verify", tmp_path)["writer_pid"] is None


# --- dump -------------------------------------------------------------------------------------------------------------


def test_dump_lists_files_and_topics(built: Built) -> None:
    text = words_of(succeed("log", "dump", built.data))
    assert "0000000001.log 1 2023-11-14 22:13:20 9" in text  # two declarations, six frames of rows, a mark
    assert "0000000002.log 1 2023-11-14 22:13:20 10" in text
    assert "closed" in text
    assert "points 1,000 1 1,000" in text
    assert facts("log", "dump", built.data)["record_count"] == 1014


def test_dump_prints_the_records_of_a_topic(built: Built) -> None:
    shown = facts("log", "dump", built.data, "--topic", "points", "--limit", "0")
    assert (shown["topic"], shown["more"]) == ("points", False)
    check_rows(POINTS, as_rows(shown["rows"]), 1)
    assert len(shown["rows"]) == 1000
    first = facts("log", "dump", built.data, "--topic", "points", "--limit", "150")
    assert (first["rows"], first["more"]) == (shown["rows"][:150], True)
    assert facts("log", "dump", built.data, "--topic", "points", "--limit", "1000")["more"] is False


def as_rows(objects: list[dict[str, Any]]) -> Rows:
    rows = np.zeros(len(objects), POINTS.dtype)
    for name in POINTS.dtype.names or ():
        rows[name] = [found[name].encode() if isinstance(found[name], str) else found[name] for found in objects]
    return rows


def test_dump_says_when_there_is_more(built: Built) -> None:
    done = ringmain("log", "dump", built.data, "--topic", "points", "--limit", "3")
    lines = done.stdout.decode().splitlines()
    assert lines[0].split() == ["sequence", "timestamp", "value", "check", "tag"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert done.stderr.decode() == "there are more: sequence 4 is next; --limit 0 prints all\n"


def test_dump_shows_frames_with_their_place(built: Built) -> None:
    frames = facts("log", "dump", built.data, "--frames", "--limit", "0")["frames"]
    points = [frame for frame in frames if (frame["kind"], frame["topic"]) == ("rows", "points")]
    assert [(frame["file"], frame["offset"]) for frame in points] == [(str(path), at) for path, at in built.offsets]
    assert [frame["first_sequence"] for frame in points] == list(range(1, 1001, FRAME_ROWS))
    assert {(frame["row_count"], frame["payload_bytes"]) for frame in points} == {(FRAME_ROWS, FRAME_ROWS * 40)}
    assert [frame["kind"] for frame in frames if frame["kind"] not in ("rows", "topic")] == ["mark", "mark", "close"]
    of_pairs = facts("log", "dump", built.data, "--frames", "--topic", "pairs")["frames"]
    assert of_pairs == [frame for frame in frames if frame["topic"] == "pairs"]
    limited = facts("log", "dump", built.data, "--frames", "--limit", "4")
    assert (limited["frames"], limited["more"]) == (frames[:4], True)


def test_dump_shows_tombstones_with_their_topic_and_count(tmp_path: Path) -> None:
    with Store(tmp_path, [KEYED], log_file_bytes=4 << 20) as store:
        for number in range(1, 4):
            store["keyed"].put(number)
        store["keyed"].delete(2)
    frames = facts("log", "dump", tmp_path, "--frames", "--topic", "keyed")["frames"]
    assert [(frame["kind"], frame["first_sequence"], frame["row_count"]) for frame in frames if frame["row_count"]] == [
        *(("rows", number, 1) for number in range(1, 4)),
        ("tombstones", 4, 1),
    ]
    (line,) = [line for line in succeed("log", "dump", tmp_path, "--frames").splitlines() if "tombstones" in line]
    assert line.split()[2:6] == ["tombstones", "keyed", "4", "1"]
    assert [row["sequence"] for row in facts("log", "dump", tmp_path, "--topic", "keyed")["rows"]] == [1, 2, 3]


def test_frames_fit_a_terminal(built: Built) -> None:
    with on_terminal("log", "dump", built.data, "--frames", columns=80) as terminal:
        assert terminal.finish() == OK
        lines = terminal.text.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert sum("0000000001.log" in line for line in lines) == 9


@pytest.mark.parametrize(
    "line", ["log dump DIR --topic nosuch", "subscribe test/nosuch --mode historical --data-dir DIR"]
)
def test_a_topic_that_is_not_there_is_told_with_those_that_are(line: str, built: Built) -> None:
    done = ringmain(*line.replace("DIR", str(built.data)).split())
    assert (done.returncode, done.stdout) == (MISSING, b"")
    assert done.stderr.decode() == f"ringmain: {built.log}: no topic 'nosuch' in this log; it has points, pairs\n"


def test_a_topic_without_records_is_empty(tmp_path: Path) -> None:
    Log(tmp_path / "log", [POINTS], bus="test").close()
    done = ringmain("log", "dump", tmp_path, "--topic", "points")
    assert (done.returncode, done.stdout, done.stderr) == (OK, b"", b"topic points is empty\n")
    assert facts("log", "dump", tmp_path, "--topic", "points")["rows"] == []
    assert "points 0 - - - 40" in words_of(succeed("log", "dump", tmp_path))


def test_a_damaged_record_is_never_printed(built: Built) -> None:
    built.damage(2)
    done = ringmain("log", "dump", built.data, "--topic", "points", "--limit", "0")
    assert done.returncode == FAILED
    rows = [int(line.split()[0]) for line in done.stdout.decode().splitlines()[1:]]
    assert rows == list(range(1, 201))
    told = done.stderr.decode()
    assert f"damaged at byte {built.offsets[2][1]}" in told
    assert "ringmain log repair" in told
    done = ringmain("subscribe", "test/points", "--mode", "historical", "--data-dir", built.data, "--format", "json")
    assert done.returncode == FAILED
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == rows


# --- repair -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(built: Built) -> Built:
    built.damage(2)
    built.damage(7)
    return built


def test_a_log_that_is_being_written_is_not_repaired(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", [POINTS], bus="test")
    done = ringmain("log", "repair", tmp_path, "--yes")
    assert done.returncode == FAILED
    told = f"ringmain: {tmp_path / 'log'}: process {os.getpid()} is writing to this log; stop it first\n"
    assert done.stderr.decode() == told
    log.close()


def test_repair_gives_up_what_is_damaged_and_nothing_else(damaged: Built) -> None:
    done = ringmain("log", "repair", damaged.data, "--yes")
    assert done.returncode == OK
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"{damaged.log}: repaired; 200 records are lost"
    assert "  0000000001.log: topic 'points' lost 100 records, 201 to 300" in lines
    assert "  0000000002.log: topic 'points' lost 100 records, 701 to 800" in lines
    text = words_of(succeed("log", "verify", damaged.data))
    assert "200 records were given up by an earlier repair" in text
    assert "sound" in text
    kept = read_rows(damaged.log, POINTS)["sequence"].tolist()
    assert kept == [sequence for sequence in range(1, 1001) if not (200 < sequence <= 300 or 700 < sequence <= 800)]
    done = ringmain("subscribe", "test/points", "--mode", "historical", "--data-dir", damaged.data, "--format", "json")
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == kept
    assert done.returncode == FAILED  # some were missed, and it says how many
    assert "200 LOST" in done.stderr.decode()


def test_repair_as_json_says_what_was_and_what_it_did(damaged: Built) -> None:
    originals = content(damaged.data)
    shown = facts("log", "repair", damaged.data, "--yes")
    assert [found["offset"] for found in shown["damage_before"]] == [damaged.offsets[2][1], damaged.offsets[7][1]]
    assert shown["lost_count"] == 200
    assert [(item["topic"], item["first"], item["count"]) for item in shown["lost"]] == [
        ("points", 201, 100),
        ("points", 701, 100),
    ]
    for file in shown["files"]:
        assert Path(file["copy"]).read_bytes() == originals[str(Path(file["path"]).relative_to(damaged.data))]
    assert facts("log", "repair", damaged.data, "--yes")["lost_count"] == 0  # there is nothing left to do


def test_repair_asks_first_and_needs_a_yes_where_nobody_can_answer(damaged: Built) -> None:
    before = content(damaged.log)
    done = ringmain("log", "repair", damaged.data)
    assert done.returncode == USAGE
    assert "say --yes to repair it where nobody can be asked" in done.stderr.decode()
    assert f"DAMAGED {damaged.offsets[2][0]}" in done.stderr.decode()
    assert content(damaged.log) == before
    with on_terminal("log", "repair", damaged.data) as terminal:
        terminal.wait_for("Give up what is damaged?")
        terminal.type("n\n")
        assert terminal.finish() == FAILED
    assert content(damaged.log) == before
    with on_terminal("log", "repair", damaged.data) as terminal:
        terminal.wait_for("Give up what is damaged?")
        terminal.type("y\n")
        assert terminal.finish() == OK
        assert "repaired; 200 records are lost" in words_of(terminal.text)
    assert facts("log", "verify", damaged.data)["damage"] == []


def test_repair_leaves_a_sound_log_alone(built: Built) -> None:
    before = content(built.log)
    text = succeed("log", "repair", built.data)
    assert text == f"{built.log}: nothing is damaged, and nothing was changed\n"
    assert {name: data for name, data in content(built.log).items() if name != "LOCK"} == before


def test_repair_is_refused_while_a_writer_lives(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", [POINTS], bus="test")
    append(log, POINTS, 100)
    before = {name: data for name, data in content(tmp_path).items() if name.endswith(".log")}
    done = ringmain("log", "repair", tmp_path, "--yes")
    log.close()
    assert done.returncode == FAILED
    assert str(os.getpid()) in done.stderr.decode()
    assert set(before) <= set(content(tmp_path))


def test_a_repaired_log_is_written_again(damaged: Built) -> None:
    with pytest.raises(Exception, match="damaged"):
        Log(damaged.log, [POINTS, PAIRS], bus="test")
    succeed("log", "repair", damaged.data, "--yes")
    with Children() as children:
        writer = children.start()
        writer.run(
            "log = __import__('ringmain.storage').storage.Log(folder, [POINTS, PAIRS], bus='test')",
            folder=str(damaged.log),
        )
        assert writer.ask("log.topic('points').next_sequence") == 1001


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_shown_on_a_terminal_and_leaves_no_trace(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "log")
    for _ in range(8):
        builder.begin()
        builder.rows(POINTS, 20_000)
    builder.close()
    with on_terminal("log", "verify", tmp_path) as terminal:
        assert terminal.finish() == OK
        assert "verifying" in terminal.text
        assert "\x1b[2K" in terminal.raw  # the bar is wiped out again
        assert "checked 8 files, 160,000 records" in terminal.text
    shutil.rmtree(tmp_path / "log")
