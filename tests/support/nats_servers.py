"""Real nats-servers for tests, on loopback addresses of their own, that can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from ringmain.bus import NotFound
from ringmain.bus.cluster.access import Access, StreamSettings, Tls
from ringmain.bus.cluster.servers import (
    ServerSettings,
    User,
    find_server,
    start_server,
    write_configuration,
)
from support.cut_links import Link, Links
from support.logs import wait_until

TIMEOUT_S = 30.0
MONITORING = 8222  # the port
NOWHERE = "127.0.0.1:1"  # nobody listens there
PASSWORD = "a 'pass$word"
CLUSTERS = tuple(f"c{number}" for number in range(16))  # each with a user and a stream of its own
_NUMBERS = itertools.count(1)


class Servers:
    """Some nats-servers. They end with the tests' process, at the latest.

    links: then each server reaches each other one through a link of its own, `routes[from, to]`, and in no other way.
    stores: a folder for each server's files, if elsewhere.
    """

    def __init__(
        self,
        directory: Path,
        count: int,
        tls: bool = False,
        synced: bool = True,
        links: Links | None = None,
        stores: Sequence[Path] = (),
    ) -> None:
        self.directory, self.count = directory, count
        pid = os.getpid()
        net = f"127.{16 + (pid >> 8) % 200}.{pid & 255}"  # all of 127.0.0.0/8 is this machine's, and who else would be there
        self.hosts = [f"{net}.{next(_NUMBERS)}" for _ in range(count)]
        self.names = [f"s{number}" for number in range(count)]
        self.tls: list[Tls | None] = [None] * count
        if tls:
            from ringmain.bus.cluster.certificates import make_authority, make_certificate

            make_authority(directory)
            self.tls = [make_certificate(directory, [host]) for host in self.hosts]
        users = tuple(User(cluster, f"user-{cluster}", PASSWORD) for cluster in CLUSTERS)
        self.routes: dict[tuple[int, int], Link] = {}
        for number, (host, name, files) in enumerate(zip(self.hosts, self.names, self.tls, strict=True)):
            peers = self._peers(number, links) if count > 1 else ()
            store = stores[number] if stores else directory / name
            settings = ServerSettings(
                name, host, store, users, peers=peers, store_bytes=10**9, tls=files, synced=synced
            )
            path = directory / f"{name}.conf"
            write_configuration(path, settings)
            path.write_text(f'{path.read_text()}http: "{host}:{MONITORING}"\n')
            if links is not None:  # peers tell each other where they are, and that would lead round the links
                path.write_text(path.read_text().replace('"no_advertise": true', f'"advertise": "{NOWHERE}"'))
        self._program = find_server()
        self.processes: list[subprocess.Popen[bytes]] = [self._start(number) for number in range(count)]

    def _peers(self, number: int, links: Links | None) -> tuple[str, ...]:
        if links is None:
            return tuple(f"{host}:6222" for host in self.hosts)
        others = [other for other in range(self.count) if other != number]
        self.routes |= {(number, other): links.open((self.hosts[other], 6222)) for other in others}
        return tuple(self.routes[number, other].address for other in others)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        name = self.names[number]
        return start_server(self._program, self.directory / f"{name}.conf", self.directory / f"{name}.log")

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"{host}:4222" for host in self.hosts)

    def access(self, cluster: str, first: int = 0) -> Access:
        """first: the server that is tried first."""
        servers = self.addresses[first:] + self.addresses[:first]
        return Access(servers, f"node-{cluster}", f"user-{cluster}", PASSWORD, self.tls[first])

    def stream(self, cluster: str, bytes_max: int = 64 << 20, synced: bool = True) -> StreamSettings:
        return StreamSettings.of_cluster(cluster, self.count, bytes_max, synced)

    def log(self, number: int) -> str:
        return (self.directory / f"{self.names[number]}.log").read_text(errors="replace")

    def keep_logs(self, directory: Path) -> None:
        """Copy them to where they are found after a test has failed."""
        for name in self.names:
            shutil.copy(self.directory / f"{name}.log", directory)

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()

    def start(self, number: int) -> None:
        """Start one that was killed."""
        self.processes[number] = self._start(number)

    def stop(self, number: int) -> None:
        """Let it stand still, with its connections open."""
        self.processes[number].send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.processes[number].pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", TIMEOUT_S)

    def resume(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGCONT)

    def mend(self) -> None:
        """Have all of them run again."""
        for number, process in enumerate(self.processes):
            process.send_signal(signal.SIGCONT)
            if process.poll() is not None:
                self.start(number)
        self.listening()

    def stored(self, number: int, stream: str) -> int:
        """The last message of a stream that a server holds itself; 0 where it does not say."""
        url = f"http://{self.hosts[number]}:{MONITORING}/jsz?accounts=true&streams=true"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1.0) as answer:
            for account in json.load(answer).get("account_details", ()):
                for detail in account.get("stream_detail", ()):
                    if detail["name"] == stream:
                        return detail["state"]["last_seq"]
        return 0

    def listening(self) -> None:
        """Wait until all of them can be connected to."""
        for host in self.hosts:
            wait_until(lambda host=host: _listens(host), TIMEOUT_S)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def nats_servers(
    count: int, tls: bool = False, synced: bool = True, links: Links | None = None, stores: Sequence[Path] = ()
) -> Generator[Servers]:
    """Skips where there is no nats-server of the right version."""
    pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
    try:
        find_server()
    except NotFound as error:
        pytest.skip(str(error))
    directory = Path(tempfile.mkdtemp(prefix="ringmain-nats-"))
    servers = None
    try:
        servers = Servers(directory, count, tls, synced, links, stores)
        servers.listening()
        yield servers
    finally:
        if servers is not None:
            servers.close()
        shutil.rmtree(directory)


async def why_refused(access: Access) -> str:
    """Why none of the servers can be connected to, once each has said so."""
    from ringmain.bus.cluster.connection import Connection

    told: list[str] = []
    connection = Connection(access, told.append)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not all(any(words.startswith(f"{server}: ") for words in told) for server in access.servers):
                await asyncio.sleep(0.02)
        return connection.why_not()
    finally:
        await connection.close()


def _listens(host: str) -> bool:
    try:
        socket.create_connection((host, 4222), TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    return True
