"""A topic's lanes, as its writer sees them: who has one, what an earlier writer left, and the thread that drains them.

1. A lane's publisher makes its segment, takes an entry in the lane table, and asks. The writer looks at both, once, and believes
   what it has seen then: the sizes, the publisher's process, and the lane's number.
2. A new writer fences the lanes that it finds, and drains them before it lets anybody in: so each publisher's rows stay in order.
3. A lane's segment goes once it has ended and is drained; a lane whose rows cannot be drained stays for the next writer.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any, Literal

from ..storage import Schema
from . import _lanes, _segment
from ._journal import Journal
from .errors import AttachError, NotFound
from .segments import Segment, lane_name, list_lanes

__all__ = ["REFUSALS", "LeftLane", "TopicLanes", "find_left"]

REFUSALS = {  # by their numbers in the lane table
    1: "its writer closes",
    2: "the lane's segment cannot be used",
    3: "the lane's segment belongs to another user",
    4: "the lane was made for another schema, topic or process",
}
CLOSES, UNUSABLE, FOREIGN, OTHER = REFUSALS


@dataclass(frozen=True, slots=True)
class LeftLane:
    """A lane that an earlier writer left, fenced. Its rows behind `drained`, up to `end`, are in no topic yet."""

    number: int
    segment: Segment
    slot_count: int
    slots_offset: int
    drained: int
    end: int


def find_left(bus: str, topic: str, schema: Schema, old: Segment | None) -> list[LeftLane]:
    """Fence the lanes of a topic that are there, and say what of them is to be drained. Those without such rows are removed.
    Another user's are left alone: they were never let in, and are no lanes of ours.

    old: the ring that they were drained into, fenced; None where it is gone.
    """
    left: list[LeftLane] = []
    user = os.geteuid()
    for number in list_lanes(bus, topic, user=user):
        name = lane_name(bus, topic, number)
        try:
            segment = Segment.open(name, writable=True)
            if segment.uid != user:
                continue
            header = _check(segment, schema, bus)
        except NotFound:
            continue
        except (
            AttachError,
            ValueError,
        ):  # of another topic or schema, or never finished: nobody can have published in it
            _unlink(name)
            continue
        end = _segment.fence(segment.memory, _lanes.control_page(segment.memory))
        known = _lanes.find_position(old.memory, number) if old is not None else None
        drained = _segment.read_state(segment.memory)["drained"] if known is None else known
        if drained < end <= drained + header["slot_count"]:
            left.append(LeftLane(number, segment, int(header["slot_count"]), int(header["slots_offset"]), drained, end))
        else:
            _unlink(name)
    return left


def _unlink(name: str) -> None:
    with contextlib.suppress(AttachError):  # another user's, and none of ours
        Segment.unlink(name)


def _check(segment: Segment, schema: Schema, bus: str) -> dict[str, Any]:
    """The header of a lane's segment. Raises AttachError where it is not one, ValueError where it does not fit the topic."""
    header = _segment.read_data(segment.memory, segment.name)
    fits = (header["bus"], header["topic"], header["schema_hash"], header["row_bytes"])
    if fits != (bus, schema.name, schema.hash, schema.row_bytes):
        raise ValueError(f"segment {segment.name}: made for another topic or schema")
    return header


