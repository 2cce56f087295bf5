"""Reading a stream in order: an ephemeral consumer, asked for more while what it sent is being used."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.msg import Msg

from .api import call
from .connection import Connection
from .stream import NoAnswer, Stored

__all__ = ["Consumer"]

PULL_COUNT = 16  # messages that are asked for at once; with two such requests under way at most 32 messages wait here
PULL_S, HEARTBEAT_S = 30, 0.3
SILENCE_S = 1.0
MAKE_S = 0.5
UNUSED_S = 5  # a consumer of nobody's goes by itself
NS = 1_000_000_000


class Consumer:
    """Messages from one sequence on, without a gap. `end` also tells the server.

    broken: why it will bring nothing more; make a new one. "" while it works.
    """

    def __init__(self, connection: Connection, stream: str, name: str, first: int) -> None:
        self._connection, self._stream, self._name = connection, stream, name
        self._generation = connection.generation
        self.next = first
        self.broken = ""
        self._inbox = ""
        self._waiting: deque[Stored] = deque()
        self._news = asyncio.Event()
        self._to_come = 0  # messages that were asked for; the server spreads them over the requests as it likes
        self._heard_at = asyncio.get_running_loop().time()
        self._end: Callable[[], Awaitable[None]] | None = None

    @staticmethod
    async def make(connection: Connection, stream: str, name: str, first: int) -> Consumer:
        """Raises NoAnswer, ApiError."""
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": UNUSED_S * NS,
            "mem_storage": True,
            "num_replicas": 1,
        }
        body = {"stream_name": stream, "config": config, "action": "create"}
        made = Consumer(connection, stream, name, first)
        await call(connection, f"CONSUMER.CREATE.{stream}.{name}", body, MAKE_S)
        made._inbox, made._end = await connection.inbox(made._on_message)
        await made._ask()
        return made

    async def read(self, timeout_s: float) -> list[Stored]:
        """The messages that are there, in order, after waiting for one; empty after the timeout, or when it is broken."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not self._waiting and not self._is_broken():
            await self._ask()
            self._news.clear()
            left_s = min(deadline, self._heard_at + SILENCE_S) - loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, left_s)):
                    await self._news.wait()
            if loop.time() >= deadline:
                break
        stored: list[Stored] = []
        while self._waiting:
            message = self._waiting.popleft()
            if message.sequence < self.next:
                continue
            if message.sequence > self.next:
                self.broken = f"message {self.next} is wanted, and {message.sequence} came"
                self._waiting.clear()
                break
            self.next += 1
            stored.append(message)
        if stored:
            await self._ask()
        return stored

    async def end(self) -> None:
        self.broken = self.broken or "ended"
        if self._end is not None and self._generation == self._connection.generation:
            with contextlib.suppress(NoAnswer):
                await self._end()
                await self._connection.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", b"")

    def _is_broken(self) -> bool:
        if not self.broken:
            if self._generation != self._connection.generation or not self._connection.server:
                self.broken = "the connection was lost"
            elif asyncio.get_running_loop().time() - self._heard_at >= SILENCE_S:
                self.broken = "nothing was heard from it"
        return bool(self.broken)

    async def _ask(self) -> None:
        """Have a request more under way than what it brings next, unless what came is still unused."""
        while not self.broken and self._to_come + len(self._waiting) <= PULL_COUNT:
            self._to_come += PULL_COUNT
            body = {"batch": PULL_COUNT, "expires": PULL_S * NS, "idle_heartbeat": int(HEARTBEAT_S * NS)}
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
            try:
                await self._connection.publish(subject, msgspec.json.encode(body), reply=f"{self._inbox}.pull")
            except NoAnswer as error:
                self.broken = str(error)

    async def _on_message(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            self._waiting.append(Stored(message.metadata.sequence.stream, message.data))
            self._to_come -= 1
        elif status == "408":  # a request is over; so many messages did not come for it
            self._to_come -= int(headers.get("Nats-Pending-Messages", PULL_COUNT))
        elif status != "100":
            self.broken = f"{status} {headers.get('Description', '')}".strip()
        self._news.set()
