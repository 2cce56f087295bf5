"""The door to the disk for everything that is not on a record's way: making, naming, locking, mapping and giving back files.

Appending and syncing the log, which happen once per group, are log_writer.hpp's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Generator
from pathlib import Path

from .errors import LogLocked

__all__ = [
    "allocate",
    "create_file",
    "data_ranges",
    "free_tail",
    "holds_lock",
    "is_named",
    "leave_cache",
    "link_file",
    "lock_directory",
    "lower_priority",
    "make_directory",
    "map_file",
    "move_file",
    "naming",
    "open_file_to_change",
    "open_file_to_read",
    "open_log_file",
    "read_from",
    "rename_file",
    "sync_data",
    "sync_directory",
    "sync_file",
    "write_around_cache",
    "write_at",
    "write_whole",
]

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
AT_FDCWD, RENAME_NOREPLACE = -100, 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def allocate(path: Path, size_bytes: int, mode: int = 0o600) -> int:
    """Create a file with all of its room reserved, and return its descriptor. Raises OSError (ENOSPC) and leaves nothing."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, mode)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(descriptor, size_bytes)  # a file system without reservation: sparse, as good as it gets
    except OSError as error:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return descriptor


def create_file(path: Path, mode: int = 0o600) -> int:
    """Create an empty file and return its descriptor, to read and to write. Raises FileExistsError where the name is taken."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, mode)
    return descriptor


def open_file_to_read(path: Path) -> int:
    """Return a descriptor to read a file. Raises FileNotFoundError."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def open_file_to_change(path: Path) -> int:
    """Return a descriptor to read and write an existing file. Raises FileNotFoundError."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def is_named(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name: nobody has put another in its place, or removed it."""
    try:
        mine, named = os.fstat(descriptor), os.stat(path)
    except FileNotFoundError:
        return False
    return (mine.st_ino, mine.st_dev) == (named.st_ino, named.st_dev)


def rename_file(path: Path, target: Path) -> None:
    """Give a file another name, in place of whatever has it, at once. Durable after `sync_directory`."""
    path.rename(target)


def move_file(path: Path, target: Path) -> None:
    """Give a file a name that nobody has, on the same file system, at once. Raises FileExistsError, OSError (EXDEV)."""
    names = os.fsencode(path), os.fsencode(target)
    if _LIBC.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_NOREPLACE) == 0:
        return
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS):  # a file system without RENAME_NOREPLACE
        if not (target.exists() and target.samefile(path)):  # as it is after a kill between the two
            os.link(path, target)
        path.unlink()
        return
    raise OSError(error, os.strerror(error), str(path), None, str(target))


def link_file(path: Path, target: Path) -> None:
    """Give a file a second name, on the same file system. Raises FileExistsError, OSError where that cannot be."""
    os.link(path, target)


def write_around_cache(descriptor: int, wanted: bool) -> None:
    """Whether what is written into an open file goes past the page cache (O_DIRECT), where the file system can.

    Wanted, each write must then come from an address, to an offset, and be of a size that are multiples of 4096.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)


def read_from(descriptor: int, offset: int, limit_bytes: int | None = None) -> bytes:
    """Return what an open file holds from `offset` on: all of it, or at most `limit_bytes`."""
    left = max(0, os.fstat(descriptor).st_size - offset) if limit_bytes is None else limit_bytes
    parts: list[bytes] = []
    while left and (part := os.pread(descriptor, left, offset)):
        parts.append(part)
        left, offset = left - len(part), offset + len(part)
    return b"".join(parts)


def data_ranges(path: Path, start: int, head: bytes) -> list[tuple[int, int]]:
    """(first, end) of each part of a file from `start` on that may hold something: what was never written is left out.

    head: what the file begins with. Raises FileNotFoundError, also where another file has this name by now.
    """
    descriptor, end = open_file_to_read(path), start
    found: list[tuple[int, int]] = []
    try:
        with naming(path):
            if read_from(descriptor, 0, len(head)) != head:
                raise FileNotFoundError(errno.ENOENT, "was replaced meanwhile", str(path))
            while True:
                first = os.lseek(descriptor, end, os.SEEK_DATA)
                end = os.lseek(descriptor, first, os.SEEK_HOLE)
                found.append((first, end))
    except OSError as error:
        if error.errno != errno.ENXIO:  # ENXIO: nothing behind `end`
            raise
        return found
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` into an open file at `offset`. Durable after `sync_data`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def sync_data(descriptor: int) -> None:
    """Make an open file's content and size durable."""
    os.fdatasync(descriptor)


