"""The past of a topic for one subscription: read in slices by a few threads, at the client's pace, until it meets the present.

A reader is held only while its client has room, so that clients that read slowly take nothing from the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias, TypeVar

from ...bus import Attached, Batch, BusError, Overrun, attach
from ...bus._read import owned_batch
from ...storage import HistoryGone
from ...subscribers import Historical
from ...subscribers.folding import Newest
from .connection import Framed
from .outbox import Outbox
from .selecting import Selection
from .source import ANEW, behind_restart
from .stream import Stream
from .subscription import Subscription

__all__ = ["Ahead", "Past"]

SLICE_BYTES = 256 << 10
THREADS = 4
READERS_MAX = 128  # at once; a topic's reader table has 1,024 entries, which are others' too
_Origin: TypeAlias = tuple[int, int]  # of a topic's stream; sequences of two have nothing to do with each other
Value = TypeVar("Value")


class Ahead(ValueError):
    """What is asked for lies behind the topic's end."""


class Past:
    """Shared by all clients."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ringmain-gateway-past")
        self._readers = asyncio.Semaphore(READERS_MAX)

    async def run(self, call: Callable[..., Value], *arguments: object) -> Value:
        """Call something that waits for the disk, in one of the threads. Cancelled, it ends when the call has."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def catch_up(
        self, subscription: Subscription, outbox: Outbox, start: int, on_open: Callable[[int], None]
    ) -> None:
        """Hand a subscription all that its topic has from sequence `start` (0: the oldest kept) on, then join it to its stream.

        on_open: called once, with the sequence behind which the rows begin. Raises what reading raises.
        """
        opened, stream, origin = False, subscription.stream, None
        selection = await self.run(stream.selection)
        while True:
            await outbox.room()
            async with self._readers:
                reader = _Reader(stream, selection, start, origin)
                try:
                    await self.run(reader.open)
                    if not opened:
                        subscription.position, opened = reader.position, True
                        on_open(reader.position)
                    if await self._read(subscription, outbox, reader):
                        return
                    start, origin = reader.position + 1, reader.origin
                finally:
                    reader.close()

    async def _read(self, subscription: Subscription, outbox: Outbox, reader: _Reader) -> bool:
        """Read until half the client's queue is full (False), or it is joined (True)."""
        source = subscription.stream.source
        while True:
            async with outbox.turn:
                if outbox.fill >= 0.5:
                    return False
                piece = await self.run(reader.read)
                if piece is not None:
                    _put(subscription, piece)
            if piece is None:  # all that is published; what the source has handed out is part of it
                while reader.position < source.position and (piece := reader.read()) is not None:
                    _put(subscription, piece)
                if reader.position >= source.position:
                    subscription.position = max(subscription.position, reader.position)
                    subscription.join()
                    return True
                await asyncio.sleep(0.01)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Piece(NamedTuple):
    """What was read up to a position. reset: the topic went back to that position, and why."""

    messages: Sequence[Framed]
    position: int
    reset: str = ""


def _put(subscription: Subscription, piece: _Piece) -> None:
    if piece.reset:
        subscription.reset(piece.position, piece.reset)
    else:
        subscription.put_past(piece.messages, piece.position)


class _Reader:
    """Reads a stream's rows of the past, one slice after the other. One thread at a time.

    origin: what an earlier one has read up to `start`; None for the first.
    """

    def __init__(self, stream: Stream, selection: Selection, start: int, origin: _Origin | None) -> None:
        self._stream, self._selection, self._start, self.origin = stream, selection, start, origin
        self._anew = False  # whether another stream has begun since
        conflate = stream.request.conflate
        self._newest = Newest(stream.source.schema, tuple(conflate)) if conflate is not None else None
        self._opened: Historical | None = None
        self._told = 0  # the last sequence that it has read
        self._lost = 0  # and not told yet

    def open(self) -> None:
        """Raises Ahead, and what Historical does."""
        address, start = self._stream.request.topic, self._start
        if start:
            ring = attach(address)
            last = ring.watermarks().published
            if self.origin not in (None, _origin(ring)):
                start, self._anew = 0, True
            elif start > last + 1:
                raise Ahead(f"from: sequence {start} is wanted, and the topic ends with {last}")
        rows_max = max(1, SLICE_BYTES // self._stream.source.schema.row_bytes)
        self._opened = Historical(
            address, start=start or "earliest", live=True, reopen=True, name="ringmain gateway", batch_rows=rows_max
        )
        self._told = self._opened.position
        self._see_origin()
        if self._opened.schema.hash != self._stream.source.schema.hash:
            difference = self._stream.source.schema.describe_difference(self._opened.schema)
            raise BusError(f"{address}: another schema is published now: {difference}; subscribe anew")

    def _see_origin(self) -> None:
        """After it has begun to read: what comes later it notices by itself."""
        with contextlib.suppress(BusError):  # its writer is just being started again
            self.origin = _origin(attach(self._stream.request.topic))

    @property
    def _reader(self) -> Historical:
        assert self._opened is not None
        return self._opened

    @property
    def position(self) -> int:
        return self._reader.position

    def read(self) -> _Piece | None:
        """The next slice; None where all that is published has been read."""
        if self._anew:
            self._anew = False
            return _Piece((), self._told, ANEW)
        while True:
            try:
                batch = self._reader.poll()
                if batch is None:
                    return None
                self._lost += batch.lost
                if batch.first <= self._told:  # another stream has begun: rings only, and a new writer
                    self._told = batch.first - 1
                    self._reader.step_back(batch.first)
                    self._see_origin()
                    return _Piece((), self._told, ANEW)
                rows = owned_batch(batch.copy(), batch.schema, batch.first, batch.last, self._lost)
            except (Overrun, HistoryGone):  # the rows come again, or are told as lost
                continue
            except BusError as error:
                if not behind_restart(self._stream.request.topic, self._reader):
                    raise
                self._told = self._reader.position
                self._see_origin()
                return _Piece((), self._told, str(error))
            self._told, self._lost = batch.last, 0
            return _Piece(self._messages(rows), batch.last)

    def _messages(self, batch: Batch) -> Sequence[Framed]:
        if self._newest is not None:  # before it selects, as in the present
            batch = _newest_of(self._newest, batch)
        selected = self._selection.select(batch)
        if selected is None:
            return ()
        return self._stream.encode(selected, conflated=self._newest is not None)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()


def _origin(ring: Attached) -> _Origin:
    log_id = int(ring.header["log_id"])
    return log_id, 0 if log_id else ring.control.inode  # it is another one where a writer has closed


def _newest_of(newest: Newest, batch: Batch) -> Batch:
    newest.take_in(batch)
    return owned_batch(newest.hand_out(), batch.schema, batch.first, batch.last, batch.lost)
