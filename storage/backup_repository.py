"""A folder of backups of one store: which there are, what belongs to them, and removing the rest.

1. `0000000007/LIST` makes a backup of folder 7. It is written last and goes first, so what it lists is there.
2. A backup's list may name files in the folders of earlier ones. A file that is in no list is removed by the next backup,
   but for log files behind those listed: the log goes on there between backups.
3. One process at a time changes a repository (LOCK). Reading takes no lock.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from os import fspath
from pathlib import Path

from . import files
from .backup_list import LIST_NAME, BackupList, ListedFile, decode_list, encode_list
from .errors import LogLocked, StorageError
from .log_files import list_files

__all__ = ["BackupBusy", "Repository", "is_repository"]

FOLDER = re.compile(r"\d{10}")
OURS = re.compile(rf"(\d{{10}}\.(sst|log)|{LIST_NAME})(\.new)?")
LOCK_NAME = "LOCK"


class BackupBusy(StorageError):
    """Somebody else is writing backups to this folder. pid: the process, None if it could not be told."""

    def __init__(self, path: Path, pid: int | None) -> None:
        self.path, self.pid = fspath(path), pid
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(f"{self.path}: {holder} is making a backup here; wait until it is done")


@dataclass(frozen=True, slots=True)
class Repository:
    """The backups in a folder."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Repository:
        """To read. Raises FileNotFoundError where there is no backup."""
        if not is_repository(path):
            raise FileNotFoundError(2, "holds no backup: no folder such as 0000000001 with a LIST in it", str(path))
        return cls(path)

    @classmethod
    def make(cls, path: Path) -> Repository:
        """To write: made if missing. Raises ValueError for a folder in which there is something else."""
        files.make_directory(path)
        strange = sorted(
            item.name for item in path.iterdir() if item.name != LOCK_NAME and not FOLDER.fullmatch(item.name)
        )
        if strange and not is_repository(path):
            raise ValueError(
                f"{path}: backups go to a folder of their own, and this one has {strange[0]!r} in it and no backup"
            )
        return cls(path)

    def folder(self, number: int) -> Path:
        return self.path / f"{number:010d}"

    def find(self, file: ListedFile) -> Path:
        """Where a listed file lies."""
        return self.folder(file.folder) / file.base_name

    def read(self) -> tuple[list[BackupList], list[StorageError]]:
        """The backups, oldest first, and what is wrong with those that cannot be read."""
        found: list[BackupList] = []
        problems: list[StorageError] = []
        for number in self._numbers():
            try:
                found.append(self.read_one(number))
            except FileNotFoundError:
                continue
            except StorageError as error:
                problems.append(error)
        return found, problems

    def read_one(self, number: int) -> BackupList:
        """Raises FileNotFoundError where there is no such backup, BackupDamaged, FormatMismatch."""
        path = self.folder(number) / LIST_NAME
        return decode_list(path.read_bytes(), path, number)

    def newest(self) -> int:
        """The number of the newest backup, 0 where there is none. Its list may be damaged."""
        return max((number for number in self._numbers() if (self.folder(number) / LIST_NAME).exists()), default=0)

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Be the one who changes it. Raises BackupBusy."""
        try:
            descriptor = files.lock_directory(self.path, take_over=False)
        except LogLocked as locked:
            raise BackupBusy(self.path, locked.pid) from None
        try:
            yield
        finally:
            os.close(descriptor)

    # --- changing it; under the lock ----------------------------------------------------------------------------------

    def new_folder(self) -> int:
        """Begin a backup: make its folder, and return its number."""
        number = max(self._numbers(), default=0) + 1
        self.folder(number).mkdir()
        files.sync_directory(self.path)
        return number

    def write_list(self, backup: BackupList) -> None:
        """Make a backup of what is in its folder, and elsewhere; all of it is on the disk."""
        path = self.folder(backup.number) / LIST_NAME
        draft = path.with_name(f"{LIST_NAME}.new")
        descriptor = files.create_file(draft)
        try:
            files.write_at(descriptor, encode_list(backup), 0)
            files.sync_data(descriptor)
        finally:
            os.close(descriptor)
        files.sync_directory(path.parent)
        files.rename_file(draft, path)
        files.sync_directory(path.parent)

    def keep(self, count: int) -> None:
        """Remove all backups but the newest so many."""
        backups, problems = self.read()
        if problems:
            raise problems[0]
        for backup in backups[:-count]:
            path = self.folder(backup.number)
            (path / LIST_NAME).unlink()
            files.sync_directory(path)
        self.clean()

    def clean(self) -> None:
        """Remove what belongs to no backup: left by one that was killed, failed, or is no longer kept.

        Where a list cannot be read nothing is removed, since nobody knows what that one needs.
        """
        backups, problems = self.read()
        if problems:
            return
        needed = {self.folder(backup.number) / LIST_NAME for backup in backups}
        first_logs: dict[int, str] = {}
        for file in (file for backup in backups for file in backup.files):
            needed.add(self.find(file))
            if file.is_log:
                first_logs[file.folder] = min(file.base_name, first_logs.get(file.folder, file.base_name))
        for number, first in first_logs.items():
            needed |= {path for _, path in list_files(self.folder(number)) if path.name >= first}
        for number in self._numbers():
            self._clean_folder(self.folder(number), needed)

    def _clean_folder(self, folder: Path, needed: set[Path]) -> None:
        stray = [path for path in folder.iterdir() if OURS.fullmatch(path.name) and path not in needed]
        for path in stray:
            path.unlink()
        if stray:
            files.sync_directory(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
            files.sync_directory(self.path)

    def _numbers(self) -> list[int]:
        return sorted(int(item.name) for item in self.path.iterdir() if FOLDER.fullmatch(item.name) and item.is_dir())


def is_repository(path: Path) -> bool:
    """Whether a folder holds a backup."""
    return any(FOLDER.fullmatch(item.parent.name) for item in path.glob(f"*/{LIST_NAME}"))
