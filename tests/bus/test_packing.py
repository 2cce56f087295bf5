"""What a publisher stores: the bytes that numpy would, or a refusal that names the field and leaves nothing behind."""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Iterator
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringmain.bus import Publisher, Writer
from ringmain.storage import Schema
from ringmain.subscribers import RealTime

SCALARS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"]
INTEGERS = [scalar for scalar in SCALARS if scalar[0] in "iu"]
SLOTS = 16
F4_MAX = float(np.finfo("f4").max)

# Every example opens its bus anew, under the same name.
in_a_bus = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)

names = st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name) and name not in ("sequence", "timestamp_ns")
)
scalars = st.sampled_from(SCALARS) | st.integers(1, 20).map(lambda length: f"S{length}")
lengths = st.integers(1, 4)
types = (
    scalars
    | st.builds(lambda length, scalar: f"{length}{scalar}", lengths, scalars)
    | st.builds(lambda rows, columns, scalar: f"({rows},{columns}){scalar}", lengths, lengths, scalars)
)


class Topic:
    """A topic being published, and what a subscriber finds of it."""

    def __init__(self, publisher: Publisher, reader: RealTime) -> None:
        self.publisher, self.publish, self.reader = publisher, publisher.publish, reader

    @property
    def published(self) -> int:
        return self.publisher.watermarks.published

    def rows(self) -> np.ndarray[Any, Any]:
        """What was published since the last call, as copies."""
        parts = []
        while (batch := self.reader.poll()) is not None:
            parts.append(batch.copy())
        return np.concatenate(parts) if parts else np.empty(0, self.publisher.schema.dtype)


@contextlib.contextmanager
def opened(bus: str, schema: Schema, slots: int = SLOTS) -> Iterator[Topic]:
    with Writer(bus, [schema], slots=slots) as writer, RealTime(f"{bus}/{schema.name}", start="earliest") as reader:
        yield Topic(writer[schema.name], reader)


