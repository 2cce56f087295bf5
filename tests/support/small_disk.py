"""A disk that can really be full: a tmpfs of a few MiB."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from support.mounts import mount, unmount


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A new file system of this size, such as "18m". Skips the test where one cannot be mounted."""
    mount(place, "-t", "tmpfs", "-o", f"size={size}", "none")
    try:
        yield place
    finally:
        unmount(place)


@contextlib.contextmanager
def filled(place: Path, but_bytes: int = 0) -> Iterator[None]:
    """No room is left there, but for so many bytes; afterwards there is again."""
    ballast = place / "ballast"
    try:
        with ballast.open("wb") as file:
            while (room := _room(place) - but_bytes) > 0:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, room)
                except OSError as error:
                    if error.errno != errno.ENOSPC:  # others write there too, and took of the room since we looked
                        raise
        yield
    finally:
        ballast.unlink()


def _room(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_bsize
