"""Which compaction a tree needs next: a pure choice from its version. Nothing here reads or writes a file.

1. A compaction takes, of its two levels, every table that overlaps the range from its smallest to its largest key (a move
   rewrites nothing and needs only that each table finds its place free). So what it writes overlaps nothing that stays.
2. Level 0 goes down whole, so a key's older rows never stay above newer ones. While one of its tables is being compacted,
   no other compaction of it begins.
3. Below level 0 a compaction has one table of its upper level, so its range has no gap into which another could write.
   That is why a manual compaction goes table by table as well.
4. Two compactions that run at the same time share no table (`busy`); with 2 and 3 what they write does not meet either.
5. Picking and applying comes to rest: each compaction moves bytes down or drops tombstones for good.

Leveled compaction as in LevelDB (doc/impl.md), scored as in RocksDB: the level furthest beyond its bound is next.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from types import MappingProxyType

import msgspec

from .version import LEVEL_COUNT, Key, TableInfo, Version

__all__ = ["Compaction", "Shape", "pick", "pick_all", "scores"]

SEQUENCE_MAX = (1 << 64) - 1
_NO_CURSORS: Mapping[int, Key] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Shape:
    """How a tree is to look. Raises ValueError for what cannot be.

    level0_tables: with so many tables level 0 is compacted; slowdown_tables, stop_tables: with so many, writes wait a
    little, or until it is. level1_bytes: what level 1 may hold; each deeper level `ratio` times more, the last anything.
    table_bytes: how big a compaction makes its tables. level_count: levels in use, level 0 included.
    """

    level0_tables: int = 4
    ratio: int = 10
    table_bytes: int = 64 << 20
    level1_bytes: int = 256 << 20
    level_count: int = LEVEL_COUNT
    slowdown_tables: int = 12
    stop_tables: int = 24

    def __post_init__(self) -> None:
        for sound, what in (
            (
                1 <= self.level0_tables <= self.slowdown_tables <= self.stop_tables,
                f"1 <= level0_tables {self.level0_tables} <= slowdown_tables {self.slowdown_tables} <= "
                f"stop_tables {self.stop_tables}",
            ),
            (self.ratio >= 2, f"ratio {self.ratio} >= 2"),
            (self.table_bytes >= 1, f"table_bytes {self.table_bytes} >= 1"),
            (self.level1_bytes >= 1, f"level1_bytes {self.level1_bytes} >= 1"),
            (2 <= self.level_count <= LEVEL_COUNT, f"2 <= level_count {self.level_count} <= {LEVEL_COUNT}"),
        ):
            if not sound:
                raise ValueError(f"the shape of a tree needs {what}")

    def target_bytes(self, level: int) -> int:
        """What a level, 1 or deeper, holds before it is compacted into the next."""
        return self.level1_bytes * self.ratio ** (level - 1)


@dataclass(frozen=True, slots=True)
class Compaction:
    """Tables to replace by what they hold together, in `target_level`.

    inputs, target_inputs: newest first where they may overlap; the second are `target_level`'s own.
    bottom: no table outside of it, in `target_level` or deeper, overlaps its keys, so its tombstones hide nothing else.
    move: nothing need be rewritten; `moved` are the tables as they will be.
    """

    topic: str
    level: int
    inputs: tuple[TableInfo, ...]
    target_level: int
    target_inputs: tuple[TableInfo, ...]
    bottom: bool
    move: bool

    @property
    def tables(self) -> tuple[TableInfo, ...]:
        """All that is read, and gone afterwards."""
        return self.inputs + self.target_inputs

    @property
    def numbers(self) -> frozenset[int]:
        """The tables' numbers: busy while this runs, removed when it is done."""
        return frozenset(table.number for table in self.tables)

    @property
    def file_bytes(self) -> int:
        """How much there is to read."""
        return _total_bytes(self.tables)

    @property
    def cursor(self) -> Key:
        """Where the level's next turn begins: put it into `cursors[level]`."""
        return max(table.key_max for table in self.inputs)

    def moved(self) -> tuple[TableInfo, ...]:
        """The inputs in their new level."""
        return tuple(msgspec.structs.replace(table, level=self.target_level) for table in self.inputs)


