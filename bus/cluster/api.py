"""Requests to JetStream, and its answers, checked."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ...storage.decodable import decodable
from ..errors import BusError
from .connection import Connection
from .stream import NoAnswer, StreamState

__all__ = ["ApiError", "StreamInfo", "ask", "call", "check", "convert"]

Kind = TypeVar("Kind")

SILENT_NS, LAG_MAX = 3_000_000_000, 100


class ApiError(BusError):
    """JetStream said no. code: its `err_code`."""

    def __init__(self, code: int, words: str) -> None:
        self.code = code
        super().__init__(f"the servers answer: {words} (error {code})")


class _Error(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


@decodable
class _Refusal(msgspec.Struct, frozen=True):
    error: _Error | None = None


class _Config(msgspec.Struct, frozen=True):
    subjects: list[str] = []
    retention: str = ""
    storage: str = ""
    discard: str = ""
    num_replicas: int = 0
    max_bytes: int = 0
    max_age: int = 0
    max_msgs: int = -1
    duplicate_window: int = 0
    deny_delete: bool = False
    metadata: dict[str, str] = {}


class _State(msgspec.Struct, frozen=True):
    first_seq: int = 0
    last_seq: int = 0
    bytes: int = 0
    messages: int = 0


class _Peer(msgspec.Struct, frozen=True):
    name: str = ""
    current: bool = False
    offline: bool = False
    active: int = 0  # ns since it was heard from; 0: not by this leader
    lag: int = 0

    @property
    def is_silent(self) -> bool:
        return self.offline or not 0 < self.active <= SILENT_NS

    @property
    def is_behind(self) -> bool:
        """Silent, or far from what the others have; each is a little behind while messages come."""
        return self.is_silent or (not self.current and self.lag > LAG_MAX)


class _Cluster(msgspec.Struct, frozen=True):
    leader: str = ""
    replicas: list[_Peer] = []


@decodable
class StreamInfo(msgspec.Struct, frozen=True):
    """What a stream says of itself. cluster: None where there is one server only."""

    config: _Config
    state: _State
    cluster: _Cluster | None = None

    @property
    def is_led(self) -> bool:
        """Whether who says it speaks for the stream: its leader, heard by a majority.

        A leader that is cut off from its peers answers for 20 s as if nothing were, and then, as who leads nothing, for ever.
        """
        if self.cluster is None:
            return True
        replicas = self.cluster.replicas
        heard = 1 + sum(not peer.is_silent for peer in replicas)
        return self.cluster.leader != "" and heard > (1 + len(replicas)) // 2

    @property
    def servers(self) -> list[str]:
        """The names of those that keep it."""
        return (
            [] if self.cluster is None else [self.cluster.leader, *(replica.name for replica in self.cluster.replicas)]
        )

    def as_state(self) -> StreamState:
        """The same as the protocol wants it. Where there is no cluster, its server leads, whose name it does not tell."""
        state, cluster = self.state, self.cluster
        first = state.first_seq if state.messages else state.last_seq + 1
        if cluster is None:
            return StreamState(first, state.last_seq, state.bytes, self.config.max_bytes, "the only server", 0)
        behind = sum(peer.is_behind for peer in cluster.replicas)
        return StreamState(first, state.last_seq, state.bytes, self.config.max_bytes, cluster.leader, behind)


async def call(connection: Connection, verb: str, body: Any = None, timeout_s: float = 1.0) -> bytes:
    """The answer to `$JS.API.<verb>`. Raises ApiError, NoAnswer."""
    payload = b"" if body is None else msgspec.json.encode(body)
    return check(await connection.request(f"$JS.API.{verb}", payload, timeout_s))


async def ask(connection: Connection, verb: str, kind: type[Kind], body: Any = None) -> Kind:
    """The same, as a type. What is not of it counts as no answer."""
    return convert(await call(connection, verb, body), kind)


def check(answer: bytes) -> bytes:
    refusal = convert(answer, _Refusal)
    if refusal.error is not None:
        raise ApiError(refusal.error.err_code, refusal.error.description)
    return answer


def convert(message: bytes, kind: type[Kind]) -> Kind:
    """What somebody sent as JSON, a request or an answer. Raises NoAnswer for anything that is not of this type."""
    try:
        return msgspec.json.decode(message, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoAnswer(f"a message that is none: {error}") from error
