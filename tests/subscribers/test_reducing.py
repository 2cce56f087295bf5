"""Reductions and conflation equal to what plain numpy says of all the rows at once, however the rows are cut into pieces."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.bus import Batch, Overrun
from ringmain.bus._read import owned_batch
from ringmain.storage import Schema
from ringmain.subscribers import Reduction, ohlcv
from ringmain.subscribers.folding import All, Fold, Newest
from ringmain.subscribers.reducing import Reduced
from support.keyed import taken
from support.streams import Rows

MEAN: Any = "mean"
SUM_AND_COUNT: Any = ("sum", "count")
NUMBERS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
MIXED = Schema(
    "mixed",
    {
        "one": "u2",
        "two": "S3",
        **{f"x{kind.replace('?', 'b')}": kind for kind in NUMBERS},
        "levels": "3i4",
        "note": "S9",
    },
)
NAMES = [name for name in MIXED.payload_dtype.names or () if name.startswith("x")]
EVERYTHING = Reduction(
    ("one", "two"),
    **dict.fromkeys(NAMES, ("first", "last", "min", "max", "sum")),
    levels=("first", "last"),
    note=("first", "last"),
)


def mixed_rows(count: int, seed: int) -> Rows:
    """Rows of any bytes, but for the key, of which there are few, and truth values, which have only two."""
    chance = np.random.default_rng(seed)
    rows = np.frombuffer(chance.bytes(count * MIXED.row_bytes), MIXED.dtype).copy()
    rows["sequence"] = np.arange(1, count + 1) + int(chance.integers(0, 1000))
    rows["timestamp_ns"] = 1_700_000_000_000_000_000 + np.cumsum(chance.integers(0, 1000, count))
    rows["one"], rows["two"] = chance.integers(0, 4, count), chance.choice([b"a", b"bc", b""], count)
    rows["xb"] = chance.integers(0, 2, count)
    values = [0.0, -0.0, 1.5, -2.25, 3e30, math.inf, -math.inf, math.nan]
    for name in ("xf4", "xf8"):
        rows[name] = chance.choice(values, count, p=[0.15] * 5 + [0.12, 0.12, 0.01])
    return rows


def batch_of(rows: Rows) -> Batch:
    return owned_batch(rows, MIXED, int(rows["sequence"][0]), int(rows["sequence"][-1]), 0)


def fold_in_pieces(fold: Fold, rows: Rows, cuts: list[int]) -> Rows:
    for start, end in pairwise([0, *sorted(cuts), len(rows)]):
        if start < end:
            fold.take_in(batch_of(rows[start:end]))
    return fold.hand_out()


def groups_of(rows: Rows) -> list[Rows]:
    """The rows of each key, in the order of the keys' newest rows."""
    pairs = list(zip(rows["one"].tolist(), rows["two"].tolist(), strict=True))
    parts = [taken(rows, [pair == key for pair in pairs]) for key in set(pairs)]
    return sorted(parts, key=lambda part: int(part["sequence"][-1]))


def same(one: Any, other: Any) -> bool:
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


cut_rows = st.tuples(st.integers(1, 60), st.integers(0, 1 << 30), st.lists(st.integers(0, 60), max_size=4))


