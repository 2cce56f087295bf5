"""`ringmain cluster node`: this host's node of a cluster, in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from ..bus import BusError
from ..bus.cluster.access import Tls
from ..bus.cluster.bootstrap import Bootstrap
from ..bus.cluster.connection import Connection, cancel
from ..bus.cluster.jetstream import JetStream
from ..bus.cluster.lag import Lag
from ..bus.cluster.local_replica import LocalReplica
from ..bus.cluster.node import Node
from ..bus.cluster.peers import Peers, ask_all
from ..bus.cluster.seeding import check_seeded
from ..bus.cluster.server_checks import ServerWatch
from ..bus.cluster.snapshot_sender import SnapshotSender
from ..bus.cluster.status import status_of
from ..bus.cluster.stream import NoAnswer
from ..bus.cluster.trimming import Trimming
from ..subscribers.health import HealthMonitor
from .cluster_loading import load_cluster
from .cluster_table import ClusterPlan
from .configuration import BusPlan, Configuration
from .exit_codes import explain
from .gateway_child import GatewayChild
from .notify import Notifier
from .service_log import LogFormat, event, start_logging
from .serving import recovery_told, tell_change, tell_store_failures

__all__ = ["run_node"]

LOOK_S = 0.25
HAND_OVER_S = 5.0
CERTIFICATES_S = 3600.0  # between looks at them
OPEN_S = 10.0  # for the stream, before it is told that it does not answer
Result = TypeVar("Result")


class _Stopped(Exception):
    """Somebody asked it to stop."""


def run_node(config: Path, log_format: LogFormat) -> bool:
    """Run the node of a configuration until it is told to stop. Whether something failed that ended it."""
    configuration, plan = load_cluster(config)
    start_logging(log_format)
    failed = asyncio.run(_Run(config, configuration, plan, log_format).run())
    event("stopped")
    return failed


class _Run:
    """One run, from the start to the stop. Its parts are opened in turn, and closed in the other direction."""

    def __init__(self, config: Path, configuration: Configuration, plan: ClusterPlan, log_format: LogFormat) -> None:
        self._config, self._configuration, self._plan, self._log_format = config, configuration, plan, log_format
        self._notifier = Notifier()
        self._stop = asyncio.Event()

    async def run(self) -> bool:
        """Whether something failed that ends it; what a user can mend at the start is raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        with contextlib.suppress(_Stopped):
            async with self._stream() as stream, self._replica(stream) as replica:
                return await self._hold(stream, replica)
        return False

    def _asked_to_stop(self) -> None:
        """The second time these signals do what they do by themselves."""
        self._stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    async def _unless_stopped(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Its result; it is cancelled, and _Stopped raised, when somebody asks to stop."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Stopped
            return task.result()
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _stream(self) -> AsyncGenerator[JetStream]:
        plan, stream = self._plan, None
        while stream is None:
            try:
                stream = await self._unless_stopped(
                    JetStream.open(plan.access, plan.stream, OPEN_S, lambda words: event("servers", words=words))
                )
            except NoAnswer as error:
                event("waiting for the stream", level=logging.WARNING, reason=str(error))
                self._notifier.status(f"waiting for the stream: {error}")
        try:
            yield stream
        finally:
            await stream.close()

    @contextlib.asynccontextmanager
    async def _replica(self, stream: JetStream) -> AsyncGenerator[LocalReplica]:
        bus: BusPlan = self._configuration.buses[0]
        settings: dict[str, Any] = dict(bus.settings) | {"progress": recovery_told(bus.name, self._notifier)}
        started = time.monotonic()
        data_dir: Any = settings.pop("data_dir")
        check_seeded(Path(data_dir))
        acknowledge = self._plan.acknowledge
        replica = LocalReplica(
            bus.name,
            bus.schemas,
            data_dir,
            stream.log_id,
            settings,
            acknowledge=acknowledge,
            told=lambda words: event("data", level=logging.WARNING, words=words),
        )
        async with replica:
            seconds = round(time.monotonic() - started, 3)
            event("opened", bus=bus.name, epoch=replica.writer.epoch, topics=len(bus.schemas), seconds=seconds)
            yield replica
        event("closed", bus=bus.name)

    async def _hold(self, stream: JetStream, replica: LocalReplica) -> bool:
        plan = self._plan
        pieces = Connection(plan.access)  # of snapshots, so that nothing else waits behind them
        bootstrap = Bootstrap(
            pieces, plan.name, plan.node, stream, replica, lambda words: event("bootstrap", words=words)
        )
        servers = ServerWatch(
            stream.connection,
            stream.servers,
            plan.stream.synced,
            lambda words: event("servers", level=logging.WARNING, words=words),
        )
        node = Node(
            plan.node,
            stream,
            replica,
            acknowledge=plan.acknowledge,
            bootstrap=bootstrap.run,
            fit=lambda: servers.fit,
        )
        lag = Lag(stream, lambda: node.place.sequence)
        sender = SnapshotSender(
            pieces,
            plan.name,
            plan.node,
            replica.data_dir,
            lambda: replica.position if replica.is_open and not bootstrap.receiving else None,
            lambda words: event("snapshot", words=words),
        )
        trimming = Trimming(
            stream,
            plan.keep_bytes,
            lambda: node.trims,
            lambda: ask_all(stream.connection, plan.name),
            several=plan.stream.replicas > 1,
            told=lambda words: event("trimming", level=logging.WARNING, words=words),
        )

        async with contextlib.AsyncExitStack() as opened, asyncio.TaskGroup() as group:
            opened.push_async_callback(pieces.close)
            await sender.open()
            opened.push_async_callback(sender.close)
            peers = Peers(
                stream.connection,
                plan.name,
                plan.node,
                lambda: status_of(
                    node,
                    replica,
                    stream,
                    lag,
                    plan.acknowledge,
                    bootstrap.receiving,
                    (servers.words, bootstrap.words),
                    trimming.missed,
                ),
                node.switchover,
            )
            await peers.open()
            beside = [group.create_task(each.run()) for each in (lag, trimming, servers)]
            if plan.access.tls is not None:
                beside.append(group.create_task(_watch_certificates(plan.access.tls)))
            living = asyncio.create_task(node.run())
            try:
                failed = await self._watch(node, living, replica)
                self._notifier.stopping()
                event("stopping")
                await self._hand_over(node, stream)
                return failed
            finally:
                for task in (*beside, living):
                    await cancel(task)

    async def _hand_over(self, node: Node, stream: JetStream) -> None:
        """Let another node lead at once, where one is there, and not only after a silence."""
        with contextlib.suppress(BusError, TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                if node.leads and len(await ask_all(stream.connection, self._plan.name, enough=2)) > 1:
                    await node.switchover()

    async def _watch(self, node: Node, living: asyncio.Task[None], replica: LocalReplica) -> bool:
        """Tell what happens, until it is asked to stop, or the node ends by itself."""
        gateway = None
        told_place: tuple[bool, str, int] | None = None
        told_failures: set[object] = set()
        with contextlib.ExitStack() as opened:
            opened.enter_context(HealthMonitor(replica.bus, on_change=tell_change))
            if self._configuration.gateway is not None:
                gateway = GatewayChild(self._config, self._log_format)
                opened.callback(gateway.close)
            event("ready", cluster=self._plan.name, node=node.name, bus=replica.bus)
            self._notifier.ready(f"{node.name} holds {replica.bus}")
            while not self._stop.is_set():
                if living.done():
                    error = living.exception()
                    defect = error if error is not None and explain(error) is None else None
                    event(f"the node ended: {error}", level=logging.CRITICAL, error=defect, bus=replica.bus)
                    return True
                place = (node.leads, node.leader, node.place.epoch)
                if place != told_place:
                    told_place = place
                    self._tell_place(*place)
                with contextlib.suppress(ValueError):  # it is being opened again
                    tell_store_failures(replica.writer, told_failures)
                if gateway is not None:
                    gateway.look()
                self._notifier.feed()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), LOOK_S)
        return False

    def _tell_place(self, leads: bool, leader: str, epoch: int) -> None:
        event("leads" if leads else "follows", cluster=self._plan.name, leader=leader or "nobody", epoch=epoch)
        self._notifier.status(f"leads, epoch {epoch}" if leads else f"follows {leader or 'nobody'}, epoch {epoch}")


async def _watch_certificates(tls: Tls) -> None:
    """Warn before they expire, until cancelled: a connection that stands outlives them, and the next one is refused."""
    from ..bus.cluster.certificates import expiry_words  # slow to load

    told = ""
    while True:
        words = await asyncio.to_thread(expiry_words, tls)
        if words and words != told:
            event("certificates", level=logging.WARNING, words=words)
        told = words
        await asyncio.sleep(CERTIFICATES_S)
