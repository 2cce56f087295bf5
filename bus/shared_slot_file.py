"""A slot file that several processes change, each in turn; one that is killed or stopped meanwhile holds nobody up for long.

1. Whoever changes it holds flock(2) on it, which a kill gives up. From one that keeps it longer than `patience_s` the value is
   taken away: a file with the next number is made, and the old one does not count any more.
2. The file with the greatest number counts. Whoever holds it first finds it empty, fills it from the one before, and removes that.
3. A change counts only if no newer file was there after it was written (sync TAKEN). Whoever takes over makes the new file first
   and reads the old one then: so one of the two sees the other. A change that does not count is made again, in the newest file,
   which may have it already: changes must be such that twice does no harm.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from ..storage.files import is_named, sync_directory
from .slot_file import SlotFile, SlotsDamaged

__all__ = ["SharedSlotFile"]

NAP_S, NAP_S_MAX = 20e-6, 0.002


class SharedSlotFile:
    """One member's view of it. One thread at a time.

    stem: its files are called STEM.1, STEM.2, …
    sync: each change is on the disk before it counts. Without, changes survive kills only, and damage means: no value.
    """

    def __init__(self, directory: Path, stem: str, *, sync: bool, patience_s: float) -> None:
        self.directory, self.stem = directory, stem
        self._sync, self._patience_s = sync, patience_s
        self._number, self._following = 0, ""
        self._file: SlotFile | None = None

    def read(self) -> bytes | None:
        """The newest value as it is now, whoever is changing it; None where there is none. Raises SlotsDamaged."""
        while True:
            numbers = self._numbers()
            for number in numbers:
                with contextlib.suppress(FileNotFoundError):
                    file = SlotFile.open(self._path(number), writable=False)
                    try:
                        value = self._read(file)
                    finally:
                        file.close()
                    if value is not None:
                        return value
            if numbers == self._numbers():
                return None

    def change(self, edit: Callable[[bytes | None], bytes | None]) -> None:
        """Put what `edit` makes of the newest value in its place, in one step; None leaves it. `edit` may be called again."""
        while True:
            file = self._enter()
            try:
                if not self._is_newest(file):
                    self.close()
                    continue
                after = edit(self._load(file))
                if after is None or self._store(file, after):
                    return
            finally:
                if file.descriptor >= 0:
                    fcntl.flock(file.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- files ------------------------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self.directory / f"{self.stem}.{number}"

    def _numbers(self) -> list[int]:
        """Of the files there are, the greatest first."""
        name = re.compile(rf"{self.stem}\.([1-9][0-9]{{0,17}})")
        return sorted(
            (int(found[1]) for entry in os.listdir(self.directory) if (found := name.fullmatch(entry))), reverse=True
        )

    def _is_newest(self, file: SlotFile) -> bool:
        """Whether a file counts. In this order: when the next one is gone again, so is this one."""
        return not os.path.exists(self._following) and is_named(file.descriptor, file.path)

    def _open_newest(self) -> SlotFile:
        """The newest file, made where there is none."""
        while True:
            number = next(iter(self._numbers()), 0)
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                file = SlotFile.open(self._path(number)) if number else SlotFile.open_new(self._path(1))
                self._use(file, number or 1)
                return file

    def _use(self, file: SlotFile, number: int) -> None:
        self._file, self._number, self._following = file, number, str(self._path(number + 1))

    def _enter(self) -> SlotFile:
        """The file, locked; it may have ceased to count meanwhile. From whoever keeps it too long it is taken."""
        deadline, nap_s = time.monotonic() + self._patience_s, NAP_S
        while True:
            file = self._file or self._open_newest()
            try:
                fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if not self._is_newest(file):
                    self.close()
                    deadline = time.monotonic() + self._patience_s
                elif time.monotonic() >= deadline:
                    with contextlib.suppress(FileExistsError):
                        SlotFile.open_new(self._path(self._number + 1)).close()  # sync TAKEN
                else:
                    time.sleep(nap_s)
                    nap_s = min(2 * nap_s, NAP_S_MAX)

    # --- values -----------------------------------------------------------------------------------------------------

    def _read(self, file: SlotFile) -> bytes | None:
        try:
            return file.read()
        except SlotsDamaged:
            if self._sync:
                raise
            return None

    def _load(self, file: SlotFile) -> bytes | None:
        """The value in the file that is held. One that was made to take over is filled first."""
        value = self._read(file)
        if value is not None:
            return value
        for number in self._numbers():
            if number < self._number:
                with contextlib.suppress(FileNotFoundError):
                    before = SlotFile.open(self._path(number), writable=False)
                    try:
                        value = self._read(before)  # sync TAKEN: the new file was there before
                    finally:
                        before.close()
                    if value is not None:
                        self._fill(file, value)
                        return value
        return None

    def _store(self, file: SlotFile, value: bytes) -> bool:
        """Whether it counts."""
        if file.has_value and not file.has_room(value):
            return self._move(file, value)
        if file.has_value:
            file.write(value, sync=self._sync)
        else:
            self._fill(file, value)
        return self._is_newest(file)  # sync TAKEN

    def _move(self, file: SlotFile, value: bytes) -> bool:
        """Store a value that does not fit any more, in a new file."""
        try:
            larger = SlotFile.open_new(self._path(self._number + 1))
        except FileExistsError:
            return False
        try:
            fcntl.flock(larger.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody fills it already, with what was there before
            larger.close()
            return False
        if larger.read() is not None:
            larger.close()
            return False
        file.close()
        self._use(larger, self._number + 1)
        try:
            self._fill(larger, value)
            return self._is_newest(larger)
        finally:
            fcntl.flock(larger.descriptor, fcntl.LOCK_UN)

    def _fill(self, file: SlotFile, value: bytes) -> None:
        """Write the first value, and remove the files before."""
        file.fill(value, sync=self._sync)
        if self._sync:
            sync_directory(self.directory)
        for number in reversed(self._numbers()):
            if number < self._number:
                self._path(number).unlink(missing_ok=True)
