"""Small groups copied into the mapped log file, and single rows: the same bytes as any write, at once in the system's hands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringmain.storage import Log, LogReader, Schema, _log
from ringmain.storage.log_files import file_path, list_files, open_file, read_topics
from ringmain.storage.recovery import examine
from support.logs import FILE_BYTES, PAIRS, POINTS, append, check_rows, make_rows, read_rows

TESTS = Path(__file__).parents[1]


def open_log(directory: Path, *, mapped: bool = True, schemas=(POINTS, PAIRS), **options) -> Log:
    return Log(directory, schemas, bus="test", file_bytes=FILE_BYTES, map_small_groups=mapped, **options)


def append_one(log: Log, schema: Schema = POINTS) -> int:
    """Append the topic's next row by itself; returns its sequence."""
    number = log.topic(schema.name).number
    sequence = log.appender.next_sequence(number)
    log.appender.append_one(number, make_rows(schema, sequence, 1))
    return sequence


@pytest.fixture
def log(tmp_path) -> Iterator[Log]:
    """A log that writes through a map."""
    log = open_log(tmp_path / "log")
    mapped = log.appender.is_mapped
    if mapped:
        yield log
    log.close()
    if not mapped:
        pytest.skip("the file system of the temporary folder is none on which the log writes through a map")


def assert_sound(directory: Path, points: int, pairs: int = 0) -> None:
    contents = examine(directory)
    assert contents.problems == []
    assert contents.torn_bytes == 0
    for schema, count in ((POINTS, points), (PAIRS, pairs)):
        rows = read_rows(directory, schema)
        check_rows(schema, rows, 1)
        assert len(rows) == count


# --- whether the file is mapped -------------------------------------------------------------------------------------------


def test_a_file_is_mapped_only_where_that_is_asked_for(tmp_path):
    log = Log(tmp_path, [POINTS], file_bytes=FILE_BYTES)
    assert not log.appender.is_mapped
    assert str(file_path(tmp_path, 1)) not in Path("/proc/self/maps").read_text()
    log.close()


def test_files_are_unmapped_when_the_next_begins(log):
    def mapped() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [os.path.basename(line) for line in lines if str(log.directory) in line and line.split()[1] == "rw-s"]

    assert mapped() == ["0000000001.log"]
    while log.appender.file_number < 3:
        append(log, POINTS, 20_000)
    assert mapped() == ["0000000003.log"]


def test_a_file_system_that_promises_no_room_is_written_to_by_calls(tmp_path):
    """On such a disk a store into the map could be a SIGBUS where a write says that the disk is full."""
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or unmount is None:
        pytest.skip("only root can mount the ramfs that this test writes to")
    mounted = subprocess.run([mount, "-t", "ramfs", "none", str(tmp_path)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a ramfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        log = open_log(tmp_path / "log")
        assert not log.appender.is_mapped
        for _ in range(10):
            append_one(log)
        append(log, POINTS, 3)
        log.close()
        assert_sound(tmp_path / "log", 13)
    finally:
        subprocess.run([unmount, "-l", str(tmp_path)], check=True)


# --- what is written ------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("one"), st.sampled_from([POINTS, PAIRS]), st.integers(1, 40)),
        st.tuples(st.just("group"), st.sampled_from([POINTS, PAIRS]), st.sampled_from([1, 2, 300, 400, 410, 20_000])),
        st.tuples(st.sampled_from(["sync", "mark"]), st.just(POINTS), st.just(1)),
    ),
    max_size=25,
)


