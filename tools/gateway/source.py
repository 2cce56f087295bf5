"""One reader for everybody who wants the same topic in the same way: it waits in a thread, its batches come in the event loop.

1. A batch is copied before it is handed over: whatever the writer does then, and however long the loop takes, it stays whole.
2. The thread is one batch ahead of the loop at most.
3. `position` is the last sequence that the streams were given. It changes in the loop only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from ...bus import Batch, BusError, Overrun, attach
from ...bus._read import owned_batch
from ...storage import HistoryGone, StorageError
from ...subscribers import Subscriber
from ..service_log import event

__all__ = ["Source", "Taker", "behind_restart"]

SLICE_S = 0.5


class Taker(Protocol):
    """What takes a source's batches, in the event loop."""

    def deliver(self, batch: Batch) -> None: ...

    def reset(self, sequence: int, reason: str) -> None:
        """The topic went back to that sequence."""
        ...

    def end(self, reason: str) -> None:
        """Nothing more will come."""
        ...


class Source:
    """Reads until it is closed, and then closes its reader."""

    def __init__(self, address: str, reader: Subscriber, loop: asyncio.AbstractEventLoop) -> None:
        self.address, self.schema, self.position = address, reader.schema, reader.position
        self.takers: set[Taker] = set()
        self.ended = False
        self._reader, self._loop = reader, loop
        self._closing = threading.Event()
        self._turn = threading.Lock()  # not a Semaphore: that is Python, and the loop would wait for it to be through
        threading.Thread(target=self._read, name=f"ringmain-gateway-{address}", daemon=True).start()

    def close(self) -> None:
        """Read no more. The thread ends within its slice."""
        self._closing.set()

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        with self._reader as reader:
            while not self._closing.is_set():
                try:
                    batch = reader.take(SLICE_S)
                    if batch is not None:
                        self._hand(
                            self._deliver, owned_batch(batch.copy(), batch.schema, batch.first, batch.last, batch.lost)
                        )
                    elif reader.ended:
                        self._hand(self._end, "the topic has ended")
                        return
                except (Overrun, HistoryGone):  # the rows come again, or are told as lost
                    continue
                except Exception as error:
                    if isinstance(error, BusError) and behind_restart(self.address, reader):
                        self._hand(self._reset, reader.position, str(error))
                        continue
                    expected = isinstance(error, BusError | StorageError | OSError)
                    told = None if expected else error
                    event(
                        "a topic cannot be read on",
                        level=logging.ERROR,
                        error=told,
                        topic=self.address,
                        reason=str(error),
                    )
                    self._hand(self._end, str(error))
                    return

    def _hand(self, call: Callable[..., None], *arguments: Any) -> None:
        while not self._turn.acquire(timeout=SLICE_S):
            if self._closing.is_set():
                return
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop has been closed
            self._closing.set()

    # --- in the event loop ------------------------------------------------------------------------------------------

    def _deliver(self, batch: Batch) -> None:
        self._turn.release()
        if batch.first <= self.position:
            self._go_back(batch.first - 1, "it was closed and opened again, without a log")
        self.position = batch.last
        for taker in tuple(self.takers):
            taker.deliver(batch)

    def _reset(self, sequence: int, reason: str) -> None:
        self._turn.release()
        self._go_back(sequence, reason)

    def _go_back(self, sequence: int, reason: str) -> None:
        self.position = sequence
        for taker in tuple(self.takers):
            taker.reset(sequence, reason)

    def _end(self, reason: str) -> None:
        self.ended = True
        for taker in tuple(self.takers):
            taker.end(reason)


def behind_restart(address: str, reader: Subscriber) -> bool:
    """Whether a reader that has failed goes on in the ring of a newer writer, which has less than it had read."""
    try:
        return attach(address).schema.hash == reader.schema.hash
    except BusError:
        return False
