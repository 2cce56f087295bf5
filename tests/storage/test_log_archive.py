"""Where files go that the log does not keep: held back while rows in them are needed, then archived, and read on from there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ringmain.storage import Corruption, FormatMismatch, HistoryGone, Log, LogReader, Schema, StorageError
from ringmain.storage._log import FRAME_HEADER_BYTES, FRAME_TOPIC, LOG_HEADER_BYTES
from ringmain.storage.log_files import LogFile, file_path, list_files, open_file, read_topics
from ringmain.storage.recovery import examine
from ringmain.storage.repair import repair
from support.logs import (
    FILE_BYTES,
    PAIRS,
    POINTS,
    START_NS,
    Builder,
    Rows,
    append,
    check_rows,
    flip,
    make_rows,
    wait_until,
)

ROWS = 20_000  # of POINTS: four times fill a file
TESTS = Path(__file__).parents[1]


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """The log's directory and its archive."""
    return tmp_path / "log", tmp_path / "archive"


def open_log(places: tuple[Path, Path], schemas=(POINTS, PAIRS), **options) -> Log:
    directory, archive = places
    settings = {"retention_bytes": 0, "archive": archive} | options
    return Log(directory, schemas, bus="test", file_bytes=FILE_BYTES, **settings)


def fill_file(log: Log) -> int:
    """Append POINTS until the next file begins; returns the last sequence."""
    number, last = log.appender.file_number, 0
    while log.appender.file_number == number:
        last = append(log, POINTS, ROWS)
    log.keep(0)
    return last


def fill_files(log: Log, count: int) -> int:
    last = 0
    for _ in range(count):
        last = fill_file(log)
    return last


def read(reader: LogReader, sequence: int) -> Rows:
    rows = reader.read(sequence)
    assert rows is not None
    return rows


def numbers(directory: Path) -> list[int]:
    return [number for number, _ in list_files(directory)]


def first_of(directory: Path, number: int, schema: Schema = POINTS) -> int:
    """The topic's next sequence where a file begins."""
    file = open_file(file_path(directory, number), number)
    frames, _ = file.scan(limit=file.header.start_bytes)
    return next(topic.next_sequence for topic in read_topics(file, frames) if topic.schema.name == schema.name)


def read_from(reader: LogReader, first: int = 1, last: int | None = None) -> int:
    """Read to the end, or to `last`, checking every row; returns the last sequence."""
    while (rows := reader.read(first, last)) is not None:
        check_rows(reader.schema, rows, first)
        first = int(rows["sequence"][-1]) + 1
    return first - 1


# --- into the archive -----------------------------------------------------------------------------------------------------


def test_expired_files_are_moved_whole_and_never_written_to_again(places):
    log = open_log(places)
    inodes, last = {}, 0
    for number in range(1, 6):
        inodes[number] = file_path(places[0], number).stat().st_ino
        last = fill_file(log)
    assert numbers(places[0]) == [6]
    assert {number: path.stat().st_ino for number, path in list_files(places[1])} == inodes
    assert len({*inodes.values(), file_path(places[0], 6).stat().st_ino}) == 6
    assert read_from(LogReader(places[0], "points", places[1])) == last
    log.close()
    assert log.archive is not None
    assert log.archive.error is None
    for directory in places:
        assert examine(directory).problems == []


def test_retention_says_how_much_stays_in_the_log(places):
    log = open_log(places, retention_bytes=2 * FILE_BYTES)
    fill_files(log, 5)
    assert (numbers(places[1]), numbers(places[0])) == ([1, 2, 3], [4, 5, 6])
    log.close()


def test_without_a_retention_everything_stays_in_the_log(places):
    log = open_log(places, retention_bytes=None)
    fill_files(log, 3)
    assert (numbers(places[1]), numbers(places[0])) == ([], [1, 2, 3, 4])
    log.close()


def test_the_archive_keeps_at_least_so_many_bytes(places):
    log = open_log(places, archive_bytes=2 * FILE_BYTES)
    fill_files(log, 6)
    assert (numbers(places[1]), numbers(places[0])) == ([5, 6], [7])
    log.close()


