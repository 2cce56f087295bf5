"""When the rows of a recording may go out: N records a second, or X times as fast as they were recorded.

1. The due time of every row follows from the first row's departure and from the row's own number or recorded time,
   never from the row before it: a late wake-up or a slow publisher delays rows but never shifts the plan. No drift.
2. Rows go in the order of the file. A row whose recorded time steps back is due with the latest row before it.
3. Rows without a time (0 or less) are due with the rows before them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

SLEEP_NS_MIN = 200_000  # rows due within this time go together: waking for each would cost more than it brings
SLEEP_NS_MAX = 100_000_000


class Pace:
    """Lets rows through when they are due. For one thread and one stream of rows.

    rate: records per second. speed: recorded seconds per second. Neither: everything at once. Both: ValueError.
    clock: nanoseconds that never step back. sleep: waits for so many seconds.
    """

    def __init__(
        self,
        rate: float | None = None,
        speed: float | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and speed is not None:
            raise ValueError("rate or speed, not both")
        for name, given in (("rate", rate), ("speed", speed)):
            if given is not None and not 0 < given < float("inf"):
                raise ValueError(f"{name} must be a number above 0, not {given}")
        self._rate = None if rate is None else Fraction(rate)
        self._speed = None if speed is None else Fraction(speed)
        self._clock, self._sleep = clock, sleep
        self._origin_ns: int | None = None  # when the first row (by speed: the first with a time) went
        self._sent_count = 0
        self._first_time_ns: int | None = None  # recorded time of the first row that has one
        self._latest_time_ns = 0

    def slices(self, count: int, times_ns: npt.NDArray[Any] | None = None) -> Iterator[slice]:
        """Yield consecutive parts of a batch of `count` rows, each when it is due, sleeping in between.

        times_ns: the rows' recorded times, needed with `speed`.
        """
        start = 0
        while start < count:
            part = None if times_ns is None else times_ns[start:]
            ready = self.take(count - start, part)
            if ready:
                yield slice(start, start + ready)
                start += ready
            else:
                wait_ns = self.due_in_ns(part)
                self._sleep(min(max(wait_ns, SLEEP_NS_MIN), SLEEP_NS_MAX) / 1e9)

    def take(self, count: int, times_ns: npt.NDArray[Any] | None = None) -> int:
        """Return how many of the next `count` rows are due now, and count them as gone. Never waits."""
        if count <= 0:
            return 0
        now_ns = self._clock()
        if self._origin_ns is None:
            self._origin_ns = now_ns
        if self._rate is not None:
            elapsed_ns = now_ns - self._origin_ns
            ready = min(count, int(elapsed_ns * self._rate / 1_000_000_000) + 1 - self._sent_count)
        elif self._speed is not None:
            ready = self._due_by_time(count, self._times(count, times_ns), now_ns)
        else:
            ready = count
        ready = max(ready, 0)
        self._sent_count += ready
        return ready

    def due_in_ns(self, times_ns: npt.NDArray[Any] | None = None) -> int:
        """Return how long until the next row is due; 0 if it is due. times_ns: from that row on."""
        if self._origin_ns is None:
            return 0
        due_ns = Fraction(0)
        if self._rate is not None:
            due_ns = self._sent_count * 1_000_000_000 / self._rate
        elif self._speed is not None and self._first_time_ns is not None:
            next_time_ns = max(int(self._times(1, times_ns)[0]), self._latest_time_ns)
            due_ns = (next_time_ns - self._first_time_ns) / self._speed
        return max(0, math.ceil(due_ns) + self._origin_ns - self._clock())

    def _due_by_time(self, count: int, times_ns: npt.NDArray[np.int64], now_ns: int) -> int:
        assert self._speed is not None
        if self._first_time_ns is None:
            known = times_ns[:count][times_ns[:count] > 0]
            if not len(known):
                return count
            self._origin_ns = now_ns
            self._first_time_ns = self._latest_time_ns = int(known[0])
        assert self._origin_ns is not None
        rising = np.maximum.accumulate(np.maximum(times_ns[:count], self._latest_time_ns))
        until_ns = self._first_time_ns + int((now_ns - self._origin_ns) * self._speed)
        ready = count if until_ns >= int(rising[-1]) else int(np.searchsorted(rising, until_ns, side="right"))
        if ready:
            self._latest_time_ns = int(rising[ready - 1])
        return ready

    def _times(self, count: int, times_ns: npt.NDArray[Any] | None) -> npt.NDArray[np.int64]:
        if times_ns is None or len(times_ns) < count:
            raise ValueError("a pace by recorded time needs the time of every row")
        return times_ns.astype(np.int64, copy=False)
