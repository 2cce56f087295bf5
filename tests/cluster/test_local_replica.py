"""A node's copy of the bus, over a real writer: what the protocol asks of it, through kills, cuts and changes of role."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.bus import BusError, Fenced, LanePublisher, NotLeader, Writer, attach, open_lane
from ringmain.bus.cluster.local_replica import LocalReplica
from ringmain.bus.cluster.messages import RUN_BYTES, Kind, Message, Run, decode, encode
from ringmain.bus.cluster.replica import Diverged, Position
from ringmain.bus.segments import list_lanes
from ringmain.storage import LogReader, Schema, Shape, StoreSettings
from ringmain.storage.log_files import list_files
from ringmain.storage.manifest_reader import read_manifest
from ringmain.subscribers import Acknowledged, Historical, RealTime
from support.children import TIMEOUT_S, Children
from support.logs import PAIRS, POINTS, make_rows, wait_until
from support.replicas import LOG_ID, read_up_to, row_bytes

KEYED = Schema("keyed", {"key": "u8", "value": "u8"}, key=("key",))

LEADER = """if True:
    import asyncio, os
    from ringmain.bus.cluster.local_replica import LocalReplica
    from ringmain.bus.cluster.replica import Position

    async def lead():
        replica = LocalReplica(bus, [PAIRS, POINTS], data_dir, log_id)
        await replica.open()
        await replica.lead(1, {})
        lane = open_lane(f"{bus}/pairs")
        await asyncio.to_thread(lane.wait, lane.publish_batch(make_rows(PAIRS, 1, stored)), "durable")
        replica.raise_replicated({"pairs": stored})
        await replica.store(Position(7, 1, "north", {"pairs": stored}))
        await asyncio.to_thread(lane.wait, lane.publish_batch(make_rows(PAIRS, stored + 1, more)), "logged")
        return replica

    kept = asyncio.run(lead())
"""


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


@pytest.fixture
def other_name(bus_name) -> str:
    """A second bus: two nodes on one machine are two buses. What is left of it goes with the first one's, by its name."""
    return f"{bus_name}b"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(4 * TIMEOUT_S):
            await test()

    asyncio.run(in_time())


def a_run(schema: Schema, first: int, count: int) -> Run:
    return Run(schema.name, schema.hash, first, schema.row_bytes, row_bytes(schema, first, count))


def through_the_wire(runs: Any) -> tuple[Run, ...]:
    return decode(encode(Message(Kind.DATA, "north", 1, 1, 7, tuple(runs)))).runs


async def gather_all(replica: LocalReplica, until: dict[str, int], bytes_max: int = 1 << 16) -> dict[str, np.ndarray]:
    """Everything up to these ends, as one array a topic, in the order in which it was gathered."""
    parts: dict[str, list[np.ndarray]] = {topic: [] for topic in until}
    ends: dict[str, int] = {}
    while any(ends.get(topic, 0) < end for topic, end in until.items()):
        runs = await replica.gather(bytes_max, TIMEOUT_S)
        assert runs, f"{ends} of {until} came"
        for found in runs:
            rows = np.frombuffer(bytes(found.rows), replica.writer.schemas[found.topic].dtype)
            assert rows["sequence"].tolist() == list(range(found.first, found.last + 1))
            assert ends.get(found.topic, found.first - 1) == found.first - 1
            parts[found.topic].append(rows)
            ends[found.topic] = found.last
        replica.gathered()
    return {topic: np.concatenate(rows) for topic, rows in parts.items()}


def logged(directory: Path, topic: str) -> bytes:
    """All rows that a log has of a topic, however they lie in it."""
    log, found, next_sequence = LogReader(directory, topic), b"", 1
    while (rows := log.read(next_sequence)) is not None:
        found += rows.tobytes()
        next_sequence = int(rows["sequence"][-1]) + 1
    return found


# --- from one to the other ----------------------------------------------------------------------------------------------


