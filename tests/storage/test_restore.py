"""Restoring a store: to any row and any time, exactly that; never over anything; and never from a damaged backup."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.storage import FormatMismatch, LogReader, StorageError
from ringmain.storage.backup import backup
from ringmain.storage.backup_list import BackupDamaged
from ringmain.storage.backup_repository import Repository
from ringmain.storage.backup_verify import verify_backups
from ringmain.storage.log_files import list_files
from ringmain.storage.restore import restore
from ringmain.storage.restore_plan import NotRestorable, restorable, unreadable
from ringmain.storage.store import Store
from ringmain.storage.store_reader import StoreReader
from support.backups import check_restored, content
from support.followed_store import BOOK, TAPE, Oracle, open_store, write_on
from support.logs import FILE_BYTES, flip, wait_until

SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))


@dataclass
class Day:
    """A store that was written and backed up three times. tape_at: rows of tape when a row of book was written."""

    directory: Path
    target: Path
    tape_at: dict[int, int] = field(default_factory=dict[int, int])
    backups: list[int] = field(default_factory=list[int])  # the last row of book in each
    times: dict[str, np.ndarray] = field(default_factory=dict)  # by topic, of its rows in order

    @property
    def last(self) -> int:
        return len(self.tape_at)

    @property
    def lowest(self) -> int:
        """The first row of book that can be restored to."""
        return restorable(self.target)[0].topics["book"][0]


def write(store: Store, day: Day, until: int, chance: random.Random) -> None:
    """Rows of both topics, mixed."""
    while (first := store["book"].core.next_sequence) <= until:
        for _ in range(chance.choice((0, 0, 1, 3))):
            store["tape"].put(store["tape"].core.next_sequence)
        last = write_on(store["book"], min(until, first + chance.choice((0, 0, 5, 90))))
        day.tape_at |= dict.fromkeys(range(first, last + 1), store["tape"].core.next_sequence - 1)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    print(f"seed {SEED}")
    root, chance = tmp_path_factory.mktemp("day"), random.Random(SEED)
    day = Day(root / "data", root / "backups")
    for until in (1500, 4000, 7000):
        with open_store(day.directory) as store:
            write(store, day, until, chance)
            day.backups.append(until)
            backup(day.directory, day.target)
            write(store, day, until + 200, chance)
    with open_store(day.directory) as store:
        write(store, day, 9000, chance)
        day.backups.append(9000)
        backup(day.directory, day.target)
    for topic in ("book", "tape"):
        log, parts, position = LogReader(day.directory / "log", topic, day.directory / "archive"), [], 0
        while (found := log.read_all(position + 1)) is not None:
            parts.append(found[0]["timestamp_ns"].copy())
            position = int(found[0]["sequence"][-1])
        day.times[topic] = np.concatenate(parts)
    assert len(day.times["book"]) == day.last == 9000
    return day


@pytest.fixture
def copy(day: Day, tmp_path: Path) -> Path:
    """A folder of backups to damage."""
    return Path(shutil.copytree(day.target, tmp_path / "backups"))


# --- to a place -------------------------------------------------------------------------------------------------------


def test_without_a_place_all_there_is_is_restored(day: Day, tmp_path: Path) -> None:
    assert check_restored(day.target, tmp_path / "restored")["book"] == 9000


def test_any_row_can_be_restored_to_and_all_that_was_logged_by_then_is_there(day: Day, tmp_path: Path) -> None:
    chance = random.Random(SEED + 1)
    places = {day.lowest, day.lowest + 1, *day.backups, day.last, day.last - 1}
    places |= set(chance.sample(range(day.lowest, day.last), 60 if NIGHTLY else 8))
    for place in sorted(places):
        last = check_restored(day.target, tmp_path / "restored", to={"book": place})
        assert last == {"book": place, "tape": day.tape_at[place]}


def test_topics_can_be_given_a_row_each(day: Day, tmp_path: Path) -> None:
    chance = random.Random(SEED + 2)
    for _ in range(20 if NIGHTLY else 4):
        book = chance.randrange(2000, day.last)
        tape = chance.randrange(day.tape_at[1900], day.tape_at[day.last])
        rows = {"book": book, "tape": tape}
        assert check_restored(day.target, tmp_path / "restored", to=rows) == rows


def test_any_time_can_be_restored_to(day: Day, tmp_path: Path) -> None:
    chance = random.Random(SEED + 3)
    reach = restorable(day.target)[0]
    moments = [reach.from_ns, int(day.times["book"][-1])]
    moments += [
        int(day.times["book"][chance.randrange(day.lowest, day.last)]) + chance.choice((-1, 0, 1))
        for _ in range(40 if NIGHTLY else 6)
    ]
    for moment in moments:
        expected = {topic: int((times <= moment).sum()) for topic, times in day.times.items()}
        assert check_restored(day.target, tmp_path / "restored", time_ns=moment) == expected


def test_a_backup_can_be_restored_just_as_it_was(day: Day, tmp_path: Path) -> None:
    for number, last in enumerate(day.backups, start=1):
        assert check_restored(day.target, tmp_path / "restored", backup=number)["book"] == last


def test_the_tables_are_those_of_the_newest_backup_that_has_no_row_behind_the_place(day: Day, tmp_path: Path) -> None:
    used = [
        restore(day.target, tmp_path / str(place), to={"book": place}).backup
        for place in (*day.backups, day.backups[0] + 1, day.backups[1] + 1)
    ]
    assert used == [1, 2, 3, 4, 1, 2]
    assert restore(day.target, tmp_path / "older", to={"book": day.last}, backup=2).backup == 2
    assert check_restored(day.target, tmp_path / "restored", to={"book": day.last}, backup=2)["book"] == day.last


def test_a_restored_store_is_written_on_and_backed_up_into_the_same_folder_without_harm_to_what_is_there(
    day: Day, copy: Path, tmp_path: Path
) -> None:
    place = day.backups[1] + 3
    restored = tmp_path / "restored"
    restore(copy, restored, to={"book": place})
    with open_store(restored) as store:
        write_on(store["book"], place + 2000)
        store.compact()
    made = backup(restored, copy)
    assert made.backup.log_folder == made.backup.number == 5  # a log of its own: it went another way
    assert check_restored(copy, tmp_path / "again")["book"] == place + 2000
    assert check_restored(copy, tmp_path / "again", backup=4)["book"] == 9000
    assert verify_backups(copy).findings == ()
    shutil.rmtree(restored)
    restore(copy, restored, to={"book": place + 1000})
    with open_store(restored) as store:
        oracle = Oracle()
        oracle.advance(place + 1000)
        oracle.check(store["book"])


def test_all_versions_are_there_again_where_they_are_kept(tmp_path: Path) -> None:
    with open_store(tmp_path / "data", keep_versions=["book"]) as store:
        write_on(store["book"], 1000)
        backup(tmp_path / "data", tmp_path / "backups")
        write_on(store["book"], 2000)
        backup(tmp_path / "data", tmp_path / "backups")
        history = {key: store["book"].history(key)["sequence"].tolist() for key in range(0, 400, 11)}
    restore(tmp_path / "backups", tmp_path / "restored", to={"book": 1400})
    with StoreReader(tmp_path / "restored") as reader:
        for key, sequences in history.items():
            assert reader["book"].history(key)["sequence"].tolist() == [item for item in sequences if item <= 1400]


def test_a_topic_that_came_after_the_backup_is_there(tmp_path: Path) -> None:
    target = tmp_path / "backups"
    small: dict[str, Any] = {"memtable_bytes": 1 << 16, "log_file_bytes": 4 << 20}
    with Store(tmp_path / "data", [BOOK], **small) as store:
        write_on(store["book"], 100)
        backup(tmp_path / "data", target)
    with open_store(tmp_path / "data") as store:
        write_on(store["book"], 150)
        store["tape"].put(1)
        store["tape"].put(2)
        write_on(store["book"], 300)
        backup(tmp_path / "data", target)
    for place, tape in ((101, 0), (150, 0), (151, 2)):
        restored = restore(target, tmp_path / f"restored-{place}", to={"book": place})
        assert {name: last for name, last in restored.last.items() if last} == {"book": place} | (
            {"tape": tape} if tape else {}
        )
        with Store.open(restored.directory, **small) as store:
            assert set(store) == {"book", "tape"}
            assert [number for rows in store["tape"].scan() for number in rows["number"].tolist()] == [1, 2][:tape]


def test_a_topic_that_came_behind_the_last_backup_is_kept_until_it_is_named(tmp_path: Path) -> None:
    """The restored manifest does not have it, only the log; its rows stay there, whatever goes into tables meanwhile."""
    target, restored = tmp_path / "backups", tmp_path / "restored"
    with Store(tmp_path / "data", [BOOK], log_file_bytes=FILE_BYTES) as store:
        write_on(store["book"], 100)
        backup(tmp_path / "data", target)
    with open_store(tmp_path / "data") as store:
        for number in (1, 2):
            store["tape"].put(number)
        store.sync()
        backup(tmp_path / "data", target)
    (target / "0000000002" / "LIST").unlink()  # its log was copied, and then it was killed
    assert restore(target, restored).last == {"book": 100, "tape": 2}
    settings: dict[str, Any] = {"memtable_bytes": 1 << 20, "log_file_bytes": FILE_BYTES, "archive": False}
    rows = np.zeros(20_000, BOOK.payload_dtype)
    with Store.open(restored, **settings) as store:
        assert list(store) == ["book"]
        for _ in range(20):
            store["book"].put_batch(rows)
        store.snapshot()
        assert store.stats()["book"].checkpoint == 400_100
    first = list_files(restored / "log")[0][0]
    with Store.open(restored, [BOOK, TAPE], **settings) as store:
        assert [number for rows in store["tape"].scan() for number in rows["number"].tolist()] == [1, 2]
        store.snapshot()
        wait_until(lambda: list_files(restored / "log")[0][0] > first)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_no_backup_reaches_is_refused_with_what_can_be_restored(day: Day, tmp_path: Path) -> None:
    reach = restorable(day.target)
    assert [item.topics["book"][1] for item in reach] == [9000, 9000, 9000, 9000]
    wrong: list[dict[str, Any]] = [
        {"to": {"book": day.lowest - 1}},
        {"to": {"book": 9001}},
        {"to": {"tape": 0}},
        {"time_ns": reach[0].from_ns - 1_000_000_000},
        {"time_ns": reach[-1].to_ns + 1},
        {"backup": 7},
    ]
    for what in wrong:
        with pytest.raises(NotRestorable) as refused:
            restore(day.target, tmp_path / "restored", **what)
        if "tape" in what.get("to", {}):
            assert "topic 'book' would end with" in str(refused.value)
        if "backup" not in what:
            assert f"from backup 1 on book {day.lowest} to 9000" in str(refused.value)
        assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_meant_is_a_value_error(day: Day, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"to": 5}, "TOPIC=SEQUENCE; the topics are book, tape"),
        ({"to": {"tap": 5}}, "no topic 'tap'; there are book, tape"),
        ({"to": {"book": -1}}, "from 0 on"),
        ({"to": {"book": 5}, "time_ns": 5}, "one of them"),
    ]
    for what, words in wrong:
        with pytest.raises(ValueError, match=words):
            restore(day.target, tmp_path / "restored", **what)
    with pytest.raises(FileNotFoundError, match="holds no backup"):
        restore(day.directory, tmp_path / "restored")
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_there_is_written_over(day: Day, tmp_path: Path) -> None:
    before = content(day.directory)
    with pytest.raises(FileExistsError, match="not an empty directory"):
        restore(day.target, day.directory)
    assert content(day.directory) == before
    with open_store(day.directory), pytest.raises(FileExistsError):
        restore(day.target, day.directory)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            restore(day.target, tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert check_restored(day.target, tmp_path / "empty")["book"] == 9000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_two_restores_to_one_place_do_not_meet(day: Day, tmp_path: Path) -> None:
    seen: list[str] = []

    def meet(_done: int, _total: int) -> None:
        if not seen:
            seen.append("")
            with pytest.raises(StorageError, match="another process is restoring to this place") as refused:
                restore(day.target, tmp_path / "restored")
            seen[0] = str(refused.value)

    restore(day.target, tmp_path / "restored", progress=meet)
    assert seen[0]


# --- damage -----------------------------------------------------------------------------------------------------------


def needed_files(target: Path) -> list[Path]:
    """The files of the newest backup."""
    repository = Repository(target)
    made = repository.read()[0][-1]
    return [repository.find(file) for file in made.files]


def test_a_sound_folder_is_called_sound(day: Day) -> None:
    verified = verify_backups(day.target)
    assert verified.findings == ()
    assert verified.sound == [1, 2, 3, 4]
    assert verified.checked_bytes > 100_000


@pytest.mark.parametrize("kind", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_found_located_and_never_restored(day: Day, copy: Path, tmp_path: Path, kind: str) -> None:
    chance = random.Random(SEED + 4)
    paths = needed_files(copy)
    made = Repository(copy).read()[0][-1]
    ends = {Repository(copy).find(file): file.file_bytes for file in made.files}
    for path in paths if NIGHTLY else chance.sample(paths, min(len(paths), 6)):
        whole = path.read_bytes()
        at = chance.randrange(ends[path])
        if kind == "flipped":
            flip(path, at)
        elif kind == "cut":
            os.truncate(path, at)
        else:
            path.unlink()
        found = verify_backups(copy).findings
        assert {finding.path for finding in found} == {path}
        assert 4 in found[0].backups
        assert 4 not in verify_backups(copy).sound
        if kind == "flipped":
            assert found[0].offset is None or found[0].offset // 4096 * 4096 <= at
        elif kind == "cut":
            assert found[0].offset == at
        with pytest.raises(BackupDamaged) as refused:
            restore(copy, tmp_path / "restored")
        assert refused.value.path == str(path)
        assert sorted(item.name for item in tmp_path.iterdir()) == ["backups"]
        path.write_bytes(whole)
    assert check_restored(copy, tmp_path / "restored")["book"] == 9000


def test_a_flipped_bit_in_a_tables_block_or_a_frame_is_located_there(copy: Path) -> None:
    paths = needed_files(copy)
    table = next(path for path in paths if path.suffix == ".sst")
    log = max((path for path in paths if path.suffix == ".log"), key=lambda path: path.name)
    for path, at, place in ((table, 4096 + 40, 4096), (log, 6000, None)):
        flip(path, at)
        (found,) = verify_backups(copy).findings
        assert found.path == path
        assert found.offset is not None
        assert found.offset == place or 4096 < found.offset <= at
        flip(path, at)


def test_a_damaged_list_is_found_and_the_other_backups_can_be_used(day: Day, copy: Path, tmp_path: Path) -> None:
    path = copy / "0000000004" / "LIST"
    whole = path.read_bytes()
    chance = random.Random(SEED + 5)
    for at in [0, 9, 12, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(20))]:
        flip(path, at)
        (finding,) = verify_backups(copy).findings
        assert (finding.path, finding.backups) == (path, (4,))
        path.write_bytes(whole)
    for at in (0, 20, len(whole) // 2, len(whole) - 1):
        os.truncate(path, at)
        assert [finding.path for finding in verify_backups(copy).findings] == [path]
        path.write_bytes(whole)
    path.write_bytes((copy / "0000000003" / "LIST").read_bytes())  # another one's
    assert verify_backups(copy).findings[0].path == path
    assert check_restored(copy, tmp_path / "restored", backup=3)["book"] == day.backups[2]
    assert (
        check_restored(copy, tmp_path / "restored", to={"book": 9000})["book"] == 9000
    )  # the log is there all the same
    before = {item.name for item in copy.glob("*/*")}
    made = backup(day.directory, copy)  # and nothing is cleaned away that the unreadable one may need
    assert made.backup.number == 5
    assert before <= {item.name for item in copy.glob("*/*")}


def test_a_newest_list_that_is_damaged_is_passed_over_where_its_log_is_that_of_an_older_backup(
    copy: Path, tmp_path: Path
) -> None:
    paths = [copy / f"{number:010d}" / "LIST" for number in (3, 4)]
    for path in paths:
        flip(path, 100)
    restored = restore(copy, tmp_path / "restored")
    assert (restored.backup, sorted(restored.passed_over)) == (2, [3, 4])
    for path, problem in zip(paths, restored.passed_over.values(), strict=True):
        assert str(problem).startswith(f"{path}: damaged at byte ")
    shutil.rmtree(tmp_path / "restored")
    assert check_restored(copy, tmp_path / "restored")["book"] == 9000
    restored = restore(copy, tmp_path / "restored", backup=2)
    assert (restored.last["book"], restored.passed_over) == (4000, {})


def test_a_newest_list_that_cannot_be_read_is_told_where_the_backup_may_have_a_log_of_its_own(
    day: Day, copy: Path, tmp_path: Path
) -> None:
    path, place = copy / "0000000004" / "LIST", tmp_path / "restored"
    end = restorable(copy)[2]
    reach = (
        rf"`--time (\S+)` restores up to book 9000, tape {end.topics['tape'][1]}; `--backup 3` only what that one held$"
    )
    whole = path.read_bytes()
    damages: list[tuple[bytes, type[StorageError]]] = [
        (whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], BackupDamaged),
        (whole[:300], BackupDamaged),
        (b"", BackupDamaged),
        (whole.replace(b"RMAINBAK 1", b"RMAINBAK 2", 1), FormatMismatch),
    ]
    for data, kind in damages:
        path.write_bytes(data)
        if kind is BackupDamaged:
            shutil.copy(list_files(copy / "0000000001")[0][1], path.parent)
        with pytest.raises(kind, match=reach) as refused:
            restore(copy, place)
        assert str(refused.value).startswith(f"{path}: ")
        for own in path.parent.glob("*.log"):
            own.unlink()
        for to in (None, {"book": day.backups[2]}):
            with pytest.raises(kind) as refused:
                restore(copy, place, to=to, backup=4)
            assert str(refused.value).startswith(f"{path}: ")
        with pytest.raises(NotRestorable, match=r"What can be: .*\. What cannot be read was left out: backup 4$"):
            restore(copy, place, to={"book": 9001})
        with pytest.raises(NotRestorable, match=r"no backup 7; there are 1, 2, 3, 4 \(which cannot be read\)$"):
            restore(copy, place, backup=7)
        assert not place.exists()
        assert [item.backup.number for item in restorable(copy)] == [1, 2, 3]
        ((number, problem),) = unreadable(copy).items()
        assert (number, str(problem).partition(":")[0]) == (4, str(path))
    assert check_restored(copy, place, backup=3)["book"] == day.backups[2]
    path.write_bytes(whole)
    assert unreadable(copy) == {}


def test_a_list_that_cannot_be_read_is_no_matter_where_a_newer_one_can(copy: Path, tmp_path: Path) -> None:
    for number in (1, 3):
        flip(copy / f"{number:010d}" / "LIST", 100)
    assert sorted(unreadable(copy)) == [1, 3]
    assert check_restored(copy, tmp_path / "restored")["book"] == 9000
    with pytest.raises(BackupDamaged, match="0000000003/LIST"):
        restore(copy, tmp_path / "restored", backup=3)


def test_damage_in_the_log_behind_the_newest_backup_is_found(tmp_path: Path) -> None:
    target = tmp_path / "backups"
    with open_store(tmp_path / "data") as store:
        write_on(store["book"], 100)
        made = backup(tmp_path / "data", target).backup
        write_on(store["book"], 2000)
        store.sync()
        write_on(store["book"], 2100)
    _, shipped = list_files(Repository(target).folder(made.log_folder))[-1]
    shipped.write_bytes((tmp_path / "data" / "log" / shipped.name).read_bytes())
    assert check_restored(target, tmp_path / "restored")["book"] == 2100
    listed_bytes = next(file.file_bytes for file in made.files if file.is_log)
    flip(shipped, listed_bytes + 3000)
    (finding,) = verify_backups(target).findings
    assert finding.path == shipped
    assert finding.offset is not None
    assert listed_bytes <= finding.offset <= listed_bytes + 3000
    with pytest.raises(BackupDamaged):
        restore(target, tmp_path / "restored")
    assert check_restored(target, tmp_path / "restored", backup=1)["book"] == 100
