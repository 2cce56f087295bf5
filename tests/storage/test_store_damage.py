"""Damage of every kind to every file of a store: found and placed, never returned as rows; and repair keeps all that is good.

RINGMAIN_SEED chooses another sample (it is printed); RINGMAIN_NIGHTLY flips every byte of every file.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import Corruption, LogLocked, Schema, Shape, StorageError
from ringmain.storage.log_files import list_files
from ringmain.storage.manifest import read_manifest
from ringmain.storage.store import Store
from ringmain.storage.store_repair import Repaired, repair_store
from ringmain.storage.store_verify import verify_store
from ringmain.storage.table_salvage import read_table_file, salvage
from support.damaged_store import (
    PAGE_BYTES,
    TOPICS,
    Part,
    Whole,
    check_reads,
    check_repaired,
    edges_of,
    flipped,
    make_whole,
    open_store,
    parts_of,
    replace,
)
from support.logs import FILE_BYTES, wait_until
from support.sstables import needs, write_table

SEED = int(os.environ.get("RINGMAIN_SEED", "20230601"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
PER_KIND = 3 if NIGHTLY else 1  # bytes of every kind that are flipped
pytestmark = pytest.mark.timeout(4 * 3600 if NIGHTLY else 180)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A store whose archive has all that was ever put."""
    return make_whole(tmp_path_factory.mktemp("plain") / "store", "none")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The same with tables that are compressed from level 1 on."""
    return make_whole(tmp_path_factory.mktemp("packed") / "store", needs("zstd"))


@pytest.fixture(scope="module")
def bare(plain: Whole, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """`plain` without an archive: most of what is in tables is nowhere else."""
    directory = tmp_path_factory.mktemp("bare") / "store"
    whole = Whole(plain.copy(directory), plain.history, plain.older)
    shutil.rmtree(directory / "archive")
    return whole


def in_last_log(whole: Whole, name: Path) -> bool:
    return name.parent.name == "log" and name.name == list_files(whole.directory / "log")[-1][1].name


def expect_found(whole: Whole, copy: Path, name: Path, part: Part | None, *, may_be_torn: bool = False) -> bool:
    """The damage is named with its place. Or (False) it is where somebody may have begun to write, and all before that is right."""
    verified = verify_store(copy)
    if verified.is_sound:
        assert may_be_torn or in_last_log(whole, name), f"{name}: not found"
        assert part is None or part.kind in ("frame close", "frame mark")
        assert check_reads(whole, copy, to_its_end=in_last_log(whole, name) and part is None) == 0
        return False
    if part is not None:
        places = [finding.offset for finding in verified.findings if finding.path == copy / name]
        assert any(place is not None and part.offset <= place < part.end for place in places), (name, part, verified)
    return True


def repaired(whole: Whole, copy: Path) -> tuple[Repaired, int]:
    """Repair, and check that what is left is right but for what is listed. Returns also how many keys have changed."""
    report = repair_store(copy)
    assert verify_store(copy).findings == ()
    changed = check_repaired(whole, copy, report.lost)
    assert repair_store(copy).changes == ()
    assert str(report).count("\n") >= len(report.changes) + len(report.lost)
    return report, changed


def sample(whole: Whole, per_kind: int) -> Iterator[tuple[Path, Part, int]]:
    """Places of every kind of byte in every kind of file, chosen by chance."""
    chosen = random.Random(SEED)
    found: dict[str, list[tuple[Path, Part, int]]] = {}
    for name in whole.files():
        for part in parts_of(whole.directory / name):
            kind = f"{name.parent} {name.suffix} {part.kind}"
            found.setdefault(kind, []).extend((name, part, offset) for offset in edges_of(part))
    for kind in sorted(found):
        yield from chosen.sample(found[kind], min(per_kind, len(found[kind])))


def damaged(whole: Whole, copy: Path, name: Path, data: bytes | None) -> Path:
    """A copy in which one file has other content, or is gone."""
    whole.copy(copy)
    if data is None:
        (copy / name).unlink()
    else:
        replace(copy, name, data)
    return copy


def test_the_store_for_damage_has_every_kind_of_file_and_byte(plain, packed, bare):
    print(f"RINGMAIN_SEED={SEED}")
    for whole in (plain, packed, bare):
        kinds = {f"{name.parent} {part.kind}" for name in whole.files() for part in parts_of(whole.directory / name)}
        for kind in ("header", "block", "keys", "blocks", "tags", "bloom", "tombstones", "schema", "padding", "footer"):
            assert f"store {kind}" in kinds
        for kind in ("manifest header", "manifest durable", "manifest record"):
            assert f"store {kind}" in kinds
        for folder in ("log",) if whole is bare else ("log", "archive"):
            for kind in ("log header", "frame topic", "frame rows", "frame tombstones", "frame close"):
                assert f"{folder} {kind}" in kinds
        assert all(len(whole.tables(schema.name)) >= 2 for schema in TOPICS)
        assert verify_store(whole.directory).findings == ()
        assert check_reads(whole, whole.directory) == 0
        assert check_repaired(whole, whole.directory, ()) == 0
        assert repair_store(whole.directory, dry_run=True).changes == ()


# --- one byte ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_a_flipped_byte_anywhere_is_named_and_nothing_wrong_is_read(name, tmp_path, request):
    whole = request.getfixturevalue(name)
    for file, part, offset in sample(whole, PER_KIND):
        print(file, part, offset)
        copy = damaged(whole, tmp_path / "copy", file, flipped((whole.directory / file).read_bytes(), offset))
        if expect_found(whole, copy, file, part):
            check_reads(whole, copy)
        shutil.rmtree(copy)


def test_repair_of_a_flipped_byte_loses_nothing_that_tables_or_history_have(packed, tmp_path):
    for file, part, offset in sample(packed, 1):
        print(file, part, offset)
        copy = damaged(packed, tmp_path / "copy", file, flipped((packed.directory / file).read_bytes(), offset))
        report, changed = repaired(packed, copy)
        if file.parent.name != "log":
            assert (changed, report.lost) == (0, ()), (file, part, report)
        shutil.rmtree(copy)


def test_repair_of_a_flipped_byte_without_history_loses_at_most_the_block_or_frame(bare, tmp_path):
    for file, part, offset in sample(bare, 1):
        print(file, part, offset)
        copy = damaged(bare, tmp_path / "copy", file, flipped((bare.directory / file).read_bytes(), offset))
        report, changed = repaired(bare, copy)
        if part.kind == "block":
            assert changed <= sum(entry.count or 0 for entry in report.lost) <= 6
        elif part.kind in ("frame rows", "frame tombstones"):
            assert changed <= 20
        else:
            assert (changed, report.lost) == (0, ()), (file, part, report)
        shutil.rmtree(copy)


@pytest.mark.skipif(not NIGHTLY, reason="RINGMAIN_NIGHTLY flips every byte")
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_every_byte_of_every_kind_of_file_is_proven(name, tmp_path, request):
    whole = request.getfixturevalue(name)
    for file in kinds_of_files(whole):
        data = (whole.directory / file).read_bytes()
        copy = damaged(whole, tmp_path / "copy", file, data)
        for part in parts_of(whole.directory / file):
            for offset in range(part.offset, part.end):
                (copy / file).write_bytes(flipped(data, offset, 1 << offset % 8))
                expect_found(whole, copy, file, part)
                if offset % 23 == 0:
                    again = whole.copy(tmp_path / "again")
                    replace(again, file, flipped(data, offset, 1 << offset % 8))
                    repaired(whole, again)
                    shutil.rmtree(again)
        shutil.rmtree(copy)


# --- more than one ------------------------------------------------------------------------------------------------------


def other_content(whole: Whole, file: Path, chosen: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """What may become of a file."""
    data = (whole.directory / file).read_bytes()
    at = chosen.choice([place for place in range(len(data)) if data[place]])
    sector = at // 512 * 512
    yield "missing", None
    yield "empty", b""
    yield "cut off", data[:at]
    yield "grown", data + bytes(chosen.randrange(1, 600))
    yield "zeros", data[:at] + bytes(64) + data[at + 64 :]
    yield "a sector of zeros", data[:sector] + bytes(512) + data[sector + 512 :]
    yield "junk", data[:at] + chosen.randbytes(100) + data[at + 100 :]
    yield "all zeros", bytes(len(data))
    same = [name for name in whole.files() if name.suffix == file.suffix and name != file]
    if same:
        yield "another file of the store", (whole.directory / chosen.choice(same)).read_bytes()
    older = [whole.older / file, whole.older / "log" / file.name]
    if (earlier := next((path.read_bytes() for path in older if path.exists()), data)) != data:
        yield "an older file", earlier


def kinds_of_files(whole: Whole) -> list[Path]:
    """One table of each topic and level, the manifest, and log files."""
    state = [next(iter(whole.tables(schema.name))) for schema in TOPICS] + [whole.tables("tape")[-1]]
    logs = [name for name in whole.files() if name.suffix == ".log"]
    return [*state, Path("store", "MANIFEST"), logs[1 % len(logs)], logs[-1]]


@pytest.mark.parametrize("name", ["bare", "packed"])
def test_whatever_becomes_of_a_file_is_found_and_repaired_and_what_is_lost_is_listed(name, tmp_path, request):
    whole, chosen = request.getfixturevalue(name), random.Random(SEED)
    for file in kinds_of_files(whole):
        contents = list(other_content(whole, file, chosen))
        for what, data in contents if NIGHTLY or name == "bare" else chosen.sample(contents, 4):
            print(file, what)
            copy = damaged(whole, tmp_path / "copy", file, data)
            is_torn = what == "grown" and file.suffix != ".sst"
            if expect_found(whole, copy, file, None, may_be_torn=is_torn):
                check_reads(whole, copy, to_its_end=in_last_log(whole, file))
                repaired(whole, copy)
            shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["bare", "packed"])
def test_each_record_of_the_manifest_may_be_lost_and_the_tables_are_found_all_the_same(name, tmp_path, request):
    whole, manifest = request.getfixturevalue(name), Path("store", "MANIFEST")
    data = (whole.directory / manifest).read_bytes()
    records = [part for part in parts_of(whole.directory / manifest) if part.kind == "manifest record"]
    assert len(records) > 4
    for part in records if NIGHTLY else [records[0], records[1], records[len(records) // 2], records[-1]]:
        copy = damaged(whole, tmp_path / "copy", manifest, data[: part.offset] + bytes(60) + data[part.offset + 60 :])
        assert expect_found(whole, copy, manifest, part)
        report, changed = repaired(whole, copy)
        assert changed == 0
        if part is records[1]:
            assert (copy / "store" / "lost+found" / "MANIFEST").exists()
            assert any("records of it are damaged" in change.what for change in report.changes)
        shutil.rmtree(copy)


def without_footer(copy: Path, name: Path) -> None:
    replace(copy, name, (copy / name).read_bytes()[:-PAGE_BYTES] + bytes(PAGE_BYTES))


@pytest.mark.parametrize("topic", [schema.name for schema in TOPICS])
@pytest.mark.parametrize("name", ["bare", "packed"])
def test_with_the_manifest_lost_the_newest_table_may_lose_its_footer_too(name, topic, tmp_path, request):
    """Only these two tell how far the tables go."""
    whole = request.getfixturevalue(name)
    tables = read_manifest(whole.directory / "store").versions[topic].tables()
    newest = max(tables, key=lambda info: info.sequence_max)
    copy = damaged(whole, tmp_path / "copy", Path("store", "MANIFEST"), None)
    without_footer(copy, Path("store", f"{newest.number:010d}.sst"))
    assert "the footer is damaged" in str(repair_store(copy, dry_run=True))
    repaired(whole, copy)
    last = max(sequence for versions in whole.history[topic].values() for sequence in versions)
    with open_store(copy) as store:
        assert store[topic].core.next_sequence == last + 1


@pytest.mark.parametrize("topic", [schema.name for schema in TOPICS])
@pytest.mark.parametrize("name", ["bare", "packed"])
def test_with_the_manifest_lost_all_tables_of_a_topic_may_be_missing_too(name, topic, tmp_path, request):
    whole = request.getfixturevalue(name)
    copy = damaged(whole, tmp_path / "copy", Path("store", "MANIFEST"), None)
    for table in whole.tables(topic):
        (copy / table).unlink()
    report = repair_store(copy, keep_versions=["kept"])
    assert verify_store(copy).findings == ()
    changed = check_repaired(whole, copy, report.lost)
    assert name == "bare" or (changed, report.lost) == (0, ())
    assert all(entry.at_most for entry in report.lost)  # nothing tells what was replaced or deleted


def test_what_only_the_log_has_comes_back_to_the_last_byte_between_the_fields(packed, tmp_path):
    copy = damaged(packed, tmp_path / "copy", Path("store", "MANIFEST"), None)
    tables = read_manifest(packed.directory / "store").versions["tape"].tables()
    oldest = min(tables, key=lambda info: info.sequence_min)
    (copy / "store" / f"{oldest.number:010d}.sst").unlink()
    report, changed = repaired(packed, copy)
    assert (changed, report.lost, report.taken_again_count) == (0, (), oldest.row_count)


@pytest.mark.parametrize("name", ["bare", "packed"])
def test_what_was_deleted_stays_so_where_all_that_is_left_of_a_topic_with_its_old_versions_is_its_log(
    name, tmp_path, request
):
    whole, manifest = request.getfixturevalue(name), Path("store", "MANIFEST")
    data = (whole.directory / manifest).read_bytes()
    at = next(part.offset for part in parts_of(whole.directory / manifest) if part.kind == "manifest record")
    copy = damaged(whole, tmp_path / "copy", manifest, data[:at] + bytes(60) + data[at + 60 :])  # its first record
    for table in whole.tables("kept"):
        (copy / table).unlink()
    report = repair_store(copy, keep_versions=["kept"])
    check_repaired(whole, copy, report.lost)


def three_parts(directory: Path) -> list[Path]:
    """A store of 60 rows: 20 in each of two tables, which this returns, and 20 in its log. Older log files are in the archive."""
    schema = Schema("points", {"key": "u4"}, key=("key",))
    for part in range(3):
        with Store(directory, [schema], sync="never", memtable_bytes=1 << 17, log_file_bytes=4 << 20) as store:
            for key in range(20 * part, 20 * part + 20):
                store["points"].put(key)
            if part < 2:
                store.snapshot()
            wait_until(lambda: len(list_files(directory / "log")) == 1)
    infos = sorted(read_manifest(directory / "store").versions["points"].tables(), key=lambda info: info.sequence_max)
    assert [(info.sequence_min, info.sequence_max) for info in infos] == [(1, 20), (21, 40)]
    return [Path("store", f"{info.number:010d}.sst") for info in infos]


@pytest.mark.parametrize("has_archive", [True, False])
@pytest.mark.parametrize("damage", ["footers", "footer", "table"])
def test_with_the_manifest_lost_nothing_tells_how_far_the_tables_go_and_the_log_begins_behind(
    damage, has_archive, tmp_path
):
    tables = three_parts(tmp_path)
    (tmp_path / "store" / "MANIFEST").unlink()
    if not has_archive:
        shutil.rmtree(tmp_path / "archive")
    if damage == "table":
        (tmp_path / tables[1]).unlink()
    for table in {"footers": tables, "footer": tables[1:], "table": []}[damage]:
        without_footer(tmp_path, table)
    report = repair_store(tmp_path)
    assert verify_store(tmp_path).findings == ()
    assert repair_store(tmp_path).changes == ()
    lost = [(entry.first, entry.last, entry.count, entry.at_most) for entry in report.lost]
    assert lost == ([(21, 40, 20, False)] if damage == "table" and not has_archive else [])
    with Store.open(tmp_path) as store:
        keys = [key for rows in store["points"].scan() for key in rows["key"].tolist()]
        assert keys == [*range(20), *(range(20, 40) if not lost else ()), *range(40, 60)]
        assert store["points"].put(60) == 61


def test_all_files_damaged_at_once_are_repaired_at_once(packed, tmp_path):
    chosen = random.Random(SEED)
    copy = packed.copy(tmp_path / "copy")
    for file in packed.files():
        data = (copy / file).read_bytes()
        replace(copy, file, flipped(flipped(data, chosen.randrange(len(data))), chosen.randrange(len(data))))
    print(repaired(packed, copy)[0])


def test_tables_that_changed_their_names_get_them_back(bare, tmp_path):
    copy = bare.copy(tmp_path / "copy")
    one, other, third = (copy / file for file in bare.tables("tape")[:3])
    one.rename(copy / "x")
    other.rename(one)
    third.rename(other)
    (copy / "x").rename(third)
    report, changed = repaired(bare, copy)
    assert (changed, report.lost) == (0, ())
    assert [change.what for change in report.changes] == ["got its right name back"] * 3


# --- what repair promises -----------------------------------------------------------------------------------------------


def test_a_table_of_another_store_is_not_taken_for_a_damaged_one_of_this(bare, tmp_path):
    """It has the same number, and its header, which would tell, is damaged."""
    copy = bare.copy(tmp_path / "copy")
    state = read_manifest(copy / "store")
    table = next(iter(state.versions["book"].tables()))
    schema = Schema("other", {"a": "u8", "b": "u8"}, key=("a",))
    rows = np.zeros(40, schema.dtype)
    rows["sequence"] = rows["a"] = np.arange(1, 41)
    path = copy / "store" / f"{table.number:010d}.sst"
    path.unlink()
    write_table(path, schema, rows, number=table.number)
    data = path.read_bytes()
    path.write_bytes(bytes(PAGE_BYTES) + data[PAGE_BYTES:])
    report, _ = repaired(bare, copy)
    assert "it is another table" in str(report)


def test_values_that_look_like_the_beginning_of_an_index_do_not_keep_a_repair(tmp_path):
    schema = Schema("points", {"key": "u8", "value": "u8", "other": "u8"}, key=("key",))
    rows = np.zeros(400_000, schema.dtype)
    rows["sequence"] = rows["key"] = np.arange(1, len(rows) + 1)
    rows["value"] = PAGE_BYTES  # where the first block lies
    path = write_table(tmp_path / "0000000001.sst", schema, rows, block_bytes=4096)
    data = bytearray(path.read_bytes())
    data[-PAGE_BYTES:] = bytes(PAGE_BYTES)
    path.write_bytes(data)
    assert salvage(read_table_file(path), schema, None).rows.tobytes() == rows.tobytes()
    at = data.index(struct.pack("<QQ", PAGE_BYTES, 1))  # the index: the first block's place and sequence
    data[at : at + 24 * 100] = bytes(24 * 100)
    path.write_bytes(data)
    found = salvage(read_table_file(path), schema, None)
    assert len(found.rows) == 0
    assert "the index of the blocks is damaged" in found.wrong


def listing(directory: Path) -> list[tuple[str, int]]:
    """Every file with what tells whether it was replaced."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != "LOCK")
    return sorted((str(path.relative_to(directory)), path.stat().st_ino) for path in paths)


