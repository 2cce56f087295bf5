"""Keys: encoded as words that compare as the values do, for every type and every combination of types."""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.storage import Schema, SchemaError
from ringmain.storage._tree import KEY_BYTES_MAX, KeyCodec, Memtable, Merge, State
from ringmain.storage.tree import Tree, _items
from support.keyed import (
    BYTES,
    KEY_TYPES,
    NUMBERS,
    Rows,
    key_order,
    key_values,
    keyed,
    keyed_schemas,
    keys_of,
    order,
    rows_of,
    values_of,
)


def encode(schema: Schema, keys: list[tuple[Any, ...]]) -> list[tuple[int, ...]]:
    return [tuple(words) for words in KeyCodec(schema).encode(rows_of(schema, keys)).tolist()]


def assert_orders_alike(schema: Schema, keys: list[tuple[Any, ...]]) -> None:
    words, meant = encode(schema, keys), [key_order(schema, key) for key in keys]
    for (one, one_meant), (other, other_meant) in itertools.combinations(zip(words, meant, strict=True), 2):
        assert (one < other) == (one_meant < other_meant)
        assert (one == other) == (one_meant == other_meant)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_encoded_keys_order_like_their_values_and_are_equal_only_where_these_are(data):
    schema = data.draw(keyed_schemas())
    assert_orders_alike(schema, data.draw(keys_of(schema)))


@pytest.mark.parametrize("kind", KEY_TYPES)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_key_of_one_type_orders_like_its_values(kind, data):
    schema = keyed(kind)
    assert_orders_alike(schema, data.draw(keys_of(schema)))


@pytest.mark.parametrize("first", KEY_TYPES)
def test_any_two_types_after_each_other_order_by_the_first_then_the_second(first):
    some: dict[str, list[Any]] = {
        **{kind: [0, 1] if kind == "?" else [0, 1, 127] for kind in NUMBERS},
        **{kind: [-128, -1, 0, 127] for kind in ("i1", "i2", "i4", "i8")},
        **{kind: [-math.inf, -1.5, -0.0, 0.0, 2.0, math.nan] for kind in ("f4", "f8")},
        **{kind: [b"", b"\1", b"\xff", b"\xff" * int(kind[1:])] for kind in BYTES},
    }
    for second in KEY_TYPES:
        assert_orders_alike(keyed(first, second), list(itertools.product(some[first], some[second])))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_values_come_back_from_the_words_bit_by_bit(data):
    schema = data.draw(keyed_schemas())
    keys = data.draw(keys_of(schema))
    rows, codec = rows_of(schema, keys), KeyCodec(schema)
    again = rows_of(schema, [codec.values(words) for words in codec.encode(rows).tolist()])
    for name in schema.key:
        assert again[name].tobytes() == rows[name].tobytes()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_bound_of_the_first_fields_takes_in_every_key_that_begins_with_them(data):
    schema = data.draw(keyed_schemas())
    keys = data.draw(keys_of(schema, count_max=20))
    prefixes = st.sampled_from([key[:length] for key in keys for length in range(1, len(key) + 1)])
    first, last = data.draw(st.none() | prefixes), data.draw(st.none() | prefixes)
    codec = KeyCodec(schema)
    memtable = Memtable(codec, 1 << 16)
    memtable.insert(rows_of(schema, keys))
    merge = Merge(codec, [(memtable, len(memtable))], [], first, last)
    merge.begin_scan(len(keys))
    out: Rows = np.empty(len(keys) + 2, schema.dtype)
    found = [key_order(schema, key_values(schema, row)) for row in out[: merge.fill(out)]]

    meant = {key_order(schema, key) for key in keys}
    if first is not None:
        meant = {key for key in meant if key[: len(first)] >= key_order(schema, first)}
    if last is not None:
        meant = {key for key in meant if key[: len(last)] <= key_order(schema, last)}
    assert found == sorted(meant)


