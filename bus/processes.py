"""Which processes live, and which of them holds a file's lock. Looks only: no lock is taken, no signal is sent."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from ._segment import process_lives

__all__ = ["flock_holder", "process_state"]


def process_state(pid: int, started: int) -> str:
    """ "alive", "stopped" (by SIGSTOP or a debugger) or "dead" of the process that began at `started` (0: any with this pid)."""
    if pid <= 0 or not process_lives(pid, started):
        return "dead"
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "dead"
    except psutil.Error:  # another user's, and hidden
        return "alive"
    return "stopped" if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else "alive"


def flock_holder(path: Path, *, any_device: bool = False) -> int | None:
    """The pid of another process that holds a flock(2) on the file, or None.

    Read from the kernel's list: trying the lock would refuse it, for an instant, to a writer that is just starting.
    any_device: the file system may tell another device number than the list does (overlay and btrfs do).
    """
    try:
        status = os.stat(path)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    for line in lines:
        words = line.split()  # 1: FLOCK ADVISORY WRITE pid major:minor:inode start end
        if len(words) == 8 and words[1] == "FLOCK":
            place, _, inode = words[5].rpartition(":")
            if int(inode) == status.st_ino and (any_device or place == device) and int(words[4]) != os.getpid():
                return int(words[4])
    return None
