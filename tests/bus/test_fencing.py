"""A writer that was paused, and wakes after another took its bus over: nothing that it does is seen by anybody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus import Fenced, RingFull, Writer, WriterAlive, WriterFailed, attach
from ringmain.storage import FormatMismatch, LogReader, Schema
from ringmain.storage.log_files import list_files
from ringmain.storage.recovery import examine
from ringmain.subscribers import Historical, RealTime
from support.children import TIMEOUT_S, Child, Children, read_now
from support.logs import FILE_BYTES, PAIRS, POINTS, make_rows, read_rows, wait_until

FOREIGN = 66  # the value of every record that must not be seen


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def publish(writer: Writer, count: int) -> int:
    """Publish the next records; their content follows from their sequence. Returns the last sequence."""
    topic = writer["pairs"]
    return topic.publish_batch(make_rows(PAIRS, topic.watermarks.published + 1, count))


def sequences(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def start_writer(children: Children, bus: str, data_dir: Path | None, count: int = 100, **settings) -> Child:
    """A process with a writer that has published `count` records, all durable where there is a log."""
    child = children.start()
    child.run(
        "writer = Writer(bus, [PAIRS], data_dir=data_dir, **settings); topic = writer['pairs']\n"
        "first = topic.watermarks.published + 1\n"
        "last = topic.publish_batch(make_rows(PAIRS, first, count))\n"
        "topic.wait(last, 'published' if data_dir is None else 'durable', timeout=30)",
        bus=bus,
        data_dir=data_dir,
        count=count,
        settings=settings,
    )
    return child


def log_content(data_dir: Path) -> list[int]:
    """The sequences of all that the log holds, in a sound log with the content that belongs to them."""
    assert examine(data_dir / "log").problems == []
    rows = read_rows(data_dir / "log", PAIRS)
    assert (rows["left"] == make_rows(PAIRS, int(rows["sequence"][0]), len(rows))["left"]).all()
    return rows["sequence"].tolist()


@pytest.fixture(params=["rings only", "with log"])
def data_dir(request, tmp_path) -> Path | None:
    return tmp_path if request.param == "with log" else None


PUBLISHING = (
    f"topic.publish({FOREIGN})",
    f"topic.publish(left={FOREIGN})",
    "topic.publish_batch(make_rows(PAIRS, 101, 10))",
    "topic.claim(3)",
)


@pytest.mark.process
def test_a_paused_writer_that_wakes_after_a_take_over_cannot_publish(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    old.run("claim = topic.claim(5); claim.rows['left'] = foreign", foreign=FOREIGN)
    old.pause()
    with pytest.raises(WriterAlive):
        Writer(bus_name, [PAIRS], data_dir=data_dir)
    with Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer:
        assert writer.epoch == 2
        assert publish(writer, 50) == 150
        old.resume()
        with pytest.raises(Fenced, match="topic 'pairs': a newer writer has taken over"):
            old.run("claim.commit()")
        for call in PUBLISHING:
            with pytest.raises(Fenced):
                old.run(call)
        assert old.ask("topic.watermarks.published") == 100
        assert publish(writer, 50) == 200
        with Historical(f"{bus_name}/pairs") as reader:
            assert read_now(reader) == sequences(1, 200)
    if data_dir is not None:
        assert log_content(data_dir) == sequences(1, 200)


def pause_in_the_middle_of_publishing(writer: Child) -> None:
    """The writer stops itself while it packs a record, behind its last look at whether it may publish."""
    writer.run(
        "class Pause:\n    def __index__(self): os.kill(os.getpid(), signal.SIGSTOP); return value", value=FOREIGN
    )
    writer.begin("topic.publish(Pause())")
    wait_until(writer.is_stopped, TIMEOUT_S)


@pytest.mark.process
def test_a_writer_paused_in_the_middle_of_publishing_is_told_that_it_did_not_publish(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    pause_in_the_middle_of_publishing(old)
    with Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer:
        assert writer["pairs"].watermarks.published == 100
        old.resume()
        with pytest.raises(Fenced):
            old.settle()


@pytest.mark.process
def test_what_a_writer_paused_in_the_middle_of_publishing_publishes_then_is_seen_by_no_reader(
    bus_name, data_dir, children
):
    old = start_writer(children, bus_name, data_dir)
    with RealTime(f"{bus_name}/pairs", start="earliest") as reader:
        assert read_now(reader) == sequences(1, 100)
        pause_in_the_middle_of_publishing(old)
        with Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer:
            last = publish(writer, 50)
            old.resume()
            wait_until(old.has_answered, TIMEOUT_S)
            found: list[int] = []
            wait_until(lambda: bool(found.extend(read_now(reader)) or reader.position == last), TIMEOUT_S)
            assert found == sequences(101, last)  # with the new writer's content


@pytest.mark.process
@pytest.mark.parametrize("count", [100, 0])
def test_what_is_published_too_late_is_not_taken_for_published_by_the_next_writer_but_one(
    bus_name, tmp_path, children, count
):
    old = start_writer(children, bus_name, tmp_path, count=count)
    pause_in_the_middle_of_publishing(old)
    changed = Schema("pairs", {"left": "u8"})
    with pytest.raises(FormatMismatch):  # it fences, and then cannot open the log
        Writer(bus_name, [changed], data_dir=tmp_path, take_over=True)
    old.resume()
    with pytest.raises(Fenced):
        old.settle()
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True) as writer:
        assert writer["pairs"].watermarks.published == count
        assert publish(writer, 1) == count + 1
    assert log_content(tmp_path) == sequences(1, count + 1)


@pytest.mark.process
def test_a_writer_that_runs_is_fenced_at_once_when_another_takes_over(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    old.begin("while True: topic.publish(int(make_rows(PAIRS, topic.watermarks.published + 1, 1)['left'][0]))")
    published = attach(f"{bus_name}/pairs")
    wait_until(lambda: published.watermarks().published > 1000, TIMEOUT_S)
    with Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer:
        with pytest.raises(Fenced):
            old.settle()
        last = publish(writer, 100)
        with Historical(f"{bus_name}/pairs") as reader:
            first = reader.position + 1
            assert read_now(reader) == sequences(first, last)
    if data_dir is not None:
        assert log_content(data_dir) == sequences(1, last)


@pytest.mark.process
def test_a_writer_that_waits_for_room_is_told_when_it_is_fenced(bus_name, children):
    old = start_writer(children, bus_name, None, count=0, slots=64)
    with RealTime(f"{bus_name}/pairs", reliable=True) as reader:
        assert reader.poll() is None
        old.run("topic.publish_batch(make_rows(PAIRS, 1, 64))")
        old.begin(f"topic.publish({FOREIGN})")
        wait_until(old.is_blocked, TIMEOUT_S)
        with Writer(bus_name, [PAIRS], slots=64, take_over=True, full="raise") as writer:
            with pytest.raises(Fenced):
                old.settle()
            assert writer["pairs"].watermarks.published == 64
            with pytest.raises(RingFull):  # the reader holds the new writer as it held the old one
                publish(writer, 1)
            found = read_now(reader)
            assert publish(writer, 1) == 65
            assert found + read_now(reader) == sequences(1, 65)


@pytest.mark.process
def test_a_fenced_writer_is_told_that_what_it_waits_for_will_not_be(bus_name, tmp_path, children):
    old = start_writer(children, bus_name, tmp_path, sync_interval=1e9, count=0)
    old.run("last = topic.publish_batch(make_rows(PAIRS, 1, 100)); topic.wait(last, 'logged', timeout=30)")
    if old.ask("topic.watermarks.durable") == 100:
        pytest.skip("the machine has run for long enough to make the first sync due")
    old.begin("topic.wait(last, 'durable')")
    wait_until(old.is_blocked, TIMEOUT_S)
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True):
        with pytest.raises(Fenced):
            old.settle()
        assert old.ask("topic.watermarks.durable") == 0


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_what_a_fenced_writer_still_writes_into_its_log_file_is_no_part_of_the_log(bus_name, tmp_path, children):
    old = start_writer(children, bus_name, tmp_path)
    reading = LogReader(tmp_path / "log", "pairs")
    rows = reading.read(1)
    assert rows is not None
    assert len(rows) == 100
    assert reading.read(101) is None
    old.pause()
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True) as writer:
        writer["pairs"].wait(publish(writer, 50), timeout=TIMEOUT_S)
        old.resume()
        # A write that was under way when it was paused goes through: nothing on its side can stop that.
        old.run("rows = make_rows(PAIRS, 101, 500); rows['left'] = foreign", foreign=FOREIGN)
        old.run("appender = writer._parts.log.appender; appender.append(0, rows); appender.sync()")
        publish(writer, 50)
        writer["pairs"].wait(200, timeout=TIMEOUT_S)
        first_file = list_files(tmp_path / "log")[0][1]
        assert make_rows(PAIRS, 600, 1)["sequence"].tobytes() in first_file.read_bytes()  # it did write
        assert log_content(tmp_path) == sequences(1, 200)
        rows = reading.read(101)
        assert rows is not None
        assert (rows["left"] == make_rows(PAIRS, 101, len(rows))["left"]).all()
        with Historical(f"{bus_name}/pairs") as reader:
            assert read_now(reader) == sequences(1, 200)
        with pytest.raises(Fenced):
            old.run(f"topic.publish({FOREIGN})")
    for _ in range(2):
        with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
            assert writer["pairs"].watermarks.published == 200
    assert log_content(tmp_path) == sequences(1, 200)


@pytest.mark.process
def test_the_log_file_of_a_fenced_writer_is_not_used_again_when_it_expires_since_that_one_may_still_write_there(
    bus_name, tmp_path, children
):
    settings: dict[str, Any] = {"log_file_bytes": FILE_BYTES, "retention_bytes": 1}
    old = start_writer(children, bus_name, tmp_path, **settings)
    old.pause()
    first_file = list_files(tmp_path / "log")[0][1]
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True, **settings) as writer:
        last = 100
        while first_file.exists() or list_files(tmp_path / "log")[-1][0] < 6:
            last = publish(writer, 20_000)
            writer["pairs"].wait(last, timeout=TIMEOUT_S)
        old.resume()
        old.run("rows = make_rows(PAIRS, 101, 500); rows['left'] = foreign", foreign=FOREIGN)
        old.run("appender = writer._parts.log.appender; appender.append(0, rows); appender.sync()")
        found = log_content(tmp_path)
        assert found == sequences(found[0], last)


@pytest.mark.process
def test_a_fenced_writer_leaves_the_log_directory_alone(bus_name, tmp_path, children):
    old = start_writer(children, bus_name, tmp_path, count=400_000, log_file_bytes=FILE_BYTES)
    assert len(list_files(tmp_path / "log")) > 2
    old.pause()
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True) as writer:
        writer["pairs"].wait(publish(writer, 100), timeout=TIMEOUT_S)
        before = sorted(path.name for path in (tmp_path / "log").iterdir())
        old.resume()
        # Its files have come of age meanwhile, as far as it knows.
        old.run("from ringmain.storage.log_retention import Retention")
        old.run("log = writer._parts.log; log._retention = Retention(1, 1e-9)")
        old.run("for _ in range(3): log.keep(0)")
        assert sorted(path.name for path in (tmp_path / "log").iterdir()) == before
        old.run("writer.close()")
        assert sorted(path.name for path in (tmp_path / "log").iterdir()) == before
        last = publish(writer, 1)
    assert log_content(tmp_path) == sequences(1, last)


@pytest.mark.process
def test_what_a_paused_writer_had_published_and_not_logged_is_logged_by_the_next(bus_name, tmp_path, children):
    old = start_writer(children, bus_name, tmp_path)
    old.run("stop_the_log(data_dir)", data_dir=tmp_path)
    old.run("last = topic.publish_batch(make_rows(PAIRS, 101, 100))")
    with pytest.raises(WriterFailed):
        old.run("topic.wait(last, 'logged')")
    old.pause()
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True) as writer:
        assert writer.carried.from_rings == {"pairs": 100}
        assert publish(writer, 1) == 201
        old.resume()
        with pytest.raises(Fenced):
            old.run(f"topic.publish({FOREIGN})")
    assert log_content(tmp_path) == sequences(1, 201)


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("reliable", [False, True])
@pytest.mark.parametrize("follow", ["published", "logged", "durable"])
def test_readers_move_on_to_the_new_writer_without_a_gap_or_a_repeat(bus_name, tmp_path, children, follow, reliable):
    data_dir = None if follow == "published" else tmp_path
    old = start_writer(children, bus_name, data_dir)
    with RealTime(f"{bus_name}/pairs", start="earliest", follow=follow, reliable=reliable) as reader:
        found = read_now(reader)
        old.pause()
        with Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer:
            last = publish(writer, 50)
            writer["pairs"].wait(last, follow, timeout=TIMEOUT_S)
            old.resume()
            with pytest.raises(Fenced):
                old.run(f"topic.publish({FOREIGN})")
            wait_until(lambda: bool(found.extend(read_now(reader)) or reader.position == last), TIMEOUT_S)
            assert found == sequences(1, 150)
            stats = reader.stats
            assert (stats.epoch, stats.reopen_count, stats.lost_count) == (2, 1, 0)
        assert reader.poll() is None
        assert reader.ended


@pytest.mark.process
def test_a_reliable_reader_holds_the_new_writer_as_soon_as_it_has_moved_there(bus_name, data_dir, children):
    start_writer(children, bus_name, data_dir, slots=64)
    with RealTime(f"{bus_name}/pairs", reliable=True) as reader:
        assert read_now(reader) == []
        with Writer(bus_name, [PAIRS], data_dir=data_dir, slots=64, take_over=True, full="raise") as writer:
            wait_until(lambda: reader.poll() is None and reader.stats.epoch == 2, TIMEOUT_S)
            publish(writer, 64)
            if data_dir is not None:
                writer["pairs"].wait(164, "logged", timeout=TIMEOUT_S)
            with pytest.raises(RingFull):
                publish(writer, 1)
            assert read_now(reader) == sequences(101, 164)


@pytest.mark.process
def test_a_reader_that_waits_is_woken_by_the_take_over_and_gets_the_next_record(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    reader = children.start()
    reader.run("reader = RealTime(f'{bus}/pairs')", bus=bus_name)
    reader.begin("batch = reader.take(30)")
    wait_until(reader.is_blocked, TIMEOUT_S)
    old.pause()
    with Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer:
        publish(writer, 1)
        assert reader.ask("(batch.first, batch.last, reader.stats.epoch)") == (101, 101, 2)


@pytest.mark.process
def test_a_fenced_writer_that_closes_does_not_end_the_readers_that_are_still_on_its_ring(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    with (
        RealTime(f"{bus_name}/pairs") as reader,
        Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer,
    ):
        old.run("writer.close()")
        last = publish(writer, 50)
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        assert (batch.first, reader.stats.epoch) == (101, 2)
        assert read_now(reader) == sequences(batch.last + 1, last)


@pytest.mark.process
def test_a_reader_keeps_the_rows_that_it_holds_of_a_fenced_writers_ring(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir, slots=128)
    with RealTime(f"{bus_name}/pairs", start=90) as reader:
        batch = reader.poll()
        assert batch is not None
        old.pause()
        with Writer(bus_name, [PAIRS], data_dir=data_dir, slots=128, take_over=True) as writer:
            publish(writer, 1000)
            old.kill()
            batch.validate()
            assert batch.rows["sequence"].tolist() == sequences(batch.first, batch.last)


# --- several generations ------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_of_several_generations_that_wake_only_the_newest_writes(bus_name, data_dir, children):
    generations = [start_writer(children, bus_name, data_dir, count=20)]
    with RealTime(f"{bus_name}/pairs", start="earliest") as reader:
        found = read_now(reader)
        for epoch in range(2, 6):
            generations[-1].pause()
            generations.append(start_writer(children, bus_name, data_dir, count=20, take_over=True))
            assert generations[-1].ask("(writer.epoch, first, last)") == (epoch, 20 * epoch - 19, 20 * epoch)
        *fenced, newest = generations
        for child in fenced:
            child.resume()
        for child in fenced:
            for call in PUBLISHING:
                with pytest.raises(Fenced):
                    child.run(call)
        newest.run("last = topic.publish_batch(make_rows(PAIRS, 101, 100))")
        wait_until(lambda: bool(found.extend(read_now(reader)) or reader.position == 200), TIMEOUT_S)
        for child in fenced[:2]:
            child.run("writer.close()")  # takes nothing with it
        newest.run("last = topic.publish_batch(make_rows(PAIRS, 201, 100))")
        assert attach(f"{bus_name}/pairs").header["epoch"] == 5
        wait_until(lambda: bool(found.extend(read_now(reader)) or reader.position == 300), TIMEOUT_S)
        assert found == sequences(1, 300)
        assert reader.stats.epoch == 5
        newest.run("writer.close()")
        for child in fenced[2:]:
            assert child.exit() == 0  # its interpreter closes its writer
        assert list(Path("/dev/shm").glob(f"ringmain.{bus_name}*")) == []
    if data_dir is not None:
        assert log_content(data_dir) == sequences(1, 300)
        with Writer(bus_name, [PAIRS], data_dir=data_dir) as writer:
            assert writer.epoch == 6


@pytest.mark.process
def test_a_fenced_writer_that_wakes_when_its_successor_has_closed_still_cannot_write(bus_name, tmp_path, children):
    old = start_writer(children, bus_name, tmp_path)
    old.pause()
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, take_over=True) as writer:
        publish(writer, 50)
    old.resume()
    for call in PUBLISHING:
        with pytest.raises(Fenced):
            old.run(call)
    old.run("writer.close()")
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        assert (writer.epoch, publish(writer, 1)) == (3, 151)
    assert log_content(tmp_path) == sequences(1, 151)


@pytest.mark.process
def test_a_fenced_writer_may_be_killed_without_harm_to_the_new_one(bus_name, data_dir, children):
    old = start_writer(children, bus_name, data_dir)
    old.pause()
    with Writer(bus_name, [PAIRS], data_dir=data_dir, take_over=True) as writer:
        old.kill()
        with pytest.raises(WriterAlive) as refused:
            Writer(bus_name, [PAIRS], data_dir=data_dir)
        assert refused.value.pid == os.getpid()
        assert publish(writer, 1) == 101
        assert attach(f"{bus_name}/pairs").watermarks().published == 101


def test_taking_over_where_nobody_writes_is_plain_opening(bus_name, data_dir):
    for life in range(1, 3):
        with Writer(bus_name, [PAIRS, POINTS], data_dir=data_dir, take_over=True) as writer:
            assert writer.epoch == (life if data_dir is not None else 1)
            assert publish(writer, 1) == (life if data_dir is not None else 1)
