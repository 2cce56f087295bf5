"""Checks quotes against the order book rebuilt beside them, for one instrument, as the three topics stream in.

1. Topics arrive each in its own order but not in step, so orders and trades are merged by `event`: the smaller of the
   two next events is applied once both are known.
2. A quote that counts n trades must equal the book at some point after trade n and before trade n + 1. The book leaves
   a state only when a quote that counts more trades than it has come, so no quote finds its state gone.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt
from order_book import OrderBook

Rows = npt.NDArray[np.void]
Quote = tuple[int, list[list[int]]]

LEVEL_FIELDS = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")


class BookOracle:
    """Feed it ORDERS, TRADES and QUOTES rows in any interleaving, then call `finish`; rows are copied, none is kept."""

    def __init__(self) -> None:
        self.book = OrderBook()
        self.matched = 0
        self.total = 0
        self.mismatched: list[int] = []  # trade counts of the quotes that equalled no state of the book
        self._orders: deque[tuple[int, int, int, int, bytes, bytes]] = deque()
        self._trades: deque[tuple[int, int, int, int, bytes]] = deque()
        self._quotes: deque[Quote] = deque()
        self._last_trade_count = 0  # of the newest quote that came

    def on_orders(self, rows: Rows) -> None:
        self._orders += rows[["event", "order_id", "price", "quantity", "side", "kind"]].tolist()
        self._advance()

    def on_trades(self, rows: Rows) -> None:
        self._trades += rows[["event", "buy_order_id", "sell_order_id", "quantity", "side"]].tolist()
        self._advance()

    def on_quotes(self, rows: Rows) -> None:
        if not len(rows):
            return
        levels = np.stack([rows[field] for field in LEVEL_FIELDS], axis=1).tolist()
        self._quotes += zip(rows["trade_count"].tolist(), levels, strict=True)
        self.total += len(rows)
        self._last_trade_count = int(rows["trade_count"][-1])
        self._compare()
        self._advance()

    def finish(self) -> None:
        """Say that every topic has ended, and settle what waited for more."""
        self._advance(ended=True)
        self.mismatched += (trade_count for trade_count, _ in self._quotes)
        self._quotes.clear()

    def _advance(self, ended: bool = False) -> None:
        orders, trades = self._orders, self._trades
        while ended or self._last_trade_count > self.book.trade_count:
            if not (orders and trades) and not (ended and (orders or trades)):
                return
            if orders and not (trades and trades[0][0] < orders[0][0]):
                self.book.apply_order(*orders.popleft()[1:])
            else:
                self.book.apply_trade(*trades.popleft()[1:])
            if self._quotes:
                self._compare()

    def _compare(self) -> None:
        """Settle the waiting quotes that the book equals now, and those whose last state it has left."""
        quotes, trade_count = self._quotes, self.book.trade_count
        while quotes and quotes[0][0] < trade_count:
            self.mismatched.append(quotes.popleft()[0])
        if not quotes or quotes[0][0] != trade_count:
            return
        levels = [column.tolist() for column in self.book.levels(10)]
        waiting: list[Quote] = []
        while quotes and quotes[0][0] == trade_count:
            quote = quotes.popleft()
            if quote[1] == levels:
                self.matched += 1
            else:
                waiting.append(quote)
        quotes.extendleft(reversed(waiting))
