"""Publishing to whichever node leads: it is found again, and nothing that was published is missed."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import AttachError, LeaderLane, NotFound, NotLeader, Writer, _segment, attach
from ringmain.bus.leader_lane import NobodyLeads
from ringmain.bus.segments import Segment, lane_name, list_lanes
from ringmain.storage import Schema
from ringmain.storage.log_tail import cut_tail
from ringmain.subscribers import RealTime
from support.children import TIMEOUT_S, Child, Children
from support.logs import PAIRS, wait_until
from support.replicas import open_replicated

VALUES = Schema("values", {"value": "u8"})


@pytest.fixture
def nodes(bus_name, tmp_path):
    """Two nodes of a cluster on this machine, neither of which leads."""
    with (
        open_replicated(f"{bus_name}a", tmp_path / "a", schemas=[VALUES]) as a,
        open_replicated(f"{bus_name}b", tmp_path / "b", schemas=[VALUES]) as b,
    ):
        yield a, b


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def lead_elsewhere(children: Children, bus: str, data_dir: Path) -> Child:
    """Another process whose node leads."""
    child = children.start()
    child.run(
        "from support.replicas import open_replicated\n"
        "node = open_replicated(bus, data_dir, schemas=[Schema('values', {'value': 'u8'})]); node.replicating.lead()",
        bus=bus,
        data_dir=data_dir,
    )
    return child


def rows_of(numbers: range) -> np.ndarray:
    rows = np.zeros(len(numbers), VALUES.payload_dtype)
    rows["value"] = numbers
    return rows


def lane_state(node: Writer, watermark: str) -> int:
    """A watermark of the one lane that a node has; 0 while it has none."""
    for number in list_lanes(node.bus, "values"):
        with contextlib.suppress(NotFound, AttachError):
            segment = Segment.open(lane_name(node.bus, "values", number), writable=False)
            return _segment.read_state(segment.memory)[watermark]
    return 0


def address(node: Writer) -> str:
    return f"{node.bus}/values"


def published(node: Writer) -> int:
    return attach(address(node)).watermarks().published


def replicate(node: Writer, last: int) -> None:
    wait_until(lambda: published(node) >= last, TIMEOUT_S)
    node.replicating.raise_replicated("values", last)


def rows_from_elsewhere(count: int) -> bytes:
    """What another node's leader published."""
    rows = np.zeros(count, VALUES.dtype)
    rows["sequence"], rows["value"] = np.arange(1, count + 1), np.arange(count)
    return rows.tobytes()


def values(node: Writer) -> list[int]:
    ring = attach(address(node))
    with RealTime(address(node), start="earliest", follow="published") as reader:
        found: list[int] = []
        while len(found) < ring.watermarks().published:
            batch = reader.take(TIMEOUT_S)
            assert batch is not None
            found += batch.copy()["value"].tolist()
        return found


def test_it_publishes_where_the_leader_is_and_waits_for_one(nodes):
    a, b = nodes
    with LeaderLane([address(a), address(b)], leader_timeout=TIMEOUT_S) as lane:
        leading = threading.Timer(0.1, b.replicating.lead)
        leading.start()
        lane.publish(1)
        leading.join()
        assert lane.leader == address(b)
        replicate(b, 1)
        lane.wait(TIMEOUT_S)
        assert values(b) == [1]


def test_what_was_not_replicated_is_published_again_on_the_next_leader(nodes):
    a, b = nodes
    a.replicating.lead()
    with LeaderLane([address(a), address(b)], leader_timeout=TIMEOUT_S) as lane:
        lane.publish_batch(np.array([(value,) for value in range(5)], VALUES.payload_dtype))
        replicate(a, 5)
        lane.wait(TIMEOUT_S)
        lane.publish(5)
        lane.publish(6)
        wait_until(lambda: published(a) == 7, TIMEOUT_S)
        a.replicating.follow("b")
        b.replicating.apply("values", rows_from_elsewhere(5))
        b.replicating.lead()
        lane.publish(value=7)
        replicate(b, 8)
        lane.wait(TIMEOUT_S)
        assert values(b)[5:] == [5, 6, 7]
        assert (lane.leader, lane.move_count, lane.unconfirmed_count) == (address(b), 2, 0)


