"""One client, from its acceptance to its end: it asks, and is sent what it asked for until either side has enough.

One task receives, one sends, and each subscription that is catching up has one. Whatever ends the session (the client, a
limit, the gateway's stop) sets `_ending`, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

from ...bus import BusError, NotFound, attach
from ...bus.segments import split_address
from ...storage import StorageError
from ..service_log import event
from .connection import Connection, framed
from .frames import describe, encode_message
from .hub import Busy, Hub
from .limits import TOO_MANY, Refused
from .outbox import Outbox
from .past import Ahead, Past
from .requests import Authenticate, BadMessage, Ping, Subscribe, Unsubscribe, read_request
from .settings import GatewaySettings
from .stream import Stream
from .subscription import Subscription
from .tokens import Token, find_token, matches, may_read

__all__ = ["Event", "Receive", "Send", "Session"]

Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

NORMAL, GOING_AWAY, BINARY, DEFECT = 1000, 1001, 1003, 1011
NOT_AUTHENTICATED, TOO_SLOW = 4401, 4408
REASON_CHARS = 40  # of a close frame, which has room for 123 bytes


class Refusal(Exception):
    """A message that changes nothing, and is answered by an error."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a session ends. drain: what waits is sent before."""

    code: int
    reason: str
    drain: bool = False


@dataclass(slots=True)
class _Held:
    """A subscription, and what goes with it: its use of a stream, and its catching up."""

    subscription: Subscription
    stack: AsyncExitStack
    catching_up: asyncio.Task[None] | None = None