class TopicLanes:
    """The lanes of one topic. `run` is its thread's; the rest is for the writer's own."""

    def __init__(
        self,
        bus: str,
        schema: Schema,
        data: Segment,
        control: Segment,
        *,
        journal: Journal | None,
        durable: bool,
        indexed: bool,
        replicated: bool,
        full: Literal["block", "raise", "drop"],
        last_timestamp_ns: int,
        left: list[LeftLane],
    ) -> None:
        self._bus, self._schema, self._data, self._control = bus, schema, data, control
        self._drain = _lanes.LaneDrain(
            data.memory,
            control.memory,
            journal=journal,
            durable=durable,
            indexed=indexed,
            replicated=replicated,
            drop=full == "drop",
            last_timestamp_ns=last_timestamp_ns,
        )
        self._lanes: dict[int, tuple[int, int]] = {}  # by index: pid and number
        self._left = {index: lane.number for index, lane in enumerate(left)}
        self._closing = self._for_good = False
        self.event = _lanes.DRAIN_LOOK  # what ended `run`
        for index, lane in enumerate(left):
            self._drain.add(
                index,
                lane.segment.memory,
                slot_count=lane.slot_count,
                slots_offset=lane.slots_offset,
                drained=lane.drained,
                end=lane.end,
            )

    def run(self) -> None:
        """Drain until asked to stop, fenced, or the log has failed."""
        self._look()
        while (event := self._drain.run()) == _lanes.DRAIN_LOOK:
            self._look()
        self.event = event

    def hold(self, held: bool) -> None:
        """Take nothing from the lanes for now; those that end meanwhile end where they are drained."""
        self._drain.hold(held)

    @property
    def holds(self) -> bool:
        """Whether nothing is taken any more, since `hold`."""
        return self._drain.holds

    def request_stop(self, patience_s: float, *, for_good: bool = True) -> None:
        """Let every lane end, and `run` return once they are drained, or after so many seconds.

        for_good: the writer closes; otherwise the lanes' publishers look at once for who takes their records now.
        """
        self._closing, self._for_good = True, for_good
        self._drain.request_stop(patience_s)

    def raise_known(self) -> None:
        """After `run`: tell the lanes what is known by now of their rows."""
        self._drain.raise_known()

    def finish(self) -> bool:
        """After `run`, and after the journal: tell the lanes what has become of their rows, and remove them. False where there are
        lanes that are not drained.
        """
        found = list_lanes(self._bus, self._schema.name, user=self._data.uid)
        if self.event != _lanes.DRAIN_STOPPED:
            return not found
        self._drain.raise_known()
        for number in found:  # those of publishers that died before they had asked as well
            self._unlink(number)
        return True

    # --- in the drain's thread --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Do what the drain cannot: let publishers in, and take away what has ended."""
        if self._closing:
            self._drain.end_all(self._for_good)
        else:
            for index in self._drain.finished():
                self._remove(index)
        entries = {entry["index"]: entry for entry in _lanes.list_entries(self._control.memory)}
        for index, (pid, number) in self._lanes.items():
            entry = entries.get(index)
            if entry is None or (entry["pid"], entry["lane"], entry["state"]) != (pid, number, _lanes.OPEN):
                self._drain.end(index)  # it has left; or the table was tampered with
        for index, entry in entries.items():
            if index not in self._lanes:
                self._serve(entry)

    def _serve(self, entry: dict[str, int]) -> None:
        """See to an entry of somebody who has no lane here yet."""
        index, pid, state = entry["index"], entry["pid"], entry["state"]
        if state in (_lanes.OPEN, _lanes.LEFT) and not self._left:
            self._accept(entry)  # let in by a writer that was taken over, and woke: there may be rows in it
        elif not _segment.process_lives(pid, 0 if state == _lanes.TAKEN else entry["process_start"]):
            self._unlink(entry["lane"])
            _lanes.change_entry(self._control.memory, index, pid, entry["lane"], state, _lanes.FREE)
        elif state == _lanes.ASKED and self._closing:
            self._refuse(entry, CLOSES)
        elif state == _lanes.ASKED and not self._left:  # what was left comes first
            self._accept(entry)

    def _accept(self, entry: dict[str, int]) -> None:
        index, pid, number = entry["index"], entry["pid"], entry["lane"]
        try:
            segment = Segment.open(lane_name(self._bus, self._schema.name, number), writable=True)
            header = _check(segment, self._schema, self._bus)
            if segment.uid != self._data.uid:
                return self._refuse(entry, FOREIGN)
            if header["pid"] != pid or header["process_start"] != entry["process_start"]:
                return self._refuse(entry, OTHER)
            drained = _segment.read_state(segment.memory)["drained"]
            self._drain.add(
                index,
                segment.memory,
                slot_count=header["slot_count"],
                slots_offset=header["slots_offset"],
                drained=drained,
                pid=pid,
                process_start=header["process_start"],
            )
        except ValueError:
            return self._refuse(entry, OTHER)
        except (NotFound, AttachError, OSError):
            return self._refuse(entry, UNUSABLE)
        _lanes.begin_position(self._data.memory, index, number, drained)
        self._lanes[index] = pid, number
        if entry["state"] == _lanes.LEFT:
            self._drain.end(index)
        else:
            _lanes.change_entry(self._control.memory, index, pid, number, entry["state"], _lanes.OPEN)
        return None

    def _refuse(self, entry: dict[str, int], why: int) -> None:
        _lanes.change_entry(
            self._control.memory, entry["index"], entry["pid"], entry["lane"], entry["state"], _lanes.REFUSED, why
        )

    def _remove(self, index: int) -> None:
        """Take away a lane that has ended and is drained."""
        self._drain.remove(index)
        if index in self._left:
            number = self._left.pop(index)
        else:
            pid, number = self._lanes.pop(index)
            for state in (_lanes.OPEN, _lanes.LEFT):
                _lanes.change_entry(self._control.memory, index, pid, number, state, _lanes.FREE)
        self._unlink(number)
        _lanes.announce(self._control.memory)  # somebody may wait for a place, or for the lanes that were left

    def _unlink(self, number: int) -> None:
        _unlink(lane_name(self._bus, self._schema.name, number))
