"""Backing up a store: what a backup holds, what it costs, and that nothing but it is touched."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import Corruption, Log, Schema, StorageError
from ringmain.storage.backup import backup
from ringmain.storage.backup_list import BackupList
from ringmain.storage.backup_repository import BackupBusy, Repository
from ringmain.storage.log_files import list_files
from ringmain.storage.repair import repair
from ringmain.storage.restore import restore
from ringmain.storage.store import Store
from support.backups import check_restored, content
from support.followed_store import Child, open_store, write_on
from support.logs import FILE_BYTES, PAIRS, POINTS, Builder, append, flip, read_rows, wait_until

WIDE = Schema("wide", {"key": "u8", "value": "S1000"}, key=("key",))


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A store's directory, and a folder for its backups."""
    return tmp_path / "data", tmp_path / "backups"


def listed(target: Path, made: BackupList) -> dict[str, Path]:
    """The backup's files: name in the store, and where they lie."""
    return {file.name: Repository(target).find(file) for file in made.files}


def fill_wide(store: Store, count: int) -> None:
    """Put rows until so many more log files are full, and have them in tables and archived."""
    rows = np.zeros(1500, WIDE.payload_dtype)
    for _ in range(2 * count):
        rows["key"] = np.arange(1500) + int(store["wide"].core.next_sequence)
        rows["value"] = b"v"
        store["wide"].put_batch(rows)
    store.snapshot()
    wait_until(lambda: len(list_files(store.directory / "log")) == 1)


def open_wide(directory: Path, **settings: object) -> Store:
    return Store(directory, [WIDE], log_file_bytes=FILE_BYTES, sync="never", **settings)  # type: ignore[arg-type]


# --- what a backup holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [True, False])
def test_a_backup_holds_the_store_as_it_was(places: tuple[Path, Path], tmp_path: Path, closed: bool) -> None:
    directory, target = places
    store = open_store(directory)
    write_on(store["book"], 3000)
    if closed:
        store.close()
    before = content(directory)
    made = backup(directory, target)
    if closed:
        assert content(directory) == before  # nothing of the store is touched
    else:
        write_on(store["book"], 4000)
        store.close()
    assert made.backup.number == 1
    assert made.backup.is_full
    assert made.backup.topics["book"].last == 3000
    assert check_restored(target, tmp_path / "restored")["book"] == 3000


