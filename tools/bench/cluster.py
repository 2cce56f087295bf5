"""What a cluster costs and how soon it recovers: three servers that sync every message and three nodes, all on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...bus import AttachError, BusError, LanePublisher, NotFound, NotLeader, open_lane
from ...subscribers import RealTime
from .cluster_load import (
    PACED_ROWS,
    RATE,
    REST_S,
    WAITS,
    WARM_UP_S,
    paced_batches,
    replicated_figures,
    stamped_rows,
    unstamped_rows,
)
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .peer import Library
from .rows import BATCH, NS, SCHEMA, TOPIC, batches_of, clock
from .workers import BenchFailed, Job, Stage, run_together

if TYPE_CHECKING:
    from .cluster_servers import BenchCluster

__all__ = ["BENCH"]

SLOTS = 65_536
FIELDS = (3, 17, b"600519.SH", b"limit order, good for the day")
RECOVER_S = 60.0
SWITCHOVERS = 3
SNAPSHOT_BYTES = 10**9
PACKED_ROWS = 8192  # 1 MiB


def _run(plan: Plan) -> Figures:
    try:
        from .cluster_bootstrap import measure_bootstrap  # the extra `cluster`
        from .cluster_servers import running_cluster
    except ModuleNotFoundError as error:
        raise BenchFailed(f"a cluster needs `pip install ringmain[cluster]`: {error}") from None
    with bench_directory(plan) as directory, running_cluster(Path(directory), SCHEMA, SLOTS) as cluster:
        leader = cluster.leader()
        follower = next(bus for bus in cluster.buses if bus != leader.bus)
        rows_per_s = run_together(Job(_publish_all, (leader.bus, plan.seconds)), seconds_max=20 * plan.seconds)[0]
        _, lags_us = run_together(
            Job(_publish_paced, (leader.bus, plan.seconds)), Job(_time, (follower, plan.seconds)), seconds_max=60
        )
        waits_ms = run_together(Job(_wait_for_one, (leader.bus,)), seconds_max=60)[0]
        figures = replicated_figures(rows_per_s, lags_us, waits_ms) | {
            "packed_times": _packed_times(),
            "bootstrap_mb_per_s": measure_bootstrap(
                cluster, int(min(1.0, plan.seconds) * SNAPSHOT_BYTES), unstamped_rows()
            ),
            "switchover_s": float(np.median([_gap(cluster, _switch_over) for _ in range(SWITCHOVERS)])),
            "failover_s": _gap(cluster, _kill_leader),
            "failover_with_server_s": _gap(cluster, _kill_leader_and_server),
        }
    with bench_directory(plan) as directory, running_cluster(Path(directory), SCHEMA, SLOTS, tls=True) as cluster:
        bus = cluster.leader().bus
        figures["tls_replicated_rows_per_s"] = run_together(
            Job(_publish_all, (bus, plan.seconds)), seconds_max=20 * plan.seconds
        )[0]
    return figures


class JetStreamAlone(Library):
    """The engine below a cluster by itself, as a user could take it: cluster_stream_alone.py."""

    name = "jetstream"
    module = "nats"


def _run_peer(plan: Plan, peer: type[Library]) -> Figures:
    peer.load()
    from .cluster_servers import running_servers
    from .cluster_stream_alone import measure_stream_alone

    with bench_directory(plan) as directory, running_servers(Path(directory)) as cluster:
        return measure_stream_alone(cluster, plan.seconds)


def _packed_times() -> float:
    """How many times smaller a message's rows are in the stream."""
    from ...bus.cluster.packing import pack_rows

    rows = stamped_rows()[:PACKED_ROWS]
    rows["sequence"] = np.arange(1, len(rows) + 1)
    rows["timestamp_ns"] = time.time_ns() + np.cumsum(np.random.default_rng(1).integers(200, 3000, len(rows)))
    _, packed = pack_rows(rows.tobytes(), [(len(rows), rows.itemsize)])
    return rows.nbytes / len(packed)


# --- as it runs -------------------------------------------------------------------------------------------------------


def _publish_all(stage: Stage, bus: str, seconds: float) -> float:
    """A worker: publish batches for so long; records a second until the last is replicated."""
    batches = cycle(batches_of(unstamped_rows()))
    with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA) as lane:

        def publish(seconds: float) -> int:
            start, last = clock(), 0
            while clock() - start < seconds * NS:
                last = lane.publish_batch(next(batches))
            lane.wait(last, "replicated", 60)
            return last

        stage.begin()
        before, start = publish(WARM_UP_S), clock()
        return (publish(seconds) - before) / (clock() - start) * NS


