"""The gateway's parts in this process, where something has to go wrong in them that no client can make go wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from ringmain.bus import Batch, Writer
from ringmain.storage import Schema
from ringmain.subscribers import RealTime
from ringmain.tools.gateway.connection import Connection
from ringmain.tools.gateway.hub import Hub
from ringmain.tools.gateway.past import Past, _Reader
from ringmain.tools.gateway.session import Ending, Session
from ringmain.tools.gateway.settings import GatewaySettings
from ringmain.tools.gateway.source import Source
from ringmain.tools.gateway.tokens import ANYBODY
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


def in_a_loop(run: Callable[[Past], Awaitable[None]]) -> None:
    async def with_past() -> None:
        past = Past()
        try:
            await run(past)
        finally:
            past.close()

    asyncio.run(with_past())


class FakeConnection:
    """A client's connection; while `has_room` is false nothing goes out of the outbox."""

    def __init__(self) -> None:
        self.has_room = True
        self.sent: list[bytes] = []

    async def room(self) -> None:
        await until(lambda: self.has_room)

    def write(self, message: bytes) -> bool:
        self.sent.append(message)
        return True

    def told(self, *parts: str) -> int:
        """How many messages hold all of these."""
        return sum(all(part.encode() in message for part in parts) for message in self.sent)


class FakeClient:
    """A session without a socket."""

    def __init__(self, bus: str, past: Past, **settings: Any) -> None:
        self.connection, self.hub = FakeConnection(), Hub(past)
        self._messages = asyncio.Queue[dict[str, Any]]()
        self._bus = bus
        self.session = Session(
            self._messages.get,
            self._send,
            cast("Connection", self.connection),
            GatewaySettings(topics=("*",), **settings),
            self.hub,
            past,
            ANYBODY,
            lambda token: None,
        )

    async def _send(self, message: Any) -> None:
        pass

    def ask(self, op: str, **facts: Any) -> None:
        self._messages.put_nowait({"type": "websocket.receive", "text": json.dumps({"op": op, **facts})})

    def subscribe(self, id: int, **facts: Any) -> None:
        self.ask("subscribe", id=id, topic=f"{self._bus}/points", **facts)


def test_no_subscription_stays_behind_when_the_session_ends_while_it_is_given_up(bus_name, tmp_path, monkeypatch):
    opens, may_open = threading.Event(), threading.Event()

    def open_slowly(reader: _Reader) -> None:
        opens.set()
        assert may_open.wait(TIMEOUT_S)

    async def run(past: Past) -> None:
        client = FakeClient(bus_name, past)
        session = asyncio.create_task(client.session.run())
        client.subscribe(1, **{"from": 1})
        await until(opens.is_set)
        client.ask("unsubscribe", id=1)
        await until(lambda: not client.session._held)
        client.session.end(Ending(1001, "the gateway is stopping"))
        await session
        may_open.set()
        assert not list(client.hub.streams)

    monkeypatch.setattr(_Reader, "open", open_slowly)
    with Writer(bus_name, [POINTS], data_dir=tmp_path):
        try:
            in_a_loop(run)
        finally:
            may_open.set()
