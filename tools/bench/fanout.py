"""How much goes through to four subscribers at once, none losing anything."""

from __future__ import annotations

from .measuring import Bar, Bench, Figures, Plan
from .peer import Peer
from .peer_streaming import peer_stream
from .rows import BATCH
from .streaming import publish_batches, publish_ones, stream

__all__ = ["BENCH"]

SUBSCRIBERS = 4


def _run(plan: Plan) -> Figures:
    return {
        "one4_per_s": stream(publish_ones, plan.seconds, subscriber_count=SUBSCRIBERS),
        "batch4_per_s": stream(publish_batches, plan.seconds, subscriber_count=SUBSCRIBERS),
    }


def _run_peer(plan: Plan, peer: type[Peer]) -> Figures:
    return {
        "one4_per_s": peer_stream(peer(subscriber_count=SUBSCRIBERS), plan.seconds),
        "batch4_per_s": peer_stream(peer(subscriber_count=SUBSCRIBERS, batches=True), plan.seconds),
    }


BENCH = Bench(
    "fanout",
    "One publisher, four subscribers: single records, and batches of 64. Records are counted once, not four times.",
    {"one4_per_s": Bar(3e6), "batch4_per_s": Bar(25e6)},
    _run,
    {
        "slots": 65_536,
        "log": "none",
        "batch_rows": BATCH,
        "subscribers": SUBSCRIBERS,
        "wait": "yield",
        "reliable": True,
        "pinned": "no",
    },
    _run_peer,
    Peer,
)
