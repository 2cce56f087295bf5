"""A node of a cluster: it follows until it leads, and leads until it is deposed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from ..errors import BusError
from ..segments import NAME
from .following import Following, Timing
from .leading import Deposed, Leading
from .place import Place
from .replica import Replica
from .stream import Stream, Trimmed

__all__ = ["Claimed", "Node"]

CLAIMS_KEPT = 16


class Claimed(NamedTuple):
    """A change of leadership that this node saw. time_ns: when, by its clock."""

    epoch: int
    node: str
    time_ns: int


class Node:
    """Runs the protocol for one bus on one host. `run` is its life.

    name: unlike any other node's. acknowledge: "sync": what is replicated is acknowledged; "async": what is durable here is.
    bootstrap: called when the stream no longer has what this node needs next; it puts a peer's snapshot in the replica's place.
    fit: whether the stream's servers are fit to keep rows; while they are not, this node's wait as it leads.
    chance: of the patience of followers; whose seed is given runs the same again.
    """

    def __init__(
        self,
        name: str,
        stream: Stream,
        replica: Replica,
        *,
        timing: Timing | None = None,
        acknowledge: Literal["sync", "async"] = "sync",
        bootstrap: Callable[[Trimmed], Awaitable[None]] | None = None,
        fit: Callable[[], bool] = lambda: True,
        chance: random.Random | None = None,
    ) -> None:
        self.name, self.stream, self.replica = name, stream, replica
        self.timing = timing if timing is not None else Timing()
        self.place = Place.at(replica.position)
        self.claims: deque[Claimed] = deque(maxlen=CLAIMS_KEPT)
        self._acknowledge: Literal["sync", "async"] = acknowledge
        self._bootstrap, self._fit = bootstrap, fit
        self._chance = chance if chance is not None else random.Random()
        self._life = self._chance.getrandbits(63) | 1
        self._following: Following | None = None
        self._leading: Leading | None = None
        self._storing: asyncio.Task[None] | None = None
        self._stored_at = 0.0
        self.changed = asyncio.Event()  # set at each change of who leads

    @property
    def leads(self) -> bool:
        return self._leading is not None

    @property
    def leader(self) -> str:
        """Who leads, as far as this node knows; empty: nobody."""
        return self.place.node if self.leads or self.place.node != self.name else ""

    @property
    def stream_full(self) -> bool:
        """Whether the stream took no more when this node last appended."""
        return any(part is not None and part.full for part in (self._following, self._leading))

    @property
    def trims(self) -> bool:
        """Whether it is for this node to trim the stream: it leads; or nobody does, perhaps because the stream is full."""
        return self.leads or not self.leader or self.stream_full

    async def run(self) -> None:
        """Follow and lead by turns, until cancelled. Raises Diverged, BadMessage, Trimmed without a bootstrap, and what stops
        the replica."""
        tail_known = False
        try:
            while True:
                try:
                    await self._follow(tail_known=tail_known)
                except Trimmed as trimmed:
                    if self._bootstrap is None:
                        raise
                    await self._finish_storing()
                    await self._bootstrap(trimmed)
                    self.place, tail_known = Place.at(self.replica.position), False
                    continue
                await self._lead()
                tail_known = True
        finally:
            await self._finish_storing()

    async def switchover(self, target: str = "") -> None:
        """Hand the lead over to another node, or to the first that claims it, and return once it was claimed.

        Raises BusError where this node does not lead, rows wait, or nobody takes over in time; ValueError for a name that no other
        node can have.
        """
        if self._leading is None:
            raise BusError(f"{self.name} does not lead; {self.leader or 'nobody'} does")
        if target and not NAME.fullmatch(target):
            raise ValueError(f"{target!r} is no node's name")
        if target == self.name:
            raise ValueError(f"{target} leads already")
        if not self._fit() or self.stream_full:
            why = "the servers are not fit to keep them" if not self._fit() else "the stream is full"
            raise BusError(f"{self.name} has rows that are in no stream yet, and {why}: nothing can be handed over now")
        epoch = self.place.epoch
        self._leading.hand_over(target)
        deadline = asyncio.get_running_loop().time() + self.timing.drain + 2 * self.timing.quiet
        while self.place.epoch == epoch:
            self.changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self.changed.wait()
            except TimeoutError:
                raise BusError(
                    f"{target or 'nobody'} has not taken over in time; {self.leader or 'nobody'} leads now"
                ) from None

    async def _follow(self, *, tail_known: bool) -> None:
        self._following = Following(
            self.name,
            self._life,
            self.stream,
            self.replica,
            self.place,
            self.timing,
            tail_known=tail_known,
            moved=self._moved,
            chance=self._chance,
        )
        try:
            await self._following.run()
        finally:
            self._following = None

    async def _lead(self) -> None:
        self._leading = leading = Leading(
            self.name,
            self._life,
            self.stream,
            self.replica,
            self.place,
            self.timing,
            acknowledge=self._acknowledge,
            moved=self._moved,
            fit=self._fit,
        )
        self._moved()
        leader = ""
        try:
            await leading.run()
        except Deposed as deposed:
            leader = deposed.node
        finally:
            self._leading = None
        await self.replica.follow(leader)

    # --- after each step --------------------------------------------------------------------------------------------

    def _moved(self) -> None:
        place = self.place
        if not self.claims or self.claims[-1][:2] != (place.epoch, place.node):
            if place.node:
                self.claims.append(Claimed(place.epoch, place.node, time.time_ns()))
            self.changed.set()
        now = asyncio.get_running_loop().time()
        if (self._storing is None or self._storing.done()) and now - self._stored_at >= self.timing.store:
            if self._storing is not None:
                self._storing.result()  # raises what stopped it
            self._stored_at = now
            self._storing = asyncio.create_task(self.replica.store(place.position()))

    async def _finish_storing(self) -> None:
        if self._storing is not None:
            storing, self._storing = self._storing, None
            await storing
