"""Sharing the work on a topic: who gets which rows, when they come again, and what whoever waits for them learns."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import Batch, BusError, PositionRefused, Writer, attach, open_lane, wait_acknowledged
from ringmain.bus.positions import KEPT, KIND_GROUP, LIVE, Position, read_position, shared_by_group
from ringmain.bus.slot_file import SlotFile
from ringmain.storage import LogReader, Schema
from ringmain.storage.log_tail import cut_tail
from ringmain.subscribers import Acknowledged, RealTime, Resumable
from ringmain.subscribers.group_file import KEEP_S, GroupFile
from support.children import Child, Children
from support.logs import FILE_BYTES, PAIRS, POINTS, wait_until
from support.replicas import open_replicated, row_bytes
from support.streams import TIMEOUT_S, check_content, publish

SLOTS = 256
DEAD = Schema(
    "dead",
    {
        "value": "u8",
        "tag": "S5",
        "original_sequence": "u8",
        "original_timestamp_ns": "i8",
        "deliveries": "u4",
    },
)


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


def open_writer(bus: str, data_dir: Path, **settings) -> Writer:
    return Writer(
        bus, [POINTS, DEAD, PAIRS], **{"data_dir": data_dir, "slots": SLOTS, "log_file_bytes": FILE_BYTES, **settings}
    )


def member(bus: str, name: str = "group", **settings) -> Acknowledged:
    return Acknowledged(f"{bus}/points", name, **{"batch_rows": 10, "start": 1, **settings})


def start_member(children: Children, bus: str, **settings) -> Child:
    child = children.start()
    child.run(
        "from ringmain.subscribers import Acknowledged\n"
        "member = Acknowledged(f'{bus}/points', 'group', **{'batch_rows': 10, 'start': 1, **settings})",
        bus=bus,
        settings=settings,
    )
    return child


def take(reader: Acknowledged, first: int, last: int, deliveries: int = 1) -> None:
    """The next batch is this one."""
    batch = reader.take(TIMEOUT_S)
    assert (batch.first, batch.last, batch.deliveries) == (first, last, deliveries)
    check_content(POINTS, batch.copy(), first)


def stored(data_dir: Path, name: str = "group") -> int:
    return read_position(data_dir / "positions" / "points" / name).sequence


# --- sharing --------------------------------------------------------------------------------------------------------------


def test_each_row_goes_to_one_member(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as one, member(bus_name) as two:
        publish(writer["points"], 35)
        take(one, 1, 10)
        take(two, 11, 20)
        take(two, 21, 30)
        take(one, 31, 35)
        assert one.poll() is None
        assert two.poll() is None
        assert (one.stats.read_count, two.stats.read_count) == (15, 20)


@pytest.mark.parametrize(("start", "first"), [("latest", 21), ("earliest", 1), (4, 4)])
def test_start_counts_for_the_first_member_only(bus_name, tmp_path, start, first):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 20)
        with member(bus_name, start=start) as one, member(bus_name, start=15) as two:
            assert one.stats.acknowledged == two.stats.acknowledged == first - 1
            publish(writer["points"], 1)
            assert two.take(TIMEOUT_S).first == first
        with member(bus_name, start=15) as one:
            assert one.take(TIMEOUT_S).first == first


def test_what_is_acknowledged_does_not_come_again(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 30)
        with member(bus_name) as one:
            one.ack(one.poll())
            one.poll()
            for sequence in (11, 12, 20):
                one.ack(sequence)
            assert one.stats.acknowledged == 12
            one.poll()
            one.ack_to(15)
            assert one.stats.acknowledged == 15
            one.ack(30)
        assert stored(tmp_path) == 15
        with member(bus_name) as one:
            take(one, 16, 19, 2)
            take(one, 21, 29, 2)
            assert one.poll() is None
            one.ack_to(29)
            assert one.stats.acknowledged == 30
            assert one.stats.late_count == 0


def test_ack_to_means_what_was_handed_out_here(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as one, member(bus_name) as two:
        publish(writer["points"], 30)
        for reader in (one, two, one):
            reader.poll()
        one.ack_to(30)
        assert one.stats.acknowledged == 10
        two.ack_to(17)
        assert two.stats.acknowledged == 17


def test_rows_that_were_given_but_not_handed_out_are_not_acknowledged(bus_name, tmp_path):
    """A batch ends where the ring does, and the rest of what a member was given is still to come."""
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], SLOTS - 5)
        with member(bus_name, start="latest") as one:
            publish(writer["points"], 10)
            batch = one.take(TIMEOUT_S)
            assert batch.last < SLOTS + 5
            one.ack_to(SLOTS + 5)
            assert one.stats.acknowledged == batch.last
            take(one, batch.last + 1, SLOTS + 5)


def test_rows_come_from_the_log_when_the_ring_has_them_no_more(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name, batch_rows=100) as one:
        last = publish(writer["points"], 20 * SLOTS)
        seen = 0
        while seen < last:
            batch = one.take(TIMEOUT_S)
            check_content(POINTS, batch.copy(), seen + 1)
            one.ack(batch)
            seen = batch.last
        assert one.stats.acknowledged == last


def test_rows_that_were_overwritten_before_they_were_proven_come_again(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as one:
        publish(writer["points"], 30)
        batch = one.take(TIMEOUT_S)
        publish(writer["points"], 3 * SLOTS)
        with pytest.raises(BusError, match="was overwritten"):
            batch.validate()
        take(one, 1, 10)
        take(one, 11, 20)


def test_rows_that_are_kept_no_more_are_passed_over_and_told(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, retention_bytes=0) as writer:
        publish(writer["points"], 10)
        with member(bus_name) as one:
            one.ack(one.take(TIMEOUT_S).first)
        while LogReader(tmp_path / "log", "points").oldest <= 11:
            publish(writer["points"], 20_000)
            writer["points"].wait(writer["points"].watermarks.published, "durable", TIMEOUT_S)
        with member(bus_name, batch_rows=1000) as one:
            batch = one.take(TIMEOUT_S)
            assert batch.first > 1000
            assert batch.lost == one.stats.lost_count > 0
            assert one.stats.acknowledged == batch.first - 1


# --- again ----------------------------------------------------------------------------------------------------------------


def test_what_is_given_back_goes_to_whoever_asks_next_and_to_nobody_else(bus_name, tmp_path):
    with (
        open_writer(bus_name, tmp_path) as writer,
        member(bus_name) as one,
        member(bus_name) as two,
        RealTime(f"{bus_name}/points", start=1) as other,
    ):
        publish(writer["points"], 20)
        take(one, 1, 10)
        assert other.take(TIMEOUT_S).last == 20
        one.nack(3)
        one.nack(4)
        take(two, 3, 4, 2)
        take(two, 11, 20)
        assert other.poll() is None
        assert two.stats.redelivered_count == 2


def test_what_is_not_acknowledged_in_time_comes_again(bus_name, tmp_path):
    with (
        open_writer(bus_name, tmp_path) as writer,
        member(bus_name, timeout=0.2) as one,
        member(bus_name, timeout=0.2) as two,
    ):
        publish(writer["points"], 20)
        take(one, 1, 10)
        take(two, 11, 20)
        two.ack_to(20)
        take(two, 1, 10, 2)
        one.ack_to(10)  # too late: they are another's
        assert one.stats.acknowledged == 0
        two.ack_to(10)
        assert two.stats.acknowledged == 20


def test_a_late_acknowledgement_counts_as_long_as_nobody_else_has_the_rows(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name, timeout=0.001) as one:
        publish(writer["points"], 10)
        batch = one.take(TIMEOUT_S)
        time.sleep(0.01)  # it is over now, whatever the clock's grain
        one.ack(batch)
        assert (one.stats.acknowledged, one.stats.late_count) == (10, 0)
        one.ack(batch)
        assert one.stats.late_count == 10


def test_what_a_closed_member_had_goes_to_the_others_at_once(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as two:
        publish(writer["points"], 10)
        with member(bus_name) as one:
            take(one, 1, 10)
        take(two, 1, 10, 2)


def test_a_closed_member_acknowledges_nothing_any_more(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as two:
        publish(writer["points"], 20)
        with member(bus_name) as one:
            batch = one.take(TIMEOUT_S)
            take(two, 11, 20)
            two.nack(15)
        one.ack(batch)
        one.ack_to(20)
        one.nack(2)
        assert one.stats.late_count == 11
        take(two, 1, 10, 2)
        take(two, 15, 15, 2)


def test_what_a_killed_member_had_goes_to_the_others_at_once(bus_name, tmp_path, children):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name, timeout=3600) as two:
        child = start_member(children, bus_name, timeout=3600)
        publish(writer["points"], 20)
        assert child.ask("member.take(30).last") == 10
        child.run("member.ack(2)")
        take(two, 11, 20)
        child.kill()
        take(two, 1, 1, 2)
        take(two, 3, 10, 2)


def test_what_a_stopped_member_had_goes_to_the_others_in_time(bus_name, tmp_path, children):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name, timeout=0.3) as two:
        child = start_member(children, bus_name, timeout=0.3)
        publish(writer["points"], 10)
        assert child.ask("member.take(30).last") == 10
        child.pause()
        take(two, 1, 10, 2)
        child.resume()
        child.run("member.ack_to(10)")
        assert child.ask("member.stats.acknowledged") == 0
        two.ack_to(10)
        assert two.stats.acknowledged == 10


def test_a_member_that_is_stopped_while_it_changes_the_state_holds_nobody_up(bus_name, tmp_path, children):
    """And what it changed meanwhile counts once, in the state that the others have made of it."""
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as two:
        child = start_member(children, bus_name)
        publish(writer["points"], 20)
        assert child.ask("member.take(30).last") == 10
        child.begin(
            "from ringmain.bus.group_state import Group\n"
            "settle = Group.settle\n"
            "def slow(group, *arguments):\n"
            "    open(path, 'w').close()\n"
            "    while os.path.exists(path): time.sleep(0.001)\n"
            "    return settle(group, *arguments)\n"
            "Group.settle = slow\n"
            "member.ack_to(10)",
            path=str(tmp_path / "holds"),
        )
        wait_until((tmp_path / "holds").exists, TIMEOUT_S)
        child.pause()
        take(two, 11, 20)
        two.ack_to(20)
        assert (tmp_path / "positions" / "points" / "group" / "live.2").exists()
        (tmp_path / "holds").unlink()
        child.resume()
        wait_until((tmp_path / "holds").exists, TIMEOUT_S)  # it does it again, in the newest state
        (tmp_path / "holds").unlink()
        child.settle()
        assert child.ask("member.stats.acknowledged") == 20


def test_a_member_that_was_stopped_behind_a_change_has_no_rows_that_it_does_not_know_of(bus_name, tmp_path, children):
    """The others have taken over what it wrote, but it cannot know that, and takes again."""
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as two:
        child = start_member(children, bus_name)
        publish(writer["points"], 40)
        child.begin(
            "from ringmain.bus.slot_file import SlotFile\n"
            "write = SlotFile.write\n"
            "def slow(file, *arguments, **settings):\n"
            "    write(file, *arguments, **settings)\n"
            "    SlotFile.write = write\n"
            "    open(path, 'w').close()\n"
            "    while os.path.exists(path): time.sleep(0.001)\n"
            "SlotFile.write = slow\n"
            "batch = member.take(30)",
            path=str(tmp_path / "wrote"),
        )
        wait_until((tmp_path / "wrote").exists, TIMEOUT_S)
        child.pause()
        take(two, 11, 20)
        (tmp_path / "wrote").unlink()
        child.resume()
        child.settle()
        assert child.ask("(batch.first, batch.last, batch.deliveries)") == (1, 10, 1)
        child.run("member.ack_to(30)")
        two.ack_to(20)
        assert two.stats.acknowledged == 20
        take(two, 21, 30)


def test_rows_that_nobody_acknowledges_go_to_a_function(bus_name, tmp_path):
    buried: list[tuple[int, int, int]] = []

    def bury(batch: Batch) -> None:
        check_content(POINTS, batch.copy(), batch.first)
        buried.append((batch.first, batch.last, batch.deliveries))

    with open_writer(bus_name, tmp_path) as writer, member(bus_name, tries=3, dead_letter=bury) as one:
        publish(writer["points"], 15)
        take(one, 1, 10)
        for sequence in (1, 2, 3, 4, 5, 6, 8, 9, 10):
            one.ack(sequence)
        for deliveries in (2, 3):
            one.nack(7)
            take(one, 7, 7, deliveries)
        assert buried == []
        one.nack(7)
        take(one, 11, 15)
        assert buried == [(7, 7, 3)]
        assert (one.stats.acknowledged, one.stats.dead_count) == (10, 1)


def test_rows_that_a_member_was_given_and_left_before_it_saw_them_were_not_handed_out(bus_name, tmp_path):
    """They do not go to the dead letters for it."""
    buried: list[tuple[int, int]] = []
    settings = {"batch_rows": 100, "tries": 1, "dead_letter": lambda batch: buried.append((batch.first, batch.last))}
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], SLOTS - 5)
        with member(bus_name, start="latest", **settings) as one:
            publish(writer["points"], 50)
            batch = one.take(TIMEOUT_S)  # it ends where the ring does
            assert (batch.first, batch.deliveries) == (SLOTS - 4, 1)
            assert batch.last < SLOTS + 45
        with member(bus_name, **settings) as two:
            take(two, batch.last + 1, SLOTS + 45)
        assert buried == [(batch.first, batch.last)]


def test_rows_that_nobody_acknowledges_go_to_a_topic(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        with member(bus_name, tries=1, dead_letter=writer["dead"]) as one, RealTime(f"{bus_name}/dead") as dead:
            publish(writer["points"], 10)
            rows = one.take(TIMEOUT_S).copy()
            one.nack(4)
            one.nack(5)
            assert one.poll() is None
            letters = dead.take(TIMEOUT_S).copy()
        assert letters["value"].tolist() == rows["value"][3:5].tolist()
        assert letters["tag"].tolist() == rows["tag"][3:5].tolist()
        assert letters["original_sequence"].tolist() == [4, 5]
        assert letters["original_timestamp_ns"].tolist() == rows["timestamp_ns"][3:5].tolist()
        assert letters["deliveries"].tolist() == [1, 1]


def test_rows_that_nobody_acknowledges_may_go_through_a_lane(bus_name, tmp_path):
    """As from a process that is not the writer's."""
    with (
        open_writer(bus_name, tmp_path, lanes=["dead"]) as writer,
        open_lane(f"{bus_name}/dead") as lane,
        member(bus_name, tries=1, dead_letter=lane) as one,
        RealTime(f"{bus_name}/dead") as dead,
    ):
        publish(writer["points"], 10)
        one.take(TIMEOUT_S)
        one.nack(7)
        assert one.poll() is None
        assert dead.take(TIMEOUT_S).copy()["original_sequence"].tolist() == [7]


