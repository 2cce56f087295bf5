"""How long one record takes to the subscriber: sent at a fixed pace, its time of sending in it, the clock read on arrival."""

from __future__ import annotations

import struct
from typing import Any, Literal

import numpy as np

from ...bus import Writer
from ...subscribers import RealTime
from .peer import RECORD_BYTES, Peer
from .rows import NS, SCHEMA, TOPIC, clock
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["latencies_us", "peer_latencies_us"]

WARM_UP = 200  # records whose times do not count
HEAD = struct.Struct("<Qq")  # sequence, time of sending
IDLE_MAX_S = 5


def latencies_us(seconds: float, rate: int, wait: Literal["spin", "futex"]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What each of `rate` records a second took to a subscriber that waits in this way."""
    count = max(2, int(seconds * rate))
    with bench_bus() as bus:
        _, times_ns = run_together(
            Job(_publish, (bus, count, rate), core=0), Job(_read, (bus, count, wait), core=1), seconds_max=4 * seconds
        )
    return _settled(times_ns)


def peer_latencies_us(peer: Peer, seconds: float, rate: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The same through another library."""
    count = max(2, int(seconds * rate))
    try:
        _, times_ns = run_together(
            Job(_send, (peer, count, rate), core=0), Job(_receive, (peer, count), core=1), seconds_max=4 * seconds
        )
    finally:
        peer.clean_up()
    return _settled(times_ns)


def _settled(times_ns: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(times_ns[WARM_UP if len(times_ns) > 2 * WARM_UP else 0 :]) / 1000


def _publish(stage: Stage, bus: str, count: int, rate: int) -> None:
    period = NS // rate
    with Writer(bus, [SCHEMA]) as writer:
        publish = writer[TOPIC].publish
        stage.begin(settle=True)
        due = clock()
        for number in range(count):
            due += period
            while clock() < due:
                pass
            publish(600_519, clock(), 100, number, 3, 17, b"600519.SH", b"limit order, good for the day")


def _read(stage: Stage, bus: str, count: int, wait: Literal["spin", "futex"]) -> list[int]:
    times: list[int] = []
    with RealTime(f"{bus}/{TOPIC}", start="earliest", reliable=True, wait=wait, open_timeout=30) as subscriber:
        subscriber.poll()  # from here on it holds the writer back
        stage.begin()
        for batch in subscriber:
            now = clock()
            if batch.first != len(times) + 1:
                raise BenchFailed(f"expected record {len(times) + 1}, got {batch.first}")
            times += [now - sent for sent in batch.rows["price"].tolist()]
    if len(times) != count:
        raise BenchFailed(f"{count} records were published, the subscriber got {len(times)}")
    return times


def _send(stage: Stage, peer: Peer, count: int, rate: int) -> None:
    period, rest = NS // rate, bytes(RECORD_BYTES - HEAD.size)
    send = peer.open_sender()
    stage.begin(settle=True)
    due = clock()
    for number in range(count):
        due += period
        while clock() < due:
            pass
        send(HEAD.pack(number, clock()) + rest)


def _receive(stage: Stage, peer: Peer, count: int) -> list[int]:
    receive, unpack, times = peer.open_receiver(0), HEAD.unpack_from, list[int]()
    stage.begin()
    patience = clock() + IDLE_MAX_S * NS
    while len(times) < count:
        record = receive()
        if record is None:
            if clock() > patience:
                raise BenchFailed(f"{count} records were sent, {len(times)} arrived")
            continue
        now = clock()
        number, sent = unpack(record)
        if number != len(times):
            raise BenchFailed(f"expected record {len(times)}, got {number}")
        times.append(now - sent)
        patience = now + IDLE_MAX_S * NS
    return times
