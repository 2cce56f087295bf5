"""A bus as its writer sees it: what is published, what a restart finds, and what is left when it closes."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import NotFound, Publisher, Writer, WriterAlive, WriterFailed, _segment, attach
from ringmain.bus.segments import Segment
from ringmain.bus.segments import bus_name as segment_name
from ringmain.storage import FormatMismatch, LogFailed, Recovered, Schema
from ringmain.storage.log_files import list_files
from ringmain.storage.recovery import examine
from ringmain.subscribers import Historical, RealTime
from support.children import TIMEOUT_S, Children
from support.logs import FILE_BYTES, PAIRS, POINTS, make_rows, read_rows, wait_until

# A field of every kind, with a hole of one byte behind `tag`.
MIXED = Schema(
    "mixed",
    {"price": "i8", "count": "u4", "small": "i1", "on": "?", "ratio": "f8", "tag": "S3", "levels": "(2,2)u2"},
)
GOOD = {
    "price": -5,
    "count": 4_000_000_000,
    "small": -128,
    "on": True,
    "ratio": 0.5,
    "tag": b"ab",
    "levels": [[1, 2], [3, 65535]],
}


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def segments(bus: str) -> list[str]:
    """What a bus has in shared memory, by the part of the name behind the bus."""
    prefix = f"ringmain.{bus}"
    names = [path.name[len(prefix) :] for path in Path("/dev/shm").glob(f"{prefix}*")]
    return sorted(name for name in names if not name or name[0] == ".")


def payload(schema: Schema, first: int, count: int) -> np.ndarray:
    """The fields of `make_rows`, without stamps."""
    rows = make_rows(schema, first, count)
    fields = np.zeros(count, schema.payload_dtype)
    for name in schema.payload_dtype.names or ():
        fields[name] = rows[name]
    return fields


def publish(writer: Writer, schema: Schema, count: int) -> int:
    """Publish the topic's next rows; their content follows from their sequence. Returns the last sequence."""
    topic = writer[schema.name]
    return topic.publish_batch(payload(schema, topic.watermarks.published + 1, count))


def recovered(writer: Writer) -> Recovered:
    """What opening found in the log."""
    assert writer.carried.log is not None
    return writer.carried.log


def read_all(address: str, **settings) -> np.ndarray:
    """Everything that is kept of a topic, up to now."""
    with Historical(address, **settings) as reader:
        parts = [
            batch.copy().tobytes() for batch in reader
        ]  # bytes, since numpy does not copy what lies between fields
        return np.frombuffer(b"".join(parts), reader.schema.dtype)


def assert_content(schema: Schema, rows: np.ndarray, first: int, count: int) -> None:
    """These are the rows `first` … with the content that `publish` gave them, and stamps that never step back."""
    assert rows["sequence"].tolist() == list(range(first, first + count))
    assert (np.diff(rows["timestamp_ns"]) >= 0).all()
    expected = make_rows(schema, first, count)
    for name in schema.payload_dtype.names or ():
        assert (rows[name] == expected[name]).all(), name


# --- publishing one record ------------------------------------------------------------------------------------------------


def test_a_record_published_by_position_is_read_with_the_same_values(bus_name):
    with Writer(bus_name, [MIXED]) as writer:
        assert writer["mixed"].publish(*GOOD.values()) == 1
        (row,) = read_all(f"{bus_name}/mixed")
    assert {name: row[name].tolist() for name in GOOD} == GOOD
    assert row["sequence"] == 1


def test_a_record_published_by_keyword_in_any_order_is_the_same_record(bus_name):
    with Writer(bus_name, [MIXED]) as writer:
        topic = writer["mixed"]
        assert topic.publish(*GOOD.values()) == 1
        assert topic.publish(**dict(reversed(GOOD.items()))) == 2
        names = list(GOOD)
        assert topic.publish(*[GOOD[name] for name in names[:3]], **{name: GOOD[name] for name in names[3:]}) == 3
        rows = read_all(f"{bus_name}/mixed")
    assert rows.view("u1").reshape(3, -1)[:, 16:].tolist() == [rows.view("u1").reshape(3, -1)[0, 16:].tolist()] * 3


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("price", 1 << 63, OverflowError),
        ("price", 1.0, TypeError),
        ("price", None, TypeError),
        ("count", -1, OverflowError),
        ("count", 1 << 32, OverflowError),
        ("count", "1", TypeError),
        ("small", 128, OverflowError),
        ("small", -129, OverflowError),
        ("ratio", "0.5", TypeError),
        ("ratio", 10**400, OverflowError),
        ("tag", "ab", TypeError),
        ("tag", b"abcd", ValueError),
        ("tag", 7, TypeError),
        ("levels", [1, 2, 3, 4], ValueError),
        ("levels", [[1, 2], [3, 65536]], OverflowError),
        ("levels", [[1, 2], [3, 4.5]], TypeError),
        ("levels", None, (TypeError, ValueError)),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_value_that_does_not_fit_names_its_field_and_publishes_nothing(bus_name, field, value, error, by_name):
    with Writer(bus_name, [MIXED]) as writer:
        topic = writer["mixed"]
        topic.publish(**GOOD)
        values = {**GOOD, field: value}
        with pytest.raises(error, match=f"'mixed', field '{field}'"):
            topic.publish(**values) if by_name else topic.publish(*values.values())
        assert topic.watermarks.published == 1
        assert topic.publish(**{**GOOD, "price": 77}) == 2
        assert read_all(f"{bus_name}/mixed")["price"].tolist() == [-5, 77]


@pytest.mark.parametrize(
    ("given", "named", "text"),
    [
        ([1, 2], {}, "7 fields .*price.*, got 2 values"),
        ([], {}, "7 fields .*, got 0 values"),
        (list(GOOD.values()), {"extra": 1}, "no field 'extra'; its fields are price, count"),
        ([*GOOD.values(), 8], {}, "7 fields .*, got 8 values"),
        ([1], {name: GOOD[name] for name in GOOD if name != "tag"} | {"tag": b""}, "'price' is given twice"),
        ([], {name: GOOD[name] for name in GOOD if name != "ratio"}, "field 'ratio' is missing"),
    ],
)
def test_a_call_with_too_few_or_too_many_values_says_which(bus_name, given, named, text):
    with Writer(bus_name, [MIXED]) as writer:
        with pytest.raises(TypeError, match=text):
            writer["mixed"].publish(*given, **named)
        assert writer["mixed"].watermarks.published == 0


