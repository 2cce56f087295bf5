"""Publishing on a bus that another process writes: a lane, a small ring of this process's own.

1. The bus's writer drains the lane into the topic, where the rows get their place in the one order. What `publish` has returned for
   is in the lane, and comes into the topic exactly once, whoever dies: the lane outlives its publisher and the writer.
2. Sequences here are the lane's own, 1, 2, 3, …, and so are its watermarks. They go on counting in the lanes that follow.
3. A writer that ends, or is taken over, fences the lane and settles where it ends. What a call has put behind that end is in no
   topic; so the call puts it into a new lane, with the next writer.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from ..storage import Schema
from . import _lanes, _segment
from ._publish import RingPublisher
from .attach import Attached, attach
from .errors import AttachError, Fenced, NotFound, RingFull, WriterFailed
from .lanes import REFUSALS
from .publisher import Claim, Publisher
from .segments import MODES, Segment, lane_name, split_address

__all__ = ["LANE_SLOTS", "LanePublisher", "open_lane"]

LANE_SLOTS = 16_384
ANSWER_S = 10.0  # a writer that lives, and is not stopped, answers sooner
FULL_TABLE_S = 1.0  # how long to wait for a place that a dead publisher still has
POLL_S = 0.0005
MOVE_S = 30.0  # how long a call that may not wait for room waits for the next writer

_Rows = np.ndarray[Any, np.dtype[np.void]]


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
    one, ValueError for another schema; OSError where memory cannot be had. The text says what and why.
    """
    split_address(address)
    if slots < 1 or slots & (slots - 1):
        raise ValueError(f"slots: a power of two is expected, got {slots}")
    if full not in ("block", "raise"):
        raise ValueError(f'full: "block" or "raise" is expected, got {full!r}')
    return LanePublisher(address, schema, slots, full, full_timeout, open_timeout, reopen)


@dataclass(frozen=True, slots=True)
class _Lane:
    """One lane, open."""

    topic: Attached
    segment: Segment
    index: int  # in the lane table
    number: int


_OPEN: weakref.WeakSet[LanePublisher] = weakref.WeakSet()


def _close_in_child() -> None:
    """In a forked child: the lanes are the parent's."""
    for lane in _OPEN:
        lane.disown()


os.register_at_fork(after_in_child=_close_in_child)


