"""The gateway's parts in this process, where something has to go wrong in them that no client can make go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
import uvicorn
from ringmain.bus import Batch, BusError, Overrun, Writer
from ringmain.storage import Schema
from ringmain.subscribers import RealTime
from ringmain.subscribers.reader import TopicReader
from ringmain.tools.gateway import connection as gateway_connection
from ringmain.tools.gateway import source as gateway_source
from ringmain.tools.gateway.connection import Connection
from ringmain.tools.gateway.hub import Hub
from ringmain.tools.gateway.outbox import Outbox
from ringmain.tools.gateway.past import Past, _Reader
from ringmain.tools.gateway.serving import _FirmHttp, _listen, _serve
from ringmain.tools.gateway.session import Ending, Session
from ringmain.tools.gateway.settings import GatewaySettings
from ringmain.tools.gateway.source import Source
from ringmain.tools.gateway.tokens import ANYBODY
from support.gateways import TIMEOUT_S, handshake
from uvicorn.server import ServerState

pytestmark = pytest.mark.process

POINTS = Schema("points", {"value": "u8"})


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not true():
            await asyncio.sleep(0.01)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*arguments: object, **options: object) -> Any:
        raise error

    return call


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


def test_a_source_ends_also_where_looking_for_a_restart_fails(bus_name, monkeypatch):
    async def run(past: Past) -> None:
        reader = RealTime(f"{bus_name}/points")
        monkeypatch.setattr(reader, "take", raising(BusError("as made")))
        source, taker = Source(reader.address, reader, asyncio.get_running_loop()), Taker()
        source.takers.add(taker)
        try:
            await until(lambda: taker.ended)
        finally:
            source.close()
        assert taker.ended == source.ended == "too many open files"

    monkeypatch.setattr(gateway_source, "attach", raising(OSError("too many open files")))
    with Writer(bus_name, [POINTS]):
        in_a_loop(run)


def test_it_is_ready_only_once_it_serves(monkeypatch):
    ready: list[int] = []
    settings = GatewaySettings(topics=("*",), port=0)
    monkeypatch.setattr(uvicorn.Server, "startup", raising(OSError("as made")))
    with _listen(settings) as listener, pytest.raises(OSError, match="as made"):
        asyncio.run(_serve(settings, listener, ready.append, until_eof=False))
    assert ready == []


def test_a_host_that_nobody_knows_is_named(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", raising(socket.gaierror(socket.EAI_NONAME, "Name or service not known")))
    with pytest.raises(OSError, match=r"^host nohost\.invalid: Name or service not known$"):
        _listen(GatewaySettings(topics=("*",), host="nohost.invalid", open=True))


class FakeConnection:
    """A client's connection; while `has_room` is false nothing goes out of the outbox."""

    def __init__(self) -> None:
        self.has_room = True
        self.one_by_one = False  # whether it has room for one message only, each time
        self.sent: list[bytes] = []

    async def room(self) -> None:
        await until(lambda: self.has_room)

    def write(self, message: bytes) -> bool:
        self.sent.append(message)
        if self.one_by_one:
            self.has_room = False
            asyncio.get_running_loop().call_soon(setattr, self, "has_room", True)
        return True

    async def close(self, code: int, reason: str) -> None:
        pass

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
            cast("Connection", self.connection),
            GatewaySettings(topics=("*",), **settings),
            self.hub,
            past,
            ANYBODY,
            lambda token: None,
        )

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


def publish(writer: Writer, count: int) -> None:
    rows = np.zeros(count, writer.schemas["points"].payload_dtype)
    writer["points"].publish_batch(rows)


@contextlib.asynccontextmanager
async def running(client: FakeClient) -> AsyncGenerator[None]:
    """Its session runs meanwhile."""
    session = asyncio.create_task(client.session.run())
    try:
        yield
    finally:
        client.session.end(Ending(1000, ""))
        await session


async def catch_up_halfway(client: FakeClient) -> None:
    """Let it read the past until its queue is half full, and take no more."""
    client.connection.has_room = False
    client.subscribe(1, **{"from": 1})
    await until(lambda: client.session.outbox.fill >= 0.5)


def test_who_has_caught_up_with_a_topic_that_has_ended_meanwhile_is_told_so(bus_name):
    async def run(past: Past) -> None:
        client = FakeClient(bus_name, past, queue_bytes=1 << 20)
        async with running(client):
            await catch_up_halfway(client)
            (stream,) = client.hub.streams
            stream.source._end("as made")
            client.connection.has_room = True
            await until(lambda: client.connection.told('"unsubscribed"', "as made"))

    with Writer(bus_name, [POINTS], slots=1 << 15) as writer:
        publish(writer, 30_000)
        in_a_loop(run)


def test_who_catches_up_is_not_given_rows_of_another_schema(bus_name):
    async def run(past: Past) -> None:
        client = FakeClient(bus_name, past, queue_bytes=1 << 20)
        async with running(client):
            with Writer(bus_name, [POINTS], slots=1 << 15) as writer:
                publish(writer, 30_000)
                await catch_up_halfway(client)
            with Writer(bus_name, [Schema("points", {"other": "f8"})], slots=1 << 15) as writer:
                publish(writer, 30_000)
                client.connection.has_room = True
                await until(lambda: client.connection.told('"unsubscribed"', "another schema"))

    in_a_loop(run)


