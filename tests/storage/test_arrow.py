"""Rows as columns of Arrow, pandas and polars: the types that the schema's units ask for, and every value as it was."""

from __future__ import annotations

import datetime
import gc
import sys
import weakref
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.storage import TRADES, Schema, to_arrow, to_pandas, to_polars
from ringmain.storage import arrow as module

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install ringmain[arrow]")

NS = 1_700_000_000_123_456_789
MIXED = Schema(
    "mixed",
    {
        "flag": "?",
        "small": "i1",
        "ratio": "f4",
        "price": "i8",
        "money": "u8",
        "tick": "i2",
        "at_ns": "i8",
        "at_s": "u4",
        "name": "S6",
        "digest": "S6",
        "bids": "3i8",
        "grid": "(2,3)u2",
        "codes": "2S3",
    },
    units={
        "price": "1/10,000 EUR",
        "money": "1/100 of a cent",
        "tick": "1/10",
        "at_ns": "ns since the Unix epoch, of receipt",
        "at_s": "s since the Unix epoch",
        "digest": "bytes of a hash",
        "bids": "1/10,000 EUR",
    },
)


def some_rows(count: int = 2) -> np.ndarray[Any, np.dtype[np.void]]:
    rows = np.zeros(count, MIXED.dtype)
    rows["sequence"] = np.arange(1, count + 1)
    rows["timestamp_ns"] = NS
    for name, value in {
        "flag": True,
        "small": -128,
        "ratio": 0.5,
        "price": -182_500,
        "money": 2**64 - 1,
        "tick": -1,
        "at_ns": NS,
        "at_s": 4_000_000_000,
        "name": "größe".encode()[:6],
        "digest": b"\0\xff\0a",
        "bids": [1, -1, 2**63 - 1],
        "grid": [[1, 2, 3], [4, 5, 65535]],
        "codes": [b"abc", b"d"],
    }.items():
        rows[name] = value
    return rows


def test_the_units_of_a_schema_decide_the_types() -> None:
    table = to_arrow(some_rows(), MIXED)
    table_types = dict(zip(table.schema.names, table.schema.types, strict=True))
    assert table_types == {
        "sequence": pa.uint64(),
        "timestamp_ns": pa.timestamp("ns", "UTC"),
        "flag": pa.bool_(),
        "small": pa.int8(),
        "ratio": pa.float32(),
        "price": pa.decimal128(19, 4),
        "money": pa.decimal128(20, 2),
        "tick": pa.decimal128(5, 1),
        "at_ns": pa.timestamp("ns", "UTC"),
        "at_s": pa.timestamp("s", "UTC"),
        "name": pa.string(),
        "digest": pa.binary(6),
        "bids": pa.list_(pa.decimal128(19, 4), 3),
        "grid": pa.list_(pa.list_(pa.uint16(), 3), 2),
        "codes": pa.list_(pa.string(), 2),
    }
    assert Schema.from_json(table.schema.metadata[b"ringmain.schema"]) == MIXED


def test_every_value_arrives_as_it_is() -> None:
    table = to_arrow(some_rows(), MIXED)
    table.validate(full=True)
    first, second = table.to_pylist()
    assert (first.pop("sequence"), second.pop("sequence")) == (1, 2)
    assert first == second
    assert (int(first.pop("timestamp_ns").value), int(first.pop("at_ns").value)) == (NS, NS)
    assert first == {
        "flag": True,
        "small": -128,
        "ratio": 0.5,
        "price": Decimal("-18.25"),
        "money": Decimal("184467440737095516.15"),
        "tick": Decimal("-0.1"),
        "at_s": datetime.datetime.fromtimestamp(4_000_000_000, datetime.UTC),
        "name": "größ",
        "digest": b"\0\xff\0a\0\0",
        "bids": [Decimal("0.0001"), Decimal("-0.0001"), Decimal("922337203685477.5807")],
        "grid": [[1, 2, 3], [4, 5, 65535]],
        "codes": ["abc", "d"],
    }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=6), min_size=1, max_size=20))
def test_text_is_text_and_what_is_not_utf8_shows_its_bytes(values: list[bytes]) -> None:
    rows = np.zeros(len(values), MIXED.dtype)
    rows["name"] = values
    expected = [value.rstrip(b"\0").decode("utf-8", "backslashreplace") for value in values]
    assert to_arrow(rows, MIXED).column("name").to_pylist() == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_whole_numbers_are_exact_decimals(values: list[int]) -> None:
    rows = np.zeros(len(values), MIXED.dtype)
    rows["price"] = values
    rows["money"] = [value % 2**64 for value in values]
    table = to_arrow(rows, MIXED)
    table.validate(full=True)
    assert table.column("price").to_pylist() == [Decimal(value).scaleb(-4) for value in values]
    assert table.column("money").to_pylist() == [Decimal(value % 2**64).scaleb(-2) for value in values]


