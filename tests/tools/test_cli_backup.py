"""`ringmain backup`, `restore` and `verify`, as a person or a script runs them."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ringmain.storage import Log
from ringmain.storage.backup import backup
from ringmain.storage.backup_repository import Repository
from ringmain.storage.log_files import list_files
from ringmain.storage.restore_plan import restorable
from ringmain.storage.store_reader import StoreReader
from ringmain.tools.exit_codes import FAILED, INTERRUPTED, MISSING, OK, USAGE
from support.backups import check_restored, content
from support.command import facts, finish, on_terminal, private_shm, ringmain, ringmain_in, started, succeed
from support.followed_store import open_store, write_on
from support.logs import FILE_BYTES, POINTS, append, flip, wait_until

pytestmark = pytest.mark.process


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A store with 2,000 rows of book and three of tape."""
    with open_store(tmp_path / "data") as store:
        write_on(store["book"], 2000)
        for number in range(1, 4):
            store["tape"].put(number)
    return tmp_path / "data"


def words_of(text: str) -> str:
    return " ".join(text.split())


def newest(place: Path) -> dict[str, int]:
    with StoreReader(place) as store:
        return {topic: store[topic].sequence for topic in store}


# --- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_says_what_it_holds_and_what_was_new(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backups"
    text = words_of(succeed("backup", data, target))
    assert re.search(rf"backup 1, full, of .* UTC of {data} in {target}", text)
    assert "book 2,000" in text
    assert "tape 3" in text
    assert re.search(r"(\d+) of \1 files and .* are new", text)
    shown = facts("backup", data, target, "--keep", "1")
    assert (shown["backup"]["number"], shown["backup"]["is_full"], shown["new_bytes"]) == (2, False, 0)
    assert [(topic["topic"], topic["last"]) for topic in shown["backup"]["topics"]] == [("book", 2000), ("tape", 3)]
    assert [backup.number for backup in Repository(target).read()[0]] == [2]
    assert facts("backup", data, target, "--full", "--copy")["backup"]["is_full"]
    table = next(target.glob("0000000003/*.sst"))
    assert not table.samefile(data / "store" / table.name)


