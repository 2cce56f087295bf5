"""What the demo's subscribers do with what they read. Each counts as a fault a record whose content cannot be."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .demo_reports import Instrument

__all__ = ["Auditor", "Keeper", "Tape", "Work"]

Rows = npt.NDArray[np.void]


class Work(Protocol):
    """Gets every record of its topics once, in order."""

    fault_count: int

    def add(self, topic: str, rows: Rows) -> None: ...

    def market(self) -> list[Instrument]: ...


class Tape:
    """Last price and volume of each instrument, from its trades."""

    def __init__(self) -> None:
        self.fault_count = self._trade_id = 0
        self._market: dict[int, Instrument] = {}

    def add(self, topic: str, rows: Rows) -> None:
        trade_ids = rows["trade_id"].astype(np.int64)
        self.fault_count += int((np.diff(trade_ids, prepend=self._trade_id) < 1).sum())
        self._trade_id = int(trade_ids[-1])
        for number in np.unique(rows["instrument"]).tolist():
            trades, known = rows[rows["instrument"] == number], self._market.get(number)
            self._market[number] = Instrument(
                number=number,
                last_price=int(trades["price"][-1]),
                volume=int(trades["quantity"].sum()) + (known.volume if known else 0),
                trade_count=len(trades) + (known.trade_count if known else 0),
            )

    def market(self) -> list[Instrument]:
        return [self._market[number] for number in sorted(self._market)]


class Auditor:
    """Orders' numbers rise, and only what was entered before is withdrawn."""

    def __init__(self) -> None:
        self.fault_count = self._event = self._order_id = 0

    def add(self, topic: str, rows: Rows) -> None:
        events, ids = rows["event"].astype(np.int64), rows["order_id"].astype(np.int64)
        entered, withdrawn = rows["kind"] == b"A", rows["kind"] == b"D"
        newest = np.maximum.accumulate(np.concatenate([[self._order_id], np.where(entered, ids, 0)]))
        wrong = np.diff(events, prepend=self._event) < 1
        wrong |= ~(entered & (ids > newest[:-1]) | withdrawn & (ids <= newest[:-1]))
        wrong |= (rows["price"] <= 0) | (rows["quantity"] <= 0)
        self.fault_count += int(wrong.sum())
        self._event, self._order_id = int(events[-1]), int(newest[-1])

    def market(self) -> list[Instrument]:
        return []


class Keeper:
    """No quote's bid reaches its ask, and what an account has available is its balance without its margin."""

    def __init__(self) -> None:
        self.fault_count = 0

    def add(self, topic: str, rows: Rows) -> None:
        if topic == "quotes":
            two_sided = (rows["bid_quantity"][:, 0] > 0) & (rows["ask_quantity"][:, 0] > 0)
            wrong = two_sided & (rows["bid_price"][:, 0] >= rows["ask_price"][:, 0])
        else:
            wrong = rows["available"] != rows["balance"] - rows["margin"]
        self.fault_count += int(wrong.sum())

    def market(self) -> list[Instrument]:
        return []