def test_a_short_text_is_padded_and_nothing_of_the_record_before_shows_through(bus_name):
    with Writer(bus_name, [MIXED], slots=2) as writer:
        for _ in range(2):
            writer["mixed"].publish(**{**GOOD, "tag": b"xyz", "levels": [[9, 9], [9, 9]]})
        for _ in range(2):
            writer["mixed"].publish(-1, 0, 0, False, 0.0, b"", [[0, 0], [0, 0]])
        rows = read_all(f"{bus_name}/mixed")
    used = np.zeros(MIXED.row_bytes, bool)
    used[:24] = True  # the stamp, and `price`
    assert (rows.view("u1").reshape(2, -1)[:, ~used] == 0).all()


def test_a_value_whose_conversion_publishes_into_the_same_topic_is_refused(bus_name):
    class Sly:
        def __index__(self) -> int:
            pairs.publish(1)
            return 2

    with Writer(bus_name, [PAIRS]) as writer:
        pairs = writer["pairs"]
        with pytest.raises(RuntimeError, match="still under way"):
            pairs.publish(Sly())
        assert pairs.watermarks.published == 0
        assert pairs.publish(3) == 1


def test_a_topic_that_is_not_there_is_named_with_those_that_are(bus_name):
    with Writer(bus_name, [PAIRS, POINTS]) as writer, pytest.raises(KeyError, match=r"'pears'.*pairs, points"):
        writer["pears"]


def test_every_topic_counts_its_own_sequence_from_1(bus_name, tmp_path):
    with Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path) as writer:
        assert writer["points"].watermarks == writer["pairs"].watermarks == (0, 0, 0, 0, 0, 0)
        assert [writer["pairs"].publish(7) for _ in range(3)] == [1, 2, 3]
        assert publish(writer, POINTS, 5) == 5
        assert writer["pairs"].publish(7) == 4


# --- publishing batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000])
def test_a_batch_of_any_length_goes_round_the_ring_whole(bus_name, tmp_path, count):
    with Writer(bus_name, [POINTS], data_dir=tmp_path, slots=64) as writer:
        for round_number in range(1, 4):
            assert publish(writer, POINTS, count) == round_number * count
        writer["points"].wait(3 * count)
        assert_content(POINTS, read_all(f"{bus_name}/points"), 1, 3 * count)


def test_a_batch_may_be_rows_with_stamps_which_are_replaced(bus_name):
    rows = make_rows(POINTS, 1001, 5)
    with Writer(bus_name, [POINTS]) as writer:
        assert writer["points"].publish_batch(rows) == 5
        found = read_all(f"{bus_name}/points")
    assert found["sequence"].tolist() == [1, 2, 3, 4, 5]
    assert (found["timestamp_ns"] > rows["timestamp_ns"]).all()
    assert (found["value"] == rows["value"]).all()


def test_a_batch_may_be_any_view_of_an_array(bus_name):
    rows = payload(POINTS, 1, 12)
    rows.flags.writeable = False
    with Writer(bus_name, [POINTS], slots=64) as writer:
        assert writer["points"].publish_batch(rows[::3]) == 4
        assert writer["points"].publish_batch(rows[::-1]) == 16
        assert writer["points"].publish_batch(rows[5:5]) == 16
        found = read_all(f"{bus_name}/points")
    assert found["value"].tolist() == [*rows["value"][::3], *rows["value"][::-1]]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([1, 2], "a numpy array is needed, got list"),
        (np.zeros(3, "i8"), "rows of .* are needed, got int64"),
        (np.zeros(3, PAIRS.payload_dtype), "rows of .* are needed, got .*left"),
        (np.zeros((2, 2), POINTS.payload_dtype), "one-dimensional .* got 2 dimensions"),
        (np.zeros((), POINTS.payload_dtype), "one-dimensional .* got 0 dimensions"),
        (np.zeros(2, POINTS.payload_dtype.newbyteorder(">")), "rows of .* are needed"),
    ],
)
def test_a_batch_of_anything_else_is_refused_and_publishes_nothing(bus_name, rows, text):
    with Writer(bus_name, [POINTS]) as writer:
        with pytest.raises(TypeError, match=text):
            writer["points"].publish_batch(rows)
        assert writer["points"].watermarks.published == 0


# --- claims -----------------------------------------------------------------------------------------------------------------


def test_a_claim_is_filled_in_place_and_committed_at_the_end_of_its_block(bus_name):
    with Writer(bus_name, [POINTS]) as writer:
        topic = writer["points"]
        with topic.claim(3) as rows:
            assert rows.dtype == POINTS.payload_dtype
            rows["value"] = [1, 2, 3]
            assert topic.watermarks.published == 0
        assert topic.watermarks.published == 3
        found = read_all(f"{bus_name}/points")
    assert found["value"].tolist() == [1, 2, 3]
    assert found["sequence"].tolist() == [1, 2, 3]
    assert (found["timestamp_ns"] > 0).all()


def test_part_of_a_claim_can_be_committed_and_the_next_one_takes_the_rest(bus_name):
    with Writer(bus_name, [PAIRS]) as writer:
        topic = writer["pairs"]
        claim = topic.claim(10)
        claim.rows["left"] = range(10)
        assert claim.commit(4) == 4
        assert topic.publish(99) == 5
        assert read_all(f"{bus_name}/pairs")["left"].tolist() == [0, 1, 2, 3, 99]


