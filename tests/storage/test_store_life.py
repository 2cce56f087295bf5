"""How long things live: what a store hands out outlives it; what it has open ends with it, also where it could not be opened."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import ringmain.storage
from ringmain.storage import Schema, StorageError, Store, ViewGone
from ringmain.storage.log_files import list_files
from ringmain.storage.table_files import TableFiles
from support.logs import wait_until
from support.sstables import COMPRESSIONS, needs

A = Schema("a", {"key": "u8", "value": "u8"}, key=("key",))
B = Schema("b", {"key": "u8", "value": "u8"}, key=("key",))


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
    gc.collect()  # what earlier tests left open
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
    gc.collect()  # what earlier tests left open
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


def test_after_a_restart_a_view_as_of_what_tables_have_replaced_is_refused_and_not_empty(tmp_path):
    with Store(tmp_path, [A], memtable_bytes=1 << 16) as store:
        for key, value in ((1, 10), (2, 20), (1, 11)):
            last = store["a"].put(key, value)
        store.snapshot()
    with Store(tmp_path, [A], memtable_bytes=1 << 16) as store:
        for gone in range(1, last):
            with pytest.raises(ViewGone, match=f"{last} is the oldest"):
                store["a"].at(gone)
        with store["a"].at(last) as view:
            assert [row.item()[2:] for rows in view.scan() for row in rows] == [(1, 11), (2, 20)]


def test_a_view_of_a_sequence_that_lies_ahead_ends_with_the_newest_and_stays_so(tmp_path):
    with Store(tmp_path, [A]) as store:
        last = store["a"].put(1, 10)
        with store["a"].at(1000) as view:
            store["a"].put(1, 11)
            row = view.get(1)
            assert view.sequence == last
            assert row is not None
            assert row["value"] == 10


@pytest.mark.parametrize("keep_versions", [(), ("a",)])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_sequence_makes_no_view_and_stops_no_flush(tmp_path, keep_versions, read_only):
    with Store(tmp_path, [A], keep_versions=keep_versions) as store, Store.open(tmp_path, read_only=True) as reader:
        last = store["a"].put(1, 10)
        reader.refresh()
        tree = (reader if read_only else store)["a"]
        for sequence, error in ((-1, ValueError), (-(2**64), ValueError), (10.0, TypeError), ("1", TypeError)):
            with pytest.raises(error):
                tree.at(sequence)  # pyright: ignore[reportArgumentType]
        with tree.at(2**64) as view:
            assert view.sequence == last
            store["a"].put(1, 11)
            store.snapshot()
            row = view.get(1)
            assert row is not None
            assert row["value"] == 10
        assert store.stats()["a"].failure is None


def test_closing_waits_for_the_batch_that_another_thread_is_putting(tmp_path):
    """Whatever that thread was told is stored is there; what comes later is refused."""
    rows = np.zeros(20_000, A.payload_dtype)
    rows["key"] = np.arange(len(rows))
    for round_number in range(8):
        store = Store(tmp_path, [A, B], memtable_bytes=4 << 20)
        put, failed = [store["a"].core.visible], []

        def put_for_ever(store=store, put=put, failed=failed):
            try:
                while True:
                    put.append(store["a"].put_batch(rows))
                    put.append(store["a"].put(1, 1))
            except ValueError as closed:
                failed.append(closed)

        thread = threading.Thread(target=put_for_ever)
        thread.start()
        wait_until(lambda put=put, wanted=round_number: len(put) > wanted)
        store.close()
        thread.join()
        assert "closed" in str(failed[0])
        with pytest.raises(ValueError, match="closed"):
            store["b"].put(1, 1)
        with Store(tmp_path, [A, B], memtable_bytes=4 << 20) as store:
            assert store["a"].core.visible == put[-1]
            assert store.recovered.closed


def test_closing_ends_a_put_that_waits_for_a_flush(tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    write = TableFiles.write

    def write_slowly(*arguments, **settings):
        begun.set()
        assert go_on.wait(30)
        return write(*arguments, **settings)

    monkeypatch.setattr(TableFiles, "write", write_slowly)
    store = Store(tmp_path, [A], memtable_bytes=1 << 12, immutable_max=1)
    failed = []

    def put_for_ever():
        try:
            for number in range(1 << 30):
                store["a"].put(number, number)
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=put_for_ever)
    thread.start()
    wait_until(lambda: store.stats()["a"].counts.stall_count > 0)
    closing = threading.Thread(target=store.close)
    closing.start()
    thread.join(30)
    assert not thread.is_alive()
    assert "closed" in str(failed[0])
    go_on.set()
    closing.join(30)
    assert not closing.is_alive()


def test_a_value_that_closes_the_store_while_it_is_put_is_refused(tmp_path):
    store = Store(tmp_path, [A], memtable_bytes=1 << 16)

    class Closing:
        def __index__(self) -> int:
            store.close()
            return 1

    with pytest.raises(ValueError, match="closed"):
        store["a"].put(1, Closing())
    with Store(tmp_path, [A], memtable_bytes=1 << 16) as store:
        assert store["a"].put(1, 1) == 1


@pytest.mark.parametrize(
    "put",
    [lambda tree: tree.put(3, 3), lambda tree: tree.put_batch(np.zeros(5, A.payload_dtype))],
    ids=["one row", "a batch"],
)
def test_rows_that_came_into_the_log_behind_the_stores_back_stop_its_topic_and_say_so(tmp_path, put):
    with Store(tmp_path, [A, B], memtable_bytes=1 << 16) as store:
        store["a"].put(1, 1)
        row = np.zeros(1, A.dtype)
        row["sequence"], row["key"], row["value"] = 2, 2, 2
        store._log.appender.append_one(store._log.topic("a").number, row)
        for _ in range(2):
            with pytest.raises(StorageError, match="'a': sequence 2 is next here, but 3 in the log"):
                put(store["a"])
        assert store["b"].put(1, 1) == 1
    with Store(tmp_path, [A, B], memtable_bytes=1 << 16) as store:
        assert [row.item()[2:] for rows in store["a"].scan() for row in rows] == [(1, 1), (2, 2)]
        assert store["a"].put(3, 3) == 3


FORKED = """if True:
    import os, signal, sys
    from ringmain.storage import Schema, Store
    store = Store(sys.argv[1], [Schema("a", {"key": "u8", "value": "u8"}, key=("key",))], memtable_bytes=1 << 16)
    store["a"].put(1, 10)
    pid = os.fork()
    if pid == 0:
        said = []
        try:
            store["a"].put(2, 20)
        except ValueError as error:
            said.append("closed" in str(error))
        with store["a"].at() as view:
            said.append(view.get(1)["value"] == store["a"].get(1)["value"] == 10)
        store.close()
        print(*said, os.getpid(), flush=True)
        while True:
            signal.pause()
    for number in range(100):
        store["a"].put(number, number)
    if sys.stdin.read(1) == "c":  # only now, so that the child may have closed its own in vain
        store.close()
    print("done", flush=True)
    signal.pause()
"""


@pytest.mark.process
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_a_forked_child_neither_writes_to_the_store_nor_keeps_it_from_the_next_writer(tmp_path, end):
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    child = 0
    try:
        words = parent.stdout.readline().split()
        child = int(words.pop())
        assert words == ["True", "True"]
        parent.stdin.write(end[0])
        parent.stdin.flush()
        assert parent.stdout.readline() == "done\n"
        if end == "killed":
            parent.kill()
            parent.wait()
        with Store(tmp_path, [A], memtable_bytes=1 << 16) as store:
            assert [row["value"] for rows in store["a"].scan() for row in rows] == list(range(100))
            assert store["a"].core.visible == 101
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.communicate()
