"""What the machine was like while we measured: how quiet, and how far apart its cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from time import monotonic
from typing import Any

import psutil

from .distance import core_round_trip_ns

__all__ = ["Conditions"]


class Conditions:
    """Keeps the worst that was met.

    foreign_cpu_percent: of all cores' time, what was neither idle nor ours. The system's own work for us, such as writing to
    the disk, counts too.
    """

    def __init__(self) -> None:
        self.foreign_cpu_percent = 0.0
        self.core_round_trips_ns: list[int] = []

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """Watch one stretch. Children started in it must have ended by its end."""
        busy, mine, began = _busy_s(), _mine_s(), monotonic()
        yield
        seconds = (monotonic() - began) * (os.cpu_count() or 1)
        foreign = max(0.0, _busy_s() - busy - (_mine_s() - mine))
        self.foreign_cpu_percent = max(self.foreign_cpu_percent, 100 * foreign / seconds)

    def look_at_cores(self) -> None:
        """Measure the way between cores 0 and 1, where there are two."""
        if {0, 1} <= os.sched_getaffinity(0):
            self.core_round_trips_ns.append(core_round_trip_ns())

    def settings(self) -> dict[str, Any]:
        """For the report."""
        found: dict[str, Any] = {"foreign_cpu_percent_max": round(self.foreign_cpu_percent, 1)}
        if self.core_round_trips_ns:
            found["core_round_trip_ns_min"] = min(self.core_round_trips_ns)
            found["core_round_trip_ns_max"] = max(self.core_round_trips_ns)
        return found


def _busy_s() -> float:
    times: Any = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _mine_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