def test_an_aborted_claim_leaves_nothing_and_its_sequences_are_used_again(bus_name):
    with Writer(bus_name, [PAIRS]) as writer:
        topic = writer["pairs"]
        topic.publish(1)
        claim = topic.claim(10)
        claim.rows["left"] = 66
        claim.abort()
        assert topic.watermarks.published == 1
        assert topic.publish(2) == 2
        assert read_all(f"{bus_name}/pairs")["left"].tolist() == [1, 2]


def test_an_exception_in_a_claim_aborts_it_and_comes_out(bus_name):
    with Writer(bus_name, [PAIRS]) as writer:
        topic = writer["pairs"]

        def fill_and_fail() -> None:
            with topic.claim(2) as rows:
                rows["left"] = 66
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fill_and_fail()
        assert topic.watermarks.published == 0
        assert topic.publish(2) == 1


def test_a_block_may_commit_or_abort_its_claim_itself(bus_name):
    with Writer(bus_name, [PAIRS]) as writer:
        topic = writer["pairs"]
        claim = topic.claim(2)
        with claim as rows:
            rows["left"] = [5, 6]
            claim.commit(1)
        claim = topic.claim(2)
        with claim:
            claim.abort()
        assert topic.watermarks.published == 1


def test_claimed_rows_begin_as_zeros_whatever_the_slots_held(bus_name):
    with Writer(bus_name, [POINTS], slots=8) as writer:
        publish(writer, POINTS, 8)
        claim = writer["points"].claim(4)
        assert claim.rows.tolist() == [(0, 0, b"")] * 4
        claim.commit()
        found = read_all(f"{bus_name}/points")[-4:]
    assert found["sequence"].tolist() == [9, 10, 11, 12]
    assert (found.view("u1").reshape(4, -1)[:, 16:] == 0).all()


def test_a_claim_may_run_over_the_end_of_the_ring(bus_name):
    with Writer(bus_name, [PAIRS], slots=8) as writer:
        topic = writer["pairs"]
        for first in range(0, 30, 3):
            with topic.claim(3) as rows:
                rows["left"] = [first, first + 1, first + 2]
        found = read_all(f"{bus_name}/pairs")
    assert found["left"].tolist() == (found["sequence"] - 1).tolist()
    assert found["sequence"][-1] == 30


@pytest.mark.parametrize("count", [0, 5, 100, -1])
def test_a_claim_is_between_one_record_and_half_the_ring(bus_name, count):
    with Writer(bus_name, [PAIRS], slots=8) as writer:
        with pytest.raises((ValueError, OverflowError)):
            writer["pairs"].claim(count)
        assert writer["pairs"].publish(1) == 1


@pytest.mark.parametrize("count", [0, 4, -1])
def test_a_commit_of_more_than_was_claimed_is_refused_and_the_claim_stays_open(bus_name, count):
    with Writer(bus_name, [PAIRS]) as writer:
        claim = writer["pairs"].claim(3)
        with pytest.raises(ValueError, match="between 1 and the 3 rows"):
            claim.commit(count)
        assert claim.commit(3) == 3


def test_a_claim_ends_once_and_its_rows_cannot_be_written_then(bus_name):
    with Writer(bus_name, [PAIRS]) as writer:
        claim = writer["pairs"].claim(2)
        claim.commit()
        for end in (claim.commit, claim.abort):
            with pytest.raises(ValueError, match="committed or aborted already"):
                end()
        with pytest.raises(ValueError, match="read-only"):
            claim.rows["left"] = 1
        assert writer["pairs"].watermarks.published == 2


def test_nothing_else_is_published_into_a_topic_while_a_claim_is_open(bus_name):
    with Writer(bus_name, [PAIRS, POINTS]) as writer:
        topic = writer["pairs"]
        claim = topic.claim(2)
        for call in (
            lambda: topic.publish(1),
            lambda: topic.publish_batch(payload(PAIRS, 1, 2)),
            lambda: topic.claim(1),
        ):
            with pytest.raises(RuntimeError, match="still under way"):
                call()
        assert publish(writer, POINTS, 3) == 3
        assert claim.commit() == 2


# --- waiting ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["interval", "always"])
def test_a_record_becomes_published_logged_and_durable(bus_name, tmp_path, sync):
    with Writer(bus_name, [POINTS], data_dir=tmp_path, sync=sync) as writer:
        topic = writer["points"]
        for count in (1, 100, 7):
            sequence = publish(writer, POINTS, count)
            for watermark in ("published", "logged", "durable"):
                topic.wait(sequence, watermark, timeout=TIMEOUT_S)
                assert getattr(topic.watermarks, watermark) >= sequence
        topic.wait(1, timeout=0)
        assert examine(tmp_path / "log").topics["points"].next_sequence == sequence + 1


def test_without_syncs_records_are_logged_and_nothing_is_said_to_be_durable(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path, sync="never") as writer:
        topic = writer["points"]
        topic.wait(publish(writer, POINTS, 5), "logged", timeout=TIMEOUT_S)
        with pytest.raises(ValueError, match="nothing is durable with sync='never'"):
            topic.wait(5, "durable", timeout=TIMEOUT_S)
        assert topic.watermarks.durable == 0


def test_any_number_of_threads_may_wait_at_once(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path) as writer:
        topic, reached = writer["points"], []

        def wait(sequence: int) -> None:
            topic.wait(sequence, "durable", timeout=TIMEOUT_S)
            reached.append((sequence, topic.watermarks.durable))

        publish(writer, POINTS, 8)
        threads = [threading.Thread(target=wait, args=(sequence,)) for sequence in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert sorted(sequence for sequence, _ in reached) == list(range(1, 9))
        assert all(durable >= sequence for sequence, durable in reached)


def test_waiting_for_what_cannot_come_is_refused_at_once(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path) as writer:
        topic = writer["points"]
        publish(writer, POINTS, 2)
        with pytest.raises(ValueError, match="'claimed'"):
            topic.wait(1, "claimed")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="sequence 3 is not published yet"):
            topic.wait(3)
        topic.wait(0)
    with Writer(bus_name, [POINTS]) as writer:
        topic = writer["points"]
        topic.wait(publish(writer, POINTS, 1), "published")
        for watermark in ("logged", "durable"):
            with pytest.raises(ValueError, match=f"nothing is {watermark} without a data_dir"):
                topic.wait(1, watermark)


