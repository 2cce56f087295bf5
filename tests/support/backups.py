"""Backups for tests: restoring one and comparing all of it, what a folder of them holds, and disks that fail at a step."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ringmain.storage import files
from ringmain.storage.backup_repository import Repository
from ringmain.storage.restore import restore
from ringmain.storage.store_reader import StoreReader
from support.followed_store import Oracle


def check_restored(target: Path, place: Path, **what: Any) -> dict[str, int]:
    """Restore a store of followed_store, and compare every row with the oracle's. Returns each topic's last sequence."""
    restored = restore(target, place, **what)
    with StoreReader(place, refresh_s=float("inf")) as store:
        oracle = Oracle()
        oracle.advance(restored.last["book"])
        assert store["book"].sequence == oracle.sequence
        oracle.check(store["book"])
        tape = [number for rows in store["tape"].scan() for number in rows["number"].tolist()]
        assert tape == list(range(1, restored.last["tape"] + 1))
    shutil.rmtree(place)
    return dict(restored.last)


def content(directory: Path) -> dict[str, tuple[int, bytes]]:
    """All files of a directory with their inodes; log files up to where there is something."""
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.read_bytes().rstrip(b"\0"))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


DISK_STEPS = (
    "allocate",
    "create_file",
    "link_file",
    "make_directory",
    "rename_file",
    "sync_data",
    "sync_directory",
    "write_at",
)


@contextlib.contextmanager
def at_disk_step(number: int, happens: Callable[[str], object]) -> Iterator[list[str]]:
    """Call `happens` just before the so-many-th step on the disk, from 0. Gives the steps that were begun."""
    steps: list[str] = []
    lock = threading.Lock()
    patch = pytest.MonkeyPatch()

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            with lock:
                steps.append(name)
                now = len(steps) - 1
            if now == number:
                happens(name)
            return original(*arguments)

        return step

    for name in DISK_STEPS:
        patch.setattr(files, name, wrap(name, getattr(files, name)))
    try:
        yield steps
    finally:
        patch.undo()


def is_killed(number: int, work: Callable[[], object]) -> bool:
    """Run something in a fork of this process, which is killed (SIGKILL) at its so-many-th step on the disk, if there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy has threads, which a fork does not need
        pid = os.fork()
    if pid == 0:
        try:
            with at_disk_step(number, lambda _: os.kill(os.getpid(), signal.SIGKILL)):
                work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def strays(target: Path) -> set[Path]:
    """What lies in a folder of backups and no backup needs."""
    repository = Repository(target)
    needed = {repository.find(file) for item in repository.read()[0] for file in item.files}
    return {path for path in target.glob("*/*") if path not in needed and path.name != "LIST"} | {
        path for path in target.iterdir() if path.is_dir() and not any(path.iterdir())
    }
