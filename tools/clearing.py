"""What trades do to accounts: positions at average cost, realised and open profit, margin, commission.

All money is in 1/10,000 of the currency unit and exact. Over all accounts the positions in an instrument sum to zero,
and the balances sum to what was paid in less the commission (so long as they are marked at the same prices).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DEPOSIT = 10_000_000_0000  # money paid into each account at the start
MARGIN_PERCENT = 10  # of a position's value at the last price
COMMISSION_DIVISOR = 20_000  # half a basis point of a trade's value, from each party


class Clearing:
    """The accounts of an exchange. Accounts and instruments are numbered from 0 here."""

    def __init__(self, accounts: int, instruments: int) -> None:
        self.touched: set[int] = set()  # accounts that have traded since the last `clear` of this set
        self._positions = [[0] * instruments for _ in range(accounts)]
        self._costs = [[0] * instruments for _ in range(accounts)]  # of the open position; negative when it is short
        self._realised = [0] * accounts
        self._commissions = [0] * accounts

    def book(self, account: int, instrument: int, quantity: int, price: int) -> None:
        """Book one party of a trade: it bought `quantity`, or sold when that is negative."""
        self.touched.add(account)
        self._commissions[account] += abs(quantity) * price // COMMISSION_DIVISOR
        positions, costs = self._positions[account], self._costs[account]
        held, cost = positions[instrument], costs[instrument]
        if held * quantity >= 0:  # opens or adds
            costs[instrument] = cost + quantity * price
        elif abs(quantity) <= abs(held):  # closes some or all, at the average cost
            closed_cost = cost * -quantity // held
            costs[instrument] = cost - closed_cost
            self._realised[account] -= quantity * price + closed_cost
        else:  # closes all and opens the other way
            self._realised[account] += held * price - cost
            costs[instrument] = (held + quantity) * price
        positions[instrument] = held + quantity

    def positions(self) -> npt.NDArray[np.int64]:
        """Return the quantities held, one row an account and one column an instrument."""
        return np.array(self._positions, np.int64)

    def statement(self, accounts: list[int], last_prices: list[int]) -> dict[str, npt.NDArray[np.int64]]:
        """Return the money columns of an ACCOUNTS row for each of `accounts`, marked at `last_prices`."""
        held = np.array([self._positions[account] for account in accounts], np.int64)
        cost = np.array([sum(self._costs[account]) for account in accounts], np.int64)
        commission = np.array([self._commissions[account] for account in accounts], np.int64)
        close_profit = np.array([self._realised[account] for account in accounts], np.int64)
        prices = np.array(last_prices, np.int64)
        position_profit = held @ prices - cost
        margin = np.abs(held) @ prices * MARGIN_PERCENT // 100
        balance = DEPOSIT + close_profit + position_profit - commission
        return {
            "balance": balance,
            "available": balance - margin,
            "margin": margin,
            "position_profit": position_profit,
            "close_profit": close_profit,
            "commission": commission,
        }