def test_a_wait_that_takes_too_long_says_how_far_it_is(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path, sync_interval=1e9) as writer:
        topic = writer["points"]
        topic.wait(publish(writer, POINTS, 5), "logged", timeout=TIMEOUT_S)
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError, match=f"'points': sequence 5 was not durable within {timeout} s; 0 is"):
                topic.wait(5, "durable", timeout=timeout)


@pytest.mark.process
def test_a_log_that_stops_ends_every_wait_and_the_next_writer_saves_what_was_published(bus_name, tmp_path, children):
    child = children.start()
    child.run(
        "writer = Writer(bus, [POINTS, PAIRS], data_dir=data_dir); topic = writer['points']\n"
        "topic.wait(topic.publish_batch(make_rows(POINTS, 1, 5)), timeout=30)",
        bus=bus_name,
        data_dir=tmp_path,
    )
    child.run("stop_the_log(data_dir)")
    child.run("last = topic.publish_batch(make_rows(POINTS, 6, 95))")
    with pytest.raises(WriterFailed, match="File too large"):
        child.ask("topic.wait(last, 'logged')")
    assert child.ask("topic.wait(5, 'durable')") is None
    for call in ("topic.publish(1, 2, b'')", "topic.publish_batch(make_rows(POINTS, 1, 2))", "topic.claim(1)"):
        with pytest.raises(WriterFailed):
            child.ask(call)
    assert isinstance(child.ask("writer.failure"), LogFailed)
    assert child.ask("topic.watermarks.published") == 100
    with pytest.raises(LogFailed):
        child.run("writer.close()")
    assert child.exit() == 0
    assert ".points" in segments(bus_name)

    with Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path) as writer:
        assert writer.carried.from_rings == {"points": 95}
        assert publish(writer, POINTS, 1) == 101
    assert segments(bus_name) == []
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 101)


# --- a restart --------------------------------------------------------------------------------------------------------------


def test_a_new_writer_continues_every_topics_sequence_exactly(bus_name, tmp_path):
    points = pairs = 0
    for life in range(1, 5):
        with Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path) as writer:
            assert writer.epoch == life
            assert writer["points"].watermarks[1:4] == (points, points, points)
            assert writer["pairs"].watermarks.published == pairs
            points += life
            pairs += 1
            assert publish(writer, POINTS, life) == points
            assert publish(writer, PAIRS, 1) == pairs
        assert segments(bus_name) == []
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, points)
    assert_content(PAIRS, read_rows(tmp_path / "log", PAIRS), 1, pairs)


def test_time_does_not_step_back_at_a_restart(bus_name, tmp_path):
    future_ns = 4_000_000_000_000_000_000
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        writer["pairs"].stamp_after(future_ns)
        writer["pairs"].publish(1)
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        writer["pairs"].publish(2)
    assert read_rows(tmp_path / "log", PAIRS)["timestamp_ns"].tolist() == [future_ns, future_ns]


@pytest.mark.process
def test_after_a_kill_every_topics_sequence_goes_on_and_nothing_published_is_lost(bus_name, tmp_path, children):
    points = pairs = 0
    for life in range(1, 4):
        child = children.start()
        child.run("writer = Writer(bus, [POINTS, PAIRS], data_dir=data_dir)", bus=bus_name, data_dir=tmp_path)
        assert child.ask("writer.epoch") == life
        assert child.ask("writer['points'].watermarks.published") == points
        code = "writer[schema.name].publish_batch(make_rows(schema, first, count))"
        child.ask(code, schema=POINTS, first=points + 1, count=1000)
        child.ask(code, schema=PAIRS, first=pairs + 1, count=7)
        points, pairs = points + 1000, pairs + 7
        child.kill()
    with Writer(bus_name, [PAIRS, POINTS], data_dir=tmp_path) as writer:
        assert not recovered(writer).closed
        assert writer.epoch == 4
        assert publish(writer, POINTS, 1) == points + 1
        assert publish(writer, PAIRS, 1) == pairs + 1
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, points + 1)
    assert_content(PAIRS, read_rows(tmp_path / "log", PAIRS), 1, pairs + 1)


@pytest.mark.process
def test_without_a_log_the_rings_of_a_killed_writer_are_carried_over(bus_name, children):
    child = children.start()
    child.run(
        "writer = Writer(bus, [POINTS, PAIRS], slots={'points': 64, 'pairs': 16})\n"
        "writer['points'].publish_batch(make_rows(POINTS, 1, 1000))\n"
        "writer['pairs'].publish_batch(make_rows(PAIRS, 1, 3))",
        bus=bus_name,
    )
    child.kill()
    with Writer(bus_name, [POINTS, PAIRS], slots={"points": 64, "pairs": 16}) as writer:
        assert writer.epoch == 2
        assert writer.carried.log is None
        assert writer["points"].watermarks.published == 1000
        found = read_all(f"{bus_name}/points")
        first = int(found["sequence"][0])
        assert 937 <= first <= 939  # all but what the writer had claimed ahead
        assert_content(POINTS, found, first, 1001 - first)
        assert_content(PAIRS, read_all(f"{bus_name}/pairs"), 1, 3)
        assert publish(writer, POINTS, 1) == 1001
        assert publish(writer, PAIRS, 1) == 4
    assert segments(bus_name) == []


def test_without_a_log_nothing_outlives_a_writer_that_closed(bus_name):
    with Writer(bus_name, [POINTS]) as writer:
        publish(writer, POINTS, 10)
    with Writer(bus_name, [POINTS]) as writer:
        assert writer.epoch == 1
        assert writer["points"].watermarks.published == 0
        assert publish(writer, POINTS, 1) == 1


