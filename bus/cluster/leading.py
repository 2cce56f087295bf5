"""Leading: append what publishers give, one message in flight, until another claims or the lead is handed over.

1. Only one append is under way at a time, and each expects the last: a leader that was deposed can store nothing more.
2. What was refused, or not answered, is looked up or sent again under its own id. The message that stands in its place decides:
   its own bytes were stored; anything else is another's, and ends this leadership for good. Before more is sent, its last message
   must be in the stream still: a stream that lost some may by chance be as long again.
3. A message takes more rows than it has bytes, as they pack well: as many as fit if they pack as the last ones did.
4. After a message of many rows, but not as many as fit, it rests for a third of what that took: more rows share the next one,
   and what each message costs the servers is paid less often.
5. It appends a beat when it has nothing else, so that its silence means something.
6. Rows leave a reserve of the stream free. So a full stream still takes claims, by which somebody leads, and trims it, and beats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from ..errors import BusError
from .following import Timing
from .messages import (
    HEADER_BYTES,
    ROWS_BYTES_MAX,
    RUN_BYTES,
    Kind,
    Message,
    MessageTooLong,
    Run,
    decode,
    encode,
)
from .place import Footing, Place
from .replica import Diverged, Replica
from .stream import MESSAGE_BYTES_MAX, NoAnswer, Refused, Stored, Stream, StreamFull

__all__ = ["Deposed", "Leading"]

ROWS_BYTES_MIN = MESSAGE_BYTES_MAX - HEADER_BYTES  # fit however badly they pack
FILL_MAX = 0.9  # of a message, if the next rows pack as the last ones did
MANY_BYTES = 8192  # of rows
REST, REST_S_MAX = 1 / 3, 0.05  # of the time that an append took; at most, since a leader that rests is silent
RESERVE_BYTES, RESERVE_PARTS = 64 << 20, 16  # at most, and at most one part of so many: beats of a day
STORED_BYTES = 512  # that a message takes beside its payload, or more
UNANSWERED_S = 2.0  # after which an asynchronous leader takes no more rows: it may have been deposed


class Deposed(BusError):
    """Another node leads. node: which, where it is known."""

    def __init__(self, node: str) -> None:
        self.node = node
        super().__init__(f"{node or 'another node'} has claimed the leadership")


class Leading:
    """One leadership of a node, whose claim was the last message that `place` has passed.

    moved: called after each append.
    fit: whether the servers are fit to keep rows; while they are not, rows wait. full: whether the stream has no room, now.
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
        acknowledge: Literal["sync", "async"],
        moved: Callable[[], None],
        fit: Callable[[], bool] = lambda: True,
    ) -> None:
        self._name, self._life, self._stream, self._replica = name, life, stream, replica
        self._place, self._timing, self._moved, self._fit = place, timing, moved, fit
        self._acknowledge: Literal["sync", "async"] = acknowledge
        self._epoch, self._number = place.epoch, 0
        self._rows_bytes = ROWS_BYTES_MAX  # that are gathered for a message
        self._room_bytes = 0  # that rows may take before the stream is asked again
        self._appended = 0.0  # when, on the loop's clock
        self._footing = Footing(place, stream, timing.lost)
        self._handover: tuple[str, float] | None = None  # to whom, and until when it may wait
        self.full = False

    def hand_over(self, target: str) -> None:
        """Ask to hand the lead over, to a node or, with an empty name, to whoever is first."""
        self._handover = target, asyncio.get_running_loop().time() + self._timing.drain

    async def run(self) -> None:
        """Lead until the lead is handed over. Raises Deposed, Diverged, and what the replica raises."""
        place, replica, clock = self._place, self._replica, asyncio.get_running_loop().time
        await replica.lead(place.epoch, dict(place.ends))
        while True:
            beat = self._timing.retry if self._handover is not None else self._timing.beat
            runs = await replica.gather(self._rows_bytes, beat)
            fit = self._fit()
            if runs and not (fit and await self._has_room(runs)):
                await asyncio.sleep(self._timing.retry)
                if clock() - self._appended >= self._timing.beat:
                    await self._append(Kind.BEAT)
                self._set_full(fit)
            elif runs:
                try:
                    rest_s = await self._append_rows(runs)
                except MessageTooLong:
                    self._rows_bytes = ROWS_BYTES_MIN
                    continue
                replica.gathered()
                replica.raise_replicated(place.ends)
                self._set_full(False)
                if self._handover is None:
                    await asyncio.sleep(rest_s)
            elif self._handover is None:
                await self._append(Kind.BEAT)
                self._set_full(False)
            if self._handover is not None and await self._hand_over_if_drained(*self._handover, idle=not runs):
                return
            self._moved()

    async def _hand_over_if_drained(self, target: str, until: float, *, idle: bool) -> bool:
        """Let nobody in any more, and hand over once all that publishers gave is appended. Leads on where that takes too long."""
        self._replica.retire(target)
        if idle and self._replica.drained():
            await self._append(Kind.HANDOVER, target=target)
            return True
        if asyncio.get_running_loop().time() > until:
            self._handover = None
            await self._replica.lead(self._epoch, dict(self._place.ends))
        return False

    async def _has_room(self, runs: Sequence[Run]) -> bool:
        """Whether the stream takes these rows, its reserve left free; True where it does not answer."""
        need = min(HEADER_BYTES + sum(RUN_BYTES + len(run.rows) for run in runs), MESSAGE_BYTES_MAX) + STORED_BYTES
        if need > self._room_bytes:
            try:
                state = await self._stream.state()
            except NoAnswer:
                return True
            reserve = min(RESERVE_BYTES, state.bytes_max // RESERVE_PARTS)
            self._room_bytes = state.bytes_max - reserve - state.stored_bytes
        return need <= self._room_bytes

    def _set_full(self, full: bool) -> None:
        """An asynchronous leader takes no rows while there is no room for them."""
        if self._acknowledge == "async" and (full or self.full):
            self._replica.hold(full)
        self.full = full

    async def _append_rows(self, runs: Sequence[Run]) -> float:
        """How long to rest afterwards, in seconds. Raises as `_append`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        message_bytes = await self._append(Kind.DATA, runs)
        rows_bytes = sum(len(run.rows) for run in runs)
        is_full = rows_bytes > self._rows_bytes // 3
        fitting = rows_bytes * FILL_MAX * MESSAGE_BYTES_MAX / message_bytes
        self._rows_bytes = round(min(max(fitting, ROWS_BYTES_MIN), ROWS_BYTES_MAX))
        return 0.0 if is_full or rows_bytes < MANY_BYTES else min(REST * (clock() - began), REST_S_MAX)

    async def _append(self, kind: Kind, runs: Sequence[Run] = (), target: str = "") -> int:
        """Have a message in the stream; its size. Raises MessageTooLong, Deposed."""
        message = Message(kind, self._name, self._epoch, self._number + 1, self._life, tuple(runs), target=target)
        payload = encode(message)
        self._number += 1
        clock = asyncio.get_running_loop().time
        began, held = clock(), False
        while (sequence := await self._try_append(payload, message.id)) is None:
            if self._acknowledge == "async" and not held and clock() - began > UNANSWERED_S:
                self._replica.hold(True)
                held = True
            await asyncio.sleep(self._timing.retry)
        if held:
            self._replica.hold(False)
        self._appended = clock()
        self._room_bytes -= len(payload) + STORED_BYTES
        self._place.pass_over(sequence, message)
        return len(payload)

    async def _try_append(self, payload: bytes, message_id: str) -> int | None:
        """The sequence under which it is stored; None where that is not known yet."""
        expected = self._place.sequence
        try:
            await self._footing.check()
            return await self._stream.append(payload, expected, message_id)
        except StreamFull:
            self.full, self._room_bytes = True, 0
        except NoAnswer as silence:
            self._footing.doubt(silence)
        except Refused:
            self._footing.doubt()
            try:
                stored = await self._stream.get(expected + 1)
                if stored is None and (await self._stream.state()).first > expected + 1:
                    raise Deposed("")  # so far on that it is not kept any more
            except NoAnswer:
                return None
            if stored is not None:
                return self._settle(stored, payload)
        return None

    def _settle(self, stored: Stored, payload: bytes) -> int:
        if stored.payload == payload:
            return stored.sequence
        message = decode(stored.payload)
        if message.kind is not Kind.CLAIM:
            raise Diverged(
                f"message {stored.sequence} of the stream: {message.node} wrote into the leadership of {self._name}; "
                "are there two nodes of one name?"
            )
        raise Deposed(message.node)