# --- what is on disk in the field -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "values", "words"),
    [
        (["u8"], (0x0102030405060708,), [0x0102030405060708]),
        (["i8"], (-1,), [0x7FFF_FFFF_FFFF_FFFF]),
        (["i8"], (0,), [0x8000_0000_0000_0000]),
        (["i4"], (1,), [0x8000_0001 << 32]),
        (["i1", "u2"], (-128, 0x0203), [0x00_0203 << 40]),
        (["f8"], (1.0,), [0xBFF0_0000_0000_0000]),
        (["f8"], (-1.0,), [0x400F_FFFF_FFFF_FFFF]),
        (["f4"], (-0.0,), [0x7FFF_FFFF << 32]),
        (["f4"], (0.0,), [0x8000_0000 << 32]),
        (["?"], (True,), [1 << 56]),
        (["S3"], (b"ab",), [0x6162_00 << 40]),
        (["S8", "S1"], (b"abcdefgh", b"i"), [0x6162_6364_6566_6768, 0x69 << 56]),
        (["S5", "u4", "i2"], (b"hello", 7, -2), [0x68656C6C6F_000000, 0x07_7FFE << 40]),
    ],
)
def test_the_words_of_known_keys_never_change(kinds, values, words):
    schema = keyed(*kinds)
    assert encode(schema, [values]) == [tuple(words)]
    assert KeyCodec(schema).values(words) == values


def test_negative_zero_and_zero_are_two_keys_and_not_a_number_is_one():
    assert len(set(encode(keyed("f8"), [(0.0,), (-0.0,), (math.nan,), (math.nan,)]))) == 3


def test_not_a_number_lies_beyond_infinity_on_the_side_of_its_sign():
    rows = rows_of(keyed("f8"), [(0.0,)] * 4)
    patterns = [0xFFF8_0000_0000_0001, 0xFFF0_0000_0000_0000, 0x7FF0_0000_0000_0000, 0x7FF8_0000_0000_0001]
    rows["k0"] = struct.unpack("<4d", struct.pack("<4Q", *patterns))
    words = KeyCodec(keyed("f8")).encode(rows)[:, 0].tolist()
    assert words == sorted(words)
    assert len(set(words)) == 4


def test_zeros_behind_bytes_do_not_count_as_in_numpy():
    assert len(set(encode(keyed("S4"), [(b"a",), (b"a\0",), (b"a\0\0\0",)]))) == 1


# --- what a key can be ------------------------------------------------------------------------------------------------------


def test_a_topic_without_a_key_is_kept_by_its_sequence():
    codec = KeyCodec(Schema("plain", {"value": "u8"}))
    assert (codec.names, codec.key_bytes, codec.key_words) == (("sequence",), 8, 1)
    rows = np.zeros(3, codec.dtype)
    rows["sequence"] = [1, 5, 1 << 63]
    assert codec.encode(rows).tolist() == [[1], [5], [1 << 63]]
    assert codec.values([5]) == (5,)


def test_the_key_orders_by_the_fields_as_the_key_names_them_not_as_the_row_has_them():
    schema = Schema("turned", {"low": "u4", "body": "S11", "high": "i2"}, key=("high", "low"))
    codec = KeyCodec(schema)
    rows = np.zeros(3, schema.dtype)
    rows["high"], rows["low"] = [2, 1, 1], [0, 9, 8]
    words = [tuple(key) for key in codec.encode(rows).tolist()]
    assert sorted(words) == [words[2], words[1], words[0]]
    assert codec.values(words[1]) == (1, 9)


def test_only_the_key_fields_count():
    schema = keyed("u4", "S3")
    rows = rows_of(schema, [(7, b"x"), (7, b"x")])
    assert rows["value"][0] != rows["value"][1]
    keys = KeyCodec(schema).encode(rows)
    assert (keys[0] == keys[1]).all()