@pytest.mark.process
def test_a_backup_beside_a_writer_that_flushes_and_compacts_holds_at_least_what_was_acknowledged(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, target = places
    exactly = 0
    with Child(f"be_writer({str(directory)!r})") as writer:
        writer.hear("ready")
        writer.tell("for-ever")
        for round_number in range(6):
            acknowledged = int(writer.hear("wrote")[0])
            while acknowledged < 1500 * (round_number + 1):
                acknowledged = int(writer.hear("wrote")[0])
            made = backup(directory, target, full=round_number == 3)
            assert made.backup.topics["book"].last >= acknowledged
            exactly = check_restored(target, tmp_path / "restored", backup=made.backup.number)["book"]
            assert exactly == made.backup.topics["book"].last
        writer.kill()
    assert check_restored(target, tmp_path / "restored")["book"] == exactly


def test_the_process_that_writes_may_back_up_as_well(places: tuple[Path, Path], tmp_path: Path) -> None:
    directory, target = places
    with open_store(directory) as store:
        for until in (500, 2500, 2600):
            write_on(store["book"], until)
            backup(directory, target)
            assert check_restored(target, tmp_path / "restored")["book"] == until


def test_a_directory_with_a_log_only_is_backed_up_too(places: tuple[Path, Path], tmp_path: Path) -> None:
    directory, target = places
    log = Log(directory / "log", [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES)
    append(log, POINTS, 500)
    append(log, PAIRS, 7)
    made = backup(directory, target)
    assert made.backup.manifest is None
    append(log, POINTS, 500)
    log.close()
    backup(directory, target)
    for number, last in ((1, 500), (2, 1000)):
        restored = restore(target, tmp_path / f"restored-{number}", backup=number)
        assert restored.last == {"points": last, "pairs": 7}
        assert len(read_rows(restored.directory / "log", POINTS)) == last


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_a_repair_gave_up_is_counted_also_at_the_end_of_the_log(
    places: tuple[Path, Path], tmp_path: Path, place: int
) -> None:
    directory, target = places
    builder = Builder(directory / "log")
    path = builder.begin()
    offsets = [builder.rows(POINTS, count) for count in (60, 39, 1)]
    builder.mark()
    flip(path, offsets[place] + 100)
    assert repair(directory / "log").lost_count == (60, 39, 1)[place]
    made = backup(directory, target)
    assert made.backup.topics["points"].last == 100
    last = {"points": 100, "pairs": 0}
    assert restore(target, tmp_path / "by-number", backup=1).last == last
    assert restore(target, tmp_path / "all").last == last


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_only_new_files_are_copied(places: tuple[Path, Path]) -> None:
    directory, target = places
    with open_wide(directory) as store:
        fill_wide(store, 4)
        first = backup(directory, target)
        copied = content(target)
        again = backup(directory, target)
        assert (again.new_file_count, again.new_bytes) == (0, 0)
        assert not again.backup.is_full
        assert {name: file for name, file in content(target).items() if not name.startswith("0000000002")} == copied
        fill_wide(store, 1)
        more = backup(directory, target)
    before = {path.name for path in listed(target, first.backup).values()}
    new = [file for file in more.backup.files if file.base_name not in before]
    assert 0 < len(new) < len(before)
    newest_log = max(file.base_name for file in first.backup.files if file.is_log)
    grown = [file for file in more.backup.files if file.base_name == newest_log]
    assert more.new_bytes <= sum(file.file_bytes for file in new + grown)


def test_files_that_never_change_get_a_second_name_and_all_others_are_copied(places: tuple[Path, Path]) -> None:
    directory, target = places
    with open_wide(directory) as store:
        fill_wide(store, 3)
        linked = listed(target, backup(directory, target).backup)
        copied = listed(target, backup(directory, target, full=True, link=False).backup)
        for name, path in linked.items():
            assert path.samefile(directory / name) == (not name.startswith("log/")), name
            assert not copied[name].samefile(directory / name)
        assert any(name.startswith("archive/") for name in linked)
        assert any(name.startswith("store/") for name in linked)


def test_a_full_backup_takes_nothing_from_an_earlier_one(places: tuple[Path, Path]) -> None:
    directory, target = places
    with open_wide(directory) as store:
        fill_wide(store, 2)
        backup(directory, target)
        full = backup(directory, target, full=True)
    assert full.backup.is_full
    assert {path.parent.name for path in listed(target, full.backup).values()} == {"0000000002"}


def test_the_newest_backups_are_kept_and_what_only_older_ones_had_goes(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, target = places
    with open_store(directory) as store:
        for until in (400, 2000, 4000, 6000):
            write_on(store["book"], until)
            backup(directory, target, keep=2)
        backups, problems = Repository(target).read()
        assert [item.number for item in backups] == [3, 4]
        assert problems == []
        needed = {path for item in backups for path in listed(target, item).values()}
        there = {path for path in target.glob("*/*") if path.name != "LIST"}
        assert there == needed
        for number, last in ((3, 4000), (4, 6000)):
            assert check_restored(target, tmp_path / "restored", backup=number)["book"] == last


def test_of_a_log_whose_files_expire_the_backups_that_are_kept_have_no_more_files_than_they_list(
    places: tuple[Path, Path],
) -> None:
    directory, target = places
    folder = Repository(target).folder(1)
    with open_wide(directory, archive_bytes=2 * FILE_BYTES) as store:
        for _ in range(3):
            fill_wide(store, 1)
            made = backup(directory, target, keep=1).backup
            assert made.log_folder == 1  # one copy of the log, that goes on
            logs = {path for path in listed(target, made).values() if path.suffix == ".log"}
            assert {path for _, path in list_files(folder)} == logs
    assert list_files(folder)[0][0] > 1


def test_a_backup_after_more_log_has_expired_than_the_last_one_has_begins_a_copy_of_the_log_anew(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, target = places
    with open_wide(directory, archive=False) as store:
        fill_wide(store, 2)
        backup(directory, target)
        fill_wide(store, 4)
        made = backup(directory, target)
        assert not made.backup.is_full  # the tables are those of the first
        assert made.backup.log_folder == 2
        fill_wide(store, 1)
    assert restore(target, tmp_path / "restored").last == {"wide": 18_000}


# --- what is refused, and what is damaged -----------------------------------------------------------------------------


def test_places_that_cannot_be_meant_are_refused_before_anything_is_made(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, target = places
    with pytest.raises(FileNotFoundError, match="no such directory"):
        backup(directory, target)
    directory.mkdir()
    with pytest.raises(FileNotFoundError):
        backup(directory, target)
    assert not target.exists()
    open_store(directory).close()
    with pytest.raises(ValueError, match="lies in what is to be backed up"):
        backup(directory, directory / "backups")
    target.mkdir()
    (target / "letters.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"'letters.txt' in it and no backup"):
        backup(directory, target)
    assert [path.name for path in target.iterdir()] == ["letters.txt"]
    with pytest.raises(ValueError, match="keep: 1 or more"):
        backup(directory, tmp_path / "other", keep=0)
    backup(directory, tmp_path / "ours")
    other = tmp_path / "another"
    open_store(other).close()
    with pytest.raises(StorageError, match=f"backups of another store, {directory}"):
        backup(other, tmp_path / "ours")
    assert len(Repository(tmp_path / "ours").read()[0]) == 1


def test_one_process_at_a_time_makes_backups_in_a_folder(places: tuple[Path, Path]) -> None:
    directory, target = places
    open_store(directory).close()
    backup(directory, target)
    with Repository(target).locked(), pytest.raises(BackupBusy, match=f"process {os.getpid()} is making a backup"):
        backup(directory, target)
    backup(directory, target)


@pytest.mark.parametrize("part", ["table", "log"])
def test_a_damaged_store_is_not_backed_up_and_the_damage_is_named(
    places: tuple[Path, Path], tmp_path: Path, part: str
) -> None:
    directory, target = places
    with open_store(directory) as store:
        write_on(store["book"], 2000)
        store.compact()
    backup(directory, target)
    with open_store(directory) as store:
        write_on(store["book"], 3000)
        store.compact()
    if part == "table":
        path = max((directory / "store").glob("*.sst"))
        flip(path, 4096 + 20)
    else:
        _, path = list_files(directory / "log")[-1]
        flip(path, 8000)
    before = content(target)
    with pytest.raises(Corruption) as damage:
        backup(directory, target, link=False)
    assert damage.value.path == str(path)
    assert 0 < damage.value.offset < os.path.getsize(path)
    after = content(target)
    for name, file in after.items():
        assert file == before[name] or name.endswith(".log")  # more of the log may have come before the damage
    assert after.keys() == before.keys()
    assert check_restored(target, tmp_path / "restored", backup=1)["book"] == 2000


@pytest.mark.parametrize("pattern", ["store/*.sst", "store/MANIFEST", "log/*.log"])
def test_a_file_that_is_missing_is_told_and_not_waited_for(places: tuple[Path, Path], pattern: str) -> None:
    directory, target = places
    for until in (1000, 1100):
        with open_store(directory) as store:
            write_on(store["book"], until)
    path = min(directory.glob(pattern))
    path.unlink()
    with pytest.raises(Corruption, match="no file") as damage:
        backup(directory, target)
    assert damage.value.path == str(path)
    assert not target.exists()