def test_the_archive_gives_up_what_is_wholly_older_than_its_age(places):
    log = open_log(places, archive_age_s=3600)
    fill_files(log, 3)
    assert numbers(places[1]) == [1, 2, 3]
    log.close()
    log = open_log(places, archive_age_s=0.05)
    wait_until(lambda: log.keep(0.01) is None and numbers(places[1]) == [])
    assert numbers(places[0]) == [5]  # and the newest is never given up
    log.close()


def test_a_file_of_an_earlier_writer_is_archived_too(places):
    log = open_log(places, retention_bytes=None)
    fill_file(log)
    log.close()
    log = open_log(places)
    last = fill_file(log)
    assert (numbers(places[1]), numbers(places[0])) == ([1, 2, 3], [4])
    log.close()
    assert read_from(LogReader(places[0], "points", places[1])) == last


def test_sequences_go_on_when_all_but_the_newest_file_is_in_the_archive(places):
    log = open_log(places)
    last = fill_file(log)
    log.close()
    log = open_log(places)
    assert log.topic("points").next_sequence == last + 1
    append(log, POINTS, 1)
    log.close()
    assert read_from(LogReader(places[0], "points", places[1])) == last + 1


def test_a_file_whose_name_is_taken_in_the_archive_stays_in_the_log_and_the_log_goes_on(places):
    log = open_log(places)
    assert log.archive is not None
    fill_file(log)
    intruder = file_path(places[1], 2)
    intruder.write_bytes(b"somebody else's")
    last = fill_files(log, 5)  # more files than spares
    assert isinstance(log.archive.error, FileExistsError)
    assert str(intruder) in str(log.archive.error)
    assert intruder.read_bytes() == b"somebody else's"
    assert (numbers(places[1]), numbers(places[0])) == ([1, 2], [2, 3, 4, 5, 6, 7])
    intruder.unlink()
    log.keep(0)
    assert log.archive.error is None
    assert (numbers(places[1]), numbers(places[0])) == ([1, 2, 3, 4, 5, 6], [7])
    log.close()
    assert read_from(LogReader(places[0], "points", places[1])) == last


def test_an_archive_that_cannot_be_used_is_refused_before_anything_is_changed(places, tmp_path):
    with pytest.raises(ValueError, match="the log's own directory"):
        open_log((places[0], places[0]))
    log = open_log(places)
    fill_file(log)
    log.close()
    other = tmp_path / "other"
    with pytest.raises(FormatMismatch, match="none, since the log is new"):
        open_log((other, places[1]))
    Log(other, [POINTS], bus="test", file_bytes=FILE_BYTES).close()
    before = sorted(path.name for path in other.iterdir())
    with pytest.raises(FormatMismatch, match="an archive belongs to one log"):
        open_log((other, places[1]))
    assert sorted(path.name for path in other.iterdir()) == before
    open_log((other, tmp_path / "fresh")).close()  # and the lock was given back


@pytest.mark.parametrize("retention", [{"retention_bytes": 0}, {"retention_bytes": None, "retention_age_s": 3600}])
def test_a_log_with_an_archive_is_refused_without_one_where_its_files_may_expire(places, tmp_path, retention):
    log = open_log(places)
    fill_files(log, 2)
    log.close()
    flip(file_path(places[1], 2), 20)  # the file before tells as well whose archive it is
    before = {path.name: path.stat().st_ino for path in places[0].iterdir()}
    with pytest.raises(StorageError, match=r"files of this log are in .*archive, and .* without an archive"):
        open_log(places, archive=None, **retention)
    assert {path.name: path.stat().st_ino for path in places[0].iterdir()} == before
    log = open_log(places, archive=None, retention_bytes=None)  # nothing expires, and nothing is missing
    fill_files(log, 2)
    assert (numbers(places[1]), numbers(places[0])) == ([1, 2], [3, 4, 5, 6])
    log.close()
    places[1].rename(tmp_path / "elsewhere")
    open_log(places, archive=None, **retention).close()


