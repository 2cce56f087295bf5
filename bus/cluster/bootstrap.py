"""Receiving another node's data: for a node that is new, or was away so long that the stream no longer has what it needs next.

1. The pieces are asked for some ahead, over the sender's own server, and written in order. Every one is checked, and all of it
   proven in the end.
2. Nothing here is touched before that: then it is put in place at once (`replacing.py`).
3. A node that fails in the middle is given up, and another asked, from the beginning, for as long as it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import msgspec

from ...storage import StorageError
from ...storage.recovery import Contents
from ...storage.snapshot_transfer import ReceivedSnapshot, SnapshotList, decode_snapshot_list, receive_snapshot
from ..errors import BusError
from .api import convert
from .connection import Connection
from .local_replica import LocalReplica
from .peers import ask_all
from .replacing import discard_snapshot, snapshot_place
from .replica import Position
from .snapshot_sender import (
    LISTING,
    PART_BYTES,
    PartAsked,
    SnapshotAsked,
    SnapshotOffered,
    SnapshotRefused,
    decode_part,
    snapshot_subject,
)
from .stream import NoAnswer, Stream, Trimmed

__all__ = ["Bootstrap"]

AHEAD = 8  # pieces that are asked for before the first of them is there
OPEN_S = 30.0  # for the sender to find all files of a large store
PART_S = 2.0
PATIENCE_S = 4.0  # with a piece that does not come; the sender keeps the snapshot longer
PAUSE_S = 1.0
PAUSE_S_MAX = 5.0  # where the same keeps it from getting on
ASK_S = 0.5
SYNCS_MAX = 4  # files that are being synced while the next is written
LIST_BYTES_MAX = 64 << 20

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Bootstrap:
    """Of one node. Give `run` to Node. receiving: the stream's sequence of the snapshot that is on its way; 0: none is.

    connection: one of its own, on which nothing else waits behind pieces. told: hears in words what happens, for the log.
    """

    def __init__(
        self,
        connection: Connection,
        cluster: str,
        node: str,
        stream: Stream,
        replica: LocalReplica,
        told: Callable[[str], None] = lambda _words: None,
    ) -> None:
        self._connection, self._cluster, self._node = connection, cluster, node
        self._stream, self._replica, self._told = stream, replica, told
        self.receiving = 0
        self.words = ""  # why it does not get on

    async def run(self, trimmed: Trimmed) -> None:
        """Replace this node's data by a peer's from which the stream can be followed. Tries until that is done."""
        first, pause_s = trimmed.oldest, PAUSE_S
        while True:
            words = f"no node is there that has what the stream held before {first}"
            for peer in await self._peers(first):
                try:
                    position, received = await self._receive(peer, first)
                    await self._replica.replace(position, received)
                    self._told(f"the snapshot of {peer} is in place; the stream goes on with {position.stream + 1}")
                    self.words = ""
                    return
                except (BusError, StorageError, OSError) as error:
                    if not self._replica.is_open:
                        raise
                    words = f"no snapshot of {peer}: {error}"
                finally:
                    self.receiving = 0
                    if self._replica.is_open:
                        await _in_thread(discard_snapshot, self._replica.data_dir)
            pause_s = PAUSE_S if words != self.words else min(2 * pause_s, PAUSE_S_MAX)
            if words != self.words:
                self.words = words
                self._told(words)
            await asyncio.sleep(pause_s)
            with contextlib.suppress(NoAnswer):
                first = (await self._stream.state()).first

    async def _peers(self, first: int) -> list[str]:
        """Whom to ask, the best first: one that follows has more time than one that leads."""
        try:
            statuses = await ask_all(self._connection, self._cluster, ASK_S)
        except NoAnswer:
            return []
        able = [s for s in statuses if s.node != self._node and s.stored + 1 >= first and not s.receiving]
        return [status.node for status in sorted(able, key=lambda status: (status.leads, -status.stored))]

    # --- receiving --------------------------------------------------------------------------------------------------

    async def _receive(self, peer: str, first: int) -> tuple[Position, Contents]:
        """Have a peer's snapshot proven in its place. Returns its position, and what is in its log.

        Raises BusError, StorageError, OSError, and then nothing is there.
        """
        subject = snapshot_subject(self._cluster, peer)
        offered = await self._open(subject, first)
        self.receiving = offered.position.stream
        before = self._connection.server
        self._connection.move_to(offered.server)
        try:
            listing = await self._list(subject, offered)
            if not self.words:  # else it is told already why that failed
                self._told(f"receiving a snapshot of {peer}: {listing.size_bytes} bytes, {len(listing.files)} files")
            if listing.log_id != self._replica.log_id:
                raise StorageError(
                    f"it is of the log {listing.log_id:#x}, and this cluster's is {self._replica.log_id:#x}"
                )
            received = await self._build(subject, offered.snapshot, listing)
        finally:
            with contextlib.suppress(NoAnswer):
                await self._connection.publish(f"{subject}.end", msgspec.json.encode(PartAsked(offered.snapshot)))
            self._connection.move_to(before)  # the other server may be cut off from everybody but its own node
        ends = received.ends
        for topic, end in offered.position.ends.items():
            if end > ends.get(topic, 0):
                raise StorageError(f"it ends topic {topic!r} at {ends.get(topic, 0)}, and should at {end} or later")
        return replace(offered.position, foreign=True), received

    async def _open(self, subject: str, first: int) -> SnapshotOffered:
        request = msgspec.json.encode(SnapshotAsked(self._node, first))
        answer = await self._connection.request(f"{subject}.open", request, OPEN_S)
        either: Any = SnapshotOffered | SnapshotRefused
        offered: SnapshotOffered | SnapshotRefused = convert(answer, either)
        if isinstance(offered, SnapshotRefused):
            raise NoAnswer(offered.error)
        position = offered.position
        sound = position.epoch >= 0 and all(end >= 0 for end in position.ends.values())
        if not sound or position.stream + 1 < first or not 0 < offered.list_bytes <= LIST_BYTES_MAX:
            raise NoAnswer(f"an offer of no use: {offered}")
        return offered

    async def _list(self, subject: str, offered: SnapshotOffered) -> SnapshotList:
        parts = _parts(offered.snapshot, LISTING, offered.list_bytes)
        listing = bytearray()
        async with contextlib.aclosing(self._pieces(subject, parts)) as pieces:
            async for _, data in pieces:
                listing += data
        return decode_snapshot_list(bytes(listing))

    async def _build(self, subject: str, snapshot: str, listing: SnapshotList) -> Contents:
        parts = (
            part for number, file in enumerate(listing.files) for part in _parts(snapshot, number, file.file_bytes)
        )
        with contextlib.ExitStack() as stack:
            place = snapshot_place(self._replica.data_dir)
            receiving: ReceivedSnapshot = await _in_thread(stack.enter_context, receive_snapshot(place, listing))
            async with contextlib.aclosing(self._pieces(subject, parts)) as pieces:
                await self._write(receiving, pieces)
            return await _in_thread(receiving.finish)

    async def _write(self, receiving: ReceivedSnapshot, pieces: AsyncIterator[tuple[PartAsked, memoryview]]) -> None:
        """A file's pieces one after the other. Its last one, which syncs it, does not keep the next file waiting."""
        number, last = -1, None
        syncing: deque[asyncio.Task[None]] = deque()
        try:
            async for part, data in pieces:
                if last is not None and part.file == number:
                    await last
                elif last is not None:
                    syncing.append(last)
                while len(syncing) > SYNCS_MAX:
                    await syncing.popleft()
                number, last = part.file, asyncio.create_task(_in_thread(receiving.write, part.file, data))
        finally:
            results = await asyncio.gather(*syncing, *([last] if last else []), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    async def _pieces(self, subject: str, parts: Iterator[PartAsked]) -> AsyncGenerator[tuple[PartAsked, memoryview]]:
        """The bytes of each part, in order. Raises NoAnswer."""
        asked: deque[tuple[PartAsked, asyncio.Task[memoryview]]] = deque()
        try:
            while True:
                while len(asked) < AHEAD and (part := next(parts, None)) is not None:
                    asked.append((part, asyncio.create_task(self._piece(subject, part))))
                if not asked:
                    return
                part, task = asked[0]
                data = await task
                asked.popleft()
                yield part, data
        finally:
            for _, task in asked:
                task.cancel()
            await asyncio.gather(*(task for _, task in asked), return_exceptions=True)

    async def _piece(self, subject: str, part: PartAsked) -> memoryview:
        """Asked for again where it does not come, for a while: a server may be gone, and another be found."""
        request, clock = msgspec.json.encode(part), asyncio.get_running_loop().time
        deadline = clock() + PATIENCE_S
        while True:
            try:
                return decode_part(await self._connection.request(f"{subject}.part", request, PART_S), part)
            except NoAnswer:
                if clock() > deadline:
                    raise
            await asyncio.sleep(PAUSE_S / 4)


def _parts(snapshot: str, number: int, size_bytes: int) -> Iterator[PartAsked]:
    for offset in range(0, size_bytes, PART_BYTES):
        yield PartAsked(snapshot, number, offset, min(PART_BYTES, size_bytes - offset))


async def _in_thread(work: Any, *given: Any) -> Any:
    """As asyncio.to_thread; but cancelled, it waits for the end of what it has begun."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *given))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
