"""Beginning a stream with the rows that a node has already: a bus of one host becomes a cluster's, or a cluster whose servers lost
the stream goes on with another.

The stream's first message is the node's claim, which says where each topic goes on. It is trimmed at once: so every other node
receives a snapshot before it follows. Until all of that is done, a file in the data directory keeps the node from being started: it
would follow a stream that has nothing of what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import TypeVar

from ...storage.files import sync_directory
from ...storage.log_files import list_files, open_file, read_header, starting_topics
from ..errors import BusError, NotFound
from .local_replica import LocalReplica
from .messages import Kind, Message, decode, encode
from .replica import Position
from .stream import NoAnswer, Refused, Stream

__all__ = ["check_seeded", "log_id_of", "seed", "seeding"]

PATIENCE_S = 30.0
PAUSE_S = 0.2

Answer = TypeVar("Answer")


class StreamBegun(BusError):
    """The stream has messages already that are not of this seeding."""

    def __init__(self, last: int) -> None:
        super().__init__(
            f"the stream has {last} messages already, without what is here. If this node is one of the cluster's, start it. If "
            "others were started too early, stop them, empty their data directories and the servers' stores, and try again"
        )


def log_id_of(data_dir: Path) -> int:
    """The id of the log there. Raises NotFound where there is none, Corruption."""
    files = list_files(data_dir / "log") if (data_dir / "log").is_dir() else []
    if not files:
        raise NotFound(
            f"{data_dir}: there is no log to begin with; a node that has none is started, and needs nothing else"
        )
    number, path = files[-1]
    return read_header(path, number).log_id


def _mark(data_dir: Path) -> Path:
    return data_dir / "cluster" / "seeding"


@contextlib.contextmanager
def seeding(replica: LocalReplica) -> Generator[None]:
    """Around all from the making of the stream to the end of `seed`. Broken off, it leaves its mark."""
    mark = _mark(replica.data_dir)
    mark.touch()
    sync_directory(mark.parent)
    try:
        yield
    except StreamBegun:
        if not replica.position.stream:
            raise
        mark.unlink()  # it is one of the cluster's, and may go on
        raise
    mark.unlink()
    sync_directory(mark.parent)


def check_seeded(data_dir: Path) -> None:
    """Raise BusError where a seeding was begun and not finished."""
    if _mark(data_dir).exists():
        raise BusError(
            f"{data_dir}: `ringmain cluster seed` has not come to its end, and this node's rows would be set aside: run it again"
        )


async def seed(node: str, replica: LocalReplica, stream: Stream) -> Position:
    """Begin the stream with what an open replica has; returns its position then. Where that was broken off before, finish it.

    Raises BusError where the stream has other messages already, NoAnswer.
    """
    claim = Message(Kind.CLAIM, node, replica.position.epoch + 1, 0, secrets.randbits(63) | 1, tuple(replica.stands()))
    try:
        async with asyncio.timeout(PATIENCE_S):
            first = await _begin(stream, claim)
            position = Position(1, first.epoch, node, _former_ends(replica) | dict(replica.ends()))
            await replica.store(position)
            await _insist(lambda: stream.trim(2))
    except TimeoutError:
        raise NoAnswer(f"the stream did not answer within {PATIENCE_S:.0f} s; try again") from None
    return position


async def _begin(stream: Stream, claim: Message) -> Message:
    """The stream's first message: this claim, or the same that this node appended before."""
    try:
        await _insist(lambda: stream.append(encode(claim), 0, claim.id))
        return claim
    except Refused:
        last, stored = (await _insist(stream.state)).last, await _insist(lambda: stream.get(1))
        there = decode(stored.payload) if stored is not None else None
        if (
            there is not None
            and last == 1
            and (there.kind, there.node, there.runs) == (claim.kind, claim.node, claim.runs)
        ):
            return there
        raise StreamBegun(last) from None


def _former_ends(replica: LocalReplica) -> dict[str, int]:
    """Where topics end that the log has and nobody configures any more. The file that the writer has begun declares them all."""
    number, path = list_files(replica.data_dir / "log")[-1]
    return {name: topic.next_sequence - 1 for name, topic in starting_topics(open_file(path, number)).items()}


async def _insist(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    while True:
        with contextlib.suppress(NoAnswer):
            return await ask()
        await asyncio.sleep(PAUSE_S)
