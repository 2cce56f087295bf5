"""Keeping the stream from filling up: what enough nodes have on their disks goes, from the oldest on.

1. Nothing goes that fewer than a majority of the nodes have stored: whoever misses it later finds it in a peer's snapshot.
2. Nodes that answer are waited for, as long as the stream has room. Those that are away, or too slow, receive a snapshot later.
3. Some of it stays for nodes that are away for a short time only.

Every node watches how large the stream's parts are, since any may lead next; the one that leads trims. Where nobody does, or
a claim finds no room, any node trims: what may go is the same, whoever sees to it. Since it asks all nodes, it also knows which of
them were there and are not any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from .peers import NodeStatus
from .stream import NoAnswer, Stream, StreamState

__all__ = ["Sizes", "Trimming", "trim_to"]

INTERVAL_S = 2.0
MISSED_S = 5.0  # so long a node must not have answered; one answer may be lost
STEP_BYTES = 64 << 20  # servers append nothing while they trim, which takes them a second a gigabyte
POINTS_PER_KEEP = 64


class Sizes:
    """Where in the stream so many bytes lie behind a message, as far as looks at it told. Between two looks, all are taken for
    equally large."""

    def __init__(self, step_bytes: int) -> None:
        """step_bytes: how exact it is."""
        self._step_bytes = step_bytes
        self._sequences: list[int] = []
        self._ends: list[float] = []  # bytes up to and with that message, from an arbitrary beginning

    def look(self, state: StreamState) -> None:
        if not self._sequences:
            self._sequences, self._ends = [state.first - 1], [0.0]
        begin = float(np.interp(state.first - 1, self._sequences, self._ends))
        if state.last > self._sequences[-1]:
            if len(self._sequences) > 1 and self._ends[-1] - self._ends[-2] < self._step_bytes:
                self._sequences.pop()
                self._ends.pop()
            self._sequences.append(state.last)
            self._ends.append(max(self._ends[-1], begin + state.stored_bytes))
        while len(self._sequences) > 2 and self._sequences[1] < state.first:
            del self._sequences[0], self._ends[0]

    def before_last(self, bytes_: int) -> int:
        """The message behind which about so many bytes lie."""
        return int(np.interp(self._ends[-1] - bytes_, self._ends, self._sequences))

    def behind(self, sequence: int, bytes_: int) -> int:
        """The message with which about so many bytes behind another one end."""
        begin = float(np.interp(sequence, self._sequences, self._ends))
        return int(np.interp(begin + bytes_, self._ends, self._sequences))


def trim_to(state: StreamState, keep_from: int, keep_bytes: int, statuses: Sequence[NodeStatus], nodes_min: int) -> int:
    """The first message that has to stay.

    keep_from: what lies behind this one, keep_bytes, stays in any case. nodes_min: so many nodes must have stored what goes.
    """
    stored = sorted((status.stored for status in statuses if not status.receiving), reverse=True)
    if len(stored) < nodes_min:
        return state.first
    enough = stored[nodes_min - 1]
    waited_for = [status.receiving or status.stored for status in statuses]
    # Who lacks what is gone already needs a snapshot, whatever is kept.
    waited_for = [sequence for sequence in waited_for if sequence + 1 >= state.first]
    is_tight = state.stored_bytes > (keep_bytes + state.bytes_max) // 2
    last = enough if is_tight else min([enough, *waited_for])
    return max(state.first, min(last, keep_from, state.last) + 1)


class Trimming:
    """Runs beside the node, until cancelled. trims: whether it is for this node to do so. statuses: asks all nodes.

    several: whether more than one node is to be there; then at least two must have stored what goes.
    told: hears in words when the stream cannot be trimmed, for the log.
    """

    def __init__(
        self,
        stream: Stream,
        keep_bytes: int,
        trims: Callable[[], bool],
        statuses: Callable[[], Awaitable[Sequence[NodeStatus]]],
        *,
        several: bool,
        told: Callable[[str], None] = lambda _words: None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._stream, self._keep_bytes, self._trims, self._statuses = stream, keep_bytes, trims, statuses
        self._several, self._told, self._interval_s = several, told, interval_s
        self._sizes = Sizes(keep_bytes // POINTS_PER_KEEP)
        self._known: set[str] = set()
        self._heard: dict[str, float] = {}  # when, on the loop's clock, each node was heard from last
        self._asked = 0.0
        self._complained = False

    @property
    def missed(self) -> list[str]:
        """Nodes that were there since this one trims, and have not answered for a while."""
        return sorted(node for node, at in self._heard.items() if self._asked - at > MISSED_S)

    async def run(self) -> None:
        while True:
            more = False
            with contextlib.suppress(NoAnswer):
                more = await self._look()
            await asyncio.sleep(self._interval_s / 10 if more else self._interval_s)

    async def _look(self) -> bool:
        """Trim, if it is time to. Whether more is to go at once."""
        state = await self._stream.state()
        self._sizes.look(state)
        if not self._trims():
            self._heard.clear()
            return False
        statuses = await self._statuses()
        self._asked = asyncio.get_running_loop().time()
        for status in statuses:
            self._heard[status.node] = self._asked
            self._known |= {status.node, *(claim.node for claim in status.claims)}
        if state.stored_bytes <= self._keep_bytes:
            return False
        nodes_min = max(2 if self._several else 1, len(self._known) // 2 + 1)
        keep_from = self._sizes.before_last(self._keep_bytes)
        below = trim_to(state, keep_from, self._keep_bytes, statuses, nodes_min)
        if below > state.first:
            step = max(state.first, self._sizes.behind(state.first - 1, STEP_BYTES)) + 1
            await self._stream.trim(min(below, step))
            self._complained = False
            return below > step
        elif state.stored_bytes > (self._keep_bytes + state.bytes_max) // 2 and not self._complained:
            self._complained = True
            there = ", ".join(status.node for status in statuses) or "none"
            self._told(
                f"the stream is filling up: {nodes_min} nodes must have stored what is to be trimmed; these answer: {there}"
            )
        return False