def test_what_a_leader_ships_becomes_the_same_bytes_on_a_follower_whose_readers_see_it(
    bus_name, other_name, tmp_path, children
):
    child = children.start()

    async def test() -> None:
        leader = LocalReplica(bus_name, [PAIRS, POINTS], tmp_path / "one", LOG_ID)
        follower = LocalReplica(other_name, [PAIRS, POINTS], tmp_path / "two", LOG_ID, {"slots": 256})
        async with leader, follower:
            child.run("reader = RealTime(address, start='earliest')", address=f"{other_name}/points")
            await leader.lead(1, {})
            lanes = {schema.name: open_lane(f"{bus_name}/{schema.name}") for schema in (PAIRS, POINTS)}
            for schema, lane in zip((PAIRS, POINTS), lanes.values(), strict=True):
                lane.publish_batch(make_rows(schema, 1, 3000))
            ends: dict[str, int] = {}
            while sum(ends.values()) < 6000:
                runs = await leader.gather(1 << 14, TIMEOUT_S)
                for found in through_the_wire(runs):
                    await follower.apply(found)
                    ends[found.topic] = found.last
                leader.gathered()
                leader.raise_replicated(ends)
            assert follower.ends() == leader.ends() == {"pairs": 3000, "points": 3000}
            for lane in lanes.values():
                await asyncio.to_thread(lane.wait, 3000, timeout=TIMEOUT_S)  # replicated, since the bus is
                lane.close()
            await follower.store(Position(9, 1, "north", ends))
            assert logged(tmp_path / "one" / "log", "points") == logged(tmp_path / "two" / "log", "points")
        assert child.ask("sum(len(batch.copy()) for batch in iter(lambda: reader.take(0.5), None))") == 3000

    run(test)


def test_a_run_that_does_not_fit_is_refused(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS, POINTS], tmp_path, LOG_ID) as replica:
            await replica.apply(a_run(PAIRS, 1, 10))
            good = a_run(PAIRS, 11, 10)
            for bad, words in (
                (a_run(PAIRS, 12, 10), "ends at 10"),
                (dataclasses.replace(good, topic="other"), "not configured"),
                (dataclasses.replace(good, schema_hash=1), "same ones"),
                (dataclasses.replace(good, rows=a_run(PAIRS, 12, 10).rows), "11 is expected"),
            ):
                with pytest.raises(Diverged, match=words):
                    await replica.apply(bad)
            assert [(stand.topic, stand.first, stand.count) for stand in replica.stands()] == [
                ("pairs", 11, 0),
                ("points", 1, 0),
            ]

    run(test)


# --- shipping -----------------------------------------------------------------------------------------------------------


def test_topics_share_a_message_and_what_was_not_confirmed_comes_again(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS, POINTS], tmp_path, LOG_ID) as replica:
            await replica.lead(1, {})
            lanes = [open_lane(f"{bus_name}/{schema.name}") for schema in (PAIRS, POINTS)]
            lanes[0].publish_batch(make_rows(PAIRS, 1, 10))
            lanes[1].publish_batch(make_rows(POINTS, 1, 2000))
            for lane, count in zip(lanes, (10, 2000), strict=True):
                await asyncio.to_thread(lane.wait, count, "logged")
            bytes_max = 100 * POINTS.row_bytes + 2 * RUN_BYTES
            runs: dict[str, Run] = {}
            for _ in range(2):
                runs = {found.topic: found for found in await replica.gather(bytes_max, TIMEOUT_S)}
                assert runs["pairs"].last == 10
                assert sum(len(found.rows) + RUN_BYTES for found in runs.values()) <= bytes_max
                assert runs["points"].last == (bytes_max - 2 * RUN_BYTES - 10 * PAIRS.row_bytes) // POINTS.row_bytes
            replica.gathered()
            assert (await replica.gather(bytes_max, TIMEOUT_S))[0].first == runs["points"].last + 1
            for lane in lanes:
                lane.close()

    run(test)


