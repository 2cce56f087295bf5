"""The memtable: a dict of lists of versions, seen as of any sequence, also while rows keep coming."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.storage import Schema
from ringmain.storage._tree import KeyCodec, MemoryPool, Memtable, Merge, State
from support.keyed import Order, Rows, key_order, key_values, keyed, keyed_schemas, keys_of, rows_of

POINTS = keyed("u4")
SEQUENCE_MAX = (1 << 64) - 1
MEMORY = 1 << 18


class Versions:
    """What a memtable should hold: for each key its rows, the oldest first, each with whether it deletes the key."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.rows: dict[Order, list[tuple[np.void, bool]]] = {}

    def insert(self, rows: Rows, tombstones: bool) -> None:
        for row in rows:
            self.rows.setdefault(key_order(self.schema, key_values(self.schema, row)), []).append((row, tombstones))

    def versions(self, key: Order, visible: int) -> list[tuple[np.void, bool]]:
        """The key's rows that are visible, the newest first."""
        return [version for version in reversed(self.rows.get(key, [])) if version[0]["sequence"] <= visible]

    def get(self, key: Order, visible: int) -> bytes | None:
        for row, dead in reversed(self.rows.get(key, [])):
            if row["sequence"] <= visible:
                return None if dead else row.tobytes()
        return None

    def scan(self, visible: int) -> list[bytes]:
        found = [self.get(key, visible) for key in sorted(self.rows)]
        return [row for row in found if row is not None]

    def history(self, visible: int) -> list[tuple[bytes, bool]]:
        return [(row.tobytes(), dead) for key in sorted(self.rows) for row, dead in self.versions(key, visible)]


def state_of(memtable: Memtable) -> State:
    return State(memtable.codec, (memtable,), (), ())


def scan(memtable: Memtable, visible: int = SEQUENCE_MAX, *, reverse: bool = False) -> list[bytes]:
    merge = Merge(memtable.codec, [(memtable, len(memtable))], [], reverse=reverse)
    merge.begin_scan(visible)
    rows = np.empty(len(memtable) + 2, memtable.codec.dtype)
    return [row.tobytes() for row in rows[: merge.fill(rows)]]


