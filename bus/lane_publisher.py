"""Publishing on a bus that another process writes: a lane, a small ring of this process's own.

1. The bus's writer drains the lane into the topic, where the rows get their place in the one order. What `publish` has returned for
   is in the lane, and comes into the topic exactly once, whoever dies: the lane outlives its publisher and the writer.
2. Sequences here are the lane's own, 1, 2, 3, …, and so are its watermarks. They go on counting in the lanes that follow.
3. A writer that ends, or is taken over, fences the lane and settles where it ends. What a call has put behind that end is in no
   topic; so it goes along into a new lane, with the next writer.
4. A replicated bus may be cut between two leaderships of its node. So a lane that ended before all that it brought was replicated
   has no next one there: it stays as it ended, and its watermarks say what is known. Its publisher opens another.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

from ..storage import Schema
from . import _segment
from ._publish import RingPublisher
from .acknowledgement import wait_for_standings
from .attach import attach
from .errors import Fenced, NotFound, NotLeader
from .lane_opening import POLL_S, Lane, ask, is_unsure, leave
from .publisher import Publisher
from .segments import split_address

__all__ = ["LanePublisher", "open_lane"]

LANE_SLOTS = 16_384
MOVE_S = 30.0  # how long a call that may not wait for room waits for the next writer


def open_lane(
    address: str,
    *,
    schema: Schema | None = None,
    slots: int = LANE_SLOTS,
    full: Literal["block", "raise"] = "block",
    full_timeout: float | None = None,
    open_timeout: float = 0.0,
    reopen: bool = False,
) -> LanePublisher:
    """Publish to a topic, "BUS/TOPIC", whose bus another process writes with lanes=…; close the lane, or use it in a `with`.

    schema: what the topic's must be; None: whatever it is. slots: records that the lane holds, a power of two.
    full: when the lane is full, since the writer is slow, stopped or dead: "block", up to full_timeout seconds (None: for ever), or
    "raise" RingFull.
    open_timeout: seconds to wait for a writer. reopen: when the writer has closed in good order, wait for the next one, as long
    as for room. After one that was killed or taken over the next is waited for in any case.

    Raises NotFound where no writer lives, AttachError where it takes no lanes, has none free (there are 64) or refuses this
    one, NotLeader on a replicated bus whose node here follows, ValueError for another schema; OSError where memory cannot be had.
    The text says what and why.
    """
    split_address(address)
    if slots < 1 or slots & (slots - 1):
        raise ValueError(f"slots: a power of two is expected, got {slots}")
    if full not in ("block", "raise"):
        raise ValueError(f'full: "block" or "raise" is expected, got {full!r}')
    return LanePublisher(address, schema, slots, full, full_timeout, open_timeout, reopen)


class _Holder:
    """The lane that a publisher has, and how it comes to the next one. Knows no publisher, so that a forgotten one is gone."""

    def __init__(
        self, address: str, schema: Schema | None, slots: int, patience_s: float, open_timeout: float, reopen: bool
    ) -> None:
        self._address, self._slots, self._patience_s, self._reopen = address, slots, patience_s, reopen
        self._moving, self._pid = threading.RLock(), os.getpid()
        self.lane = ask(address, schema, slots, time.monotonic() + open_timeout)

    def move(self, ring: RingPublisher, behind: bool, deadline: float | None = None) -> bool:
        """Lead the ring from a lane that was fenced into a new one, unless another thread has. deadline: of time.monotonic.

        behind: not where all that the ring has published is within the lane's end; False then. Raises Fenced where no next writer
        came in time, NotFound where this one has closed and another is not waited for, NotLeader where the bus follows now, or
        leads again and what the lane has brought it before may be lost.
        """
        deadline = time.monotonic() + self._patience_s if deadline is None else deadline
        with self._moving:
            former = self.lane
            state = _segment.read_state(former.segment.memory)
            if not state["status"] & _segment.STATUS_FENCED:
                return True
            end = self._await_end(former, deadline)
            if behind and ring.published <= end:
                return False
            if state["status"] & _segment.STATUS_CLOSED and not self._reopen:
                raise NotFound(
                    f"{self._address}: the bus's writer has closed, with all that was published up to {end}, by this lane's count"
                )
            try:
                lane = ask(self._address, None, self._slots, deadline, former)
            except NotFound as error:
                raise Fenced(
                    f"{self._address}: the bus's writer was taken over behind {end}, by this lane's count, and no next one "
                    f"came: {error}"
                ) from None
            except NotLeader as error:
                more = f"; what was published up to {end}, by this lane's count, was taken in before"
                if is_unsure(former):
                    more += f"; all up to {_replicated(former)} is replicated, the rest may be lost: open another lane"
                raise NotLeader(error.bus, error.leader, more, error.again) from None
            while (
                ring.busy
            ):  # the thread that publishes is in the middle of a call; it comes here itself, and waits, if it must
                if time.monotonic() >= deadline:
                    leave(lane)
                    raise TimeoutError(f"{self._address}: a claim, or a call, is under way in the lane that was fenced")
                time.sleep(POLL_S)
            door = lane.door()
            ring.rebind(lane.segment.memory, end, door, door.asleep())
            self.lane = lane
            return True

    def _await_end(self, lane: Lane, deadline: float) -> int:
        """Where a fenced lane ends. Whoever fenced it is about to say so; if he was killed, the next writer says it."""
        while True:
            state = _segment.read_state(lane.segment.memory)
            if state["status"] & _segment.STATUS_SETTLED:
                return state["ended"]
            if time.monotonic() >= deadline:
                raise Fenced(f"{self._address}: the bus's writer was taken over, and no next one came in time")
            time.sleep(POLL_S)

    def leave(self) -> None:
        """The lane is not needed any more. In a forked child it is the parent's."""
        if os.getpid() == self._pid:
            leave(self.lane)