def test_all_that_there_is_comes_again_and_is_not_drained_until_it_is_confirmed(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            await replica.lead(1, {})
            with open_lane(f"{bus_name}/pairs") as lane:
                lane.publish_batch(make_rows(PAIRS, 1, 10))
                await asyncio.to_thread(lane.wait, 10, "logged")
                replica.retire("")
                for _ in range(2):
                    assert [found.last for found in await replica.gather(1 << 16, TIMEOUT_S)] == [10]
                assert replica._retiring is not None
                await asyncio.wait([replica._retiring])
                assert not replica.drained()
                replica.gathered()
                assert replica.drained()

    run(test)


def test_gathering_waits_for_rows_and_gives_none_after_its_time(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            await replica.lead(1, {})
            assert await replica.gather(1 << 16, 0.01) == []
            waiting = asyncio.create_task(replica.gather(1 << 16, TIMEOUT_S))
            await asyncio.sleep(0)
            with open_lane(f"{bus_name}/pairs") as lane:
                lane.publish(1)
                assert [found.count for found in await waiting] == [1]

    run(test)


def test_lanes_wait_while_nothing_is_gathered_from_a_full_ring(bus_name, tmp_path, children):
    child = children.start()

    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID, {"slots": 256}) as replica:
            await replica.lead(1, {})
            child.begin("lane = open_lane(address, slots=64); lane.publish_batch(rows)", address=f"{bus_name}/pairs",
                        rows=make_rows(PAIRS, 1, 2000))  # fmt: skip
            await asyncio.to_thread(wait_until, lambda: replica.ends()["pairs"] == 256)
            assert not child.has_answered()
            rows = await gather_all(replica, {"pairs": 2000})
            assert (rows["pairs"]["left"] == make_rows(PAIRS, 1, 2000)["left"]).all()
            await asyncio.to_thread(child.settle)

    run(test)


def test_once_retired_it_tells_when_all_that_was_published_was_handed_out(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            await replica.lead(1, {})
            lane = open_lane(f"{bus_name}/pairs")
            lane.publish_batch(make_rows(PAIRS, 1, 100))
            await gather_all(replica, {"pairs": 100})
            assert not replica.drained()
            lane.publish_batch(make_rows(PAIRS, 101, 50))
            waiting = asyncio.create_task(asyncio.to_thread(lane.wait, 150, timeout=TIMEOUT_S))
            replica.retire("south")
            rows = await gather_all(replica, {"pairs": 150})
            assert len(rows["pairs"]) == 50
            await asyncio.to_thread(wait_until, replica.drained)
            replica.raise_replicated({"pairs": 150})
            await replica.follow("south")
            await waiting
            with pytest.raises(NotLeader, match="south"):
                await asyncio.to_thread(lane.publish, 1)
            await replica.apply(a_run(PAIRS, 151, 10))

    run(test)


def test_what_is_in_the_stream_is_replicated_only_once_it_is_on_the_leaders_disk_as_well(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID, {"sync_interval": 3600}) as replica:
            await replica.lead(1, {})
            with open_lane(f"{bus_name}/pairs") as lane:
                lane.publish_batch(make_rows(PAIRS, 1, 10))
                await gather_all(replica, {"pairs": 10})
                replica.raise_replicated({"pairs": 10})
                ring = attach(f"{bus_name}/pairs")
                assert (ring.watermarks().replicated, ring.watermarks().durable) == (0, 0)
                waiting = asyncio.create_task(asyncio.to_thread(lane.wait, 10, "replicated", timeout=TIMEOUT_S))
                replica.writer.replicating.journal.request_stop()  # which syncs
                await waiting

    run(test)


def test_a_retiring_that_failed_is_not_taken_for_drained(bus_name, tmp_path, monkeypatch):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            await replica.lead(1, {})

            def fail(_leader: str) -> None:
                raise OSError("no more threads")

            with monkeypatch.context() as patched:
                patched.setattr(replica.writer.replicating, "retire", fail)
                replica.retire("south")
                assert replica._retiring is not None
                await asyncio.wait([replica._retiring])
                with pytest.raises(OSError, match="no more threads"):
                    replica.drained()
            with pytest.raises(OSError, match="no more threads"):
                await replica.follow("south")

    run(test)


# --- its life -----------------------------------------------------------------------------------------------------------


def test_the_tail_of_a_killed_leader_is_compared_and_shipped_when_it_leads_again(bus_name, tmp_path, children):
    child = children.start()
    given = {"bus": bus_name, "data_dir": str(tmp_path), "log_id": LOG_ID, "stored": 100, "more": 3000}
    child.run(LEADER, **given)
    child.kill()

    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS, POINTS], tmp_path, LOG_ID, {"slots": 64}) as replica:
            assert replica.position == Position(7, 1, "north", {"pairs": 100})
            assert replica.ends() == {"pairs": 3100, "points": 0}
            assert attach(f"{bus_name}/pairs").watermarks().replicated == 100
            rows = LogReader(tmp_path / "log", "pairs").read(101, rows_max=3000)
            assert rows is not None
            mine = Run("pairs", PAIRS.hash, 101, PAIRS.row_bytes, rows.tobytes())
            assert await replica.same(mine)
            rows = rows.copy()
            rows["left"][-1] += 1
            assert not await replica.same(dataclasses.replace(mine, rows=rows.tobytes()))

            await replica.lead(2, replica.position.ends)
            with open_lane(f"{bus_name}/pairs") as lane:
                lane.publish_batch(make_rows(PAIRS, 3101, 50))
                found = await gather_all(replica, {"pairs": 3150})
            expected = make_rows(PAIRS, 1, 3150)["left"]
            assert (found["pairs"]["left"] == expected[100:]).all()
            replica.raise_replicated({"pairs": 3150})
            await replica.store(Position(9, 2, "north", {"pairs": 3150}))
            assert attach(f"{bus_name}/pairs").watermarks().replicated == 3150

    run(test)


