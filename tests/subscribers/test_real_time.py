"""Following a topic as it is published: where reading starts, what a late reader learns, and how it survives its writer."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import AttachError, Batch, BusError, NotFound, Overrun, RingFull, Writer, attach
from ringmain.storage import Schema
from ringmain.storage.log_tail import cut_tail
from ringmain.subscribers import RealTime
from support.children import Child, Children
from support.logs import FILE_BYTES, PAIRS, POINTS, Rows, make_rows, wait_until
from support.replicas import open_replicated, read_up_to
from support.streams import TIMEOUT_S, check_batch, check_content, poll_all, publish, read, readers

SLOTS = 64
ROOMY = 1024  # for tests that publish less: however slow the reader is, it is not lapped

# For a child: a writer of POINTS that goes on where the topic ended.
OPEN = f"""if True:
    from support.streams import publish
    writer = Writer(bus, [POINTS], data_dir=data_dir, slots=1024, log_file_bytes={FILE_BYTES})
    points = writer["points"]
"""
PUBLISH = """if True:
    size = 0
    while True:
        size = size % 97 + 1
        publish(points, size)
        time.sleep(0.0002)
"""


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


@pytest.fixture(params=["log", "rings only"])
def data_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Run the test twice: with a log, and without."""
    return tmp_path / "data" if request.param == "log" else None


def open_writer(bus: str, data_dir: Path | None = None, **settings) -> Writer:
    return Writer(bus, [POINTS], **{"data_dir": data_dir, "slots": SLOTS, "log_file_bytes": FILE_BYTES, **settings})


def subscribe(bus: str, **settings) -> RealTime:
    return RealTime(f"{bus}/points", **settings)


# --- where it starts ------------------------------------------------------------------------------------------------------


def test_latest_hands_out_only_what_comes_from_now_on(bus_name, data_dir):
    with open_writer(bus_name, data_dir) as writer:
        publish(writer["points"], 10)
        with subscribe(bus_name) as reader:
            assert reader.position == 10
            assert reader.poll() is None
            publish(writer["points"], 5)
            check_content(POINTS, poll_all(reader), 11)
            assert reader.position == 15


def test_earliest_hands_out_everything_that_the_log_keeps(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10 * SLOTS)
        with subscribe(bus_name, start="earliest") as reader:
            read(reader, 10 * SLOTS)
            publish(writer["points"], 5)
            read(reader, 10 * SLOTS + 5)


def test_earliest_without_a_log_is_what_the_ring_still_holds(bus_name):
    with open_writer(bus_name) as writer:
        with subscribe(bus_name, start="earliest") as reader:
            publish(writer["points"], 3)
            check_content(POINTS, poll_all(reader), 1)
        publish(writer["points"], 10 * SLOTS)
        with subscribe(bus_name, start="earliest") as reader:
            rows = poll_all(reader)
            assert SLOTS // 2 <= len(rows) <= SLOTS
            check_content(POINTS, rows, 10 * SLOTS + 3 - len(rows) + 1)
            assert reader.stats.lost_count == 0  # none of those that it asked for
            assert reader.stats.read_count == len(rows)


@pytest.mark.parametrize("start", [1, 2, 99, 100, 101, 640])
def test_a_sequence_is_where_reading_starts(bus_name, tmp_path, start):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 640)
        with subscribe(bus_name, start=start) as reader:
            assert reader.position == start - 1
            read(reader, 640)
            assert reader.stats.read_count == 640 - start + 1


def test_a_sequence_that_is_still_to_come_is_waited_for(bus_name, data_dir):
    with open_writer(bus_name, data_dir) as writer, subscribe(bus_name, start=8) as reader:
        publish(writer["points"], 5)
        assert reader.poll() is None
        publish(writer["points"], 5)
        check_content(POINTS, poll_all(reader), 8)


def test_a_sequence_that_is_gone_without_a_log_is_counted_as_lost(bus_name):
    with open_writer(bus_name) as writer:
        publish(writer["points"], 10 * SLOTS)
        with subscribe(bus_name, start=11) as reader:
            batch = reader.take(TIMEOUT_S)
            assert batch is not None
            assert batch.lost == batch.first - 11 > 0
            assert reader.stats.lost_count == batch.lost
            check_content(POINTS, batch.rows, batch.first)


# --- what it follows ------------------------------------------------------------------------------------------------------


