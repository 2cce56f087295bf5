"""Where a node is in the stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from .messages import Kind, Message
from .replica import Diverged, Position
from .stream import Shorter

__all__ = ["Place", "Shortness"]


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


class Shortness:
    """Whether the stream stays shorter than what was taken from it. For a while a server may answer that is behind; one that stays
    so lost messages."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: float | None = None

    def pass_by(self) -> None:
        """The stream was heard from, and is as long as it should be."""
        self._since = None

    def meet(self, shorter: Shorter, now: float) -> None:
        """Raises Diverged where it has been so for longer than one can be patient."""
        if self._since is None:
            self._since = now
        elif now - self._since > self._patience_s:
            raise Diverged(f"{shorter}: its servers lost what they had acknowledged")