def test_a_tail_that_is_cut_is_set_aside_and_only_who_had_read_of_it_is_told(bus_name, tmp_path, children):
    child = children.start()
    given = {"bus": bus_name, "data_dir": str(tmp_path), "log_id": LOG_ID, "stored": 100, "more": 30}
    child.run(LEADER, **given)
    address = f"{bus_name}/pairs"
    careful = RealTime(address, start="earliest", reliable=True)
    hasty = RealTime(address, start="earliest", follow="published")
    read_up_to(careful, 100, TIMEOUT_S)
    read_up_to(hasty, 130, TIMEOUT_S)
    child.kill()

    told: list[str] = []

    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS, POINTS], tmp_path, LOG_ID, told=told.append) as replica:
            assert await replica.cut({"pairs": 130}) == 0
            assert await replica.cut({"pairs": 100}) == 30
            assert replica.ends() == {"pairs": 100, "points": 0}
            await replica.apply(a_run(PAIRS, 101, 60))
            rows = await asyncio.to_thread(read_up_to, careful, 160, TIMEOUT_S)
            assert (rows == make_rows(PAIRS, 101, 60)).all()
            with pytest.raises(BusError, match=r"had read up to 130.*ended at 100"):
                hasty.take(TIMEOUT_S)
            assert len(await asyncio.to_thread(read_up_to, hasty, 160, TIMEOUT_S)) == 60
            history = Historical(address)
            assert len(read_up_to(history, 160, TIMEOUT_S)) == 160
            assert await replica.cut({"pairs": 160}) == 0
        (aside,) = (tmp_path / "lost+found").iterdir()
        assert LogReader(aside, "pairs").read(101) is not None
        assert told == [f"30 rows that are not in the stream are set aside in {aside}"]

    run(test)


