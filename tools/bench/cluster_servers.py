"""A cluster to be measured: three servers and three nodes on this machine, each a process with a directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ...bus.cluster.access import Access
from ...bus.cluster.certificates import make_authority, make_certificate
from ...bus.cluster.connection import Connection
from ...bus.cluster.peers import NodeStatus, ask_all, ask_switchover
from ...bus.cluster.servers import ServerSettings, User, find_server, start_server, start_tied, write_configuration
from ...bus.cluster.stream import NoAnswer
from ...storage import Schema
from .workers import BenchFailed, remove_bus

__all__ = ["BenchCluster", "running_cluster", "running_servers"]

HOST, USER = "127.0.0.1", "nodes"
PORTS = range(16222, 18222, 10)
COUNT = 3
READY_S, STOP_S, LOOK_S = 60.0, 15.0, 0.02
STORE_BYTES = 16 * 10**9


@dataclass
class BenchCluster:
    """name: of the cluster; its nodes are name0, name1, …, and hold buses of these names."""

    name: str
    directory: Path
    access: Access
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    @property
    def buses(self) -> list[str]:
        return [f"{self.name}{number}" for number in range(COUNT)]

    def statuses(self, timeout_s: float = 0.5) -> list[NodeStatus]:
        """The nodes that answer; all of them, or those that did in time."""

        async def ask() -> list[NodeStatus]:
            connection = Connection(self.access)
            try:
                await connection.connected(timeout_s)
                return await ask_all(connection, self.name, timeout_s, enough=COUNT)
            except NoAnswer:
                return []
            finally:
                await connection.close()

        return asyncio.run(ask())

    def leader(self, timeout_s: float = READY_S) -> NodeStatus:
        """Who leads, once all nodes are there and agree."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            statuses = self.statuses()
            leading = [status for status in statuses if status.leads]
            if (
                len(statuses) == COUNT
                and len(leading) == 1
                and {status.leader for status in statuses} == {leading[0].node}
            ):
                return leading[0]
            time.sleep(LOOK_S)
        raise BenchFailed(f"the cluster has no leader after {timeout_s:.0f} s")

    def switch_over(self, leader: NodeStatus, to: str) -> None:
        async def ask() -> None:
            connection = Connection(self.access)
            try:
                await connection.connected(READY_S)
                await ask_switchover(connection, self.name, leader.node, to)
            finally:
                await connection.close()

        asyncio.run(ask())

    def kill_node(self, node: str) -> None:
        process = self.nodes[self.buses.index(node)]
        process.kill()
        process.wait()

    def kill_server(self, server: str) -> None:
        process = self.servers[int(server.removeprefix("s"))]
        process.kill()
        process.wait()

    def start_server(self, number: int) -> subprocess.Popen[bytes]:
        folder = self.directory / "servers"
        return start_server(find_server(), folder / f"s{number}.conf", folder / f"s{number}.log")

    def start_node(self, number: int) -> subprocess.Popen[bytes]:
        folder = self.directory / self.buses[number]
        command = [sys.executable, "-P", "-m", "ringmain.tools", "cluster", "node", str(folder / "ringmain.toml")]
        return start_tied(command, folder / "log.txt")

    def start_dead(self) -> None:
        """Start again whatever was killed."""
        for processes, start in ((self.servers, self.start_server), (self.nodes, self.start_node)):
            for number, process in enumerate(processes):
                if process.poll() is not None:
                    processes[number] = start(number)


@contextlib.contextmanager
def running_servers(directory: Path, *, tls: bool = False) -> Generator[BenchCluster]:
    """Three servers that sync every message, and no nodes yet; gone afterwards. tls: mutual, on every connection."""
    name, password = f"bench{secrets.token_hex(3)}", secrets.token_urlsafe(12)
    base = _free_ports()
    servers = tuple(f"{HOST}:{base + number}" for number in range(COUNT))
    routes = tuple(f"{HOST}:{base + COUNT + number}" for number in range(COUNT))
    (directory / "servers").mkdir(parents=True)
    files = None
    if tls:
        make_authority(directory / "tls")
        files = make_certificate(directory / "tls", [HOST])
    cluster = BenchCluster(name, directory, Access(servers, name, USER, password, files))
    for number in range(COUNT):
        settings = ServerSettings(
            f"s{number}",
            HOST,
            directory / "servers" / f"s{number}",
            (User(name, USER, password),),
            port=base + number,
            route_port=base + COUNT + number,
            peers=routes,
            store_bytes=STORE_BYTES,
            tls=files,
        )
        write_configuration(directory / "servers" / f"s{number}.conf", settings)
    try:
        for number in range(COUNT):
            cluster.servers.append(cluster.start_server(number))
        yield cluster
    finally:
        _end(cluster.servers)


@contextlib.contextmanager
def running_cluster(directory: Path, schema: Schema, slots: int, *, tls: bool = False) -> Generator[BenchCluster]:
    """The same with three nodes, one of which leads; all of it is gone afterwards."""
    with running_servers(directory, tls=tls) as cluster:
        _configure_nodes(cluster, schema, slots)
        try:
            for number in range(COUNT):
                cluster.nodes.append(cluster.start_node(number))
            cluster.leader()
            yield cluster
        finally:
            _end(cluster.nodes)
            for bus in cluster.buses:
                remove_bus(bus)


def _configure_nodes(cluster: BenchCluster, schema: Schema, slots: int) -> None:
    access, directory = cluster.access, cluster.directory
    assert access.password is not None
    (directory / "password").touch(mode=0o600)
    (directory / "password").write_text(access.password)
    for number, bus in enumerate(cluster.buses):
        (directory / bus).mkdir()
        own_first = [*access.servers[number:], *access.servers[:number]]
        lines = [
            f"[bus.{bus}]",
            'data_dir = "data"',
            f"[bus.{bus}.topics.{schema.name}]",
            f"slots = {slots}",
            f"[bus.{bus}.topics.{schema.name}.fields]",
            *(f'{name} = "{kind}"' for name, kind in _fields(schema).items()),
            "[cluster]",
            f'name = "{cluster.name}"',
            f'node = "{bus}"',
            f"servers = {json.dumps(own_first)}",
            f'user = "{USER}"',
            'password_file = "../password"',
            f"stream_bytes = {STORE_BYTES // 2}",
        ]
        if access.tls is not None:
            lines += [f"{key} = {json.dumps(str(getattr(access.tls, key)))}" for key in ("ca", "cert", "key")]
        (directory / bus / "ringmain.toml").write_text("\n".join(lines))


def _fields(schema: Schema) -> dict[str, str]:
    return {str(entry["name"]): str(entry["type"]) for entry in msgspec.json.decode(schema.to_json())["fields"]}


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        process.kill()
        process.wait()


def _free_ports() -> int:
    for base in PORTS:
        with contextlib.ExitStack() as held:
            try:
                for port in range(base, base + 2 * COUNT):
                    held.enter_context(socket.create_server((HOST, port)))
            except OSError:
                continue
            return base
    raise BenchFailed(f"no {2 * COUNT} free ports in a row from {PORTS[0]} on")
