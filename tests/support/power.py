"""A disk whose power can be cut: a file system of its own in a file, which stops at once and forgets what was not synced.

What the file system had given to the disk by then counts as kept, as on a disk without a cache of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support.logs import wait_until
from support.mounts import mount, unmount

__all__ = ["Disk", "cut_power", "disk"]

DISK_BYTES = 256 << 20  # sparse: it takes what is written
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # fs/ext4/ext4.h
OPTIONS = "loop,commit=600"  # the journal is written when something is synced, and hardly ever by itself
STOP_S = 10.0


class Disk:
    """place: where its files are. After a cut all that touches them fails, until the power is back."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._image = place.with_name(f"{place.name}.ext4")
        program = shutil.which("mkfs.ext4")
        if program is None:
            pytest.skip("there is no mkfs.ext4 to make the disk with whose power is cut")
        with self._image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run([program, "-q", str(self._image)], check=True)
        mount(self.place, "-o", OPTIONS, str(self._image))

    def cut(self) -> None:
        """Stop the file system where it is. Skips the test where that cannot be done."""
        root = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(root, EXT4_IOC_SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EPERM, errno.EOPNOTSUPP):
                raise
            pytest.skip(f"the file system cannot be stopped at once here: {error}")
        finally:
            os.close(root)

    def restore(self) -> None:
        """Have it back with what it kept. Nobody may have a file of it open."""
        unmount(self.place, lazily=False)
        subprocess.run(["mount", "-o", OPTIONS, str(self._image), str(self.place)], check=True)


@contextlib.contextmanager
def disk(place: Path) -> Iterator[Disk]:
    """Skips the test where there can be no such disk."""
    made = Disk(place)
    try:
        yield made
    finally:
        if place.is_mount():
            unmount(place)


def cut_power(disks: Iterable[Disk], processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Everything ends at once. Processes stand still before their disks do, so that none can tell of a disk that fails it."""
    processes = list(processes)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    wait_until(lambda: all(map(_stands_still, processes)), STOP_S)
    for each in disks:
        each.cut()
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _stands_still(process: subprocess.Popen[bytes]) -> bool:
    """Whether none of its threads runs; one that waits for the disk stops before it goes on."""
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # one that has just ended
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] not in "TDZX":
                return False
    return True
