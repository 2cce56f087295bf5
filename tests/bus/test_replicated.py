"""A bus that other hosts hold as well: following a leader elsewhere, leading here, and what readers and publishers see of it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console
from ringmain.bus import BusError, NotLeader, Writer, attach, open_lane
from ringmain.bus.observing import Observer
from ringmain.storage import FormatMismatch, Log, LogReader, Schema, StoreSettings
from ringmain.storage.log_files import list_files
from ringmain.storage.tree_writer import TreeWriter
from ringmain.subscribers import Acknowledged, Delayed, Filtered, Historical, RealTime, Resumable
from ringmain.tools.inspecting import print_bus
from support.children import TIMEOUT_S, Children
from support.logs import FILE_BYTES, PAIRS, POINTS, check_rows, make_rows, wait_until
from support.replicas import LOG_ID, apply, open_replicated, read_up_to, row_bytes


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


# --- following ----------------------------------------------------------------------------------------------------------


def test_applied_rows_keep_their_stamps_in_ring_and_log(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path, schemas=[PAIRS, POINTS]) as writer:
        reader = RealTime(f"{bus_name}/points", start="earliest")
        apply(writer, POINTS, 1, 500)
        apply(writer, POINTS, 501, 500)
        check_rows(POINTS, read_up_to(reader, 1000, TIMEOUT_S), 1)
    log = LogReader(tmp_path / "log", "points")
    assert log.log_id == LOG_ID
    rows = log.read(1, rows_max=1000)
    assert rows is not None
    assert rows.tobytes() == row_bytes(POINTS, 1, len(rows))


def test_rows_that_do_not_go_on_where_the_topic_ends_are_refused_whole(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path) as writer:
        apply(writer, PAIRS, 1, 10)
        broken = make_rows(PAIRS, 11, 10)
        broken["sequence"][7] += 1
        for rows in (row_bytes(PAIRS, 12, 3), row_bytes(PAIRS, 10, 3), broken.tobytes(), row_bytes(PAIRS, 11, 3)[:-1]):
            with pytest.raises(ValueError, match=r"(is|are) expected"):
                writer.replicating.apply("pairs", rows)
        assert attach(f"{bus_name}/pairs").watermarks().published == 10


def test_applying_takes_what_there_is_room_for_and_never_waits(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path, slots=64) as writer:
        reader = RealTime(f"{bus_name}/pairs", start="earliest", reliable=True)
        assert reader.poll() is None
        rows = row_bytes(PAIRS, 1, 200)
        assert writer.replicating.apply("pairs", rows) == 64
        assert writer.replicating.apply("pairs", rows[64 * PAIRS.row_bytes :]) == 0
        writer.replicating.raise_replicated("pairs", 64)
        read_up_to(reader, 64, TIMEOUT_S)
        assert reader.poll() is None  # it is done with them
        wait_until(lambda: attach(f"{bus_name}/pairs").watermarks().logged == 64)
        assert writer.replicating.apply("pairs", rows[64 * PAIRS.row_bytes :]) == 64


def test_readers_of_every_kind_see_only_what_is_replicated_unless_told_otherwise(bus_name, tmp_path):
    address = f"{bus_name}/pairs"
    with open_replicated(bus_name, tmp_path) as writer:
        apply(writer, PAIRS, 1, 10)
        writer.replicating.apply("pairs", row_bytes(PAIRS, 11, 10))
        marks = attach(address).watermarks()
        assert (marks.published, marks.replicated) == (20, 10)
        readers = [
            RealTime(address, start="earliest"),
            Historical(address),
            Historical(address, live=True),
            Delayed(address, 0.001, start=1),
            Filtered(RealTime(address, start="earliest"), where=lambda rows: rows["left"] == rows["left"]),
            Resumable(address, "one", start="earliest"),
            Acknowledged(address, "group", start="earliest"),
        ]
        for reader in readers:
            batch = reader.take(TIMEOUT_S)
            assert batch is not None
            assert batch.last == 10, reader
            assert reader.poll() is None, reader
        assert RealTime(address).position == 10
        told = RealTime(address, start="earliest", follow="published")
        assert len(read_up_to(told, 20, TIMEOUT_S)) == 20
        for reader in readers:
            reader.close()


def test_replicated_never_falls_and_never_passes_what_is_here(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path) as writer:
        apply(writer, PAIRS, 1, 10)
        for sequence, expected in ((5, 10), (11, 10)):
            writer.replicating.raise_replicated("pairs", sequence)
            assert attach(f"{bus_name}/pairs").watermarks().replicated == expected


def test_a_reader_in_another_process_is_woken_when_rows_are_replicated(bus_name, tmp_path, children):
    child = children.start()
    with open_replicated(bus_name, tmp_path) as writer:
        child.run("reader = RealTime(address)", address=f"{bus_name}/pairs")
        writer.replicating.apply("pairs", row_bytes(PAIRS, 1, 5))
        child.begin("batch = reader.take(30.0)")
        wait_until(child.is_blocked)
        writer.replicating.raise_replicated("pairs", 3)
        assert child.ask("(batch.first, batch.last)") == (1, 3)


def test_what_a_bus_is_on_its_own_has_nothing_replicated(bus_name, tmp_path):
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        last = writer["pairs"].publish(1)
        with pytest.raises(ValueError, match="nothing is replicated"):
            writer["pairs"].wait(last, "replicated")
        with pytest.raises(ValueError, match="nothing is replicated"):
            RealTime(f"{bus_name}/pairs", follow="replicated")
        with pytest.raises(ValueError, match="is not replicated"):
            _ = writer.replicating


def test_a_log_of_another_cluster_is_refused(bus_name, tmp_path):
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        writer["pairs"].publish(1)
    with pytest.raises(FormatMismatch, match="log_id"):
        open_replicated(bus_name, tmp_path)


def test_slow_readers_cannot_be_dropped_where_rows_wait_for_other_hosts(bus_name, tmp_path):
    with pytest.raises(ValueError, match="replication"):
        open_replicated(bus_name, tmp_path, full="drop")


# --- leading ------------------------------------------------------------------------------------------------------------


def test_who_publishes_where_another_node_leads_is_told_at_once_which(bus_name, tmp_path, children):
    child = children.start()
    address = f"{bus_name}/pairs"
    with open_replicated(bus_name, tmp_path) as writer:
        for leader, words in (("", "no node is known"), ("north", "'north'")):
            if leader:
                writer.replicating.follow(leader)
            with pytest.raises(NotLeader, match=words) as refused:
                _ = writer["pairs"]
            assert (refused.value.bus, refused.value.leader) == (bus_name, leader)
            with pytest.raises(NotLeader, match=words) as refused:
                child.run("open_lane(address, open_timeout=20.0)", address=address)
            assert pickle.loads(pickle.dumps(refused.value)).leader == leader


def test_a_lane_is_there_while_the_node_leads_and_its_publisher_is_told_when_it_does_not(bus_name, tmp_path, children):
    child = children.start()
    with open_replicated(bus_name, tmp_path) as writer:
        apply(writer, PAIRS, 1, 10)
        reader = RealTime(f"{bus_name}/pairs", follow="published")
        writer.replicating.lead()
        child.run("lane = open_lane(address); last = lane.publish_batch(rows)", address=f"{bus_name}/pairs",
                  rows=make_rows(PAIRS, 1, 100))  # fmt: skip
        rows = read_up_to(reader, 110, TIMEOUT_S)
        assert (rows["left"] == make_rows(PAIRS, 1, 100)["left"]).all()
        assert (np.diff(rows["timestamp_ns"]) >= 0).all()

        child.begin("lane.wait(last, 'replicated')")
        wait_until(child.is_blocked)
        writer.replicating.raise_replicated("pairs", 110)
        child.settle()

        last = child.ask("lane.publish(7)")
        child.begin("lane.wait(last + 1)")
        wait_until(child.is_blocked)
        writer.replicating.follow("north")
        with pytest.raises(NotLeader, match=r"north.*up to 101"):
            child.settle()
        with pytest.raises(NotLeader, match="north"):
            child.run("lane.publish(8)")
        assert last == 101
        assert attach(f"{bus_name}/pairs").watermarks().published == 111  # it was taken in; it is not replicated

        apply(writer, PAIRS, 112, 3)
        writer.replicating.lead()
        with pytest.raises(NotLeader, match=r"leads again.* up to 101.*all up to 100 is replicated"):
            child.run("lane.publish(9)")
        assert child.ask("(lane := open_lane(address)).publish(9)") == 1
        rows = read_up_to(reader, 115, TIMEOUT_S)
        assert rows["left"][[0, -1]].tolist() == [7, 9]
        writer.replicating.raise_replicated("pairs", 115)
        child.run("lane.wait(1)")


def test_a_lane_of_the_writers_own_process_goes_through_the_same(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path) as writer:
        writer.replicating.lead()
        topic = writer["pairs"]
        assert topic.publish(1) == 1
        writer.replicating.follow("")
        with pytest.raises(NotLeader):
            topic.publish(2)
        writer.replicating.lead()
        with pytest.raises(NotLeader, match="leads again") as refused:
            topic.publish(3)
        assert pickle.loads(pickle.dumps(refused.value)).again
        assert writer["pairs"].publish(3) == 1
        assert writer["pairs"].publish(4) == 2
        wait_until(lambda: attach(f"{bus_name}/pairs").watermarks().published == 3)


def test_while_lanes_are_held_nothing_is_taken_and_they_end_where_they_are(bus_name, tmp_path):
    with open_replicated(bus_name, tmp_path) as writer:
        writer.replicating.lead()
        topic = writer["pairs"]
        topic.publish_batch(make_rows(PAIRS, 1, 50))
        wait_until(lambda: attach(f"{bus_name}/pairs").watermarks().published == 50)
        writer.replicating.hold(True)
        wait_until(lambda: writer.replicating.holds)
        topic.publish_batch(make_rows(PAIRS, 51, 50))
        writer.replicating.hold(False)
        wait_until(lambda: attach(f"{bus_name}/pairs").watermarks().published == 100)
        writer.replicating.hold(True)
        wait_until(lambda: writer.replicating.holds)
        topic.publish_batch(make_rows(PAIRS, 101, 50))
        writer.replicating.follow("north")
        with pytest.raises(NotLeader, match="up to 100"):
            topic.publish(1)
        assert attach(f"{bus_name}/pairs").watermarks().published == 100


def test_who_waits_in_a_lane_that_was_retired_is_told_what_still_comes_to_be_replicated(bus_name, tmp_path, children):
    child = children.start()
    with open_replicated(bus_name, tmp_path) as writer:
        writer.replicating.lead()
        child.run("lane = open_lane(address)", address=f"{bus_name}/pairs")
        for first, count in ((1, 90), (91, 10)):
            child.run("lane.wait(lane.publish_batch(rows), 'drained', 30)", rows=make_rows(PAIRS, first, count))
        child.begin("lane.wait(90)")
        wait_until(child.is_blocked)
        writer.replicating.retire("north")
        assert attach(f"{bus_name}/pairs").watermarks().published == 100
        writer.replicating.raise_replicated("pairs", 95)
        child.settle()
        child.begin("lane.wait(96)")
        writer.replicating.follow("north")
        with pytest.raises(NotLeader, match="north"):
            child.settle()


@pytest.mark.parametrize("acknowledge", ["sync", "async"])
def test_publishers_wait_for_what_the_bus_acknowledges_by(bus_name, tmp_path, acknowledge):
    with open_replicated(bus_name, tmp_path, acknowledge=acknowledge) as writer:
        writer.replicating.lead()
        topic = writer["pairs"]
        topic.publish(1)
        topic.wait(1, "durable", TIMEOUT_S)
        if acknowledge == "sync":
            with pytest.raises(TimeoutError, match="was not replicated"):
                topic.wait(1, timeout=0.01)
            writer.replicating.raise_replicated("pairs", 1)
        topic.wait(1, timeout=TIMEOUT_S)


def test_a_leader_that_is_cut_off_keeps_its_log_until_the_rows_are_replicated_whatever_its_retention_says(
    bus_name, tmp_path, monkeypatch
):
    turns, keep = [], Log.keep
    monkeypatch.setattr(Log, "keep", lambda log, timeout_s: turns.append(keep(log, timeout_s)))
    wide = Schema("wide", {"value": "S1000"})
    settings = {"schemas": [wide], "slots": 1 << 15, "log_file_bytes": FILE_BYTES, "retention_bytes": 1}
    with open_replicated(bus_name, tmp_path, **settings) as writer:
        writer.replicating.lead()
        last = writer["wide"].publish_batch(np.zeros(4 * FILE_BYTES // wide.row_bytes, wide.payload_dtype))
        writer["wide"].wait(last, "durable", TIMEOUT_S)
        assert list_files(tmp_path / "log")[-1][0] > 4
        seen = len(turns)
        wait_until(lambda: len(turns) > seen + 1, TIMEOUT_S)  # the keeper has looked at all of it
        log = LogReader(tmp_path / "log", "wide")
        assert (log.oldest, log.newest) == (1, last)
        writer.replicating.raise_replicated("wide", last)
        wait_until(lambda: LogReader(tmp_path / "log", "wide").oldest > 1, TIMEOUT_S)


# --- opening again ------------------------------------------------------------------------------------------------------


def test_while_it_opens_what_was_known_to_be_replicated_goes_into_tables_and_does_not_fill_the_memory(
    bus_name, tmp_path, monkeypatch
):
    left, take_back = [], TreeWriter.take_back

    def look_behind(self, memtables):
        take_back(self, memtables)
        left.append((len(self.immutables), self.tree.dropped_through))

    with open_replicated(bus_name, tmp_path) as writer:
        apply(writer, PAIRS, 1, 20_000)
    monkeypatch.setattr(TreeWriter, "take_back", look_behind)
    small = StoreSettings(memtable_bytes=1 << 16, immutable_max=1, snapshot_interval=None)
    for ends in ({}, {"pairs": 20_000}):  # no table is made of what may still be cut off
        with open_replicated(bus_name, tmp_path, ends, store=small):
            waiting_count, flushed = left.pop()
            assert (waiting_count < 3, flushed > 10_000) == (bool(ends), bool(ends))


def test_when_the_bus_is_closed_to_be_cut_its_readers_wait_and_read_no_further_than_what_stays(bus_name, tmp_path):
    address = f"{bus_name}/pairs"
    writer = open_replicated(bus_name, tmp_path)
    try:
        apply(writer, PAIRS, 1, 100)
        writer.replicating.apply("pairs", row_bytes(PAIRS, 101, 20))
        careful = RealTime(address, start="earliest", reliable=True)
        assert len(read_up_to(careful, 100, TIMEOUT_S)) == 100
        hasty = RealTime(address, start="earliest", follow="published", batch_rows=23)
        read_up_to(hasty, 115, TIMEOUT_S)
        writer.close_to_cut({"pairs": 100})
        for reader, position in ((careful, 100), (hasty, 115)):
            assert reader.poll() is None
            assert (reader.position, reader.ended) == (position, False)
        assert LogReader(tmp_path / "log", "pairs").newest == 120
    finally:
        writer.close()


# --- looking ------------------------------------------------------------------------------------------------------------


def test_an_observer_sees_the_role_and_lags_behind_what_each_reader_follows(bus_name, tmp_path):
    address = f"{bus_name}/pairs"
    with open_replicated(bus_name, tmp_path) as writer:
        writer.replicating.follow("north")
        apply(writer, PAIRS, 1, 10)
        writer.replicating.apply("pairs", row_bytes(PAIRS, 11, 10))
        careful, hasty = (
            RealTime(address, name="careful"),
            RealTime(address, name="hasty", start=16, follow="published"),
        )
        bus = Observer().look(bus_name).buses[0]
        assert (bus.writer.role, bus.writer.leader) == ("follows", "north")
        (topic,) = bus.topics
        assert (topic.published, topic.replicated) == (20, 10)
        found = {reader.name: (reader.follow, reader.lag_count) for reader in topic.readers}
        assert found == {"careful": ("replicated", 0), "hasty": ("published", 5)}
        console = Console(file=io.StringIO(), width=120)
        print_bus(console, bus)
        printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "follows north" in printed
        assert "replicated" in printed
        writer.replicating.lead()
        assert Observer().look(bus_name).buses[0].writer.role == "leads"
        careful.close()
        hasty.close()
    with Writer(f"{bus_name}", [PAIRS]) as alone:
        assert alone["pairs"].publish(1) == 1
        facts = Observer().look(bus_name).buses[0]
        assert (facts.writer.role, facts.topics[0].replicated) == (None, None)
        with pytest.raises(BusError):
            open_lane(address)
