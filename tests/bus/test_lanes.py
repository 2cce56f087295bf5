"""Several processes publish to one topic, each through a lane: what comes into the topic, in which order, and who is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import (
    AttachError,
    LanePublisher,
    NotFound,
    Publisher,
    RingFull,
    Writer,
    _lanes,
    _segment,
    attach,
    lane_opening,
    open_lane,
)
from ringmain.bus.segments import Segment, lane_name, list_lanes, list_names, open_control
from ringmain.storage import LogReader, Schema, StoreSettings
from ringmain.subscribers import Historical, RealTime
from support.children import TIMEOUT_S, Child, Children
from support.logs import wait_until

MARKS = Schema("marks", {"lane": "u4", "number": "u8"}, key=["lane"])


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


@pytest.fixture(params=["rings only", "with log"])
def data_dir(request, tmp_path) -> Path | None:
    return tmp_path if request.param == "with log" else None


def marks(lane: int, first: int, count: int) -> np.ndarray:
    """Rows `first` to `first + count - 1` of a lane."""
    rows = np.zeros(count, MARKS.payload_dtype)
    rows["lane"], rows["number"] = lane, np.arange(first, first + count)
    return rows


def read_until(reader: RealTime | Historical, last: int) -> np.ndarray:
    """All rows up to the topic's sequence `last`."""
    parts = []
    while reader.position < last:
        batch = reader.take(TIMEOUT_S)
        assert batch is not None, f"{reader.position} of {last} rows came"
        parts.append(batch.copy())
    rows = np.concatenate(parts)
    assert (np.diff(rows["sequence"]) == 1).all()
    return rows


def numbers_of(rows: np.ndarray, lane: int) -> list[int]:
    return rows["number"][rows["lane"] == lane].tolist()


def one_to(last: int) -> list[int]:
    return list(range(1, last + 1))


def start_publisher(children: Children, bus: str, **settings) -> Child:
    child = children.start()
    child.run("lane = open_lane(f'{bus}/marks', **settings)", bus=bus, settings=settings)
    return child


def lane_segments(bus: str) -> list[Segment]:
    return [Segment.open(lane_name(bus, "marks", number), writable=True) for number in list_lanes(bus, "marks")]


def wait_for_no_lane(bus: str) -> None:
    wait_until(lambda: list_lanes(bus, "marks") == [], TIMEOUT_S)


# --- one lane ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_what_another_process_publishes_through_a_lane_is_in_the_topic_in_its_order(bus_name, data_dir, children):
    with Writer(bus_name, [MARKS], data_dir=data_dir, lanes=["marks"]), RealTime(f"{bus_name}/marks") as reader:
        child = start_publisher(children, bus_name)
        child.run(
            "assert [lane.publish(1, 1), lane.publish(number=2, lane=1)] == [1, 2]\n"
            "rows = np.zeros(10_000, lane.schema.payload_dtype)\n"
            "rows['lane'], rows['number'] = 1, np.arange(3, 10_003)\n"
            "assert lane.publish_batch(rows) == 10_002\n"
            "with lane.claim(7) as claimed:\n"
            "    claimed['lane'], claimed['number'] = 1, np.arange(10_003, 10_010)\n"
            "lane.claim(5).abort()\n"
            "assert lane.publish(1, 10_010) == 10_010\n"
        )
        assert numbers_of(read_until(reader, 10_010), 1) == one_to(10_010)
    if data_dir is not None:
        rows = LogReader(data_dir / "log", "marks").read(1)
        assert rows is not None
        assert numbers_of(rows, 1) == one_to(10_010)[: len(rows)]


