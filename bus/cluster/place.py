"""Where a node is in the stream."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from .messages import Kind, Message, decode
from .replica import Diverged, Position
from .stream import NoAnswer, Shorter, Stream

__all__ = ["Footing", "Place"]

SHORT_PARTS = 10  # of the patience; who was not found to be shorter for longer than one begins anew


@dataclass(slots=True)
class Place:
    """sequence: of the last message taken. epoch, node: of the last claim; node is empty after a handover. ends: each topic's last
    sequence that the stream had by then. foreign: what is here behind it is another's, until the stream's end was reached."""

    sequence: int = 0
    epoch: int = 0
    node: str = ""
    ends: dict[str, int] = field(default_factory=dict[str, int])
    foreign: bool = False

    @classmethod
    def at(cls, position: Position) -> Place:
        return cls(position.stream, position.epoch, position.node, dict(position.ends), position.foreign)

    def position(self) -> Position:
        """The same, to be stored."""
        return Position(self.sequence, self.epoch, self.node, dict(self.ends), self.foreign)

    def check_last(self, message: Message) -> None:
        """Whether this is the message that was taken last. Raises Diverged: the stream has become another one meanwhile."""
        node = "" if message.kind is Kind.HANDOVER else message.node
        if (message.epoch, node) != (self.epoch, self.node):
            raise Diverged(
                f"message {self.sequence} of the stream is of {message.node}, epoch {message.epoch}; when this node took it, "
                f"it was of {self.node or 'a handover'}, epoch {self.epoch}: the servers lost what they had acknowledged"
            )

    def pass_over(self, sequence: int, message: Message) -> None:
        """Move behind a message, whose rows are taken care of. Raises Diverged for one that cannot stand there."""
        self.check(sequence, message)
        self.sequence = sequence
        if message.kind is Kind.CLAIM:
            self.epoch, self.node = message.epoch, message.node
        elif message.kind is Kind.HANDOVER:
            self.node = ""
        for run in message.runs:
            self.ends[run.topic] = run.last

    def check(self, sequence: int, message: Message) -> None:
        """Whether a message may stand right here: after its own epoch's claim, its rows behind those before it."""
        where = f"message {sequence} of the stream"
        if sequence != self.sequence + 1:
            raise Diverged(f"{where}: message {self.sequence + 1} is expected; the stream has a gap")
        if message.kind is Kind.CLAIM:
            if message.epoch <= self.epoch:
                raise Diverged(f"{where}: claims epoch {message.epoch}, and epoch {self.epoch} was claimed before it")
        elif (message.epoch, message.node) != (self.epoch, self.node):
            who = f"{self.node or 'nobody'}, epoch {self.epoch}"
            raise Diverged(f"{where}: is of {message.node}, epoch {message.epoch}, while {who} leads")
        for run in message.runs:
            if run.first != self.ends.get(run.topic, 0) + 1:
                raise Diverged(
                    f"{where}: topic {run.topic!r} goes on with {run.first}, and {self.ends.get(run.topic, 0)} was its last"
                )


class Footing:
    """Whether what was taken last is in the stream still. Wherever anything but an answer came, the servers may have lost it.

    A stream that is shorter proves nothing at first: a server may answer that is behind. One that is so again and again does.
    """

    def __init__(self, place: Place, stream: Stream, patience_s: float) -> None:
        """patience_s: for how long it may be shorter."""
        self._place, self._stream, self._patience_s = place, stream, patience_s
        self._is_firm = False
        self._short_since = self._short_at = -math.inf  # on the loop's clock; the last time it was found to be so

    async def check(self) -> None:
        """Before more is read, or appended. Raises NoAnswer while it is not known, Diverged where the stream is another one."""
        sequence = self._place.sequence
        if self._is_firm:
            return
        last = await self._stream.get(sequence) if sequence else None
        if last is not None:
            self._place.check_last(decode(last.payload))
        elif sequence:
            state = await self._stream.state()
            if state.last < sequence:
                raise Shorter(sequence, state.last)
            if state.first <= sequence:
                raise NoAnswer(f"message {sequence} was not there yet, and is by now: it has to be looked at")
        self._is_firm, self._short_at = True, -math.inf

    def doubt(self, silence: NoAnswer | None = None) -> None:
        """What was asked of the stream was not answered, or refused. Raises Diverged where it has been shorter for too long."""
        self._is_firm = False
        if isinstance(silence, Shorter):
            now = asyncio.get_running_loop().time()
            if now - self._short_at > self._patience_s / SHORT_PARTS:
                self._short_since = now
            self._short_at = now
            if now - self._short_since > self._patience_s:
                raise Diverged(f"{silence}: its servers lost what they had acknowledged")