def test_a_dead_letter_that_cannot_be_sent_is_tried_again(bus_name, tmp_path):
    calls: list[int] = []

    def bury(batch: Batch) -> None:
        calls.append(batch.first)
        if len(calls) == 1:
            raise ConnectionError("not now")

    settings = {"tries": 1, "dead_letter": bury, "timeout": 0.2}
    with open_writer(bus_name, tmp_path) as writer, member(bus_name, **settings) as one:
        publish(writer["points"], 1)
        one.nack(one.take(TIMEOUT_S))
        with pytest.raises(ConnectionError, match="not now"):
            one.poll()
        assert one.stats.acknowledged == 0
        assert one.poll() is None
        wait_until(lambda: one.poll() is None and one.stats.acknowledged == 1, TIMEOUT_S)
        assert calls == [1, 1]


def test_a_dead_letter_topic_with_a_field_that_nothing_fills_is_refused(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, pytest.raises(ValueError, match=r"field 'left' of topic 'pairs'"):
        member(bus_name, dead_letter=writer["pairs"])


# --- ends and beginnings --------------------------------------------------------------------------------------------------


def test_it_ends_when_the_writer_has_closed_and_all_is_settled(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        one, two = member(bus_name), member(bus_name, timeout=0.5)
        publish(writer["points"], 25)
        take(two, 1, 10)
    with one:
        found = []
        for batch in one:
            found.append((batch.first, batch.last, batch.deliveries))
            one.ack(batch)
        assert found == [(11, 20, 1), (21, 25, 1), (1, 10, 2)]
        assert one.ended
        assert one.stats.acknowledged == 25
    two.close()


def test_a_group_goes_on_with_the_next_writer(bus_name, tmp_path, children):
    child = children.start()
    child.run(
        f"from support.streams import publish\nwriter = Writer(bus, [POINTS], data_dir=data, slots={SLOTS})",
        bus=bus_name,
        data=str(tmp_path),
    )
    with member(bus_name) as one:
        child.ask("publish(writer['points'], 25)")
        take(one, 1, 10)
        child.kill()
        take(one, 11, 20)
        with Writer(bus_name, [POINTS], data_dir=tmp_path, slots=SLOTS) as writer:
            publish(writer["points"], 5)
            one.ack_to(20)
            seen = 20
            while seen < 30:
                batch = one.take(TIMEOUT_S)
                check_content(POINTS, batch.copy(), seen + 1)
                seen = batch.last
                one.ack(batch)
            assert one.stats.acknowledged == 30


def test_a_group_of_another_log_or_kind_is_refused(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path / "a") as writer:
        publish(writer["points"], 10)
        with member(bus_name) as one, Resumable(f"{bus_name}/points", "alone") as alone:
            one.ack(one.take(TIMEOUT_S))
            alone.sync(TIMEOUT_S)
        with pytest.raises(PositionRefused, match="the positions of a resumable subscriber"):
            member(bus_name, "alone")
        with pytest.raises(PositionRefused, match="the positions of a group"):
            Resumable(f"{bus_name}/points", "group")
    shutil.copytree(tmp_path / "a" / "positions", tmp_path / "b" / "positions")
    with open_writer(bus_name, tmp_path / "b"), pytest.raises(PositionRefused, match=r"belongs to log [0-9a-f]{16}"):
        member(bus_name)


def test_a_member_ends_when_the_bus_goes_on_with_another_log(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path / "a") as writer:
        one = member(bus_name, reopen=True)
        publish(writer["points"], 10)
        one.ack(one.take(TIMEOUT_S))
    with open_writer(bus_name, tmp_path / "b") as writer, one:
        publish(writer["points"], 20)
        with pytest.raises(PositionRefused, match="another log"):
            one.take(TIMEOUT_S)
        assert one.ended
    assert stored(tmp_path / "a") == 10


def test_wrong_settings_are_refused(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path):
        for wrong in ({"timeout": 0}, {"tries": 0}, {"batch_rows": 0}):
            with pytest.raises(ValueError, match="more than 0"):
                member(bus_name, **wrong)
        with pytest.raises(ValueError, match="start:"):
            member(bus_name, start=0)
        with pytest.raises(ValueError, match="letters, digits"):
            member(bus_name, "no/name")
    with Writer(bus_name, [POINTS]), pytest.raises(ValueError, match="has no data_dir"):
        member(bus_name)


# --- a topic that ends before its group -------------------------------------------------------------------------------------

LOST = r"group 'group' was given rows up to 20, but the topic was opened again and ended at 10"


def put_back(bus: str, data_dir: Path, **settings) -> tuple[Acknowledged, Acknowledged]:
    """Two members that have acknowledged 20 rows. The writer is closed, and its log is a copy with the first 10, of a backup."""
    with open_writer(bus, data_dir) as writer:
        publish(writer["points"], 10)
    shutil.copytree(data_dir / "log", data_dir / "copy")
    with open_writer(bus, data_dir) as writer:
        one, two = member(bus, **settings), member(bus, **settings)
        publish(writer["points"], 10)
        one.ack(one.take(TIMEOUT_S))
        two.ack(two.take(TIMEOUT_S))
        assert two.stats.acknowledged == 20
    shutil.rmtree(data_dir / "log")
    (data_dir / "copy").rename(data_dir / "log")
    return one, two


def is_of_the_log(data_dir: Path, batch: Batch) -> bool:
    """Whether these rows, stamps included, are those that the topic has now."""
    wait_until(lambda: LogReader(data_dir / "log", "points").newest >= batch.last, TIMEOUT_S)
    rows = LogReader(data_dir / "log", "points").read(batch.first, batch.last)
    return rows is not None and batch.copy().tobytes() == rows.tobytes()


def test_a_group_that_is_ahead_of_its_topic_is_taken_back_to_where_that_was_opened(bus_name, tmp_path):
    for reader in put_back(bus_name, tmp_path):
        reader.close()
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 5)  # before anybody joins
        with member(bus_name) as one, member(bus_name) as two:
            assert (one.stats.acknowledged, stored(tmp_path)) == (10, 10)
            with pytest.raises(TimeoutError, match="group has acknowledged up to 10"):
                writer["points"].wait(11, acknowledged_by=["group"], timeout=0.05)
            publish(writer["points"], 15)
            take(two, 11, 20)  # who has found it is told, and nobody else
            with pytest.raises(BusError, match=LOST):
                one.poll()
            take(one, 21, 30)


def test_members_that_live_on_take_their_group_back_and_hand_out_nothing_that_is_no_more(bus_name, tmp_path):
    one, two = put_back(bus_name, tmp_path, reopen=True)
    with one, two, open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 5)
        with pytest.raises(BusError, match=LOST):
            one.take(TIMEOUT_S)
        assert (one.position, one.stats.acknowledged) == (10, 10)
        batch = two.take(TIMEOUT_S)
        assert (batch.first, batch.last) == (11, 15)
        assert is_of_the_log(tmp_path, batch)
        two.ack(batch)
        publish(writer["points"], 5)
        take(one, 16, 20)
        one.ack_to(20)
        assert one.stats.acknowledged == 20


