"""Picking compactions, carried out on tables that are lists of rows: nothing is lost, nothing overlaps, and it comes to rest."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.storage import Schema, engine, tree_writer
from ringmain.storage.levels import SEQUENCE_MAX, Compaction, Shape, pick, pick_all, scores
from ringmain.storage.store import Store
from ringmain.storage.version import LEVEL_COUNT, TableInfo, Version
from support.logs import wait_until
from support.tables import table

ROW_BYTES = 10
STEPS_MAX = 5000  # of compactions, where each test needs a few hundred


class Row(NamedTuple):
    key: int
    sequence: int
    tombstone: bool


class Tree:
    """A tree whose tables' rows are here: what `pick` decides is carried out, and its promises are checked each time.

    droppable: as for `pick`; tombstones newer than that are kept everywhere.
    """

    def __init__(self, shape: Shape, droppable: int = SEQUENCE_MAX) -> None:
        self.shape, self.droppable = shape, droppable
        self.version = Version()
        self.rows: dict[int, list[Row]] = {}
        self.newest: dict[int, Row] = {}
        self.cursors: dict[int, tuple[int, ...]] = {}
        self.running: list[Compaction] = []
        self.written_bytes = 0
        self._numbers, self._sequences = count(1), count(1)

    def flush(self, changes: Iterable[tuple[int, bool]]) -> None:
        """Put a memtable of these (key, deleted) into level 0."""
        rows = [Row(key, next(self._sequences), deleted) for key, deleted in changes]
        self.newest.update((row.key, row) for row in rows)
        self.version = self.version.edit(self._tables(0, list({row.key: row for row in rows}.values())), [])

    def pick(self) -> Compaction | None:
        busy = frozenset[int]().union(*(running.numbers for running in self.running))
        found = pick("points", self.version, self.shape, busy, self.cursors, self.droppable)
        if found is not None:
            self.check_pick(found)
            assert not found.numbers & busy
        return found

    def begin(self, compaction: Compaction) -> None:
        self.running.append(compaction)
        if compaction.level > 0:
            self.cursors[compaction.level] = compaction.cursor

    def finish(self, compaction: Compaction) -> None:
        """Replace the tables by the merged one's; the version refuses what overlaps."""
        self.running.remove(compaction)
        if compaction.move:
            self.version = self.version.edit(compaction.moved(), compaction.numbers)
        else:
            merged: dict[int, Row] = {}
            for row in sorted(
                (row for read in compaction.tables for row in self.rows[read.number]), key=lambda row: row.sequence
            ):
                merged[row.key] = row
            kept = [
                row
                for row in merged.values()
                if not (row.tombstone and compaction.bottom and row.sequence <= self.droppable)
            ]
            self.written_bytes += ROW_BYTES * len(kept)
            self.version = self.version.edit(self._tables(compaction.target_level, kept), compaction.numbers)
        self.check_content()

    def run(self, compaction: Compaction) -> None:
        self.begin(compaction)
        self.finish(compaction)

    def settle(self) -> int:
        """Pick and carry out until nothing is left to do; returns how many it took."""
        for steps in range(STEPS_MAX):
            found = self.pick()
            if found is None:
                return steps
            self.run(found)
        raise AssertionError("does not come to rest")

    def _tables(self, level: int, rows: list[Row]) -> list[TableInfo]:
        """Tables of at most `table_bytes`, one from a memtable."""
        rows.sort()
        step = max(1, self.shape.table_bytes // ROW_BYTES) if level else len(rows) or 1
        made = []
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            made.append(
                table(
                    next(self._numbers),
                    part[0].key,
                    part[-1].key,
                    level=level,
                    file_bytes=ROW_BYTES * len(part),
                    row_count=len(part),
                    tombstone_count=sum(row.tombstone for row in part),
                    sequence_min=min(row.sequence for row in part),
                    sequence_max=max(row.sequence for row in part),
                )
            )
            self.rows[made[-1].number] = part
        return made

    # --- what must hold ---------------------------------------------------------------------------------------------------

    def check_content(self) -> None:
        """Read from the top, the first row of a key is its newest; or it was deleted and nothing of it is left."""
        found: dict[int, Row] = {}
        for read in self.version.tables():
            for row in self.rows[read.number]:
                found.setdefault(row.key, row)
        assert {key: row for key, row in found.items() if not row.tombstone} == {
            key: row for key, row in self.newest.items() if not row.tombstone
        }
        assert all(self.newest[key] == row for key, row in found.items())

    def check_pick(self, found: Compaction) -> None:
        """Its tables are the version's, complete under overlap, and `bottom` and `move` are true."""
        assert set(found.inputs) <= set(self.version.level(found.level))
        assert set(found.target_inputs) <= set(self.version.level(found.target_level))
        assert found.target_level in (found.level, found.level + 1)
        if found.level == 0:
            assert found.inputs == self.version.level0
        else:
            assert len(found.inputs) == 1
        low, high = min(t.key_min for t in found.tables), max(t.key_max for t in found.tables)
        others = [t for t in self.version.tables() if t.number not in found.numbers]
        if found.move:
            assert found.target_inputs == ()
            alone = [*found.inputs, *self.version.level(found.target_level)]
            assert not any(one.overlaps(t.key_min, t.key_max) for one in found.inputs for t in alone if t is not one)
        else:
            assert not any(t.overlaps(low, high) for t in others if t.level == found.target_level)
        deeper = [t for t in others if t.level > found.target_level and t.overlaps(low, high)]
        assert found.bottom == (not deeper)

    def check_rest(self) -> None:
        """Every level but the last is within its bound, and no table below level 0 is mostly tombstones that can go."""
        assert all(score < 1 for score in scores(self.version, self.shape))
        assert len(self.version.level0) < self.shape.level0_tables
        for level in range(1, max(self.shape.level_count - 1, self.version.deepest())):
            held = sum(t.file_bytes for t in self.version.level(level))
            assert held < self.shape.level1_bytes * self.shape.ratio ** (level - 1)
        for t in self.version.tables():
            mostly = 2 * t.tombstone_count > t.row_count
            assert t.level == 0 or not (mostly and t.sequence_max <= self.droppable)


SHAPES = st.builds(
    Shape,
    level0_tables=st.integers(1, 4),
    ratio=st.integers(2, 4),
    table_bytes=st.sampled_from([10, 50, 200]),
    level1_bytes=st.sampled_from([10, 100, 400]),
    level_count=st.sampled_from([2, 3, 5, LEVEL_COUNT]),
)
DROPPABLE = st.sampled_from([0, 40, SEQUENCE_MAX])


@st.composite
def memtables(draw: st.DrawFn) -> list[list[tuple[int, bool]]]:
    """What is flushed one after another: keys all over, or rising, or close together; few deletions, or many."""
    kind = draw(st.sampled_from(["anywhere", "rising", "close"]))
    deleted = draw(st.sampled_from([st.just(False), st.booleans(), st.integers(0, 9).map(lambda n: n > 1)]))
    made, start = [], 0
    for size in draw(st.lists(st.integers(1, 12), min_size=1, max_size=25)):
        if kind == "rising":
            keys = list(range(start, start + size))
        else:
            low = 0 if kind == "anywhere" else draw(st.integers(0, 190))
            keys = draw(
                st.lists(st.integers(low, 200 if kind == "anywhere" else low + 10), min_size=size, max_size=size)
            )
        start += size
        made.append([(key, draw(deleted)) for key in keys])
    return made


@settings(deadline=None)
@given(SHAPES, memtables(), DROPPABLE, st.data())
def test_whatever_is_written_compactions_lose_nothing_and_come_to_rest(shape, flushes, droppable, data):
    tree = Tree(shape, droppable)
    for changes in flushes:
        tree.flush(changes)
        tree.check_content()
        for _ in range(data.draw(st.integers(0, 3))):
            if (found := tree.pick()) is not None:
                tree.run(found)
    tree.settle()
    tree.check_rest()


@settings(deadline=None)
@given(SHAPES, memtables(), DROPPABLE, st.data())
def test_compactions_at_the_same_time_end_in_any_order(shape, flushes, droppable, data):
    tree = Tree(shape, droppable)
    for changes in flushes:
        tree.flush(changes)
        for _ in range(data.draw(st.integers(0, 4))):
            if tree.running and data.draw(st.booleans()):
                tree.finish(data.draw(st.sampled_from(tree.running)))
            elif (found := tree.pick()) is not None:
                tree.begin(found)
    while tree.running:
        tree.finish(data.draw(st.sampled_from(tree.running)))
    tree.settle()
    tree.check_rest()


@settings(deadline=None)
@given(SHAPES, memtables(), DROPPABLE, st.data())
def test_a_manual_compaction_brings_everything_into_one_level_while_others_run(shape, flushes, droppable, data):
    tree = Tree(shape, droppable)
    for changes in flushes:
        tree.flush(changes)
        for _ in range(data.draw(st.integers(0, 2))):
            if (found := tree.pick()) is not None:
                tree.begin(found)
        if tree.running and data.draw(st.booleans()):
            tree.finish(data.draw(st.sampled_from(tree.running)))
    for _ in range(STEPS_MAX):
        busy = frozenset[int]().union(*(running.numbers for running in tree.running))
        found = pick_all("points", tree.version, tree.shape, busy, tree.droppable)
        if found is not None:
            tree.check_pick(found)
            assert not found.numbers & busy
            tree.begin(found)
        if tree.running and (found is None or data.draw(st.booleans())):
            tree.finish(data.draw(st.sampled_from(tree.running)))
        elif found is None:
            break
    else:
        raise AssertionError("does not come to rest")
    levels = {t.level for t in tree.version.tables()}
    assert levels <= {tree.version.deepest()}
    assert 0 not in levels
    assert not any(t.tombstone_count and t.sequence_max <= droppable for t in tree.version.tables())
    tree.settle()
    tree.check_rest()


def test_a_manual_compaction_ends_although_rows_keep_coming():
    tree = Tree(Shape(level0_tables=2, table_bytes=50, level1_bytes=100, ratio=2))
    for start in range(40):
        tree.flush((key, False) for key in range(start, start + 10))
    tree.settle()
    last = max(row.sequence for row in tree.newest.values())
    deepest = tree.version.deepest()
    for step in range(STEPS_MAX):
        tree.flush([(step % 50, False)])
        found = pick_all("points", tree.version, tree.shape, droppable=SEQUENCE_MAX, sequence_max=last)
        if found is None:
            break
        tree.run(found)
    else:
        raise AssertionError("does not end")
    assert len(tree.version.level0) >= 1  # the newest are let be
    assert all(t.level >= deepest for t in tree.version.tables() if t.sequence_min <= last)


def test_a_manual_compaction_begins_at_the_bottom_so_that_what_lies_above_sinks_unwritten():
    tree = Tree(Shape(level0_tables=9))
    for level in (3, 2, 1, 0):  # each written over all that is there
        tree.flush((key, False) for key in range(10))
        whole = tree.version.level0[0]
        tree.version = tree.version.edit([msgspec.structs.replace(whole, level=level)], [whole.number])
    steps = []
    while (found := pick_all("points", tree.version, tree.shape)) is not None:
        tree.run(found)
        steps.append((found.level, found.move))
    assert steps == [(2, False), (1, True), (2, False), (0, False), (1, True), (2, False)]


# --- what is picked -----------------------------------------------------------------------------------------------------------


def version_of(*tables: TableInfo) -> Version:
    return Version().edit(tables, [])


def numbers(tables: Iterable[TableInfo]) -> list[int]:
    return [entry.number for entry in tables]


def rising(tree: Tree, size: int) -> Iterator[list[tuple[int, bool]]]:
    """Memtables of a topic without a key: each lies behind all before."""
    for start in count(0, size):
        yield [(key, False) for key in range(start, start + size)]


def test_a_tree_at_rest_needs_nothing():
    shape = Shape(level1_bytes=10_000)
    assert pick("points", Version(), shape) is None
    assert pick_all("points", Version(), shape) is None
    version = version_of(table(1, 0, 9), table(2, 0, 9), table(3, 0, 9), table(4, 0, 9, level=1, file_bytes=9_999))
    assert pick("points", version, shape) is None


def test_the_level_furthest_beyond_its_bound_is_next():
    shape = Shape(level0_tables=2, level1_bytes=1000, ratio=2)
    level0 = [table(1, 0, 4), table(2, 5, 9)]
    level1 = [table(3, 20, 29, level=1, file_bytes=1500)]
    found = pick("points", version_of(*level0, *level1), shape)
    assert found is not None
    assert (found.level, found.target_level, numbers(found.inputs)) == (1, 2, [3])
    found = pick("points", version_of(*level0, table(4, 3, 3), table(5, 2, 3), *level1), shape)
    assert found is not None
    assert (found.level, found.target_level, numbers(found.inputs)) == (0, 1, [5, 4, 2, 1])
    assert scores(version_of(*level0, *level1), shape) == (1.0, 1.5, 0, 0, 0, 0)


def test_level_0_takes_along_what_lies_in_its_range_even_between_its_tables():
    shape = Shape(level0_tables=2, table_bytes=1000)
    version = version_of(
        table(1, 0, 4),
        table(2, 20, 24),
        *(table(3 + at, 6 * at, 6 * at + 1, level=1, file_bytes=2000) for at in range(6)),
        table(9, 24, 25, level=2),
    )
    found = pick("points", version, shape)
    assert found is not None
    assert numbers(found.target_inputs) == [3, 4, 5, 6, 7]  # 0 to 24; also 6 and 12, which no single table overlaps
    assert not found.bottom
    assert not found.move


def test_level_0_waits_while_any_of_its_tables_or_of_those_below_is_busy():
    shape = Shape(level0_tables=2)
    version = version_of(
        table(1, 0, 4), table(2, 2, 6), table(3, 8, 9), table(4, 3, 4, level=1), table(5, 20, 21, level=1)
    )
    for number in (1, 2, 3, 4):
        assert pick("points", version, shape, frozenset([number])) is None
    found = pick("points", version, shape, frozenset([5]))
    assert found is not None
    assert found.numbers == {1, 2, 3, 4}


def test_below_level_0_tables_take_turns_and_busy_ones_are_passed_over():
    shape = Shape(level1_bytes=1000, level0_tables=2)
    version = version_of(*(table(at + 1, 10 * at, 10 * at + 5, level=1) for at in range(4)), table(9, 12, 14, level=2))

    def turn(cursor: int | None, *busy: int) -> list[int]:
        found = pick("points", version, shape, frozenset(busy), {} if cursor is None else {1: (cursor,)})
        return [] if found is None else numbers(found.tables)

    assert turn(None) == turn(35) == turn(99) == [1]
    assert turn(5) == [2, 9]
    assert turn(15) == [3]
    assert turn(5, 2) == turn(5, 9) == [3]
    assert turn(30, 1) == [2, 9]
    assert turn(None, 1, 3, 4, 9) == turn(None, 1, 2, 3, 4) == []


def test_a_table_with_nothing_in_its_way_is_moved():
    shape = Shape(level1_bytes=1000)
    version = version_of(table(1, 0, 5, level=1, file_bytes=1000), table(2, 6, 9, level=2), table(3, 3, 3, level=3))
    found = pick("points", version, shape)
    assert found is not None
    assert found.move
    assert not found.bottom
    assert [(t.number, t.level) for t in found.moved()] == [(1, 2)]


def test_rows_whose_key_is_their_sequence_are_written_once():
    tree = Tree(Shape(level0_tables=4, table_bytes=100, level1_bytes=400, ratio=2))
    for _, changes in zip(range(200), rising(tree, 10), strict=False):
        tree.flush(changes)
        tree.settle()
    assert tree.written_bytes == 0  # all of it moved
    assert tree.version.deepest() >= 3


def test_small_tables_do_not_pile_up_and_are_seldom_written_again():
    flush_count, rows = 1024, 2
    tree = Tree(Shape(level0_tables=4, table_bytes=100_000, level1_bytes=1_000_000))
    for _, changes in zip(range(flush_count), rising(tree, rows), strict=False):
        tree.flush(changes)
        tree.settle()
    assert len(list(tree.version.tables())) <= 12  # log2 of 1024, and level 0
    assert tree.written_bytes <= flush_count * rows * ROW_BYTES * 10


def test_a_table_of_mostly_tombstones_goes_down_to_what_it_deletes_and_then_away():
    shape = Shape()
    holder = table(1, 0, 5, level=1, tombstone_count=6)
    below = table(2, 3, 4, level=3)
    version = version_of(holder, below)
    assert pick("points", version, shape) is None  # somebody may read at an older sequence
    assert pick("points", version, shape, droppable=holder.sequence_max - 1) is None
    found = pick("points", version, shape, droppable=holder.sequence_max)
    assert found is not None
    assert (found.level, found.target_level, found.move, found.bottom) == (1, 2, True, False)
    assert pick("points", version, shape, frozenset([1]), droppable=SEQUENCE_MAX) is None
    found = pick("points", version_of(holder), shape, droppable=SEQUENCE_MAX)
    assert found is not None  # where nothing lies below, in its own place
    assert (found.level, found.target_level, found.move, found.bottom) == (1, 1, False, True)
    half = table(1, 0, 5, level=1, tombstone_count=5)
    assert pick("points", version_of(half), shape, droppable=SEQUENCE_MAX) is None


def test_a_move_to_the_bottom_is_not_worth_it_for_a_table_of_tombstones():
    version = version_of(table(1, 0, 5, level=1, tombstone_count=9))
    found = pick("points", version, Shape(level1_bytes=1000), droppable=SEQUENCE_MAX)
    assert found is not None
    assert (found.move, found.bottom, found.target_level) == (False, True, 2)


def test_a_tree_that_once_had_more_levels_keeps_what_lies_there():
    version = version_of(table(1, 0, 9, level=5, file_bytes=1 << 40), table(2, 0, 9, level=2))
    shape = Shape(level_count=3, level1_bytes=10)
    found = pick("points", version, shape)
    assert found is not None
    assert (found.level, found.bottom) == (2, False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level0_tables": 0}, "level0_tables"),
        ({"level0_tables": 13}, "slowdown_tables"),
        ({"stop_tables": 11}, "stop_tables"),
        ({"ratio": 1}, "ratio"),
        ({"table_bytes": 0}, "table_bytes"),
        ({"level1_bytes": 0}, "level1_bytes"),
        ({"level_count": 1}, "level_count"),
        ({"level_count": LEVEL_COUNT + 1}, "level_count"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Shape(**settings)


# --- what keeps them from being in the way --------------------------------------------------------------------------------

POINTS = Schema("points", {"key": "u8"}, key=("key",))


def test_compactions_write_no_faster_than_they_may_and_a_pause_saves_up_a_tenth_of_a_second(monkeypatch):
    now_s, slept = 100.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now_s
        slept.append(seconds)
        now_s += seconds

    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))
    rate = engine._Rate(1000, lambda: None)
    for _ in range(51):
        rate.take(100)
    assert sum(slept) == pytest.approx(5.0)
    now_s += 60.0
    rate.take(1000)
    assert slept[-1] == pytest.approx(0.9)
    slept.clear()
    engine._Rate(None, lambda: None).take(1 << 40)
    assert slept == []


def test_all_that_a_compaction_writes_counts_and_its_thread_steps_back_behind_others(tmp_path, monkeypatch):
    taken, seen = list[int](), set[tuple[str, bool]]()

    def take(rate: object, count: int) -> None:
        thread = psutil.Process(threading.get_native_id())
        taken.append(count)
        seen.add((threading.current_thread().name, thread.nice() >= 10))

    monkeypatch.setattr(engine._Rate, "take", take)
    with Store(tmp_path, [POINTS], sync="never") as store:
        for first in (0, 100):
            for key in range(first, first + 200):
                store["points"].put(key)
            store.snapshot()
        assert taken == []  # flushing waits for nobody
        store.compact()
    assert sum(taken) == 300 * POINTS.row_bytes
    assert seen == {("ringmain-compaction", True)}


def test_the_more_tables_wait_for_a_compaction_the_longer_a_full_memtable_waits_and_at_last_until_it_is_done(
    tmp_path, monkeypatch
):
    slept, compact, go_on = list[float](), tree_writer.TreeWriter.compact, threading.Event()

    def compact_late(*arguments: Any) -> None:
        assert go_on.wait(30)
        compact(*arguments)

    monkeypatch.setattr(tree_writer.TreeWriter, "compact", compact_late)
    shape = Shape(level0_tables=2, slowdown_tables=2, stop_tables=4)
    with Store(tmp_path, [POINTS], sync="never", shape=shape) as store, contextlib.ExitStack() as behind:
        behind.callback(go_on.set)
        writer = store._trees["points"]
        monkeypatch.setattr(tree_writer, "time", SimpleNamespace(**vars(tree_writer.time) | {"sleep": slept.append}))
        for number in range(1, 4):
            store["points"].put(number)
            store.snapshot()
            writer.rotate()
        assert slept == [tree_writer.SLOWDOWN_S, 2 * tree_writer.SLOWDOWN_S]
        assert store.stats()["points"].counts.slowdown_count == 2
        store["points"].put(4)
        store.snapshot()
        waiting = threading.Thread(target=writer.rotate)
        waiting.start()
        wait_until(lambda: store.stats()["points"].counts.stall_count > 0)
        assert waiting.is_alive()
        go_on.set()
        waiting.join(30)
        assert not waiting.is_alive()
