"""Reading on under a name: where it begins, what counts as done with, and what is stored together with the position."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from ringmain.bus import AlreadyRunning, BusError, PositionRefused, Writer, attach
from ringmain.bus._segment import list_readers
from ringmain.bus.positions import read_position
from ringmain.bus.slot_file import SlotFile, SlotsDamaged
from ringmain.storage import HistoryGone, LogReader, StoreSettings
from ringmain.storage.log_files import list_files
from ringmain.storage.log_tail import cut_tail
from ringmain.subscribers import Resumable
from ringmain.subscribers.position_keeper import Checkpoint, PositionKeeper
from support.children import Child, Children
from support.logs import FILE_BYTES, POINTS, flip, wait_until
from support.replicas import apply as replicate
from support.replicas import open_replicated, read_up_to, row_bytes
from support.streams import TIMEOUT_S, check_batch, publish

SLOTS = 64


class Sum(msgspec.Struct):
    count: int
    values: dict[str, int]


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


def open_writer(bus: str, data_dir: Path, **settings) -> Writer:
    return Writer(bus, [POINTS], **{"data_dir": data_dir, "slots": SLOTS, "log_file_bytes": FILE_BYTES, **settings})


def resume(bus: str, name: str = "me", **settings) -> Resumable:
    return Resumable(f"{bus}/points", name, **settings)


def read(reader: Resumable, last: int) -> None:
    """Read up to the record `last`, which all of it is done with then."""
    expected = reader.position + 1
    while expected <= last:
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        expected = check_batch(batch, expected)
    assert reader.poll() is None


def stored(data_dir: Path, name: str = "me") -> int:
    position = read_position(data_dir / "positions" / "points" / name)
    return position.sequence if position is not None else -1


# --- where it begins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "first"), [("latest", 11), ("earliest", 1), (4, 4)])
def test_start_counts_the_first_time_only(bus_name, tmp_path, start, first):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
        with resume(bus_name, start=start) as reader:
            assert reader.position == first - 1
            publish(writer["points"], 5)
            read(reader, 15)
        publish(writer["points"], 5)
        with resume(bus_name, start=start) as reader:
            assert reader.position == 15
            read(reader, 20)


def test_what_was_published_while_it_was_away_comes_from_the_log(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        with resume(bus_name):
            publish(writer["points"], 3)
        assert stored(tmp_path) == 0  # none of them was handed out
        publish(writer["points"], 20 * SLOTS)
        with resume(bus_name) as reader:
            assert reader.stats.behind == 20 * SLOTS + 3
            read(reader, 20 * SLOTS + 3)
            assert reader.stats.behind == 0


def test_what_the_log_has_given_up_comes_from_the_tables(bus_name, tmp_path):
    store = StoreSettings(memtable_bytes=4 << 20)
    with open_writer(bus_name, tmp_path, store=store, retention_bytes=0) as writer:
        with resume(bus_name) as reader:
            last = publish(writer["points"], 10)
            read(reader, last)
        while last < 300_000:
            last = publish(writer["points"], 30_000)
        writer["points"].wait(last, "indexed", TIMEOUT_S)
        writer.store.snapshot()
        wait_until(lambda: len(list_files(tmp_path / "log")) == 1, TIMEOUT_S)
        assert LogReader(tmp_path / "log", "points").oldest > 11
        with resume(bus_name) as reader:
            read(reader, last)


def test_two_names_do_not_know_of_each_other(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        with resume(bus_name, "one") as one, resume(bus_name, "two") as two:
            publish(writer["points"], 10)
            read(one, 10)
            publish(writer["points"], 10)
            read(two, 20)
        with resume(bus_name, "one") as one, resume(bus_name, "two") as two:
            assert (one.position, two.position) == (10, 20)


def test_it_goes_on_with_the_next_writer(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, resume(bus_name) as reader:
        publish(writer["points"], 10)
        read(reader, 10)
    with open_writer(bus_name, tmp_path) as writer, resume(bus_name) as reader:
        assert reader.position == 10
        publish(writer["points"], 10)
        read(reader, 20)


# --- at least once --------------------------------------------------------------------------------------------------------


def test_a_batch_is_done_with_when_the_next_one_is_asked_for(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        with resume(bus_name, batch_rows=5) as reader:
            publish(writer["points"], 10)
            assert reader.take(TIMEOUT_S).last == 5
            assert reader.take(TIMEOUT_S).last == 10
            assert (reader.position, reader.stats.behind) == (10, 5)
        with resume(bus_name, batch_rows=5) as reader:
            check_batch(reader.take(TIMEOUT_S), 6)


def test_commit_says_so_without_asking_for_more(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        with resume(bus_name) as reader:
            publish(writer["points"], 10)
            assert reader.take(TIMEOUT_S).last == 10
            reader.commit()
            reader.sync(TIMEOUT_S)
            assert (reader.stats.stored, reader.stats.behind) == (10, 0)
        assert stored(tmp_path) == 10


def test_a_killed_one_reads_again_what_it_was_not_done_with_and_nothing_else(bus_name, tmp_path, children):
    with open_writer(bus_name, tmp_path) as writer:
        child = children.start()
        child.run(
            "from ringmain.subscribers import Resumable\n"
            "reader = Resumable(f'{bus}/points', 'me', batch_rows=10, start=1, every=0.001)",
            bus=bus_name,
        )
        publish(writer["points"], 30)
        assert child.ask("[reader.take(30).last for _ in range(2)]") == [10, 20]
        wait_until(lambda: stored(tmp_path) == 10)
        child.kill()
        with resume(bus_name, batch_rows=10) as reader:
            check_batch(reader.take(TIMEOUT_S), 11)


def test_positions_are_stored_by_and_by_while_it_reads_and_while_it_waits(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, resume(bus_name, every=0.001) as reader:
        for count in range(1, 4):
            last = publish(writer["points"], 10)
            read(reader, last)
            wait_until(lambda last=last: stored(tmp_path) == last, TIMEOUT_S)
            assert last == 10 * count


def test_many_rows_are_stored_sooner_and_fewer_are_not(bus_name, tmp_path):
    with (
        open_writer(bus_name, tmp_path) as writer,
        resume(bus_name, every=1e6, every_rows=100) as reader,
        resume(bus_name, "other", every=1e6, every_rows=99) as other,
    ):
        wait_until(lambda: stored(tmp_path) == stored(tmp_path, "other") == 0, TIMEOUT_S)
        for count, before in ((99, 0), (1, 100)):
            last = publish(writer["points"], count)
            writer["points"].wait(last, "durable", TIMEOUT_S)
            read(reader, last)
            read(other, last)
            wait_until(lambda: stored(tmp_path, "other") == 99, TIMEOUT_S)
            wait_until(lambda before=before: stored(tmp_path) == before, TIMEOUT_S)


def test_a_position_is_never_ahead_of_what_the_log_has_on_the_disk(bus_name, tmp_path):
    writer = open_writer(bus_name, tmp_path, sync_interval=3600)
    with writer, resume(bus_name, every=0.001) as reader:
        publish(writer["points"], 10)
        read(reader, 10)
        with pytest.raises(TimeoutError, match="the log is up to 0"):
            reader.sync(0.05)
        assert stored(tmp_path) == 0
        writer.close()  # which syncs
        reader.sync(TIMEOUT_S)
    assert stored(tmp_path) == 10


# --- exactly once ---------------------------------------------------------------------------------------------------------


def test_a_state_is_stored_with_the_position_it_came_of(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 30)
        with resume(bus_name, state=Sum, start=1, batch_rows=10) as reader:
            assert reader.state is None
            batch = reader.take(TIMEOUT_S)
            reader.commit(Sum(batch.last, {"a": 1}))
            assert reader.take(TIMEOUT_S).last == 20
            assert reader.take(TIMEOUT_S).last == 30  # asking for more does not count here
        with resume(bus_name, state=Sum, start=1, batch_rows=10) as reader:
            assert (reader.position, reader.state) == (10, Sum(10, {"a": 1}))
            assert reader.take(TIMEOUT_S).last == 20
            reader.commit(Sum(20, {}))
            reader.take(TIMEOUT_S)
            reader.commit(Sum(30, {"b": 2}))
        with resume(bus_name, state=Sum) as reader:
            assert (reader.position, reader.state) == (30, Sum(30, {"b": 2}))


@pytest.mark.parametrize("size", [0, 1, 4000, 4063, 4064, 100_000])
def test_a_state_may_be_bytes_of_any_size(bus_name, tmp_path, size):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 2)
        with resume(bus_name, state=bytes, start=1, batch_rows=1) as reader:
            for fill in (b"x", b"y"):
                assert reader.take(TIMEOUT_S) is not None
                reader.commit(size * fill)
                reader.sync(TIMEOUT_S)
        with resume(bus_name, state=bytes) as reader:
            assert (reader.position, reader.state) == (2, size * b"y")


def test_a_state_is_stored_although_its_position_was_before(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, resume(bus_name, state=bytes, every=0.001) as reader:
        last = publish(writer["points"], 10)
        read(reader, last)
        for state in (b"one", b"other"):
            reader.commit(state)
            wait_until(lambda state=state: kept_state(tmp_path) == state, TIMEOUT_S)
            time.sleep(0.05)  # and then nothing is awaited but the next one


def kept_state(data_dir: Path) -> bytes | None:
    position = read_position(data_dir / "positions" / "points" / "me")
    return position.body[1:] if position is not None else None


def test_commit_takes_a_state_where_one_is_kept_and_nowhere_else(bus_name, tmp_path):
    with (
        open_writer(bus_name, tmp_path),
        resume(bus_name, "a") as alone,
        resume(bus_name, "b", state=bytes) as with_state,
    ):
        with pytest.raises(ValueError, match="a state is not kept"):
            alone.commit(b"state")
        with pytest.raises(ValueError, match="a state is expected"):
            with_state.commit()


def test_a_state_of_another_type_is_refused(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 1)
        with resume(bus_name, state=dict[str, int], start=1) as reader:
            reader.take(TIMEOUT_S)
            reader.commit({"a": 1})
        with pytest.raises(PositionRefused, match="the stored state is not a Sum"):
            resume(bus_name, state=Sum)
        with resume(bus_name, state=dict[str, int]) as reader:  # the name is free again
            assert reader.state == {"a": 1}


# --- a topic that is opened again with less ---------------------------------------------------------------------------------


def take_back(bus: str, data_dir: Path, reader: Resumable, writer: Writer) -> Writer:
    """Open the topic again with 60 records of 100 that this reader has read; the new writer."""
    writer.close_to_cut({"points": 60})
    assert cut_tail(data_dir, {"points": 60}).row_count == 40
    writer = open_replicated(bus, data_dir, {"points": 60}, [POINTS])
    with pytest.raises(BusError, match=r"had read up to 100.*ended at 60"):
        reader.take(TIMEOUT_S)
    assert reader.position == 60
    return writer


def apply(writer: Writer, first: int, count: int) -> None:
    assert writer.replicating.apply("points", row_bytes(POINTS, first, count)) == count


def test_a_state_is_stored_although_one_of_a_greater_position_was_whose_records_are_no_more(bus_name, tmp_path):
    writer = open_replicated(bus_name, tmp_path, schemas=[POINTS])
    apply(writer, 1, 100)
    with resume(bus_name, start=1, follow="durable", state=bytes) as reader:
        read_up_to(reader, 100, TIMEOUT_S)
        reader.commit(b"of the old ones")
        reader.sync(TIMEOUT_S)
        writer = take_back(bus_name, tmp_path, reader, writer)
        with writer:
            assert (reader.stats.stored, reader.stats.behind) == (100, 0)
            apply(writer, 61, 30)
            read_up_to(reader, 90, TIMEOUT_S)
            reader.commit(b"of the new ones")
            reader.sync(TIMEOUT_S)
            assert (stored(tmp_path), kept_state(tmp_path), reader.stats.stored) == (90, b"of the new ones", 90)
            reader.commit(b"and more of them")
            reader.close()
    assert (stored(tmp_path), kept_state(tmp_path)) == (90, b"and more of them")


def test_a_position_whose_records_are_no_more_is_taken_back_on_the_disk_too(bus_name, tmp_path):
    writer = open_replicated(bus_name, tmp_path, schemas=[POINTS])
    apply(writer, 1, 100)
    with resume(bus_name, start=1, follow="durable") as reader:
        read_up_to(reader, 100, TIMEOUT_S)
        reader.commit()
        reader.sync(TIMEOUT_S)
        with take_back(bus_name, tmp_path, reader, writer):
            reader.sync(TIMEOUT_S)
            assert (stored(tmp_path), reader.stats.stored, reader.stats.behind) == (60, 60, 0)


class Reader:
    """What a keeper asks of a reader."""

    position, safe_position, data_segment = 50, 60, None

    def acknowledge(self, sequence: int) -> None:
        self.acknowledged = sequence


def test_a_state_is_stored_although_newer_ones_come_all_the_time(tmp_path):
    """Each is ahead of the log's last sync when the keeper looks; the one before is not."""

    class Hurried(Reader):
        hurries = True

        @property
        def safe_position(self) -> int:
            newest = keeper._offered.sequence
            if self.hurries:
                keeper.offer(Checkpoint(newest + 1, b"%d" % (newest + 1)))
            return newest - self.hurries

    reader = Hurried()
    keeper = PositionKeeper(tmp_path / "position", 7, None, reader, whole=True, every=0.001, every_rows=None)
    keeper.start()
    try:
        wait_until(lambda: keeper.stored > 60, TIMEOUT_S)
        position = read_position(tmp_path)
        assert position.body == b"\1%d" % position.sequence
    finally:
        reader.hurries = False
        keeper.close()


