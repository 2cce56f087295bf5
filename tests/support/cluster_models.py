"""Models of what a cluster's protocol stands between: a stream of several servers behind a bad network, and a node's data.

Everything is drawn from one `random.Random`, so a seed gives the same run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ringmain.bus.cluster.messages import Kind, Message, Run, decode
from ringmain.bus.cluster.replica import Diverged, Position
from ringmain.bus.cluster.stream import NoAnswer, Refused, Shorter, Stored, StreamFull, StreamState, Trimmed

__all__ = ["ROW_BYTES", "TOPICS", "Journal", "ModelReplica", "ModelStream", "Network", "Oracle", "Wire", "row"]

T = TypeVar("T")
TOPICS = {"orders": 11, "trades": 12}  # their schemas' hashes
ROW = struct.Struct("<QqQ")
ROW_BYTES = ROW.size
CALL_S = 1.0
READ_S = 0.3


def row(sequence: int, value: int) -> bytes:
    return ROW.pack(sequence, 0, value)


def rows_of(run: Run) -> list[bytes]:
    return [bytes(run.rows[at : at + ROW_BYTES]) for at in range(0, len(run.rows), ROW_BYTES)]


# --- the stream -------------------------------------------------------------------------------------------------------


@dataclass
class ModelStream:
    """What the servers agree on. history: all that was ever appended, what is trimmed as well. bytes_max: of payloads."""

    history: list[bytes] = field(default_factory=list[bytes])
    first: int = 1
    ids: dict[str, int] = field(default_factory=dict[str, int])
    ids_kept: int = 1000
    has_leader: bool = True
    full: bool = False
    bytes_max: int = 1 << 40
    _bytes: list[int] = field(default_factory=lambda: [0])  # up to and with each message

    @property
    def stored_bytes(self) -> int:
        return self._bytes[-1] - self._bytes[self.first - 1]

    @property
    def last(self) -> int:
        return len(self.history)

    def append(self, payload: bytes, expected: int, message_id: str) -> int:
        if message_id in self.ids:
            return self.ids[message_id]
        if expected != self.last:
            raise Refused(f"{self.last} is the last")
        if self.full or self.stored_bytes + len(payload) > self.bytes_max:
            raise StreamFull("no room")
        self.history.append(payload)
        self._bytes.append(self._bytes[-1] + len(payload))
        self.ids[message_id] = self.last
        if len(self.ids) > self.ids_kept:
            del self.ids[next(iter(self.ids))]
        return self.last

    def lose(self, last: int) -> None:
        """The servers lose what they had acknowledged behind this message."""
        del self.history[last:], self._bytes[last + 1 :]
        self.ids.clear()

    def read(self, first: int, end: int) -> list[Stored]:
        if first < self.first:
            raise Trimmed(first, self.first)
        return [Stored(at, self.history[at - 1]) for at in range(first, min(end, first + 7) + 1)]

    def messages(self) -> list[Message]:
        return [decode(payload) for payload in self.history]


@dataclass
class Network:
    """How bad it is. Times in seconds."""

    delay: float = 0.01
    loss: float = 0.0
    duplicates: float = 0.0
    stale: float = 0.0
    sync: float = 0.01


class Wire:
    """One node's way to the stream, a Stream. cut_out, cut_in: nothing gets there, nothing comes back.

    frozen: cleared while its process is stopped."""

    def __init__(self, stream: ModelStream, network: Network, chance: random.Random) -> None:
        self.stream, self.network, self.chance = stream, network, chance
        self.cut_out = self.cut_in = False
        self.frozen = asyncio.Event()
        self.frozen.set()

    async def append(self, payload: bytes, expected: int, message_id: str) -> int:
        def there() -> int:
            return self.stream.append(payload, expected, message_id)

        if self.chance.random() < self.network.duplicates and not self.cut_out:
            asyncio.get_running_loop().call_later(
                self.chance.expovariate(0.5), self._once_more, payload, expected, message_id
            )
        return await self._call(there, CALL_S)

    def _once_more(self, payload: bytes, expected: int, message_id: str) -> None:
        if self.stream.has_leader:
            with contextlib.suppress(Refused, StreamFull):
                self.stream.append(payload, expected, message_id)

    async def read(self, first: int) -> list[Stored]:
        def there() -> list[Stored]:
            behind = self.chance.randrange(4) if self.chance.random() < self.network.stale else 0
            last = max(0, self.stream.last - behind)
            if first > last + 1:
                raise Shorter(first - 1, last)
            return self.stream.read(first, last)

        async def wait() -> None:
            until = asyncio.get_running_loop().time() + READ_S
            while self.stream.last < first and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(READ_S / 6)

        return await self._call(there, CALL_S, wait)

    async def get(self, sequence: int) -> Stored | None:
        def there() -> Stored | None:
            if not self.stream.first <= sequence <= self.stream.last:
                return None
            return Stored(sequence, self.stream.history[sequence - 1])

        return await self._call(there, CALL_S)

    async def state(self) -> StreamState:
        def there() -> StreamState:
            last = max(0, self.stream.last - (self.chance.randrange(5) if self.network.stale else 0))
            return StreamState(self.stream.first, last, self.stream.stored_bytes, self.stream.bytes_max, "", 0)

        return await self._call(there, CALL_S)

    async def trim(self, below: int) -> None:
        self.stream.first = max(self.stream.first, min(below, self.stream.last + 1))

    async def _call(
        self, there: Callable[[], T], timeout_s: float, wait: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        await self.frozen.wait()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await asyncio.sleep(self.chance.expovariate(1 / self.network.delay))
        lost = self.cut_out or self.chance.random() < self.network.loss or not self.stream.has_leader
        result: T | BaseException | None = None
        if not lost:
            if wait is not None:
                await wait()
            try:
                result = there()
            except (Refused, Shorter, StreamFull, Trimmed) as error:
                result = error
            await asyncio.sleep(self.chance.expovariate(1 / self.network.delay))
            lost = self.cut_in or self.chance.random() < self.network.loss or loop.time() > deadline
        if lost:
            await asyncio.sleep(max(0.0, deadline - loop.time()))
        await self.frozen.wait()
        if lost:
            raise NoAnswer("silence")
        if isinstance(result, BaseException):
            raise result
        return result  # pyright: ignore[reportReturnType]


# --- what was promised ------------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """What publishers were told, and what subscribers saw, from outside."""

    stream: ModelStream
    acknowledged: dict[tuple[str, int], bytes] = field(default_factory=dict[tuple[str, int], bytes])
    seen: dict[tuple[str, int], bytes] = field(default_factory=dict[tuple[str, int], bytes])
    values: int = 0
    _counted: int = 0
    _rows: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])

    def in_stream(self) -> dict[str, list[bytes]]:
        """The rows in the stream, by topic."""
        for payload in self.stream.history[self._counted :]:
            for run in decode(payload).runs:
                self._rows.setdefault(run.topic, []).extend(rows_of(run))
        self._counted = self.stream.last
        return self._rows

    def new_value(self) -> int:
        self.values += 1
        return self.values

    def acknowledge(self, topic: str, sequence: int, data: bytes) -> None:
        there = self.in_stream().get(topic, [])
        assert there[sequence - 1 : sequence] == [data], f"{topic} {sequence} is acknowledged, and is not stored"
        self.acknowledged[topic, sequence] = data

    def see(self, topic: str, sequence: int, data: bytes) -> None:
        before = self.seen.setdefault((topic, sequence), data)
        assert before == data, f"{topic} {sequence} was seen as two different rows"

    def check(self, replicas: Mapping[str, Mapping[str, list[bytes]]]) -> None:
        """At the end, everything healed and caught up."""
        epoch, leader = 0, ""
        for message in self.stream.messages():
            if message.kind is Kind.CLAIM:
                assert message.epoch > epoch
                epoch, leader = message.epoch, message.node
            assert (message.epoch, message.node) == (epoch, leader)
            if message.kind is Kind.HANDOVER:
                leader = ""
        there = self.in_stream()
        for rows in there.values():
            assert [ROW.unpack(data)[0] for data in rows] == list(range(1, len(rows) + 1))
        values = [ROW.unpack(data)[2] for rows in there.values() for data in rows]
        assert len(set(values)) == len(values), "a record is there twice"
        for (topic, sequence), data in {**self.acknowledged, **self.seen}.items():
            assert there[topic][sequence - 1] == data, f"{topic} {sequence} was acknowledged or seen, and is lost"
        for name, topics in replicas.items():
            for topic in TOPICS:
                assert topics.get(topic, []) == there.get(topic, []), f"{name}: {topic} is not what the stream has"


# --- a node's data ----------------------------------------------------------------------------------------------------


@dataclass
class Journal:
    """What outlives the process: rows by topic, how many of them a power cut leaves, and the stored position."""

    rows: dict[str, list[bytes]] = field(default_factory=lambda: {topic: list[bytes]() for topic in TOPICS})
    durable: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOPICS, 0))
    position: Position = field(default_factory=Position)

    def cut_power(self) -> None:
        for topic, count in self.durable.items():
            del self.rows[topic][count:]

    def copy(self, *, foreign: bool) -> Journal:
        rows = {topic: list(rows) for topic, rows in self.rows.items()}
        position = replace(self.position, foreign=foreign)
        return Journal(rows, {topic: len(rows) for topic, rows in rows.items()}, position)


class ModelReplica:
    """A Replica over a Journal. `publish` is what its host's publishers do."""

    def __init__(self, journal: Journal, oracle: Oracle, sync_s: float, chance: random.Random) -> None:
        self.journal, self._oracle, self._sync_s, self._chance = journal, oracle, sync_s, chance
        self.position = journal.position
        self.leads = self.held = self.retired = self._killed = False
        self.leader = ""  # who leads, as publishers are told
        self._gathered: dict[str, int] = {}
        self._pending: dict[str, int] = {}
        self._in_stream: dict[str, int] = dict(self.position.ends)
        self._told: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._written, self._synced = asyncio.Event(), asyncio.Event()
        self._written.set()
        self._something = asyncio.Event()
        self.syncing = asyncio.create_task(self._sync())

    def ends(self) -> Mapping[str, int]:
        return {topic: len(rows) for topic, rows in self.journal.rows.items()}

    def stands(self) -> Sequence[Run]:
        return [Run(topic, TOPICS[topic], last + 1, ROW_BYTES) for topic, last in self.ends().items()]

    async def same(self, run: Run) -> bool:
        return self.journal.rows[run.topic][run.first - 1 : run.last] == rows_of(run)

    async def apply(self, run: Run) -> None:
        if run.first != len(self.journal.rows[run.topic]) + 1:
            raise Diverged(f"{run.topic}: {run.first} does not go on behind {len(self.journal.rows[run.topic])}")
        self.journal.rows[run.topic] += rows_of(run)
        self._written.set()

    async def cut(self, ends: Mapping[str, int]) -> int:
        cut = 0
        for topic, rows in self.journal.rows.items():
            end = ends.get(topic, 0)
            cut += len(rows) - end
            del rows[end:]
            self.journal.durable[topic] = min(self.journal.durable[topic], end)
            self._seen[topic] = min(self._seen.get(topic, 0), end)
        await asyncio.sleep(self._chance.random() * 0.1)
        return cut

    def raise_replicated(self, ends: Mapping[str, int]) -> None:
        self._in_stream = dict(ends)
        self._tell()

    async def store(self, position: Position) -> None:
        while any(self.journal.durable[topic] < end for topic, end in position.ends.items()) and not self._killed:
            self._synced.clear()
            await self._synced.wait()
        if not self._killed:
            self.journal.position = position

    # --- leading ----------------------------------------------------------------------------------------------------

    async def lead(self, epoch: int, ends: Mapping[str, int]) -> None:
        self.leads, self.held, self.retired = True, False, False
        self._gathered = {topic: ends.get(topic, 0) for topic in TOPICS}
        self._told = {topic: len(rows) for topic, rows in self.journal.rows.items()}
        self._something.set()

    def publish(self, topic: str, count: int) -> None:
        if self.leads and not self.held and not self.retired:
            rows = self.journal.rows[topic]
            rows += [row(len(rows) + 1 + at, self._oracle.new_value()) for at in range(count)]
            self._written.set()
            self._something.set()

    async def gather(self, bytes_max: int, timeout_s: float) -> Sequence[Run]:
        if not self._ungathered():
            self._something.clear()
            try:
                await asyncio.wait_for(self._something.wait(), timeout_s)
            except TimeoutError:
                return []
        runs: list[Run] = []
        for topic, first in self._ungathered().items():
            rows = self.journal.rows[topic][first - 1 : first + self._chance.randrange(1, 9)]
            runs.append(Run(topic, TOPICS[topic], first, ROW_BYTES, b"".join(rows)))
        self._pending = {run.topic: run.last for run in runs}
        return runs

    def gathered(self) -> None:
        self._gathered.update(self._pending)

    def hold(self, held: bool) -> None:
        self.held = held

    def retire(self, leader: str) -> None:
        self.retired = True

    def drained(self) -> bool:
        return not self._ungathered()

    async def follow(self, leader: str) -> None:
        self.leads, self.leader = False, leader

    def replace(self, journal: Journal) -> None:
        """Put another node's data in the place of its own."""
        self.journal.rows, self.journal.durable, self.journal.position = journal.rows, journal.durable, journal.position
        self.position = journal.position
        self._seen = {}

    def end(self) -> None:
        """The process is killed."""
        self.leads, self._killed = False, True
        self.syncing.cancel()
        self._synced.set()

    def _ungathered(self) -> dict[str, int]:
        return {topic: done + 1 for topic, done in self._gathered.items() if done < len(self.journal.rows[topic])}

    def _tell(self) -> None:
        """Subscribers see what is replicated; publishers of this leadership are told."""
        for topic, rows in self.journal.rows.items():
            known = min(self._in_stream.get(topic, 0), self.journal.durable[topic] if self.leads else len(rows))
            for sequence in range(self._seen.get(topic, 0) + 1, known + 1):
                self._oracle.see(topic, sequence, rows[sequence - 1])
            self._seen[topic] = known
            if self.leads:
                for sequence in range(self._told[topic] + 1, known + 1):
                    self._oracle.acknowledge(topic, sequence, rows[sequence - 1])
                self._told[topic] = max(self._told[topic], known)

    async def _sync(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            rows, written = self.journal.rows, dict(self.ends())
            await asyncio.sleep(self._chance.expovariate(1 / self._sync_s))
            if self.journal.rows is rows:  # else it was replaced meanwhile, by what is on the disk
                self.journal.durable = {topic: min(end, len(rows[topic])) for topic, end in written.items()}
            self._synced.set()
            self._tell()
