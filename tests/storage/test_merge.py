"""Merging memtables and sstables: scans and compactions against a plain model, with read views and tombstones."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringmain.storage import Schema
from ringmain.storage._tree import KeyCodec, Memtable, Merge, State, Table
from support.keyed import Order, Rows, key_order, key_values, keyed, keyed_schemas, keys_of, rows_of, taken
from support.sstables import MODULES, in_table_order, opened, write_table

SEQUENCE_MAX = (1 << 64) - 1
POINTS = keyed("u4", name="points")
NAMED = keyed("S20", "i2", name="named")
INSTALLED = ["none", *(name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None)]


@dataclass(frozen=True)
class Version:
    """A row of the model."""

    key: Order
    sequence: int
    row: bytes
    dead: bool


def versions_of(schema: Schema, rows: Rows, flags: Iterable[Any]) -> list[Version]:
    return [
        Version(key_order(schema, key_values(schema, row)), int(row["sequence"]), row.tobytes(), bool(dead))
        for row, dead in zip(rows, flags, strict=True)
    ]


def ordered(versions: Iterable[Version]) -> list[Version]:
    return sorted(versions, key=lambda version: (version.key, -version.sequence))


def newest(versions: Iterable[Version], visible: int) -> dict[Order, Version]:
    """Of each key the newest version at or below a sequence, tombstones included."""
    found: dict[Order, Version] = {}
    for version in ordered(versions):
        if version.sequence <= visible:
            found.setdefault(version.key, version)
    return found


def rows_at(versions: Iterable[Version], visible: int) -> list[bytes]:
    """What a scan gives."""
    return [version.row for _, version in sorted(newest(versions, visible).items()) if not version.dead]


def compacted(versions: Iterable[Version], views: Iterable[int], *, all_versions: bool, bottom: bool) -> list[Version]:
    """What a compaction leaves: of each key the newest version and what a view sees; at the bottom no tombstone that hides nothing,
    and of several tombstones in a row only the oldest."""
    if all_versions:
        return ordered(versions)
    found: list[Version] = []
    for _, group in itertools.groupby(ordered(versions), lambda version: version.key):
        mine = list(group)
        seen = [
            next((version for version in mine if version.sequence <= view), None) for view in (SEQUENCE_MAX, *views)
        ]
        kept = [version for version in mine if version in seen]
        if bottom:
            following = [*kept[1:], None]
            kept = [
                version
                for version, older in zip(kept, following, strict=True)
                if not version.dead or (older is not None and not older.dead)
            ]
        found += kept
    return found


def take(merge: Merge, schema: Schema, *, step: int = 5, with_flags: bool = True) -> list[Version]:
    """All that a merge gives, in arrays of `step` rows; checks `within_key` on the way."""
    found: list[Version] = []
    within: bool | None = None
    while True:
        rows, flags = np.empty(step, schema.dtype), np.full(step, 9, "u1")
        count = merge.fill(rows, flags) if with_flags else merge.fill(rows)
        got = versions_of(schema, rows[:count], flags[:count] if with_flags else [0] * count)
        if within is not None:
            assert within or not got or got[0].key != found[-1].key
        if not count:
            return found
        found += got
        within = merge.within_key


# --- sources ----------------------------------------------------------------------------------------------------------------


@dataclass
class Sources:
    """A topic's rows in memtables and tables, any row in any of them."""

    schema: Schema
    keys: list[tuple[Any, ...]]
    versions: list[Version] = field(default_factory=list)
    memtables: list[tuple[Memtable, int]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def merge(self, first: Any = None, last: Any = None, *, reverse: bool = False) -> Merge:
        return Merge(KeyCodec(self.schema), self.memtables, self.tables, first, last, reverse)


def draw_sources(data: st.DataObject, folder: Path, count_max: int = 40) -> Sources:
    schema = data.draw(st.just(POINTS) | st.just(NAMED) | keyed_schemas(fields_max=2))
    keys = data.draw(keys_of(schema, count_max=8))
    found = Sources(schema, keys)
    chosen = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=count_max))
    rows = rows_of(schema, chosen)
    dead = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    source_count = data.draw(st.integers(1, 5))
    places = np.array(data.draw(st.lists(st.integers(0, source_count - 1), min_size=len(rows), max_size=len(rows))))
    found.versions = versions_of(schema, rows, dead)
    for place in range(source_count):
        mine, mine_dead = taken(rows, places == place), dead[places == place]
        kind = data.draw(st.sampled_from(["memtable", *INSTALLED])) if len(mine) else "memtable"
        if kind == "memtable":
            memtable = Memtable(KeyCodec(schema), 1 << 16)
            for at in range(len(mine)):
                memtable.insert(mine[at : at + 1], bool(mine_dead[at]))
                if at % 7 == 3:  # sort what is there, so that it has several runs
                    Merge(memtable.codec, [(memtable, len(memtable))], [])
            found.memtables.append((memtable, len(memtable)))
        else:
            order = in_table_order(schema, mine)
            path = folder / f"{place}.sst"
            path.unlink(missing_ok=True)
            blocks = data.draw(st.sampled_from([1, 100, 4096]))
            write_table(path, schema, taken(mine, order), mine_dead[order], block_bytes=blocks, compression=kind)
            found.tables.append(opened(path, schema))
    return found


