"""A node's own copy of the bus, as the protocol sees it. `local_replica.py` is the real one, over a Writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import BusError
from .messages import Run

__all__ = ["Diverged", "Position", "Replica"]


class Diverged(BusError):
    """What the stream has does not go on where this node's data ends: one of the two is damaged, or of another cluster."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far the stream is in this node's data, all of it on the disk.

    stream: the sequence of the last message. epoch, node: the leadership that it was of. ends: each topic's last sequence then.
    foreign: what is here behind it came from another node's disk, and so is no tail of this node's own.
    """

    stream: int = 0
    epoch: int = 0
    node: str = ""
    ends: Mapping[str, int] = field(default_factory=dict[str, int])
    foreign: bool = False


class Replica(Protocol):
    """Sequences by topic throughout; a topic that is not named ends at 0.

    What it holds behind the stored position may be rows of the stream, applied before the position was stored, or rows that this
    node published as a leader and that never came into the stream. `same` tells.
    """

    @property
    def position(self) -> Position:
        """As stored."""
        ...

    def ends(self) -> Mapping[str, int]:
        """The last sequence that it holds of each topic."""
        ...

    def stands(self) -> Sequence[Run]:
        """A run without rows for each topic: where it goes on."""
        ...

    async def same(self, run: Run) -> bool:
        """Whether the rows that it holds of a run's sequences, which lie before its ends, are these bytes."""
        ...

    async def apply(self, run: Run) -> None:
        """Add rows right behind the topic's end; they are visible, and replicated. Waits for room. Raises Diverged where they do
        not fit: another schema, or not right behind."""
        ...

    async def cut(self, ends: Mapping[str, int]) -> int:
        """Set aside what it holds behind these sequences, as if it had never been; returns how many rows that were."""
        ...

    def raise_replicated(self, ends: Mapping[str, int]) -> None:
        """So much is in the stream. What is then on this node's disk as well is `replicated`, now or as soon as it is."""
        ...

    async def store(self, position: Position) -> None:
        """Store a position, once everything up to it is on the disk. Where a cut comes first it is not stored."""
        ...

    # --- leading ----------------------------------------------------------------------------------------------------

    async def lead(self, epoch: int, ends: Mapping[str, int]) -> None:
        """Let publishers in. `gather` begins behind `ends`."""
        ...

    async def gather(self, bytes_max: int, timeout_s: float) -> Sequence[Run]:
        """The next rows to append, in the order in which each topic has them, waiting for some; empty after `timeout_s`.

        Their memory stays as it is until `gathered`.
        """
        ...

    def gathered(self) -> None:
        """What was gathered last is in the stream."""
        ...

    def hold(self, held: bool) -> None:
        """Take nothing from publishers for now; they wait."""
        ...

    def retire(self, leader: str) -> None:
        """Let publishers in no more; they are told who leads ("": nobody known). What they have published is taken in."""
        ...

    def drained(self) -> bool:
        """After `retire`: whether everything that publishers have published was `gathered`."""
        ...

    async def follow(self, leader: str) -> None:
        """Be led, by `leader` ("": nobody known). What publishers had published by then is taken in, and is a tail."""
        ...