@pytest.mark.parametrize(
    ("unit", "kind"),
    [
        ("1/10,000 EUR", "decimal128(19, 4)"),
        ("1/1,000,000", "decimal128(19, 6)"),
        ("1/10,000th of a point", "int64"),
        ("1/10, per share", "decimal128(19, 1)"),
        ("1/8 of a point", "int64"),
        ("10,000 EUR", "int64"),
        ("us since the Unix epoch", "timestamp[us, tz=UTC]"),
        ("days since the Unix epoch", "int64"),
        ("ns since the Unix epoch of the exchange", "timestamp[ns, tz=UTC]"),
        ("bytes", "int64"),
    ],
)
def test_a_unit_means_something_only_where_it_is_one_of_those(unit: str, kind: str) -> None:
    schema = Schema("one", {"value": "i8"}, units={"value": unit})
    assert str(to_arrow(np.zeros(1, schema.dtype), schema).schema.field("value").type) == kind


def test_a_unit_of_whole_numbers_leaves_floats_alone() -> None:
    units = {"ratio": "1/10,000 EUR", "time": "ns since the Unix epoch"}
    schema = Schema("floats", {"ratio": "f8", "time": "f8"}, units=units)
    assert to_arrow(np.zeros(1, schema.dtype), schema).schema.types[2:] == [pa.float64(), pa.float64()]


def test_no_rows_make_an_empty_table_of_the_same_types() -> None:
    assert to_arrow(some_rows(0), MIXED).schema.equals(to_arrow(some_rows(), MIXED).schema, check_metadata=True)
    assert to_arrow(some_rows(0), MIXED).num_rows == 0


def test_some_fields_can_be_chosen() -> None:
    table = to_arrow(some_rows()[["price", "sequence"]], MIXED)
    assert table.to_pylist() == [{"price": Decimal("-18.25"), "sequence": number} for number in (1, 2)]


def test_many_rows_come_in_pieces_that_arrow_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = to_arrow(some_rows(10), MIXED)
    monkeypatch.setattr(module, "PIECE_BYTES_MAX", 3 * MIXED.row_bytes)
    pieces = to_arrow(some_rows(10), MIXED)
    assert [len(piece) for piece in pieces.to_batches()] == [3, 3, 3, 1]
    assert pieces.equals(whole)


@pytest.mark.parametrize("count", [1, 5])  # a column of one row is contiguous as it is
def test_a_table_holds_on_to_no_row(count: int) -> None:
    rows = some_rows(count)
    table = to_arrow(rows, MIXED)
    before = table.to_pylist()
    rows.view("u1")[:] = 0x55
    assert table.to_pylist() == before
    gone = weakref.ref(rows)
    del rows
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (some_rows()[0], "one-dimensional array"),
        (some_rows().reshape(1, 2), "got 2 dimensions"),
        (np.zeros(3), "dimensions of float64"),
        (np.zeros(3, TRADES.dtype), "no fields trade_id, event"),
        (np.zeros(3, [("price", "f8")]), "one-dimensional array of its rows is expected"),
        (np.zeros(3, [("other", "u8")]), "no fields other"),
    ],
)
def test_what_is_no_rows_of_the_schema_is_refused(rows: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"'mixed'.*{words}"):
        to_arrow(rows, MIXED)


@pytest.mark.parametrize(
    ("convert", "package", "advice"),
    [
        (to_arrow, "pyarrow", r"pip install ringmain\[arrow\]"),
        (to_pandas, "pyarrow", r"pip install ringmain\[arrow\]"),
        (to_polars, "pyarrow", r"pip install ringmain\[arrow\]"),
        (to_pandas, "pandas", "pip install pandas"),
        (to_polars, "polars", "pip install polars"),
    ],
)
def test_a_package_that_is_missing_is_named(
    convert: Any, package: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=advice):
        convert(some_rows(), MIXED)


def test_a_pandas_frame_has_times_numbers_texts_and_exact_decimals() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = to_pandas(some_rows(), MIXED)
    assert str(frame["timestamp_ns"].dtype) == "datetime64[ns, UTC]"
    assert frame["timestamp_ns"][0] == pandas.Timestamp(NS, tz="UTC")
    assert frame["small"].dtype == np.int8
    assert frame["price"].tolist() == [Decimal("-18.25")] * 2
    assert frame["price"].sum() == Decimal("-36.5")
    assert frame["name"].tolist() == ["größ"] * 2
    assert frame["bids"][1] == [Decimal("0.0001"), Decimal("-0.0001"), Decimal("922337203685477.5807")]


def test_a_polars_frame_has_times_numbers_texts_and_exact_decimals() -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = to_polars(some_rows(), MIXED)
    assert frame["timestamp_ns"].dtype == polars.Datetime("ns", "UTC")
    assert frame["timestamp_ns"].to_physical().to_list() == [NS, NS]
    assert frame["price"].dtype == polars.Decimal(19, 4)
    assert frame["price"].to_list() == [Decimal("-18.25")] * 2
    assert frame["name"].to_list() == ["größ"] * 2
    assert frame["bids"].dtype == polars.Array(polars.Decimal(19, 4), 3)
    assert frame["digest"].to_list() == [b"\0\xff\0a\0\0"] * 2
