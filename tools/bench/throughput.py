"""How much goes through to one subscriber: record by record, in batches, and in batches of which it reads a field."""

from __future__ import annotations

from .measuring import Bar, Bench, Figures, Plan
from .peer import Peer
from .peer_streaming import peer_stream
from .rows import BATCH
from .streaming import publish_batches, publish_ones, stream

__all__ = ["BENCH"]


def _run(plan: Plan) -> Figures:
    return {
        "one_per_s": stream(publish_ones, plan.seconds),
        "batch64_per_s": stream(publish_batches, plan.seconds),
        "batch64_sum_per_s": stream(publish_batches, plan.seconds, add_up=True),
    }


def _run_peer(plan: Plan, peer: type[Peer]) -> Figures:
    return {
        "one_per_s": peer_stream(peer(), plan.seconds),
        "batch64_per_s": peer_stream(peer(batches=True), plan.seconds),
        "batch64_sum_per_s": peer_stream(peer(batches=True), plan.seconds, add_up=True),
    }


BENCH = Bench(
    "throughput",
    "One publisher, one subscriber in step: single records, batches of 64, and the same with one field of every row summed.",
    {"one_per_s": Bar(6e6), "batch64_per_s": Bar(80e6), "batch64_sum_per_s": Bar(30e6)},
    _run,
    {
        "slots": 65_536,
        "log": "none",
        "batch_rows": BATCH,
        "wait": "spin",
        "reliable": True,
        "pinned": "publisher 0, subscriber 1",
    },
    _run_peer,
    Peer,
    between_cores=True,
)