def test_a_member_that_finds_the_new_ring_late_does_not_take_its_group_back_again(bus_name, tmp_path):
    one, two = put_back(bus_name, tmp_path, reopen=True)
    with one, two, open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 5)
        with pytest.raises(BusError, match=LOST):
            one.take(TIMEOUT_S)
        one.ack(one.take(TIMEOUT_S))
        publish(writer["points"], 5)
        take(two, 16, 20)
        assert two.stats.acknowledged == 15


def test_a_member_that_ends_with_its_writer_takes_its_group_back_as_well(bus_name, tmp_path):
    one, two = put_back(bus_name, tmp_path)
    with one, two, open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 15)  # more than the group was given
        with pytest.raises(BusError, match=LOST):
            one.take(TIMEOUT_S)
        for reader in (one, two):
            assert reader.take(TIMEOUT_S) is None
            assert reader.ended
        with member(bus_name) as three:
            take(three, 11, 20)
            take(three, 21, 25)


def test_a_group_whose_state_is_ahead_is_taken_back_by_a_running_member(bus_name, tmp_path):
    """As where somebody puts back the positions."""
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as one:
        publish(writer["points"], 10)
        one.ack(one.take(TIMEOUT_S))
        one._file.change(lambda group: setattr(group, "next", 500))
        with pytest.raises(BusError, match=r"was given rows up to 499, .* ended at 10"):
            one.take(TIMEOUT_S)
        publish(writer["points"], 10)
        take(one, 11, 20)