def leave_cache(descriptor: int) -> None:
    """Have the page cache keep no more of an open file, so far as that is on the disk and mapped by nobody. A hint: never fails."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def free_tail(path: Path, used_bytes: int) -> None:
    """Give back the room behind `used_bytes`. The file keeps its size, so that a process that has it mapped is not hurt."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        start = (used_bytes + 4095) & ~4095
        size_bytes = os.fstat(descriptor).st_size
        if start < size_bytes:
            # A file system that cannot punch holes merely keeps the room.
            _LIBC.fallocate(
                descriptor,
                FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                ctypes.c_longlong(start),
                ctypes.c_longlong(size_bytes - start),
            )
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and its parents where they are missing, and their names durable."""
    if path.is_dir():
        return
    make_directory(path.absolute().parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.absolute().parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, offset: int = 0) -> None:
    """Write `data` into an existing file at `offset`, and sync it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with naming(path):
            write_at(descriptor, data, offset)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_file(path: Path) -> mmap.mmap | None:
    """Map a log file read-only, or None where it is empty. Like `open_log_file`, for as long as the map lives."""
    descriptor = open_log_file(path)
    try:
        # The map keeps a duplicate of the descriptor, and with it the lock, for as long as it lives.
        with naming(path):
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if os.fstat(descriptor).st_size else None
    finally:
        os.close(descriptor)


def open_log_file(path: Path) -> int:
    """Return a descriptor to read a log file. A shared flock(2) is held on it for as long as it is open.

    A log file that is locked so is never recycled: its writer unlinks it instead, and the bytes stay as they are under
    every view (sync LOGFILE). Raises FileNotFoundError, also where the file was about to be recycled.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(errno.ENOENT, "is being recycled", str(path)) from None
        if not is_named(descriptor, path):
            raise FileNotFoundError(errno.ENOENT, "was replaced meanwhile", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def lock_directory(directory: Path, *, take_over: bool, to_write: bool = True) -> int:
    """Take the directory's writer lock and return the descriptor that holds it; closing that (or dying) gives it up.

    take_over: put a new lock file in place of the one that another process holds. The caller has fenced that process.
    to_write: whether this is a writer, for the message. Raises LogLocked naming the holder.
    """
    path = directory / "LOCK"
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            if not take_over:
                pid = int(holder) if holder.isdigit() else None
                raise LogLocked(directory, pid, to_write=to_write) from None
            path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, without a name
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        os.close(descriptor)  # somebody replaced the file between open and lock


def holds_lock(directory: Path, descriptor: int) -> bool:
    """Whether a lock from `lock_directory` still counts: nobody has put another in its place."""
    try:
        return os.fstat(descriptor).st_ino == os.stat(directory / "LOCK").st_ino
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def naming(path: Path) -> Generator[None]:
    """What the system refuses here is told with the file's name, which it does not know where it was given a descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def lower_priority() -> None:
    """Let the calling thread work, and read and write, only when nobody else wants to. Where the system refuses, it does not."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, 10)
    # ioprio_set(IOPRIO_WHO_PROCESS, thread, best effort, lowest); a number of the system call for each kind of machine
    number = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)
    if number is not None:
        _LIBC.syscall(number, 1, thread, 2 << 13 | 7)