def test_a_state_that_was_not_stored_when_its_records_were_taken_back_is_never_stored(tmp_path):
    """Not even when the log is as far again, with others."""
    reader = Reader()
    keeper = PositionKeeper(tmp_path / "position", 7, None, reader, whole=True, every=0.001, every_rows=None)
    keeper.start()
    keeper.sync(TIMEOUT_S)
    keeper.offer(Checkpoint(100, b"of the old ones"))
    with pytest.raises(TimeoutError, match="sequence 100 was not stored"):
        keeper.sync(0.05)
    keeper.take_back(60)
    keeper.sync(TIMEOUT_S)  # there is nothing to wait for
    keeper.offer(Checkpoint(130, b"of the new ones"))
    reader.safe_position = 120
    with pytest.raises(TimeoutError, match="sequence 130 was not stored"):
        keeper.sync(0.1)
    assert (keeper.stored, read_position(tmp_path).sequence) == (50, 50)
    reader.safe_position = 130
    keeper.sync(TIMEOUT_S)
    assert read_position(tmp_path).body == b"\1of the new ones"
    keeper.close()


@pytest.mark.parametrize("closes", [False, True])
def test_a_state_that_waits_to_become_safe_is_stored_though_a_later_one_is_taken_back(tmp_path, closes):
    reader = Reader()
    keeper = PositionKeeper(tmp_path / "position", 7, None, reader, whole=True, every=0.001, every_rows=None)
    keeper.start()
    keeper.sync(TIMEOUT_S)
    keeper.offer(Checkpoint(70, b"of what is kept"))
    wait_until(lambda: keeper._held is not None, TIMEOUT_S)
    keeper.offer(Checkpoint(100, b"of what is lost"))
    keeper.take_back(80)
    assert keeper.done == 70
    reader.safe_position = 80
    if not closes:
        keeper.sync(TIMEOUT_S)
    keeper.close()
    position = read_position(tmp_path)
    assert (position.sequence, position.body) == (70, b"\1of what is kept")


