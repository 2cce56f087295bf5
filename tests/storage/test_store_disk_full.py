"""A disk that is full: the store says so, what it has stays readable, and with room again it goes on and has lost nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import LogFailed, Schema, StorageError, Store, StoreReader, TablesFailed
from ringmain.storage.levels import Shape
from ringmain.storage.log import LOG_FILE_BYTES_MIN
from ringmain.storage.store_verify import verify_store
from support.small_disk import filled, mounted

ROWS = Schema("rows", {"key": "u8", "value": "u8"}, key=["key"])
BATCH = 2_000  # rows, of 32 bytes each: a memtable's worth
SHAPE = Shape(level0_tables=100, slowdown_tables=200, stop_tables=300)  # nothing is compacted unasked


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 MiB: a log takes 12 of them."""
    with mounted(tmp_path / "small", "64m") as place:
        yield place


def open_store(place: Path, **settings) -> Store:
    fixed = {
        "sync": "never",
        "memtable_bytes": 200_000,
        "shape": SHAPE,
        "snapshot_interval": None,
        "log_file_bytes": LOG_FILE_BYTES_MIN,
    }
    return Store(place / "data", [ROWS], **{**fixed, **settings})


def put(store: Store, first: int, count: int = BATCH) -> int:
    """Rows with keys from `first` on, in one batch. Returns the key behind them."""
    rows = np.zeros(count, ROWS.payload_dtype)
    rows["key"] = np.arange(first, first + count)
    rows["value"] = rows["key"] * np.uint64(7)
    store["rows"].put_batch(rows)
    return first + count


def put_until_refused(store: Store, first: int) -> tuple[int, StorageError]:
    """Batches until one is refused. Returns the key behind the last that was not, and the error."""
    end = first
    try:
        for _ in range(1000):
            end = put(store, end)
    except StorageError as error:
        return end, error
    raise AssertionError("the disk never filled up")


def check_rows(store: Store | StoreReader, end: int) -> None:
    """Just the rows with keys below `end`."""
    rows = np.concatenate([np.empty(0, ROWS.dtype), *store["rows"].scan()])
    assert rows["key"].tolist() == list(range(end))
    assert (rows["value"] == rows["key"] * np.uint64(7)).all()
    for key in range(0, end, BATCH):
        row = store["rows"].get(key)
        assert row is not None
        assert int(row["key"]) == key


def check_goes_on(place: Path, end: int) -> None:
    """With room again: all is there, and flushes and compactions work."""
    with open_store(place) as store:
        check_rows(store, end)
        end = put(store, end)
        store.snapshot()
        store.compact()
        assert sum(store.stats()["rows"].tables_by_level) == 1
        check_rows(store, end)
    verified = verify_store(place / "data")
    assert (verified.findings, verified.strays) == ((), ())


def check_shown(store: Store, operation: str, error: StorageError) -> None:
    """The figures say what failed."""
    failure = store.stats()["rows"].failure
    assert failure is not None
    assert (failure.operation, failure.message) == (operation, str(error))


def draft_names(place: Path) -> list[str]:
    return [path.name for path in (place / "data" / "store").glob("*.new")]


def test_a_snapshot_that_finds_no_room_says_so_and_reading_goes_on(disk):
    store = open_store(disk)
    end = put(store, 0)
    store.snapshot()
    end = put(store, end)
    with filled(disk, but_bytes=8192):
        with pytest.raises(TablesFailed, match=r"sst: flush of topic 'rows' failed: No space left on device") as failed:
            store.snapshot()
        assert failed.value.errno == errno.ENOSPC
        assert draft_names(disk) == []  # what it had begun does not take the room that is left
        check_rows(store, end)
        with StoreReader(disk / "data") as reader:
            check_rows(reader, end)
        with pytest.raises(TablesFailed, match="flush of topic 'rows' failed"):
            store.snapshot()
        check_shown(store, "flush", failed.value)
    store.close()
    check_goes_on(disk, end)


def test_putting_stops_with_the_reason_when_memory_is_full_and_nothing_can_be_flushed(disk):
    store = open_store(disk)
    end = put(store, 0)
    with filled(disk):
        end, error = put_until_refused(store, end)
        assert isinstance(error, TablesFailed)
        assert "flush of topic 'rows' failed: No space left on device" in str(error)
        assert "Free space" in str(error)
        assert end < 5 * BATCH  # the active memtable, two that wait, and the one that would not do
        check_rows(store, end)
    store.close()
    check_goes_on(disk, end)


def test_a_compaction_that_finds_no_room_says_so_and_leaves_the_tables_as_they_are(disk):
    store = open_store(disk)
    end = 0
    for _ in range(4):
        end = put(store, end)
        store.snapshot()
    before = store.stats()["rows"].tables_by_level
    with filled(disk, but_bytes=100_000):
        with pytest.raises(
            TablesFailed, match=r"sst: compaction of topic 'rows' failed: No space left on device"
        ) as failed:
            store.compact()
        check_shown(store, "compaction", failed.value)
        assert draft_names(disk) == []
        assert store.stats()["rows"].tables_by_level == before
        check_rows(store, end)
    store.close()
    check_goes_on(disk, end)


def test_a_log_that_finds_no_room_for_its_next_file_says_so_and_keeps_what_was_put(disk):
    store = open_store(disk, memtable_bytes=64 << 20)  # nothing is flushed, so that no log file goes
    end = 0
    with filled(disk):
        end, error = put_until_refused(store, end)
        assert isinstance(error, LogFailed)
        assert ".log: create failed: No space left on device" in str(error)
        assert end * ROWS.row_bytes > 2 * LOG_FILE_BYTES_MIN  # the files that were ready were used
        check_rows(store, end)
        with pytest.raises(LogFailed, match="No space left on device"):
            store["rows"].put(1, 1)
        store.close()
        with StoreReader(disk / "data") as reader:
            check_rows(reader, end)
    check_goes_on(disk, end)


def test_a_full_disk_at_opening_is_an_error_that_says_so_and_changes_nothing(disk):
    store = open_store(disk)
    end = put(store, 0)
    store.snapshot()
    end = put(store, end)
    store.close()
    with filled(disk):
        for _ in range(2):
            with pytest.raises((OSError, StorageError), match="No space left on device"):
                open_store(disk)
        assert not list((disk / "data").rglob("spare-*"))
        assert draft_names(disk) == []
        with StoreReader(disk / "data") as reader:
            check_rows(reader, end)
    check_goes_on(disk, end)


def test_a_new_store_on_a_full_disk_is_an_error_and_the_next_attempt_works(disk):
    with filled(disk, but_bytes=100_000), pytest.raises(OSError, match="No space left on device"):
        open_store(disk)
    check_goes_on(disk, 0)
