"""Which sstables hold a topic's rows at one instant.

1. A Version is never edited, it is replaced whole. Who took one may read its tables for as long as he keeps it.
2. Level 0 holds what the memtables left, newest first; the tables' ranges of keys may overlap there. In a deeper level no two
   tables' ranges share a key.
3. Of one key, the rows in a level are newer than those in the levels below it. Picking compactions (levels.py) keeps it so.

The value and its swap are those of mini-lsm; the levels those of LevelDB.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeAlias

import msgspec

__all__ = ["LEVEL_COUNT", "Key", "TableInfo", "Version"]

LEVEL_COUNT = 7  # 0 to 6

Key: TypeAlias = tuple[int, ...]
"""A key as its words, see key.hpp: tuples of them compare as the keys do."""


class TableInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the manifest says of an sstable; field for field also its JSON form.

    number: its file's, never used for another. file_bytes: the whole file. row_count: tombstones are rows too.
    key_min, key_max: of the first and the last row. Raises ValueError for what cannot be.
    """

    number: int
    topic: str
    level: int
    file_bytes: int
    row_count: int
    tombstone_count: int
    sequence_min: int
    sequence_max: int
    timestamp_min_ns: int
    timestamp_max_ns: int
    key_min: Key
    key_max: Key

    def __post_init__(self) -> None:
        for sound, what in (
            (self.number >= 1, f"number {self.number}"),
            (0 <= self.level < LEVEL_COUNT, f"level {self.level}"),
            (self.file_bytes >= 0, f"{self.file_bytes} bytes"),
            (
                0 <= self.tombstone_count <= self.row_count >= 1,
                f"{self.tombstone_count} of {self.row_count} rows deleted",
            ),
            (1 <= self.sequence_min <= self.sequence_max, f"sequences {self.sequence_min} to {self.sequence_max}"),
            (len(self.key_min) == len(self.key_max) >= 1, f"keys of {len(self.key_min)} and {len(self.key_max)} words"),
            (self.key_min <= self.key_max, f"keys {self.key_min} to {self.key_max}"),
            (
                self.timestamp_min_ns <= self.timestamp_max_ns,
                f"times {self.timestamp_min_ns} to {self.timestamp_max_ns}",
            ),
        ):
            if not sound:
                raise ValueError(f"table {self.number} of topic {self.topic!r} cannot have {what}")

    def overlaps(self, key_min: Key, key_max: Key) -> bool:
        """Whether the table's range of keys shares one with `key_min` to `key_max`, both included."""
        return self.key_min <= key_max and key_min <= self.key_max


@dataclass(frozen=True, slots=True)
class Version:
    """Which tables hold a topic's rows. Start from `Version()`, which has none; `edit` makes the next one.

    level0: newest first, by `sequence_max`, then by number. levels: level 1 onward, each by key.
    """

    level0: tuple[TableInfo, ...] = ()
    levels: tuple[tuple[TableInfo, ...], ...] = ((),) * (LEVEL_COUNT - 1)

    def tables(self) -> Iterator[TableInfo]:
        """All tables: level 0 newest first, then level by level."""
        return chain(self.level0, chain.from_iterable(self.levels))

    def level(self, level: int) -> tuple[TableInfo, ...]:
        """The tables of a level, 0 to LEVEL_COUNT - 1."""
        return self.level0 if level == 0 else self.levels[level - 1]

    def deepest(self) -> int:
        """The deepest level that has a table; 0 where none has."""
        return max((level for level in range(LEVEL_COUNT) if self.level(level)), default=0)

    def overlapping(self, level: int, key_min: Key, key_max: Key) -> tuple[TableInfo, ...]:
        """The tables of a level that may have keys from `key_min` to `key_max`, both included, in the level's order."""
        if level == 0:
            return tuple(table for table in self.level0 if table.overlaps(key_min, key_max))
        tables = self.levels[level - 1]
        first = bisect_left(tables, key_min, key=_key_max)
        return tables[first : bisect_right(tables, key_max, lo=first, key=_key_min)]

    def edit(self, added: Iterable[TableInfo], removed_numbers: Iterable[int]) -> Version:
        """Return this version without the tables of `removed_numbers` and with those of `added`.

        A number may leave and come back in one edit: that is how a table moves to another level.
        Raises ValueError where a removed number is not there, a number would be there twice, tables of two topics would
        meet, or two tables of a level would overlap.
        """
        added, removed = tuple(added), Counter(removed_numbers)
        here = {table.number: table for table in self.tables()}
        for number, count in removed.items():
            if count > 1 or here.pop(number, None) is None:
                raise ValueError(f"table {number} is removed {'twice' if count > 1 else 'and was not there'}")
        topic = next(iter(here.values()), added[0]).topic if added else ""
        for table in added:
            if table.number in here:
                raise ValueError(f"table {table.number} is there twice")
            if table.topic != topic:
                raise ValueError(f"table {table.number} of topic {table.topic!r} does not belong to topic {topic!r}")
            here[table.number] = table

        def kept_and_new(level: int) -> tuple[TableInfo, ...]:
            tables, new = self.level(level), [table for table in added if table.level == level]
            if new or any(table.number in removed for table in tables):
                joined = (*(table for table in tables if table.number not in removed), *new)
                return _newest_first(joined) if level == 0 else _by_key(joined)
            return tables

        return Version(kept_and_new(0), tuple(kept_and_new(level) for level in range(1, LEVEL_COUNT)))


def _key_min(table: TableInfo) -> Key:
    return table.key_min


def _key_max(table: TableInfo) -> Key:
    return table.key_max


def _newest_first(tables: Sequence[TableInfo]) -> tuple[TableInfo, ...]:
    return tuple(sorted(tables, key=lambda table: (table.sequence_max, table.number), reverse=True))


def _by_key(tables: Sequence[TableInfo]) -> tuple[TableInfo, ...]:
    """A deeper level in its order. Raises ValueError where two tables overlap."""
    ordered = tuple(sorted(tables, key=_key_min))
    for one, other in pairwise(ordered):
        if one.key_max >= other.key_min:
            raise ValueError(
                f"tables {one.number} and {other.number} of topic {one.topic!r} overlap in level {one.level}: keys "
                f"{one.key_min} to {one.key_max} and {other.key_min} to {other.key_max}"
            )
    return ordered