def test_a_group_may_begin_with_a_sequence_that_is_still_to_come(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
        with member(bus_name, start=25) as one, member(bus_name, start=25) as two:
            assert one.poll() is two.poll() is None
            publish(writer["points"], 20)
            take(one, 25, 30)


@pytest.mark.parametrize("start", ["latest", "earliest", 15])
def test_a_group_that_waits_for_its_first_sequence_does_so_whoever_joins_it(bus_name, tmp_path, start):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
        with member(bus_name, start=25) as one, member(bus_name, start=start) as two:
            assert two.poll() is one.poll() is None
            publish(writer["points"], 20)
            take(two, 25, 30)


@pytest.mark.parametrize("kept", [10, 20])
def test_a_group_that_waits_for_its_first_sequence_does_so_when_its_topic_is_opened_again(bus_name, tmp_path, kept):
    """With as much as before, or with less."""
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], kept)
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    with open_writer(bus_name, tmp_path) as writer:
        one = member(bus_name, start=25, reopen=True)
        publish(writer["points"], 20 - kept)
        assert one.poll() is None
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "copy").rename(tmp_path / "log")
    with one, open_writer(bus_name, tmp_path) as writer, member(bus_name):
        publish(writer["points"], 3)
        assert one.take(0.1) is None
        publish(writer["points"], 27 - kept)
        take(one, 25, 30)