@pytest.mark.parametrize("slots", [1, 2, 64])
def test_a_lane_much_smaller_than_a_batch_and_a_ring_much_smaller_than_the_lane_lose_nothing(bus_name, slots):
    with (
        Writer(bus_name, [MARKS], slots=64 // slots, lanes=True),
        RealTime(f"{bus_name}/marks", reliable=True) as reader,
        open_lane(f"{bus_name}/marks", slots=slots, full="raise") as lane,
    ):
        assert reader.poll() is None
        found: list[int] = []
        rows = marks(1, 1, 500)
        deadline = time.monotonic() + TIMEOUT_S
        while len(found) < 500:
            assert time.monotonic() < deadline, f"{len(found)} rows came"
            try:
                lane.publish_batch(rows[:7])
                rows = rows[7:]
            except RingFull as full:
                rows = rows[full.published_count :]
            while (batch := reader.poll()) is not None:
                found += batch.copy()["number"].tolist()
        assert found == one_to(500)


def test_a_lane_counts_its_own_rows_and_the_topic_all(bus_name):
    with Writer(bus_name, [MARKS], lanes=True) as writer, RealTime(f"{bus_name}/marks") as reader:
        own = writer["marks"]
        assert isinstance(own, LanePublisher)
        assert writer["marks"] is own
        with open_lane(f"{bus_name}/marks") as first, open_lane(f"{bus_name}/marks") as second:
            for number, lane in enumerate([first, second, own]):
                assert lane.publish(number, 1) == 1
                lane.wait(1, "drained", TIMEOUT_S)
                assert lane.publish_batch(marks(number, 2, 9)) == 10
                lane.wait(10, "drained", TIMEOUT_S)
        rows = read_until(reader, 30)
        assert rows["lane"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
        assert rows["number"].tolist() == one_to(10) * 3
        assert attach(f"{bus_name}/marks").watermarks().published == 30


def test_topics_without_lanes_are_published_as_ever(bus_name):
    other = Schema("other", {"value": "i8"})
    with Writer(bus_name, [MARKS, other], lanes=["marks"]) as writer:
        assert type(writer["other"]) is Publisher
        assert writer["other"].publish(1) == 1
        with pytest.raises(AttachError, match=rf"{bus_name}/other: its writer takes no lanes; open it with lanes="):
            open_lane(f"{bus_name}/other")
        assert list_names()[bus_name] == ["marks", "other"]
        writer["marks"].publish(0, 1)
        assert list_names()[bus_name] == ["marks", "other"]  # the lane is none


def test_rows_keep_the_time_at_which_they_were_published_and_time_never_steps_back(bus_name):
    with (
        Writer(bus_name, [MARKS], lanes=True, slots=64),
        open_lane(f"{bus_name}/marks") as first,
        open_lane(f"{bus_name}/marks") as second,
        RealTime(f"{bus_name}/marks", reliable=True) as reader,
    ):
        assert reader.poll() is None
        before = time.time_ns()
        first.publish_batch(marks(1, 1, 64))
        first.wait(64, "drained", TIMEOUT_S)
        first.publish_batch(marks(1, 65, 100))  # waits in the lane: the ring is full
        between = time.time_ns()
        second.publish_batch(marks(2, 1, 100))
        after = time.time_ns()
        rows = read_until(reader, 264)
        stamps = rows["timestamp_ns"]
        assert (np.diff(stamps) >= 0).all()
        assert before <= stamps[0]
        assert stamps[-1] <= after
        assert stamps[rows["lane"] == 2].min() >= between


# --- watermarks -------------------------------------------------------------------------------------------------------


def test_a_lane_waits_for_what_is_known_of_its_own_rows(bus_name, tmp_path):
    settings = {"data_dir": tmp_path, "store": StoreSettings(), "lanes": True}
    with (
        Writer(bus_name, [MARKS], **settings) as writer,
        open_lane(f"{bus_name}/marks") as other,
        open_lane(f"{bus_name}/marks") as lane,
    ):
        other.publish_batch(marks(0, 1, 500))  # so that lane and topic count differently
        other.wait(500, "drained", TIMEOUT_S)
        lane.publish_batch(marks(7, 1, 1000))
        lane.wait(1000, "published", TIMEOUT_S)
        for watermark in ("drained", "logged", "indexed", "durable"):
            lane.wait(1000, watermark, TIMEOUT_S)
        found = writer.get("marks", 7)
        assert found is not None
        assert found["number"] == 1000
        assert lane.watermarks[2:] == (1000, 1000, 1000, 0)
        rows = LogReader(tmp_path / "log", "marks").read(1501 - 1)
        assert rows is not None
        assert rows["number"].tolist() == [1000]
        with pytest.raises(ValueError, match="sequence 1001 is not published yet"):
            lane.wait(1001, "drained")
        with pytest.raises(ValueError, match="watermark: "):
            lane.wait(1, "seen")  # type: ignore[arg-type]


def test_nothing_is_known_of_a_lanes_row_before_it_is_of_the_topics(bus_name, tmp_path):
    with (
        Writer(bus_name, [MARKS], data_dir=tmp_path, lanes=True, sync_interval=1e9),
        open_lane(f"{bus_name}/marks") as lane,
    ):
        topic = attach(f"{bus_name}/marks")
        for last in range(100, 1100, 100):
            lane.publish_batch(marks(1, last - 99, 100))
            lane.wait(last, "logged", TIMEOUT_S)
            assert topic.watermarks().logged == last
        if topic.watermarks().durable == 0:  # the machine may have run for long enough to make the first sync due
            assert lane.watermarks.durable == 0


def test_a_lane_remembers_where_its_rows_are_for_as_long_as_they_are_not_durable(bus_name, tmp_path):
    """More turns than the drain remembers one by one; and it is told at the end, when the writer has closed."""
    writer = Writer(bus_name, [MARKS], data_dir=tmp_path, lanes=True, sync_interval=1e9)
    with open_lane(f"{bus_name}/marks") as lane:
        for number in range(1, 9001):
            lane.wait(lane.publish(1, number), "drained", TIMEOUT_S)
        lane.wait(9000, "logged", TIMEOUT_S)
        assert lane.watermarks.durable <= attach(f"{bus_name}/marks").watermarks().durable
        writer.close()
        lane.wait(9000, "durable", TIMEOUT_S)
        assert lane.watermarks.durable == 9000


@pytest.mark.parametrize("watermark", ["logged", "durable", "indexed"])
def test_a_watermark_that_the_topic_does_not_have_cannot_be_waited_for(bus_name, watermark):
    with Writer(bus_name, [MARKS], lanes=True), open_lane(f"{bus_name}/marks") as lane:
        sequence = lane.publish(1, 1)
        with pytest.raises(ValueError, match=f"nothing is {watermark} without a data_dir"):
            lane.wait(sequence, watermark)


def test_a_row_that_is_not_drained_in_time_is_told_so(bus_name):
    with (
        Writer(bus_name, [MARKS], slots=64, lanes=True),
        RealTime(f"{bus_name}/marks", reliable=True) as reader,
        open_lane(f"{bus_name}/marks") as lane,
    ):
        assert reader.poll() is None
        last = lane.publish_batch(marks(1, 1, 100))
        lane.wait(64, "drained", TIMEOUT_S)
        lane.wait(100, "published", 0)
        with pytest.raises(TimeoutError, match="sequence 65 was not drained within"):
            lane.wait(65, "drained", 0.01)
        read_until(reader, last)
        lane.wait(last, "drained", TIMEOUT_S)


# --- fairness, and what is full ---------------------------------------------------------------------------------------


def test_lanes_take_turns_so_that_a_busy_one_does_not_keep_a_quiet_one_waiting(bus_name):
    with (
        Writer(bus_name, [MARKS], slots=1024, lanes=True),
        RealTime(f"{bus_name}/marks", reliable=True) as reader,
        ExitStack() as lanes,
    ):
        assert reader.poll() is None
        busy = [lanes.enter_context(open_lane(f"{bus_name}/marks", slots=16_384)) for _ in range(3)]
        quiet = lanes.enter_context(open_lane(f"{bus_name}/marks", slots=64))
        busy[0].publish_batch(marks(0, 1, 1024))
        busy[0].wait(1024, "drained", TIMEOUT_S)  # nobody's turn any more, until the reader goes on
        for number, lane in enumerate(busy):
            lane.publish_batch(marks(number, 1, 10_000))
        quiet.publish_batch(marks(9, 1, 50))
        rows = read_until(reader, 1024 + 30_050)
        turn = 1024 // 8
        assert np.flatnonzero(rows["lane"] == 9).max() < 1024 + 4 * turn
        for first in range(1024, 30_000, 1000):  # all are served alike as long as all have something
            counts = [int((rows["lane"][1024 : first + 1000] == number).sum()) for number in range(3)]
            assert max(counts) - min(counts) <= 2 * turn


def test_a_full_lane_raises_or_waits_and_says_that_the_writer_has_not_drained_it(bus_name):
    with (
        Writer(bus_name, [MARKS], slots=64, lanes=True),
        RealTime(f"{bus_name}/marks", reliable=True) as reader,
        open_lane(f"{bus_name}/marks", slots=32, full="raise") as refusing,
        open_lane(f"{bus_name}/marks", slots=32, full_timeout=0.02) as waiting,
    ):
        assert reader.poll() is None
        for first in (1, 33):  # they fill the ring
            waiting.publish_batch(marks(2, first, 32))
            waiting.wait(first + 31, "drained", TIMEOUT_S)
        for number, lane in ((1, refusing), (2, waiting)):
            lane.publish_batch(marks(number, 1, 30))
            with pytest.raises(RingFull, match="held back by the bus's writer, which has not drained it") as full:
                lane.publish_batch(marks(number, 1, 8))
            assert full.value.published_count == 0
            for _ in range(2):
                lane.publish(number, 0)
            with pytest.raises(RingFull):
                lane.publish(number, 0)
        assert len(read_until(reader, 128)) == 128
        assert refusing.publish(1, 0) == 33


def test_a_writer_that_drops_slow_readers_drops_them_for_lanes_as_well(bus_name):
    with (
        Writer(bus_name, [MARKS], slots=64, full="drop", lanes=True),
        RealTime(f"{bus_name}/marks", reliable=True) as reader,
        open_lane(f"{bus_name}/marks", slots=64) as lane,
    ):
        assert reader.poll() is None
        lane.publish_batch(marks(1, 1, 1000))
        lane.wait(1000, "drained", TIMEOUT_S)
        entry = _segment.list_readers(open_control(bus_name, "marks").memory)[0]
        assert entry["state"] == "dropped"


# --- who may --------------------------------------------------------------------------------------------------------------


def test_a_lane_needs_a_writer_that_lives(bus_name, children):
    with pytest.raises(NotFound, match="no topic"):
        open_lane(f"{bus_name}/marks")
    writer = children.start()
    writer.run(
        "writer = Writer(bus, [Schema('marks', {'lane': 'u4', 'number': 'u8'}, key=['lane'])], lanes=True)",
        bus=bus_name,
    )
    writer.kill()
    with pytest.raises(NotFound, match=rf"its writer, process {writer.pid}, is dead; start it again"):
        open_lane(f"{bus_name}/marks")
    with pytest.raises(NotFound):
        open_lane(f"{bus_name}/marks", open_timeout=0.05)
    assert list_lanes(bus_name, "marks") == []


@pytest.mark.process
def test_a_writer_that_is_stopped_is_waited_for_and_named(bus_name, children, monkeypatch):
    monkeypatch.setattr(lane_opening, "ANSWER_S", 0.1)
    writer = children.start()
    writer.run(
        "writer = Writer(bus, [Schema('marks', {'lane': 'u4', 'number': 'u8'}, key=['lane'])], lanes=True)",
        bus=bus_name,
    )
    writer.pause()
    with pytest.raises(AttachError, match=rf"process {writer.pid}, did not answer in time; it may be stopped"):
        open_lane(f"{bus_name}/marks")
    assert list_lanes(bus_name, "marks") == []
    writer.resume()
    monkeypatch.setattr(lane_opening, "ANSWER_S", TIMEOUT_S)
    with open_lane(f"{bus_name}/marks") as lane:
        lane.wait(lane.publish(1, 1), "drained", TIMEOUT_S)


def test_another_schema_is_refused_with_the_difference(bus_name):
    with Writer(bus_name, [MARKS], lanes=True):
        with pytest.raises(ValueError, match=r"another schema than the writer's: .*number"):
            open_lane(f"{bus_name}/marks", schema=Schema("marks", {"lane": "u4", "number": "i8"}, key=["lane"]))
        with open_lane(f"{bus_name}/marks", schema=MARKS) as lane:
            assert lane.schema.hash == MARKS.hash


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slots": 3}, "slots: a power of two is expected, got 3"),
        ({"slots": 0}, "slots: a power of two is expected, got 0"),
        ({"full": "drop"}, 'full: "block" or "raise" is expected, got \'drop\''),
    ],
)
def test_what_open_lane_is_given_is_checked(bus_name, settings, words):
    with pytest.raises(ValueError, match=words):
        open_lane(f"{bus_name}/marks", **settings)
    with pytest.raises(ValueError, match="BUS/TOPIC is expected"):
        open_lane(bus_name)


