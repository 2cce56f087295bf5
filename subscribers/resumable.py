"""Reading on where an earlier process of the same name has come to."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from ..bus import Attached, Batch, BusError, PositionRefused
from ..bus.positions import (
    ALONE,
    KIND_RESUMABLE,
    NameLock,
    Position,
    check_position_name,
    read_position,
)
from ..storage import HistoryGone, Schema
from ..storage.decodable import decodable
from .historical import Historical
from .position_keeper import Checkpoint, PositionKeeper
from .reader import Follow, Start, TopicReader, Wait, followed, wait_for_topic
from .real_time import RealTime
from .stored import check_position, folder_of
from .subscriber import Stats, Subscriber

__all__ = ["Resumable", "ResumableStats"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ResumableStats(Stats):
    """Also how it would fare if it ended now."""

    stored: int  # the position on the disk
    behind: int  # published, and not done with


class Resumable(Subscriber, Generic[T]):
    """Reads a topic under a name, and goes on where that name has come to: after its end, a kill or a power cut.

    `for batch in Resumable("exchange/trades", "positions"): …`

    address: "BUS/TOPIC", of a bus with a data_dir. name: of the subscriber; one living process at a time goes by it.
    start: where the name begins the first time: "latest", "earliest", or a sequence. Afterwards it begins behind its position: in
    the ring, the log, its archive or tables.

    At least once, as it is: a batch is done with when the next one is asked for (or at `commit`). Positions are stored in the
    background, at most every `every` seconds, or as soon as `every_rows` records are done with. After a kill, what was done with
    since the last one comes again.
    Exactly once, with `state`: bytes, or a type that msgspec encodes. Nothing is done with before `commit(state)`, which stores the
    position and what came of all records up to it in one step. `reader.state` is what was stored last, None the first time.

    A position is stored once its records are on the disk (logged, where the log is never synced), never ahead of them.
    gap: what to do where the next record is not kept any more, or the topic ends before the position: "raise", or "skip": go on at
    the oldest record there is (batch.lost tells), or at the end.
    directory: where the positions lie, if not in the bus's data_dir.
    follow, reliable, wait, batch_rows, reopen, open_timeout: as for RealTime.

    Raises AlreadyRunning, PositionRefused, HistoryGone (when read), NotFound, AttachError, ValueError, StorageError.
    """

    def __init__(
        self,
        address: str,
        name: str,
        *,
        start: Start = "latest",
        state: type[T] | None = None,
        every: float = 0.01,
        every_rows: int | None = None,
        gap: Literal["raise", "skip"] = "raise",
        directory: str | os.PathLike[str] | None = None,
        follow: Follow | None = None,
        reliable: bool = False,
        wait: Wait = "futex",
        batch_rows: int | None = None,
        reopen: bool = False,
        open_timeout: float = 0.0,
    ) -> None:
        if gap not in ("raise", "skip"):
            raise ValueError(f'gap: "raise" or "skip" is expected, got {gap!r}')
        if every <= 0 or (every_rows is not None and every_rows < 1):
            raise ValueError(f"every, every_rows: more than 0 is expected, got {every}, {every_rows}")
        self.address, self.name = address, check_position_name(name)
        self._type, self._gap = state, gap
        with ExitStack() as opened:
            ring = wait_for_topic(address, open_timeout)
            self._folder = folder_of(ring, name, directory)
            self._lock = NameLock(self._folder, name)
            opened.callback(self._lock.close)
            position = self._load(ring, follow)
            stored = Checkpoint.of(position) if position is not None else None
            settings: dict[str, Any] = {
                "follow": follow,
                "reliable": reliable,
                "wait": wait,
                "name": name,
                "batch_rows": batch_rows,
                "reopen": reopen,
            }
            self._reader = _open_reader(address, stored.sequence + 1 if stored is not None else start, settings)
            opened.callback(self._reader.close)
            self._log_id, self._reopen_count = self._reader.log_id, 0
            self.state: T | None = self._decode(stored)
            self._keeper = PositionKeeper(
                self._folder / ALONE,
                self._log_id,
                stored,
                self._reader,
                whole=state is not None,
                every=every,
                every_rows=every_rows,
            )
            self._keeper.start()
            opened.pop_all()

    def _load(self, ring: Attached, follow: Follow | None) -> Position | None:
        """What is stored, if it fits the topic. A position beyond its end is taken back to that, with gap="skip".

        Not where only what is replicated is read: that is not lost, this host is behind, and the rows come.
        """
        position = read_position(self._folder)
        if position is None:
            return None
        check_position(position, KIND_RESUMABLE, ring, self._folder)
        published = ring.watermarks().published
        waits = ring.header["replicates"] and followed(ring, follow) == "replicated"
        if position.sequence > published and not waits:
            if self._gap != "skip":
                raise PositionRefused(
                    f"{self._folder}: the stored position is {position.sequence}, but {self.address} ends at {published}: a copy, "
                    'or it lost what no disk held. Open with gap="skip" to go on at its end, or remove this folder to begin '
                    "anew"
                )
            return Position(position.kind, position.log_id, published, position.body)
        return position

    def _decode(self, stored: Checkpoint | None) -> T | None:
        if self._type is None or stored is None or stored.state is None:
            return None
        if self._type is bytes:
            return stored.state  # pyright: ignore[reportReturnType]
        try:
            return msgspec.msgpack.decode(stored.state, type=decodable(self._type))
        except msgspec.DecodeError as error:
            raise PositionRefused(f"{self._folder}: the stored state is not a {self._type.__name__}: {error}") from None

    # --- reading ----------------------------------------------------------------------------------------------------

    def poll(self) -> Batch | None:
        """The next batch, or None when there is none now. Never waits.

        Without `state`, asking for it says that everything handed out before is done with. Raises HistoryGone where what comes next
        is no longer kept (with gap="raise"; asked again, it goes on), BusError where positions cannot be stored any more, or the
        topic has moved to another log.
        """
        reader = self._reader
        if self._type is None and self._keeper.move_to(reader.position):
            self._keeper.check()
        before = reader.position
        try:
            batch = self._read()
        except BusError:
            if reader.position < before:
                self._keeper.take_back(reader.position)
            raise
        if batch is None and reader.reopen_count != self._reopen_count:  # a reader that moves has nothing to hand out
            self._check_log()
        return batch

    def _read(self) -> Batch | None:
        try:
            return self._reader.poll()
        except HistoryGone:
            if self._gap != "skip":
                raise
            return self._reader.poll()

    def _check_log(self) -> None:
        """After a move to another ring."""
        self._reopen_count = self._reader.reopen_count
        if self._reader.log_id != self._log_id:
            self.close()
            raise PositionRefused(
                f"{self.address}: the bus has another log now, of which the position of {self.name!r} says nothing"
            )

    def _wait(self, seconds: float) -> None:
        self._reader._wait(seconds)  # pyright: ignore[reportPrivateUsage]

    def commit(self, state: T | None = None) -> None:
        """Everything handed out until now is done with, and (if this subscriber keeps a state) this came of it.

        Both are stored together, soon; `sync` waits for it. Raises ValueError for a state where none is kept, or the other way
        round, and BusError as `poll`.
        """
        if (state is None) != (self._type is None):
            raise ValueError(f"commit: a state is {'not kept' if self._type is None else 'expected'}; see state=")
        encoded = None
        if state is not None:
            encoded = state if isinstance(state, bytes) else msgspec.msgpack.encode(state)
            self.state = state
        self._keeper.offer(Checkpoint(self._reader.position, encoded))

    def sync(self, timeout: float | None = None) -> None:
        """Wait until what is done with is stored. Raises TimeoutError after `timeout` seconds (None: never), BusError as `poll`."""
        self._keeper.sync(timeout)

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> Schema:
        """The topic's schema."""
        return self._reader.schema

    @property
    def position(self) -> int:
        """The last sequence handed out."""
        return self._reader.position

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._reader.ended

    @property
    def stats(self) -> ResumableStats:
        stats = self._reader.stats
        return ResumableStats(
            **asdict(stats),
            stored=self._keeper.stored,
            behind=stats.lag + stats.position - self._keeper.done,
        )

    def close(self) -> None:
        """Store what is done with, and let another process go by the name. What was handed out last and not committed is not."""
        try:
            self._keeper.close()
        finally:
            self._reader.close()
            self._lock.close()
            super().close()


def _open_reader(address: str, start: Start, settings: dict[str, Any]) -> TopicReader:
    """A reader that goes on into the present: from now on, or from a place in the past, wherever that is kept."""
    if start == "latest":
        return RealTime(address, **settings)
    return Historical(address, start=start, live=True, **settings)
