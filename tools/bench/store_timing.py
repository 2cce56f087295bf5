"""How long one call takes: every so-manyth is timed by itself, since looking at the clock costs what a quick call does.

The two looks at the clock are in the times, some 50 ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from .measuring import Figures
from .rows import clock

__all__ = ["percentiles", "time_gets", "time_puts"]

EVERY = 16


def time_puts(put: Callable[[bytes, bytes], object], pairs: Iterator[tuple[bytes, bytes]]) -> list[int]:
    """Put all pairs; nanoseconds of every EVERY-th call."""
    times_ns: list[int] = []
    note = times_ns.append
    for key, value in pairs:
        start = clock()
        put(key, value)
        note(clock() - start)
        for key, value in islice(pairs, EVERY - 1):
            put(key, value)
    return times_ns


def time_gets(get: Callable[[bytes], object], keys: Iterable[bytes]) -> list[int]:
    """Get all keys; nanoseconds of every EVERY-th call."""
    times_ns: list[int] = []
    note, rest = times_ns.append, iter(keys)
    for key in rest:
        start = clock()
        get(key)
        note(clock() - start)
        for key in islice(rest, EVERY - 1):
            get(key)
    return times_ns


def percentiles(name: str, times_ns: list[int]) -> Figures:
    """P50 and P99 in microseconds."""
    return {f"{name}_p{percent}_us": float(np.percentile(times_ns, percent)) / 1000 for percent in (50, 99)}