def _publish_paced(stage: Stage, bus: str, seconds: float) -> None:
    batches = cycle(batches_of(unstamped_rows(), PACED_ROWS))
    with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA) as lane:
        stage.begin(settle=True)
        due, last = clock(), 0
        for rows in islice(batches, paced_batches(seconds)):
            due += PACED_ROWS * NS // RATE
            if (early_ns := due - clock()) > 0:
                time.sleep(early_ns / NS)
            rows["price"] = clock()
            last = lane.publish_batch(rows)
        lane.wait(last, "replicated", 60)


def _time(stage: Stage, bus: str, seconds: float) -> list[float]:
    """A worker: what a subscriber of a follower's ring has to wait for each batch, in us."""
    count, seen = paced_batches(seconds) * PACED_ROWS, 0
    lags_us: list[float] = []
    with RealTime(f"{bus}/{TOPIC}") as subscriber:
        stage.begin()
        while seen < count:
            batch = subscriber.take(30)
            if batch is None:
                raise BenchFailed(f"{count} records were published, the subscriber got {seen}")
            now, sent = clock(), batch.rows["price"]
            seen += len(batch)
            if seen > WARM_UP_S * RATE:
                lags_us += ((now - sent) / 1000).tolist()
    return lags_us


def _wait_for_one(stage: Stage, bus: str) -> list[float]:
    times_ms: list[float] = []
    with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA) as lane:
        stage.begin()
        for number in range(WAITS):
            start = clock()
            lane.wait(lane.publish(600_519, start, 100, number, *FIELDS), "replicated", 30)
            times_ms.append((clock() - start) / 1e6)
            time.sleep(REST_S)
    return times_ms


# --- when somebody goes -----------------------------------------------------------------------------------------------


def _gap(cluster: BenchCluster, disturb: Callable[[BenchCluster], None]) -> float:
    """How long nothing was acknowledged, in s: from the disturbance to the first record that is replicated again."""
    cluster.start_dead()
    old = cluster.leader(RECOVER_S)
    with open_lane(f"{old.bus}/{TOPIC}", schema=SCHEMA) as lane:
        _publish_one(lane)
    start = clock()
    disturb(cluster)
    while clock() - start < RECOVER_S * NS:
        for bus in cluster.buses:
            with contextlib.suppress(NotLeader, NotFound, AttachError, BusError, TimeoutError):
                if bus != old.bus:
                    with open_lane(f"{bus}/{TOPIC}", schema=SCHEMA) as lane:
                        _publish_one(lane)
                    return (clock() - start) / NS
        time.sleep(0.005)
    raise BenchFailed(f"nothing is acknowledged {RECOVER_S:.0f} s after a fault")


def _publish_one(lane: LanePublisher) -> None:
    lane.wait(lane.publish(600_519, clock(), 100, 0, *FIELDS), "replicated", RECOVER_S)


def _switch_over(cluster: BenchCluster) -> None:
    leader = cluster.leader()
    cluster.switch_over(leader, next(bus for bus in cluster.buses if bus != leader.node))


def _kill_leader(cluster: BenchCluster) -> None:
    cluster.kill_node(cluster.leader().node)


def _kill_leader_and_server(cluster: BenchCluster) -> None:
    leader = cluster.leader()
    assert leader.stream is not None
    cluster.kill_server(leader.stream.leader)
    cluster.kill_node(leader.node)


BENCH = Bench(
    "cluster",
    "Three servers that sync every message, and three nodes: what is replicated a second, how late, and how soon another leads.",
    {
        "replicated_mb_per_s": Bar(60),
        "replicated_rows_per_s": Bar(450_000),
        "lag_p50_ms": Bar(10),
        "lag_p99_ms": Bar(100),
        "wait_replicated_p50_ms": Bar(8),
        "bootstrap_mb_per_s": Bar(100),
        "switchover_s": Bar(1),
        "failover_s": Bar(5),
        "failover_with_server_s": Bar(12),
    },
    _run,
    {
        "servers": "3, each message synced",
        "nodes": 3,
        "row_bytes": SCHEMA.row_bytes,
        "batch_rows": BATCH,
        "lag_rate_per_s": RATE,
        "slots": SLOTS,
        "snapshot_bytes": SNAPSHOT_BYTES,
        "jetstream": "the servers alone: 256 KiB a message, 8 in flight; for the lag 100 rows, 64 in flight",
    },
    _run_peer,
    JetStreamAlone,
)
