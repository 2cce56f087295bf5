"""A bus whose topics are kept by key as well: what the writer and other processes find, live, after a restart, and after a kill."""

# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from ringmain.bus import Fenced, Writer, WriterFailed, attach
from ringmain.storage import Log, LogReader, Schema, Shape, StorageError, Store, StoreReader, StoreSettings, table_files
from ringmain.storage.backup import backup
from ringmain.storage.log_files import list_files
from ringmain.storage.manifest import read_manifest
from ringmain.storage.restore import restore
from ringmain.storage.store_repair import repair_store
from ringmain.storage.store_verify import verify_store
from ringmain.storage.tree_writer import TreeWriter
from ringmain.subscribers import RealTime
from support.children import TIMEOUT_S, Children
from support.logs import FILE_BYTES, wait_until

A = Schema("a", {"key": "u8", "value": "u8"}, key=("key",))
B = Schema("b", {"value": "u8"})
SMALL = StoreSettings(memtable_bytes=1 << 20, shape=Shape(table_bytes=1 << 20, level1_bytes=4 << 20))


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def batch(first: int, count: int, keys: int) -> np.ndarray:
    """Rows whose value is their number, from `first` on, over so many keys."""
    rows = np.zeros(count, A.payload_dtype)
    rows["value"] = np.arange(first, first + count)
    rows["key"] = rows["value"] % keys
    return rows


def values(tree) -> list[int]:
    return [int(row["value"]) for rows in tree.scan() for row in rows]


def test_what_is_indexed_is_found_by_key(bus_name, tmp_path):
    with Writer(bus_name, [A, B], data_dir=tmp_path, store=SMALL) as writer:
        topic = writer["a"]
        assert writer.get("a", 1) is None
        topic.publish(1, 10)
        last = topic.publish(1, 11)
        topic.wait(last, "indexed", TIMEOUT_S)
        row = writer.get("a", 1)
        assert (int(row["value"]), int(row["sequence"])) == (11, 2)
        assert writer["b"].publish(7) == 1
        writer["b"].wait(1, "indexed", TIMEOUT_S)
        assert int(writer.get("b", 1)["value"]) == 7  # a topic without a key is kept by its sequence
        assert topic.watermarks.indexed == 2
        assert attach(f"{bus_name}/a").watermarks().indexed == 2


def test_memtables_are_flushed_and_compacted_while_rows_are_published(bus_name, tmp_path):
    with Writer(bus_name, [A], data_dir=tmp_path, store=SMALL, log_file_bytes=FILE_BYTES) as writer:
        for first in range(0, 400_000, 10_000):
            last = writer["a"].publish_batch(batch(first, 10_000, 50_000))
        writer["a"].wait(last, "indexed", TIMEOUT_S)
        assert values(writer.store["a"]) == list(range(350_000, 400_000))
        writer.store.compact()
        assert values(writer.store["a"]) == list(range(350_000, 400_000))
        stats = writer.store.stats()["a"]
        assert stats.sequence == stats.checkpoint == 400_000
        assert stats.counts.flush_count > 3
    with Writer(bus_name, [A], data_dir=tmp_path, store=SMALL, log_file_bytes=FILE_BYTES) as writer:
        assert values(writer.store["a"]) == list(range(350_000, 400_000))
        assert writer["a"].watermarks[1:5] == (400_000,) * 4


def test_other_processes_read_the_directory_by_key_meanwhile(bus_name, tmp_path):
    with (
        Writer(bus_name, [A], data_dir=tmp_path, store=SMALL) as writer,
        Store.open(tmp_path, read_only=True) as reader,
    ):
        assert isinstance(reader, StoreReader)
        for first in range(0, 100_000, 10_000):
            last = writer["a"].publish_batch(batch(first, 10_000, 5_000))
            writer["a"].wait(last, "logged", TIMEOUT_S)
            reader.refresh()
            assert int(reader["a"].get(4_999)["value"]) == first + 9_999


def test_a_subscriber_may_follow_what_is_indexed(bus_name, tmp_path):
    with (
        Writer(bus_name, [A, B], data_dir=tmp_path, store=StoreSettings(topics=["a"])) as writer,
        RealTime(f"{bus_name}/a", start="earliest", follow="indexed") as reader,
    ):
        for number in range(1, 101):
            writer["a"].publish(number % 7, number)
        seen = 0
        while seen < 100:
            for row in reader.take().rows:
                seen = int(row["sequence"])
                assert int(writer.get("a", int(row["key"]))["sequence"]) >= seen
        with pytest.raises(ValueError, match="nothing is indexed"):
            RealTime(f"{bus_name}/b", follow="indexed")


