"""The stream that the nodes share, as the protocol sees it: messages numbered 1, 2, 3, …, appended by compare-and-append.

`jetstream.py` is the real one. What a call raises says all that is known: after NoAnswer, an append may be stored or not.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..errors import BusError

__all__ = [
    "MESSAGE_BYTES_MAX",
    "NoAnswer",
    "Refused",
    "Shorter",
    "Stored",
    "Stream",
    "StreamFull",
    "StreamState",
    "Trimmed",
]

MESSAGE_BYTES_MAX = 1 << 20  # of one


class NoAnswer(BusError):
    """Nothing was heard from the stream in time: it has no leader now, or cannot be reached."""


class Shorter(NoAnswer):
    """What answered ends before a message that was taken from the stream: it is behind, or the stream lost messages.

    taken: the message. last: the last one that is there.
    """

    def __init__(self, taken: int, last: int) -> None:
        self.taken, self.last = taken, last
        super().__init__(f"the stream ends with message {last}, and message {taken} was taken from it before")


class Refused(BusError):
    """The stream's last message is not the one that was expected; nothing was appended."""


class StreamFull(BusError):
    """The stream has no room; nothing was appended."""


class Trimmed(BusError):
    """The message wanted is not kept any more. oldest: the first that is."""

    def __init__(self, wanted: int, oldest: int) -> None:
        self.wanted, self.oldest = wanted, oldest
        super().__init__(f"message {wanted} is wanted, and the stream now begins at {oldest}")


class Stored(NamedTuple):
    """A message in the stream."""

    sequence: int
    payload: bytes


class StreamState(NamedTuple):
    """What the stream said of itself; it may be old. first is last + 1 where it holds nothing."""

    first: int
    last: int
    stored_bytes: int
    bytes_max: int
    leader: str  # the server that leads it; empty: none
    peers_behind: int  # of its servers, how many are not up to date


class Stream(Protocol):
    """All calls take at most about a second, and raise NoAnswer then. One reader and one appender at a time."""

    async def append(self, payload: bytes, expected: int, message_id: str) -> int:
        """Append if the last message's sequence is `expected`; returns the new one's. Raises Refused, StreamFull.

        A message that is already there under the same id (of the last two minutes) is not appended again: its sequence is returned,
        or Refused raised where its place is not the last one any more or the servers are one alone.
        """
        ...

    async def read(self, first: int) -> list[Stored]:
        """The messages from `first` on, without a gap, as many as there are (not all at once), waiting a moment for one.

        Empty: the stream was heard from, and had none. Raises Trimmed; Shorter where `first - 1` is not there either.
        """
        ...

    async def get(self, sequence: int) -> Stored | None:
        """One message, read from the stream's leader; None where there is none."""
        ...

    async def state(self) -> StreamState:
        """What the stream says of itself."""
        ...

    async def trim(self, below: int) -> None:
        """Give up all messages with a lower sequence."""
        ...
