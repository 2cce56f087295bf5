"""Opening a store with some of its topics, with more than it had, or with none named."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest
from ringmain.storage import FormatMismatch, Schema, TablesFailed
from ringmain.storage.log_files import list_files
from ringmain.storage.store import Store
from ringmain.storage.table_files import TableFiles
from ringmain.storage.tree import Tree
from support.logs import wait_until

A = Schema("a", {"key": "u8", "value": "u8"}, key=("key",))
B = Schema("b", {"key": "u8", "value": "u8"}, key=("key",))
C = Schema("c", {"value": "u8"})
FILE_BYTES = 4 << 20


def open_store(directory, schemas, **settings):
    return Store(directory, schemas, log_file_bytes=FILE_BYTES, memtable_bytes=1 << 20, **settings)


def value(tree: Tree, key: int) -> int:
    row = tree.get(key)
    assert row is not None
    return int(row["value"])


def test_a_topic_that_is_not_named_is_left_alone_and_is_there_again_when_it_is(tmp_path):
    with open_store(tmp_path, [A, B]) as store:
        for number in range(1, 101):
            store["a"].put(number % 10, number)
            store["b"].put(number % 10, number)
        store.snapshot()
        for number in range(101, 111):  # only in the log
            store["b"].put(number % 10, number)
    with open_store(tmp_path, [A]) as store:
        assert list(store) == ["a"]
        with pytest.raises(KeyError, match="'b' was not named"):
            store["b"]
        store["a"].put(3, 1000)
        store.compact()
    with open_store(tmp_path, [B, A]) as store:
        assert value(store["a"], 3) == 1000
        assert [row["value"] for rows in store["b"].scan() for row in rows] == [110, *range(101, 110)]
        assert store.stats()["b"].checkpoint == 100
        assert store["b"].put(1, 1) == 111


@pytest.mark.timeout(60)  # it used not to return
@pytest.mark.parametrize(
    ("topic", "told"), [("typo", "no topic 'typo'; there are a"), ("b", "'b' was not named .* there are a")]
)
def test_compacting_a_topic_that_is_not_open_is_refused_and_names_those_that_are(tmp_path, topic, told):
    with open_store(tmp_path, [A, B]):
        pass
    with open_store(tmp_path, [A]) as store:
        store["a"].put(1, 1)
        with pytest.raises(KeyError, match=told):
            store.compact(topic)
        assert store.stats()["a"].checkpoint == 0  # and nothing was flushed
        store.compact("a")
        assert store.stats()["a"].checkpoint == 1


def test_the_log_is_kept_for_a_topic_that_is_not_named(tmp_path):
    with open_store(tmp_path, [A, B]) as store:
        store["b"].put(1, 5)
    with open_store(tmp_path, [A]) as store:
        rows = np.zeros(20_000, A.payload_dtype)
        for start in range(0, 400_000, len(rows)):
            rows["key"] = np.arange(start, start + len(rows))
            store["a"].put_batch(rows)
        store.snapshot()
        files = list_files(tmp_path / "log")
        assert len(files) > 3
    with open_store(tmp_path, [A, B]) as store:
        assert value(store["b"], 1) == 5
        store.snapshot()  # now nothing in the old files is needed any more
        wait_until(lambda: not files[0][1].exists(), 30)
        assert value(store["b"], 1) == 5


def test_topics_may_be_added_and_the_rest_left_out_in_any_order(tmp_path):
    for schemas in ([A], [A, B], [C], [B, C], [C, B, A]):
        with open_store(tmp_path, schemas) as store:
            for schema in schemas:
                last = store[schema.name].core.next_sequence
                assert store[schema.name].put(*([last] * len(schema.fields))) == last
    with open_store(tmp_path, [A, B, C]) as store:
        assert {name: figures.sequence for name, figures in store.stats().items()} == {"a": 3, "b": 3, "c": 3}
        assert [row["value"] for name in store for rows in store[name].scan() for row in rows] == [1, 2, 3] * 3


def test_without_schemas_a_store_is_opened_with_the_topics_that_it_has(tmp_path):
    with open_store(tmp_path, [A, C], keep_versions=["a"]) as store:
        store["a"].put(1, 1)
        store["a"].put(1, 2)
    with Store.open(tmp_path, memtable_bytes=1 << 20) as store:
        assert sorted(store) == ["a", "c"]
        assert store["a"].schema == A
        assert store["a"].history(1)["value"].tolist() == [2, 1]
        store["c"].put(7)
    with Store.open(tmp_path, [C], memtable_bytes=1 << 20) as store:
        assert list(store) == ["c"]
        assert value(store["c"], 1) == 7
    with pytest.raises(FileNotFoundError):
        Store.open(tmp_path / "nowhere")


def test_a_topic_keeps_the_schema_that_it_was_stored_with(tmp_path):
    with open_store(tmp_path, [A]):
        pass
    with pytest.raises(FormatMismatch, match="'a'"):
        open_store(tmp_path, [Schema("a", {"key": "u4"}, key=("key",))])
    with open_store(tmp_path, [A]) as store:
        assert store["a"].put(1, 1) == 1


def test_all_versions_are_kept_from_when_a_topic_is_first_stored_or_not_at_all(tmp_path):
    with open_store(tmp_path, [A], keep_versions=["a"]) as store:
        store["a"].put(1, 1)
    with open_store(tmp_path, [A, B]) as store:  # need not be named again
        store["a"].put(1, 2)
        store["b"].put(1, 1)
    with pytest.raises(FormatMismatch, match=r"keep_versions of topic 'b'.* history cannot begin later"):
        open_store(tmp_path, [A, B, C], keep_versions=["a", "b", "c"])
    with open_store(tmp_path, [A, B, C], keep_versions=["a", "c"]) as store:  # c was not stored when that was refused
        assert store["a"].history(1)["value"].tolist() == [2, 1]
        assert [store[name].keeps_versions for name in "abc"] == [True, False, True]


def test_rows_of_a_topic_without_a_key_cannot_be_deleted(tmp_path):
    with open_store(tmp_path, [C]) as store:
        store["c"].put(7)
        with pytest.raises(TypeError, match="'c' has no key"):
            store["c"].delete(1)
        assert value(store["c"], 1) == 7
        assert store["c"].put(8) == 2


def test_the_figures_of_a_topic_say_what_failed_when_and_why_and_the_others_go_on(tmp_path, monkeypatch):
    write = TableFiles.write

    def write_but_a(files, merge, schema, *arguments, **settings):
        if schema.name == "a":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.sst.new")
        return write(files, merge, schema, *arguments, **settings)

    monkeypatch.setattr(TableFiles, "write", write_but_a)
    with open_store(tmp_path, [A, B]) as store:
        store["a"].put(1, 1)
        store["b"].put(1, 1)
        assert [figures.failure for figures in store.stats().values()] == [None, None]
        began_ns = time.time_ns()
        with pytest.raises(TablesFailed, match="No space left") as failed:
            store.snapshot()
        failure = store.stats()["a"].failure
        assert failure is not None
        assert (failure.operation, failure.message) == ("flush", str(failed.value))
        assert began_ns <= failure.time_ns <= time.time_ns()
        with pytest.raises(TablesFailed):
            store.compact("a")
        assert store.stats()["a"].failure == failure  # the first one
        wait_until(lambda: store.stats()["b"].checkpoint == 1)
        assert store.stats()["b"].failure is None
    with open_store(tmp_path, [A, B]) as store:
        assert [figures.failure for figures in store.stats().values()] == [None, None]
