"""Sharing the work on a topic: each row goes to one member of a group, and again to one of them until it is acknowledged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TypeVar

from ..bus import Batch, BusError, Overrun, PositionRefused
from ..bus._read import owned_batch
from ..bus._segment import process_lives, process_start
from ..bus.group_state import Group, Range
from ..bus.positions import ALONE, KIND_GROUP, KIND_RESUMABLE, KINDS, check_position_name
from ..storage import HistoryGone, Schema
from .dead_letters import DeadLetter, letter_box
from .group_file import GroupFile
from .lease_reader import LeaseReader
from .reader import Follow, Start, Wait, wait_for_topic
from .stored import check_position, folder_of
from .subscriber import Stats, Subscriber

__all__ = ["Acknowledged", "AcknowledgedStats"]

BATCH_ROWS = 1000
GIVEN_MAX = 64  # how often a call of `poll` lets itself be given rows of which nothing can be handed out
LOOK_S = 0.1  # how often it looks for what others have given back, left, or not acknowledged in time

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AcknowledgedStats(Stats):
    """Also how the group stands, as this member saw it last. `lag` counts what nobody was given yet."""

    acknowledged: int  # everything up to this sequence is settled
    redelivered_count: int  # of those read: handed out before, to this member or another
    late_count: int  # acknowledged or given back when they were another's already, or settled
    dead_count: int  # sent to the dead letter topic by this member


class Acknowledged(Subscriber):
    """A member of a group that shares the work on a topic.

    `for batch in (orders := Acknowledged("exchange/orders", "risk")): …; orders.ack(batch)`

    address: "BUS/TOPIC", of a bus with a data_dir. name: of the group; any number of processes may be members.
    start: where the group begins the first time: "latest", "earliest", or a sequence.
    Each row goes to one member. What that one does not acknowledge within `timeout` seconds, or gives back (`nack`), goes to
    whoever of the group asks next; what a dead or closed member had does so at once. Other readers of the topic see nothing of it.
    `batch.deliveries` says how often its rows have been handed out. But for those handed out again, rows come in order.
    tries: once rows were handed out so often without being acknowledged, they go to `dead_letter` and count as settled.
    dead_letter: a function of a batch; or a publisher (a topic of the writer's own, or a lane) whose schema has fields of this
    one, and may have original_sequence, original_timestamp_ns, deliveries. None: rows are handed out again without end.
    batch_rows: most rows a batch, and as much as a member is given at a time.
    directory: where the group's state lies, if not in the bus's data_dir.
    follow, wait, reopen, open_timeout: as for RealTime.

    At least once: no row that is kept is missed, but as said below; it may come twice, to two members even, if the first was late.
    Where a member finds that the topic ends before what the group was given (it lost what no disk held, or a backup was put back),
    the group is taken back to that end, and the first `poll` that finds it so raises BusError. Where none lived meanwhile, and the
    topic has grown past what the group was given, nobody can find it so: the group goes on there, without the rows between.
    On a replicated bus what was replicated is not lost: where that is followed, the group waits until this host has it.
    Raises PositionRefused, NotFound, AttachError, ValueError, StorageError.
    """

    def __init__(
        self,
        address: str,
        name: str,
        *,
        start: Start = "latest",
        timeout: float = 30.0,
        tries: int = 5,
        dead_letter: DeadLetter | None = None,
        batch_rows: int = BATCH_ROWS,
        directory: str | os.PathLike[str] | None = None,
        follow: Follow | None = None,
        wait: Wait = "futex",
        reopen: bool = False,
        open_timeout: float = 0.0,
    ) -> None:
        if timeout <= 0 or tries < 1 or batch_rows < 1:
            raise ValueError(
                f"timeout, tries, batch_rows: more than 0 is expected, got {timeout}, {tries}, {batch_rows}"
            )
        if start not in ("latest", "earliest") and (isinstance(start, str) or start < 1):
            raise ValueError(f'start: "latest", "earliest" or a sequence from 1 on is expected, got {start!r}')
        self.address, self.name = address, check_position_name(name)
        self._timeout_ns, self._tries, self._batch_rows = int(timeout * 1e9), tries, batch_rows
        self._ended = False
        self._lease: Range | None = None
        self._look_at_ns = 0  # when to look again for what others leave
        self._crowded = False  # too much is open to be given something new
        self._untold = ""  # what the first `poll` is to raise
        self._floor = self._next = 0  # of the group, as this member saw it last
        self._taken_back_for = 0  # the ring, by its inode, for which the group is known to have been taken back
        self._position = self._read_count = self._redelivered = self._late = self._dead = 0
        with ExitStack() as opened:
            ring = wait_for_topic(address, open_timeout)
            folder = folder_of(ring, name, directory)
            if (folder / ALONE).exists():
                raise PositionRefused(
                    f"{folder}: these are the positions of {KINDS[KIND_RESUMABLE]}; give this group another name"
                )
            self._reader = LeaseReader(
                address, ring, follow=follow, wait=wait, name=name, batch_rows=batch_rows, reopen=reopen
            )
            opened.callback(self._reader.close)
            self._log_id = self._reader.log_id
            self._dead_letter = letter_box(dead_letter, self._reader.schema)
            self._file = GroupFile(
                folder,
                self._log_id,
                _first(self._reader, start),
                lambda position: check_position(position, KIND_GROUP, ring, folder),
                told=isinstance(start, int),
            )
            opened.callback(self._file.close)
            pid = os.getpid()
            self._member = 0

            def join(group: Group) -> str:
                if self._member:
                    group.leave(self._member)  # it joins again: see GroupFile.change
                self._member = group.join(pid, process_start(pid))
                return self._take_back(group)

            self._untold = self._change(join)
            opened.pop_all()

    # --- reading ----------------------------------------------------------------------------------------------------

    def poll(self) -> Batch | None:
        """The next batch for this member, or None when there is none now. Never waits. Asking for it acknowledges nothing.

        Raises BusError where the group's state cannot be stored any more, the topic has moved to another log, or its end was lost.
        """
        if self._untold and not self._ended:
            untold, self._untold = self._untold, ""
            raise BusError(untold)
        for _ in range(GIVEN_MAX):
            if self._ended:
                break
            if self._lease is None:
                lease = self._take()
                if lease is None:
                    return None
                if lease.deliveries > self._tries and self._dead_letter is not None:
                    self._give_up(lease, self._dead_letter)
                    continue
                self._lease, first = lease, lease.first
            else:
                first = max(self._reader.position + 1, self._lease.first)  # what was overwritten comes again
            batch = self._read(first)
            if batch is not None:
                return batch
        return None

    def _read(self, first: int) -> Batch | None:
        """More of what this member was given, from `first` on; None when that is over, and nothing of it is left here."""
        lease = self._lease
        assert lease is not None
        batch = None
        if first <= lease.last and (first == lease.first or time.monotonic_ns() < lease.deadline_ns):
            try:
                batch = self._read_given(first, lease.last)
            except HistoryGone as gone:
                self._settle(first, min(gone.oldest - 1, lease.last))
                return None
        if batch is None:
            self._lease = None
            self._return(first, lease.last)
            return None
        if batch.first > first:
            self._settle(first, batch.first - 1)  # they are no more
        batch.deliveries = lease.deliveries
        self._position = max(self._position, batch.last)
        self._read_count += len(batch)
        self._redelivered += len(batch) if lease.deliveries > 1 else 0
        return batch

    def _read_given(self, first: int, last: int) -> Batch | None:
        """Rows that this member was given, as LeaseReader.read. Raises BusError as `poll`; what it has is given back then."""
        try:
            with self._moving():
                return self._reader.read(first, last)
        except BusError:
            self._lease = None
            self._return(first, last)
            raise

    def _take(self) -> Range | None:
        """Be given rows, if there are any, and stand where to wait for more if not."""
        now_ns, newest = time.monotonic_ns(), self._reader.newest
        looks = now_ns >= self._look_at_ns
        if self._next > newest and not looks and self._reader.position == self._next - 1:
            return None

        taken: list[Range] = []

        def edit(group: Group) -> tuple[str, Range | None, bool, bool]:
            if looks:
                group.bury(process_lives)
            for before in taken:  # it takes again: see GroupFile.change
                group.give_back(self._member, before.first, before.last, unused=True)
            lost, lease = self._take_back(group), None
            if not lost:
                newest = self._reader.newest  # asked anew: for whoever took the group back, a newer ring is there
                lease = group.take(self._member, newest, self._batch_rows, now_ns, now_ns + self._timeout_ns)
            if lease is not None:
                taken.append(lease)
            return lost, lease, bool(group.ranges), group.is_full

        lost, lease, some_open, self._crowded = self._change(edit)
        if looks:
            self._look_at_ns = now_ns + int(LOOK_S * 1e9)
        if lost:
            self._pass_succession()
            raise BusError(lost)
        if lease is None:
            self._stand(some_open)
        return lease

    def _stand(self, some_open: bool) -> None:
        position, succession = self._next - 1, self._reader.succession
        if succession is not None and succession.inode == self._taken_back_for:
            position = min(position, succession.began)  # the reader would tell what is told already
        with self._moving():
            self._reader.stand(position)
        self._ended = self._reader.ended and not some_open and self._next > self._reader.newest

    def _wait(self, seconds: float) -> None:
        if self._crowded:
            time.sleep(min(seconds, LOOK_S))
        else:
            self._reader._wait(min(seconds, LOOK_S))  # pyright: ignore[reportPrivateUsage]

    def _give_up(self, lease: Range, dead_letter: Callable[[Batch], object]) -> None:
        """Send rows to the dead letter topic, and settle them."""
        at = lease.first
        while at <= lease.last:
            try:
                batch = self._read_given(at, lease.last)
                rows = batch.copy() if batch is not None else None
            except HistoryGone as gone:
                self._settle(at, min(gone.oldest - 1, lease.last))
                at = gone.oldest
                continue
            except Overrun:
                continue
            if batch is None or rows is None:
                self._return(at, lease.last)
                return
            copied = owned_batch(rows, batch.schema, batch.first, batch.last, batch.lost)
            copied.deliveries = lease.deliveries - 1
            dead_letter(copied)
            self._dead += len(rows)
            self._settle(at, batch.last)
            at = batch.last + 1

    def _return(self, first: int, last: int) -> None:
        """Give back rows that were not handed out here: `ack_to` takes all that a member has for handed out."""
        if first <= last and self._member:
            self._change(lambda group: group.give_back(self._member, first, last, unused=True))

    def _change(self, edit: Callable[[Group], T]) -> T:
        """Change the group's state, and know how it stands then."""

        def see(group: Group) -> tuple[T, int, int]:
            if group.next < self._next:  # another member has taken it back
                self._pass_succession()
            return edit(group), group.floor, group.next

        result, self._floor, self._next = self._file.change(see)
        self._reader.acknowledge(self._floor)
        return result

    # --- what the topic has lost ------------------------------------------------------------------------------------

    @contextmanager
    def _moving(self) -> Generator[None]:
        """Around what may move the reader to another ring: what is not there any more the group forgets. Raises BusError then."""
        try:
            yield
        except BusError:  # the reader tells it
            self._look_back()
            raise
        if self._reader.log_id != self._log_id:
            self.close()
            raise PositionRefused(
                f"{self.address}: the bus has another log now, of which group {self.name!r} knows nothing"
            )
        lost = self._look_back()
        if lost:
            raise BusError(lost)

    def _look_back(self) -> str:
        """After a move, if there was one: as `_take_back`."""
        if self._reader.moved is None:
            return ""
        lost = self._change(self._take_back)
        self._reader.moved = None
        return lost

    def _take_back(self, group: Group) -> str:
        """Take a group back to where its topic ended, if that was before what it was given. Returns what to tell then, else "".

        Members that find a newer ring one after the other do so once, but where it cannot be told: then some rows come twice.
        """
        given = group.next - 1
        if group.waits_to_begin:
            return ""
        end, succession = None, self._reader.succession
        if succession is not None and succession.inode != self._taken_back_for:
            # Behind what the former ring had it has come in the newer one, with a member that saw to it.
            end = succession.began if succession.began < given <= succession.published else None
        if end is None:
            end = self._reader.end_before(given)
        if end is None:
            return ""
        group.cut(end)
        self._position = min(self._position, end)
        return (
            f"{self.address}: group {self.name!r} was given rows up to {given}, but the topic was opened again and ended at {end}: "
            "a copy, or it lost what no disk held. The group goes on behind what is there"
        )

    def _pass_succession(self) -> None:
        """The group has been taken back already, if the ring that is read has a successor."""
        succession = self._reader.succession
        if succession is not None:
            self._taken_back_for = succession.inode

    # --- acknowledging ----------------------------------------------------------------------------------------------

    def ack(self, what: Batch | int) -> None:
        """A batch's rows, or the row of a sequence, are done with.

        Rows that are another member's by now, or were settled before, stay as they are; `stats.late_count` counts them.
        Raises BusError as `poll`.
        """
        first, last = _ends(what)
        self._late += last - first + 1 - self._settle(first, last)

    def _pass_over(self, batch: Batch) -> None:
        self.ack(batch)

    def ack_to(self, sequence: int) -> None:
        """All rows up to a sequence that were handed out here are done with."""
        lease, position = self._lease, self._reader.position
        if lease is None or position >= lease.last:
            self._settle(1, sequence)
        else:  # not those of its last batch's range that are still to come
            self._settle(1, min(sequence, max(position, lease.first - 1)))
            self._settle(lease.last + 1, sequence)

    def nack(self, what: Batch | int) -> None:
        """A batch's rows, or the row of a sequence, are to be handed out again, to whoever of the group asks next."""
        first, last = _ends(what)
        given = 0
        if self._member:
            given = self._change(lambda group: group.give_back(self._member, first, last))
        self._late += last - first + 1 - given
        self._look_at_ns = 0

    def _settle(self, first: int, last: int) -> int:
        if first > last or not self._member:  # who is closed has no rows: those it had are given back
            return 0
        return self._change(lambda group: group.settle(self._member, first, last))

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> Schema:
        """The topic's schema."""
        return self._reader.schema

    @property
    def position(self) -> int:
        """The last sequence handed out to this member."""
        return self._position

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: the writer closed in good order, and all is settled."""
        return self._ended

    @property
    def stats(self) -> AcknowledgedStats:
        stats = asdict(self._reader.stats)
        stats["position"], stats["read_count"] = self._position, self._read_count
        stats["lag"] = max(0, self._reader.newest + 1 - self._next)
        return AcknowledgedStats(
            **stats,
            acknowledged=self._floor,
            redelivered_count=self._redelivered,
            late_count=self._late,
            dead_count=self._dead,
        )

    def close(self) -> None:
        """Leave the group. What this member has and did not acknowledge goes to the others at once."""
        self._ended = True
        if self._member:
            member, self._member = self._member, 0
            lease, position = self._lease, self._reader.position
            try:
                self._file.change(lambda group: _leave(group, member, lease, position))
            finally:
                self._file.close()
                self._reader.close()
        super().close()


def _leave(group: Group, member: int, lease: Range | None, position: int) -> None:
    if lease is not None:
        group.give_back(member, max(lease.first, position + 1), lease.last, unused=True)
    group.leave(member)


def _first(reader: LeaseReader, start: Start) -> int:
    if start == "latest":
        return reader.newest + 1
    return reader.oldest if start == "earliest" else start


def _ends(what: Batch | int) -> tuple[int, int]:
    return (what, what) if isinstance(what, int) else (what.first, what.last)
