"""The real exchange day for tests: a subscriber of its three topics, and whether their rows make the order book."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from book_oracle import BookOracle
from exchange_day import feeders
from ringmain.bus import Overrun
from ringmain.subscribers import RealTime
from sse_day import Day
from support.logs import wait_until

__all__ = ["Following", "check_book"]

TIMEOUT_S = 60.0


class Following:
    """Reads the three topics as they come, in this process."""

    def __init__(self, bus: str, counts: Mapping[str, int]) -> None:
        self._counts = counts
        self._readers = {topic: RealTime(f"{bus}/{topic}", start="earliest", reopen=True) for topic in counts}
        self._parts: dict[str, list[np.ndarray[Any, Any]]] = {topic: [] for topic in counts}

    @property
    def rows(self) -> dict[str, np.ndarray[Any, Any]]:
        return {topic: np.concatenate(parts) for topic, parts in self._parts.items()}

    def position(self, topic: str) -> int:
        return self._readers[topic].position

    def read(self) -> bool:
        for topic, reader in self._readers.items():
            batch = reader.take(0.005)
            if batch is not None:
                with contextlib.suppress(Overrun):  # lapped: the reader gets these rows again, from the log
                    self._parts[topic].append(batch.copy())
        return all(self.position(topic) == count for topic, count in self._counts.items())

    def read_to_the_end(self) -> None:
        wait_until(self.read, TIMEOUT_S)
        self.close()

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def check_book(rows: Mapping[str, np.ndarray[Any, Any]], counts: Mapping[str, int]) -> None:
    for topic, count in counts.items():
        assert (rows[topic]["sequence"] == np.arange(1, count + 1)).all(), topic
    oracle = BookOracle()
    feed = feeders(oracle)
    whole = Day(rows["orders"], rows["trades"], rows["quotes"], other_quotes=rows["quotes"][:0])
    for name, run in whole.in_order():
        feed[name](run)
    oracle.finish()
    assert (oracle.matched, oracle.mismatched) == (4847, [])
