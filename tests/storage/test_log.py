"""The log as its one writer sees it: what is appended is there after reopening, in order, and files come and go safely."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import (
    Corruption,
    FormatMismatch,
    Log,
    LogFailed,
    LogLocked,
    LogReader,
    Schema,
    StorageError,
    _log,
    log_reader,
    log_retention,
)
from ringmain.storage.log import LOG_FILE_BYTES_MIN
from ringmain.storage.log_files import LogFile, file_path, list_files, open_file
from ringmain.storage.log_retention import Retention
from ringmain.storage.recovery import examine
from support.logs import FILE_BYTES, PAIRS, POINTS, append, check_rows, make_rows, read_rows

GROUP_ROWS = 20_000  # of POINTS: a whole group's worth, so that four appends fill a file


def open_log(directory: Path, schemas=(POINTS, PAIRS), **settings) -> Log:
    return Log(directory, schemas, **{"bus": "test", "file_bytes": FILE_BYTES, **settings})


def fill_file(log: Log) -> None:
    """Append until the next file begins."""
    number = log.appender.file_number
    while log.appender.file_number == number:
        append(log, POINTS, GROUP_ROWS)
    log.keep(0)


def fill_file_without_keeper(log: Log) -> None:
    number = log.appender.file_number
    while log.appender.file_number == number:
        log.appender.append(0, make_rows(POINTS, log.appender.next_sequence(0), GROUP_ROWS))


def numbers(directory: Path) -> list[int]:
    return [number for number, _ in list_files(directory)]


def spares(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("spare-*"))


def assert_sound(directory: Path, points: int, pairs: int = 0) -> None:
    contents = examine(directory)
    assert contents.problems == []
    assert contents.topics["points"].next_sequence == points + 1
    assert contents.record_count == points + pairs
    check_rows(POINTS, read_rows(directory, POINTS), 1)
    check_rows(PAIRS, read_rows(directory, PAIRS), 1)


# --- appending and reopening ----------------------------------------------------------------------------------------------


def test_a_new_log_is_empty_and_continues_where_it_ended(tmp_path):
    directory = tmp_path / "a" / "b" / "log"
    log = open_log(directory)
    assert log.recovered.closed
    assert (log.recovered.record_count, log.recovered.file_count) == (0, 0)
    assert log.topic("points").next_sequence == 1
    assert append(log, POINTS, 3) == 3
    assert append(log, PAIRS, 2) == 2
    assert append(log, POINTS, 1) == 4
    log.close()

    log = open_log(directory)
    assert log.epoch == 2
    assert log.recovered.closed
    assert log.recovered.record_count == 6
    assert log.topic("points").next_sequence == log.appender.next_sequence(log.topic("points").number) == 5
    assert log.topic("pairs").next_sequence == 3
    assert log.topic("points").last_timestamp_ns == make_rows(POINTS, 4, 1)["timestamp_ns"][0]
    assert append(log, POINTS, 2) == 6
    log.close()
    assert_sound(directory, points=6, pairs=2)


@pytest.mark.parametrize("sync_files", [True, False])
def test_many_lives_and_many_files_join_without_a_gap(tmp_path, sync_files):
    points = pairs = 0
    for life in range(4):
        log = open_log(tmp_path, sync_files=sync_files)
        for _ in range(3):
            points, pairs = append(log, POINTS, 2 * GROUP_ROWS + life), append(log, PAIRS, 100)
        if life % 2:
            log.appender.sync()
        log.close()
    assert len(numbers(tmp_path)) > 4
    assert_sound(tmp_path, points, pairs)


def test_a_log_that_was_not_closed_says_so_and_keeps_what_was_written(tmp_path):
    log = open_log(tmp_path)
    append(log, POINTS, 10)
    log.close(finish=False)
    log = open_log(tmp_path)
    assert not log.recovered.closed
    assert log.recovered.record_count == 10
    assert log.recovered.torn_bytes == 0
    log.close()


def test_rows_of_any_size_go_in_whole(tmp_path):
    wide = Schema("wide", {"body": "S65512"})
    assert wide.row_bytes == 65_528
    log = open_log(tmp_path, [wide, PAIRS])
    append(log, wide, 70)  # five groups
    append(log, PAIRS, 100_000)
    log.close()
    check_rows(wide, read_rows(tmp_path, wide), 1)
    check_rows(PAIRS, read_rows(tmp_path, PAIRS), 1)
    assert examine(tmp_path).problems == []


def test_rows_that_do_not_follow_are_refused_and_nothing_is_written(tmp_path):
    log = open_log(tmp_path)
    append(log, POINTS, 5)
    position = log.appender.position
    for first in (1, 5, 7):
        with pytest.raises(ValueError, match="run on from 6"):
            log.appender.append(0, make_rows(POINTS, first, 2))
    with pytest.raises(ValueError, match="run on from 6"):
        log.appender.append(0, np.concatenate([make_rows(POINTS, 6, 1), make_rows(POINTS, 8, 1)]))
    with pytest.raises(ValueError, match="contiguous"):
        log.appender.append(0, make_rows(PAIRS, 6, 1))
    with pytest.raises(ValueError, match="contiguous"):
        log.appender.append(0, make_rows(POINTS, 6, 4)[::2])
    with pytest.raises(ValueError, match="2 topics"):
        log.appender.append(2, make_rows(POINTS, 6, 1))
    log.appender.append(0, make_rows(POINTS, 6, 0))
    assert log.appender.position == position
    assert log.appender.next_sequence(0) == 6
    log.close()
    assert_sound(tmp_path, points=5)


def test_what_is_durable_follows_the_syncs(tmp_path):
    log = open_log(tmp_path)
    appender = log.appender
    assert appender.durable_position == appender.position
    append(log, POINTS, 1)
    assert appender.durable_position < appender.position
    appender.mark()  # has nothing to say while something is not durable
    assert appender.sync_count == 0
    appender.sync()
    appender.sync()
    assert appender.sync_count == 1
    assert appender.durable_position == appender.position
    written = appender.written_bytes
    appender.mark()
    appender.sync()
    appender.mark()
    assert appender.written_bytes == written + _log.FRAME_HEADER_BYTES
    log.close()


def test_settings_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="file_bytes"):
        open_log(tmp_path / "log", file_bytes=LOG_FILE_BYTES_MIN - 1)
    with pytest.raises(ValueError, match="bus"):
        open_log(tmp_path / "log", bus="b" * 64)
    assert not (tmp_path / "log").exists()


# --- topics ---------------------------------------------------------------------------------------------------------------


def test_topics_keep_their_place_whether_or_not_they_are_named(tmp_path):
    log = open_log(tmp_path, [POINTS])
    append(log, POINTS, 5)
    log.close()
    log = open_log(tmp_path, [PAIRS])
    assert [(topic.number, topic.schema.name) for topic in log.topics] == [(0, "points"), (1, "pairs")]
    append(log, PAIRS, 3)
    log.close()
    log = open_log(tmp_path, [PAIRS, POINTS])
    assert log.topic("points").number == 0
    append(log, POINTS, 1)
    append(log, PAIRS, 1)
    log.close()
    assert_sound(tmp_path, points=6, pairs=4)


def test_a_changed_schema_is_refused_with_words_and_nothing_is_changed(tmp_path):
    open_log(tmp_path, [POINTS]).close()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.glob("*.log"))
    changed = Schema("points", {"value": "u8", "check": "u8", "tag": "S5"})
    with pytest.raises(FormatMismatch, match="field 'check' is u4 here and u8 there") as caught:
        open_log(tmp_path, [changed])
    assert "new topic name" in str(caught.value)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.glob("*.log")) == before
    open_log(tmp_path, [POINTS]).close()  # and the lock was given back


def test_prose_may_be_corrected(tmp_path):
    open_log(tmp_path, [POINTS]).close()
    told = Schema(
        "points", {f.name: f.type for f in POINTS.fields}, units={"value": "metres"}, description="Better words"
    )
    open_log(tmp_path, [told]).close()
    assert examine(tmp_path).topics["points"].schema == told


def test_too_many_topics_are_refused(tmp_path):
    many = [Schema(f"t{number}", {"x": "u1"}) for number in range(_log.TOPIC_COUNT_MAX + 1)]
    with pytest.raises(StorageError, match="257 topics"):
        open_log(tmp_path, many)
    log = open_log(tmp_path, many[:-1])
    append(log, many[-2], 1)
    log.close()
    assert examine(tmp_path).problems == []


# --- one writer, one bus --------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    log = open_log(tmp_path)
    with pytest.raises(LogLocked, match=f"process {os.getpid()} is writing"):
        open_log(tmp_path)
    append(log, POINTS, 1)
    log.close()
    open_log(tmp_path).close()


@pytest.mark.process
def test_a_writer_in_another_process_is_named_and_its_death_frees_the_log(tmp_path):
    code = f"""if True:
        import sys
        from ringmain.storage import Log, Schema
        log = Log({str(tmp_path)!r}, [Schema("points", {{"x": "u1"}})], bus="test", file_bytes=4 << 20)
        print("open", flush=True)
        sys.stdin.read()
    """
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(LogLocked) as caught:
            open_log(tmp_path)
        assert caught.value.pid == child.pid
        child.kill()
        child.wait(10)
        assert spares(tmp_path)
        log = open_log(tmp_path, [])
        assert log.epoch == 2
        log.close()
        assert spares(tmp_path) == []
    finally:
        child.kill()
        child.communicate()


def test_another_bus_is_refused(tmp_path):
    open_log(tmp_path).close()
    with pytest.raises(FormatMismatch, match="belongs to one bus") as caught:
        open_log(tmp_path, bus="other")
    assert (caught.value.expected, caught.value.found) == ("'other'", "'test'")
    open_log(tmp_path).close()


def test_a_writer_that_was_taken_over_can_do_no_harm(tmp_path):
    paused = open_log(tmp_path)
    append(paused, POINTS, 10)
    paused.appender.sync()
    winner = open_log(tmp_path, take_over=True)
    assert winner.epoch == 2
    append(winner, POINTS, 5)

    paused.appender.append(0, make_rows(POINTS, 11, 7))  # it wakes, and writes into its old file, behind the end
    paused.keep(0)
    with pytest.raises(LogFailed, match=r"0000000002\.log: rename failed: No such file"):
        fill_file_without_keeper(paused)
    kept = spares(tmp_path)
    paused.close()
    assert spares(tmp_path) == kept  # those are the winner's

    append(winner, POINTS, 5)
    winner.close()
    assert_sound(tmp_path, points=20)


def check_next(reader: LogReader, first: int) -> None:
    rows = reader.read(first)
    assert rows is not None
    check_rows(POINTS, rows, first)


def test_a_reader_never_sees_what_a_paused_writer_wrote_after_it_was_taken_over(tmp_path):
    paused = open_log(tmp_path)
    append(paused, POINTS, 10)
    reader = LogReader(tmp_path, "points")
    check_next(reader, 1)
    winner = open_log(tmp_path, take_over=True)
    late = make_rows(POINTS, 11, 7)
    late["value"] = 0
    paused.appender.append(0, late)

    assert reader.read(11) is None
    assert LogReader(tmp_path, "points").read(11) is None
    append(winner, POINTS, 7)
    check_next(reader, 11)
    check_next(LogReader(tmp_path, "points"), 11)
    paused.close(finish=False)
    winner.close()


def test_a_paused_writer_never_replaces_the_file_of_the_one_that_took_over(tmp_path):
    paused = open_log(tmp_path)
    append(paused, POINTS, 1)
    waiting = spares(tmp_path)
    winner = open_log(tmp_path, take_over=True)
    append(winner, POINTS, 1)
    for name in waiting:  # as if it had made them only now
        (tmp_path / name).write_bytes(bytes(FILE_BYTES))
    with pytest.raises(LogFailed, match=r"0000000002\.log: rename failed: File exists"):
        fill_file_without_keeper(paused)
    assert open_file(file_path(tmp_path, 2), 2).header.epoch == 2
    paused.close(finish=False)
    winner.close()
    assert_sound(tmp_path, points=2)


def test_rename_does_not_replace_a_file_that_is_there(tmp_path):
    log = open_log(tmp_path)
    append(log, POINTS, 1)
    log.appender.sync()
    other = file_path(tmp_path, 2)
    other.write_bytes(b"somebody else's")
    with pytest.raises(LogFailed, match=r"0000000002\.log: rename failed: File exists"):
        fill_file(log)
    assert other.read_bytes() == b"somebody else's"
    with pytest.raises(LogFailed, match="File exists"):  # poisoned: the same answer for ever
        log.appender.sync()
    log.close()
    other.unlink()
    log = open_log(tmp_path)
    assert log.appender.next_sequence(0) > 1
    log.close()


# --- the id of a log -------------------------------------------------------------------------------------------------------


def test_a_new_log_has_the_id_that_it_was_given_and_an_old_one_must_have_it(tmp_path):
    log = open_log(tmp_path, log_id=0xC0FFEE)
    assert log.log_id == 0xC0FFEE
    log.close()
    for given in (0, 0xC0FFEE):
        log = open_log(tmp_path, log_id=given)
        assert log.log_id == 0xC0FFEE
        log.close()
    with pytest.raises(FormatMismatch, match="log_id: expected 0xdecaf, found 0xc0ffee") as caught:
        open_log(tmp_path, log_id=0xDECAF)
    assert (caught.value.expected, caught.value.found) == ("0xdecaf", "0xc0ffee")
    with pytest.raises(ValueError, match="log_id"):
        open_log(tmp_path / "other", log_id=1 << 64)


# --- files: room, retention, recycling --------------------------------------------------------------------------------------


def test_closing_leaves_no_spares_and_gives_back_the_room(tmp_path):
    log = open_log(tmp_path)
    append(log, POINTS, 10)
    log.close()
    log.close()  # twice is no harm
    path = file_path(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000000001.log", "LOCK"]
    assert path.stat().st_size == FILE_BYTES
    assert path.stat().st_blocks * 512 < FILE_BYTES // 4
    assert path.stat().st_mode & 0o777 == 0o600


def test_leftovers_of_killed_writers_are_cleared_away(tmp_path):
    tmp_path.joinpath("spare-123-1").write_bytes(b"x")
    log = open_log(tmp_path)
    assert "spare-123-1" not in spares(tmp_path)
    log.close()


def test_what_was_proven_a_moment_ago_is_not_read_again_unless_other_files_are_there(tmp_path):
    log = open_log(tmp_path)
    for _ in range(2):
        fill_file(log)
    last = append(log, POINTS, 1)
    log.close()
    proven = examine(tmp_path)
    with open(file_path(tmp_path, 1), "r+b") as file:  # which nobody would miss who looked
        file.seek(FILE_BYTES // 2)
        file.write(bytes(100))
    log = open_log(tmp_path, proven=proven)
    assert log.recovered.record_count == last
    assert append(log, POINTS, 1) == last + 1
    log.close()
    with pytest.raises(Corruption):
        open_log(tmp_path, proven=proven)


def test_what_was_proven_of_files_that_are_not_there_is_not_believed(tmp_path):
    directories = [tmp_path / "log", tmp_path / "other"]
    for directory in directories:
        log = open_log(directory)
        append(log, POINTS, 100)
        log.close()
    ours, theirs = (file_path(directory, 1) for directory in directories)
    proven = examine(tmp_path / "log")
    assert proven.is_still(tmp_path / "log")
    assert not proven.is_still(tmp_path / "other")
    assert not examine(tmp_path / "other").moved_to(tmp_path / "log").is_still(tmp_path / "log")
    whole = ours.read_bytes()
    for content in (theirs.read_bytes(), whole[: proven.files[0].end - 1], whole[:100], bytes(len(whole))):
        ours.write_bytes(content)
        assert not proven.is_still(tmp_path / "log")
    ours.write_bytes(whole)
    assert proven.is_still(tmp_path / "log")
    ours.unlink()
    assert not proven.is_still(tmp_path / "log")


def test_retention_by_size_keeps_at_least_that_much(tmp_path):
    log = open_log(tmp_path, retention_bytes=2 * FILE_BYTES)
    for _ in range(7):
        fill_file(log)
    kept = numbers(tmp_path)
    assert len(kept) == 3  # two whole files, and the one being written
    assert kept[-1] == log.appender.file_number
    last = append(log, POINTS, 1)
    log.close()
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.topics["points"].next_sequence == last + 1
    rows = read_rows(tmp_path, POINTS)
    check_rows(POINTS, rows, int(rows["sequence"][0]))
    log = open_log(tmp_path, retention_bytes=2 * FILE_BYTES)  # sequences go on though the beginning is gone
    assert log.topic("points").next_sequence == last + 1
    log.close()


def test_nothing_is_given_back_without_a_retention(tmp_path):
    log = open_log(tmp_path)
    for _ in range(3):
        fill_file(log)
    assert numbers(tmp_path) == [1, 2, 3, 4]
    log.close()


def test_retention_by_age_gives_back_what_is_wholly_older(tmp_path):
    log = open_log(tmp_path, retention_age_s=3600)
    fill_file(log)
    assert numbers(tmp_path) == [1, 2]
    log.close()
    log = open_log(tmp_path, retention_age_s=0.3)
    fill_file(log)
    deadline = time.monotonic() + 30
    while numbers(tmp_path) != [4]:  # the newest stays however old it is
        assert time.monotonic() < deadline
        log.keep(0.01)
    log.close()
    assert numbers(tmp_path) == [4]
    assert examine(tmp_path).problems == []


class Clocks:
    """Both clocks of retention, in seconds, in place of its module `time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.steady = 1_000_000.0
        monkeypatch.setattr(log_retention, "time", self)

    def time_ns(self) -> int:
        return int(self.wall * 1e9)

    def monotonic_ns(self) -> int:
        return int(self.steady * 1e9)

    def pass_by(self, seconds: float) -> None:
        self.wall, self.steady = self.wall + seconds, self.steady + seconds


def make_headers(directory: Path, created: Sequence[float | None]) -> list[tuple[int, Path]]:
    """Log files that were begun at these times, in seconds; None: with a damaged header."""
    files = [(number, file_path(directory, number)) for number in range(1, len(created) + 1)]
    for (number, path), created_s in zip(files, created, strict=True):
        header = _log.encode_file_header(
            log_id=1,
            file_number=number,
            start_position=0,
            previous_end=0,
            epoch=1,
            created_ns=int((created_s or 0) * 1e9),
            file_bytes=FILE_BYTES,
            start_bytes=_log.LOG_HEADER_BYTES,
            bus="test",
        )
        path.write_bytes(header if created_s is not None else header[:100].ljust(len(header), b"x"))
    return files


def expired(retention: Retention, files: list[tuple[int, Path]]) -> list[int]:
    return [number for (number, _), _ in retention.expired(files[:-1], files[-1])]


DAY = 86_400.0
YEAR = 365 * DAY


@pytest.mark.parametrize(
    ("created", "gone"),
    [
        ([0, -9 * DAY, -8 * DAY, -6 * DAY, -1 * DAY], [1, 2]),
        ([0, YEAR, YEAR, -8 * DAY, -6 * DAY], [1, 2, 3]),  # the clock ran ahead, and was put right
        ([YEAR, YEAR, YEAR, -6 * DAY, -1 * DAY], []),
        ([YEAR, YEAR, YEAR, YEAR, YEAR], []),
        ([YEAR, 3 * DAY, -9 * DAY, YEAR, -8 * DAY], [1, 2, 3, 4]),
        ([0, None, -9 * DAY, None, -6 * DAY], [1, 2]),
        ([0, None, None, None, None], []),
        ([-9 * DAY, -6 * DAY, -5 * DAY, -49 * YEAR, -1 * DAY], []),  # for a moment it was behind
    ],
)
def test_a_file_begun_in_the_future_keeps_no_file_from_expiring(tmp_path, monkeypatch, created, gone):
    clocks = Clocks(monkeypatch)
    clocks.wall = 50 * YEAR
    times = [clocks.wall + time if time is not None else None for time in created]
    assert expired(Retention(None, 7 * DAY), make_headers(tmp_path, times)) == gone


def test_retention_reads_no_more_headers_than_it_needs(tmp_path, monkeypatch):
    files = make_headers(tmp_path, [1_000_000.0 - DAY] * 10 + [2_000_000.0] * 80 + [1_000_000.0] * 10)
    read: list[int] = []
    read_header = log_retention.read_header
    monkeypatch.setattr(
        log_retention, "read_header", lambda path, number: read.append(number) or read_header(path, number)
    )
    Clocks(monkeypatch)
    assert expired(Retention(None, 3600), files) == list(range(1, 10))
    assert read == list(range(2, 92))  # each once, up to the first that tells
    read.clear()
    assert expired(Retention(None, 2 * DAY), files) == []
    assert read == [2]


def test_a_clock_that_is_ahead_for_a_moment_gives_nothing_up(tmp_path, monkeypatch):
    clocks = Clocks(monkeypatch)
    clocks.wall = 50 * YEAR
    retention = Retention(None, 7 * DAY)
    files = make_headers(tmp_path, [clocks.wall + day * DAY for day in (-9, -8, -6, -1)])
    assert expired(retention, files) == [1]
    clocks.wall += YEAR
    for _ in range(3):
        assert expired(retention, files) == [1]
        clocks.pass_by(1000)
    clocks.wall -= YEAR
    assert expired(retention, files) == [1]
    clocks.pass_by(2 * DAY)  # nobody looked meanwhile
    assert expired(retention, files) == [1, 2]
    clocks.wall += YEAR
    assert expired(retention, files) == [1, 2]
    clocks.pass_by(3601)
    assert expired(retention, files) == [1, 2, 3]  # it has lasted, and is believed


def test_a_step_ahead_is_believed_after_the_age_to_keep_where_that_is_short(tmp_path, monkeypatch):
    clocks = Clocks(monkeypatch)
    retention = Retention(None, 100)
    files = make_headers(tmp_path, [clocks.wall - 50] * 3)
    assert expired(retention, files) == []
    clocks.wall += DAY
    assert expired(retention, files) == []
    clocks.pass_by(30)
    assert expired(retention, files) == []
    clocks.pass_by(40)
    assert expired(retention, files) == [1, 2]  # by the time that has passed, whatever the clock says
    later = make_headers(tmp_path, [clocks.wall - 200] * 3)  # begun behind the step
    assert expired(retention, later) == []
    clocks.pass_by(40)
    assert expired(retention, later) == [1, 2]


def test_expired_files_are_used_again_and_their_old_frames_never_come_back(tmp_path):
    log = open_log(tmp_path, retention_bytes=FILE_BYTES)
    inodes: list[int] = []
    for _ in range(8):
        inodes.append(file_path(tmp_path, log.appender.file_number).stat().st_ino)
        fill_file(log)
    append(log, PAIRS, 3)
    number = log.appender.file_number
    inodes.append(file_path(tmp_path, number).stat().st_ino)
    assert len(set(inodes)) < len(inodes)
    file = open_file(file_path(tmp_path, number), number)
    assert b"RMF1" in file.data[log.appender.offset + (64 << 10) :]  # full of whole frames of the earlier use
    assert file.find_frame(log.appender.offset) is None
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.torn_bytes == 0
    last = contents.topics["points"].next_sequence - 1
    del file
    log.close(finish=False)
    log = open_log(tmp_path)
    assert not log.recovered.closed
    assert log.recovered.torn_bytes == 0
    assert log.topic("points").next_sequence == last + 1
    log.close()


def test_a_file_that_a_reader_has_mapped_is_never_recycled_under_it(tmp_path):
    log = open_log(tmp_path, retention_bytes=1)
    append(log, POINTS, 1000)
    reader = open_file(file_path(tmp_path, 1), 1)
    frames, _ = reader.scan()
    frame = frames[frames["kind"] == _log.FRAME_ROWS][0]
    rows = np.frombuffer(reader.data, POINTS.dtype, 1000, int(frame["offset"]) + _log.FRAME_HEADER_BYTES)
    inode = file_path(tmp_path, 1).stat().st_ino
    for _ in range(5):
        fill_file(log)
    assert inode not in [path.stat().st_ino for path in tmp_path.iterdir()]  # it went, by name only
    check_rows(POINTS, rows, 1)
    log.close()


def test_a_file_of_an_earlier_writer_is_removed_but_not_written_to_again(tmp_path):
    log = open_log(tmp_path)
    fill_file(log)
    log.close()
    old = {path.stat().st_ino: path.open("rb") for _, path in list_files(tmp_path)}
    before = {inode: os.pread(file.fileno(), FILE_BYTES, 0) for inode, file in old.items()}
    log = open_log(tmp_path, retention_bytes=1)
    fill_file(log)
    fill_file(log)
    assert numbers(tmp_path)[0] > 2
    log.close()
    for inode, file in old.items():
        assert os.pread(file.fileno(), FILE_BYTES, 0) == before[inode]
        file.close()


def test_a_file_about_to_be_recycled_cannot_be_mapped(tmp_path):
    log = open_log(tmp_path)
    name = spares(tmp_path)[0]
    with pytest.raises(FileNotFoundError, match="recycled"):
        open_file(tmp_path / name, 2)
    log.close()


def test_waiting_for_a_spare_ends_when_the_keeper_makes_one(tmp_path):
    log = open_log(tmp_path)
    stop = threading.Event()

    def keep() -> None:
        while not stop.is_set():
            log.keep(0.02)

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        for first in range(1, 40 * GROUP_ROWS, GROUP_ROWS):  # ten files, faster than they are made
            log.appender.append(0, make_rows(POINTS, first, GROUP_ROWS))
    finally:
        stop.set()
        keeper.join(10)
    log.close()
    assert_sound(tmp_path, points=40 * GROUP_ROWS)


def test_who_reads_on_maps_each_file_once(tmp_path, monkeypatch):
    log = open_log(tmp_path)
    for _ in range(3):
        fill_file(log)
    last = append(log, POINTS, GROUP_ROWS)
    log.close()
    reader = LogReader(tmp_path, POINTS.name)
    rows = reader.read(1)  # the search for the first file is over
    mapped: list[int] = []

    def count(path: Path, number: int) -> LogFile:
        mapped.append(number)
        return open_file(path, number)

    monkeypatch.setattr(log_reader, "open_file", count)
    while rows is not None and rows["sequence"][-1] < last:
        rows = reader.read(int(rows["sequence"][-1]) + 1)
    assert rows is not None
    assert mapped == numbers(tmp_path)[1:]