def damaged_in_three_places(whole: Whole, copy: Path) -> Path:
    """A table's block, a record of the manifest, and a frame of the log."""
    whole.copy(copy)
    log = next(name for name in reversed(whole.files()) if name.parent.name == "log")
    frames = [part for part in parts_of(whole.directory / log) if part.kind == "frame rows"]
    record = [part for part in parts_of(whole.directory / "store" / "MANIFEST") if part.kind == "manifest record"][1]
    for file, offset in (
        (whole.tables("book")[-1], PAGE_BYTES + 5),
        (log, frames[1].offset + 70),
        (Path("store", "MANIFEST"), record.offset + 20),
        (Path("store", "MANIFEST"), record.offset + 30),
    ):
        replace(copy, file, flipped((copy / file).read_bytes(), offset))
    return copy


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(packed, tmp_path):
    copy = damaged_in_three_places(packed, tmp_path / "copy")
    before = listing(copy)
    planned = repair_store(copy, dry_run=True)
    assert listing(copy) == before
    report, _ = repaired(packed, copy)
    assert [change.path for change in planned.changes] == [change.path for change in report.changes]
    assert (planned.lost, planned.taken_again_count) == (report.lost, report.taken_again_count)
    assert "would be repaired" in str(planned)


def test_nothing_is_deleted(packed, tmp_path):
    copy = damaged_in_three_places(packed, tmp_path / "copy")
    before = {path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "LOCK"}
    repair_store(copy)
    assert before <= {path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_a_repair_that_is_killed_at_any_instant_can_be_run_again(packed, tmp_path):
    count = 0
    while True:
        copy = damaged_in_three_places(packed, tmp_path / "copy")
        if killed_at(count, copy):
            repaired(packed, copy)
            shutil.rmtree(copy)
            count += 1 if NIGHTLY else 20
            continue
        assert count > 40
        return


def killed_at(count: int, directory: Path) -> bool:
    """Repair in a child that dies before its call number `count` that changes something. False: it came through."""
    child = os.fork()
    if child == 0:
        left = count

        def dying(call):
            def instead(*arguments, **more):
                nonlocal left
                if not left:
                    os._exit(9)
                left -= 1
                return call(*arguments, **more)

            return instead

        for name in ("rename", "link", "unlink", "mkdir", "open", "pwrite", "ftruncate", "fsync", "fdatasync"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            repair_store(directory)
            os._exit(0)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), f"ended with {status}"
    return status == 9


def test_a_store_that_is_written_is_not_repaired(plain, tmp_path):
    copy = plain.copy(tmp_path / "copy")
    with open_store(copy), pytest.raises(LogLocked, match=r"stop it first$"):
        repair_store(copy)
    with pytest.raises(FileNotFoundError, match="holds no store"):
        repair_store(tmp_path)


# --- opening a damaged store ----------------------------------------------------------------------------------------------


def test_a_writer_that_opens_a_damaged_store_makes_nothing_worse(bare, tmp_path):
    chosen = random.Random(SEED)
    for file in kinds_of_files(bare):
        contents = [(what, data) for what, data in other_content(bare, file, chosen) if what != "grown"]
        for what, data in contents if NIGHTLY else chosen.sample(contents, 3):
            print(file, what)
            copy = damaged(bare, tmp_path / "copy", file, data)
            with contextlib.suppress(StorageError, FileNotFoundError), open_store(copy):
                pass
            if not in_last_log(bare, file):  # of which a torn end may go
                repaired(bare, copy)
            shutil.rmtree(copy)


def test_a_log_that_ends_before_the_tables_is_not_written_to(plain, tmp_path):
    log = next(name for name in reversed(plain.files()) if name.parent.name == "log")
    frames = [part for part in parts_of(plain.directory / log) if part.kind != "log header"]
    rows = next(part for part in frames if part.kind == "frame rows")
    data = (plain.directory / log).read_bytes()
    copy = damaged(plain, tmp_path / "copy", log, data[: rows.offset])
    tables = [path for path in listing(copy / "store") if path[0] != "MANIFEST"]
    with pytest.raises(Corruption, match="which tables have"):
        open_store(copy)
    assert [path for path in listing(copy / "store") if path[0] != "MANIFEST"] == tables
    repair_store(copy)
    with open_store(copy) as store:
        assert store["book"].put(1, b"B", 1, b"new") > 1 << 32  # no sequence is used twice


@pytest.mark.parametrize("opened", [["a", "b"], ["b"]])
def test_an_older_manifest_behind_which_the_log_has_expired_is_refused_and_no_table_goes(opened, tmp_path):
    """The tables that it does not know have what is not in the log any more; also where their topic is not opened."""
    schemas = {name: Schema(name, {"key": "u4", "value": "S1000"}, key=("key",)) for name in ("a", "b")}
    settings = {"archive": False, "log_file_bytes": FILE_BYTES, "sync": "never", "shape": Shape(level0_tables=9)}
    log, manifest = tmp_path / "log", tmp_path / "store" / "MANIFEST"
    with Store(tmp_path, schemas.values(), **settings) as store:
        for tree in map(store.__getitem__, schemas):
            tree.put(0, b"first")
        store.snapshot()
        older = manifest.read_bytes()
        rows = np.zeros(1500, schemas["a"].payload_dtype)
        rows["key"] = np.arange(len(rows))
        for _ in range(3):
            store["a"].put_batch(rows)
            store.snapshot()
        wait_until(lambda: list_files(log)[0][0] > 1)
    manifest.write_bytes(older)
    tables = [path for path in listing(tmp_path / "store") if path[0].endswith(".sst")]
    assert len(tables) == 5
    with pytest.raises(StorageError, match=r"topic 'a': sequence 2 is missing in the log"):
        Store(tmp_path, [schemas[name] for name in opened], **settings)
    assert [path for path in listing(tmp_path / "store") if path[0].endswith(".sst")] == tables
