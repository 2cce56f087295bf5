"""The gateway's parts in this process, where something has to go wrong in them that no client can make go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ringmain.bus import Batch, Writer
from ringmain.storage import Schema
from ringmain.subscribers import RealTime
from ringmain.tools.gateway.source import Source
from support.gateways import TIMEOUT_S

pytestmark = pytest.mark.process

POINTS = Schema("points", {"value": "u8"})


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not true():
            await asyncio.sleep(0.01)


class Taker:
    """What a source hands to its streams."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.values: list[int] = []
        self.lost = 0
        self.ended = ""
        self._failure = failure

    def deliver(self, batch: Batch) -> None:
        if self._failure is not None:
            raise self._failure
        self.values += batch.rows["value"].tolist()
        self.lost += batch.lost

    def reset(self, sequence: int, reason: str) -> None:
        self.values.append(-sequence)

    def end(self, reason: str) -> None:
        self.ended = reason


def test_a_stream_that_fails_ends_and_the_others_of_its_source_go_on(bus_name):
    async def run(writer: Writer) -> None:
        source = Source(f"{bus_name}/points", RealTime(f"{bus_name}/points"), asyncio.get_running_loop())
        bad, good = Taker(ArithmeticError("as made")), [Taker(), Taker()]
        source.takers |= {bad, *good}
        try:
            for value in (1, 2):
                writer["points"].publish(value)
                await until(lambda value=value: all(taker.values[-1:] == [value] for taker in good))
        finally:
            source.close()
        assert [taker.values for taker in good] == [[1, 2], [1, 2]]
        assert bad.ended
        assert bad not in source.takers

    with Writer(bus_name, [POINTS]) as writer:
        asyncio.run(run(writer))
