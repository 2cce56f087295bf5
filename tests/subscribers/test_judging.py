"""What a look at a bus means: a pure judgement, with a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest
from ringmain.bus.snapshot import BusFacts, LaneFacts, ReaderFacts, TopicFacts, WriterFacts
from ringmain.subscribers.judging import Condition, Judge, Subject, Thresholds, worst

LIMITS = Thresholds(lag_seconds=1.0, lag_records=100, overrun_memory=10.0)


def reader(**facts: Any) -> ReaderFacts:
    given: dict[str, Any] = {
        "index": 0, "name": "risk", "pid": 7, "process": "alive", "entry": "active", "policy": "lossy",
        "follow": "published", "acknowledged": 0, "consumed": 0, "lag_count": 0, "overrun_count": 0, "lost_count": 0,
        "refilled_count": 0,
        "heartbeat_age_s": 0.0, "attached_age_s": 9.0,
    }  # fmt: skip
    return ReaderFacts(**{**given, **facts})


def bus(
    *readers: ReaderFacts, state: str = "alive", beat: float | None = 0.1, published: int = 0, **topic: Any
) -> BusFacts:
    topics = (TopicFacts(topic="orders", published=published, slot_count=1000, readers=readers, **topic),)
    return BusFacts(bus="b", writer=WriterFacts(state=state, pid=5, epoch=1, heartbeat_age_s=beat), topics=topics)


def of_writer(judge: Judge, facts: BusFacts, now: float = 0.0) -> Condition:
    return judge.judge(facts, now)[Subject("writer", "b", "b", pid=5)]


def of_reader(judge: Judge, facts: BusFacts, now: float = 0.0) -> Condition:
    return next(condition for subject, condition in judge.judge(facts, now).items() if subject.kind == "subscriber")


@pytest.mark.parametrize("state", ["dead", "stopped"])
def test_a_process_that_is_dead_or_stopped_has_failed_at_once(state):
    assert of_writer(Judge(LIMITS), bus(state=state)) == Condition("failed", state)
    assert of_reader(Judge(LIMITS), bus(reader(process=state, lag_count=3), published=3)) == Condition(
        "failed", state, 3
    )


def test_a_writer_whose_log_stopped_or_whose_segments_cannot_be_read_has_failed():
    assert of_writer(Judge(LIMITS), bus(log_error="No space left")) == Condition("failed", "log failed")
    assert of_writer(Judge(LIMITS), bus(status=("log failed",))) == Condition("failed", "log failed")
    broken = BusFacts(bus="b", problem="bad magic", writer=WriterFacts(state="alive", pid=5), topics=())
    assert of_writer(Judge(LIMITS), broken) == Condition("failed", "unreadable")


def test_a_writer_without_heartbeats_is_silent_but_a_wall_clock_that_jumps_is_not_believed_at_once():
    judge = Judge(LIMITS)
    assert of_writer(judge, bus(beat=3600.0), 0.0) == Condition()  # a clock set forward looks so, until the next beat
    assert of_writer(judge, bus(beat=0.1), 0.2) == Condition()
    assert of_writer(judge, bus(beat=0.9), 5.0) == Condition()
    assert of_writer(judge, bus(beat=1.3), 5.4) == Condition("failed", "silent")
    assert of_writer(judge, bus(beat=0.1), 5.6) == Condition()


def test_one_that_starts_is_degraded_and_one_that_closed_is_well():
    assert of_writer(Judge(LIMITS), bus(state="starting")).health == "degraded"
    assert of_writer(Judge(LIMITS), bus(state="closed")) == Condition("healthy", "closed")


def test_a_subscriber_too_many_records_behind_lags():
    judge = Judge(LIMITS)
    assert of_reader(judge, bus(reader(consumed=0, lag_count=100), published=100)) == Condition()
    assert of_reader(judge, bus(reader(consumed=0, lag_count=101), published=101)) == Condition(
        "degraded", "lagging", 101
    )


def test_half_of_the_ring_is_too_far_behind_where_nothing_else_is_said():
    judge = Judge(Thresholds())
    assert of_reader(judge, bus(reader(lag_count=500), published=500)) == Condition()
    assert of_reader(judge, bus(reader(lag_count=501), published=501)).reason == "lagging"


def test_a_subscriber_few_records_but_long_behind_lags():
    judge = Judge(LIMITS)
    facts = bus(reader(consumed=7, lag_count=1), published=8)
    assert [of_reader(judge, facts, now).reason for now in (0.0, 0.9, 1.1, 5.0)] == ["", "", "lagging", "lagging"]
    assert of_reader(judge, bus(reader(consumed=8), published=8), 5.1) == Condition()


def test_how_long_one_is_behind_is_counted_from_when_what_it_follows_rose():
    judge = Judge(LIMITS)
    waits = bus(reader(follow="replicated", consumed=7), published=50, replicated=7)
    assert [of_reader(judge, waits, now).reason for now in (0.0, 5.0)] == ["", ""]
    lags = bus(reader(follow="replicated", consumed=7, lag_count=1), published=50, replicated=8)
    assert [of_reader(judge, lags, now).reason for now in (6.0, 6.9, 7.1)] == ["", "", "lagging"]


def test_when_a_topic_goes_back_how_long_one_is_behind_is_counted_anew():
    judge = Judge(LIMITS)
    assert of_reader(judge, bus(reader(consumed=50), published=50), 0.0) == Condition()
    facts = bus(reader(consumed=7, lag_count=1), published=8)
    assert [of_reader(judge, facts, now).reason for now in (9.0, 9.9, 10.1)] == ["", "", "lagging"]


def test_one_that_keeps_up_with_a_stream_does_not_lag_however_long_that_flows():
    judge = Judge(LIMITS)
    for step in range(100):
        published = 10 * step
        facts = bus(reader(consumed=max(0, published - 20), lag_count=min(20, published)), published=published)
        assert of_reader(judge, facts, step * 0.2) == Condition(), step


def test_one_that_hangs_while_there_is_something_to_read_is_silent():
    judge = Judge(Thresholds(lag_seconds=100.0, lag_records=100))
    facts = bus(reader(consumed=7, lag_count=1, heartbeat_age_s=6.0), published=8)
    assert [of_reader(judge, facts, now).reason for now in (0.0, 5.5)] == ["", "silent"]
    idle = bus(reader(consumed=8, lag_count=0, heartbeat_age_s=60.0), published=8)
    assert of_reader(judge, idle, 6.0) == Condition()


def test_one_that_hangs_while_its_topic_flows_is_lagging_and_then_silent():
    judge = Judge(Thresholds())
    reasons: list[str] = []
    for step in range(60):
        facts = bus(reader(consumed=0, lag_count=step + 1, heartbeat_age_s=12 + step * 0.2), published=step + 1)
        reasons.append(of_reader(judge, facts, step * 0.2).reason)
    changes = [reason for before, reason in zip(["", *reasons], reasons, strict=False) if reason != before]
    assert changes == ["lagging", "silent"]


def test_one_that_reads_on_without_a_heartbeat_is_not_silent():
    judge, condition = Judge(Thresholds()), Condition()
    for step in range(60):
        facts = bus(reader(consumed=step, lag_count=300, heartbeat_age_s=step * 0.2), published=step + 300)
        condition = of_reader(judge, facts, step * 0.2)
    assert condition.reason == "lagging"


def test_having_been_lapped_or_having_lost_records_is_remembered_for_a_while():
    judge = Judge(LIMITS)
    assert of_reader(judge, bus(reader(overrun_count=5)), 0.0) == Condition()  # before it was watched
    assert of_reader(judge, bus(reader(overrun_count=7)), 1.0) == Condition("degraded", "overrun", 2)
    assert of_reader(judge, bus(reader(overrun_count=7)), 10.9) == Condition("degraded", "overrun", 2)
    assert of_reader(judge, bus(reader(overrun_count=7)), 11.1) == Condition()
    assert of_reader(judge, bus(reader(overrun_count=7, lost_count=30)), 12.0) == Condition("degraded", "lost", 30)
    assert of_reader(judge, bus(reader(overrun_count=7, lost_count=30, lag_count=200)), 12.1).reason == "lost"
    assert of_reader(judge, bus(reader(overrun_count=8, lost_count=30, lag_count=200)), 30.0).reason == "lagging"


def test_one_that_was_dropped_has_failed_and_one_that_is_joining_is_not_there_yet():
    assert of_reader(Judge(LIMITS), bus(reader(entry="dropped"))) == Condition("failed", "dropped")
    assert [subject.kind for subject in Judge(LIMITS).judge(bus(reader(entry="joining")), 0.0)] == ["writer"]


def test_a_publisher_is_judged_by_its_process_and_by_what_waits_in_its_lane():
    def of_publisher(process: str, waiting: int) -> Condition:
        lane = LaneFacts(
            lane="5f", pid=9, process=process, entry="open", slot_count=64, published=90, drained=90 - waiting,
            waiting_count=waiting,
        )  # fmt: skip
        return Judge(LIMITS).judge(bus(lanes=(lane,)), 0.0)[Subject("publisher", "b", "5f", "orders", 9)]

    assert of_publisher("alive", 32) == Condition()
    assert of_publisher("alive", 33) == Condition("degraded", "waiting", 33)
    assert of_publisher("stopped", 3) == Condition("failed", "stopped", 3)
    assert of_publisher("dead", 0) == Condition("failed", "dead")


def test_the_worst_is_what_counts():
    assert worst([]) == "healthy"
    assert worst([Condition(), Condition("failed"), Condition("degraded")]) == "failed"


def test_a_threshold_is_above_0():
    with pytest.raises(ValueError, match=r"lag_seconds: above 0 is expected, got 0"):
        Thresholds(lag_seconds=0)


# --- nodes ------------------------------------------------------------------------------------------------------------


def node(role: str, leader: str = "", durable: int = 0, replicated: int = 0) -> BusFacts:
    topics = (TopicFacts(topic="orders", published=durable, durable=durable, replicated=replicated, slot_count=1000),)
    writer = WriterFacts(state="alive", pid=5, epoch=1, heartbeat_age_s=0.1, role=role, leader=leader)
    return BusFacts(bus="b", writer=writer, topics=topics)


def of_node(judge: Judge, facts: BusFacts, now: float) -> Condition:
    return judge.judge(facts, now)[Subject("node", "b", "b", pid=5)]


def test_a_node_that_knows_no_leader_for_a_while_is_degraded():
    judge = Judge(LIMITS)
    assert of_node(judge, node("follows"), 0.0) == Condition()
    assert of_node(judge, node("follows"), 1.9) == Condition()
    assert of_node(judge, node("follows"), 2.1) == Condition("degraded", "no leader")
    assert of_node(judge, node("follows", "north"), 2.2) == Condition()
    assert of_node(judge, node("leads"), 9.0) == Condition()


def test_a_leader_whose_records_are_not_replicated_for_a_while_is_degraded():
    judge = Judge(LIMITS)
    assert of_node(judge, node("leads", durable=10, replicated=4), 0.0) == Condition()
    assert of_node(judge, node("leads", durable=12, replicated=6), 2.5) == Condition()
    assert of_node(judge, node("leads", durable=15, replicated=6), 4.6) == Condition("degraded", "not replicated", 9)
    assert of_node(judge, node("leads", durable=15, replicated=15), 4.7) == Condition()
    assert of_node(judge, node("leads", durable=15, replicated=15), 9.0) == Condition()


def test_a_new_leader_has_as_long_for_its_first_records():
    judge = Judge(LIMITS)
    assert of_node(judge, node("leads", durable=3, replicated=0), 100.0) == Condition()
    assert of_node(judge, node("leads", durable=3, replicated=0), 101.9) == Condition()
    assert of_node(judge, node("leads", durable=3, replicated=0), 102.1).reason == "not replicated"


def test_a_bus_of_one_host_has_no_node():
    assert not [subject for subject in Judge(LIMITS).judge(bus(), 0.0) if subject.kind == "node"]


# --- what a few looks are too few to tell -----------------------------------------------------------------------------


def undecided(looks: list[tuple[float, BusFacts]]) -> list[bool]:
    """After each look."""
    judge, found = Judge(Thresholds()), list[bool]()
    for now, facts in looks:
        judge.judge(facts, now)
        found.append(judge.undecided)
    return found


def test_who_is_behind_at_the_first_look_is_undecided_until_it_has_read_that():
    def behind(consumed: int, published: int) -> BusFacts:
        return bus(reader(consumed=consumed, lag_count=published - consumed), published=published)

    assert undecided([(0.0, behind(5, 5)), (0.6, behind(8, 9))]) == [False, False]
    assert undecided([(0.0, behind(5, 9)), (0.6, behind(9, 20))]) == [True, False]
    assert undecided([(0.0, behind(5, 9)), (0.6, behind(8, 20)), (1.1, behind(8, 20))]) == [True, True, False]


def test_who_has_not_looked_since_the_first_look_is_undecided_until_it_is_silent():
    hung = [(now, bus(reader(lag_count=9, heartbeat_age_s=12 + now), published=9)) for now in (0.0, 0.6, 4.9, 5.1)]
    assert undecided(hung) == [True, True, True, False]


def test_a_node_without_leader_and_one_whose_records_wait_are_undecided_until_that_is_too_long():
    assert undecided([(now, node("follows")) for now in (0.0, 0.6, 2.1)]) == [True, True, False]
    assert undecided([(0.0, node("follows")), (0.6, node("follows", "north"))]) == [True, False]
    assert undecided([(now, node("leads", durable=9, replicated=4)) for now in (0.0, 0.6, 2.1)]) == [True, True, False]
    flows = [(0.0, node("leads", durable=9, replicated=4)), (0.6, node("leads", durable=19, replicated=14))]
    assert undecided(flows) == [True, False]


def test_a_writer_without_heartbeats_is_undecided_until_it_is_silent():
    assert undecided([(0.0, bus(beat=0.5)), (0.6, bus(beat=1.1)), (1.0, bus(beat=1.5))]) == [False, True, False]


def test_where_all_is_well_nothing_is_undecided():
    assert undecided([(0.0, bus(reader(consumed=7), published=7))]) == [False]
    assert undecided([(0.0, node("leads", durable=9, replicated=9))]) == [False]
