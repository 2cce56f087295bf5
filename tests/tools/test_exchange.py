"""The demo's exchange: a repeatable stream whose records agree with one another."""

import time

import numpy as np
import pytest
from order_book import OrderBook
from ringmain.storage import ACCOUNTS, ORDERS, QUOTES, TRADES
from ringmain.tools.clearing import DEPOSIT
from ringmain.tools.exchange import SESSION_STRIDE, Exchange
from ringmain.tools.matching import Side

TOPICS = {"orders": ORDERS, "trades": TRADES, "quotes": QUOTES, "accounts": ACCOUNTS}


@pytest.fixture(scope="module")
def day():
    exchange = Exchange(11, instruments=4, accounts=16)
    return exchange, exchange.step(30_000)


def test_the_records_have_the_layout_of_the_shipped_schemas(day):
    _, records = day
    assert {topic: rows.dtype for topic, rows in records.items()} == {
        topic: schema.payload_dtype for topic, schema in TOPICS.items()
    }
    assert all(len(rows) > 100 for rows in records.values())


def test_a_seed_gives_the_same_records_however_they_are_stepped():
    whole, parts = Exchange(5), Exchange(5)
    steps = [parts.step(events) for events in (1, 700, 13, 4_000, 2)]
    expected = whole.step(4_700)
    for topic, rows in expected.items():
        stepped = np.concatenate([step[topic] for step in steps])
        shorter = min(len(rows), len(stepped))
        assert shorter > 50
        assert np.array_equal(rows[:shorter], stepped[:shorter])
    assert not np.array_equal(expected["orders"][:100], Exchange(6).step(4_700)["orders"][:100])


def test_events_number_orders_and_trades_together_without_gaps(day):
    _, records = day
    events = np.sort(np.concatenate([records["orders"]["event"], records["trades"]["event"]]))
    assert np.array_equal(events, np.arange(1, len(events) + 1))
    assert len(events) >= 30_000
    assert np.all(np.diff(records["orders"]["exchange_ns"]) >= 0)


def test_every_quote_equals_the_book_rebuilt_from_orders_and_trades(day):
    _, records = day
    for instrument in range(1, 5):
        orders, trades, quotes = (rows[rows["instrument"] == instrument] for rows in list(records.values())[:3])
        book, order_count, trade_count = OrderBook(), 0, 0
        assert len(quotes) > 100
        for quote in quotes:
            order_end, trade_end = (
                np.searchsorted(rows["exchange_ns"], quote["exchange_ns"], side="right") for rows in (orders, trades)
            )
            book.apply(orders[order_count:order_end], trades[trade_count:trade_end])
            order_count, trade_count = order_end, trade_end
            names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
            for name, levels in zip(names, book.levels(10), strict=True):
                assert np.array_equal(quote[name], levels), (name, quote)
            assert quote["trade_count"] == trade_count
            assert quote["volume"] == trades["quantity"][:trade_count].sum()
            if trade_count:
                assert quote["last_price"] == trades["price"][trade_count - 1]


def test_no_quote_is_locked_or_crossed_and_levels_are_sorted(day):
    _, records = day
    quotes = records["quotes"]
    both = (quotes["bid_quantity"][:, 0] > 0) & (quotes["ask_quantity"][:, 0] > 0)
    assert both.mean() > 0.99
    assert np.all(quotes["bid_price"][both, 0] < quotes["ask_price"][both, 0])
    for side, direction in (("bid", -1), ("ask", 1)):
        present = quotes[f"{side}_quantity"] > 0
        steps = direction * np.diff(quotes[f"{side}_price"], axis=1)
        assert np.all(steps[present[:, 1:]] > 0)
        assert np.all(present[:, :-1] >= present[:, 1:])


def test_an_order_is_inserted_once_and_deleted_with_what_was_left_of_it(day):
    _, records = day
    orders, trades = records["orders"], records["trades"]
    added = orders[orders["kind"] == b"A"]
    assert len(np.unique(added["order_id"])) == len(added)
    left = dict(zip(added["order_id"].tolist(), added["quantity"].tolist(), strict=True))
    assert set(trades["side"].tolist()) == {b"B", b"S"}
    for trade in trades:
        left[int(trade["sell_order_id" if trade["side"] == b"B" else "buy_order_id"])] -= int(trade["quantity"])
    for order in orders[orders["kind"] == b"D"]:
        assert left.pop(int(order["order_id"])) == order["quantity"]
    assert min(left.values()) == 0


def test_what_is_bought_is_sold_and_money_only_leaves_as_commission(day):
    exchange, _ = day
    positions, accounts = exchange.positions(), exchange.accounts()
    assert np.abs(positions).sum() > 0
    assert not positions.sum(axis=0).any()
    assert accounts["commission"].sum() > 0
    assert accounts["balance"].sum() == len(accounts) * DEPOSIT - accounts["commission"].sum()
    assert np.array_equal(
        accounts["balance"],
        DEPOSIT + accounts["position_profit"] + accounts["close_profit"] - accounts["commission"],
    )
    assert np.array_equal(accounts["available"], accounts["balance"] - accounts["margin"])


def test_an_account_is_reported_only_after_it_traded(day):
    _, records = day
    rows = records["accounts"]
    for account in range(1, 17):
        own = rows[rows["account"] == account]
        assert len(own) > 10
        assert np.all(np.diff(own["exchange_ns"]) > 0)
        assert np.all(np.diff(own["commission"]) > 0)


def test_a_later_session_goes_on_with_new_ids():
    first, second = Exchange(5).step(3_000), Exchange(5, session=1).step(3_000)
    rising = ("orders", "order_id"), ("orders", "event"), ("trades", "trade_id"), ("quotes", "exchange_ns")
    for topic, field in rising:
        assert first[topic][field].max() < second[topic][field].min()
    assert second["orders"]["order_id"].min() > SESSION_STRIDE
    assert not np.array_equal(first["orders"]["price"][:100], second["orders"]["price"][:100])


def test_best_price_goes_first_and_at_a_price_the_oldest():
    asks = Side()
    for order_id, price in ((1, 102), (2, 101), (3, 101), (4, 103)):
        asks.rest(-price, order_id, 100)
    assert asks.take(102, 250) == [(2, -101, 100, True), (3, -101, 100, True), (1, -102, 50, False)]
    assert asks.take(101, 100) == []
    assert asks.best(3) == ([-102, -103, 0], [50, 100, 0])
    assert asks.remove(-102, 1) == 50
    with pytest.raises(KeyError):
        asks.remove(-102, 1)


def test_it_keeps_up_with_the_demo():
    exchange, record_count, start_s = Exchange(1), 0, time.process_time()
    for _ in range(20):
        record_count += sum(map(len, exchange.step(1_000).values()))
    assert record_count / (time.process_time() - start_s) > 50_000  # measured: some 400,000
