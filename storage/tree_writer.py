"""What the writing process does with a tree: memtables that fill and are flushed, tables that are compacted.

1. One thread at a time flushes and one compacts; putting goes on meanwhile. `lock` (the tree's) is held only while the state is
   replaced. The manifest is the truth about tables: an edit is durable before a state shows it and before old files go.
2. Memtables are flushed in the order in which they were filled, so that the checkpoint never passes a row that is only in memory.
   Nor does it pass a row that is not on the disk in the log (`sync_log`): after a power cut the log must not end before the tables.
3. Memory is bounded: `immutable_max` memtables may wait for the flush, then putting waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ._tree import MemoryPool, Memtable, Merge, State, Table
from .levels import Compaction, Shape
from .manifest import Edit, Manifest
from .table_files import TableFiles
from .tree import Tree
from .version import TableInfo, Version

__all__ = ["TopicFailure", "TreeWriter", "WriteCounts"]

RETRY_S = 0.001
SLOWDOWN_S = 0.01


@dataclass(slots=True)
class WriteCounts:
    """What a tree's writing has cost so far. Bytes of sstables, times in seconds."""

    flush_count: int = 0
    flushed_bytes: int = 0
    compaction_count: int = 0
    compacted_bytes: int = 0  # written
    moved_count: int = 0  # tables that a compaction only moved down
    stall_count: int = 0  # times putting waited for a flush
    stalled_s: float = 0.0
    slowdown_count: int = 0  # times putting was slowed down since level 0 was full

    @property
    def write_amplification(self) -> float | None:
        """Bytes written to tables for each byte that was flushed to level 0; None where nothing was."""
        return (self.flushed_bytes + self.compacted_bytes) / self.flushed_bytes if self.flushed_bytes else None


@dataclass(frozen=True, slots=True)
class TopicFailure:
    """What ended a topic's flushing and compacting. Its rows are still read; putting raises it when its memtable is full."""

    operation: str  # "flush" (a snapshot is one), or "compaction"
    time_ns: int  # since the Unix epoch
    message: str


