"""Verifying a store: a sound one is called sound, also beside a living writer; whatever is wrong in it is named with its place."""

from __future__ import annotations

import os
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.storage import Corruption, Schema
from ringmain.storage._log import crc32c
from ringmain.storage._tree import KeyCodec
from ringmain.storage.errors import StorageError
from ringmain.storage.log_files import list_files
from ringmain.storage.manifest import Edit, Manifest, read_manifest
from ringmain.storage.manifest_reader import MANIFEST_NAME
from ringmain.storage.store import Store
from ringmain.storage.store_verify import Finding, verify_store
from ringmain.storage.table_files import open_table
from support.followed_store import BOOK, SMALL, TAPE, key_of
from support.logs import flip, wait_until
from support.sstables import PAGE_BYTES, SECTIONS, sealed, sections, write_table

FILE_BYTES = 4 << 20


def fill(store: Store, count: int) -> None:
    book, tape = store["book"], store["tape"]
    for number in range(count):
        key = int(key_of(number))
        if number % 7 == 3:
            book.delete(key)
        else:
            book.put(key, number)
        tape.put(number)


def open_small(directory: Path, compression: Any = "none") -> Store:
    return Store(
        directory,
        [BOOK, TAPE],
        shape=SMALL,
        block_bytes=512,
        memtable_bytes=1 << 20,
        compression=compression,
        log_file_bytes=FILE_BYTES,
    )


