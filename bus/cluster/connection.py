"""A connection to whichever of the servers can be reached, made anew for as long as it takes.

nats-py's own way of reconnecting is not used: it can wait for ever for a server that stands still, keeps what was to be sent for
later, and gives up for good on some errors. Here a client lives as long as its connection, and nothing outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from .access import Access
from .stream import NoAnswer

__all__ = ["Connection", "cancel"]

CONNECT_S = 1.0  # for TCP, TLS and the greeting, each
ATTEMPT_S = 2.0  # for all of them
PAUSE_S = 0.25  # when no server could be reached
LOOK_S = 0.05  # how often a client is asked whether it still lives
PING_S = 1  # two without an answer, and the server is given up
UNHEARD_S = (
    2.0  # so long the stream was not heard from, and another server is tried: this one may be cut off from its peers
)
CLOSE_S = 1.0
CANCEL_S = 0.5
PENDING_BYTES = 4 << 20
LATE = "no answer in time"
FIRST = "its tls block needs `handshake_first: true`"

# nats-py makes its TLS streams in a way that lets asyncio log this whenever the other side ends one.
SAID_FOR_NOTHING = "returning true from eof_received() has no effect when using ssl"
logging.getLogger("asyncio").addFilter(lambda record: record.msg != SAID_FOR_NOTHING)

Handler = Callable[[Msg], Awaitable[None]]


class Connection:
    """Ask with `request`, listen with `listen`. generation: counts the connections; None of what was asked outlives one.

    told: hears in words what happens, for the log.
    """

    def __init__(self, access: Access, told: Callable[[str], None] = lambda _words: None) -> None:
        self._access, self._told = access, told
        self._context = None if access.tls is None else access.tls.context()
        self._client: Client | None = None
        self._there = asyncio.Event()
        self._handlers: dict[str, Handler] = {}
        self._asked: dict[str, asyncio.Queue[Msg | NoAnswer]] = {}
        self._numbers = itertools.count(1)
        self._inbox = ""
        self._reasons: dict[str, str] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._heard_at = 0.0  # the stream, on the loop's clock
        self.generation = 0
        self.server = ""  # that it is connected to; empty: none
        self.complaint = ""  # what the servers refused
        self._next = 0  # of the servers: where to go on when there is no connection
        self._keeper = asyncio.create_task(self._keep())

    async def connected(self, timeout_s: float) -> None:
        """Wait for a connection. Raises NoAnswer saying of each server why there is none."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._there.wait()
        except TimeoutError:
            raise NoAnswer(self.why_not()) from None

    async def request(
        self, subject: str, payload: bytes = b"", timeout_s: float = 1.0, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Ask, and have the answer. Raises NoAnswer after the timeout, or as soon as the connection is lost or nobody is there."""
        answers = await self.gather(subject, payload, timeout_s, 1, headers)
        if not answers:
            raise NoAnswer(f"no answer to {subject} within {timeout_s:g} s")
        return answers[0]

    async def gather(
        self,
        subject: str,
        payload: bytes = b"",
        timeout_s: float = 1.0,
        enough: int = 1000,
        headers: Mapping[str, str] | None = None,
    ) -> list[bytes]:
        """The answers of all who answer within the timeout, or of the first `enough`. Raises NoAnswer as `request` does."""
        number, answers = str(next(self._numbers)), list[bytes]()
        heard = self._asked[number] = asyncio.Queue[Msg | NoAnswer]()
        try:
            async with asyncio.timeout(timeout_s):
                client = await self._connected_client()
                reply = f"{self._inbox}.{number}"
                await client.publish(subject, payload, reply=reply, headers=dict(headers) if headers else None)
                while len(answers) < enough:
                    message = await heard.get()
                    if isinstance(message, NoAnswer):
                        raise message
                    if message.headers and message.headers.get("Status") == "503":
                        raise NoAnswer(f"nobody is there to answer {subject}")
                    answers.append(message.data)
        except TimeoutError:
            if not self._there.is_set():
                raise NoAnswer(self.why_not()) from None
        except (OSError, nats.errors.Error) as error:
            raise NoAnswer(f"no answer to {subject}: {_words(error)}") from error
        finally:
            del self._asked[number]
        return answers

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send to whoever listens. Raises NoAnswer where there is no connection."""
        client = self._client
        if client is None:
            raise NoAnswer(self.why_not())
        try:
            await client.publish(subject, payload, reply=reply)
        except (OSError, nats.errors.Error) as error:
            raise NoAnswer(f"{subject}: {_words(error)}") from error

    async def listen(self, subject: str, handler: Handler) -> None:
        """Call `handler` with what comes on a subject, over this connection and those after it."""
        self._handlers[subject] = handler
        if self._client is not None:
            await _subscribe(self._client, subject, handler)

    async def inbox(self, handler: Handler) -> tuple[str, Callable[[], Awaitable[None]]]:
        """A subject of our own, and how to end it: what comes below it (`subject.x`) goes to the handler, by this connection only.

        Raises NoAnswer where there is no connection.
        """
        client = self._client
        if client is None:
            raise NoAnswer(self.why_not())
        subject = client.new_inbox()
        try:
            subscription = await _subscribe(client, f"{subject}.*", handler)
        except (OSError, nats.errors.Error) as error:
            raise NoAnswer(f"{subject}: {_words(error)}") from error

        async def end() -> None:
            with contextlib.suppress(OSError, nats.errors.Error):
                await subscription.unsubscribe()

        return subject, end

    def heard(self) -> None:
        """The stream was heard from, over the server that is connected to."""
        self._heard_at = asyncio.get_running_loop().time()

    def unheard(self) -> None:
        """The stream was not heard from, though it was asked. After some time of that another server is tried."""
        silent_s = asyncio.get_running_loop().time() - self._heard_at
        if self._client is not None and len(self._access.servers) > 1 and silent_s >= UNHEARD_S:
            self._lost(f"{self.server} does not reach the stream; another server is tried")

    def move_to(self, server: str) -> None:
        """Go on over this server if it is one of those given, and over another where it cannot be reached."""
        if server != self.server and server in self._access.servers:
            self._next = self._access.servers.index(server)
            self._lost(f"going on over {server}")

    def why_not(self) -> str:
        """Why there is no connection; "" while there is one."""
        if self._client is not None:
            return ""
        told = "; ".join(f"{server}: {self._reasons.get(server, 'not reached')}" for server in self._access.servers)
        return f"no server can be reached: {told}"

    async def close(self) -> None:
        await cancel(self._keeper)
        if not self._keeper.cancelled():
            self._keeper.result()
        self._lost("closed")
        if self._closing:
            await asyncio.wait(self._closing)

    async def _connected_client(self) -> Client:
        while self._client is None:
            await self._there.wait()
        return self._client

    async def _keep(self) -> None:
        servers = self._access.servers
        while True:
            for step in range(len(servers)):
                at = (self._next + step) % len(servers)
                if await self._connect(servers[at]):
                    self._next = at + 1
                    break
            else:
                await asyncio.sleep(PAUSE_S)
                continue
            while self._client is not None and self._client.is_connected:
                await asyncio.sleep(LOOK_S)
            if self._client is not None:
                self._lost(f"the connection to {self.server} is lost")

    async def _connect(self, server: str) -> bool:
        reason: list[BaseException] = []

        async def failed(error: Exception) -> None:
            reason.append(error)
            if self._client is client and "permissions violation" in str(error).lower():
                self.complaint = f"{server}: {_words(error)}"
                self._told(self.complaint)

        client = Client()
        inbox = client.new_inbox()
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await client.connect(**self._options(server), error_cb=failed)
                await _subscribe(client, f"{inbox}.*", self._answered)
                for subject, handler in self._handlers.items():
                    await _subscribe(client, subject, handler)
        except (OSError, nats.errors.Error, TimeoutError) as error:
            words = _words(reason[-1] if reason else error)
            if words == LATE:
                words += "; does it expect TLS?" if self._context is None else f"; does it begin with TLS? {FIRST}"
            if self._reasons.get(server) != words:
                self._reasons[server] = words
                self._told(f"{server}: {words}")
            self._discard(client)
            return False
        except BaseException:
            self._discard(client)
            raise
        self._reasons.pop(server, None)
        self._client, self._inbox, self.server = client, inbox, server
        self.generation += 1
        self.heard()
        self._there.set()
        self._told(f"connected to {server}")
        return True

    def _options(self, server: str) -> dict[str, Any]:
        access = self._access
        options: dict[str, Any] = {
            "servers": [f"{'nats' if access.tls is None else 'tls'}://{server}"],
            "name": access.name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": CONNECT_S,
            "ping_interval": PING_S,
            "max_outstanding_pings": 2,
            "pending_size": PENDING_BYTES,
            "flush_timeout": CONNECT_S,
            "user": access.user,
            "password": access.password,
        }
        if self._context is not None:
            # First TLS, then the greeting: nats-py would go on in the clear with whoever greets it without asking for TLS.
            options |= {"tls": self._context, "tls_handshake_first": True}
        return options

    async def _answered(self, message: Msg) -> None:
        heard = self._asked.get(message.subject.rpartition(".")[2])
        if heard is not None:
            heard.put_nowait(message)

    def _lost(self, why: str) -> None:
        client, self._client, self.server = self._client, None, ""
        self._there.clear()
        for heard in self._asked.values():
            heard.put_nowait(NoAnswer(why))
        if client is not None:
            self._told(why)
            self._discard(client)

    def _discard(self, client: Client) -> None:
        task = asyncio.create_task(_close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait for its end. One that just gets what it waits for may go on (as wait_for does): again, then."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_S)


async def _subscribe(client: Client, subject: str, handler: Handler) -> Subscription:
    return await client.subscribe(subject, cb=handler)  # pyright: ignore[reportUnknownMemberType]


async def _close(client: Client) -> None:
    """In good order, or by force where the other side stands still: it would wait until that has read what was sent."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_S):
            await client.close()
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def _words(error: BaseException) -> str:
    """What a person can do something with. nats-py wraps some errors in texts of its own."""
    if isinstance(error, TimeoutError | nats.errors.TimeoutError):
        return LATE
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {error.verify_message}"
    if isinstance(error, socket.gaierror):  # its numbers are the resolver's own
        return f"{error.strerror}".lower()
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno).lower()
    text = (str(error) or type(error).__name__).removeprefix("nats: ").strip()
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return f"it does not begin with TLS; {FIRST}"
    if "Authorization Violation" in text:
        return "it refuses this user or password"
    return text
