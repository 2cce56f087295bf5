"""History beyond what the log keeps: from the tables of topics that hold every record."""

# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.storage import HistoryGone, LogReader, PastReader, Schema, Shape, Store, StoreSettings
from ringmain.storage._log import FRAME_HEADER_BYTES
from ringmain.storage.log_files import list_files, open_file
from ringmain.storage.repair import repair
from ringmain.subscribers import Historical
from support.children import TIMEOUT_S
from support.logs import FILE_BYTES, flip, wait_until

TAPE = Schema("tape", {"number": "u8", "pad": "S40"})  # kept by sequence
BOOK = Schema("book", {"key": "u8", "number": "u8", "pad": "S32"}, key=("key",))  # of which all versions are kept
LAST = Schema("last", {"key": "u8", "number": "u8", "pad": "S32"}, key=("key",))  # only the newest
SETTINGS = StoreSettings(
    memtable_bytes=4 << 20, keep_versions=["book"], shape=Shape(table_bytes=1 << 20, level1_bytes=2 << 20)
)
COUNT = 150_000


@pytest.fixture
def writer(bus_name, tmp_path) -> Iterator[Writer]:
    """A bus whose log has given up the beginning of every topic."""
    with Writer(
        bus_name,
        [TAPE, BOOK, LAST],
        data_dir=tmp_path,
        store=SETTINGS,
        log_file_bytes=FILE_BYTES,
        retention_bytes=0,
    ) as writer:
        for first in range(0, COUNT, 10_000):
            for schema in (TAPE, BOOK, LAST):
                rows = np.zeros(10_000, schema.payload_dtype)
                rows["number"] = np.arange(first, first + len(rows)) + 1
                if schema.key:
                    rows["key"] = rows["number"] * 7 % 1000
                last = writer[schema.name].publish_batch(rows)
        for schema in (TAPE, BOOK, LAST):
            writer[schema.name].wait(last, "indexed", TIMEOUT_S)
        writer.store.snapshot()
        wait_until(lambda: len(list_files(tmp_path / "log")) == 1, TIMEOUT_S)  # nothing more goes while it is read
        yield writer


def numbers(reader: Historical) -> np.ndarray:
    return np.concatenate([batch.rows["number"].copy() for batch in reader])


@pytest.mark.parametrize("topic", ["tape", "book"])
@pytest.mark.parametrize("compacted", [False, True], ids=["flushed", "compacted"])
def test_all_of_a_topic_is_read_in_order_whatever_holds_it(writer, bus_name, tmp_path, topic, compacted):
    if compacted:
        writer.store.compact()
    with Historical(f"{bus_name}/{topic}") as reader:
        assert np.array_equal(numbers(reader), np.arange(1, COUNT + 1))
        assert reader.stats.lost_count == 0
    with Historical(f"{bus_name}/{topic}", start=777, last=90_000) as reader:
        assert np.array_equal(numbers(reader), np.arange(777, 90_001))
    past = PastReader(tmp_path, topic)
    assert past.oldest == 1
    for sequence in (1, 12_345, COUNT):
        stamp = int(past.read(sequence, sequence)["timestamp_ns"][0])
        assert past.find_time(stamp) <= sequence
        assert past.find_time(stamp + 1) > sequence
        with Historical(f"{bus_name}/{topic}", since=stamp) as reader:
            assert np.array_equal(numbers(reader), np.arange(past.find_time(stamp), COUNT + 1))


def test_history_goes_on_live_without_a_gap_or_a_repeat(writer, bus_name):
    with Historical(f"{bus_name}/tape", live=True) as reader:
        seen = 0
        while seen < COUNT:
            batch = reader.take(TIMEOUT_S)
            assert batch.first == seen + 1
            seen = batch.last
        assert writer["tape"].publish(COUNT + 1, b"") == COUNT + 1
        batch = reader.take(TIMEOUT_S)
        assert (batch.first, int(batch.rows["number"][0])) == (COUNT + 1, COUNT + 1)