def scores(version: Version, shape: Shape) -> tuple[float, ...]:
    """How full each level is, 1.0 being the bound at which it is compacted; the last level has none and is left out."""
    return (
        len(version.level0) / shape.level0_tables,
        *(
            _total_bytes(version.level(level)) / shape.target_bytes(level)
            for level in range(1, _last_level(version, shape))
        ),
    )


def pick(
    topic: str,
    version: Version,
    shape: Shape,
    busy: frozenset[int] = frozenset(),
    cursors: Mapping[int, Key] = _NO_CURSORS,
    droppable: int = 0,
) -> Compaction | None:
    """Return the compaction that the tree needs most, or None where it needs none or all of them have to wait.

    busy: numbers of tables that running compactions read. cursors: a level -> the `cursor` of its last compaction.
    droppable: nobody reads at a sequence before this one and old versions are not kept, so a tombstone up to it goes when
    it reaches the bottom. A table that is mostly such tombstones is compacted also where its level is not full.
    """
    full = scores(version, shape)
    for level in sorted(range(len(full)), key=lambda level: full[level], reverse=True):
        if full[level] < 1:
            break
        found = (
            _pick_level0(topic, version, shape, busy, droppable)
            if level == 0
            else _pick_next(topic, version, level, busy, cursors.get(level), droppable)
        )
        if found is not None:
            return found
    return _pick_tombstones(topic, version, shape, busy, droppable)


def pick_all(
    topic: str,
    version: Version,
    shape: Shape,
    busy: frozenset[int] = frozenset(),
    droppable: int = 0,
    sequence_max: int = SEQUENCE_MAX,
) -> Compaction | None:
    """Return the next step of bringing everything into the deepest level that has a table now.

    To be asked again after each step. None while all that is left is busy, or where nothing is left: everything is there,
    without a tombstone that can go (`droppable`, as for `pick`). sequence_max: tables with newer rows only are let be,
    so that it ends although rows keep coming. The deepest tables go first: those above then sink for nothing to where
    they are merged, no row is written more often than needed, and little room is taken at any time.
    """
    deepest = max(version.deepest(), 1)
    for level in reversed(range(deepest)):
        wanted = [table for table in version.level(level) if table.sequence_min <= sequence_max]
        if level == 0 and wanted:
            return _pick_level0(topic, version, shape, busy, droppable)
        for table in wanted:
            found = _pick_table(topic, version, level, table, busy, droppable)
            if found is not None:
                return found
        if wanted:
            return None
    for table in version.level(deepest):
        if _can_drop(table, min(droppable, sequence_max)) and table.number not in busy:
            return _rewrite(topic, deepest, table)
    return None


# --- one level's turn -----------------------------------------------------------------------------------------------------


