"""The way to a client's socket: a message becomes a WebSocket frame once, for all who are sent it, and is written as it is.

uvicorn's own way takes a step of a task and makes the frame anew for each client; both cost more than the socket does.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, TypeAlias

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from .frames import Message
from .limits import TOO_MANY, TokenBucket

__all__ = ["CONNECTION", "Connection", "Framed", "framed"]

CONNECTION = "connection"  # in the state of an ASGI scope
Framed: TypeAlias = bytes

LAST = 0x80  # of the frames that a message comes in, which is one
MEDIUM, LARGE = 126, 127  # in the place of a small size: how it is told instead
CLOSE_S = 2.0  # how long a close frame may wait for room
LINGER_S = 2.0  # how long a client that is cut off may take to read why
PARSED_BYTES = 4 << 10  # at once; 256 KiB come at once, and may be 40,000 frames
SMALL_HEAD, MEDIUM_HEAD, LARGE_HEAD = struct.Struct("!BB"), struct.Struct("!BBH"), struct.Struct("!BBQ")


def framed(message: Message) -> Framed:
    """A message as any client may be sent it: one whole frame (RFC 6455, section 5.2). Nothing is masked or compressed."""
    payload = message.encode() if isinstance(message, str) else message
    first, size = LAST | (Opcode.TEXT if isinstance(message, str) else Opcode.BINARY), len(payload)
    if size < MEDIUM:
        return SMALL_HEAD.pack(first, size) + payload
    if size < 1 << 16:
        return MEDIUM_HEAD.pack(first, MEDIUM, size) + payload
    return LARGE_HEAD.pack(first, LARGE, size) + payload


class Connection(WebSocketsSansIOProtocol):
    """uvicorn's, which the application finds in its scope. Lives in the event loop.

    1. A frame of whatever kind counts as a message: `messages_per_s`, and `messages_burst` at once. Who sends more is cut off.
    2. Nothing that a client sends makes more wait to be sent to it than a few answers: a pong is written only where there is room.
    3. Who is cut off is not listened to any more, and costs nothing but its socket, for `LINGER_S` at most.
    """

    def __init__(self, *arguments: Any, messages_per_s: float, messages_burst: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bucket = TokenBucket(messages_per_s, messages_burst)
        self._is_deaf = False

    async def run_asgi(self) -> None:
        self.scope.setdefault("state", {})[CONNECTION] = self
        await super().run_asgi()

    # --- what comes -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), PARSED_BYTES):
            if self._is_deaf:
                return
            super().data_received(data[at : at + PARSED_BYTES])

    def handle_events(self) -> None:
        frames = sum(isinstance(event, Frame) for event in self.conn.events)
        if self.conn.close_rcvd is not None or all(self._bucket.take() for _ in range(frames)):
            super().handle_events()
            return
        self._is_deaf = True
        if self.conn.state is State.OPEN:
            self.conn.fail(TOO_MANY, "too many messages")
            self.handle_parser_exception()
        elif self.conn.state is State.CONNECTING:
            self.transport.abort()  # else a close frame is on its way, and a timer runs

    def handle_ping(self) -> None:
        """Answer where there is room: a client may be sent the pong of its newest ping only (RFC 6455, section 5.5.3)."""
        output = self.conn.data_to_send()  # behind the pongs there may be a close frame, which goes out in any case
        if not self._is_deaf and (self.has_room or self.conn.close_sent is not None):
            self.transport.write(b"".join(output))

    def handle_cont(self, event: Frame) -> None:
        if event.data or event.fin:  # or a message of no bytes would grow without end
            super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """Cut it off, and say why: over what is no frame, no UTF-8, or too much."""
        close = self.conn.close_sent
        assert close is not None
        self._is_deaf = self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        if not self.has_room:
            self.transport.abort()
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        # A socket that is closed with something unread takes back what it has sent (RFC 9293, section 3.10.4): read on.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        if not self.has_room:
            self.transport.abort()

    # --- what goes --------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether little of what was written waits to be sent."""
        return self.writable.is_set()

    async def room(self) -> None:
        """Return once it has room, or is lost."""
        await self.writable.wait()

    def write(self, message: Framed) -> bool:
        """Never waits. False, with nothing written, once either side has begun to close: the application receives that too."""
        if not self._is_open:
            return False
        self.transport.write(message)
        return True

    async def close(self, code: int, reason: str) -> None:
        """Waits for room, for a while: where there is none the connection breaks off, and what waits is dropped.

        Says nothing where either side has begun to close, as uvicorn does by itself over what is no frame.
        """
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.writable.wait()
        except TimeoutError:
            self.transport.abort()
            return
        if self._is_open:
            await self.send({"type": "websocket.close", "code": code, "reason": reason})

    @property
    def cut_off(self) -> tuple[int, str] | None:
        """The code and reason of the close that went out before any came; None where the client closed, or nobody did."""
        sent = self.conn.close_sent
        return None if sent is None or self.conn.close_rcvd_then_sent else (sent.code, sent.reason)

    @property
    def _is_open(self) -> bool:
        return self.conn.state is State.OPEN and not self.transport.is_closing()