def test_what_an_opening_found_is_told(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path) as writer:
        assert (recovered(writer).record_count, recovered(writer).closed) == (0, True)
        assert writer.carried.from_rings == {}
        publish(writer, POINTS, 12)
    seen = []
    with Writer(
        bus_name, [POINTS], data_dir=tmp_path, progress=lambda done, total: seen.append((done, total))
    ) as writer:
        found = recovered(writer)
        assert (found.record_count, found.closed, found.torn_bytes, found.file_count) == (12, True, 0, 1)
        assert seen
        assert seen[-1][0] == seen[-1][1] > 0
    with Writer(bus_name, [POINTS]) as writer:
        assert writer.carried.log is None
        assert writer.carried.from_rings == {}


@pytest.mark.process
def test_what_was_published_and_not_logged_is_saved_from_the_rings_of_a_killed_writer(bus_name, tmp_path, children):
    child = children.start()
    child.run("writer = Writer(bus, [POINTS, PAIRS], data_dir=data_dir)", bus=bus_name, data_dir=tmp_path)
    child.run("writer['pairs'].publish_batch(make_rows(PAIRS, 1, 4)); writer['pairs'].wait(4)")
    child.run("stop_the_log(data_dir)")
    child.run("writer['points'].publish_batch(make_rows(POINTS, 1, 300))")
    with pytest.raises(WriterFailed):
        child.run("writer['points'].wait(300)")
    child.kill()
    with Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path) as writer:
        assert recovered(writer).record_count == 4
        assert writer.carried.from_rings == {"points": 300}
        writer["points"].wait(300, timeout=TIMEOUT_S)
        assert publish(writer, POINTS, 1) == 301
        assert publish(writer, PAIRS, 1) == 5
    with Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path) as writer:
        assert writer.carried.from_rings == {}
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 301)
    assert_content(PAIRS, read_rows(tmp_path / "log", PAIRS), 1, 5)


@pytest.mark.process
def test_a_writer_killed_between_claim_and_commit_leaves_nothing_visible_and_nothing_stuck(
    bus_name, tmp_path, children
):
    for data_dir in (None, tmp_path):
        child = children.start()
        child.run(
            "writer = Writer(bus, [PAIRS], slots=16, data_dir=data_dir); topic = writer['pairs']\n"
            "topic.publish_batch(make_rows(PAIRS, 1, 20))\n"
            "claim = topic.claim(8); claim.rows['left'] = 66",
            bus=bus_name,
            data_dir=data_dir,
        )
        child.kill()
        with Writer(bus_name, [PAIRS], slots=16, data_dir=data_dir) as writer:
            assert writer["pairs"].watermarks.published == 20
            assert publish(writer, PAIRS, 2) == 22
            found = read_all(f"{bus_name}/pairs")
            assert_content(PAIRS, found, 22 - len(found) + 1, len(found))


# --- one writer ---------------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("stopped", [False, True])
def test_a_second_writer_is_refused_and_told_who_the_first_is(bus_name, tmp_path, children, stopped):
    child = children.start()
    child.run(
        "writer = Writer(bus, [PAIRS], data_dir=data_dir); topic = writer['pairs']", bus=bus_name, data_dir=tmp_path
    )
    with RealTime(f"{bus_name}/pairs", start="earliest") as reader:
        if stopped:
            child.pause()
        for schemas, data_dir in (([PAIRS], tmp_path), ([PAIRS, POINTS], tmp_path), ([PAIRS], None)):
            with pytest.raises(WriterAlive, match=f"process {child.pid}") as refused:
                Writer(bus_name, schemas, data_dir=data_dir)
            assert (refused.value.bus, refused.value.pid) == (bus_name, child.pid)
        assert segments(bus_name) == ["", ".pairs", ".pairs.ctl"]
        if stopped:
            child.resume()
        assert child.ask("topic.publish(5)") == 1
        child.run("topic.wait(1, 'durable', timeout=30)")
        batch = reader.take(TIMEOUT_S)
        assert batch is not None
        assert batch.rows["left"].tolist() == [5]
        assert reader.stats.epoch == 1
    child.kill()
    Writer(bus_name, [PAIRS], data_dir=tmp_path).close()


def test_a_second_writer_in_the_same_process_is_refused_too(bus_name):
    with Writer(bus_name, [PAIRS]) as writer:
        with pytest.raises(WriterAlive) as refused:
            Writer(bus_name, [PAIRS])
        assert refused.value.pid == os.getpid()
        assert writer["pairs"].publish(1) == 1
    Writer(bus_name, [PAIRS]).close()


RACE = """
won = refused = 0
while won < 100:
    try:
        with Writer(bus, [PAIRS], slots=64):
            os.close(os.open(alone, os.O_CREAT | os.O_EXCL))  # or there are two
            won += 1
            os.unlink(alone)
    except WriterAlive:
        refused += 1
"""


@pytest.mark.process
def test_writers_that_start_and_close_at_once_are_refused_or_are_the_only_one(bus_name, tmp_path, children):
    racing = [children.start() for _ in range(2)]
    for child in racing:
        child.begin(RACE, bus=bus_name, alone=str(tmp_path / "alone"))
    for child in racing:
        child.settle()
    assert segments(bus_name) == []


def test_a_writer_that_starts_as_another_one_closes_makes_a_bus_of_its_own(bus_name, monkeypatch):
    Segment.create(segment_name(bus_name), _segment.BUS_BYTES, 0o600)
    open_segment = Segment.open

    def open_what_goes(name: str, *, writable: bool) -> Segment:
        monkeypatch.undo()
        segment = open_segment(name, writable=writable)
        Segment.unlink(name)
        return segment

    monkeypatch.setattr(Segment, "open", open_what_goes)
    with Writer(bus_name, [PAIRS]) as writer:
        assert writer["pairs"].publish(1) == 1
    assert segments(bus_name) == []


