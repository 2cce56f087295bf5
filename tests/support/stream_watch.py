"""The stream of a cluster as nobody of the cluster sees it: read from the servers directly, message by message, and all kept."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ringmain.bus.cluster.access import Access, StreamSettings
from ringmain.bus.cluster.jetstream import JetStream
from ringmain.bus.cluster.messages import Kind, Message, decode
from ringmain.bus.cluster.peers import NodeStatus, ask_all, ask_switchover
from ringmain.bus.cluster.stream import NoAnswer, StreamState

__all__ = ["StreamWatch"]

TIMEOUT_S = 60.0
PAUSE_S = 0.05
STATUS_S = 0.3
Value = TypeVar("Value")


class StreamWatch:
    """Reads on in a thread of its own, from the first message, until it is closed. Use it in a `with` statement.

    messages: all of them, in order, without a gap. leader: who claimed last, "" after a handover.
    """

    def __init__(self, cluster: str, access: Access, settings: StreamSettings) -> None:
        self.messages: list[Message] = []
        self.leader = ""
        self.epoch = 0
        self._cluster = cluster
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stream watch", daemon=True)
        self._thread.start()
        self._stream = self._call(JetStream.open(access, settings, TIMEOUT_S))
        self._reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)

    def __enter__(self) -> StreamWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.cancel()
        self._call(self._stream.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def check(self) -> None:
        """Raise what ended the reading, if something did."""
        if self._reading.done():
            self._reading.result()

    def state(self) -> StreamState:
        """What the stream says of itself; waits until it answers."""

        async def ask() -> StreamState:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    with contextlib.suppress(NoAnswer):
                        return await self._stream.state()
                    await asyncio.sleep(PAUSE_S)

        return self._call(ask())

    def trim(self, below: int) -> None:
        """Give up messages, which must have been read here; waits until that is done."""

        async def trim() -> None:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    with contextlib.suppress(NoAnswer):
                        return await self._stream.trim(below)
                    await asyncio.sleep(PAUSE_S)

        assert below <= len(self.messages) + 1
        self._call(trim())

    def statuses(self) -> list[NodeStatus]:
        """What the nodes say of themselves: those that answer soon."""
        try:
            return self._call(ask_all(self._stream.connection, self._cluster, STATUS_S))
        except NoAnswer:
            return []

    def switch_over(self) -> None:
        """Have the leader hand over to whoever is first. Raises BusError where that did not come about."""
        self._call(ask_switchover(self._stream.connection, self._cluster, self.leader))

    def ends(self) -> dict[str, int]:
        """Each topic's last sequence in the stream."""
        found: dict[str, int] = {}
        for message in list(self.messages):
            found |= {run.topic: run.last for run in message.runs}
        return found

    async def _read(self) -> None:
        while True:
            try:
                batch = await self._stream.read(len(self.messages) + 1)
            except NoAnswer:
                await asyncio.sleep(PAUSE_S)
                continue
            for stored in batch:
                assert stored.sequence == len(self.messages) + 1
                message = decode(stored.payload)
                self.messages.append(message)
                if message.kind is Kind.CLAIM:
                    self.leader, self.epoch = message.node, message.epoch
                elif message.kind is Kind.HANDOVER:
                    self.leader = ""

    def _call(self, work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
