"""The stream without a cluster's nodes: the same servers, and a publisher and a subscriber that use it as it is.

Its messages have no log, ring or store behind them, and there is no leader who alone may append: so many may be in flight at once.
Rows are sent as they are, 256 KiB of them in a message where only their number counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from ...bus.cluster.access import Access, StreamSettings
from ...bus.cluster.api import check
from ...bus.cluster.jetstream import JetStream
from .cluster_load import (
    PACED_ROWS,
    RATE,
    REST_S,
    WAITS,
    WARM_UP_S,
    paced_batches,
    replicated_figures,
    stamped_rows,
)
from .cluster_servers import COUNT, BenchCluster
from .measuring import Figures
from .rows import NS, SCHEMA, batches_of, clock
from .workers import Job, Stage, run_together

__all__ = ["measure_stream_alone"]

MESSAGE_ROWS = 2048  # 256 KiB
IN_FLIGHT, SMALL_IN_FLIGHT = 8, 64  # messages: large ones, and those of PACED_ROWS
STREAM_BYTES = 4 * 10**9
ANSWER_S = 10.0


def measure_stream_alone(cluster: BenchCluster, seconds: float) -> Figures:
    """Those figures of `bench cluster` that a stream without nodes has too."""
    settings = StreamSettings.of_cluster(cluster.name, COUNT, STREAM_BYTES)
    near = cluster.access
    far = replace(near, servers=(*near.servers[1:], near.servers[0]))
    rows_per_s = run_together(Job(_publish_all, (near, settings, seconds)), seconds_max=20 * seconds)[0]
    _, lags_us = run_together(
        Job(_publish_paced, (near, settings, seconds)), Job(_time, (far, settings, seconds)), seconds_max=60
    )
    waits_ms = run_together(Job(_wait_for_one, (near, settings)), seconds_max=60)[0]
    return replicated_figures(rows_per_s, lags_us, waits_ms)


class _Sender:
    """Sends messages without waiting for the answers, up to so many."""

    def __init__(self, stream: JetStream, in_flight: int, tasks: asyncio.TaskGroup) -> None:
        self._stream, self._room, self._tasks = stream, asyncio.Semaphore(in_flight), tasks

    async def send(self, payload: bytes) -> None:
        await self._room.acquire()
        self._tasks.create_task(self._send(payload))

    async def _send(self, payload: bytes) -> None:
        try:
            check(await self._stream.connection.request(self._stream.settings.subject, payload, ANSWER_S))
        finally:
            self._room.release()


@asynccontextmanager
async def _opened(access: Access, settings: StreamSettings) -> AsyncGenerator[JetStream]:
    stream = await JetStream.open(access, settings)
    try:
        yield stream
    finally:
        await stream.close()


def _publish_all(stage: Stage, access: Access, settings: StreamSettings, seconds: float) -> float:
    """A worker: rows a second until the last message is acknowledged."""
    payloads = cycle([rows.tobytes() for rows in batches_of(stamped_rows(), MESSAGE_ROWS)])

    async def publish(stream: JetStream, seconds: float) -> float:
        start, count = clock(), 0
        async with asyncio.TaskGroup() as tasks:
            sender = _Sender(stream, IN_FLIGHT, tasks)
            while clock() - start < seconds * NS:
                await sender.send(next(payloads))
                count += MESSAGE_ROWS
        return count / (clock() - start) * NS

    async def run() -> float:
        async with _opened(access, settings) as stream:
            stage.begin()
            await publish(stream, WARM_UP_S)
            return await publish(stream, seconds)

    return asyncio.run(run())


def _publish_paced(stage: Stage, access: Access, settings: StreamSettings, seconds: float) -> None:
    batches = cycle(batches_of(stamped_rows(), PACED_ROWS))

    async def run() -> None:
        async with _opened(access, settings) as stream, asyncio.TaskGroup() as tasks:
            sender = _Sender(stream, SMALL_IN_FLIGHT, tasks)
            stage.begin(settle=True)
            due = clock()
            for rows in islice(batches, paced_batches(seconds)):
                due += PACED_ROWS * NS // RATE
                if (early_ns := due - clock()) > 0:
                    await asyncio.sleep(early_ns / NS)
                rows["price"] = clock()
                await sender.send(rows.tobytes())

    asyncio.run(run())


def _time(stage: Stage, access: Access, settings: StreamSettings, seconds: float) -> list[float]:
    """A worker: what a subscriber has to wait for each row, in us."""

    async def run() -> list[float]:
        lags_us: list[float] = []
        async with _opened(access, settings) as stream, asyncio.timeout(60):
            next_ = (await stream.state()).last + 1
            await stream.read(next_)  # nothing is there yet, and the consumer is
            stage.begin()
            end, warm = next_ + paced_batches(seconds), next_ + int(WARM_UP_S * RATE / PACED_ROWS)
            while next_ < end:
                for stored in await stream.read(next_):
                    sent, now = np.frombuffer(stored.payload, SCHEMA.dtype)["price"], clock()
                    next_ = stored.sequence + 1
                    if next_ > warm:
                        lags_us += ((now - sent) / 1000).tolist()
        return lags_us

    return asyncio.run(run())


def _wait_for_one(stage: Stage, access: Access, settings: StreamSettings) -> list[float]:
    payload = bytes(SCHEMA.row_bytes)

    async def run() -> list[float]:
        times_ms: list[float] = []
        async with _opened(access, settings) as stream:
            stage.begin()
            for _ in range(WAITS):
                start = clock()
                check(await stream.connection.request(settings.subject, payload, ANSWER_S))
                times_ms.append((clock() - start) / 1e6)
                await asyncio.sleep(REST_S)
        return times_ms

    return asyncio.run(run())
