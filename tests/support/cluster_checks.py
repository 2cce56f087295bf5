"""What must hold of a cluster's records once all is over: of the stream, of the rows, and of what was acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ringmain.bus.cluster.messages import Kind, Message
from support.logs import Rows

__all__ = ["check_acknowledged", "check_leaderships", "check_rows"]


def check_leaderships(messages: Sequence[Message]) -> None:
    """Epochs rise with each claim, and what follows a claim is its node's alone, up to the next one."""
    epoch, node = 0, ""
    for at, message in enumerate(messages, start=1):
        where = (
            f"message {at}: {message.kind.name} of {message.node}, epoch {message.epoch}, after {node}, epoch {epoch}"
        )
        if message.kind is Kind.CLAIM:
            assert message.epoch > epoch, where
            epoch, node = message.epoch, message.node
        else:
            assert (message.epoch, message.node) == (epoch, node), where
            if message.kind is Kind.HANDOVER:
                node = ""


def check_rows(rows: Rows) -> None:
    """No gap, no value twice, and stamps that never go back."""
    assert (rows["sequence"] == np.arange(1, len(rows) + 1)).all()
    assert len(np.unique(rows["value"])) == len(rows)
    assert (np.diff(rows["timestamp_ns"]) >= 0).all()


def check_acknowledged(
    acknowledged: np.ndarray[Any, np.dtype[np.void]],
    rows: Rows,
    messages: Sequence[Message],
    topic: str,
    nodes: Sequence[str],
) -> None:
    """What was acknowledged is there, once, and was put into the stream by the node that acknowledged it, while that led."""
    order = np.argsort(rows["value"])
    place = np.searchsorted(rows["value"], acknowledged["value"], sorter=order)
    found = order[np.minimum(place, len(rows) - 1)]
    lost = acknowledged[rows["value"][found] != acknowledged["value"]]
    assert len(lost) == 0, f"{len(lost)} acknowledged records are lost, the first is {lost[0]}"
    author = np.full(len(rows), len(nodes))
    for message in messages:
        for run in message.runs:
            if run.topic == topic and run.count:
                author[run.first - 1 : run.last] = nodes.index(message.node)
    wrong = acknowledged[author[found] != acknowledged["node"]]
    assert len(wrong) == 0, (
        f"{len(wrong)} records were acknowledged by a node that did not lead, the first is {wrong[0]}"
    )
