"""What a node says of itself when it is asked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Literal

from .. import _segment
from .jetstream import JetStream
from .lag import Lag
from .local_replica import LocalReplica
from .node import Node
from .peers import ClaimStatus, NodeStatus, StreamStatus, TopicStatus

__all__ = ["status_of"]


def status_of(
    node: Node,
    replica: LocalReplica,
    stream: JetStream,
    lag: Lag,
    acknowledge: Literal["sync", "async"],
    receiving: int,
    faults: Iterable[str] = (),
    missed: Iterable[str] = (),
) -> NodeStatus:
    """Cheap: it only looks. A replica that is just being opened again has no topics."""
    state = lag.state
    return NodeStatus(
        node=node.name,
        bus=replica.bus,
        pid=os.getpid(),
        leads=node.leads,
        leader=node.leader,
        epoch=node.place.epoch,
        sequence=node.place.sequence,
        acknowledge=acknowledge,
        server=stream.connection.server,
        lag_ms=None if lag.ms is None else round(lag.ms, 1),
        stored=replica.position.stream,
        receiving=receiving,
        stream_full=node.stream_full,
        stream=None if state is None else StreamStatus(*state),
        topics=_topics(replica),
        claims=[ClaimStatus(*claim) for claim in node.claims],
        faults=[words for words in faults if words],
        missed=list(missed),
    )


def _topics(replica: LocalReplica) -> dict[str, TopicStatus]:
    found: dict[str, TopicStatus] = {}
    with contextlib.suppress(ValueError):  # it is being opened again
        for topic, ring in replica.writer.replicating.topics.items():
            state = _segment.read_state(ring.data.memory)
            found[topic] = TopicStatus(state["published"], state["durable"], state["replicated"], ring.schema.row_bytes)
    return found