def test_a_group_that_began_where_its_topic_ended_is_taken_back_with_that_though_it_was_given_nothing(
    bus_name, tmp_path
):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
        member(bus_name, start="latest").close()
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "copy").rename(tmp_path / "log")
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as one:
        publish(writer["points"], 5)
        with pytest.raises(BusError, match=LOST):
            one.poll()
        take(one, 11, 15)


def apply(writer: Writer, first: int, last: int) -> None:
    """Apply a leader's rows, which are replicated then."""
    assert writer.replicating.apply("pairs", row_bytes(PAIRS, first, last - first + 1)) == last - first + 1
    writer.replicating.raise_replicated("pairs", last)
    wait_until(lambda: attach(f"{writer.bus}/pairs").watermarks().replicated == last, TIMEOUT_S)


def test_a_host_that_is_behind_its_group_takes_nothing_back_and_goes_on_when_it_has_caught_up(bus_name, tmp_path):
    """Not when its writer is opened again meanwhile, either."""
    with open_replicated(f"{bus_name}a", tmp_path / "a") as writer:
        apply(writer, 1, 500)
        with Acknowledged(f"{bus_name}a/pairs", "group", start=1) as one:
            one.ack(one.take(TIMEOUT_S))
            assert one.stats.acknowledged == 500
    shutil.copytree(tmp_path / "a" / "positions", tmp_path / "b" / "positions")
    with open_replicated(f"{bus_name}b", tmp_path / "b") as writer:
        apply(writer, 1, 480)
        one = Acknowledged(f"{bus_name}b/pairs", "group", start=1, reopen=True)
        assert one.poll() is None
    with one, open_replicated(f"{bus_name}b", tmp_path / "b", {"pairs": 480}) as writer:
        assert one.take(0.1) is None
        apply(writer, 481, 510)
        batch = take_from(one, 501)
        assert (batch.last, one.stats.acknowledged) == (510, 500)