def test_a_writer_that_starts_as_another_one_makes_its_segment_looks_again(bus_name, monkeypatch):
    path = Path("/dev/shm") / f"ringmain.{bus_name}"
    path.touch()
    open_segment = Segment.open

    def open_what_grows(name: str, *, writable: bool) -> Segment:
        monkeypatch.undo()
        try:
            return open_segment(name, writable=writable)
        finally:
            os.truncate(path, _segment.BUS_BYTES)

    monkeypatch.setattr(Segment, "open", open_what_grows)
    with Writer(bus_name, [PAIRS]) as writer:
        assert writer["pairs"].publish(1) == 1
    assert segments(bus_name) == []


def test_a_bus_whose_name_begins_like_another_is_another_bus(bus_name):
    with Writer(bus_name, [PAIRS]) as writer, Writer(f"{bus_name}-b", [PAIRS]) as other:
        writer["pairs"].publish(1)
        other["pairs"].publish(2)
        other.close()
        assert segments(f"{bus_name}-b") == []
        assert read_all(f"{bus_name}/pairs")["left"].tolist() == [1]


def test_a_data_directory_belongs_to_one_bus(bus_name, tmp_path):
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        writer["pairs"].publish(1)
    with pytest.raises(FormatMismatch, match=f"bus: expected '{bus_name}-b', found '{bus_name}'"):
        Writer(f"{bus_name}-b", [PAIRS], data_dir=tmp_path)
    assert segments(f"{bus_name}-b") == []


# --- the end --------------------------------------------------------------------------------------------------------------------


def test_closing_removes_every_segment_and_says_so_to_the_readers(bus_name, tmp_path):
    writer = Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path)
    publish(writer, POINTS, 10)
    assert segments(bus_name) == ["", ".pairs", ".pairs.ctl", ".points", ".points.ctl"]
    with RealTime(f"{bus_name}/points", start="earliest") as reader:
        writer.close()
        assert segments(bus_name) == []
        assert sum(len(batch) for batch in reader) == 10
        assert reader.ended
    writer.close()
    with pytest.raises(NotFound):
        attach(f"{bus_name}/points")


def test_closing_makes_everything_durable(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path, sync_interval=3600) as writer:
        publish(writer, POINTS, 5000)
    contents = examine(tmp_path / "log")
    assert contents.problems == []
    assert contents.files[-1].closed
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 5000)


@pytest.mark.parametrize("with_log", [False, True])
def test_a_forgotten_writer_is_closed_in_good_order(bus_name, tmp_path, with_log):
    writer = Writer(bus_name, [POINTS], data_dir=tmp_path if with_log else None)
    publish(writer, POINTS, 3)
    del writer
    gc.collect()
    assert segments(bus_name) == []
    if with_log:
        assert examine(tmp_path / "log").files[-1].closed
        assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 3)


@pytest.mark.process
def test_a_process_that_ends_without_closing_its_writer_has_it_closed(bus_name, tmp_path, children):
    child = children.start()
    child.run(
        "writer = Writer(bus, [POINTS], data_dir=data_dir); topic = writer['points']\n"
        "topic.publish_batch(make_rows(POINTS, 1, 300))",
        bus=bus_name,
        data_dir=tmp_path,
    )
    assert child.exit() == 0
    assert segments(bus_name) == []
    assert examine(tmp_path / "log").files[-1].closed
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 300)


FORK = """if True:
    pid = os.fork()
    if pid == 0:
        {code}
        sys.stdout.flush()
        os._exit(0) if hard else sys.exit(0)
    status = os.waitpid(pid, 0)[1]
"""


@pytest.mark.process
@pytest.mark.parametrize("code", ["pass", "writer.close()", "del writer, topic"])
def test_the_end_of_a_forked_child_leaves_the_writer_alone(bus_name, tmp_path, children, code):
    child = children.start()
    child.run(
        "writer = Writer(bus, [PAIRS], data_dir=data_dir); topic = writer['pairs']", bus=bus_name, data_dir=tmp_path
    )
    child.run("topic.publish(1)")
    child.run(FORK.format(code=code), hard=False)
    assert child.ask("status") == 0
    assert segments(bus_name) == ["", ".pairs", ".pairs.ctl"]
    assert child.ask("topic.publish(2)") == 2
    child.run("topic.wait(2, timeout=30)")
    with pytest.raises(WriterAlive):
        Writer(bus_name, [PAIRS], data_dir=tmp_path)
    child.run("writer.close()")
    assert segments(bus_name) == []
    assert read_rows(tmp_path / "log", PAIRS)["left"].tolist() == [1, 2]


@pytest.mark.process
@pytest.mark.parametrize("end", ["killed", "closed"])
def test_a_forked_child_that_lives_on_does_not_keep_the_bus_from_the_next_writer(bus_name, tmp_path, children, end):
    child = children.start()
    child.run(
        "writer = Writer(bus, [PAIRS], data_dir=data_dir); writer['pairs'].publish(1)", bus=bus_name, data_dir=tmp_path
    )
    child.run(
        "ends = os.pipe()\nforked = os.fork()\nif forked == 0: os.write(ends[1], b'.')\n"
        "while forked == 0: signal.pause()\nos.read(ends[0], 1)"
    )
    forked = child.ask("forked")
    try:
        child.kill() if end == "killed" else child.run("writer.close()")
        with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
            assert writer["pairs"].publish(2) == 2
    finally:
        os.kill(forked, signal.SIGKILL)


@pytest.mark.parametrize("with_log", [False, True])
def test_a_closed_publisher_says_so(bus_name, tmp_path, with_log):
    writer = Writer(bus_name, [PAIRS], data_dir=tmp_path if with_log else None)
    topic = writer["pairs"]
    topic.publish(1)
    writer.close()
    for call in (lambda: topic.publish(1), lambda: topic.publish_batch(payload(PAIRS, 1, 2)), lambda: topic.claim(1)):
        with pytest.raises(ValueError, match="topic 'pairs': the writer is closed"):
            call()
    assert topic.watermarks.published == 1
    topic.wait(1, "published", timeout=TIMEOUT_S)
    if with_log:
        topic.wait(1, "durable", timeout=TIMEOUT_S)


