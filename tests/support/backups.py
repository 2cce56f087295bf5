"""Backups for tests: restoring one and comparing all of it, and what a folder of them holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

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