@pytest.mark.parametrize(
    ("lanes", "words"), [(["trades"], "no topic 'trades'; there is marks"), ("marks", "a list of topics")]
)
def test_lanes_are_given_as_topics_of_the_bus(bus_name, lanes, words):
    with pytest.raises(ValueError, match=words):
        Writer(bus_name, [MARKS], lanes=lanes)


def test_there_are_64_lanes_and_one_that_is_left_can_be_had_again(bus_name, monkeypatch):
    monkeypatch.setattr(lane_opening, "FULL_TABLE_S", 0.05)
    with Writer(bus_name, [MARKS], lanes=True), RealTime(f"{bus_name}/marks") as reader:
        lanes = [open_lane(f"{bus_name}/marks", slots=64) for _ in range(64)]
        with pytest.raises(AttachError, match=rf"all 64 lanes are taken, by the processes {os.getpid()}"):
            open_lane(f"{bus_name}/marks", slots=64)
        for number, lane in enumerate(lanes):
            lane.publish_batch(marks(number, 1, 100))
        rows = read_until(reader, 6400)
        for number in range(64):
            assert numbers_of(rows, number) == one_to(100)
        lanes[17].publish_batch(marks(17, 101, 50))
        lanes[17].close()
        monkeypatch.setattr(lane_opening, "FULL_TABLE_S", TIMEOUT_S)
        lanes[17] = open_lane(f"{bus_name}/marks", slots=64)
        lanes[17].publish(99, 1)
        rows = read_until(reader, 6451)
        assert (numbers_of(rows, 17), numbers_of(rows, 99)) == (list(range(101, 151)), [1])


