"""Writing a topic's tables again from what is left of them, and from what the log still holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import msgspec
import numpy as np

from ._tree import KeyCodec, Merge, Table
from .history_rows import in_table_order
from .schema import Schema
from .table_files import TableFiles, open_table
from .version import TableInfo, Version

__all__ = ["Placed", "arrange", "merged", "write_rows"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

TABLE_BYTES = 64 << 20
LEVEL0_COUNT_MAX = 20


@dataclass(frozen=True, slots=True)
class Placed:
    """A sound table. has_level: the manifest says in which level it is."""

    info: TableInfo
    has_level: bool


class _Rows:
    """Rows in a table's order, handed out piece by piece."""

    def __init__(self, codec: KeyCodec, rows: Array, flags: Array) -> None:
        self._rows, self._flags, self._keys, self._at = rows, flags, codec.encode(rows), 0

    @property
    def within_key(self) -> bool:
        at = self._at
        return 0 < at < len(self._rows) and bool((self._keys[at] == self._keys[at - 1]).all())

    def fill(self, rows: Array, flags: Array | None = None) -> int:
        count = min(len(rows), len(self._rows) - self._at)
        here = slice(self._at, self._at + count)
        whole = f"V{rows.dtype.itemsize}"  # with the bytes between the fields
        rows.view(whole)[:count] = self._rows.view(whole)[here]
        if flags is not None:
            flags[:count] = self._flags[here]
        self._at += count
        return count


def write_rows(
    files: TableFiles,
    schema: Schema,
    codec: KeyCodec,
    parts: Sequence[tuple[Array, Array]],
    level: int,
    compression: str,
    next_number: Callable[[], int],
) -> list[TableInfo]:
    """Write rows, in any order, with their flags, as tables of a level. Those that are there twice are written once."""
    whole = f"V{schema.row_bytes}"
    rows = np.concatenate([np.ascontiguousarray(rows).view(whole) for rows, _ in parts]).view(schema.dtype)
    rows, flags = in_table_order(codec, rows, np.concatenate([flags for _, flags in parts]))
    return list(
        files.write(
            _Rows(codec, rows, flags),
            schema,
            codec,
            level,
            compression=compression,
            table_bytes=TABLE_BYTES,
            next_number=next_number,
            throttle=lambda count: None,
        )
    )


def arrange(tables: Iterable[Placed]) -> Version | None:
    """A version of these tables in which a key's newest row is found first; None where there is none without merging.

    A table without a level goes to level 0 where it is newer than all that it overlaps, or to level 1 where nothing overlaps.
    """
    placed = list(tables)
    loose = [one.info for one in placed if not one.has_level]
    known = [one.info for one in placed if one.has_level]
    ordered = sorted((one.info for one in placed), key=lambda info: info.key_min)
    if all(before.key_max < after.key_min for before, after in pairwise(ordered)):
        return _version([*known, *(_at_level(info, 1) for info in loose)])
    if len(loose) > LEVEL0_COUNT_MAX or any(
        info is not other and info.overlaps(other.key_min, other.key_max) and not _is_newer(info, other, loose)
        for info in loose
        for other in (one.info for one in placed)
    ):
        return None
    return _version([*known, *(_at_level(info, 0) for info in loose)])


def merged(
    files: TableFiles,
    schema: Schema,
    codec: KeyCodec,
    tables: Iterable[TableInfo],
    next_number: Callable[[], int],
    *,
    all_versions: bool,
) -> list[TableInfo]:
    """All tables of a topic as tables of level 1, each key's rows by their sequences."""
    opened: list[Table] = [open_table(files.path(info.number), schema, codec) for info in tables]
    merge = Merge(codec, [], opened)
    merge.begin_compaction([], all_versions=all_versions, bottom=False)
    return list(
        files.write(
            merge,
            schema,
            codec,
            1,
            compression=opened[-1].compression,
            table_bytes=TABLE_BYTES,
            next_number=next_number,
            throttle=lambda count: None,
        )
    )


def _is_newer(info: TableInfo, other: TableInfo, loose: Sequence[TableInfo]) -> bool:
    """Whether level 0 is right for a table beside another that shares keys with it: no row of either lies among the other's."""
    if info.sequence_min > other.sequence_max:
        return True
    both_in_level0 = other.level == 0 or any(other is one for one in loose)
    return both_in_level0 and info.sequence_max < other.sequence_min


def _at_level(info: TableInfo, level: int) -> TableInfo:
    return msgspec.structs.replace(info, level=level)


def _version(tables: Sequence[TableInfo]) -> Version | None:
    try:
        return Version().edit(tables, ())
    except ValueError:  # what a damaged manifest says of them does not fit
        return None
