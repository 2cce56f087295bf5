"""Two sets of CSV files as topics: five Shanghai shares (orders, trades), and BTCUSDT (trades, quotes, depth).

Each set loads into {topic: rows}, and its `to_columns` gives back each file's columns, row for row. What does not come
back is the float noise of the Shanghai prices (`15.929999999999999` is 15.93): a record holds the tick that was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from csv_table import DATE_TIME, INTEGER, PRICE, TEXT, Table, decimal, time_of_day
from interleave import interleave
from ringmain.storage import Schema

Rows = npt.NDArray[np.void]

SCHEMAS = Schema.from_toml(Path(__file__).with_name("schemas.toml"))


@dataclass(frozen=True, slots=True)
class DataSet:
    """A folder of CSV files, one a topic."""

    folder: str
    files: Mapping[str, str]  # topic -> file
    tables: Mapping[str, Table]  # topic -> what its columns are
    order: str  # the field by which all topics make one stream
    file_blocks: tuple[bytes, ...] = ()  # instruments, when the files hold one after the other, in their order

    def load(self, data_dir: Path) -> dict[str, Rows]:
        """Read the set below `data_dir`; the rows of each topic stand in the order of the set's stream."""
        topics: dict[str, Rows] = {}
        for topic, file in self.files.items():
            rows = self.tables[topic].load(data_dir / self.folder / file)
            topics[topic] = rows[np.argsort(rows[self.order], kind="stable")]
        return topics

    def in_order(
        self, topics: Mapping[str, Rows], published: Mapping[str, int] | None = None
    ) -> Iterator[tuple[str, Rows]]:
        """Yield (topic, rows) in the order to publish them, without those that are `published` (see `interleave`)."""
        return interleave({topic: (rows, rows[self.order]) for topic, rows in topics.items()}, published)

    def to_columns(self, topic: str, rows: Rows) -> dict[str, list[str]]:
        """Return the columns of the topic's file, as text in the file's order, from rows in the stream's order."""
        if self.file_blocks:
            blocks = {instrument: place for place, instrument in enumerate(self.file_blocks)}
            rows = rows[np.argsort([blocks[instrument] for instrument in rows["instrument"].tolist()], kind="stable")]
        return self.tables[topic].to_columns(rows)


_SSE_CONSTANTS = {
    "MDDate": "2023.07.11",
    "SecurityType": "2",
    "SecuritySubType": "02001",
    "SecurityIDSource": "101",
    "ChannelNo": "1",
}
_SSE_COLUMNS = {
    "ApplSeqNum": ("event", INTEGER),
    "MDTime": ("exchange_ns", time_of_day("2023-07-11")),
    "ReceiveDateTime": ("received_ns", DATE_TIME),
    "SecurityID": ("instrument", TEXT),
    "Symbol": ("symbol", TEXT),
}

SSE = DataSet(
    "sse_orders_trades_20230711",
    {"sse_orders": "SHorders.csv.gz", "sse_trades": "SHtrans.csv.gz"},
    {
        "sse_orders": Table(
            SCHEMAS["sse_orders"],
            {
                **_SSE_COLUMNS,
                "OrderNO": ("order_id", INTEGER),
                "OrderIndex": ("order_index", INTEGER),
                "OrderPrice": ("price", PRICE),
                "OrderQty": ("quantity", INTEGER),
                "OrderType": ("order_type", INTEGER),
                "OrderBSFlag": ("side", INTEGER),
            },
            _SSE_CONSTANTS,
        ),
        "sse_trades": Table(
            SCHEMAS["sse_trades"],
            {
                **_SSE_COLUMNS,
                "TradeIndex": ("trade_index", INTEGER),
                "TradeBuyNo": ("buy_order_id", INTEGER),
                "TradeSellNo": ("sell_order_id", INTEGER),
                "TradePrice": ("price", PRICE),
                "TradeQty": ("quantity", INTEGER),
                "TradeMoney": ("money", PRICE),
                "TradeBSFlag": ("side", INTEGER),
            },
            {**_SSE_CONSTANTS, "TradingPhaseCode": "", "TradeType": "0", "NumTrades": "0"},
        ),
    },
    order="event",
    file_blocks=(b"605580.SH", b"600536.SH", b"600961.SH", b"601825.SH", b"600761.SH"),
)

_USDT, _BTC = decimal(2), decimal(3)
_TIMES = {
    "local_ns": ("local_ns", INTEGER),
    "E": ("event_ms", INTEGER),
    "T": ("transaction_ms", INTEGER),
}

BTCUSDT = DataSet(
    "binance_usdm_btcusdt_20240808",
    {
        "btcusdt_trades": "trades.csv.gz",
        "btcusdt_book_ticker": "book_ticker.csv.gz",
        "btcusdt_depth_updates": "depth_updates.csv.gz",
        "btcusdt_depth_snapshot": "depth_snapshot.csv.gz",
    },
    {
        "btcusdt_trades": Table(
            SCHEMAS["btcusdt_trades"],
            {
                **_TIMES,
                "t": ("trade_id", INTEGER),
                "p": ("price", _USDT),
                "q": ("quantity", _BTC),
                "m": ("buyer_is_maker", INTEGER),
            },
            {"s": "BTCUSDT", "X": "MARKET"},
        ),
        "btcusdt_book_ticker": Table(
            SCHEMAS["btcusdt_book_ticker"],
            {
                **_TIMES,
                "u": ("update_id", INTEGER),
                "b": ("bid_price", _USDT),
                "B": ("bid_quantity", _BTC),
                "a": ("ask_price", _USDT),
                "A": ("ask_quantity", _BTC),
            },
        ),
        "btcusdt_depth_updates": Table(
            SCHEMAS["btcusdt_depth_updates"],
            {
                **_TIMES,
                "U": ("first_update_id", INTEGER),
                "u": ("last_update_id", INTEGER),
                "pu": ("previous_update_id", INTEGER),
                "side": ("side", TEXT),
                "price": ("price", _USDT),
                "qty": ("quantity", _BTC),
            },
        ),
        "btcusdt_depth_snapshot": Table(
            SCHEMAS["btcusdt_depth_snapshot"],
            {
                **_TIMES,
                "lastUpdateId": ("last_update_id", INTEGER),
                "side": ("side", TEXT),
                "level": ("level", INTEGER),
                "price": ("price", _USDT),
                "qty": ("quantity", _BTC),
            },
        ),
    },
    order="local_ns",
)
