"""Nodes of a cluster for tests, in this process or a child's, over real nats-servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringmain.bus.cluster.access import Access, StreamSettings
from ringmain.bus.cluster.bootstrap import Bootstrap
from ringmain.bus.cluster.connection import Connection
from ringmain.bus.cluster.following import Timing
from ringmain.bus.cluster.jetstream import JetStream
from ringmain.bus.cluster.lag import Lag
from ringmain.bus.cluster.local_replica import LocalReplica
from ringmain.bus.cluster.node import Node
from ringmain.bus.cluster.peers import Peers, ask_all
from ringmain.bus.cluster.snapshot_sender import SnapshotSender
from ringmain.bus.cluster.status import status_of
from ringmain.bus.cluster.trimming import Trimming
from ringmain.storage import Schema
from support.logs import PAIRS

TIMEOUT_S = 30.0
QUICK = Timing(quiet=0.8, jitter=0.2, beat=0.1, store=0.05)


@dataclass
class LiveNode:
    """What a node's process holds. told: what it said of bootstrap, snapshots and trimming."""

    stream: JetStream
    replica: LocalReplica
    node: Node
    bootstrap: Bootstrap
    told: list[str] = field(default_factory=list[str])
    living: asyncio.Task[None] | None = None

    def live(self) -> None:
        self.living = asyncio.create_task(self.node.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; raise what ended the node before."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                if self.living is not None and self.living.done():
                    self.living.result()
                await asyncio.sleep(0.005)

    async def has(self, ends: Mapping[str, int]) -> None:
        """Wait until it has at least so many rows of each topic."""

        def reached() -> bool:
            if not self.replica.is_open:
                return False
            here = self.replica.ends()
            return all(here[topic] >= end for topic, end in ends.items())

        await self.until(reached)


@contextlib.asynccontextmanager
async def live_node(
    access: Access,
    settings: StreamSettings,
    name: str,
    bus: str,
    data_dir: Path | str,
    *,
    schemas: Iterable[Schema] = (PAIRS,),
    writer: Mapping[str, Any] | None = None,
    keep_bytes: int = 1 << 40,
    look_s: float = 0.05,
    lives: bool = True,
) -> AsyncGenerator[LiveNode]:
    """As `ringmain cluster node` has it. lives: whether it follows at once."""
    cluster, told = settings.subject.split(".")[1], list[str]()
    async with contextlib.AsyncExitStack() as opened:
        stream = await JetStream.open(access, settings)
        opened.push_async_callback(stream.close)
        pieces = Connection(access)
        opened.push_async_callback(pieces.close)
        replica = await opened.enter_async_context(LocalReplica(bus, schemas, data_dir, stream.log_id, writer))
        bootstrap = Bootstrap(pieces, cluster, name, stream, replica, told.append)
        node = Node(name, stream, replica, timing=QUICK, bootstrap=bootstrap.run)
        sender = SnapshotSender(
            pieces,
            cluster,
            name,
            replica.data_dir,
            lambda: replica.position if replica.is_open and not bootstrap.receiving else None,
            told.append,
        )
        await sender.open()
        opened.push_async_callback(sender.close)
        lag = Lag(stream, lambda: node.place.sequence)
        peers = Peers(
            stream.connection,
            cluster,
            name,
            lambda: status_of(node, replica, stream, lag, "sync", bootstrap.receiving),
            node.switchover,
        )
        await peers.open()
        trimming = Trimming(
            stream,
            keep_bytes,
            lambda: node.trims,
            lambda: ask_all(stream.connection, cluster, 0.2),
            several=True,
            told=told.append,
            interval_s=look_s,
        )
        beside = asyncio.create_task(trimming.run())
        live = LiveNode(stream, replica, node, bootstrap, told)
        if lives:
            live.live()
        try:
            yield live
        finally:
            tasks = [task for task in (beside, live.living) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
