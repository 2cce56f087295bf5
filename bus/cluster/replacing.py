"""Another node's data in the place of a node's own, put there so that a kill at any instant leaves a whole one.

1. It is built and proven in the folder `cluster/snapshot`. Once that holds a file `position` it counts: who opens the node's copy
   next finishes the replacing.
2. Log, archive and store are replaced by renaming, the position last. All of it may be done again.
3. What else is in the data directory stays: `lost+found`, positions of subscribers. They fit, since sequences are the same
   everywhere.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...storage import HistoryGone, LogReader, StorageError
from ...storage.built_place import clear_unfinished
from ...storage.files import rename_file, sync_directory
from ...storage.log_tail import Cut, cut_tail
from ...storage.manifest_reader import read_manifest
from ...storage.past import PastReader
from ..slot_file import SlotFile

__all__ = ["discard_snapshot", "finish_replacing", "position_path", "replace_data", "same_up_to", "snapshot_place"]

FOLDERS = "archive", "store", "log"
LOST_AND_FOUND = "lost+found"


def position_path(data_dir: Path) -> Path:
    """The file of a node's stored position."""
    return data_dir / "cluster" / "position"


def snapshot_place(data_dir: Path) -> Path:
    """Where a peer's snapshot is built, and is once it is proven."""
    return data_dir / "cluster" / "snapshot"


def discard_snapshot(data_dir: Path) -> None:
    """Remove a snapshot that does not count."""
    place = snapshot_place(data_dir)
    clear_unfinished(place)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(place)


def replace_data(data_dir: Path, ends: Mapping[str, int], position: bytes) -> Cut:
    """Put the proven snapshot in the place of a data directory's log, archive and store. No writer may be open.
    Returns what was cut off.

    ends: up to where the rows here are the snapshot's too; what is behind is cut off first, and goes to `lost+found`.
    position: the one that belongs to the snapshot.
    """
    place = snapshot_place(data_dir)
    cut = cut_tail(data_dir, ends)
    for name in FOLDERS:
        (place / name).mkdir(exist_ok=True)
    SlotFile.replace(place / "position", position).close()  # from here on it counts
    finish_replacing(data_dir)
    return cut


def finish_replacing(data_dir: Path) -> None:
    """Finish what a killed process had begun, as far as it counts, and clear the rest away."""
    place = snapshot_place(data_dir)
    if not (place / "position").exists():
        discard_snapshot(data_dir)
        return
    for name in FOLDERS:
        new, own, old = place / name, data_dir / name, place / f"old-{name}"
        if not new.is_dir():
            continue  # it is in place
        if own.is_dir():
            rename_file(own, old)
            sync_directory(place)
        if (old / LOST_AND_FOUND).is_dir():
            rename_file(old / LOST_AND_FOUND, new / LOST_AND_FOUND)
            sync_directory(new)
            sync_directory(old)
        rename_file(new, own)
        sync_directory(data_dir)
        sync_directory(place)
    for name in FOLDERS:
        with contextlib.suppress(OSError):  # those that the snapshot does not have are empty
            (data_dir / name).rmdir()
    rename_file(place / "position", position_path(data_dir))
    sync_directory(place.parent)
    discard_snapshot(data_dir)


def same_up_to(data_dir: Path, begin: Mapping[str, int], ends: Mapping[str, int]) -> dict[str, int]:
    """By topic, up to which sequence the rows here are those of the proven snapshot as well.

    begin: so far they are known to be. What is in tables is so too: only what is replicated gets there. ends: of the rows here.
    """
    begin = dict(begin)
    with contextlib.suppress(FileNotFoundError):
        state = read_manifest(data_dir / "store")
        for name, version in state.versions.items():
            last = max((info.sequence_max for info in version.tables()), default=0)
            begin[name] = max(begin.get(name, 0), last, state.checkpoints.get(name, 0))
    return {topic: _same_up_to(data_dir, topic, begin.get(topic, 0), end) for topic, end in ends.items()}


def _same_up_to(data_dir: Path, topic: str, begin: int, end: int) -> int:
    if begin >= end:
        return end
    ours = LogReader(data_dir / "log", topic)
    try:
        theirs = PastReader(snapshot_place(data_dir), topic)
    except StorageError:  # it does not know the topic
        return begin
    at = begin + 1
    while at <= end:
        try:
            mine = ours.read(at, end)
        except HistoryGone as gone:  # only what is replicated expires
            at = gone.oldest
            continue
        if mine is None:
            break
        at = int(mine["sequence"][0])
        try:
            other = theirs.read(at, at + len(mine) - 1)
        except HistoryGone:
            break
        if other is None or int(other["sequence"][0]) != at:
            break
        count = min(len(mine), len(other))
        mine, other = (rows[:count].view(np.uint8).reshape(count, -1) for rows in (mine, other))
        differs = np.flatnonzero((mine != other).any(axis=1))
        if len(differs):
            return at + int(differs[0]) - 1
        at += count
    return min(at - 1, end)
