"""Sending a data directory while it is written: what arrives is whole, proven, and of one instant, or nothing is there."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from ringmain.storage import Corruption, Log, LogReader, StorageError, files
from ringmain.storage.log_files import list_files
from ringmain.storage.recovery import Contents, examine
from ringmain.storage.snapshot_transfer import (
    Snapshot,
    SnapshotFile,
    SnapshotList,
    decode_snapshot_list,
    encode_snapshot_list,
    receive_snapshot,
    snapshot_files,
)
from ringmain.storage.store_reader import StoreReader
from support.backups import content
from support.followed_store import Child, Oracle, open_store, write_on
from support.logs import FILE_BYTES, PAIRS, POINTS, append, check_rows, read_rows

CHUNK_BYTES = 100_000


def send(snapshot: Snapshot, place: Path, change: Mapping[int, int] | None = None) -> Mapping[str, int]:
    """Send everything. Returns each topic's last sequence."""
    found = receive(snapshot, place, change)
    assert found == examine(place / "log")
    return found.ends


def receive(snapshot: Snapshot, place: Path, change: Mapping[int, int] | None = None) -> Contents:
    """Send everything, in pieces, the files by turns. change: a byte to be wrong, by file's number."""
    listing = decode_snapshot_list(encode_snapshot_list(snapshot.listing))
    with receive_snapshot(place, listing) as receiving:
        left = set(range(len(listing.files)))
        while left:
            for number in sorted(left):
                at = receiving.written[number]
                data = bytearray(snapshot.read(number, at, CHUNK_BYTES))
                if not data:
                    left.remove(number)
                    continue
                wrong = (change or {}).get(number, -1)
                if at <= wrong < at + len(data):
                    data[wrong - at] ^= 0x10
                receiving.write(number, data)
        return receiving.finish()


def check_store(place: Path, last: int) -> None:
    """Assert that a store of followed_store is whole up to that row of book."""
    with StoreReader(place, refresh_s=float("inf")) as store:
        oracle = Oracle()
        oracle.advance(last)
        assert store["book"].sequence == last
        oracle.check(store["book"])
        tape = [number for rows in store["tape"].scan() for number in rows["number"].tolist()]
        assert tape == list(range(1, len(tape) + 1))


def write_log(directory: Path) -> None:
    """A log of several files and of two writers."""
    for _ in range(2):
        log = Log(directory / "log", [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES, sync_files=False)
        for _ in range(6):
            append(log, POINTS, 20_000)
            append(log, PAIRS, 100)
        log.close()


# --- what arrives ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_store_arrives_as_it_was_at_one_instant_while_its_writer_goes_on(tmp_path: Path) -> None:
    directory, place = tmp_path / "data", tmp_path / "place"
    with Child(f"be_writer({str(directory)!r})") as child:
        child.hear("ready")
        child.tell("for-ever")
        written = [int(child.hear("wrote")[0]) for _ in range(40)][-1]
        with snapshot_files(directory) as snapshot:
            names = {file.name for file in snapshot.listing.files}
            for _ in range(40):  # tables are compacted, and log files archived, under the snapshot
                child.hear("wrote")
            last = send(snapshot, place)
        child.kill()
    assert last["book"] >= written
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.suffix in (".sst", ".log")} == names
    check_store(place, last["book"])
    log_id = snapshot.listing.log_id
    with open_store(place) as store:  # and goes on
        assert store["book"].core.next_sequence == last["book"] + 1
        write_on(store["book"], last["book"] + 500)
    assert LogReader(place / "log", "book", place / "archive").log_id == log_id
    check_store(place, last["book"] + 500)


def test_a_log_without_a_store_arrives_as_far_back_as_it_is_kept(tmp_path: Path) -> None:
    write_log(tmp_path / "data")
    with snapshot_files(tmp_path / "data") as snapshot:
        last = send(snapshot, tmp_path / "place")
    assert last == {"points": 240_000, "pairs": 1_200}
    rows = read_rows(tmp_path / "place" / "log", POINTS)
    assert len(rows) == 240_000
    check_rows(POINTS, rows, 1)
    log = Log(tmp_path / "place" / "log", [POINTS, PAIRS], bus="test", log_id=snapshot.listing.log_id)
    assert log.recovered.record_count == 241_200
    assert append(log, POINTS, 1) == 240_001
    log.close()


