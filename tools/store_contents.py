"""What a store's directory holds, as facts to print: what manifest and log say. No table is opened, and a writer may be at work."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..bus import NotFound
from ..storage import LogReader, Schema
from ..storage._tree import KeyCodec
from ..storage.log_files import list_files
from ..storage.manifest_reader import MANIFEST_NAME
from ..storage.manifest_state import State
from ..storage.store_reader import StoreReader, follow_manifest
from ..storage.table_files import TableFiles
from ..storage.tree_reader import TreeReader
from ..storage.version import LEVEL_COUNT, TableInfo
from .keys import key_as_text
from .log_contents import writer_of

__all__ = [
    "LevelFacts",
    "StoreFacts",
    "StoreTopicFacts",
    "TableFacts",
    "find_store",
    "is_store",
    "look_at_store",
    "no_store",
    "no_such_topic",
    "open_tree",
    "read_state",
    "schema_of",
    "tables_of",
]

TRIES = 5  # a living writer may take a log file away between the listing and the reading
MEMORY_BYTES_MAX = 64 << 30  # of a topic's rows that are in no table yet; what is needed is taken


class LevelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of one level. Replaced rows and tombstones are rows too."""

    level: int
    table_count: int
    file_bytes: int
    row_count: int
    tombstone_count: int


class StoreTopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One topic. row_count: in memtables and tables, replaced rows and tombstones included.

    memtable_row_count: rows behind the checkpoint, which the writer has in memory, and the log on the disk.
    levels: those that have tables.
    """

    topic: str
    key: tuple[str, ...]  # empty: kept by sequence
    keep_versions: bool
    row_bytes: int
    row_count: int
    sequence: int  # the newest
    checkpoint: int  # the newest that is in tables
    memtable_row_count: int
    memtable_row_bytes: int  # of these rows, without what finding them takes
    table_count: int
    table_bytes: int
    levels: tuple[LevelFacts, ...]


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A whole store. log_bytes, archive_bytes: what their files take on the disk."""

    directory: str
    log_id: str  # hexadecimal
    writer_pid: int | None  # who is writing it now
    log_bytes: int
    log_file_count: int
    archive_bytes: int
    archive_file_count: int
    topics: tuple[StoreTopicFacts, ...]


class TableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One sstable, as the manifest describes it. Keys are given by their values, bytes as text."""

    topic: str
    level: int
    number: int
    path: str
    file_bytes: int
    row_count: int
    tombstone_count: int
    sequence_min: int
    sequence_max: int
    timestamp_min_ns: int
    timestamp_max_ns: int
    key_min: tuple[Any, ...]
    key_max: tuple[Any, ...]


def find_store(path: Path) -> Path:
    """The store's directory that is meant by it, or by the folder `store` in it."""
    return path.parent if (path / MANIFEST_NAME).exists() else path


def is_store(directory: Path) -> bool:
    """Whether this is a store, be it damaged."""
    return (directory / "store").is_dir()


def read_state(directory: Path) -> State:
    """What a store's manifest says now. Raises FileNotFoundError where there is no store, Corruption, FormatMismatch."""
    try:
        with follow_manifest(directory / "store") as follower:
            return follower.state
    except FileNotFoundError:
        raise no_store(directory) from None


def schema_of(state: State, topic: str) -> Schema:
    return Schema.from_json(state.topics[topic].schema.encode())


@contextlib.contextmanager
def open_tree(directory: Path, topic: str) -> Generator[TreeReader]:
    """A topic of a store, as it is now. Raises NotFound with the topics there are, and as StoreReader."""
    try:
        reader = StoreReader(directory, refresh_s=float("inf"), memory_bytes=MEMORY_BYTES_MAX)
    except FileNotFoundError:
        raise no_store(directory) from None
    with reader:
        if topic not in (names := list(reader)):
            raise no_such_topic(directory, topic, names)
        yield reader[topic]


def no_such_topic(directory: Path, topic: str, names: Iterable[str]) -> NotFound:
    """What to say where a topic is asked for that a store has not."""
    return NotFound(f"{directory}: no topic {topic!r} in this store; it has {', '.join(sorted(names)) or 'none'}")


def look_at_store(directory: Path) -> StoreFacts:
    """A store's figures. Raises as `read_state`."""
    state = read_state(directory)
    log = directory / "log"
    log_sizes, archive_sizes = _file_sizes(log), _file_sizes(directory / "archive")
    return StoreFacts(
        directory=str(directory),
        log_id=f"{state.log_id:016x}",
        writer_pid=writer_of(log),
        log_bytes=sum(log_sizes),
        log_file_count=len(log_sizes),
        archive_bytes=sum(archive_sizes),
        archive_file_count=len(archive_sizes),
        topics=tuple(_topic(state, topic, log) for topic in state.topics),
    )


def tables_of(directory: Path, state: State, topic: str) -> list[TableFacts]:
    """A topic's tables: level 0 newest first, then level by level, by key."""
    codec = KeyCodec(schema_of(state, topic))
    files = TableFiles(directory / "store", state.log_id, 0)
    return [
        TableFacts(
            path=str(files.path(info.number)),
            key_min=key_as_text(codec.values(info.key_min)),
            key_max=key_as_text(codec.values(info.key_max)),
            **{name: getattr(info, name) for name in info.__struct_fields__ if not name.startswith("key_")},
        )
        for info in state.versions[topic].tables()
    ]


def _topic(state: State, topic: str, log: Path) -> StoreTopicFacts:
    schema, version, checkpoint = schema_of(state, topic), state.versions[topic], state.checkpoints[topic]
    sequence = max(checkpoint, _newest(log, topic))
    levels = [_level(level, version.level(level)) for level in range(LEVEL_COUNT) if version.level(level)]
    return StoreTopicFacts(
        topic=topic,
        key=schema.key,
        keep_versions=state.topics[topic].keep_versions,
        row_bytes=schema.row_bytes,
        row_count=sum(level.row_count for level in levels) + sequence - checkpoint,
        sequence=sequence,
        checkpoint=checkpoint,
        memtable_row_count=sequence - checkpoint,
        memtable_row_bytes=(sequence - checkpoint) * schema.row_bytes,
        table_count=sum(level.table_count for level in levels),
        table_bytes=sum(level.file_bytes for level in levels),
        levels=tuple(levels),
    )


def _level(level: int, tables: Sequence[TableInfo]) -> LevelFacts:
    return LevelFacts(
        level=level,
        table_count=len(tables),
        file_bytes=sum(info.file_bytes for info in tables),
        row_count=sum(info.row_count for info in tables),
        tombstone_count=sum(info.tombstone_count for info in tables),
    )


def _newest(log: Path, topic: str) -> int:
    """The newest sequence of a topic in the log."""
    for attempt in range(TRIES):
        try:
            return LogReader(log, topic).newest
        except FileNotFoundError:
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def _file_sizes(directory: Path) -> list[int]:
    """What log files take on the disk: they end in room that was given back, or is not used yet."""
    sizes: list[int] = []
    for _, path in list_files(directory) if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_blocks * 512)
    return sizes


def no_store(directory: Path) -> FileNotFoundError:
    """What to say where there is no store, and what there is instead."""
    also = f", only a log: see `ringmain log dump {directory}`" if (directory / "log").is_dir() else ""
    return FileNotFoundError(2, f"holds no store{also}", str(directory))