def test_only_the_topics_named_are_kept_by_key(bus_name, tmp_path):
    with Writer(bus_name, [A, B], data_dir=tmp_path, store=StoreSettings(topics=["a"])) as writer:
        assert list(writer.store) == ["a"]
        assert writer["b"].publish(1) == 1
        with pytest.raises(ValueError, match="topic 'b': nothing is indexed"):
            writer["b"].wait(1, "indexed")
        writer["b"].wait(1, "durable", TIMEOUT_S)
        assert writer["b"].watermarks.indexed == 0
        with pytest.raises(KeyError, match="no topic 'b'"):
            writer.get("b", 1)
        with pytest.raises(ValueError, match="nothing can be put"):
            writer.store["a"].put(1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (StoreSettings(topics=["a", "c"]), "topics: not among the schemas: c"),
        (StoreSettings(topics=["a"], keep_versions=["b"]), "keep_versions: not among the schemas: b"),
    ],
)
def test_topics_that_there_are_not_are_refused_before_anything_is_made(bus_name, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Writer(bus_name, [A, B], data_dir=tmp_path / "data", store=settings)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ValueError, match="store: needs a data_dir"):
        Writer(bus_name, [A], store=StoreSettings())
    with Writer(bus_name, [A], data_dir=tmp_path) as writer, pytest.raises(ValueError, match="no topic is kept by key"):
        writer.get("a", 1)


def test_a_topic_may_be_kept_by_key_from_some_day_on(bus_name, tmp_path):
    settings = StoreSettings(memtable_bytes=1 << 20, immutable_max=1, keep_versions=["a"])
    with Writer(bus_name, [A], data_dir=tmp_path, log_file_bytes=FILE_BYTES) as writer:
        for first in range(0, 200_000, 10_000):
            writer["a"].publish_batch(batch(first, 10_000, 1_000))
    with Writer(bus_name, [A], data_dir=tmp_path, log_file_bytes=FILE_BYTES, store=settings) as writer:
        stats = writer.store.stats()["a"]
        assert stats.sequence == 200_000
        assert stats.memory_bytes < 4 << 20  # opening has flushed what does not fit
        assert int(writer.get("a", 999)["value"]) == 199_999
        assert len(writer.store["a"].history(5)) == 200
        last = writer["a"].publish(5, 1)
        writer["a"].wait(last, "indexed", TIMEOUT_S)
        assert int(writer.get("a", 5)["value"]) == 1


def test_a_topic_of_which_the_log_has_lost_the_beginning_is_kept_from_there_on(bus_name, tmp_path):
    with Writer(bus_name, [A], data_dir=tmp_path, log_file_bytes=FILE_BYTES, retention_bytes=FILE_BYTES) as writer:
        for first in range(0, 600_000, 10_000):
            writer["a"].publish_batch(batch(first, 10_000, 600_000))
        wait_until(lambda: list_files(tmp_path / "log")[0][0] > 1, TIMEOUT_S)
    with Writer(bus_name, [A], data_dir=tmp_path, log_file_bytes=FILE_BYTES, store=SMALL) as writer:
        oldest = LogReader(tmp_path / "log", "a").oldest
        assert oldest > 1
        assert values(writer.store["a"]) == list(range(oldest - 1, 600_000))


def test_the_log_keeps_what_is_in_no_table_whatever_its_retention_says(bus_name, tmp_path):
    large = StoreSettings(memtable_bytes=64 << 20)
    with Writer(bus_name, [A], data_dir=tmp_path, log_file_bytes=FILE_BYTES, retention_bytes=0, store=large) as writer:
        for first in range(0, 600_000, 10_000):
            last = writer["a"].publish_batch(batch(first, 10_000, 600_000))
        writer["a"].wait(last, "indexed", TIMEOUT_S)
        files = list_files(tmp_path / "log")
        assert files[0][0] == 1
        writer.store.snapshot()
        wait_until(lambda: not files[0][1].exists(), TIMEOUT_S)
        assert values(writer.store["a"]) == list(range(600_000))