def take(log: Log, step: tuple[str, Schema, int]) -> None:
    what, schema, count = step
    if what == "one":
        log.keep(0)
        for _ in range(count):
            append_one(log, schema)
    elif what == "group":
        append(log, schema, count)
    elif what == "sync":
        log.appender.sync()
    else:
        log.appender.mark()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_bytes_are_those_that_calls_would_have_written(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("logs")
    images = []
    for mapped in (True, False):
        log = open_log(folder / str(mapped), mapped=mapped)
        for step in steps:
            take(log, step)
        log.close()
        files = [open_file(path, number) for number, path in list_files(log.directory)]
        images.append([bytes(file.data[4096 : file.scan()[1]]) for file in files])
        assert examine(log.directory).problems == []
        del files
    assert images[0] == images[1]
    shutil.rmtree(folder)


def test_single_rows_and_groups_go_on_over_many_files(log):
    rows = pairs = 0
    while log.appender.file_number < 4:
        for _ in range(50):
            rows = append_one(log)
        pairs = append_one(log, PAIRS)
        rows = append(log, POINTS, 3000)
    log.close()
    assert_sound(log.directory, rows, pairs)


def test_single_rows_alone_fill_files_and_begin_the_next(tmp_path):
    wide = Schema("wide", {"body": "S15000"})
    log, last = open_log(tmp_path, schemas=[wide]), 0
    while log.appender.file_number < 4:
        last = append_one(log, wide)
        log.keep(0)
    log.close()
    rows = read_rows(tmp_path, wide)
    check_rows(wide, rows, 1)
    assert len(rows) == last
    file = open_file(file_path(tmp_path, 3), 3)
    (topic,) = read_topics(file, file.scan()[0])
    assert topic.last_timestamp_ns == rows["timestamp_ns"][topic.next_sequence - 2]


def test_rows_too_large_for_the_map_are_written_by_calls(tmp_path):
    widest = Schema("widest", {"body": "S65512"})
    log = open_log(tmp_path, schemas=[widest, PAIRS])
    for _ in range(5):
        append_one(log, widest)
        append_one(log, PAIRS)
    log.close()
    check_rows(widest, read_rows(tmp_path, widest), 1)
    assert_sound(tmp_path, 0, 5)


def test_a_reader_sees_a_single_row_at_once(log):
    reader = LogReader(log.directory, "points")
    for sequence in range(1, 200):
        assert reader.read(sequence) is None
        append_one(log)
        assert (reader.read(sequence) == make_rows(POINTS, sequence, 1)).all()


def test_a_single_tombstone_is_told_from_a_row(log):
    append_one(log)
    log.appender.append_one(0, make_rows(POINTS, 2, 1), True)
    log.appender.append_one(0, make_rows(POINTS, 3, 1), False)
    reader = LogReader(log.directory, "points")
    found = [reader.read_all(sequence) for sequence in (1, 2, 3)]
    assert [batch[1] for batch in found if batch is not None] == [False, True, False]


def test_recycled_files_are_mapped_too_and_their_old_frames_never_come_back(tmp_path):
    log = open_log(tmp_path, retention_bytes=FILE_BYTES)
    inodes = []
    for number in range(1, 8):
        inodes.append(file_path(tmp_path, number).stat().st_ino)
        while log.appender.file_number == number:
            append(log, POINTS, 3000)
        log.keep(0)
        for _ in range(3):
            append_one(log)
    assert len(set(inodes)) < len(inodes)
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.topics["points"].next_sequence == log.appender.next_sequence(0)
    log.close()


def test_single_rows_that_do_not_follow_are_refused_and_nothing_is_written(log):
    append_one(log)
    position = log.appender.position
    for first in (1, 3):
        with pytest.raises(ValueError, match="run on from 2"):
            log.appender.append_one(0, make_rows(POINTS, first, 1))
    for rows in (make_rows(POINTS, 2, 0), make_rows(POINTS, 2, 2)):
        with pytest.raises(ValueError, match="one row"):
            log.appender.append_one(0, rows)
    with pytest.raises(ValueError, match="contiguous"):
        log.appender.append_one(0, make_rows(PAIRS, 2, 1))
    with pytest.raises(ValueError, match="2 topics"):
        log.appender.append_one(2, make_rows(POINTS, 2, 1))
    assert log.appender.position == position
    assert append_one(log) == 2


def test_what_is_durable_follows_the_syncs(log):
    appender = log.appender
    append_one(log)
    assert appender.durable_position < appender.position
    appender.sync()
    assert appender.durable_position == appender.position
    append_one(log)
    frames, _ = open_file(file_path(log.directory, 1), 1).scan()
    assert frames["durable_position"][-2:].tolist() == [frames["offset"][-2], frames["offset"][-1]]


@pytest.mark.parametrize("mapped", [True, False])
def test_a_log_is_continued_whether_or_not_it_was_mapped(tmp_path, mapped):
    last = 0
    for life in range(4):
        log = open_log(tmp_path, mapped=mapped ^ bool(life % 2))
        for _ in range(20):
            last = append_one(log)
        log.close(finish=life != 2)
    assert_sound(tmp_path, last)


# --- killed -----------------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("count", [1, 2, 500, 70_000])
def test_a_single_row_survives_a_kill_as_soon_as_it_is_appended(tmp_path, count):
    code = """if True:
        import os, signal, sys
        from ringmain.storage import Log
        from support.logs import FILE_BYTES, PAIRS, POINTS, make_rows
        log = Log(sys.argv[1], [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES, map_small_groups=True)
        count = int(sys.argv[2])
        rows = make_rows(POINTS, 1, count)
        for index in range(count):
            log.appender.append_one(0, rows[index : index + 1])
            if index % 10_000 == 0:
                log.keep(0)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", code, str(tmp_path), str(count)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS)}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert_sound(tmp_path, count)
    log = open_log(tmp_path)
    assert not log.recovered.closed
    assert append_one(log) == count + 1
    log.close()


def test_a_row_half_copied_into_the_map_is_a_torn_tail(log):
    """As a kill in the middle of the copy leaves it, whichever half came first."""
    for _ in range(3):
        append_one(log)
    frames, end = open_file(file_path(log.directory, 1), 1).scan()
    offset = int(frames["offset"][-1])
    log.close(finish=False)
    path = file_path(log.directory, 1)
    whole = path.read_bytes()[:end]
    for kept in (slice(offset, offset + 30), slice(offset, offset + 70), slice(offset + 64, end)):
        data = bytearray(whole)
        data[offset:] = bytes(end - offset)
        data[kept] = whole[kept]
        path.write_bytes(bytes(data) + bytes(FILE_BYTES - len(data)))
        contents = examine(log.directory)
        assert contents.problems == []
        assert contents.topics["points"].next_sequence == 3
    assert np.array_equal(frames["kind"][-3:], [_log.FRAME_ROWS] * 3)
