"""The store: topics of rows kept by key, durable in a log, ordered in memtables and sstables.

1. A row is in the log before it is in a memtable: once `put` returns it survives a kill. `sync` says when it survives a power cut.
2. One process writes (it holds the log's lock); any number read the directory through `Store.open(…, read_only=True)`.
3. Flushing and compacting happen in two threads of their own. When one fails, reading goes on, and writing says why it stopped.
   A third has memory ready for the rows to come.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from ._tree import KeyCodec, MemoryPool, Memtable, State
from .errors import LogFailed, StorageError
from .files import lower_priority, make_directory, sync_directory
from .levels import Shape, pick, pick_all
from .log import LOG_FILE_BYTES, Log, Recovered
from .log_reader import HistoryGone, LogReader
from .manifest import Edit, Manifest, TopicInfo, read_manifest
from .schema import Schema
from .store_reader import StoreReader
from .table_files import TableFiles, compressor
from .tree import Tree
from .tree_writer import TreeWriter, WriteCounts

__all__ = ["Store", "TopicStats"]

MEMTABLE_BYTES = 128 << 20
MEMORY_AHEAD_BYTES = 128 << 20  # ready for rows to come, of all topics together
MEMORY_AHEAD_BYTES_MIN = 4 << 20  # of one
TOUCH_S = 0.05
BLOCK_BYTES = 4096
SNAPSHOT_S = 1800.0
COMPACTION_BYTES_PER_S = 256 << 20
ARCHIVE_BYTES = 16 << 30
IDLE_SYNC_S_MAX = 0.05
REPLAY_ROWS = 65_536


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


class _Cancelled(Exception):
    """The store is closing; a compaction gives up."""


class Store:
    """A directory of topics, each a Tree: `store["trades"].put(…)`, `.get(key)`, `.scan(…)`. Use it in a `with` statement.

    directory: made if missing. schemas: the topics; the key of a schema is what its rows are kept by (without one: their sequence).
    A topic that the directory has and that is not among them is left alone: its tables stay, and so does the log from its first
    row on that is in none. New topics may be named at any time.
    sync: "interval" (at most every sync_interval seconds), "always" (each put and batch), "never".
    keep_versions: topics of which all versions are kept, not only the newest; fixed when the topic is first stored.
    memtable_bytes: memory of one memtable; up to immutable_max full ones of a topic wait for the flush, then putting waits.
    compression: of tables below level 0: "none", "zstd" or "lz4". shape: levels and their sizes.
    snapshot_interval: seconds until what lies in memtables is written to tables even if they are not full; None: only when full.
    compaction_bytes_per_s: how fast compactions may write; None: as fast as they can.
    archive: move log files whose rows are all in tables to DIR/archive, from where history by sequence and time is read on
    (LogReader); False: use them again, and what is in no table any more is gone. archive_bytes, archive_age (seconds): how much
    the archive keeps at least; what neither of them keeps goes, oldest first. Both None: everything, for ever.

    Raises LogLocked, Corruption, FormatMismatch, OSError.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        schemas: Iterable[Schema],
        *,
        sync: Literal["interval", "always", "never"] = "interval",
        sync_interval: float = 0.001,
        keep_versions: Iterable[str] = (),
        memtable_bytes: int = MEMTABLE_BYTES,
        immutable_max: int = 2,
        block_bytes: int = BLOCK_BYTES,
        compression: Literal["none", "zstd", "lz4"] = "none",
        shape: Shape = Shape(),  # noqa: B008  frozen
        snapshot_interval: float | None = SNAPSHOT_S,
        compaction_bytes_per_s: int | None = COMPACTION_BYTES_PER_S,
        log_file_bytes: int = LOG_FILE_BYTES,
        archive: bool = True,
        archive_bytes: int | None = ARCHIVE_BYTES,
        archive_age: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if sync not in ("interval", "always", "never"):
            raise ValueError(f'sync: "interval", "always" or "never" is expected, got {sync!r}')
        compressor(compression)
        self.directory = Path(directory).absolute()
        given = {schema.name: schema for schema in schemas}
        codecs = {name: KeyCodec(schema) for name, schema in given.items()}  # before anything is made
        kept = frozenset(keep_versions)
        if unknown := sorted(kept - given.keys()):
            raise ValueError(f"keep_versions: not among the schemas: {', '.join(unknown)}")
        self._shape, self._snapshot_s = shape, snapshot_interval
        self._memtable_bytes, self._immutable_max, self._compression = memtable_bytes, immutable_max, compression
        self._rate = _Rate(compaction_bytes_per_s, self._check_open)
        self._closing = threading.Event()
        self._work = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._manual: list[str] = []
        make_directory(self.directory / "store")
        self._log = Log(
            self.directory / "log",
            given.values(),
            sync_files=sync != "never",
            file_bytes=log_file_bytes,
            retention_bytes=0,
            archive=self.directory / "archive" if archive else None,
            archive_bytes=archive_bytes,
            archive_age_s=archive_age,
            checkpoints={},
            map_small_groups=True,
            progress=progress,
        )
        try:
            self._open(given, codecs, kept, block_bytes)
            self._log.release(self._manifest.state.checkpoints)
            for name in given:
                self._trees[name].tree.core.open_log(
                    self._log.appender,
                    [topic.schema.name for topic in self._log.topics].index(name),
                    self._log.topic(name).next_sequence,
                    self._log.topic(name).last_timestamp_ns,
                    self._trees[name].rotate,
                    self._log.appender.sync_behind if sync == "always" else None,
                )
            self._start(sync_interval if sync == "interval" else None)
        except BaseException:
            self._log.close(finish=False)
            raise

    @overload
    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        schemas: Iterable[Schema] | None = None,
        *,
        read_only: Literal[False] = False,
        **settings: Any,
    ) -> Store: ...

    @overload
    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        schemas: Iterable[Schema] | None = None,
        *,
        read_only: Literal[True],
        **settings: Any,
    ) -> StoreReader: ...

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        schemas: Iterable[Schema] | None = None,
        *,
        read_only: bool = False,
        **settings: Any,
    ) -> Store | StoreReader:
        """Open a store to write it, or only to read it while another process may be writing.

        schemas: None takes the topics that it has. Whoever only reads has all topics that there are, also later ones; what he
        names must be as it was stored, if it was. settings: of Store, or of StoreReader.
        Raises as they do; FileNotFoundError where there is no store and it should say which topics it has.
        """
        if read_only:
            reader = StoreReader(directory, **settings)
            try:
                reader.check(schemas or ())
            except BaseException:
                reader.close()
                raise
            return reader
        if schemas is None:
            topics = read_manifest(Path(directory) / "store").topics.values()
            schemas = [Schema.from_json(topic.schema.encode()) for topic in topics]
        return cls(directory, schemas, **settings)

    @property
    def recovered(self) -> Recovered:
        """What opening found in the log."""
        return self._log.recovered

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(
        self, given: Mapping[str, Schema], codecs: Mapping[str, KeyCodec], kept: frozenset[str], block_bytes: int
    ) -> None:
        directory = self.directory / "store"
        self._manifest = Manifest(directory, self._log.log_id)
        new = {
            name: TopicInfo(schema=schema.to_json().decode(), keep_versions=name in kept)
            for name, schema in given.items()
            if name not in self._manifest.state.topics
        }
        state = self._manifest.commit(Edit(topics=new)) if new else self._manifest.state
        self._files = TableFiles(directory, self._log.log_id, block_bytes)
        known = frozenset(info.number for version in state.versions.values() for info in version.tables())
        for path in self._files.strays(known):
            path.unlink()
        sync_directory(directory)
        self._numbers = itertools.count(state.next_number)
        memory = MemoryPool(max(MEMORY_AHEAD_BYTES, self._memtable_bytes))
        self._trees: dict[str, TreeWriter] = {}
        for name, schema in given.items():
            empty = State(codecs[name], (), (), ())
            tree = Tree(schema, codecs[name], empty, keeps_versions=state.topics[name].keep_versions)
            tree.dropped_through = state.checkpoints.get(name, 0)
            writer = TreeWriter(
                tree,
                state.versions[name],
                self._files,
                self._manifest,
                memory,
                shape=self._shape,
                memtable_bytes=self._memtable_bytes,
                immutable_max=self._immutable_max,
                compression=self._compression,
                next_number=lambda: next(self._numbers),
                changed=self._changed,
            )
            self._trees[name] = writer
            self._replay(writer, state.checkpoints.get(name, 0))

    def _replay(self, writer: TreeWriter, checkpoint: int) -> None:
        """Put back into memtables what the log holds behind the checkpoint."""
        last = self._log.topic(writer.tree.schema.name).next_sequence - 1
        if last <= checkpoint:
            return
        reader = LogReader(self._log.directory, writer.tree.schema.name)
        position = checkpoint
        while position < last:
            try:
                found = reader.read_all(position + 1, last, REPLAY_ROWS)
            except HistoryGone as gone:
                raise StorageError(
                    f"{gone.directory}: topic {gone.topic!r}: sequence {gone.wanted} is missing in the log, though the tables hold "
                    f"only up to {checkpoint}"
                ) from None
            if found is None:  # a repair gave up the rest
                return
            rows, tombstones = found
            position = int(rows["sequence"][-1])
            while len(rows):
                fits = min(len(rows), writer.active.room)
                writer.active.insert(rows[:fits], tombstones)
                rows = rows[fits:]
                if len(rows):
                    with writer.tree.lock:
                        writer.set_aside()

    def _start(self, sync_interval: float | None) -> None:
        jobs: list[tuple[str, Callable[[], None]]] = [
            ("flush", self._flush_for_ever),
            ("compaction", self._compact_for_ever),
            ("keeper", self._keep),
            ("memory", self._touch_for_ever),
        ]
        if sync_interval is not None:
            jobs.append(("sync", lambda: self._sync_for_ever(sync_interval)))
        for name, job in jobs:
            self._threads.append(threading.Thread(target=job, name=f"ringmain-{name}", daemon=True))
        for thread in self._threads:
            thread.start()

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

    def sync(self) -> None:
        """Return once everything put so far is on the disk. Raises LogFailed."""
        self._check_open()
        self._log.appender.sync_behind()

    def snapshot(self) -> None:
        """Write everything that is in memtables to tables, so that a restart need not read the log for it."""
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
                    raise writer.failure

    def compact(self, topic: str | None = None) -> None:
        """Merge all of a topic's tables (of all topics, by default) into one level, and return when that is done."""
        self.snapshot()
        for name in [topic] if topic is not None else list(self._trees):
            with self._work:
                self._manual.append(name)
                self._work.notify_all()
                while name in self._manual and not self._closing.is_set():
                    self._work.wait(1.0)
            failure = self._trees[name].failure
            if failure is not None:
                raise failure

    def stats(self) -> dict[str, TopicStats]:
        """Each topic's figures."""
        return {
            name: _stats(writer, self._manifest.state.checkpoints.get(name, 0)) for name, writer in self._trees.items()
        }

    def close(self) -> None:
        """Stop flushing and compacting, sync the log, and let go of the directory. Does nothing the second time.

        What is in memtables stays in the log; call `snapshot` before to make the next start quicker.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        for writer in self._trees.values():
            writer.tree.core.close_log()
            writer.stop()
        self._changed()
        os.eventfd_write(self._log.appender.wants_spare_fd, 1)  # the keeper sleeps on it
        for thread in self._threads:
            thread.join()
        self._manifest.close()
        self._log.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ValueError(f"{self.directory}: this store is closed")

    # --- threads ----------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        with self._work:
            self._work.notify_all()

    def _flush_for_ever(self) -> None:
        """Write full memtables to tables, and now and then those that are not full."""
        snapshot_at = _deadline(self._snapshot_s)
        while not self._closing.is_set():
            if time.monotonic() >= snapshot_at:
                snapshot_at = _deadline(self._snapshot_s)
                for writer in self._trees.values():
                    with writer.tree.lock:
                        writer.set_aside()
            busy = False
            for writer in self._trees.values():
                with self._failing(writer):
                    if writer.failure is None and writer.flush():
                        busy = True
                        self._log.release(self._manifest.state.checkpoints)
            with self._work:
                self._work.notify_all()
                if not busy and not self._closing.is_set():
                    self._work.wait(min(1.0, max(0.0, snapshot_at - time.monotonic())))

    def _compact_for_ever(self) -> None:
        lower_priority()
        while not self._closing.is_set():
            busy = False
            for name, writer in self._trees.items():
                manual = name in self._manual
                droppable = writer.tree.droppable()
                compaction = (
                    pick_all(name, writer.version, self._shape, droppable=droppable)
                    if manual
                    else pick(name, writer.version, self._shape, cursors=writer.cursors, droppable=droppable)
                )
                if compaction is not None and writer.failure is None:
                    with self._failing(writer):
                        writer.compact(compaction, self._rate.take)
                        busy = True
                elif manual:
                    with self._work:
                        self._manual.remove(name)
                        self._work.notify_all()
            with self._work:
                if not busy and not self._manual and not self._closing.is_set():
                    self._work.wait(1.0)

    def _keep(self) -> None:
        """Keep the log's files coming."""
        while not self._closing.is_set():
            try:
                self._log.keep(0.25)
            except OSError as error:
                self._log.appender.refuse_spare(error.errno or 5)

    def _touch_for_ever(self) -> None:
        """Have memory ready ahead of the rows."""
        ahead_bytes = max(MEMORY_AHEAD_BYTES_MIN, MEMORY_AHEAD_BYTES // max(1, len(self._trees)))
        while not self._closing.wait(TOUCH_S):
            for writer in self._trees.values():
                writer.touch(ahead_bytes)

    def _sync_for_ever(self, interval: float) -> None:
        appender, idle_s = self._log.appender, interval
        while not self._closing.wait(idle_s):
            if appender.position == appender.durable_position:
                idle_s = min(2 * idle_s, max(interval, IDLE_SYNC_S_MAX))
                continue
            idle_s = interval
            with contextlib.suppress(LogFailed):  # the next put raises it
                appender.sync_behind()

    @contextlib.contextmanager
    def _failing(self, writer: TreeWriter) -> Generator[None]:
        """What goes wrong here stops the topic's writing, and is raised there."""
        try:
            yield
        except (_Cancelled, ValueError) as error:
            if not self._closing.is_set():
                writer.stop(error)
        except BaseException as error:
            writer.stop(error)


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


def _deadline(seconds: float | None) -> float:
    return time.monotonic() + seconds if seconds is not None else float("inf")


def _stats(writer: TreeWriter, checkpoint: int) -> TopicStats:
    version = writer.version
    levels = (version.level0, *version.levels)
    memtables: list[Memtable] = [writer.active, *writer.immutables]
    return TopicStats(
        row_count=sum(len(memtable) for memtable in memtables) + sum(info.row_count for info in version.tables()),
        sequence=writer.tree.core.next_sequence - 1,
        checkpoint=checkpoint,
        memory_bytes=sum(memtable.memory_bytes for memtable in memtables),
        immutable_count=len(writer.immutables),
        tables_by_level=tuple(len(level) for level in levels),
        bytes_by_level=tuple(sum(info.file_bytes for info in level) for level in levels),
        counts=writer.counts,
    )
