"""Repair: what is valid stays, what is damaged is written down as lost, and nothing is destroyed, killed or not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringmain.storage import Corruption, FormatMismatch, Log, LogLocked, LogReader, Schema, StorageError, _log
from ringmain.storage.log_files import file_path, list_files
from ringmain.storage.mend import mend_frame, mend_page
from ringmain.storage.recovery import examine
from ringmain.storage.repair import LostRecords, RepairReport, repair
from support.logs import FILE_BYTES, PAIRS, POINTS, START_NS, Builder, append, flip, make_rows, read_rows

FRAME = _log.FRAME_HEADER_BYTES
BEGIN = 4464  # where rows begin behind the declarations of POINTS and PAIRS
Place = tuple[str, int, int]  # topic, first, count


def build(directory: Path, *, same_epoch: bool = True) -> tuple[Builder, dict[int, list[tuple[int, str, int, int]]]]:
    """Four files; returns each one's row frames as (offset, topic, first, count). All of it is durable."""
    builder = Builder(directory)
    for _ in range(4):
        builder.begin(new_writer=not same_epoch)
        builder.rows(POINTS, 3)
        builder.rows(PAIRS, 4)
        builder.sync()
        builder.rows(POINTS, 2)
        builder.rows(PAIRS, 1)
    builder.mark()
    frames: dict[int, list[tuple[int, str, int, int]]] = {}
    for number, offset, topic, first, count in builder.frames:
        frames.setdefault(number, []).append((offset, topic, first, count))
    return builder, frames


def lost_of(report: RepairReport) -> list[Place]:
    return sorted((lost.topic, lost.first, lost.count) for lost in report.lost)


def assert_repaired(directory: Path, report: RepairReport, last: dict[str, int]) -> None:
    """The log is sound, its rows and its losses together are every record there was, and a writer goes on behind them."""
    contents = examine(directory)
    assert contents.problems == []
    assert contents.lost_count == report.lost_count == sum(lost.count for lost in report.lost)
    for schema in (POINTS, PAIRS):
        rows = read_rows(directory, schema)
        assert (rows == np.concatenate([make_rows(schema, int(s), 1) for s in rows["sequence"]] or [rows])).all()
        lost = [lost for lost in report.lost if lost.topic == schema.name]
        gone = [s for item in lost for s in range(item.first, item.first + item.count)]
        everything = sorted([*rows["sequence"].tolist(), *gone])
        if not any(item.at_most for item in lost):
            assert everything == list(range(1, last[schema.name] + 1))
        assert everything[: last[schema.name]] == list(range(1, last[schema.name] + 1))
        assert contents.topics[schema.name].next_sequence == len(everything) + 1
    assert repair(directory) == RepairReport(directory)
    log = Log(directory, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES)
    for topic in log.topics:
        assert append(log, topic.schema, 2) == contents.topics[topic.schema.name].next_sequence + 1
    log.close()
    assert examine(directory).problems == []


LAST = {"points": 20, "pairs": 20}


def test_a_sound_log_is_left_alone(tmp_path):
    build(tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.glob("*.log")}
    report = repair(tmp_path)
    assert report == RepairReport(tmp_path)
    assert str(report).endswith("nothing is damaged, and nothing was changed")
    assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.glob("*.log")} == before
    assert not (tmp_path / "lost+found").exists()


def test_a_torn_tail_is_not_damage(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 2)
    os.truncate(path, len(builder.data) - 9)
    torn = path.read_bytes()
    assert repair(tmp_path).files == ()
    assert path.read_bytes() == torn


@pytest.mark.parametrize("same_epoch", [True, False])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_one_damaged_frame_costs_its_own_records_and_nothing_else(tmp_path, number, place, same_epoch):
    _, frames = build(tmp_path, same_epoch=same_epoch)
    offset, *records = frames[number][place]
    path = file_path(tmp_path, number)
    flip(path, offset + FRAME + 3)
    damaged = path.read_bytes()
    problem = examine(tmp_path).problems[0]
    assert isinstance(problem, Corruption)
    assert (problem.path, problem.offset) == (str(path), offset)
    report = repair(tmp_path)
    assert lost_of(report) == [tuple(records)]
    assert report.lost == (LostRecords(records[0], records[1], records[2], path, at_most=False),)
    (file,) = report.files
    rows = records[2] * (40 if records[0] == "points" else 24)
    assert file.damaged == ((offset, offset + FRAME + rows),)
    assert file.path == path
    assert file.copy == tmp_path / "lost+found" / path.name
    assert (tmp_path / "lost+found" / path.name).read_bytes() == damaged
    repaired = path.read_bytes()
    assert repaired[:offset] + repaired[offset + FRAME + rows :] == damaged[:offset] + damaged[offset + FRAME + rows :]
    words = str(report)
    assert f"{path.name}: frames were damaged; bytes {offset} to {offset + FRAME + rows - 1} were given up" in words
    assert f"topic {records[0]!r} lost {records[2]} records" in words
    assert_repaired(tmp_path, report, LAST)


