"""A ring that is full: whom the writer waits for, for how long, whom it lets go of, and what that costs each reader."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from ringmain.bus import Overrun, RingFull, Writer, WriterFailed, _segment, attach
from ringmain.bus.segments import open_control
from ringmain.subscribers import RealTime
from support.children import TIMEOUT_S, Child, Children, read_now
from support.logs import PAIRS, make_rows, wait_until

SLOTS = 64


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def publish(writer: Writer, count: int) -> int:
    """Publish the next records; their content follows from their sequence. Returns the last sequence."""
    topic = writer["pairs"]
    return topic.publish_batch(make_rows(PAIRS, topic.watermarks.published + 1, count))


def sequences(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def open_reliable(bus: str, name: str = "reliable", **settings) -> RealTime:
    """A reader that holds the writer back from now on, which it does from its first poll on."""
    reader = RealTime(f"{bus}/pairs", reliable=True, name=name, **settings)
    assert reader.poll() is None
    return reader


def start_reliable(children: Children, bus: str, name: str) -> Child:
    """The same in a process of its own, where it reads when it is told."""
    child = children.start()
    child.run(
        "reader = RealTime(f'{bus}/pairs', reliable=True, name=name)\nassert reader.poll() is None", bus=bus, name=name
    )
    return child


def start_writer(children: Children, bus: str, **settings) -> Child:
    child = children.start()
    child.run(
        "writer = Writer(bus, [PAIRS], slots=64, **settings); topic = writer['pairs']", bus=bus, settings=settings
    )
    return child


def entries(bus: str) -> dict[str, dict]:
    """The reader table by the readers' names."""
    return {entry["name"]: entry for entry in _segment.list_readers(open_control(bus, "pairs").memory)}


# --- block ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 64])
def test_a_reliable_reader_holds_the_writer_at_exactly_one_ring_and_lets_it_on_as_it_reads(bus_name, slots):
    with (
        Writer(bus_name, [PAIRS], slots=slots, full_timeout=0.001) as writer,
        open_reliable(bus_name, "slow", batch_rows=1) as reader,
    ):
        topic = writer["pairs"]
        for sequence in range(1, slots + 1):
            assert topic.publish(sequence) == sequence
        for sequence in range(1, 3 * slots):
            batch = reader.poll()
            assert batch is not None
            assert (batch.first, batch.last) == (sequence, sequence)
            with pytest.raises(RingFull):
                topic.publish(0)  # what was handed out last is still being used
            assert topic.watermarks.published == slots + sequence - 1
            assert batch.rows["left"].tolist() == [sequence]
            batch.validate()
            assert reader._cursor is not None
            reader._cursor.beat()  # done with it, as a poll for the next batch would say
            assert topic.publish(slots + sequence) == slots + sequence
        assert reader.stats.overrun_count == reader.stats.lost_count == 0


@pytest.mark.parametrize("full_timeout", [0, 0.05])
def test_when_the_time_to_wait_is_over_the_error_says_who_holds_the_ring(bus_name, full_timeout):
    with (
        Writer(bus_name, [PAIRS], slots=SLOTS, full_timeout=full_timeout) as writer,
        open_reliable(bus_name, "slow") as reader,
    ):
        publish(writer, SLOTS)
        with pytest.raises(
            RingFull, match=rf"'pairs'.*held back by reader 'slow' \(pid {os.getpid()}\); 0 records"
        ) as full:
            publish(writer, 1)
        assert (full.value.topic, full.value.published_count) == ("pairs", 0)
        assert writer["pairs"].watermarks.published == SLOTS
        assert read_now(reader) == sequences(1, SLOTS)
        assert publish(writer, SLOTS) == 2 * SLOTS