def numbers(directory) -> list[int]:
    """The log files of a folder."""
    return [number for number, _ in list_files(directory)]


def test_topics_that_are_only_logged_hold_no_log_file_and_may_be_kept_by_key_later(bus_name, tmp_path):
    settings = {"data_dir": tmp_path, "log_file_bytes": FILE_BYTES}
    only_a = StoreSettings(topics=["a"], memtable_bytes=1 << 20)
    with Writer(bus_name, [A, B], retention_bytes=FILE_BYTES, store=only_a, **settings) as writer:
        assert writer["b"].publish(0) == 1
        rows = np.zeros(10_000, B.payload_dtype)
        for first in range(0, 400_000, 10_000):
            writer["a"].publish_batch(batch(first, 10_000, 1_000))
            rows["value"] = np.arange(first + 1, first + 10_001)
            writer["b"].publish_batch(rows)
        for topic, last in (("a", 400_000), ("b", 400_001)):
            writer[topic].wait(last, "logged", TIMEOUT_S)
        writer.store.snapshot()
        wait_until(lambda: len(numbers(tmp_path / "log")) == 3, TIMEOUT_S)  # the newest, and those that hold so much
    oldest = LogReader(tmp_path / "log", "b").oldest
    assert oldest > 1
    with Writer(bus_name, [A, B], store=SMALL, **settings) as writer:  # now all topics are
        assert values(writer.store["b"]) == list(range(oldest - 1, 400_001))
        assert values(writer.store["a"]) == list(range(399_000, 400_000))
        last = writer["b"].publish(400_001)
        writer["b"].wait(last, "indexed", TIMEOUT_S)
        writer.store.compact()
        assert values(writer.store["b"])[-2:] == [400_000, 400_001]
    assert verify_store(tmp_path).findings == ()


def test_a_topic_that_is_kept_by_key_and_is_in_no_table_yet_holds_the_log_beside_one_that_is_only_logged(
    bus_name, tmp_path, monkeypatch
):
    turns, keep = [], Log.keep
    monkeypatch.setattr(Log, "keep", lambda log, timeout_s: turns.append(keep(log, timeout_s)))
    settings = {"data_dir": tmp_path, "log_file_bytes": FILE_BYTES, "retention_bytes": 0}
    both = StoreSettings(topics=["a", "c"], memtable_bytes=1 << 20, snapshot_interval=None)
    schemas = [A, B, Schema("c", {"value": "u8"})]
    with Writer(bus_name, schemas, store=both, **settings) as writer:
        assert writer["b"].publish(1) == writer["c"].publish(7) == 1
        writer["c"].wait(1, "indexed", TIMEOUT_S)
        for first in range(0, 400_000, 10_000):
            writer["a"].publish_batch(batch(first, 10_000, 1_000))
        writer["a"].wait(400_000, "indexed", TIMEOUT_S)
        wait_until(lambda: writer.store.stats()["a"].checkpoint > 300_000, TIMEOUT_S)
        assert writer.store.stats()["c"].checkpoint == 0
        seen = len(turns)
        wait_until(lambda: len(turns) > seen + 1, TIMEOUT_S)  # the keeper has looked at it
        assert numbers(tmp_path / "log")[0] == 1
        writer.store.snapshot()
        wait_until(lambda: numbers(tmp_path / "log")[0] > 1, TIMEOUT_S)
        assert values(writer.store["c"]) == [7]


def test_a_repair_without_the_manifest_tells_no_expired_row_of_a_topic_that_is_only_logged_as_lost_and_lets_the_log_expire(
    bus_name, tmp_path
):
    settings = {"data_dir": tmp_path, "log_file_bytes": FILE_BYTES, "retention_bytes": 0}

    def publish_and_see_files_go() -> None:
        with Writer(bus_name, [A, B], store=StoreSettings(topics=["a"], memtable_bytes=1 << 20), **settings) as writer:
            before = numbers(tmp_path / "log")[0]
            for _ in range(20):
                writer["a"].publish_batch(batch(0, 10_000, 1_000))
                last = writer["b"].publish_batch(np.zeros(10_000, B.payload_dtype))
            writer["b"].wait(last, "logged", TIMEOUT_S)
            writer.store.snapshot()
            wait_until(lambda: numbers(tmp_path / "log")[0] > before, TIMEOUT_S)

    publish_and_see_files_go()
    begins = LogReader(tmp_path / "log", "b").oldest
    assert begins > 1
    (tmp_path / "store" / "MANIFEST").unlink()
    report = repair_store(tmp_path)
    assert [entry for entry in report.lost if entry.topic == "b"] == []
    (remark,) = (remark for remark in report.remarks if "topic 'b'" in remark)
    assert f"only logged; its rows up to sequence {begins - 1} have expired, or are lost with the manifest." in remark
    assert list(read_manifest(tmp_path / "store").topics) == ["a"]
    assert verify_store(tmp_path).findings == ()
    publish_and_see_files_go()
    with Writer(bus_name, [A, B], store=SMALL, **settings) as writer:
        last = writer["b"].publish(7)
        writer["b"].wait(last, "indexed", TIMEOUT_S)
        assert values(writer.store["b"])[-2:] == [0, 7]