def open_cut(bus: str, data_dir: Path, kept: int = 0) -> Writer:
    """A replicated bus whose ring has room for 128 rows: new, with 150 of them that are not replicated; or opened again without
    those behind `kept`, and with others up to 160."""
    if kept:
        assert cut_tail(data_dir, {"pairs": kept}).row_count == 150 - kept
    writer = open_replicated(bus, data_dir, {"pairs": kept}, slots=128)
    for first, last in ((kept + 1, 160),) if kept else ((1, 75), (76, 150)):
        count = last - first + 1
        assert writer.replicating.apply("pairs", row_bytes(PAIRS, first, count)) == count
        wait_until(lambda last=last: attach(f"{bus}/pairs").watermarks().logged == last, TIMEOUT_S)
    return writer


def hasty(bus: str, **settings) -> Acknowledged:
    """A member that reads what is not replicated yet."""
    return Acknowledged(f"{bus}/pairs", "group", start=100, follow="published", **settings)


def take_from(reader: Acknowledged, first: int) -> Batch:
    """The next batch, which begins there and was never handed out before."""
    batch = reader.take(TIMEOUT_S)
    assert batch is not None
    assert (batch.first, batch.deliveries) == (first, 1)
    return batch


def test_a_group_misses_nothing_of_a_topic_that_is_opened_with_less_and_has_more_by_then(bus_name, tmp_path):
    with open_cut(bus_name, tmp_path) as writer:
        one = hasty(bus_name)
        for first in (100, 128):  # a batch ends where the ring does
            one.ack(take_from(one, first))
        writer.close_to_cut({"pairs": 110})
    with one, open_cut(bus_name, tmp_path, 110):
        with pytest.raises(BusError, match="ended at 110"):
            one.take(TIMEOUT_S)
        assert one.stats.acknowledged == 110
        take_from(one, 111)


