"""A store, read while another process writes, flushes and compacts it, or after that has died.

1. Nothing is written to the directory, and no lock is taken that a writer waits for.
2. A topic is opened when it is first asked for, and costs nothing before.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from .errors import Corruption, FormatMismatch
from .manifest_reader import MANIFEST_NAME, ManifestFollower
from .schema import Schema
from .table_files import TableFiles
from .tree_reader import ReaderSettings, Refreshed, TreeReader

__all__ = ["Refreshed", "StoreReader", "follow_manifest"]

REFRESH_S = 0.01
MEMTABLE_BYTES = 16 << 20
MEMORY_BYTES = 1 << 30


class StoreReader:
    """A store's directory, for reading: `store["trades"].get(key)`, `.get_many`, `.scan(…)`, `.history(key)`, `.at()`.

    directory: a Store's. refresh_s: how old what is read may be; 0 looks at the directory in every call, inf only in `refresh`.
    memtable_bytes, memory_bytes: what the memtables of one topic take at least, and at most; they hold what the writer has in
    memory as well.
    Any thread may read. Raises FileNotFoundError where there is no store, Corruption, FormatMismatch.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        refresh_s: float = REFRESH_S,
        memtable_bytes: int = MEMTABLE_BYTES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if not refresh_s >= 0:
            raise ValueError(f"refresh_s: 0 or more is expected, got {refresh_s}")
        self.directory = Path(directory).absolute()
        self._settings = ReaderSettings(refresh_s, memtable_bytes, memory_bytes)
        self._follower = follow_manifest(self.directory / "store")
        self._files = TableFiles(self.directory / "store", self._follower.state.log_id, 0)
        self._lock = threading.RLock()
        self._trees: dict[str, TreeReader] = {}
        self._looked_at = time.monotonic()
        self._closed = False

    def __getitem__(self, topic: str) -> TreeReader:
        """The topic's tree, up to date. KeyError names the topics there are."""
        tree = self._trees.get(topic)
        if tree is not None:
            return tree
        with self._lock:
            if topic not in self._follower.state.topics:
                self._look_for_topics()
            info = self._follower.state.topics.get(topic)
            if info is None:
                raise KeyError(
                    f"{self.directory}: no topic {topic!r}; it has {', '.join(sorted(self._follower.state.topics))}"
                )
            if topic not in self._trees:
                self._check_open()
                self._trees[topic] = TreeReader(
                    Schema.from_json(info.schema.encode()),
                    keeps_versions=info.keep_versions,
                    log_directory=self.directory / "log",
                    files=self._files,
                    follower=self._follower,
                    lock=self._lock,
                    settings=self._settings,
                )
            return self._trees[topic]

    def __iter__(self) -> Iterator[str]:
        """The topics' names."""
        with self._lock:
            self._check_open()
            if time.monotonic() - self._looked_at > self._settings.refresh_s:
                self._look_for_topics()
            return iter(tuple(self._follower.state.topics))

    def check(self, schemas: Iterable[Schema]) -> None:
        """Raises FormatMismatch where a topic is stored with another schema than one of these. Topics not stored yet pass."""
        topics = self._follower.state.topics
        for schema in schemas:
            info = topics.get(schema.name)
            stored = schema if info is None else Schema.from_json(info.schema.encode())
            if stored.hash != schema.hash:
                raise FormatMismatch(
                    self.directory,
                    f"schema of topic {schema.name!r}",
                    "the stored one",
                    "another",
                    f"{stored.describe_difference(schema)}; give the schema that it was stored with, or none",
                )

    def refresh(self) -> Refreshed:
        """Take in what the writer has done since the last time in the topics that are open, and say how much that was.

        Reading does this by itself, a topic at a time, when the last time is longer than `refresh_s` ago.
        """
        with self._lock:
            self._look_for_topics()
            return sum((tree.refresh() for tree in self._trees.values()), Refreshed())

    def close(self) -> None:
        """Let go of the directory. Views, and rows that were handed out, stay valid. Does nothing the second time."""
        with self._lock:
            self._closed = True
            for tree in self._trees.values():
                tree.close()
            self._follower.close()

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look_for_topics(self) -> None:
        self._check_open()
        self._looked_at = time.monotonic()
        self._follower.refresh()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.directory}: this store is closed")


def follow_manifest(directory: Path) -> ManifestFollower:
    """The manifest in a store's folder. Raises FileNotFoundError where there is none, Corruption where it was lost."""
    try:
        return ManifestFollower(directory)
    except FileNotFoundError:
        table = next(directory.glob("*.sst"), None) if directory.is_dir() else None
        if table is not None:
            raise Corruption(
                directory / MANIFEST_NAME, 0, f"a manifest, as there are tables such as {table.name}", "no file"
            ) from None
        raise FileNotFoundError(2, "holds no store", str(directory.parent)) from None