def test_told_not_to_it_publishes_nothing_twice_and_counts_what_it_gives_up(nodes):
    a, b = nodes
    a.replicating.lead()
    with LeaderLane([address(a), address(b)], leader_timeout=TIMEOUT_S, resend=False) as lane:
        lane.publish(0)
        replicate(a, 1)
        lane.wait(TIMEOUT_S)
        for value in range(1, 4):
            lane.publish(value)
        wait_until(lambda: published(a) == 4, TIMEOUT_S)
        a.replicating.follow("b")
        b.replicating.lead()
        lane.publish(9)
        replicate(b, 1)
        lane.wait(TIMEOUT_S)
        assert values(b) == [9]
        assert lane.unconfirmed_count == 3


@pytest.mark.process
def test_told_not_to_publish_again_who_waits_is_told_what_is_given_up(nodes, tmp_path, children):
    a, b = nodes
    a.replicating.lead()
    with LeaderLane([address(a), address(b)], leader_timeout=TIMEOUT_S, resend=False) as lane:
        lane.publish_batch(rows_of(range(2)))
        replicate(a, 2)
        lane.publish_batch(rows_of(range(2, 5)))
        wait_until(lambda: published(a) == 5, TIMEOUT_S)
        leaving = threading.Timer(0.1, a.replicating.follow, ["b"])
        leaving.start()
        with pytest.raises(NotLeader, match="; 3 records that were published there are given up") as told:
            lane.wait(TIMEOUT_S)
        leaving.join()
        assert (told.value.leader, lane.unconfirmed_count) == ("b", 3)
        lane.wait(TIMEOUT_S)  # there is nothing more
        b.close()
        child = lead_elsewhere(children, b.bus, tmp_path / "c")
        lane.publish(5)
        wait_until(lambda: attach(address(b)).watermarks().published == 1, TIMEOUT_S)
        child.kill()
        with pytest.raises(NotLeader, match="; 1 records that were published there are given up"):
            lane.wait(TIMEOUT_S)
        assert lane.unconfirmed_count == 4


def test_what_the_caller_changes_afterwards_is_published_again_as_it_was(bus_name, tmp_path):
    quotes = Schema("values", {"bid": "(2,)f8", "text": "S4"})
    with (
        open_replicated(f"{bus_name}a", tmp_path / "a", schemas=[quotes]) as a,
        open_replicated(f"{bus_name}b", tmp_path / "b", schemas=[quotes]) as b,
    ):
        a.replicating.lead()
        with LeaderLane([address(a), address(b)], leader_timeout=TIMEOUT_S) as lane:
            array, numbers = np.array([1.0, 2.0]), [3.0, 4.0]
            lane.publish(array, b"one")
            lane.publish(bid=numbers, text=b"two")
            lane.publish(array[::-1], b"six")  # a view
            array[:] = numbers[:] = 9.0, 9.0
            wait_until(lambda: published(a) == 3, TIMEOUT_S)
            a.replicating.follow("b")
            b.replicating.lead()
            lane.publish(array, b"end")
            wait_until(lambda: published(b) == 4, TIMEOUT_S)
            with RealTime(address(b), start="earliest", follow="published") as reader:
                batch = reader.take(TIMEOUT_S)
                assert batch is not None
                assert batch.rows["bid"].tolist() == [[1.0, 2.0], [3.0, 4.0], [2.0, 1.0], [9.0, 9.0]]
                assert batch.rows["text"].tolist() == [b"one", b"two", b"six", b"end"]


@pytest.mark.parametrize("resend", [True, False])
def test_of_a_batch_that_the_lead_leaves_halfway_no_row_is_published_twice_that_is_replicated(nodes, resend):
    a, b = nodes
    a.replicating.lead()
    with LeaderLane([address(a), address(b)], leader_timeout=TIMEOUT_S, slots=64, resend=resend) as lane:
        publishing = threading.Thread(target=lane.publish_batch, args=(rows_of(range(60_000)),))
        publishing.start()
        wait_until(lambda: published(a) > 1000, TIMEOUT_S)
        a.replicating.hold(True)
        wait_until(lambda: a.replicating.holds, TIMEOUT_S)
        taken = published(a)
        assert taken < 60_000
        replicate(a, taken - 1)
        wait_until(
            lambda: lane_state(a, "replicated") >= taken - 64, TIMEOUT_S
        )  # known by turns, of no more than the lane holds
        known = lane_state(a, "replicated")
        assert known < taken
        a.replicating.follow("b")
        b.replicating.lead()
        publishing.join(TIMEOUT_S)
        assert not publishing.is_alive()
        again = known if resend else taken
        replicate(b, 60_000 - again)
        lane.wait(TIMEOUT_S)
        assert values(a) == list(range(taken))
        assert values(b) == list(range(again, 60_000))
        assert lane.unconfirmed_count == (0 if resend else taken - known)