@pytest.mark.process
def test_the_lanes_of_killed_processes_are_drained_and_free_again(bus_name, children):
    with Writer(bus_name, [MARKS], lanes=True, slots=64), RealTime(f"{bus_name}/marks", reliable=True) as reader:
        assert reader.poll() is None
        killed = [start_publisher(children, bus_name) for _ in range(3)]
        for number, child in enumerate(killed):
            child.run(
                "rows = np.zeros(200, lane.schema.payload_dtype)\n"
                "rows['lane'], rows['number'] = number, np.arange(1, 201)\n"
                "lane.publish_batch(rows); claim = lane.claim(10)",  # and this is published by nobody
                number=number,
            )
            child.kill()
        rows = read_until(reader, 600)
        for number in range(3):
            assert numbers_of(rows, number) == one_to(200)
        wait_for_no_lane(bus_name)
        assert _lanes.list_entries(open_control(bus_name, "marks").memory) == []


@pytest.mark.process
def test_a_forked_child_cannot_publish_through_its_parents_lane(bus_name):
    with Writer(bus_name, [MARKS], lanes=True), open_lane(f"{bus_name}/marks") as lane:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                lane.publish(1, 1)
            except ValueError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lane.publish(1, 1) == 1
        lane.wait(1, "drained", TIMEOUT_S)


