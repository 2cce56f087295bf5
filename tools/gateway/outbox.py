"""What waits to be sent to one client: in order, and bounded in bytes.

A message is written at once where nothing waits and the connection has room. What a client does not read piles up here and is
counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .connection import Connection, Framed

__all__ = ["Outbox"]


class Outbox:
    """One event loop. `put` never waits and refuses nothing: whoever puts looks at `fill` before.

    bytes_max: what `fill` goes by. on_room: called when it has become at most a quarter full. turn: of those who look at `fill`
    and put only later.
    """

    def __init__(self, connection: Connection, bytes_max: int, on_room: Callable[[], None]) -> None:
        self._connection, self._bytes_max, self._on_room = connection, bytes_max, on_room
        self._messages: deque[Framed] = deque()
        self._bytes = 0
        self.turn = asyncio.Lock()
        self._filled, self._roomy, self._empty = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._roomy.set()
        self._empty.set()
        self.sent_count = self.sent_bytes = 0

    @property
    def fill(self) -> float:
        """How full it is: 0 empty, 1 full."""
        return self._bytes / self._bytes_max

    def put(self, message: Framed) -> None:
        if not self._messages and self._connection.has_room:
            self._write(message)
            return
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
        """Send what waits, until cancelled."""
        while True:
            await self._filled.wait()
            while self._messages:
                await self._connection.room()
                message = self._messages.popleft()
                self._bytes -= len(message)
                self._write(message)
                if not self._roomy.is_set() and self._bytes <= self._bytes_max // 4:
                    self._roomy.set()
                    self._on_room()
            self._filled.clear()
            self._empty.set()

    def _write(self, message: Framed) -> None:
        if self._connection.write(message):
            self.sent_count += 1
            self.sent_bytes += len(message)

    async def drained(self) -> None:
        """Return once nothing waits here."""
        await self._empty.wait()
