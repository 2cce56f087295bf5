"""A small exchange, alike every time: seeded order flow, price-time matching, and the records it publishes.

1. The records follow from (seed, session, sizes) alone, not from how `step` cuts them up.
2. After each command the books are uncrossed. As at the Shanghai exchange, an incoming order trades first, and only
   what is left of it is published as an insert: the orders and trades up to a time rebuild the book of that time.
3. `event` numbers orders and trades together, without gaps. All records of one command share its `exchange_ns`, and no
   two commands do; a quote shows the book after the command whose `exchange_ns` it carries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..storage import ACCOUNTS, ORDERS, QUOTES, TRADES
from .clearing import Clearing
from .matching import Side

SESSION_STRIDE = 10**12  # ids of a session lie between its number times this and the next
OPENING_NS = 1_700_000_000_000_000_000  # exchange time of the first command of session 0
COMMAND_NS = 25_000  # exchange time from one command to the next
TICK = 100  # smallest price step, in 1/10,000 of the currency unit
LOT = 100
LEVELS = 10
DEPTH = 300  # orders that rest in a book when arrivals and departures balance
QUOTE_EVERY = 8  # changes of a book from one quote of it to the next
STATEMENT_EVERY = 512  # commands from one round of account records to the next
BLOCK = 4096  # commands drawn at a time

Rows = npt.NDArray[np.void]
Command = tuple[int, int, float, int, int, int, int, float]

BUY, SELL, ADD, DELETE = ord("B"), ord("S"), ord("A"), ord("D")


class Exchange:
    """Order flow and matching for some instruments and accounts, both numbered from 1 in the records.

    seed: chooses the order flow.
    session: 0, 1, 2, ...; a later session starts with empty books and fresh accounts but greater ids, events and times,
        so a publisher that was restarted opens the next session and never repeats an id.
    One thread. Makes some 400,000 records a second on one core of a small machine.
    """

    def __init__(self, seed: int, instruments: int = 8, accounts: int = 64, *, session: int = 0) -> None:
        if min(instruments, accounts) < 1 or min(seed, session) < 0:
            raise ValueError("an exchange needs an instrument and an account; seed and session start from 0")
        self._random = np.random.default_rng([seed, session])
        self._commands = chain.from_iterable(self._draw(instruments, accounts))
        self._now_ns = OPENING_NS + session * SESSION_STRIDE * 100
        self._order_id = self._trade_id = self._event = session * SESSION_STRIDE
        self._command_count = 0
        self._books = [(Side(), Side()) for _ in range(instruments)]  # bids, asks
        self._live: list[list[int]] = [[] for _ in range(instruments)]  # order ids, some of them gone already
        self._placed: dict[int, tuple[int, int, int]] = {}  # resting order id -> 0 bid or 1 ask, key, account
        opening = (self._random.integers(2_000, 40_000, instruments) * TICK).tolist()
        self._fair_prices: list[int] = opening  # around which orders arrive; drifts
        self._last_prices: list[int] = opening.copy()
        self._changes = [0] * instruments
        self._trade_counts = [0] * instruments
        self._volumes = [0] * instruments
        self._clearing = Clearing(accounts, instruments)
        self._accounts = list(range(accounts))
        self._orders: list[int] = []  # the records of this step, field after field
        self._trades: list[int] = []
        self._quotes: list[int] = []
        self._statements: list[Rows] = []

    def step(self, events: int) -> dict[str, Rows]:
        """Run until at least `events` more orders and trades exist; return all new records, topic by topic.

        A command is never cut in two, so a few more than `events` may come. The arrays have the payload_dtype of
        ORDERS, TRADES, QUOTES and ACCOUNTS; the caller owns them.
        """
        target = self._event + events
        while self._event < target:
            self._run(next(self._commands))
        records = {
            "orders": _rows(self._orders, ORDERS.payload_dtype),
            "trades": _rows(self._trades, TRADES.payload_dtype),
            "quotes": _rows(self._quotes, QUOTES.payload_dtype),
            "accounts": np.concatenate([np.empty(0, ACCOUNTS.payload_dtype), *self._statements]),
        }
        self._orders, self._trades, self._quotes, self._statements = [], [], [], []
        return records

    def accounts(self) -> Rows:
        """Return the state of every account now, as an ACCOUNTS row each."""
        return self._account_rows(self._accounts)

    def positions(self) -> npt.NDArray[np.int64]:
        """Return the quantities held now, one row an account and one column an instrument."""
        return self._clearing.positions()

    def _draw(self, instruments: int, accounts: int) -> Iterator[Iterator[Command]]:
        """Yield blocks of random commands: instrument, side, choice, ticks, lots, account, drift, which to cancel."""
        random = self._random
        while True:
            yield zip(
                random.integers(0, instruments, BLOCK).tolist(),
                random.integers(0, 2, BLOCK).tolist(),
                random.random(BLOCK).tolist(),
                random.geometric(0.12, BLOCK).tolist(),
                random.geometric(0.25, BLOCK).tolist(),
                random.integers(0, accounts, BLOCK).tolist(),
                random.integers(-12, 13, BLOCK).tolist(),
                random.random(BLOCK).tolist(),
                strict=True,
            )

    def _run(self, command: Command) -> None:
        instrument, side, choice, ticks, lots, account, drift, which = command
        self._now_ns += COMMAND_NS
        self._command_count += 1
        if abs(drift) == 12:  # now and then the fair price moves by a tick
            self._fair_prices[instrument] = max(self._fair_prices[instrument] + drift // 12 * TICK, 1_000 * TICK)
        direction = -1 if side else 1
        fair_price = self._fair_prices[instrument]
        if choice < 0.15:  # reach over the spread
            self._enter(instrument, side, fair_price + direction * (3 + ticks // 4) * TICK, lots * 2 * LOT, account)
        elif choice - 0.15 < 0.85 * len(self._live[instrument]) / (2 * DEPTH):
            self._cancel(instrument, which)
        else:
            self._enter(instrument, side, fair_price - direction * ticks * TICK, lots * LOT, account)
        self._changes[instrument] += 1
        if self._changes[instrument] % QUOTE_EVERY == 0:
            self._quote(instrument)
        if self._command_count % STATEMENT_EVERY == 0 and self._clearing.touched:
            self._statements.append(self._account_rows(sorted(self._clearing.touched)))
            self._clearing.touched.clear()

    def _enter(self, instrument: int, side: int, price: int, quantity: int, account: int) -> None:
        """Match a new order, and let what is left of it rest. side: 0 buy, 1 sell."""
        self._order_id += 1
        order_id, now_ns, book = self._order_id, self._now_ns, self._books[instrument]
        key = -price if side else price
        for passive_id, passive_key, filled, gone in book[1 - side].take(key, quantity):
            quantity -= filled
            passive_account = self._placed[passive_id][2]
            if gone:
                del self._placed[passive_id]
            traded_price = abs(passive_key)
            self._event += 1
            self._trade_id += 1
            if side:
                buy_id, sell_id, bought = passive_id, order_id, -filled
            else:
                buy_id, sell_id, bought = order_id, passive_id, filled
            self._trades += (self._trade_id, self._event, now_ns, buy_id, sell_id, traded_price, filled, instrument + 1,
                             SELL if side else BUY)  # fmt: skip
            self._last_prices[instrument] = traded_price
            self._trade_counts[instrument] += 1
            self._volumes[instrument] += filled
            self._clearing.book(account, instrument, bought, traded_price)
            self._clearing.book(passive_account, instrument, -bought, traded_price)
        if quantity:
            book[side].rest(key, order_id, quantity)
            self._placed[order_id] = side, key, account
            self._live[instrument].append(order_id)
            self._publish_order(order_id, instrument, side, price, quantity, account, ADD)

    def _cancel(self, instrument: int, which: float) -> None:
        """Withdraw an order, found by drawing from those that were inserted and forgetting those that are gone."""
        live = self._live[instrument]
        while live:
            place = int(which * len(live))
            order_id = live[place]
            live[place] = live[-1]
            live.pop()
            if order_id in self._placed:
                side, key, account = self._placed.pop(order_id)
                quantity = self._books[instrument][side].remove(key, order_id)
                self._publish_order(order_id, instrument, side, abs(key), quantity, account, DELETE)
                return

    def _publish_order(
        self, order_id: int, instrument: int, side: int, price: int, quantity: int, account: int, kind: int
    ) -> None:
        self._event += 1
        self._orders += (order_id, self._event, self._now_ns, price, quantity, instrument + 1, account + 1,
                         SELL if side else BUY, kind)  # fmt: skip

    def _quote(self, instrument: int) -> None:
        bids, asks = self._books[instrument]
        self._quotes += (instrument + 1, self._trade_counts[instrument], self._now_ns, self._last_prices[instrument],
                         self._volumes[instrument])  # fmt: skip
        bid_keys, bid_quantities = bids.best(LEVELS)
        ask_keys, ask_quantities = asks.best(LEVELS)
        self._quotes += chain(bid_keys, bid_quantities, (-key for key in ask_keys), ask_quantities)

    def _account_rows(self, accounts: list[int]) -> Rows:
        rows = np.zeros(len(accounts), ACCOUNTS.payload_dtype)
        rows["account"] = np.array(accounts) + 1
        rows["currency"] = b"CNY"
        rows["exchange_ns"] = self._now_ns
        for name, column in self._clearing.statement(accounts, self._last_prices).items():
            rows[name] = column
        return rows


def _rows(flat: list[int], dtype: np.dtype[np.void]) -> Rows:
    """Turn records given as one list of integers, in the order of the fields, into rows; a letter is its code."""
    names = dtype.names or ()
    widths = [int(np.prod(dtype[name].shape)) for name in names]
    values = np.array(flat, np.int64).reshape(-1, sum(widths))
    rows = np.zeros(len(values), dtype)
    place = 0
    for name, width in zip(names, widths, strict=True):
        column = values[:, place : place + width]
        place += width
        if dtype[name].kind == "S":
            rows[name] = column[:, 0].astype(np.uint8).view("S1")
        else:
            rows[name] = column if dtype[name].shape else column[:, 0]
    return rows
