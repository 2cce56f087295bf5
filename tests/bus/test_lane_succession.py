"""Lanes when their writer is killed, taken over, closes or fails: what the next one finds in them, and what publishers see."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import (
    BusError,
    Fenced,
    LanePublisher,
    Publisher,
    RingFull,
    Writer,
    WriterFailed,
    _lanes,
    _segment,
    attach,
    lane_opening,
    lane_publisher,
    open_lane,
)
from ringmain.bus._publish import RingPublisher
from ringmain.bus.segments import Segment, lane_name, list_lanes
from ringmain.storage import Schema
from ringmain.subscribers import Historical, RealTime
from support.children import TIMEOUT_S, Child, Children
from support.logs import PAIRS, read_rows, wait_until

SHM = Path("/dev/shm")
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
OPEN = "writer = Writer(bus, [PAIRS], data_dir=data_dir, lanes=True, **settings)"


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


@pytest.fixture(params=["rings only", "with log"])
def data_dir(request, tmp_path) -> Path | None:
    return tmp_path if request.param == "with log" else None


def numbers(first: int, count: int) -> np.ndarray:
    rows = np.zeros(count, PAIRS.payload_dtype)
    rows["left"] = np.arange(first, first + count)
    return rows


def start_writer(children: Children, bus: str, data_dir: Path | None, **settings) -> Child:
    child = children.start()
    child.run(OPEN, bus=bus, data_dir=data_dir, settings=settings)
    return child


def all_of(bus: str, last: int) -> list[int]:
    """What the topic holds up to `last`, with one reader from the beginning."""
    found: list[int] = []
    with RealTime(f"{bus}/pairs", start="earliest") as reader:
        while reader.position < last:
            batch = reader.take(TIMEOUT_S)
            assert batch is not None, f"{found[-3:]} was the last that came"
            found += batch.copy()["left"].tolist()
    return found


def one_to(last: int) -> list[int]:
    return list(range(1, last + 1))


def forge_lane(name: str, bus: str, row_count: int) -> Segment:
    """A segment with rows in it that a publisher might have made."""
    schema_json = PAIRS.to_json()
    _, size_bytes = _segment.data_segment_bytes(len(schema_json), PAIRS.row_bytes, 64)
    segment = Segment.create(name, size_bytes, 0o600)
    _segment.format_data(
        segment.memory,
        schema_json=schema_json,
        schema_hash=PAIRS.hash,
        row_bytes=PAIRS.row_bytes,
        slot_count=64,
        bus=bus,
        topic="pairs",
        data_dir="",
        log_id=0,
        epoch=1,
        syncs=False,
        indexes=False,
    )
    _lanes.format_lane(segment.memory, 0)
    RingPublisher(segment.memory, None, PAIRS, full="raise", full_timeout=0).publish_batch(numbers(1, row_count))
    _segment.publish_ready(segment.memory)
    return segment


def left_in_memory(bus: str) -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").glob(f"ringmain.{bus}*"))


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_publisher_goes_on_while_its_writer_is_dead_and_moves_to_the_next(bus_name, data_dir, children):
    writer = start_writer(children, bus_name, data_dir)
    with open_lane(f"{bus_name}/pairs", full_timeout=TIMEOUT_S) as lane:
        lane.wait(lane.publish_batch(numbers(1, 1000)), "drained", TIMEOUT_S)
        writer.kill()
        assert lane.publish_batch(numbers(1001, 1000)) == 2000  # there is room in the lane
        with Writer(bus_name, [PAIRS], data_dir=data_dir, lanes=True) as following:
            assert following.carried.from_lanes == {"pairs": 1000}
            assert lane.publish_batch(numbers(2001, 1000)) == 3000
            lane.wait(3000, "drained", TIMEOUT_S)
            if data_dir is not None:
                lane.wait(3000, "durable", TIMEOUT_S)
                assert lane.watermarks[1:4] == (3000, 3000, 3000)
            assert all_of(bus_name, 3000) == one_to(3000)
            assert len(list_lanes(bus_name, "pairs")) == 1


@pytest.mark.process
def test_a_call_that_waits_for_the_next_writer_is_refused_if_its_lane_is_closed_meanwhile(
    bus_name, children, monkeypatch
):
    asks = threading.Event()
    monkeypatch.setattr(lane_publisher, "ask", lambda *given: (asks.set(), lane_opening.ask(*given))[1])
    old = start_writer(children, bus_name, None)
    lane = open_lane(f"{bus_name}/pairs", reopen=True, full_timeout=TIMEOUT_S)
    lane.wait(lane.publish(1), "drained", TIMEOUT_S)
    old.run("writer.close()")
    asks.clear()
    said: list[str] = []

    def try_it() -> None:
        try:
            lane.publish(2)
        except ValueError as refused:
            said.append(str(refused))

    thread = threading.Thread(target=try_it)
    thread.start()
    assert asks.wait(TIMEOUT_S)
    lane.close()
    with Writer(bus_name, [PAIRS], lanes=True):
        thread.join(TIMEOUT_S)
        try_it()
        assert said == ["topic 'pairs': the lane is closed"] * 2
        assert attach(f"{bus_name}/pairs").watermarks().published == 0


@pytest.mark.process
def test_a_full_lane_of_a_dead_writer_raises_and_the_call_is_counted(bus_name, children):
    writer = start_writer(children, bus_name, None)
    with open_lane(f"{bus_name}/pairs", slots=64, full_timeout=0.02) as lane:
        writer.kill()
        with pytest.raises(RingFull, match="the bus's writer") as full:
            lane.publish_batch(numbers(1, 100))
        assert full.value.published_count == 64
        with Writer(bus_name, [PAIRS], lanes=True):
            lane.publish_batch(numbers(65, 36))
            assert all_of(bus_name, 100) == one_to(100)


@pytest.mark.process
def test_what_publisher_and_writer_leave_when_both_are_killed_is_drained_by_the_next(bus_name, data_dir, children):
    writer = start_writer(children, bus_name, data_dir)
    publisher = children.start()
    publisher.run("lane = open_lane(f'{bus}/pairs')", bus=bus_name)
    writer.kill()
    publisher.run("for number in range(1, 101): lane.publish(number)")
    publisher.kill()
    with Writer(bus_name, [PAIRS], data_dir=data_dir, lanes=["pairs"]) as following:
        assert following.carried.from_lanes == {"pairs": 100}
        assert all_of(bus_name, 100) == one_to(100)
        wait_until(lambda: list_lanes(bus_name, "pairs") == [], TIMEOUT_S)


@pytest.mark.process
def test_a_next_writer_without_lanes_drains_what_is_left_before_it_publishes(bus_name, data_dir, children):
    writer = start_writer(children, bus_name, data_dir)
    lane = open_lane(f"{bus_name}/pairs", full_timeout=0)
    writer.kill()
    lane.publish_batch(numbers(1, 100))
    with Writer(bus_name, [PAIRS], data_dir=data_dir) as following:
        assert type(following["pairs"]) is Publisher
        assert following["pairs"].publish(101) == 101
        assert all_of(bus_name, 101) == one_to(101)
        assert list_lanes(bus_name, "pairs") == []
        with pytest.raises(BusError):
            lane.publish(102)


@pytest.mark.process
def test_more_can_be_left_in_lanes_than_the_next_ring_has_slots(bus_name, data_dir, children):
    writer = start_writer(children, bus_name, data_dir, slots=64)
    lanes = [open_lane(f"{bus_name}/pairs", slots=4096) for _ in range(3)]
    with RealTime(f"{bus_name}/pairs", reliable=True) as reader:
        assert reader.poll() is None
        writer.kill()
        for number, lane in enumerate(lanes):
            lane.publish_batch(numbers(1000 * number + 1, 1000))
        with Writer(bus_name, [PAIRS], data_dir=data_dir, slots=64, lanes=True) as following:
            assert following.carried.from_lanes == {"pairs": 3000}
            found: list[int] = []
            while len(found) < 3000:
                batch = reader.take(TIMEOUT_S)
                assert batch is not None
                found += batch.copy()["left"].tolist()
            assert sorted(found) == one_to(3000)
            for first in (1, 1001, 2001):
                assert [number for number in found if first <= number < first + 1000] == list(
                    range(first, first + 1000)
                )


@pytest.mark.process
def test_lanes_of_another_schema_are_removed(bus_name, children):
    writer = start_writer(children, bus_name, None)
    lane = open_lane(f"{bus_name}/pairs", full_timeout=0)
    writer.kill()
    with Writer(bus_name, [Schema("pairs", {"left": "u8"})], lanes=True):
        assert list_lanes(bus_name, "pairs") == []
        assert attach(f"{bus_name}/pairs").watermarks().published == 0
    lane.close()


@as_root
@pytest.mark.process
@pytest.mark.parametrize("mode", [0o666, 0o600], ids=["0666", "0600"])
def test_what_another_user_calls_a_lane_of_the_topic_is_none_and_in_nobodys_way(bus_name, children, mode):
    writer = children.start()
    writer.run(f"with Writer(bus, [PAIRS]) as writer: writer['pairs']\nbus = {bus_name!r}", bus=f"{bus_name}-first")
    forged = forge_lane(lane_name(bus_name, "pairs", 1), bus_name, 3)
    (SHM / forged.name[1:]).chmod(mode)
    (SHM / lane_name(bus_name, "pairs", 2)[1:]).symlink_to("/etc/passwd")
    (SHM / f"ringmain.{bus_name}.other").touch(mode)
    (SHM / f"ringmain.{bus_name}.link").symlink_to("/etc/passwd")
    os.mkfifo(SHM / f"ringmain.{bus_name}.pipe", mode)
    before = left_in_memory(bus_name)
    for name in before:
        os.chown(SHM / name, NOBODY, NOBODY, follow_symlinks=False)
    writer.run("os.setgroups([]); os.setgid(1); os.setuid(1)")
    writer.run("writer = Writer(bus, [PAIRS], lanes=True, full_timeout=5)")
    assert writer.ask("dict(writer.carried.from_lanes)") == {}
    writer.run("writer['pairs'].wait(writer['pairs'].publish(1), 'drained', 30)")
    assert writer.ask("attach(f'{bus}/pairs').watermarks().published") == 1
    writer.run("writer.close()")
    assert left_in_memory(bus_name) == before
    assert _segment.read_state(forged.memory)["status"] == 0


# --- taken over -------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_call_that_is_under_way_while_its_writer_is_taken_over_publishes_with_the_next(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    opened: list[Writer] = []

    class Three:
        def __index__(self) -> int:
            """Called when the record is packed, behind the last look at whether the lane may be published in."""
            if not opened:
                opened.append(Writer(bus_name, [PAIRS], data_dir=data_dir, lanes=True, take_over=True))
            return 3

    with open_lane(f"{bus_name}/pairs", full_timeout=TIMEOUT_S) as lane:
        assert lane.publish_batch(numbers(1, 2)) == 2
        assert lane.publish(Three()) == 3  # type: ignore[arg-type]
        assert lane.publish(4) == 4
        assert all_of(bus_name, 4) == one_to(4)
    opened[0].close()
    old.run("writer.close()")


@pytest.mark.process
def test_a_record_that_was_refused_since_no_next_writer_came_is_published_once_when_it_is_tried_again(
    bus_name, children
):
    old = start_writer(children, bus_name, None)
    lane = open_lane(f"{bus_name}/pairs", full_timeout=0.02)
    lane.wait(lane.publish_batch(numbers(1, 2)), "drained", TIMEOUT_S)
    segment = Segment.open(lane_name(bus_name, "pairs", list_lanes(bus_name, "pairs")[0]), writable=True)

    class Three:
        def __index__(self) -> int:
            """While the record is packed the lane is fenced, by somebody who dies then."""
            old.kill()
            _segment.fence(segment.memory, _lanes.control_page(segment.memory))
            return 3

    with pytest.raises(Fenced, match="taken over behind 2, by this lane's count, and no next one came"):
        lane.publish(Three())  # type: ignore[arg-type]
    with pytest.raises(Fenced):
        lane.publish(3)
    with Writer(bus_name, [PAIRS], lanes=True):
        assert [lane.publish(3), lane.publish(4)] == [3, 4]
        assert all_of(bus_name, 4) == one_to(4)
        lane.close()


@pytest.mark.process
def test_a_thread_that_waits_and_one_that_publishes_move_to_the_next_lane_together(bus_name, data_dir, children):
    watermark = "drained" if data_dir is None else "durable"
    writer: Writer = Writer(bus_name, [PAIRS], data_dir=data_dir, lanes=True)
    with open_lane(f"{bus_name}/pairs", slots=1024) as lane:
        last = lane.publish(1)
        stop = threading.Event()
        failures: list[BaseException] = []

        def wait_for_the_newest() -> None:
            try:
                while not stop.is_set():
                    lane.wait(last, watermark, TIMEOUT_S)
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=wait_for_the_newest) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            for _ in range(300):
                last = lane.publish(last + 1)
            former, writer = writer, Writer(bus_name, [PAIRS], data_dir=data_dir, lanes=True, take_over=True)
            former.close()
        last = lane.publish_batch(numbers(last + 1, 1000))
        lane.wait(last, watermark, TIMEOUT_S)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert all_of(bus_name, last) == one_to(last)
    writer.close()


@pytest.mark.process
def test_a_claim_is_filled_in_one_lane_and_committed_in_the_next(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    with open_lane(f"{bus_name}/pairs", full_timeout=TIMEOUT_S) as lane:
        lane.publish_batch(numbers(1, 5))
        claim = lane.claim(10)
        claim.rows["left"] = np.arange(6, 16)
        old.pause()
        with Writer(bus_name, [PAIRS], data_dir=data_dir, lanes=True, take_over=True):
            assert claim.commit(7) == 12
            assert lane.publish(13) == 13
            assert all_of(bus_name, 13) == one_to(13)
            old.resume()
            assert lane.publish(14) == 14
            assert all_of(bus_name, 14) == one_to(14)


@pytest.mark.process
def test_a_lane_that_follows_is_as_full_as_any(bus_name, children):
    old = start_writer(children, bus_name, None, slots=64)
    with RealTime(f"{bus_name}/pairs", reliable=True) as reader:
        assert reader.poll() is None
        lane = open_lane(f"{bus_name}/pairs", slots=64, full_timeout=2)
        lane.wait(lane.publish_batch(numbers(1, 64)), "drained", TIMEOUT_S)
        old.pause()
        claim = lane.claim(32)
        claim.rows["left"] = np.arange(65, 97)
        with Writer(bus_name, [PAIRS], slots=64, lanes=True, take_over=True, full_timeout=0.05) as following:
            assert claim.commit() == 96  # nothing of it was within the end of the old lane
            with pytest.raises(RingFull) as full:
                lane.publish_batch(numbers(97, 100))
            assert full.value.published_count == 32
            lane.close()
            found: list[int] = []
            while len(found) < 128:
                batch = reader.take(TIMEOUT_S)
                assert batch is not None
                found += batch.copy()["left"].tolist()
            assert found == one_to(128)
            assert following.epoch == 2
        old.kill()


@pytest.mark.process
def test_who_waits_for_durable_waits_on_through_a_take_over(bus_name, tmp_path, children):
    old = start_writer(children, bus_name, tmp_path, sync_interval=1e9)
    waiting = children.start()
    waiting.run("lane = open_lane(f'{bus}/pairs'); lane.publish(0); lane.wait(1, 'logged', 30)", bus=bus_name)
    waiting.run("for number in range(1, 101): last = lane.publish(number)\nlane.wait(last, 'drained', 30)")
    old.pause()
    waiting.begin("lane.wait(last, 'durable', 30)")
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, lanes=True, take_over=True):
        waiting.settle()
        assert attach(f"{bus_name}/pairs").watermarks().durable >= 101


# --- closed -----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_publisher_may_wait_for_the_next_writer(bus_name, data_dir, children):
    writer = start_writer(children, bus_name, data_dir)
    publisher = children.start()
    publisher.run("lane = open_lane(f'{bus}/pairs', reopen=True)", bus=bus_name)
    publisher.run("assert lane.publish(1) == 1")
    writer.run("writer.close()")
    publisher.begin("assert [lane.publish(number) for number in (2, 3)] == [2, 3]")
    wait_until(publisher.is_blocked, TIMEOUT_S)
    with Writer(bus_name, [PAIRS], data_dir=data_dir, lanes=True):
        publisher.settle()
        first = 1 if data_dir is not None else 2  # without a log the next stream begins anew
        if data_dir is not None:
            with Historical(f"{bus_name}/pairs", data_dir=data_dir) as reader:
                assert reader.schema.hash == PAIRS.hash
        publisher.run("lane.wait(3, 'drained', 30)")
        assert all_of(bus_name, 4 - first)[-2:] == [2, 3]


def test_a_reader_that_leaves_no_room_does_not_keep_a_writer_from_closing_and_nothing_is_lost(bus_name):
    writer = Writer(bus_name, [PAIRS], slots=64, lanes=True, full_timeout=0.05)
    with RealTime(f"{bus_name}/pairs", reliable=True) as reader:
        assert reader.poll() is None
        lane = open_lane(f"{bus_name}/pairs")
        lane.publish_batch(numbers(1, 200))
        lane.wait(64, "drained", TIMEOUT_S)
        with pytest.raises(BusError, match="the readers of pairs left no room for all that is in its lanes"):
            writer.close()
        with Writer(bus_name, [PAIRS], slots=64, lanes=True) as following:
            assert following.carried.from_lanes == {"pairs": 136}
            found: list[int] = []
            while len(found) < 200:
                batch = reader.take(TIMEOUT_S)
                assert batch is not None
                found += batch.copy()["left"].tolist()
            assert found == one_to(200)
            lane.close()


def test_a_writer_that_closes_gives_up_its_lanes_for_readers_and_not_since_there_is_much_in_them(bus_name, data_dir):
    writer = Writer(bus_name, [PAIRS], data_dir=data_dir, slots=64, lanes=True, full="raise", full_timeout=0.0)
    with open_lane(f"{bus_name}/pairs") as lane:
        lane.publish_batch(numbers(1, 16_000))
        writer.close()
    assert left_in_memory(bus_name) == []
    if data_dir is not None:
        assert read_rows(data_dir / "log", PAIRS)["left"].tolist() == one_to(16_000)


@pytest.mark.process
def test_much_that_is_left_in_lanes_needs_no_patience_where_no_reader_is_in_the_way(bus_name, data_dir, children):
    writer = start_writer(children, bus_name, data_dir)
    lane = open_lane(f"{bus_name}/pairs", full_timeout=0)
    writer.kill()
    lane.publish_batch(numbers(1, 10_000))
    with Writer(bus_name, [PAIRS], data_dir=data_dir, slots=64, full_timeout=0.0) as following:
        assert following["pairs"].watermarks.published == 10_000
    if data_dir is not None:
        assert read_rows(data_dir / "log", PAIRS)["left"].tolist() == one_to(10_000)


@pytest.mark.process
def test_a_writer_that_closes_does_not_give_up_its_lanes_for_a_reader_that_has_just_died(bus_name, children):
    writer = Writer(bus_name, [PAIRS], slots=64, lanes=True, full="raise", full_timeout=0.0)
    topic = attach(f"{bus_name}/pairs")
    reader = children.start()
    reader.run("reader = RealTime(f'{bus}/pairs', reliable=True)\nassert reader.poll() is None", bus=bus_name)
    with open_lane(f"{bus_name}/pairs") as lane:
        lane.publish_batch(numbers(1, 1000))
        lane.wait(64, "drained", TIMEOUT_S)
        reader.kill()
        writer.close()
    assert topic.watermarks().published == 1000
    assert left_in_memory(bus_name) == []


# --- failed -----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_when_the_log_has_failed_the_publishers_are_told_and_the_next_writer_has_their_rows(
    bus_name, tmp_path, children
):
    writer = start_writer(children, bus_name, tmp_path)
    with open_lane(f"{bus_name}/pairs", full_timeout=TIMEOUT_S) as lane:
        lane.wait(lane.publish_batch(numbers(1, 10)), "durable", TIMEOUT_S)
        writer.run("stop_the_log(data_dir)", data_dir=tmp_path)
        lane.publish_batch(numbers(11, 10))
        with pytest.raises(WriterFailed, match="the log of the bus's writer has stopped: File too large"):
            lane.wait(20, "durable", TIMEOUT_S)
        with pytest.raises(WriterFailed):
            lane.publish(21)
        with pytest.raises(WriterFailed):
            open_lane(f"{bus_name}/pairs")
        writer.kill()
        with Writer(bus_name, [PAIRS], data_dir=tmp_path, lanes=True):
            assert lane.publish(21) == 21
            lane.wait(21, "durable", TIMEOUT_S)
            assert all_of(bus_name, 21) == one_to(21)


# --- what the writer is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [1 << 20, (1 << 64) - 1, 0])
def test_a_lane_that_contradicts_itself_is_ended_and_the_others_go_on(bus_name, published):
    with (
        Writer(bus_name, [PAIRS], lanes=True),
        open_lane(f"{bus_name}/pairs", slots=64) as sound,
        RealTime(f"{bus_name}/pairs") as reader,
    ):
        others = set(list_lanes(bus_name, "pairs"))
        broken = open_lane(f"{bus_name}/pairs", slots=64)
        (number,) = set(list_lanes(bus_name, "pairs")) - others
        broken.wait(broken.publish(1), "drained", TIMEOUT_S)
        segment = Segment.open(lane_name(bus_name, "pairs", number), writable=True)
        segment.memory[1280 + 128 : 1280 + 136] = published.to_bytes(8, "little")
        assert isinstance(sound, LanePublisher)
        sound.wait(sound.publish_batch(numbers(2, 10)), "drained", TIMEOUT_S)
        if published:
            wait_until(lambda: number not in list_lanes(bus_name, "pairs"), TIMEOUT_S)
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        broken.close()


@pytest.mark.parametrize("damage", ["cut off", "magic", "slots", "schema", "pid"])
def test_a_lane_whose_segment_is_not_as_it_should_be_is_refused(bus_name, damage, monkeypatch):
    make = lane_opening._make_segment

    def make_damaged(name: str, *rest):
        segment = make(name, *rest)
        if damage == "cut off":
            with (Path("/dev/shm") / name[1:]).open("r+b") as file:
                file.truncate(8192)
        at, value = {"magic": (0, 0), "slots": (32, 3), "schema": (16, 5), "pid": (68, 1), "cut off": (80, 0)}[damage]
        segment.memory[at : at + 4] = value.to_bytes(4, "little")
        return segment

    monkeypatch.setattr(lane_opening, "_make_segment", make_damaged)
    with Writer(bus_name, [PAIRS], lanes=True):
        with pytest.raises(BusError, match="no lane: the lane"):
            open_lane(f"{bus_name}/pairs", slots=1024)
        monkeypatch.undo()
        assert list_lanes(bus_name, "pairs") == []
        with open_lane(f"{bus_name}/pairs") as lane:
            lane.wait(lane.publish(1), "drained", TIMEOUT_S)
    assert left_in_memory(bus_name) == []