def test_an_archive_of_another_log_beside_one_without_an_archive_is_no_matter(places):
    log = open_log(places)
    fill_files(log, 2)
    log.close()
    shutil.rmtree(places[0])
    for _ in range(2):
        log = open_log(places, archive=None)
        fill_files(log, 2)
        assert numbers(places[0])[0] > 2
        log.close()


@pytest.mark.parametrize("archive_age_s", [None, 3600.0])
def test_damage_in_the_archive_stops_no_writer(places, archive_age_s):
    log = open_log(places)
    last = fill_files(log, 2)
    log.close()
    flip(file_path(places[1], 2), 20)
    log = open_log(places, archive_age_s=archive_age_s)
    append(log, POINTS, 1)
    log.close()
    reader = LogReader(places[0], "points", places[1])
    with pytest.raises(Corruption):
        read_from(reader)
    assert read_from(reader, last + 1) == last + 1


def test_damage_in_the_log_stops_no_writer_that_looks_how_old_its_files_are(places):
    log = open_log(places, retention_bytes=None, retention_age_s=3600)
    fill_files(log, 2)
    flip(file_path(places[0], 2), 20)
    append(log, POINTS, 1)
    assert numbers(places[0]) == [1, 2, 3]
    log.close()


def test_an_archive_on_another_file_system_is_refused(places, bus_name):
    elsewhere = Path("/dev/shm") / f"ringmain.{bus_name}"
    if not elsewhere.parent.is_dir() or elsewhere.parent.stat().st_dev == places[0].parent.stat().st_dev:
        pytest.skip("/dev/shm is no file system of its own here")
    try:
        with pytest.raises(OSError, match="must be on the file system of the log"):
            open_log((places[0], elsewhere))
    finally:
        elsewhere.rmdir()


# --- held back ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archived", [True, False])
def test_files_with_rows_behind_a_checkpoint_do_not_expire(places, archived):
    log = open_log(places, archive=places[1] if archived else None, checkpoints={})
    append(log, PAIRS, 5)
    last = fill_files(log, 5)
    assert numbers(places[0]) == [1, 2, 3, 4, 5, 6]
    begins = [first_of(places[0], number) for number in range(1, 7)]

    def remaining(**checkpoints: int) -> list[int]:
        log.release(checkpoints)
        log.keep(0)
        return numbers(places[0])

    assert remaining(points=last) == [1, 2, 3, 4, 5, 6]  # pairs has no checkpoint yet
    assert remaining(points=last, pairs=4) == [1, 2, 3, 4, 5, 6]
    assert remaining(points=begins[2] - 2, pairs=5) == [2, 3, 4, 5, 6]
    assert remaining(points=begins[2] - 1, pairs=5) == [3, 4, 5, 6]
    assert remaining(points=begins[2], pairs=5) == [3, 4, 5, 6]
    assert remaining(points=begins[4], pairs=5) == [5, 6]
    assert remaining(points=last, pairs=5) == [6]
    assert archived == places[1].exists()
    if archived:
        assert numbers(places[1]) == [1, 2, 3, 4, 5]
    log.close()


@pytest.mark.parametrize("checkpoints", [None, {}])
def test_files_with_rows_that_are_held_back_do_not_expire_whatever_else_would_let_them(places, checkpoints):
    log = open_log(places, checkpoints=checkpoints)
    log.hold_back({})
    append(log, PAIRS, 5)
    last = fill_files(log, 3)
    begins = [first_of(places[0], number) for number in range(1, 5)]
    log.release({"points": last, "pairs": 5})
    log.keep(0)
    assert (numbers(places[0]), numbers(places[1])) == ([1, 2, 3, 4], [])
    log.hold_back({"points": begins[2] - 1, "pairs": 5})
    log.keep(0)
    assert (numbers(places[0]), numbers(places[1])) == ([3, 4], [1, 2])
    log.hold_back({"points": last, "pairs": 5})
    log.release({"points": begins[2], "pairs": 5})  # now that is what holds them
    log.keep(0)
    assert numbers(places[0]) == [3, 4]
    log.close()


