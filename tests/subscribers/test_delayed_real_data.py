"""A real day of five Shanghai shares, delayed, conflated, reduced and filtered: equal to plain numpy over the day's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_sets import SSE
from ringmain.bus import Batch, Writer
from ringmain.subscribers import Delayed, Filtered, RealTime, Reduction, ohlcv
from support.streams import TIMEOUT_S, Rows

SCHEMA = SSE.tables["sse_trades"].schema
BARS = ohlcv(by=("instrument", "side"))


@pytest.fixture(scope="module")
def day(data_root: Path) -> Rows:
    return SSE.tables["sse_trades"].load(data_root / SSE.folder / SSE.files["sse_trades"])


def publish_day(bus: str, data_dir: Path, day: Rows) -> None:
    with Writer(bus, [SCHEMA], data_dir=data_dir, slots=4096, sync="never") as writer:
        for at in range(0, len(day), 500):
            writer["sse_trades"].publish_batch(day[at : at + 500])


def keys_of(rows: Rows, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[name].tolist() for name in names), strict=True))


def newest_of(rows: Rows, *names: str) -> list[int]:
    """The places of each key's last row, in order."""
    return sorted({key: place for place, key in enumerate(keys_of(rows, *names))}.values())


def check_bars(batch: Batch, rows: Rows) -> None:
    keys = np.array([hash(key) for key in keys_of(rows, "instrument", "side")])
    places = newest_of(rows, "instrument", "side")
    assert len(batch.rows) == len(places)
    for bar, place in zip(batch.rows, places, strict=True):
        part = rows[keys == keys[place]]
        price = part["price"]
        assert (bar["price_first"], bar["price_last"]) == (price[0], price[-1])
        assert (bar["price_min"], bar["price_max"]) == (price.min(), price.max())
        assert (bar["quantity_sum"], bar["row_count"]) == (part["quantity"].sum(), len(part))
        assert (bar["instrument"], bar["side"]) == (part["instrument"][0], part["side"][0])


@pytest.mark.parametrize("rows_max", [7_919, None], ids=["by rows", "by time"])
def test_bars_newest_rows_and_rows_are_those_of_the_day(bus_name, tmp_path, day, rows_max):
    publish_day(bus_name, tmp_path, day)
    with Writer(bus_name, [SCHEMA], data_dir=tmp_path, slots=4096):
        address = f"{bus_name}/sse_trades"
        interval = 3600 if rows_max else 0.02
        kinds: dict[str, dict[str, Any]] = {"all": {}, "newest": {"last": "instrument"}, "bars": {"reduce": BARS}}
        for kind, settings in kinds.items():
            position = 0
            with Delayed(address, interval, rows=rows_max, start="earliest", **settings) as reader:
                while position < len(day) - (len(day) % rows_max if rows_max else 0):
                    batch = reader.take(TIMEOUT_S)
                    assert batch is not None
                    assert batch.first == position + 1
                    part = day[position : batch.last]
                    if kind == "bars":
                        check_bars(batch, part)
                    else:
                        expected = part if kind == "all" else part[newest_of(part, "instrument")]
                        for name in SCHEMA.payload_dtype.names or ():
                            assert (batch.rows[name] == expected[name]).all()
                    position = batch.last


def test_filters_find_the_rows_that_numpy_finds(bus_name, tmp_path, day):
    publish_day(bus_name, tmp_path, day)
    wanted = np.unique(day["instrument"])[:2].tolist()
    filters: list[tuple[dict[str, Any], Any]] = [
        ({"key": {"instrument": wanted}}, np.isin(day["instrument"], wanted)),
        (
            {"key": {"side": [1]}, "where": lambda rows: rows["quantity"] >= 1000},
            (day["side"] == 1) & (day["quantity"] >= 1000),
        ),
    ]
    with Writer(bus_name, [SCHEMA], data_dir=tmp_path, slots=4096):
        for tests, expected in filters:
            with Filtered(RealTime(f"{bus_name}/sse_trades", start="earliest"), **tests) as reader:
                found = [batch.rows["event"].copy() for batch in iter(reader.poll, None)]
            assert (np.concatenate(found) == day["event"][expected]).all()
        found = []
        for index in range(3):
            source = RealTime(f"{bus_name}/sse_trades", start="earliest")
            with Filtered(source, partition=(index, 3), by=("instrument", "side")) as reader:
                found += [batch.rows["event"].copy() for batch in iter(reader.poll, None)]
        assert (np.sort(np.concatenate(found)) == np.sort(day["event"])).all()


def test_bars_of_bars_are_the_bars_of_the_day(bus_name, tmp_path, day):
    """Reduced rows are rows: published, they can be reduced again."""
    publish_day(bus_name, tmp_path, day)
    with (
        Writer(bus_name, [SCHEMA], data_dir=tmp_path, slots=4096),
        Delayed(f"{bus_name}/sse_trades", 3600, rows=5_000, start="earliest", reduce=BARS) as reader,
    ):
        batches = [reader.take(TIMEOUT_S) for _ in range(len(day) // 5_000)]
        schema = reader.schema
    bars = np.concatenate([batch.rows for batch in batches if batch is not None])
    again = Reduction(
        schema.key,
        price_first="first",
        price_max="max",
        price_min="min",
        price_last="last",
        quantity_sum="sum",
        row_count="sum",
    )
    with (
        Writer(f"{bus_name}-bars", [schema]) as writer,
        Delayed(f"{bus_name}-bars/{schema.name}", 3600, rows=len(bars), reduce=again) as reader,
    ):
        writer[schema.name].publish_batch(bars)
        batch = reader.take(TIMEOUT_S)
    assert batch is not None
    rows = day[: len(day) // 5_000 * 5_000]
    for bar in batch.rows:
        price = rows["price"][(rows["instrument"] == bar["instrument"]) & (rows["side"] == bar["side"])]
        found = [bar[f"price_{word}_{word}"] for word in ("first", "last", "min", "max")]
        assert found == [price[0], price[-1], price.min(), price.max()]
        assert bar["row_count_sum"] == len(price)
