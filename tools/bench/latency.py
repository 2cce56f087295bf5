"""How soon a busy-polling subscriber has a record."""

from __future__ import annotations

from typing import Any

import numpy as np

from .measuring import Bar, Bench, Figures, Plan
from .peer import Peer
from .timing import latencies_us, peer_latencies_us

__all__ = ["BENCH"]

RATE = 10_000  # records a second


def _percentiles(times_us: np.ndarray[Any, np.dtype[np.float64]]) -> Figures:
    p50, p99, p999 = np.percentile(times_us, [50, 99, 99.9]).tolist()
    return {"p50_us": p50, "p99_us": p99, "p999_us": p999}


def _run(plan: Plan) -> Figures:
    return _percentiles(latencies_us(plan.seconds, RATE, "spin"))


def _run_peer(plan: Plan, peer: type[Peer]) -> Figures:
    return _percentiles(peer_latencies_us(peer(), plan.seconds, RATE))


BENCH = Bench(
    "latency",
    "Publisher to busy-polling subscriber, at 10,000 records a second.",
    {"p50_us": Bar(0.6), "p99_us": Bar(3)},
    _run,
    {
        "slots": 65_536,
        "log": "none",
        "rate_per_s": RATE,
        "wait": "spin",
        "reliable": True,
        "pinned": "publisher 0, subscriber 1",
    },
    _run_peer,
    Peer,
    between_cores=True,
)
