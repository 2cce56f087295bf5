"""Sharing out rows: against a model that knows of every row whose it is, with a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ringmain.bus.group_state import RANGES_MAX, Group

TIMEOUT_NS = 100


@dataclass
class Row:
    member: int  # 0: nobody's
    deadline_ns: int
    deliveries: int


class Sharing(RuleBasedStateMachine):
    """Members come, take, settle, give back, leave and die in any order, and time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = b""
        self.now_ns, self.newest, self.next = 0, 0, 1
        self.open: dict[int, Row] = {}  # not settled, by sequence
        self.settled: set[int] = set()
        self.living: dict[int, int] = {}  # pid by member
        self.dead: dict[int, int] = {}  # not buried yet

    @initialize(start=st.integers(1, 5))
    def begin(self, start: int) -> None:
        self.next = self.newest = start
        self.newest -= 1
        self.settled = set(range(1, start))
        self.encoded = msgspec.msgpack.encode(Group(start))

    def group(self) -> Group:
        return msgspec.msgpack.decode(self.encoded, type=Group)

    def keep(self, group: Group) -> None:
        self.encoded = msgspec.msgpack.encode(group)

    def may_be_taken(self, row: Row) -> bool:
        return row.member == 0 or row.deadline_ns <= self.now_ns

    # --- what happens -------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 30))
    def publish(self, count: int) -> None:
        self.newest += count

    @rule(time_ns=st.integers(1, TIMEOUT_NS))
    def time_passes(self, time_ns: int) -> None:
        self.now_ns += time_ns

    @rule()
    def somebody_joins(self) -> None:
        group = self.group()
        pid = 1000 + group.number_last
        number = group.join(pid, 7)
        assert number not in self.living
        assert number not in self.dead
        self.living[number] = pid
        self.keep(group)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), rows_max=st.integers(1, 12))
    def somebody_takes(self, data, rows_max: int) -> None:
        member = data.draw(st.sampled_from(sorted(self.living)))
        newest = self.newest - data.draw(st.sampled_from([0, 0, 0, 1, 5, 20]))  # as far as that member can read
        group = self.group()
        waiting = sorted(
            sequence for sequence, row in self.open.items() if sequence <= newest and self.may_be_taken(row)
        )
        taken = group.take(member, newest, rows_max, self.now_ns, self.now_ns + TIMEOUT_NS)
        if taken is None:
            assert not waiting
            assert self.next > newest
            return
        sequences = range(taken.first, taken.last + 1)
        assert 0 < len(sequences) <= rows_max
        if waiting:
            assert taken.first == waiting[0], "what was given back comes first, the oldest of it"
            assert set(sequences) <= set(waiting)
        else:
            assert taken.first == self.next
            assert taken.last == min(newest, self.next + rows_max - 1)
            self.next = taken.last + 1
        for sequence in sequences:
            before = self.open.get(sequence)
            assert taken.deliveries == (before.deliveries if before else 0) + 1
            self.open[sequence] = Row(member, self.now_ns + TIMEOUT_NS, taken.deliveries)
        self.keep(group)

    @precondition(lambda self: self.next > 1)
    @rule(data=st.data(), settles=st.booleans(), unused=st.booleans())
    def somebody_settles_or_gives_back(self, data, settles: bool, unused: bool) -> None:
        """Anybody, of whatever rows: late, twice, of another's, of rows nobody has got yet."""
        member = data.draw(st.sampled_from(sorted({*self.living, *self.dead, 99})))
        first = data.draw(st.integers(1, self.next + 3))
        last = data.draw(st.integers(first, first + 15))
        group = self.group()
        own = [at for at in range(first, last + 1) if at in self.open and self.open[at].member == member]
        if settles:
            assert group.settle(member, first, last) == len(own)
            self.settled.update(own)
            for sequence in own:
                del self.open[sequence]
        else:
            assert group.give_back(member, first, last, unused=unused) == len(own)
            for sequence in own:
                row = self.open[sequence]
                self.open[sequence] = Row(0, 0, row.deliveries - unused)
        self.keep(group)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def somebody_leaves(self, data) -> None:
        member = data.draw(st.sampled_from(sorted(self.living)))
        group = self.group()
        group.leave(member)
        self._is_gone(member)
        del self.living[member]
        self.keep(group)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def somebody_dies(self, data) -> None:
        member = data.draw(st.sampled_from(sorted(self.living)))
        self.dead[member] = self.living.pop(member)

    @rule()
    def the_dead_are_buried(self) -> None:
        group = self.group()
        group.bury(lambda pid, started: started == 7 and pid in self.living.values())
        for member in self.dead:
            self._is_gone(member)
        self.dead.clear()
        self.keep(group)

    @rule()
    def the_machine_starts_anew(self) -> None:
        group = self.group()
        group.restart()
        for member in (*self.living, *self.dead):
            self._is_gone(member)
        self.living.clear()
        self.dead.clear()
        self.now_ns = 0
        self.keep(group)

    @precondition(lambda self: self.newest > 0)
    @rule(data=st.data())
    def the_end_of_the_topic_is_lost(self, data) -> None:
        self.newest = data.draw(st.integers(max(0, self.newest - 8), self.newest))
        group = self.group()
        group.cut(self.newest)
        self.next = min(self.next, self.newest + 1)
        self.settled = {sequence for sequence in self.settled if sequence < self.next}
        self.open = {sequence: row for sequence, row in self.open.items() if sequence < self.next}
        self.keep(group)

    def _is_gone(self, member: int) -> None:
        for row in self.open.values():
            if row.member == member:
                row.member = 0

    # --- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        if not self.encoded:
            return
        group = self.group()
        found = {
            sequence: (held.member, held.deliveries)
            for held in group.ranges
            for sequence in range(held.first, held.last + 1)
        }
        assert found == {sequence: (row.member, row.deliveries) for sequence, row in self.open.items()}
        assert group.next == self.next
        assert self.settled | set(found) == set(range(1, self.next))
        assert group.floor == min(found, default=self.next) - 1
        assert all(left.last < right.first for left, right in zip(group.ranges, group.ranges[1:], strict=False))
        assert {member.number for member in group.members} == {*self.living, *self.dead}