def test_a_member_that_learns_of_lost_rows_while_it_reads_what_it_was_given_takes_its_group_back(bus_name, tmp_path):
    with open_cut(bus_name, tmp_path) as writer:
        one, two = hasty(bus_name, batch_rows=31), hasty(bus_name)
        assert take_from(one, 100).last == 127  # and it was given the rows up to 130
        two.ack(take_from(two, 131))
        writer.close_to_cut({"pairs": 110})
    with one, two, open_cut(bus_name, tmp_path, 110):
        with pytest.raises(BusError, match=r"had read up to 127, .* ended at 110"):
            one.poll()
        seen = 110
        while seen < 160:
            seen = take_from(one, seen + 1).last


def test_a_member_that_has_read_nothing_of_what_was_lost_takes_back_what_the_others_have(bus_name, tmp_path):
    with open_cut(bus_name, tmp_path) as writer:
        one, two = hasty(bus_name, batch_rows=31), hasty(bus_name)
        assert take_from(one, 100).last == 127  # and it was given the rows up to 130
        two.ack(take_from(two, 131))
        writer.close_to_cut({"pairs": 128})
        assert one.take(TIMEOUT_S).last == 128
    with one, two, open_cut(bus_name, tmp_path, 128):
        with pytest.raises(BusError, match=r"was given rows up to 150, .* ended at 128"):
            one.poll()
        assert take_from(one, 129).last == 159


# --- what is on the disk ----------------------------------------------------------------------------------------------------


def test_what_was_settled_is_on_the_disk_when_the_last_member_leaves(bus_name, tmp_path):
    folder = tmp_path / "positions" / "points" / "group"
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 30)
        with member(bus_name) as one:
            for _ in range(3):
                batch = one.take(TIMEOUT_S)
                if batch.first != 11:
                    one.ack(batch)
        for path in folder.glob("live.*"):
            path.write_bytes(os.urandom(8192))  # a power cut may have left anything of it
        assert read_position(folder).sequence == 10
        with member(bus_name) as one:
            take(one, 11, 20, 2)
            assert one.poll() is None
            one.ack_to(20)
            assert one.stats.acknowledged == 30


def test_after_a_restart_of_the_machine_what_was_kept_counts_and_nobody_is_a_member(bus_name, tmp_path):
    folder = tmp_path / "positions" / "points" / "group"
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 30)
        lost = member(bus_name)
        take(lost, 1, 10)
        live, kept = shared_by_group(folder, LIVE), shared_by_group(folder, KEPT)
        wait_until(lambda: kept.read() == live.read(), TIMEOUT_S)
        lost.ack_to(10)
        wait_until(lambda: kept.read() == live.read(), TIMEOUT_S)
        take(lost, 11, 20)
        wait_until(lambda: kept.read() == live.read(), TIMEOUT_S)

        def of_another_boot(payload: bytes | None) -> bytes:
            assert payload is not None
            return replace(Position.decode(payload, folder), boot=bytes(16)).encode()

        kept.change(of_another_boot)
        live.change(
            lambda payload: Position(KIND_GROUP, 7, 999, b"of a group that went on a little", bytes(16)).encode()
        )
        live.close()
        kept.close()
        assert read_position(folder).sequence == 10
        with member(bus_name) as one:
            take(one, 11, 20, 2)
            take(one, 21, 30)
        lost.close()


def test_a_change_whose_write_takes_long_is_kept_as_well(tmp_path, monkeypatch):
    write = SlotFile.write

    def write_slowly(file: SlotFile, payload: bytes, *, sync: bool) -> None:
        if not sync:
            time.sleep(2 * KEEP_S)  # the keeping thread has its turn before the change is there
        write(file, payload, sync=sync)

    file = GroupFile(tmp_path, 7, 5, lambda position: None)
    file.change(lambda group: group.join(1, 1))
    monkeypatch.setattr(SlotFile, "write", write_slowly)
    file.change(lambda group: group.join(2, 2))
    live, kept = shared_by_group(tmp_path, LIVE), shared_by_group(tmp_path, KEPT)
    wait_until(lambda: kept.read() == live.read(), TIMEOUT_S)
    file.close()


def test_what_the_disk_refuses_is_told(bus_name, tmp_path, monkeypatch):
    with open_writer(bus_name, tmp_path) as writer:
        one = member(bus_name)
        publish(writer["points"], 30)
        one.ack(one.take(TIMEOUT_S))
        folder = tmp_path / "positions" / "points" / "group"
        live, kept = shared_by_group(folder, LIVE), shared_by_group(folder, KEPT)
        wait_until(lambda: kept.read() == live.read(), TIMEOUT_S)  # nobody writes there meanwhile
        shutil.rmtree(tmp_path / "positions")

        def fails() -> bool:
            batch = one.poll()
            if batch is not None:
                one.ack(batch)
            return False

        with pytest.raises((BusError, FileNotFoundError), match="No such file"):
            wait_until(fails, TIMEOUT_S)
        with pytest.raises((BusError, FileNotFoundError), match="No such file"):
            one.close()


