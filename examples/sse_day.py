"""One share's day at the Shanghai exchange as ORDERS, TRADES and QUOTES rows, in the order to publish them.

Only the quotes of continuous trading are published: the rebuilt book must equal those, and quotes of the auctions show
a virtual match instead. The others are kept apart, in `Day.other_quotes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from csv_columns import Text, integers, letters, prices, read_columns, shanghai_ns
from interleave import interleave
from ringmain.storage import ORDERS, QUOTES, TRADES

FOLDER = "sse_600519_20230201"
DATE = "2023-02-01"

Rows = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Day:
    """The rows of a day, each topic in its own order."""

    orders: Rows
    trades: Rows
    quotes: Rows  # of continuous trading
    other_quotes: Rows  # before, between and after

    def in_order(self, published: Mapping[str, int] | None = None) -> Iterator[tuple[str, Rows]]:
        """Yield (topic, rows) in publishing order: by `event`, and each quote right after the last trade it counts.

        published: how many rows of each topic are out already (the topic's last sequence); these are left out, so a
            restarted publisher goes on where the log ends.
        """
        counted = self.quotes["trade_count"].astype(np.int64)  # at least 1: the opening auction comes first
        return interleave(
            {
                "orders": (self.orders, self.orders["event"]),
                "trades": (self.trades, self.trades["event"]),
                "quotes": (self.quotes, self.trades["event"][counted - 1]),
            },
            published,
        )


def load_day(data_dir: Path) -> Day:
    """Read the three files of the day below `data_dir`."""
    folder = data_dir / FOLDER
    quote_columns = read_columns(folder / "snapshot.csv.gz")
    quotes = _quotes(quote_columns)
    continuous = np.array(quote_columns["InstruStatus"]) == "TRADE"
    return Day(
        _orders(read_columns(folder / "entrust.csv.gz")),
        _trades(read_columns(folder / "trade.csv.gz")),
        quotes[continuous],
        quotes[~continuous],
    )


def _orders(columns: Mapping[str, Text]) -> Rows:
    rows = np.zeros(len(columns["BizIndex"]), ORDERS.payload_dtype)
    rows["order_id"] = integers(columns["OrderNO"])
    rows["event"] = integers(columns["BizIndex"])
    rows["exchange_ns"] = _time_ns(columns["OrderTime"])
    rows["price"] = prices(columns["OrderPrice"])
    rows["quantity"] = integers(columns["Balance"])
    rows["instrument"] = integers(columns["SecurityID"])
    rows["side"] = letters(columns["OrderBSFlag"])
    rows["kind"] = letters(columns["OrderType"])
    return rows


def _trades(columns: Mapping[str, Text]) -> Rows:
    rows = np.zeros(len(columns["BizIndex"]), TRADES.payload_dtype)
    rows["trade_id"] = integers(columns["TradeIndex"])
    rows["event"] = integers(columns["BizIndex"])
    rows["exchange_ns"] = _time_ns(columns["TradTime"])
    rows["buy_order_id"] = integers(columns["TradeBuyNo"])
    rows["sell_order_id"] = integers(columns["TradeSellNo"])
    rows["price"] = prices(columns["TradPrice"])
    rows["quantity"] = integers(columns["TradVolume"])
    rows["instrument"] = integers(columns["SecurityID"])
    rows["side"] = letters(columns["TradeBSFlag"])
    return rows


def _quotes(columns: Mapping[str, Text]) -> Rows:
    rows = np.zeros(len(columns["TradNumber"]), QUOTES.payload_dtype)
    rows["instrument"] = integers(columns["SecurityID"])
    rows["trade_count"] = integers(columns["TradNumber"])
    rows["exchange_ns"] = _time_ns(columns["UpdateTime"])
    rows["last_price"] = prices(columns["LastPrice"])
    rows["volume"] = integers(columns["TradVolume"])
    for side, label in (("bid", "Bid"), ("ask", "Ask")):
        for level in range(10):
            rows[f"{side}_price"][:, level] = prices(columns[f"{label}Price{level + 1}"])
            rows[f"{side}_quantity"][:, level] = integers(columns[f"{label}Volume{level + 1}"])
    return rows


def _time_ns(times: Text) -> npt.NDArray[np.int64]:
    return shanghai_ns([f"{DATE}T{time}" for time in times])
