"""`ringmain cluster up`: a whole cluster on this machine, for trying out: three nats-servers and three nodes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bus.cluster.access import Tls
from ..bus.cluster.certificates import make_authority, make_certificate
from ..bus.cluster.connection import Connection
from ..bus.cluster.peers import NodeStatus, ask_all
from ..bus.cluster.servers import ServerSettings, User, find_server, start_server, start_tied, write_configuration
from ..bus.cluster.stream import NoAnswer
from ..bus.segments import check_bus_name
from .configuration import Configuration, load_configuration
from .printing import note, plain, print_text, stdout

__all__ = ["run_up"]

CLUSTER, HOST = "demo", "127.0.0.1"
NODES = ("a", "b", "c")
PORTS = range(14222, 16222, 10)  # below those that the system hands out
LOOK_S = 0.5
RESTART_S = 5.0
STOP_S = 15.0
STORE_BYTES, STREAM_BYTES = 4 * 10**9, "1 GB"

PUBLISH = '''"""Publish a trade every 10 ms on whichever node leads, until Ctrl-C."""
import itertools
import time

from ringmain.bus import LeaderLane

with LeaderLane([f"PREFIX{node}/trades" for node in "abc"]) as lane:
    for count in itertools.count(1):
        lane.publish(count, 0, time.time_ns(), 1, 2, 18_2500, 100, 600519, b"B")
        time.sleep(0.01)
'''


def run_up(directory: Path, tls: bool, prefix: str) -> None:
    """Run all of it until SIGTERM or Ctrl-C. directory: made, with all files, if it is not there. prefix: of the buses' names."""
    directory = directory.absolute()
    program = find_server()
    if not (directory / "servers").exists():
        _prepare(directory, tls, prefix)
    elif tls != (directory / "tls").exists():
        raise ValueError(f"{directory}: it was made {'without' if tls else 'with'} --tls; take another directory")
    elif prefix + NODES[0] not in (names := [bus.name for bus in _configuration(directory).buses]):
        raise ValueError(
            f"{directory}: it was made for a bus {names[0]!r}, not {prefix + NODES[0]!r}; take another directory"
        )
    asyncio.run(_Up(directory, program).run())


def _configuration(directory: Path) -> Configuration:
    """One node's, of which what is asked is the same for all."""
    return load_configuration(directory / NODES[0] / "ringmain.toml")


def _prepare(directory: Path, tls: bool, prefix: str) -> None:
    """Write all files that servers and nodes need."""
    for node in NODES:
        check_bus_name(prefix + node)
    for folder in ("servers", *NODES):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    files: Tls | None = None
    if tls:
        make_authority(directory / "tls")
        files = make_certificate(directory / "tls", [HOST])
    password = secrets.token_urlsafe(18)
    _write_secret(directory / "password", password)
    base = _free_ports()
    peers = tuple(f"{HOST}:{base + 3 + number}" for number in range(len(NODES)))
    servers = [f"{HOST}:{base + number}" for number in range(len(NODES))]
    for number, node in enumerate(NODES):
        name = f"s{number + 1}"
        settings = ServerSettings(
            name,
            HOST,
            directory / "servers" / name,
            (User(CLUSTER, "nodes", password),),
            port=base + number,
            route_port=base + 3 + number,
            peers=peers,
            store_bytes=STORE_BYTES,
            tls=files,
        )
        write_configuration(directory / "servers" / f"{name}.conf", settings)
        own_first = servers[number:] + servers[:number]
        (directory / node / "ringmain.toml").write_text(_node_text(node, prefix + node, own_first, tls), "utf-8")
    (directory / "publish.py").write_text(PUBLISH.replace("PREFIX", prefix))


def _node_text(node: str, bus: str, servers: Sequence[str], tls: bool) -> str:
    listed = ", ".join(f'"{server}"' for server in servers)
    lines = [
        f"[bus.{bus}]  # the same bus on every node; on one machine it needs three names",
        'data_dir = "data"',
        "",
        f"[bus.{bus}.topics.trades]",
        "",
        "[cluster]",
        f'name = "{CLUSTER}"',
        f'node = "{node}"',
        f"servers = [{listed}]",
        'user = "nodes"',
        'password_file = "../password"',
        f'stream_bytes = "{STREAM_BYTES}"',
    ]
    if tls:
        lines += ['ca = "../tls/ca.pem"', f'cert = "../tls/{HOST}.pem"', f'key = "../tls/{HOST}.key"']
    return "\n".join([*lines, ""])


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _free_ports() -> int:
    """The first of six ports that nobody listens on."""
    for base in PORTS:
        with contextlib.ExitStack() as held:
            try:
                for port in range(base, base + 6):
                    held.enter_context(socket.create_server((HOST, port)))
            except OSError:
                continue
            return base
    raise OSError(f"no six free ports in a row between {PORTS[0]} and {PORTS[-1]}")


