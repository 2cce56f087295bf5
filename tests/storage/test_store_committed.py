"""A store whose rows may still be taken back: what is not committed stays out of its tables, and is flushed once it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import Log, Schema, StoreSettings
from ringmain.storage.engine import Engine
from ringmain.storage.tree import Tree
from support.logs import FILE_BYTES, wait_until

A = Schema("a", {"key": "u8", "value": "u8"}, key=("key",))
B = Schema("b", {"key": "u8", "value": "u8"}, key=("key",))
SETTINGS = StoreSettings(memtable_bytes=1 << 16, immutable_max=2, snapshot_interval=None)


class Committed:
    """Sequences by topic, and how often they were asked for."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.asked_count = 0

    def __call__(self, topic: str) -> int:
        self.asked_count += 1
        return self.ends.get(topic, 0)


@contextlib.contextmanager
def opened(directory: Path, committed: Committed, settings: StoreSettings = SETTINGS) -> Iterator[Engine]:
    """An engine over a log that its trees write to."""
    schemas = {schema.name: schema for schema in (A, B)}
    log = Log(directory / "log", schemas.values(), file_bytes=FILE_BYTES, checkpoints={}, sync_files=False)
    with contextlib.ExitStack() as closing:
        closing.callback(log.close)
        engine = Engine(directory, log, schemas, settings.codecs(schemas), settings, committed=committed)
        closing.callback(engine.close)
        for name in engine:
            core, rotate = engine.feeding(name)
            at = log.topic(name)
            core.open_log(log.appender, at.number, at.next_sequence, at.last_timestamp_ns, rotate, None)
            closing.callback(core.close_log)
        yield engine


def put(tree: Tree, count: int) -> int:
    """Put rows, a batch at a time; returns the last sequence."""
    last = 0
    for first in range(0, count, 100):
        rows = np.zeros(min(100, count - first), A.payload_dtype)
        rows["key"] = np.arange(first, first + len(rows))
        last = tree.put_batch(rows)
    return last


def put_until_one_waits(engine: Engine, topic: str) -> int:
    """Put rows until a memtable waits for its flush; returns the last sequence."""
    last = 0
    while not engine.stats()[topic].immutable_count:
        last = put(engine[topic], 100)
    return last


def test_a_memtable_is_flushed_only_once_its_last_row_is_committed(tmp_path: Path) -> None:
    committed = Committed()
    with opened(tmp_path, committed) as engine:
        last = put_until_one_waits(engine, "a")
        wait_until(lambda: committed.asked_count > 0)
        committed.ends["a"] = 10
        engine.committed_rose()
        put(engine["b"], 5)
        committed.ends["b"] = 5
        engine.committed_rose()
        stats = engine.stats()["a"]
        assert (stats.immutable_count, stats.checkpoint, stats.tables_by_level[0]) == (1, 0, 0)
        committed.ends["a"] = last
        engine.committed_rose()
        wait_until(lambda: engine.stats()["a"].immutable_count == 0)
        stats = engine.stats()["a"]
        assert 0 < stats.checkpoint <= last
        assert stats.tables_by_level[0] == 1


def test_while_nothing_is_committed_nobody_asks_again_and_again(tmp_path: Path) -> None:
    committed = Committed()
    with opened(tmp_path, committed) as engine:
        put_until_one_waits(engine, "a")
        wait_until(lambda: bool(engine._waiting))  # pyright: ignore[reportPrivateUsage]
        asked: list[int] = []

        def settled() -> bool:
            asked.append(committed.asked_count)
            return len(asked) > 50 and len(set(asked[-50:])) == 1  # not once in a tenth of a second

        wait_until(settled)
        assert committed.asked_count < 20


def test_a_topic_that_waits_does_not_keep_another_from_its_flush(tmp_path: Path) -> None:
    committed = Committed()
    committed.ends["b"] = 1 << 40
    with opened(tmp_path, committed) as engine:
        put_until_one_waits(engine, "a")
        put(engine["b"], 10_000)
        wait_until(lambda: engine.stats()["b"].checkpoint > 0)
        assert engine.stats()["a"].checkpoint == 0


def test_putting_waits_while_too_many_memtables_do_and_closing_does_not(tmp_path: Path) -> None:
    committed, failed = Committed(), list[BaseException]()

    def put_for_ever(tree: Tree) -> None:
        try:
            while True:
                put(tree, 100)
        except ValueError as error:
            failed.append(error)

    with opened(tmp_path, committed) as engine:
        thread = threading.Thread(target=put_for_ever, args=(engine["a"],))
        thread.start()
        wait_until(lambda: engine.stats()["a"].counts.stall_count > 0)
        assert engine.stats()["a"].immutable_count == SETTINGS.immutable_max
    thread.join(30)
    assert not thread.is_alive()
    assert "closed" in str(failed[0])
    assert list((tmp_path / "store").glob("*.sst")) == []
    last = 0
    committed.ends["a"] = 1 << 40
    with opened(tmp_path, committed) as engine:  # all of it is read from the log again
        engine.snapshot()
        last = engine["a"].core.visible
        assert engine.stats()["a"].checkpoint == last > 0


def test_opening_puts_into_tables_only_what_is_committed_even_where_memory_is_short(tmp_path: Path) -> None:
    committed = Committed()
    roomy = StoreSettings(memtable_bytes=1 << 22, snapshot_interval=None)
    with opened(tmp_path, committed, roomy) as engine:
        last = put(engine["a"], 20_000)
        assert engine.stats()["a"].immutable_count == 0
    with opened(tmp_path, committed) as engine:
        assert engine.stats()["a"].checkpoint == 0
        assert engine["a"].core.visible == last
        assert int(np.concatenate(list(engine["a"].scan()))["sequence"].max()) == last
        committed.ends["a"] = last
        engine.committed_rose()
        engine.snapshot()
        assert engine.stats()["a"].checkpoint == last


@pytest.mark.parametrize("interval", [None, 0.01])
def test_a_snapshot_waits_until_all_of_it_is_committed(tmp_path: Path, interval: float | None) -> None:
    committed = Committed()
    settings = StoreSettings(memtable_bytes=1 << 20, snapshot_interval=interval)
    with opened(tmp_path, committed, settings) as engine:
        last = put(engine["a"], 300)
        thread = threading.Thread(target=engine.snapshot)
        if interval is None:
            thread.start()
        wait_until(lambda: engine.stats()["a"].immutable_count == 1)
        wait_until(lambda: bool(engine._waiting))  # pyright: ignore[reportPrivateUsage]
        put(engine["a"], 100)
        if interval is not None:
            asked_count = committed.asked_count
            wait_until(lambda: committed.asked_count > asked_count + 5)  # some more times; what waits is not added to
        assert engine.stats()["a"].immutable_count == 1
        assert engine.stats()["a"].checkpoint == 0
        committed.ends["a"] = last + 100
        engine.committed_rose()
        if interval is None:
            thread.join(30)
            assert not thread.is_alive()
            assert engine.stats()["a"].checkpoint == last
        else:
            wait_until(lambda: engine.stats()["a"].checkpoint == last + 100)