class LanePublisher(Publisher):
    """Publishes records of one topic through a lane: see `open_lane`. As Publisher, one thread at a time; sequences are the lane's.

    Raises RingFull, Fenced where no next writer came in time, NotFound where the writer has closed, WriterFailed, and what
    Publisher raises for records that do not fit.
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
        self._slots, self._full_timeout, self._reopen = slots, full_timeout, reopen
        self._full: Literal["block", "raise"] = full
        self._moving = threading.RLock()
        self._pid, self._closed = os.getpid(), False
        self._use(_ask(address, schema, slots, 0, time.monotonic() + open_timeout))
        _OPEN.add(self)

    def _use(self, lane: _Lane) -> None:
        self._lane = lane
        header = lane.topic.header
        self._attach(
            lane.segment,
            None,
            lane.topic.schema,
            self._full,
            self._full_timeout,
            _lanes.LaneDoor(lane.topic.control.memory, lane.segment.memory),
            header["syncs"],
            header["indexes"],
        )
        self._logs = bool(header["data_dir"])
        self._finalizer = weakref.finalize(self, _leave, lane, self._pid)

    # --- publishing -------------------------------------------------------------------------------------------------

    def publish(self, *values: object, **fields: object) -> int:
        """Publisher.publish: pack one record; returns its sequence in the lane."""
        while True:
            ring = self._ring
            try:
                return ring.publish(*values, **fields)
            except Fenced:
                sequence = self._settle(ring)
                if sequence > ring.begun:
                    return sequence
                self._move(ring)

    def publish_batch(self, rows: _Rows) -> int:
        """Publisher.publish_batch: returns the last row's sequence in the lane."""
        ring = self._ring
        try:
            return ring.publish_batch(rows)
        except Fenced:
            return self._publish_rest(ring, rows)

    def _publish_rest(self, ring: RingPublisher, rows: _Rows) -> int:
        """Rows of a call whose lane was fenced: what is not within the lane's end goes into the next one."""
        count = 0
        while True:
            sequence = self._settle(ring)
            count += sequence - ring.begun
            if count == len(rows):
                return sequence
            self._move(ring)
            ring = self._ring
            try:
                return ring.publish_batch(rows[count:])
            except Fenced:
                continue
            except RingFull as full:
                raise RingFull(full.topic, full.held_by, full.published_count + count) from None

    def claim(self, count: int = 1) -> Claim:
        """Claim `count` slots of the lane to fill in place, as Publisher.claim does."""
        while True:
            ring = self._ring
            try:
                return _LaneClaim(ring, count, self._publish_rest)
            except Fenced:
                self._move(ring)

    def _settle(self, ring: RingPublisher) -> int:
        """How far the newest call has come in a lane that was fenced: its last row that is within the lane's end, or what was
        published before the call.
        """
        return max(ring.begun, min(self._await_end(ring), ring.published))

    # --- the next writer --------------------------------------------------------------------------------------------

    def _await_end(self, ring: RingPublisher) -> int:
        """Where the fenced lane ends. Whoever fenced it is about to say so; if he was killed, the next writer says it."""
        deadline = self._deadline()
        while True:
            state = _segment.read_state(ring.segment)
            if state["status"] & _segment.STATUS_SETTLED:
                return state["ended"]
            if time.monotonic() >= deadline:
                raise Fenced(f"{self.address}: the bus's writer was taken over, and no next one came in time")
            time.sleep(POLL_S)

    def _move(self, ring: RingPublisher, deadline: float | None = None) -> None:
        """Open a lane with the next writer, unless another thread has. deadline: of time.monotonic."""
        with self._moving:
            if ring is not self._ring:
                return
            if self._closed:
                raise ValueError(f"{self.address}: this lane is closed")
            end = self._await_end(ring)
            if _segment.read_state(ring.segment)["status"] & _segment.STATUS_CLOSED and not self._reopen:
                raise NotFound(f"{self.address}: the bus's writer has closed, with all that was published")
            lane = _ask(self.address, self.schema, self._slots, end, self._deadline() if deadline is None else deadline)
            self._finalizer.detach()
            self._use(lane)

    def _deadline(self) -> float:
        if self._full == "raise":
            return time.monotonic() + MOVE_S
        return time.monotonic() + (1e9 if self._full_timeout is None else self._full_timeout)

    # --- waiting ----------------------------------------------------------------------------------------------------

    def wait(
        self,
        sequence: int,
        watermark: Literal["published", "logged", "durable", "indexed", "drained"] = "durable",
        timeout: float | None = None,
    ) -> None:
        """Return once the lane's watermark has reached `sequence`. Any thread may.

        "drained": it is in the topic, where subscribers see it. "logged", "durable", "indexed": as a Publisher's. "published": it
        is in the lane, and will be in the topic, whoever dies. Raises as Publisher.wait does, and NotFound where the
        writer has closed before.
        """
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        if not self._logs and watermark in ("logged", "durable", "indexed"):
            raise ValueError(f"topic {self.schema.name!r}: nothing is {watermark} without a data_dir")
        while True:
            ring, lane = self._ring, self._lane
            try:
                left = None if timeout is None else max(0.0, deadline - time.monotonic())
                if watermark == "drained":
                    self._wait_drained(ring, sequence, left)
                else:
                    super().wait(sequence, watermark, left)
            except Fenced:
                if self._wait_closing(lane, sequence, watermark, deadline):
                    return
                self._move(ring, deadline if timeout is not None else None)
            else:
                return

    def _wait_drained(self, ring: RingPublisher, sequence: int, timeout: float | None) -> None:
        if sequence > ring.published:
            raise ValueError(f"topic {self.schema.name!r}: sequence {sequence} is not published yet")
        if sequence > 0 and not ring.wait(sequence, _segment.DRAINED, timeout):
            raise TimeoutError(f"topic {self.schema.name!r}: sequence {sequence} was not drained within {timeout} s")

    def _wait_closing(self, lane: _Lane, sequence: int, watermark: str, deadline: float) -> bool:
        """Whether the watermark comes to be reached in a lane whose writer closes. It says so until it has removed the lane."""
        while True:
            current = lane.segment.is_current()  # before looking
            state = _segment.read_state(lane.segment.memory)
            if state[watermark] >= sequence:
                return True
            if not state["status"] & _segment.STATUS_CLOSED or not current or time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)

    # --- end --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the lane. What was published in it still comes into the topic. Does nothing the second time."""
        with self._moving:
            self._closed = True
            self._finalizer()
            self._ring.close()

    def disown(self) -> None:
        """Refuse every later call, and leave the lane alone: in a forked child it is the parent's."""
        self._closed = True
        self._finalizer.detach()
        self._ring.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _LaneClaim(Claim):
    """A claim that goes into the next lane where its own has ended meanwhile."""

    def __init__(self, ring: RingPublisher, count: int, put: Callable[[RingPublisher, _Rows], int]) -> None:
        super().__init__(ring, count)
        self._put = put

    def commit(self, count: int | None = None) -> int:
        try:
            return super().commit(count)
        except Fenced:
            return self._put(self._ring, self.rows[:count])


