"""Waiting in an event loop until the journal has brought rows further: to the log, to the disk. Nothing is polled."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from .._journal import Journal

__all__ = ["Progress"]


class Progress:
    """Of one writer's journal, in the loop that runs. rose: called after `watch`, once something has risen.

    The journal writes its event only when armed (sync ARM in journal.hpp): arm first, then look.
    """

    def __init__(self, journal: Journal, rose: Callable[[], None]) -> None:
        self._journal, self._rose = journal, rose
        self._risen = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(journal.event_fd, self._woken)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._journal.event_fd)
        self._risen.set()
        self._rose()

    def watch(self) -> None:
        """Have `rose` called, and `rise` return, when something rises from now on. Look afterwards: it may have risen before."""
        self._risen.clear()
        self._journal.arm()

    async def wait_for(self, reached: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Whether `reached` came to say True within that time, and before `close`. It is asked whenever something has risen."""
        deadline = None if timeout_s is None else self._loop.time() + timeout_s
        while not self._closed:
            self.watch()
            if reached():
                return True
            left = None if deadline is None else deadline - self._loop.time()
            if left is not None and left <= 0:
                return False
            await self.rise(left)
        return False

    async def rise(self, timeout_s: float | None) -> None:
        """Wait until something has risen since `watch`, at most that long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._risen.wait()

    def close(self) -> None:
        """Who waits is told at once, and looks at the journal no more."""
        self._loop.remove_reader(self._journal.event_fd)
        self._closed = True
        self._risen.set()
