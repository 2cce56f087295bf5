"""One client's subscription: catching up with the past, then in the stream that it shares, or held back where it is too slow.

1. Rows come in the order of their sequences. `position` is the last that has been put into the client's outbox, or is held back
   to be put there later.
2. It joins its stream once it has all that the stream's source has handed out, in one step of the event loop: no gap, no repeat.
3. A client that is caught up again gets what was held back before anything newer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from ...bus import Batch
from .batches import rows_behind
from .connection import Framed, framed
from .frames import encode_message
from .outbox import Outbox
from .requests import Slow, Subscribe
from .slow import Held, fold_of
from .stream import Stream

__all__ = ["Subscription"]


class Subscription:
    """outbox: of its client. too_slow: called with the reason when it cannot be helped. on_end: when the topic has ended.

    Raises ValueError naming what the topic cannot serve.
    """

    def __init__(
        self,
        request: Subscribe,
        stream: Stream,
        outbox: Outbox,
        held_bytes_max: int,
        too_slow: Callable[[str], None],
        on_end: Callable[[Subscription, str], None],
    ) -> None:
        self.id, self.stream, self.position = request.id, stream, stream.source.position
        self.conflated_count = 0  # batches held back
        self._outbox, self._too_slow, self._on_end = outbox, too_slow, on_end
        self._held: Held | None = None
        if isinstance(request.slow, Slow):
            self._held = Held(fold_of(stream.source.schema, request.slow))
        self._handing: Iterator[Framed] | None = None  # what was held back, on its way into the outbox
        self._held_rows_max = held_bytes_max // stream.source.schema.row_bytes
        if isinstance(request.slow, Slow) and (request.slow.newest or 0) > self._held_rows_max:
            raise ValueError(f"slow: newest: at most {self._held_rows_max} rows of this topic are held back")

    def join(self) -> None:
        """Take part in the stream from the next batch on. Ends where that has ended meanwhile."""
        if self.stream.ended:
            self.end(self.stream.ended)
        else:
            self.stream.takers.add(self)

    def takes(self, batch: Batch) -> bool:
        if batch.first <= self.position:  # it was further than the stream when it joined
            left = rows_behind(batch, self.position)
            if left is not None and self.takes(left):
                self.put(left, self.stream.encode(left, conflated=self.stream.conflates))
            return False
        if self._held is None or (not self.holds_back and self._outbox.fill < 0.5):
            return True
        self._held.take_in(batch)
        self.conflated_count += 1
        self.position = batch.last
        if len(self._held) > self._held_rows_max:
            self._too_slow(f"subscription {self.id}: more keys are held back than its queue may have bytes")
        return False

    def put(self, batch: Batch, messages: Sequence[Framed]) -> None:
        for message in messages:
            self._outbox.put(message)
        self.position = batch.last
        if self._outbox.fill > 1 and self._held is None:
            self._too_slow(f"subscription {self.id}: the queue is full, and no conflation was asked for")

    def put_past(self, messages: Sequence[Framed], position: int) -> None:
        """What catching up has brought: all wanted rows up to that position. Its pace is the client's own."""
        for message in messages:
            self._outbox.put(message)
        self.position = max(self.position, position)

    @property
    def holds_back(self) -> bool:
        return self._handing is not None or (self._held is not None and len(self._held) > 0)

    def hand_out_held(self, fill_max: float = 0.5) -> None:
        """Its client has room: put what was held back, until its queue is that full."""
        while self._outbox.fill < fill_max:
            if self._handing is None:
                batch = self._held.hand_out() if self._held is not None else None
                if batch is None:
                    return
                self._handing = self.stream.encode_held(batch)
            message = next(self._handing, None)
            if message is None:
                self._handing = None
            else:
                self._outbox.put(message)

    def reset(self, sequence: int, reason: str) -> None:
        self.hand_out_held(math.inf)
        self.position = sequence
        message = encode_message("reset", stream=self.stream.number, sequence=sequence, reason=reason)
        self._outbox.put(framed(message))

    def end(self, reason: str) -> None:
        self.hand_out_held(math.inf)
        self._on_end(self, reason)

    def leave(self) -> None:
        self.stream.takers.discard(self)