@pytest.mark.parametrize("kinds", [("S256",), ("u8",) * 32, ("S248", "S7", "?"), ("i4",) * 64])
def test_a_key_of_as_many_bytes_as_allowed_works_to_its_last_byte(kinds):
    schema = keyed(*kinds)
    codec = KeyCodec(schema)
    assert (codec.key_bytes, codec.key_words) == (KEY_BYTES_MAX, 32)
    last = {"S": b"\0" * 255 + b"\1", "u": 1, "?": True, "i": -(1 << 31) + 1}[kinds[-1][0]]
    lowest: list[Any] = [b"" if kind[0] == "S" else -(1 << 31) if kind[0] == "i" else 0 for kind in kinds]
    low, high = encode(schema, [tuple(lowest), (*lowest[:-1], last)])
    assert low < high
    assert low[:-1] == high[:-1]
    assert high[-1] - low[-1] == 1
    assert codec.values(high) == (*lowest[:-1], last)


@pytest.mark.parametrize("kinds", [("S257",), ("u8",) * 32 + ("?",), ("S4000",)])
def test_a_longer_key_is_refused_with_its_length(kinds):
    bytes_ = sum(np.dtype(kind).itemsize for kind in kinds)
    with pytest.raises(SchemaError, match=rf"keyed.* key takes {bytes_} bytes; a store takes at most 256"):
        KeyCodec(keyed(*kinds))


def test_an_array_cannot_be_a_key():
    with pytest.raises(SchemaError, match="key"):
        keyed("2u4")


def test_rows_of_another_kind_are_refused():
    codec = KeyCodec(keyed("u4"))
    rows = rows_of(keyed("u4"), [(1,), (2,), (3,)])
    others: list[Any] = [rows[::2], rows_of(keyed("u2"), [(1,)]), rows.reshape(1, 3), [1, 2], None]
    for wrong in others:
        with pytest.raises(TypeError, match="contiguous one-dimensional array of its row dtype"):
            codec.encode(wrong)
    assert codec.encode(rows[1:]).tolist() == codec.encode(rows)[1:].tolist()
    assert codec.encode(rows[:0]).shape == (0, 1)


def test_bounds_with_no_or_too_many_values_or_of_another_type_are_refused():
    codec = KeyCodec(keyed("u4", "S3"))
    for wrong in ((), (1, b"x", 2)):
        with pytest.raises(TypeError, match=f"1 to 2 of its key's fields .*k0, k1.*; got {len(wrong)} values"):
            Merge(codec, [], [], wrong)
    with pytest.raises(OverflowError, match="k0"):
        Merge(codec, [], [], -1)
    with pytest.raises(OverflowError, match="k0"):
        Merge(codec, [], [], None, 1 << 32)
    with pytest.raises(ValueError, match="k1"):
        Merge(codec, [], [], (1, b"long"))
    with pytest.raises(TypeError, match="k1"):
        Merge(codec, [], [], (1, "x"))


# --- many keys, in any form -----------------------------------------------------------------------------------------------


def tree_of(kind: str, values: list[Any]) -> Tree:
    """A tree that has rows with these keys."""
    schema = keyed(kind)
    codec = KeyCodec(schema)
    memtable = Memtable(codec, 1 << 16)
    memtable.insert(rows_of(schema, [(value,) for value in values]))
    tree = Tree(schema, codec, State(codec, (memtable,), (), ()), keeps_versions=False)
    tree.core.visible = len(values)
    return tree


def holds(kind: str, value: Any) -> bool:
    """Whether a field of this type can have exactly that value."""
    if isinstance(value, bytes) or kind.startswith("S"):
        return isinstance(value, bytes) and kind.startswith("S") and len(value) <= int(kind[1:])
    if kind.startswith("f"):
        with np.errstate(over="ignore"):
            return math.isnan(value) or np.dtype(kind).type(float(value)).item() == value
    if kind == "?":
        return value in (0, 1)
    bounds = np.iinfo(kind)
    return math.isfinite(value) and value == int(value) and bounds.min <= value <= bounds.max