@pytest.mark.process
@pytest.mark.parametrize("call", ["publish_one()", "publish_many(500)", "fill_claim(32)"])
def test_a_writer_that_blocks_goes_on_once_the_reader_has_read(bus_name, children, call):
    child = start_writer(children, bus_name)
    child.run(
        "publish_one = lambda: topic.publish(int(make_rows(PAIRS, 65, 1)['left'][0]))\n"
        "publish_many = lambda count: topic.publish_batch(make_rows(PAIRS, 65, count))\n"
        "def fill_claim(count):\n"
        "    claim = topic.claim(count)\n"
        "    claim.rows['left'] = make_rows(PAIRS, 65, count)['left']\n"
        "    return claim.commit()\n"
    )
    with open_reliable(bus_name) as reader:
        child.run("topic.publish_batch(make_rows(PAIRS, 1, 64))")
        child.begin(f"last = {call}")
        wait_until(child.is_blocked, TIMEOUT_S)
        assert attach(f"{bus_name}/pairs").watermarks().published == SLOTS
        found: list[int] = []
        wait_until(lambda: found.extend(read_now(reader)) or child.has_answered(), TIMEOUT_S)
        found += read_now(reader)
        assert found == sequences(1, child.ask("last"))
        assert len(found) > SLOTS
        assert reader.stats.overrun_count == 0


def test_the_slowest_of_several_reliable_readers_decides(bus_name):
    with (
        Writer(bus_name, [PAIRS], slots=SLOTS, full="raise") as writer,
        open_reliable(bus_name, "fast") as fast,
        open_reliable(bus_name, "slow") as slow,
    ):
        publish(writer, SLOTS)
        with pytest.raises(RingFull, match=r"'fast'.* and .*'slow'"):
            publish(writer, 1)
        assert read_now(fast) == sequences(1, SLOTS)
        with pytest.raises(RingFull) as full:
            publish(writer, 1)
        assert "'slow'" in full.value.held_by
        assert "'fast'" not in full.value.held_by
        assert slow.poll() is not None
        assert slow.poll() is not None  # and so the first batch, of a quarter of the ring, is done with
        assert publish(writer, SLOTS // 4) == SLOTS + SLOTS // 4
        with pytest.raises(RingFull):
            publish(writer, 1)


def test_a_reader_that_closes_holds_nobody_any_more(bus_name):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full="raise") as writer:
        with open_reliable(bus_name):
            publish(writer, SLOTS)
            with pytest.raises(RingFull):
                publish(writer, 1)
        assert publish(writer, 10 * SLOTS) == 11 * SLOTS


@pytest.mark.process
def test_a_blocked_writer_can_be_interrupted_and_goes_on_afterwards(bus_name, children):
    child = start_writer(children, bus_name)
    with open_reliable(bus_name) as reader:
        child.run("topic.publish_batch(make_rows(PAIRS, 1, 64))")
        child.begin("interrupted = False\ntry: topic.publish(1)\nexcept KeyboardInterrupt: interrupted = True")
        wait_until(child.is_blocked, TIMEOUT_S)
        os.kill(child.pid, signal.SIGINT)
        assert child.ask("interrupted")
        assert child.ask("topic.watermarks.published") == SLOTS
        assert read_now(reader) == sequences(1, SLOTS)
        assert child.ask("topic.publish_batch(make_rows(PAIRS, 65, 1))") == 65


@pytest.mark.parametrize("call", ["publish", "publish_batch", "claim"])
def test_a_call_that_waits_for_room_is_refused_once_the_writer_closes_even_if_there_is_room_then(bus_name, call):
    with Writer(bus_name, [PAIRS], slots=SLOTS) as writer, open_reliable(bus_name) as reader:
        topic = writer["pairs"]
        publish(writer, SLOTS)
        said: list[str] = []

        def try_it() -> None:
            try:
                {"publish": topic.publish, "publish_batch": topic.publish_batch, "claim": topic.claim}[call](given)
            except ValueError as refused:
                said.append(str(refused))

        given = make_rows(PAIRS, 65, 1) if call == "publish_batch" else 1
        thread = threading.Thread(target=try_it)
        thread.start()
        wait_until(lambda: topic._ring.busy, TIMEOUT_S)
        topic.close()
        assert read_now(reader) == sequences(1, SLOTS)
        thread.join(TIMEOUT_S)
        for _ in range(2):
            try_it()
        assert said == ["topic 'pairs': the writer is closed"] * 3
        assert topic.watermarks.published == SLOTS


