"""A batch is there whole or not at all, however many frames of the log it takes."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
from ringmain.storage import LogReader, Schema, _log
from ringmain.storage.log_files import list_files, open_file
from ringmain.storage.store import Store

A = Schema("a", {"key": "u8", "value": "u8"}, key=("key",))
B = Schema("b", {"key": "u8", "value": "u8"}, key=("key",))
FILE_BYTES = 8 << 20
GROUP_ROWS = (_log.GROUP_BYTES_MAX - _log.FRAME_HEADER_BYTES - 8) // A.row_bytes


def open_store(directory, **settings):
    return Store(directory, [A, B], log_file_bytes=FILE_BYTES, memtable_bytes=32 << 20, **settings)


def batch(count, value):
    rows = np.zeros(count, A.payload_dtype)
    rows["key"], rows["value"] = np.arange(count), value
    return rows


def newest_file(directory):
    number, path = list_files(directory / "log")[-1]
    return open_file(path, number)


def values(store):
    return np.unique(np.concatenate([rows["value"] for rows in store["a"].scan()])).tolist()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The directory of a store into which two batches of three frames each were put, as a kill leaves it."""
    directory = tmp_path_factory.mktemp("batches")
    with open_store(directory / "store") as store:
        for value in (1, 2):
            store["a"].put_batch(batch(3 * GROUP_ROWS - 7, value))
        shutil.copytree(directory / "store", directory / "killed", ignore=shutil.ignore_patterns("spare-*"))
    return directory / "killed"


@pytest.fixture
def cut_store(killed, tmp_path):
    """A function that makes a copy of the store whose log ends at a byte, and the places where its frames of rows begin and end."""

    def cut(offset):
        directory = tmp_path / "cut"
        shutil.copytree(killed, directory)
        with newest_file(directory).path.open("r+b") as file:
            file.truncate(offset)
            file.truncate(FILE_BYTES)
        return directory

    frames, end = newest_file(killed).scan()
    return cut, [*frames["offset"][frames["kind"] == _log.FRAME_ROWS].tolist(), end]


def test_every_frame_but_the_last_says_that_the_batch_goes_on(cut_store):
    cut, places = cut_store
    frames, _ = newest_file(cut(places[-1])).scan()
    assert frames["flags"][frames["kind"] == _log.FRAME_ROWS].tolist() == [_log.CONTINUES, _log.CONTINUES, 0] * 2


@pytest.mark.parametrize("which", range(7))
@pytest.mark.parametrize("inside", [0, 1000], ids=["between frames", "inside a frame"])
def test_a_batch_that_was_not_finished_is_gone_whole(cut_store, which, inside):
    cut, places = cut_store
    directory = cut(places[which] + inside)
    finished = which // 3
    with open_store(directory) as store:
        assert store["a"].core.next_sequence == finished * (3 * GROUP_ROWS - 7) + 1
        assert (store.recovered.torn_bytes > 0) == (which % 3 > 0 or (inside > 0 and which < 6))
        if finished:
            assert values(store) == [finished]
        store["a"].put(1, 99)
    with open_store(directory) as store:  # and the log is sound from there on
        row = store["a"].get(1)
        assert row is not None
        assert row["value"] == 99
        assert row["sequence"] == finished * (3 * GROUP_ROWS - 7) + 1


@pytest.mark.parametrize("which", range(7))
def test_a_reader_waits_for_the_last_frame_of_a_batch(cut_store, killed, which):
    cut, places = cut_store
    directory = cut(places[which])
    reader = LogReader(directory / "log", "a")
    assert reader.newest == which // 3 * (3 * GROUP_ROWS - 7)
    with Store.open(directory, read_only=True) as store:
        assert store["a"].sequence == which // 3 * (3 * GROUP_ROWS - 7)
    whole = newest_file(killed)
    with newest_file(directory).path.open("r+b") as file:  # the rest arrives
        file.seek(places[which])
        file.write(whole.data[places[which] : places[-1]])
    assert reader.newest == 2 * (3 * GROUP_ROWS - 7)


def test_a_batch_that_does_not_fit_into_the_file_begins_the_next(tmp_path):
    with open_store(tmp_path) as store:
        for value in range(6):
            store["a"].put_batch(batch(2 * GROUP_ROWS + 1, value))
        for number, path in list_files(tmp_path / "log"):
            frames, _ = open_file(path, number).scan()
            assert not frames["flags"][-1] & _log.CONTINUES
        assert len(list_files(tmp_path / "log")) > 2
    with open_store(tmp_path) as store:
        assert values(store) == [5]


def test_a_batch_larger_than_a_file_is_refused_and_the_store_goes_on(tmp_path):
    with open_store(tmp_path) as store:
        largest = 6 * GROUP_ROWS
        with pytest.raises(ValueError, match=f"{largest + 1} at once .* at most {largest}"):
            store["a"].put_batch(batch(largest + 1, 1))
        assert store["a"].put_batch(batch(largest, 2)) == largest
        assert values(store) == [2]


def test_two_threads_that_put_at_once_are_told_so(tmp_path):
    refused = []
    with open_store(tmp_path) as store:
        rows, stop = batch(6 * GROUP_ROWS, 1), threading.Event()

        def put_batches():
            while not stop.is_set():
                try:
                    store["b"].put_batch(rows)
                except RuntimeError:
                    continue

        thread = threading.Thread(target=put_batches)
        thread.start()
        put = 0
        try:
            while len(refused) < 3 or put < 100:
                try:
                    store["a"].put(put, put)
                    put += 1
                except RuntimeError as error:
                    refused.append(str(error))
        finally:
            stop.set()
            thread.join()
    assert all("one at a time" in error for error in refused)
    with open_store(tmp_path) as store:
        assert store["a"].core.next_sequence == put + 1
