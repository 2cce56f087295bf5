"""Syncing from a thread beside the one that appends: what is called durable was on the disk, whatever happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ringmain.storage import Log
from ringmain.storage.log_files import list_files, open_file
from ringmain.storage.recovery import examine
from support.logs import FILE_BYTES, POINTS, append, check_rows, make_rows, read_rows, wait_until


def open_log(directory: Path, **options) -> Log:
    return Log(directory, [POINTS], bus="test", file_bytes=FILE_BYTES, **options)


@contextmanager
def threads(*calls) -> Iterator[list[BaseException]]:
    """Each call again and again in a thread of its own until the block ends. What one raised ends it and is in the list."""
    stop, errors = threading.Event(), []

    def repeat(call) -> None:
        try:
            while not stop.is_set():
                call()
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in started:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in started:
            thread.join(30)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("sync_files", [True, False])
def test_a_log_is_synced_while_its_owner_appends_through_many_files(tmp_path, mapped, sync_files):
    log = open_log(tmp_path, map_small_groups=mapped, sync_files=sync_files)
    appender = log.appender
    seen = [appender.durable_position]

    def look() -> None:
        durable, position = appender.durable_position, appender.position
        assert seen[-1] <= durable <= position
        if durable != seen[-1]:
            seen.append(durable)

    with threads(appender.sync_behind, appender.sync_behind, look, lambda: log.keep(0.01)) as errors:
        number = first = 1
        while appender.file_number < 6 or len(seen) < 20:
            count = (1, 7, 300, 5000)[number % 4]
            appender.append(0, make_rows(POINTS, first, count))
            appender.append_one(0, make_rows(POINTS, first + count, 1))
            first, number = first + count + 1, number + 1
            if number % 16 == 0:
                appender.mark()
    assert errors == []
    appender.sync_behind()
    assert appender.durable_position == appender.position
    log.close()
    contents = examine(tmp_path)
    assert contents.problems == []
    rows = read_rows(tmp_path, POINTS)
    check_rows(POINTS, rows, 1)
    assert len(rows) == first - 1
    known = 0
    for number, path in list_files(tmp_path):
        file = open_file(path, number)
        frames, _ = file.scan()
        for frame in frames:  # each tells what was durable when it was written: never itself, unless it is the close
            assert known <= frame["durable_position"] <= file.header.start_position + frame["offset"]
            known = int(frame["durable_position"])


def test_a_sync_covers_what_was_appended_before_it_and_costs_nothing_where_there_is_nothing(tmp_path):
    log = open_log(tmp_path)
    append(log, POINTS, 3)
    thread = threading.Thread(target=log.appender.sync_behind)
    thread.start()
    thread.join(30)
    assert log.appender.durable_position == log.appender.position
    assert log.appender.sync_count == 1
    for _ in range(3):
        log.appender.sync_behind()
        log.appender.sync()
    assert log.appender.sync_count == 1
    log.close()


def test_what_another_thread_synced_is_told_by_the_next_frames(tmp_path):
    log = open_log(tmp_path)
    append(log, POINTS, 3)
    thread = threading.Thread(target=log.appender.sync_behind)
    thread.start()
    thread.join(30)
    position = log.appender.position
    append(log, POINTS, 1)
    number, path = list_files(tmp_path)[0]
    frames, _ = open_file(path, number).scan()
    assert frames["durable_position"][-1] == position
    log.appender.mark()  # something is not durable: nothing to say
    frames, _ = open_file(path, number).scan()
    assert frames["durable_position"][-1] == position
    log.close()


def test_an_owner_that_waits_for_a_file_keeps_nobody_from_syncing(tmp_path):
    """Beginning a file may take as long as the keeper likes; what was written before can be made durable all the while."""
    log = open_log(tmp_path)
    appender = log.appender

    def fill() -> None:
        while appender.file_number < 4:  # one more file than there are
            appender.append(0, make_rows(POINTS, appender.next_sequence(0), 20_000))

    owner = threading.Thread(target=fill)
    owner.start()
    try:
        wait_until(lambda: appender.file_number == 3 and appender.spare_count == 0)
        syncer = threading.Thread(target=lambda: [appender.sync_behind() for _ in range(20)])
        syncer.start()
        syncer.join(30)
        assert not syncer.is_alive()
    finally:
        while owner.is_alive():
            log.keep(0.01)
        owner.join()
    log.close()
    assert examine(tmp_path).problems == []
