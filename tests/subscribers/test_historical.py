"""Reading a topic's past: where it begins and ends, on into the present without a gap or a repeat, and what is gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import NotFound, Overrun, Watermarks, Writer, attach
from ringmain.storage import FormatMismatch, HistoryGone, Log, LogReader, Schema, StorageError
from ringmain.storage.log_files import list_files
from ringmain.subscribers import Historical, RealTime
from support.children import Child, Children
from support.logs import FILE_BYTES, PAIRS, POINTS, append, wait_until
from support.streams import TIMEOUT_S, check_batch, check_content, poll_all, publish, read, readers

SLOTS = 64
WIDE = Schema("wide", {"body": "S4000", "value": "u8"})  # about a thousand rows fill a log file
FILE_ROWS = FILE_BYTES // WIDE.row_bytes


# For a child: a writer of POINTS that goes on where the topic ended.
OPEN = f"""if True:
    from support.streams import publish
    writer = Writer(bus, [POINTS], data_dir=data_dir, slots=1024, log_file_bytes={FILE_BYTES})
    points = writer["points"]
"""
PUBLISH = """if True:
    size = 0
    while True:
        size = size % 97 + 1
        publish(points, size)
        time.sleep(0.0002)
"""


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


def open_writer(bus: str, data_dir: Path | None, schema: Schema = POINTS, **settings) -> Writer:
    return Writer(bus, [schema], **{"data_dir": data_dir, "slots": SLOTS, "log_file_bytes": FILE_BYTES, **settings})


def files(data_dir: Path) -> int:
    return len(list_files(data_dir / "log"))


def all_of(reader: Historical | RealTime) -> np.ndarray:
    """Everything up to the end, as copies, each batch right behind the one before."""
    parts, expected = [np.empty(0, reader.schema.dtype)], reader.position + 1
    for batch in reader:
        assert batch.lost == 0
        try:
            rows = batch.copy()
        except Overrun:  # it comes again, from the log
            continue
        assert batch.first == expected
        expected = batch.last + 1
        parts.append(rows)
    assert reader.ended
    return np.concatenate(parts)


# --- by sequence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [0, 1, 40, 640])
def test_from_the_earliest_it_reads_what_there_is_and_ends(bus_name, tmp_path, published):
    with open_writer(bus_name, tmp_path) as writer:
        if published:
            publish(writer["points"], published)
        with Historical(f"{bus_name}/points") as reader:
            publish(writer["points"], 10)  # after it was opened: not asked for
            check_content(POINTS, all_of(reader), 1)
            assert reader.position == published
            assert reader.stats.read_count == published
            assert reader.poll() is None
            assert reader.take() is None
            assert list(reader) == []


@pytest.mark.parametrize(
    ("start", "last"), [(1, 1), (1, 639), (1, 640), (17, 17), (320, 600), (600, 640), (640, 640), (30, 29), (641, 640)]
)
@pytest.mark.parametrize("live", [False, True])
def test_between_two_sequences_it_hands_out_just_those(bus_name, tmp_path, start, last, live):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 640)
        with Historical(f"{bus_name}/points", start=start, last=last, live=live) as reader:
            rows = all_of(reader)
            assert len(rows) == max(0, last - start + 1)
            check_content(POINTS, rows, start)


def test_a_last_sequence_that_is_still_to_come_is_waited_for_when_live(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
        with Historical(f"{bus_name}/points", last=15, live=True) as reader:
            read(reader, 10)
            assert reader.poll() is None
            assert not reader.ended
            publish(writer["points"], 10)
            check_content(POINTS, all_of(reader), 11)
            assert reader.position == 15


def test_a_last_sequence_that_is_still_to_come_does_not_keep_it_from_ending(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
        with Historical(f"{bus_name}/points", last=15) as reader:
            check_content(POINTS, poll_all(reader), 1)
            assert reader.take(0.05) is None
            assert reader.ended


@pytest.mark.parametrize("start", [11, 100])
def test_a_start_behind_the_end_has_nothing_to_hand_out(bus_name, tmp_path, start):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10)
        with Historical(f"{bus_name}/points", start=start) as reader:
            assert list(reader) == []
            assert reader.ended


def test_without_a_log_the_past_is_what_the_ring_holds(bus_name):
    with open_writer(bus_name, None) as writer:
        publish(writer["points"], 10 * SLOTS)
        with Historical(f"{bus_name}/points") as reader:
            rows = all_of(reader)
            assert SLOTS // 2 <= len(rows) <= SLOTS
            check_content(POINTS, rows, 10 * SLOTS - len(rows) + 1)
            assert reader.stats.lost_count == 0


def test_each_topic_of_a_log_has_its_own_past(bus_name, tmp_path):
    with Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path, slots=SLOTS, log_file_bytes=FILE_BYTES) as writer:
        for _ in range(50):
            publish(writer["points"], 7)
            publish(writer["pairs"], 11)
        with Historical(f"{bus_name}/points") as points, Historical(f"{bus_name}/pairs") as pairs:
            check_content(POINTS, all_of(points), 1)
            check_content(PAIRS, all_of(pairs), 1)
            assert (points.position, pairs.position) == (350, 550)


def test_a_past_of_many_files_joins_without_a_gap(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, WIDE) as writer:
        last = publish(writer["wide"], 5 * FILE_ROWS)
        writer["wide"].wait(last, "logged", TIMEOUT_S)
        assert files(tmp_path) > 4
        for start in (1, FILE_ROWS, 3 * FILE_ROWS + 7, last):
            with Historical(f"{bus_name}/wide", start=start, batch_rows=100) as reader:
                read(reader, last, WIDE)
                assert reader.poll() is None
                assert reader.ended


# --- by time --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def timed(bus_name: str, tmp_path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """A topic whose log has several files, and its records' times."""
    with open_writer(bus_name, tmp_path, WIDE) as writer:
        for size in itertools.chain([1, 1, 1, 300], itertools.repeat(97, 3 * FILE_ROWS // 97)):
            publish(writer["wide"], size)
        writer["wide"].wait(writer["wide"].watermarks.published, "logged", TIMEOUT_S)
        assert files(tmp_path) > 3
        address = f"{bus_name}/wide"
        with Historical(address) as reader:
            yield address, all_of(reader)["timestamp_ns"].copy()


def test_since_a_time_it_begins_with_the_first_record_of_that_time_or_later(timed):
    address, stamps = timed
    for at in (0, 1, 2, 3, 100, 304, FILE_ROWS, 2 * FILE_ROWS, len(stamps) - 1):
        for since in (int(stamps[at]) - 1, int(stamps[at]), int(stamps[at]) + 1):
            with Historical(address, since=since) as reader:
                assert reader.position == np.searchsorted(stamps, since), (at, since - int(stamps[at]))
    with Historical(address, since=int(stamps[2 * FILE_ROWS])) as reader:
        rows = all_of(reader)
        check_content(WIDE, rows, reader.position - len(rows) + 1)
        assert rows["timestamp_ns"].tolist() == stamps[stamps >= stamps[2 * FILE_ROWS]].tolist()


def test_until_a_time_it_ends_with_the_last_record_before_it(timed):
    address, stamps = timed
    for at in (0, 1, 3, 304, 2 * FILE_ROWS, len(stamps) - 1):
        for until in (int(stamps[at]), int(stamps[at]) + 1):
            wanted = int(np.searchsorted(stamps, until))
            with Historical(address, start=max(1, wanted - 200), until=until) as reader:
                rows = all_of(reader)
                assert reader.position == wanted
                assert (rows["timestamp_ns"] < until).all()
                assert len(rows) == min(wanted, 201)


def test_times_before_all_records_and_after_them_are_the_ends(timed):
    address, stamps = timed
    with Historical(address, since=0, until=2**62) as reader:
        assert len(all_of(reader)) == len(stamps)
    with Historical(address, until=int(stamps[0])) as reader:
        assert list(reader) == []
    with Historical(address, since=int(stamps[-1]) + 1) as reader:
        assert list(reader) == []
    with Historical(address, since=int(stamps[0]) - 10**18, until=0) as reader:
        assert list(reader) == []


def test_since_now_and_live_is_what_comes_next(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        writer["points"].wait(publish(writer["points"], 10), "logged", TIMEOUT_S)
        with Historical(f"{bus_name}/points") as reader:
            newest = int(all_of(reader)["timestamp_ns"][-1])
        with Historical(f"{bus_name}/points", since=newest + 1, live=True) as reader:
            assert reader.poll() is None
            publish(writer["points"], 3)
            check_content(POINTS, poll_all(reader), 11)


def pause_with_log_behind(child: Child, address: str) -> Watermarks:
    """Stop a publishing process at an instant when the log does not hold everything that is published."""

    def behind() -> bool:
        child.pause()
        marks = attach(address).watermarks()
        if marks.logged < marks.published:
            return True
        child.resume()
        return False

    wait_until(behind, TIMEOUT_S)
    return attach(address).watermarks()


def test_a_time_is_found_among_records_that_are_not_logged_yet(bus_name, tmp_path, children):
    address, child = f"{bus_name}/points", children.start()
    child.run(OPEN, bus=bus_name, data_dir=tmp_path)
    child.begin("while True: publish(points, 100)")
    marks = pause_with_log_behind(child, address)
    with RealTime(address, start=marks.logged + 1) as reader:
        stamps = poll_all(reader)["timestamp_ns"]
    assert len(stamps) == marks.published - marks.logged
    with Historical(address, until=int(stamps[-1]) + 1) as reader:
        assert all_of(reader)["sequence"][-1] == marks.published
    with Historical(address, since=int(stamps[-1]) + 1) as reader:
        assert list(reader) == []


# --- on into the present --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("follow", ["published", "logged", "durable"])
def test_it_goes_on_into_the_ring_without_a_gap_or_a_repeat_while_the_writer_publishes(
    bus_name, tmp_path, children, follow
):
    child = children.start()
    child.run(OPEN, bus=bus_name, data_dir=tmp_path)
    child.run("publish(points, 20_000)")
    child.begin(PUBLISH)
    with Historical(f"{bus_name}/points", live=True, follow=follow) as reader:
        marks = attach(reader.address).watermarks
        read(reader, 20_000, beyond=True)
        while reader.stats.refilled_count == reader.stats.read_count:  # still reading from the log only
            read(reader, reader.position + 1_000, beyond=True)
        read(reader, marks().published + 1_000, beyond=True)
        assert reader.position <= getattr(marks(), follow)
        assert reader.stats.refilled_count > 15_000
        assert reader.stats.lost_count == 0
        assert reader.stats.read_count == reader.position
        child.kill()


def test_it_goes_on_behind_a_killed_writer_too(bus_name, tmp_path, children):
    child = children.start()
    child.run(OPEN, bus=bus_name, data_dir=tmp_path)
    child.run("publish(points, 5_000)")
    with Historical(f"{bus_name}/points", live=True) as reader:
        for life in range(1, 3):
            child.begin(PUBLISH)
            read(reader, reader.position + 5_000, beyond=True)
            child.kill()
            child = children.start()
            child.run(OPEN, bus=bus_name, data_dir=tmp_path)
            child.run("last = publish(points, 3_000)")  # more than the ring holds: it has to come from the log
            read(reader, child.ask("last"))
            assert reader.stats.reopen_count == life
        child.run("writer.close()")
        assert list(reader) == []
        assert reader.ended
        assert reader.stats.lost_count == 0
        assert reader.stats.read_count == reader.position


def test_when_live_it_ends_with_its_writer_unless_it_is_to_reopen(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10 * SLOTS)
        ending = Historical(f"{bus_name}/points", live=True)
        waiting = Historical(f"{bus_name}/points", live=True, reopen=True)
    with ending, waiting:
        check_content(POINTS, all_of(ending), 1)
        assert ending.position == 10 * SLOTS
        read(waiting, 10 * SLOTS)
        assert waiting.take(0.05) is None
        assert not waiting.ended
        with open_writer(bus_name, tmp_path) as writer:
            read(waiting, publish(writer["points"], 10))


def test_when_live_and_reliable_it_holds_the_writer_once_it_reads_from_the_ring(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10 * SLOTS)
        with Historical(f"{bus_name}/points", live=True, reliable=True, name="replay") as reader:
            assert readers(reader.address)["replay"]["policy"] == "lossy"
            publish(writer["points"], 10 * SLOTS)
            read(reader, 20 * SLOTS)
            assert reader.poll() is None
            assert readers(reader.address)["replay"]["policy"] == "reliable"


# --- batches --------------------------------------------------------------------------------------------------------------


def test_rows_are_views_over_the_mapped_log_and_cannot_be_written(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, slots=4096) as writer:
        last = publish(writer["points"], 1000)  # one frame
        writer["points"].wait(last, "logged", TIMEOUT_S)
    with Historical(f"{bus_name}/points", data_dir=tmp_path) as reader:
        batch = reader.poll()
        assert batch is not None
        assert len(batch) == 1000
        base = batch.rows
        while isinstance(base, np.ndarray):
            assert not base.flags.owndata
            assert not base.flags.writeable
            base = base.base
        assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
        with pytest.raises(ValueError, match="read-only"):
            batch.rows["value"] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            batch.rows.flags.writeable = True
        assert batch.valid
        check_batch(batch, 1)


def test_records_published_one_by_one_are_handed_out_together(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path) as writer:
        for _ in range(500):
            publish(writer["points"], 1)
            writer["points"].wait(writer["points"].watermarks.published, "logged", TIMEOUT_S)  # a frame each
    with Historical(f"{bus_name}/points", data_dir=tmp_path) as reader:
        batch = reader.poll()
        assert batch is not None
        assert len(batch) >= 256
        assert not batch.rows.flags.writeable
        check_batch(batch, 1)
        read(reader, 500)


@pytest.mark.parametrize("batch_rows", [1, 7, 300])
def test_batch_rows_is_the_most_that_a_batch_holds(bus_name, tmp_path, batch_rows):
    with open_writer(bus_name, tmp_path, slots=4096) as writer:
        publish(writer["points"], 1000)
        publish(writer["points"], 10)
        with Historical(f"{bus_name}/points", batch_rows=batch_rows) as reader:
            sizes, expected = [], 1
            for batch in reader:
                expected = check_batch(batch, expected)
                sizes.append(len(batch))
            assert max(sizes) == batch_rows
            assert sum(sizes) == 1010


def test_it_can_be_read_by_callback_and_by_async_for(bus_name, tmp_path):
    async def collect() -> list[int]:
        with Historical(f"{bus_name}/points", start=5) as reader:
            return [sequence async for batch in reader for sequence in batch.rows["sequence"].tolist()]

    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10 * SLOTS)
        assert asyncio.run(asyncio.wait_for(collect(), TIMEOUT_S)) == list(range(5, 10 * SLOTS + 1))
        parts: list[np.ndarray] = []
        with Historical(f"{bus_name}/points", start=5) as reader:
            reader.run(lambda batch: parts.append(batch.copy()))
        check_content(POINTS, np.concatenate(parts), 5)


# --- what is gone ---------------------------------------------------------------------------------------------------------


KEEP_BYTES = 2 * FILE_BYTES


def publish_past_retention(writer: Writer, data_dir: Path) -> int:
    """Publish until the log no longer keeps the files that it has now. Returns the oldest record that it then keeps.

    Until more is published, it goes on keeping that.
    """
    newest = list_files(data_dir / "log")[-1][0]

    def gone() -> bool:
        writer["wide"].wait(publish(writer["wide"], FILE_ROWS), "logged", TIMEOUT_S)
        return list_files(data_dir / "log")[0][0] > newest

    def settled() -> bool:
        try:
            ended_bytes = [path.stat().st_blocks * 512 for _, path in list_files(data_dir / "log")[:-1]]
        except FileNotFoundError:  # given back just now
            return False
        return sum(ended_bytes[1:]) < KEEP_BYTES

    wait_until(gone, TIMEOUT_S)
    wait_until(settled, TIMEOUT_S)
    return LogReader(data_dir / "log", "wide").oldest


def test_a_start_that_is_no_longer_kept_is_an_error_that_says_so_and_reading_can_go_on(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, WIDE, retention_bytes=KEEP_BYTES) as writer:
        publish_past_retention(writer, tmp_path)
        with Historical(f"{bus_name}/wide", start=5) as reader:
            with pytest.raises(HistoryGone, match=r"sequence 5 is no longer kept; the oldest record is \d+") as gone:
                reader.poll()
            assert gone.value.wanted == 5
            assert gone.value.oldest > 5
            batch = reader.take(TIMEOUT_S)
            assert batch is not None
            assert batch.first == gone.value.oldest
            assert batch.lost == gone.value.oldest - 5
            check_content(WIDE, batch.rows, batch.first)
            read(reader, writer["wide"].watermarks.published, WIDE)
            stats = reader.stats
            assert stats.lost_count == gone.value.oldest - 5
            assert stats.read_count == reader.position - gone.value.oldest + 1


def test_the_earliest_is_the_oldest_that_is_kept(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, WIDE, retention_bytes=KEEP_BYTES) as writer:
        oldest = publish_past_retention(writer, tmp_path)
        for reader in (
            Historical(f"{bus_name}/wide"),
            Historical(f"{bus_name}/wide", since=0),
            RealTime(f"{bus_name}/wide", start="earliest"),
        ):
            with reader:
                assert reader.position >= oldest - 1
                read(reader, writer["wide"].watermarks.published, WIDE)
                assert reader.stats.lost_count == 0


def test_a_lapped_live_reader_meets_the_same_error_when_retention_has_passed_it(bus_name, tmp_path):
    with (
        open_writer(bus_name, tmp_path, WIDE, retention_bytes=KEEP_BYTES) as writer,
        RealTime(f"{bus_name}/wide") as reader,
    ):
        read(reader, publish(writer["wide"], 5), WIDE)
        publish_past_retention(writer, tmp_path)
        with pytest.raises(HistoryGone) as gone:
            reader.take(TIMEOUT_S)
        assert gone.value.wanted == 6
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        assert (batch.first, batch.lost) == (gone.value.oldest, gone.value.oldest - 6)
        read(reader, writer["wide"].watermarks.published, WIDE)


def test_rows_stay_what_they_are_when_retention_gives_their_file_back(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path, WIDE, slots=1024, retention_bytes=KEEP_BYTES) as writer:
        publish(writer["wide"], 256)  # one frame
        publish(writer["wide"], 1024)
        with Historical(f"{bus_name}/wide", last=100) as reader:
            batch = reader.poll()
        assert batch is not None
        assert not batch.rows.flags.owndata
        for _ in range(2):  # so that the files which are given back are used again
            publish_past_retention(writer, tmp_path)
        check_batch(batch, 1, WIDE)
        batch.validate()


# --- without a writer -----------------------------------------------------------------------------------------------------


def test_it_needs_no_running_bus_where_the_data_directory_is_given(bus_name, tmp_path, children):
    with open_writer(bus_name, tmp_path) as writer:
        publish(writer["points"], 10 * SLOTS)
    with pytest.raises(NotFound):
        Historical(f"{bus_name}/points")
    with pytest.raises(NotFound):
        Historical(f"{bus_name}/points", data_dir=tmp_path, live=True)
    with Historical(f"{bus_name}/points", data_dir=tmp_path) as reader:
        check_content(POINTS, all_of(reader), 1)
        assert reader.position == 10 * SLOTS
        assert reader.schema == POINTS
        assert reader.stats.epoch == 0
    with Historical(f"{bus_name}/points", data_dir=str(tmp_path), start=7, last=12) as reader:
        assert all_of(reader)["sequence"].tolist() == [7, 8, 9, 10, 11, 12]
    child = children.start()
    child.run("reader = Historical(address, data_dir=data_dir)", address=f"{bus_name}/points", data_dir=tmp_path)
    assert child.ask("sum(len(batch) for batch in reader)") == 10 * SLOTS


def test_a_data_directory_that_the_running_bus_does_not_write_is_read_alone(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path / "yesterday") as writer:
        publish(writer["points"], 10)
    with open_writer(bus_name, tmp_path / "today") as writer:
        publish(writer["points"], 20)
        with Historical(f"{bus_name}/points", data_dir=tmp_path / "yesterday") as reader:
            check_content(POINTS, all_of(reader), 1)
            assert reader.position == 10


@pytest.mark.parametrize("shared_memory", ["kept", "gone"])
def test_what_a_killed_writer_left_is_read_to_its_end(bus_name, tmp_path, children, shared_memory):
    child = children.start()
    child.run(OPEN, bus=bus_name, data_dir=tmp_path)
    child.run("last = publish(points, 5_000)")
    child.run("points.wait(last, 'logged', 30.0)")
    child.begin(PUBLISH)
    address = f"{bus_name}/points"
    wait_until(lambda: attach(address).watermarks().published > 8_000, TIMEOUT_S)
    child.kill()
    marks = attach(address).watermarks()
    if shared_memory == "gone":  # as after the machine was started anew
        for path in Path("/dev/shm").glob(f"ringmain.{bus_name}*"):
            path.unlink()
    with Historical(address, data_dir=tmp_path) as reader:
        rows = all_of(reader)
    check_content(POINTS, rows, 1)
    if shared_memory == "kept":
        assert len(rows) == marks.published  # the ring has what the log had not yet
    else:
        assert marks.logged <= len(rows) <= marks.published


@pytest.mark.parametrize("running", [False, True])
def test_the_log_of_another_bus_is_refused_and_its_own_name_said(bus_name, tmp_path, running):
    with open_writer(bus_name, tmp_path / "data") as writer:
        publish(writer["points"], 10)
    other = f"{bus_name}-other"
    words = f"bus: expected '{other}', found '{bus_name}'; read it as {bus_name}/points, or give another data_dir"
    with open_writer(other, None) if running else contextlib.nullcontext(), pytest.raises(FormatMismatch, match=words):
        Historical(f"{other}/points", data_dir=tmp_path / "data")


def test_a_log_of_no_bus_is_read_under_any_name(bus_name, tmp_path):
    log = Log(tmp_path / "log", [POINTS])
    append(log, POINTS, 10)
    log.close()
    with Historical(f"{bus_name}/points", data_dir=tmp_path) as reader:
        check_content(POINTS, all_of(reader), 1)
        assert reader.position == 10


def test_a_running_bus_s_own_log_is_read_also_where_it_came_from_a_bus_of_another_name(bus_name, tmp_path):
    """As in a cluster, where it may come from another host."""
    with open_writer(bus_name, tmp_path / "here") as writer:
        publish(writer["points"], 10)
        came = tmp_path / "there" / "log"
        Log(came, [POINTS], bus="elsewhere", log_id=attach(f"{bus_name}/points").header["log_id"]).close()
        with Historical(f"{bus_name}/points", data_dir=tmp_path / "there") as reader:
            check_content(POINTS, all_of(reader), 1)


def test_a_directory_that_cannot_be_read_from_is_told_apart(bus_name, tmp_path):
    with open_writer(bus_name, tmp_path / "data") as writer:
        publish(writer["points"], 1)
    with pytest.raises(FileNotFoundError):
        Historical(f"{bus_name}/points", data_dir=tmp_path / "missing")
    with pytest.raises(StorageError, match="no topic 'trades' in this log"):
        Historical(f"{bus_name}/trades", data_dir=tmp_path / "data")


# --- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": 0}, "start: .*got 0"),
        ({"start": "latest"}, "start: .*got 'latest'"),
        ({"start": 3, "since": 5}, "start: .*not with since"),
        ({"last": 3, "until": 5}, "last, until: one of them"),
        ({"follow": "claimed"}, "follow: .*got 'claimed'"),
        ({"wait": "sleep"}, "wait: .*got 'sleep'"),
        ({"batch_rows": 0}, "batch_rows: .*got 0"),
    ],
)
def test_a_bad_argument_is_named_and_leaves_no_reader_behind(bus_name, tmp_path, settings, words):
    with open_writer(bus_name, tmp_path):
        with pytest.raises(ValueError, match=words):
            Historical(f"{bus_name}/points", **settings)
        assert readers(f"{bus_name}/points") == {}


@pytest.mark.parametrize("settings", [{"since": 1}, {"until": 1}])
def test_time_is_refused_where_there_is_no_log(bus_name, settings):
    with open_writer(bus_name, None), pytest.raises(ValueError, match="time can be asked for only where"):
        Historical(f"{bus_name}/points", **settings)


def test_an_address_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="BUS/TOPIC is expected"):
        Historical("exchange", data_dir=tmp_path)
