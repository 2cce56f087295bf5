"""Who works on which rows of a topic: what the members of a group share. A value; nothing here waits, or looks at a clock.

1. Of the sequences below `next`, those in no range are settled. Ranges are sorted and do not overlap; those from `next` on have not
   been handed out yet.
2. A range is its member's until another member takes it, even if its time is over. Settling counts for what is one's own only: what
   a member says of rows that have gone to another changes nothing.
3. What may be taken is a range that was given back (of member 0, or of one that is dead), or whose deadline has passed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import msgspec

from ..storage.decodable import decodable

__all__ = ["RANGES_MAX", "Group", "Member", "Range"]

RANGES_MAX = 4096  # with so many, nothing new is handed out until some are settled: a bound for the size of the state
NOBODY = 0


class Range(msgspec.Struct, array_like=True):
    """Rows that are not settled, and whose they are. deadline_ns: monotonic. deliveries: how often they were handed out."""

    first: int
    last: int
    member: int
    deadline_ns: int
    deliveries: int


class Member(msgspec.Struct, array_like=True, frozen=True):
    """number: never used again. started: of the process, in clock ticks since boot."""

    number: int
    pid: int
    started: int


@decodable
class Group(msgspec.Struct, array_like=True):
    """All of it. next: the first sequence that nobody was given yet.

    begin: the sequence that it was told to begin with, which may be still to come. 0: none was told, or it was taken back since.
    """

    next: int
    ranges: list[Range] = msgspec.field(default_factory=list[Range])
    members: list[Member] = msgspec.field(default_factory=list[Member])
    number_last: int = 0
    begin: int = 0

    @property
    def floor(self) -> int:
        """The last sequence up to which everything is settled."""
        return self.ranges[0].first - 1 if self.ranges else self.next - 1

    @property
    def is_full(self) -> bool:
        """Whether nothing new is handed out, since too much is open."""
        return len(self.ranges) >= RANGES_MAX

    @property
    def waits_to_begin(self) -> bool:
        """Whether it was given nothing yet, and is to begin with a certain sequence, wherever the topic ends."""
        return self.next == self.begin

    # --- members ----------------------------------------------------------------------------------------------------

    def join(self, pid: int, started: int) -> int:
        """Take a process in; returns its number."""
        self.number_last += 1
        self.members.append(Member(self.number_last, pid, started))
        return self.number_last

    def leave(self, member: int) -> None:
        """Give back all that a member has, and forget it."""
        self.members = [known for known in self.members if known.number != member]
        self.give_back(member, 1, self.next)

    def bury(self, lives: Callable[[int, int], bool]) -> None:
        """Let the members go whose processes are dead. lives: asked with pid and start."""
        for member in self.members:
            if not lives(member.pid, member.started):
                self.leave(member.number)

    def restart(self) -> None:
        """After the machine was started anew: nobody is left, and no clock goes on."""
        self.members = []
        for held in self.ranges:
            held.member = NOBODY
        self._merge()

    # --- rows -------------------------------------------------------------------------------------------------------

    def take(self, member: int, newest: int, rows_max: int, now_ns: int, deadline_ns: int) -> Range | None:
        """Hand rows to a member until the deadline: those that wait to be handed out again first, else new ones.

        None behind `newest`, the last one that the member can read: it may not have found the newest writer's ring yet.
        """
        for held in self.ranges:
            if held.first > newest:
                break
            if held.member == NOBODY or held.deadline_ns <= now_ns:
                last = min(held.last, newest, held.first + rows_max - 1)
                if last < held.last:
                    self._split(last + 1)
                held.member, held.deadline_ns, held.deliveries = member, deadline_ns, held.deliveries + 1
                return msgspec.structs.replace(held)
        if self.next > newest or self.is_full:
            return None
        taken = Range(self.next, min(newest, self.next + rows_max - 1), member, deadline_ns, 1)
        self.ranges.append(taken)
        self.next = taken.last + 1
        return msgspec.structs.replace(taken)

    def settle(self, member: int, first: int, last: int) -> int:
        """Rows that a member is done with. Returns how many of them were its own."""
        own = self._own(member, first, last)
        gone = {id(held) for held in own}
        self.ranges = [held for held in self.ranges if id(held) not in gone]
        return sum(held.last - held.first + 1 for held in own)

    def give_back(self, member: int, first: int, last: int, *, unused: bool = False) -> int:
        """Rows that a member wants another one to have. unused: they were never looked at. Returns how many were its own."""
        own = self._own(member, first, last)
        count = sum(held.last - held.first + 1 for held in own)
        for held in own:
            held.member = NOBODY
            held.deliveries -= unused
        self._merge()
        return count

    def cut(self, newest: int) -> None:
        """Forget what lies behind the end of the topic: it was lost, and its sequences will be used again."""
        if self.next > newest + 1:
            self._split(newest + 1)
            self.ranges = [held for held in self.ranges if held.first <= newest]
            self.next, self.begin = newest + 1, 0

    def _own(self, member: int, first: int, last: int) -> list[Range]:
        """A member's ranges from `first` to `last`, cut out of those that go on beyond."""
        for edge in (first, last + 1):
            at = self._at(edge)
            if at >= 0 and self.ranges[at].member == member:
                self._split(edge)
        begin = bisect_right(self.ranges, first - 1, key=lambda held: held.first)
        end = bisect_right(self.ranges, last, key=lambda held: held.first)
        return [held for held in self.ranges[begin:end] if held.member == member]

    def _at(self, sequence: int) -> int:
        """The place of the range that a sequence is in, or -1."""
        at = bisect_right(self.ranges, sequence, key=lambda held: held.first) - 1
        return at if at >= 0 and self.ranges[at].last >= sequence else -1

    def _split(self, sequence: int) -> None:
        """Let a range begin at a sequence that lies within one."""
        at = self._at(sequence)
        if at >= 0 and self.ranges[at].first < sequence:
            held = self.ranges[at]
            self.ranges.insert(at + 1, msgspec.structs.replace(held, first=sequence))
            held.last = sequence - 1

    def _merge(self) -> None:
        """Make one range of neighbours that were given back and handed out equally often."""
        merged: list[Range] = []
        for held in self.ranges:
            before = merged[-1] if merged else None
            if (
                before is not None
                and before.last + 1 == held.first
                and before.member == held.member == NOBODY
                and before.deliveries == held.deliveries
            ):
                before.last = held.last
            else:
                merged.append(held)
        self.ranges = merged
