"""Reading a store from other processes: always some moment of it, whole, and never an older one than before."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import Corruption, FormatMismatch, Schema
from ringmain.storage.errors import StorageError
from ringmain.storage.log_files import list_files
from ringmain.storage.log_reader import LogReader
from ringmain.storage.manifest import read_manifest
from ringmain.storage.repair import repair
from ringmain.storage.store import Store
from ringmain.storage.store_reader import StoreReader
from ringmain.storage.tree import Tree, ViewGone
from ringmain.storage.tree_reader import TreeReader
from ringmain.storage.tree_writer import TreeWriter
from ringmain.storage.version import Version
from support.followed_store import BOOK, KEY_COUNT, Child, Oracle, deletes, key_of, open_store, write_on
from support.logs import flip, wait_until

ROUNDS, ROUND_ROWS = 12, 900


def value(tree: Tree, key: int) -> int:
    """What the last field of a key's row says."""
    row = tree.get(key)
    assert row is not None
    return int(row[tree.schema.fields[-1].name])


def oracle_at(sequence: int) -> Oracle:
    oracle = Oracle()
    oracle.advance(sequence)
    return oracle


def tables(directory: Path, topic: str = "book") -> list[Path]:
    """The sstables of a topic, as the manifest has them."""
    infos = read_manifest(directory / "store").versions[topic].tables()
    return [directory / "store" / f"{info.number:010d}.sst" for info in infos]


# --- following a living writer --------------------------------------------------------------------------------------


@pytest.mark.process
def test_two_readers_see_every_moment_whole_while_the_writer_flushes_and_compacts(tmp_path):
    with ExitStack() as children:
        writer = children.enter_context(Child(f"be_writer({str(tmp_path)!r})"))
        writer.hear("ready")
        readers = [children.enter_context(Child(f"be_reader({str(tmp_path)!r}, {age})")) for age in (0.0, 0.01)]
        for reader in readers:
            assert reader.hear("ready") == ["0"]
        numbers, until = set[str](), 0
        for turn in range(1, ROUNDS + 1):
            until = turn * ROUND_ROWS
            writer.tell("write", until)
            for reader in readers:  # while it writes
                reader.tell("until", until)
            writer.hear("write")
            writer.ask("compact" if turn % 4 == 0 else "snapshot")
            assert [reader.hear("saw")[0] for reader in readers] == [str(until)] * 2
            numbers.update(path.name for path in tables(tmp_path))
        for reader in readers:
            reader.tell("until", until)
            assert reader.hear("saw")[::2] == [str(until), str(ROUNDS * 30)]
            reader.finish()
        writer.finish()
    assert len(numbers - {path.name for path in tables(tmp_path)}) > ROUNDS  # tables did go while they were read


@pytest.mark.process
def test_a_killed_writer_leaves_all_that_it_had_put_to_readers_old_and_new_and_to_its_heir(tmp_path):
    with ExitStack() as children:
        writer = children.enter_context(Child(f"be_writer({str(tmp_path)!r})"))
        writer.hear("ready")
        reader = children.enter_context(Child(f"be_reader({str(tmp_path)!r}, 0.0)"))
        reader.hear("ready")
        writer.tell("for-ever")
        reader.tell("until", 3000)
        reader.hear("saw")
        acknowledged = max(int(words[1]) for words in writer.kill())
        with StoreReader(tmp_path) as fresh:
            end = fresh["book"].sequence
            oracle_at(end).check(fresh["book"])
        assert end >= acknowledged >= 2000
        reader.tell("until", end)
        assert reader.hear("saw")[0] == str(end)

        heir = children.enter_context(Child(f"be_writer({str(tmp_path)!r})"))
        assert heir.hear("ready") == [str(end)]
        heir.tell("write", end + 1000)
        reader.tell("until", end + 1000)
        heir.hear("write")
        assert reader.hear("saw")[0] == str(end + 1000)
        reader.finish()


@pytest.mark.process
def test_what_a_reader_holds_outlives_the_tables_it_came_from(tmp_path):
    with Child(f"be_writer({str(tmp_path)!r})") as writer, StoreReaderSoon(tmp_path, writer) as store:
        writer.ask("write", 3000)
        writer.ask("snapshot")
        store.refresh()
        book, before = store["book"], tables(tmp_path)
        batches = book.scan(batch_rows=20)
        first = next(batches)
        with book.at() as view:
            writer.ask("write", 6000)
            writer.ask("compact")
            assert before
            assert not any(path.exists() for path in before)
            oracle_at(6000).check(book)
            assert view.sequence == 3000
            oracle_at(3000).check(view)
            held = np.concatenate([first, *batches])
            expected = np.concatenate(list(view.scan()))
            assert (held == expected).all()
        with pytest.raises(ValueError, match="closed"):
            view.get(1)