PROPERTY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(data=st.data())
def test_a_scan_gives_the_newest_visible_row_of_each_key_within_the_bounds_either_way(data, tmp_path):
    sources = draw_sources(data, tmp_path)
    prefix = st.none() | st.sampled_from([key[:length] for key in sources.keys for length in range(1, len(key) + 1)])
    first, last = data.draw(prefix), data.draw(prefix)
    visible = data.draw(st.integers(0, len(sources.versions)) | st.just(SEQUENCE_MAX))
    inside = [
        version
        for version in sources.versions
        if (first is None or version.key[: len(first)] >= key_order(sources.schema, first))
        and (last is None or version.key[: len(last)] <= key_order(sources.schema, last))
    ]
    wanted = rows_at(inside, visible)
    for reverse in (False, True):
        merge = sources.merge(first, last, reverse=reverse)
        merge.begin_scan(visible)
        got = [
            version.row for version in take(merge, sources.schema, step=data.draw(st.integers(2, 9)), with_flags=False)
        ]
        assert got == (wanted[::-1] if reverse else wanted)


@PROPERTY
@given(data=st.data())
def test_a_scan_of_all_versions_gives_every_visible_row_with_its_tombstones(data, tmp_path):
    sources = draw_sources(data, tmp_path)
    visible = data.draw(st.integers(0, len(sources.versions)) | st.just(SEQUENCE_MAX))
    wanted = ordered(version for version in sources.versions if version.sequence <= visible)
    for reverse in (False, True):
        merge = sources.merge(reverse=reverse)
        merge.begin_scan(visible, True)
        assert take(merge, sources.schema) == (wanted[::-1] if reverse else wanted)
    merge = sources.merge()
    merge.begin_scan(visible, True)
    alive = take(merge, sources.schema, with_flags=False)  # nobody asked which are tombstones: they are left out
    assert alive == [version for version in wanted if not version.dead]


@PROPERTY
@given(data=st.data())
def test_a_compaction_keeps_what_somebody_may_still_read_and_nothing_else(data, tmp_path):
    sources = draw_sources(data, tmp_path)
    views = data.draw(st.lists(st.integers(0, len(sources.versions) + 1), max_size=4))
    all_versions, bottom = data.draw(st.booleans()), data.draw(st.booleans())
    merge = sources.merge()
    merge.begin_compaction(views, all_versions=all_versions, bottom=bottom)
    kept = take(merge, sources.schema, step=data.draw(st.integers(2, 9)))
    assert kept == compacted(sources.versions, views, all_versions=all_versions, bottom=bottom)
    assert merge.read_count == len(sources.versions)


@PROPERTY
@given(data=st.data())
def test_no_view_sees_a_difference_after_a_compaction_whatever_lies_below(data, tmp_path):
    """The law behind the test before, said without the rule for what is kept."""
    sources = draw_sources(data, tmp_path)
    half = len(sources.versions) // 2
    views = data.draw(st.lists(st.integers(half, len(sources.versions) + 1), max_size=3))
    bottom = data.draw(st.booleans())
    merge = sources.merge()
    merge.begin_compaction(views, all_versions=False, bottom=bottom)
    kept = take(merge, sources.schema)
    below = [] if bottom else [Version(key_order(sources.schema, key), 0, b"older", False) for key in sources.keys]
    for view in (*views, SEQUENCE_MAX):
        assert rows_at(kept + below, view) == rows_at(sources.versions + below, view)


# --- by hand ----------------------------------------------------------------------------------------------------------------