def test_a_leader_that_is_deposed_tells_its_publishers_and_loses_what_is_not_in_the_stream(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            await replica.lead(1, {})
            lane = open_lane(f"{bus_name}/pairs")
            lane.publish_batch(make_rows(PAIRS, 1, 100))
            await gather_all(replica, {"pairs": 100})
            replica.raise_replicated({"pairs": 60})
            hasty = RealTime(f"{bus_name}/pairs", start="earliest", follow="published", batch_rows=20)
            read_up_to(hasty, 80, TIMEOUT_S)
            assert await replica.cut({"pairs": 60}) == 40
            with pytest.raises(NotLeader):
                await asyncio.to_thread(lane.publish, 1)
            assert (replica.ends()["pairs"], attach(f"{bus_name}/pairs").watermarks().replicated) == (60, 60)
            await replica.apply(a_run(PAIRS, 61, 30))
            with pytest.raises(BusError, match=r"had read up to 80.*ended at 60"):
                hasty.take(TIMEOUT_S)
            await replica.lead(3, {"pairs": 90})
            with open_lane(f"{bus_name}/pairs") as lane:
                lane.publish(5)
            assert len((await gather_all(replica, {"pairs": 91}))["pairs"]) == 1

    run(test)


async def depose(replica: LocalReplica, kept: int, count: int, epoch: int) -> None:
    """Let another node lead, which never got the topic's rows behind `kept`, and publishes `count` of its own; then lead again."""
    await replica.follow("south")
    await replica.cut({"pairs": kept})
    await replica.apply(a_run(PAIRS, kept + 1, count))
    await replica.lead(epoch, {"pairs": kept + count})


@pytest.mark.parametrize("acknowledge", ["sync", "async"])
def test_a_lane_that_brought_rows_which_another_leader_never_got_does_not_go_on(bus_name, tmp_path, acknowledge):
    asks: list[Callable[[LanePublisher], object]] = [
        lambda lane: lane.publish(1),
        lambda lane: lane.publish_batch(make_rows(PAIRS, 1, 3)),
        lambda lane: lane.claim(),
        lambda lane: lane.wait(100, "replicated", TIMEOUT_S),
        lambda lane: lane.wait(61, "replicated", TIMEOUT_S),
        lambda lane: lane.wait(100, timeout=TIMEOUT_S, acknowledged_by=["group"]),
    ]
    if acknowledge == "sync":
        asks.append(lambda lane: lane.wait(100))

    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID, acknowledge=acknowledge) as replica:
            await replica.lead(1, {})
            lanes = [open_lane(f"{bus_name}/pairs") for _ in asks]
            for lane in lanes:
                lane.publish_batch(make_rows(PAIRS, 1, 60))
            ends = {"pairs": 60 * len(lanes)}
            await gather_all(replica, ends)
            replica.raise_replicated(ends)
            for lane in lanes:
                await asyncio.to_thread(lane.wait, 60, "replicated", TIMEOUT_S)
                lane.publish_batch(make_rows(PAIRS, 61, 40))
                await asyncio.to_thread(lane.wait, 100, "drained", TIMEOUT_S)
            await depose(replica, ends["pairs"], 1000, 3)
            with Acknowledged(f"{bus_name}/pairs", "group", start="earliest") as group:
                assert len(read_up_to(group, ends["pairs"] + 1000, TIMEOUT_S)) == ends["pairs"] + 1000
                assert group.poll() is None  # it is done with them
                for lane, ask in zip(lanes, asks, strict=True):
                    for _ in range(2):
                        with pytest.raises(
                            NotLeader, match=r"leads again.* up to 100,.* up to 60 is replicated.*another lane"
                        ):
                            await asyncio.to_thread(ask, lane)
                    await asyncio.to_thread(lane.wait, 60, "replicated", TIMEOUT_S)
            assert len(list_lanes(bus_name, "pairs")) == 0

    run(test)


def test_what_a_full_ring_left_in_a_lane_says_nothing_of_the_rows_before_it_that_were_cut(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID, {"slots": 64}) as replica:
            reader = RealTime(f"{bus_name}/pairs", start="earliest", reliable=True)
            assert reader.poll() is None
            await replica.lead(1, {})
            with open_lane(f"{bus_name}/pairs") as lane:
                lane.publish_batch(make_rows(PAIRS, 1, 100))
                await asyncio.to_thread(lane.wait, 64, "drained", TIMEOUT_S)
                await replica.follow("south")
                assert await replica.cut({}) == 100
                with pytest.raises(NotLeader, match="does not lead"):
                    await asyncio.to_thread(lane.wait, 64, "replicated", TIMEOUT_S)
                await replica.apply(a_run(PAIRS, 1, 50))
                await replica.lead(3, {"pairs": 50})
                with pytest.raises(NotLeader, match="all up to 0 is replicated"):
                    await asyncio.to_thread(lane.wait, 64, "replicated", TIMEOUT_S)

    run(test)