class StoreReaderSoon(StoreReader):
    """A reader of the store that a child is about to make."""

    def __init__(self, directory: Path, writer: Child) -> None:
        writer.hear("ready")
        super().__init__(directory, refresh_s=0)


@pytest.mark.process
def test_a_table_that_goes_while_it_is_opened_is_looked_for_in_the_newer_manifest(tmp_path, monkeypatch):
    with Child(f"be_writer({str(tmp_path)!r})") as writer, StoreReaderSoon(tmp_path, writer) as store:
        writer.ask("write", 2000)
        writer.ask("snapshot")
        opened, open_table = [], store._files.open

        def open_late(info, schema, codec):
            if not opened:
                writer.ask("compact")
            opened.append(info.number)
            return open_table(info, schema, codec)

        monkeypatch.setattr(store._files, "open", open_late)
        oracle_at(2000).check(store["book"])
        assert not store._files.path(opened[0]).exists()


def test_log_files_that_go_while_they_are_read_are_made_up_for_by_tables(tmp_path, monkeypatch):
    """The reader is far behind; then the writer flushes, and gives back the log that the reader was about to read."""
    with open_store(tmp_path, memtable_bytes=32 << 20) as store, StoreReader(tmp_path, refresh_s=math.inf) as reader:
        rows = np.zeros(50_000, BOOK.payload_dtype)
        book, last = reader["book"], 0
        for _ in range(8):
            rows["key"] = np.arange(last, last + len(rows))
            last = store["book"].put_batch(rows)
        read_all, oldest = LogReader.read_all, list_files(tmp_path / "log")[0][1]
        calls = []

        def read_late(self, *arguments):
            if not calls:
                store.snapshot()
                wait_until(lambda: not oldest.exists(), 30)
            calls.append(arguments)
            return read_all(self, *arguments)

        monkeypatch.setattr(LogReader, "read_all", read_late)
        book.refresh()
        assert book.sequence == book.checkpoint == last
        assert sum(map(len, book.scan())) == last
        assert book.memory_bytes == 0


def test_a_refresh_says_what_it_found(tmp_path):
    with (
        open_store(tmp_path, memtable_bytes=1 << 20) as store,
        StoreReader(tmp_path, refresh_s=math.inf, memtable_bytes=1 << 13) as reader,
    ):
        book = reader["book"]
        assert not reader.refresh()
        write_on(store["book"], 1000)
        assert book.sequence == 0  # not looked at
        found = reader.refresh()
        assert (found.row_count, found.table_count, book.sequence, book.checkpoint) == (1000, 0, 1000, 0)
        assert book.memory_bytes > 0
        store.snapshot()
        found = reader.refresh()
        assert (found.row_count, found.table_count, book.sequence, book.checkpoint) == (0, 1, 1000, 1000)
        assert book.memory_bytes == 0
        assert not reader.refresh()


def test_a_reader_refreshes_by_itself_when_its_last_look_is_too_old(tmp_path):
    with open_store(tmp_path) as store, StoreReader(tmp_path, refresh_s=0.005) as reader:
        for number in range(1, 20):
            write_on(store["book"], number)
            wait_until(lambda number=number: reader["book"].sequence == number, 30)


def test_a_view_ahead_of_what_was_read_is_looked_for_at_once(tmp_path):
    with open_store(tmp_path) as store, StoreReader(tmp_path, refresh_s=math.inf) as reader:
        book = reader["book"]
        last = write_on(store["book"], 100)
        with book.at(last) as view:
            oracle_at(last).check(view)


def test_a_view_of_the_past_is_given_as_long_as_nothing_of_it_was_dropped(tmp_path):
    with open_store(tmp_path, memtable_bytes=1 << 20) as store, StoreReader(tmp_path, refresh_s=0) as reader:
        write_on(store["book"], 1000)
        with reader["book"].at(400) as view:
            oracle_at(400).check(view)
            store.snapshot()
            write_on(store["book"], 1500)
            oracle_at(400).check(view)
            with pytest.raises(ViewGone, match="1000 is the oldest"):
                reader["book"].at(400)
            with reader["book"].at(1200) as later:
                oracle_at(1200).check(later)


