"""Getting a lane: the handshake of a publisher with the writer of its bus. FORMAT.md, "Lanes", has it."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass

from ..storage import Schema
from . import _lanes, _segment
from .attach import Attached, attach
from .errors import AttachError, NotFound, NotLeader, WriterFailed
from .lanes import REFUSALS
from .segments import MODES, Segment, bus_name, lane_name

__all__ = ["POLL_S", "Lane", "ask", "is_unsure", "leave"]

ANSWER_S = 10.0  # a writer that lives, and is not stopped, answers sooner
FULL_TABLE_S = 1.0  # how long to wait for a place that a dead publisher still has
POLL_S = 0.0005  # how often to look for what is about to come
WRITER_POLL_S = 0.01  # and for a writer, which may take long


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane, open."""

    topic: Attached
    segment: Segment
    index: int  # in the lane table
    number: int

    def door(self) -> _lanes.LaneDoor:
        """How its publisher wakes whoever drains it."""
        return _lanes.LaneDoor(self.topic.control.memory, self.segment.memory)


def ask(address: str, schema: Schema | None, slots: int, deadline: float, former: Lane | None = None) -> Lane:
    """Open a lane. Waits until `deadline` for a writer; not for a node to lead.

    former: settled; its publisher goes on with its schema, behind its end. Raises NotLeader where what it has brought may be lost.
    """
    last = 0
    if former is not None:
        schema, last = former.topic.schema, _segment.read_state(former.segment.memory)["ended"]
    while True:
        try:
            topic = attach(address)
            _check_role(topic)
            _check_writer(topic)
            if topic.header["replicates"] and former is not None and is_unsure(former):
                raise NotLeader(topic.bus, "", again=True)
        except (NotFound, AttachError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(WRITER_POLL_S)
            continue
        _check_topic(topic, schema)
        lane = _ask_writer(topic, slots, last, max(deadline, time.monotonic() + ANSWER_S))
        if lane is not None:
            return lane


def is_unsure(lane: Lane) -> bool:
    """Whether a lane of a replicated bus has ended with records that are not known to be replicated.

    Once its node leads again that is for good: it has told the lanes that it had before all that it knows. Another may have led
    meanwhile, and never got these records; then they were cut here.
    """
    state = _segment.read_state(lane.segment.memory)
    return bool(state["status"] & _segment.STATUS_SETTLED) and state["replicated"] < state["ended"]


def _check_writer(topic: Attached) -> None:
    """Raise NotFound unless the topic has a living writer."""
    header, status = topic.header, _segment.read_state(topic.data.memory)["status"]
    if status & (_segment.STATUS_FENCED | _segment.STATUS_CLOSED):
        raise NotFound(
            f"{topic.bus}/{topic.topic}: its writer has closed, or was taken over, and no next one is open yet"
        )
    if not _segment.process_lives(header["pid"], header["process_start"]):
        raise NotFound(f"{topic.bus}/{topic.topic}: its writer, process {header['pid']}, is dead; start it again")


def _check_role(topic: Attached) -> None:
    """Raise NotLeader where the bus is replicated and this host's node does not lead."""
    if not topic.header["replicates"]:
        return
    name = bus_name(topic.bus)
    bus = Segment.open(name, writable=False)
    while (found := _segment.read_bus_role(bus.memory)) is None:
        _segment.read_bus(bus.memory, name)  # a writer that begins, or died amid a change
        if not bus.is_current() or not _segment.process_lives(topic.header["pid"], topic.header["process_start"]):
            raise NotFound(f"{topic.bus}/{topic.topic}: its writer is gone; start it again")
    role, leader = found
    if role != _segment.ROLE_LEADS:
        raise NotLeader(topic.bus, leader)


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


def _ask_writer(topic: Attached, slots: int, last: int, deadline: float) -> Lane | None:
    """The handshake with one writer; None where it has ended meanwhile. One that opens drains what was left in lanes first."""
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
        pause_s = POLL_S
        while True:
            entry = _lanes.read_entry(control, index)
            if (entry["pid"], entry["lane"]) != (pid, number):
                return None  # a new writer has cleared the table
            if entry["state"] == _lanes.OPEN:
                opened = True
                return Lane(topic, segment, index, number)
            _check_role(topic)
            if entry["state"] == _lanes.REFUSED:
                raise AttachError(f"{topic.bus}/{topic.topic}: no lane: {REFUSALS.get(entry['why'], 'refused')}")
            try:
                _check_writer(topic)
            except NotFound:
                return None
            if time.monotonic() >= deadline:
                raise AttachError(
                    f"{topic.bus}/{topic.topic}: its writer, process {topic.header['pid']}, did not answer in time; it may be "
                    "stopped, or held back by a reader"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, WRITER_POLL_S)
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
        replicates=header["replicates"],
    )
    _lanes.format_lane(segment.memory, last)
    if header["replicates"]:  # all that the lanes before it have brought
        _segment.raise_replicated(segment.memory, _lanes.control_page(segment.memory), last)
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


def leave(lane: Lane) -> None:
    """Tell the writer that nothing more comes. It drains what is there, and removes the lane."""
    control = lane.topic.control.memory
    if _lanes.change_entry(control, lane.index, os.getpid(), lane.number, _lanes.OPEN, _lanes.LEFT):
        _lanes.announce(control)