def test_a_lane_goes_on_when_its_node_leads_again_and_all_that_it_brought_was_replicated(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            await replica.lead(1, {})
            lane, other = (open_lane(f"{bus_name}/pairs") for _ in range(2))
            end = 0
            for epoch in (3, 5, 7):
                lane.publish_batch(make_rows(PAIRS, 1, 10))
                end += 10
                replica.retire("south")
                await gather_all(replica, {"pairs": end})
                await asyncio.to_thread(wait_until, replica.drained)
                replica.raise_replicated({"pairs": end})
                await replica.follow("south")
                await replica.apply(a_run(PAIRS, end + 1, 5))
                end += 5
                await replica.lead(epoch, {"pairs": end})
                other.publish(1)  # it is in the topic, and not replicated, when the lane goes on
                await asyncio.to_thread(other.wait, (epoch - 1) // 2, "drained", TIMEOUT_S)
                end += 1
                last = lane.publish(7)
                assert last == lane.watermarks.published
                assert lane.watermarks.replicated == last - 1
                end += 1
                await asyncio.to_thread(lane.wait, last - 1, "replicated", TIMEOUT_S)
                await asyncio.to_thread(lane.wait, last, "drained", TIMEOUT_S)
            assert last == 33

    run(test)


def test_a_position_is_stored_once_its_rows_are_on_the_disk_and_found_again(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            assert replica.position == Position()
            await replica.apply(a_run(PAIRS, 1, 1000))
            position = Position(3, 2, "south", {"pairs": 1000})
            await replica.store(position)
            assert attach(f"{bus_name}/pairs").watermarks().durable == 1000
            with pytest.raises(ValueError, match="before the position"):
                await replica.store(Position(4, 2, "south", {"pairs": 1001}))
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            assert replica.position == position
            assert attach(f"{bus_name}/pairs").watermarks().replicated == 1000

    run(test)


def test_a_topic_that_is_configured_no_more_keeps_nobody_from_storing_positions(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS, POINTS], tmp_path, LOG_ID) as replica:
            await replica.apply(a_run(PAIRS, 1, 20))
            await replica.apply(a_run(POINTS, 1, 10))
            await replica.store(Position(3, 2, "south", {"pairs": 20, "points": 10}))
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as replica:
            await replica.apply(a_run(PAIRS, 21, 5))
            await replica.store(Position(4, 2, "south", {"pairs": 25, "points": 10}))
        async with LocalReplica(bus_name, [PAIRS, POINTS], tmp_path, LOG_ID) as replica:
            assert replica.position == Position(4, 2, "south", {"pairs": 25, "points": 10})
            assert replica.ends() == {"pairs": 25, "points": 10}

    run(test)


@pytest.mark.parametrize("left", [0, 90], ids=["removed", "restored"])
def test_a_log_shorter_than_the_stored_position_is_told_and_nothing_of_it_counts_as_replicated(
    bus_name, tmp_path, left
):
    position, told = Position(3, 2, "south", {"pairs": 100}), list[str]()

    def a_replica() -> LocalReplica:
        return LocalReplica(bus_name, [PAIRS], tmp_path / "data", LOG_ID, told=told.append)

    async def test() -> None:
        async with a_replica() as replica:
            await replica.apply(a_run(PAIRS, 1, 90))
        shutil.copytree(tmp_path / "data" / "log", tmp_path / "earlier")
        async with a_replica() as replica:
            await replica.apply(a_run(PAIRS, 91, 10))
            await replica.store(position)
        shutil.rmtree(tmp_path / "data" / "log")
        if left:
            shutil.copytree(tmp_path / "earlier", tmp_path / "data" / "log")
        assert not told
        for _ in range(2):
            async with a_replica() as replica:
                assert replica.position == Position()
                assert replica.ends() == {"pairs": left}
                assert attach(f"{bus_name}/pairs").watermarks().replicated == 0
        async with a_replica() as replica:
            await replica.apply(a_run(PAIRS, left + 1, 100 - left))
            await replica.store(position)
        assert len(told) == 1
        assert f"topic 'pairs' ends at {left}, and 100 is stored" in told[0]

    run(test)


def test_a_position_that_waits_for_the_disk_when_a_cut_begins_is_given_up_and_the_next_one_stored(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID, {"sync_interval": 3600.0}) as replica:
            await replica.apply(a_run(PAIRS, 1, 100))
            before, after = (Position(number, 2, "south", {"pairs": 60}) for number in (3, 4))
            storing = asyncio.create_task(replica.store(before))
            await asyncio.sleep(0)
            assert await replica.cut({"pairs": 60}) == 40
            await storing
            assert replica.position == Position()
            await replica.store(after)
            assert replica.position == after

    run(test)


@pytest.mark.parametrize(
    ("acknowledge", "settings", "interval_s"),
    [("sync", {}, 0.004), ("sync", {"sync_interval": 0.002}, 0.002), ("async", {}, None)],  # None: as a writer has it
)
def test_a_log_is_synced_more_seldom_where_acknowledging_waits_for_other_hosts_unless_told(
    acknowledge, settings, interval_s, bus_name, tmp_path, monkeypatch
):
    given: list[float | None] = []

    class ListeningWriter(Writer):
        def __init__(self, *args: Any, **settings: Any) -> None:
            given.append(settings.get("sync_interval"))
            super().__init__(*args, **settings)

    monkeypatch.setattr("ringmain.bus.cluster.local_replica.Writer", ListeningWriter)

    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID, settings, acknowledge=acknowledge) as replica:
            await replica.apply(a_run(PAIRS, 1, 60))
            await replica.cut({"pairs": 40})  # opens another writer

    run(test)
    assert given == [interval_s, interval_s]


def test_a_replica_whose_bus_is_taken_over_says_so(bus_name, tmp_path):
    async def test() -> None:
        replica = LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID)
        await replica.open()
        await replica.apply(a_run(PAIRS, 1, 10))
        with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True):
            with pytest.raises(Fenced):
                await replica.apply(a_run(PAIRS, 11, 10))
            await replica.close()

    run(test)