def test_all_versions_are_there_once_each_also_those_in_a_memtable_and_a_table(tmp_path, monkeypatch):
    """A checkpoint lies within a memtable of the reader, so some rows are in two places."""
    allowed, flush = threading.Event(), TreeWriter.flush
    monkeypatch.setattr(TreeWriter, "flush", lambda self: allowed.is_set() and flush(self))
    with (
        open_store(tmp_path, keep_versions=["book"], memtable_bytes=1 << 15) as store,
        StoreReader(tmp_path, refresh_s=0, memtable_bytes=1 << 20) as reader,
    ):
        last = 0
        while not store.stats()["book"].immutable_count:
            last = write_on(store["book"], last + 10)
        last = write_on(store["book"], last + 100)
        book = reader["book"]
        assert (book.sequence, book.checkpoint) == (last, 0)
        allowed.set()
        store._changed()  # it has looked in vain, and waits to be called
        wait_until(lambda: (reader.refresh().table_count, book.checkpoint)[1] > 0, 30)
        assert book.checkpoint < last
        numbers = np.arange(1, last + 1)
        for key in range(KEY_COUNT):
            mine = numbers[(key_of(numbers) == key) & ~deletes(numbers)]
            assert book.history(key)["sequence"].tolist() == mine[::-1].tolist()
        for sequence in (1, book.checkpoint // 2, book.checkpoint, last - 1, last):
            with book.at(sequence) as view:
                oracle_at(sequence).check(view)


def test_memory_is_given_back_as_checkpoints_come_by(tmp_path):
    with open_store(tmp_path) as store, StoreReader(tmp_path, refresh_s=0, memtable_bytes=1 << 13) as reader:
        most = 0
        for until in range(200, 20_001, 200):
            write_on(store["book"], until)
            assert reader["book"].sequence == until
            most = max(most, reader["book"].memory_bytes)
        assert most < 1 << 18  # all the rows take 640 000 bytes


def test_a_reader_that_may_hold_less_than_the_writer_says_so_and_goes_on_after_the_flush(tmp_path):
    with (
        open_store(tmp_path, memtable_bytes=1 << 20) as store,
        StoreReader(tmp_path, refresh_s=0, memtable_bytes=1 << 13, memory_bytes=1 << 15) as reader,
    ):
        write_on(store["book"], 3000)
        with pytest.raises(StorageError, match="memory_bytes"):
            reader["book"].get(1)
        store.snapshot()
        oracle_at(3000).check(reader["book"])


def test_the_rows_of_a_repair_s_gap_do_not_stop_a_reader_or_the_next_writer(tmp_path):
    with open_store(tmp_path) as store:
        for number in range(1, 51):
            store["tape"].put(number)
    log = list_files(tmp_path / "log")[-1][1]
    damage = log.read_bytes().rfind(np.array([50], "<u8").tobytes())
    flip(log, damage)
    with pytest.raises(Corruption), StoreReader(tmp_path) as reader:
        reader["tape"].get(1)
    repair(tmp_path / "log")
    with StoreReader(tmp_path) as reader:
        assert value(reader["tape"], 49) == 49
        assert reader["tape"].get(50) is None
        with open_store(tmp_path) as store:
            assert store["tape"].put(51) == 51
        assert value(reader["tape"], 51) == 51


@pytest.mark.process
def test_threads_share_a_reader(tmp_path):
    def look(store: StoreReader) -> int:
        oracle, count = Oracle(), 0
        while oracle.sequence < 4000:
            with store["book"].at() as view:
                oracle.advance(view.sequence)
                oracle.check(view)
            row = store["book"].get(int(key_of(1)))
            assert row is None or row["number"] == row["sequence"]
            count += 1
        return count

    with (
        Child(f"be_writer({str(tmp_path)!r})") as writer,
        StoreReaderSoon(tmp_path, writer) as store,
        ThreadPoolExecutor(3) as threads,
    ):
        looks = [threads.submit(look, store) for _ in range(3)]
        for until in range(500, 4001, 500):
            writer.ask("write", until)
        assert all(one.result(60) for one in looks)


# --- topics ---------------------------------------------------------------------------------------------------------


def test_a_thread_that_reads_while_another_refreshes_sees_no_half_of_a_batch(tmp_path, monkeypatch):
    """A batch may lie in two memtables, of which the reader shows the newer one late."""
    pairs, count = Schema("pairs", {"key": "u4", "turn": "u8"}, key=("key",)), 400
    rows = np.zeros(count, pairs.payload_dtype)
    rows["key"] = np.arange(count)
    seen = list[set[int]]()
    show = TreeReader._show

    def look(tree: TreeReader) -> None:
        found = [int(turn) for batch in tree.scan() for turn in batch["turn"]]
        found += [value(tree, key) for key in range(count)]
        found += [int(turn) for batch in tree.by_sequence() for turn in batch["turn"]]
        assert len(found) == 3 * count
        seen.append(set(found))

    def show_slowly(tree: TreeReader, version: Version) -> None:
        if tree.sequence:
            pool.submit(look, tree).result()
        show(tree, version)
        if tree.sequence:
            pool.submit(look, tree).result()

    monkeypatch.setattr(TreeReader, "_show", show_slowly)
    with (
        Store(tmp_path, [pairs], sync="never") as store,
        StoreReader(tmp_path, refresh_s=math.inf, memtable_bytes=1 << 16) as reader,
        ThreadPoolExecutor(1) as pool,
    ):
        for turn in range(1, 31):
            rows["turn"] = turn
            store["pairs"].put_batch(rows)
            reader["pairs"].refresh()
            look(reader["pairs"])
            assert seen[-1] == {turn}
    assert len(seen) > 30 + 4  # some batches went into a new memtable
    assert all(len(turns) == 1 for turns in seen)


def test_a_topic_that_a_later_writer_adds_appears(tmp_path):
    later = Schema("later", {"x": "i4"}, key=("x",))
    with Store(tmp_path, [BOOK], memtable_bytes=1 << 16):
        pass
    with Store.open(tmp_path, read_only=True, refresh_s=0) as reader:
        assert list(reader) == ["book"]
        with pytest.raises(KeyError, match="no topic 'later'; it has book"):
            reader["later"]
        with Store(tmp_path, [later], memtable_bytes=1 << 16) as store:
            store["later"].put(7)
            assert list(reader) == ["book", "later"]
            assert reader["later"].schema == later
            assert value(reader["later"], 7) == 7


def test_a_topic_is_not_touched_before_it_is_asked_for(tmp_path):
    with open_store(tmp_path) as store:
        write_on(store["book"], 500)
        store["tape"].put(1)
        store.snapshot()
    for path in tables(tmp_path):
        path.unlink()
    with StoreReader(tmp_path) as reader:
        assert value(reader["tape"], 1) == 1
        with pytest.raises(Corruption):
            reader["book"]


def test_schemas_that_are_given_must_be_those_that_were_stored(tmp_path):
    with open_store(tmp_path):
        pass
    with Store.open(tmp_path, [BOOK, Schema("new", {"x": "u1"})], read_only=True) as reader:
        assert sorted(reader) == ["book", "tape"]
    with pytest.raises(FormatMismatch, match="'book'"):
        Store.open(tmp_path, [Schema("book", {"key": "u4"}, key=("key",))], read_only=True)


# --- only reading ---------------------------------------------------------------------------------------------------


def listing(directory: Path) -> dict[str, tuple[int, ...]]:
    """Everything that a write would change."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        stat = path.lstat()
        found[str(path)] = (stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_nlink)
    return found


def test_nothing_in_the_directory_changes_and_it_need_not_be_writable(tmp_path):
    with open_store(tmp_path) as store:
        write_on(store["book"], 1500)
        store["tape"].put(1)
    paths = [tmp_path, *tmp_path.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    try:
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        before = listing(tmp_path)
        with StoreReader(tmp_path, refresh_s=0) as reader:
            oracle_at(1500).check(reader["book"])
            assert value(reader["tape"], 1) == 1
            with reader["book"].at() as view:
                oracle_at(1500).check(view)
            reader["book"].history(3)
            reader.refresh()
        assert listing(tmp_path) == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_a_reader_cannot_put(tmp_path):
    with open_store(tmp_path), StoreReader(tmp_path) as reader:
        for change in (lambda: reader["book"].put(1, 1), lambda: reader["book"].delete(1)):
            with pytest.raises(ValueError, match="opened for reading only"):
                change()
        with pytest.raises(ValueError, match="opened for reading only"):
            reader["book"].put_batch(np.zeros(1, BOOK.payload_dtype))


def test_a_reader_does_not_keep_a_writer_from_opening(tmp_path):
    with open_store(tmp_path) as store:
        write_on(store["book"], 300)
        store.snapshot()
    with StoreReader(tmp_path, refresh_s=0) as reader:
        oracle_at(300).check(reader["book"])
        with open_store(tmp_path) as store:
            write_on(store["book"], 900)
            store.compact()
            oracle_at(900).check(reader["book"])


@pytest.mark.parametrize("refresh_s", [0.0, 3600.0, math.inf])
def test_after_close_a_reader_says_so_and_what_it_handed_out_stays(tmp_path, refresh_s):
    with open_store(tmp_path) as store:
        write_on(store["book"], 500)
    reader = StoreReader(tmp_path, refresh_s=refresh_s)
    book = reader["book"]
    view, rows = book.at(), next(book.scan())
    copy = rows.copy()
    reader.close()
    reader.close()
    oracle_at(500).check(view)
    assert (rows == copy).all()
    for use in (
        lambda: book.get(1),
        lambda: list(book.scan()),
        lambda: reader["tape"],
        reader.refresh,
        lambda: list(reader),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def closed_store(tmp_path: Path) -> Path:
    """A store with tables, and rows in the log that are in none."""
    directory = tmp_path / "data"
    with open_store(directory, memtable_bytes=1 << 20) as store:
        write_on(store["book"], 1000)
        store.compact()
        write_on(store["book"], 1200)
    oracle = oracle_at(1200)
    with StoreReader(directory) as reader:
        oracle.check(reader["book"])
    return directory


def read_everything(directory: Path) -> None:
    with StoreReader(directory) as reader:
        for name in reader:
            for _ in reader[name].scan():
                pass


def test_a_missing_table_is_named(closed_store):
    path = tables(closed_store)[0]
    path.unlink()
    with pytest.raises(Corruption, match=r"no file") as caught:
        read_everything(closed_store)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("place", [100, 5000, -100])
def test_a_damaged_table_is_named(closed_store, place):
    path = tables(closed_store)[0]
    flip(path, place % path.stat().st_size)
    with pytest.raises((Corruption, FormatMismatch)) as caught:
        read_everything(closed_store)
    assert caught.value.path == str(path)


def test_a_damaged_manifest_is_named(closed_store):
    path = closed_store / "store" / "MANIFEST"
    flip(path, 80)
    with pytest.raises(Corruption) as caught:
        read_everything(closed_store)
    assert caught.value.path == str(path)


def test_a_lost_manifest_is_told_from_a_store_that_is_not_there(closed_store, tmp_path):
    path = closed_store / "store" / "MANIFEST"
    path.unlink()
    with pytest.raises(Corruption, match="a manifest, as there are tables") as caught:
        StoreReader(closed_store)
    assert caught.value.path == str(path)
    with pytest.raises(FileNotFoundError, match="holds no store"):
        StoreReader(tmp_path / "nowhere")


def test_damage_in_the_log_is_named(closed_store):
    path = list_files(closed_store / "log")[-1][1]
    flip(path, path.read_bytes().rfind(np.array([1100], "<u8").tobytes()))
    with pytest.raises(Corruption) as caught:
        read_everything(closed_store)
    assert caught.value.path == str(path)


def test_a_log_that_lost_rows_which_are_in_no_table_is_named(tmp_path):
    directory = tmp_path / "data"
    with open_store(directory, memtable_bytes=32 << 20) as store:
        for _ in range(8):
            rows = np.zeros(50_000, BOOK.payload_dtype)
            store["book"].put_batch(rows)
    list_files(directory / "log")[0][1].unlink()
    with pytest.raises(StorageError, match=r"sequence 1 is missing in the log, though the tables hold only up to 0"):
        read_everything(directory)
    with pytest.raises(StorageError, match=r"sequence 1 is missing in the log, though the tables hold only up to 0"):
        open_store(directory)


def test_a_log_of_another_store_is_refused(closed_store, tmp_path):
    with open_store(tmp_path / "other"):
        pass
    os.rename(closed_store / "log", tmp_path / "away")
    os.rename(tmp_path / "other" / "log", closed_store / "log")
    with pytest.raises(FormatMismatch, match="log_id"):
        read_everything(closed_store)


def test_a_store_without_its_log_is_named(closed_store):
    for _, path in list_files(closed_store / "log"):
        path.unlink()
    with pytest.raises((Corruption, FileNotFoundError), match="log"):
        read_everything(closed_store)
