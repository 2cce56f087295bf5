"""Rows of a topic that log and archive still hold, for places in its tables where they are lost.

1. The log ends later than any table and goes back without a hole; so of a key that it has at all it has the newest row, and
   what is taken from it never hides a newer one. A tombstone is taken as well: what it deletes must not come back.
2. What a repair of the log gave up is told, not passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ._tree import KeyCodec
from .log_reader import LogReader
from .version import Key

__all__ = ["Again", "in_table_order", "newest_of_each_key", "take_again"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

CHUNK_ROWS = 65_536
HELD_ROWS = 4_000_000  # so many are held before older rows of the same keys are dropped


@dataclass(slots=True)
class Again:
    """Rows in a table's order, and which are tombstones (a u8 array). gone: sequences, first and last, that are nowhere."""

    rows: Array
    flags: Array
    gone: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


def take_again(
    log: LogReader | None,
    codec: KeyCodec,
    keys: Sequence[tuple[Key, Key] | None],
    first: int,
    last: int,
    *,
    all_versions: bool,
    known: Array | None = None,
) -> Again:
    """The newest rows of all keys in some ranges (None: every key) with sequences from `first` to `last`.

    all_versions: not only the newest. known: a bool for each sequence from `first` on; those that are True are left out.
    """
    again = Again(np.empty(0, codec.dtype), np.empty(0, "u1"))
    oldest = min(log.oldest, last + 1) if log is not None else last + 1
    if oldest > first:
        again.gone.append((first, oldest - 1))
    position, parts, held = max(first, oldest), list[tuple[Array, Array]](), 0
    while log is not None and position <= last and (found := log.read_all(position, last, CHUNK_ROWS)) is not None:
        rows, tombstones = found
        begins = int(rows["sequence"][0])
        if begins > position:
            again.gone.append((position, begins - 1))
        position = int(rows["sequence"][-1]) + 1
        wanted = _within(codec.encode(np.ascontiguousarray(rows)), keys)
        parts.append((_taken(rows, wanted), np.full(int(wanted.sum()), tombstones, "u1")))
        held += len(parts[-1][0])
        if held > HELD_ROWS and not all_versions:
            parts = [newest_of_each_key(codec, *_joined(codec, parts))]
            held = len(parts[0][0]) // 2  # so that it is not done for every chunk
    if position <= last and log is not None:
        again.gone.append((position, last))
    order = in_table_order if all_versions else newest_of_each_key
    again.rows, again.flags = order(codec, *_joined(codec, parts))
    if known is not None:
        new = ~known[again.rows["sequence"].astype("i8") - first]
        again.rows, again.flags = _taken(again.rows, new), again.flags[new]
    return again


def in_table_order(codec: KeyCodec, rows: Array, flags: Array) -> tuple[Array, Array]:
    """Rows by key, the newest of a key first; of rows that are there twice only one."""
    keys = codec.encode(rows)
    order = np.lexsort((~rows["sequence"], *reversed(keys.T)))
    keys, rows, flags = keys[order], _taken(rows, order), flags[order]
    new = np.ones(len(rows), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1) | (rows["sequence"][1:] != rows["sequence"][:-1])
    return _taken(rows, new), flags[new]


def newest_of_each_key(codec: KeyCodec, rows: Array, flags: Array) -> tuple[Array, Array]:
    """As `in_table_order`, but only the first row of each key."""
    rows, flags = in_table_order(codec, rows, flags)
    keys = codec.encode(rows)
    new = np.ones(len(rows), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return _taken(rows, new), flags[new]


def _joined(codec: KeyCodec, parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    whole = f"V{codec.row_bytes}"  # with the bytes between the fields
    rows = np.concatenate([np.empty(0, whole), *(rows.view(whole) for rows, _ in parts)]).view(codec.dtype)
    return rows, np.concatenate([np.empty(0, "u1"), *(flags for _, flags in parts)])


def _taken(rows: Array, index: Array) -> Array:
    """`rows[index]` with the bytes between the fields, which numpy would leave behind."""
    return np.ascontiguousarray(rows).view(f"V{rows.dtype.itemsize}")[index].view(rows.dtype)


def _within(keys: Array, ranges: Sequence[tuple[Key, Key] | None]) -> Array:
    """Which of the keys lie in one of the ranges, both ends included."""
    found = np.zeros(len(keys), bool)
    for one in ranges:
        if one is None:
            return np.ones(len(keys), bool)
        found |= (_order(keys, one[0]) >= 0) & (_order(keys, one[1]) <= 0)
    return found


def _order(keys: Array, bound: Key) -> Array:
    """-1, 0 or 1 for each key: below, at, or above a bound."""
    order = np.zeros(len(keys), "i1")
    for word in range(keys.shape[1] - 1, -1, -1):
        column = keys[:, word]
        order = np.where(column < np.uint64(bound[word]), -1, np.where(column > np.uint64(bound[word]), 1, order))
    return order
