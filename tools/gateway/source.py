"""One reader for everybody who wants the same topic in the same way: it waits in a thread, its batches come in the event loop.

1. A batch is copied before it is handed over: whatever the writer does then, and however long the loop takes, it stays whole.
2. The thread is one batch ahead of the loop at most.
3. `position` is the last sequence that the streams were given. It changes in the loop only.
4. The thread wakes the loop through an eventfd, not `call_soon_threadsafe`: writing there lets go of the interpreter, which the
   loop wants as soon as it is awake. A row is sent some 20 µs sooner for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ...bus import Batch, BusError, Overrun, attach
from ...bus._read import owned_batch
from ...storage import HistoryGone, StorageError
from ...subscribers import Subscriber
from ..service_log import event

__all__ = ["ANEW", "Source", "Taker", "behind_restart"]

SLICE_S = 0.5
ANEW = "it was closed and opened again, without a log"


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
        self.ended = ""  # the reason, once nothing more will come
        self._reader, self._loop = reader, loop
        self._closing = threading.Event()
        self._turn = threading.Lock()  # not a Semaphore: that is Python, and the loop would wait for it to be through
        self._handed = deque[Callable[[], None]]()  # what the loop shall do
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._wake, self._take_over)
        threading.Thread(target=self._run, name=f"ringmain-gateway-{address}", daemon=True).start()

    def close(self) -> None:
        """Read no more. The thread ends within its slice."""
        self._loop.remove_reader(self._wake)
        self._closing.set()

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:
            expected = isinstance(error, BusError | StorageError | OSError)
            event(
                "a topic cannot be read on",
                level=logging.ERROR,
                error=None if expected else error,
                topic=self.address,
                reason=str(error),
            )
            self._hand(self._end, str(error) or type(error).__name__)
        finally:
            self._closing.wait()  # until then the loop looks at the eventfd
            os.close(self._wake)

    def _read(self) -> None:
        lost = 0  # and not told yet
        with self._reader as reader:
            while not self._closing.is_set():
                try:
                    batch = reader.take(SLICE_S)
                    if batch is not None:
                        lost += batch.lost
                        owned = owned_batch(batch.copy(), batch.schema, batch.first, batch.last, lost)
                        self._hand(self._deliver, owned)
                        lost = 0
                    elif reader.ended:
                        self._hand(self._end, "the topic has ended")
                        return
                except (Overrun, HistoryGone):  # the rows come again, or are told as lost
                    continue
                except BusError as error:
                    if not behind_restart(self.address, reader):
                        raise
                    self._hand(self._go_back, reader.position, str(error))

    def _hand(self, call: Callable[..., None], *arguments: Any) -> None:
        while not self._turn.acquire(timeout=SLICE_S):
            if self._closing.is_set():
                return
        self._handed.append(partial(call, *arguments))
        os.eventfd_write(self._wake, 1)

    # --- in the event loop ------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        os.eventfd_read(self._wake)
        self._turn.release()
        self._handed.popleft()()

    def _deliver(self, batch: Batch) -> None:
        if batch.first <= self.position:
            self._go_back(batch.first - 1, ANEW)
        self.position = batch.last
        for taker in tuple(self.takers):
            try:
                taker.deliver(batch)
            except Exception as error:  # the others get their rows
                event("a stream failed", level=logging.ERROR, error=error, topic=self.address)
                self.takers.discard(taker)
                taker.end("the gateway failed")

    def _go_back(self, sequence: int, reason: str) -> None:
        self.position = sequence
        for taker in tuple(self.takers):
            taker.reset(sequence, reason)

    def _end(self, reason: str) -> None:
        self.ended = reason
        for taker in tuple(self.takers):
            taker.end(reason)


def behind_restart(address: str, reader: Subscriber) -> bool:
    """Whether a reader that has failed goes on in the ring of a newer writer, which has less than it had read."""
    try:
        return attach(address).schema.hash == reader.schema.hash
    except BusError:
        return False
