"""A node's data for others: a snapshot is held open, and its files are read in pieces, while the node goes on leading or following.

Requests go to `ringmain.CLUSTER.node.NAME.snapshot.open`, `….part` and `….end`; FORMAT.md has them. Nothing in them is believed.
Reading is done in threads: the loop that leads only hands pieces on.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from nats.aio.msg import Msg

from ...storage import StorageError
from ...storage._log import crc32c
from ...storage.decodable import decodable
from ...storage.snapshot_transfer import Snapshot, encode_snapshot_list, snapshot_files
from ..errors import BusError
from .api import convert
from .connection import Connection
from .packing import BadPacking, pack, unpack
from .replica import Position
from .stream import NoAnswer

__all__ = [
    "LISTING",
    "PART_BYTES",
    "PartAsked",
    "SnapshotAsked",
    "SnapshotOffered",
    "SnapshotRefused",
    "SnapshotSender",
    "decode_part",
    "snapshot_subject",
]

PART_BYTES = 1 << 20
PART_MAGIC = b"RMSP"
PART_HEAD = struct.Struct("<iQB")  # which file, offset, packing
LISTING = -1  # the list of the files, as if it were one of them
UNUSED_S = 15.0  # after which a snapshot that nobody asks for any more is let go
LOOK_S = 1.0
SNAPSHOTS_MAX = 2

CRC = struct.Struct("<I")
DATA_AT = len(PART_MAGIC) + CRC.size + PART_HEAD.size


class SnapshotAsked(msgspec.Struct, frozen=True):
    """node: who asks. first: the stream's first message; a snapshot that cannot be followed from there is of no use."""

    node: str
    first: int


@decodable
class SnapshotOffered(msgspec.Struct, frozen=True, tag="offered"):
    """A snapshot that is held open. position: read before its files were. list_bytes: of the list of its files.

    server: that the sender is connected to, so that pieces need not go from one server to another; empty: it does not tell.
    """

    snapshot: str
    position: Position
    list_bytes: int
    server: str = ""


class SnapshotRefused(msgspec.Struct, frozen=True, tag="refused"):
    """The answer to any request that cannot be served. error: why, in words."""

    error: str


class PartAsked(msgspec.Struct, frozen=True):
    """A piece of a file, by its number in the list. count: bytes, at most PART_BYTES."""

    snapshot: str
    file: int = LISTING
    offset: int = 0
    count: int = 0


@dataclass(slots=True)
class _Held:
    node: str
    listing: bytes
    snapshot: Snapshot
    files: contextlib.ExitStack
    used_at: float