@pytest.mark.parametrize("damage", ["footer", "header and footer"])
def test_a_repair_without_the_manifest_takes_in_a_topic_of_which_a_damaged_table_is_or_may_be(
    damage, bus_name, tmp_path
):
    with Writer(bus_name, [A, B], data_dir=tmp_path, store=SMALL) as writer:
        for topic, fields in (("a", (1, 1)), ("b", (1,))):
            writer[topic].wait(writer[topic].publish(*fields), "indexed", TIMEOUT_S)
            writer.store.snapshot()
    tables = read_manifest(tmp_path / "store").versions["b"].tables()
    (table,) = (tmp_path / "store" / f"{info.number:010d}.sst" for info in tables)
    data = table.read_bytes()[:-4096] + bytes(4096)
    table.write_bytes(data if damage == "footer" else bytes(4096) + data[4096:])
    (tmp_path / "store" / "MANIFEST").unlink()
    assert repair_store(tmp_path).lost == ()
    with StoreReader(tmp_path) as store:
        assert (values(store["a"]), values(store["b"])) == ([1], [1])


def test_a_bus_on_a_stores_directory_leaves_no_hole_behind_its_archive(bus_name, tmp_path):
    with Store(tmp_path, [A], log_file_bytes=FILE_BYTES, sync="never") as store:
        for first in range(0, 400_000, 20_000):
            store["a"].put_batch(batch(first, 20_000, 1_000))
        store.snapshot()
        wait_until(lambda: len(numbers(tmp_path / "log")) == 1, TIMEOUT_S)
    archived = numbers(tmp_path / "archive")
    settings = {"data_dir": tmp_path, "log_file_bytes": FILE_BYTES, "store": SMALL}
    with pytest.raises(StorageError, match=r"without an archive: .* or without a retention, or move .*archive away"):
        Writer(bus_name, [A], retention_bytes=0, **settings)
    with Writer(bus_name, [A], **settings) as writer:  # it keeps all of its log
        for first in range(400_000, 800_000, 20_000):
            last = writer["a"].publish_batch(batch(first, 20_000, 1_000))
        writer["a"].wait(last, "indexed", TIMEOUT_S)
        writer.store.snapshot()
    kept = numbers(tmp_path / "archive") + numbers(tmp_path / "log")
    assert kept == list(range(1, len(kept) + 1))
    assert numbers(tmp_path / "archive") == archived
    assert verify_store(tmp_path).findings == ()
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    with Writer(bus_name, [A], retention_bytes=0, **settings) as writer:
        wait_until(lambda: numbers(tmp_path / "log")[0] > len(archived) + 1, TIMEOUT_S)
        assert values(writer.store["a"]) == list(range(799_000, 800_000))
    assert verify_store(tmp_path).findings == ()


PUBLISH = """if True:
    from ringmain.storage import Shape, StoreSettings
    writer = Writer(bus, [schema], data_dir=directory, store=settings, log_file_bytes=4 << 20)
    topic, progress = writer["a"], open(directory / "known", "wb", buffering=0)
    number, rows = topic.watermarks.published, np.zeros(1000, schema.payload_dtype)
    while True:
        rows["value"] = np.arange(number, number + len(rows))
        rows["key"] = rows["value"] % 20_000
        number = topic.publish_batch(rows)
        topic.wait(number, "indexed")
        os.pwrite(progress.fileno(), number.to_bytes(8, "little"), 0)
"""


