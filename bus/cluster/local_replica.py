"""A node's own copy of the bus: a replicated writer, its log, and the stored position.

1. What blocks (opening and closing a writer, cutting, syncing a file) runs in a thread; one such thing at a time, since the
   protocol waits for each. Everything else is done in the event loop, in which this lives.
2. `replicated` is what is in the stream and on the disk here. A follower's rows come out of the stream, so theirs rises at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import numpy as np

from ...storage import HistoryGone, LogReader, Schema
from ...storage.files import lock_directory, make_directory
from ...storage.log_tail import Cut, cut_tail
from ...storage.recovery import Contents
from .. import _segment
from ..errors import BusError, Fenced, WriterFailed
from ..replicating import Replication
from ..slot_file import SlotFile
from ..writer import Writer
from .messages import Run
from .progress import Progress
from .replacing import finish_replacing, position_path, replace_data, same_up_to
from .replica import Diverged, Position
from .shipping import Shipping

__all__ = ["LocalReplica"]

ROOM_S = 0.002  # between looks for room that readers leave; what the log leaves is told
CUTS_MAX = 4
SYNC_INTERVAL_S = 0.004  # who waits for `replicated` waits for the servers' syncs as well, which take as long


class LocalReplica:
    """See Replica. Use it in an `async with` statement, or `open` and `close` it.

    log_id: of the cluster; a log that is there must have it. settings: the Writer's, but for replication; sync_interval is 4 ms if
    they do not say, and what is replicated is acknowledged. acknowledge: see Replication. told: hears in words what happens to this
    node's data, for the log. Raises as Writer does.
    """

    def __init__(
        self,
        bus: str,
        schemas: Iterable[Schema],
        data_dir: str | os.PathLike[str],
        log_id: int,
        settings: Mapping[str, Any] | None = None,
        *,
        acknowledge: Literal["sync", "async"] = "sync",
        told: Callable[[str], None] = lambda _words: None,
    ) -> None:
        self.bus, self.data_dir = bus, Path(data_dir).absolute()
        self.log_id = log_id
        self._schemas, self._settings = tuple(schemas), dict(settings or {})
        if acknowledge == "sync":
            self._settings.setdefault("sync_interval", SYNC_INTERVAL_S)
        self._acknowledge: Literal["sync", "async"] = acknowledge
        self._told = told
        self._syncs = self._settings.get("sync") != "never"
        self._stored = _PositionFile(position_path(self.data_dir))
        self._lock = -1
        self._wanted: dict[str, int] = {}  # in the stream, by topic
        self._logs: dict[str, LogReader] = {}
        self._writer: Writer | None = None
        self._progress: Progress | None = None
        self._shipping: Shipping | None = None
        self._retiring: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the bus, as a follower. Raises LogLocked where another process holds the same directory."""
        try:
            await asyncio.to_thread(self._take_directory)
            await self._open(self.position.ends)
            await self._check_position()
        except BaseException:
            await self.close()
            raise

    def _take_directory(self) -> None:
        make_directory(self.data_dir / "cluster")
        self._lock = lock_directory(self.data_dir / "cluster", take_over=False)
        finish_replacing(self.data_dir)
        self._stored.load()

    async def _check_position(self) -> None:
        """Forget a position that counts rows which the log does not have: nothing says how far the stream is in this data."""
        here, stored = self.ends(), self.position.ends
        missing = [
            f"topic {topic!r} ends at {end}, and {stored[topic]} is stored"
            for topic, end in here.items()
            if end < stored.get(topic, 0)
        ]
        if missing:
            self._told(
                f"the log is shorter than the stored position ({'; '.join(missing)}): what is here is compared with the stream "
                "from its beginning, or replaced by a peer's data"
            )
            self._let_go()
            await asyncio.to_thread(self._close_and_forget, here)
            await self._open({})

    def _close_and_forget(self, ends: Mapping[str, int]) -> None:
        self.writer.close_to_cut(ends)
        self._stored.store(Position())

    async def _open(self, ends: Mapping[str, int], proven: Contents | None = None) -> None:
        self._wanted = dict(ends)
        self._writer = await asyncio.to_thread(self._open_writer, ends, proven)
        self._progress = Progress(self._writer.replicating.journal, self._raise)

    def _open_writer(self, ends: Mapping[str, int], proven: Contents | None) -> Writer:
        replication = Replication(self.log_id, ends, self._acknowledge, proven)
        return Writer(self.bus, self._schemas, data_dir=self.data_dir, replication=replication, **self._settings)

    async def close(self) -> None:
        """Close the bus in good order. Does nothing the second time."""
        if self._writer is not None:
            self._let_go()
            await self._finish_retiring()
            await asyncio.to_thread(self._writer.close)
            self._writer = None
        self._stored.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _let_go(self) -> None:
        """Everything here that holds the writer's rings and log."""
        if self._shipping is not None:
            self._shipping.close()
        if self._progress is not None:
            self._progress.close()
        self._shipping = self._progress = None
        self._logs.clear()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- what there is ----------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    @property
    def writer(self) -> Writer:
        """The writer that is open now; a cut makes another."""
        if self._writer is None:
            raise ValueError(f"bus {self.bus!r}: this replica is not open")
        return self._writer

    @property
    def position(self) -> Position:
        return self._stored.position

    def ends(self) -> Mapping[str, int]:
        return {topic: self._state(topic)["published"] for topic in self.writer.replicating.topics}

    def stands(self) -> Sequence[Run]:
        ends = self.ends()
        return [Run(s.name, s.hash, ends[s.name] + 1, s.row_bytes) for s in self.writer.schemas.values()]

    def _state(self, topic: str) -> dict[str, int]:
        return _segment.read_state(self.writer.replicating.topics[topic].data.memory)

    def _safe(self, topic: str) -> int:
        return self._state(topic)["durable" if self._syncs else "logged"]

    def _check_works(self) -> None:
        """Raise Fenced, WriterFailed where nothing more comes to the log."""
        for topic in self.writer.replicating.topics:
            status = self._state(topic)["status"]
            if status & _segment.STATUS_FENCED:
                raise Fenced(f"bus {self.bus!r}: another writer has taken it over")
            if status & _segment.STATUS_LOG_FAILED:
                raise WriterFailed(f"bus {self.bus!r}: {self.writer.failure}") from self.writer.failure

    async def _until(self, ends: Mapping[str, int], watermark: str) -> bool:
        """Wait until a watermark has reached these sequences; False: the writer was closed before. Raises Fenced, WriterFailed."""
        assert self._progress is not None

        def reached() -> bool:
            if all(self._state(topic)[watermark] >= end for topic, end in ends.items()):
                return True
            self._check_works()
            return False

        return await self._progress.wait_for(reached)

    def _check(self, run: Run) -> Schema:
        """The run's topic, as it is here. Raises Diverged."""
        schema = self.writer.schemas.get(run.topic)
        if schema is None:
            raise Diverged(
                f"bus {self.bus!r}: the stream has rows of topic {run.topic!r}, which is not configured here"
            )
        if (schema.hash, schema.row_bytes) != (run.schema_hash, run.row_bytes):
            raise Diverged(
                f"bus {self.bus!r}: the stream has rows of {run.row_bytes} bytes of topic {run.topic!r}, schema "
                f"{run.schema_hash:016x}; here they have {schema.row_bytes}, schema {schema.hash:016x}: nodes need the same ones"
            )
        return schema

    # --- following --------------------------------------------------------------------------------------------------

    async def same(self, run: Run) -> bool:
        self._check(run)
        if not run.count:
            return True
        await self._until({run.topic: run.last}, "logged")
        return await asyncio.to_thread(self._is_same, run)

    def _is_same(self, run: Run) -> bool:
        log = self._logs.get(run.topic)
        if log is None:
            log = self._logs[run.topic] = LogReader(self.data_dir / "log", run.topic)
        expected, first = np.frombuffer(run.rows, np.uint8).reshape(-1, run.row_bytes), run.first
        while first <= run.last:
            try:
                rows = log.read(first, run.last)
            except HistoryGone as gone:  # only what is replicated expires
                first = gone.oldest
                continue
            if rows is None:
                return False
            begin = int(rows["sequence"][0]) - run.first
            found = rows.view(np.uint8).reshape(-1, run.row_bytes)
            if not np.array_equal(found, expected[begin : begin + len(rows)]):
                return False
            first = run.first + begin + len(rows)
        return True

    async def apply(self, run: Run) -> None:
        self._check(run)
        assert self._progress is not None
        replicating = self.writer.replicating
        end = self._state(run.topic)["published"]
        if run.count and run.first != end + 1:
            raise Diverged(
                f"bus {self.bus!r}: topic {run.topic!r} ends at {end}, and the stream goes on with {run.first}"
            )
        rows = memoryview(run.rows)
        while rows:
            self._progress.watch()
            try:
                count = replicating.apply(run.topic, rows)
            except ValueError as error:
                raise Diverged(f"bus {self.bus!r}: {error}") from None
            end += count
            self._wanted[run.topic] = max(end, self._wanted.get(run.topic, 0))
            replicating.raise_replicated(run.topic, end)
            rows = rows[count * run.row_bytes :]
            if rows:
                await self._progress.rise(ROOM_S)

    async def cut(self, ends: Mapping[str, int]) -> int:
        count = 0
        for _ in range(CUTS_MAX):  # lanes that a killed writer left are drained when the bus is opened again
            if all(end <= ends.get(topic, 0) for topic, end in self.ends().items()):
                return count
            if self.writer.replicating.leads:
                await self.follow("")
            self._let_go()
            cut = await asyncio.to_thread(self._close_and_cut, ends)
            self._tell_cut(cut)
            count += cut.row_count
            await self._open(ends)
        raise BusError(f"bus {self.bus!r}: publishers keep leaving rows to be cut")

    def _close_and_cut(self, ends: Mapping[str, int]) -> Cut:
        self.writer.close_to_cut(ends)
        return cut_tail(self.data_dir, ends)

    def _tell_cut(self, cut: Cut) -> None:
        if cut.row_count:
            self._told(f"{cut.row_count} rows that are not in the stream are set aside in {cut.where}")

    async def replace(self, position: Position, received: Contents) -> None:
        """Put the snapshot of a peer, which lies proven in `snapshot_place`, in the place of this node's data, and open that.

        received: what is in its log. A tail that only this node has goes to `lost+found`.
        Raises BusError, and changes nothing, where this node has more rows of the stream than the snapshot.
        """
        here = self.ends()
        await self._until(here, "logged")
        kept = await asyncio.to_thread(same_up_to, self.data_dir, self._wanted, here)
        for topic, end in kept.items():
            if end > (received_end := received.ends.get(topic, 0)):
                has = f"{received_end}, and {end} are here"
                raise BusError(f"bus {self.bus!r}: the snapshot has topic {topic!r} up to {has}: it is too old")
        self._let_go()
        writer, self._writer = self.writer, None
        self._tell_cut(await asyncio.to_thread(self._close_and_replace, writer, position, kept))
        await self._open(position.ends, received.moved_to(self.data_dir / "log"))

    def _close_and_replace(self, writer: Writer, position: Position, kept: Mapping[str, int]) -> Cut:
        writer.close_to_cut(kept)
        self._stored.close()
        cut = replace_data(self.data_dir, kept, msgspec.msgpack.encode(position))
        self._stored.load()
        return cut

    def raise_replicated(self, ends: Mapping[str, int]) -> None:
        for topic, end in ends.items():
            self._wanted[topic] = max(end, self._wanted.get(topic, 0))
        self._raise()

    def _raise(self) -> None:
        """Raise what is in the stream and on the disk; be told when more is."""
        if not self._raise_now() and self._progress is not None:
            self._progress.watch()
            self._raise_now()

    def _raise_now(self) -> bool:
        """Whether all that is in the stream is on the disk here."""
        replicating, done = self.writer.replicating, True
        for topic in replicating.topics:
            state = self._state(topic)
            wanted = min(self._wanted.get(topic, 0), state["published"])
            if wanted > state["replicated"]:
                safe = min(wanted, self._safe(topic)) if self._shipping is not None else wanted
                replicating.raise_replicated(topic, safe)
                done &= safe == wanted
        return done

    async def store(self, position: Position) -> None:
        if self._progress is None:  # a cut is under way
            return
        here = self.ends()
        ends = {
            topic: end for topic, end in position.ends.items() if end and topic in here
        }  # others are configured no more
        for topic, end in ends.items():
            if end > here[topic]:
                raise ValueError(
                    f"bus {self.bus!r}: topic {topic!r} ends at {here[topic]}, before the position's {end}"
                )
        if await self._until(ends, "durable" if self._syncs else "logged"):
            await asyncio.to_thread(self._stored.store, position)

    # --- leading ----------------------------------------------------------------------------------------------------

    async def lead(self, epoch: int, ends: Mapping[str, int]) -> None:
        self.raise_replicated(ends)
        await self._finish_retiring()
        replicating = self.writer.replicating
        if self._shipping is None:
            self._shipping = Shipping(replicating.topics, ends, str(self.data_dir / "log"))
        replicating.lead()

    async def gather(self, bytes_max: int, timeout_s: float) -> Sequence[Run]:
        shipping, progress = self._shipping, self._progress
        assert shipping is not None
        assert progress is not None
        if not await progress.wait_for(lambda: shipping.is_ready, timeout_s):
            self._check_works()
            return []
        return shipping.gather(bytes_max)

    def gathered(self) -> None:
        assert self._shipping is not None
        self._shipping.gathered()

    def hold(self, held: bool) -> None:
        self.writer.replicating.hold(held)

    def retire(self, leader: str) -> None:
        if self._retiring is None:
            self._retiring = asyncio.create_task(asyncio.to_thread(self.writer.replicating.retire, leader))

    def drained(self) -> bool:
        assert self._shipping is not None
        if self._retiring is None or not self._retiring.done():
            return False
        self._retiring.result()  # raises what stopped it
        return self._shipping.is_drained

    async def follow(self, leader: str) -> None:
        if self._shipping is not None:  # first: the drains may wait for the room that it holds
            self._shipping.close()
            self._shipping = None
            self._raise_now()  # while who waits in a lane can be told
        await self._finish_retiring()
        await asyncio.to_thread(self.writer.replicating.follow, leader)

    async def _finish_retiring(self) -> None:
        if self._retiring is not None:
            retiring, self._retiring = self._retiring, None
            await retiring


class _PositionFile:
    """The stored position: what is there when it is loaded, and then what was stored last. MessagePack in a slot file."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, Position()
        self._file: SlotFile | None = None

    def load(self) -> None:
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self._file = SlotFile.open(self.path)
            stored = self._file.read()
            if stored is not None:
                self.position = msgspec.msgpack.decode(stored, type=Position)

    def store(self, position: Position) -> None:
        payload = msgspec.msgpack.encode(position)
        if self._file is not None and self._file.has_value and self._file.has_room(payload):
            self._file.write(payload, sync=True)
        else:
            make_directory(self.path.parent)
            former, self._file = self._file, SlotFile.replace(self.path, payload)
            if former is not None:
                former.close()
        self.position = position

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