def test_checkpoints_given_at_opening_hold_from_the_beginning(places):
    log = open_log(places, checkpoints={})
    last = fill_files(log, 2)
    log.close()
    log = open_log(places, checkpoints={"points": 1})
    log.keep(0)
    assert numbers(places[0]) == [1, 2, 3, 4]
    log.release({"points": last})
    log.keep(0)
    assert numbers(places[0]) == [4]
    log.close()


def test_a_topic_without_rows_holds_nothing_and_one_that_came_later_holds_its_own(places):
    log = open_log(places, [POINTS], checkpoints={})
    last = fill_file(log)
    log.close()
    log = open_log(places, checkpoints={"points": last})
    log.keep(0)
    assert numbers(places[0]) == [3]
    append(log, PAIRS, 3)
    last = fill_file(log)
    log.release({"points": last, "pairs": 2})
    log.keep(0)
    assert numbers(places[0]) == [3, 4]
    log.close()


def test_what_a_checkpoint_needs_no_more_is_still_kept_as_long_as_retention_says(places):
    log = open_log(places, retention_bytes=2 * FILE_BYTES, checkpoints={})
    last = fill_files(log, 5)
    assert numbers(places[0]) == [1, 2, 3, 4, 5, 6]
    log.release({"points": last})
    log.keep(0)
    assert (numbers(places[1]), numbers(places[0])) == ([1, 2, 3], [4, 5, 6])
    log.close()


def test_a_file_whose_declarations_are_damaged_is_kept(places):
    log = open_log(places, checkpoints={})
    last = fill_files(log, 3)
    path = file_path(places[0], 3)
    with path.open("r+b") as file:
        file.seek(4096 + 70)
        file.write(b"\xff")
    log.release({"points": last})
    log.keep(0)
    assert numbers(places[0]) == [2, 3, 4]  # where file 3 began, and so what is in file 2, cannot be told
    log.close()


# --- reading on from the archive ------------------------------------------------------------------------------------------


def build(places: tuple[Path, Path], archived: int, count: int = 6) -> Builder:
    """So many files of ten rows each, the first of them in the archive."""
    builder = Builder(places[0])
    for number in range(count):
        builder.begin(new_writer=number % 2 == 1)
        builder.rows(POINTS, 7)
        builder.rows(PAIRS, 1)
        builder.rows(POINTS, 3)
    places[1].mkdir()
    for number in range(1, archived + 1):
        file_path(places[0], number).rename(file_path(places[1], number))
    return builder


@pytest.mark.parametrize("archived", range(6))
def test_a_reader_finds_any_row_and_any_time_wherever_its_file_is(places, archived):
    build(places, archived)
    reader = LogReader(places[0], "points", places[1])
    assert reader.oldest == 1
    order = random.Random(archived).sample(range(1, 61), 60)
    for sequence in order:
        check_rows(POINTS, read(reader, sequence), sequence)
        assert reader.find_time(START_NS + sequence * 1000) == sequence
    assert read_from(reader) == 60
    short = LogReader(places[0], "points")
    assert short.oldest == 10 * archived + 1
    if archived:
        with pytest.raises(HistoryGone) as caught:
            short.read(10 * archived)
        assert caught.value.oldest == 10 * archived + 1


def test_an_archive_that_is_not_there_is_an_empty_one(places):
    build(places, 0)
    places[1].rmdir()
    assert read_from(LogReader(places[0], "points", places[1])) == 60


@pytest.fixture
def scanned(monkeypatch) -> list[int]:
    """The numbers of the files of which more than the beginning was read."""
    found: list[int] = []
    scan = LogFile.scan

    def counting(self, offset=LOG_HEADER_BYTES, limit=2**63, **options):
        frames, end = scan(self, offset, limit, **options)
        if limit == 2**63 and end > offset:
            found.append(self.header.file_number)
        return frames, end

    monkeypatch.setattr(LogFile, "scan", counting)
    return found