def test_a_record_whose_conversion_closes_the_topic_is_refused(bus_name):
    with Writer(bus_name, [PAIRS]) as writer:
        topic = writer["pairs"]

        class Two:
            def __index__(self) -> int:
                topic.close()
                return 2

        topic.publish(1)
        with pytest.raises(ValueError, match="topic 'pairs': the writer is closed"):
            topic.publish(Two())
        assert topic.watermarks.published == 1


def test_what_another_thread_has_published_when_the_writer_closes_is_in_the_log(bus_name, tmp_path):
    """The ring is small: mostly the thread waits for the log to make room."""
    said: list[str] = []
    last = 0

    def publish_on(topic: Publisher) -> None:
        nonlocal last
        try:
            while True:
                last = topic.publish(last + 1)
        except ValueError as refused:
            said.append(str(refused))

    for life in range(1, 11):
        with Writer(bus_name, [PAIRS], data_dir=tmp_path, slots=64) as writer:
            thread = threading.Thread(target=publish_on, args=(writer["pairs"],))
            thread.start()
            wait_until(lambda enough=last + 1000: last >= enough, TIMEOUT_S)
        thread.join(TIMEOUT_S)
        assert said == ["topic 'pairs': the writer is closed"] * life
        assert read_rows(tmp_path / "log", PAIRS)["left"].tolist() == list(range(1, last + 1))


def test_a_claim_still_open_when_the_writer_closes_cannot_be_committed(bus_name, tmp_path):
    writer = Writer(bus_name, [PAIRS], data_dir=tmp_path)
    topic = writer["pairs"]
    topic.publish(1)
    claim = topic.claim(2)
    claim.rows["left"] = 66
    writer.close()
    claim.rows["left"] = 67  # still memory of this process
    with pytest.raises(ValueError, match="the writer is closed"):
        claim.commit()
    assert read_rows(tmp_path / "log", PAIRS)["left"].tolist() == [1]


# --- other schemas, topics and sizes ------------------------------------------------------------------------------------------


def test_a_changed_schema_is_refused_by_the_log_and_nothing_is_changed(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path) as writer:
        publish(writer, POINTS, 3)
    changed = Schema("points", {"value": "u8", "check": "u8", "tag": "S5"})
    before = [(number, path.read_bytes()) for number, path in list_files(tmp_path / "log")]
    with pytest.raises(FormatMismatch, match=r"topic 'points'.*check") as refused:
        Writer(bus_name, [changed], data_dir=tmp_path)
    assert "new topic name" in str(refused.value)
    assert [(number, path.read_bytes()) for number, path in list_files(tmp_path / "log")] == before
    assert segments(bus_name) == []
    with Writer(bus_name, [POINTS], data_dir=tmp_path) as writer:
        assert publish(writer, POINTS, 1) == 4


@pytest.mark.process
def test_without_a_log_a_topic_with_another_schema_begins_anew(bus_name, children):
    child = children.start()
    child.run("writer = Writer(bus, [PAIRS, POINTS])", bus=bus_name)
    child.run("writer['pairs'].publish(1); writer['points'].publish(2, 2, b'')")
    child.kill()
    changed = Schema("pairs", {"left": "u8"})
    with Writer(bus_name, [changed, POINTS]) as writer:
        assert writer["pairs"].watermarks.published == 0
        assert writer["points"].watermarks.published == 1
        assert attach(f"{bus_name}/pairs").schema == changed


def test_a_topic_left_out_keeps_its_place_for_when_it_comes_back(bus_name, tmp_path):
    with Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path) as writer:
        publish(writer, POINTS, 5)
        publish(writer, PAIRS, 3)
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        with pytest.raises(KeyError, match="'points'; it has pairs"):
            writer["points"]
        assert publish(writer, PAIRS, 2) == 5
        assert_content(POINTS, read_all(f"{bus_name}/points"), 1, 5)
    added = Schema("added", {"x": "f8"})
    with Writer(bus_name, [added, PAIRS, POINTS], data_dir=tmp_path) as writer:
        assert publish(writer, POINTS, 1) == 6
        assert publish(writer, PAIRS, 1) == 6
        assert writer["added"].publish(0.5) == 1
    assert segments(bus_name) == []
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 6)
    assert_content(PAIRS, read_rows(tmp_path / "log", PAIRS), 1, 6)
    assert read_rows(tmp_path / "log", added)["x"].tolist() == [0.5]


@pytest.mark.process
def test_what_a_killed_writer_had_not_logged_is_saved_also_for_a_topic_that_is_left_out(bus_name, tmp_path, children):
    child = children.start()
    child.run("writer = Writer(bus, [POINTS, PAIRS], data_dir=data_dir)", bus=bus_name, data_dir=tmp_path)
    child.run("stop_the_log(data_dir)")
    child.run("writer['points'].publish_batch(make_rows(POINTS, 1, 300))")
    with pytest.raises(WriterFailed):
        child.run("writer['points'].wait(300)")
    child.kill()
    with Writer(bus_name, [PAIRS], data_dir=tmp_path) as writer:
        assert writer.carried.from_rings == {"points": 300}
        publish(writer, PAIRS, 1)
    assert segments(bus_name) == []
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 300)


@pytest.mark.process
def test_without_a_log_a_topic_left_out_is_removed(bus_name, children):
    child = children.start()
    child.run("writer = Writer(bus, [POINTS, PAIRS]); writer['points'].publish(1, 1, b'')", bus=bus_name)
    child.kill()
    with Writer(bus_name, [PAIRS]):
        assert segments(bus_name) == ["", ".pairs", ".pairs.ctl"]
    assert segments(bus_name) == []


