"""Publishing to whichever of several nodes leads: a lane on its bus, and another one when the lead goes elsewhere.

1. What was published is remembered until it is replicated. It is published again on the next leader, which may be the former one,
   when it leads again: nothing is missed.
2. A record may be there twice, if its leader went between appending it to the stream and telling this lane. Where that matters,
   take `resend=False`, look where the topic ends, and go on behind it.
3. What is remembered are rows, as they went into the lane: the caller's objects may change. A row that went in, or may have, is
   published once more by the first rule only; what of a call did not go in goes to the next leader. Where nobody leads in time
   the call ends with NobodyLeads: what has gone in is remembered, and what has not is the caller's again.
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
from ._publish import RingPublisher
from .attach import attach
from .errors import AttachError, BusError, Fenced, NotFound, NotLeader, RingFull
from .lane_publisher import LANE_SLOTS, LanePublisher, open_lane
from .processes import process_state
from .segments import split_address

__all__ = ["LeaderLane", "NobodyLeads"]

_Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]

LEADER_S = 60.0
LOOK_S = 0.1  # how often to ask whether the leader still lives, while waiting for it
POLL_S = 0.01
REMEMBERED_MIN = 64  # calls between looks at what is replicated


class _Record(NamedTuple):
    """What `publish` was given. Until it is in a lane: the call is under way."""

    fields: tuple[Any, ...]
    named: dict[str, Any]


class _Sent(NamedTuple):
    """What was published by a call, or a part of it. last: its last sequence, by the lane's count."""

    last: int
    rows: _Rows


class NobodyLeads(TimeoutError):
    """No node led within the time allowed.

    waiting_count: records that are remembered, and published once a node leads. taken_count: how many records of this call went
    into a lane: they are published, or wait for it, or were given up with resend=False. refused_count: how many did not, the last
    ones of the call; they are not remembered.
    """

    def __init__(self, why: str, waiting_count: int, taken_count: int = 0, refused_count: int = 0) -> None:
        self.why, self.waiting_count = why, waiting_count
        self.taken_count, self.refused_count = taken_count, refused_count
        call = ""
        if taken_count or refused_count:
            call = f"; of this call's records {taken_count} are taken, the last {refused_count} are not: publish only those again"
        super().__init__(f"{why}; {waiting_count} records wait to be published{call}")

    def __reduce__(self) -> tuple[type[NobodyLeads], tuple[str, int, int, int]]:
        return type(self), (self.why, self.waiting_count, self.taken_count, self.refused_count)


def _count(what: _Record | _Rows) -> int:
    return 1 if isinstance(what, _Record) else len(what)


def _ring(lane: LanePublisher) -> RingPublisher:
    return lane._ring  # pyright: ignore[reportPrivateUsage]


def _given_up(address: str, count: int, why: BusError | None) -> NotLeader:
    more = f"; {count} records that were published there are given up: the next leader may have them, or not"
    if isinstance(why, NotLeader):
        return NotLeader(why.bus, why.leader, why.more + more, why.again)
    return NotLeader(split_address(address)[0], "", more)


