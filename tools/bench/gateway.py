"""The gateway: from ring to a client's socket, rows a second to one client, and what many clients cost."""

from __future__ import annotations

import contextlib
import selectors
import time
from dataclasses import dataclass

import numpy as np
import psutil

from ...bus import Writer
from ..gateway.frames import decode_rows
from .gateway_client import BareClient, running_gateway
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, SCHEMA, TOPIC, clock, make_block
from .workers import BenchFailed, Job, Stage, bench_bus, run_together

__all__ = ["BENCH"]

RATE = 1_000  # records a second where their way is timed
WARM_UP = 50  # of them, whose times do not count
INTERVAL_S, ROWS = 0.1, 10  # of the delayed batches: 100 rows a second
INTERVALS_MIN = 5
ROWS_PER_S = 1_000_000  # written for each second of the plan where rows are counted
WARM_UP_S_MIN = 1.0  # of many clients; a tenth of the time that is measured, where that is longer


def _run(plan: Plan) -> Figures:
    return _latency(plan) | _throughput(plan) | _many(plan)


# --- from ring to socket ----------------------------------------------------------------------------------------------


def _latency(plan: Plan) -> Figures:
    count = max(2, int(plan.seconds * RATE))
    with bench_bus() as bus, running_gateway(bus) as (port, _):
        _, times_ns = run_together(
            Job(_publish, (bus, count)), Job(_time, (bus, port, count)), seconds_max=10 * plan.seconds
        )
    times_us = np.array(times_ns[WARM_UP if count > 2 * WARM_UP else 0 :]) / 1000
    return {"gateway_p50_us": float(np.percentile(times_us, 50)), "gateway_p99_us": float(np.percentile(times_us, 99))}


def _publish(stage: Stage, bus: str, count: int) -> None:
    with Writer(bus, [SCHEMA]) as writer:
        publish, period = writer[TOPIC].publish, NS // RATE
        stage.begin(settle=True)
        due = clock()
        for number in range(count):
            due += period
            time.sleep(max(0.0, (due - clock()) / NS))
            publish(600_519, clock(), 100, number, 3, 17, b"600519.SH", b"limit order, good for the day")
        stage.report(None)


def _time(stage: Stage, bus: str, port: int, count: int) -> list[int]:
    client = _connect(bus, port)
    dtype = np.dtype(client.confirmed["dtype"])
    stage.begin()
    times: list[int] = []
    while len(times) < count:
        messages = client.receive()
        now = clock()
        for message in messages:
            times += [now - sent for sent in decode_rows(message, dtype).rows["price"].tolist()]
    return times


