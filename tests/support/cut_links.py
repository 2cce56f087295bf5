"""TCP links of the test's own between processes that know no better: they can be cut, slowed, and made to lose.

1. A link that is cut holds what is sent, and a close too, until it is healed, as a network does that loses packets: what was under
   way arrives late. It is cut in each direction for itself.
2. A link that loses holds a piece as long as TCP would before it sends again; now and then the connection breaks, with what was
   under way.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Link", "Links"]

HOST = "127.0.0.1"
PIECE_BYTES = 1 << 16
AGAIN_S = (0.2, 0.6)  # TCP's first waits before it sends again
BREAKS = 0.1  # of the pieces that are lost, those with which the connection goes


class Link:
    """Leads from an address of its own to `target`. `there` is what who connected sends, `back` what he gets."""

    def __init__(self, links: Links, target: tuple[str, int], chance: random.Random) -> None:
        self._links, self._target, self._chance = links, target, chance
        self._opened = {"there": asyncio.Event(), "back": asyncio.Event()}
        for opened in self._opened.values():
            opened.set()
        self._delay_s, self._loss = 0.0, 0.0
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self.address = ""

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, HOST, 0)
        self.address = f"{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        carrying = list(self._carrying)
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    def cut(self, there: bool = True, back: bool = True) -> None:
        for name, wanted in (("there", there), ("back", back)):
            if wanted:
                self._links.call(self._opened[name].clear)

    def slow(self, delay_s: float) -> None:
        """Each piece takes so long, and the next one waits for it."""
        self._delay_s = delay_s

    def lose(self, loss: float) -> None:
        """The part of the pieces that are lost at first."""
        self._loss = loss

    def heal(self) -> None:
        self._delay_s = self._loss = 0.0
        for opened in self._opened.values():
            self._links.call(opened.set)

    # --- in the links' thread ---------------------------------------------------------------------------------------

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        onward: asyncio.StreamWriter | None = None
        try:
            for opened in self._opened.values():  # nobody connects through a link that is cut
                await opened.wait()
            back, onward = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("there", reader, onward))
                group.create_task(self._pump("back", back, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._carrying.discard(task)
            for end in (writer, onward):
                if end is not None:
                    end.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises ConnectionError when one side closes: these protocols do not close half a connection."""
        while piece := await reader.read(PIECE_BYTES):
            if self._chance.random() < self._loss:
                if self._chance.random() < BREAKS:
                    raise ConnectionError("lost")
                await asyncio.sleep(self._chance.uniform(*AGAIN_S))
            await asyncio.sleep(self._delay_s)
            await self._opened[direction].wait()
            writer.write(piece)
            await writer.drain()
        await self._opened[direction].wait()
        raise ConnectionError("closed")


class Links:
    """Some links, carried by a thread of their own. Use it in a `with` statement."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self._all: list[Link] = []

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._all:
            self._wait(link.close())
        self.call(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self, target: tuple[str, int]) -> Link:
        link = Link(self, target, self._chance)
        self._wait(link.open())
        self._all.append(link)
        return link

    def heal(self) -> None:
        for link in self._all:
            link.heal()

    def call(self, function: Callable[[], Any]) -> None:
        """Call it in the links' thread; when it returns is not told."""
        self._loop.call_soon_threadsafe(function)

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
