"""The stream that the nodes share, kept by JetStream."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from ...storage.decodable import decodable
from ..errors import BusError
from .access import Access, StreamSettings
from .api import ApiError, StreamInfo, ask, call, check, convert
from .connection import Connection
from .consumer import Consumer
from .server_checks import check_servers
from .stream import NoAnswer, Refused, Shorter, Stored, StreamFull, StreamState, Trimmed

__all__ = ["JetStream", "StreamDiffers"]

Kind = TypeVar("Kind")

APPEND_S = 1.0
WAIT_S = 0.4
POLL_S = 0.01
CONSUMER_PAUSE_S = 1.0
PAUSE_S = 0.2
FORMAT = "1"
DUPLICATE_WINDOW_NS = 120 * 1_000_000_000

# JetStream's error numbers
NOT_FOUND, NAME_IN_USE, NO_MESSAGE, WRONG_LAST, WRONG_PURGE = 10059, 10058, 10037, 10071, 10110
NO_ROOM = {10077, 10002, 10023, 10028, 10047}  # the stream's own limit (and a failed write); an account's or a server's
TELLING = {NO_MESSAGE, WRONG_LAST, *NO_ROOM}  # only a leader of the stream says so, perhaps one that is cut off
NEVER = {
    10039,
    10052,
    10074,
    10025,
    10065,
}  # asking again changes nothing: not for this account, bad settings, one server alone


class StreamDiffers(BusError):
    """The stream that is there is not the one that the configuration asks for."""


class _Ack(msgspec.Struct, frozen=True):
    seq: int
    stream: str = ""


class _Kept(msgspec.Struct, frozen=True):
    seq: int
    data: bytes = b""  # base64 in JSON, which msgspec undoes


@decodable
class _Got(msgspec.Struct, frozen=True):
    message: _Kept


class JetStream:
    """A `Stream`. log_id: a number that the stream was given when it was made, the same for every node, never 0."""

    def __init__(self, connection: Connection, settings: StreamSettings, log_id: int) -> None:
        self.connection, self.settings, self.log_id = connection, settings, log_id
        self._consumer: Consumer | None = None
        self._no_consumer_before = 0.0  # on the loop's clock

    @staticmethod
    async def open(
        access: Access,
        settings: StreamSettings,
        timeout_s: float = 30.0,
        told: Callable[[str], None] = lambda _words: None,
        *,
        log_id: int = 0,
    ) -> JetStream:
        """Connect, make the stream if it is not there, and check it and its servers.

        log_id: of a stream that is made now; 0: any. told: hears in words what happens to the connection, for the log.
        Raises NoAnswer when that took too long, StreamDiffers, ServersUnfit, ApiError; OSError for files of certificates.
        """
        connection = Connection(access, told)
        try:
            async with asyncio.timeout(timeout_s):
                info = await _found_or_made(connection, settings, log_id or secrets.randbits(63) | 1)
                found = _log_id(info, settings)
                await check_servers(connection, info.servers, settings.synced)
            return JetStream(connection, settings, found)
        except TimeoutError:
            words = connection.complaint or connection.why_not()
            await connection.close()
            raise NoAnswer(
                f"the stream {settings.name} did not answer within {timeout_s:g} s{f' ({words})' if words else ''}"
            ) from None
        except BaseException:
            await connection.close()
            raise

    async def append(self, payload: bytes, expected: int, message_id: str) -> int:
        headers = {"Nats-Expected-Last-Sequence": str(expected), "Nats-Msg-Id": message_id}
        try:
            return await self._hear(self._append(payload, headers))
        except ApiError as error:
            if error.code == WRONG_LAST:
                raise Refused(f"message {expected} is not the last one: {error}") from error
            if error.code in NO_ROOM:
                raise StreamFull(f"the stream {self.settings.name} has no room: {error}") from error
            raise NoAnswer(str(error)) from error

    async def _append(self, payload: bytes, headers: dict[str, str]) -> int:
        return convert(
            check(await self.connection.request(self.settings.subject, payload, APPEND_S, headers)), _Ack
        ).seq

    async def read(self, first: int) -> list[Stored]:
        for _ in range(2):
            consumer = await self._consumer_at(first)
            if consumer is None:
                return await self._read_singly(first)
            if stored := await consumer.read(WAIT_S):
                self.connection.heard()
                return stored
            if not consumer.broken:
                break
        # Nothing came. Whether there is nothing only the stream knows: a consumer may be cut off from it.
        try:
            state = await self._state_around(first)
        except (Trimmed, Shorter):
            await self._drop_consumer()
            raise
        if first <= state.last:
            consumer = await self._consumer_at(first)
            if consumer is not None and (stored := await consumer.read(WAIT_S)):
                return stored
            await self._drop_consumer()
            raise NoAnswer(f"the stream {self.settings.name} has message {first}, and did not send it in time")
        return []

    async def _read_singly(self, first: int) -> list[Stored]:
        """Read without a consumer, which only the leader of all streams can make: after its death that takes many seconds."""
        deadline = asyncio.get_running_loop().time() + WAIT_S
        while (stored := await self.get(first)) is None:
            if asyncio.get_running_loop().time() >= deadline:
                await self._state_around(first)
                return []
            await asyncio.sleep(POLL_S)
        return [stored]

    async def _state_around(self, first: int) -> StreamState:
        """The stream's state. Raises Trimmed, Shorter where it does not go on with this message."""
        state = await self.state()
        if first < state.first:
            raise Trimmed(first, state.first)
        if first > state.last + 1:
            raise Shorter(first - 1, state.last)
        return state

    async def get(self, sequence: int) -> Stored | None:
        try:
            got = await self._ask("STREAM.MSG.GET", _Got, {"seq": sequence})
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise NoAnswer(str(error)) from error
        return Stored(got.message.seq, got.message.data)

    async def state(self) -> StreamState:
        try:
            return await self._hear(self._state())
        except ApiError as error:
            raise NoAnswer(str(error)) from error

    async def _state(self) -> StreamState:
        info = await ask(self.connection, f"STREAM.INFO.{self.settings.name}", StreamInfo)
        if not info.is_led:
            raise NoAnswer(f"the stream {self.settings.name} has no leader")
        return info.as_state()

    async def servers(self) -> Sequence[str]:
        """The names of those that keep the stream; empty: one server, whatever its name. Raises NoAnswer."""
        try:
            return (await ask(self.connection, f"STREAM.INFO.{self.settings.name}", StreamInfo)).servers
        except ApiError as error:
            raise NoAnswer(str(error)) from error

    async def trim(self, below: int) -> None:
        try:
            await self._hear(call(self.connection, f"STREAM.PURGE.{self.settings.name}", {"seq": below}))
        except ApiError as error:
            raise NoAnswer(str(error)) from error

    async def close(self) -> None:
        await self._drop_consumer()
        await self.connection.close()

    async def _ask(self, verb: str, kind: type[Kind], body: object = None) -> Kind:
        return await self._hear(ask(self.connection, f"{verb}.{self.settings.name}", kind, body))

    async def _hear(self, asking: Coroutine[Any, Any, Kind]) -> Kind:
        """What comes of asking the stream; the connection is told whether it was heard from. A refusal tells neither."""
        try:
            answer = await asking
        except ApiError as error:
            if error.code not in TELLING:
                self.connection.unheard()
            raise
        except NoAnswer:
            self.connection.unheard()
            raise
        self.connection.heard()
        return answer

    async def _consumer_at(self, first: int) -> Consumer | None:
        """The consumer whose next message is this one; a new one if need be. None: none can be made now."""
        consumer = self._consumer
        if consumer is not None and not consumer.broken and consumer.next == first:
            return consumer
        await self._drop_consumer()
        loop = asyncio.get_running_loop()
        if loop.time() < self._no_consumer_before:
            return None
        try:
            name = f"r{secrets.token_hex(8)}"
            self._consumer = await Consumer.make(self.connection, self.settings.name, name, first)
        except (NoAnswer, ApiError):
            self._no_consumer_before = loop.time() + CONSUMER_PAUSE_S
        return self._consumer

    async def _drop_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.end()