@pytest.mark.process
@pytest.mark.parametrize("call", ["publish", "wait"])
def test_a_leader_that_dies_while_rows_are_published_again_is_left_for_the_next(nodes, tmp_path, children, call):
    a, b = nodes
    a.replicating.lead()
    with LeaderLane([address(a), address(b)], leader_timeout=TIMEOUT_S, slots=64) as lane:
        for value in range(200):
            lane.publish(value)
        wait_until(lambda: published(a) == 200, TIMEOUT_S)
        b.close()
        child = lead_elsewhere(children, b.bus, tmp_path / "c")
        child.run("node.replicating.hold(True)")
        a.replicating.follow("b")
        given = [200] if call == "publish" else [TIMEOUT_S]
        calling = threading.Thread(target=getattr(lane, call), args=given, daemon=True)
        calling.start()
        wait_until(lambda: lane_state(b, "published") == 64, TIMEOUT_S)
        child.kill()
        a.replicating.lead()
        last = 401 if call == "publish" else 400  # nothing was replicated, and nothing was cut
        replicate(a, last)
        calling.join(TIMEOUT_S)
        assert not calling.is_alive()
        lane.wait(TIMEOUT_S)
        assert values(a) == [*range(200), *range(200), 200][:last]


def test_an_idle_publisher_sends_again_what_was_lost_while_its_node_did_not_lead(bus_name, tmp_path):
    address = f"{bus_name}/values"
    with (
        LeaderLane(address, leader_timeout=TIMEOUT_S) as waits,
        LeaderLane(address, leader_timeout=TIMEOUT_S) as publishes,
    ):
        with open_replicated(bus_name, tmp_path, schemas=[VALUES]) as node:
            node.replicating.lead()
            for end, value in enumerate((100, 101, 102, 200, 201, 202), 1):
                (waits if value < 200 else publishes).publish(value)
                wait_until(lambda end=end: published(node) == end, TIMEOUT_S)
            node.replicating.raise_replicated("values", 1)
            node.replicating.follow("elsewhere")
            node.close_to_cut({"values": 1})
        cut_tail(tmp_path, {"values": 1})
        with open_replicated(bus_name, tmp_path, {"values": 1}, schemas=[VALUES]) as node:
            node.replicating.apply("values", rows_from_elsewhere(20)[VALUES.row_bytes :])
            node.replicating.lead()
            node.replicating.raise_replicated("values", 20)
            waiting = threading.Thread(target=waits.wait, args=(TIMEOUT_S,))
            waiting.start()
            replicate(node, 22)
            waiting.join()
            publishes.publish(203)
            replicate(node, 26)
            publishes.wait(TIMEOUT_S)
            assert values(node) == [100, *range(1, 20), 101, 102, 200, 201, 202, 203]


def test_a_full_lane_loses_no_row_of_a_batch_and_repeats_none(nodes):
    a, _ = nodes
    a.replicating.lead()
    with LeaderLane(address(a), slots=16) as lane:
        a.replicating.hold(True)
        rows = np.array([(value,) for value in range(100)], VALUES.payload_dtype)
        publishing = threading.Thread(target=lane.publish_batch, args=(rows,))
        publishing.start()
        publishing.join(0.3)  # it was told that the lane is full by then, and has put in a part
        a.replicating.hold(False)
        publishing.join(TIMEOUT_S)
        replicate(a, 100)
        lane.wait(TIMEOUT_S)
        assert values(a) == list(range(100))


def test_where_nobody_leads_it_says_so_after_a_while(nodes):
    a, b = nodes
    with LeaderLane([address(a), address(b)], leader_timeout=0.05) as lane:
        with pytest.raises(TimeoutError, match=r"nobody led .*, .* within 0\.05 s"):
            lane.publish(1)
        a.replicating.lead()
        lane.publish(2)
        wait_until(lambda: published(a) == 1, TIMEOUT_S)
        with pytest.raises(TimeoutError, match=r"1 records were not replicated within 0\.01 s"):
            lane.wait(0.01)


