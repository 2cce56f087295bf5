"""The engine of a store: topics kept by key in memtables and sstables, over a log that somebody else appends to.

1. A row is in the log before it is in a memtable. What is in memtables only is read from the log again when the engine is opened.
2. Flushing and compacting happen in two threads of their own. When one fails, reading goes on, and writing says why it stopped.
   A third has memory ready for the rows to come.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ._tree import KeyCodec, MemoryPool, Memtable, State, Table, TreeCore
from .errors import Corruption, FormatMismatch, StorageError, TablesFailed
from .files import lower_priority, make_directory, sync_directory
from .levels import Shape, pick, pick_all
from .log import Log
from .log_files import list_files
from .log_reader import LogReader
from .manifest import Edit, Manifest, TopicInfo
from .manifest_state import State as ManifestState
from .replay import replay, unflushed
from .schema import Schema
from .table_files import TableFiles, compressor
from .tree import Tree
from .tree_writer import TopicFailure, TreeWriter, WriteCounts

__all__ = ["Engine", "StoreSettings", "TopicFailure", "TopicStats"]

MEMTABLE_BYTES = 128 << 20
MEMORY_AHEAD_BYTES = 128 << 20  # ready for rows to come, of all topics together
MEMORY_AHEAD_BYTES_MIN = 4 << 20  # of one
TOUCH_S = 0.05
BLOCK_BYTES = 4096
SNAPSHOT_S = 1800.0
COMPACTION_BYTES_PER_S = 256 << 20
OPEN_THREADS = 4
NUMBERS_APART = 1 << 16  # of tables: more than an engine that was taken over makes before it finds out
SEQUENCE_MAX = (1 << 64) - 1
LOOK_S = 1.0  # how often to look for compactions that no flush has called for


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How topics are kept by key.

    topics: which; None: all that there are. A topic that is not among them and was kept by key once holds the log until it is kept
    again. keep_versions: those of which all versions are kept, not only the newest; fixed when the topic is first stored.
    memtable_bytes: memory of one memtable; up to immutable_max full ones of a topic wait for the flush, then writing waits.
    compression: of tables below level 0: "none", "zstd" or "lz4". shape: levels and their sizes.
    snapshot_interval: seconds until what lies in memtables is written to tables even if they are not full; None: only when full.
    compaction_bytes_per_s: how fast compactions may write; None: as fast as they can.
    """

    topics: Collection[str] | None = None
    keep_versions: Collection[str] = ()
    memtable_bytes: int = MEMTABLE_BYTES
    immutable_max: int = 2
    block_bytes: int = BLOCK_BYTES
    compression: Literal["none", "zstd", "lz4"] = "none"
    shape: Shape = Shape()  # noqa: RUF009  frozen
    snapshot_interval: float | None = SNAPSHOT_S
    compaction_bytes_per_s: int | None = COMPACTION_BYTES_PER_S

    def codecs(self, schemas: Mapping[str, Schema]) -> dict[str, KeyCodec]:
        """The keys of the topics to be kept, by name. Raises ValueError for what cannot be, before anything is made."""
        compressor(self.compression)
        topics = list(schemas if self.topics is None else self.topics)
        for what, names, there in (("topics", topics, schemas), ("keep_versions", self.keep_versions, topics)):
            if unknown := sorted(set(names) - set(there)):
                raise ValueError(f"{what}: not among the schemas: {', '.join(unknown)}")
        return {name: KeyCodec(schemas[name]) for name in topics}


@dataclass(frozen=True, slots=True)
class TopicStats:
    """A topic of a store, now. Bytes are of files; memory_bytes is what its memtables take."""

    row_count: int  # in memtables and tables, replaced rows and tombstones included
    sequence: int  # the newest
    checkpoint: int  # the newest that is in tables: a restart reads the log from there on
    memory_bytes: int
    immutable_count: int
    tables_by_level: tuple[int, ...]
    bytes_by_level: tuple[int, ...]
    counts: WriteCounts
    failure: TopicFailure | None  # None while all is well


class _Cancelled(Exception):
    """The store is closing; a compaction gives up."""


