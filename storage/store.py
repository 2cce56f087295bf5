"""The store: topics of rows kept by key, durable in a log, ordered in memtables and sstables.

1. A row is in the log before it is in a memtable: once `put` returns it survives a kill. `sync` says when it survives a power cut.
2. One process writes (it holds the log's lock); any number read the directory through `Store.open(…, read_only=True)`. To a child
   that the writing process forks its store is closed, but for reading what was in it then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from .engine import (
    BLOCK_BYTES,
    COMPACTION_BYTES_PER_S,
    MEMTABLE_BYTES,
    SNAPSHOT_S,
    Engine,
    StoreSettings,
)
from .errors import LogFailed
from .levels import Shape
from .log import LOG_FILE_BYTES, Log, Recovered
from .manifest import read_manifest
from .schema import Schema
from .store_reader import StoreReader
from .tree_writer import RETRY_S

__all__ = ["Store"]

ARCHIVE_BYTES = 16 << 30
IDLE_SYNC_S_MAX = 0.05


class Store(Engine):
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
    the archive keeps. Older files go, and so do files beyond archive_bytes, whichever comes first. Both None: everything, for ever.
    False is refused while DIR/archive has files, since a hole would come behind them: move it away, or end it by archive_bytes=0.

    Raises LogLocked, Corruption, FormatMismatch, StorageError, OSError.
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
        given = {schema.name: schema for schema in schemas}
        settings = StoreSettings(
            keep_versions=tuple(keep_versions),
            memtable_bytes=memtable_bytes,
            immutable_max=immutable_max,
            block_bytes=block_bytes,
            compression=compression,
            shape=shape,
            snapshot_interval=snapshot_interval,
            compaction_bytes_per_s=compaction_bytes_per_s,
        )
        codecs = settings.codecs(given)
        directory = Path(directory).absolute()
        log = Log(
            directory / "log",
            given.values(),
            sync_files=sync != "never",
            file_bytes=log_file_bytes,
            retention_bytes=0,
            archive=directory / "archive" if archive else None,
            archive_bytes=archive_bytes,
            archive_age_s=archive_age,
            checkpoints={},
            map_small_groups=True,
            progress=progress,
        )
        with contextlib.ExitStack() as failing:
            failing.callback(log.close, finish=False)
            super().__init__(directory, log, given, codecs, settings)
            failing.callback(super().close)
            self._open_log(log, sync)
            self._start("keeper", self._keep)
            if sync == "interval":
                self._start("sync", lambda: self._sync_for_ever(sync_interval))
            failing.pop_all()
        _OPEN.add(self)

    def _open_log(self, log: Log, sync: str) -> None:
        numbers = {topic.schema.name: topic.number for topic in log.topics}
        for name, writer in self._trees.items():
            writer.tree.core.open_log(
                log.appender,
                numbers[name],
                log.topic(name).next_sequence,
                log.topic(name).last_timestamp_ns,
                writer.rotate,
                log.appender.sync_behind if sync == "always" else None,
            )

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

    def sync(self) -> None:
        """Return once everything put so far is on the disk. Raises LogFailed."""
        self._check_open()
        self._log.appender.sync_behind()

    def close(self) -> None:
        """Stop flushing and compacting, sync the log, and let go of the directory. Does nothing the second time.

        What is in memtables stays in the log; call `snapshot` before to make the next start quicker.
        """
        if self._closing.is_set():
            return
        super().close()
        self._log.close()

    def _end(self) -> None:
        for writer in self._trees.values():
            while not writer.tree.core.close_log():  # who is writing to the log may need the threads
                time.sleep(RETRY_S)
        self._closing.set()
        os.eventfd_write(self._log.appender.wants_spare_fd, 1)  # the keeper sleeps on it
        super()._end()

    def _leave(self) -> None:
        """In a forked child: it is the parent's store. What it had in memory can be read here, nothing can be put."""
        self._closing = threading.Event()  # a thread that is not here may have held the parent's
        self._closing.set()
        for writer in self._trees.values():
            writer.tree.lock = threading.RLock()
            writer.tree.core.close_log()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _release_log(self) -> None:
        """As the engine's, but a topic that only the log knows keeps its rows there: a restore brings it from behind a backup."""
        self._log.release(self._manifest.state.checkpoints)

    # --- threads ----------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Keep the log's files coming."""
        while not self._closing.is_set():
            try:
                self._log.keep(0.25)
            except OSError as error:
                self._log.appender.refuse_spare(error.errno or errno.EIO)
            except BaseException:  # nobody will make files any more: who puts must not wait for one
                self._log.appender.refuse_spare(errno.EIO)
                raise

    def _sync_for_ever(self, interval: float) -> None:
        appender, idle_s = self._log.appender, interval
        while not self._closing.wait(idle_s):
            if appender.position == appender.durable_position:
                idle_s = min(2 * idle_s, max(interval, IDLE_SYNC_S_MAX))
                continue
            idle_s = interval
            with contextlib.suppress(LogFailed):  # the next put raises it
                appender.sync_behind()


_OPEN: weakref.WeakSet[Store] = weakref.WeakSet()


def _leave_stores() -> None:
    for store in _OPEN:
        store._leave()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_leave_stores)
