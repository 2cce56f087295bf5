"""Proving a whole store: manifest, tables, log and archive, each on its own and against each other. Nothing is changed.

1. A living writer may go on meanwhile: what it removes after the manifest was read is no finding, and a table that it is
   just writing is a stray.
2. Damage in one file hides none in another. Without a sound manifest each table is proven by what it says of itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ._tree import KeyCodec, table_schema_json
from .errors import Corruption, FormatMismatch, SchemaError, StorageError
from .log_files import list_files
from .manifest_reader import MANIFEST_NAME
from .manifest_state import State
from .parallel import side_by_side
from .recovery import Contents, examine
from .repair import LOST_AND_FOUND
from .schema import Schema
from .store_reader import follow_manifest
from .table_files import TableFiles, open_table
from .version import TableInfo

__all__ = ["Finding", "Verified", "VerifiedTopic", "prove_store", "verify_store"]

TRIES = 10  # a living writer may take a log file away between the listing and the reading


@dataclass(frozen=True, slots=True)
class Finding:
    """A place that is not as it must be. offset: bytes from the file's beginning; None where the whole file is at fault."""

    path: Path
    offset: int | None
    expected: str
    found: str

    def __str__(self) -> str:
        place = "" if self.offset is None else f", byte {self.offset}"
        return f"{self.path}{place}: expected {self.expected}, found {self.found}"

    @classmethod
    def of(cls, error: StorageError, path: Path) -> Finding:
        """An error's place and its two sides. path: of the file where the error names none."""
        if isinstance(error, Corruption):
            return cls(Path(error.path), error.offset, str(error.expected), str(error.found))
        if isinstance(error, FormatMismatch):
            return cls(Path(error.path), None, f"{error.what} {error.expected}", str(error.found))
        return cls(path, None, "what can be read", str(error))


@dataclass(frozen=True, slots=True)
class VerifiedTopic:
    """A topic of the store. row_count, table_bytes: of its tables, replaced rows and tombstones included."""

    topic: str
    table_count: int
    row_count: int
    table_bytes: int
    checkpoint: int  # the newest sequence that is in tables
    newest: int  # the newest sequence that is in the log