def history(memtable: Memtable, visible: int = SEQUENCE_MAX) -> list[tuple[bytes, bool]]:
    merge = Merge(memtable.codec, [(memtable, len(memtable))], [])
    merge.begin_scan(visible, True)
    rows, flags = np.empty(len(memtable) + 2, memtable.codec.dtype), np.zeros(len(memtable) + 2, "u1")
    count = merge.fill(rows, flags)
    return [(row.tobytes(), bool(dead)) for row, dead in zip(rows[:count], flags, strict=False)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_inserted_it_equals_a_dict_of_versions_at_every_sequence(data):
    schema = data.draw(keyed_schemas(fields_max=3))
    keys = data.draw(keys_of(schema, count_max=8))
    memtable, model, sequence = Memtable(KeyCodec(schema), MEMORY), Versions(schema), 0
    for _ in range(data.draw(st.integers(1, 8))):
        chosen = data.draw(st.lists(st.sampled_from(keys), max_size=12))
        tombstones = data.draw(st.booleans())
        rows = rows_of(schema, chosen, sequence + 1)
        memtable.insert(rows, tombstones)
        model.insert(rows, tombstones)
        sequence += len(rows)
        if data.draw(st.booleans()):  # so that order is made of many runs
            assert scan(memtable) == model.scan(sequence)

    state, probes = state_of(memtable), rows_of(schema, keys)
    for visible in {0, sequence // 3, sequence // 2, max(sequence - 1, 0), sequence, SEQUENCE_MAX}:
        wanted = [model.get(key_order(schema, key), visible) for key in keys]
        got = [state.get(key, visible) for key in keys]
        assert [None if row is None else row.tobytes() for row in got] == wanted
        rows, found = state.get_many(probes, visible)
        assert [row.tobytes() if there else None for row, there in zip(rows, found, strict=True)] == wanted
        assert scan(memtable, visible) == model.scan(visible)
        assert scan(memtable, visible, reverse=True) == model.scan(visible)[::-1]
        assert history(memtable, visible) == model.history(visible)


def test_it_counts_what_it_holds_and_gives_it_back_in_the_order_it_came():
    memtable = Memtable(KeyCodec(POINTS), MEMORY)
    assert (len(memtable), memtable.sequences, memtable.tombstone_count) == (0, (0, 0), 0)
    assert scan(memtable) == []
    put, deleted, again = (
        rows_of(POINTS, keys, first) for keys, first in (([(3,), (1,)], 10), ([(3,)], 12), ([(2,)], 13))
    )
    memtable.insert(put)
    memtable.insert(deleted, True)
    memtable.insert(again)
    memtable.insert(again[:0])
    assert (len(memtable), memtable.sequences, memtable.tombstone_count) == (4, (10, 13), 1)
    rows, tombstones = memtable.rows()
    assert rows.tobytes() == put.tobytes() + deleted.tobytes() + again.tobytes()
    assert tombstones.tolist() == [False, False, True, False]


def test_a_deleted_key_is_absent_from_its_tombstone_on_and_there_before_and_after():
    memtable = Memtable(KeyCodec(POINTS), MEMORY)
    for first, tombstone in ((1, False), (2, True), (3, True), (4, False)):
        memtable.insert(rows_of(POINTS, [(7,)], first), tombstone)
    state = state_of(memtable)
    there = [state.get((7,), visible) for visible in range(6)]
    assert [None if row is None else int(row["sequence"]) for row in there] == [None, 1, None, None, 4, 4]
    assert state.get((8,), 5) is None


def test_what_get_returns_does_not_change_when_the_key_does():
    memtable = Memtable(KeyCodec(POINTS), MEMORY)
    memtable.insert(rows_of(POINTS, [(7,)], 1))
    before = state_of(memtable).get((7,), 1)
    assert before is not None
    held = before.tobytes()
    memtable.insert(rows_of(POINTS, [(7,)], 2))
    state = state_of(memtable)
    del memtable
    assert before.tobytes() == held
    now = state.get((7,), 2)
    assert now is not None
    assert now["sequence"] == 2


def test_a_scan_is_of_the_rows_there_were_when_it_began():
    memtable = Memtable(KeyCodec(POINTS), MEMORY)
    memtable.insert(rows_of(POINTS, [(key,) for key in range(0, 40, 2)], 1))
    merge = Merge(memtable.codec, [(memtable, 20)], [])
    merge.begin_scan(20)
    rows = np.empty(8, POINTS.dtype)
    seen = [int(row["k0"]) for row in rows[: merge.fill(rows)]]
    memtable.insert(rows_of(POINTS, [(key,) for key in range(1, 40, 2)], 21))
    scan(memtable)  # sorts them in between
    while count := merge.fill(rows):
        seen += rows["k0"][:count].tolist()
    assert seen == list(range(0, 40, 2))


# --- full -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("u1",), ("u8", "i4"), ("S40", "f8")])
@pytest.mark.parametrize("budget", [0, 1, 600, 4096, 10_000, 100_000, 1 << 20])
def test_it_takes_as_many_rows_as_its_memory_holds_and_not_one_more(kinds, budget):
    schema = keyed(*kinds)
    memtable = Memtable(KeyCodec(schema), budget)
    capacity = memtable.capacity
    assert memtable.room == capacity >= 1
    assert memtable.memory_bytes <= max(budget, 1024) + 64 + 4095  # a cache line's and whole pages
    assert capacity * schema.row_bytes >= budget // 3 or budget < 4096  # much of it is for rows
    each: dict[str, Any] = {"u": lambda at: at % 200, "S": lambda at: b"%d" % at, "i": lambda at: -at, "f": float}
    keys = [tuple(each[kind[0]](at) for kind in kinds) for at in range(capacity + 2)]
    rows = rows_of(schema, keys)[:capacity]
    for first in range(0, capacity - 1, 1000):
        memtable.insert(rows[first : min(first + 1000, capacity - 1)])
    assert memtable.room == 1
    with pytest.raises(ValueError, match="2 are more than the 1 that still fit"):
        memtable.insert(rows_of(schema, keys[:2], capacity))
    assert (len(memtable), memtable.room) == (capacity - 1, 1)
    memtable.insert(rows[capacity - 1 :])
    assert memtable.room == 0
    with pytest.raises(ValueError, match="1 are more than the 0"):
        memtable.insert(rows[:1])
    memtable.insert(rows[:0])

    model = Versions(schema)
    model.insert(rows, False)
    assert scan(memtable) == model.scan(SEQUENCE_MAX)
    found_rows, found = state_of(memtable).get_many(rows)
    assert found.all()
    wanted = [model.get(key_order(schema, key), SEQUENCE_MAX) for key in keys[:capacity]]
    assert [row.tobytes() for row in found_rows] == wanted


# --- memory -----------------------------------------------------------------------------------------------------------------


def test_a_memtable_takes_over_the_memory_of_one_that_nobody_holds_and_begins_empty():
    codec, pool = KeyCodec(POINTS), MemoryPool(1 << 20)
    keys = [(key,) for key in range(100)]
    first = Memtable(codec, MEMORY, pool)
    first.insert(rows_of(POINTS, keys))
    at = first.address
    del first
    second = Memtable(codec, MEMORY, pool)
    assert second.address == at
    assert scan(second) == []
    assert not any(state_of(second).get(key, SEQUENCE_MAX) for key in keys)
    newer = rows_of(POINTS, keys[:50], 101)
    second.insert(newer)
    assert scan(second) == [row.tobytes() for row in newer]
    assert state_of(second).get(keys[50], SEQUENCE_MAX) is None


@pytest.mark.parametrize("holder", ["state", "merge"])
def test_memory_that_a_reader_holds_is_nobody_elses(holder):
    codec, pool = KeyCodec(POINTS), MemoryPool(1 << 20)
    keys = [(key,) for key in range(1000)]
    old = rows_of(POINTS, keys)
    first = Memtable(codec, MEMORY, pool)
    first.insert(old)
    at = first.address
    held = state_of(first) if holder == "state" else Merge(codec, [(first, len(first))], [])
    del first
    second = Memtable(codec, MEMORY, pool)
    assert second.address != at
    second.insert(rows_of(POINTS, keys, 5000))
    if isinstance(held, State):
        out, found = held.get_many(old, 1000)
        assert found.all()
    else:
        held.begin_scan(1000)
        out = np.empty(1002, POINTS.dtype)
        out = out[: held.fill(out)]
    assert out.tobytes() == old.tobytes()


def is_mapped(address: int) -> bool:
    spans = (line.split(maxsplit=1)[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(first, 16) <= address < int(end, 16) for first, end in spans)


@pytest.mark.parametrize(("keep_bytes", "kept"), [(0, 0), (1, 1), (2 * MEMORY, 2), (1 << 30, 3)])
def test_a_pool_gives_back_to_the_system_what_it_is_not_asked_to_keep(keep_bytes, kept):
    codec, pool = KeyCodec(POINTS), MemoryPool(keep_bytes)
    tables = [Memtable(codec, MEMORY, pool) for _ in range(3)]
    addresses = [table.address for table in tables]
    del tables
    assert sum(map(is_mapped, addresses)) == kept
    larger = Memtable(codec, 4 * MEMORY, pool)  # what is kept is too small for it
    larger.insert(rows_of(POINTS, [(key % 7,) for key in range(larger.capacity)]))
    assert larger.memory_bytes > 3 * MEMORY
    assert sum(map(is_mapped, addresses)) >= kept
    del larger, pool
    assert not all(map(is_mapped, addresses))


def test_memory_is_made_ready_ahead_of_the_rows_and_holds_what_it_held():
    memtable = Memtable(KeyCodec(POINTS), MEMORY)
    size = memtable.memory_bytes
    assert memtable.touch(0) == 0
    assert memtable.touch(size) == 0
    assert memtable.touch(size + 1000) == 1000
    rows = rows_of(POINTS, [(key,) for key in range(memtable.capacity)])
    memtable.insert(rows[:500])
    behind = memtable.touch(size)
    assert 500 * POINTS.row_bytes <= behind < size  # the hash table, which has no end, counts as used
    memtable.insert(rows[500:])
    assert memtable.touch(1000) >= 1000 - 4096  # the last page's rest is behind the last row
    assert scan(memtable) == [row.tobytes() for row in rows]


# --- threads ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("u4",), ("S20", "u4")])
def test_readers_see_whole_rows_and_the_newest_visible_ones_while_a_thread_inserts(kinds):
    schema = keyed(*kinds)
    codec, key_count, total = KeyCodec(schema), 997, 60_000
    memtable = Memtable(codec, 16 << 20)
    everything = rows_of(
        schema, [(b"x",) * (len(kinds) - 1) + (sequence % key_count,) for sequence in range(1, total + 1)]
    )
    dead = everything["sequence"] % 7 == 0  # inserted as tombstones, one by one
    assert memtable.capacity >= total
    published = [0]
    failures: list[BaseException] = []
    state, probes = state_of(memtable), everything[: key_count - 1].copy()
    reads = [0] * 3
    done = threading.Event()

    def newest(visible: int) -> tuple[Rows, np.ndarray[Any, Any]]:
        """What a reader must see of keys 1, 2, …: the last sequence of each, up to `visible`."""
        key = np.arange(1, key_count)
        last = visible - (visible - key) % key_count
        there = last >= 1
        last = np.where(there, last, 1)
        return everything[last - 1], there & ~dead[last - 1]

    def insert() -> None:
        first = 0
        while first < total and not failures:
            last = min(total, first + 1 + first % 50)
            while first < last:
                step = first + 1 if dead[first] else min(last, first + 6 - first % 7)
                memtable.insert(everything[first:step], bool(dead[first]))
                first = step
            published[0] = first

    def get(reader: int) -> None:
        while not done.is_set() or not reads[reader]:
            visible = published[0]
            rows, found = state.get_many(probes, visible)
            wanted, there = newest(visible)
            assert (found == there).all(), f"as of {visible}"
            assert (rows[found] == wanted[there]).all(), f"as of {visible}"
            reads[reader] += 1

    def scan_all(reader: int) -> None:
        out = np.empty(key_count + 1, schema.dtype)
        while not done.is_set() or not reads[reader]:
            visible = published[0]
            merge = Merge(codec, [(memtable, visible)], [], (b"x",) * (len(kinds) - 1) + (1,))
            merge.begin_scan(visible)
            count = merge.fill(out)
            wanted, there = newest(visible)
            assert (out[:count] == wanted[there]).all(), f"as of {visible}"
            reads[reader] += 1

    def run(job: Any, *arguments: int) -> None:
        try:
            job(*arguments)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=run, args=(job, at)) for at, job in enumerate((get, get, scan_all))]
    for thread in readers:
        thread.start()
    run(insert)
    done.set()
    for thread in readers:
        thread.join(60)
    assert not any(thread.is_alive() for thread in readers)
    if failures:
        raise failures[0]
    assert published[0] == len(memtable) == total
    assert all(reads)