class TreeWriter:
    """A tree that this process writes.

    tables: the version's, open, by number. active: takes new rows.
    changed: told (under no lock) when there is something to flush or compact.
    sync_log: makes what the log holds durable; None where nothing is promised about power cuts.
    may_flush: whether rows up to that sequence may go into tables by now. While they may not, they stay in memory.
    """

    def __init__(
        self,
        tree: Tree,
        version: Version,
        files: TableFiles,
        manifest: Manifest,
        memory: MemoryPool,
        *,
        tables: Mapping[int, Table],
        active: Memtable,
        shape: Shape,
        memtable_bytes: int,
        immutable_max: int,
        compression: str,
        next_number: Callable[[], int],
        changed: Callable[[], None],
        sync_log: Callable[[], None] | None,
        may_flush: Callable[[int], bool],
    ) -> None:
        self.tree, self.version, self.counts = tree, version, WriteCounts()
        self._files, self._manifest, self._memory, self._shape = files, manifest, memory, shape
        self._memtable_bytes, self._immutable_max, self._compression = memtable_bytes, immutable_max, compression
        self._next_number, self._changed, self._sync_log = next_number, changed, sync_log
        self._may_flush = may_flush
        self._tables = dict(tables)
        self._spare: Memtable | None = None
        self.active = active
        self.immutables: list[Memtable] = []  # the oldest first
        self.flushed = threading.Condition(tree.lock)
        self.closing = False
        self.failure: BaseException | None = None
        self.failed: TopicFailure | None = None  # the same, for whoever only looks
        self.cursors: dict[int, tuple[int, ...]] = {}
        with tree.lock:
            self._show()

    def _show(self) -> None:
        """Make a state of what there is, and let readers have it. Under the lock."""
        state = State(
            self.tree.codec,
            (self.active, *reversed(self.immutables)),
            tuple(self._tables[info.number] for info in self.version.level0),
            tuple(tuple(self._tables[info.number] for info in level) for level in self.version.levels),
        )
        while not self.tree.core.set_state(state, self.active):
            time.sleep(RETRY_S)

    # --- memtables --------------------------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Begin a new memtable; waits while too many wait for the flush. Raises what made the flush fail."""
        level0_count = len(self.version.level0)
        if level0_count >= self._shape.slowdown_tables:
            self.counts.slowdown_count += 1
            time.sleep(SLOWDOWN_S * (level0_count - self._shape.slowdown_tables + 1))
        with self.flushed:
            if self._must_wait():
                self.counts.stall_count += 1
                began = time.monotonic()
                while self._must_wait():
                    self.flushed.wait(1.0)
                self.counts.stalled_s += time.monotonic() - began
            if self.failure is not None:
                raise self.failure.with_traceback(None)
            self.set_aside()
        self._changed()

    def take_back(self, memtables: Iterable[Memtable]) -> None:
        """Begin with memtables of rows that were not flushed before, the oldest first; flush those for which there is no memory."""
        for memtable in memtables:
            if memtable is self.active or not len(memtable):
                continue
            self.immutables.append(memtable)
            memory_bytes = sum(each.memory_bytes for each in self.immutables)
            if len(self.immutables) > self._immutable_max and memory_bytes > self._immutable_max * self._memtable_bytes:
                self.flush()
        with self.tree.lock:
            self._show()

    def _must_wait(self) -> bool:
        full = len(self.immutables) >= self._immutable_max or len(self.version.level0) >= self._shape.stop_tables
        return full and self.failure is None and not self.closing

    def set_aside(self) -> None:
        """Replace the active memtable, if anything is in it, without waiting. Under the lock."""
        if not len(self.active):
            return
        fresh = self._spare if self._spare is not None else self._make_memtable()
        self._spare = None
        self.immutables.append(self.active)
        self.active = fresh
        self._show()

    def _make_memtable(self) -> Memtable:
        return Memtable(self.tree.codec, self._memtable_bytes, self._memory)

    def touch(self, ahead_bytes: int) -> None:
        """Have memory ready for the next rows, in the active memtable and in the one after it. Called by one thread."""
        behind = self.active.touch(ahead_bytes)
        if behind:
            spare = self._spare
            if spare is not None:
                spare.touch(behind)  # it may be taken meanwhile, and then must not be put back
                return
            fresh = self._make_memtable()
            fresh.touch(behind)
            with self.tree.lock:
                self._spare = self._spare if self._spare is not None else fresh

    def flush(self) -> bool:
        """Write the oldest immutable memtable as a table of level 0. False where there is none, or where it may not be yet."""
        with self.tree.lock:
            if not self.immutables:
                return False
            memtable = self.immutables[0]
            _, last = memtable.sequences
            if not self._may_flush(last):
                return False
            self.tree.dropped_through = max(self.tree.dropped_through, last)
            views = self.tree.views()
            bottom = not any(True for _ in self.version.tables())
        merge = Merge(self.tree.codec, [(memtable, len(memtable))], [])
        merge.begin_compaction(views, all_versions=self.tree.keeps_versions, bottom=bottom)
        if self._sync_log is not None:
            self._sync_log()
        added = self._write(merge, 0, "none", 1 << 62, lambda count: None)
        with self.flushed:
            self._commit(Edit(added=added, checkpoints={self.tree.schema.name: last}))
            self.immutables.pop(0)
            self._show()
            self.counts.flush_count += 1
            self.counts.flushed_bytes += sum(info.file_bytes for info in added)
            self.flushed.notify_all()
        return True

    # --- tables -----------------------------------------------------------------------------------------------------

    def compact(self, compaction: Compaction, throttle: Callable[[int], None]) -> None:
        """Carry out a compaction. throttle: called with the bytes of each chunk; may wait, or raise to cancel."""
        added: Sequence[TableInfo]
        if compaction.move:
            added = compaction.moved()
        else:
            with self.tree.lock:
                views = self.tree.views()
            merge = Merge(self.tree.codec, [], [self._tables[number] for number in compaction.numbers])
            merge.begin_compaction(views, all_versions=self.tree.keeps_versions, bottom=compaction.bottom)
            added = self._write(merge, compaction.target_level, self._compression, self._shape.table_bytes, throttle)
        with self.flushed:
            self._commit(Edit(added=added, removed=sorted(compaction.numbers)))
            self._show()
            self.counts.compaction_count += 1
            if compaction.move:
                self.counts.moved_count += len(added)
            else:
                self.counts.compacted_bytes += sum(info.file_bytes for info in added)
            self.cursors[compaction.level] = compaction.cursor
            self.flushed.notify_all()
        if not compaction.move:
            self._files.remove(compaction.numbers)

    def _write(
        self, merge: Merge, level: int, compression: str, table_bytes: int, throttle: Callable[[int], None]
    ) -> list[TableInfo]:
        added: list[TableInfo] = []
        try:
            added.extend(  # one by one: what is there when it fails is removed
                self._files.write(
                    merge,
                    self.tree.schema,
                    self.tree.codec,
                    level,
                    compression=compression,
                    table_bytes=table_bytes,
                    next_number=self._next_number,
                    throttle=throttle,
                )
            )
        except BaseException:
            self._files.remove(info.number for info in added)
            raise
        return added

    def _commit(self, edit: Edit) -> None:
        """Make an edit durable, and take its version. Under the lock."""
        opened = {info.number: self._files.open(info, self.tree.schema, self.tree.codec) for info in edit.added}
        state = self._manifest.commit(edit)
        self.version = state.versions[self.tree.schema.name]
        for number in edit.removed:
            self._tables.pop(number)
        self._tables.update(opened)

    def fail(self, operation: str, failure: BaseException) -> None:
        """Flush and compact no more. The first failure is what later puts raise."""
        with self.flushed:
            if self.failure is None:
                self.failure = failure
                self.failed = TopicFailure(operation, time.time_ns(), str(failure))
            self.flushed.notify_all()

    def stop(self) -> None:
        """Let nobody wait here any more."""
        with self.flushed:
            self.closing = True
            self.flushed.notify_all()