def compact(history: Sequence[str], views: Sequence[int] = (), *, bottom: bool = True) -> list[str]:
    """Compact one key. history: its versions from sequence 1 on, "put" or "del"; returns them as "put 1", the newest first."""
    memtable = Memtable(KeyCodec(POINTS), 1 << 16)
    for sequence, what in enumerate(history, 1):
        memtable.insert(rows_of(POINTS, [(1,)], sequence), what == "del")
    merge = Merge(memtable.codec, [(memtable, len(memtable))], [])
    merge.begin_compaction(views, all_versions=False, bottom=bottom)
    return [f"{'del' if version.dead else 'put'} {version.sequence}" for version in take(merge, POINTS)]


def test_the_newest_row_is_kept_and_the_ones_that_it_replaced_are_not():
    assert compact(["put", "put", "put"]) == ["put 3"]
    assert compact(["put", "del", "put"]) == ["put 3"]


def test_a_tombstone_goes_at_the_bottom_and_stays_above_it():
    assert compact(["put", "del"]) == []
    assert compact(["put", "del"], bottom=False) == ["del 2"]
    assert compact(["del", "del"], bottom=False) == ["del 2"]


def test_a_tombstone_stays_at_the_bottom_while_a_view_needs_the_row_that_it_hides():
    assert compact(["put", "del"], [1]) == ["del 2", "put 1"]
    assert compact(["put", "del"], [2]) == []
    assert compact(["put", "del", "put"], [1]) == ["put 3", "put 1"]
    assert compact(["put", "del", "put"], [2, 1]) == ["put 3", "del 2", "put 1"]
    assert compact(["put", "del", "del"], [2, 1]) == ["del 2", "put 1"]
    assert compact(["del", "put", "del"], [2, 1]) == ["del 3", "put 2"]


def test_of_several_views_that_see_the_same_row_one_keeps_it():
    assert compact(["put", "put", "put", "put"], [1, 2, 2, 9]) == ["put 4", "put 2", "put 1"]
    assert compact(["put"], [0]) == ["put 1"]


def test_many_sources_come_out_in_order(tmp_path):
    codec, count, random = KeyCodec(POINTS), 6000, np.random.default_rng(11)
    rows = rows_of(POINTS, [(0,)] * count)
    rows["k0"] = random.integers(0, 2500, count)
    place = random.integers(0, 40, count)
    memtables, tables = [], []
    for source in range(40):
        mine = taken(rows, place == source)
        if source % 2:
            mine = taken(mine, np.lexsort((-mine["sequence"].astype("i8"), mine["k0"])))
            path = write_table(tmp_path / f"{source}.sst", POINTS, mine, compression=INSTALLED[source % len(INSTALLED)])
            tables.append(opened(path, POINTS))
        else:
            memtable = Memtable(codec, 1 << 17)
            memtable.insert(mine)
            memtables.append((memtable, len(mine)))
    wanted = taken(rows, np.lexsort((-rows["sequence"].astype("i8"), rows["k0"])))
    for reverse in (False, True):
        merge = Merge(codec, memtables, tables, reverse=reverse)
        merge.begin_scan(SEQUENCE_MAX, True)
        out = np.empty(count + 2, POINTS.dtype)
        assert merge.fill(out) == count
        assert (out[:count] == (wanted[::-1] if reverse else wanted)).all()


def test_a_merge_of_nothing_is_empty():
    merge = Merge(KeyCodec(POINTS), [], [])
    merge.begin_scan(SEQUENCE_MAX)
    assert merge.fill(np.empty(2, POINTS.dtype)) == 0
    assert not merge.within_key


def test_arrays_of_another_kind_are_refused():
    merge = Merge(KeyCodec(POINTS), [], [])
    merge.begin_scan(SEQUENCE_MAX)
    with pytest.raises(TypeError, match="row dtype"):
        merge.fill(np.empty(4, NAMED.dtype))
    with pytest.raises(ValueError, match="flags"):
        merge.fill(np.empty(4, POINTS.dtype), np.empty(3, "u1"))


# --- a small tree -----------------------------------------------------------------------------------------------------------