def test_a_topic_whose_tables_hold_only_the_newest_rows_begins_where_its_log_does(writer, bus_name):
    row = np.zeros(1, LAST.payload_dtype)
    row["number"] = COUNT + 1
    writer["last"].wait(writer["last"].publish_batch(row), "logged", TIMEOUT_S)  # so that the newest log file has one
    with Historical(f"{bus_name}/last") as reader:
        read = numbers(reader)
        assert read[0] > 1
        assert np.array_equal(read, np.arange(read[0], COUNT + 2))
    with Historical(f"{bus_name}/last", start=1) as reader, pytest.raises(HistoryGone):
        reader.poll()


def test_a_bus_that_does_not_run_is_read_from_its_directory(writer, bus_name, tmp_path):
    writer.close()
    with Historical(f"{bus_name}/book", data_dir=tmp_path) as reader:
        assert np.array_equal(numbers(reader), np.arange(1, COUNT + 1))


def test_rows_by_sequence_and_by_time_are_those_that_are_kept(tmp_path):
    rng = np.random.default_rng(7)
    everything: list[tuple[int, int, int]] = []  # sequence, key, stamp
    with Store(
        tmp_path, [BOOK, LAST], keep_versions=["book"], memtable_bytes=1 << 20, log_file_bytes=FILE_BYTES
    ) as store:
        for _ in range(30):
            keys = rng.integers(0, 500, 1000)
            for name in ("book", "last"):
                rows = np.zeros(len(keys), BOOK.payload_dtype)
                rows["key"] = keys
                last = store[name].put_batch(rows)
            stamp = int(store["book"].core.last_timestamp_ns)
            everything += [(last - len(keys) + 1 + at, int(key), stamp) for at, key in enumerate(keys)]
            if rng.random() < 0.3:
                store.snapshot()
        newest = {key: (sequence, key, stamp) for sequence, key, stamp in everything}
        for first, last in ((1, None), (500, 20_000), (29_000, 29_999), (30_000, 30_000), (5, 4)):
            wanted = [row for row in everything if first <= row[0] <= (last or 30_000)]
            found = [int(s) for rows in store["book"].by_sequence(first, last) for s in rows["sequence"]]
            assert found == [row[0] for row in wanted]
            found = [int(s) for rows in store["last"].by_sequence(first, last) for s in rows["sequence"]]
            assert found == sorted(row[0] for row in newest.values() if first <= row[0] <= (last or 30_000))
        stamps = sorted({row[2] for row in everything})
        for since, until in (
            (None, None),
            (stamps[3], stamps[20]),
            (None, stamps[5]),
            (stamps[25], None),
            (stamps[9], stamps[9]),
        ):
            wanted = [
                row[0] for row in everything if (since is None or row[2] >= since) and (until is None or row[2] < until)
            ]
            found = [int(s) for rows in store["book"].by_time(since, until) for s in rows["sequence"]]
            assert found == wanted
        with store["book"].at(15_000) as view:
            store.compact()
            assert [int(s) for rows in view.by_sequence() for s in rows["sequence"]] == list(range(1, 15_001))


def keep_in_tables_only(store: Store, directory: Path) -> None:
    """Put rows behind those there are until the log has only some of the new ones."""
    last = int(store["book"].core.next_sequence) - 1
    store.snapshot()

    def log_begins_behind() -> bool:
        store["book"].put_batch(np.zeros(20_000, BOOK.payload_dtype))
        store.snapshot()
        return LogReader(directory / "log", "book").oldest > last

    wait_until(log_begins_behind, TIMEOUT_S)


def read_past(past: PastReader, last: int) -> list[int]:
    """The sequences of all rows up to one."""
    found: list[int] = []
    while (rows := past.read(found[-1] + 1 if found else 1, last)) is not None:
        assert np.array_equal(np.diff(rows["sequence"]), np.ones(len(rows) - 1))
        found += rows["sequence"].tolist()
    return found


def open_small(directory: Path) -> Store:
    return Store(directory, [BOOK], keep_versions=["book"], archive_bytes=0, log_file_bytes=FILE_BYTES, sync="never")