def fills_of(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How full it is after each message that is put."""
    fills, put = list[float](), outbox.put

    def watched(message: bytes) -> None:
        put(message)
        fills.append(outbox.fill)

    monkeypatch.setattr(outbox, "put", watched)
    return fills


def test_several_pasts_of_a_client_fill_its_queue_no_further_than_one(bus_name, monkeypatch):
    async def run(past: Past) -> None:
        client = FakeClient(bus_name, past, queue_bytes=1 << 20)
        outbox = client.session.outbox
        fills = fills_of(outbox, monkeypatch)
        async with running(client):
            client.connection.has_room = False
            for id in range(6):
                client.subscribe(id, where=[["value", "!=", id + 1]], **{"from": 1})
            await until(lambda: outbox.fill >= 0.5)
            client.connection.has_room = True
            await until(lambda: client.connection.told('"last":30000') == 6)
        assert max(fills) < 1

    with Writer(bus_name, [POINTS], slots=1 << 15) as writer:
        publish(writer, 30_000)
        in_a_loop(run)


NO_ROW = {"where": [["value", "==", 255]]}


@pytest.mark.parametrize(
    ("start", "options"),
    [
        (1, {}),
        (1, NO_ROW),
        (1, {**NO_ROW, "mode": "delayed", "conflate": ["value"]}),
        ("latest", {}),
        ("latest", NO_ROW),
    ],
    ids=["past", "none of the past", "none of the past, conflated", "present", "none of the present"],
)
def test_what_was_lost_is_told_although_the_batch_that_said_it_was_overwritten(bus_name, monkeypatch, start, options):
    """And although no row of it may be wanted."""
    whole, overwritten = TopicReader.poll, list[int]()

    def poll(reader: TopicReader, *arguments: Any) -> Any:
        batch = whole(reader, *arguments)
        if batch is None or overwritten:
            return batch
        overwritten.append(batch.first)
        reader.step_back(batch.first)
        return SimpleNamespace(first=batch.first, lost=3, copy=raising(Overrun(batch.first, batch.first)))

    async def run(past: Past) -> None:
        client = FakeClient(bus_name, past)
        async with running(client):
            if start == 1:
                publish(writer, 1)
            client.subscribe(1, **{"from": start}, **options)
            await until(lambda: client.connection.told('"subscribed"'))
            if start == "latest":
                publish(writer, 1)
            await until(lambda: client.connection.told('"rows"'))
        assert overwritten == [1]
        assert client.connection.told('"first":1,', '"lost":3,') == 1

    monkeypatch.setattr(TopicReader, "poll", poll)
    with Writer(bus_name, [POINTS]) as writer:
        in_a_loop(run)


def test_what_was_held_back_is_handed_out_as_the_client_takes_it(bus_name, monkeypatch):
    async def run(past: Past) -> None:
        client = FakeClient(bus_name, past, queue_bytes=1 << 20)
        outbox = client.session.outbox
        async with running(client):
            for id in (1, 2):
                client.subscribe(id, where=[["value", "!=", id]], slow={"newest": 40_000})
            await until(lambda: client.connection.told('"subscribed"') == 2)
            client.connection.has_room = False
            publish(writer, 60_000)
            await until(lambda: {stream.source.position for stream in client.hub.streams} == {60_000})
            fills = fills_of(outbox, monkeypatch)
            client.connection.one_by_one = client.connection.has_room = True
            await until(lambda: client.connection.told('"last":60000', '"conflated":true') == 2)
        assert max(fills) < 1

    with Writer(bus_name, [POINTS], slots=1 << 16) as writer:
        in_a_loop(run)


def test_connections_that_are_no_clients_yet_are_cut_off_where_there_are_too_many():
    async def nobody(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def run(past: Past) -> None:
        config, state = uvicorn.Config(nobody, limit_concurrency=2, log_config=None), ServerState()
        config.load()
        transports = [Mock(get_extra_info=lambda name: None) for _ in range(3)]
        for transport in transports:
            _FirmHttp(config, state, {}).connection_made(transport)
        assert [transport.abort.called for transport in transports] == [False, False, True]

    in_a_loop(run)


async def accepted(transport: Mock, *, messages_burst: int = 100) -> Connection:
    """A connection whose handshake is done; what is sent over it only `transport` knows."""

    async def accepting(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(TIMEOUT_S)

    config = uvicorn.Config(accepting, ws_max_size=100, log_config=None)
    config.load()
    connection = Connection(config, ServerState(), {}, messages_per_s=1e-9, messages_burst=messages_burst)
    connection.connection_made(transport)
    connection.data_received(handshake("localhost"))
    await until(lambda: transport.write.called)
    transport.write.reset_mock()
    return connection


def open_transport() -> Mock:
    return Mock(get_extra_info=lambda name: None, is_closing=lambda: False)


PING = bytes([0x89, 0x81, 0, 0, 0, 0]) + b"p"
PONG = bytes([0x8A, 0x81, 0, 0, 0, 0]) + b"p"
BEGUN, MORE = (
    bytes([0x01, 0x80, 0, 0, 0, 0]),
    bytes([0x00, 0x80, 0, 0, 0, 0]),
)  # a message without a byte, and no end of it


def test_a_connection_that_uvicorn_has_begun_to_close_is_not_closed_once_more():
    async def run(past: Past) -> None:
        transport = open_transport()
        connection = await accepted(transport)
        too_large = bytes([0x81, 0xFE]) + (1000).to_bytes(2) + bytes(4 + 1000)
        connection.data_received(too_large)
        assert transport.write_eof.called
        told = transport.write.call_count
        await connection.close(4429, "too many messages")
        connection.data_received(too_large)
        assert transport.write.call_count == told

    in_a_loop(run)


def test_a_pong_that_finds_no_room_is_not_sent():
    async def run(past: Past) -> None:
        transport = open_transport()
        connection = await accepted(transport)
        connection.pause_writing()
        connection.data_received(20 * PING)
        assert not transport.write.called
        connection.resume_writing()
        connection.data_received(PING)
        transport.write.assert_called_once_with(b"\x8a\x01p")

    in_a_loop(run)


def test_of_a_message_that_has_no_end_and_no_byte_nothing_is_kept():
    async def run(past: Past) -> None:
        connection = await accepted(open_transport())
        connection.data_received(BEGUN + 90 * MORE)
        assert len(connection.frames) == 1
        connection.data_received(bytes([0x80, 0x82, 0, 0, 0, 0]) + b"{}")
        assert await connection.queue.get() == {"type": "websocket.receive", "text": "{}"}

    in_a_loop(run)


@pytest.mark.parametrize("sent", [PING, PONG, MORE], ids=["ping", "pong", "continuation"])
def test_who_is_cut_off_over_its_frames_is_not_listened_to_any_more(sent, monkeypatch):
    """However many of them have come at once, few are looked at: all the others wait meanwhile."""

    async def run(past: Past) -> None:
        transport = open_transport()
        connection = await accepted(transport, messages_burst=50)
        looked_at, look = list[int](), connection.conn.recv_frame
        monkeypatch.setattr(connection.conn, "recv_frame", lambda frame: (looked_at.append(1), look(frame)))
        connection.data_received(BEGUN + 40_000 * sent)
        assert 50 < len(looked_at) < 1000
        assert transport.write.call_args[0][0].endswith(b"\x88\x13" + (4429).to_bytes(2) + b"too many messages")
        assert await connection.queue.get() == {
            "type": "websocket.disconnect",
            "code": 4429,
            "reason": "too many messages",
        }
        written, looked = transport.write.call_count, len(looked_at)
        connection.data_received(1000 * sent)
        assert (transport.write.call_count, len(looked_at)) == (written, looked)

    in_a_loop(run)


def test_where_a_close_finds_no_room_the_connection_breaks_off(monkeypatch):
    monkeypatch.setattr(gateway_connection, "CLOSE_S", 0.01)

    async def run(past: Past) -> None:
        transport = open_transport()
        connection = await accepted(transport)
        connection.pause_writing()
        await connection.close(4401, "no token was shown in time")
        assert (transport.abort.call_count, transport.write.called) == (1, False)
        for sent in (200 * PING, b"\xff" * 100):
            transport = open_transport()
            connection = await accepted(transport)
            connection.pause_writing()
            connection.data_received(sent)
            assert (transport.abort.call_count, transport.write.called) == (1, False)
        transport = open_transport()
        connection = await accepted(transport)
        connection.keepalive_timeout()
        assert not transport.abort.called
        transport = open_transport()
        connection = await accepted(transport)
        connection.pause_writing()
        connection.keepalive_timeout()
        assert transport.abort.called

    in_a_loop(run)


def test_it_is_known_which_side_closed():
    async def run(past: Past) -> None:
        connection = await accepted(open_transport())
        assert connection.cut_off is None
        connection.data_received(bytes([0x88, 0x82, 0, 0, 0, 0]) + (1001).to_bytes(2))
        assert connection.cut_off is None
        connection = await accepted(open_transport())
        connection.keepalive_timeout()
        assert connection.cut_off == (1011, "keepalive ping timeout")

    in_a_loop(run)


def test_who_waits_for_room_while_a_bus_without_a_log_begins_again_gets_all_of_the_new_stream(bus_name):
    async def run(past: Past) -> None:
        client = FakeClient(bus_name, past, queue_bytes=1 << 20)
        async with running(client):
            with Writer(bus_name, [POINTS], slots=1 << 15) as writer:
                publish(writer, 30_000)
                await catch_up_halfway(client)
            with Writer(bus_name, [POINTS], slots=1 << 15) as writer:
                publish(writer, 31_000)
                client.connection.has_room = True
                await until(lambda: client.connection.told('"last":31000'))
        reset = next(at for at, message in enumerate(client.connection.sent) if b'"reset"' in message)
        assert b'"sequence":0,' in client.connection.sent[reset]
        assert b'"first":1,' in client.connection.sent[reset + 1]

    in_a_loop(run)