def test_a_state_that_was_taken_back_does_not_come_again_with_the_next_that_is(tmp_path):
    keeper = PositionKeeper(tmp_path / "position", 7, None, Reader(), whole=True, every=1, every_rows=None)
    keeper.offer(Checkpoint(100, b"of the old ones"))
    assert keeper._due() is None  # it waits to become safe
    keeper.take_back(60)
    keeper.offer(Checkpoint(130, b"of the new ones"))
    keeper.take_back(120)
    assert keeper._covers(keeper._wanted())  # nothing is to be stored


def test_a_state_that_is_offered_while_one_of_a_greater_position_is_being_stored_is_stored_after_it(
    tmp_path, monkeypatch
):
    write, writing, go_on = SlotFile.write, threading.Event(), threading.Event()

    def write_slowly(file: SlotFile, payload: bytes, *, sync: bool) -> None:
        writing.set()
        assert go_on.wait(TIMEOUT_S)
        write(file, payload, sync=sync)

    reader = Reader()
    reader.safe_position = 100
    keeper = PositionKeeper(tmp_path / "position", 7, None, reader, whole=True, every=0.001, every_rows=None)
    keeper.start()
    keeper.sync(TIMEOUT_S)
    monkeypatch.setattr(SlotFile, "write", write_slowly)
    keeper.offer(Checkpoint(100, b"of the old ones"))
    assert writing.wait(TIMEOUT_S)
    keeper.take_back(60)
    keeper.offer(Checkpoint(90, b"of the new ones"))
    go_on.set()
    keeper.sync(TIMEOUT_S)
    assert (keeper.stored, read_position(tmp_path).body) == (90, b"\1of the new ones")
    keeper.close()