class Engine:
    """The trees of a data directory, by topic: `engine["trades"].get(key)`.

    schemas: of the topics to keep; codecs: their keys, from settings.codecs. The log must have them all.
    committed: up to which sequence rows of a topic can never be taken back (any thread calls it); no other row goes into tables.
    Call `committed_rose` when it has risen. None: all of them.
    take_over: another engine, whose log was taken over, may still be at work here; what it makes is given up.
    Raises Corruption, FormatMismatch, OSError.
    """

    def __init__(
        self,
        directory: Path,
        log: Log,
        schemas: Mapping[str, Schema],
        codecs: Mapping[str, KeyCodec],
        settings: StoreSettings,
        *,
        committed: Callable[[str], int] | None = None,
        take_over: bool = False,
    ) -> None:
        self._committed = committed
        self._waiting: dict[str, int] = {}  # by topic, the sequence that must be committed before it can be flushed
        self.directory, self._log, self._settings = directory, log, settings
        self._rate = _Rate(settings.compaction_bytes_per_s, self._check_open)
        self._closing = threading.Event()
        self._work = threading.Condition()
        self._change_count = 0  # under `_work`: who looks for work waits only while nothing has changed since he looked
        self._manual: list[str] = []
        make_directory(directory / "store")
        self._manifest = Manifest(directory / "store", log.log_id, holds_lock=log.holds_lock)
        self._threads: list[threading.Thread] = []
        self._trees: dict[str, TreeWriter] = {}
        with contextlib.ExitStack() as failing:
            failing.callback(self._end)
            self._open(schemas, codecs, take_over=take_over)
            self._release_log()
            self._start("flush", self._flush_for_ever)
            self._start("compaction", self._compact_for_ever)
            self._start("memory", self._touch_for_ever)
            failing.pop_all()

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(self, schemas: Mapping[str, Schema], codecs: Mapping[str, KeyCodec], *, take_over: bool) -> None:
        directory, settings = self.directory / "store", self._settings
        state = self._add_topics({name: schemas[name] for name in codecs})
        self._files = TableFiles(directory, self._log.log_id, settings.block_bytes)
        known = frozenset(info.number for version in state.versions.values() for info in version.tables())
        strays = self._files.strays(known)
        self._check_log(state, all_topics=bool(strays))
        for path in strays:
            path.unlink()
        sync_directory(directory)
        self._numbers = itertools.count(state.next_number + (NUMBERS_APART if take_over else 0))
        topics = {name: self._log.topic(name) for name in codecs}
        behind = {name: last for name in codecs if (last := state.checkpoints[name]) < topics[name].next_sequence - 1}
        files = unflushed(self._log.directory, self._log.found, self.directory / "archive", behind)
        memory = MemoryPool(max(MEMORY_AHEAD_BYTES, settings.memtable_bytes))
        with ThreadPoolExecutor(OPEN_THREADS, "ringmain-open") as pool:
            opening = {name: pool.submit(self._open_tables, state, schemas[name], codecs[name]) for name in codecs}
            for name, codec in codecs.items():
                tree = Tree(
                    schemas[name], codec, State(codec, (), (), ()), keeps_versions=state.topics[name].keep_versions
                )
                tree.dropped_through = state.checkpoints[name]
                tree.core.visible = topics[name].next_sequence - 1
                active = Memtable(codec, settings.memtable_bytes, memory)
                memtables = replay(pool, files, topics[name], state.checkpoints[name], codec, active, memory)
                self._trees[name] = TreeWriter(
                    tree,
                    state.versions[name],
                    self._files,
                    self._manifest,
                    memory,
                    tables=opening[name].result(),
                    active=active,
                    shape=settings.shape,
                    memtable_bytes=settings.memtable_bytes,
                    immutable_max=settings.immutable_max,
                    compression=settings.compression,
                    next_number=lambda: next(self._numbers),
                    changed=self._changed,
                    sync_log=self._log.appender.sync_behind if self._log.syncs_files else None,
                    may_flush=functools.partial(self._is_committed, name),
                )
                self._trees[name].take_back(memtables)

    def _open_tables(self, state: ManifestState, schema: Schema, codec: KeyCodec) -> dict[int, Table]:
        return {info.number: self._files.open(info, schema, codec) for info in state.versions[schema.name].tables()}

    def _check_log(self, state: ManifestState, *, all_topics: bool) -> None:
        """Whether the log goes on where the tables end. It is not looked into for topics that are not opened, unless all_topics.

        Strays may only go when it does: with an older manifest they are what is neither in its tables nor in the log.
        Raises Corruption, StorageError.
        """
        last = {topic.schema.name: topic.next_sequence - 1 for topic in self._log.topics}
        for name, checkpoint in state.checkpoints.items():
            if last.get(name, 0) < checkpoint:
                what = f"topic {name!r} up to sequence {checkpoint}, which tables have"
                raise Corruption(list_files(self._log.directory)[-1][1], 0, what, last.get(name, 0))
            if all_topics and last[name] > checkpoint:
                oldest = LogReader(self._log.directory, name, self.directory / "archive").oldest
                if oldest > checkpoint + 1:
                    raise _hole(self._log.directory, name, checkpoint + 1, checkpoint)

    def _add_topics(self, schemas: Mapping[str, Schema]) -> ManifestState:
        """The manifest's state once it has these topics. What the log has given up of a new one before is left out.

        Raises FormatMismatch where all versions are to be kept of a topic that is stored without them.
        """
        state = self._manifest.state
        new = {name: schema for name, schema in schemas.items() if name not in state.topics}
        kept = frozenset(self._settings.keep_versions)
        if late := sorted(name for name in kept - new.keys() if not state.topics[name].keep_versions):
            raise FormatMismatch(
                self.directory / "store",
                f"keep_versions of topic {', '.join(map(repr, late))}",
                "all versions",
                "only the newest row of each key",
                "history cannot begin later: leave it out of keep_versions, or store the rows under a new topic name",
            )
        if not new:
            return state
        oldest = {
            name: LogReader(self._log.directory, name, self.directory / "archive").oldest
            for name in new
            if self._log.topic(name).next_sequence > 1  # it was only logged until now
        }
        return self._manifest.commit(
            Edit(
                topics={
                    name: TopicInfo(schema=schema.to_json().decode(), keep_versions=name in kept)
                    for name, schema in new.items()
                },
                checkpoints={name: first - 1 for name, first in oldest.items() if first > 1},
            )
        )

    # --- using ------------------------------------------------------------------------------------------------------

    def __getitem__(self, topic: str) -> Tree:
        """The topic's Tree. KeyError names the topics there are."""
        if topic not in self._trees:
            left = " was not named when this was opened" if topic in self._manifest.state.topics else ""
            raise KeyError(f"{self.directory}: no topic {topic!r}{left}; there are {', '.join(sorted(self._trees))}")
        return self._trees[topic].tree

    def __iter__(self) -> Iterator[str]:
        """The topics' names."""
        return iter(self._trees)

    def snapshot(self) -> None:
        """Write everything that is in memtables to tables, so that a restart need not read the log for it.

        Waits until all of it is committed.
        """
        self._check_open()
        for writer in self._trees.values():
            with writer.tree.lock:
                writer.set_aside()
        self._changed()
        for writer in self._trees.values():
            with writer.flushed:
                while writer.immutables and writer.failure is None and not self._closing.is_set():
                    writer.flushed.wait(1.0)
                if writer.failure is not None:
                    raise writer.failure.with_traceback(None)

    def compact(self, topic: str | None = None) -> None:
        """Merge all of a topic's tables (of all topics, by default) into one level, and return when that is done.

        KeyError names the topics there are.
        """
        names = list(self._trees) if topic is None else [self[topic].schema.name]
        self.snapshot()
        for name in names:
            with self._work:
                self._manual.append(name)
                self._changed()
                while name in self._manual and not self._closing.is_set():
                    self._work.wait(1.0)
            failure = self._trees[name].failure
            if failure is not None:
                raise failure.with_traceback(None)

    def stats(self) -> dict[str, TopicStats]:
        """Each topic's figures."""
        return {
            name: _stats(writer, self._manifest.state.checkpoints.get(name, 0)) for name, writer in self._trees.items()
        }

    def feeding(self, topic: str) -> tuple[TreeCore, Callable[[], None]]:
        """For the journal that has a topic's rows: where they go, and what to call when there is no room."""
        writer = self._trees[topic]
        return writer.tree.core, writer.rotate

    def committed_rose(self) -> None:
        """More is committed than before: flush what has waited for that. Any thread may call; it is cheap where nothing has."""
        if any(self._may_go(name, last) for name, last in tuple(self._waiting.items())):
            self._changed()

    def let_grow(self) -> None:
        """Have nobody wait for a flush any more: memtables become more than they may be. For who must end without one."""
        for writer in self._trees.values():
            writer.stop()

    def close(self) -> None:
        """Stop flushing and compacting, and let the tables go. Does nothing the second time."""
        if not self._closing.is_set():
            self._end()

    def _start(self, name: str, job: Callable[[], None]) -> None:
        thread = threading.Thread(target=job, name=f"ringmain-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _end(self) -> None:
        self._closing.set()
        for writer in self._trees.values():
            writer.stop()
        self._changed()
        for thread in self._threads:
            thread.join()
        self._manifest.close()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ValueError(f"{self.directory}: this store is closed")

    def _may_go(self, topic: str, last: int) -> bool:
        return self._committed is None or last <= self._committed(topic)

    def _is_committed(self, topic: str, last: int) -> bool:
        """Whether a memtable that ends with that sequence may be flushed. If not, `committed_rose` tells when."""
        if not self._may_go(topic, last):
            self._waiting[topic] = last
            if not self._may_go(topic, last):  # looked at again: who raises it from here on finds what is waiting
                return False
        self._waiting.pop(topic, None)
        return True

    def _release_log(self) -> None:
        """Let log files go whose rows are in tables, as far as retention does. Topics that are only logged hold none of them."""
        state = self._manifest.state
        logged = dict.fromkeys((topic.schema.name for topic in self._log.topics), SEQUENCE_MAX)
        self._log.release(logged | dict(state.checkpoints))

    # --- threads ----------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        with self._work:
            self._change_count += 1
            self._work.notify_all()

    def _wait_for_change(self, seen: int, timeout_s: float | None) -> None:
        """Wait until something has changed since `_change_count` was `seen`."""
        with self._work:
            self._work.wait_for(lambda: self._change_count != seen or self._closing.is_set(), timeout_s)

    def _flush_for_ever(self) -> None:
        """Write full memtables to tables, and now and then those that are not full."""
        snapshot_at = _deadline(self._settings.snapshot_interval)
        while not self._closing.is_set():
            seen = self._change_count
            if snapshot_at is not None and time.monotonic() >= snapshot_at:
                snapshot_at = _deadline(self._settings.snapshot_interval)
                for name, writer in self._trees.items():
                    if name not in self._waiting:
                        with writer.tree.lock:
                            writer.set_aside()
            busy = False
            for writer in self._trees.values():
                with self._failing(writer, "flush"):
                    if writer.failure is None and writer.flush():
                        busy = True
                        self._release_log()
            if busy:
                self._changed()  # there may be something to compact
            else:
                self._wait_for_change(seen, _seconds_until(snapshot_at))

    def _compact_for_ever(self) -> None:
        lower_priority()
        while not self._closing.is_set():
            seen, busy = self._change_count, False
            for name, writer in self._trees.items():
                manual = name in self._manual
                droppable = writer.tree.droppable()
                compaction = (
                    pick_all(name, writer.version, self._settings.shape, droppable=droppable)
                    if manual
                    else pick(name, writer.version, self._settings.shape, cursors=writer.cursors, droppable=droppable)
                )
                if compaction is not None and writer.failure is None:
                    with self._failing(writer, "compaction"):
                        writer.compact(compaction, self._rate.take)
                        busy = True
                elif manual:
                    with self._work:
                        self._manual.remove(name)
                        self._work.notify_all()
            if not busy and not self._manual:
                self._wait_for_change(seen, LOOK_S)

    def _touch_for_ever(self) -> None:
        """Have memory ready ahead of the rows."""
        ahead_bytes = max(MEMORY_AHEAD_BYTES_MIN, MEMORY_AHEAD_BYTES // max(1, len(self._trees)))
        while not self._closing.wait(TOUCH_S):
            for writer in self._trees.values():
                writer.touch(ahead_bytes)

    @contextlib.contextmanager
    def _failing(self, writer: TreeWriter, operation: str) -> Generator[None]:
        """What goes wrong here stops the topic's writing, and is raised there."""
        try:
            yield
        except (_Cancelled, ValueError) as error:
            if not self._closing.is_set():
                writer.fail(operation, error)
        except OSError as error:
            failed = TablesFailed(error.filename or self.directory / "store", operation, writer.tree.schema.name, error)
            failed.__cause__ = error
            writer.fail(operation, failed)
        except BaseException as error:
            writer.fail(operation, error)


def _hole(directory: Path, topic: str, sequence: int, checkpoint: int) -> StorageError:
    return StorageError(
        f"{directory}: topic {topic!r}: sequence {sequence} is missing in the log, though the tables hold only up to {checkpoint}"
    )


class _Rate:
    """A budget of bytes a second."""

    def __init__(self, bytes_per_s: int | None, check: Callable[[], None]) -> None:
        self._bytes_per_s, self._check = bytes_per_s, check
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait until `count` bytes more may be written. Raises _Cancelled once the store is closing."""
        try:
            self._check()
        except ValueError:
            raise _Cancelled from None
        if self._bytes_per_s is None:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 0.1) + count / self._bytes_per_s
        if self._free_at > now:
            time.sleep(self._free_at - now)


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _seconds_until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _stats(writer: TreeWriter, checkpoint: int) -> TopicStats:
    version = writer.version
    levels = (version.level0, *version.levels)
    memtables: list[Memtable] = [writer.active, *writer.immutables]
    return TopicStats(
        row_count=sum(len(memtable) for memtable in memtables) + sum(info.row_count for info in version.tables()),
        sequence=writer.tree.core.visible,
        checkpoint=checkpoint,
        memory_bytes=sum(memtable.memory_bytes for memtable in memtables),
        immutable_count=len(writer.immutables),
        tables_by_level=tuple(len(level) for level in levels),
        bytes_by_level=tuple(sum(info.file_bytes for info in level) for level in levels),
        counts=writer.counts,
        failure=writer.failed,
    )
