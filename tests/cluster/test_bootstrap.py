"""A node that is new, or was away long: it receives a peer's data while the leader writes, and then follows; killed anywhere, all
is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus import LanePublisher, open_lane
from ringmain.storage import LogReader
from ringmain.subscribers import Historical, RealTime
from support.children import Children
from support.live_nodes import TIMEOUT_S, LiveNode, live_node
from support.logs import PAIRS, make_rows
from support.nats_servers import Servers, nats_servers
from support.replicas import read_up_to

pytestmark = pytest.mark.process
MB = 1 << 20


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with nats_servers(1) as servers:
        yield servers


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> str:
    """One of its own for each test."""
    names = [item.name for item in request.session.items if item.path == request.path]
    return f"c{names.index(request.node.name)}"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(3 * TIMEOUT_S):
            await test()

    asyncio.run(in_time())


async def publish(lane: LanePublisher, first: int, count: int) -> None:
    """Publish rows that tell their sequences, and wait until they are replicated."""
    sequence = await asyncio.to_thread(lane.publish_batch, make_rows(PAIRS, first, count))
    await asyncio.to_thread(lane.wait, sequence, timeout=TIMEOUT_S)


async def stored(*lives: LiveNode) -> int:
    """Wait until all of them have stored all of the stream; returns its last message then."""
    last = (await lives[0].stream.state()).last
    for live in lives:
        await live.until(lambda live=live: live.replica.position.stream >= last)
    return last


def check_log(data_dir: Path, last: int) -> None:
    """Assert that a log holds all rows up to one, as they were published."""
    log, first = LogReader(data_dir / "log", "pairs"), 1
    while first <= last:
        rows = log.read(first, last)
        assert rows is not None
        assert (rows["left"] == make_rows(PAIRS, first, len(rows))["left"]).all()
        assert rows["sequence"].tolist() == list(range(first, first + len(rows)))
        first += len(rows)


def test_a_new_node_follows_a_stream_that_is_there_from_its_beginning(servers, cluster, bus_name, tmp_path):
    async def test() -> None:
        access, settings = servers.access(cluster), servers.stream(cluster)
        async with live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a") as a:
            await a.until(lambda: a.node.leads)
            with open_lane(f"{bus_name}a/pairs") as lane:
                await publish(lane, 1, 5000)
                async with live_node(access, settings, "b", f"{bus_name}b", tmp_path / "b") as b:
                    await b.has({"pairs": 5000})
                    assert b.told == []
        check_log(tmp_path / "b", 5000)

    run(test)


def test_a_node_that_the_stream_has_left_behind_gets_a_snapshot_and_its_readers_go_on(
    servers, cluster, bus_name, tmp_path
):
    async def test() -> None:
        access, settings = servers.access(cluster), servers.stream(cluster)
        async with (
            live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a") as a,
            live_node(access, settings, "c", f"{bus_name}c", tmp_path / "c", writer={"slots": 4096}) as c,
        ):
            await a.until(lambda: a.node.leads or c.node.leads)
            leader, away = (a, c) if a.node.leads else (c, a)
            lane = open_lane(f"{leader.replica.bus}/pairs")
            address = f"{away.replica.bus}/pairs"
            await publish(lane, 1, 10_000)
            await away.has({"pairs": 10_000})
            quick, slow = RealTime(address, start=9_000), Historical(address, live=True)
            read_up_to(quick, 10_000, TIMEOUT_S)
            assert slow.take(TIMEOUT_S) is not None
            assert away.living is not None
            away.living.cancel()
            await asyncio.gather(away.living, return_exceptions=True)
            for first in range(10_001, 210_001, 4000):  # more messages than a reader asks for ahead
                await publish(lane, first, 4000)
            await leader.stream.trim(await stored(leader))
            publishing = asyncio.create_task(publish(lane, 210_001, 50_000))
            away.live()
            await publishing
            await away.has({"pairs": 260_000})
            assert any("is in place" in words for words in away.told)
            rows = await asyncio.to_thread(read_up_to, quick, 260_000, TIMEOUT_S)
            assert (rows["left"] == make_rows(PAIRS, 10_001, 250_000)["left"]).all()
            first = slow.position + 1
            rows = await asyncio.to_thread(read_up_to, slow, 260_000, TIMEOUT_S)
            assert (rows["left"] == make_rows(PAIRS, first, 260_001 - first)["left"]).all()
            assert quick.stats.lost_count == slow.stats.lost_count == 0
            lane.close()
        for side in "ac":
            check_log(tmp_path / side, 260_000)

    run(test)


def test_the_stream_goes_on_for_many_times_its_size_while_a_node_is_away(servers, cluster, bus_name, tmp_path):
    async def test() -> None:
        access, settings = servers.access(cluster), servers.stream(cluster, 4 * MB)
        last = 0
        async with (
            live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a", keep_bytes=MB) as a,
            live_node(access, settings, "b", f"{bus_name}b", tmp_path / "b", keep_bytes=MB) as b,
        ):
            async with live_node(access, settings, "c", f"{bus_name}c", tmp_path / "c", keep_bytes=MB) as c:
                await a.until(lambda: any(live.node.leads for live in (a, b, c)))
                leader = next(live for live in (a, b, c) if live.node.leads)
                if leader is c:
                    await c.node.switchover("a")
                    await a.until(lambda: a.node.leads)
                    leader = a
                lane = open_lane(f"{leader.replica.bus}/pairs")
                await publish(lane, 1, 1000)
                await c.has({"pairs": 1000})
            last = 1000
            for _ in range(10):
                await publish(lane, last + 1, 100_000)
                last += 100_000
            state = await leader.stream.state()
            assert state.first > 1
            assert state.stored_bytes <= 4 * MB
            async with live_node(access, settings, "c", f"{bus_name}c", tmp_path / "c", keep_bytes=MB) as c:
                await publish(lane, last + 1, 1000)
                await c.has({"pairs": last + 1000})
                assert any("is in place" in words for words in c.told)
            lane.close()
        check_log(tmp_path / "c", last + 1000)

    run(test)
