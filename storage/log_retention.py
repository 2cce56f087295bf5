"""How much of the past a directory of log files keeps, and the archive where files go that the log itself does not keep.

1. The oldest file always goes first, and for good (its directory is synced) before the next: no file is ever missing between two
   others, also after a power cut.
2. A file is moved, never copied: it is in one place or in the other, and what a reader has mapped stays as it is.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from .errors import Corruption, FormatMismatch
from .files import make_directory, move_file, sync_directory
from .log_files import file_path, list_files, open_file

__all__ = ["Archive", "Numbered", "Retention"]

Numbered: TypeAlias = tuple[int, Path]  # a log file's number and path


@dataclass(frozen=True, slots=True)
class Retention:
    """How much to keep: so many bytes, at least, or what is not older than so many seconds. With both a file goes as soon as one
    of them lets it. Both None: everything.
    """

    size_bytes: int | None
    age_s: float | None

    def expired(self, files: list[Numbered], following: Numbered) -> Iterator[tuple[Numbered, Numbered]]:
        """The files that need not be kept, each with the one after it, the oldest first.

        following: the file behind the last of them, which need not be there.
        """
        if self.size_bytes is None and self.age_s is None:
            return
        kept_bytes = sum(path.stat().st_blocks * 512 for _, path in files)
        for file, after in pairwise([*files, following]):
            size_bytes = file[1].stat().st_blocks * 512
            too_many = self.size_bytes is not None and kept_bytes - size_bytes >= self.size_bytes
            if not too_many and not self._too_old(after):
                return
            kept_bytes -= size_bytes
            yield file, after

    def _too_old(self, after: Numbered) -> bool:
        """Whether everything in the file before `after` is older than the age to keep."""
        if self.age_s is None:
            return False
        try:
            header = open_file(after[1], after[0]).header
        except (Corruption, FileNotFoundError):
            return False
        return header.created_ns < time.time_ns() - self.age_s * 1e9


class Archive:
    """A directory of log files that belongs to one log. Changed by the log's keeper only.

    path: made if missing, on the file system of the log's directory. log_id: the log's; None where it has no files yet.
    error: why files that have expired in the log could not be moved here, or could not be removed here; None while all is well.
    """

    def __init__(self, path: Path, directory: Path, log_id: int | None, retention: Retention) -> None:
        self.path = path
        self.error: OSError | None = None
        self._directory, self._retention = directory, retention
        make_directory(path)
        if path.samefile(directory):
            raise ValueError(f"archive: {path} is the log's own directory")
        if path.stat().st_dev != directory.stat().st_dev:
            raise OSError(errno.EXDEV, "must be on the file system of the log, since files are moved there", str(path))
        for number, newest in reversed(list_files(path)):
            try:
                found = open_file(newest, number).header.log_id
            except Corruption:  # damage in the archive is told to its readers; it stops no writer
                continue
            if found != log_id:
                raise FormatMismatch(
                    path,
                    "log",
                    f"{log_id:#x}" if log_id is not None else "none, since the log is new",
                    f"{found:#x}",
                    "an archive belongs to one log: give the log's own, or an empty directory",
                )
            break

    def take(self, files: Iterable[Path]) -> None:
        """Move expired files here, and remove what has expired here. What the system refuses is in `error`, until it is done."""
        try:
            for path in files:
                move_file(path, self.path / path.name)
                sync_directory(self.path)  # first: a power cut may leave both names, but not neither
                sync_directory(self._directory)
            self._remove_expired()
            self.error = None
        except OSError as error:
            self.error = error

    def _remove_expired(self) -> None:
        files = list_files(self.path)
        if not files:
            return
        behind = files[-1][0] + 1
        for (_, path), _ in self._retention.expired(files, (behind, file_path(self._directory, behind))):
            path.unlink()
            sync_directory(self.path)