@pytest.mark.process
def test_a_stopped_reader_is_waited_for_and_loses_nothing(bus_name, children):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full_timeout=0.2) as writer:
        reader = start_reliable(children, bus_name, "asleep")
        publish(writer, SLOTS)
        reader.pause()
        with pytest.raises(RingFull, match=rf"'asleep' \(pid {reader.pid}\)"):
            publish(writer, 1)
        assert entries(bus_name)["asleep"]["state"] == "active"
        reader.resume()
        assert reader.ask("read_now(reader)") == sequences(1, SLOTS)
        assert publish(writer, 1) == 65
        assert reader.ask("read_now(reader)") == [65]
        assert reader.ask("(reader.stats.overrun_count, reader.stats.lost_count)") == (0, 0)


# --- raise ------------------------------------------------------------------------------------------------------------


def test_raise_says_how_much_of_a_batch_was_published_and_that_much_is_there(bus_name):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full="raise") as writer, open_reliable(bus_name) as reader:
        topic = writer["pairs"]
        publish(writer, 10)
        with pytest.raises(RingFull) as full:
            topic.publish_batch(make_rows(PAIRS, 11, 100))
        done = full.value.published_count
        assert 0 < done <= SLOTS - 10
        assert f"; {done} records of this call were published" in str(full.value)
        assert topic.watermarks.published == 10 + done
        assert read_now(reader) == sequences(1, 10 + done)
        assert topic.publish_batch(make_rows(PAIRS, 11 + done, SLOTS)) == 10 + done + SLOTS
        assert read_now(reader) == sequences(11 + done, 10 + done + SLOTS)


def test_raise_refuses_a_claim_that_does_not_fit_and_a_smaller_one_still_does(bus_name):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full="raise") as writer, open_reliable(bus_name) as reader:
        publish(writer, 40)
        with pytest.raises(RingFull):
            writer["pairs"].claim(25)
        with writer["pairs"].claim(24) as rows:
            rows["left"] = make_rows(PAIRS, 41, 24)["left"]
        assert read_now(reader) == sequences(1, SLOTS)


@pytest.mark.parametrize("full", ["raise", "drop"])
def test_the_log_is_waited_for_whatever_the_policy(bus_name, tmp_path, full):
    with (
        Writer(bus_name, [PAIRS], slots=4, full=full, data_dir=tmp_path) as writer,
        RealTime(f"{bus_name}/pairs", start="earliest") as reader,
    ):
        for sequence in range(1, 1001):
            assert publish(writer, 1) == sequence
        assert publish(writer, 1000) == 2000
        writer["pairs"].wait(2000, "logged", timeout=TIMEOUT_S)
        assert read_now(reader) == sequences(1, 2000)
        assert reader.stats.lost_count == 0


@pytest.mark.process
@pytest.mark.parametrize("full", ["block", "raise", "drop"])
def test_a_writer_that_waits_for_a_log_that_has_stopped_is_told(bus_name, tmp_path, children, full):
    child = start_writer(children, bus_name, full=full, data_dir=tmp_path)
    child.run("stop_the_log(data_dir)", data_dir=tmp_path)
    with pytest.raises(WriterFailed, match="File too large"):
        child.run("topic.publish_batch(make_rows(PAIRS, 1, 1000))")
    assert child.ask("topic.watermarks.published") <= SLOTS


# --- drop -------------------------------------------------------------------------------------------------------------


def test_drop_lets_go_of_the_slow_reader_and_keeps_the_one_in_step(bus_name):
    with (
        Writer(bus_name, [PAIRS], slots=SLOTS, full="drop") as writer,
        open_reliable(bus_name, "slow") as slow,
        open_reliable(bus_name, "fast") as fast,
    ):
        found: list[int] = []
        for _ in range(40):
            publish(writer, 16)
            found += read_now(fast)
        assert found == sequences(1, 640)
        assert fast.stats.overrun_count == 0
        states = {name: entry["state"] for name, entry in entries(bus_name).items()}
        assert states == {"slow": "dropped", "fast": "active"}

        rest = read_now(slow)  # as a lossy reader from now on
        assert rest == sequences(rest[0], 640)
        assert rest[0] > 640 - SLOTS
        assert (slow.stats.overrun_count, slow.stats.lost_count, slow.stats.read_count) == (1, rest[0] - 1, len(rest))
        assert entries(bus_name)["slow"]["lost_count"] == rest[0] - 1
    assert writer["pairs"].watermarks.published == 640


