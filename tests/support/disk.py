"""A disk that fails, dies or forgets, put in the place of what storage/files.py does: for tests in one process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from ringmain.storage import files

SECTOR_BYTES = 512  # what a disk writes whole or not at all


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it but the test."""


class Disk:
    """Counts the steps that change something, and makes one of them fail.

    fail_at: which step, from 0. how: "refused", nothing of it happens; "half", a write does the first half of it (unless it
    lies within what is one sector already, which is written whole or not); "late", it happens and fails all the same.
    kill: raise Killed instead of an OSError.
    Keeps what each file held at its last sync, and what the directory did, for `crash_image`.
    """

    STEPS = ("create_file", "write_at", "sync_data", "rename_file", "sync_directory")

    def __init__(
        self, directory: Path, fail_at: int | None = None, how: str = "refused", *, kill: bool = False
    ) -> None:
        self.directory, self.fail_at, self.how, self.kill = directory, fail_at, how, kill
        self.steps: list[str] = []
        self._held: dict[int, int] = {}  # inode -> a descriptor that keeps it
        self._synced: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        self._originals = {name: getattr(files, name) for name in self.STEPS}
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        for path in self.directory.iterdir():
            self._hold(os.open(path, os.O_RDONLY), path.read_bytes())
        self._names = self._names_now()
        for name in self.STEPS:
            self._patch.setattr(files, name, self._wrap(name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()
        for descriptor in self._held.values():
            os.close(descriptor)

    def _wrap(self, name: str) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            failing = len(self.steps) == self.fail_at
            self.steps.append(name)
            if failing and self.how == "half" and name == "write_at":
                descriptor, data, offset = arguments
                end = offset + len(data)
                if end > os.fstat(descriptor).st_size or offset // SECTOR_BYTES != (end - 1) // SECTOR_BYTES:
                    self._originals[name](descriptor, data[: len(data) // 2], offset)
            if failing and self.how != "late":
                self._fail()
            result = self._originals[name](*arguments)
            if name == "create_file":
                self._hold(os.dup(result), b"")
            elif name == "sync_data":
                self._synced[os.fstat(arguments[0]).st_ino] = files.read_from(arguments[0], 0)
            elif name == "sync_directory":
                self._names = self._names_now()
            if failing:
                if name == "create_file":
                    os.close(result)
                self._fail()
            return result

        return step

    def _fail(self) -> None:
        if self.kill:
            raise Killed
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _hold(self, descriptor: int, synced: bytes) -> None:
        inode = os.fstat(descriptor).st_ino
        self._held[inode], self._synced[inode] = descriptor, synced

    def _names_now(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self.directory.iterdir()}

    def crash_image(self, target: Path, choose: Callable[[int], int]) -> None:
        """Write to `target` what a power cut may leave: what was synced, and of what came after, any sectors and names.

        choose(n): any number from 0 to n.
        """
        now = self._names_now()
        target.mkdir()
        for name in {**self._names, **now}:
            inodes = [inode for inode in (self._names.get(name), now.get(name)) if inode is not None]
            inode = inodes[choose(len(inodes) - 1)]
            (target / name).write_bytes(self._survivor(inode, choose))

    def _survivor(self, inode: int, choose: Callable[[int], int]) -> bytes:
        old, new = self._synced[inode], files.read_from(self._held[inode], 0)
        size = len(old) + choose(max(0, len(new) - len(old)))
        kept = bytearray(old.ljust(size, b"\0"))
        for start in range(0, size, SECTOR_BYTES):
            part = new[start : min(start + SECTOR_BYTES, size)]
            if kept[start : start + len(part)] != part and choose(1):
                kept[start : start + len(part)] = part
        return bytes(kept)


@contextmanager
def counted(directory: Path) -> Iterator[list[str]]:
    """The steps that the block takes on a sound disk."""
    with Disk(directory) as disk:
        yield disk.steps
