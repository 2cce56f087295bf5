"""How long things live: what a store hands out outlives it; what it has open ends with it, also where it could not be opened."""

from __future__ import annotations

import gc
import os
import threading

import pytest
import ringmain.storage
from ringmain.storage import Schema, StorageError, Store
from ringmain.storage.log_files import list_files
from support.logs import wait_until
from support.sstables import COMPRESSIONS, needs

A = Schema("a", {"key": "u8", "value": "u8"}, key=("key",))


def open_files() -> list[str]:
    """What this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the listing itself
            continue
    return sorted(found)


def test_what_a_user_of_the_store_names_is_found_in_storage_itself():
    for name in ("Store", "StoreReader", "Shape", "TopicStats", "Tree", "View", "ViewGone", "ManifestFailed"):
        assert name in ringmain.storage.__all__
        assert getattr(ringmain.storage, name).__name__ == name


def test_a_store_that_cannot_be_opened_leaves_no_file_open_and_no_thread(tmp_path):
    with Store(tmp_path, [A], memtable_bytes=1 << 16) as store:
        for key in range(100):
            store["a"].put(key, key)
        store.snapshot()
        for key in range(100):
            store["a"].put(key, key + 1)
    files, threads = open_files(), threading.active_count()
    table = next((tmp_path / "store").glob("*.sst"))
    away = tmp_path / "away"
    table.rename(away)
    with pytest.raises(FileNotFoundError, match=table.name):
        Store(tmp_path, [A], memtable_bytes=1 << 16)
    assert open_files() == files
    away.rename(table)

    log = [path.rename(tmp_path / path.name) for _, path in list_files(tmp_path / "log")]
    with pytest.raises(StorageError):  # this is not the log that the manifest belongs to
        Store(tmp_path, [A], memtable_bytes=1 << 16)
    assert open_files() == files
    for _, path in list_files(tmp_path / "log"):
        path.unlink()
    for path in log:
        path.rename(tmp_path / "log" / path.name)

    with Store(tmp_path, [A], memtable_bytes=1 << 16) as store:
        assert [row["value"] for rows in store["a"].scan() for row in rows] == list(range(1, 101))
    assert open_files() == files
    assert threading.active_count() == threads


def test_a_store_whose_threads_cannot_all_be_started_ends_those_that_were(tmp_path, monkeypatch):
    files, threads = open_files(), threading.active_count()
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "ringmain-keeper":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Store(tmp_path, [A], memtable_bytes=1 << 16)
    monkeypatch.undo()
    wait_until(lambda: threading.active_count() == threads)
    assert open_files() == files
    with Store(tmp_path, [A], memtable_bytes=1 << 16) as store:
        assert store["a"].put(1, 1) == 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_row_that_was_handed_out_stays_when_what_it_was_found_in_is_gone(tmp_path, compression):
    """It may come from a memtable that is flushed, from tables that are compacted away, or from a store that is closed."""
    settings = {"memtable_bytes": 1 << 16, "compression": needs(compression)}
    held = []
    with Store(tmp_path, [A], **settings) as store:
        tree = store["a"]
        with tree.at(0) as empty:
            assert empty.get(1) is None
        for key in range(50):
            tree.put(key, key + 1000)
        held += [tree.get(key) for key in range(50)]
        with tree.at() as view:
            held += [view.get(key) for key in range(50)]
        for _ in range(3):
            store.compact()
            held += [tree.get(key) for key in range(50)]
            with tree.at() as view:
                held += [view.get(key) for key in range(50)]
            for key in range(5_000):
                tree.put(key + 100, key)
    del store, tree, view, empty
    gc.collect()
    for at, row in enumerate(held):
        assert row is not None
        assert row.flags.owndata
        assert row.item()[2:] == (at % 50, at % 50 + 1000)
