"""Publishing to whichever of several nodes leads: a lane on its bus, and another one when the lead goes elsewhere.

1. What was published is remembered until it is replicated. It is published again on the next leader, which may be the former one,
   when it leads again: nothing is missed.
2. A record may be there twice, if its leader went between appending it to the stream and telling this lane. Where that matters,
   take `resend=False`, look where the topic ends, and go on behind it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from ..storage import Schema
from .attach import attach
from .errors import AttachError, Fenced, NotFound, NotLeader, RingFull
from .lane_publisher import LANE_SLOTS, LanePublisher, open_lane
from .processes import process_state
from .segments import split_address

__all__ = ["LeaderLane"]

_Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]

LEADER_S = 60.0
LOOK_S = 0.1  # how often to ask whether the leader still lives, while waiting for it
POLL_S = 0.01
REMEMBERED_MIN = 64  # calls between looks at what is replicated


class _Record(NamedTuple):
    """What `publish` was given."""

    fields: tuple[Any, ...]
    named: dict[str, Any]


class _Sent(NamedTuple):
    """What was published by a call, or a part of it. last: its last sequence, by the lane's count."""

    last: int
    what: _Record | _Rows

    @property
    def row_count(self) -> int:
        return 1 if isinstance(self.what, _Record) else len(self.what)


class LeaderLane:
    """Publishes one topic to the node that leads, wherever on this machine that is. One thread at a time; use it in a `with`.

    addresses: "BUS/TOPIC" for each node that runs on this machine: mostly one. While none of them leads, calls wait, for up to
    leader_timeout seconds: a publisher may stand by on every host, and that on the leader's does the work.
    schema, slots: as for `open_lane`. resend: publish again, on the next leader, what was not replicated by the last one.

    Raises TimeoutError where nobody led in time, and what a LanePublisher raises for records that do not fit.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        schema: Schema | None = None,
        slots: int = LANE_SLOTS,
        leader_timeout: float = LEADER_S,
        resend: bool = True,
    ) -> None:
        self.addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        if not self.addresses:
            raise ValueError("addresses: at least one BUS/TOPIC is expected")
        for address in self.addresses:
            split_address(address)
        self._schema, self._slots, self._leader_timeout, self._resend = schema, slots, leader_timeout, resend
        self._sent: deque[_Sent] = deque()
        self._lane: LanePublisher | None = None
        self._writer = (0, 0)  # the leader's process: pid and start
        self.move_count = 0  # times that it found another leader
        self.unconfirmed_count = (
            0  # records that were given up, with resend=False: the next leader may have them, or not
        )

    def publish(self, *fields: Any, **named: Any) -> None:
        """Publish one record; see Publisher. It is safe once `wait` has returned."""
        self._publish(_Record(fields, named))

    def publish_batch(self, rows: _Rows) -> None:
        """Publish the rows of an array; see Publisher."""
        if len(rows):
            self._publish(rows.copy())  # the caller may use his again

    def wait(self, timeout: float | None = None) -> None:
        """Return once everything published is replicated. Raises TimeoutError after `timeout` seconds (None: never)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._sent:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self._pending} records were not replicated within {timeout} s")
            lane = self._leading_lane()
            try:
                lane.wait(self._sent[-1].last, "replicated", LOOK_S)
            except TimeoutError:
                self._leave_if_dead()
            except (NotLeader, Fenced, NotFound):
                self._leave()
            self._forget_replicated()

    @property
    def leader(self) -> str:
        """The address at which it publishes now; empty: none."""
        return self._lane.address if self._lane is not None else ""

    @property
    def _pending(self) -> int:
        return sum(sent.row_count for sent in self._sent)

    def _publish(self, what: _Record | _Rows) -> None:
        rest: _Record | _Rows | None = what
        while rest is not None:
            lane = self._leading_lane()
            try:
                rest = self._put(lane, rest)
            except (NotLeader, Fenced, NotFound):
                self._leave()
            else:
                if rest is not None:
                    self._leave_if_dead()
        if len(self._sent) >= REMEMBERED_MIN and not len(self._sent) % REMEMBERED_MIN:
            self._forget_replicated()

    def _put(self, lane: LanePublisher, what: _Record | _Rows) -> _Record | _Rows | None:
        """Publish and remember it; returns what there was no room for."""
        try:
            last = lane.publish(*what.fields, **what.named) if isinstance(what, _Record) else lane.publish_batch(what)
        except RingFull as full:
            if isinstance(what, _Record) or not full.published_count:
                return what
            self._sent.append(_Sent(lane.watermarks.published, what[: full.published_count]))
            return what[full.published_count :]
        self._sent.append(_Sent(last, what))
        return None

    def _forget_replicated(self) -> None:
        if self._lane is not None:
            replicated = self._lane.watermarks.replicated
            while self._sent and self._sent[0].last <= replicated:
                self._sent.popleft()

    # --- finding the leader -----------------------------------------------------------------------------------------

    def _leading_lane(self) -> LanePublisher:
        """The lane on the leader; found, and given what is to be sent again, if there is none."""
        deadline = time.monotonic() + self._leader_timeout
        while self._lane is None:
            for address in self.addresses:
                with contextlib.suppress(NotLeader, NotFound, AttachError, Fenced):
                    self._enter(address)
                    break
            else:
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"nobody led {', '.join(self.addresses)} within {self._leader_timeout:g} s; "
                        f"{self._pending} records wait to be published again"
                    )
                time.sleep(POLL_S)
        return self._lane

    def _enter(self, address: str) -> None:
        header = attach(address).header
        if (state := process_state(header["pid"], header["process_start"])) != "alive":
            raise NotFound(f"{address}: its node is {state}")
        lane = open_lane(address, schema=self._schema, slots=self._slots, full="block", full_timeout=LOOK_S)
        again, self._sent = self._sent, deque[_Sent]()
        try:
            for sent in again:
                rest: _Record | _Rows | None = sent.what
                while rest is not None:  # however long there is no room: the leader has only begun
                    rest = self._put(lane, rest)
        except BaseException:
            self._sent = again
            lane.close()
            raise
        self._writer = header["pid"], header["process_start"]
        self._lane, self.move_count = lane, self.move_count + 1

    def _leave_if_dead(self) -> None:
        if process_state(*self._writer) != "alive":  # stopped: another will lead, or it goes on and is found again
            self._leave()

    def _leave(self) -> None:
        """The lane's node does not lead any more. What it did not replicate is to be sent again."""
        self._forget_replicated()
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        if not self._resend:
            self.unconfirmed_count += self._pending
            self._sent.clear()

    def close(self) -> None:
        """Leave the lane. What was published and is not replicated yet may still come to be."""
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
