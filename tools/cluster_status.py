"""`ringmain cluster status` and `switchover`: what the nodes say, asked over the servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.text import Text

from ..bus import BusError
from ..bus.cluster.api import StreamInfo, ask
from ..bus.cluster.connection import Connection
from ..bus.cluster.peers import ClaimStatus, NodeStatus, StreamStatus, ask_all, ask_switchover
from ..bus.cluster.stream import NoAnswer
from .cluster_loading import load_cluster
from .cluster_table import ClusterPlan
from .printing import count, memory, moment, new_table, note, pairs, plain, print_json, stdout

__all__ = ["report_of", "run_status", "run_switchover"]

CONNECT_S = 5.0
FAR_MS = 5000.0
SWITCH_S = 10.0
Result = TypeVar("Result")


class NodeReport(msgspec.Struct, kw_only=True):
    """A node, and how far behind the leader it is; None where no leader answers to compare with.

    sequence, stored, receiving: messages of the stream, as in NodeStatus.
    """

    node: str
    bus: str
    pid: int
    leads: bool
    follows: str
    epoch: int
    sequence: int
    stored: int
    receiving: int
    server: str
    applied: dict[str, int]
    durable: dict[str, int]
    replicated: dict[str, int]
    lag_records: int | None
    lag_bytes: int | None
    lag_ms: float | None


class Report(msgspec.Struct, kw_only=True):
    """A cluster, as its nodes say. faults: what is wrong, in words."""

    cluster: str
    leader: str
    epoch: int
    acknowledge: str
    nodes: list[NodeReport]
    stream: StreamStatus | None
    claims: list[ClaimStatus]
    faults: list[str]


def run_status(config: Path, as_json: bool) -> bool:
    """Print how the cluster is; whether all is well."""
    _, plan = load_cluster(config)
    report = asyncio.run(_connected(plan, lambda connection: _look(connection, plan)))
    if as_json:
        print_json(report)
    else:
        _print(report)
    return not report.faults


def run_switchover(config: Path, to: str) -> None:
    """Have the leader hand over. Raises BusError where none leads, or where it could not."""
    _, plan = load_cluster(config)
    leader, took_s = asyncio.run(_connected(plan, lambda connection: _switch(connection, plan, to)))
    note(f"{leader} leads, after {took_s:.2f} s")


async def _connected(plan: ClusterPlan, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    connection = Connection(plan.access)
    try:
        await connection.connected(CONNECT_S)
        return await work(connection)
    finally:
        await connection.close()


async def _look(connection: Connection, plan: ClusterPlan) -> Report:
    stream, statuses = await asyncio.gather(_stream(connection, plan), ask_all(connection, plan.name))
    return report_of(plan.name, plan.acknowledge, statuses, stream)


def report_of(cluster: str, acknowledge: str, statuses: list[NodeStatus], stream: StreamStatus | None) -> Report:
    """What the nodes say, and the servers, put together. acknowledge: as configured, where nobody leads."""
    leader = max((status for status in statuses if status.leads), key=lambda status: status.epoch, default=None)
    report = Report(
        cluster=cluster,
        leader="" if leader is None else leader.node,
        epoch=max((status.epoch for status in statuses), default=0),
        acknowledge=acknowledge if leader is None else leader.acknowledge,
        nodes=[_report(status, leader) for status in statuses],
        stream=stream,
        claims=_claims(statuses),
        faults=[],
    )
    report.faults = _faults(report, statuses)
    return report


async def _stream(connection: Connection, plan: ClusterPlan) -> StreamStatus | None:
    try:
        return StreamStatus(*(await ask(connection, f"STREAM.INFO.{plan.stream.name}", StreamInfo)).as_state())
    except BusError:  # no answer, or no such stream yet
        return None


def _report(status: NodeStatus, leader: NodeStatus | None) -> NodeReport:
    behind: dict[str, int] | None = None
    if leader is not None:
        behind = {
            name: max(0, topic.applied - (status.topics[name].applied if name in status.topics else 0))
            for name, topic in leader.topics.items()
        }
    return NodeReport(
        node=status.node,
        bus=status.bus,
        pid=status.pid,
        leads=status.leads,
        follows="" if status.leads else status.leader,
        epoch=status.epoch,
        sequence=status.sequence,
        stored=status.stored,
        receiving=status.receiving,
        server=status.server,
        applied={name: topic.applied for name, topic in status.topics.items()},
        durable={name: topic.durable for name, topic in status.topics.items()},
        replicated={name: topic.replicated for name, topic in status.topics.items()},
        lag_records=None if behind is None else sum(behind.values()),
        lag_bytes=None
        if behind is None or leader is None
        else sum(n * leader.topics[name].row_bytes for name, n in behind.items()),
        lag_ms=status.lag_ms,
    )


def _claims(statuses: list[NodeStatus]) -> list[ClaimStatus]:
    """The changes of leadership, as the node tells them that saw the latest, and of those the most."""
    seen = [status.claims for status in statuses if status.claims]
    return max(seen, key=lambda claims: (claims[-1].epoch, len(claims))) if seen else []


def _faults(report: Report, statuses: list[NodeStatus]) -> list[str]:
    faults: list[str] = []
    if not statuses:
        faults.append("no node answers")
    elif not report.leader:
        faults.append("no node leads")
    if report.stream is None:
        faults.append("the stream does not answer: too few of its servers run, or they cannot reach each other")
    elif report.stream.peers_behind:
        faults.append(f"of the servers that keep the stream {report.stream.peers_behind} are down, or far behind")
    faults += [f"node {status.node}: the stream is full" for status in statuses if status.stream_full]
    faults += [
        f"node {n.node}: {n.lag_ms / 1e3:.1f} s behind"
        for n in report.nodes
        if n.lag_ms is not None and n.lag_ms > FAR_MS
    ]
    there = {status.node for status in statuses}
    faults += [f"node {status.node}: {words}" for status in statuses for words in status.faults]
    missed = {node for status in statuses for node in status.missed}
    known = {claim.node for claim in report.claims} | missed
    faults += [f"node {node} does not answer" for node in sorted(known - there)]
    return faults


def _print(report: Report) -> None:
    out = stdout()
    facts: list[tuple[str, str]] = [
        ("cluster", report.cluster),
        ("leader", f"{report.leader or 'nobody'}, epoch {report.epoch}"),
        ("acknowledged", "when in the stream" if report.acknowledge == "sync" else "when durable on the leader"),
    ]
    if (stream := report.stream) is not None:
        held = (
            f"messages {stream.first:,} to {stream.last:,}, {memory(stream.stored_bytes)} of {memory(stream.bytes_max)}"
        )
        facts.append(("stream", f"{held}, led by {stream.leader}"))
    facts += [("claim", f"{moment(c.time_ns)}  epoch {c.epoch}  {c.node}") for c in report.claims[-3:]]
    out.print(pairs(*facts))
    table = new_table(
        "NODE", "BUS", "ROLE", ">MESSAGE", "~TOPIC", ">APPLIED", ">DURABLE", ">REPLICATED", ">LAG", ">BYTES", ">MS"
    )
    for node in report.nodes:
        role = "leads" if node.leads else f"follows {node.follows or 'nobody'}"
        role = "receives a snapshot" if node.receiving else role
        lags = (count(node.lag_records), memory(node.lag_bytes), "-" if node.lag_ms is None else f"{node.lag_ms:,.1f}")
        first = [plain(node.node), plain(node.bus), plain(role), count(node.sequence)]
        for number, topic in enumerate(sorted(node.applied) or [""]):
            where = [count(marks.get(topic)) for marks in (node.applied, node.durable, node.replicated)]
            table.add_row(
                *(first if number == 0 else [""] * 4), plain(topic), *where, *(lags if number == 0 else [""] * 3)
            )
    out.print(table)
    for fault in report.faults:
        out.print(Text("! ", style="red") + plain(fault))


async def _switch(connection: Connection, plan: ClusterPlan, to: str) -> tuple[str, float]:
    statuses = await ask_all(connection, plan.name)
    leader = max((status for status in statuses if status.leads), key=lambda status: status.epoch, default=None)
    if leader is None:
        raise BusError(f"cluster {plan.name}: no node leads, so none can hand over; see `ringmain cluster status`")
    if to and to not in {status.node for status in statuses}:
        there = ", ".join(status.node for status in statuses)
        raise BusError(f"cluster {plan.name}: node {to!r} does not answer; those that do: {there}")
    started = time.monotonic()
    await ask_switchover(connection, plan.name, leader.node, to)
    while time.monotonic() - started < SWITCH_S:
        for status in await ask_all(connection, plan.name, 0.2):
            if status.leads and status.epoch > leader.epoch:
                return status.node, time.monotonic() - started
    raise NoAnswer(f"{leader.node} has handed over, and no node says that it leads; see `ringmain cluster status`")
