"""What waits to be sent to one client: in order, and bounded in bytes.

The connection takes a message only while its own buffer has room, so what a client does not read piles up here and is counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from .frames import Message

__all__ = ["Outbox"]


class Outbox:
    """One event loop, one sender. `put` never waits and refuses nothing: whoever puts looks at `fill` before.

    bytes_max: what `fill` goes by. on_room: called when it has become at most a quarter full.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]], bytes_max: int, on_room: Callable[[], None]) -> None:
        self._send, self._bytes_max, self._on_room = send, bytes_max, on_room
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._filled, self._roomy, self._empty = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._roomy.set()
        self._empty.set()
        self.sent_count = self.sent_bytes = 0

    @property
    def fill(self) -> float:
        """How full it is: 0 empty, 1 full."""
        return self._bytes / self._bytes_max

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self._bytes += len(message)
        self._filled.set()
        self._empty.clear()
        if self._bytes > self._bytes_max // 4:
            self._roomy.clear()

    async def room(self) -> None:
        """Return once it is at most a quarter full."""
        await self._roomy.wait()

    async def run(self) -> None:
        """Send what comes, until cancelled or the connection fails."""
        while True:
            await self._filled.wait()
            while self._messages:
                message = self._messages.popleft()
                await self._send(message)
                self._bytes -= len(message)
                self.sent_count += 1
                self.sent_bytes += len(message)
                if not self._roomy.is_set() and self._bytes <= self._bytes_max // 4:
                    self._roomy.set()
                    self._on_room()
            self._filled.clear()
            self._empty.set()

    async def drained(self) -> None:
        """Return once nothing waits here."""
        await self._empty.wait()
