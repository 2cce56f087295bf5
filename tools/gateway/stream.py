"""What identical subscriptions share: which rows of a source they get, and those rows as messages, encoded once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ...bus import Batch
from ...storage import Schema
from .batches import encode_batch, encode_pieces, rows_max
from .connection import Framed
from .frames import encode_binary, encode_json
from .requests import Subscribe
from .selecting import Selection, projected
from .source import Source

__all__ = ["Stream", "StreamTaker", "facts"]


class StreamTaker(Protocol):
    """A subscription, as its stream sees it."""

    def takes(self, batch: Batch) -> bool:
        """Whether it wants the messages that all get. Otherwise it has taken the rows by now, in its own way."""
        ...

    def put(self, batch: Batch, messages: Sequence[Framed]) -> None: ...

    def reset(self, sequence: int, reason: str) -> None: ...

    def end(self, reason: str) -> None: ...


class Stream:
    """number: what its messages carry. Lives in the event loop.

    Raises ValueError naming the field, key or condition that the topic cannot serve.
    """

    def __init__(self, number: int, source: Source, request: Subscribe) -> None:
        self.number, self.source, self.request = number, source, request
        self.schema: Schema = projected(source.schema, request.fields)
        self.takers: set[StreamTaker] = set()
        self.users = 0  # who has it, joined or not
        self._encode = encode_binary if request.format == "binary" else encode_json
        self._rows_max = rows_max(self.schema.dtype, text=request.format == "json")
        self._selection = self.selection()
        self._ended = ""

    def selection(self) -> Selection:
        """What selects this stream's rows; a new one, since each serves one thread."""
        return Selection(self.source.schema, self.request.key, self.request.where)

    def encode(self, batch: Batch, *, conflated: bool = False) -> Sequence[Framed]:
        return encode_batch(batch, self.number, self.schema.dtype, self._encode, self._rows_max, conflated=conflated)

    def encode_held(self, batch: Batch) -> Iterator[Framed]:
        """The messages of what was held back, each made when it is wanted."""
        return encode_pieces(batch, self.number, self.schema.dtype, self._encode, self._rows_max, conflated=True)

    @property
    def conflates(self) -> bool:
        """Whether batches have only the newest row of each key."""
        return self.request.conflate is not None

    @property
    def ended(self) -> str:
        """Why nothing more will come; empty while more may."""
        return self._ended or self.source.ended

    def deliver(self, batch: Batch) -> None:
        selected = self._selection.select(batch)
        if selected is None:
            return
        messages: Sequence[Framed] | None = None
        for taker in tuple(self.takers):
            if taker.takes(selected):
                if messages is None:
                    messages = self.encode(selected, conflated=self.conflates)
                taker.put(selected, messages)

    def reset(self, sequence: int, reason: str) -> None:
        for taker in tuple(self.takers):
            taker.reset(sequence, reason)

    def end(self, reason: str) -> None:
        self._ended = reason
        for taker in tuple(self.takers):
            taker.end(reason)


def facts(stream: Stream) -> dict[str, Any]:
    """A stream, for somebody who looks at the gateway from outside."""
    request = stream.request
    return {
        "stream": stream.number,
        "topic": request.topic,
        "mode": request.mode,
        "format": request.format,
        "subscriptions": len(stream.takers),
        "position": stream.source.position,
    }
