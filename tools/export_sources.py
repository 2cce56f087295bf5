"""Where rows to export come from: a store, by key, or a log, by sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..storage import LogReader, PastReader, Schema
from ..storage.tree import Tree
from .log_contents import open_topic
from .positions import Position

__all__ = ["Source", "log_source", "store_source"]

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
Bound: TypeAlias = tuple[Any, ...] | None

BATCH_ROWS, BATCH_BYTES = 65_536, 16 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to export. batches: (rows, how many were looked at by now). row_count: how many there are to look at, at most.

    log: that they are read from, which counts what a repair has given up; None where they come from a store.
    """

    schema: Schema
    batches: Iterator[tuple[Rows, int]]
    row_count: int
    log: LogReader | None = None


def store_source(tree: Tree, first: Bound, last: Bound, begin: Position | None, ending: Position | None) -> Source:
    """The newest rows of keys from `first` to `last`, those that were put from `begin` to `ending`."""
    state = tree.core.state
    tables = [*state.level0, *(table for level in state.levels for table in level)]
    bounds = [table.bounds(first, last) for table in tables]
    row_count = sum(end - start for start, end in bounds) + sum(len(memtable) for memtable in state.memtables)
    scan = tree.scan(first, last, batch_rows=max(2, min(BATCH_ROWS, BATCH_BYTES // tree.schema.row_bytes)))

    def batches() -> Iterator[tuple[Rows, int]]:
        looked_at = 0
        for rows in scan:
            looked_at += len(rows)
            yield _within(rows, begin, ending), looked_at

    return Source(tree.schema, batches(), row_count)


def log_source(log: Path, topic: str, begin: Position | None, ending: Position | None) -> Source:
    """A topic's rows from `begin` to `ending` in the order in which they were published, of a log and what was kept from it.

    Raises NotFound with the topics there are; reading raises HistoryGone where the sequence to begin with is not kept any more.
    """
    reader = open_topic(log, topic)
    if log.name == "log":
        reader = PastReader(log.parent, topic)
    first, last = reader.oldest, reader.newest
    if begin is not None:
        first = begin.value if begin.kind == "sequence" else max(first, reader.find_time(begin.value))
    if ending is not None:
        last = min(last, ending.value if ending.kind == "sequence" else reader.find_time(ending.value) - 1)

    def batches() -> Iterator[tuple[Rows, int]]:
        sequence = first
        while sequence <= last and (rows := reader.read(sequence, last)) is not None:
            sequence = int(rows["sequence"][-1]) + 1
            yield rows, sequence - first

    return Source(reader.schema, batches(), max(0, last - first + 1), reader)


def _within(rows: Rows, begin: Position | None, ending: Position | None) -> Rows:
    """Those of the rows that were put then. `ending`: the last sequence, or the time before which."""
    keep = np.ones(len(rows), bool)
    if begin is not None:
        keep &= rows["sequence" if begin.kind == "sequence" else "timestamp_ns"] >= begin.value
    if ending is not None:
        keep &= rows["sequence"] <= ending.value if ending.kind == "sequence" else rows["timestamp_ns"] < ending.value
    return rows if keep.all() else rows[keep]