def test_a_killed_writer_loses_nothing_that_was_published(bus_name, tmp_path, children):
    def known() -> int:
        return int.from_bytes((tmp_path / "known").read_bytes(), "little") if (tmp_path / "known").exists() else 0

    for round_number in range(1, 7):
        child, before = children.start(), known()
        child.begin(PUBLISH, bus=bus_name, schema=A, directory=tmp_path, settings=SMALL)
        wait_until(lambda at_least=before + 30_000 * round_number: known() > at_least, TIMEOUT_S)
        child.kill()
        with Store.open(tmp_path, read_only=True) as reader:  # nobody writes
            assert reader["a"].sequence >= known()
        with Writer(bus_name, [A], data_dir=tmp_path, store=SMALL, log_file_bytes=FILE_BYTES) as writer:
            last = writer["a"].watermarks.published
            assert last >= known()
            writer["a"].wait(last, "indexed", TIMEOUT_S)  # what the ring held and the log did not, too
            found = np.concatenate(list(writer.store["a"].scan()))
        assert found["key"].tolist() == list(range(20_000))
        newest = (last - 1) // 20_000 * 20_000 + np.arange(20_000)  # the newest value of each key
        assert found["value"].tolist() == np.where(newest < last, newest, newest - 20_000).tolist()


def test_a_writer_that_was_paused_and_taken_over_changes_nothing_in_the_store(bus_name, tmp_path, children):
    def known() -> int:
        return int.from_bytes((tmp_path / "known").read_bytes(), "little") if (tmp_path / "known").exists() else 0

    settings = {"data_dir": tmp_path, "store": SMALL, "log_file_bytes": FILE_BYTES}
    for _ in range(4):
        old, before = children.start(), known()
        old.begin(PUBLISH, bus=bus_name, schema=A, directory=tmp_path, settings=SMALL)
        wait_until(lambda at_least=before + 50_000: known() > at_least, TIMEOUT_S)
        old.pause()  # in the middle of whatever its three threads are doing
        with Writer(bus_name, [A], take_over=True, **settings) as writer:
            first = writer["a"].watermarks.published
            assert first >= known()
            old.resume()
            for number in range(first, first + 100_000, 1_000):
                last = writer["a"].publish_batch(batch(number, 1_000, 20_000))
            writer["a"].wait(last, "indexed", TIMEOUT_S)
            with pytest.raises(Fenced):
                old.settle()
            old.run("writer.close()")
            writer.store.compact()
            found = np.concatenate(list(writer.store["a"].scan()))
        assert found["key"].tolist() == list(range(20_000))
        newest = (last - 1) // 20_000 * 20_000 + np.arange(20_000)
        assert found["value"].tolist() == np.where(newest < last, newest, newest - 20_000).tolist()
        (tmp_path / "known").write_bytes(int(last).to_bytes(8, "little"))
        assert verify_store(tmp_path).findings == ()


STOPPED_IN_A_COMMIT = """if True:
    from ringmain.storage import StorageError, files
    sync_data, raised = files.sync_data, ""

    def stop_behind(descriptor):
        sync_data(descriptor)
        files.sync_data = sync_data
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # of the process, before this thread does more

    files.sync_data = stop_behind
    try:
        writer.store.snapshot()
    except StorageError as error:
        raised = str(error)
"""


def test_a_writer_stopped_within_an_edit_of_the_manifest_and_taken_over_does_not_acknowledge_it(
    bus_name, tmp_path, children
):
    old = children.start()
    settings = {"data_dir": tmp_path, "store": SMALL}
    old.run("writer = Writer(bus, [schema], **settings)", bus=bus_name, schema=A, settings=settings)
    old.run("writer['a'].wait(writer['a'].publish(1, 10), 'indexed', 30)")
    old.begin(STOPPED_IN_A_COMMIT)
    wait_until(old.is_stopped, TIMEOUT_S)
    with Writer(bus_name, [A], take_over=True, **settings) as writer:
        old.resume()
        old.settle()
        assert "another writer has taken over" in old.ask("raised")
        assert "another writer has taken over" in old.ask("writer.store.stats()['a'].failure.message")
        old.run("writer.close()")
        assert int(writer.get("a", 1)["value"]) == 10
        writer["a"].wait(writer["a"].publish(1, 11), "indexed", TIMEOUT_S)
        writer.store.compact()
        assert values(writer.store["a"]) == [11]
    assert verify_store(tmp_path).findings == ()


