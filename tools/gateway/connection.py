"""The way to a client's socket: a message becomes a WebSocket frame once, for all who are sent it, and is written as it is.

uvicorn's own way takes a step of a task and makes the frame anew for each client; both cost more than the socket does.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Opcode
from websockets.protocol import State

from .frames import Message

__all__ = ["CONNECTION", "Connection", "Framed", "framed"]

CONNECTION = "connection"  # in the state of an ASGI scope
Framed: TypeAlias = bytes

LAST = 0x80  # of the frames that a message comes in, which is one
MEDIUM, LARGE = 126, 127  # in the place of a small size: how it is told instead
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
    """uvicorn's, which the application finds in its scope. Lives in the event loop."""

    async def run_asgi(self) -> None:
        self.scope.setdefault("state", {})[CONNECTION] = self
        await super().run_asgi()

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
        """Waits for room. Says nothing where either side has begun to close, as uvicorn does by itself over what is no frame."""
        await self.writable.wait()
        if self._is_open:
            await self.send({"type": "websocket.close", "code": code, "reason": reason})

    @property
    def _is_open(self) -> bool:
        return self.conn.state is State.OPEN and not self.transport.is_closing()
