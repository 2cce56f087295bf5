"""`ringmain cluster seed`: a stream that begins with the rows that a node has already."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..bus import BusError
from ..bus.cluster.jetstream import JetStream
from ..bus.cluster.local_replica import LocalReplica
from ..bus.cluster.replica import Position
from ..bus.cluster.seeding import log_id_of, seed, seeding
from .cluster_loading import load_cluster
from .cluster_table import ClusterPlan
from .configuration import BusPlan
from .printing import note

__all__ = ["run_seed"]


def run_seed(config: Path) -> None:
    """Raises BusError where the stream is another log's, or has messages already; LogLocked while somebody writes the bus."""
    configuration, plan = load_cluster(config)
    position = asyncio.run(_seed(configuration.buses[0], plan))
    rows = ", ".join(f"{topic} up to {end}" for topic, end in sorted(position.ends.items())) or "no rows"
    note(f"the stream {plan.stream.name} begins with what {plan.node} has: {rows}")
    note("start this node, and then the others with empty data directories: they receive all of it")


async def _seed(bus: BusPlan, plan: ClusterPlan) -> Position:
    settings: dict[str, Any] = dict(bus.settings)
    data_dir = Path(settings.pop("data_dir"))
    log_id = log_id_of(data_dir)
    async with LocalReplica(
        bus.name, bus.schemas, data_dir, log_id, settings, acknowledge=plan.acknowledge, told=note
    ) as replica:
        with seeding(replica):
            stream = await JetStream.open(plan.access, plan.stream, log_id=log_id)
            try:
                if stream.log_id != log_id:
                    raise BusError(
                        f"the stream {plan.stream.name} is there, of another log: to begin anew with what is here, empty the "
                        "servers' stores first"
                    )
                return await seed(plan.node, replica, stream)
            finally:
                await stream.close()