def _connect(bus: str, port: int) -> BareClient:
    """Connected, once the topic is open."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(BenchFailed):
            return BareClient(port, topic=f"{bus}/{TOPIC}")
        if time.monotonic() > deadline:
            raise BenchFailed("the gateway does not serve the topic")
        time.sleep(0.05)


# --- rows a second ----------------------------------------------------------------------------------------------------


def _throughput(plan: Plan) -> Figures:
    """One client reads a topic from its beginning, out of the log and then the ring, as fast as it is sent."""
    block = make_block()
    last = max(1, int(plan.seconds * ROWS_PER_S / len(block))) * len(block)
    with (
        bench_directory(plan) as directory,
        bench_bus() as bus,
        Writer(bus, [SCHEMA], data_dir=directory) as writer,
        running_gateway(bus) as (port, _),
    ):
        for _ in range(last // len(block)):
            writer[TOPIC].publish_batch(block)
        writer[TOPIC].wait(last, "logged", timeout=60)
        (seconds,) = run_together(Job(_count, (bus, port, last)), seconds_max=60 + 20 * plan.seconds)
    return {"gateway_rows_per_s": last / seconds}


def _count(stage: Stage, bus: str, port: int, last: int) -> float:
    stage.begin()
    started, position = clock(), 0
    client = BareClient(port, topic=f"{bus}/{TOPIC}", **{"from": 1})
    dtype = np.dtype(client.confirmed["dtype"])
    while position < last:
        for message in client.receive():
            frame = decode_rows(message, dtype)
            if frame.first != position + 1 or len(frame.rows) != frame.last - position or frame.lost:
                raise BenchFailed(f"expected record {position + 1}, got {frame.first} to {frame.last}")
            position = frame.last
    return (clock() - started) / NS


# --- many clients -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cost:
    """What the gateway took while many clients were served."""

    cores: float
    bytes_begin: int  # of memory, when all had been served for a while
    bytes_end: int


def _many(plan: Plan) -> Figures:
    seconds = max(plan.seconds, plan.minutes * 60, INTERVALS_MIN * INTERVAL_S)
    warm_up_s = max(WARM_UP_S_MIN, seconds / 10)
    with bench_bus() as bus, running_gateway(bus) as (port, process):
        _, cost = run_together(
            Job(_publish_steadily, (bus, warm_up_s + seconds)),
            Job(_serve_many, (bus, port, plan.clients, warm_up_s, seconds, process.pid)),
            seconds_max=4 * seconds + 60,
        )
    return {
        f"gateway_{plan.clients}_cores": cost.cores,
        f"gateway_{plan.clients}_begin_mb": cost.bytes_begin / 1e6,
        f"gateway_{plan.clients}_end_mb": cost.bytes_end / 1e6,
        f"gateway_{plan.clients}_growth_percent": 100 * (cost.bytes_end / cost.bytes_begin - 1),
    }


def _publish_steadily(stage: Stage, bus: str, seconds: float) -> None:
    with Writer(bus, [SCHEMA]) as writer:
        publish_batch, rows = writer[TOPIC].publish_batch, make_block()[:ROWS]
        stage.begin(settle=True)
        due = clock()
        for _ in range(int(seconds / INTERVAL_S)):  # it begins later than the clients, by SETTLE_S, and so ends later
            publish_batch(rows)
            due += int(INTERVAL_S * NS)
            time.sleep(max(0.0, (due - clock()) / NS))
        stage.report(None)


def _serve_many(stage: Stage, bus: str, port: int, count: int, warm_up_s: float, seconds: float, pid: int) -> _Cost:
    """The clients, all in one process: each must get every row."""
    _connect(bus, port).socket.close()
    process = psutil.Process(pid)
    with selectors.DefaultSelector() as selector:
        clients = [BareClient(port, topic=f"{bus}/{TOPIC}", mode="delayed", interval=INTERVAL_S) for _ in range(count)]
        dtype = np.dtype(clients[0].confirmed["dtype"])
        positions = {client: client.confirmed["sequence"] for client in clients}
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        stage.begin()

        def look(until: float) -> None:
            while time.monotonic() < until:
                for key, _ in selector.select(max(0.0, until - time.monotonic())):
                    client: BareClient = key.data
                    for message in client.receive():
                        frame = decode_rows(message, dtype)
                        if frame.first != positions[client] + 1 or len(frame.rows) != frame.last - positions[client]:
                            raise BenchFailed(f"expected record {positions[client] + 1}, got {frame.first}")
                        positions[client] = frame.last

        look(time.monotonic() + warm_up_s)
        started, busy_s, first = time.monotonic(), _busy_s(process), process.memory_info().rss
        look(started + seconds)
        took, busy_s = time.monotonic() - started, _busy_s(process) - busy_s
        if min(positions.values()) < 1:
            raise BenchFailed("a client was sent nothing")
        return _Cost(busy_s / took, first, process.memory_info().rss)


def _busy_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


BENCH = Bench(
    "gateway",
    "WebSocket: ring to one client's socket; rows a second to one; CPU and memory of many with 100 rows a second each.",
    {
        "gateway_p50_us": Bar(200),
        "gateway_rows_per_s": Bar(300_000),
        "gateway_1000_cores": Bar(1),
        "gateway_1000_growth_percent": Bar(0, slack=5),
    },
    _run,
    {
        "rate_per_s": RATE,
        "delayed_interval_s": INTERVAL_S,
        "delayed_rows_per_s": ROWS / INTERVAL_S,
        "format": "binary",
        "log": "none, but where rows are counted",
    },
)
