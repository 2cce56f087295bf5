"""Rows that were in memtables only when a store ended come back from the log: those of a whole memtable without being copied."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.storage import Corruption, Schema, StorageError, Store, _log
from ringmain.storage._tree import KeyCodec, MemoryPool, Memtable, Merge, State
from ringmain.storage.log_files import list_files, open_file
from ringmain.storage.recovery import examine
from ringmain.storage.replay import COPIED_SHARE, replay, unflushed
from support.logs import FILE_BYTES, flip, wait_until

BOOK = Schema("book", {"key": "u8", "value": "u8"}, key=("key",))
OTHER = Schema("other", {"value": "S40"})
MEMTABLE_BYTES = 1 << 17
CAPACITY = Memtable(KeyCodec(BOOK), MEMTABLE_BYTES).capacity
NEVER: dict[str, Any] = {"sync": "never", "log_file_bytes": FILE_BYTES, "memtable_bytes": MEMTABLE_BYTES}


def open_large(directory: Path, **settings: Any) -> Store:
    """A store whose memtables hold all that is put here."""
    return Store(directory, [BOOK, OTHER], **{**NEVER, "memtable_bytes": 64 << 20, **settings})


def batch(first: int, count: int) -> np.ndarray:
    rows = np.zeros(count, BOOK.payload_dtype)
    rows["value"] = np.arange(first, first + count)
    rows["key"] = rows["value"] % 997
    return rows


def contents(store: Store) -> list[tuple[int, int, int]]:
    return [(int(row["key"]), int(row["value"]), int(row["sequence"])) for rows in store["book"].scan() for row in rows]


def history(store: Store) -> list[list[tuple[int, int]]]:
    return [
        [(int(row["value"]), int(row["sequence"])) for row in store["book"].history(key)] for key in range(0, 997, 50)
    ]


@pytest.mark.parametrize("keep_versions", [(), ("book",)])
@pytest.mark.parametrize(
    "count", [1, CAPACITY // COPIED_SHARE, CAPACITY // COPIED_SHARE + 1, CAPACITY, 2 * CAPACITY + 7, 5 * CAPACITY]
)
def test_all_that_was_put_is_there_again_whatever_the_memtables_size(tmp_path, count, keep_versions):
    seed = count
    print("seed", seed)
    draw, done = random.Random(seed), 0
    with open_large(tmp_path, keep_versions=keep_versions) as store:
        while done < count:
            kind, step = draw.random(), min(draw.choice([1, 2, 50, 3000]), count - done)
            if kind < 0.4:
                store["book"].put_batch(batch(done, step))
            elif kind < 0.7:
                for number in range(done, done + min(step, 20)):
                    store["book"].put(number % 997, number)
                step = min(step, 20)
            else:
                for number in range(done, done + min(step, 5)):
                    store["book"].delete(number % 1000)
                step = min(step, 5)
            done += step
            store["other"].put(b"%d" % done)
        wanted, versions, others = contents(store), history(store), sum(len(rows) for rows in store["other"].scan())
    with Store(tmp_path, [OTHER, BOOK], **NEVER) as store:
        assert contents(store) == wanted
        assert not keep_versions or history(store) == versions
        assert sum(len(rows) for rows in store["other"].scan()) == others
        assert store["book"].put(5000, 1) == count + 1
        store.compact()
        assert contents(store) == [*wanted, (5000, 1, count + 1)]


def test_rows_that_lie_in_the_log_stay_readable_when_their_files_are_gone(tmp_path):
    rows = [batch(first, 20_000) for first in range(0, 400_000, 20_000)]
    with open_large(tmp_path) as store:
        for each in rows:
            store["book"].put_batch(each)
        wanted = contents(store)
        files = list_files(tmp_path / "log")
    assert len(files) > 3
    with Store(tmp_path, [BOOK, OTHER], **NEVER, archive=False, immutable_max=100) as store:
        scan, state = store["book"].scan(batch_rows=10), store["book"].core.state
        first = next(scan)
        store.snapshot()
        wait_until(lambda: not any(path.exists() for _, path in files))
        found = [
            (int(row["key"]), int(row["value"]), int(row["sequence"])) for batch in (first, *scan) for row in batch
        ]
        assert found == wanted
        for key, value, sequence in wanted[::100]:
            row = state.get((key,), 400_000)
            assert row is not None
            assert (int(row["value"]), int(row["sequence"])) == (value, sequence)


def test_rows_of_a_whole_memtable_are_not_copied_and_a_few_are(tmp_path):
    with open_large(tmp_path) as store:
        store["book"].put_batch(batch(0, 3 * CAPACITY + CAPACITY // COPIED_SHARE))
    contents = examine(tmp_path / "log")
    files = unflushed(tmp_path / "log", contents.files, tmp_path / "archive", {"book": 0})
    codec = KeyCodec(BOOK)
    active = Memtable(codec, MEMTABLE_BYTES)
    with ThreadPoolExecutor(2) as pool:
        *elsewhere, last = replay(pool, files, contents.topics["book"], 0, codec, active, MemoryPool())
    assert last is active
    assert [len(memtable) for memtable in elsewhere] == [CAPACITY] * 3
    assert len(active) == CAPACITY // COPIED_SHARE
    assert all(memtable.memory_bytes < CAPACITY * BOOK.row_bytes for memtable in elsewhere)


def test_a_topic_that_was_only_logged_comes_back_from_the_archive_too(tmp_path):
    with open_large(tmp_path) as store:
        for first in range(0, 400_000, 20_000):
            store["book"].put_batch(batch(first, 20_000))
        wanted = contents(store)
    (tmp_path / "archive").mkdir(exist_ok=True)
    files = list_files(tmp_path / "log")
    for _, path in files[:3]:
        path.rename(tmp_path / "archive" / path.name)
    with Store(tmp_path, [BOOK, OTHER], **NEVER) as store:
        assert contents(store) == wanted


@pytest.mark.parametrize("where", ["rows", "order"])
def test_damage_in_the_archive_is_found_before_anything_comes_back_from_there(tmp_path, where):
    with open_large(tmp_path) as store:
        for first in range(0, 400_000, 20_000):
            store["book"].put_batch(batch(first, 20_000))
    (tmp_path / "archive").mkdir(exist_ok=True)
    moved = [path.rename(tmp_path / "archive" / path.name) for _, path in list_files(tmp_path / "log")[:4]]
    second = moved[1]
    if where == "rows":
        flip(second, 2 << 20)
    else:
        data = bytearray(second.read_bytes())
        header = _log.decode_file_header(data[:4096], second)
        assert header is not None
        header["start_position"] += 8
        data[:4096] = _log.encode_file_header(**header)
        second.write_bytes(data)
    with pytest.raises(Corruption, match=second.name):
        Store(tmp_path, [BOOK, OTHER], **NEVER)
    second.unlink()
    with pytest.raises(
        StorageError, match=r"sequence \d+ is missing in the log, though the tables hold only up to \d+"
    ):
        Store(tmp_path, [BOOK, OTHER], **NEVER)


# --- a memtable of rows that lie in a log file ------------------------------------------------------------------------------


def logged(directory: Path) -> tuple[Any, np.ndarray]:
    """A log file, and the frames in it that hold the topic's rows: 1 to 1000 in batches, 1001 to 1100 one by one."""
    with open_large(directory) as store:
        for first in range(0, 1000, 100):
            store["book"].put_batch(batch(first, 100))
        for number in range(1000, 1050):
            store["book"].put(number, number)
        for number in range(1000, 1050):
            store["book"].delete(number)
    number, path = list_files(directory / "log")[0]
    file = open_file(path, number)
    frames, _ = file.scan()
    return file, frames[np.isin(frames["kind"], (_log.FRAME_ROWS, _log.FRAME_TOMBSTONES)) & (frames["topic"] == 0)]