def test_what_the_writer_gives_up_meanwhile_is_sent_all_the_same(tmp_path: Path) -> None:
    write_log(tmp_path / "data")
    with snapshot_files(tmp_path / "data") as snapshot:
        log = Log(
            tmp_path / "data" / "log",
            [POINTS, PAIRS],
            bus="test",
            file_bytes=FILE_BYTES,
            sync_files=False,
            retention_bytes=1,
        )
        for _ in range(20):
            append(log, POINTS, 20_000)
        log.close()
        sent = max(int(Path(file.name).stem) for file in snapshot.listing.files)
        assert list_files(tmp_path / "data" / "log")[0][0] > sent
        assert send(snapshot, tmp_path / "place")["points"] == 240_000
    check_rows(POINTS, read_rows(tmp_path / "place" / "log", POINTS), 1)


def is_cached(path: Path) -> bool:
    """Whether the page cache has most of a file."""
    page_count = -(-path.stat().st_size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * page_count)()
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        first = ctypes.c_ubyte.from_buffer(mapped)
        failed = libc.mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), found)
        del first  # or it stays mapped
    assert not failed, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in found) > page_count / 2


def test_what_has_arrived_leaves_the_page_cache(stored: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "data")
    probe = files.create_file(tmp_path / "probe")
    files.write_at(probe, bytes(10_000), 0)
    files.sync_data(probe)
    files.leave_cache(probe)
    os.close(probe)
    if is_cached(tmp_path / "probe"):
        pytest.skip("nothing leaves the page cache of this file system")
    for data_dir, place in ((tmp_path / "data", tmp_path / "logs"), (stored, tmp_path / "store")):
        with snapshot_files(data_dir) as snapshot:
            names = [file.name for file in snapshot.listing.files]
            with receive_snapshot(place, snapshot.listing) as receiving:
                receiving.write(0, snapshot.read(0, 0, snapshot.listing.files[0].file_bytes))
                (first,) = tmp_path.rglob(f".*/{names[0]}")
                assert not is_cached(first)
            receive(snapshot, place)
        newest = max(name for name in names if name.startswith("log/"))
        assert [name for name in names if is_cached(place / name)] == [newest]  # which is read next


def test_a_snapshot_leaves_no_file_open_and_nothing_on_the_disk(tmp_path: Path) -> None:
    write_log(tmp_path / "data")
    gc.collect()  # what earlier tests left open
    before, open_before = content(tmp_path), len(os.listdir("/proc/self/fd"))
    with snapshot_files(tmp_path / "data") as snapshot:
        assert len(os.listdir("/proc/self/fd")) > open_before
        snapshot.read(0, 0, 10)
    assert content(tmp_path) == before
    assert len(os.listdir("/proc/self/fd")) == open_before


# --- what is not as it should be ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stored") / "data"
    with open_store(directory) as store:
        write_on(store["book"], 3_000)
        store.snapshot()
        write_on(store["book"], 3_100)
    return directory


@pytest.mark.parametrize("kind", ["store/", "log/"])
def test_a_byte_that_is_wrong_on_the_way_is_found_and_nothing_is_there(stored: Path, tmp_path: Path, kind: str) -> None:
    with snapshot_files(stored) as snapshot:
        files = snapshot.listing.files
        number = next(number for number, file in enumerate(files) if file.name.startswith(kind))
        with pytest.raises(Corruption) as caught:
            send(snapshot, tmp_path / "place", {number: min(5_000, files[number].file_bytes - 50)})
        assert caught.value.path == str(tmp_path / "place" / files[number].name)
        assert list(tmp_path.iterdir()) == []
        send(snapshot, tmp_path / "place")
    check_store(tmp_path / "place", 3_100)