def test_a_new_state_of_a_group_begins_where_it_was_told(tmp_path):
    file = GroupFile(tmp_path, 7, 5, lambda position: None)
    assert file.change(lambda group: (group.next, group.floor, group.ranges)) == (5, 4, [])
    file.close()


# --- waiting for acknowledgement --------------------------------------------------------------------------------------------


def test_the_publisher_waits_until_all_have_acknowledged(bus_name, tmp_path):
    with (
        open_writer(bus_name, tmp_path) as writer,
        member(bus_name, "risk") as risk,
        Resumable(f"{bus_name}/points", "audit", start=1) as audit,
    ):
        last = publish(writer["points"], 10)
        done = threading.Event()

        def wait() -> None:
            writer["points"].wait(last, acknowledged_by=["risk", "audit"], timeout=TIMEOUT_S)
            done.set()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        risk.ack(risk.take(TIMEOUT_S))
        assert audit.take(TIMEOUT_S).last == last
        with pytest.raises(TimeoutError, match="audit has acknowledged up to 0"):
            writer["points"].wait(last, acknowledged_by=["risk", "audit"], timeout=0.05)
        assert not done.is_set()
        audit.commit()
        thread.join(TIMEOUT_S)
        assert done.is_set()
        wait_acknowledged(f"{bus_name}/points", last, ["risk", "audit"], TIMEOUT_S)


def test_who_has_not_acknowledged_is_named_with_where_it_stands_and_whether_it_runs(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name, "risk") as risk:
        last = publish(writer["points"], 20)
        risk.ack(risk.take(TIMEOUT_S))
        with pytest.raises(TimeoutError) as raised:
            writer["points"].wait(last, "published", 0.05, acknowledged_by=["risk", "audit"])
        text = str(raised.value)
        assert f"risk has acknowledged up to 10 (process {os.getpid()})" in text
        assert "audit has acknowledged up to 0 (it is not running)" in text


def test_what_was_acknowledged_counts_when_nobody_runs_any_more(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        last = publish(writer["points"], 10)
        with member(bus_name, "risk") as risk:
            risk.ack(risk.take(TIMEOUT_S))
        with Resumable(f"{bus_name}/points", "audit", start=1) as audit:
            audit.take(TIMEOUT_S)
            audit.commit()
        writer["points"].wait(last, acknowledged_by=["risk", "audit"], timeout=TIMEOUT_S)


def test_the_members_of_a_group_acknowledge_together(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, member(bus_name) as one, member(bus_name) as two:
        last = publish(writer["points"], 20)
        first, second = one.take(TIMEOUT_S), two.take(TIMEOUT_S)
        two.ack(second)
        with pytest.raises(TimeoutError, match="up to 0"):
            writer["points"].wait(last, acknowledged_by=["group"], timeout=0.05)
        one.ack(first)
        writer["points"].wait(last, acknowledged_by=["group"], timeout=TIMEOUT_S)


def test_waiting_for_what_is_not_published_is_refused(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        with pytest.raises(ValueError, match="sequence 1 is not published yet"):
            writer["points"].wait(1, acknowledged_by=["risk"])
        publish(writer["points"], 1)
        with pytest.raises(ValueError, match="letters, digits"):
            writer["points"].wait(1, acknowledged_by=["../risk"])


def test_positions_that_cannot_be_read_are_told(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 1)
        with Resumable(f"{bus_name}/points", "audit", start=1) as audit:
            audit.sync(TIMEOUT_S)
        path = tmp_path / "positions" / "points" / "audit" / "position"
        path.write_bytes(np.random.default_rng(7).bytes(8192))
        with pytest.raises(TimeoutError, match="neither of its two slots"):
            writer["points"].wait(1, acknowledged_by=["audit"], timeout=0.05)


def test_a_lanes_publisher_waits_for_acknowledgement_too(bus_name, tmp_path):
    with (
        Writer(bus_name, [POINTS], data_dir=tmp_path, slots=1024, lanes=True),
        open_lane(f"{bus_name}/points") as lane,
        Acknowledged(f"{bus_name}/points", "risk", start="earliest") as group,
    ):
        sequence = lane.publish(1, 2, b"x")
        with pytest.raises(TimeoutError, match="risk has acknowledged up to 0"):
            lane.wait(sequence, acknowledged_by=["risk"], timeout=0.05)
        batch = group.take(TIMEOUT_S)
        assert batch is not None
        group.ack(batch)
        lane.wait(sequence, "durable", TIMEOUT_S, acknowledged_by=["risk"])
        assert group.stats.acknowledged == 1
