"""One batch every interval: all its rows in one array, the newest of each key, or what a reduction makes of them.

1. An interval begins with its first row and holds what was published within `interval` of that row. A replay of the past comes in
   the same batches as the present did, only sooner.
2. Rows lie in the ring until the interval is over, but not for long: after LIE_S, and before a quarter of the ring has passed, they
   are taken in: copied, or folded into one row a key. So they are not lost if the writer hurries, and it does not lag meanwhile.
   An interval that is short and small enough, and in one piece, is handed out as a view of the ring.
3. What was published is handed out at most `interval` later, by the clock of the publisher. Where that clock was set, no later
   than `interval` after it was seen.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from ..bus import Batch, Overrun
from ..bus._read import owned_batch
from ..storage import Schema
from .folding import All, Fold, Newest
from .historical import Historical
from .reader import Follow, Start, wait_for_topic
from .real_time import RealTime
from .reducing import Reduced, Reduction
from .subscriber import Stats, Subscriber

__all__ = ["Delayed", "DelayedStats"]

NS = 1_000_000_000
INTERVAL_S_MAX = 86_400
LIE_S = 0.25  # the reader table may say so as much later again; from 1 s on a subscriber counts as lagging
HELD_RINGS, HELD_ROWS = 4, 65_536  # unless told, at most so many rings' rows are held, and so many rows at least


@dataclass(frozen=True, slots=True)
class DelayedStats(Stats):
    """The same of intervals. position, lag and read_count are of what was handed out."""

    batch_count: int
    lateness_ns_last: int  # how long before it was handed out the last batch's oldest row was published
    lateness_ns_max: int  # of all batches; a row of the past is as late as it is old


class Delayed(Subscriber):
    """Hands out one batch every `interval` seconds in which something was published: `for batch in Delayed("exchange/trades"): …`

    rows: hand out as soon as so many rows are there, too; batches are never of more.
    last: a key, one field or several: only the newest row of each key is handed out, in the order of their sequences.
    reduce: or what a Reduction makes of each key, such as `ohlcv()`; `schema` tells its fields.
    rows_held_max: how many rows (with `last` and `reduce`: keys) it holds in memory at most; it hands out early then. By default
    four times as many as the ring, 65,536, or `rows`, whichever is most.
    start, follow, reliable, name, reopen, open_timeout: as of RealTime. From a start in the past come batches of that time.

    `batch.first` and `batch.last` are the part of the stream that a batch covers, `batch.lost` the records missed before or in it.
    It keeps up with 20 million rows a second where the ring has 65,536 slots or more and the machine lets it run; with
    `reliable` the writer waits for it. While nothing comes it sleeps.

    Raises NotFound, AttachError, StorageError, ValueError.
    """

    def __init__(
        self,
        address: str,
        interval: float = 0.1,
        *,
        rows: int | None = None,
        last: str | Iterable[str] | None = None,
        reduce: Reduction | None = None,
        rows_held_max: int | None = None,
        start: Start = "latest",
        follow: Follow | None = None,
        reliable: bool = False,
        name: str = "",
        reopen: bool = False,
        open_timeout: float = 0.0,
    ) -> None:
        if not 0 < interval <= INTERVAL_S_MAX:
            raise ValueError(
                f"interval: seconds, more than 0 and at most {INTERVAL_S_MAX:,}, are expected, got {interval!r}"
            )
        for word, value in (("rows", rows), ("rows_held_max", rows_held_max)):
            if value is not None and value < 1:
                raise ValueError(f"{word}: at least 1 is expected, got {value}")
        if last is not None and reduce is not None:
            raise ValueError("last, reduce: one of them, not both")
        ring = wait_for_topic(address, open_timeout)
        self._fold = _fold(ring.schema, last, reduce)
        if start == "latest":
            self._reader = RealTime(address, follow=follow, reliable=reliable, name=name, reopen=reopen)
        else:
            self._reader = Historical(
                address, start=start, live=True, follow=follow, reliable=reliable, name=name, reopen=reopen
            )
        self._interval_ns = int(interval * NS)
        self._rows_max = rows
        self._held_max = rows_held_max or max(HELD_RINGS * ring.header["slot_count"], HELD_ROWS, rows or 0)
        self._position = self._reader.position  # the last sequence handed out
        self._first = self._last = self._taken = self._lost = 0  # of the rows taken in and not handed out
        self._lost_ahead = 0  # missed before the row that comes next
        self._began_ns = 0  # when the interval's first row was published
        self._due: float | None = None  # when the interval is over, by the monotonic clock; None: no row yet
        self._take_at: float | None = None  # when what lies in the ring is taken in; None: nothing does
        self._until: int | None = None  # once that was seen: the last sequence there was then
        self._read = self._batches = self._late_last = self._late_max = 0

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def schema(self) -> Schema:
        """Of the rows that it hands out: the topic's, or with `reduce` what the reduction makes of it."""
        return self._fold.schema

    @property
    def position(self) -> int:
        """The last sequence handed out; before it where the reader has stepped back, or another stream has begun."""
        return min(self._position, self._reader.position)

    @property
    def ended(self) -> bool:
        return self._reader.ended and not self._taken

    @property
    def stats(self) -> DelayedStats:
        of, position = self._reader.stats, self.position
        return DelayedStats(
            position=position,
            lag=of.position + of.lag - position,
            read_count=self._read,
            overrun_count=of.overrun_count,
            refilled_count=of.refilled_count,
            lost_count=of.lost_count,
            reopen_count=of.reopen_count,
            epoch=of.epoch,
            batch_count=self._batches,
            lateness_ns_last=self._late_last,
            lateness_ns_max=self._late_max,
        )

    # --- reading ----------------------------------------------------------------------------------------------------

    def poll(self) -> Batch | None:
        """The next batch, if its interval is over or its rows are there; None otherwise. Never waits.

        Asking for the next batch says that everything handed out before is done with. Raises HistoryGone as RealTime does.
        """
        reader = self._reader
        while not reader.ended:
            due = self._is_due()
            if not due and self._may_lie():
                return None
            self._take_at = None
            piece = reader.poll(self._wanted())
            if piece is None:
                break
            try:
                batch = self._take_in(piece, due)
            except Overrun:  # before it was read: the reader has stepped back
                continue
            if batch is not None:
                return batch
        if self._taken:
            return self._hand_out() if reader.ended or self._is_due() else None
        self._due = None
        return None

    def _wait(self, seconds: float) -> None:
        if self._due is None:
            self._reader.wait_for_rows(1, seconds)
        elif self._take_at is None:
            self._reader.wait_for_rows(1, max(0.0, min(seconds, self._due - time.monotonic())))
        else:
            until = min(self._due, self._take_at)
            self._reader.wait_for_rows(self._wanted(), max(0.0, min(seconds, until - time.monotonic())))

    def _wanted(self) -> int:
        """How many rows are taken in at once: they are so as soon as there are as many."""
        wanted = self._reader.batch_rows_max
        if self._rows_max is not None:
            wanted = min(wanted, self._rows_max - self._taken)
        if isinstance(self._fold, All):
            wanted = min(wanted, self._held_max - self._taken)
        return wanted

    # --- the clock --------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether the interval is over. Starts the clock where there is a first row."""
        if self._due is None:
            began_ns = self._reader.next_timestamp_ns
            if began_ns == 0:
                return False
            self._begin(began_ns)
        return self._due is not None and time.monotonic() >= self._due

    def _may_lie(self) -> bool:
        """Whether the rows that are there may stay in the ring: few of them, and for LIE_S from when it saw the first."""
        if not self._reader.in_living_ring or not 0 < self._reader.newest - self._reader.position < self._wanted():
            return False
        now = time.monotonic()
        if self._take_at is None:
            self._take_at = now + LIE_S
        return now < self._take_at

    def _begin(self, began_ns: int) -> None:
        """An interval begins, with a row published at that time."""
        self._began_ns = began_ns
        left_ns = min(max(0, began_ns + self._interval_ns - time.time_ns()), self._interval_ns)
        due = time.monotonic() + left_ns / NS
        self._due = due if self._due is None else min(due, self._due)

    # --- the rows ---------------------------------------------------------------------------------------------------

    def _take_in(self, piece: Batch, due: bool) -> Batch | None:
        """Take a piece of the interval in; the interval's batch where it is complete. Raises Overrun, nothing taken."""
        self._lost_ahead += piece.lost
        if self._taken and piece.first <= self._last:  # another stream has begun: rings only, and a new writer
            self._reader.step_back(piece.first)
            return self._hand_out()
        stamps = piece.rows["timestamp_ns"]
        if not self._taken:
            self._begin(int(stamps[0]))
        end_ns = self._began_ns + self._interval_ns
        over = bool(stamps[-1] >= end_ns)
        if over:
            count = bisect_left(stamps, end_ns, 0 if self._taken else 1)  # the first row's may be another by now
            self._reader.step_back(piece.first + count)
            if count == 0:
                return self._hand_out()
            piece = piece.head(count)
        if due and self._until is None:
            self._until = self._reader.newest
        taken = self._taken + len(piece)
        over = over or taken == self._rows_max or (self._until is not None and piece.last >= self._until)
        in_place = over and not self._taken and isinstance(self._fold, All)
        if not in_place:
            self._fold.take_in(piece)
        self._first, self._last, self._taken = self._first or piece.first, piece.last, taken
        self._lost, self._lost_ahead = self._lost + self._lost_ahead, 0
        if in_place:
            return self._hand_out(piece)
        return self._hand_out() if over or len(self._fold) >= self._held_max else None

    def _hand_out(self, batch: Batch | None = None) -> Batch:
        """The interval's batch, and an end to the interval. batch: that, where its rows lie in the ring."""
        if batch is None:
            batch = owned_batch(self._fold.hand_out(), self.schema, self._first, self._last, 0)
        batch.lost = self._lost
        self._late_last = max(0, time.time_ns() - self._began_ns)
        self._late_max = max(self._late_max, self._late_last)
        self._batches += 1
        self._read += self._taken
        self._position = self._last
        self._first = self._last = self._taken = self._lost = 0
        self._due = self._until = None
        return batch

    def close(self) -> None:
        """Give the reader's place back. What was not handed out is dropped."""
        self._reader.close()
        self._taken = 0
        super().close()


def _fold(schema: Schema, last: str | Iterable[str] | None, reduce: Reduction | None) -> Fold:
    if reduce is not None:
        return Reduced(schema, reduce)
    if last is None:
        return All(schema)
    try:
        return Newest(schema, (last,) if isinstance(last, str) else tuple(last))
    except ValueError as error:
        raise ValueError(f"last: {error}") from None