@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize(
    ("first", "end"), [(1, 1101), (1, 1), (50, 51), (99, 102), (150, 1075), (1001, 1002), (1101, 9000)]
)
def test_a_memtable_takes_the_rows_between_two_sequences_from_frames(tmp_path, first, end, elsewhere):
    file, frames = logged(tmp_path)
    codec = KeyCodec(BOOK)
    memtable = Memtable(codec, rows_elsewhere=1200) if elsewhere else Memtable(codec, 1 << 20)
    memtable.replay(file.data, frames, first, end)
    rows, tombstones = memtable.rows()
    last = min(end - 1, 1100)
    assert rows["sequence"].tolist() == list(range(first, last + 1))
    assert rows["value"].tolist() == [n - 1 if n <= 1050 else 0 for n in range(first, last + 1)]
    assert tombstones.tolist() == [n > 1050 for n in range(first, last + 1)]
    assert memtable.tombstone_count == sum(tombstones)
    merge = Merge(codec, [(memtable, len(memtable))], [])
    merge.begin_scan(2000, True)
    out = np.empty(2000, BOOK.dtype)
    assert sorted(out[: merge.fill(out)]["sequence"].tolist()) == [n for n in range(first, last + 1) if n <= 1050]
    state = State(codec, (memtable,), (), ())
    for row, dead in zip(rows, tombstones, strict=True):
        found = state.get((int(row["key"]),), int(row["sequence"]))
        assert (found is None) == dead
        assert found is None or found.tobytes() == row.tobytes()


def test_what_does_not_fit_or_is_no_frame_of_this_topic_is_refused(tmp_path):
    file, frames = logged(tmp_path)
    codec = KeyCodec(BOOK)
    memtable = Memtable(codec, rows_elsewhere=1099)
    with pytest.raises(ValueError, match="1100 are more than the 1099 that still fit"):
        memtable.replay(file.data, frames, 1, 1101)
    with pytest.raises(ValueError, match="number 10 does not hold rows of topic 'book' within the data"):
        memtable.replay(file.data[: int(frames["offset"][10])], frames, 1, 1101)
    with pytest.raises(ValueError, match="number 0 does not hold rows of topic 'other'"):
        Memtable(KeyCodec(OTHER), 1 << 20).replay(file.data, frames, 1, 1101)
    with pytest.raises(ValueError, match="a contiguous array of frames"):
        memtable.replay(file.data, frames[::2], 1, 1101)
    assert len(memtable) == 0
    with pytest.raises(ValueError, match="holds none of its own"):
        memtable.insert(np.zeros(1, BOOK.dtype))