@pytest.mark.parametrize("number", [1, 3, 4])
def test_every_byte_of_the_rows_and_their_headers_may_be_the_wrong_one(tmp_path, number):
    _, frames = build(tmp_path / "whole")
    offset, *records = frames[number][1]
    for byte in range(offset, offset + FRAME + 4 * PAIRS.row_bytes, 5):
        shutil.rmtree(tmp_path / "log", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "log")
        flip(file_path(tmp_path / "log", number), byte, 0xFF)
        report = repair(tmp_path / "log")
        assert lost_of(report) == [tuple(records)]
        assert examine(tmp_path / "log").problems == []


@pytest.mark.parametrize("byte", [0, 4, 8, 12, 14, 16, 24, 32, 36, 40, 56, 60, 70])
def test_the_last_rows_of_a_log_are_counted_by_what_their_header_still_says(tmp_path, byte):
    """Nothing behind them repeats their sequences; whatever field is wrong, the others tell."""
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 3)
    offset = builder.rows(PAIRS, 5)
    builder.mark()
    flip(path, offset + byte, 0x03)
    report = repair(tmp_path)
    assert report.lost == (LostRecords("pairs", 1, 5, path, at_most=False),)
    assert_repaired(tmp_path, report, {"points": 3, "pairs": 5})


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_time_lies_before_rows_that_follow_what_was_given_up(tmp_path, place):
    """The place behind the last record counts what a repair gave up, wherever in the newest file that was."""
    builder = Builder(tmp_path)
    path = builder.begin()
    offsets = [builder.rows(POINTS, count) for count in (40, 10, 50)]
    builder.mark()
    flip(path, offsets[place] + FRAME + 3)
    lost = ((1, 40), (41, 10), (51, 50))[place]
    assert lost_of(repair(tmp_path)) == [("points", *lost)]
    reader = LogReader(tmp_path, "points")
    for sequence in range(1, 101):
        behind = sum(lost)
        expected = behind if lost[0] <= sequence < behind else sequence
        assert reader.find_time(START_NS + sequence * 1000) == expected
    assert reader.find_time(START_NS + 101 * 1000) == 101 == reader.newest + 1


def test_at_the_end_of_a_log_no_sequence_is_used_twice_even_where_nothing_tells_how_many_there_were(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 3)
    offset = builder.rows(PAIRS, 5)
    builder.mark()
    data = bytearray(builder.data)
    data[offset : offset + FRAME + 40] = os.urandom(FRAME + 40)
    path.write_bytes(data)
    report = repair(tmp_path)
    assert all(lost.at_most for lost in report.lost)
    assert lost_of(report) == [("pairs", 1, 5), ("points", 4, 3)]  # 120 bytes: five rows of one, or three of the other
    assert "at most 5 records" in str(report)
    assert_repaired(tmp_path, report, {"points": 3, "pairs": 5})


