"""Finishing a cut of a log: putting in place what was made ready for it.

A cut is made ready in the folder `cut.new` of the log's directory, which then becomes `cut` in one step. From then on it counts:
whoever holds the directory's lock next finishes it, and does the same again where another was killed.

1. `cut` holds a folder with what is cut off, as a log of its own, and the log's files from the cut on as they are to be.
2. The log is valid at every instant: old files go newest first, new ones come oldest first.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path

from . import files
from .log_files import list_files

__all__ = ["BUILDING", "CUT", "LOST_AND_FOUND", "finish_cut"]

CUT, BUILDING = "cut", "cut.new"
LOST_AND_FOUND = "lost+found"
ELSEWHERE = errno.EXDEV, errno.EACCES, errno.EPERM  # another file system, or root's own folder of that name


def finish_cut(directory: Path) -> Path | None:
    """Finish the cut of a log, if one was begun, and clear away what was only being made ready. The caller holds its lock.

    What was cut off goes to `lost+found` beside the log (in the log's directory, where that cannot be). Returns where, if it was
    put there now.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / BUILDING)
    cut = directory / CUT
    if not cut.is_dir():
        return None
    where = None
    for tail in [path for path in cut.iterdir() if path.is_dir()]:
        where = _set_aside(tail, directory)
    waiting = list_files(cut)
    for number, path in reversed(list_files(directory)):
        if waiting and number >= waiting[0][0]:
            path.unlink()
            files.sync_directory(directory)
    for _, path in waiting:
        files.rename_file(path, directory / path.name)
        files.sync_directory(directory)
        files.sync_directory(cut)
    cut.rmdir()
    files.sync_directory(directory)
    return where


def _set_aside(tail: Path, directory: Path) -> Path:
    beside, inside = directory.absolute().parent / LOST_AND_FOUND, directory / LOST_AND_FOUND
    try:
        return _move(tail, beside)
    except OSError as error:
        if error.errno not in ELSEWHERE:
            raise
        return _move(tail, inside)


def _move(tail: Path, folder: Path) -> Path:
    files.make_directory(folder)
    files.rename_file(tail, folder / tail.name)
    files.sync_directory(folder)
    files.sync_directory(tail.parent)
    return folder / tail.name
