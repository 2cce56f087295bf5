"""What nodes ask each other, and a command asks them: how they are, and to hand the lead over. JSON, over the same servers.

`ringmain.CLUSTER.status` is answered by every node, `ringmain.CLUSTER.node.NAME.status` and `….switchover` by the one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.msg import Msg

from ...storage.decodable import decodable
from ..errors import BusError
from .api import convert
from .connection import Connection
from .stream import NoAnswer

__all__ = [
    "ClaimStatus",
    "NodeStatus",
    "Peers",
    "StreamStatus",
    "TopicStatus",
    "ask_all",
    "ask_status",
    "ask_switchover",
]

STATUS_S = 1.0
SWITCHOVER_S = 15.0  # the leader's own limit is lower


class TopicStatus(msgspec.Struct, frozen=True):
    """A topic on one host, as sequences: published (on a follower: applied), durable, and replicated."""

    applied: int
    durable: int
    replicated: int
    row_bytes: int


class StreamStatus(msgspec.Struct, frozen=True):
    """The stream as a node sees it."""

    first: int
    last: int
    stored_bytes: int
    bytes_max: int
    leader: str
    peers_behind: int


class ClaimStatus(msgspec.Struct, frozen=True):
    """A change of leadership. time_ns: by the clock of the node that tells of it."""

    epoch: int
    node: str
    time_ns: int


@decodable
class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A node, as it says itself. sequence: of the last message of the stream that it has taken. stream: None: it does not answer.

    stored: up to this message of the stream all is on its disk. receiving: the same of a snapshot that it is receiving; 0: none.
    lag_ms: how long it took lately until what was in the stream was here; None: not known, since the stream does not answer.
    faults: what else is wrong as this node sees it, in words. missed: nodes that it heard of before, and not now.
    """

    node: str
    bus: str
    pid: int
    leads: bool
    leader: str
    epoch: int
    sequence: int
    acknowledge: str
    server: str
    lag_ms: float | None
    stored: int = 0
    receiving: int = 0
    stream_full: bool = False
    stream: StreamStatus | None = None
    topics: dict[str, TopicStatus] = {}
    claims: list[ClaimStatus] = []
    faults: list[str] = []
    missed: list[str] = []


class _Switchover(msgspec.Struct, frozen=True):
    to: str = ""


class _Done(msgspec.Struct, frozen=True):
    error: str = ""


class Peers:
    """Answers for one node, until the connection is closed. switchover: hands the lead over; raises BusError, ValueError."""

    def __init__(
        self,
        connection: Connection,
        cluster: str,
        node: str,
        status: Callable[[], NodeStatus],
        switchover: Callable[[str], Awaitable[None]],
    ) -> None:
        self._connection, self._status, self._switchover = connection, status, switchover
        self._subject, self._own = _subject(cluster), _subject(cluster, node)
        self._handing_over: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._connection.listen(f"{self._subject}.status", self._tell_status)
        await self._connection.listen(f"{self._own}.status", self._tell_status)
        await self._connection.listen(f"{self._own}.switchover", self._hand_over)

    async def _tell_status(self, message: Msg) -> None:
        await self._answer(message, self._status())

    async def _hand_over(self, message: Msg) -> None:
        """Beside what else comes: it takes a while."""
        if self._handing_over is not None and not self._handing_over.done():
            await self._answer(message, _Done("a switchover is under way"))
            return
        self._handing_over = asyncio.create_task(self._hand_over_now(message))

    async def _hand_over_now(self, message: Msg) -> None:
        try:
            await self._switchover(convert(message.data, _Switchover).to)
            done = _Done()
        except (BusError, ValueError) as error:
            done = _Done(str(error))
        await self._answer(message, done)

    async def _answer(self, message: Msg, answer: object) -> None:
        if message.reply:
            try:
                await self._connection.publish(message.reply, msgspec.json.encode(answer))
            except NoAnswer:
                return  # whoever asked asks again


async def ask_all(
    connection: Connection, cluster: str, timeout_s: float = STATUS_S, enough: int = 1000
) -> list[NodeStatus]:
    """All nodes that answer in time, or the first `enough`, by name; none where nobody does. What is no status is passed over.

    Raises NoAnswer where no server can be reached.
    """
    try:
        answers = await connection.gather(f"{_subject(cluster)}.status", b"", timeout_s, enough)
    except NoAnswer:
        if connection.why_not():
            raise
        return []
    found: dict[str, NodeStatus] = {}
    for answer in answers:
        with contextlib.suppress(NoAnswer):
            status = convert(answer, NodeStatus)
            found[status.node] = status
    return [found[node] for node in sorted(found)]


async def ask_status(connection: Connection, cluster: str, node: str, timeout_s: float = STATUS_S) -> NodeStatus:
    """One node. Raises NoAnswer."""
    return convert(await connection.request(f"{_subject(cluster, node)}.status", b"", timeout_s), NodeStatus)


async def ask_switchover(connection: Connection, cluster: str, leader: str, to: str = "") -> None:
    """Have the leader hand over; to: to whom, "": whoever is first. Raises NoAnswer, and BusError in the leader's own words."""
    request = msgspec.json.encode(_Switchover(to))
    done = convert(await connection.request(f"{_subject(cluster, leader)}.switchover", request, SWITCHOVER_S), _Done)
    if done.error:
        raise BusError(done.error)


def _subject(cluster: str, node: str = "") -> str:
    return f"ringmain.{cluster}.node.{node}" if node else f"ringmain.{cluster}"