# --- asking for a lane ------------------------------------------------------------------------------------------------


def _ask(address: str, schema: Schema | None, slots: int, last: int, deadline: float) -> _Lane:
    """Open a lane whose first sequence is last + 1. Waits until `deadline` for a writer."""
    while True:
        try:
            topic = attach(address)
            _check_writer(topic)
        except (NotFound, AttachError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)
            continue
        _check_topic(topic, schema)
        lane = _ask_writer(topic, slots, last)
        if lane is not None:
            return lane


def _check_writer(topic: Attached) -> None:
    """Raise NotFound unless the topic has a living writer."""
    header, status = topic.header, _segment.read_state(topic.data.memory)["status"]
    if status & (_segment.STATUS_FENCED | _segment.STATUS_CLOSED):
        raise NotFound(
            f"{topic.bus}/{topic.topic}: its writer has closed, or was taken over, and no next one is open yet"
        )
    if not _segment.process_lives(header["pid"], header["process_start"]):
        raise NotFound(f"{topic.bus}/{topic.topic}: its writer, process {header['pid']}, is dead; start it again")


def _check_topic(topic: Attached, schema: Schema | None) -> None:
    address = f"{topic.bus}/{topic.topic}"
    if not topic.header["lanes"]:
        raise AttachError(f"{address}: its writer takes no lanes; open it with lanes=[{topic.topic!r}]")
    if topic.control.uid != os.geteuid():
        raise AttachError(
            f"{address}: belongs to user {topic.control.uid}; only processes of that user can publish there"
        )
    if schema is not None and schema.hash != topic.schema.hash:
        raise ValueError(f"{address}: another schema than the writer's: {schema.describe_difference(topic.schema)}")
    if _segment.read_state(topic.data.memory)["status"] & _segment.STATUS_LOG_FAILED:
        raise WriterFailed(f"{address}: the log of the bus's writer has stopped; `ringmain inspect` says why")