# --- the store ----------------------------------------------------------------------------------------------------------


def test_no_table_holds_a_row_that_is_not_replicated(bus_name, tmp_path, children):
    child = children.start()
    settings = StoreSettings(memtable_bytes=1 << 20, immutable_max=2, shape=Shape(table_bytes=1 << 20))
    rows = np.zeros(60_000, KEYED.payload_dtype)
    rows["key"] = rows["value"] = np.arange(len(rows))
    child.run(
        """if True:
        import asyncio
        from ringmain.bus.cluster.local_replica import LocalReplica

        async def lead():
            replica = LocalReplica(bus, [schema], data_dir, log_id, {"store": settings, "log_file_bytes": 4 << 20})
            await replica.open()
            await replica.lead(1, {})
            lane = open_lane(f"{bus}/keyed")
            for part in np.array_split(rows, 60):
                lane.publish_batch(part)
                shipped = 0
                while shipped < len(part):
                    runs = await replica.gather(1 << 20, 30.0)
                    shipped += sum(run.count for run in runs)
                    replica.gathered()
                end = lane._ring.published
                replica.raise_replicated({"keyed": max(0, end - 5000)})
                await asyncio.sleep(0.001)
            return replica

        kept = asyncio.run(lead())
        """,
        bus=bus_name,
        schema=KEYED,
        data_dir=str(tmp_path),
        log_id=LOG_ID,
        rows=rows,
        settings=settings,
    )
    wait_until(lambda: _tables_end(tmp_path) > 0)
    child.kill()
    assert 0 < _tables_end(tmp_path) <= 55_000
    assert len(list_files(tmp_path / "log"))


def test_a_journal_that_waits_for_tables_lets_rows_be_shipped_and_the_writer_close(bus_name, tmp_path):
    settings = StoreSettings(memtable_bytes=1 << 18, immutable_max=1, shape=Shape(table_bytes=1 << 20))
    rows = np.zeros(100_000, KEYED.payload_dtype)
    rows["key"] = rows["value"] = np.arange(len(rows))

    def published() -> int:
        return attach(f"{bus_name}/keyed").watermarks().published

    async def test() -> None:
        async with LocalReplica(bus_name, [KEYED], tmp_path, LOG_ID, {"store": settings}) as replica:
            await replica.lead(1, {})
            lane = open_lane(f"{bus_name}/keyed", slots=1 << 16)
            publishing = asyncio.create_task(asyncio.to_thread(lane.publish_batch, rows[:60_000]))
            end = 0
            while end < 60_000:
                for found in await replica.gather(1 << 20, TIMEOUT_S):
                    end = found.last
                replica.gathered()
                replica.raise_replicated({"keyed": end})
            await publishing
            await asyncio.to_thread(lane.wait, 60_000, timeout=TIMEOUT_S)
            lane.publish_batch(rows[60_000:])  # nothing of these is replicated
            await asyncio.to_thread(wait_until, lambda: published() == 100_000)
        assert _tables_end(tmp_path) <= 60_000
        async with LocalReplica(bus_name, [KEYED], tmp_path, LOG_ID, {"store": settings}) as replica:
            assert replica.ends() == {"keyed": 100_000}
            row = replica.writer.get("keyed", 99_999)
            assert row is not None
        assert _tables_end(tmp_path) <= 60_000

    run(test)


def _tables_end(data_dir: Path) -> int:
    return max((info.sequence_max for info in read_manifest(data_dir / "store").versions["keyed"].tables()), default=0)
