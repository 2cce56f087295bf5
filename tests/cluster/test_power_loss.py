"""The power fails under servers and nodes: their disks stop at once and keep only what was synced, and a node's memory is gone.

RINGMAIN_SEED=N takes the same ones in the same order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import pytest
from support.nats_servers import Servers, nats_servers
from support.power import Disk, cut_power, disk
from support.small_disk import mounted

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
from ringmain.bus.cluster.jetstream import JetStream
from ringmain.bus.cluster.stream import Stored
from support.clusters import HOSTS, NODES, Cluster, Oracle, cluster
from support.fault_rounds import Round

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
ROUNDS_NIGHTLY = 100
MESSAGES = [b"%d" % number for number in range(1, 51)]
pytestmark = [pytest.mark.process, pytest.mark.timeout(36_000 if NIGHTLY else 600)]


@contextlib.contextmanager
def disks(folder: Path) -> Iterator[list[Disk]]:
    """One for each host, in memory: what they sync does not wait for the disk of the machine."""
    with contextlib.ExitStack() as made:
        memory = made.enter_context(mounted(folder, "1g"))
        yield [made.enter_context(disk(memory / str(host))) for host in HOSTS]


# --- servers alone ------------------------------------------------------------------------------------------------------


def survivors(directory: Path, synced: bool) -> list[bytes]:
    """Which of the messages that three servers acknowledged are there after they all lost their power."""

    async def opened(servers: Servers) -> JetStream:
        return await JetStream.open(servers.access("c0"), servers.stream("c0", synced=synced))

    async def append(servers: Servers) -> None:
        stream = await opened(servers)
        for last, message in enumerate(MESSAGES):
            assert await stream.append(message, last, f"m{last}") == last + 1
        await stream.close()

    async def read(servers: Servers) -> list[Stored | None]:
        stream = await opened(servers)
        found = [await stream.get(sequence) for sequence in range(1, len(MESSAGES) + 1)]
        await stream.close()
        return found

    with (
        disks(directory) as stores,
        nats_servers(len(HOSTS), synced=synced, stores=[each.place for each in stores]) as servers,
    ):
        asyncio.run(append(servers))
        cut_power(stores, servers.processes)
        for each in stores:
            each.restore()
        servers.mend()
        return [stored.payload for stored in asyncio.run(read(servers)) if stored is not None]


def test_what_servers_acknowledged_survives_that_all_lose_their_power_if_they_sync_it_first_and_only_then(tmp_path):
    with ThreadPoolExecutor() as threads:  # each waits for elections most of the time
        synced = threads.submit(survivors, tmp_path / "synced", True)
        late = threads.submit(survivors, tmp_path / "late", False)
        assert synced.result() == MESSAGES
        assert len(late.result()) < len(MESSAGES)


# --- a cluster under load -----------------------------------------------------------------------------------------------


class Power:
    """Of each node and each server of a cluster; they are on disks of their own."""

    def __init__(self, running: Cluster, oracle: Oracle, nodes: list[Disk], servers: list[Disk]) -> None:
        self._running, self._oracle, self._nodes, self._servers = running, oracle, nodes, servers
        self._without: list[Disk] = []
        self._silenced: Collection[int] = ()

    def cut(self, nodes: Collection[int], servers: Collection[int]) -> None:
        """With a node goes the memory that it shares with others, and the subscriber of its host."""
        running = self._running
        processes = [running.nodes[host] for host in nodes] + [running.servers.processes[host] for host in servers]
        self._without = [self._nodes[host] for host in nodes] + [self._servers[host] for host in servers]
        self._silenced = nodes
        cut_power(self._without, processes)
        for host in nodes:
            self._oracle.kill_subscriber(host)
            bus = f"/dev/shm/ringmain.{running.buses[NODES[host]]}"
            for left in [bus, *glob(f"{bus}.*")]:
                Path(left).unlink(missing_ok=True)

    def restore(self) -> None:
        for each in self._without:
            each.restore()
        self._running.mend()
        for host in self._silenced:
            self._oracle.start_subscriber(host)


def fall_silent(running: Cluster, nodes: Collection[int], servers: Collection[int]) -> None:
    """As hosts without power do: nobody is told that a connection is closed."""
    for host in nodes:
        running.cut_node(host)
    for host in servers:
        running.cut_routes(host)
        for node in HOSTS:
            running.clients[node, host].cut()


Lost = tuple[Collection[int], Collection[int]]  # nodes, and servers


def server_that_follows(it: Round) -> Lost:
    return (), [it.stream_follower]


def server_that_leads(it: Round) -> Lost:
    return (), [it.stream_leader]


def all_servers(it: Round) -> Lost:
    return (), HOSTS


def node_that_follows(it: Round) -> Lost:
    return [it.follower], ()


def node_that_leads(it: Round) -> Lost:
    return [it.leader], ()


def leading_node_and_leading_server(it: Round) -> Lost:
    return [it.leader], [it.stream_leader]


def all_nodes(it: Round) -> Lost:
    return HOSTS, ()


def everything(it: Round) -> Lost:
    return HOSTS, HOSTS


Choice = Callable[[Round], Lost]
ALWAYS: list[Choice] = [server_that_follows, node_that_follows, everything]
COSTLY: list[Choice] = [  # an election, or the silence before one, is waited for
    server_that_leads,
    all_servers,
    node_that_leads,
    leading_node_and_leading_server,
    all_nodes,
]


def choose(chance: random.Random) -> list[Choice]:
    """By default one of the costly ones, so that all have their turn over a few runs."""
    if NIGHTLY:
        return chance.choices(ALWAYS + COSTLY, k=ROUNDS_NIGHTLY)
    choices = [*ALWAYS, chance.choice(COSTLY)]
    return chance.sample(choices, len(choices))


def lose_power(it: Round, power: Power, nodes: Collection[int], servers: Collection[int]) -> None:
    """And have it back after a while, in which those that are left go on where they can."""
    if it.chance.random() < 0.5:
        fall_silent(it.cluster, nodes, servers)
    power.cut(nodes, servers)
    if it.leader in nodes and len(nodes) == 1:
        it.until_another_leads()
    elif len(servers) == 1:
        it.until_acknowledged()
    it.for_a_moment()
    power.restore()


def check_servers(servers: Servers) -> None:
    """All have come back."""
    for number, process in enumerate(servers.processes):
        assert process.poll() is None, f"a server has ended by itself:\n{servers.log(number)[-8000:]}"


def test_no_acknowledged_record_is_lost_when_the_power_fails_under_servers_and_nodes(tmp_path, bus_name):
    seed = int(os.environ.get("RINGMAIN_SEED") or random.SystemRandom().getrandbits(32))
    print(f"RINGMAIN_SEED={seed}")
    chance = random.Random(seed)
    with (
        disks(tmp_path / "nodes") as of_nodes,
        disks(tmp_path / "servers") as of_servers,
        cluster(
            tmp_path,
            bus_name,
            seed,
            directories={host: of_nodes[host].place for host in HOSTS},
            stores=[each.place for each in of_servers],
        ) as running,
        Oracle(running) as oracle,
    ):
        power = Power(running, oracle, of_nodes, of_servers)
        for number, choice in enumerate(choose(chance)):
            begun = time.monotonic()
            try:
                it = Round(running, oracle, chance)
                it.for_a_moment()
                lose_power(it, power, *choice(it))
                oracle.wait_for_acknowledged()
                check_servers(running.servers)
            finally:
                print(f"round {number}: {choice.__name__}, {time.monotonic() - begun:.1f} s", flush=True)
        acknowledged = oracle.conclude()
    print(f"{acknowledged} records were acknowledged, in {oracle.watch.epoch} leaderships")
