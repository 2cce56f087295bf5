"""How far a node is behind the stream, measured: from asking where the stream ends until the node has got there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .stream import NoAnswer, Stream, StreamState

__all__ = ["Lag"]

INTERVAL_S = 0.5
LOOK_S = 0.005


class Lag:
    """Runs beside the node, until cancelled. place: tells the last message that the node has taken.

    state: what the stream said last, None while it does not answer. ms: the last lag, or the present one, if it is longer.
    """

    def __init__(self, stream: Stream, place: Callable[[], int]) -> None:
        self._stream, self._place = stream, place
        self.state: StreamState | None = None
        self.ms: float | None = None

    async def run(self) -> None:
        while True:
            await self._measure()
            await asyncio.sleep(INTERVAL_S)

    async def _measure(self) -> None:
        clock = asyncio.get_running_loop().time
        asked = clock()
        try:
            self.state = await self._stream.state()
        except NoAnswer:
            self.state = self.ms = None
            return
        while self._place() < self.state.last:
            self.ms = max(self.ms or 0.0, (clock() - asked) * 1e3)
            await asyncio.sleep(LOOK_S)
        self.ms = (clock() - asked) * 1e3