# --- leaving and closing ----------------------------------------------------------------------------------------------


def test_a_closed_lane_is_drained_and_refuses_to_publish(bus_name):
    with Writer(bus_name, [MARKS], lanes=True), RealTime(f"{bus_name}/marks") as reader:
        lane = open_lane(f"{bus_name}/marks")
        lane.publish_batch(marks(1, 1, 1000))
        lane.close()
        lane.close()
        with pytest.raises(ValueError, match="the lane is closed"):
            lane.publish(1, 1001)
        assert numbers_of(read_until(reader, 1000), 1) == one_to(1000)
        wait_for_no_lane(bus_name)


def test_a_forgotten_lane_is_left(bus_name):
    with Writer(bus_name, [MARKS], lanes=True):
        lane = open_lane(f"{bus_name}/marks")
        lane.publish(1, 1)
        del lane
        wait_for_no_lane(bus_name)
        assert attach(f"{bus_name}/marks").watermarks().published == 1


def test_a_writer_that_closes_drains_its_lanes_and_tells_their_publishers(bus_name, data_dir):
    with (
        Writer(bus_name, [MARKS], data_dir=data_dir, lanes=True) as writer,
        open_lane(f"{bus_name}/marks") as lane,
        RealTime(f"{bus_name}/marks") as reader,
    ):
        lane.publish_batch(marks(1, 1, 5000))
        writer.close()
        assert numbers_of(read_until(reader, 5000), 1) == one_to(5000)
        if data_dir is not None:
            lane.wait(5000, "durable", TIMEOUT_S)
        with pytest.raises(NotFound, match="the bus's writer has closed, with all that was published up to "):
            lane.publish(1, 5001)
        with pytest.raises(NotFound):
            lane.claim(2)
        assert list(Path("/dev/shm").glob(f"ringmain.{bus_name}*")) == []