def test_no_sequence_is_used_twice_where_the_disk_held_more_than_is_left_of_the_file(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(PAIRS, 3)
    builder.durable = builder.position + FRAME + FRAME + 120  # behind the mark a frame was, of which nothing is left
    builder._add(_log.FRAME_MARK, b"")
    path.write_bytes(builder.data)
    report = repair(tmp_path)
    assert lost_of(report) == [("pairs", 4, 5), ("points", 1, 3)]
    assert_repaired(tmp_path, report, {"points": 0, "pairs": 3})


def test_frames_that_tell_of_more_than_the_file_had_room_for_are_not_believed(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 3)
    for durable in (FILE_BYTES + 8, 1 << 63):
        builder.durable = durable
        builder.rows(POINTS, 1)
        before = path.read_bytes()
        with pytest.raises(StorageError, match=f"at most {FILE_BYTES} can have been"):
            repair(tmp_path)
        assert path.read_bytes() == before


def test_damage_in_several_frames_and_files_is_repaired_at_once(tmp_path):
    _, frames = build(tmp_path)
    expected = []
    for number, place in ((1, 0), (1, 1), (2, 3), (4, 0), (4, 2)):
        offset, *records = frames[number][place]
        flip(file_path(tmp_path, number), offset + FRAME)
        expected.append(tuple(records))
    report = repair(tmp_path)
    assert lost_of(report) == sorted(expected)
    assert report.files[0].damaged == ((BEGIN, frames[1][2][0]),)  # two neighbours are one damaged place
    assert_repaired(tmp_path, report, LAST)


def test_a_whole_damaged_run_becomes_gaps_of_at_most_one_group(tmp_path):
    log = Log(tmp_path, [POINTS], bus="test", file_bytes=FILE_BYTES)
    for _ in range(4):
        append(log, POINTS, 20_000)
    append(log, POINTS, 1)
    log.close()
    path = file_path(tmp_path, 1)
    with path.open("r+b") as file:  # from the middle of the first frame to the middle of the last but one
        file.seek(5000)
        file.write(b"\xaa" * (2_500_000 - 5000))
    report = repair(tmp_path)
    assert report.lost_count == 80_000
    (file,) = report.files
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.topics["points"].next_sequence == 80_002
    gaps = _frames(file.path)[_frames(file.path)["kind"] == _log.FRAME_GAP]
    assert len(gaps) == 4
    assert gaps["row_count"].tolist() == [1, 0, 0, 0]
    assert (gaps["payload_bytes"] + FRAME <= _log.GROUP_BYTES_MAX).all()


def _frames(path: Path) -> np.ndarray:
    data = path.read_bytes()
    header = _log.decode_file_header(data, path)
    assert header is not None
    frames, _ = _log.scan(data, start_position=header["start_position"], epoch=header["epoch"], offset=4096)
    return frames


@pytest.mark.parametrize("left", [64, 65, 72, 120, 128])
def test_no_gap_is_left_too_short_to_be_a_frame(tmp_path, left):
    """The damaged place is a little longer than one gap can be."""
    rows_bytes = _log.GROUP_BYTES_MAX + left // 8 * 8 - 2 * FRAME
    first = rows_bytes // 2 // 8 * 8
    builder = Builder(tmp_path, [Schema("blob", {"body": "S8"})])
    path = builder.begin()
    start = len(builder.data)
    for size in (first, rows_bytes - first):  # marks of any size will do as filling
        builder.data += _log.encode_frame(99, bytes(size), position=builder.position, epoch=1, frame_bytes=FRAME + size)
    builder.mark()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xaa" * (first + FRAME + 1))
    report = repair(tmp_path)
    assert report.files[0].damaged == ((start, start + _log.GROUP_BYTES_MAX + left // 8 * 8),)
    assert examine(tmp_path).problems == []


# --- declarations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3, 4])
def test_one_wrong_byte_in_a_declaration_costs_nothing(tmp_path, number):
    build(tmp_path / "whole")
    for byte in range(4096, BEGIN, 7):
        shutil.rmtree(tmp_path / "log", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "log")
        flip(file_path(tmp_path / "log", number), byte, 0x21)
        report = repair(tmp_path / "log")
        assert report.lost == ()
        assert report.files[0].damaged == ()
        name = f"{number:010d}.log"
        assert (tmp_path / "log" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("same_epoch", [True, False])
@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("stop", [4200, 4400, 4500, 4700])
def test_destroyed_declarations_come_back_from_a_neighbour(tmp_path, number, stop, same_epoch):
    _, frames = build(tmp_path, same_epoch=same_epoch)
    path = file_path(tmp_path, number)
    before = path.read_bytes()
    path.write_bytes(before[:4100] + os.urandom(stop - 4100) + before[stop:])
    report = repair(tmp_path)
    hit = [tuple(records) for offset, *records in frames[number] if offset < stop]
    assert lost_of(report) == sorted(hit)
    if not hit:
        kept = path.read_bytes()
        assert kept[4096:].replace(bytes(8), b"") != b""
        assert [frame["kind"] for frame in _frames(path)[:2]] == [_log.FRAME_TOPIC] * 2
    assert_repaired(tmp_path, report, LAST)


@pytest.mark.parametrize("told", [True, False], ids=["the header tells of them", "the header tells of none"])
def test_without_any_declaration_nothing_is_touched(tmp_path, told):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 3)
    builder.rows(PAIRS, 3)
    builder.mark()
    with path.open("r+b") as file:
        file.seek(4100)
        file.write(os.urandom(150))
    damaged = path.read_bytes()
    if not told:
        damaged = damaged[:136] + bytes(8) + damaged[144:]  # start_bytes
        damaged = damaged[:4092] + _log.crc32c(damaged[:4092]).to_bytes(4, "little") + damaged[4096:]
        path.write_bytes(damaged)
    with pytest.raises(
        StorageError, match="the declaration of topic number 0 is damaged, and no other file of this log has it"
    ):
        repair(tmp_path)
    assert path.read_bytes() == damaged


# --- headers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 4])
def test_one_wrong_byte_in_a_file_header_is_put_right(tmp_path, files):
    builder = Builder(tmp_path / "whole")
    for _ in range(files):
        builder.begin()
        builder.rows(POINTS, 2)
    builder.mark()
    for number in {1, files}:
        for byte in (*range(0, 150, 3), 200, 3000, 4092, 4095):
            shutil.rmtree(tmp_path / "log", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "log")
            flip(file_path(tmp_path / "log", number), byte)
            report = repair(tmp_path / "log")
            assert report.lost == ()
            assert report.files[0].what == "one byte of the header was wrong"
            name = f"{number:010d}.log"
            assert (tmp_path / "log" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("same_epoch", [True, False])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_destroyed_header_is_made_anew_and_costs_no_record(tmp_path, number, same_epoch):
    build(tmp_path, same_epoch=same_epoch)
    path = file_path(tmp_path, number)
    before = path.read_bytes()
    header = _log.decode_file_header(before, path)
    path.write_bytes(os.urandom(4096) + before[4096:])
    report = repair(tmp_path)
    assert report.lost == ()
    assert report.files[0].what == "the header is damaged"
    again = _log.decode_file_header(path.read_bytes(), path)
    assert header is not None
    assert again is not None
    uncertain = ("created_ns", "file_bytes")
    assert {k: v for k, v in again.items() if k not in uncertain} == {
        k: v for k, v in header.items() if k not in uncertain
    }
    assert again["created_ns"] >= header["created_ns"]  # rather kept too long
    assert_repaired(tmp_path, report, LAST)


def test_a_recycled_file_is_told_by_its_newest_frames(tmp_path):
    builder = Builder(tmp_path)
    builder.begin()
    for _ in range(8):
        builder.rows(POINTS, 4)
    old = bytes(builder.data)
    path = builder.begin()
    builder.rows(POINTS, 2)
    builder.mark()
    path.write_bytes(os.urandom(4096) + bytes(builder.data[4096:]) + old[len(builder.data) :])
    report = repair(tmp_path)
    assert report.lost == ()
    assert_repaired(tmp_path, report, {"points": 34, "pairs": 0})


def test_the_only_file_of_a_log_gets_a_header_that_any_bus_may_take(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 3)
    builder.mark()
    path.write_bytes(os.urandom(4096) + bytes(builder.data[4096:]))
    report = repair(tmp_path)
    assert_repaired(tmp_path, report, {"points": 3, "pairs": 0})


# --- whole files -----------------------------------------------------------------------------------------------------------


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_the_header(path: Path) -> None:
    os.truncate(path, 1000)


def random(path: Path) -> None:
    path.write_bytes(os.urandom(6000))


@pytest.mark.parametrize("same_epoch", [True, False])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("damage", [gone, emptied, cut_in_the_header, random])
def test_a_file_of_which_nothing_is_left_is_replaced(tmp_path, damage: Callable[[Path], None], number, same_epoch):
    _, frames = build(tmp_path, same_epoch=same_epoch)
    path = file_path(tmp_path, number)
    damage(path)
    there = path.exists()
    left = path.read_bytes() if there else b""
    report = repair(tmp_path)
    first = 5 * (number - 1) + 1
    assert lost_of(report) == [("pairs", first, 5), ("points", first, 5)]
    assert [frame["kind"] for frame in _frames(path)] == [_log.FRAME_TOPIC] * 2 + [_log.FRAME_GAP]
    copy = report.files[0].copy
    assert (copy is not None) == there
    if copy is not None:
        assert copy.read_bytes() == left
    assert frames
    assert_repaired(tmp_path, report, LAST)


@pytest.mark.parametrize("same_epoch", [True, False])
def test_two_neighbours_that_are_missing_are_replaced(tmp_path, same_epoch):
    build(tmp_path, same_epoch=same_epoch)
    file_path(tmp_path, 2).unlink()
    file_path(tmp_path, 3).unlink()
    report = repair(tmp_path)
    assert lost_of(report) == [("pairs", 6, 10), ("points", 6, 10)]
    assert_repaired(tmp_path, report, LAST)


def test_a_topic_that_began_in_a_missing_file_is_counted_from_its_first_record(tmp_path):
    builder = Builder(tmp_path, [POINTS])
    builder.begin()
    builder.rows(POINTS, 3)
    builder.schemas.append(PAIRS)
    builder.next["pairs"], builder.last_ns["pairs"] = 1, 0
    missing = builder.begin(new_writer=True)
    builder.rows(PAIRS, 7)
    builder.begin()
    builder.rows(PAIRS, 1)
    builder.mark()
    missing.unlink()
    report = repair(tmp_path)
    assert lost_of(report) == [("pairs", 1, 7)]
    assert_repaired(tmp_path, report, {"points": 3, "pairs": 8})


@pytest.mark.parametrize("damage", [emptied, random])
def test_when_the_newest_file_is_hopeless_no_sequence_of_it_is_used_again(tmp_path, damage: Callable[[Path], None]):
    builder, _ = build(tmp_path)
    damage(builder.path)
    report = repair(tmp_path)
    assert all(lost.at_most and lost.first == 16 and lost.count > FILE_BYTES // 50 for lost in report.lost)
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.lost_count == report.lost_count
    assert contents.topics["points"].next_sequence > 100_000
    assert contents.epoch == 2
    assert repair(tmp_path).files == ()


def test_what_is_hopeless_before_the_oldest_file_is_set_aside(tmp_path):
    build(tmp_path)
    random(file_path(tmp_path, 1))
    report = repair(tmp_path)
    assert report.set_aside == (tmp_path / "lost+found" / "0000000001.log",)
    assert report.lost == ()
    assert examine(tmp_path).problems == []
    assert "set aside, nothing in it belongs to the log" in str(report)


@pytest.mark.parametrize("pair", [(1, 2), (2, 3), (1, 4)])
def test_swapped_files_get_their_names_back(tmp_path, pair):
    build(tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("*.log")}
    one, other = (file_path(tmp_path, number) for number in pair)
    one.rename(tmp_path / "x")
    other.rename(one)
    (tmp_path / "x").rename(other)
    report = repair(tmp_path)
    assert report.renamed == (one, other)
    assert report.files == report.lost == ()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.log")} == whole


def test_a_renamed_file_gets_its_name_back(tmp_path):
    build(tmp_path)
    file_path(tmp_path, 2).rename(file_path(tmp_path, 9_999_999_999))
    assert repair(tmp_path).renamed == (file_path(tmp_path, 2),)
    assert examine(tmp_path).problems == []


def test_a_copy_under_another_number_is_set_aside(tmp_path):
    build(tmp_path)
    shutil.copy(file_path(tmp_path, 2), file_path(tmp_path, 5))
    report = repair(tmp_path)
    assert [path.name for path in report.set_aside] == ["moved-0000000002.log"]
    assert [number for number, _ in list_files(tmp_path)] == [1, 2, 3, 4]
    assert examine(tmp_path).problems == []


def test_a_file_of_another_log_is_replaced(tmp_path):
    build(tmp_path / "log")
    for _ in range(2):
        Log(tmp_path / "other", [POINTS], bus="test", file_bytes=FILE_BYTES).close()
    shutil.copy(file_path(tmp_path / "other", 2), file_path(tmp_path / "log", 2))
    report = repair(tmp_path / "log")
    assert report.files[0].what.startswith("the file belongs to another log")
    assert_repaired(tmp_path / "log", report, LAST)


def test_a_file_cut_short_keeps_what_is_before_the_cut(tmp_path):
    _, frames = build(tmp_path)
    os.truncate(file_path(tmp_path, 2), frames[2][2][0] + 10)
    report = repair(tmp_path)
    assert lost_of(report) == [("pairs", 10, 1), ("points", 9, 2)]
    assert_repaired(tmp_path, report, LAST)


# --- refusals, leftovers, kills ----------------------------------------------------------------------------------------------


def test_it_refuses_while_a_writer_lives(tmp_path):
    log = Log(tmp_path, [POINTS], bus="test", file_bytes=FILE_BYTES)
    with pytest.raises(LogLocked, match=r"stop it first$") as caught:
        repair(tmp_path)
    assert caught.value.pid == os.getpid()
    log.close()
    repair(tmp_path)
    Log(tmp_path, [POINTS], bus="test", file_bytes=FILE_BYTES).close()  # it gave the lock back


def test_another_version_is_refused(tmp_path):
    builder, _ = build(tmp_path)
    data = bytearray(builder.path.read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    data[4092:4096] = _log.crc32c(bytes(data[:4092])).to_bytes(4, "little")
    builder.path.write_bytes(data)
    with pytest.raises(FormatMismatch):
        repair(tmp_path)
    assert builder.path.read_bytes() == data


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        repair(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_damage_after_a_repair_is_repaired_too_and_every_damaged_file_is_kept(tmp_path):
    _, frames = build(tmp_path)
    path = file_path(tmp_path, 2)
    flip(path, frames[2][0][0] + 70)
    first = repair(tmp_path)
    flip(path, frames[2][1][0] + 70)
    flip(path, frames[2][0][0] + 70)  # the gap itself
    second = repair(tmp_path)
    assert lost_of(first) == [("points", 6, 3)]
    assert lost_of(second) == [("pairs", 6, 4), ("points", 6, 3)]
    assert sorted(path.name for path in (tmp_path / "lost+found").iterdir()) == ["0000000002.log", "0000000002.log.1"]
    assert examine(tmp_path).lost_count == 7


def test_a_log_opens_where_a_gap_lies_over_the_end_of_what_is_known_to_be_on_the_disk(tmp_path):
    log = Builder(tmp_path)
    log.begin()
    log.rows(POINTS, 5)
    damaged = [log.rows(POINTS, 5)]
    log.sync()
    damaged.append(log.rows(POINTS, 5))
    log.rows(POINTS, 5)  # knows that half of the damaged place was on the disk
    for offset in damaged:
        flip(log.path, offset + 20)
        flip(log.path, offset + _log.FRAME_HEADER_BYTES)
    repair(tmp_path)
    (item,) = examine(tmp_path).files
    assert item.durable_end < item.durable_position - item.header.start_position
    opened = Log(tmp_path, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES)
    assert opened.topic("points").next_sequence == 21
    opened.close()
    assert examine(tmp_path).problems == []


def test_progress_is_told(tmp_path):
    builder, frames = build(tmp_path)
    flip(builder.path, frames[4][0][0] + 70)
    told: list[tuple[int, int]] = []
    repair(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for _, path in list_files(tmp_path))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


CHILD = """if True:
    import os, signal, sys
    stop_at = int(sys.argv[2])
    count = 0
    def die(event, arguments):
        global count
        if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate", "open"):
            if sys.argv[1] in str(arguments[0]):
                count += 1
                if count == stop_at:
                    os.kill(os.getpid(), signal.SIGKILL)
    from ringmain.storage.repair import repair
    sys.addaudithook(die)
    repair(sys.argv[1])
"""


@pytest.mark.process
def test_killed_at_any_step_it_leaves_a_log_that_it_can_finish(tmp_path):
    """A child is killed before its 1st, 2nd, 3rd, … change of the directory, and the repair run again."""
    whole = tmp_path / "whole"
    _, frames = build(whole)
    flip(file_path(whole, 1), frames[1][1][0] + 70)
    file_path(whole, 2).rename(whole / "x")
    file_path(whole, 3).rename(file_path(whole, 2))
    (whole / "x").rename(file_path(whole, 3))
    flip(file_path(whole, 4), frames[4][0][0] + 70)
    expected = [("pairs", 1, 4), ("points", 16, 3)]
    damaged = {path.read_bytes() for path in (file_path(whole, 1), file_path(whole, 4))}
    directory = tmp_path / "log"
    kills = 0
    for step in range(1, 200, 3):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole, directory)
        child = subprocess.run([sys.executable, "-c", CHILD, str(directory), str(step)], timeout=60, check=False)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        kills += 1
        repair(directory)
        contents = examine(directory)
        assert contents.problems == []
        assert contents.lost_count == 7
        for schema in (POINTS, PAIRS):
            given_up = {
                s for topic, first, count in expected if topic == schema.name for s in range(first, first + count)
            }
            assert set(read_rows(directory, schema)["sequence"].tolist()) == set(range(1, 21)) - given_up
        assert {path.read_bytes() for path in (directory / "lost+found").iterdir()} == damaged
        assert not list(directory.glob("spare-*")) + list(directory.glob("moved-*"))
    else:
        pytest.fail("the child never finished")
    assert kills >= 10


# --- any damage ---------------------------------------------------------------------------------------------------------------


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[int, str, int, int]]:
    one = st.tuples(
        st.integers(1, 4),
        st.sampled_from(["flip", "noise", "zeros", "gone"]),
        st.integers(0, 5100),
        st.integers(1, 500),
    )
    return draw(st.lists(one, min_size=1, max_size=3))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(damages(), st.booleans())
def test_after_any_damage_either_all_is_accounted_for_or_nothing_is_changed(tmp_path, found, same_epoch):
    directory = tmp_path / "log"
    shutil.rmtree(directory, ignore_errors=True)
    build(directory, same_epoch=same_epoch)
    for number, how, offset, length in found:
        path = file_path(directory, number)
        if not path.exists():
            continue
        data = bytearray(path.read_bytes())
        length = 1 if how == "flip" else min(length, len(data) - offset)
        if how == "gone" and 1 < number < 4:
            path.unlink()
        elif how != "gone" and length > 0:
            data[offset : offset + length] = bytes(length) if how == "zeros" else os.urandom(length)
            path.write_bytes(data)
    before = {path.name: path.read_bytes() for path in directory.glob("*.log")}
    if not examine(directory).problems:
        return
    try:
        report = repair(directory)
    except StorageError:
        assert {path.name: path.read_bytes() for path in directory.glob("*.log")} == before
        return
    contents = examine(directory)
    assert contents.problems == []
    assert contents.lost_count == report.lost_count
    for name, data in before.items():
        now = directory / name
        kept = [path.read_bytes() for path in directory.glob("lost+found/*")]
        assert (now.exists() and now.read_bytes() == data) or data in kept
    for schema in (POINTS, PAIRS):
        rows = read_rows(directory, schema)
        sequences = rows["sequence"].tolist()
        assert sequences == sorted(set(sequences))
        assert (rows == np.concatenate([make_rows(schema, s, 1) for s in sequences] or [rows])).all()
        given_up = {
            s for lost in report.lost if lost.topic == schema.name for s in range(lost.first, lost.first + lost.count)
        }
        assert not given_up & set(sequences)
        if file_path(directory, 1).exists() and not any(number == 4 for number, *_ in found):
            assert given_up | set(sequences) == set(range(1, 21))


# --- mending ------------------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=64, max_size=600), st.data())
def test_the_one_wrong_byte_of_a_frame_is_found(payload, data):
    size = FRAME + (len(payload) + 7) // 8 * 8
    whole = _log.encode_frame(_log.FRAME_TOPIC, payload, position=4096, epoch=1, frame_bytes=size)
    wrong = bytearray(whole)
    wrong[data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(1, 255))
    assert mend_frame(bytes(wrong)) == whole


@settings(max_examples=30)
@given(st.integers(0, 4095), st.integers(1, 255))
def test_the_one_wrong_byte_of_a_header_is_found(place, change):
    whole = _log.encode_file_header(
        log_id=77, file_number=3, start_position=1 << 33, previous_end=5000, epoch=2, created_ns=1, file_bytes=FILE_BYTES,
        start_bytes=4500, bus="test",
    )  # fmt: skip
    wrong = bytearray(whole)
    wrong[place] ^= change
    assert mend_page(bytes(wrong)) == whole


def test_more_than_one_wrong_byte_is_not_mended():
    assert mend_frame(bytes(range(64)) * 2) is None
    assert mend_page(bytes(100)) is None
    assert mend_frame(b"") is None