def plain_nan(value: Any) -> Any:
    """The value; of all that are not a number one of each sign."""
    return math.copysign(math.nan, value) if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize("kind", KEY_TYPES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_many_keys_in_any_form_are_looked_up_as_they_are_or_refused(kind, data):
    stored = [plain_nan(value) for value in data.draw(st.lists(values_of(kind), min_size=1, max_size=8))]
    others = data.draw(st.lists(st.sampled_from([kind, *KEY_TYPES]), min_size=1, max_size=3))
    values = st.one_of(*(values_of(other) for other in others)) | st.sampled_from(stored)
    asked: list[Any] = [plain_nan(value) for value in data.draw(st.lists(values, min_size=1, max_size=6))]
    given: Any = asked
    match data.draw(st.sampled_from(["list", "tuple", "objects", "array"])):
        case "tuple":
            given = tuple(asked)
        case "objects":
            given = np.array(asked, object)
        case "array" if all(holds(others[0], value) for value in asked):
            given = np.array(asked, others[0])
            asked = given.tolist()
        case _:
            pass
    tree = tree_of(kind, stored)
    if not all(holds(kind, value) for value in asked):
        with pytest.raises(ValueError, match=r"topic 'keyed', field 'k0': not all of these keys fit into"):
            tree.get_many(given)
        return
    rows, found = tree.get_many(given)
    there = {order(kind, value) for value in stored}
    assert found.tolist() == [order(kind, value) in there for value in asked]
    for row, value in zip(rows[found], np.array(asked, object)[found], strict=True):
        assert order(kind, row["k0"].item()) == order(kind, value)


@pytest.mark.parametrize(
    ("kind", "there", "wrong"),  # what is there is what the wrong value would become
    [
        ("u8", (1 << 64) - 1, -1),
        ("u8", (1 << 64) - 1, np.int32(-1)),
        ("u8", 0, 1 << 64),
        ("u4", (1 << 32) - 1, np.int32(-1)),
        ("i8", -1, np.uint64((1 << 64) - 1)),
        ("i2", -1, np.uint16(0xFFFF)),
        ("u1", 0, 256),
        ("u4", 1, 1.5),
        ("u4", 0, math.nan),
        ("i8", (1 << 63) - 1, math.inf),
        ("u4", 1, "1"),
        ("u4", 1, b"1"),
        ("S3", b"abc", b"abcd"),
        ("S3", b"abc", "abc"),
        ("S3", b"5", 5),
        ("S4", b"True", True),
    ],
)
def test_no_way_in_turns_a_value_that_no_key_can_have_into_one_that_is_there(kind, there, wrong):
    tree = tree_of(kind, [there])
    many: list[Any] = [[wrong], (wrong,), np.array([wrong]), np.array([wrong], object), [there, wrong], [wrong, there]]
    for keys in many:
        with pytest.raises(ValueError, match="not all of these keys fit"):
            tree.get_many(keys)
    with tree.at() as view:
        for ask in (tree.get, view.get, tree.history, tree.scan, lambda bound: tree.scan(None, bound)):
            with pytest.raises((TypeError, ValueError, OverflowError), match="field 'k0'"):
                ask(wrong)


def test_keys_between_which_numpy_finds_no_common_type_are_told_apart():
    keys = [1, (1 << 63) + 1, np.int64(3)]
    tree = tree_of("u8", [1, 1 << 63, (1 << 63) + 1])
    rows, found = tree.get_many(keys)
    assert np.asarray(keys).dtype == float  # which does not have the second one
    assert (rows["k0"].tolist(), found.tolist()) == ([1, (1 << 63) + 1, 0], [True, True, False])


def test_zeros_behind_a_key_of_bytes_are_no_part_of_it_in_a_list_as_in_an_array():
    tree = tree_of("S3", [b"ab"])
    keys = [b"ab\0\0", b"\0", b"ab", b"a"]
    for form in (keys, tuple(keys), np.array(keys)):
        assert tree.get_many(form)[1].tolist() == [True, False, True, False]


def test_keys_of_one_type_are_taken_from_a_list_as_numpy_reads_it():
    """One by one they take several times as long."""
    for items in ([1.5, math.nan], [np.float32(0.1)] * 2, [b"a", b"bc"], [np.bytes_(b"a")]):
        assert _items(items).dtype == np.asarray(items).dtype
    for items in ([1.5, 1], [b"a", 5], [np.float32(1), 1.0]):
        assert _items(items).dtype == object
