"""A whole cluster for tests: three hosts of a nats-server and a node each, publishers and subscribers, and what must hold of it.

Hosts are numbered from 0. All that goes between hosts goes through links of the test's own.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import random
import signal
import struct
import subprocess
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import numpy as np
from ringmain.bus import BusError, RingFull, Watermarks, attach, open_lane
from ringmain.bus.cluster.servers import start_tied
from ringmain.storage import Schema
from support.children import Child, Children
from support.cluster_checks import check_acknowledged, check_leaderships, check_rows
from support.cluster_children import ACKNOWLEDGED, RECORDS, ROWS_MAX
from support.command import COMMAND
from support.cut_links import Link, Links
from support.logs import read_rows, wait_until
from support.nats_servers import CLUSTERS, PASSWORD, Servers, nats_servers
from support.stream_watch import StreamWatch

__all__ = ["END_S", "HOSTS", "NODES", "TIMEOUT_S", "Cluster", "Oracle", "cluster"]

NODES = ("a", "b", "c")
HOSTS = range(len(NODES))
READERS = ("real-time", "live")
NAME = CLUSTERS[0]
TIMEOUT_S = 90.0
END_S = 30.0
STREAM_BYTES = 400 << 20
RESTART_S = 2.0
FILL_S, FILL_ROWS = 5.0, 200
SLACK = 500  # records that come while it is looked
FILLING = Schema("filling", {"bytes": "S1000"})
TOPICS = """
[bus.{bus}.topics.records.fields]
value = "u8"
[bus.{bus}.topics.filling.fields]
bytes = "S1000"
"""


class Cluster:
    """The processes of the three hosts, and the links between them. Nodes that end are told of by `dead`, and started by `mend`."""

    def __init__(
        self,
        directory: Path,
        servers: Servers,
        links: Links,
        bus: str,
        topics: str,
        stream_bytes: int,
        clock: Path | None,
        directories: dict[int, Path],
    ) -> None:
        self.directory, self.servers, self.links, self.topics = directory, servers, links, topics
        self.buses = {node: f"{bus}{node}" for node in NODES}
        self.stream_bytes = stream_bytes
        self._clock = clock
        self.clients: dict[tuple[int, int], Link] = {}  # from a node to a server
        self.directories = {host: directories.get(host, directory / node) for host, node in enumerate(NODES)}
        password = directory / "password"
        password.touch(mode=0o600)
        password.write_text(PASSWORD)
        for host in HOSTS:
            self._prepare(host)
        self._started = dict.fromkeys(HOSTS, 0.0)
        self.nodes: list[subprocess.Popen[bytes]] = [self._start(host) for host in HOSTS]

    def _prepare(self, host: int) -> None:
        folder, node = self.directory / NODES[host], NODES[host]
        folder.mkdir()
        (folder / "clock").write_bytes(bytes(8))
        others = [(host + step) % len(NODES) for step in HOSTS]  # its own first
        for server in others:
            self.clients[host, server] = self.links.open((self.servers.hosts[server], 4222))
        addresses = ", ".join(f'"{self.clients[host, server].address}"' for server in others)
        (folder / "ringmain.toml").write_text(
            f"""[bus.{self.buses[node]}]