class SnapshotSender:
    """Answers for one node, between `open` and `close`. position: its stored position; None while it has none to give.

    told: hears in words what happens, for the log.
    """

    def __init__(
        self,
        connection: Connection,
        cluster: str,
        node: str,
        data_dir: Path,
        position: Callable[[], Position | None],
        told: Callable[[str], None] = lambda _words: None,
    ) -> None:
        self._connection, self._subject = connection, snapshot_subject(cluster, node)
        self._data_dir, self._position, self._told = data_dir, position, told
        self._held: dict[str, _Held] = {}
        self._one = asyncio.Lock()  # nothing is let go while it is read
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._connection.listen(f"{self._subject}.open", self._on_open)
        await self._connection.listen(f"{self._subject}.part", self._on_part)
        await self._connection.listen(f"{self._subject}.end", self._on_end)
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Let go of everything. Whoever was receiving asks another node."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        async with self._one:
            for name in list(self._held):
                await self._let_go(name)

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _on_open(self, message: Msg) -> None:
        try:
            asked = convert(message.data, SnapshotAsked)
            async with self._one:
                answer = await self._offer(asked)
        except (StorageError, OSError, NoAnswer) as error:
            answer = SnapshotRefused(str(error))
        await self._answer(message, msgspec.json.encode(answer))

    async def _offer(self, asked: SnapshotAsked) -> SnapshotOffered:
        for name in [name for name, held in self._held.items() if held.node == asked.node]:
            await self._let_go(name)  # it begins anew
        if len(self._held) >= SNAPSHOTS_MAX:
            raise NoAnswer(f"{SNAPSHOTS_MAX} other nodes are receiving snapshots")
        position = self._position()  # first: the files then hold all of it
        if position is None or position.stream + 1 < asked.first:
            raise NoAnswer("has no position from which the stream could be followed")
        stack = contextlib.ExitStack()
        snapshot = await asyncio.to_thread(stack.enter_context, snapshot_files(self._data_dir))
        name, listing = secrets.token_hex(8), encode_snapshot_list(snapshot.listing)
        self._held[name] = _Held(asked.node, listing, snapshot, stack, self._now())
        self._told(f"sending {asked.node} a snapshot of {snapshot.listing.size_bytes} bytes")
        return SnapshotOffered(name, position, len(listing), self._connection.server)

    async def _on_part(self, message: Msg) -> None:
        try:
            asked = convert(message.data, PartAsked)
            async with self._one:
                held = self._held.get(asked.snapshot)
                if held is None:
                    raise NoAnswer("holds no such snapshot (any more)")
                held.used_at = self._now()
                answer = await asyncio.to_thread(_read_part, held, asked)
        except (StorageError, OSError, NoAnswer) as error:
            answer = msgspec.json.encode(SnapshotRefused(str(error)))
        await self._answer(message, answer)

    async def _on_end(self, message: Msg) -> None:
        with contextlib.suppress(NoAnswer):
            asked = convert(message.data, PartAsked)
            async with self._one:
                await self._let_go(asked.snapshot)

    async def _answer(self, message: Msg, answer: bytes) -> None:
        if message.reply:
            with contextlib.suppress(NoAnswer):  # whoever asked asks again
                await self._connection.publish(message.reply, answer)

    # --- what is held -----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            async with self._one:
                for name in [name for name, held in self._held.items() if self._now() - held.used_at > UNUSED_S]:
                    self._told(f"{self._held[name].node} asks for its snapshot no more")
                    await self._let_go(name)

    async def _let_go(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            await asyncio.to_thread(held.files.close)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def snapshot_subject(cluster: str, node: str) -> str:
    return f"ringmain.{cluster}.node.{node}.snapshot"


def _read_part(held: _Held, asked: PartAsked) -> bytes:
    """Raises NoAnswer for what there is not, Corruption, OSError."""
    count = min(asked.count, PART_BYTES)
    if not LISTING <= asked.file < len(held.snapshot.listing.files) or asked.offset < 0 or count < 1:
        raise NoAnswer(f"has no bytes {asked.offset} to {asked.offset + asked.count} of a file {asked.file}")
    if asked.file == LISTING:
        data = held.listing[asked.offset : asked.offset + count]
    else:
        data = held.snapshot.read(asked.file, asked.offset, count)
    packing, packed = pack(data)
    head = PART_HEAD.pack(asked.file, asked.offset, packing)
    return b"".join((PART_MAGIC, CRC.pack(crc32c(packed, crc32c(head))), head, packed))


def decode_part(answer: bytes, asked: PartAsked) -> memoryview:
    """The bytes that were asked for, proven. Raises BusError where the sender refuses, NoAnswer for anything else."""
    if answer[: len(PART_MAGIC)] != PART_MAGIC or len(answer) < DATA_AT:
        raise BusError(convert(answer, SnapshotRefused).error)
    (checksum,) = CRC.unpack_from(answer, len(PART_MAGIC))
    behind = memoryview(answer)[len(PART_MAGIC) + CRC.size :]
    file, offset, packing = PART_HEAD.unpack_from(behind)
    if crc32c(behind) != checksum or (file, offset) != (asked.file, asked.offset):
        raise NoAnswer("a part of a snapshot whose checksum is not its own")
    try:
        return unpack(behind[PART_HEAD.size :], packing, asked.count)
    except BadPacking as error:
        raise NoAnswer(f"a part of a snapshot: {error}") from None
