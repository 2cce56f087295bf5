"""How fast a node with an empty disk gets another one's data, while the leader writes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Awaitable, Generator
from typing import TypeVar

from ...bus import attach, open_lane
from ...bus.cluster.access import StreamSettings
from ...bus.cluster.api import call
from ...bus.cluster.connection import Connection
from ...bus.cluster.peers import ask_all, ask_status
from ...bus.cluster.stream import NoAnswer
from .cluster_servers import COUNT, BenchCluster
from .rows import BATCH, NS, SCHEMA, TOPIC, Rows, clock
from .workers import BenchFailed

__all__ = ["measure_bootstrap"]

ROWS_AT_ONCE, PAUSE_S = 1000, 0.01  # while the snapshot is received
LOOK_S = 0.05  # seldom, since a node that is asked has less time
TIMEOUT_S = 300.0
Result = TypeVar("Result")


def measure_bootstrap(cluster: BenchCluster, data_bytes: int, block: Rows) -> float:
    """MB/s, from the first word of the snapshot until the node has all of it in place, proven, and its bus open."""
    cluster.start_dead()
    leader = cluster.leader()
    rows = _fill(leader.bus, data_bytes, block)
    number, node = next((number, bus) for number, bus in enumerate(cluster.buses) if bus != leader.node)
    cluster.kill_node(node)
    shutil.rmtree(cluster.directory / node / "data")
    asyncio.run(_in_time(_trim(cluster, node)))
    with _writing(leader.bus, block):
        cluster.nodes[number] = cluster.start_node(number)
        seconds = asyncio.run(_in_time(_time_receiving(cluster, node)))
    return rows * SCHEMA.row_bytes / seconds / 1e6


def _fill(bus: str, data_bytes: int, block: Rows) -> int:
    """Publish until a topic has so many bytes; how many rows it has then."""
    topic = attach(f"{bus}/{TOPIC}")
    missing = data_bytes // SCHEMA.row_bytes - topic.watermarks().published
    with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA) as lane:
        last = 0
        for at in range(0, max(1, missing), BATCH):
            last = lane.publish_batch(block[at % len(block) :][:BATCH])
        lane.wait(last, "replicated", TIMEOUT_S)
    return topic.watermarks().published


@contextlib.contextmanager
def _writing(bus: str, block: Rows) -> Generator[None]:
    stop, rows = threading.Event(), block[:ROWS_AT_ONCE]

    def write() -> None:
        with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA) as lane:
            while not stop.wait(PAUSE_S):
                lane.publish_batch(rows)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def _in_time(work: Awaitable[Result]) -> Result:
    async with asyncio.timeout(TIMEOUT_S):
        return await work


async def _trim(cluster: BenchCluster, without: str) -> None:
    """Have the stream begin behind what the other nodes have stored."""
    connection = Connection(cluster.access)
    try:
        await connection.connected(TIMEOUT_S)
        wanted = 0
        while True:
            others = [s for s in await ask_all(connection, cluster.name, enough=COUNT - 1) if s.node != without]
            wanted = wanted or max((status.sequence for status in others), default=0)
            if len(others) == COUNT - 1 and wanted and all(status.stored >= wanted for status in others):
                break
        stream = StreamSettings.of_cluster(cluster.name, COUNT, 0).name
        await call(connection, f"STREAM.PURGE.{stream}", {"seq": wanted}, TIMEOUT_S)
    finally:
        await connection.close()


async def _time_receiving(cluster: BenchCluster, node: str) -> float:
    connection, began = Connection(cluster.access), 0
    try:
        await connection.connected(TIMEOUT_S)
        while True:
            with contextlib.suppress(NoAnswer):
                status = await ask_status(connection, cluster.name, node)
                if status.receiving and not began:
                    began = clock()
                if status.stored and not status.receiving and status.topics:
                    if not began:
                        raise BenchFailed("the node needed no snapshot")
                    return (clock() - began) / NS
            await asyncio.sleep(LOOK_S)
    finally:
        await connection.close()
