"""The writer of a bus: the one place where rings, log and store meet.

1. One living writer a bus: it holds the bus segment's lock. A writer that was taken over is fenced: its rings' status says
   so before the new one reads them.
2. Opening makes new data segments with a new epoch. What the earlier writer had published is carried over from its rings,
   and what of that the log does not hold yet is logged first: a killed writer loses nothing that was published.
3. Control segments, and so the reader table, outlive a crashed writer; closing in good order removes everything.
4. The ring of a topic with lanes is published in by the lanes' drain alone; `writer[topic]` is then a lane as well.
5. A replicated bus may have to be opened again with less than it had: its rings then say where they end, and their readers wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from ..storage import Log, LogFailed, Recovered, Schema, StoreSettings
from ..storage.engine import Engine
from ..storage.log import LOG_FILE_BYTES
from . import _lanes, _segment
from ._journal import Journal
from ._publish import RingPublisher
from .errors import AttachError, BusError, NotFound, WriterAlive
from .lane_publisher import LanePublisher, open_lane
from .lanes import LeftLane, TopicLanes, find_left
from .publisher import Publisher
from .replicating import Drains, Replicating, Replication, Ring
from .segments import (
    DIRECTORY,
    MODES,
    Segment,
    bus_name,
    check_bus_name,
    control_name,
    data_name,
    draft_name,
    lane_name,
    list_lanes,
    list_names,
)

__all__ = ["Carried", "Writer", "check_slots"]

SLOTS = 65_536
HEARTBEAT_S = 0.25
TAKE_OVER_TRIES = 5
TAKE_OVER_WAIT_S = 0.05
START_TRIES = 5  # at a bus segment that cannot be used: where another writer is just starting, it soon can
START_WAIT_S = 0.01
DRAIN_S = 10.0  # how long closing waits at most for readers that leave no room for what is in the lanes


@dataclass(frozen=True, slots=True)
class Carried:
    """What opening found of an earlier writer: the log's recovery, and records saved from its rings and lanes by topic."""

    log: Recovered | None
    from_rings: Mapping[str, int]
    from_lanes: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class _Parts:
    """What a writer holds, apart from the object itself, so that it can be closed when that is forgotten."""

    bus: str
    pid: int = field(default_factory=os.getpid)
    lock_fd: int = -1
    bus_segment: Segment | None = None
    data: dict[str, Segment] = field(default_factory=dict[str, Segment])
    control: dict[str, Segment] = field(default_factory=dict[str, Segment])
    publishers: dict[str, Publisher] = field(default_factory=dict[str, Publisher])
    drains: Drains = field(default_factory=Drains)
    replicating: Replicating | None = None
    drain_s: float = DRAIN_S
    log: Log | None = None
    journal: Journal | None = None
    engine: Engine | None = None
    threads: list[threading.Thread] = field(default_factory=list[threading.Thread])
    stop: threading.Event = field(default_factory=threading.Event)
    journal_result: list[int] = field(default_factory=list[int])


_OPEN: weakref.WeakSet[Writer] = weakref.WeakSet()


def _leave_locks() -> None:
    """In a forked child: let go of the parent's locks, so that they end with the parent. Its logs do the same."""
    for writer in _OPEN:
        parts = writer._parts  # pyright: ignore[reportPrivateUsage]
        if parts.lock_fd >= 0:
            os.close(parts.lock_fd)
            parts.lock_fd = -1


os.register_at_fork(after_in_child=_leave_locks)