def test_what_was_deleted_is_counted_alike_in_the_log_and_in_tables_which_are_merged_once(tmp_path, monkeypatch):
    windows: list[int] = []
    hold_rows = PastReader._hold_rows

    def counting(self, sequence, last):
        windows.append(sequence)
        return hold_rows(self, sequence, last)

    monkeypatch.setattr(PastReader, "_hold_rows", counting)
    with open_small(tmp_path) as store:
        rows = np.zeros(9, BOOK.payload_dtype)
        for first in range(1, 2001, 10):
            rows["key"] = np.arange(first, first + 9)
            store["book"].put_batch(rows)
            store["book"].delete(first)
        wanted = [sequence for sequence in range(1, 2001) if sequence % 10]
        past = PastReader(tmp_path, "book")
        assert read_past(past, 2000) == wanted
        assert (past.tombstone_count, past.lost_count, windows) == (199, 0, [])  # behind the last nothing was read
        keep_in_tables_only(store, tmp_path)
        for compacted in (False, True):
            if compacted:
                store.compact()
            windows.clear()
            past = PastReader(tmp_path, "book")
            assert read_past(past, 2000) == wanted
            assert (past.tombstone_count, past.lost_count, windows) == (199, 0, [1])
            assert past.read(2000, rows_max=7)["sequence"].tolist() == list(range(2001, 2008))
            assert past.tombstone_count == 200
            assert past.read(15, 18, rows_max=2)["sequence"].tolist() == [15, 16]
            assert past.read(20, 20) is None
            assert len(windows) == 1
        with Historical("none/book", data_dir=tmp_path, last=2000) as reader:
            assert sum(len(batch) for batch in reader) == 1800
            assert reader.stats.lost_count == 0


def test_deletes_at_the_end_of_what_tables_alone_hold_lead_on_into_the_log(tmp_path):
    with open_small(tmp_path) as store:
        rows = np.zeros(20_000, BOOK.payload_dtype)

        def log_begins_behind_a_delete() -> bool:
            store["book"].put_batch(rows)
            store["book"].delete(0)
            store.snapshot()
            return LogReader(tmp_path / "log", "book").oldest > 1

        wait_until(log_begins_behind_a_delete, TIMEOUT_S)
    first = LogReader(tmp_path / "log", "book").oldest
    assert first % 20_001 == 1  # a batch that did not fit began the file
    past = PastReader(tmp_path, "book")
    assert past.read(first - 1)["sequence"][0] == first
    assert (past.tombstone_count, past.lost_count) == (1, 0)
    assert past.read(first - 1, first - 1) is None


def test_what_a_repair_of_the_log_gave_up_is_lost_in_tables_too(tmp_path):
    with open_small(tmp_path) as store:
        for count in (100, 1, 100):
            store["book"].put_batch(np.zeros(count, BOOK.payload_dtype))
            store["book"].delete(0)
    number, path = list_files(tmp_path / "log")[-1]
    file = open_file(path, number)
    frame = next(frame for frame in file.scan()[0] if frame["first_sequence"] == 102)
    flip(path, int(frame["offset"]) + FRAME_HEADER_BYTES + 3)
    assert [(lost.first, lost.count) for lost in repair(tmp_path / "log").lost] == [(102, 1)]
    with open_small(tmp_path) as store:
        keep_in_tables_only(store, tmp_path)
    past = PastReader(tmp_path, "book")
    assert read_past(past, 203) == [*range(1, 101), *range(104, 204)]
    assert (past.tombstone_count, past.lost_count) == (2, 1)


def test_a_reader_that_is_told_to_forget_looks_into_the_tables_again(tmp_path):
    with open_small(tmp_path) as store:
        store["book"].put_batch(np.zeros(10, BOOK.payload_dtype))
        keep_in_tables_only(store, tmp_path)
        past = PastReader(tmp_path, "book")
        past.read(1)
        shutil.rmtree(tmp_path / "store")
        assert past.read(2)["sequence"][0] == 2  # what is held
        past.forget()
        with pytest.raises(FileNotFoundError):
            past.read(2)