def _pick_level0(topic: str, version: Version, shape: Shape, busy: frozenset[int], droppable: int) -> Compaction | None:
    """All of level 0 into level 1, with the small tables beside the place, so that they do not pile up."""
    inputs, level1 = version.level0, version.level(1)
    if any(table.number in busy for table in inputs):
        return None
    low, high = _range(inputs)
    if (
        all(table.file_bytes >= shape.table_bytes // 4 for table in inputs)
        and all(one.key_max < other.key_min for one, other in pairwise(sorted(inputs, key=lambda table: table.key_min)))
        and not any(version.overlapping(1, table.key_min, table.key_max) for table in inputs)
        and not any(_is_mostly_droppable(table, droppable) for table in inputs)
    ):  # such as rows whose key is their sequence: each memtable's lie behind all before
        return Compaction(topic, 0, inputs, 1, (), bottom=_is_bottom(version, 1, low, high), move=True)

    first = bisect_left(level1, low, key=lambda table: table.key_max)
    end = bisect_right(level1, high, lo=first, key=lambda table: table.key_min)
    total_bytes = _total_bytes(inputs) + _total_bytes(level1[first:end])

    def joins(place: int) -> bool:
        """Whether the table there is small enough to be written again: like the digits of a counter, each seldom is."""
        return (
            0 <= place < len(level1)
            and level1[place].number not in busy
            and level1[place].file_bytes <= min(total_bytes, shape.table_bytes - total_bytes)
        )

    while joins(first - 1) or joins(end):
        if joins(first - 1):
            first -= 1
            total_bytes += level1[first].file_bytes
        else:
            total_bytes += level1[end].file_bytes
            end += 1
    return _compaction(topic, version, 0, inputs, level1[first:end], busy)


def _pick_next(
    topic: str, version: Version, level: int, busy: frozenset[int], cursor: Key | None, droppable: int
) -> Compaction | None:
    """The first table behind the cursor that can go, all round the level."""
    tables = version.level(level)
    start = 0 if cursor is None else bisect_right(tables, cursor, key=lambda table: table.key_min)
    for table in chain(tables[start:], tables[:start]):
        found = _pick_table(topic, version, level, table, busy, droppable)
        if found is not None:
            return found
    return None


def _pick_tombstones(
    topic: str, version: Version, shape: Shape, busy: frozenset[int], droppable: int
) -> Compaction | None:
    """A table below level 0 that is mostly tombstones: down to what they delete, or where nothing is left of it, away."""
    for level in range(1, _last_level(version, shape) + 1):
        for table in version.level(level):
            if _is_mostly_droppable(table, droppable) and table.number not in busy:
                if _is_bottom(version, level, table.key_min, table.key_max):
                    return _rewrite(topic, level, table)
                found = _pick_table(topic, version, level, table, busy, droppable)
                if found is not None:
                    return found
    return None


def _pick_table(
    topic: str, version: Version, level: int, table: TableInfo, busy: frozenset[int], droppable: int
) -> Compaction | None:
    """One table into the next level; a move where nothing is in the way and nothing would be gained."""
    below = version.overlapping(level + 1, table.key_min, table.key_max)
    found = _compaction(topic, version, level, (table,), below, busy)
    if found is not None and not below and not (found.bottom and _is_mostly_droppable(table, droppable)):
        return Compaction(topic, level, found.inputs, level + 1, (), bottom=found.bottom, move=True)
    return found


def _compaction(
    topic: str,
    version: Version,
    level: int,
    inputs: tuple[TableInfo, ...],
    target_inputs: tuple[TableInfo, ...],
    busy: frozenset[int],
) -> Compaction | None:
    if any(table.number in busy for table in inputs + target_inputs):
        return None
    bottom = _is_bottom(version, level + 1, *_range(inputs + target_inputs))
    return Compaction(topic, level, inputs, level + 1, target_inputs, bottom=bottom, move=False)


def _rewrite(topic: str, level: int, table: TableInfo) -> Compaction:
    """A table at the bottom in its own place, without its tombstones."""
    return Compaction(topic, level, (table,), level, (), bottom=True, move=False)


# --- what tables are --------------------------------------------------------------------------------------------------------


def _last_level(version: Version, shape: Shape) -> int:
    """The level from which nothing goes deeper; tables of a tree that once had more levels stay where they are."""
    return max(shape.level_count - 1, version.deepest())


def _total_bytes(tables: Sequence[TableInfo]) -> int:
    return sum(table.file_bytes for table in tables)


def _range(tables: Sequence[TableInfo]) -> tuple[Key, Key]:
    return min(table.key_min for table in tables), max(table.key_max for table in tables)


def _is_bottom(version: Version, level: int, key_min: Key, key_max: Key) -> bool:
    """Whether no level deeper than this has anything in the range."""
    return not any(version.overlapping(deeper, key_min, key_max) for deeper in range(level + 1, LEVEL_COUNT))


def _can_drop(table: TableInfo, droppable: int) -> bool:
    """Whether the table has tombstones and all of them go when it is compacted at the bottom."""
    return table.tombstone_count > 0 and table.sequence_max <= droppable


def _is_mostly_droppable(table: TableInfo, droppable: int) -> bool:
    return _can_drop(table, droppable) and 2 * table.tombstone_count > table.row_count