def test_a_record_that_nobody_took_in_time_does_not_wait_and_its_publisher_is_told(nodes):
    a, _ = nodes
    a.replicating.lead()
    with LeaderLane(address(a), leader_timeout=0.05) as lane:
        lane.publish(0)
        lane.publish(1)
        wait_until(lambda: published(a) == 2, TIMEOUT_S)
        a.replicating.follow("elsewhere")
        with pytest.raises(NobodyLeads, match=r"; 2 records wait .* 0 are taken, the last 1 are not") as told:
            lane.publish(2)
        assert (told.value.waiting_count, told.value.taken_count, told.value.refused_count) == (2, 0, 1)
        copied = pickle.loads(pickle.dumps(told.value))
        assert (str(copied), copied.refused_count) == (str(told.value), 1)
        with pytest.raises(NobodyLeads, match=r"; 2 records wait to be published$"):
            lane.wait(TIMEOUT_S)
        a.replicating.lead()
        lane.publish(3)
        replicate(a, 5)
        lane.wait(TIMEOUT_S)
        assert values(a) == [0, 1, 0, 1, 3]


@pytest.mark.parametrize("resend", [True, False])
def test_of_a_batch_that_nobody_takes_to_its_end_its_publisher_is_told_where_to_go_on(nodes, resend):
    a, b = nodes
    a.replicating.lead()
    with LeaderLane([address(a), address(b)], leader_timeout=0.05, slots=64, resend=resend) as lane:
        lane.publish(0)
        replicate(a, 1)
        lane.wait(TIMEOUT_S)
        a.replicating.hold(True)
        wait_until(lambda: a.replicating.holds, TIMEOUT_S)
        rows = rows_of(range(200))
        told: list[NobodyLeads] = []

        def publish() -> None:
            with pytest.raises(NobodyLeads) as raised:
                lane.publish_batch(rows)
            told.append(raised.value)

        publishing = threading.Thread(target=publish)
        publishing.start()
        wait_until(lambda: len(lane._sent) > 0, TIMEOUT_S)  # it was told that the lane is full: what is in there counts
        a.replicating.follow("b")
        publishing.join(TIMEOUT_S)
        assert (told[0].taken_count, told[0].refused_count) == (64, 136)
        assert (told[0].waiting_count, lane.unconfirmed_count) == ((64, 0) if resend else (0, 64))
        b.replicating.lead()
        lane.publish_batch(rows[told[0].taken_count :])
        first = 0 if resend else 64
        replicate(b, 200 - first)
        lane.wait(TIMEOUT_S)
        assert values(b) == list(range(first, 200))


def test_a_record_that_went_in_before_its_call_failed_is_not_dropped(nodes, monkeypatch):
    a, b = nodes
    a.replicating.lead()
    with LeaderLane([address(a), address(b)], leader_timeout=0.05) as lane:
        lane.publish(0)
        replicate(a, 1)
        lane.wait(TIMEOUT_S)
        assert lane._lane is not None
        into_lane = lane._lane.publish

        def publish_and_lose_the_lead(value: int) -> None:
            into_lane(value)
            a.replicating.follow("b")
            raise NotLeader(a.bus, "b")

        monkeypatch.setattr(lane._lane, "publish", publish_and_lose_the_lead)
        with pytest.raises(NobodyLeads, match="1 are taken, the last 0") as told:
            lane.publish(7)
        assert (told.value.waiting_count, told.value.taken_count, told.value.refused_count) == (1, 1, 0)
        b.replicating.lead()
        replicating = threading.Thread(target=replicate, args=(b, 1))
        replicating.start()
        lane.wait(TIMEOUT_S)
        replicating.join()
        assert values(b) == [7]


def test_bad_addresses_and_another_schema_are_refused(nodes):
    a, _ = nodes
    a.replicating.lead()
    with pytest.raises(ValueError, match="at least one"):
        LeaderLane([])
    with pytest.raises(ValueError, match="no-topic"):
        LeaderLane("no-topic")
    with LeaderLane(address(a), schema=PAIRS) as lane, pytest.raises(ValueError, match="schema"):
        lane.publish(1)
