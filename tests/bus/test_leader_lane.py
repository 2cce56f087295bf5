"""Publishing to whichever node leads: it is found again, and nothing that was published is missed."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from ringmain.bus import LeaderLane, Writer, attach
from ringmain.storage import Schema
from ringmain.storage.log_tail import cut_tail
from ringmain.subscribers import RealTime
from support.children import TIMEOUT_S
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


def test_bad_addresses_and_another_schema_are_refused(nodes):
    a, _ = nodes
    a.replicating.lead()
    with pytest.raises(ValueError, match="at least one"):
        LeaderLane([])
    with pytest.raises(ValueError, match="no-topic"):
        LeaderLane("no-topic")
    with LeaderLane(address(a), schema=PAIRS) as lane, pytest.raises(ValueError, match="schema"):
        lane.publish(1)
