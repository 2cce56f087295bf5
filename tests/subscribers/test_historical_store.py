"""History beyond what the log keeps: from the tables of topics that hold every record."""

# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.storage import HistoryGone, PastReader, Schema, Shape, Store, StoreSettings
from ringmain.storage.log_files import list_files
from ringmain.subscribers import Historical
from support.children import TIMEOUT_S
from support.logs import FILE_BYTES, wait_until

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