def test_a_reader_within_the_ring_is_not_dropped(bus_name):
    with (
        Writer(bus_name, [PAIRS], slots=SLOTS, full="drop") as writer,
        open_reliable(bus_name, "just in time") as reader,
    ):
        publish(writer, SLOTS)
        assert entries(bus_name)["just in time"]["state"] == "active"
        publish(writer, 1)
        assert entries(bus_name)["just in time"]["state"] == "dropped"
        read_now(reader)


def test_a_dropped_reader_gets_the_rest_from_the_log(bus_name, tmp_path):
    with (
        Writer(bus_name, [PAIRS], slots=SLOTS, full="drop", data_dir=tmp_path) as writer,
        open_reliable(bus_name, "slow") as slow,
    ):
        publish(writer, 1000)
        writer["pairs"].wait(1000, "logged", timeout=TIMEOUT_S)
        assert entries(bus_name)["slow"]["state"] == "dropped"
        assert read_now(slow) == sequences(1, 1000)
        assert (slow.stats.lost_count, slow.stats.overrun_count) == (0, 1)
        assert slow.stats.refilled_count >= 1000 - SLOTS


def test_a_dropped_readers_batch_says_that_it_was_overwritten(bus_name):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full="drop") as writer, open_reliable(bus_name) as slow:
        publish(writer, 16)
        batch = slow.poll()
        assert batch is not None
        assert batch.valid
        publish(writer, 2 * SLOTS)
        assert not batch.valid
        with pytest.raises(Overrun):
            batch.validate()


# --- dead readers -----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("full", ["block", "raise", "drop"])
def test_a_killed_reader_is_let_go_of(bus_name, children, full):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full=full) as writer:
        reader = start_reliable(children, bus_name, "doomed")
        publish(writer, SLOTS)
        entry = entries(bus_name)["doomed"]
        assert (entry["policy"], entry["pid"]) == ("reliable", reader.pid)
        reader.kill()
        assert publish(writer, 1) == 65
        assert entries(bus_name) == {}
        assert publish(writer, 1000) == 1065


@pytest.mark.process
def test_a_reader_killed_while_the_writer_waits_for_it_is_let_go_of(bus_name, children):
    writer = start_writer(children, bus_name)
    reader = start_reliable(children, bus_name, "doomed")
    writer.run("topic.publish_batch(make_rows(PAIRS, 1, 64))")
    writer.begin("last = topic.publish(1)")
    wait_until(writer.is_blocked, TIMEOUT_S)
    reader.kill()
    assert writer.ask("last") == 65
    assert entries(bus_name) == {}


@pytest.mark.process
def test_a_killed_reader_does_not_take_the_others_with_it(bus_name, children):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full="raise") as writer:
        doomed, stays = start_reliable(children, bus_name, "doomed"), start_reliable(children, bus_name, "stays")
        publish(writer, SLOTS)
        doomed.kill()
        with pytest.raises(RingFull) as full:
            publish(writer, 1)
        assert "'stays'" in full.value.held_by
        assert "'doomed'" not in full.value.held_by
        assert set(entries(bus_name)) == {"stays"}
        assert stays.ask("read_now(reader)") == sequences(1, SLOTS)
        assert publish(writer, 1) == 65