Sharing.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSharing = Sharing.TestCase


def test_nothing_new_is_handed_out_while_too_much_is_open():
    group = Group(1)
    member = group.join(1, 1)
    for _ in range(RANGES_MAX):
        assert group.take(member, 1 << 40, 10, 0, 100) is not None
    assert group.take(member, 1 << 40, 10, 0, 100) is None
    again = group.take(member, 1 << 40, 10, 100, 200)  # but what was handed out is, again
    assert again is not None
    assert (again.first, again.deliveries) == (1, 2)
    assert group.settle(member, 1, 5) == 5
    assert group.is_full  # half a range is one
    assert group.settle(member, 6, 10) == 5
    fresh = group.take(member, 1 << 40, 10, 50, 150)
    assert fresh is not None
    assert fresh.first == 10 * RANGES_MAX + 1


def test_a_group_waits_to_begin_until_it_is_given_something_or_taken_back():
    group = Group(25, begin=25)
    assert group.waits_to_begin
    assert group.take(group.join(1, 1), 25, 10, 0, 100) is not None
    assert not group.waits_to_begin
    group.cut(10)
    assert group.take(1, 24, 20, 0, 100) is not None
    assert group.next == 25
    assert not group.waits_to_begin  # though it stands there again


def test_a_state_of_before_it_was_kept_with_what_a_group_began_is_read():
    group = msgspec.msgpack.decode(msgspec.msgpack.encode([25, [[20, 22, 1, 100, 1]], [[1, 4711, 7]], 3]), type=Group)
    assert (group.next, group.floor, group.number_last, group.begin) == (25, 19, 3, 0)
    assert not group.waits_to_begin


def test_only_the_rows_given_back_now_are_counted_though_their_range_grows_by_those_before():
    group = Group(1)
    member = group.join(1, 1)
    assert group.take(member, 2, 10, 0, 100) is not None
    assert group.give_back(member, 2, 2) == 1
    assert group.give_back(member, 1, 1) == 1
    assert len(group.ranges) == 1