@pytest.fixture(scope="module", params=["none", "zstd"])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with tables in several levels, rows behind the checkpoint, and files that are quick to copy."""
    directory = tmp_path_factory.mktemp("template") / "store"
    with open_small(directory, request.param) as store:
        for _ in range(6):
            fill(store, 500)
            store.snapshot()
        store.compact("book")
        fill(store, 300)
        store.snapshot()
        fill(store, 50)
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "copy")


def tables(directory: Path, topic: str) -> list[Path]:
    infos = read_manifest(directory / "store").versions[topic].tables()
    return [directory / "store" / f"{info.number:010d}.sst" for info in infos]


def only_finding(directory: Path) -> Finding:
    findings = verify_store(directory).findings
    assert len(findings) == 1, findings
    return findings[0]


def test_a_sound_store_is_called_sound_and_counted(directory):
    seen: list[tuple[int, int]] = []
    verified = verify_store(directory, progress=lambda done, total: seen.append((done, total)))
    assert verified.is_sound
    assert verified.findings == verified.strays == ()
    assert (verified.torn_bytes, verified.lost_count) == (0, 0)
    book, tape = verified.topics
    assert (book.topic, book.checkpoint, book.newest) == ("book", 3300, 3350)
    assert (tape.topic, tape.row_count, tape.newest) == ("tape", 3300, 3350)
    assert verified.row_count == book.row_count + tape.row_count
    assert verified.record_count == 2 * 3350
    table_count = book.table_count + tape.table_count
    assert verified.file_count == 1 + table_count + len(list_files(directory / "log"))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert "sound" in str(verified)


def test_where_there_is_no_store_that_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no store"):
        verify_store(tmp_path)


def test_a_store_is_verified_while_it_is_written_flushed_and_compacted(tmp_path):
    with open_small(tmp_path) as store:
        done = threading.Event()
        failure: list[BaseException] = []

        def work() -> None:
            try:
                while not done.is_set():
                    fill(store, 300)
                    store.compact("book")
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            numbers: set[str] = set()
            while len(numbers) < 40 and not failure:
                verified = verify_store(tmp_path)
                assert verified.findings == ()
                numbers |= {path.name for path in tables(tmp_path, "book")}
        finally:
            done.set()
            thread.join()
        assert not failure
    assert verify_store(tmp_path).strays == ()


def test_a_table_that_vanishes_while_the_store_is_read_is_a_finding_only_if_the_manifest_still_names_it(directory):
    path = tables(directory, "tape")[2]
    number = int(path.name[:10])
    path.unlink()
    finding = only_finding(directory)
    assert (finding.path, finding.offset, finding.found) == (path, 0, "no file")

    def compaction(done: int, total: int) -> None:
        if done and number in {info.number for info in read_manifest(directory / "store").versions["tape"].tables()}:
            manifest = Manifest(directory / "store", read_manifest(directory / "store").log_id)
            manifest.commit(Edit(removed=[number]))
            manifest.close()

    assert verify_store(directory, progress=compaction).findings == ()


def test_damage_in_manifest_table_and_log_is_named_in_all_of_them_at_once(directory):
    manifest, log = directory / "store" / "MANIFEST", list_files(directory / "log")[0][1]
    first, second = tables(directory, "tape")[:2]
    flip(manifest, 100)
    flip(first, PAGE_BYTES + 600)
    flip(second, 8)
    flip(log, 4096 + 80)
    verified = verify_store(directory)
    assert not verified.is_sound
    assert {finding.path for finding in verified.findings} == {manifest, first, second, log}
    for finding in verified.findings:
        assert f"{finding.path}, byte {finding.offset}: expected {finding.expected}" in str(verified)


def test_every_damaged_block_of_a_table_is_named(directory):
    path = tables(directory, "tape")[0]
    schema = TAPE
    table = open_table(path, schema, KeyCodec(schema))
    for block in (0, 2, 5):
        offset = PAGE_BYTES + block * table.block_rows * schema.row_bytes
        if table.compression == "none":
            flip(path, offset + 3)
    if table.compression == "none":
        assert [finding.offset for finding in verify_store(directory).findings] == [
            PAGE_BYTES + block * table.block_rows * schema.row_bytes for block in (0, 2, 5)
        ]


@pytest.mark.parametrize("name", ["keys", "blocks", "tags", "bloom", "tombstones", "schema"])
def test_a_damaged_section_is_named(directory, name):
    for path in tables(directory, "book"):
        offset, size = sections(path.read_bytes())[name]
        if size:
            flip(path, offset + size // 2)
            assert only_finding(directory).offset == offset
            return
    raise AssertionError("no table has this section")


# --- what no checksum shows ----------------------------------------------------------------------------------------------


POINTS = Schema("points", {"key": "u4", "value": "u8"}, key=("key",))


def proven(path: Path) -> list[StorageError]:
    return list(open_table(path, POINTS, KeyCodec(POINTS)).problems())


def table_of(tmp_path: Path, flags: bool = True) -> Path:
    rows = np.zeros(40, POINTS.dtype)
    rows["key"] = np.arange(40) // 2
    rows["sequence"] = 100 - np.arange(40)
    rows["timestamp_ns"] = rows["sequence"] * 10
    marks = (np.arange(40) % 5 == 0).astype("u1") if flags else None
    return write_table(tmp_path / "0000000001.sst", POINTS, rows, marks, block_bytes=128)


def with_section(data: bytes, name: str, at: int, new: bytes) -> bytes:
    """The file with other bytes in a section and all its checksums right."""
    changed = bytearray(data)
    offset, size = sections(data)[name]
    changed[offset + at : offset + at + len(new)] = new
    place = len(data) - PAGE_BYTES + 96 + 24 * list(sections(data)).index(name) + 16
    struct.pack_into("<I", changed, place, crc32c(bytes(changed[offset : offset + size])))
    return sealed(changed)


@pytest.mark.parametrize(
    ("name", "at", "new", "what"),
    [
        ("keys", 8, b"\1", "the key of the block's first row"),
        ("blocks", 24 + 8, b"\7", "the sequence of the block's first row"),
        ("tags", 11, b"", "the tag of the row's key"),
        ("bloom", 0, bytes(64), "a filter with every key"),
        ("tombstones", 0, b"\0", "as many tombstones"),
        ("tombstones", 7, b"\x80", "as many tombstones"),
    ],
)
def test_an_index_that_does_not_say_what_the_rows_do_is_damage_though_its_checksum_is_right(
    tmp_path, name, at, new, what
):
    path = table_of(tmp_path)
    data = path.read_bytes()
    assert proven(path) == []
    offset, _ = sections(data)[name]
    new = new or bytes([data[offset + at] ^ 1])
    path.write_bytes(with_section(data, name, at, new))
    (error, *_) = proven(path)
    assert isinstance(error, Corruption)
    assert what in str(error)


@pytest.mark.parametrize("offset", [40, 48, 56, 64, 72, 80, 288, 544])
def test_a_footer_that_does_not_say_what_the_rows_do_is_damage_though_its_checksum_is_right(tmp_path, offset):
    path = table_of(tmp_path)
    data = bytearray(path.read_bytes())
    at = len(data) - PAGE_BYTES + offset
    (value,) = struct.unpack_from("<Q", data, at)
    struct.pack_into("<Q", data, at, value + 1 if offset != 64 else value + 3)
    path.write_bytes(sealed(data))
    errors = proven(path)
    assert [error.offset for error in errors if isinstance(error, Corruption)] == [at]


def test_rows_out_of_order_are_damage_though_their_checksums_are_right(tmp_path):
    path = table_of(tmp_path)
    data = bytearray(path.read_bytes())
    size = POINTS.row_bytes
    one, other = (slice(PAGE_BYTES + at * size, PAGE_BYTES + (at + 1) * size) for at in (2, 3))
    data[one], data[other] = data[other], data[one]
    entries, _ = sections(bytes(data))["blocks"]
    _, _, stored, _ = struct.unpack_from("<QQII", data, entries)
    crc = crc32c(bytes(data[PAGE_BYTES : PAGE_BYTES + stored]))
    path.write_bytes(with_section(bytes(data), "blocks", 20, crc.to_bytes(4, "little")))
    (error,) = proven(path)
    assert isinstance(error, Corruption)
    assert "rows in the order of keys" in str(error)


# --- files that do not belong together ------------------------------------------------------------------------------------


def test_a_table_in_the_place_of_another_is_named(directory):
    one, other = tables(directory, "tape")[:2]
    data = one.read_bytes()
    shutil.copy(other, one)
    assert only_finding(directory).path == one
    one.write_bytes(data)
    shutil.copy(tables(directory, "book")[0], one)
    assert only_finding(directory).path == one


def test_a_lone_table_whose_schema_has_a_key_that_no_store_can_have_is_a_finding(directory):
    path = tables(directory, "tape")[0]
    path.with_name(MANIFEST_NAME).unlink()
    data = bytearray(path.read_bytes())
    json = Schema("tape", {"key": "S300"}, key=("key",)).to_json()
    offset, _ = sections(bytes(data))["schema"]
    data[offset : offset + len(json)] = json
    struct.pack_into(
        "<QI", data, len(data) - PAGE_BYTES + 96 + 24 * SECTIONS.index("schema") + 8, len(json), crc32c(json)
    )
    path.write_bytes(sealed(data))
    (found,) = [finding for finding in verify_store(directory).findings if finding.path == path]
    assert found.found == "topic 'tape': the key takes 300 bytes; a store takes at most 256"


def test_files_that_nothing_refers_to_are_told_and_are_no_damage(directory):
    table = tables(directory, "tape")[0]
    strays = [directory / "store" / name for name in ("0000000999.sst", "0000000998.sst.new", "MANIFEST.0.new", "x")]
    for path in strays:
        shutil.copy(table, path)
    verified = verify_store(directory)
    assert verified.is_sound
    assert sorted(verified.strays) == sorted(strays)


def test_a_log_that_begins_behind_the_tables_or_ends_before_them_is_damage(directory):
    log = list_files(directory / "log")
    assert len(log) == 1
    state = read_manifest(directory / "store")
    manifest = Manifest(directory / "store", state.log_id)
    manifest.commit(Edit(checkpoints={"tape": 3400}))
    manifest.close()
    finding = only_finding(directory)
    assert finding.path == log[0][1]
    assert (finding.expected, finding.found) == ("topic 'tape' up to sequence 3400, which tables have", "3350")


def test_a_hole_between_the_tables_and_the_log_is_damage(directory):
    for _ in range(2):
        with open_small(directory) as store:
            fill(store, 10)
    first = list_files(directory / "log")[0][1]
    first.unlink()
    findings = verify_store(directory).findings
    assert [finding.expected for finding in findings] == [
        f"topic {topic!r} from sequence 3301 on, behind its tables" for topic in ("book", "tape")
    ]


def test_a_missing_log_is_damage(directory):
    shutil.rmtree(directory / "log")
    assert only_finding(directory).path == directory / "log"
    os.mkdir(directory / "log")
    assert only_finding(directory).path == directory / "log"


def test_the_archive_is_read_as_a_part_of_the_log(directory):
    with open_small(directory) as store:
        fill(store, 20)
        store.snapshot()
        wait_until(lambda: (directory / "archive" / "0000000001.log").exists())
    archived = [path for _, path in list_files(directory / "archive")]
    verified = verify_store(directory)
    assert verified.findings == ()
    assert verified.record_count == 2 * 3370
    flip(archived[0], 4096 + 80)
    assert only_finding(directory).path == archived[0]
    archived[0].unlink()  # what retention does
    assert verify_store(directory).findings == ()