# --- one process a name -----------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_told_who_has_the_name(bus_name, tmp_path, children):
    with open_writer(bus_name, tmp_path):
        child = children.start()
        child.run("from ringmain.subscribers import Resumable\nreader = Resumable(f'{bus}/points', 'me')", bus=bus_name)
        with pytest.raises(AlreadyRunning, match=f"process {child.pid}") as raised:
            resume(bus_name)
        assert (raised.value.name, raised.value.pid) == ("me", child.pid)
        child.pause()  # it may go on any time
        with pytest.raises(AlreadyRunning):
            resume(bus_name)
        child.kill()
        resume(bus_name).close()


def test_a_forked_child_does_not_hold_the_name(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path):
        reader = resume(bus_name)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,), daemon=True)
        child.start()
        try:
            reader.close()
            resume(bus_name).close()
        finally:
            child.kill()
            child.join()


# --- what does not fit ------------------------------------------------------------------------------------------------------


def test_a_position_of_another_log_is_refused(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path / "a") as writer, resume(bus_name) as reader:
        publish(writer["points"], 3)
        read(reader, 3)
    shutil.copytree(tmp_path / "a" / "positions", tmp_path / "b" / "positions")
    with open_writer(bus_name, tmp_path / "b"), pytest.raises(PositionRefused, match=r"belongs to log [0-9a-f]{16}"):
        resume(bus_name)