class LeaderLane:
    """Publishes one topic to the node that leads, wherever on this machine that is. One thread at a time; use it in a `with`.

    addresses: "BUS/TOPIC" for each node that runs on this machine: mostly one. While none of them leads, calls wait, for up to
    leader_timeout seconds: a publisher may stand by on every host, and that on the leader's does the work.
    schema, slots: as for `open_lane`. resend: publish again, on the next leader, what was not replicated by the last one. False: it
    is given up, and counted in `unconfirmed_count`.

    Raises NobodyLeads, a TimeoutError, where nobody led in time: publish again what it counts as refused, and that alone. Raises
    what a LanePublisher does for records that do not fit.
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
        self._sent: deque[_Sent] = deque()  # in the lane, and not known to be replicated
        self._waiting: deque[_Record | _Rows] = (
            deque()
        )  # what is to be sent again; behind that, what a call has brought
        self._rest: _Record | _Rows | None = None  # the last of those: what of a call under way is in no lane
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
        """Return once everything published is replicated. Raises TimeoutError after `timeout` seconds (None: never).

        With resend=False: NotLeader where the leader goes meanwhile, and records are given up that were published there. Those that
        a `publish` gave up before are in `unconfirmed_count` only.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._sent or self._waiting:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self._pending} records were not replicated within {timeout} s")
            lane = self._leading_lane()
            if self._waiting:
                self._put(lane)
                continue
            given_up = self.unconfirmed_count
            why: BusError | None = None
            try:
                lane.wait(self._sent[-1].last, "replicated", LOOK_S)
            except TimeoutError:
                self._leave_if_dead()
            except (NotLeader, Fenced, NotFound) as error:
                why = error
                self._leave()
            if self.unconfirmed_count > given_up:
                raise _given_up(lane.address, self.unconfirmed_count - given_up, why) from why
            self._forget_replicated()

    @property
    def leader(self) -> str:
        """The address at which it publishes now; empty: none."""
        return self._lane.address if self._lane is not None else ""

    @property
    def _pending(self) -> int:
        return sum(map(_count, self._waiting)) + sum(len(sent.rows) for sent in self._sent)

    def _publish(self, what: _Record | _Rows) -> None:
        self._waiting.append(what)
        self._rest = what
        try:
            while self._waiting:
                self._put(self._leading_lane())
        except NobodyLeads as error:
            refused = self._refuse()
            raise NobodyLeads(error.why, self._pending, _count(what) - refused, refused) from None
        except BaseException:
            self._refuse()
            raise
        if len(self._sent) >= REMEMBERED_MIN and not len(self._sent) % REMEMBERED_MIN:
            self._forget_replicated()

    def _refuse(self) -> int:
        """Forget what of a call is in no lane. Returns how many records that are."""
        rest, self._rest = self._rest, None
        if rest is None:
            return 0
        self._waiting.pop()
        return _count(rest)

    def _put(self, lane: LanePublisher) -> None:
        """Publish what waits first, as far as there is room; leave the lane if its node does not lead."""
        what, ring = self._waiting[0], _ring(lane)
        before = ring.published
        try:
            try:
                if isinstance(what, _Record):
                    lane.publish(*what.fields, **what.named)
                else:
                    lane.publish_batch(what)
            finally:
                self._remember(lane, before, what)
        except RingFull:
            self._leave_if_dead()
        except (NotLeader, Fenced, NotFound):
            self._leave()
        except BaseException:
            if ring.gave_up:
                self._leave()
            raise

    def _remember(self, lane: LanePublisher, before: int, what: _Record | _Rows) -> None:
        """Take note of what has gone into the lane since `before`, and of what still waits.

        Where the lane has ended, what it gave up behind that is in no topic; while it is not settled where, all may be in one.
        """
        ring = _ring(lane)
        ended = ring.ended if ring.gave_up else None
        last = ring.published if ended is None else min(ring.published, ended)
        if last <= before:
            return
        self._waiting.popleft()
        rest = None
        if isinstance(what, _Record):
            rows = np.frombuffer(ring.last_payload(), lane.schema.payload_dtype)
        else:
            rows = what[: last - before]
            if last - before < len(what):
                rest = what[last - before :]
                self._waiting.appendleft(rest)
        if what is self._rest:
            self._rest = rest
        self._sent.append(_Sent(last, rows))

    def _forget_replicated(self) -> None:
        if self._lane is None:
            return
        replicated = self._lane.watermarks.replicated
        while self._sent and self._sent[0].last <= replicated:
            self._sent.popleft()
        if self._sent:
            last, rows = self._sent[0]
            if last - replicated < len(rows):
                self._sent[0] = _Sent(last, rows[replicated - last :])

    # --- finding the leader -----------------------------------------------------------------------------------------

    def _leading_lane(self) -> LanePublisher:
        """The lane on the leader; found, if there is none."""
        deadline = time.monotonic() + self._leader_timeout
        while self._lane is None:
            for address in self.addresses:
                with contextlib.suppress(NotLeader, NotFound, AttachError, Fenced):
                    self._enter(address)
                    break
            else:
                if time.monotonic() >= deadline:
                    raise NobodyLeads(
                        f"nobody led {', '.join(self.addresses)} within {self._leader_timeout:g} s", self._pending
                    )
                time.sleep(POLL_S)
        return self._lane

    def _enter(self, address: str) -> None:
        header = attach(address).header
        if (state := process_state(header["pid"], header["process_start"])) != "alive":
            raise NotFound(f"{address}: its node is {state}")
        self._lane = open_lane(address, schema=self._schema, slots=self._slots, full="block", full_timeout=LOOK_S)
        self._writer = header["pid"], header["process_start"]
        self.move_count += 1

    def _leave_if_dead(self) -> None:
        if process_state(*self._writer) != "alive":  # stopped: another will lead, or it goes on and is found again
            self._leave()

    def _leave(self) -> None:
        """The lane's node does not lead any more. What it did not replicate is to be sent again, or given up."""
        self._forget_replicated()
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        if self._resend:
            self._waiting.extendleft(sent.rows for sent in reversed(self._sent))
        else:
            self.unconfirmed_count += sum(len(sent.rows) for sent in self._sent)
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