def test_following_copies_the_log_as_it_grows_and_makes_backups_until_ctrl_c(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backups"

    def highest() -> int:
        return restorable(target)[-1].topics["book"][1]

    with started("backup", data, target, "--follow", "--interval", "0.02", "--every", "1", "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["backup"]["number"] == 1
        with open_store(data) as store:
            write_on(store["book"], 2500)
            wait_until(lambda: highest() == 2500)
            write_on(store["book"], 60_000)
            wait_until(lambda: highest() == 60_000)
            wait_until(lambda: len(Repository(target).read()[0]) > 1)
            write_on(store["book"], 60_100)
            wait_until(lambda: highest() == 60_100)
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
    assert (code, err) == (INTERRUPTED, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert any(line.keys() == {"target", "log_bytes"} for line in lines)
    for place in (2001, 2500, 31_234, 60_100):
        assert check_restored(target, tmp_path / "restored", to={"book": place})["book"] == place


def test_what_cannot_be_backed_up_is_said_in_a_line(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backups"
    (tmp_path / "empty").mkdir()
    for arguments, code, words in (
        (("backup", tmp_path / "nothing", target), MISSING, "no such directory"),
        (("backup", tmp_path / "empty", target), MISSING, "holds no log"),
        (("backup", data, data / "backups"), USAGE, "lies in what is to be backed up"),
        (("backup", data, target, "--full", "--follow"), USAGE, "one of them"),
        (("backup", data), USAGE, "TARGET"),
    ):
        done = ringmain(*arguments)
        assert done.returncode == code, done.stderr.decode()
        assert words in done.stderr.decode()
        assert not target.exists()
    backup(data, target)
    with Repository(target).locked():
        done = ringmain("backup", data, target)
    assert done.returncode == FAILED
    assert b"is making a backup here" in done.stderr


def test_a_full_disk_is_said_and_the_earlier_backup_stays(data: Path, tmp_path: Path) -> None:
    private = private_shm("size=6m")
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from ringmain.storage.backup import backup\n"
        "from ringmain.storage.restore import restore\n"
        "target = '/dev/shm/backups'\n"
        f"backup({str(data)!r}, target)\n"
        "before = sorted(str(path) for path in Path(target).rglob('*'))\n"
        f"words = ['backup', {str(tmp_path / 'grown')!r}, target, '--full']\n"
        "done = subprocess.run([sys.executable, '-P', '-m', 'ringmain.tools', *words], capture_output=True)\n"
        "assert done.returncode == 1, done.stderr\n"
        "assert b'No space left on device' in done.stderr, done.stderr\n"
        "assert sorted(str(path) for path in Path(target).rglob('*')) == before\n"
        f"restore(target, {str(tmp_path / 'restored')!r})\n"
    )
    shutil.copytree(data, tmp_path / "grown")
    with open_store(tmp_path / "grown") as store:
        write_on(store["book"], 120_000)
    done = ringmain_in(private, script, command=False)
    assert done.returncode == 0, done.stderr.decode()
    assert newest(tmp_path / "restored") == {"book": 2000, "tape": 3}


# --- restore ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(data: Path, tmp_path: Path) -> Path:
    """Two backups, and rows that only the second has."""
    backup(data, tmp_path / "backups")
    with open_store(data) as store:
        write_on(store["book"], 3000)
        store["tape"].put(4)
    backup(data, tmp_path / "backups")
    return tmp_path / "backups"


def test_a_restore_ends_where_it_is_told_to(target: Path, tmp_path: Path) -> None:
    place = tmp_path / "restored"
    for options, expected in (
        ((), {"book": 3000, "tape": 4}),
        (("--to", "book=2222"), {"book": 2222, "tape": 3}),
        (("--to", "book=2900", "--to", "tape=3"), {"book": 2900, "tape": 3}),
        (("--backup", "1"), {"book": 2000, "tape": 3}),
    ):
        shown = facts("restore", target, place, *options)
        assert shown["last"] == expected
        assert newest(place) == expected
        shutil.rmtree(place)
    text = words_of(succeed("restore", target, place, "--to", "book=2001"))
    assert f"restored {place} from backup" in text
    assert "book 2,001 tape 3 sound restored" in text


def test_a_restore_to_a_time_takes_it_as_people_write_it(target: Path, tmp_path: Path) -> None:
    with StoreReader(target.parent / "data") as store:
        row = store["tape"].get(3)
        assert row is not None
    seconds, rest = divmod(int(row["timestamp_ns"]), 1_000_000_000)
    written = f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}"
    assert facts("restore", target, tmp_path / "restored", "--time", written)["last"] == {"book": 2000, "tape": 3}


def test_what_can_be_restored_is_listed(target: Path) -> None:
    shown = facts("restore", target, "--list")
    first, second = shown["backups"]
    assert (first["backup"]["number"], second["backup"]["number"]) == (1, 2)
    ranges = {topic["topic"]: (topic["lowest"], topic["highest"]) for topic in first["topics"]}
    assert ranges["tape"] == (0, 4)
    assert ranges["book"][0] < 2000 < ranges["book"][1] == 3000
    assert first["from_ns"] < second["from_ns"] < second["to_ns"] == first["to_ns"]
    assert shown["unreadable"] == []
    text = words_of(succeed("restore", target, "--list"))
    assert re.search(r" 1 .* full, .* 2 .* incremental, ", text)


def test_a_backup_whose_list_is_damaged_is_listed_as_that_and_all_its_rows_are_restored_from_the_log_that_it_shares(
    target: Path, tmp_path: Path
) -> None:
    path = target / "0000000002" / "LIST"
    flip(path, 100)
    shown = facts("restore", target, "--list", code=FAILED)
    assert [item["backup"]["number"] for item in shown["backups"]] == [1]
    (damaged,) = shown["unreadable"]
    assert damaged["backup"] == 2
    assert damaged["message"].startswith(f"{path}: damaged at byte ")
    done = ringmain("restore", target, "--list")
    assert done.returncode == FAILED
    text = words_of(done.stdout.decode())
    assert re.search(r" 1 .* full, .* 2 damaged ", text)
    assert f"DAMAGED backup 2: {path}: damaged at byte " in text
    place = tmp_path / "restored"
    done = ringmain("restore", target, place, "--backup", "2")
    assert done.returncode == FAILED
    assert f"{path}: damaged" in done.stderr.decode()
    assert not place.exists()
    done = ringmain("restore", target, place, "--json")
    assert (done.returncode, done.stderr.decode().count("\n")) == (OK, 1)
    assert f"backup 2 was passed over, the log has its rows: {path}: damaged at byte " in done.stderr.decode()
    assert json.loads(done.stdout)["last"] == newest(place) == {"book": 3000, "tape": 4}
    assert facts("restore", target, tmp_path / "first", "--backup", "1")["last"] == {"book": 2000, "tape": 3}


def test_no_older_backup_is_restored_for_one_that_has_a_log_of_its_own_and_what_can_be_had_is_told(
    target: Path, tmp_path: Path
) -> None:
    with open_store(tmp_path / "data") as store:
        write_on(store["book"], 3500)
    backup(tmp_path / "data", target, full=True)
    path, place = target / "0000000003" / "LIST", tmp_path / "restored"
    flip(path, 100)
    done = ringmain("restore", target, place)
    error = done.stderr.decode()
    assert (done.returncode, error.count("\n")) == (FAILED, 1)
    assert f"{path}: damaged" in error
    told = re.search(r"`--time (\S+)` restores up to book 3000, tape 4; `--backup 2` only what that one held\n", error)
    assert told is not None
    assert not place.exists()
    assert facts("restore", target, place, "--time", told[1])["last"] == newest(place) == {"book": 3000, "tape": 4}


def test_what_cannot_be_restored_is_said_in_a_line_and_nothing_is_made(
    target: Path, data: Path, tmp_path: Path
) -> None:
    place = tmp_path / "restored"
    before = content(data)
    for arguments, code, words in (
        ((target, place, "--to", "book=3001"), FAILED, "cannot be restored. What can be: from backup 1 on book "),
        ((target, place, "--to", "book"), USAGE, "TOPIC=SEQUENCE, is expected, got 'book'"),
        ((target, place, "--to", "7", "--to", "tape=3"), USAGE, "each is TOPIC=SEQUENCE"),
        ((target, place, "--to", "book=7", "--to", "book=8"), USAGE, "given twice"),
        ((target, place, "--time", "5"), USAGE, "--time"),
        ((target, place, "--backup", "9"), FAILED, "no backup 9; there are 1, 2"),
        ((target,), USAGE, "--list"),
        ((data, place), MISSING, "holds no backup"),
        ((target, data), FAILED, "not an empty directory"),
    ):
        done = ringmain("restore", *arguments)
        error = done.stderr.decode()
        assert done.returncode == code, error
        assert words in error
        assert error.count("\n") == 1
        assert not place.exists()
    assert content(data) == before


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_says_what_it_found_and_that_it_is_sound(target: Path, data: Path, tmp_path: Path) -> None:
    log = tmp_path / "log-only"
    with_log = Log(log / "log", [POINTS], file_bytes=FILE_BYTES)
    append(with_log, POINTS, 10)
    with_log.close()
    for path, kind in ((target, "a folder of backups"), (data, "a store"), (log, "a log")):
        done = ringmain("verify", path)
        assert done.returncode == OK, done.stderr.decode()
        assert done.stderr.decode() == f"{path}: {kind}\n"
        assert b"sound" in done.stdout
    done = ringmain("verify", tmp_path)
    assert done.returncode == MISSING
    assert b"holds no backups, no store and no log" in done.stderr


def damage_table(target: Path) -> Path:
    path = min(target.glob("*/*.sst"))
    flip(path, 5000)
    return path


def damage_list(target: Path) -> Path:
    path = target / "0000000002" / "LIST"
    os.truncate(path, 300)
    return path


def lose_log(target: Path) -> Path:
    path = list_files(target / "0000000001")[0][1]
    path.unlink()
    return path


@pytest.mark.parametrize("damage", [damage_table, damage_list, lose_log])
def test_damage_in_a_backup_is_named(target: Path, damage: Callable[[Path], Path]) -> None:
    path = damage(target)
    shown: dict[str, Any] = facts("verify", target, code=FAILED)
    (finding,) = shown["findings"]
    assert finding["path"] == str(path)
    assert not set(finding["backups"]) & set(shown["sound"])
    done = ringmain("verify", target)
    assert done.returncode == FAILED
    assert f"DAMAGED {path}" in done.stdout.decode()


def test_on_a_terminal_everything_fits_and_a_bar_is_shown(target: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("restore", target, tmp_path / "restored"), "restoring"),
        (("restore", target, "--list"), "can be restored"),
    ):
        with on_terminal(*arguments) as terminal:
            assert terminal.finish() == OK
        assert words in terminal.text
        assert all(len(line.rstrip()) <= 80 for line in terminal.text.split("\n") if "━" not in line)
    flip(target / "0000000002" / "LIST", 100)
    with on_terminal("restore", target, "--list") as terminal:
        assert terminal.finish() == FAILED
    assert "damaged" in terminal.text
    assert all(len(line.rstrip()) <= 80 for line in terminal.text.split("\n"))