@pytest.mark.process
@pytest.mark.parametrize("slots", [16, 64, 1024])
def test_a_ring_of_another_size_takes_over_as_much_as_fits(bus_name, children, slots):
    child = children.start()
    child.run("writer = Writer(bus, [POINTS], slots=64)", bus=bus_name)
    child.run("writer['points'].publish_batch(make_rows(POINTS, 1, 200))")
    child.kill()
    with Writer(bus_name, [POINTS], slots=slots) as writer:
        assert attach(f"{bus_name}/points").header["slot_count"] == slots
        found = read_all(f"{bus_name}/points")
        assert min(slots, 64) - 2 <= len(found) <= min(slots, 64)
        assert_content(POINTS, found, 201 - len(found), len(found))
        assert publish(writer, POINTS, slots // 2) == 200 + slots // 2
        found = read_all(f"{bus_name}/points")
        assert_content(POINTS, found, int(found["sequence"][0]), len(found))


@pytest.mark.process
def test_a_ring_too_small_for_what_waits_to_be_logged_is_refused_and_nothing_is_lost(bus_name, tmp_path, children):
    child = children.start()
    child.run("writer = Writer(bus, [POINTS], data_dir=data_dir, slots=512)", bus=bus_name, data_dir=tmp_path)
    child.run("stop_the_log(data_dir)")
    child.run("writer['points'].publish_batch(make_rows(POINTS, 1, 100))")
    with pytest.raises(WriterFailed):
        child.run("writer['points'].wait(100)")
    child.kill()
    for _ in range(2):
        with pytest.raises(ValueError, match="slots: 100 records of topic 'points' wait to be logged"):
            Writer(bus_name, [POINTS], data_dir=tmp_path, slots=64)
    with Writer(bus_name, [POINTS], data_dir=tmp_path, slots=128) as writer:
        assert writer.carried.from_rings == {"points": 100}
    assert_content(POINTS, read_rows(tmp_path / "log", POINTS), 1, 100)


@pytest.mark.process
def test_an_opening_refused_at_one_topic_leaves_what_it_had_carried_over_of_another_for_the_next(
    bus_name, tmp_path, children
):
    settings = {"data_dir": tmp_path, "slots": 1024}
    child = children.start()
    child.run("writer = Writer(bus, [POINTS, PAIRS], **settings)", bus=bus_name, settings=settings)
    child.run("writer._parts.journal.request_stop(); writer._parts.threads[0].join()")  # nothing more is logged
    child.run("for schema in (POINTS, PAIRS): writer[schema.name].publish_batch(make_rows(schema, 1, 500))")
    child.kill()
    with pytest.raises(ValueError, match="500 records of topic 'pairs' wait to be logged"):
        Writer(bus_name, [POINTS, PAIRS], data_dir=tmp_path, slots={"points": 1024, "pairs": 64})
    with Writer(bus_name, [POINTS, PAIRS], **settings) as writer:
        assert writer.carried.from_rings == {"points": 500, "pairs": 500}
    for schema in (POINTS, PAIRS):
        assert_content(schema, read_rows(tmp_path / "log", schema), 1, 500)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"slots": 3}, "slots: a power of two is expected for topic 'points', got 3"),
        ({"slots": 0}, "slots: a power of two"),
        ({"slots": -4}, "slots: a power of two"),
        ({"slots": {"points": 100}}, "slots: a power of two is expected for topic 'points', got 100"),
        ({"sync": "sometimes"}, "sync: .*'sometimes'"),
        ({"full": "explode"}, "full: .*'explode'"),
        ({"sync_interval": 0}, "sync_interval: .*positive"),
        ({"log_file_bytes": 1}, "file_bytes: at least"),
        ({"bus": "Upper"}, "bus name 'Upper'"),
        ({"bus": "a/b"}, "bus name 'a/b'"),
        ({"bus": "a" * 33}, "at most 32 characters"),
        ({"bus": ""}, "bus name ''"),
        ({"schemas": []}, "schemas: a bus needs at least one topic"),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_nothing_is_left_behind(bus_name, tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        Writer(**{"bus": bus_name, "schemas": [POINTS], "data_dir": tmp_path / "data", **settings})
    assert segments(bus_name) == []
    Writer(bus_name, [POINTS], data_dir=tmp_path / "data").close()


def test_slots_may_be_given_by_topic(bus_name):
    with Writer(bus_name, [POINTS, PAIRS], slots={"points": 8}):
        assert attach(f"{bus_name}/points").header["slot_count"] == 8
        assert attach(f"{bus_name}/pairs").header["slot_count"] == 65_536


# --- retention ------------------------------------------------------------------------------------------------------------------


def test_retention_discards_the_oldest_files_and_the_sequence_goes_on(bus_name, tmp_path):
    settings = {"data_dir": tmp_path, "log_file_bytes": FILE_BYTES, "retention_bytes": 2 * FILE_BYTES}
    with Writer(bus_name, [POINTS], **settings) as writer:
        published = 0
        while published * POINTS.row_bytes < 8 * FILE_BYTES:
            published = publish(writer, POINTS, 20_000)
        writer["points"].wait(published, timeout=TIMEOUT_S)
        wait_until(lambda: list_files(tmp_path / "log")[0][0] > 1, TIMEOUT_S)
    numbers = [number for number, _ in list_files(tmp_path / "log")]
    assert numbers[0] > 1
    with Writer(bus_name, [POINTS], **settings) as writer:
        assert writer["points"].watermarks.published == published
        assert publish(writer, POINTS, 1) == published + 1
    kept = read_rows(tmp_path / "log", POINTS)
    first = int(kept["sequence"][0])
    assert first > 1
    assert len(kept) * POINTS.row_bytes >= FILE_BYTES
    assert_content(POINTS, kept, first, published + 2 - first)


def test_retention_by_age_keeps_what_is_young(bus_name, tmp_path):
    with Writer(bus_name, [POINTS], data_dir=tmp_path, log_file_bytes=FILE_BYTES, retention_age=3600) as writer:
        published = 0
        while published * POINTS.row_bytes < 4 * FILE_BYTES:
            published = publish(writer, POINTS, 20_000)
        writer["points"].wait(published, timeout=TIMEOUT_S)
        assert list_files(tmp_path / "log")[0][0] == 1
    with Writer(bus_name, [POINTS], data_dir=tmp_path, log_file_bytes=FILE_BYTES, retention_age=1e-9):
        wait_until(lambda: len(list_files(tmp_path / "log")) == 1, TIMEOUT_S)
