"""Groups of rows by key: one number a key, whatever the key is made of, and partitions that are the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.storage import Schema
from ringmain.storage._tree import KeyCodec
from ringmain.subscribers._grouping import KEY_BYTES_MAX, Keys
from support.keyed import BYTES, NUMBERS, Rows, key_values, keyed, keys_of, rows_of

KINDS = [kind for kind in (*NUMBERS, *BYTES) if not kind.startswith("f")]


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    return keyed(*kinds, backwards=draw(st.booleans()))


def numbers_by_dict(schema: Schema, rows: Rows, known: dict[Any, int]) -> list[int]:
    """What `number` should say: a new number for every key that `known` does not have."""
    return [known.setdefault(key_values(schema, row), len(known)) for row in rows]


def keys_for(schema: Schema) -> Keys:
    return Keys(schema.dtype, schema.key)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_have_the_same_number_exactly_where_their_keys_are_the_same(data):
    schema = data.draw(schemas())
    keys, known = keys_for(schema), dict[Any, int]()
    for _ in range(data.draw(st.integers(1, 3))):
        rows = rows_of(schema, data.draw(keys_of(schema)))
        assert keys.number(rows).tolist() == numbers_by_dict(schema, rows, known)
        assert len(keys) == len(known)
    keys.clear()
    assert len(keys) == 0
    rows = rows_of(schema, data.draw(keys_of(schema)))
    assert not keys.known(rows).any()
    assert keys.number(rows).tolist() == numbers_by_dict(schema, rows, {})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_key_is_known_once_it_has_a_number_and_asking_gives_it_none(data):
    schema = data.draw(schemas())
    keys = keys_for(schema)
    some, others = (rows_of(schema, data.draw(keys_of(schema))) for _ in range(2))
    keys.number(some)
    known = {key_values(schema, row) for row in some}
    assert keys.known(others).tolist() == [key_values(schema, row) in known for row in others]
    assert len(keys) == len(known)


@pytest.mark.parametrize("kind", ["u4", "i8", "S5", "S16", "S40"])
def test_the_table_grows_with_its_keys_and_forgets_them_all(kind: str):
    schema, count = keyed(kind), 50_000
    values = np.random.default_rng(1).permutation(count)
    rows = np.zeros(count, schema.dtype)
    rows["k0"] = np.char.mod("%d", values).astype("S") if kind.startswith("S") else values
    keys = keys_for(schema)
    for _ in range(3):
        for piece in np.split(rows, 10):
            keys.number(piece)
        assert len(keys) == count
        assert (keys.number(rows) == np.arange(count)).all()
        keys.clear()
        assert keys.number(rows[:5]).tolist() == [0, 1, 2, 3, 4]
        for _ in range(20):  # it also becomes small again
            keys.clear()


def test_rows_may_lie_apart_or_backwards():
    schema = keyed("u4", "S9")
    rows = rows_of(schema, [(number % 7, b"%d" % (number % 3)) for number in range(100)])
    for part in (rows[::3], rows[::-1], rows[50:10:-2], rows[:0]):
        assert keys_for(schema).number(part).tolist() == numbers_by_dict(schema, part, {})


# --- partitions -----------------------------------------------------------------------------------------------------------


def python_hash(schema: Schema, row: np.void) -> int:
    """The hash as storage/FORMAT.md has it, in plain Python."""
    mask = (1 << 64) - 1
    data = b""
    for name in schema.key:
        kind = schema.dtype[name]
        if kind.kind == "S":
            data += bytes(row[name]).ljust(kind.itemsize, b"\0")
        else:
            offset = 1 << (8 * kind.itemsize - 1) if kind.kind == "i" else 0
            data += (int(row[name]) + offset).to_bytes(kind.itemsize, "big")
    data = data.ljust(-(-len(data) // 8) * 8, b"\0")
    value = 0x9E3779B97F4A7C15
    for at in range(0, len(data), 8):
        product = (int.from_bytes(data[at : at + 8], "big") ^ 0xA0761D6478BD642F) * (value ^ 0xE7037ED1A0B428DB)
        value = (product & mask) ^ (product >> 64)
    value ^= value >> 32
    value = value * 0xD6E8FEB86659FD93 & mask
    return value ^ (value >> 32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_row_is_in_the_partition_that_the_remainder_of_its_hash_names(data):
    schema, count = data.draw(schemas()), data.draw(st.integers(1, 9))
    rows = rows_of(schema, data.draw(keys_of(schema)))
    hashes = KeyCodec(schema).hashes(rows)
    assert hashes.tolist() == [python_hash(schema, row) for row in rows]
    for index in range(count):
        assert (keys_for(schema).partition(rows, index, count) == (hashes % np.uint64(count) == index)).all()


def test_partitions_are_the_same_in_every_release():
    schema = Schema("trades", {"instrument": "u4", "side": "S1"}, key=["instrument"])
    rows = np.zeros(8, schema.dtype)
    rows["instrument"] = [0, 1, 2, 3, 600_519, 600_520, 4_294_967_295, 7]
    found = [int(np.argmax([keys_for(schema).partition(rows, index, 4)[at] for index in range(4)])) for at in range(8)]
    assert found == [1, 0, 3, 2, 1, 1, 1, 3]


@pytest.mark.parametrize("count", [2, 3, 4, 16])
def test_a_thousand_keys_are_spread_evenly_over_partitions(count: int):
    schema = keyed("u4")
    rows = np.zeros(1000, schema.dtype)
    rows["k0"] = np.arange(1000)
    sizes = [int(keys_for(schema).partition(rows, index, count).sum()) for index in range(count)]
    assert sum(sizes) == 1000
    assert max(abs(size - 1000 / count) for size in sizes) < 5 * (1000 / count) ** 0.5


# --- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((), "at least one field"),
        (("side",), "no field 'side'; there are sequence, timestamp_ns, price"),
        ((7,), "no field 7"),
        (("price",), "'price' is float64; a key holds integers"),
        (("levels",), r"'levels' is .*a key holds integers"),
        (("note", "number"), f"takes 264 bytes; at most {KEY_BYTES_MAX}"),
    ],
)
def test_a_field_that_cannot_be_in_a_key_is_named(fields: tuple[Any, ...], words: str):
    schema = Schema("trades", {"price": "f8", "levels": "5i8", "note": "S256", "number": "i8"})
    with pytest.raises(ValueError, match=words):
        Keys(schema.dtype, fields)


def test_rows_of_another_kind_are_refused():
    keys = keys_for(keyed("u4"))
    others: list[Any] = [np.zeros(3), np.zeros(3, keyed("u8").dtype), np.zeros((2, 2), keyed("u4").dtype), None]
    for rows in others:
        with pytest.raises(TypeError):
            keys.number(rows)
    with pytest.raises(ValueError, match="got 4"):
        keys.partition(np.zeros(3, keyed("u4").dtype), 4, 4)