@dataclass(frozen=True, slots=True)
class Verified:
    """What a look at the whole store found. `str()` of it is for people.

    strays: files that nothing refers to; a killed writer left them, or a living one is writing them. No damage.
    torn_bytes: at the ends of manifest and log, begun and never finished. No damage; the next writer cuts them off.
    lost_count: records that an earlier repair of the log gave up. record_count: rows in log and archive.
    """

    directory: Path
    topics: tuple[VerifiedTopic, ...]
    findings: tuple[Finding, ...]
    strays: tuple[Path, ...]
    torn_bytes: int
    lost_count: int
    file_count: int
    row_count: int
    record_count: int
    checked_bytes: int
    seconds: float

    @property
    def is_sound(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        lines = [
            f"{self.directory}: {'sound' if self.is_sound else f'{len(self.findings)} places are damaged'}; checked "
            f"{self.file_count} files, {self.row_count} rows in tables, {self.record_count} in the log, {self.checked_bytes} bytes "
            f"in {self.seconds:.2f} s"
        ]
        lines += [f"  DAMAGED {finding}" for finding in self.findings]
        lines += [
            f"  {path}: belongs to nothing; the next writer removes what a killed one left" for path in self.strays
        ]
        if self.torn_bytes:
            lines.append(f"  the last {self.torn_bytes} bytes were never finished; the next writer cuts them off")
        if self.lost_count:
            lines.append(f"  {self.lost_count} records were given up by an earlier repair")
        return "\n".join(lines)


def verify_store(directory: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Read all of a store, and prove every checksum, order and count in it, and that its files belong together.

    directory: a Store's. progress: called with (bytes looked at, bytes in all). Takes no lock.
    Raises FileNotFoundError where there is no store, FormatMismatch for a log or manifest of another version, OSError.
    """
    return _Check(Path(directory).absolute(), progress).run()


def prove_store(
    directory: Path, progress: Callable[[int, int], None] | None, read: Callable[[Path], None]
) -> tuple[tuple[Finding, ...], Contents | None]:
    """As `verify_store`: what it finds, and the log with its archive, None where there is no log.

    read: called with each table, and each log file but the last, once it was read and is mapped no more; by several threads.
    """
    check = _Check(directory, progress, read)
    return check.run().findings, check.contents


@dataclass(slots=True)
class _Check:
    directory: Path
    progress: Callable[[int, int], None] | None
    read: Callable[[Path], None] = lambda _path: None
    contents: Contents | None = None
    findings: list[Finding] = field(default_factory=list[Finding])
    file_count: int = 0
    row_count: int = 0
    done_bytes: int = 0  # of all but the log
    log_bytes: int = 0
    total_bytes: int = 0
    torn_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # around the counts

    def run(self) -> Verified:
        started = time.monotonic()
        store = self.directory / "store"
        self.total_bytes = sum(_size_bytes(path) for path in self._all_files())
        after = before = self._manifest(store)
        with ThreadPoolExecutor(1, "ringmain-verify") as pool:
            reading = pool.submit(self._read_log)  # beside the tables
            if before is None:
                for path in sorted(store.glob("*.sst")):
                    self._lone_table(path)
            else:
                tables = [table for version in before.versions.values() for table in version.tables()]
                self._tables(store, before, tables)
            contents = self.contents = reading.result()
        self._log(contents)
        if before is not None:
            after = self._manifest(store, again=True) or before
            if contents is not None:
                self._continuity(before, after, contents)
        return Verified(
            directory=self.directory,
            topics=tuple(_topics(before, contents)),
            findings=tuple(self.findings),
            strays=tuple(_strays(store, before, after)),
            torn_bytes=self.torn_bytes + (contents.torn_bytes if contents is not None else 0),
            lost_count=contents.lost_count if contents is not None else 0,
            file_count=self.file_count,
            row_count=self.row_count,
            record_count=contents.record_count if contents is not None else 0,
            checked_bytes=self.done_bytes + self.log_bytes,
            seconds=time.monotonic() - started,
        )

    def _all_files(self) -> Iterator[Path]:
        yield self.directory / "store" / MANIFEST_NAME
        yield from (self.directory / "store").glob("*.sst")
        for part in ("log", "archive"):
            if (self.directory / part).is_dir():
                yield from (path for _, path in list_files(self.directory / part))

    def _add(self, error: StorageError, path: Path) -> None:
        self.findings.append(Finding.of(error, path))

    def _done(self, size_bytes: int, row_count: int = 0) -> None:
        with self.lock:
            self.file_count += 1
            self.row_count += row_count
            self.done_bytes += size_bytes
            self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(min(self.done_bytes + self.log_bytes, self.total_bytes), self.total_bytes)

    # --- manifest and tables ----------------------------------------------------------------------------------------

    def _manifest(self, store: Path, *, again: bool = False) -> State | None:
        """What the manifest says, or None where it is damaged."""
        path = store / MANIFEST_NAME
        try:
            with follow_manifest(store) as follower:
                if not again:
                    self.torn_bytes = follower.torn_bytes
                    self._done(_size_bytes(path))
                return follower.state
        except Corruption as damage:
            self._add(damage, path)
            return None

    def _tables(self, store: Path, state: State, tables: list[TableInfo]) -> None:
        files = TableFiles(store, state.log_id, 0)
        schemas: dict[str, Schema] = {}
        for topic, about in state.topics.items():
            try:
                schemas[topic] = Schema.from_json(about.schema.encode())
            except SchemaError as error:
                self._add(error, store / MANIFEST_NAME)
        codecs = {topic: KeyCodec(schema) for topic, schema in schemas.items()}
        known, before = [info for info in tables if info.topic in schemas], len(self.findings)
        side_by_side(
            lambda info: self._listed_table(files, state, info, schemas[info.topic], codecs[info.topic]), known
        )
        self.findings[before:] = sorted(self.findings[before:], key=lambda found: (found.path, found.offset or 0))

    def _listed_table(self, files: TableFiles, state: State, info: TableInfo, schema: Schema, codec: KeyCodec) -> None:
        path, checkpoint = files.path(info.number), state.checkpoints[info.topic]
        try:
            self._table(files, info, schema, codec)
        except FileNotFoundError:
            now = self._manifest(files.directory, again=True)
            if now is None or any(table.number == info.number for table in now.versions[info.topic].tables()):
                self._add(Corruption(path, 0, "a table that the manifest names", "no file"), path)
        except StorageError as error:
            self._add(error, path)
            self._done(_size_bytes(path))
        else:
            self.read(path)
        if info.sequence_max > checkpoint:
            self._add(Corruption(path, 0, f"sequences up to the checkpoint, {checkpoint}", info.sequence_max), path)

    def _table(self, files: TableFiles, info: TableInfo, schema: Schema, codec: KeyCodec) -> None:
        table = files.open(info, schema, codec)
        errors = table.problems()
        if not errors and table.tombstone_count != info.tombstone_count:
            errors.append(
                Corruption(
                    table.path,
                    table.file_bytes - 4096 + 40,
                    f"{info.tombstone_count} tombstones",
                    table.tombstone_count,
                )
            )
        if not errors and Schema.from_json(table.schema_json()).hash != schema.hash:
            errors.append(Corruption(table.path, 24, "the schema whose hash the header has", "another"))
        for error in errors:
            self._add(error, table.path)
        self._done(table.file_bytes, table.row_count)

    def _lone_table(self, path: Path) -> None:
        """A table of which no manifest tells."""
        row_count = 0
        try:
            schema = Schema.from_json(table_schema_json(path))
            table = open_table(path, schema, KeyCodec(schema))
            for error in table.problems():
                self._add(error, path)
            row_count = table.row_count
        except FileNotFoundError:
            return
        except StorageError as error:
            self._add(error, path)
        self._done(_size_bytes(path), row_count)

    # --- log and archive --------------------------------------------------------------------------------------------

    def _read_log(self) -> Contents | None:
        """The log with its archive, or None where there is no log."""
        log, archive = self.directory / "log", self.directory / "archive"
        for attempt in range(TRIES):
            try:
                return examine(log, self._log_read, archive, self.read)
            except FileNotFoundError:
                if log.is_dir() and attempt == TRIES - 1:
                    raise
                if not log.is_dir():
                    return None
        raise AssertionError

    def _log_read(self, done_bytes: int, _total_bytes: int) -> None:
        with self.lock:
            self.log_bytes = done_bytes
            self._tell()

    def _log(self, contents: Contents | None) -> None:
        log = self.directory / "log"
        if contents is None:
            self._add(Corruption(log, 0, "the folder of the log", "nothing"), log)
            return
        for problem in contents.problems:
            self._add(problem, log)
        self.log_bytes = contents.checked_bytes
        self.file_count += len(contents.files)

    def _continuity(self, before: State, after: State, contents: Contents) -> None:
        """Whether log and archive go on where the tables end. before, after: the manifest before and after they were read."""
        log = self.directory / "log"
        if contents.problems:  # what is missing may be where the damage is
            return
        if not contents.files or contents.files[-1].path.parent != log:
            self._add(Corruption(log, 0, "log files", "none"), log)
            return
        first, last = contents.files[0], contents.files[-1]
        if contents.log_id != before.log_id:
            self._add(Corruption(last.path, 16, f"log {before.log_id:#x}", f"log {contents.log_id:#x}"), last.path)
            return
        for topic, about in before.topics.items():
            known = contents.topics.get(topic)
            if known is None:
                self._add(
                    Corruption(last.path, last.header.start_bytes, f"topic {topic!r}", "none in the log"), last.path
                )
                continue
            if known.schema.hash != Schema.from_json(about.schema.encode()).hash:
                self._add(Corruption(last.path, 4096, f"the store's schema of topic {topic!r}", "another"), last.path)
            oldest = next(item.begins[topic] for item in contents.files if topic in item.begins)
            checkpoint = after.checkpoints.get(topic, 0)
            if oldest > checkpoint + 1:
                what = f"topic {topic!r} from sequence {checkpoint + 1} on, behind its tables"
                self._add(Corruption(first.path, 4096, what, oldest), first.path)
            if known.next_sequence - 1 < before.checkpoints[topic]:
                what = f"topic {topic!r} up to sequence {before.checkpoints[topic]}, which tables have"
                self._add(Corruption(last.path, last.end, what, known.next_sequence - 1), last.path)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _topics(state: State | None, contents: Contents | None) -> Iterator[VerifiedTopic]:
    for topic in state.topics if state is not None else ():
        assert state is not None
        tables = tuple(state.versions[topic].tables())
        known = contents.topics.get(topic) if contents is not None else None
        yield VerifiedTopic(
            topic=topic,
            table_count=len(tables),
            row_count=sum(table.row_count for table in tables),
            table_bytes=sum(table.file_bytes for table in tables),
            checkpoint=state.checkpoints[topic],
            newest=known.next_sequence - 1 if known is not None else 0,
        )


def _strays(store: Path, before: State | None, after: State | None) -> Iterator[Path]:
    """Files in the store's folder that neither state knows. Without a manifest nothing is known to be one."""
    if before is None or after is None:
        return
    known = frozenset(
        table.number for state in (before, after) for version in state.versions.values() for table in version.tables()
    )
    strays = TableFiles(store, before.log_id, 0).strays(known)
    for path in sorted(store.iterdir()):
        if path in strays or not (path.name in (MANIFEST_NAME, LOST_AND_FOUND) or path.suffix == ".sst"):
            yield path