@settings(max_examples=40, deadline=None)
@given(st.lists(cut_rows, min_size=1, max_size=3))
def test_a_reduction_is_what_numpy_says_of_the_whole(stretches):
    fold = Reduced(MIXED, EVERYTHING)
    for count, seed, cuts in stretches:
        rows = mixed_rows(count, seed)
        reduced = fold_in_pieces(fold, rows, [min(cut, count) for cut in cuts])
        assert len(fold) == 0
        parts = groups_of(rows)
        assert len(reduced) == len(parts)
        for row, part in zip(reduced, parts, strict=True):
            assert (row["one"], row["two"], row["row_count"]) == (part["one"][0], part["two"][0], len(part))
            assert (row["first_sequence"], row["sequence"]) == (part["sequence"][0], part["sequence"][-1])
            assert (row["first_timestamp_ns"], row["timestamp_ns"]) == (
                part["timestamp_ns"][0],
                part["timestamp_ns"][-1],
            )
            for name in (*NAMES, "levels", "note"):
                assert same(row[f"{name}_first"], part[name][0])
                assert same(row[f"{name}_last"], part[name][-1])
            with np.errstate(all="ignore"):
                for name in NAMES:
                    values, kind = part[name], row[f"{name}_sum"].dtype
                    np.testing.assert_equal(row[f"{name}_min"], values.min())
                    np.testing.assert_equal(row[f"{name}_max"], values.max())
                    if kind.kind == "f":
                        np.testing.assert_allclose(row[f"{name}_sum"], values.astype(kind).sum(), rtol=1e-12)
                    else:
                        assert row[f"{name}_sum"] == values.astype(kind).sum()


@settings(max_examples=40, deadline=None)
@given(st.lists(cut_rows, min_size=1, max_size=3))
def test_the_newest_rows_are_the_last_of_each_key_whole_and_in_order(stretches):
    fold = Newest(MIXED, ("two", "one"))
    for count, seed, cuts in stretches:
        rows = mixed_rows(count, seed)
        newest = fold_in_pieces(fold, rows, [min(cut, count) for cut in cuts])
        assert len(fold) == 0
        assert newest.tobytes() == b"".join(part[-1:].tobytes() for part in groups_of(rows))


