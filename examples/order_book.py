"""The order book of one instrument, rebuilt from the ORDERS and TRADES rows of the exchange.

A Shanghai-style stream: an insert (A) carries what is left of an order after its immediate executions, a delete (D)
what was withdrawn. A trade reduces the order that rested: the sell order when the buyer was the aggressor (B), the buy
order when the seller was (S), both in an auction (N).
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

Levels = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


class OrderBook:
    """The resting orders of one instrument. Rows of ORDERS and TRADES must be applied in the order of their `event`.

    Raises KeyError for an order that is not in the book, ValueError when more is taken from one than it holds.
    """

    def __init__(self) -> None:
        self.trade_count = 0
        self._orders: dict[int, tuple[_Side, int, int]] = {}  # order id -> its side, price, quantity left
        self._bids, self._asks = _Side(), _Side()

    def apply_order(self, order_id: int, price: int, quantity: int, side: bytes, kind: bytes) -> None:
        """Apply one row of ORDERS, given by these fields."""
        if kind == b"D":
            self._reduce(order_id, quantity)
            return
        book_side = self._bids if side == b"B" else self._asks
        self._orders[order_id] = book_side, price, quantity
        book_side.change(price, quantity)

    def apply_trade(self, buy_order_id: int, sell_order_id: int, quantity: int, side: bytes) -> None:
        """Apply one row of TRADES, given by these fields."""
        if side != b"S":
            self._reduce(sell_order_id, quantity)
        if side != b"B":
            self._reduce(buy_order_id, quantity)
        self.trade_count += 1

    def apply(self, orders: npt.NDArray[np.void], trades: npt.NDArray[np.void]) -> None:
        """Apply rows of both topics, each sorted by `event`, in their common order."""
        first_orders = np.searchsorted(orders["event"], trades["event"]).tolist()
        order_rows = orders[["order_id", "price", "quantity", "side", "kind"]].tolist()
        trade_rows = trades[["buy_order_id", "sell_order_id", "quantity", "side"]].tolist()
        done = 0
        for first_order, trade in zip(first_orders, trade_rows, strict=True):
            for order in order_rows[done:first_order]:
                self.apply_order(*order)
            self.apply_trade(*trade)
            done = first_order
        for order in order_rows[done:]:
            self.apply_order(*order)

    def levels(self, count: int = 10) -> Levels:
        """Return bid prices, bid quantities, ask prices and ask quantities, best first; 0 where there is no level."""
        bids, asks = self._bids, self._asks
        return *_columns(bids, bids.prices[: -count - 1 : -1], count), *_columns(asks, asks.prices[:count], count)

    def order_quantity(self, order_id: int) -> int:
        """Return what is left of an order, 0 when it is not in the book."""
        order = self._orders.get(order_id)
        return order[2] if order else 0

    def _reduce(self, order_id: int, quantity: int) -> None:
        book_side, price, left = self._orders[order_id]
        if quantity > left:
            raise ValueError(f"order {order_id} holds {left}, so {quantity} cannot be taken from it")
        book_side.change(price, -quantity)
        if quantity == left:
            del self._orders[order_id]
        else:
            self._orders[order_id] = book_side, price, left - quantity


class _Side:
    """The price levels of one side: quantities by price, and the prices in rising order."""

    __slots__ = ("prices", "quantities")

    def __init__(self) -> None:
        self.prices: list[int] = []
        self.quantities: dict[int, int] = {}

    def change(self, price: int, quantity: int) -> None:
        old = self.quantities.get(price, 0)
        if not old:
            insort(self.prices, price)
        if old + quantity:
            self.quantities[price] = old + quantity
        else:
            del self.quantities[price]
            del self.prices[bisect_left(self.prices, price)]


def _columns(side: _Side, prices: list[int], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    columns = np.zeros((2, count), np.int64)
    columns[0, : len(prices)] = prices
    columns[1, : len(prices)] = [side.quantities[price] for price in prices]
    return columns[0], columns[1]
