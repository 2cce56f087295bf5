"""Copying files with a checksum of what was read, past the page cache.

1. A copy has its name only when it is whole and on the disk; before that it is `<name>.new`.
2. The checksum is of the bytes in memory between reading and writing. Whoever wants to know what is on the disk reads that.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from . import files
from ._log import crc32c

__all__ = ["CHUNK_BYTES", "Progress", "Tally", "checksum", "copy_file", "link_or_copy", "naming"]

CHUNK_BYTES = 4 << 20
DIRECT_BYTES = 4096  # what writing past the page cache goes by

Progress = Callable[[int, int], None]


class Tally:
    """Counts bytes that several threads have done, and tells: progress(done, total)."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self.total_bytes, self.done_bytes = total_bytes, 0
        self._progress, self._lock = progress, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.done_bytes += count
            if self._progress is not None:
                self._progress(min(self.done_bytes, self.total_bytes), self.total_bytes)


def checksum(descriptor: int, ends: Sequence[int], tally: Tally) -> list[int]:
    """The CRC-32C of an open file up to each of some offsets, which rise. Raises EOFError where it is shorter."""
    buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    crc, at, found = 0, 0, list[int]()
    for end in ends:
        while at < end:
            part = buffer[: min(CHUNK_BYTES, end - at)]
            read = _read_into(descriptor, part, at)
            crc = crc32c(part[:read], crc)
            at += read
            tally.add(read)
        found.append(crc)
    return found


def copy_file(descriptor: int, size_bytes: int, target: Path, tally: Tally) -> int:
    """Copy the first so many bytes of an open file, and return their CRC-32C. The copy is synced, its name not yet.

    Raises EOFError where the file is shorter, OSError where the disk refuses; then nothing is left.
    """
    draft = target.with_name(f"{target.name}.new")
    copy = files.allocate(draft, size_bytes)
    try:
        crc = _copy(descriptor, size_bytes, copy, tally)
        files.sync_data(copy)
        files.rename_file(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(copy)
    return crc


def link_or_copy(descriptor: int, path: Path, size_bytes: int, target: Path, tally: Tally) -> int:
    """As `copy_file`, but with a second name for the file instead, where `path` still leads to it and the system can."""
    try:
        files.link_file(path, target)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        return copy_file(descriptor, size_bytes, target, tally)
    if not files.is_named(descriptor, target):  # somebody put another in its place
        target.unlink()
        return copy_file(descriptor, size_bytes, target, tally)
    crc = checksum(descriptor, [size_bytes], tally)[0]
    files.sync_data(descriptor)
    return crc


def _copy(descriptor: int, size_bytes: int, copy: int, tally: Tally) -> int:
    buffer = memoryview(mmap.mmap(-1, CHUNK_BYTES))  # a map begins where a page does
    crc, at = 0, 0
    files.write_around_cache(copy, True)
    while at < size_bytes:
        part = buffer[: min(CHUNK_BYTES, size_bytes - at)]
        filled = 0
        while filled < len(part):
            filled += _read_into(descriptor, part[filled:], at + filled)
        crc = crc32c(part, crc)
        if len(part) % DIRECT_BYTES:
            files.write_around_cache(copy, False)
        _write(copy, part, at)
        at += len(part)
        tally.add(len(part))
    return crc


def _write(copy: int, part: memoryview, offset: int) -> None:
    with naming(copy):
        try:
            files.write_at(copy, part, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            files.write_around_cache(copy, False)  # a file system with rules of its own
            files.write_at(copy, part, offset)


def _read_into(descriptor: int, part: memoryview, offset: int) -> int:
    with naming(descriptor):
        read = os.preadv(descriptor, [part], offset)
    if not read:
        raise EOFError(f"the file ends at byte {offset}")
    return read


@contextlib.contextmanager
def naming(descriptor: int) -> Generator[None]:
    """What the system refuses to do with an open file is told with the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.readlink(f"/proc/self/fd/{descriptor}")) from None
