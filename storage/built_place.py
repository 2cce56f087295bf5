"""A data directory that is built beside its place, and gets its name only when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from . import files
from .errors import StorageError

__all__ = ["building", "check_free", "clear_unfinished", "put_in_place"]


def check_free(place: Path) -> None:
    """Raises FileExistsError unless nothing is there, or an empty directory."""
    if place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
        raise FileExistsError(17, "is there, and not an empty directory; restore to another place", str(place))


@contextlib.contextmanager
def building(place: Path) -> Generator[Path]:
    """A directory beside the place, held by this process; what a killed one left there goes, and so does this."""
    files.make_directory(place.parent)
    beside = _beside(place)
    with contextlib.suppress(FileExistsError):
        beside.mkdir()
    descriptor = os.open(beside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{place}: another process is restoring to this place") from None
        for left in beside.iterdir():
            shutil.rmtree(left)
        try:
            yield beside
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def clear_unfinished(place: Path) -> None:
    """Remove what a killed process left beside the place. Nobody may be building there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(_beside(place))


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.ringmain-restore")


def put_in_place(beside: Path, place: Path) -> None:
    """Have the names of everything on the disk, and give the directory its own. Its files are synced already."""
    for directory in (beside / "archive", beside / "log", beside / "store", beside):
        if directory.is_dir():
            files.sync_directory(directory)
    files.rename_file(beside, place)
    files.sync_directory(place.parent)