def values_of(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    """Values that fit into one scalar, as a caller would write them, with the edges among them."""
    match dtype.kind:
        case "b":
            return st.booleans()
        case "i" | "u":
            bounds = np.iinfo(dtype)
            return st.sampled_from([bounds.min, bounds.max, 0]) | st.integers(int(bounds.min), int(bounds.max))
        case "f":
            largest = float(np.finfo(dtype).max)
            return st.sampled_from([inf, -inf, nan, -0.0]) | st.floats(-largest, largest)
        case _:
            return st.sampled_from([b"", b"\0", b"\xff" * dtype.itemsize]) | st.binary(max_size=dtype.itemsize)


def arrays_of(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    """Nested lists, or arrays, of a sub-array's shape."""
    values = values_of(dtype.base)
    if dtype.base == np.dtype("u8"):
        values = st.integers(0, 2**63 - 1)  # what is above, in lists, has a test of its own
    for length in reversed(dtype.shape):
        values = st.lists(values, min_size=length, max_size=length)
    return values | values.map(lambda items: np.array(items, dtype.base))


@st.composite
def declarations(draw: st.DrawFn) -> Schema:
    return Schema("topic", draw(st.dictionaries(names, types, min_size=1, max_size=8)))


@st.composite
def records(draw: st.DrawFn) -> tuple[Schema, list[list[Any]]]:
    """A schema, and a few records that fit it."""
    schema = draw(declarations())
    columns = [schema.payload_dtype[name] for name in schema.payload_dtype.names or ()]
    record = st.tuples(*[arrays_of(column) if column.shape else values_of(column) for column in columns])
    return schema, [list(values) for values in draw(st.lists(record, min_size=1, max_size=5))]


def as_numpy_stores(schema: Schema, record: list[Any]) -> np.ndarray[Any, Any]:
    row = np.zeros(1, schema.payload_dtype)
    for name, value in zip(schema.payload_dtype.names or (), record, strict=True):
        row[name] = value
    return row


def assert_same_bytes(schema: Schema, found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Field by field, so that a NaN equals itself and the unused bytes between fields do not count."""
    assert len(found) == len(expected)
    for name in schema.payload_dtype.names or ():
        assert found[name].tobytes() == expected[name].tobytes(), name


# --- one record -----------------------------------------------------------------------------------------------------------


@in_a_bus
@given(drawn=records(), data=st.data())
def test_a_record_is_stored_as_numpy_would_by_position_and_by_name(
    bus_name: str, drawn: tuple[Schema, list[list[Any]]], data: st.DataObject
) -> None:
    schema, given_records = drawn
    fields = list(schema.payload_dtype.names or ())
    with opened(bus_name, schema) as topic:
        for sequence, record in enumerate(given_records, start=1):
            by_position = data.draw(st.integers(0, len(fields)))
            by_name = data.draw(st.permutations(list(zip(fields, record, strict=True))[by_position:]))
            assert topic.publish(*record[:by_position], **dict(by_name)) == sequence
        rows = topic.rows()
    assert rows["sequence"].tolist() == list(range(1, len(given_records) + 1))
    assert_same_bytes(schema, rows, np.concatenate([as_numpy_stores(schema, record) for record in given_records]))


@pytest.mark.parametrize("scalar", INTEGERS)
def test_whole_numbers_fit_up_to_their_edges_and_not_one_further(bus_name, scalar):
    bounds = np.iinfo(scalar)
    schema = Schema("topic", {"before": "i8", "edge": scalar, "pair": f"2{scalar}"})
    with opened(bus_name, schema) as topic:
        for value in (int(bounds.min), int(bounds.max), np.dtype(scalar).type(bounds.max)):
            topic.publish(7, value, np.array([value, 0], scalar))
        rows = topic.rows()
        assert rows["edge"].tolist() == [bounds.min, bounds.max, bounds.max]
        assert rows["pair"][:, 0].tolist() == [bounds.min, bounds.max, bounds.max]
        for value in (bounds.min - 1, bounds.max + 1, -(2**63) - 1, 2**64, -(10**40), 10**40):
            with pytest.raises(OverflowError, match=r"topic 'topic', field 'edge' \(.*" + scalar):
                topic.publish(7, int(value), [0, 0])
        if scalar not in ("i8", "u8"):
            for value in (bounds.min - 1, bounds.max + 1):
                with pytest.raises(OverflowError, match=r"topic 'topic', field 'pair' \(\(2,\).*" + scalar):
                    topic.publish(7, 0, [0, int(value)])
        assert topic.published == 3
        assert len(topic.rows()) == 0


def test_a_signed_number_does_not_become_a_large_unsigned_one(bus_name):
    with opened(bus_name, Schema("topic", {"one": "u8", "two": "2u8"})) as topic:
        with pytest.raises(OverflowError, match="field 'one'"):
            topic.publish(-1, [1, 2])
        with pytest.raises(OverflowError, match="field 'two'"):
            topic.publish(1, [1, -2])
        with pytest.raises(OverflowError, match="field 'two'"):
            topic.publish(1, np.array([1, -2], "i1"))
        assert topic.published == 0


def test_infinities_nan_and_the_sign_of_zero_are_kept(bus_name):
    values = [inf, -inf, nan, -0.0, 5e-324, F4_MAX]
    with opened(bus_name, Schema("topic", {"wide": "f8", "narrow": "f4", "array": "6f8"})) as topic:
        for value in values:
            topic.publish(value, value, values)
        rows = topic.rows()
    assert rows["wide"].tobytes() == np.array(values, "<f8").tobytes()
    assert rows["narrow"].tobytes() == np.array(values, "<f4").tobytes()
    assert rows["array"][0].tobytes() == np.array(values, "<f8").tobytes()


def test_numbers_of_every_python_and_numpy_kind_are_taken_where_nothing_is_lost(bus_name):
    class Index:
        def __index__(self) -> int:
            return 6

    class Float:
        def __float__(self) -> float:
            return 1.5

    with opened(bus_name, Schema("topic", {"signed": "i2", "unsigned": "u2", "real": "f8", "flag": "?"})) as topic:
        topic.publish(True, np.uint8(2), np.float32(0.5), np.bool_(True))
        topic.publish(Index(), Index(), Float(), False)
        topic.publish(np.int64(-3), np.array(4), 7, True)
        assert topic.rows()[["signed", "unsigned", "real", "flag"]].tolist() == [
            (1, 2, 0.5, True),
            (6, 6, 1.5, False),
            (-3, 4, 7.0, True),
        ]


@pytest.mark.parametrize("rest", [{}, {"number": "u1"}], ids=["full row", "row with padding"])
def test_short_bytes_are_filled_with_zeros_whatever_the_slot_held_before(bus_name, rest):
    with opened(bus_name, Schema("topic", {"text": "S6", "texts": "2S5", **rest}), slots=1) as topic:
        for text in (b"", b"a", b"ab\0cd", b"\0", b"abcde", b""):
            topic.publish(text, [text, b"x"], *[255 for _ in rest])
            row = topic.rows()
            assert row["text"].tobytes() == text.ljust(6, b"\0")
            assert row["texts"].tobytes() == text.ljust(5, b"\0") + b"x\0\0\0\0"


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("whole", 1.0, TypeError),
        ("whole", "1", TypeError),
        ("whole", b"1", TypeError),
        ("whole", None, TypeError),
        ("whole", np.float64(1), TypeError),
        ("whole", [1], TypeError),
        ("count", 1.0, TypeError),
        ("count", "1", TypeError),
        ("count", None, TypeError),
        ("real", "1.0", TypeError),
        ("real", b"1.0", TypeError),
        ("real", None, TypeError),
        ("real", 1j, TypeError),
        ("real", 10**400, OverflowError),
        ("text", "abc", TypeError),
        ("text", 5, TypeError),
        ("text", None, TypeError),
        ("text", bytearray(b"abc"), TypeError),
        ("text", b"abcd", ValueError),
        ("flag", np.zeros(2), ValueError),
        ("grid", 1, ValueError),
        ("grid", [1, 2, 3], ValueError),
        ("grid", [[1, 2], [3, 4]], ValueError),
        ("grid", [[1, 2, 3], [4, 5]], ValueError),
        ("grid", np.zeros((3, 2), "i4"), ValueError),
        ("grid", [[1, 2, 3.5], [4, 5, 6]], TypeError),
        ("grid", [["1", "2", "3"], ["4", "5", "6"]], TypeError),
        ("grid", None, ValueError),
        ("reals", [1.0], ValueError),
        ("reals", ["x", 1.0], TypeError),
        ("reals", [10**400, 1.0], OverflowError),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_the_name_of_its_field_and_nothing_is_published(
    bus_name, field, value, error
):
    schema = Schema(
        "topic",
        {"whole": "i4", "count": "u4", "real": "f8", "text": "S3", "flag": "?", "grid": "(2,3)i4", "reals": "2f8"},
    )
    good = {
        "whole": -1,
        "count": 2,
        "real": 0.5,
        "text": b"abc",
        "flag": True,
        "grid": [[1, 2, 3], [4, 5, 6]],
        "reals": [1.0, 2.0],
    }
    with opened(bus_name, schema) as topic:
        assert topic.publish(*good.values()) == 1
        bad = good | {field: value}
        with pytest.raises(error, match=f"topic 'topic', field '{field}' ") as refused:
            topic.publish(*bad.values())
        assert type(refused.value) is error
        with pytest.raises(error, match=f"topic 'topic', field '{field}' "):
            topic.publish(**bad)
        assert topic.published == 1
        assert topic.publish(**good) == 2  # the refused ones have used no sequence
        rows = topic.rows()
        assert rows["sequence"].tolist() == [1, 2]
        assert rows[list(good)][0] == rows[list(good)][1]


def test_a_refused_record_leaves_nothing_of_itself_in_the_next_one(bus_name):
    schema = Schema("topic", {"name": "S8", "number": "u2", "array": "2i8"})
    with opened(bus_name, schema, slots=1) as topic:
        for value in ("no number", -1):
            with pytest.raises((TypeError, OverflowError), match="'number'"):
                topic.publish(b"rejected", value, [1, 2])
        with pytest.raises(ValueError, match="'array'"):
            topic.publish(b"rejected", 65535, [1])
        topic.publish(b"ok", 1, [0, 0])
        assert_same_bytes(schema, topic.rows(), as_numpy_stores(schema, [b"ok", 1, [0, 0]]))


def test_too_few_too_many_unknown_and_repeated_arguments_are_told_apart(bus_name):
    with opened(bus_name, Schema("topic", {"left": "i8", "right": "i8"})) as topic:
        for args, fields, words in (
            ((1,), {}, r"topic 'topic' has 2 fields \(left, right\), got 1 values"),
            ((), {}, "has 2 fields.*got 0 values"),
            ((1, 2, 3), {}, "has 2 fields.*got 3 values"),
            ((1, 2, 3), {"right": 2}, "has 2 fields.*got 3 values"),
            ((1,), {"wrong": 2}, "field 'right' is missing"),
            ((), {"right": 2}, "field 'left' is missing"),
            ((1, 2), {"wrong": 2}, "no field 'wrong'; its fields are left, right"),
            ((1, 2), {"right": 2}, "field 'right' is given twice"),
            ((1,), {"right": 2, "left": 2}, "field 'left' is given twice"),
            ((), {"left": 1, "right": 2, "sequence": 3}, "no field 'sequence'"),
        ):
            with pytest.raises(TypeError, match=words):
                topic.publish(*args, **fields)
        assert topic.published == 0
        assert topic.publish(1, right=2) == 1


def test_an_error_raised_by_a_value_itself_comes_through_and_nothing_is_published(bus_name):
    class Broken:
        def __index__(self) -> int:
            raise LookupError("gone")

        def __bool__(self) -> bool:
            raise TypeError("neither")

    with opened(bus_name, Schema("topic", {"number": "i8", "flag": "?"})) as topic:
        with pytest.raises(LookupError, match="gone"):
            topic.publish(Broken(), True)
        with pytest.raises(TypeError, match=r"field 'flag'.*neither"):
            topic.publish(1, Broken())
        assert topic.published == 0
        assert topic.publish(1, True) == 1


def test_a_value_that_publishes_while_it_is_packed_is_refused(bus_name):
    with opened(bus_name, Schema("topic", {"left": "i8", "right": "i8"})) as topic:

        class Nested:
            def __index__(self) -> int:
                return topic.publish(8, 8)

        with pytest.raises(RuntimeError, match="under way"):
            topic.publish(1, Nested())
        assert topic.published == 0
        assert topic.publish(1, 2) == 1
        assert topic.rows()[["left", "right"]].tolist() == [(1, 2)]


def test_lists_of_large_and_small_unsigned_numbers_are_stored_exactly(bus_name):
    with opened(bus_name, Schema("topic", {"array": "3u8"})) as topic:
        topic.publish([0, 2**63, 2**64 - 1])
        assert topic.rows()["array"].tolist() == [[0, 2**63, 2**64 - 1]]


def test_numbers_too_large_for_any_type_overflow_in_lists_too(bus_name):
    with opened(bus_name, Schema("topic", {"array": "2i8"})) as topic:
        for value in (2**63, 2**64, -(2**63) - 1):
            with pytest.raises(OverflowError, match="field 'array'"):
                topic.publish([0, value])


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([b"abcd", b""], ValueError),
        (["ab", "cd"], TypeError),
        (["\u00e9", ""], TypeError),
        ([1, 2], TypeError),
        ([b"ab", None], TypeError),
        (np.array([b"abcd", b""]), ValueError),
    ],
)
def test_arrays_of_bytes_are_held_to_the_rules_of_single_ones(bus_name, value, error):
    with opened(bus_name, Schema("topic", {"texts": "2S3"})) as topic:
        with pytest.raises(error, match="field 'texts'"):
            topic.publish(value)
        assert topic.published == 0


@pytest.mark.parametrize("value", [["1", "2"], [None, 1.0], [1.0, 2j], [b"1", b"2"]])
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_arrays_of_floats_are_held_to_the_rules_of_single_ones(bus_name, value):
    with opened(bus_name, Schema("topic", {"reals": "2f8"})) as topic:
        with pytest.raises(TypeError, match="field 'reals'"):
            topic.publish(value)
        assert topic.published == 0


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_a_float_too_large_for_its_field_is_refused(bus_name):
    with opened(bus_name, Schema("topic", {"narrow": "f4", "pair": "2f4"})) as topic:
        with pytest.raises(OverflowError, match="field 'narrow'"):
            topic.publish(2 * F4_MAX, [0, 0])
        with pytest.raises(OverflowError, match="field 'pair'"):
            topic.publish(0, [0, 2 * F4_MAX])
        assert topic.published == 0


# --- batches --------------------------------------------------------------------------------------------------------------


def some_rows(dtype: np.dtype[Any], count: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """Rows of random bytes."""
    return np.frombuffer(np.random.default_rng(seed).bytes(count * dtype.itemsize), dtype).copy()


@in_a_bus
@given(schema=declarations(), count=st.integers(0, 50), seed=st.integers(0, 2**32))
def test_a_batch_is_stored_byte_for_byte(bus_name: str, schema: Schema, count: int, seed: int) -> None:
    rows = some_rows(schema.payload_dtype, count, seed)
    with opened(bus_name, schema, slots=64) as topic:
        assert topic.publisher.publish_batch(rows) == count
        found = topic.rows()
    assert found["sequence"].tolist() == list(range(1, count + 1))
    assert_same_bytes(schema, found, rows)


LAYOUT = {"tag": "S3", "whole": "i8", "grid": "(2,2)f4"}


@pytest.mark.parametrize(
    "arrange",
    [
        lambda rows: rows[::2],
        lambda rows: rows[::-1],
        lambda rows: rows[5:3:-1],
        lambda rows: np.broadcast_to(rows[:1], 7),
        lambda rows: rows.reshape(6, 2)[:, 1],
        lambda rows: rows.view(np.recarray),
        lambda rows: rows[["tag", "whole", "grid"]],
        lambda rows: np.frombuffer(b"?" + rows.tobytes(), rows.dtype, offset=1),
    ],
    ids=["every second", "backwards", "two backwards", "repeated", "a column", "recarray", "all fields", "unaligned"],
)
def test_an_array_that_is_not_contiguous_is_stored_like_its_copy(bus_name, arrange):
    schema = Schema("topic", LAYOUT)
    rows = some_rows(schema.payload_dtype, 12)
    rows["grid"] = np.arange(48).reshape(12, 2, 2)
    arranged = arrange(rows)
    with opened(bus_name, schema) as topic:
        topic.publish(b"x", 0, [[0, 0], [0, 0]])  # so that the batch does not begin at a ring's first slot
        assert topic.publisher.publish_batch(arranged) == 1 + len(arranged)
        assert_same_bytes(schema, topic.rows()[1:], arranged.copy())


def test_a_batch_that_runs_over_the_end_of_the_ring_or_is_longer_than_it_arrives_whole(bus_name):
    schema = Schema("topic", LAYOUT)
    with opened(bus_name, schema, slots=64) as topic:
        for count, seed in ((50, 1), (16, 2), (33, 3)):
            rows = some_rows(schema.payload_dtype, count, seed)
            topic.publisher.publish_batch(rows)
            assert_same_bytes(schema, topic.rows(), rows)
        rows = some_rows(schema.payload_dtype, 1000, 4)
        assert topic.publisher.publish_batch(rows) == 99 + 1000
        with RealTime(topic.reader.address, start="earliest") as late:
            found = np.concatenate([batch.copy() for batch in iter(late.poll, None)])
    assert found["sequence"][-1] == 1099
    assert 32 <= len(found) <= 64
    assert_same_bytes(schema, found, rows[-len(found) :])


def test_rows_with_stamps_are_taken_and_stamped_anew(bus_name):
    schema = Schema("topic", LAYOUT)
    rows = some_rows(schema.dtype, 6)
    with opened(bus_name, schema) as topic:
        topic.publisher.publish_batch(rows[::2])
        found = topic.rows()
    assert found["sequence"].tolist() == [1, 2, 3]
    assert len(set(found["timestamp_ns"].tolist())) == 1  # they became visible together
    assert_same_bytes(schema, found, rows[::2])


def test_an_empty_batch_publishes_nothing(bus_name):
    schema = Schema("topic", LAYOUT)
    with opened(bus_name, schema) as topic:
        assert topic.publisher.publish_batch(np.empty(0, schema.payload_dtype)) == 0
        topic.publish(b"", 1, [[0, 0], [0, 0]])
        assert topic.publisher.publish_batch(np.empty(0, schema.dtype)) == 1


def test_arrays_of_another_type_are_refused_and_nothing_is_published(bus_name):
    schema = Schema("topic", {"left": "i4", "right": "i8"})
    payload = schema.payload_dtype
    rows = np.zeros(4, payload)
    refused: list[tuple[Any, str]] = [
        (rows[["right", "left"]], "rows of .* are needed"),
        (rows[["left"]], "rows of .* are needed"),
        (np.zeros(4, [("right", "<i8"), ("left", "<i4")]), "rows of .* are needed"),
        (np.zeros(4, [("left", "<i4"), ("right", "<i8")]), "rows of .* are needed"),  # packed: other offsets
        (np.zeros(4, payload.newbyteorder(">")), "rows of .* are needed"),
        (np.zeros(4, np.dtype([("left", "<i4"), ("wrong", "<i8")], align=True)), "rows of .* are needed"),
        (np.zeros(4, "i8"), "rows of .* are needed"),
        (np.zeros(4, f"V{payload.itemsize}"), "rows of .* are needed"),
        (rows.reshape(2, 2), "a one-dimensional array is needed, got 2"),
        (rows[:1].reshape(()), "a one-dimensional array is needed, got 0"),
        (rows[0], "a numpy array is needed, got void"),
        (rows.tolist(), "a numpy array is needed, got list"),
        (None, "a numpy array is needed, got NoneType"),
    ]
    with opened(bus_name, schema) as topic:
        for given_rows, words in refused:
            with pytest.raises(TypeError, match=f"topic 'topic': {words}"):
                topic.publisher.publish_batch(given_rows)
        assert topic.published == 0
        assert topic.publisher.publish_batch(rows) == 4
