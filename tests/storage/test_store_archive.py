"""Where a store's log files go once their rows are in tables, and reading history on from there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import LogReader, Schema, StorageError, log
from ringmain.storage.log_files import list_files
from ringmain.storage.store import Store
from ringmain.storage.store_verify import verify_store
from support.logs import wait_until

BOOK = Schema("book", {"key": "u8", "number": "u8"}, key=("key",))
FILE_BYTES = 4 << 20
BATCH_ROWS = 60_000  # two of them a little less than one file holds


def open_store(directory: Path, **settings) -> Store:
    return Store(directory, [BOOK], log_file_bytes=FILE_BYTES, sync="never", **settings)


def fill(store: Store, files: int) -> int:
    """Put rows until so many files more are full and in tables. Returns the last sequence."""
    rows = np.zeros(BATCH_ROWS, BOOK.payload_dtype)
    for _ in range(2 * files):
        rows["key"] = np.arange(BATCH_ROWS) % 100
        rows["number"] = store["book"].core.next_sequence + np.arange(BATCH_ROWS)
        store["book"].put_batch(rows)
    store.snapshot()
    return int(store["book"].core.next_sequence) - 1


def numbers(directory: Path) -> list[int]:
    return [number for number, _ in list_files(directory)] if directory.exists() else []


def test_log_files_whose_rows_are_in_tables_go_to_the_archive_where_all_of_history_is_read(tmp_path):
    with open_store(tmp_path) as store:
        last = fill(store, 5)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
    kept = numbers(tmp_path / "archive") + numbers(tmp_path / "log")
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) > 4
    history = LogReader(tmp_path / "log", "book", tmp_path / "archive")
    assert history.oldest == 1
    position, times = 0, []
    while (found := history.read_all(position + 1)) is not None:  # also what newer rows have replaced
        rows, tombstones = found
        assert not tombstones
        assert (
            rows["number"].tolist() == rows["sequence"].tolist() == list(range(position + 1, position + len(rows) + 1))
        )
        position = int(rows["sequence"][-1])
        times.append((int(rows["sequence"][0]), int(rows["timestamp_ns"][0])))
    assert position == last
    for sequence, time_ns in times:
        found_at = history.find_time(time_ns)
        assert found_at <= sequence
        assert found_at == 1 or history.find_time(time_ns + 1) > sequence


def test_the_archive_keeps_what_its_limits_say(tmp_path):
    with open_store(tmp_path, archive_bytes=2 * FILE_BYTES) as store:
        fill(store, 6)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1 and len(numbers(tmp_path / "archive")) == 2)
    with open_store(tmp_path, archive_bytes=None, archive_age=0.001) as store:
        fill(store, 2)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1 and numbers(tmp_path / "archive") == [])


def test_without_an_archive_what_is_in_no_table_any_more_is_gone(tmp_path):
    with open_store(tmp_path, archive=False) as store:
        fill(store, 3)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
    assert not (tmp_path / "archive").exists()
    assert LogReader(tmp_path / "log", "book").oldest > 1


def test_a_store_that_has_an_archive_is_not_opened_without_one_which_would_leave_a_hole(tmp_path):
    with open_store(tmp_path) as store:
        last = fill(store, 2)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
    kept = numbers(tmp_path / "archive"), numbers(tmp_path / "log")
    archive = re.escape(str(tmp_path / "archive"))
    with pytest.raises(StorageError, match=rf"without an archive: .* move {archive} away$"):
        open_store(tmp_path, archive=False)
    assert (numbers(tmp_path / "archive"), numbers(tmp_path / "log")) == kept
    with open_store(tmp_path) as store:
        assert fill(store, 2) == last + 4 * BATCH_ROWS
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
    kept = numbers(tmp_path / "archive") + numbers(tmp_path / "log")
    assert kept == list(range(1, len(kept) + 1))
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    with open_store(tmp_path, archive=False) as store:
        fill(store, 2)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
    assert verify_store(tmp_path).findings == ()


def test_an_archive_is_ended_by_keeping_nothing_in_it(tmp_path):
    with open_store(tmp_path) as store:
        fill(store, 2)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
    with open_store(tmp_path, archive_bytes=0):
        wait_until(lambda: numbers(tmp_path / "archive") == [])
    with open_store(tmp_path, archive=False) as store:
        fill(store, 2)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
    assert verify_store(tmp_path).findings == ()


def test_without_an_archive_files_that_many_flushes_give_up_are_all_used_again(tmp_path, monkeypatch):
    """What a snapshot lets expire at once is enough for the rows until the next one: no file is made any more."""
    made = watch_made_files(monkeypatch)
    with open_store(tmp_path, archive=False) as store:
        for _ in range(2):
            fill(store, 4)  # more than below, where a flush may come late
            wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
        made_count, begun = len(made), numbers(tmp_path / "log")[0]
        for _ in range(3):
            fill(store, 2)
            wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
        recycled = numbers(tmp_path / "log")[0] - begun
        assert recycled >= 12
        assert len(made) == made_count
        spares = list((tmp_path / "log").glob("spare-*"))
        assert len(spares) <= log.SPARE_COUNT_MAX
    assert numbers(tmp_path / "log") == [begun + recycled]
    assert LogReader(tmp_path / "log", "book").oldest > 1


def test_files_kept_to_be_used_again_are_bounded(tmp_path, monkeypatch):
    made = watch_made_files(monkeypatch)
    with open_store(tmp_path, archive=False) as store:
        fill(store, 2 * log.SPARE_COUNT_MAX)
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1)
        wait_until(lambda: len(list((tmp_path / "log").glob("spare-*"))) == log.SPARE_COUNT_MAX)
        assert len(made) > 2 * log.SPARE_COUNT_MAX


def watch_made_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The log files that are made from now on, in this process; not those used again."""
    made: list[Path] = []
    allocate = log.allocate

    def allocated(path: Path, size_bytes: int, mode: int) -> int:
        made.append(path)
        return allocate(path, size_bytes, mode)

    monkeypatch.setattr(log, "allocate", allocated)
    return made