def test_it_ends_when_the_bus_goes_on_with_another_log(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path / "a") as writer:
        reader = resume(bus_name, reopen=True)
        publish(writer["points"], 3)
        read(reader, 3)
    with open_writer(bus_name, tmp_path / "b") as writer, reader:
        publish(writer["points"], 5)
        with pytest.raises(PositionRefused, match="another log"):
            reader.take(TIMEOUT_S)
        assert reader.ended
    assert stored(tmp_path / "a") == 3


@pytest.mark.parametrize("state", [None, bytes])
def test_a_position_beyond_the_end_of_the_topic_is_refused_or_skipped_and_its_state_kept(bus_name, tmp_path, state):
    states = [b"of 20"] if state is not None else []
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    with open_writer(bus_name, tmp_path) as writer, resume(bus_name, state=state) as reader:
        publish(writer["points"], 10)
        read(reader, 20)
        reader.commit(*states)
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "copy").rename(tmp_path / "log")
    with open_writer(bus_name, tmp_path) as writer:
        with pytest.raises(PositionRefused, match=r"the stored position is 20, but .* ends at 10"):
            resume(bus_name, state=state)
        with resume(bus_name, gap="skip", state=state) as reader:
            assert (reader.position, [reader.state]) == (10, states or [None])
            publish(writer["points"], 1)
            read(reader, 11)
            reader.commit(*states)
        assert stored(tmp_path) == 11


def test_records_that_are_gone_are_an_error_or_skipped(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, retention_bytes=1) as writer:
        with resume(bus_name) as reader:
            publish(writer["points"], 10)
            read(reader, 10)
        while LogReader(tmp_path / "log", "points").oldest <= 11:
            publish(writer["points"], 20_000)
            writer["points"].wait(writer["points"].watermarks.published, "durable", TIMEOUT_S)
        with resume(bus_name) as reader, pytest.raises(HistoryGone, match="sequence 11 is no longer kept"):
            reader.take(TIMEOUT_S)
        with resume(bus_name, gap="skip") as reader:
            batch = reader.take(TIMEOUT_S)
            assert batch.lost == batch.first - 11 > 0