def test_what_has_not_arrived_whole_is_not_there(stored: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with snapshot_files(stored) as snapshot:
        with (
            pytest.raises(StorageError, match=r"0 of \d+ bytes have arrived"),
            receive_snapshot(place, snapshot.listing) as receiving,
        ):
            receiving.finish()
        with (
            pytest.raises(ValueError, match=r"has .* bytes, and now"),
            receive_snapshot(place, snapshot.listing) as receiving,
        ):
            receiving.write(0, bytes(snapshot.listing.files[0].file_bytes + 1))
        with receive_snapshot(place, snapshot.listing) as receiving:
            receiving.write(0, snapshot.read(0, 0, 1_000))  # the sender is gone
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_anything_is_and_one_where_another_builds_are_refused(stored: Path, tmp_path: Path) -> None:
    with snapshot_files(stored) as snapshot:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        with pytest.raises(FileExistsError), receive_snapshot(tmp_path / "full", snapshot.listing):
            pass
        failed: list[BaseException] = []

        def receive_too() -> None:
            try:
                with receive_snapshot(tmp_path / "place", snapshot.listing):
                    pass
            except StorageError as error:
                failed.append(error)

        with receive_snapshot(tmp_path / "place", snapshot.listing):
            thread = threading.Thread(target=receive_too)
            thread.start()
            thread.join()
    assert "another process" in str(failed[0])


def test_a_list_from_elsewhere_is_not_believed(stored: Path, tmp_path: Path) -> None:
    with snapshot_files(stored) as snapshot:
        listing = snapshot.listing
    data = encode_snapshot_list(listing)
    assert encode_snapshot_list(decode_snapshot_list(data)) == data
    for wrong, right in (
        (b"../../etc/x", b"log/0000000001.log"),
        (b"log/1.log", b"log/0000000001.log"),
        (b'"file_bytes":-', b'"file_bytes":'),
        (b'"log_idd"', b'"log_id"'),
        (b"archive/", b"store/"),
    ):
        assert right in data
        with pytest.raises(StorageError, match="not the list of a snapshot"):
            decode_snapshot_list(data.replace(right, wrong))
    for cut in range(0, len(data), 97):
        with pytest.raises(StorageError):
            decode_snapshot_list(data[:cut])
    log = SnapshotFile(name="log/0000000001.log", file_bytes=1 << 60)
    huge = SnapshotList(log_id=1, manifest=None, files=(log,))
    with pytest.raises(OSError, match="bytes are needed"), receive_snapshot(tmp_path / "place", huge):
        pass
    manifest = listing.manifest
    assert manifest is not None
    for edit in (
        msgspec.structs.replace(manifest, added=[*manifest.added, manifest.added[0]]),
        msgspec.structs.replace(manifest, checkpoints={"unknown": 1}),
        msgspec.structs.replace(manifest, removed=[1 << 40]),
    ):
        impossible = msgspec.structs.replace(listing, manifest=edit)
        with (
            pytest.raises(StorageError, match="not the manifest of a snapshot"),
            receive_snapshot(tmp_path / "place", impossible),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="twice"):
        SnapshotList(log_id=1, manifest=None, files=(log, log))
    for names in (("log/0000000001.log", "archive/0000000002.log"), ("archive/0000000001.log", "log/0000000001.log")):
        with pytest.raises(ValueError, match="older than the log's"):
            SnapshotList(log_id=1, manifest=None, files=tuple(SnapshotFile(name=name, file_bytes=1) for name in names))


def test_the_log_of_another_than_the_list_says_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "data")
    with snapshot_files(tmp_path / "data") as snapshot:
        other = SnapshotList(log_id=7, manifest=None, files=snapshot.listing.files)
        snapshot.listing = other
        with pytest.raises(StorageError, match="and 0x7 is listed"):
            send(snapshot, tmp_path / "place")


def test_a_file_that_has_become_shorter_is_told(tmp_path: Path) -> None:
    write_log(tmp_path / "data")
    with snapshot_files(tmp_path / "data") as snapshot:
        os.truncate(list_files(tmp_path / "data" / "log")[-1][1], 5_000)
        with pytest.raises(Corruption, match="its end"):
            send(snapshot, tmp_path / "place")
    assert not (tmp_path / "place").exists()