class SmallTree:
    """Memtables, level 0 and level 1 with views, moved by hand; beside it all versions that ever were."""

    def __init__(self, folder: Path, schema: Schema, *, all_versions: bool, compression: str) -> None:
        self.folder, self.schema, self.codec = folder, schema, KeyCodec(schema)
        self.all_versions, self.compression = all_versions, compression
        self.versions: list[Version] = []
        self.sequence, self.number = 0, 0
        self.memtables = [Memtable(self.codec, 1 << 15)]
        self.level0: list[Table] = []
        self.level1: list[Table] = []
        self.views: list[int] = []

    def insert(self, keys: list[tuple[Any, ...]], tombstones: bool) -> None:
        rows = rows_of(self.schema, keys, self.sequence + 1)
        self.memtables[0].insert(rows, tombstones)
        self.versions += versions_of(self.schema, rows, [tombstones] * len(rows))
        self.sequence += len(rows)

    def set_aside(self) -> None:
        self.memtables.insert(0, Memtable(self.codec, 1 << 15))

    def _write(self, merge: Merge, *, bottom: bool, rows_max: int) -> list[Table]:
        merge.begin_compaction(self.views, all_versions=self.all_versions, bottom=bottom)
        kept = take(merge, self.schema)
        tables: list[Table] = []
        while kept:
            size = next(
                (at for at in range(rows_max, len(kept)) if kept[at].key != kept[at - 1].key), len(kept)
            )  # fmt: skip
            part, kept = kept[:size], kept[size:]
            rows = np.frombuffer(b"".join(version.row for version in part), self.schema.dtype)
            self.number += 1
            path = self.folder / f"{self.number}.sst"
            path.unlink(missing_ok=True)
            write_table(path, self.schema, rows, [version.dead for version in part], compression=self.compression)
            tables.append(opened(path, self.schema))
        return tables

    def flush(self) -> None:
        memtable = self.memtables.pop()
        bottom = not self.level0 and not self.level1
        merge = Merge(self.codec, [(memtable, len(memtable))], [])
        self.level0 = self._write(merge, bottom=bottom, rows_max=1 << 30) + self.level0
        if not self.memtables:
            self.set_aside()

    def compact(self, rows_max: int) -> None:
        self.level1 = self._write(Merge(self.codec, [], [*self.level0, *self.level1]), bottom=True, rows_max=rows_max)
        self.level0 = []

    def check(self, keys: list[tuple[Any, ...]]) -> None:
        state = State(self.codec, tuple(self.memtables), tuple(self.level0), (tuple(self.level1),))
        probes = rows_of(self.schema, keys)
        views = range(self.sequence + 1) if self.all_versions else {*self.views, self.sequence}
        for visible in views:
            now = {key: version.row for key, version in newest(self.versions, visible).items() if not version.dead}
            wanted = [now.get(key_order(self.schema, key)) for key in keys]
            got = [state.get(key, visible) for key in keys]
            assert [row if row is None else row.tobytes() for row in got] == wanted
            rows, found = state.get_many(probes, visible)
            assert [row.tobytes() if there else None for row, there in zip(rows, found, strict=True)] == wanted
            for reverse in (False, True):
                memtables = [(memtable, len(memtable)) for memtable in self.memtables]
                merge = Merge(self.codec, memtables, [*self.level0, *self.level1], reverse=reverse)
                merge.begin_scan(visible)
                got = [version.row for version in take(merge, self.schema, with_flags=False)]
                assert got == rows_at(self.versions, visible)[:: -1 if reverse else 1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_on_their_way_through_the_levels_are_always_the_same_to_a_reader(data, tmp_path):
    schema = data.draw(st.sampled_from([POINTS, NAMED]))
    keys = data.draw(keys_of(schema, count_max=10))
    tree = SmallTree(
        tmp_path, schema, all_versions=data.draw(st.booleans()), compression=data.draw(st.sampled_from(INSTALLED))
    )
    for _ in range(data.draw(st.integers(1, 14))):
        match data.draw(st.sampled_from(["put", "put", "delete", "set aside", "flush", "compact", "view", "unview"])):
            case "put":
                tree.insert(data.draw(st.lists(st.sampled_from(keys), max_size=8)), False)
            case "delete":
                tree.insert(data.draw(st.lists(st.sampled_from(keys), max_size=4)), True)
            case "set aside":
                tree.set_aside()
            case "flush":
                tree.flush()
            case "compact":
                tree.compact(data.draw(st.integers(1, 6)))
            case "view":
                tree.views.append(tree.sequence)
            case _ if tree.views:
                tree.views.remove(data.draw(st.sampled_from(tree.views)))
        tree.check(keys)
