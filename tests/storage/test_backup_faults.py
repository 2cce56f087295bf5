"""Backups and restores that are killed, or run out of room, at any step: what was there stays, and the next one goes well."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from ringmain.storage import StorageError
from ringmain.storage.backup import backup
from ringmain.storage.backup_verify import verify_backups
from ringmain.storage.restore import restore
from support.backups import at_disk_step, check_restored, content, is_killed, strays
from support.followed_store import open_store, write_on

SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
FIRST, LAST = 600, 1500
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, `data`, and `backups` with a backup of it as it was at row FIRST."""
    print(f"seed {SEED}")
    root = tmp_path_factory.mktemp("stored")
    with open_store(root / "data") as store:
        write_on(store["book"], FIRST)
        backup(root / "data", root / "backups")
        write_on(store["book"], LAST)
    return root


@pytest.fixture
def target(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored / "backups", tmp_path / "backups"))


def chosen(count: int, at_most: int) -> list[int]:
    """Steps to fail at: all of them, or some and always the first and the last few."""
    if NIGHTLY or count <= at_most:
        return list(range(count))
    some = random.Random(SEED).sample(range(1, count - 4), at_most - 5)
    return sorted({0, *some, *range(count - 4, count)})


def put_back(stored: Path, target: Path) -> None:
    """The folder of backups as it was."""
    shutil.rmtree(target)
    shutil.copytree(stored / "backups", target)


def test_a_backup_that_is_killed_leaves_the_earlier_one_and_the_next_cleans_up(
    stored: Path, target: Path, tmp_path: Path
) -> None:
    with at_disk_step(-1, lambda name: None) as steps:
        backup(stored / "data", target)
    before = content(stored / "data")
    for step in chosen(len(steps), 16):
        put_back(stored, target)
        assert is_killed(step, lambda: backup(stored / "data", target)), step
        assert content(stored / "data") == before
        verified = verify_backups(target)
        assert verified.findings == ()
        assert verified.sound in ([1], [1, 2])
        assert check_restored(target, tmp_path / "restored", backup=1)["book"] == FIRST
        backup(stored / "data", target)
        assert strays(target) == set()
    assert check_restored(target, tmp_path / "restored")["book"] == LAST


def test_the_first_backup_may_be_killed_too(stored: Path, tmp_path: Path) -> None:
    target = tmp_path / "backups"
    with at_disk_step(-1, lambda name: None) as steps:
        backup(stored / "data", target)
    for step in chosen(len(steps), 8):
        shutil.rmtree(target)
        assert is_killed(step, lambda: backup(stored / "data", target)), step
        backup(stored / "data", target)
        assert strays(target) == set()
    assert check_restored(target, tmp_path / "restored")["book"] == LAST


def test_a_backup_that_finds_the_disk_full_leaves_nothing_and_the_earlier_ones(
    stored: Path, target: Path, tmp_path: Path
) -> None:
    with at_disk_step(-1, lambda name: None) as steps:
        backup(stored / "data", target)

    def be_full(name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writing = [step for step, name in enumerate(steps) if not name.startswith("sync")]
    for step in writing if NIGHTLY else writing[:: max(1, len(writing) // 10)]:
        put_back(stored, target)
        with at_disk_step(step, be_full), pytest.raises(OSError, match="No space left"):
            backup(stored / "data", target)
        assert verify_backups(target).findings == ()
        assert not any(path.suffix == ".sst" for path in strays(target))
        backup(stored / "data", target)
        assert strays(target) == set()
    assert check_restored(target, tmp_path / "restored")["book"] == LAST


@pytest.mark.parametrize("to", [None, {"book": 1234}])
def test_a_restore_that_is_killed_leaves_no_store_and_the_next_cleans_up(
    stored: Path, target: Path, tmp_path: Path, to: dict[str, int] | None
) -> None:
    backup(stored / "data", target)
    before, place = content(target), tmp_path / "restored"
    with at_disk_step(-1, lambda name: None) as steps:
        restore(target, place, to=to)
    for step in chosen(len(steps), 10):
        shutil.rmtree(place, ignore_errors=True)
        assert is_killed(step, lambda: restore(target, place, to=to)), step
        assert content(target) == before
        if place.exists():  # killed when it had its name
            shutil.rmtree(place)
        assert check_restored(target, place, to=to)["book"] == (1234 if to else LAST)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["backups"]


def test_a_restore_that_finds_the_disk_full_leaves_nothing(stored: Path, target: Path, tmp_path: Path) -> None:
    place = tmp_path / "restored"
    with at_disk_step(-1, lambda name: None) as steps:
        restore(target, place, to={"book": FIRST})
    shutil.rmtree(place)

    def be_full(name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in chosen(len(steps) - 1, 10):  # the last one syncs the name
        with at_disk_step(step, be_full), pytest.raises((OSError, StorageError), match="No space left"):
            restore(target, place, to={"book": FIRST})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["backups"]
    assert check_restored(target, place, to={"book": FIRST})["book"] == FIRST
