"""Where a node is in the stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from .messages import Kind, Message
from .replica import Diverged, Position

__all__ = ["Place"]


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
