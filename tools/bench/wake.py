"""How soon a sleeping subscriber has a record, and what everybody's sleeping costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...bus import Writer
from ...subscribers import RealTime
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .peer import Peer
from .rows import SCHEMA, TOPIC
from .timing import latencies_us, peer_latencies_us
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

RATE = 1_000  # records a second: between two of them everybody sleeps


def _run(plan: Plan) -> Figures:
    times_us = latencies_us(plan.seconds, RATE, "futex")
    with bench_directory(plan) as directory:
        return {
            "wake_p50_us": float(np.percentile(times_us, 50)),
            "wake_p99_us": float(np.percentile(times_us, 99)),
            "idle_cpu_percent": _idle(plan, {}),
            "idle_with_log_cpu_percent": _idle(plan, {"data_dir": directory}),
        }


def _idle(plan: Plan, options: dict[str, Any]) -> float:
    with bench_bus() as bus:
        busy_s = run_together(
            Job(_idle_publisher, (bus, plan.seconds, options)),
            Job(_idle_subscriber, (bus, plan.seconds)),
            seconds_max=4 * plan.seconds,
        )
    return 100 * sum(busy_s) / plan.seconds


def _idle_publisher(stage: Stage, bus: str, seconds: float, options: dict[str, Any]) -> float:
    """A worker: CPU seconds of all its threads while nothing is published."""
    with Writer(bus, [SCHEMA], **options):
        stage.begin(settle=True)
        before = time.process_time()
        time.sleep(seconds)
        return time.process_time() - before


def _idle_subscriber(stage: Stage, bus: str, seconds: float) -> float:
    """A worker: the same while it waits for a record."""
    with RealTime(f"{bus}/{TOPIC}", open_timeout=30) as subscriber:
        subscriber.poll()
        stage.begin(settle=True)
        before = time.process_time()
        if subscriber.take(seconds) is not None:
            raise BenchFailed("a record came that nobody had published")
        return time.process_time() - before


def _run_peer(plan: Plan, peer: type[Peer]) -> Figures:
    times_us = peer_latencies_us(peer(sleeping=True), plan.seconds, RATE)
    idle = peer(sleeping=True)
    try:
        busy_s = run_together(
            Job(_idle_sender, (idle, plan.seconds)),
            Job(_idle_receiver, (idle, plan.seconds)),
            seconds_max=4 * plan.seconds,
        )
    finally:
        idle.clean_up()
    return {
        "wake_p50_us": float(np.percentile(times_us, 50)),
        "wake_p99_us": float(np.percentile(times_us, 99)),
        "idle_cpu_percent": 100 * sum(busy_s) / plan.seconds,
    }


def _idle_sender(stage: Stage, peer: Peer, seconds: float) -> float:
    peer.open_sender()
    stage.begin(settle=True)
    before = time.process_time()
    time.sleep(seconds)
    return time.process_time() - before


def _idle_receiver(stage: Stage, peer: Peer, seconds: float) -> float:
    receive = peer.open_receiver(0)
    stage.begin(settle=True)
    before, end = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        if receive() is not None:
            raise BenchFailed("a record came that nobody had sent")
    return time.process_time() - before


BENCH = Bench(
    "wake",
    "A subscriber asleep on its futex: how soon it has a record; and the CPU time of an idle publisher and subscriber together.",
    {"wake_p50_us": Bar(50), "idle_cpu_percent": Bar(0, slack=0.05)},
    _run,
    {
        "slots": 65_536,
        "log": "none but in idle_with_log",
        "rate_per_s": RATE,
        "wait": "futex",
        "reliable": True,
        "pinned": "publisher 0, subscriber 1",
    },
    _run_peer,
    Peer,
    between_cores=True,
)
