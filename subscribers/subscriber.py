"""What every kind of subscriber can do with batches: wait for them, iterate over them in two ways, call back, and close.

A kind brings `poll` (what is there now), `_wait` (until there may be more) and `ended`; the loops around them stand here, once.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..bus import Batch
from ..storage import Schema

__all__ = ["SLICE_S", "Stats", "Subscriber"]

SLICE_S = 0.5  # how often one that waits looks around: whether its ring is still the topic's, whether it was closed
ASYNC_SLICE_S = 0.1  # the same in asyncio: a thread that waits holds up the end of its process as long as that


@dataclass(frozen=True, slots=True)
class Stats:
    """How a subscriber has fared. Counts are of records unless named otherwise."""

    position: int  # the last sequence handed out
    lag: int  # published (or, without a ring, written) minus position
    read_count: int
    overrun_count: int  # times the writer lapped it
    refilled_count: int  # of those read: from the log, since the ring no longer held them
    lost_count: int  # missed for good: no log, no longer kept, or given up by a repair
    reopen_count: int  # times it moved to a newer writer's ring
    epoch: int  # of the writer whose ring it reads; 0 without one


class Subscriber(ABC):
    """Hands out batches of one topic: iterate over it (`for` or `async for`), `poll`, `take`, or `run` a callback.

    One thread at a time. Use it in a `with` statement, or `close` it.
    """

    _executor: ThreadPoolExecutor | None = None

    @abstractmethod
    def poll(self) -> Batch | None:
        """The next batch, or None when there is none now. Never waits.

        Asking for the next batch says that everything handed out before is done with.
        """

    @abstractmethod
    def _wait(self, seconds: float) -> None:
        """Wait up to `seconds` for something to happen. Takes nothing, and so may be run in another thread."""

    def _pass_over(self, batch: Batch) -> None:  # noqa: B027  most kinds have nothing to do
        """A batch that was handed out is done with, since whoever asked for it has no use for any of its rows."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether nothing more will come."""

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """Of the rows that it hands out."""

    @property
    @abstractmethod
    def position(self) -> int:
        """The last sequence handed out."""

    @property
    @abstractmethod
    def stats(self) -> Stats:
        """How it has fared until now."""

    def take(self, timeout: float | None = None) -> Batch | None:
        """The next batch, waited for up to `timeout` seconds (None: for ever); None when the time is over or all has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            batch = self.poll()
            if batch is not None or self.ended:
                return batch
            left = SLICE_S if deadline is None else min(SLICE_S, deadline - time.monotonic())
            if left <= 0:
                return None
            self._wait(left)
        return None

    def __iter__(self) -> Iterator[Batch]:
        """Batches, for as long as there will be any; waits between them."""
        while not self.ended:
            batch = self.take(SLICE_S)
            if batch is not None:
                yield batch

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """The same for asyncio: the event loop runs on while this waits, in a thread of its own."""
        loop = asyncio.get_running_loop()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="ringmain-wait")
        while not self.ended:
            batch = self.poll()
            if batch is not None:
                yield batch
                await asyncio.sleep(0)
            elif not self.ended:
                await loop.run_in_executor(self._executor, self._wait, ASYNC_SLICE_S)

    def run(self, callback: Callable[[Batch], object]) -> None:
        """Call back with every batch until there will be no more, or the callback raises."""
        for batch in self:
            callback(batch)

    def close(self) -> None:
        """Hand out nothing more. May be called again."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
