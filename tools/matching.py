"""Price-time priority: the resting orders of one side of a book, taken best price first and oldest first.

1. A key is a price that rises towards the touch: the price itself for bids, its negative for asks. So one class
   serves both sides, and two orders of opposite sides cross exactly when their keys sum to zero or more.
2. `keys` is sorted; `queues` and `totals` have exactly these keys; no queue is empty and no quantity is zero.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class Side:
    """The resting orders of one side. One thread, no lock."""

    __slots__ = ("keys", "queues", "totals")

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.queues: dict[int, dict[int, int]] = {}  # key -> order id -> quantity left; a dict keeps arrival order
        self.totals: dict[int, int] = {}

    def rest(self, key: int, order_id: int, quantity: int) -> None:
        """Put an order at the end of its price's queue."""
        if key in self.queues:
            self.queues[key][order_id] = quantity
            self.totals[key] += quantity
        else:
            insort(self.keys, key)
            self.queues[key] = {order_id: quantity}
            self.totals[key] = quantity

    def remove(self, key: int, order_id: int) -> int:
        """Take an order out and return the quantity that was left of it; KeyError if it does not rest here."""
        queue = self.queues[key]
        quantity = queue.pop(order_id)
        if queue:
            self.totals[key] -= quantity
        else:
            self._drop(key)
        return quantity

    def take(self, limit: int, quantity: int) -> list[tuple[int, int, int, bool]]:
        """Fill an incoming order of the other side whose key is `limit`.

        Returns (order id, key, quantity, whether that order is now gone) for each resting order met, in matching order.
        """
        fills: list[tuple[int, int, int, bool]] = []
        keys = self.keys
        while quantity and keys and keys[-1] + limit >= 0:
            key = keys[-1]
            queue = self.queues[key]
            order_id = next(iter(queue))
            resting = queue[order_id]
            if resting > quantity:
                queue[order_id] = resting - quantity
                self.totals[key] -= quantity
                fills.append((order_id, key, quantity, False))
                break
            self.remove(key, order_id)
            quantity -= resting
            fills.append((order_id, key, resting, True))
        return fills

    def best(self, count: int) -> tuple[list[int], list[int]]:
        """Return the keys and total quantities of the best levels, best first, padded with zeros to `count`."""
        keys = self.keys[: -count - 1 : -1]
        quantities = [self.totals[key] for key in keys]
        if missing := count - len(keys):
            keys += [0] * missing
            quantities += [0] * missing
        return keys, quantities

    def _drop(self, key: int) -> None:
        del self.queues[key], self.totals[key]
        if self.keys[-1] == key:
            self.keys.pop()
        else:
            del self.keys[bisect_left(self.keys, key)]