class Session:
    """token: None where the client still has to show one; count_token: called then, and raises Refused. `run` is its whole life."""

    def __init__(
        self,
        receive: Receive,
        connection: Connection,
        settings: GatewaySettings,
        hub: Hub,
        past: Past,
        token: Token | None,
        count_token: Callable[[Token], None],
    ) -> None:
        self.token, self._count_token = token, count_token
        self._receive, self._connection = receive, connection
        self._settings, self._hub, self._past = settings, hub, past
        self.outbox = Outbox(connection, settings.queue_bytes, self._hand_out_held)
        self._held: dict[int, _Held] = {}
        self._dropping = set[asyncio.Task[None]]()
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def end(self, ending: Ending) -> None:
        """End the session, unless something else has before."""
        if not self._ending.done():
            self._ending.set_result(ending)

    async def run(self) -> Ending:
        """Returns why it ended."""
        sending = asyncio.create_task(self.outbox.run())
        receiving = asyncio.create_task(self._listen())
        for task in (sending, receiving):
            task.add_done_callback(self._on_done)
        try:
            ending = await self._ending
            receiving.cancel()
            await asyncio.wait((receiving,))
            subscriptions = [held.subscription for held in self._held.values()]
            for id in tuple(self._held):
                await self._drop(id)
            if ending.drain:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.drain_s):
                        await self._drain(subscriptions)
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.wait((sending, receiving, *self._dropping))
            for id in tuple(self._held):
                await self._drop(id)
        if ending.code != NORMAL:
            with contextlib.suppress(OSError):
                await self._connection.close(ending.code, ending.reason[:REASON_CHARS])
        return ending

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            event("a client's session failed", level=logging.ERROR, error=error)
            self.end(Ending(DEFECT, "the gateway failed"))

    # --- sending ----------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, **facts: Any) -> None:
        self.outbox.put(framed(encode_message(kind, **facts)))
        if self.outbox.fill > 1:
            self.end(Ending(TOO_SLOW, "the queue is full of answers that were not read"))

    def _hand_out_held(self) -> None:
        for id in tuple(self._held):
            if self.outbox.fill >= 0.5:
                return  # the others are next
            held = self._held[id] = self._held.pop(id)
            held.subscription.hand_out_held()

    async def _drain(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            while subscription.holds_back:
                await self.outbox.room()
                subscription.hand_out_held()
        await self.outbox.drained()

    # --- receiving --------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        if self.token is None:
            try:
                async with asyncio.timeout(self._settings.authenticate_s):
                    await self._authenticate()
            except TimeoutError:
                self.end(Ending(NOT_AUTHENTICATED, "no token was shown in time"))
            if self.token is None:
                return
        while (text := await self._receive_text()) is not None:
            try:
                await self._answer(text)
            except BadMessage as error:
                self._tell("error", id=error.id, code="bad_message", reason=str(error))

    async def _receive_text(self) -> str | None:
        """The client's next message; None where the session ends instead."""
        received = await self._receive()
        if received["type"] == "websocket.disconnect":
            if (cut_off := self._connection.cut_off) is not None:
                self.end(Ending(*cut_off))
            elif "reason" in received:  # a close frame has one, if an empty one
                self.end(Ending(NORMAL, f"closed by the client, {received['code']}"))
            else:
                self.end(Ending(NORMAL, "the connection was lost"))
        elif received.get("text") is None:
            self.end(Ending(BINARY, "text is expected, not binary messages"))
        else:
            return received["text"]
        return None

    async def _authenticate(self) -> None:
        text = await self._receive_text()
        if text is None:
            return
        try:
            request = read_request(text)
        except BadMessage:
            request = None
        token = find_token(self._settings.tokens, request.token) if isinstance(request, Authenticate) else None
        if token is None:
            self.end(Ending(NOT_AUTHENTICATED, "a known token is expected first"))
            return
        try:
            self._count_token(token)
        except Refused as refused:
            self.end(Ending(TOO_MANY, str(refused)))
            return
        self.token = token
        self._tell("authenticated", name=token.name)

    async def _answer(self, text: str) -> None:
        request = read_request(text)
        if isinstance(request, Ping):
            self._tell("pong", id=request.id)
        elif isinstance(request, Authenticate):
            raise BadMessage("the client is authenticated, or nobody need be", None)
        else:
            try:
                if isinstance(request, Subscribe):
                    await self._subscribe(request)
                else:
                    await self._unsubscribe(request)
            except Refusal as refusal:
                self._tell("error", id=request.id, code=refusal.code, reason=str(refusal))

    # --- subscriptions ----------------------------------------------------------------------------------------------

    async def _subscribe(self, request: Subscribe) -> None:
        self._check(request)
        async with AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(self._hub.stream(request))
                if any(held.subscription.stream is stream for held in self._held.values()):
                    raise Refusal("already", "an identical subscription is there; its rows come once")
                subscription = Subscription(
                    request,
                    stream,
                    self.outbox,
                    self._settings.queue_bytes,
                    lambda reason: self.end(Ending(TOO_SLOW, reason)),
                    self._on_end,
                )
            except (BusError, StorageError, OSError, ValueError, Busy) as error:
                raise _refusal(error) from error
            stack.callback(subscription.leave)
            held = self._held[request.id] = _Held(subscription, stack.pop_all())
        if request.start == "latest":
            self._confirm(request, stream, subscription.position)
            subscription.join()
        else:
            start = 0 if request.start == "earliest" else request.start
            held.catching_up = asyncio.create_task(self._catch_up(request, subscription, start))
            held.catching_up.add_done_callback(self._on_done)

    def _check(self, request: Subscribe) -> None:
        if request.id in self._held:
            raise Refusal("already", f"subscription {request.id} is there")
        if len(self._held) >= self._settings.subscriptions_max:
            raise Refusal("limit", f"{self._settings.subscriptions_max} subscriptions are there; no more may be")
        try:
            split_address(request.topic)
        except ValueError as error:
            raise Refusal("bad_request", f"topic: {error}") from None
        offered = matches(request.topic, self._settings.topics)
        if self.token is None or not offered or not may_read(self.token, request.topic):
            raise Refusal("forbidden", f"{request.topic} may not be read here with this token")

    def _confirm(self, request: Subscribe, stream: Stream, sequence: int) -> None:
        log = 0
        with contextlib.suppress(BusError):  # its writer is just being started again
            log = attach(request.topic).header["log_id"]
        self._tell(
            "subscribed",
            id=request.id,
            stream=stream.number,
            topic=request.topic,
            sequence=sequence,
            log=f"{log:016x}" if log else None,
            **describe(stream.schema),
        )

    async def _catch_up(self, request: Subscribe, subscription: Subscription, start: int) -> None:
        confirmed = False

        def confirm(sequence: int) -> None:
            nonlocal confirmed
            self._confirm(request, subscription.stream, sequence)
            confirmed = True

        try:
            await self._past.catch_up(subscription, self.outbox, start, confirm)
        except (BusError, StorageError, OSError, ValueError) as error:
            refusal = _refusal(error)
            if confirmed:
                self._on_end(subscription, str(refusal))
            else:
                self._tell("error", id=request.id, code=refusal.code, reason=str(refusal))
                self._drop_soon(request.id)

    async def _unsubscribe(self, request: Unsubscribe) -> None:
        if request.id not in self._held:
            raise Refusal("unknown_id", f"there is no subscription {request.id}")
        await self._drop(request.id)
        self._tell("unsubscribed", id=request.id, reason="")

    def _on_end(self, subscription: Subscription, reason: str) -> None:
        self._tell("unsubscribed", id=subscription.id, reason=reason)
        self._drop_soon(subscription.id)

    def _drop_soon(self, id: int) -> None:
        task = asyncio.create_task(self._drop(id))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def _drop(self, id: int) -> None:
        held = self._held.pop(id, None)
        if held is None:
            return
        try:
            if held.catching_up is not None and held.catching_up is not asyncio.current_task():
                held.catching_up.cancel()
                await asyncio.wait((held.catching_up,))
        finally:  # also where the session ends meanwhile
            await held.stack.aclose()


def _refusal(error: Exception) -> Refusal:
    match error:
        case NotFound():
            code = "not_found"
        case Ahead():
            code = "ahead"
        case ValueError():
            code = "bad_request"
        case Busy():
            code = "busy"
        case _:
            code = "failed"
    return Refusal(code, str(error))