def _ask_writer(topic: Attached, slots: int, last: int) -> _Lane | None:
    """The handshake with one writer; None where it has ended meanwhile."""
    control, pid, number = topic.control.memory, os.getpid(), secrets.randbits(63) + 1
    index = _take_entry(topic, number)
    if index is None:
        return None
    name = lane_name(topic.bus, topic.topic, number)
    opened = False
    try:
        segment = _make_segment(name, topic, slots, last)
        if not _lanes.change_entry(control, index, pid, number, _lanes.TAKEN, _lanes.ASKED):
            return None
        _lanes.announce(control)
        deadline = time.monotonic() + ANSWER_S
        while True:
            entry = _lanes.read_entry(control, index)
            if (entry["pid"], entry["lane"]) != (pid, number):
                return None  # a new writer has cleared the table
            if entry["state"] == _lanes.OPEN:
                opened = True
                return _Lane(topic, segment, index, number)
            if entry["state"] == _lanes.REFUSED:
                raise AttachError(f"{topic.bus}/{topic.topic}: no lane: {REFUSALS.get(entry['why'], 'refused')}")
            try:
                _check_writer(topic)
            except NotFound:
                return None
            if time.monotonic() >= deadline:
                raise AttachError(
                    f"{topic.bus}/{topic.topic}: its writer, process {topic.header['pid']}, did not answer within "
                    f"{ANSWER_S:.0f} s; it may be stopped"
                )
            time.sleep(POLL_S)
    finally:
        if not opened:
            _give_back(topic, index, pid, number)


def _take_entry(topic: Attached, number: int) -> int | None:
    """An entry of the lane table. A dead publisher's is free as soon as the writer has drained its lane."""
    control, deadline = topic.control.memory, time.monotonic() + FULL_TABLE_S
    while (index := _lanes.take_entry(control, number)) < 0:
        if not topic.is_current():
            return None
        if time.monotonic() >= deadline:
            pids = sorted({entry["pid"] for entry in _lanes.list_entries(control)})
            raise AttachError(
                f"{topic.bus}/{topic.topic}: all {_lanes.LANES_MAX} lanes are taken, by the processes "
                f"{', '.join(map(str, pids[:8]))}{', …' if len(pids) > 8 else ''}"
            )
        _lanes.announce(control)
        time.sleep(10 * POLL_S)
    return index


def _make_segment(name: str, topic: Attached, slots: int, last: int) -> Segment:
    schema, header = topic.schema, topic.header
    schema_json = schema.to_json()
    _, size_bytes = _segment.data_segment_bytes(len(schema_json), schema.row_bytes, slots)
    segment = Segment.create(name, size_bytes, MODES[False][0])
    _segment.format_data(
        segment.memory,
        schema_json=schema_json,
        schema_hash=schema.hash,
        row_bytes=schema.row_bytes,
        slot_count=slots,
        bus=topic.bus,
        topic=topic.topic,
        data_dir="",
        log_id=header["log_id"],
        epoch=header["epoch"],
        syncs=header["syncs"],
        indexes=header["indexes"],
    )
    _lanes.format_lane(segment.memory, last)
    _segment.publish_ready(segment.memory)
    return segment


def _give_back(topic: Attached, index: int, pid: int, number: int) -> None:
    """Undo the asking. Has the writer opened the lane in the same instant, it takes everything away."""
    control = topic.control.memory
    if _lanes.change_entry(control, index, pid, number, _lanes.OPEN, _lanes.LEFT):
        _lanes.announce(control)
        return
    for state in (_lanes.TAKEN, _lanes.ASKED, _lanes.REFUSED):
        _lanes.change_entry(control, index, pid, number, state, _lanes.FREE)
    if _lanes.change_entry(control, index, pid, number, _lanes.OPEN, _lanes.LEFT):
        _lanes.announce(control)
    with contextlib.suppress(AttachError):
        Segment.unlink(lane_name(topic.bus, topic.topic, number))


def _leave(lane: _Lane, pid: int) -> None:
    """Tell the writer that nothing more comes. It drains what is there, and removes the lane."""
    if os.getpid() == pid and _lanes.change_entry(
        lane.topic.control.memory, lane.index, pid, lane.number, _lanes.OPEN, _lanes.LEFT
    ):
        _lanes.announce(lane.topic.control.memory)
