"""A real exchange day: loaded as it stands in the files, and its quotes found in the rebuilt book."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from book_oracle import BookOracle
from csv_columns import read_columns
from order_book import OrderBook
from ringmain.storage import ORDERS, QUOTES, TRADES
from sse_day import FOLDER, load_day

DATA = os.environ.get("RINGMAIN_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="RINGMAIN_DATA does not name the folder of market data samples")

pytestmark = needs_data


@pytest.fixture(scope="module")
def folder():
    return Path(DATA or "")


@pytest.fixture(scope="module")
def day(folder):
    return load_day(folder)


def feed(oracle, topic, rows):
    {"orders": oracle.on_orders, "trades": oracle.on_trades, "quotes": oracle.on_quotes}[topic](rows)


def test_the_day_is_loaded_as_it_stands_in_the_files(day):
    assert (len(day.orders), len(day.trades)) == (54_735, 27_135)
    assert (len(day.quotes), len(day.other_quotes)) == (4_847, 262)
    assert (day.orders["kind"] == b"A").sum() == 39_067
    assert (day.orders["kind"] == b"D").sum() == 15_668
    assert day.trades["quantity"].sum() == 3_397_389
    assert (day.trades["price"] * day.trades["quantity"]).sum() == 6_244_678_924_6100
    sides = {side: int((day.trades["side"] == side).sum()) for side in (b"B", b"S", b"N")}
    assert sides == {b"B": 12_601, b"S": 13_971, b"N": 563}
    assert day.other_quotes[-1]["trade_count"] == 27_135
    assert day.other_quotes[-1]["volume"] == 3_397_389
    assert not np.any(day.orders["price"] % 100)


def test_loaded_columns_equal_those_of_the_files(day, folder):
    orders = read_columns(folder / FOLDER / "entrust.csv.gz")
    trades = read_columns(folder / FOLDER / "trade.csv.gz")
    for rows, columns, pairs in (
        (day.orders, orders, {"order_id": "OrderNO", "event": "BizIndex", "quantity": "Balance"}),
        (day.trades, trades, {"trade_id": "TradeIndex", "event": "BizIndex", "quantity": "TradVolume",
                              "buy_order_id": "TradeBuyNo", "sell_order_id": "TradeSellNo"}),
    ):  # fmt: skip
        for field, column in pairs.items():
            assert list(map(str, rows[field].tolist())) == list(columns[column])
        assert set(rows["instrument"].tolist()) == {600519}
    for rows, columns, price, time, side in (
        (day.orders, orders, "OrderPrice", "OrderTime", "OrderBSFlag"),
        (day.trades, trades, "TradPrice", "TradTime", "TradeBSFlag"),
    ):
        assert (rows["price"] / 10_000).tolist() == [float(text) for text in columns[price]]
        assert rows["side"].tolist() == [text.encode() for text in columns[side]]
        midnight_ns = (1_675_209_600 - 8 * 3600) * 10**9  # in Shanghai
        for at_ns, text in zip(rows["exchange_ns"].tolist(), columns[time], strict=True):
            hours, minutes, seconds = text.split(":")
            day_ms = (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1_000)
            assert at_ns == midnight_ns + day_ms * 10**6


def test_rows_are_published_by_event_and_quotes_after_the_trade_they_count(day):
    published = {"orders": 0, "trades": 0, "quotes": 0}
    last_event = 0
    for topic, rows in day.in_order():
        if topic == "quotes":
            assert np.all(rows["trade_count"] == published["trades"])
        else:
            assert rows["event"][0] > last_event
            last_event = rows["event"][-1]
        published[topic] += len(rows)
    assert published == {"orders": 54_735, "trades": 27_135, "quotes": 4_847}


def test_a_restarted_publisher_goes_on_where_it_ended(day):
    out = {"orders": [], "trades": [], "quotes": []}
    for count, (topic, rows) in enumerate(day.in_order()):
        if count == 20_000:
            break
        out[topic].append(rows)
    published = {topic: sum(map(len, parts)) for topic, parts in out.items()}
    assert min(published.values()) > 0
    for topic, rows in day.in_order(published):
        out[topic].append(rows)
    for topic, parts in out.items():
        assert np.array_equal(np.concatenate(parts), getattr(day, topic))


def test_every_quote_of_continuous_trading_equals_the_rebuilt_book(day):
    oracle = BookOracle()
    for topic, rows in day.in_order():
        feed(oracle, topic, rows)
    oracle.finish()
    assert (oracle.matched, oracle.total, oracle.mismatched) == (4_847, 4_847, [])


@pytest.mark.parametrize("seed", [1, 2])
def test_they_are_found_whatever_the_topics_arrive_like(day, seed):
    random = np.random.default_rng(seed)
    waiting = {}
    for topic in ("orders", "trades", "quotes"):
        rows = getattr(day, topic)
        cuts = [0, *sorted(random.integers(0, len(rows), 40).tolist()), len(rows)]
        waiting[topic] = [rows[start:end] for start, end in pairwise(cuts)]
    oracle = BookOracle()
    while waiting:
        topic = random.choice(sorted(waiting))
        feed(oracle, topic, waiting[topic].pop(0))
        if not waiting[topic]:
            del waiting[topic]
    oracle.finish()
    assert (oracle.matched, oracle.total) == (4_847, 4_847)


def test_a_quote_that_no_book_shows_is_told(day):
    quotes = day.quotes.copy()
    quotes["ask_quantity"][[7, 4_846], [9, 0]] += 100
    oracle = BookOracle()
    oracle.on_quotes(quotes)
    oracle.on_orders(day.orders)
    oracle.on_trades(day.trades)
    oracle.finish()
    assert (oracle.matched, oracle.total) == (4_845, 4_847)
    assert oracle.mismatched == quotes["trade_count"][[7, 4_846]].tolist()


def test_a_lost_order_is_noticed(day):
    book = OrderBook()
    with pytest.raises(KeyError):
        book.apply(day.orders[1:], day.trades)


def test_the_book_closes_uncrossed(day):
    book = OrderBook()
    book.apply(day.orders, day.trades)
    bid_price, bid_quantity, ask_price, ask_quantity = book.levels(1)
    assert bid_quantity[0] > 0
    assert ask_quantity[0] > 0
    assert bid_price[0] < ask_price[0]


def test_rows_have_the_layout_of_the_shipped_schemas(day):
    assert day.orders.dtype == ORDERS.payload_dtype
    assert day.trades.dtype == TRADES.payload_dtype
    assert day.quotes.dtype == QUOTES.payload_dtype
