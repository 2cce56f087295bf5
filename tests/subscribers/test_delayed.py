"""Delayed: one batch an interval, of all rows, of the newest of each key, or reduced; early where rows or memory ask for it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.bus import Batch, NotFound, Overrun, Writer, attach
from ringmain.bus._read import owned_batch
from ringmain.storage import Schema
from ringmain.subscribers import Delayed, Historical, RealTime, Reduction, ohlcv
from support.logs import FILE_BYTES, POINTS, wait_until
from support.streams import TIMEOUT_S, Rows, check_batch, check_content, publish, readers

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
SLOTS = 64
ROOMY = 4096
LONG = 3600.0  # an interval that is never over
SHORT = 0.02

TICKS = Schema("ticks", {"instrument": "u4", "price": "i8", "quantity": "i4"}, key=["instrument"])


def open_writer(bus: str, data_dir: Path | None = None, **settings) -> Writer:
    return Writer(
        bus, [POINTS, TICKS], **{"data_dir": data_dir, "slots": ROOMY, "log_file_bytes": FILE_BYTES, **settings}
    )


def delayed(bus: str, interval: float = SHORT, topic: str = "points", **settings) -> Delayed:
    return Delayed(f"{bus}/{topic}", interval, **settings)


def ticks(count: int, seed: int = 1, instruments: int = 7) -> Rows:
    """Payloads of ticks, made at random."""
    chance, rows = np.random.default_rng(seed), np.zeros(count, TICKS.payload_dtype)
    rows["instrument"] = chance.integers(0, instruments, count)
    rows["price"] = chance.integers(-1000, 1000, count)
    rows["quantity"] = chance.integers(1, 100, count)
    return rows


def publish_ticks(writer: Writer, seconds: float, seed: int = 1) -> int:
    """Publish ticks in batches of any size, with pauses, for about so long. Returns the last sequence."""
    chance, end, last = np.random.default_rng(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        last = writer["ticks"].publish_batch(ticks(int(chance.integers(1, 200)), seed=int(chance.integers(1 << 30))))
        time.sleep(chance.random() * 0.004)
    return last


def taken(reader: Delayed) -> Batch:
    batch = reader.take(TIMEOUT_S)
    assert batch is not None, reader.stats
    return batch


# --- when ---------------------------------------------------------------------------------------------------------------


def test_what_was_published_in_an_interval_is_one_batch_and_comes_when_that_is_over(bus_name):
    with open_writer(bus_name) as writer, delayed(bus_name) as reader:
        for count in (3, 5, 4):
            before = reader.position
            for _ in range(count):
                publish(writer["points"], 1)
            batch = taken(reader)
            assert check_batch(batch, before + 1) == before + count + 1
            assert reader.stats.lateness_ns_last > 0.9 * SHORT * 1e9
        assert reader.poll() is None
        stats = reader.stats
        assert (stats.position, stats.lag, stats.read_count, stats.batch_count) == (12, 0, 12, 3)
        assert stats.lateness_ns_max >= stats.lateness_ns_last


def test_nothing_comes_before_the_interval_is_over(bus_name):
    with open_writer(bus_name) as writer, delayed(bus_name, LONG) as reader:
        publish(writer["points"], 10)
        assert reader.poll() is None
        assert reader.take(0.05) is None
        assert (reader.position, reader.stats.lag) == (0, 10)


def test_rows_that_are_seen_late_are_not_kept_any_longer(bus_name):
    with open_writer(bus_name) as writer, delayed(bus_name) as reader:
        publish(writer["points"], 3)
        published_ns = time.time_ns()
        wait_until(lambda: time.time_ns() > published_ns + int(SHORT * 1e9), TIMEOUT_S)
        assert reader.poll() is not None  # the interval was over before it was looked at


def test_after_the_clock_was_set_back_a_batch_comes_an_interval_after_its_first_row_was_seen(bus_name, monkeypatch):
    time_ns = time.time_ns
    with open_writer(bus_name) as writer, delayed(bus_name) as reader:
        publish(writer["points"], 3)
        monkeypatch.setattr(time, "time_ns", lambda: time_ns() - int(LONG * 1e9))
        assert check_batch(taken(reader), 1) == 4


def test_a_small_interval_in_one_piece_is_handed_out_in_place(bus_name):
    with open_writer(bus_name, slots=SLOTS) as writer, delayed(bus_name) as reader:
        publish(writer["points"], 10)
        batch = taken(reader)
        assert not batch.rows.flags.owndata
        assert batch.valid
        publish(writer["points"], SLOTS)
        assert not batch.valid  # it is the ring itself
        with pytest.raises(Overrun):
            batch.validate()
        assert reader.position == 0  # it has stepped back


def test_an_interval_that_does_not_lie_in_one_piece_is_a_copy_that_stays(bus_name):
    with open_writer(bus_name, slots=SLOTS) as writer, delayed(bus_name) as reader:
        publish(writer["points"], SLOTS - 4)
        while reader.position < SLOTS - 4:
            taken(reader)
        publish(writer["points"], 10)  # over the ring's end
        batch = taken(reader)
        publish(writer["points"], 3 * SLOTS)
        check_batch(batch, SLOTS - 3)
        assert len(batch) == 10
        assert not batch.rows.flags.writeable


def test_a_batch_comes_as_soon_as_its_rows_are_there_and_is_never_of_more(bus_name):
    with open_writer(bus_name) as writer, delayed(bus_name, LONG, rows=10) as reader:
        publish(writer["points"], 9)
        assert reader.take(0.05) is None
        publish(writer["points"], 26)
        for first in (1, 11, 21):
            assert check_batch(taken(reader), first) == first + 10
        assert reader.poll() is None
        publish(writer["points"], 5)
        check_batch(taken(reader), 31)


@pytest.mark.parametrize("rows", [1, SLOTS // 4, SLOTS, 10 * SLOTS])
def test_rows_may_be_fewer_or_more_than_the_ring_has(bus_name, rows):
    with open_writer(bus_name, slots=SLOTS) as writer, delayed(bus_name, LONG, rows=rows, reliable=True) as reader:
        thread = threading.Thread(target=lambda: [publish(writer["points"], 7) for _ in range(rows // 7 + 1)])
        thread.start()
        batch = taken(reader)
        assert check_batch(batch, 1) == rows + 1
        while thread.is_alive():
            reader.take(0.01)
        thread.join()


@pytest.mark.parametrize("kind", ["all", "newest"])
def test_memory_is_bounded_a_batch_comes_early_where_it_would_grow_beyond(bus_name, kind):
    with (
        open_writer(bus_name) as writer,
        delayed(bus_name, LONG, rows_held_max=100, last="value" if kind == "newest" else None) as reader,
    ):
        expected = 1
        for _ in range(10):
            publish(writer["points"], 50 if kind == "all" else ROOMY // 4)  # every row has another value
            while (batch := reader.poll()) is not None:
                assert kind == "newest" or len(batch) == 100
                expected = check_batch(batch, expected)
        assert kind == "newest" or expected == 501
        assert expected > 9 * ROOMY // 4 or kind == "all"


# --- rows of the past -----------------------------------------------------------------------------------------------------


def intervals(rows: Rows, seconds: float) -> list[Rows]:
    """Cut where a row was published `seconds` or more after the first one of its batch."""
    parts: list[Rows] = []
    stamps, at = rows["timestamp_ns"], 0
    while at < len(rows):
        end = int(np.searchsorted(stamps, stamps[at] + int(seconds * 1e9)))
        parts.append(rows[at:end])
        at = end
    return parts


def by_key(rows: Rows) -> dict[int, Rows]:
    return {int(key): rows[rows["instrument"] == key] for key in np.unique(rows["instrument"])}


def check_newest(batch: Batch, rows: Rows) -> None:
    expected = sorted((part[-1] for part in by_key(rows).values()), key=lambda row: row["sequence"])
    assert batch.rows.tolist() == [row.tolist() for row in expected]


def check_bars(batch: Batch, rows: Rows) -> None:
    bars = {int(row["instrument"]): row for row in batch.rows}
    assert list(bars) == [
        part["instrument"][0] for part in sorted(by_key(rows).values(), key=lambda p: p["sequence"][-1])
    ]
    for key, part in by_key(rows).items():
        bar, price = bars[key], part["price"]
        assert (bar["price_first"], bar["price_last"]) == (price[0], price[-1])
        assert (bar["price_min"], bar["price_max"]) == (price.min(), price.max())
        assert bar["quantity_sum"] == part["quantity"].astype("i8").sum()
        assert bar["row_count"] == len(part)
        assert (bar["first_sequence"], bar["sequence"]) == (part["sequence"][0], part["sequence"][-1])
        assert (bar["first_timestamp_ns"], bar["timestamp_ns"]) == (part["timestamp_ns"][0], part["timestamp_ns"][-1])


def check_rows(batch: Batch, rows: Rows) -> None:
    assert (batch.rows == rows).all()


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "all": ({}, check_rows),
    "newest": ({"last": "instrument"}, check_newest),
    "reduced": ({"reduce": ohlcv()}, check_bars),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [SLOTS, ROOMY])
def test_a_replay_comes_in_the_batches_of_that_time(bus_name, tmp_path, kind, slots):
    settings, check = KINDS[kind]
    with open_writer(bus_name, tmp_path, slots=slots) as writer:
        last = publish_ticks(writer, 0.3)
        writer["ticks"].wait(last, "logged")
        with Historical(f"{bus_name}/ticks") as reader:
            rows = np.concatenate([batch.copy() for batch in reader])
        assert len(rows) == last
        with delayed(bus_name, 0.01, "ticks", start="earliest", **settings) as reader:
            parts = intervals(rows, 0.01)
            assert len(parts) > 5
            for part in parts:
                batch = taken(reader)
                assert (batch.first, batch.last, batch.lost) == (part["sequence"][0], part["sequence"][-1], 0)
                assert batch.schema == reader.schema
                assert batch.rows.dtype == reader.schema.dtype
                check(batch, part)
            assert reader.poll() is None
            assert reader.position == reader.stats.read_count == last
            assert reader.stats.refilled_count <= last


@pytest.mark.parametrize("kind", KINDS)
def test_live_batches_are_the_stream_and_none_spans_more_than_its_interval(bus_name, tmp_path, kind):
    settings, check = KINDS[kind]
    writer = open_writer(bus_name, tmp_path)
    with delayed(bus_name, 0.01, "ticks", **settings) as reader:
        thread = threading.Thread(target=lambda: (publish_ticks(writer, 0.3), writer.close()))
        thread.start()
        found = [(batch.first, batch.last, batch.copy()) for batch in reader]
        thread.join()
    with Historical(f"{bus_name}/ticks", data_dir=tmp_path) as history:
        rows = np.concatenate([batch.copy() for batch in history])
    expected = 1
    for first, last, got in found:
        part = rows[first - 1 : last]
        assert first == expected
        assert part["timestamp_ns"][-1] - part["timestamp_ns"][0] < 0.01 * 1e9
        check(owned_batch(got, reader.schema, first, last, 0), part)
        expected = last + 1
    assert expected == len(rows) + 1


def test_a_start_in_the_past_goes_on_into_the_present(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, slots=SLOTS) as writer:
        last = publish(writer["points"], 5 * SLOTS)
        with delayed(bus_name, start=11) as reader:
            expected = 11
            while expected <= last:
                expected = check_batch(taken(reader), expected)
            last = publish(writer["points"], 5)
            assert check_batch(taken(reader), expected) == last + 1


# --- keeping up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all", "newest", "reduced"])
def test_rows_are_taken_in_while_the_interval_lasts_so_that_they_may_be_more_than_the_ring_holds(bus_name, kind):
    settings, check = KINDS[kind]
    writer = open_writer(bus_name, slots=256)
    with delayed(bus_name, LONG, "ticks", reliable=True, rows_held_max=1 << 20, **settings) as reader:
        pieces = [ticks(100, seed) for seed in range(200)]

        def run() -> None:
            for piece in pieces:
                writer["ticks"].publish_batch(piece)
            writer.close()

        thread = threading.Thread(target=run)
        thread.start()
        batch = taken(reader)
        thread.join()
        assert (batch.first, batch.last, batch.lost) == (1, 20_000, 0)
        rows = np.zeros(20_000, TICKS.dtype)
        for name in TICKS.payload_dtype.names or ():
            rows[name] = np.concatenate([piece[name] for piece in pieces])
        rows["sequence"] = np.arange(1, 20_001)
        if kind == "all":
            rows["timestamp_ns"] = batch.rows["timestamp_ns"]
            check(batch, rows)
        elif kind == "newest":
            assert batch.rows["sequence"].tolist() == sorted(part["sequence"][-1] for part in by_key(rows).values())
        else:
            assert batch.rows["row_count"].sum() == 20_000
            assert batch.rows["quantity_sum"].sum() == rows["quantity"].sum()
        assert reader.take() is None
        assert reader.ended


def test_rows_do_not_lie_in_the_ring_for_long_so_that_it_does_not_seem_to_lag(bus_name):
    with open_writer(bus_name, slots=SLOTS) as writer, delayed(bus_name, LONG, name="bars") as reader:
        publish(writer["points"], 10)  # far fewer than it would be woken for

        def taken_in() -> bool:
            assert reader.take(0.05) is None
            return readers(f"{bus_name}/points")["bars"]["consumed"] == 10

        wait_until(taken_in, TIMEOUT_S)
        assert (reader.position, reader.stats.lag) == (0, 10)  # of what is handed out


def test_rows_that_were_waited_with_are_not_lost_when_the_writer_comes_round(bus_name):
    with open_writer(bus_name, slots=SLOTS) as writer, delayed(bus_name, LONG, rows=SLOTS + 6, name="bars") as reader:
        publish(writer["points"], 10)
        wait_until(
            lambda: reader.take(0.05) is None and readers(f"{bus_name}/points")["bars"]["consumed"] == 10, TIMEOUT_S
        )
        publish(writer["points"], SLOTS - 4)  # over the first six
        batch = taken(reader)
        assert (check_batch(batch, 1), batch.lost) == (SLOTS + 7, 0)


@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_a_lapped_one_reads_on_from_the_log_or_says_how_many_it_lost(bus_name, tmp_path, logged):
    with open_writer(bus_name, tmp_path if logged else None, slots=SLOTS) as writer, delayed(bus_name) as reader:
        expected = last = 1
        for _ in range(3):
            last = publish(writer["points"], 10 * SLOTS)
            while expected <= last:
                batch = taken(reader)
                rows = batch.copy()
                assert batch.last + 1 == expected + batch.lost + len(rows)
                assert batch.first == rows["sequence"][0]
                check_content(POINTS, rows, batch.first)
                assert batch.lost == 0 or not logged
                expected = batch.last + 1
        stats = reader.stats
        assert stats.read_count + stats.lost_count == last
        assert (stats.lost_count > 0) == (not logged)
        assert (stats.refilled_count > 0) == logged


# --- overload -------------------------------------------------------------------------------------------------------------

PIECES = [ticks(500, number) for number in range(300)]
PAYLOAD = np.concatenate(PIECES)


def publish_flat_out(writer: Writer) -> None:
    """Publish PIECES, in the long form over and over for a minute, and close."""
    end = time.monotonic() + (60 if NIGHTLY else 0)
    while True:
        for piece in PIECES:
            writer["ticks"].publish_batch(piece)
            if NIGHTLY and writer.data_dir is not None:
                time.sleep(0.004)  # a minute without it is gigabytes of log
        if time.monotonic() >= end:
            return writer.close()


def published(reader: Delayed) -> int:
    stats = reader.stats
    return stats.position + stats.lag


def check_overloaded(kind: str, rows: Rows, count: int) -> None:
    """The rows are of what was published, and of `count` rows."""
    if kind == "reduced":
        assert rows["row_count"].sum() == count
        last = PAYLOAD[(rows["sequence"] - np.uint64(1)) % len(PAYLOAD)]
        assert (rows["price_last"] == last["price"]).all()
        assert (rows["instrument"] == last["instrument"]).all()
        return
    assert len(rows) == count or (kind == "newest" and 0 < len(rows) <= min(7, count))
    expected = PAYLOAD[(rows["sequence"] - np.uint64(1)) % len(PAYLOAD)]
    for name in TICKS.payload_dtype.names or ():
        assert (rows[name] == expected[name]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["reliable", "log", "lossy", "dropped"])
def test_a_slow_one_misses_nothing_that_its_policy_promises_and_counts_the_rest(bus_name, tmp_path, kind, policy):
    writer = open_writer(
        bus_name, tmp_path if policy == "log" else None, slots=1024, full="drop" if policy == "dropped" else "block"
    )
    position = lost = 0
    with delayed(bus_name, 0.001, "ticks", reliable=policy in ("reliable", "dropped"), **KINDS[kind][0]) as reader:
        thread = threading.Thread(target=publish_flat_out, args=[writer])
        thread.start()
        for number, batch in enumerate(reader):
            position, lost = position + batch.lost, lost + batch.lost
            if number == 0 and policy != "reliable":  # however slow the machine is, it is lapped once
                wait_until(lambda: reader.stats.lag > 2 * 1024 or not thread.is_alive(), TIMEOUT_S)
            if number < 100 or NIGHTLY:
                time.sleep(0.002)  # in which the ring goes round several times
            if NIGHTLY and policy != "reliable":  # at a tenth of the publisher's speed; a reliable one sets that itself
                read = 10 * (position - lost)
                wait_until(lambda read=read: published(reader) > read or not thread.is_alive(), 2 * TIMEOUT_S)
            try:
                rows = batch.copy()
            except Overrun:
                continue  # it comes again, from the log, or is told as lost
            assert batch.first == position + 1 or batch.lost
            assert batch.last > position
            check_overloaded(kind, rows, batch.last - position)
            position = batch.last
        thread.join()
        assert position == reader.position
        assert position % len(PAYLOAD) == reader.stats.lag == 0
        assert lost == reader.stats.lost_count
        assert lost == 0 or policy in ("lossy", "dropped")
        assert lost > 0 or policy in ("reliable", "log")


# --- ends -----------------------------------------------------------------------------------------------------------------


def test_what_a_writer_has_published_comes_at_once_when_it_closes_and_that_is_the_end(bus_name):
    with open_writer(bus_name) as writer, delayed(bus_name, LONG) as reader:
        publish(writer["points"], 10)
        assert reader.poll() is None
        writer.close()
        (batch,) = list(reader)
        check_batch(batch, 1)
        assert reader.ended
        assert reader.poll() is None


def test_the_next_writer_may_begin_at_one_again_where_there_is_no_log(bus_name):
    with open_writer(bus_name, slots=SLOTS) as writer:
        reader = delayed(bus_name, LONG, reopen=True)
        publish(writer["points"], 40)
        assert reader.poll() is None  # a part is taken in, since the ring is so small
    with reader:
        for before, count in pairwise((40, 30, 20, 50)):
            with open_writer(bus_name, slots=SLOTS) as writer:
                reopened = attach(f"{bus_name}/points").header["epoch"]
                wait_until(lambda now=reopened: reader.poll() is None and reader.stats.epoch == now, TIMEOUT_S)
                publish(writer["points"], count)
                assert check_batch(taken(reader), 1) == before + 1
                assert reader.poll() is None


def test_async_for_hands_out_every_batch_while_the_loop_runs_on(bus_name):
    async def main() -> int:
        writer, expected = open_writer(bus_name), 1

        async def produce() -> None:
            for _ in range(20):
                publish(writer["points"], 10)
                await asyncio.sleep(0.001)
            writer.close()

        with delayed(bus_name, 0.005) as reader:
            producing = asyncio.create_task(produce())
            async for batch in reader:
                expected = check_batch(batch, expected)
            await producing
        return expected

    assert asyncio.run(asyncio.wait_for(main(), TIMEOUT_S)) == 201


def test_a_callback_is_called_with_every_batch(bus_name):
    writer, batches = open_writer(bus_name), list[Rows]()
    with delayed(bus_name, 0.005) as reader:
        thread = threading.Thread(target=lambda: ([publish(writer["points"], 10) for _ in range(20)], writer.close()))
        thread.start()
        reader.run(lambda batch: batches.append(batch.copy()))
        thread.join()
    check_content(POINTS, np.concatenate(batches), 1)
    assert sum(map(len, batches)) == 200


def test_a_closed_one_hands_out_nothing_and_leaves_no_reader_behind(bus_name):
    with open_writer(bus_name, slots=SLOTS) as writer:
        reader = delayed(bus_name, LONG, name="late")
        assert "late" in readers(f"{bus_name}/points")
        publish(writer["points"], 40)
        assert reader.poll() is None
        reader.close()
        reader.close()
        assert reader.poll() is None
        assert reader.take() is None
        assert reader.ended
        assert readers(f"{bus_name}/points") == {}


# --- overwritten while it was taken in --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_overwritten_while_they_are_taken_in_leave_no_trace(bus_name, monkeypatch, kind):
    settings, check = KINDS[kind]
    with (
        open_writer(bus_name, slots=SLOTS) as writer,
        delayed(bus_name, LONG, "ticks", rows_held_max=1 << 20, **settings) as reader,
    ):
        writer["ticks"].publish_batch(ticks(40, seed=1))
        fold, take_in = reader._fold, reader._fold.take_in

        def take_in_late(batch: Batch) -> None:
            if batch.first == 17:
                writer["ticks"].publish_batch(ticks(SLOTS, seed=2, instruments=50))
            take_in(batch)

        monkeypatch.setattr(fold, "take_in", take_in_late)
        assert reader.poll() is None
        monkeypatch.undo()
        writer.close()
        batch = taken(reader)
        assert batch.lost > 0
        assert batch.last == 40 + SLOTS
        payload = np.concatenate([ticks(40, seed=1), ticks(SLOTS, seed=2, instruments=50)])
        rows = np.zeros(40 + SLOTS, TICKS.dtype)
        for name in TICKS.payload_dtype.names or ():
            rows[name] = payload[name]
        rows["sequence"] = np.arange(1, 41 + SLOTS)
        rows = np.concatenate([rows[:16], rows[16 + batch.lost :]])
        if kind == "all":
            rows["timestamp_ns"] = batch.rows["timestamp_ns"]
            check(batch, rows)
        else:
            expected = {int(part["sequence"][-1]) for part in by_key(rows).values()}
            assert set(batch.rows["sequence"].tolist()) == expected
        if kind == "reduced":
            assert batch.rows["row_count"].sum() == len(rows)
            assert {int(row["instrument"]): int(row["quantity_sum"]) for row in batch.rows} == {
                key: int(part["quantity"].sum()) for key, part in by_key(rows).items()
            }


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_row_that_is_overwritten_as_its_time_is_read_makes_no_empty_batch(bus_name, monkeypatch, kind):
    with (
        open_writer(bus_name, slots=SLOTS) as writer,
        delayed(bus_name, 1e-6, "ticks", start="earliest", **KINDS[kind][0]) as reader,
    ):
        begin, laps = reader._begin, iter([2 * SLOTS])

        def begin_late(began_ns: int) -> None:
            begin(began_ns)
            for count in laps:  # once
                writer["ticks"].publish_batch(ticks(count))

        writer["ticks"].publish_batch(ticks(10))
        assert reader._is_due()  # begun: the next to begin it is who reads the rows
        monkeypatch.setattr(reader, "_begin", begin_late)
        position = 0
        while position < 10 + 2 * SLOTS:
            batch = taken(reader)
            assert len(batch) > 0
            position += batch.lost
            try:
                batch.copy()
            except Overrun:
                continue
            assert batch.last > position
            position = batch.last
        assert reader.stats.lost_count > 0


def test_the_head_of_a_batch_is_as_valid_as_the_whole(bus_name):
    with open_writer(bus_name, slots=SLOTS) as writer, RealTime(f"{bus_name}/points") as reader:
        publish(writer["points"], 10)
        batch = reader.poll()
        assert batch is not None
        head = batch.head(4)
        assert check_batch(head, 1) == 5
        for count in (0, 11, -1):
            with pytest.raises(ValueError, match=f"1 to 10 is expected, got {count}"):
                batch.head(count)
        publish(writer["points"], SLOTS)
        assert not head.valid


# --- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"interval": 0}, "interval: .*got 0"),
        ({"interval": -1.0}, "interval: .*got -1"),
        ({"interval": float("nan")}, "interval: .*got nan"),
        ({"interval": 1e9}, "interval: .*86,400"),
        ({"rows": 0}, "rows: .*got 0"),
        ({"rows_held_max": 0}, "rows_held_max: .*got 0"),
        ({"last": "instrument", "reduce": ohlcv()}, "not both"),
        ({"last": "nothing"}, "last: no field 'nothing'"),
        ({"last": ()}, "last: a key has at least one field"),
        ({"reduce": Reduction("instrument", nothing="sum")}, "reduce: the topic has no field 'nothing'"),
        ({"start": 0}, "start: .*got 0"),
        ({"follow": "durable"}, "nothing is durable"),
    ],
)
def test_a_bad_argument_is_named_and_leaves_no_reader_behind(bus_name, settings, words):
    with open_writer(bus_name):
        with pytest.raises(ValueError, match=words):
            Delayed(f"{bus_name}/ticks", **settings)
        assert readers(f"{bus_name}/ticks") == {}


def test_a_topic_that_is_not_there_is_not_found(bus_name):
    with pytest.raises(NotFound):
        delayed(bus_name)
    with open_writer(bus_name), pytest.raises(NotFound):
        delayed(bus_name, topic="trades")