def test_durable_records_are_handed_out_once_they_are_on_the_disk_and_not_before(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, sync_interval=1e6) as writer:
        points = writer["points"]
        with (
            subscribe(bus_name, start="earliest", name="p") as published,
            subscribe(bus_name, start="earliest", name="l", follow="logged") as logged,
            subscribe(bus_name, start="earliest", name="d", follow="durable") as durable,
        ):
            last = publish(points, 5)
            read(published, last)
            points.wait(last, "logged", TIMEOUT_S)
            read(logged, last)
            assert points.watermarks.durable == 0  # the sync is due in days
            assert durable.poll() is None
            assert durable.stats.lag == 5
            writer.close()  # syncs
            read(durable, last)
            for reader in (published, logged, durable):
                assert reader.take(TIMEOUT_S) is None
                assert reader.ended


@pytest.mark.parametrize("follow", ["published", "logged", "durable"])
def test_a_reader_never_runs_ahead_of_the_watermark_it_follows(bus_name, tmp_path, follow):
    with open_writer(bus_name, tmp_path) as writer, subscribe(bus_name, follow=follow) as reader:
        points = writer["points"]
        for _ in range(300):
            publish(points, 3)
            batch = reader.poll()
            if batch is not None:
                assert batch.last <= getattr(points.watermarks, follow)
        read(reader, 900)
        assert readers(reader.address)[reader.name]["follow"] == follow


# --- batches --------------------------------------------------------------------------------------------------------------


def test_rows_are_the_ring_itself_and_cannot_be_written(bus_name):
    with open_writer(bus_name) as writer, subscribe(bus_name, batch_rows=8) as reader:
        publish(writer["points"], 8)
        batch = reader.poll()
        assert batch is not None
        rows, before = batch.rows, batch.rows.copy()
        assert not rows.flags.owndata
        assert not rows.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            rows["value"] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            rows.flags.writeable = True
        assert rows.dtype == POINTS.dtype
        assert batch.rows is rows
        publish(writer["points"], SLOTS)  # comes round once
        assert (rows["sequence"] == before["sequence"] + SLOTS).all()
        assert (before == batch.rows).sum() == 0


def test_a_batch_is_whole_until_the_writer_comes_round_and_then_says_so(bus_name):
    with open_writer(bus_name) as writer, subscribe(bus_name, batch_rows=8) as reader:
        publish(writer["points"], 16)
        first, second = reader.poll(), reader.poll()
        assert first is not None
        assert second is not None
        publish(writer["points"], SLOTS - 16 - 1)  # the last free slot may be claimed ahead
        assert first.valid
        first.validate()
        publish(writer["points"], 1 + 4)  # into the first batch's slots
        assert not first.valid
        assert second.valid
        second.validate()
        second.copy()
        with pytest.raises(Overrun) as overrun:
            first.validate()
        assert overrun.value.wanted == 1
        assert overrun.value.resume_at > 4
        assert overrun.value.lost_count == overrun.value.resume_at - 1
        with pytest.raises(Overrun):
            first.copy()


