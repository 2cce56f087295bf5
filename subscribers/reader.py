"""What reads for every subscriber: one topic's records in order, from the ring where they are there, else from the log.

1. The cursor is the last sequence handed out. The next batch begins right behind it, or says in `lost` how many records
   it had to pass over. There is never a repeat.
2. Reading comes from the ring as long as the ring holds the next sequence. When the writer has lapped the reader, or it
   starts in the past, rows come from the log until the ring holds the next one again, with room to spare.
3. A reliable reader holds the writer back only once it reads from the ring.
4. When the ring is fenced, a newer writer has made another under the same name: the reader moves there and goes on behind
   its cursor. When it is closed, everything is read, and then the reader has ended (or waits for the next writer).
5. A ring of another log, or of a bus without one that was opened anew, holds another stream: it is read from its first record.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from ..bus import Attached, AttachError, Batch, BusError, NotFound, Overrun, attach
from ..bus._read import RingCursor, log_batch
from ..bus._segment import STATUS_CLOSED, STATUS_FENCED, WATERMARKS, closed_epoch, read_safe
from ..storage import Corruption, HistoryGone, LogReader, Schema
from .subscriber import SLICE_S, Stats, Subscriber

__all__ = ["Follow", "Start", "TopicReader", "Wait", "followed"]

Follow: TypeAlias = Literal["published", "logged", "durable", "indexed", "replicated"]
Start: TypeAlias = Literal["latest", "earliest"] | int
Wait: TypeAlias = Literal["futex", "spin", "yield"]

FINISHED = STATUS_FENCED | STATUS_CLOSED  # nothing is added to a ring with one of these
STRATEGIES = ("futex", "spin", "yield")  # by their numbers in wait.hpp
REOPEN_POLL_S = 0.02
LAPPED_TRIES = 8  # of finding a place in a ring that is written faster than it is read
BATCH_ROWS_MAX = 65_536
ROWS_MAX = 1 << 62  # no limit but the reader's own


def followed(ring: Attached | None, follow: Follow | None) -> Follow:
    """The watermark to follow where None was said: on a replicated bus rows that may still vanish are not handed out."""
    if follow is not None:
        return follow
    return "replicated" if ring is not None and ring.header["replicates"] else "published"


class TopicReader(Subscriber):
    """Reads one topic. Use the subclasses: RealTime and Historical."""

    def __init__(
        self,
        address: str,
        *,
        ring: Attached | None,
        log: LogReader | None,
        follow: Follow | None,
        wait: Wait,
        reliable: bool,
        name: str,
        batch_rows: int | None,
        reopen: bool,
    ) -> None:
        follow = followed(ring, follow)
        if follow not in WATERMARKS[1:]:
            raise ValueError(f"follow: one of {', '.join(WATERMARKS[1:])} is expected, got {follow!r}")
        if wait not in STRATEGIES:
            raise ValueError(f'wait: "futex", "spin" or "yield" is expected, got {wait!r}')
        if ring is not None and follow != "published" and ring.log_directory is None:
            raise ValueError(f"{address}: nothing is {follow} on a bus without a data_dir; follow published")
        if ring is not None and follow == "durable" and not ring.header["syncs"]:
            raise ValueError(f"{address}: nothing is durable, since the writer never syncs its log; follow logged")
        if ring is not None and follow == "indexed" and not ring.header["indexes"]:
            raise ValueError(
                f"{address}: nothing is indexed, since the writer does not keep the topic by key; follow logged"
            )
        if ring is not None and follow == "replicated" and not ring.header["replicates"]:
            raise ValueError(f"{address}: nothing is replicated, since the bus is on this host alone; follow durable")
        if batch_rows is not None and batch_rows < 1:
            raise ValueError(f"batch_rows: at least 1 is expected, got {batch_rows}")
        self.address, self.name = address, name or Path(sys.argv[0]).name or "python"
        self._ring, self._log = ring, log
        self._follow, self._strategy = WATERMARKS.index(follow), STRATEGIES.index(wait)
        self._reliable, self._reopen = reliable, reopen
        self._batch_rows = batch_rows
        self._cursor: RingCursor | None = None
        self._position = 0  # while there is no ring
        self._last: int | None = None  # read nothing behind this
        self._from_log = False
        self._holds = not reliable  # whether it holds the writer back, if it is to
        self._ended = False
        self._begin = 0
        self._lost = self._refilled = self._overruns = 0
        self.reopen_count = 0  # times it moved to another ring
        self._lost_before = 0  # to be told with the next batch
        self._refilled_last = 0  # the last sequence that was counted as refilled

    # --- positions --------------------------------------------------------------------------------------------------

    def _open_at(self, position: int, *, oldest: bool = False) -> None:
        """Begin behind `position`, or (oldest) at the first record that the ring holds."""
        self._begin = self._position = position
        if self._ring is None:
            return
        self._enter(self._ring, position)
        assert self._cursor is not None
        if oldest:
            self._begin = self._cursor.cursor = self._cursor.oldest - 1
        if not self._holds and not self._from_log:
            self._holds = self._cursor.hold_writer()

    def _enter(self, ring: Attached, position: int, former: RingCursor | None = None) -> None:
        """Begin in a ring behind `position`, in the reader table's entry of `former` where that may be kept."""
        cursor = RingCursor(ring.data.memory, ring.control.memory, ring.schema, self._follow, self._strategy)
        kept = former is not None and position + 1 >= cursor.oldest and cursor.adopt(former)
        if not kept:
            cursor.register(self.name, position)
            self._holds = not self._reliable
        self._ring, self._cursor = ring, cursor
        self._rows_max = self._batch_rows or max(1, min(ring.header["slot_count"] // 4, BATCH_ROWS_MAX))
        self._from_log = self._log is not None and position + 1 < cursor.oldest

    @property
    def schema(self) -> Schema:
        """The topic's schema."""
        if self._ring is not None:
            return self._ring.schema
        assert self._log is not None
        return self._log.schema

    @property
    def position(self) -> int:
        """The last sequence handed out."""
        return self._cursor.cursor if self._cursor is not None else self._position

    @property
    def newest(self) -> int:
        """The last sequence that it could hand out now, as far as a ring tells; without one, where it stands."""
        return self._cursor.watermark if self._cursor is not None else self._position

    @property
    def next_timestamp_ns(self) -> int:
        """When the record that comes next was published; 0 where that is not known before it is read."""
        return self._cursor.next_timestamp_ns if self._cursor is not None and self.in_living_ring else 0

    @property
    def in_living_ring(self) -> bool:
        """Whether it reads from a ring to which records may still be added."""
        return self._cursor is not None and not self._from_log and not self._cursor.status & FINISHED

    @property
    def batch_rows_max(self) -> int:
        """Most rows a batch from the ring."""
        return self._rows_max

    @property
    def log_id(self) -> int:
        """Of the log that it reads now, or that belongs to the ring; 0 without one."""
        if self._ring is not None:
            return int(self._ring.header["log_id"])
        assert self._log is not None
        return self._log.log_id

    @property
    def safe_position(self) -> int:
        """Up to where records will not go any more: they are durable, or logged where the log is never synced."""
        if self._ring is None or self._cursor is None:  # without a cursor: the rest is in a log that is closed
            return self._position
        return read_safe(self._ring.data.memory)

    @property
    def data_segment(self) -> mmap.mmap | None:
        """The ring that it reads or will go on in, as it is mapped; None where there is none."""
        return self._ring.data.memory if self._ring is not None and self._cursor is not None else None

    def acknowledge(self, sequence: int) -> None:
        """Show in the reader table that everything up to a sequence is done with for good. Any thread may."""
        if self._cursor is not None:
            self._cursor.acknowledge(sequence)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: the writer closed in good order and all was read, or the last wanted row was."""
        return self._ended

    @property
    def stats(self) -> Stats:
        position = self.position
        newest = self._cursor.published if self._cursor is not None else position
        return Stats(
            position=position,
            lag=max(0, newest - position),
            read_count=position - self._begin - self._lost,
            overrun_count=self._overruns,
            refilled_count=self._refilled,
            lost_count=self._lost,
            reopen_count=self.reopen_count,
            epoch=self._ring.header["epoch"] if self._ring is not None else 0,
        )

    # --- reading ----------------------------------------------------------------------------------------------------

    def poll(self, rows_max: int = ROWS_MAX) -> Batch | None:
        """The next batch, of at most `rows_max` rows, or None when there is nothing new now. Never waits.

        Asking for the next batch says that everything handed out before is done with. Raises HistoryGone where the log no
        longer keeps what is wanted next; the reader then stands before the oldest record that it does keep.
        """
        if self._ended:
            return None
        cursor = self._cursor
        if cursor is None or self._from_log:
            batch = self._poll_log(rows_max)
            if batch is not None or cursor is None or self._from_log:
                return batch
        if not self._holds:
            self._holds = cursor.hold_writer()
        rows_max = min(rows_max, self._rows_max)
        if self._last is not None:
            rows_max = min(rows_max, self._last - cursor.cursor)
            if rows_max <= 0:
                self._ended = True
                return None
        try:
            batch = cursor.poll(rows_max)
        except Overrun as overrun:
            return self._lapped(cursor, overrun, rows_max)
        if batch is None:
            if cursor.status:
                self._look_at_status(cursor)
        elif self._lost_before:
            batch.lost, self._lost_before = self._lost_before, 0
        return batch

    def _wait(self, seconds: float) -> None:
        cursor = self._cursor
        if cursor is None or self._from_log:
            time.sleep(min(seconds, REOPEN_POLL_S))
        elif cursor.status & FINISHED and self.newest <= cursor.cursor:
            time.sleep(min(seconds, REOPEN_POLL_S))  # the next ring is not there yet
        else:
            cursor.wait(seconds)

    def wait_for_rows(self, count: int, seconds: float) -> None:
        """Wait up to `seconds` until `count` rows can be read, where they are still to come into the ring. Takes nothing."""
        if self._cursor is not None and self.in_living_ring:
            self._cursor.wait(seconds, count)
        else:
            self._wait(seconds)

    def step_back(self, sequence: int) -> None:
        """Hand out again what begins with `sequence`, which was in the batch handed out last."""
        self._refilled -= max(0, self._refilled_last + 1 - sequence)
        self._refilled_last = min(self._refilled_last, sequence - 1)
        self._move_to(sequence - 1)

    def __iter__(self) -> Iterator[Batch]:
        """Batches, for as long as there will be any; waits between them."""
        while not self._ended:
            cursor = self._cursor
            if cursor is not None and not self._from_log and self._holds and self._last is None:
                try:  # the straight way, most of the time
                    batch = cursor.take(SLICE_S, self._rows_max)
                except Overrun as overrun:
                    batch = self._lapped(cursor, overrun, ROWS_MAX)
                if batch is not None:
                    if self._lost_before:
                        batch.lost, self._lost_before = self._lost_before, 0
                    yield batch
                    continue
                if not cursor.status and not self._still_current():
                    self._reattach(cursor)
            batch = self.take(SLICE_S)
            if batch is not None:
                yield batch

    # --- the log ----------------------------------------------------------------------------------------------------

    def _poll_log(self, rows_max: int) -> Batch | None:
        """Rows from the log. Back to the ring, with None, once that is as far."""
        assert self._log is not None
        cursor = self._cursor
        wanted, last = self.position + 1, self._last
        if cursor is not None:
            followed = cursor.watermark
            last = followed if last is None else min(last, followed)
        passed_over = self._log.lost_count
        try:
            rows = self._log.read(wanted, last, min(rows_max, self._batch_rows or BATCH_ROWS_MAX))
        except HistoryGone as gone:
            self._count_lost(gone.oldest - wanted)
            self._move_to(gone.oldest - 1)
            raise
        except (FileNotFoundError, Corruption):
            if cursor is None or not cursor.status & STATUS_FENCED:
                raise
            return None  # the next writer is about to open another log with the same rows: see that then
        if rows is None:
            if cursor is not None:
                self._from_log = False
            elif self._last is None or wanted > self._last or not self._ring_expected():
                self._ended = True
            return None
        batch = log_batch(rows, self._log.schema)
        if self._log.lost_count != passed_over:
            self._count_lost(batch.first - wanted)
        self._move_to(batch.last)
        if cursor is not None:
            self._refilled += len(batch)
            self._refilled_last = batch.last
            cursor.count_overrun(0, len(batch), False)
            margin = (cursor.published - cursor.oldest) // 4
            self._from_log = batch.last + 1 < cursor.oldest + margin
        batch.lost, self._lost_before = self._lost_before, 0
        return batch

    def _ring_expected(self) -> bool:
        return False

    def _move_to(self, position: int) -> None:
        self._position = position
        if self._cursor is not None:
            self._cursor.cursor = position

    def _count_lost(self, count: int) -> None:
        self._lost += count
        self._lost_before += count
        if self._cursor is not None:
            self._cursor.count_overrun(count, 0, False)

    def _lapped(self, cursor: RingCursor, overrun: Overrun, rows_max: int) -> Batch | None:
        """The writer came round. Read on in the log, or else at the oldest record that is not about to be overwritten too."""
        self._overruns += 1
        cursor.count_overrun(0, 0, True)
        if self._log is None and self._ring is not None and self._ring.log_directory is not None:
            self._log = LogReader(self._ring.log_directory, self._ring.topic)
        if self._log is not None:
            self._from_log = True
            return self._poll_log(rows_max)
        for _ in range(LAPPED_TRIES):
            oldest, published = cursor.oldest, cursor.published
            resume_at = oldest + (published + 1 - oldest) // 4
            self._count_lost(resume_at - overrun.wanted)
            cursor.cursor = resume_at - 1
            try:
                batch = cursor.poll(min(rows_max, self._rows_max))
            except Overrun as again:
                overrun = again
                continue
            if batch is not None:
                batch.lost, self._lost_before = self._lost_before, 0
            return batch
        return None

    # --- another ring -----------------------------------------------------------------------------------------------

    def _look_at_status(self, cursor: RingCursor) -> None:
        if self.newest > cursor.cursor:
            return
        status = cursor.status
        if status & FINISHED == STATUS_CLOSED and not self._reopen:
            self._ended = True
        elif status & FINISHED or not self._still_current():
            self._reattach(cursor)

    def _still_current(self) -> bool:
        return self._ring is not None and self._ring.is_current()

    def _reattach(self, cursor: RingCursor) -> None:
        """Go on in the ring that a newer writer has made, if it is there by now."""
        assert self._ring is not None
        old, position = self._ring, cursor.cursor
        closed = closed_epoch(old.control.memory) > old.header["epoch"]  # before looking: the ring goes after it is set
        with contextlib.suppress(NotFound, AttachError):
            ring = attach(self.address)
            if ring.data.inode == old.data.inode:
                return
            if ring.schema.hash != old.schema.hash:
                difference = old.schema.describe_difference(ring.schema)
                raise BusError(f"{self.address}: the new writer publishes another schema: {difference}; subscribe anew")
            newest = ring.watermarks().published
            began = began_at(ring, newest)
            # What it stands behind may be still to come: nothing was lost for it. A group's may have come, in the new ring.
            waits = position > cursor.published
            restarted = (newest < position and not waits) or not _goes_on(old, ring, cursor.status)
            same_log = ring.header["log_id"] == old.header["log_id"] != 0
            if self._log is not None:
                self._log.forget()  # the rows behind the end of the old ring may be others now
            if same_log and began < position and not waits:
                self._enter(ring, began)
                cursor.release()
                raise BusError(
                    f"{self.address}: this reader had read up to {position}, but the topic was opened again and ended at {began}: "
                    "the records between were published and never logged, or never replicated. Reading goes on behind what is there"
                )
            self.reopen_count += 1
            if restarted:  # nothing of the former stream is left: rings only, or another log
                self._begin -= position
                position = 0
                self._log = None
            same_table = ring.control.inode == old.control.inode and not restarted
            self._enter(ring, position, cursor if same_table else None)
            if not self._holds and self._cursor is not None and not self._from_log:
                self._holds = self._cursor.hold_writer()  # before the former entry stops holding it
            cursor.release()
            return
        if closed and not self._reopen:
            self._finish_in_log(cursor)

    def _finish_in_log(self, cursor: RingCursor) -> None:
        """A newer writer has come and closed in good order, before its ring was found: what it published is in the log."""
        assert self._ring is not None
        directory = self._ring.log_directory
        self._position = cursor.cursor
        cursor.release()
        self._cursor = None
        if directory is None:
            self._ended = True
        elif self._log is None:
            self._log = LogReader(directory, self._ring.topic)
        else:
            self._log.forget()

    # --- end --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the reader's place back. Batches taken before stay as valid as they were."""
        self._ended = True
        if self._cursor is not None:
            self._position = self._cursor.cursor
            self._cursor.release()
        super().close()


def _goes_on(old: Attached, new: Attached, status: int) -> bool:
    """Whether a newer ring is of the same stream as an old one, whose status this is: of the same log, or carried over from it."""
    if new.header["log_id"] != old.header["log_id"]:
        return False
    if new.header["log_id"]:
        return True
    # Who takes over fences the ring, and keeps the reader table; one of them is new where any writer between has closed.
    return bool(status & STATUS_FENCED) and new.control.inode == old.control.inode


def began_at(ring: Attached, published: int) -> int:
    """The last sequence of a topic when its ring was made. published: in that ring."""
    began = int(ring.header["began"])
    return began if began or ring.header["replicates"] else published  # a writer of 0.1.0 does not say it


def wait_for_topic(address: str, timeout: float) -> Attached:
    """Attach to a topic, waiting up to `timeout` seconds for its writer to open it. Raises NotFound or AttachError then."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return attach(address)
        except (NotFound, AttachError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(REOPEN_POLL_S)
