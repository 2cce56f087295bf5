"""A version: the tables of a topic in their order, and edits that cannot make it wrong."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ringmain.storage.version import LEVEL_COUNT, TableInfo, Version
from support.tables import table


def numbers(tables) -> list[int]:
    return [entry.number for entry in tables]


def test_a_new_version_is_empty():
    version = Version()
    assert list(version.tables()) == []
    assert version.deepest() == 0
    assert [version.level(level) for level in range(LEVEL_COUNT)] == [()] * LEVEL_COUNT


def test_level_0_is_newest_first_and_deeper_levels_are_by_key():
    version = Version().edit(
        [
            table(1, 5, 9),
            table(2, 0, 7, sequence_min=1, sequence_max=5),
            table(3, 2, 3),
            table(4, 1, 2, sequence_min=39, sequence_max=39),
            table(5, 20, 29, level=2),
            table(6, 0, 9, level=2),
            table(7, 10, 10, level=6),
        ],
        [],
    )
    assert numbers(version.level0) == [4, 3, 1, 2]  # by newest sequence, then by number
    assert numbers(version.levels[1]) == [6, 5]
    assert numbers(version.tables()) == [4, 3, 1, 2, 6, 5, 7]
    assert version.deepest() == 6


def test_an_edit_leaves_the_version_it_came_from_as_it_was():
    before = Version().edit([table(1, 0, 5), table(2, 0, 5, level=1)], [])
    after = before.edit([table(3, 0, 3)], [1])
    assert numbers(before.tables()) == [1, 2]
    assert numbers(after.tables()) == [3, 2]
    assert after.levels[0] is before.levels[0]  # what did not change is shared
    with pytest.raises(FrozenInstanceError):
        before.level0 = ()  # type: ignore[misc]


def test_a_table_moves_to_another_level_in_one_edit():
    version = Version().edit([table(1, 0, 5), table(2, 6, 9, level=1)], [])
    moved = version.edit([msgspec.structs.replace(version.level0[0], level=1)], [1])
    assert moved.level0 == ()
    assert numbers(moved.levels[0]) == [1, 2]


@pytest.mark.parametrize(
    ("added", "removed", "words"),
    [
        ([], [9], "9 is removed and was not there"),
        ([], [1, 1], "1 is removed twice"),
        ([table(1, 50)], [], "1 is there twice"),
        ([table(3, 50), table(3, 60)], [], "3 is there twice"),
        ([table(3, 50)] * 2, [], "3 is there twice"),
        ([table(3, 9, 12, level=1)], [], "tables 2 and 3 .* overlap in level 1"),
        ([table(3, 4, 5, level=2), table(4, 5, 6, level=2)], [], "tables 3 and 4 .* overlap in level 2"),
        ([table(3, 0, 99, level=1)], [1], "overlap"),
        ([table(3, 50, topic="pairs")], [], "'pairs' does not belong to topic 'points'"),
        ([table(3, 50, topic="pairs"), table(4, 50)], [1, 2], "does not belong"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(added, removed, words):
    version = Version().edit([table(1, 0, 5), table(2, 6, 9, level=1)], [])
    with pytest.raises(ValueError, match=words):
        version.edit(added, removed)


@pytest.mark.parametrize(
    "fields",
    [
        {"number": 0},
        {"level": LEVEL_COUNT},
        {"level": -1},
        {"file_bytes": -1},
        {"row_count": 0},
        {"tombstone_count": 11},
        {"tombstone_count": -1},
        {"sequence_min": 0},
        {"sequence_min": 100},
        {"timestamp_max_ns": 0},
        {"key_min": (2,)},
        {"key_max": (0,), "key_min": (0, 0)},
        {"key_min": (), "key_max": ()},
    ],
)
def test_a_table_that_cannot_be_is_refused_also_from_json(fields):
    sound = msgspec.to_builtins(table(3, 1))
    assert msgspec.convert(sound, TableInfo) == table(3, 1)
    with pytest.raises(ValueError, match="cannot have"):
        TableInfo(**{**sound, **fields})
    with pytest.raises(msgspec.ValidationError, match="cannot have"):
        msgspec.json.decode(msgspec.json.encode({**sound, **fields}), type=TableInfo)


WORDS = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=2), WORDS, WORDS)
def test_the_json_of_a_table_keeps_every_word_of_its_keys(keys, sequence, number):
    low, high = sorted(keys)
    info = table(
        number + 1, key_min=low, key_max=high, sequence_min=1, sequence_max=sequence + 1, timestamp_min_ns=-(2**63)
    )
    assert msgspec.json.decode(msgspec.json.encode(info), type=TableInfo) == info


@given(st.sets(st.integers(0, 60), max_size=16), st.integers(-1, 61), st.integers(0, 20))
def test_overlapping_finds_exactly_the_tables_that_share_a_key(bounds, low, length):
    ends = sorted(bounds)
    ranges = list(zip(ends[::2], ends[1::2], strict=False))
    levels = {
        level: [table(level * 100 + at + 1, *pair, level=level) for at, pair in enumerate(ranges)] for level in (0, 3)
    }
    version = Version().edit(levels[0] + levels[3], [])
    for level in (0, 3):
        expected = [
            entry.number for entry in levels[level] if entry.key_min[0] <= low + length and low <= entry.key_max[0]
        ]
        assert sorted(numbers(version.overlapping(level, (low,), (low + length,)))) == expected
    assert numbers(version.overlapping(3, (low,), (low + length,))) == sorted(
        numbers(version.overlapping(3, (low,), (low + length,)))
    )
    assert version.overlapping(1, (low,), (low + length,)) == ()
