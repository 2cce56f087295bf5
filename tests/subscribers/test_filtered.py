"""Filtered: the rows of another subscriber that have a key, belong to a partition, or for which a predicate is true."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import Acknowledged, Delayed, Filtered, Historical, RealTime, Reduction
from support.logs import FILE_BYTES
from support.streams import TIMEOUT_S, Rows, readers

SLOTS = 256
ORDERS = Schema(
    "orders",
    {"instrument": "u4", "side": "S1", "price": "i8", "live": "?", "ratio": "f8", "levels": "3i4"},
    key=["instrument"],
)


def orders(count: int, seed: int = 1) -> Rows:
    chance, rows = np.random.default_rng(seed), np.zeros(count, ORDERS.payload_dtype)
    rows["instrument"] = chance.integers(1, 21, count)
    rows["side"] = chance.choice([b"B", b"S", b""], count)
    rows["price"] = chance.integers(-50, 50, count)
    rows["live"] = chance.integers(0, 2, count)
    return rows


def open_writer(bus: str, data_dir: Path | None = None, **settings) -> Writer:
    return Writer(bus, [ORDERS], **{"data_dir": data_dir, "slots": SLOTS, "log_file_bytes": FILE_BYTES, **settings})


def filtered(bus: str, *, batch_rows: int | None = None, start: Any = "earliest", **tests) -> Filtered:
    return Filtered(RealTime(f"{bus}/orders", start=start, batch_rows=batch_rows), **tests)


def sequences(reader: Filtered) -> list[int]:
    """Of the rows that there are now."""
    found: list[int] = []
    while (batch := reader.poll()) is not None:
        assert batch.first <= batch.rows["sequence"][0]
        assert batch.rows["sequence"][-1] <= batch.last
        found += batch.copy()["sequence"].tolist()
    return found


TESTS: dict[str, tuple[dict[str, Any], Callable[[Rows], Any]]] = {
    "one value": ({"key": {"instrument": [7]}}, lambda rows: rows["instrument"] == 7),
    "values": ({"key": {"instrument": {3, 4, 19, 999}}}, lambda rows: np.isin(rows["instrument"], [3, 4, 19])),
    "bytes": ({"key": {"side": [b"B", b""]}}, lambda rows: rows["side"] != b"S"),
    "truth": ({"key": {"live": [True]}}, lambda rows: rows["live"]),
    "negative": ({"key": {"price": range(-50, 0)}}, lambda rows: rows["price"] < 0),
    "two fields": (
        {"key": {"instrument": range(1, 6), "side": [b"S"]}},
        lambda rows: (rows["instrument"] < 6) & (rows["side"] == b"S"),
    ),
    "no value": ({"key": {"instrument": []}}, lambda rows: np.zeros(len(rows), bool)),
    "stamp": ({"key": {"sequence": [5, 50]}}, lambda rows: np.isin(rows["sequence"], [5, 50])),
    "predicate": ({"where": lambda rows: rows["price"] > 10}, lambda rows: rows["price"] > 10),
    "key and predicate": (
        {"key": {"side": [b"B"]}, "where": lambda rows: (rows["side"] == b"B") & (rows["price"] > 10)},
        lambda rows: (rows["side"] == b"B") & (rows["price"] > 10),
    ),
    "everything": ({"where": lambda rows: rows["price"] > -1000}, lambda rows: np.ones(len(rows), bool)),
}


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("batch_rows", [1, 10, None])
def test_the_rows_that_pass_come_in_order_and_the_others_do_not(bus_name, tmp_path, name, batch_rows):
    tests, expected = TESTS[name]
    with open_writer(bus_name, tmp_path) as writer:
        for seed in range(5):
            writer["orders"].publish_batch(orders(100, seed))
        with Historical(f"{bus_name}/orders") as history:
            rows = np.concatenate([batch.copy() for batch in history])
        with filtered(bus_name, batch_rows=batch_rows, **tests) as reader:
            assert sequences(reader) == rows["sequence"][expected(rows)].tolist()
            assert reader.position == 500
            assert reader.stats.read_count == 500


def test_partitions_share_the_rows_by_key_and_leave_none_out(bus_name):
    with open_writer(bus_name) as writer:
        writer["orders"].publish_batch(orders(200))
        found, seen = list[int](), set[int]()
        for index in range(4):
            with filtered(bus_name, partition=(index, 4)) as reader:
                rows = np.concatenate([batch.copy() for batch in iter(reader.poll, None)])
            found += rows["sequence"].tolist()
            keys = set(rows["instrument"].tolist())
            assert not keys & seen
            seen |= keys
        assert sorted(found) == list(range(1, 201))
        with filtered(bus_name, partition=(0, 2), by="side") as reader:
            one = {bytes(row["side"]) for batch in iter(reader.poll, None) for row in batch.copy()}
        with filtered(bus_name, partition=(1, 2), by=["side"]) as reader:
            other = {bytes(row["side"]) for batch in iter(reader.poll, None) for row in batch.copy()}
        assert one | other == {b"B", b"S", b""}
        assert not one & other


def test_a_batch_whose_rows_all_pass_is_the_ring_itself_and_one_of_which_some_pass_is_a_copy(bus_name):
    with open_writer(bus_name) as writer, filtered(bus_name, key={"side": [b"B"]}) as reader:
        rows = orders(20)
        rows["side"] = b"B"
        writer["orders"].publish_batch(rows)
        batch = reader.poll()
        assert batch is not None
        assert not batch.rows.flags.owndata
        rows["side"][5] = b"S"
        writer["orders"].publish_batch(rows)
        part = reader.poll()
        assert part is not None
        assert len(part) == 19
        assert (part.first, part.last) == (21, 40)
        assert not part.rows.flags.writeable
        before = part.copy()
        for _ in range(20):
            writer["orders"].publish_batch(rows)
        assert not batch.valid
        assert part.valid
        assert (part.copy() == before).all()


def test_a_batch_of_some_rows_is_an_arrow_table_as_any_other_is(bus_name):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with open_writer(bus_name) as writer, filtered(bus_name, key={"side": [b"B"]}) as reader:
        rows = orders(20)
        rows["side"], rows["side"][5] = b"B", b"S"
        writer["orders"].publish_batch(rows)
        part = reader.poll()
        assert part is not None
        assert part.to_arrow().num_rows == 19


def test_where_nothing_passes_nothing_is_handed_out_and_the_position_goes_on(bus_name):
    with open_writer(bus_name) as writer, filtered(bus_name, key={"instrument": [999]}) as reader:
        writer["orders"].publish_batch(orders(50))
        assert reader.poll() is None
        assert reader.take(0.05) is None
        assert (reader.position, reader.stats.lag) == (50, 0)
        writer["orders"].publish(999, b"B", 1, True, 0.5, [1, 2, 3])
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        assert batch.rows["sequence"].tolist() == [51]


def test_what_was_lost_before_batches_without_a_row_is_told_with_the_next_one(bus_name):
    with open_writer(bus_name, slots=64) as writer, filtered(bus_name, key={"instrument": [999]}) as reader:
        for _ in range(10):
            writer["orders"].publish_batch(orders(64))
        while reader.poll() is not None or reader.stats.lag:
            pass
        lost = reader.stats.lost_count
        assert lost > 0
        writer["orders"].publish(999, b"B", 1, True, 0.5, [1, 2, 3])
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        assert batch.lost == lost


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_rows_overwritten_while_the_predicate_looks_at_them_come_again_or_are_lost(bus_name, tmp_path, logged, raises):
    with open_writer(bus_name, tmp_path if logged else None, slots=64) as writer:
        calls = 0

        def where(rows: Rows) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                writer["orders"].publish_batch(orders(128))
                if raises:
                    raise ArithmeticError("half a row, perhaps")
            return rows["sequence"] % 2 == 0

        with filtered(bus_name, where=where) as reader:
            writer["orders"].publish_batch(orders(10))
            found = sequences(reader)
            if logged:
                assert found == list(range(2, 139, 2))
            else:
                assert found == list(range(found[0], 139, 2))
                assert reader.stats.lost_count in (found[0] - 1, found[0] - 2)


def test_what_a_predicate_raises_comes_out_and_reading_goes_on_behind_that_batch(bus_name):
    with open_writer(bus_name) as writer, filtered(bus_name, where=lambda rows: rows["nothing"] == 1) as reader:
        writer["orders"].publish_batch(orders(10))
        with pytest.raises(ValueError, match="nothing"):
            reader.poll()
        assert reader.position == 10
        assert reader.poll() is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (True, "an array of truth values is expected, got bool"),
        (None, "got NoneType"),
        (np.zeros(10), "10 truth values are expected, one a row; got float64 of shape"),
        (np.zeros(9, bool), r"got bool of shape \(9,\)"),
        (np.zeros((10, 1), bool), r"got bool of shape \(10, 1\)"),
    ],
)
def test_an_answer_that_is_no_truth_value_a_row_is_refused(bus_name, answer, words):
    with open_writer(bus_name) as writer, filtered(bus_name, where=lambda rows: answer) as reader:
        writer["orders"].publish_batch(orders(10))
        with pytest.raises(TypeError, match=f"where: .*{words}"):
            reader.poll()


# --- over other kinds -----------------------------------------------------------------------------------------------------


def test_it_ends_with_its_source_and_closes_it(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        writer["orders"].publish_batch(orders(1000))
    with Filtered(Historical(f"{bus_name}/orders", data_dir=tmp_path), key={"instrument": [7]}) as reader:
        found = [row["instrument"] for batch in reader for row in batch.copy()]
        assert reader.ended
    assert set(found) == {7}
    assert len(found) == np.count_nonzero(orders(1000)["instrument"] == 7)
    with open_writer(bus_name):
        reader = filtered(bus_name, key={"instrument": [7]})
        reader.close()
        assert readers(f"{bus_name}/orders") == {}
        assert reader.ended
        assert reader.poll() is None


def test_bars_of_some_instruments_are_a_filter_over_the_bars_of_all(bus_name):
    with open_writer(bus_name) as writer:
        source = Delayed(f"{bus_name}/orders", 3600, rows=200, reduce=Reduction("instrument", price=("min", "max")))
        with Filtered(
            source, key={"instrument": [3, 5]}, where=lambda rows: rows["price_max"] >= rows["price_min"]
        ) as reader:
            assert reader.schema == source.schema
            rows = orders(200)
            writer["orders"].publish_batch(rows)
            batch = reader.take(TIMEOUT_S)
            assert batch is not None
            assert {int(row["instrument"]): int(row["price_max"]) for row in batch.rows} == {
                key: int(rows["price"][rows["instrument"] == key].max()) for key in (3, 5)
            }
            assert (batch.first, batch.last) == (1, 200)


def test_a_filter_may_stand_over_a_filter(bus_name):
    with open_writer(bus_name) as writer:
        inner = filtered(bus_name, key={"side": [b"B"]})
        with Filtered(inner, where=lambda rows: rows["price"] > 0) as reader:
            rows = orders(200)
            writer["orders"].publish_batch(rows)
            expected = np.flatnonzero((rows["side"] == b"B") & (rows["price"] > 0)) + 1
            assert sequences(reader) == expected.tolist()


@pytest.mark.parametrize("filters", [1, 2])
def test_a_group_is_done_with_what_does_not_pass(bus_name, tmp_path, filters):
    with open_writer(bus_name, tmp_path) as writer:
        group = Acknowledged(f"{bus_name}/orders", "group", start=1, batch_rows=10)
        reader: Filtered = Filtered(group, key={"instrument": [7]})
        for _ in range(filters - 1):
            reader = Filtered(reader, where=lambda rows: rows["sequence"] != 25)
        with reader:
            rows = orders(40)
            rows["instrument"] = 1
            rows["instrument"][[14, 34]] = 7
            writer["orders"].publish_batch(rows)
            for sequence, deliveries in ((15, 1), (35, 1), (35, 2)):
                batch = reader.poll()
                assert batch is not None
                assert (batch.rows["sequence"].tolist(), batch.deliveries) == ([sequence], deliveries)
                if (sequence, deliveries) == (35, 1):
                    group.nack(batch)
                else:
                    group.ack(batch)
            assert reader.poll() is None
            assert (group.stats.acknowledged, group.stats.late_count) == (40, 0)


def test_it_waits_in_a_loop_and_in_asyncio(bus_name):
    async def collect(reader: Filtered) -> list[int]:
        return [int(row["instrument"]) async for batch in reader for row in batch.copy()]

    def publish(writer: Writer) -> None:
        for seed in range(20):
            writer["orders"].publish_batch(orders(10, seed))
        writer.close()

    for way in ("for", "async for"):
        writer = open_writer(bus_name)
        with filtered(bus_name, key={"instrument": [7]}, start="latest") as reader:
            thread = threading.Thread(target=publish, args=[writer])
            thread.start()
            if way == "for":
                found = [int(row["instrument"]) for batch in reader for row in batch.copy()]
            else:
                found = asyncio.run(asyncio.wait_for(collect(reader), TIMEOUT_S))
            thread.join()
        expected = sum(int((orders(10, seed)["instrument"] == 7).sum()) for seed in range(20))
        assert found == [7] * expected


def test_a_reliable_source_holds_the_writer_back_while_nothing_passes(bus_name):
    """Rows that do not pass are consumed all the same: the writer is not held by them."""
    with open_writer(bus_name, slots=64, full="raise") as writer:
        source = RealTime(f"{bus_name}/orders", reliable=True)
        with Filtered(source, key={"instrument": [999]}) as reader:
            for _ in range(20):
                writer["orders"].publish_batch(orders(16))
                assert reader.poll() is None
            with pytest.raises(Exception, match="full"):
                writer["orders"].publish_batch(orders(65))


# --- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ({}, "key, partition, where: at least one"),
        ({"key": {"nothing": [1]}}, "key: no field 'nothing'"),
        ({"key": {"ratio": [1.0]}}, "key: field 'ratio' is float64"),
        ({"key": {"levels": [1]}}, "key: field 'levels' is"),
        ({"key": {"instrument": [1, "2"]}}, "key: instrument: a value of type uint32 is expected, got '2'"),
        ({"key": {"instrument": [1.5]}}, "got 1.5"),
        ({"key": {"instrument": [-1]}}, "got -1"),
        ({"key": {"instrument": [1 << 32]}}, "got 4294967296"),
        ({"key": {"instrument": [*range(1000), None, *range(500), -1]}}, "got None"),
        ({"key": {"instrument": [*range(1000), b"7"]}}, "got b'7'"),
        ({"key": {"side": [b"B", b"\0"]}}, r"got b'\\x00'"),
        ({"key": {"side": "B"}}, r"several values are expected, such as \['B'\]"),
        ({"key": {"side": ["B"]}}, "key: side: a value of type .*S1.* is expected, got 'B'"),
        ({"key": {"side": [b"BS"]}}, "got b'BS'"),
        ({"key": {"live": [2]}}, "key: live: .*got 2"),
        ({"partition": (4, 4)}, r"partition: \(i, n\) with 0 <= i < n is expected, got \(4, 4\)"),
        ({"partition": (-1, 4)}, "partition: .*got"),
        ({"partition": (0, 0)}, "partition: .*got"),
        ({"partition": (0, 2), "by": "nothing"}, "by: no field 'nothing'"),
        ({"partition": (0, 2), "by": "ratio"}, "by: field 'ratio' is float64"),
        ({"partition": (0, 2), "by": ()}, "by: topic 'orders' has no key"),
        ({"where": len, "by": "side"}, "by: it names the key of a partition"),
    ],
)
def test_a_bad_argument_is_named(bus_name, tests, words):
    with open_writer(bus_name), RealTime(f"{bus_name}/orders") as source, pytest.raises(ValueError, match=words):
        Filtered(source, **tests)


def test_a_topic_without_a_key_is_asked_for_one(bus_name):
    with Writer(bus_name, [Schema("orders", {"price": "i8"})]), RealTime(f"{bus_name}/orders") as source:
        with pytest.raises(ValueError, match="by: topic 'orders' has no key; say which fields are one"):
            Filtered(source, partition=(0, 2))
        with Filtered(source, partition=(0, 2), by="price") as reader:
            assert reader.poll() is None