STOPPED_AT_A_NEW_TABLE = """if True:
    from ringmain.storage import StorageError
    rename, raised = os.rename, ""

    def stop_before(*names):
        os.rename = rename
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        rename(*names)

    os.rename = stop_before
    try:
        writer.store.snapshot()
    except StorageError as error:
        raised = str(error)
"""


def test_a_writer_stopped_as_it_names_a_new_table_and_taken_over_does_not_name_one_of_its_successor(
    bus_name, tmp_path, children, monkeypatch
):
    def let_the_old_one_go_first(*names):
        monkeypatch.undo()
        old.resume()
        old.settle()
        rename(*names)

    old, rename = children.start(), os.rename
    settings = {"data_dir": tmp_path, "store": SMALL}
    old.run("writer = Writer(bus, [schema], **settings)", bus=bus_name, schema=A, settings=settings)
    old.run("writer['a'].wait(writer['a'].publish(1, 10), 'indexed', 30)")
    old.begin(STOPPED_AT_A_NEW_TABLE)
    wait_until(old.is_stopped, TIMEOUT_S)
    with Writer(bus_name, [A], take_over=True, **settings) as writer:
        writer["a"].wait(writer["a"].publish(2, 20), "indexed", TIMEOUT_S)
        monkeypatch.setattr(table_files.os, "rename", let_the_old_one_go_first)
        writer.store.snapshot()
        assert "No such file" in old.ask("raised")
        assert writer.store.stats()["a"].failure is None
        assert values(writer.store["a"]) == [10, 20]
    assert verify_store(tmp_path).findings == ()


def test_when_tables_cannot_be_written_the_bus_goes_on_and_says_so(bus_name, tmp_path, monkeypatch):
    def fail(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TreeWriter, "flush", fail)
    with Writer(bus_name, [A], data_dir=tmp_path, store=SMALL) as writer:
        for first in range(0, 200_000, 10_000):
            last = writer["a"].publish_batch(batch(first, 10_000, 200_000))
        writer["a"].wait(last, "durable", TIMEOUT_S)
        with pytest.raises(WriterFailed, match=r"nothing more is kept by key: .*No space left"):
            writer["a"].wait(last, "indexed", TIMEOUT_S)
        failure = writer.store.stats()["a"].failure
        assert failure is not None
        assert failure.operation == "flush"
        assert "No space left" in failure.message
        assert int(writer.get("a", 5)["value"]) == 5  # what is in memory is still read
        assert writer["a"].publish(1, 1) == last + 1
    monkeypatch.undo()
    with Writer(bus_name, [A], data_dir=tmp_path, store=SMALL) as writer:
        assert values(writer.store["a"])[:3] == [0, 1, 2]
        assert writer.store.stats()["a"].sequence == last + 1


def test_a_writer_that_closes_while_another_thread_waits_ends_the_wait(bus_name, tmp_path):
    writer = Writer(bus_name, [A], data_dir=tmp_path, store=SMALL)
    last = writer["a"].publish(1, 1)
    waiting = threading.Thread(target=writer["a"].wait, args=(last, "indexed"))
    waiting.start()
    writer.close()
    waiting.join(TIMEOUT_S)
    assert not waiting.is_alive()


def test_a_bus_is_backed_up_while_it_publishes_and_restored_with_what_was_logged(bus_name, tmp_path):
    data, target, restored = tmp_path / "data", tmp_path / "backups", tmp_path / "restored"
    with Writer(bus_name, [A, B], data_dir=data, store=StoreSettings(topics=["a"], memtable_bytes=1 << 16)) as writer:
        for number in range(1, 5001):
            writer["a"].publish(number % 100, number)
            writer["b"].publish(number)
        for topic in "ab":
            writer[topic].wait(5000, "logged", TIMEOUT_S)
        made = backup(data, target)
        writer["a"].publish(1, 5001)
    assert {name: topic.last for name, topic in made.backup.topics.items()} == {"a": 5000, "b": 5000}
    assert restore(target, restored).last == {"a": 5000, "b": 5000}
    with Writer(bus_name, [A, B], data_dir=restored, store=StoreSettings(topics=["a"])) as writer:
        assert sorted(values(writer.store["a"])) == list(range(4901, 5001))
        assert writer["b"].publish(1) == 5001