class Overwritten:
    """A batch over which the writer has come."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def validate(self) -> None:
        raise Overrun(1, 2)


@pytest.mark.parametrize(
    "fold", [All(MIXED), Newest(MIXED, ("one", "two")), Reduced(MIXED, EVERYTHING)], ids=["all", "newest", "reduced"]
)
def test_overwritten_rows_are_not_kept_nor_their_keys_nor_the_rows_of_an_earlier_interval(fold: Fold):
    good, torn = mixed_rows(20, 1), mixed_rows(50, 2)
    torn["one"][::2] += 100
    overwritten: Any = Overwritten(torn)
    for _ in range(3):
        with pytest.raises(Overrun):
            fold.take_in(overwritten)
        fold.take_in(batch_of(good))
        with pytest.raises(Overrun):
            fold.take_in(overwritten)
        found = fold.hand_out()
        assert set(found["sequence"].tolist()) <= set(good["sequence"].tolist())
        assert len(found) == (20 if isinstance(fold, All) else len(groups_of(good)))
        with pytest.raises(Overrun):
            fold.take_in(overwritten)
        assert len(fold.hand_out()) == 0


def test_many_keys_make_room_for_themselves():
    schema = Schema("ticks", {"instrument": "u4", "price": "i8"})
    newest, reduced = Newest(schema, ("instrument",)), Reduced(schema, Reduction("instrument", price=("min", "sum")))
    for _ in range(2):
        for piece in range(10):
            rows = np.zeros(5000, schema.dtype)
            rows["sequence"] = 1 + 5000 * piece + np.arange(5000)
            rows["instrument"] = 3000 * piece + np.arange(5000)
            rows["price"] = rows["sequence"]
            for fold in (newest, reduced):
                fold.take_in(owned_batch(rows, schema, 1, 1, 0))
        rows, bars = newest.hand_out(), reduced.hand_out()
        assert len(rows) == len(bars) == 32_000
        assert (rows["instrument"] == np.sort(rows["instrument"])).all()
        assert bars["row_count"].sum() == 50_000
        assert bars["price_sum"].sum() == 50_000 * 50_001 // 2


# --- what comes of it -----------------------------------------------------------------------------------------------------


def test_reduced_rows_have_a_schema_that_says_what_they_are():
    trades = Schema("trades", {"instrument": "u4", "price": "i8", "quantity": "u2"}, units={"price": "1/10,000 CNY"})
    schema = ohlcv().as_schema(trades)
    assert schema.name == "trades"
    assert schema.key == ("instrument",)
    assert {field.name: field.type for field in schema.fields} == {
        "instrument": "u4",
        "first_sequence": "u8",
        "first_timestamp_ns": "i8",
        "row_count": "u8",
        "price_first": "i8",
        "price_max": "i8",
        "price_min": "i8",
        "price_last": "i8",
        "quantity_sum": "u8",
    }
    assert {field.name: field.unit for field in schema.fields}["price_max"] == "1/10,000 CNY"


def test_integer_sums_wrap_around_beyond_64_bits_and_narrower_ones_do_not():
    schema = Schema("sums", {"key": "u1", "narrow": "i1", "wide": "i8", "truth": "?", "half": "f4"})
    rows = np.zeros(1000, schema.dtype)
    rows["sequence"] = np.arange(1, 1001)
    rows["narrow"], rows["wide"], rows["truth"], rows["half"] = -128, np.iinfo("i8").max, True, 16_777_216
    rows["half"][1::2] = 1
    fold = Reduced(schema, Reduction("key", narrow="sum", wide="sum", truth="sum", half="sum"))
    fold.take_in(owned_batch(rows, schema, 1, 1000, 0))
    (bar,) = fold.hand_out()
    assert bar["narrow_sum"] == -128_000
    assert int(bar["wide_sum"]) == (1000 * (2**63 - 1) + 2**63) % 2**64 - 2**63
    assert bar["truth_sum"] == 1000
    assert bar["half_sum"] == 500 * 16_777_216 + 500  # not in 32 bits


def test_nan_makes_min_max_and_sum_nan_of_its_key_only():
    schema = Schema("floats", {"key": "u1", "value": "f8"})
    rows = np.zeros(4, schema.dtype)
    rows["sequence"], rows["key"], rows["value"] = [1, 2, 3, 4], [1, 1, 1, 2], [1.0, math.nan, 2.0, 5.0]
    fold = Reduced(schema, Reduction("key", value=("first", "last", "min", "max", "sum")))
    fold.take_in(owned_batch(rows[:2], schema, 1, 2, 0))
    fold.take_in(owned_batch(rows[2:], schema, 3, 4, 0))
    with_nan, without = fold.hand_out()
    assert (with_nan["value_first"], with_nan["value_last"]) == (1.0, 2.0)
    assert all(math.isnan(with_nan[f"value_{name}"]) for name in ("min", "max", "sum"))
    assert [without[f"value_{name}"] for name in ("first", "last", "min", "max", "sum")] == [5.0] * 5


# --- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Reduction("one", price=MEAN),
            "price: one of first, last, min, max, sum is expected, got 'mean'",
        ),
        (lambda: Reduction("one", price=SUM_AND_COUNT), "got 'count'"),
        (lambda: Reduced(MIXED, Reduction("one", price="sum")), "no field 'price'; it has sequence"),
        (lambda: Reduced(MIXED, Reduction("price", xi4="sum")), "by: the topic has no field 'price'"),
        (lambda: Reduced(MIXED, Reduction((), xi4="sum")), "at least one field"),
        (lambda: Reduced(MIXED, Reduction("xf8", xi4="sum")), "'xf8' is float64; a key holds"),
        (lambda: Reduced(MIXED, Reduction("one", note="max")), "note: max wants one number a row, and this is S9"),
        (lambda: Reduced(MIXED, Reduction("one", levels="sum")), "levels: sum wants one number a row, and this is 3i4"),
        (lambda: Reduced(MIXED, Reduction("one", xi4=("sum", "sum"))), "two fields would be named 'xi4_sum'"),
        (lambda: Reduced(MIXED, Reduction(("one", "one"), xi4="sum")), "two fields would be named 'one'"),
        (lambda: Reduced(MIXED, Reduction("sequence", xi4="sum")), "reserved"),
    ],
)
def test_what_cannot_be_reduced_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