# --- lossy readers ----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("full", ["block", "raise"])
def test_lossy_readers_never_hold_the_writer_up(bus_name, children, full):
    last = 100 * SLOTS
    with Writer(bus_name, [PAIRS], slots=SLOTS, full=full, full_timeout=0) as writer:
        stopped, killed = children.start(), children.start()
        for child in (stopped, killed):
            child.run("reader = RealTime(f'{bus}/pairs'); assert reader.poll() is None", bus=bus_name)
        stopped.pause()
        killed.kill()
        idle = [RealTime(f"{bus_name}/pairs", name=f"idle {number}") for number in range(20)]
        assert publish(writer, last) == last
        for reader in idle:
            found = read_now(reader)
            assert found == sequences(found[0], last)
            assert (reader.stats.lost_count, reader.stats.overrun_count) == (found[0] - 1, 1)
            reader.close()
        stopped.resume()
        found = stopped.ask("read_now(reader)")
        assert found == sequences(found[0], last)
        assert stopped.ask("reader.stats.lost_count") == found[0] - 1


def test_what_a_lossy_reader_missed_is_counted_to_the_last_record(bus_name):
    choice = np.random.default_rng(7)
    with Writer(bus_name, [PAIRS], slots=SLOTS) as writer, RealTime(f"{bus_name}/pairs", name="lossy") as reader:
        read_count = lost_count = expected = published = 0
        for _ in range(50):
            published = publish(writer, int(choice.integers(1, 300)))
            while reader.stats.lag:
                batch = reader.poll()
                if batch is None:
                    continue
                assert batch.first == expected + batch.lost + 1
                expected, lost_count, read_count = batch.last, lost_count + batch.lost, read_count + len(batch)
            assert reader.stats.position == read_count + lost_count == published
            assert (reader.stats.read_count, reader.stats.lost_count) == (read_count, lost_count)
        reader.poll()
        entry = entries(bus_name)["lossy"]
        assert entry["overrun_count"] == reader.stats.overrun_count > 10
        assert entry["lost_count"] == lost_count > 0
        assert entry["consumed"] == published


def test_a_poll_that_was_lapped_gives_the_next_records_there_are(bus_name):
    with Writer(bus_name, [PAIRS], slots=SLOTS) as writer, RealTime(f"{bus_name}/pairs") as reader:
        publish(writer, 10 * SLOTS)
        batch = reader.poll()
        assert batch is not None
        assert batch.lost == batch.first - 1 > 0


def test_lag_is_what_is_still_to_be_read(bus_name):
    with Writer(bus_name, [PAIRS], slots=SLOTS) as writer, RealTime(f"{bus_name}/pairs", batch_rows=10) as reader:
        publish(writer, 30)
        assert reader.stats.lag == 30
        assert reader.poll() is not None
        assert (reader.stats.lag, reader.stats.read_count) == (20, 10)


# --- becoming reliable ------------------------------------------------------------------------------------------------


def test_a_reliable_reader_holds_the_writer_from_the_moment_it_is_opened(bus_name):
    with (
        Writer(bus_name, [PAIRS], slots=SLOTS, full="raise") as writer,
        RealTime(f"{bus_name}/pairs", reliable=True) as reader,
    ):
        publish(writer, SLOTS)
        with pytest.raises(RingFull):
            publish(writer, 1)
        assert read_now(reader) == sequences(1, SLOTS)


def test_a_reliable_reader_from_the_past_holds_the_writer_once_it_has_caught_up(bus_name, tmp_path):
    with Writer(bus_name, [PAIRS], slots=SLOTS, full="raise", data_dir=tmp_path) as writer:
        topic = writer["pairs"]
        topic.wait(publish(writer, 1000), "logged", timeout=TIMEOUT_S)
        with RealTime(f"{bus_name}/pairs", reliable=True, start="earliest", batch_rows=50) as reader:
            batch = reader.poll()
            assert batch is not None
            assert batch.first == 1
            topic.wait(publish(writer, 1000), "logged", timeout=TIMEOUT_S)  # it is far behind, and holds nobody
            assert read_now(reader) == sequences(batch.last + 1, 2000)
            topic.wait(publish(writer, SLOTS), "logged", timeout=TIMEOUT_S)
            with pytest.raises(RingFull):
                publish(writer, 1)
            assert read_now(reader) == sequences(2001, 2000 + SLOTS)
            assert reader.stats.lost_count == 0