def test_a_batch_found_overwritten_is_handed_out_again_from_the_log(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, subscribe(bus_name, batch_rows=8) as reader:
        publish(writer["points"], 10)
        batch = reader.poll()
        assert batch is not None
        last = publish(writer["points"], 10 * SLOTS)
        with pytest.raises(Overrun):
            batch.validate()
        assert reader.position == 0
        read(reader, last)
        assert reader.stats.read_count == last
        assert reader.stats.lost_count == 0


def test_rows_outlive_their_reader_their_writer_and_the_ring(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10 * SLOTS)
        with subscribe(bus_name, start="earliest") as reader:
            from_log = reader.poll()
        with subscribe(bus_name, start=10 * SLOTS) as reader:
            from_ring = reader.poll()
    for path in (tmp_path / "log").iterdir():
        path.unlink()
    del reader, writer
    assert from_log is not None
    assert from_ring is not None
    check_batch(from_log, 1)
    check_batch(from_ring, 10 * SLOTS)


def test_batch_rows_is_the_most_that_a_batch_holds(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10 * SLOTS)
        for batch_rows in (1, 7, 1000):
            with subscribe(bus_name, start="earliest", batch_rows=batch_rows) as reader:
                sizes = [len(batch) for batch in iter(reader.poll, None)]
                assert max(sizes) <= batch_rows
                assert sum(sizes) == 10 * SLOTS
                assert batch_rows == 1000 or sizes[:5] == [batch_rows] * 5
        with subscribe(bus_name) as reader:  # by default a quarter of the ring
            publish(writer["points"], SLOTS)
            assert max(len(batch) for batch in iter(reader.poll, None)) == SLOTS // 4


# --- lapped ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["latest", "earliest", 1])
def test_a_lapped_reader_reads_on_from_the_log_by_itself_and_counts_it(bus_name, tmp_path, start):
    with open_writer(bus_name, tmp_path) as writer, subscribe(bus_name, start=start, name="late") as reader:
        last = publish(writer["points"], 5)
        read(reader, last)
        for laps in (1, 2):
            last = publish(writer["points"], 10 * SLOTS)
            read(reader, last)
            stats = reader.stats
            assert stats.overrun_count == laps
            assert (
                stats.refilled_count >= laps * 8 * SLOTS
            )  # a quarter of the ring's room apart, the rest is in the ring
            assert stats.lost_count == 0
            assert stats.read_count == last
        entry = readers(reader.address)["late"]
        assert (entry["overrun_count"], entry["refilled_count"]) == (2, stats.refilled_count)
        assert entry["lost_count"] == 0
        before = reader.stats.refilled_count
        last = publish(writer["points"], 5)
        read(reader, last)
        assert reader.stats.refilled_count == before  # it is back in the ring


def test_a_lapped_reader_without_a_log_learns_how_many_records_it_lost(bus_name):
    with open_writer(bus_name) as writer, subscribe(bus_name, name="late") as reader:
        read(reader, publish(writer["points"], 5))
        seen = lost = 0
        for _ in range(2):
            last = publish(writer["points"], 10 * SLOTS)
            expected = reader.position + 1
            while reader.position < last:
                batch = reader.take(TIMEOUT_S)
                assert batch is not None
                assert batch.first == expected + batch.lost
                check_batch(batch, batch.first)
                seen, lost, expected = seen + len(batch), lost + batch.lost, batch.last + 1
        assert seen + lost == 2 * 10 * SLOTS
        assert seen >= SLOTS
        stats = reader.stats
        assert (stats.overrun_count, stats.lost_count, stats.refilled_count) == (2, lost, 0)
        assert stats.read_count == 5 + seen
        entry = readers(reader.address)["late"]
        assert (entry["overrun_count"], entry["lost_count"]) == (2, lost)


def test_a_slow_reader_beside_a_fast_writer_misses_nothing_that_the_log_has(bus_name, tmp_path):
    total = 100_000
    with open_writer(bus_name, tmp_path, slots=1024) as writer, subscribe(bus_name) as reader:
        thread = threading.Thread(target=lambda: [publish(writer["points"], 100) for _ in range(total // 100)])
        thread.start()
        read(reader, total)
        thread.join()
        assert reader.stats.read_count == total


# --- ways to read ---------------------------------------------------------------------------------------------------------


def publish_and_close(writer: Writer, batches: int) -> threading.Thread:
    """Publish ten records at a time from a thread of its own, then close."""

    def run() -> None:
        for _ in range(batches):
            publish(writer["points"], 10)
            time.sleep(0.001)
        writer.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_loop_over_a_reader_ends_when_the_writer_has_closed_and_everything_is_read(bus_name, data_dir):
    writer, expected = open_writer(bus_name, data_dir, slots=ROOMY), 1
    with subscribe(bus_name) as reader:
        thread = publish_and_close(writer, 30)
        for batch in reader:
            expected = check_batch(batch, expected)
        thread.join()
        assert expected == 301
        assert reader.ended
        assert reader.poll() is None
        assert reader.take() is None
        assert list(reader) == []


def test_a_callback_is_called_with_every_batch_in_order(bus_name, data_dir):
    writer, batches = open_writer(bus_name, data_dir, slots=ROOMY), list[np.ndarray]()
    with subscribe(bus_name) as reader:
        thread = publish_and_close(writer, 30)
        reader.run(lambda batch: batches.append(batch.copy()))
        thread.join()
    check_content(POINTS, np.concatenate(batches), 1)
    assert sum(map(len, batches)) == 300


def test_what_a_callback_raises_comes_out_and_reading_can_go_on(bus_name):
    def refuse(batch: Batch) -> None:
        raise LookupError(batch.last)

    with open_writer(bus_name) as writer, subscribe(bus_name) as reader:
        publish(writer["points"], 3)
        with pytest.raises(LookupError, match="3"):
            reader.run(refuse)
        read(reader, publish(writer["points"], 3))


def test_async_for_hands_out_every_batch_while_the_loop_runs_on(bus_name, data_dir):
    async def main() -> tuple[int, int]:
        writer, expected, turns = open_writer(bus_name, data_dir, slots=ROOMY), 1, 0

        async def produce() -> None:
            nonlocal turns
            for _ in range(30):
                publish(writer["points"], 10)
                await asyncio.sleep(0.001)
                turns += 1
            writer.close()

        with subscribe(bus_name) as reader:
            producing = asyncio.create_task(
                produce()
            )  # in the same thread: a wait that held the loop would wait for ever
            async for batch in reader:
                expected = check_batch(batch, expected)
            await producing
            assert reader.ended
        return expected, turns

    assert asyncio.run(asyncio.wait_for(main(), TIMEOUT_S)) == (301, 30)


def test_two_topics_are_read_side_by_side_in_one_loop(bus_name, tmp_path):
    async def collect(reader: RealTime, schema: Schema) -> int:
        expected = 1
        async for batch in reader:
            expected = check_batch(batch, expected, schema)
        return expected - 1

    async def main() -> list[int]:
        writer = Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path, slots=256, log_file_bytes=FILE_BYTES)
        with RealTime(f"{bus_name}/points") as points, RealTime(f"{bus_name}/pairs") as pairs:
            tasks = [asyncio.create_task(collect(points, POINTS)), asyncio.create_task(collect(pairs, PAIRS))]
            for _ in range(20):
                publish(writer["points"], 3)
                publish(writer["pairs"], 5)
                await asyncio.sleep(0)
            writer.close()
            return await asyncio.gather(*tasks)

    assert asyncio.run(asyncio.wait_for(main(), TIMEOUT_S)) == [60, 100]


def test_two_topics_of_one_bus_number_and_lap_their_records_each_for_itself(bus_name):
    with (
        Writer(bus_name, [POINTS, PAIRS], slots={"points": 64, "pairs": 128}) as writer,
        RealTime(f"{bus_name}/points") as points,
        RealTime(f"{bus_name}/pairs") as pairs,
    ):
        for round_ in range(1, 6):
            publish(writer["points"], 20)
            publish(writer["pairs"], 3)
            read(points, 20 * round_)
        check_content(PAIRS, poll_all(pairs), 1)
        assert (points.position, pairs.position) == (100, 15)
        assert (points.stats.overrun_count, pairs.stats.overrun_count) == (0, 0)


def test_taking_ends_with_nothing_when_its_time_is_over(bus_name):
    with open_writer(bus_name) as writer, subscribe(bus_name) as reader:
        assert reader.take(0) is None
        assert reader.take(0.01) is None
        assert not reader.ended
        publish(writer["points"], 1)
        assert reader.take(0) is not None


# --- reliable -------------------------------------------------------------------------------------------------------------


def test_a_reliable_reader_holds_the_writer_back_and_a_lossy_one_does_not(bus_name):
    with open_writer(bus_name, full="raise") as writer:
        with subscribe(bus_name, name="lossy") as lossy:
            publish(writer["points"], 3 * SLOTS)
            poll_all(lossy)
            assert lossy.stats.lost_count > 0
        with subscribe(bus_name, reliable=True, name="careful") as careful:
            start = careful.position
            assert careful.poll() is None
            assert readers(careful.address)["careful"]["policy"] == "reliable"
            publish(writer["points"], SLOTS)
            with pytest.raises(RingFull, match="careful") as full:
                writer["points"].publish(0, 0, b"")
            assert full.value.published_count == 0
            assert writer["points"].watermarks.published == start + SLOTS
            read(careful, start + SLOTS)
            careful.poll()  # says that what was handed out is done with
            read(careful, publish(writer["points"], SLOTS))
            assert careful.stats.overrun_count == 0
            careful.poll()
            publish(writer["points"], SLOTS)
        publish(writer["points"], 3 * SLOTS)  # it has closed and holds nobody any more


def test_a_reliable_reader_loses_nothing_without_a_log(bus_name):
    total = 100_000
    with open_writer(bus_name, slots=256) as writer, subscribe(bus_name, reliable=True) as reader:
        assert reader.poll() is None  # from here on it holds the writer
        thread = threading.Thread(target=lambda: [publish(writer["points"], 100) for _ in range(total // 100)])
        thread.start()
        read(reader, total)
        thread.join()
        stats = reader.stats
    assert (stats.read_count, stats.overrun_count, stats.lost_count) == (total, 0, 0)


def test_a_reliable_reader_that_starts_in_the_past_holds_the_writer_once_it_has_caught_up(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, full="raise") as writer:
        publish(writer["points"], 10 * SLOTS)
        with subscribe(bus_name, start="earliest", reliable=True, name="careful") as reader:
            assert reader.poll() is not None
            publish(writer["points"], 10 * SLOTS)  # not yet
            read(reader, 20 * SLOTS)
            assert reader.poll() is None
            assert readers(reader.address)["careful"]["policy"] == "reliable"
            last = publish(writer["points"], SLOTS)
            writer["points"].wait(last, "logged", TIMEOUT_S)
            with pytest.raises(RingFull, match="careful"):
                writer["points"].publish(0, 0, b"")
            read(reader, last)


def test_a_reliable_reader_that_was_dropped_goes_on_as_a_lossy_one(bus_name, tmp_path):
    with (
        open_writer(bus_name, tmp_path, full="drop") as writer,
        subscribe(bus_name, reliable=True, name="slow") as reader,
    ):
        assert reader.poll() is None
        last = publish(writer["points"], 10 * SLOTS)
        assert readers(reader.address)["slow"]["state"] == "dropped"
        read(reader, last)
        assert reader.stats.overrun_count == 1


def test_a_reliable_reader_that_dies_is_let_go_of(bus_name, children):
    child = children.start()
    with open_writer(bus_name) as writer:
        child.run("reader = RealTime(address, reliable=True, name='dead'); reader.poll()", address=f"{bus_name}/points")
        assert readers(f"{bus_name}/points")["dead"]["policy"] == "reliable"
        publish(writer["points"], SLOTS)
        child.kill()
        publish(writer["points"], SLOTS)
        assert readers(f"{bus_name}/points") == {}


# --- the reader table -----------------------------------------------------------------------------------------------------


def test_a_reader_is_seen_in_the_table_under_its_name_until_it_closes(bus_name, children):
    child = children.start()
    with open_writer(bus_name) as writer:
        child.run("reader = RealTime(address, name='risk \u00e9')", address=f"{bus_name}/points")
        with subscribe(bus_name, name="x" * 100), subscribe(bus_name):
            table = readers(f"{bus_name}/points")
            assert set(table) == {"risk \u00e9", "x" * 47, Path(sys.argv[0]).name}
            entry = table["risk \u00e9"]
            assert (entry["pid"], entry["state"], entry["policy"]) == (child.pid, "active", "lossy")
            assert (entry["follow"], entry["consumed"]) == ("published", 0)
        assert set(readers(f"{bus_name}/points")) == {"risk \u00e9"}
        publish(writer["points"], 5)
        child.run("reader.poll(); reader.poll()")
        assert readers(f"{bus_name}/points")["risk \u00e9"]["consumed"] == 5
        child.run("reader.close()")
        assert readers(f"{bus_name}/points") == {}


def test_readers_beyond_the_tables_room_are_refused_until_one_leaves(bus_name):
    with open_writer(bus_name):
        attached = [subscribe(bus_name) for _ in range(1024)]
        try:
            with pytest.raises(AttachError, match="1024"):
                subscribe(bus_name)
            attached.pop().close()
            attached.append(subscribe(bus_name))
        finally:
            for reader in attached:
                reader.close()


def test_stats_tell_how_far_a_reader_is_behind(bus_name):
    with open_writer(bus_name) as writer, subscribe(bus_name, batch_rows=4) as reader:
        publish(writer["points"], 10)
        assert (reader.stats.position, reader.stats.lag, reader.stats.read_count) == (0, 10, 0)
        reader.poll()
        assert (reader.stats.position, reader.stats.lag, reader.stats.read_count) == (4, 6, 4)
        poll_all(reader)
        assert (reader.stats.position, reader.stats.lag, reader.stats.read_count) == (10, 0, 10)
        assert (reader.stats.epoch, reader.stats.reopen_count) == (writer.epoch, 0)


# --- writers come and go --------------------------------------------------------------------------------------------------


def start_writer(child: Child, bus: str, data_dir: Path | None) -> None:
    child.run(OPEN, bus=bus, data_dir=data_dir)


@pytest.mark.parametrize("strategy", ["poll", "iterate"])
def test_a_reader_goes_on_behind_a_killed_writer_without_a_gap_or_a_repeat(bus_name, data_dir, children, strategy):
    child = children.start()
    start_writer(child, bus_name, data_dir)
    with subscribe(bus_name, start="earliest", reliable=data_dir is None) as reader:
        batches, expected = iter(reader), 1
        assert reader.poll() is None  # from here on it holds the writer, if it is to
        for life in range(1, 4):
            child.begin(PUBLISH)
            enough = expected + 3000
            while expected < enough:
                batch = next(batches) if strategy == "iterate" else reader.take(TIMEOUT_S)
                assert batch is not None
                expected = check_or_reread(batch, expected)
            child.kill()
            published = attach(reader.address).watermarks().published
            read(reader, published)
            assert reader.take(0.05) is None
            assert not reader.ended
            expected = published + 1
            child = children.start()
            start_writer(child, bus_name, data_dir)
            assert child.ask("points.watermarks.published") == published
            if life % 2:  # otherwise it moves while the next writer is publishing already
                assert reader.take(0.05) is None
                assert reader.stats.reopen_count == life
        child.run("publish(points, 10)")
        child.run("writer.close()")
        assert sum(len(batch) for batch in reader) == 10
        assert reader.stats.reopen_count == 3
        assert reader.stats.lost_count == 0
        assert reader.ended


def check_or_reread(batch: Batch, expected: int) -> int:
    try:
        return check_batch(batch, expected)
    except Overrun:
        return expected


@pytest.mark.parametrize("strategy", ["take", "iterate"])
def test_a_reader_ends_behind_a_writer_that_came_and_closed_before_it_was_found(bus_name, data_dir, children, strategy):
    """With a log what that writer published is read there; without one nobody can know it."""
    child = children.start()
    start_writer(child, bus_name, data_dir)
    child.run("publish(points, 100)")
    with subscribe(bus_name, start="earliest") as reader:
        read(reader, 100)
        child.kill()
        child = children.start()
        start_writer(child, bus_name, data_dir)
        child.run("publish(points, 10)")
        child.run("writer.close()")
        rest = list(reader) if strategy == "iterate" else list(iter(lambda: reader.take(TIMEOUT_S), None))
        assert sum(len(batch) for batch in rest) == (10 if data_dir else 0)
        assert reader.ended
        assert reader.position == (110 if data_dir else 100)


def test_a_reader_that_waits_for_the_next_writer_does_so_behind_one_that_came_and_closed(bus_name, data_dir, children):
    child = children.start()
    start_writer(child, bus_name, data_dir)
    child.run("publish(points, 100)")
    with subscribe(bus_name, start="earliest", reopen=True) as reader:
        read(reader, 100)
        child.kill()
        for _ in range(2):
            child = children.start()
            start_writer(child, bus_name, data_dir)
            child.run("publish(points, 10)")
            child.run("writer.close()")
        assert reader.take(0.1) is None
        assert not reader.ended


def start_small_writer(child: Child, bus: str) -> None:
    child.run("from support.streams import publish", bus=bus)
    child.run("writer = Writer(bus, [POINTS], slots=64); publish(writer['points'], 1)")


def test_a_reliable_reader_holds_the_writer_that_comes_after_a_kill_before_it_has_moved_there(bus_name, children):
    child = children.start()
    start_small_writer(child, bus_name)
    with subscribe(bus_name, reliable=True, name="careful") as reader:
        assert reader.poll() is None
        child.kill()
        with open_writer(bus_name, full="raise") as writer:
            with pytest.raises(RingFull, match="careful"):
                publish(writer["points"], SLOTS + 1)
            assert writer["points"].watermarks.published == 1 + SLOTS
            read(reader, 1 + SLOTS)
            assert reader.stats.reopen_count == 1


def test_a_reliable_reader_goes_on_holding_the_writer_when_it_has_moved_to_its_ring(bus_name, children):
    child = children.start()
    start_small_writer(child, bus_name)
    with subscribe(bus_name, reliable=True, name="careful", batch_rows=1) as reader:
        assert reader.poll() is None
        child.kill()
        with open_writer(bus_name, full="raise") as writer:
            publish(writer["points"], SLOTS)
            wait_until(lambda: reader.poll() is not None, TIMEOUT_S)
            assert reader.stats.reopen_count == 1
            with pytest.raises(RingFull, match="careful"):
                publish(writer["points"], SLOTS)


def test_a_reader_that_is_to_reopen_waits_for_the_next_writer(bus_name, tmp_path):
    with subscribe_after_open(bus_name, tmp_path) as reader:
        for life in range(1, 4):
            assert reader.take(0.05) is None
            assert not reader.ended
            with open_writer(bus_name, tmp_path) as writer:
                read(reader, publish(writer["points"], 10))
                assert reader.stats.reopen_count == life
        assert reader.position == 40


def subscribe_after_open(bus: str, data_dir: Path | None) -> RealTime:
    """A reader that has read ten records of a writer that has closed."""
    with open_writer(bus, data_dir) as writer:
        reader = subscribe(bus, reopen=True)
        read(reader, publish(writer["points"], 10))
    return reader


def test_a_reader_that_was_away_during_a_whole_life_of_a_writer_reads_it_from_the_log(bus_name, tmp_path):
    with subscribe_after_open(bus_name, tmp_path) as reader:
        with open_writer(bus_name, tmp_path) as writer:
            publish(writer["points"], 10 * SLOTS)
        with open_writer(bus_name, tmp_path) as writer:
            read(reader, publish(writer["points"], 5))
            assert reader.position == 10 + 10 * SLOTS + 5
            assert reader.stats.lost_count == 0


def apply_all(writer: Writer, rows: Rows) -> None:
    """Apply a leader's rows, more than the ring has room for."""
    applied = 0

    def apply_more() -> bool:
        nonlocal applied
        applied += writer.replicating.apply("pairs", rows[applied:].tobytes())
        return applied == len(rows)

    wait_until(apply_more, TIMEOUT_S)
    wait_until(lambda: attach(f"{writer.bus}/pairs").watermarks().logged == rows["sequence"][-1], TIMEOUT_S)


def test_a_reader_of_a_topic_that_is_opened_with_less_hands_out_nothing_that_was_cut(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path, slots=SLOTS) as writer:
        apply_all(writer, make_rows(PAIRS, 1, 100))
        reader = RealTime(f"{bus_name}/pairs", start=1, follow="published")
        assert len(read_up_to(reader, 100, TIMEOUT_S)) == 100  # the first of them from the log
        writer.close_to_cut({"pairs": 60})
    assert cut_tail(tmp_path, {"pairs": 60}).row_count == 40
    with reader, open_replicated(bus_name, tmp_path, {"pairs": 60}, slots=SLOTS) as writer:
        with pytest.raises(BusError, match=r"had read up to 100.*ended at 60"):
            reader.take(TIMEOUT_S)
        others = make_rows(PAIRS, 61, 240)
        others["left"] += 1
        apply_all(writer, others)
        assert read_up_to(reader, 300, TIMEOUT_S).tobytes() == others.tobytes()
        assert reader.stats.refilled_count > 100


def test_a_reader_that_was_away_while_a_topic_was_opened_with_less_hands_out_nothing_that_was_cut(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path, slots=SLOTS) as writer:
        apply_all(writer, make_rows(PAIRS, 1, 150))
        reader = RealTime(f"{bus_name}/pairs", start=1, follow="published", batch_rows=10)
        assert len(read_up_to(reader, 70, TIMEOUT_S)) == 70
        writer.close_to_cut({"pairs": 60})
    assert cut_tail(tmp_path, {"pairs": 60}).row_count == 90
    others = make_rows(PAIRS, 61, 20)
    others["left"] += 1
    with open_replicated(bus_name, tmp_path, {"pairs": 60}, slots=SLOTS) as writer:
        apply_all(writer, others)
    with reader:
        assert read_up_to(reader, 80, TIMEOUT_S).tobytes() == others[10:].tobytes()
        assert reader.take(TIMEOUT_S) is None


@pytest.mark.parametrize("kept", [5, 10])
def test_a_reader_that_waits_for_what_is_still_to_come_loses_nothing_when_its_topic_is_opened_again(
    bus_name, tmp_path, kept
):
    """With as much as before, or with less."""
    with open_replicated(bus_name, tmp_path, slots=SLOTS) as writer:
        apply_all(writer, make_rows(PAIRS, 1, 10))
        reader = RealTime(f"{bus_name}/pairs", start=25, follow="published")
        assert reader.poll() is None
        writer.close_to_cut({"pairs": kept})
    assert cut_tail(tmp_path, {"pairs": kept}).row_count == 10 - kept
    with reader, open_replicated(bus_name, tmp_path, {"pairs": kept}, slots=SLOTS) as writer:
        assert reader.take(0.1) is None
        rows = make_rows(PAIRS, kept + 1, 30 - kept)
        apply_all(writer, rows)
        assert read_up_to(reader, 30, TIMEOUT_S).tobytes() == rows[24 - kept :].tobytes()


def test_without_a_log_a_new_bus_of_the_same_name_begins_at_one_again(bus_name):
    with subscribe_after_open(bus_name, None) as reader, open_writer(bus_name) as writer:
        publish(writer["points"], 3)
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        check_batch(batch, 1)
        assert reader.position == 3
        assert reader.stats.read_count == 13


@pytest.mark.parametrize("count", [10, 15])
@pytest.mark.parametrize("logged", [True, False], ids=["another log", "rings only"])
def test_a_bus_that_began_anew_is_read_from_its_first_record_however_much_it_has_by_then(
    bus_name, tmp_path, logged, count
):
    one, two = (tmp_path / "one", tmp_path / "two") if logged else (None, None)
    with subscribe_after_open(bus_name, one) as reader, open_writer(bus_name, two) as writer:
        publish(writer["points"], count)
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        check_batch(batch, 1)
        assert (reader.position, reader.stats.read_count) == (count, 10 + count)
        assert reader.stats.lost_count == 0


@pytest.mark.parametrize("end", ["its successor closed", "its segments were removed"])
def test_without_a_log_a_bus_that_began_anew_after_a_kill_is_read_from_its_first_record(bus_name, children, end):
    child = children.start()
    start_small_writer(child, bus_name)
    child.run("publish(writer['points'], 9)")
    with subscribe(bus_name, start="earliest", reopen=True) as reader:
        read(reader, 10)
        child.kill()
        if end == "its successor closed":
            with open_writer(bus_name) as writer:
                publish(writer["points"], 5)
        else:
            for segment in Path("/dev/shm").glob(f"ringmain.{bus_name}*"):
                segment.unlink()
        with open_writer(bus_name) as writer:
            publish(writer["points"], 30)
            check_batch(next(iter(reader)), 1)


def test_a_new_writer_with_another_schema_is_told_to_the_reader(bus_name, children):
    child = children.start()
    child.run("writer = Writer(bus, [POINTS])", bus=bus_name)
    with subscribe(bus_name) as reader:
        child.kill()
        words = r"another schema.*'check' exists only here.*subscribe anew"
        with Writer(bus_name, [Schema("points", {"value": "u8"})]), pytest.raises(BusError, match=words):
            reader.take(TIMEOUT_S)


def test_a_reader_may_come_before_the_writer_and_wait_for_it(bus_name, children):
    child = children.start()
    child.settle()
    with pytest.raises(NotFound, match=f"{bus_name}/points"):
        subscribe(bus_name)
    with pytest.raises(NotFound):
        subscribe(bus_name, open_timeout=0.05)
    child.begin(f"time.sleep(0.05)\n{OPEN.replace('if True:', 'if bus:')}", bus=bus_name, data_dir=None)
    with subscribe(bus_name, open_timeout=TIMEOUT_S, start="earliest") as reader:
        child.run("publish(points, 3)")
        read(reader, 3)


# --- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": 0}, "start: .*got 0"),
        ({"start": -1}, "start: .*got -1"),
        ({"start": "newest"}, "start: .*got 'newest'"),
        ({"follow": "claimed"}, "follow: .*got 'claimed'"),
        ({"follow": "fast"}, "follow: .*got 'fast'"),
        ({"follow": "logged"}, "nothing is logged on a bus without a data_dir"),
        ({"follow": "durable"}, "nothing is durable on a bus without a data_dir"),
        ({"wait": "sleep"}, "wait: .*got 'sleep'"),
        ({"batch_rows": 0}, "batch_rows: .*got 0"),
    ],
)
def test_a_bad_argument_is_named_and_leaves_no_reader_behind(bus_name, settings, words):
    with open_writer(bus_name):
        with pytest.raises(ValueError, match=words):
            subscribe(bus_name, **settings)
        assert readers(f"{bus_name}/points") == {}


@pytest.mark.parametrize(
    "address", ["", "exchange", "exchange/", "/points", "Exchange/points", "a/b/c", "a/../b", "a b/c"]
)
def test_an_address_that_is_none_is_refused_with_an_example(address):
    with pytest.raises(ValueError, match="BUS/TOPIC is expected, such as exchange/trades"):
        RealTime(address)


def test_a_topic_that_the_bus_does_not_have_is_not_found(bus_name):
    with open_writer(bus_name), pytest.raises(NotFound, match="ringmain ls"):
        RealTime(f"{bus_name}/trades")


def test_durable_cannot_be_followed_where_the_log_is_never_synced(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, sync="never") as writer:
        with pytest.raises(ValueError, match="never syncs"):
            subscribe(bus_name, follow="durable")
        with subscribe(bus_name, follow="logged") as reader:
            read(reader, publish(writer["points"], 3))


def test_a_closed_reader_hands_out_nothing_and_may_be_closed_again(bus_name):
    with open_writer(bus_name) as writer:
        reader = subscribe(bus_name)
        publish(writer["points"], 3)
        reader.close()
        reader.close()
        assert reader.poll() is None
        assert reader.take() is None
        assert list(reader) == []
        assert reader.ended
        assert reader.position == 0
