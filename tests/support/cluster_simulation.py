"""A cluster's protocol in one process: three nodes over models, faults at random, and an oracle outside. One seed is one run."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from ringmain.bus.cluster.following import Timing
from ringmain.bus.cluster.node import Node
from ringmain.bus.cluster.stream import Trimmed
from ringmain.bus.errors import BusError

from .cluster_models import TOPICS, Journal, ModelReplica, ModelStream, Network, Oracle, Wire
from .virtual_time import run_virtually

__all__ = ["Simulation", "simulate"]

NAMES = ("a", "b", "c")
HEALED_S = 120.0


@dataclass
class Host:
    name: str
    wire: Wire
    journal: Journal = field(default_factory=Journal)
    replica: ModelReplica | None = None
    node: Node | None = None
    task: asyncio.Task[None] | None = None


class Simulation:
    """length_s: for how long faults happen, in virtual seconds. `count` says how often each thing happened."""

    def __init__(self, seed: int, length_s: float = 25.0) -> None:
        self.chance = random.Random(seed)
        self.length_s = length_s
        self.faults_per_s = self.chance.choice([0.1, 0.2, 0.5])
        self.stream = ModelStream(ids_kept=self.chance.choice([1, 3, 1000]))
        self.network = Network(
            delay=self.chance.choice([0.002, 0.01, 0.1]),
            loss=self.chance.choice([0.0, 0.02, 0.1]),
            duplicates=self.chance.choice([0.0, 0.1]),
            stale=self.chance.choice([0.0, 0.3]),
            sync=self.chance.choice([0.01, 0.3]),
        )
        self.oracle = Oracle(self.stream)
        self.hosts = [Host(name, Wire(self.stream, self.network, self.chance)) for name in NAMES]
        self.count: dict[str, int] = {}
        self._publishing = True

    async def run(self) -> None:
        for host in self.hosts:
            self.start(host)
        publishing = asyncio.create_task(self._publish())
        healing: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        await asyncio.sleep(5 * self.chance.random())
        while loop.time() < self.length_s:
            await asyncio.sleep(self.chance.expovariate(self.faults_per_s))
            healing.append(asyncio.create_task(self._fault()))
            self._check_alive()
        await asyncio.gather(*healing)
        self.network.loss = self.network.duplicates = self.network.stale = 0.0
        self._publishing = False
        await publishing
        await self._converge()
        self.oracle.check({host.name: host.journal.rows for host in self.hosts})

    # --- hosts ------------------------------------------------------------------------------------------------------

    def start(self, host: Host) -> None:
        host.replica = ModelReplica(host.journal, self.oracle, self.network.sync, self.chance)
        host.node = Node(
            host.name,
            host.wire,
            host.replica,
            timing=Timing(),
            bootstrap=lambda trimmed: self._bootstrap(host, trimmed),
            chance=random.Random(self.chance.getrandbits(64)),
        )
        host.task = asyncio.create_task(host.node.run())

    def kill(self, host: Host, *, power: bool = False) -> None:
        if host.task is None or host.replica is None:
            return
        self._check_alive()
        host.task.cancel()
        host.replica.end()
        host.task = host.replica = host.node = None
        if power:
            host.journal.cut_power()

    def _check_alive(self) -> None:
        for host in self.hosts:
            for task in (host.task, host.replica.syncing if host.replica is not None else None):
                if task is not None and task.done():
                    task.result()
                    raise AssertionError(f"{host.name} has ended")

    def ended(self) -> list[asyncio.Task[None]]:
        """What hosts run, or ran last."""
        tasks = [task for host in self.hosts for task in (host.task, host.replica.syncing if host.replica else None)]
        return [task for task in tasks if task is not None]

    async def _bootstrap(self, host: Host, trimmed: Trimmed) -> None:
        self.count["bootstrap"] = self.count.get("bootstrap", 0) + 1
        while True:
            await asyncio.sleep(self.chance.random())
            others = [other for other in self.hosts if other is not host and other.replica is not None]
            fresh = [other for other in others if other.journal.position.stream + 1 >= trimmed.oldest]
            if fresh and host.replica is not None:
                host.replica.replace(self.chance.choice(fresh).journal.copy(foreign=True))
                return

    # --- what happens -----------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        while self._publishing:
            await asyncio.sleep(self.chance.expovariate(20))
            for host in self.hosts:
                if host.replica is not None and host.wire.frozen.is_set():
                    host.replica.publish(self.chance.choice(list(TOPICS)), self.chance.randrange(1, 4))

    async def _fault(self) -> None:
        host, length_s = self.chance.choice(self.hosts), self.chance.expovariate(0.3)
        fault = self.chance.choice(
            [
                self._kill,
                self._kill_leader,
                self._kill_all,
                self._freeze,
                self._cut,
                self._cut_leader,
                self._outage,
                self._fill,
                self._switch_over,
                self._trim,
            ]
        )
        self.count[fault.__name__] = self.count.get(fault.__name__, 0) + 1
        await fault(host, length_s)

    async def _kill(self, host: Host, length_s: float) -> None:
        if host.task is None:
            return
        self.kill(host, power=self.chance.random() < 0.4)
        await asyncio.sleep(length_s)
        if host.task is None:
            self.start(host)

    async def _kill_leader(self, host: Host, length_s: float) -> None:
        await self._kill(self._leader(host), length_s)

    async def _kill_all(self, _host: Host, length_s: float) -> None:
        await asyncio.gather(*(self._kill(host, length_s * self.chance.random()) for host in self.hosts))

    async def _freeze(self, host: Host, length_s: float) -> None:
        host.wire.frozen.clear()
        await asyncio.sleep(length_s)
        host.wire.frozen.set()

    async def _cut(self, host: Host, length_s: float) -> None:
        both = self.chance.random() < 0.4
        if both or self.chance.random() < 0.5:
            host.wire.cut_out = True
        if both or not host.wire.cut_out:
            host.wire.cut_in = True
        await asyncio.sleep(length_s)
        host.wire.cut_out = host.wire.cut_in = False

    async def _cut_leader(self, host: Host, length_s: float) -> None:
        await self._cut(self._leader(host), length_s)

    async def _outage(self, _host: Host, length_s: float) -> None:
        self.stream.has_leader = False
        await asyncio.sleep(min(5.0, length_s))
        self.stream.has_leader = True

    async def _fill(self, _host: Host, length_s: float) -> None:
        self.stream.full = True
        await asyncio.sleep(min(3.0, length_s))
        self.stream.full = False

    async def _switch_over(self, host: Host, _length_s: float) -> None:
        leader = self._leader(host)
        if leader.node is not None and leader.node.leads and leader is not host:
            try:
                await leader.node.switchover(self.chance.choice([host.name, ""]))
            except BusError:
                self.count["switchover failed"] = self.count.get("switchover failed", 0) + 1

    async def _trim(self, _host: Host, _length_s: float) -> None:
        positions = sorted(host.journal.position.stream for host in self.hosts)
        self.stream.first = max(self.stream.first, positions[1] + 1)

    def _leader(self, otherwise: Host) -> Host:
        return next((host for host in self.hosts if host.node is not None and host.node.leads), otherwise)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _converge(self) -> None:
        """Wait until all have the same, and what publishers gave is acknowledged."""
        deadline = asyncio.get_running_loop().time() + HEALED_S
        while True:
            await asyncio.sleep(0.5)
            self._check_alive()
            there = self.oracle.in_stream()
            same = all(host.journal.rows == {topic: there.get(topic, []) for topic in TOPICS} for host in self.hosts)
            leading = [host for host in self.hosts if host.node is not None and host.node.leads]
            if same and len(leading) == 1 and all(host.task is not None for host in self.hosts):
                return
            assert asyncio.get_running_loop().time() < deadline, (
                f"not one in {HEALED_S} s after all was healed: "
                + ", ".join(f"{host.name} {host.node and host.node.place}" for host in self.hosts)
            )


def simulate(seed: int, length_s: float = 25.0) -> Simulation:
    """One run; raises AssertionError, or what a node stopped with."""

    async def main() -> Simulation:
        simulation = Simulation(seed, length_s)
        try:
            await simulation.run()
        finally:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *simulation.ended(), return_exceptions=True)
        return simulation

    return run_virtually(main())