def test_a_time_is_looked_for_in_one_file_or_two_however_many_there_are(places, scanned):
    build(places, 30, count=40)
    for sequence in range(1, 401):
        reader = LogReader(places[0], "points", places[1])
        scanned.clear()
        assert reader.find_time(START_NS + sequence * 1000) == sequence
        assert set(scanned) <= {(sequence + 9) // 10, (sequence + 8) // 10}  # the one before, for a file's first row
    scanned.clear()
    assert LogReader(places[0], "points", places[1]).oldest == 1
    assert scanned == [40]  # for the schema


def test_a_time_between_two_rows_far_apart_is_looked_for_in_the_files_that_hold_them(places, scanned):
    builder = Builder(places[0])
    for number in range(1, 41):
        builder.begin()
        builder.rows(POINTS, 10)
        if number in (5, 30):
            builder.rows(PAIRS, 1)
    for time_ns, sequence, files in ((1000, 1, {5}), (1001, 2, {5, 30}), (2000, 2, {5, 30}), (2001, 3, {30, 40})):
        reader = LogReader(places[0], "pairs")
        scanned.clear()
        assert reader.find_time(START_NS + time_ns) == sequence
        assert set(scanned) <= files
        assert len(scanned) <= 2


@pytest.mark.parametrize("declared", [3, 4], ids=["where a file begins", "behind its beginning"])
def test_a_time_is_found_of_a_topic_that_was_declared_later(places, scanned, declared):
    builder = Builder(places[0], [POINTS])
    for number in range(1, 9):
        if number == 3:
            builder.next["pairs"], builder.last_ns["pairs"] = 1, 0
            builder.schemas = [POINTS, PAIRS] if declared == 3 else [POINTS]
        builder.begin()
        builder.rows(POINTS, 5)
        if number == 3 and declared == 4:
            builder.schemas = [POINTS, PAIRS]
            builder._add(
                FRAME_TOPIC, PAIRS.to_json(), topic=1, first_sequence=1, first_timestamp_ns=0, row_bytes=PAIRS.row_bytes
            )
        if number >= 3:
            builder.rows(PAIRS, 10)
    for sequence in range(1, 61):
        reader = LogReader(places[0], "pairs")
        scanned.clear()
        assert reader.find_time(START_NS + sequence * 1000) == sequence
        assert len(scanned) <= 2
    reader = LogReader(places[0], "pairs")
    assert reader.find_time(0) == reader.find_time(-5) == 1
    assert reader.find_time(START_NS + 61_000) == 61


def test_a_time_whose_rows_a_repair_gave_up_is_that_of_the_next_row_wherever_that_is(places, scanned):
    builder = Builder(places[0])
    for number in range(1, 21):
        path = builder.begin()
        builder.rows(PAIRS, 1)
        offset = builder.rows(POINTS, 10) if number in (3, 4, 15) else 0
        builder.mark()
        if number == 4:
            flip(path, offset + FRAME_HEADER_BYTES + 3)
    assert [(lost.first, lost.count) for lost in repair(places[0]).lost] == [(11, 10)]
    reader = LogReader(places[0], "points")
    for sequence in range(1, 31):
        scanned.clear()
        assert reader.find_time(START_NS + sequence * 1000) == (21 if 11 <= sequence <= 20 else sequence)
        assert len(scanned) <= 4
    assert reader.find_time(START_NS + 31_000) == 31


def test_a_time_is_found_though_a_repair_declared_too_early_a_one(places):
    """Made again, a declaration names the first time stamp of the last frame before it, not the last one."""
    builder = Builder(places[0])
    for number in range(1, 7):
        if number == 4:
            builder.last_ns["points"] = START_NS + 21_000  # and not 30,000
        builder.begin()
        if number != 5:
            builder.rows(POINTS, 10)
    for sequence in range(1, 51):
        assert LogReader(places[0], "points").find_time(START_NS + sequence * 1000) == sequence


def test_a_time_is_found_while_files_expire(places, monkeypatch):
    build(places, 4)
    reader = LogReader(places[0], "points", places[1])
    looked_at = reader._numbers()
    for number in (1, 2):
        file_path(places[1], number).unlink()
    monkeypatch.setattr(reader, "_numbers", lambda: looked_at)
    for sequence in range(1, 61):
        assert reader.find_time(START_NS + sequence * 1000) == max(21, sequence)


def test_rows_that_the_archive_has_given_up_are_gone(places):
    build(places, 4)
    reader = LogReader(places[0], "points", places[1])
    kept = read(reader, 1)
    for number in (1, 2):
        file_path(places[1], number).unlink()
    check_rows(POINTS, kept, 1)
    assert reader.oldest == 21
    for sequence in (11, 20):
        with pytest.raises(HistoryGone) as caught:
            reader.read(sequence)
        assert caught.value.oldest == 21
    assert read_from(reader, 21) == 60


@pytest.mark.parametrize("missing", [2, 4])
def test_a_file_missing_between_others_is_damage_and_not_the_end(places, missing):
    build(places, 3)
    (file_path(places[1], missing) if missing <= 3 else file_path(places[0], missing)).unlink()
    reader = LogReader(places[0], "points", places[1])
    hole = 10 * (missing - 1) + 1
    assert read_from(reader, 1, hole - 1) == hole - 1
    with pytest.raises(Corruption, match="a file between its neighbours") as caught:
        reader.read(hole)
    assert os.path.basename(caught.value.path) == f"{missing:010d}.log"
    assert read_from(reader, 10 * missing + 1) == 60


def test_another_logs_archive_is_refused(places, tmp_path):
    build(places, 3)
    log = open_log((tmp_path / "other", tmp_path / "theirs"))
    fill_files(log, 3)
    log.close()
    reader = LogReader(places[0], "points", tmp_path / "theirs")
    check_rows(POINTS, read(reader, 31), 31)
    with pytest.raises(FormatMismatch, match="give the archive of this log"):
        reader.read(1)


def test_a_reader_goes_on_while_files_move_away_under_it(places):
    log = open_log(places)
    read: list[int] = [0]
    done = threading.Event()

    def follow() -> None:
        reader = LogReader(places[0], "points", places[1])
        while True:
            ended = done.is_set()  # before reading: what was appended by then is read
            read.append(read_from(reader, read[-1] + 1))
            if ended and read[-1] == read[-2]:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    last = 0
    try:
        last = fill_files(log, 12)
    finally:
        done.set()
        thread.join(60)
        log.close()
    assert read[-1] == last


def test_rows_that_were_handed_out_stay_as_they_are_when_their_file_moves_and_expires(places):
    log = open_log(places, archive_bytes=0)
    append(log, POINTS, 1000)
    rows = read(LogReader(places[0], "points", places[1]), 1)
    fill_files(log, 4)
    assert numbers(places[1]) == []
    check_rows(POINTS, rows, 1)
    log.close()


@pytest.mark.process
def test_a_writer_killed_while_files_move_leaves_every_row_in_one_place_or_the_other(places):
    code = """if True:
        import sys, threading
        from pathlib import Path
        from ringmain.storage import Log
        from support.logs import FILE_BYTES, POINTS, append
        log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES, retention_bytes=0, archive=sys.argv[2], checkpoints={})
        print("open", flush=True)
        while True:
            last = append(log, POINTS, 20_000)
            log.appender.sync()
            log.release({"points": last})
    """
    choice, before = random.Random(7), 0
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, places)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
            wanted = max(numbers(places[0])) + choice.randint(0, 3)
            wait_until(lambda wanted=wanted: max(numbers(places[0])) >= wanted)
            time.sleep(choice.random() * 0.01)
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.communicate()
        kept = numbers(places[1]) + numbers(places[0])
        assert kept == list(range(1, kept[-1] + 1))
        assert examine(places[0]).problems == []
        last = read_from(LogReader(places[0], "points", places[1]))
        assert last >= before
        before = last
    assert len(numbers(places[1])) > 8
    assert (read(LogReader(places[0], "points", places[1]), 1)[:5] == make_rows(POINTS, 1, 5)).all()