async def _found_or_made(connection: Connection, settings: StreamSettings, log_id: int) -> StreamInfo:
    """The stream as it is; made if it is not there. Several nodes may do this at once: the first one's is everybody's."""
    while True:
        try:
            return await ask(connection, f"STREAM.INFO.{settings.name}", StreamInfo)
        except ApiError as error:
            if error.code == NOT_FOUND:
                await _make(connection, settings, log_id)
            elif error.code in NEVER:
                raise
        except NoAnswer:
            pass
        connection.unheard()
        await asyncio.sleep(PAUSE_S)


async def _make(connection: Connection, settings: StreamSettings, log_id: int) -> None:
    config = {
        "name": settings.name,
        "subjects": [settings.subject],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": settings.replicas,
        "max_bytes": settings.bytes_max,
        "max_age": 0,
        "max_msgs": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "duplicate_window": DUPLICATE_WINDOW_NS,
        "deny_delete": True,
        "metadata": {"ringmain.format": FORMAT, "ringmain.log_id": str(log_id)},
    }
    try:
        await call(connection, f"STREAM.CREATE.{settings.name}", config, timeout_s=3.0)
    except ApiError as error:
        if error.code in NEVER:
            raise ApiError(error.code, f"the stream {settings.name} cannot be made: {error}") from error
        connection.complaint = f"the stream cannot be made: {error}"  # told if that stays so
    except NoAnswer:
        pass  # it may be there all the same: looked for again


def _log_id(info: StreamInfo, settings: StreamSettings) -> int:
    """Check that the stream is what it should be. Raises StreamDiffers."""
    found, metadata = info.config, info.config.metadata
    if "ringmain.log_id" not in metadata:
        raise StreamDiffers(
            f"the stream {settings.name} is there, and not made by ringmain: choose another name for ours"
        )
    if metadata.get("ringmain.format") != FORMAT:
        words = f"format {metadata.get('ringmain.format')}; this release knows {FORMAT}"
        raise StreamDiffers(f"the stream {settings.name} has {words}: update this node")
    wanted = {
        "subjects": [settings.subject],
        "num_replicas": settings.replicas,
        "max_bytes": settings.bytes_max,
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": 0,
        "max_msgs": -1,
        "duplicate_window": DUPLICATE_WINDOW_NS,
        "deny_delete": True,
    }
    for name, value in wanted.items():
        if (there := getattr(found, name)) != value:
            raise StreamDiffers(
                f"the stream {settings.name} has {name} = {there}, and {value} is wanted: "
                "it stays as it was made: change the configuration"
            )
    return int(metadata["ringmain.log_id"])
