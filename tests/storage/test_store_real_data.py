"""Real exchange days kept by key: what comes out, by key, by time and as of a moment, is what the files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from csv_columns import integers, letters, prices, read_columns
from ringmain.bus import Writer
from ringmain.storage import ORDERS, QUOTES, TRADES, Schema, Shape, Store, StoreSettings
from sse_day import load_day
from support.children import TIMEOUT_S

FOLDER = "sse_orders_trades_20230711"
# Orders and trades share the channel's sequence, so that one topic holds both. `time` is the exchange's, HHMMSSmmm.
TICKS = Schema(
    "ticks",
    {"security": "u4", "number": "u8", "time": "u4", "price": "i8", "quantity": "i8", "kind": "S1", "side": "S1"},
    key=("security", "number"),
)
SMALL = {"memtable_bytes": 2 << 20, "shape": Shape(table_bytes=1 << 20, level1_bytes=4 << 20)}

Rows = np.ndarray


@pytest.fixture(scope="module")
def ticks(data_root: Path) -> Rows:
    """The day of five securities, in the order of the channel: 149,359 orders and 109,616 trades."""
    parts = []
    for name, kind, fields in (
        ("SHorders", None, ("OrderPrice", "OrderQty", "OrderBSFlag")),
        ("SHtrans", b"T", ("TradePrice", "TradeQty", "TradeBSFlag")),
    ):
        columns = read_columns(data_root / FOLDER / f"{name}.csv.gz")
        rows = np.zeros(len(columns["ApplSeqNum"]), TICKS.payload_dtype)
        rows["security"] = [int(text[:6]) for text in columns["SecurityID"]]
        rows["number"] = integers(columns["ApplSeqNum"])
        rows["time"] = integers([text.replace(":", "").replace(".", "") for text in columns["MDTime"]])
        rows["price"], rows["quantity"] = prices(columns[fields[0]]), integers(columns[fields[1]])
        rows["kind"] = kind or np.where(integers(columns["OrderType"]) == 2, b"A", b"D")
        rows["side"] = letters(columns[fields[2]])
        parts.append(rows)
    rows = np.concatenate(parts)
    return rows[np.argsort(rows["number"], kind="stable")]


def payload(rows: Rows, schema: Schema = TICKS) -> Rows:
    """Rows without their stamps."""
    out = np.zeros(len(rows), schema.payload_dtype)
    for name in schema.payload_dtype.names or ():
        out[name] = rows[name]
    return out


def put_all(store: Store, rows: Rows, batch_rows: int = 1000) -> list[int]:
    """Put in batches; returns the newest stamp behind each."""
    stamps = []
    for at in range(0, len(rows), batch_rows):
        store["ticks"].put_batch(rows[at : at + batch_rows])
        stamps.append(int(store["ticks"].core.last_timestamp_ns))
    return stamps


def in_order(rows: Rows) -> Rows:
    return rows[np.lexsort((rows["number"], rows["security"]))]


@pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
def test_a_day_of_five_securities_is_read_back_by_key(tmp_path, ticks, compression):
    assert len(ticks) == 149_359 + 109_616
    rng = np.random.default_rng(20230711)
    with Store(tmp_path, [TICKS], compression=compression, **SMALL) as store:
        put_all(store, ticks)
    with Store(tmp_path, [TICKS], compression=compression, **SMALL) as store:
        store.compact()
        found = np.concatenate(list(store["ticks"].scan()))
        assert np.array_equal(payload(found), in_order(ticks))
        for security in np.unique(ticks["security"]).tolist():
            mine = ticks[ticks["security"] == security]
            found = np.concatenate(list(store["ticks"].scan(security, security)))
            assert np.array_equal(payload(found), mine)
            first, last = mine["number"][len(mine) // 3], mine["number"][len(mine) // 2]
            found = np.concatenate(list(store["ticks"].scan((security, first), (security, last), reverse=True)))
            assert np.array_equal(payload(found)[::-1], mine[len(mine) // 3 : len(mine) // 2 + 1])
        which = rng.integers(0, len(ticks), 5000)
        rows, there = store["ticks"].get_many(ticks[["security", "number"]][which])
        assert there.all()
        assert np.array_equal(payload(rows), ticks[which])
        for at in which[:200].tolist():
            row = store["ticks"].get(int(ticks["security"][at]), int(ticks["number"][at]))
            assert row is not None
            assert int(row["sequence"]) == at + 1
            wrong = store["ticks"].get(int(ticks["security"][at]) + 1, int(ticks["number"][at]))
            assert wrong is None or int(wrong["security"]) != int(ticks["security"][at])


def test_the_day_is_read_back_by_time_and_as_of_its_middle(tmp_path, ticks):
    middle = int(np.searchsorted(ticks["number"], ticks["number"][len(ticks) // 2]))
    with Store(tmp_path, [TICKS], keep_versions=["ticks"], **SMALL) as store:
        stamps = put_all(store, ticks[:middle])
        with store["ticks"].at() as noon:
            assert noon.sequence == middle
            stamps += put_all(store, ticks[middle:])
            store.compact()
            found = np.concatenate(list(noon.scan()))
            assert np.array_equal(payload(found), in_order(ticks[:middle]))
        with store["ticks"].at(middle) as view:  # also later: all versions are kept
            assert np.array_equal(payload(np.concatenate(list(view.scan()))), in_order(ticks[:middle]))
        found = np.concatenate(list(store["ticks"].by_sequence(1000, 200_000)))
        assert np.array_equal(payload(found), ticks[999:200_000])
        since, until = stamps[10], stamps[150]
        found = np.concatenate(list(store["ticks"].by_time(since, until)))
        begin, end = int(found["sequence"][0]) - 1, int(found["sequence"][-1])
        assert np.array_equal(payload(found), ticks[begin:end])
        everything = np.concatenate(list(store["ticks"].by_sequence()))
        stamped = everything["timestamp_ns"]
        assert (begin, end) == (int(np.searchsorted(stamped, since)), int(np.searchsorted(stamped, until)))


def test_the_newest_quote_of_a_share_is_the_last_of_its_day(tmp_path, data_root, bus_name):
    """The day of 600519 over the bus, kept by key: orders by number, trades by sequence, the newest quote of the share."""
    day = load_day(data_root)
    by_sequence = Schema("trades", {field.name: field.type for field in TRADES.fields})
    settings = StoreSettings(memtable_bytes=2 << 20, keep_versions=["quotes"])
    with Writer(bus_name, [ORDERS, by_sequence, QUOTES], data_dir=tmp_path, store=settings) as writer:
        for topic, rows in day.in_order():
            writer[topic].publish_batch(rows)
        half = len(day.quotes) // 2
        for topic in ("orders", "trades", "quotes"):
            writer[topic].wait(writer[topic].watermarks.published, "indexed", TIMEOUT_S)
        trades = np.concatenate(list(writer.store["trades"].scan()))
        assert np.array_equal(payload(trades, by_sequence), payload(day.trades, by_sequence))
        quotes = writer.store["quotes"]
        key = tuple(day.quotes[-1][name].item() for name in QUOTES.key)
        for view, newest in ((quotes, len(day.quotes)), (quotes.at(half), half)):
            row = view.get(*key)
            assert row is not None
            assert int(row["sequence"]) == newest
            assert payload(np.array([row]), QUOTES)[0] == payload(day.quotes[newest - 1 : newest], QUOTES)[0]
        history = quotes.history(*key)
        assert np.array_equal(payload(history[::-1], QUOTES), payload(day.quotes, QUOTES))
        newest_orders: dict[tuple[object, ...], int] = {}
        for at, row in enumerate(day.orders):
            newest_orders[tuple(row[name].item() for name in ORDERS.key)] = at + 1
        found = np.concatenate(list(writer.store["orders"].scan()))
        assert sorted(found["sequence"].tolist()) == sorted(newest_orders.values())