_OPEN: weakref.WeakSet[RingPublisher] = weakref.WeakSet()


def _close_in_child() -> None:
    """In a forked child: the lanes are the parent's."""
    for ring in _OPEN:
        ring.close()


os.register_at_fork(after_in_child=_close_in_child)


class LanePublisher(Publisher):
    """Publishes records of one topic through a lane: see `open_lane`. As Publisher, one thread at a time; sequences are the lane's.

    Raises RingFull; Fenced where no next writer came in time, NotFound where the writer has closed, and NotLeader where it follows
    now: then the text says how far the lane's records are in the topic; WriterFailed; and what Publisher raises for records that do
    not fit. When a writer that followed leads again the lane goes on, unless there are records of which it does not know that they
    were replicated before: then all calls but a `wait` for what is known raise NotLeader, for good. Open another lane.
    """

    def __init__(
        self,
        address: str,
        schema: Schema | None,
        slots: int,
        full: Literal["block", "raise"],
        full_timeout: float | None,
        open_timeout: float,
        reopen: bool,
    ) -> None:
        self.address = address
        patience_s = MOVE_S if full == "raise" else 1e9 if full_timeout is None else full_timeout
        self._holder = _Holder(address, schema, slots, patience_s, open_timeout, reopen)
        lane = self._holder.lane
        super().__init__(
            lane.segment,
            None,
            lane.topic.schema,
            full=full,
            full_timeout=full_timeout,
            journal=lane.door(),
            syncs=lane.topic.header["syncs"],
            indexes=lane.topic.header["indexes"],
            replicates=lane.topic.header["replicates"],
            mover=self._holder.move,
        )
        self._logs = bool(lane.topic.header["data_dir"])
        self._leave = weakref.finalize(self, self._holder.leave)
        _OPEN.add(self._ring)

    def wait(
        self,
        sequence: int,
        watermark: Literal["published", "logged", "durable", "indexed", "replicated", "drained"] | None = None,
        timeout: float | None = None,
        *,
        acknowledged_by: Iterable[str] = (),
    ) -> None:
        """Return once the lane's watermark has reached `sequence`. Any thread may.

        "drained": it is in the topic, where subscribers see it. "logged", "durable", "indexed", "replicated": as a Publisher's.
        "published": it is in the lane, and will be in the topic, whoever dies. acknowledged_by: wait for these resumable
        subscribers and groups to be done with all that is in the topic once it is, on a replicated bus for good: the watermark is
        then "drained", or "replicated", unless another is told as well.
        Raises as Publisher.wait does, NotFound where the writer has closed before, NotLeader where it follows since, or did.
        """
        names = list(acknowledged_by)
        deadline = None if timeout is None else time.monotonic() + timeout
        if watermark is not None or not names:
            self._wait_for(sequence, watermark or self._safest, deadline)
        if names:
            self._wait_for(sequence, "replicated" if self._replicates else "drained", deadline)
            topic = attach(self.address)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            wait_for_standings(topic, topic.watermarks().published, names, left)

    def _wait_for(self, sequence: int, watermark: str, deadline: float | None) -> None:
        if not self._logs and watermark in ("logged", "durable", "indexed"):
            raise ValueError(f"topic {self.schema.name!r}: nothing is {watermark} without a data_dir")
        while True:
            lane = self._holder.lane
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                if watermark == "drained":
                    self._wait_drained(sequence, left)
                else:
                    self._wait_for_watermark(sequence, watermark, left)
            except Fenced:
                if _is_reached(lane, sequence, watermark, deadline):
                    return
                self._holder.move(self._ring, False, deadline)
            else:
                return

    def _wait_drained(self, sequence: int, timeout: float | None) -> None:
        if sequence > self._ring.published:
            raise ValueError(f"topic {self.schema.name!r}: sequence {sequence} is not published yet")
        if sequence > 0 and not self._ring.wait(sequence, _segment.DRAINED, timeout):
            raise TimeoutError(f"topic {self.schema.name!r}: sequence {sequence} was not drained within {timeout} s")

    @property
    def is_over(self) -> bool:
        """Whether it has no next lane on this node: NotLeader is raised, or is about to be, and another is to be opened."""
        return bool(self._replicates) and is_unsure(self._holder.lane)

    def close(self) -> None:
        """Leave the lane. What was published in it still comes into the topic. Does nothing the second time."""
        self._leave()
        self._ring.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _replicated(lane: Lane) -> int:
    return _segment.read_state(lane.segment.memory)["replicated"]


def _is_reached(lane: Lane, sequence: int, watermark: str, deadline: float | None) -> bool:
    """Whether the watermark comes to be reached in a lane whose writer closes, or leads no more. It is told until the lane goes."""
    while True:
        current = lane.segment.is_current()  # before looking
        state = _segment.read_state(lane.segment.memory)
        if state[watermark] >= sequence:
            return True
        over = deadline is not None and time.monotonic() >= deadline
        header = lane.topic.header
        told = state["status"] & _segment.STATUS_CLOSED or (
            header["replicates"] and _segment.process_lives(header["pid"], header["process_start"])
        )
        if not told or not current or over:
            return False
        time.sleep(POLL_S)