data_dir = "{self.data_dir(host)}"
log_file_bytes = "4 MiB"
slots = 16384
{self.topics.format(bus=self.buses[node])}
[cluster]
name = "{NAME}"
node = "{node}"
servers = [{addresses}]
user = "user-{NAME}"
password_file = "../password"
stream_bytes = {self.stream_bytes}
"""
        )

    def _start(self, host: int) -> subprocess.Popen[bytes]:
        self._started[host] = time.monotonic()
        folder = self.directory / NODES[host]
        env = [] if self._clock is None else ["env", f"LD_PRELOAD={self._clock}", f"CLOCK_OFFSET={folder / 'clock'}"]
        command = [*env, *COMMAND, "cluster", "node", str(folder / "ringmain.toml"), "--log-format", "json"]
        return start_tied(command, self.directory / f"{NODES[host]}.log")

    # --- what there is ----------------------------------------------------------------------------------------------

    def config(self, host: int) -> Path:
        return self.directory / NODES[host] / "ringmain.toml"

    def data_dir(self, host: int) -> Path:
        return self.directories[host] / "data"

    def address(self, host: int, topic: str = "records") -> str:
        return f"{self.buses[NODES[host]]}/{topic}"

    def watermarks(self, host: int, topic: str = "records") -> Watermarks | None:
        """None: the node is not there, or is just being opened."""
        try:
            return attach(self.address(host, topic)).watermarks()
        except BusError:
            return None

    def events(self, host: int) -> list[dict[str, object]]:
        """What the node has logged, in all of its lives; words that are no events are passed over."""
        found: list[dict[str, object]] = []
        for line in (self.directory / f"{NODES[host]}.log").read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def watch(self) -> StreamWatch:
        return StreamWatch(NAME, self.servers.access(NAME), self.servers.stream(NAME, self.stream_bytes))

    def all_open(self, topic: str = "records") -> bool:
        return all(self.watermarks(host, topic) is not None for host in HOSTS)

    def caught_up(self, host: int) -> bool:
        """Whether a node has come to where another one was when it was asked; a node that has ended is started."""
        self.keep_alive()
        marks, others = self.watermarks(host), [self.watermarks(other) for other in HOSTS if other != host]
        return marks is not None and all(
            other is not None and marks.published >= other.replicated - SLACK for other in others
        )

    # --- faults -----------------------------------------------------------------------------------------------------

    def kill(self, processes: Iterable[subprocess.Popen[bytes]]) -> None:
        processes = list(processes)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()

    def stop(self, processes: Iterable[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.send_signal(signal.SIGSTOP)

    def between(self, host: int) -> list[tuple[Link, bool]]:
        """The links between a host and the others; whether it is the host's own side that connects."""
        found: list[tuple[Link, bool]] = []
        for other in HOSTS:
            if other != host:
                found += [(self.servers.routes[host, other], True), (self.servers.routes[other, host], False)]
                found += [(self.clients[host, other], True), (self.clients[other, host], False)]
        return found

    def cut_off(self, host: int, outward: bool = True, inward: bool = True) -> None:
        """Let nothing through from (outward) or to (inward) a host."""
        for link, own in self.between(host):
            link.cut(there=outward if own else inward, back=inward if own else outward)

    def cut_routes(self, host: int) -> None:
        for (begin, end), link in self.servers.routes.items():
            if host in (begin, end):
                link.cut()

    def cut_node(self, host: int) -> None:
        """From all servers, that of its own host too."""
        for server in HOSTS:
            self.clients[host, server].cut()

    def move_clock(self, host: int, ns: int) -> None:
        with open(self.directory / NODES[host] / "clock", "r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
            memory[:] = struct.pack("=q", ns)

    def mend(self) -> None:
        """Have everything run and reach everything."""
        self.links.heal()
        for process in (*self.servers.processes, *self.nodes):
            process.send_signal(signal.SIGCONT)
        for number, process in enumerate(self.servers.processes):
            if process.poll() is not None:
                self.servers.start(number)
        for host, process in enumerate(self.nodes):
            if process.poll() is not None:
                self.nodes[host] = self._start(host)

    def keep_alive(self) -> None:
        """Start nodes again that ended by themselves, as a supervisor does: not over and over."""
        for host, process in enumerate(self.nodes):
            if process.poll() is not None and time.monotonic() - self._started[host] >= RESTART_S:
                self.nodes[host] = self._start(host)

    def fill(self, host: int, byte_count: int) -> bool:
        """Publish so much on a node, as far as there is room; none of it packs. False where the node does not lead, or no more."""
        dtype = FILLING.payload_dtype
        try:
            with open_lane(self.address(host, FILLING.name), slots=1024, full_timeout=FILL_S) as lane:
                for _ in range(byte_count // (FILL_ROWS * dtype.itemsize)):
                    lane.publish_batch(np.frombuffer(random.randbytes(FILL_ROWS * dtype.itemsize), dtype))
        except RingFull:
            return True
        except BusError:
            return False
        return True

    def close(self) -> list[int]:
        """End the nodes in good order, one after the other; their exit codes."""
        codes: list[int] = []
        for process in self.nodes:
            process.terminate()
            codes.append(process.wait(END_S))
        return codes

    def end(self) -> None:
        for process in self.nodes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def cluster(
    directory: Path,
    bus: str,
    seed: int,
    *,
    topics: str = TOPICS,
    stream_bytes: int = STREAM_BYTES,
    clock: Path | None = None,
    directories: dict[int, Path] | None = None,
    stores: Sequence[Path] = (),
) -> Generator[Cluster]:
    """A cluster that runs. clock: the library that makes nodes' clocks jump.

    directories, stores: where nodes keep data, and servers the stream, if elsewhere.
    """
    with Links(seed) as links, nats_servers(len(NODES), links=links, stores=stores) as servers:
        made = Cluster(directory, servers, links, bus, topics, stream_bytes, clock, directories or {})
        try:
            yield made
        except BaseException:
            servers.keep_logs(directory)
            raise
        finally:
            made.links.heal()
            made.end()


class Oracle:
    """Publishers and subscribers of each host, and the stream's own watch: what they saw must fit together. Use it in a `with`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._folder = cluster, cluster.directory
        self._ended = contextlib.ExitStack()
        self.watch = self._ended.enter_context(cluster.watch())
        self._children = self._ended.enter_context(Children())
        self._publishers = [self._children.start() for _ in HOSTS]
        self._subscribers: dict[int, Child] = {}
        wait_until(cluster.all_open, TIMEOUT_S)
        for host, child in enumerate(self._publishers):
            self._begin(child, "publish", number=host, buses=cluster.buses, told=self._acknowledged(host))
        for host in HOSTS:
            self.start_subscriber(host)

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.close()

    def _begin(self, child: Child, function: str, **given: object) -> None:
        code = f"from support.cluster_children import {function}\n{function}(**given)"
        child.begin(code, given={**given, "stop": str(self._folder / f"stop-{function}")})

    def _acknowledged(self, host: int) -> str:
        return str(self._folder / f"acknowledged-{host}")

    def _received(self, host: int, reader: str) -> str:
        return str(self._folder / f"received-{host}-{reader}")

    # --- while it goes on -------------------------------------------------------------------------------------------

    def start_subscriber(self, host: int) -> None:
        """It goes on behind what it has seen. Its node is there within some seconds."""
        told = {reader: self._received(host, reader) for reader in READERS}
        self._subscribers[host] = self._children.start()
        self._begin(self._subscribers[host], "subscribe", address=self._cluster.address(host), told=told)

    def kill_subscriber(self, host: int) -> None:
        self._subscribers.pop(host).kill()

    def acknowledged_count(self) -> int:
        """How many rows were acknowledged so far."""
        files = map(Path, map(self._acknowledged, HOSTS))
        return sum(path.stat().st_size for path in files if path.exists()) // ACKNOWLEDGED.itemsize

    def wait_for_acknowledged(self, timeout_s: float = TIMEOUT_S) -> None:
        """Return once records that were published from now on were acknowledged."""
        wanted = self.acknowledged_count() + 2 * len(NODES) * ROWS_MAX

        def there() -> bool:
            self.check_alive()
            self._cluster.keep_alive()
            return self.acknowledged_count() >= wanted

        wait_until(there, timeout_s)

    def wait_for_leader(self) -> int:
        wait_until(lambda: self.watch.leader != "", TIMEOUT_S)
        return NODES.index(self.watch.leader)

    def wait_for_servers(self) -> None:
        """Wait until each server holds all that is in the stream by now: one of them may then be lost, and the others go on."""
        servers, last = self._cluster.servers, self.watch.state().last
        stream = servers.stream(NAME).name
        wait_until(lambda: all(servers.stored(number, stream) >= last for number in HOSTS), TIMEOUT_S)

    def check_alive(self) -> None:
        """Raise what a publisher or subscriber failed with, if one did."""
        self.watch.check()
        for child in (*self._publishers, *self._subscribers.values()):
            if child.has_answered():
                child.settle()
                raise AssertionError("a publisher or subscriber ended early")

    # --- at the end -------------------------------------------------------------------------------------------------

    def conclude(self) -> int:
        """With all mended: end everything in good order, and check what was seen. Returns how many records were acknowledged."""
        cluster = self._cluster
        self.wait_for_acknowledged()
        (self._folder / "stop-publish").touch()
        for child in self._publishers:
            child.settle()
        wait_until(self._all_have_all, TIMEOUT_S)
        (self._folder / "stop-subscribe").touch()
        for child in self._subscribers.values():
            child.settle()
        assert cluster.close() == [0] * len(NODES)
        messages = list(self.watch.messages)
        check_leaderships(messages)
        rows = [read_rows(cluster.data_dir(host) / "log", RECORDS) for host in HOSTS]
        check_rows(rows[0])
        assert self.watch.ends()["records"] == len(rows[0])
        for host in HOSTS:
            assert rows[host].tobytes() == rows[0].tobytes(), (
                f"the log of {NODES[host]} is another than that of {NODES[0]}"
            )
            for reader in READERS:
                received = np.fromfile(self._received(host, reader), RECORDS.dtype)
                assert received.tobytes() == rows[0].tobytes(), (
                    f"the subscriber ({reader}) of {NODES[host]} saw something else"
                )
        streamed = b"".join(bytes(run.rows) for message in messages for run in message.runs if run.topic == "records")
        assert streamed == rows[0].tobytes()
        acknowledged = np.concatenate([np.fromfile(self._acknowledged(host), ACKNOWLEDGED) for host in HOSTS])
        check_acknowledged(acknowledged, rows[0], messages, RECORDS.name, NODES)
        return len(acknowledged)

    def _all_have_all(self) -> bool:
        """Whether every host, and every subscriber, has the whole of what is in the stream, which goes on no more."""
        self.check_alive()
        self._cluster.keep_alive()
        found = [self._cluster.watermarks(host) for host in HOSTS]
        ends = {0 if marks is None else marks.published for marks in found}
        replicated = {0 if marks is None else marks.replicated for marks in found}
        if len(ends | replicated) > 1 or self.watch.ends().get("records", 0) not in ends:
            return False
        size = ends.pop() * RECORDS.row_bytes
        files = [Path(self._received(host, reader)) for host in HOSTS for reader in READERS]
        return all(path.exists() and path.stat().st_size >= size for path in files)
