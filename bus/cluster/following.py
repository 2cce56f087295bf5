"""Following: take what the stream has into this node's copy, and claim the leadership once the leader is silent.

1. Rows behind the stored position that are here already were applied before, or were published here by an earlier leadership of
   this node. They are compared with the stream's: the same bytes are passed over; from the first that differ on, they are cut.
2. Once the stream has been read to its end, what is left is a tail that the stream never got. It may stay, and be appended, only
   while the last claim is this node's own; another's fences it.
3. What was taken last must be in the stream still. While the stream is shorter it says nothing, and nobody claims by it.
4. A claim expects the last message that was taken: it is stored only if this node has everything, and nobody wrote meanwhile.
   Whether it was, the stream alone says; a claim whose answer was lost may still be met while reading on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .messages import Kind, Message, Run, decode, encode
from .place import Footing, Place
from .replica import Replica
from .stream import NoAnswer, Refused, Stored, Stream, StreamFull

__all__ = ["Following", "Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. quiet: so long nothing new comes, while the stream answers, before a follower claims; jitter: up to so much of it is
    added at random. beat: an idle leader appends at least as often. store: how often the position is stored. retry: a pause after
    what did not work. drain: how long a handover may wait for what publishers have begun. lost: so long the stream may be shorter
    than what was taken from it, before that is believed."""

    quiet: float = 3.0
    jitter: float = 0.2
    beat: float = 0.5
    store: float = 1.0
    retry: float = 0.05
    drain: float = 5.0
    lost: float = 30.0


class Following:
    """One node's following, from one stepping down (or the start) to the next claim. `place` is moved as the stream is taken.

    tail: what it holds that the stream does not have is known to be its own. moved: called after each read.
    full: whether the stream had no room for this node's claim, now.
    """

    def __init__(
        self,
        name: str,
        life: int,
        stream: Stream,
        replica: Replica,
        place: Place,
        timing: Timing,
        *,
        tail_known: bool,
        moved: Callable[[], None],
        chance: random.Random,
    ) -> None:
        self._name, self._life, self._stream, self._replica = name, life, stream, replica
        self._place, self._timing, self._moved, self._chance = place, timing, moved, chance
        self._at_end = tail_known  # whether what it holds beyond the stream is a tail, and not the stream's own
        self._claim = b""  # appended, and not answered
        self._invited = False
        self._footing = Footing(place, stream, timing.lost)
        self.full = False

    async def run(self) -> None:
        """Follow until this node's claim is in the stream. Raises Trimmed, Diverged, BadMessage, and what the replica raises."""
        clock = asyncio.get_running_loop().time
        quiet_s, patience_s = 0.0, self._patience()
        heard, cut_off = clock(), False
        while True:
            asked = clock()
            try:
                batch = await self._read()
            except NoAnswer:  # its silence says nothing of the leader's
                if not cut_off and clock() - heard > self._timing.quiet:
                    cut_off = True
                    await self._replica.follow("")  # who leads by now is not known
                await asyncio.sleep(self._timing.retry)
                continue
            heard = clock()
            if cut_off:
                cut_off = False
                await self._tell_leader()
            for stored in batch:
                if await self._take(stored):
                    return
            if batch:
                quiet_s, patience_s, self.full = 0.0, self._patience(), False
            else:
                await self._reach_end()
                quiet_s += clock() - asked
            self._moved()
            if batch and not self._invited:
                continue
            if self._at_end and (self._invited or quiet_s >= patience_s) and await self._try_claim():
                return

    def _patience(self) -> float:
        return self._timing.quiet * (1 + self._timing.jitter * self._chance.random())

    async def _read(self) -> list[Stored]:
        """What comes next. Raises as Stream.read, and Diverged where the stream is not the one that was taken from before."""
        try:
            await self._footing.check()
            return await self._stream.read(self._place.sequence + 1)
        except NoAnswer as silence:
            self._footing.doubt(silence)
            raise

    # --- taking -----------------------------------------------------------------------------------------------------

    async def _take(self, stored: Stored) -> bool:
        """Take one message; returns whether it is this node's claim."""
        message, place, replica = decode(stored.payload), self._place, self._replica
        place.check(stored.sequence, message)
        self._invited = message.kind is Kind.HANDOVER and message.target in (self._name, "")
        if message.kind is Kind.DATA:
            await self._take_rows(message.runs)
        elif message.kind is Kind.CLAIM and message.node != self._name and self._at_end:
            await self._cut_tail()
        place.pass_over(stored.sequence, message)
        replica.raise_replicated(place.ends)
        if message.kind is Kind.CLAIM and stored.payload == self._claim:
            return True
        if message.kind in (Kind.CLAIM, Kind.HANDOVER):
            await self._tell_leader()
        return False

    async def _tell_leader(self) -> None:
        node = self._place.node
        await self._replica.follow(node if node != self._name else "")

    async def _take_rows(self, runs: Sequence[Run]) -> None:
        """Add what is not here yet of a message, once what is here of it is known to be the same."""
        for run in runs:
            here = _part(run, 0, self._here(run))
            if here.count and not await self._replica.same(here):
                await self._cut_tail()
                break
        for run in runs:
            here = self._here(run)
            if here < run.count:
                await self._replica.apply(_part(run, here, run.count))

    def _here(self, run: Run) -> int:
        """How many of the run's first rows this node holds, of this or another content."""
        return min(run.count, max(0, self._replica.ends().get(run.topic, 0) - run.first + 1))

    async def _cut_tail(self) -> None:
        ends, place = self._replica.ends(), self._place
        if any(last > place.ends.get(topic, 0) for topic, last in ends.items()):
            await self._replica.cut(dict(place.ends))

    async def _reach_end(self) -> None:
        place = self._place
        if self._at_end:
            return
        if place.node != self._name or place.foreign:
            await self._cut_tail()
        self._at_end, place.foreign = True, False
        await self._tell_leader()  # whose claim may lie before what was read

    # --- claiming ---------------------------------------------------------------------------------------------------

    async def _try_claim(self) -> bool:
        place = self._place
        message = Message(Kind.CLAIM, self._name, place.epoch + 1, 0, self._life, tuple(self._stands()), target="")
        self._claim = encode(message)
        try:
            sequence = await self._stream.append(self._claim, place.sequence, message.id)
        except (NoAnswer, Refused, StreamFull) as error:
            self.full = isinstance(error, StreamFull)
            await asyncio.sleep(self._timing.retry * (1 + self._chance.random()))
            return False
        place.pass_over(sequence, message)
        return True

    def _stands(self) -> list[Run]:
        """Where each topic goes on in the stream: an own tail is not counted."""
        ends = self._place.ends
        return [
            Run(run.topic, run.schema_hash, ends.get(run.topic, 0) + 1, run.row_bytes) for run in self._replica.stands()
        ]


def _part(run: Run, begin: int, end: int) -> Run:
    """The run's rows from `begin` up to `end`, counted from 0."""
    rows = memoryview(run.rows)[begin * run.row_bytes : end * run.row_bytes]
    return Run(run.topic, run.schema_hash, run.first + begin, run.row_bytes, rows)