def test_damage_is_told_with_the_file(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, resume(bus_name) as reader:
        publish(writer["points"], 3)
        read(reader, 3)
    path = tmp_path / "positions" / "points" / "me" / "position"
    for at in (20, 4096 + 20):
        flip(path, at)
    with open_writer(bus_name, tmp_path):
        with pytest.raises(SlotsDamaged, match=str(path)):
            resume(bus_name)
        shutil.rmtree(path.parent)
        with resume(bus_name) as reader:
            assert reader.position == 3


def test_what_the_disk_refuses_stops_the_reading(bus_name, tmp_path, monkeypatch):
    with open_writer(bus_name, tmp_path) as writer:
        reader = resume(bus_name, every=0.001)
        reader.sync(TIMEOUT_S)
        monkeypatch.setattr(SlotFile, "write", refuse)
        publish(writer["points"], 1)
        read(reader, 1)
        with pytest.raises(BusError, match=r"the position is not stored any more: .*No space left"):
            reader.sync(TIMEOUT_S)
        publish(writer["points"], 1)
        reader.take(TIMEOUT_S)
        with pytest.raises(BusError, match="the position is not stored any more"):
            reader.poll()
        with pytest.raises(BusError, match="the position is not stored any more"):
            reader.close()
        resume(bus_name).close()


def test_what_the_disk_refuses_while_the_reader_goes_on_stops_it_too(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        reader = resume(bus_name, every=0.5)
        for last in (1, 2):  # the second one is stored half a second after the first, by then without the interpreter
            writer["points"].wait(publish(writer["points"], 1), "durable", TIMEOUT_S)
            read(reader, last)
            if last == 1:
                wait_until(lambda: stored(tmp_path) == 1, TIMEOUT_S)
                closed = os.open(tmp_path / "positions" / "points" / "me" / "position", os.O_RDONLY)
                os.dup2(closed, reader._keeper._file.descriptor)
                os.close(closed)
        with pytest.raises(BusError, match=r"points/me/position: the position is not stored any more: .*Bad file"):
            reader.sync(TIMEOUT_S)
        with pytest.raises(BusError, match="the position is not stored any more"):
            reader.close()
        assert stored(tmp_path) == 1


def refuse(*arguments, **settings):
    raise OSError(28, os.strerror(28))


def test_a_bus_without_a_log_and_a_bad_name_are_refused(bus_name, tmp_path):
    with Writer(bus_name, [POINTS]), pytest.raises(ValueError, match="has no data_dir"):
        resume(bus_name)
    for name in ("", "../x", "-a", "a" * 48, "a.b", "_a"):
        with pytest.raises(ValueError, match="letters, digits, - and _"):
            resume(bus_name, name)
    with pytest.raises(ValueError, match='gap: "raise" or "skip"'):
        resume(bus_name, gap="ignore")
    with pytest.raises(ValueError, match="more than 0"):
        resume(bus_name, every=0)


def test_positions_may_lie_elsewhere(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path / "data") as writer:
        for last in (10, 20):
            with resume(bus_name, directory=tmp_path / "mine") as reader:
                publish(writer["points"], 10)
                read(reader, last)
    assert not (tmp_path / "data" / "positions").exists()
    assert read_position(tmp_path / "mine" / "points" / "me").sequence == 20


def test_the_reader_table_shows_what_is_stored(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer, resume(bus_name, every=0.001) as reader:
        publish(writer["points"], 10)
        read(reader, 10)
        reader.sync(TIMEOUT_S)

        def acknowledged() -> list[int]:
            entries = list_readers(attach(reader.address).control.memory)
            return [entry["acknowledged"] for entry in entries if entry["name"] == "me"]

        wait_until(lambda: acknowledged() == [10], TIMEOUT_S)


def test_a_killed_writer_costs_nothing(bus_name, tmp_path, children):
    child: Child = children.start()
    opening = f"writer = Writer(bus, [POINTS], data_dir=data_dir, slots={SLOTS}, log_file_bytes={FILE_BYTES})"
    with_helper = "from support.streams import publish\n"
    child.run(with_helper + opening, bus=bus_name, data_dir=str(tmp_path))
    with resume(bus_name, start=1, every=0.001) as reader:
        child.ask("publish(writer['points'], 40)")
        read(reader, 40)
        child.kill()
        second = children.start()
        second.run(with_helper + opening, bus=bus_name, data_dir=str(tmp_path))
        second.ask("publish(writer['points'], 40)")
        read(reader, 80)
        reader.sync(TIMEOUT_S)
    assert stored(tmp_path) == 80


@pytest.mark.parametrize("gap", ["raise", "skip"])
def test_a_position_that_this_host_of_several_has_not_reached_yet_is_waited_for(bus_name, tmp_path, gap):
    """What is replicated is not lost where it is not here yet."""
    with open_replicated(f"{bus_name}a", tmp_path / "a", schemas=[POINTS]) as writer:
        replicate(writer, POINTS, 1, 500)
        with Resumable(f"{bus_name}a/points", "sums", start=1) as one:
            read_up_to(one, 500, TIMEOUT_S)
            one.commit()
    shutil.copytree(tmp_path / "a" / "positions", tmp_path / "b" / "positions")
    with open_replicated(f"{bus_name}b", tmp_path / "b", schemas=[POINTS]) as writer:
        replicate(writer, POINTS, 1, 480)
        with Resumable(f"{bus_name}b/points", "sums", gap=gap) as one:
            assert one.poll() is None
            replicate(writer, POINTS, 481, 30)
            assert read_up_to(one, 510, TIMEOUT_S)["sequence"].tolist() == list(range(501, 511))
