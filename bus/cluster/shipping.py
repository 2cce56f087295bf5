"""What a leader's rows are taken out of: the rings, and for what is not there any more the log.

1. Rows are taken once they are logged. Until `gathered` they count as not shipped, and come again.
2. In each ring this is a reliable reader: a slot is not used again before its row is shipped. So what is not shipped is bounded by
   the rings, but for the tail of an earlier life, which was in the log before this began.
3. It begins before the lanes are let in: nobody publishes then, and so the ring holds what comes behind the tail.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...storage import LogReader
from .. import _segment
from .._read import RingCursor
from ..replicating import Ring
from .messages import RUN_BYTES, Run
from .replica import Diverged

__all__ = ["READER", "Shipping"]

READER = "replication"  # its name in the reader tables
LOGGED = _segment.WATERMARKS.index("logged")


class _Topic:
    """One topic's rows. `shipped` is in the stream; up to `taken` was handed out; up to `old` is read from the log."""

    def __init__(self, ring: Ring, shipped: int, log_directory: str) -> None:
        self._ring, self._log_directory = ring, log_directory
        self._log: LogReader | None = None
        self.shipped = self.taken = shipped
        self._cursor = RingCursor(ring.data.memory, ring.control.memory, ring.schema, LOGGED, 0)
        self._cursor.register(READER, shipped)
        self._old = shipped
        if shipped + 1 < self._cursor.oldest or not self._cursor.hold_writer():
            self._cursor.cursor = self._old = self._cursor.published
            held = self._cursor.hold_writer()
            assert held

    @property
    def row_bytes(self) -> int:
        return self._ring.schema.row_bytes

    @property
    def is_drained(self) -> bool:
        """Whether all that is published is shipped."""
        return self.shipped == self._cursor.published

    @property
    def ready_bytes(self) -> int:
        return max(0, self._cursor.watermark - self.shipped) * self._ring.schema.row_bytes

    def take(self, count_max: int) -> Run:
        """The next rows: some, where there are any."""
        first, schema = self.taken + 1, self._ring.schema
        if first <= self._old:
            rows = self._read_log(first, min(self._old, self._cursor.watermark), count_max)
        else:
            self._cursor.cursor = self.taken
            batch = self._cursor.poll(count_max)
            assert batch is not None
            rows = batch.rows
        self.taken += len(rows)
        return Run(schema.name, schema.hash, first, schema.row_bytes, rows.view(np.uint8).data)

    def _read_log(self, first: int, last: int, count_max: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        if self._log is None:
            self._log = LogReader(self._log_directory, self._ring.schema.name)
        rows = self._log.read(first, last, count_max)
        if rows is None or rows["sequence"][0] != first:
            raise Diverged(
                f"{self._log_directory}: topic {self._ring.schema.name!r}: sequence {first} is to be replicated, and is not there"
            )
        return rows

    def settle(self, shipped: int) -> None:
        """What was taken came to be shipped, or not."""
        self.shipped = self.taken = shipped
        if shipped >= self._old:
            self._cursor.cursor = shipped
            self._cursor.beat()  # the slots are free

    def close(self) -> None:
        self._cursor.release()


class Shipping:
    """The rows of all topics behind what is shipped. From before the lanes are let in until after they have ended.

    shipped: each topic's last sequence in the stream; 0 where it is not named.
    """

    def __init__(self, rings: Mapping[str, Ring], shipped: Mapping[str, int], log_directory: str) -> None:
        self._topics = [_Topic(ring, shipped.get(name, 0), log_directory) for name, ring in rings.items()]

    @property
    def is_ready(self) -> bool:
        """Whether there is something to gather."""
        return any(topic.ready_bytes for topic in self._topics)

    @property
    def is_drained(self) -> bool:
        """Whether everything published is shipped."""
        return all(topic.is_drained for topic in self._topics)

    def gather(self, bytes_max: int) -> list[Run]:
        """Runs of `bytes_max` bytes at most, the room in a message that each takes beside its rows included.

        Topics share the room alike, and what one does not need the others have. What was gathered and not confirmed by `gathered`
        comes again. The rows' memory stays as it is until `gathered`.
        """
        for topic in self._topics:
            topic.taken = topic.shipped
        ready = sorted((topic for topic in self._topics if topic.ready_bytes), key=lambda topic: topic.ready_bytes)
        runs: list[Run] = []
        left = bytes_max
        for index, topic in enumerate(ready):
            row_bytes = topic.row_bytes
            if left < RUN_BYTES + row_bytes:
                continue
            share = left // (len(ready) - index) - RUN_BYTES
            run = topic.take(max(1, share // row_bytes))
            left -= RUN_BYTES + len(run.rows)
            runs.append(run)
        return runs

    def gathered(self) -> None:
        """What was gathered last is shipped."""
        for topic in self._topics:
            topic.settle(topic.taken)

    def close(self) -> None:
        """Hold the rings no longer."""
        for topic in self._topics:
            topic.close()