class Writer:
    """Opens a bus for writing; `writer["trades"]` is the topic's Publisher. Use it in a `with` statement.

    bus: its name on this machine. schemas: its topics.
    data_dir: where its log lives (made if missing); None: rings only, nothing outlives the machine.
    slots: records a ring holds, a power of two, for all topics or by topic.
    sync: "interval" (at most every sync_interval seconds), "always" (after every group written), "never".
    full: what to do when reliable readers leave no room: "block" (up to full_timeout seconds, None: for ever), "raise"
    RingFull, or "drop" those readers. The log always blocks: a slow disk is back-pressure, never loss.
    lanes: the topics that other processes may publish to as well, see `open_lane`; True: all. `writer[topic]` is a LanePublisher
    then: the sequences that it returns are its lane's, not the topic's.
    group_readable: let the user's group attach; otherwise only the user.
    retention_bytes, retention_age (seconds): how much of the log to keep. Older files go, and so do files beyond retention_bytes,
    whichever comes first. Both None: everything.
    replication: other hosts hold the bus too: see Replication, and `replicating`. All topics have lanes then, while it leads.
    store: keep topics by key as well, in memtables and sstables in data_dir, so that `get` finds their rows; None: only log them.
    take_over: fence a writer that is alive but should not be.
    progress: called with (bytes checked, bytes in all) while the log is recovered.

    Raises WriterAlive; OSError where memory or disk cannot be had; StorageError for a log that cannot be used.
    """

    def __init__(
        self,
        bus: str,
        schemas: Iterable[Schema],
        *,
        data_dir: str | os.PathLike[str] | None = None,
        slots: int | Mapping[str, int] = SLOTS,
        sync: Literal["interval", "always", "never"] = "interval",
        sync_interval: float = 0.001,
        full: Literal["block", "raise", "drop"] = "block",
        full_timeout: float | None = None,
        lanes: Iterable[str] | bool = False,
        group_readable: bool = False,
        retention_bytes: int | None = None,
        retention_age: float | None = None,
        store: StoreSettings | None = None,
        replication: Replication | None = None,
        log_file_bytes: int = LOG_FILE_BYTES,
        take_over: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.bus = check_bus_name(bus)
        self.schemas = {schema.name: schema for schema in schemas}
        if not self.schemas:
            raise ValueError("schemas: a bus needs at least one topic")
        if sync not in ("interval", "always", "never"):
            raise ValueError(f'sync: "interval", "always" or "never" is expected, got {sync!r}')
        if full not in ("block", "raise", "drop"):
            raise ValueError(f'full: "block", "raise" or "drop" is expected, got {full!r}')
        if sync_interval <= 0:
            raise ValueError(f"sync_interval: a positive number of seconds is expected, got {sync_interval}")
        if store is not None and data_dir is None:
            raise ValueError("store: needs a data_dir")
        if replication is not None and (data_dir is None or full == "drop"):
            raise ValueError(
                'replication: needs a data_dir, and full="block": rows wait in the rings for the other hosts'
            )
        self._replication = replication
        self._laned = _laned_topics(lanes if replication is None else False, self.schemas)
        codecs = store.codecs(self.schemas) if store is not None else {}
        self._slots = check_slots(slots, self.schemas)
        self._full: Literal["block", "raise", "drop"] = full
        self._full_timeout = full_timeout
        self._syncs = sync != "never" and data_dir is not None
        self._modes = MODES[group_readable]
        self.data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._parts = parts = _Parts(self.bus)
        self._opening_lane = threading.Lock()
        if full_timeout is not None:
            parts.drain_s = min(DRAIN_S, full_timeout)
        self._finalizer = weakref.finalize(self, _close, parts)
        try:
            epoch = self._lock_bus(take_over)
            if self.data_dir is not None:
                parts.log = self._open_log(
                    self.data_dir / "log",
                    epoch=epoch,
                    sync_files=sync != "never",
                    file_bytes=log_file_bytes,
                    retention_bytes=retention_bytes,
                    retention_age_s=retention_age,
                    checkpoints={} if store is not None else None,
                    take_over=take_over,
                    progress=progress,
                    log_id=replication.log_id if replication is not None else 0,
                    proven=replication.proven if replication is not None else None,
                )
                epoch = parts.log.epoch
                if store is not None:
                    committed = self._replicated if replication is not None else None
                    parts.engine = Engine(
                        self.data_dir, parts.log, self.schemas, codecs, store, committed=committed, take_over=take_over
                    )
                parts.journal = Journal(parts.log.appender, sync, sync_interval, calm=replication is not None)
            self.epoch = epoch
            self._open_topics()
            self._start(parts)
            self._finish_left_lanes()
            if replication is not None:
                assert parts.bus_segment is not None
                assert parts.journal is not None
                rings = {name: self._ring(schema) for name, schema in self.schemas.items()}
                rose = parts.engine.committed_rose if parts.engine is not None else _do_nothing
                parts.replicating = Replicating(self.bus, parts.bus_segment, rings, parts.drains, parts.journal, rose)
            _OPEN.add(self)
        except BaseException:
            self._finalizer.detach()
            _close(parts)
            raise

    # --- opening ----------------------------------------------------------------------------------------------------

    def _lock_bus(self, take_over: bool) -> int:
        """Become the writer; returns the epoch to use. Fences a living writer when told to take over."""
        parts, name = self._parts, bus_name(self.bus)
        epoch, tries_left = 0, START_TRIES
        while True:
            try:
                segment = Segment.create(name, _segment.BUS_BYTES, self._modes[0])
            except FileExistsError:
                try:
                    segment = Segment.open(name, writable=True)
                except NotFound:
                    continue
                except AttachError:
                    if _remove_unfinished(name):
                        continue
                    tries_left -= 1
                    if not tries_left:
                        raise
                    time.sleep(START_WAIT_S)  # it was empty, perhaps, and another writer is just starting
                    continue
            try:
                descriptor = os.open(DIRECTORY / name[1:], os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # its writer has closed, or another one that starts took it for unfinished
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                with contextlib.suppress(AttachError):
                    owner = _segment.read_bus(segment.memory, name)
                    if not take_over:
                        raise WriterAlive(self.bus, owner["pid"]) from None
                    epoch = max(epoch, owner["epoch"])
                if not take_over:
                    raise WriterAlive(self.bus, 0) from None
                Segment.unlink(name)
                continue
            if segment.is_current() and os.fstat(descriptor).st_ino == segment.inode:
                break
            os.close(descriptor)
        os.fchmod(descriptor, self._modes[0])
        parts.lock_fd, parts.bus_segment = descriptor, segment
        with contextlib.suppress(AttachError):
            epoch = max(epoch, _segment.read_bus(segment.memory, name)["epoch"])
        self._fence_old_rings()
        return epoch + 1

    def _fence_old_rings(self) -> None:
        """Stop whoever still holds this bus's rings from publishing into them, and move their readers on."""
        topics = list_names().get(self.bus, [])
        for topic in topics:
            with contextlib.suppress(NotFound, AttachError):
                data = Segment.open(data_name(self.bus, topic), writable=True)
                control = Segment.open(control_name(self.bus, topic), writable=True)
                _segment.read_data(data.memory, data.name)
                _segment.check_control(control.memory, control.name)
                _segment.fence(data.memory, control.memory)

    def _open_log(self, directory: Path, *, take_over: bool, **settings: Any) -> Log:
        """Open the log. A writer that is taken over may be about to begin a file, or to remove one: then look again."""
        for tries_left in reversed(range(TAKE_OVER_TRIES if take_over else 1)):
            try:
                return Log(
                    directory,
                    self.schemas.values(),
                    bus=self.bus,
                    mode=self._modes[0],
                    take_over=take_over,
                    **settings,
                )
            except (FileNotFoundError, LogFailed) as error:
                if not tries_left or (isinstance(error, LogFailed) and error.errno != errno.EEXIST):
                    raise
            time.sleep(TAKE_OVER_WAIT_S)
        raise AssertionError

    def _open_topics(self) -> None:
        parts = self._parts
        from_rings: dict[str, int] = {}
        self._from_lanes: dict[str, int] = {}
        log_id = parts.log.log_id if parts.log is not None else 0
        topics = parts.log.topics if parts.log is not None else None
        names = [topic.schema.name for topic in topics] if topics is not None else list(self.schemas)
        for name in names:
            schema = self.schemas.get(name)
            if schema is None:  # logged by an earlier writer, not published now; the journal still counts it
                assert topics is not None
                schema = next(topic.schema for topic in topics if topic.schema.name == name)
            from_rings[name] = self._open_topic(schema, log_id)
        for name in list_names().get(self.bus, []):
            if name not in names:  # an earlier writer's topic that is no more
                made = [make(self.bus, name) for make in (data_name, draft_name, control_name)]
                for segment in [*made, *(lane_name(self.bus, name, lane) for lane in list_lanes(self.bus, name))]:
                    with contextlib.suppress(AttachError):  # another user's, and none of ours
                        Segment.unlink(segment)
        self.carried = Carried(
            parts.log.recovered if parts.log is not None else None,
            {name: count for name, count in from_rings.items() if count},
            {name: count for name, count in self._from_lanes.items() if count},
        )
        assert parts.bus_segment is not None
        _segment.format_bus(
            parts.bus_segment.memory,
            bus=self.bus,
            data_dir=str(self.data_dir or ""),
            log_id=log_id,
            epoch=self.epoch,
            role=_segment.ROLE_FOLLOWS if self._replication is not None else _segment.ROLE_ALONE,
        )

    def _open_topic(self, schema: Schema, log_id: int) -> int:
        """Make the topic's ring, carrying over what an earlier one holds; returns how many records the log did not have."""
        parts, topic = self._parts, schema.name
        indexes = self._indexes(topic)
        logged = parts.log.topic(topic).next_sequence - 1 if parts.log is not None else None
        control = self._open_control(topic)
        schema_json = schema.to_json()
        name = data_name(self.bus, topic)
        _lanes.clear_table(control.memory)
        left = find_left(self.bus, topic, schema, _any_ring(name))
        self._from_lanes[topic] = sum(lane.end - lane.drained for lane in left)
        old = _old_ring(name, schema, log_id)
        slot_count = self._slots.get(topic) or _slot_count(old)
        _, size_bytes = _segment.data_segment_bytes(len(schema_json), schema.row_bytes, slot_count)
        first, last = _readable(old, logged)
        if logged is not None and last - logged > slot_count:
            raise ValueError(
                f"slots: {last - logged} records of topic {topic!r} wait to be logged; give it at least as many slots as before"
            )
        draft = draft_name(self.bus, topic)
        Segment.unlink(draft)  # of a writer that died while it opened
        data = Segment.create(draft, size_bytes, self._modes[0])
        try:
            _segment.format_data(
                data.memory,
                schema_json=schema_json,
                schema_hash=schema.hash,
                row_bytes=schema.row_bytes,
                slot_count=slot_count,
                bus=self.bus,
                topic=topic,
                data_dir=str(self.data_dir or ""),
                log_id=log_id,
                epoch=self.epoch,
                syncs=self._syncs,
                indexes=indexes,
                lanes=topic in self._laned or (self._replication is not None and topic in self.schemas),
                replicates=self._replication.number if self._replication is not None else 0,
                began=last,
            )
            for index, lane in enumerate(left):
                _lanes.begin_position(data.memory, index, lane.number, lane.drained)
            if old is not None and last >= first:
                first = max(first, last - slot_count + 1)
                _segment.copy_slots(old.memory, data.memory, first, last)
                first = max(first, _readable(old, logged)[0])  # what a call under way has overwritten meanwhile
            # Slots below `first` hold nothing: announcing them as claimed over keeps readers from taking them for records.
            claimed = last if first == 1 else max(last, first - 1 + slot_count)
            known = last if logged is None else logged
            _segment.set_watermarks(
                data.memory,
                claimed=claimed,
                published=last,
                logged=known if logged is not None else 0,
                durable=known if logged is not None else 0,
                indexed=known if indexes else 0,
                replicated=min(self._replication.ends.get(topic, 0), last) if self._replication is not None else 0,
            )
            parts.data[topic], parts.control[topic] = data, control
            if left or topic in self._laned:
                parts.drains.lanes[topic] = self._make_lanes(schema, left)
            elif self._replication is None:
                parts.publishers[topic] = self._make_publisher(schema)
            if parts.journal is not None:
                feeding = parts.engine.feeding(topic) if parts.engine is not None and indexes else (None, None)
                parts.journal.add_ring(data.memory, control.memory, *feeding)
            _segment.publish_ready(data.memory)
            data.rename(name)  # the old ring is there until the new one holds all that it held
        except BaseException:
            Segment.unlink(draft)
            parts.data.pop(topic, None)
            raise
        return last - logged if logged is not None else 0

    def _indexes(self, topic: str) -> bool:
        return self._parts.engine is not None and topic in self._parts.engine

    def _ring(self, schema: Schema) -> Ring:
        return Ring(
            schema,
            self._parts.data[schema.name],
            self._parts.control[schema.name],
            lambda left: self._make_lanes(schema, left),
            lambda: self._make_applier(schema),
        )

    def _make_applier(self, schema: Schema) -> RingPublisher:
        parts = self._parts
        assert parts.journal is not None
        data, control = parts.data[schema.name].memory, parts.control[schema.name].memory
        journal = parts.journal
        return RingPublisher(
            data, control, schema, full="block", full_timeout=None, journal=journal, asleep=journal.asleep()
        )

    def _make_publisher(self, schema: Schema) -> Publisher:
        publisher = Publisher(
            self._parts.data[schema.name],
            self._parts.control[schema.name],
            schema,
            full=self._full,
            full_timeout=self._full_timeout,
            journal=self._parts.journal,
            syncs=self._syncs,
            indexes=self._indexes(schema.name),
        )
        publisher.stamp_after(self._last_timestamp_ns(schema.name))
        return publisher

    def _make_lanes(self, schema: Schema, left: list[LeftLane]) -> TopicLanes:
        return TopicLanes(
            self.bus,
            schema,
            self._parts.data[schema.name],
            self._parts.control[schema.name],
            journal=self._parts.journal,
            durable=self._syncs,
            indexed=self._indexes(schema.name),
            replicated=self._replication is not None,
            full=self._full,
            last_timestamp_ns=self._last_timestamp_ns(schema.name),
            left=left,
        )

    def _last_timestamp_ns(self, topic: str) -> int:
        """The newest stamp that the log has of a topic: none may be earlier."""
        return self._parts.log.topic(topic).last_timestamp_ns if self._parts.log is not None else 0

    def _open_control(self, topic: str) -> Segment:
        """The topic's control segment: an earlier writer's, with the readers in it, or a new one."""
        name = control_name(self.bus, topic)
        try:
            control = Segment.open(name, writable=True)
            _segment.check_control(control.memory, name)
        except (NotFound, AttachError):
            Segment.unlink(name)
            control = Segment.create(name, _segment.CONTROL_BYTES, self._modes[1])
            _segment.format_control(control.memory)
        else:
            os.chmod(Path("/dev/shm") / name[1:], self._modes[1])
            _segment.free_dead(control.memory)
        return control

    def _start(self, parts: _Parts) -> None:
        if parts.journal is not None:
            parts.threads.append(
                threading.Thread(target=_run_journal, args=(parts,), name="ringmain-journal", daemon=True)
            )
        parts.threads.append(threading.Thread(target=_keep, args=(parts,), name="ringmain-keeper", daemon=True))
        for thread in parts.threads:
            thread.start()
        for topic in self._laned & parts.drains.lanes.keys():
            parts.drains.start(topic)

    def _finish_left_lanes(self) -> None:
        """Topics that had lanes and have none now: drain what is left before anybody publishes in their rings."""
        parts = self._parts
        for topic in parts.drains.lanes.keys() - self._laned:
            lanes = parts.drains.lanes[topic]
            lanes.request_stop(parts.drain_s)
            lanes.run()
            if not lanes.finish():
                raise BusError(
                    f"topic {topic!r}: its readers, or its log, leave no room for {self._from_lanes[topic]} records in lanes that "
                    "an earlier writer has left; they stay there for the next try"
                )
            schema = self.schemas.get(topic)
            del parts.drains.lanes[topic]
            if schema is not None and self._replication is None:
                parts.publishers[topic] = self._make_publisher(schema)

    # --- using ------------------------------------------------------------------------------------------------------

    def __getitem__(self, topic: str) -> Publisher:
        """The topic's Publisher. KeyError names the topics there are; NotLeader where a replicated bus is led elsewhere."""
        if topic not in self.schemas:
            raise KeyError(f"bus {self.bus!r} has no topic {topic!r}; it has {', '.join(sorted(self.schemas))}")
        if self._parts.replicating is not None:
            self._parts.replicating.check_leads()
            return self._open_own_lane(topic)
        publisher = self._parts.publishers.get(topic)
        return self._open_own_lane(topic) if publisher is None else publisher

    def _replicated(self, topic: str) -> int:
        """Up to which sequence rows of a topic are known to be replicated: they go into tables, and their log files expire."""
        assert self._replication is not None
        return _replicated(self._parts.data.get(topic)) or self._replication.ends.get(topic, 0)

    def _open_own_lane(self, topic: str) -> Publisher:
        """This process's own lane of a topic that has lanes; made when it is asked for first, or the former one does not go on."""
        publishers = self._parts.publishers
        with self._opening_lane:
            former = publishers.get(topic)
            if former is None or (isinstance(former, LanePublisher) and former.is_over):
                full = "raise" if self._full == "raise" else "block"
                publishers[topic] = open_lane(f"{self.bus}/{topic}", full=full, full_timeout=self._full_timeout)
        return publishers[topic]

    @property
    def replicating(self) -> Replicating:
        """The role of a replicated bus, for who replicates it. Raises ValueError where it is on this host alone."""
        if self._parts.replicating is None:
            raise ValueError(f"bus {self.bus!r}: is not replicated; open the writer with replication=Replication(…)")
        return self._parts.replicating

    @property
    def keeps_by_key(self) -> bool:
        """Whether there is a `store`."""
        return self._parts.engine is not None

    @property
    def store(self) -> Engine:
        """The topics that are kept by key: `writer.store["trades"]` reads as a Store's does. Raises ValueError where none is."""
        if self._parts.engine is None:
            raise ValueError(f"bus {self.bus!r}: no topic is kept by key; open the writer with store=StoreSettings()")
        return self._parts.engine

    def get(self, topic: str, *key: Any) -> np.void | None:
        """The newest record of a key that has been indexed (see Publisher.wait), as a record of its own, or None."""
        return self.store[topic].get(*key)

    @property
    def failure(self) -> Exception | None:
        """What stopped the log, or None."""
        return self._parts.journal.failure() if self._parts.journal is not None else None

    def close(self) -> None:
        """Log and sync everything published, tell the readers, and remove the segments. Does nothing the second time.

        Raises WriterFailed's cause where the log had failed: what was not durable by then is not.
        """
        if self._finalizer.detach() is not None:
            _close(self._parts)

    def close_to_cut(self, ends: Mapping[str, int]) -> None:
        """Close, so that the bus can be opened again without what it has behind `ends`. Its readers wait for that.

        A topic that is not named is left with nothing. Raises as `close`.
        """
        if self._finalizer.detach() is not None:
            _close(self._parts, ends)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_slots(slots: int | Mapping[str, int], topics: Iterable[str]) -> dict[str, int]:
    """How many records the ring of each topic is to hold. Raises ValueError unless it is a power of two."""
    counts = {name: slots if isinstance(slots, int) else slots.get(name, SLOTS) for name in topics}
    for name, count in counts.items():
        if count < 1 or count & (count - 1):
            raise ValueError(f"slots: a power of two is expected for topic {name!r}, got {count}")
    return counts


def _laned_topics(lanes: Iterable[str] | bool, schemas: Mapping[str, Schema]) -> frozenset[str]:
    if isinstance(lanes, bool):
        return frozenset(schemas) if lanes else frozenset()
    if isinstance(lanes, str):
        raise ValueError(f"lanes: a list of topics, or True, is expected, got {lanes!r}")
    laned = frozenset(lanes)
    if unknown := laned - schemas.keys():
        raise ValueError(f"lanes: no topic {sorted(unknown)[0]!r}; there is {', '.join(sorted(schemas))}")
    return laned


def _remove_unfinished(name: str) -> bool:
    """Remove a bus segment that has no size yet, and no owner: whoever made it died right then. (One that lives makes another.)

    False where it is not so. Its lock is held meanwhile: nobody becomes its owner between looking and removing.
    """
    try:
        descriptor = os.open(DIRECTORY / name[1:], os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # it is gone, or another user's
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        unfinished = found.st_size == 0 and os.stat(DIRECTORY / name[1:]).st_ino == found.st_ino
        if unfinished:
            Segment.unlink(name)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return unfinished


def _any_ring(name: str) -> Segment | None:
    """The ring under this name, whatever it holds."""
    with contextlib.suppress(NotFound, AttachError):
        ring = Segment.open(name, writable=False)
        _segment.read_data(ring.memory, name)
        return ring
    return None


def _old_ring(name: str, schema: Schema, log_id: int) -> Segment | None:
    """The ring that an earlier writer left under this name, if it holds records of this very topic and log."""
    old = _any_ring(name)
    if old is None:
        return None
    header = _segment.read_data(old.memory, name)
    fits = (
        header["schema_hash"] == schema.hash and header["row_bytes"] == schema.row_bytes and header["log_id"] == log_id
    )
    return old if fits else None


def _slot_count(old: Segment | None) -> int:
    """Room for a topic that is not published any more: what its last ring had."""
    return 1 if old is None else int(_segment.read_data(old.memory, old.name)["slot_count"])


def _readable(old: Segment | None, logged: int | None) -> tuple[int, int]:
    """(first, last) sequence that can be carried over from an old ring; (next, last) with nothing between where there is none.

    With a log, a ring that lies behind it, or that has lost its connection with it, is left alone.
    """
    if old is None:
        last = logged or 0
        return last + 1, last
    state, header = _segment.read_state(old.memory), _segment.read_data(old.memory, old.name)
    first, last = max(1, state["claimed"] - header["slot_count"] + 1), state["published"]
    if state["status"] & _segment.STATUS_FENCED:
        last = state["ended"]
    if logged is not None and (last < logged or first > logged + 1):
        return logged + 1, logged
    return first, last


# --- threads ----------------------------------------------------------------------------------------------------------


def _run_journal(parts: _Parts) -> None:
    assert parts.journal is not None
    parts.journal_result.append(parts.journal.run())


def _keep(parts: _Parts) -> None:
    """Beat, and keep the log's files coming."""
    while not parts.stop.is_set():
        for segment in parts.data.values():
            _segment.beat(segment.memory)
        if parts.replicating is not None and parts.log is not None:
            _hold_back(parts.log, parts.replicating)
        if parts.log is not None:
            try:
                parts.log.keep(HEARTBEAT_S)
            except OSError as error:  # the log goes on as long as it has files, then fails with this
                parts.log.appender.refuse_spare(error.errno or errno.EIO)
            except BaseException:  # nobody will make files any more: the appender must not wait for one
                parts.log.appender.refuse_spare(errno.EIO)
                raise
        else:
            parts.stop.wait(HEARTBEAT_S)


def _hold_back(log: Log, replicating: Replicating) -> None:
    """Keep log files with rows that are not replicated yet. Topics of earlier writers get no more rows, and hold nothing back."""
    ends = {topic.schema.name: topic.next_sequence for topic in log.topics}
    log.hold_back(ends | {name: _replicated(ring.data) for name, ring in replicating.topics.items()})


def _replicated(ring: Segment | None) -> int:
    return _segment.read_state(ring.memory)["replicated"] if ring is not None else 0


def _do_nothing() -> None:
    pass


def _holds_more_than_log(segment: Segment) -> bool:
    state = _segment.read_state(segment.memory)
    return state["published"] > state["logged"]


def _close(parts: _Parts, ends: Mapping[str, int] | None = None) -> None:
    """Let go of everything in order. In a forked child nothing is the child's to close.

    ends: where the rings end, by topic, when the bus is to be opened again with less than they hold.
    """
    if os.getpid() != parts.pid:
        return
    for publisher in parts.publishers.values():
        publisher.close()
    if parts.replicating is not None:
        parts.replicating.close()
    started = any(thread.ident is not None for thread in parts.threads)
    parts.drains.stop(parts.drain_s, for_good=True)
    failure: Exception | None = None
    fenced = False
    if parts.replicating is not None and parts.engine is not None:
        parts.engine.let_grow()  # what the journal may wait for is that rows are replicated, and they may never be
    if parts.journal is not None and started:
        parts.journal.request_stop()
        parts.threads[0].join()
        fenced = parts.journal_result[:1] == [errno.ESTALE]
        failure = None if fenced else parts.journal.failure()
    parts.stop.set()
    if parts.log is not None:
        os.eventfd_write(parts.log.appender.wants_spare_fd, 1)  # the keeper sleeps on it
    for thread in parts.threads:
        if thread.ident is not None:
            thread.join()
    if parts.engine is not None:
        parts.engine.close()
    if parts.log is not None:
        # The newer writer may have removed what this one would tidy up.
        with contextlib.suppress(FileNotFoundError) if fenced else contextlib.nullcontext():
            parts.log.close(finish=not started)
    undrained = [topic for topic, lanes in parts.drains.lanes.items() if not lanes.finish()]
    clean = failure is None and (not parts.journal_result or parts.journal_result[0] == 0)
    for topic, segment in parts.data.items():
        # A ring may hold what no log does: after a failed log, or one that was carried over by an opening that then failed.
        # It stays then, and the next writer saves it.
        if not clean or topic in undrained or (not started and _holds_more_than_log(segment)):
            continue
        if ends is not None:
            _segment.fence(segment.memory, parts.control[topic].memory, last=ends.get(topic, 0))
            continue
        if _segment.read_state(segment.memory)["status"] & _segment.STATUS_FENCED:
            continue  # a newer writer reads it, replaces it, and leads its readers on
        epoch = _segment.read_data(segment.memory, segment.name)["epoch"]
        _segment.set_closed(parts.control[topic].memory, epoch)
        _segment.add_status(segment.memory, parts.control[topic].memory, _segment.STATUS_CLOSED)
        if segment.is_current():
            Segment.unlink(segment.name)
            Segment.unlink(control_name(parts.bus, topic))
    bus_segment = parts.bus_segment
    if bus_segment is not None and bus_segment.is_current() and not list_names(user=bus_segment.uid).get(parts.bus):
        Segment.unlink(bus_segment.name)
    if parts.lock_fd >= 0:
        os.close(parts.lock_fd)
        parts.lock_fd = -1
    if failure is not None:
        raise failure
    stuck = [topic for topic in undrained if parts.drains.lanes[topic].event == _lanes.DRAIN_STUCK]
    if stuck:
        raise BusError(
            f"bus {parts.bus!r}: the readers of {', '.join(stuck)} left no room for all that is in its lanes within "
            f"{parts.drain_s} s, or the log did not for much longer; the rest is kept for the next writer"
        )