@dataclass(slots=True)
class _Child:
    """A program that is started again when it dies."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]
    died_at: float | None = None

    def look(self) -> None:
        if self.died_at is None and (code := self.process.poll()) is not None:
            self.died_at = time.monotonic()
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            note(f"{self.name} {how}; it is started again in {RESTART_S:.0f} s")
        if self.died_at is not None and time.monotonic() - self.died_at >= RESTART_S:
            self.process, self.died_at = self.start(), None
            note(f"{self.name} runs again, pid {self.process.pid}")

    def end(self) -> None:
        if self.process.poll() is None:
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class _Up:
    """Runs the children, and tells who leads."""

    def __init__(self, directory: Path, program: Path) -> None:
        self._directory, self._program = directory, program
        self._servers: list[_Child] = []
        self._nodes: list[_Child] = []
        self._leader = ""

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        plan = _configuration(self._directory).cluster
        assert plan is not None, "written by _prepare"
        connection = None
        try:
            for number, node in enumerate(NODES):
                server = f"s{number + 1}"
                self._servers.append(self._child(f"server {server}", lambda server=server: self._start_server(server)))
                self._nodes.append(self._child(f"node {node}", lambda node=node: self._start_node(node)))
            note(f"three nats-servers and three nodes are starting in {self._directory}; their logs are there too")
            connection = Connection(plan.access)
            told: tuple[str, int] | None = None
            while not stop.is_set():
                for child in (*self._servers, *self._nodes):
                    child.look()
                told = self._tell(await _statuses(connection), told)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LOOK_S)
        finally:
            note("ending all of it")
            if connection is not None:
                await connection.close()
            # The leader last: it would hand over, and nobody is to take it. Then the servers, to which nodes say goodbye.
            followers_first = sorted(self._nodes, key=lambda child: child.name == f"node {self._leader}")
            for child in (*followers_first, *self._servers):
                child.process.terminate()
                await asyncio.to_thread(child.end)

    def _child(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> _Child:
        return _Child(name, start, start())

    def _start_server(self, server: str) -> subprocess.Popen[bytes]:
        folder = self._directory / "servers"
        return start_server(self._program, folder / f"{server}.conf", folder / f"{server}.log")

    def _start_node(self, node: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "ringmain.tools", "cluster", "node"]
        return start_tied([*command, str(self._directory / node / "ringmain.toml")], self._directory / f"{node}.log")

    def _tell(self, statuses: list[NodeStatus], told: tuple[str, int] | None) -> tuple[str, int] | None:
        """Who leads, if that is news; the first time also what to try."""
        for status in statuses:
            if status.leads and (status.node, status.epoch) != told:
                self._leader = status.node
                print_text(stdout(), plain(f"node {status.node} leads, pid {status.pid}, epoch {status.epoch}"))
                if told is None:
                    self._tell_what_to_try(status)
                sys.stdout.flush()
                return status.node, status.epoch
        return told

    def _tell_what_to_try(self, leader: NodeStatus) -> None:
        other = next(node for node in NODES if node != leader.node)
        bus = leader.bus.removesuffix(leader.node) + other
        config = shlex.quote(str(self._directory / leader.node / "ringmain.toml"))
        python = shlex.quote(sys.executable)
        for what, command in (
            ("publish", f"{python} {shlex.quote(str(self._directory / 'publish.py'))}"),
            ("subscribe", f"ringmain subscribe {bus}/trades"),
            ("look", f"ringmain cluster status {config}"),
            ("switch over", f"ringmain cluster switchover {config} --to {other}"),
            ("kill the leader", f"kill -9 {leader.pid}"),
            ("end all of it", "Ctrl-C here"),
        ):
            print_text(stdout(), plain(f"  {what:16} {command}"))


async def _statuses(connection: Connection) -> list[NodeStatus]:
    try:
        return await ask_all(connection, CLUSTER, LOOK_S)
    except NoAnswer:
        return []
