"""How much of the past a directory of log files keeps, and the archive where files go that the log itself does not keep.

1. The oldest file always goes first, and for good (its directory is synced) before the next: no file is ever missing between two
   others, also after a power cut.
2. A file is moved, never copied: it is in one place or in the other, and what a reader has mapped stays as it is.
3. An age is by the wall clock, which may be wrong: a file that was begun in the future says nothing, and a step ahead is not
   believed at once. What history that loses or keeps too long is bounded (docs/operations.md, "Retention").
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from .errors import Corruption, FormatMismatch
from .files import make_directory, move_file, sync_directory
from .log_files import file_path, list_files, open_file, read_header

__all__ = ["Archive", "Numbered", "Retention"]

STEP_NS = 60_000_000_000  # the wall clock may run ahead so much between two looks
STEP_LASTS_S = 3_600.0

Numbered: TypeAlias = tuple[int, Path]  # a log file's number and path


@dataclass(slots=True)
class _Clock:
    """The wall clock; by the monotonic one while a step ahead has not lasted yet. wall_ns, steady_ns: both, as last believed."""

    wall_ns: int = field(default_factory=lambda: time.time_ns())
    steady_ns: int = field(default_factory=lambda: time.monotonic_ns())
    ahead_since_ns: int | None = None  # by the monotonic clock

    def now_ns(self, lasting_s: float) -> int:
        """Nanoseconds since the Unix epoch. lasting_s: so long a step ahead has to last until it is believed."""
        wall_ns, steady_ns = time.time_ns(), time.monotonic_ns()
        expected_ns = self.wall_ns + steady_ns - self.steady_ns
        if wall_ns > expected_ns + STEP_NS:
            if self.ahead_since_ns is None:
                self.ahead_since_ns = steady_ns
            if steady_ns - self.ahead_since_ns < lasting_s * 1e9:
                return expected_ns
        self.wall_ns, self.steady_ns, self.ahead_since_ns = wall_ns, steady_ns, None
        return wall_ns


@dataclass(frozen=True, slots=True)
class Retention:
    """How much to keep: so many bytes, at least, or what is not older than so many seconds. With both a file goes as soon as one
    of them lets it. Both None: everything.
    """

    size_bytes: int | None
    age_s: float | None
    _clock: _Clock = field(default_factory=_Clock, init=False, repr=False, compare=False)

    def expired(self, files: list[Numbered], following: Numbered) -> Iterator[tuple[Numbered, Numbered]]:
        """The files that need not be kept, each with the one after it, the oldest first.

        following: the file behind the last of them, which need not be there.
        """
        if self.size_bytes is None and self.age_s is None:
            return
        kept_bytes = sum(path.stat().st_blocks * 512 for _, path in files)
        chain, too_old = [*files, following], self._too_old([*files, following])
        for at, file in enumerate(files):
            size_bytes = file[1].stat().st_blocks * 512
            too_many = self.size_bytes is not None and kept_bytes - size_bytes >= self.size_bytes
            if not too_many and not too_old(at):
                return
            kept_bytes -= size_bytes
            yield file, chain[at + 1]

    def _too_old(self, chain: list[Numbered]) -> Callable[[int], bool]:
        """Whether everything in a file is older than the age to keep: to be asked of rising places in the chain.

        It is older than any file behind it. The first of these tells that has a sound header and was not begun in the future.
        Not the earliest of them all: one that was begun when the clock stood at 1970 would take all history with it.
        """
        if self.age_s is None:
            return lambda at: False
        now_ns, age_ns = self._clock.now_ns(min(self.age_s, STEP_LASTS_S)), self.age_s * 1e9
        told = 0  # which file, and when it was begun
        created_ns: int | None = None

        def too_old(at: int) -> bool:
            nonlocal told, created_ns
            while told <= at or (created_ns is None and told + 1 < len(chain)):
                told += 1
                created_ns = _created_ns(chain[told], now_ns)
            return created_ns is not None and created_ns < now_ns - age_ns

        return too_old


def _created_ns(file: Numbered, now_ns: int) -> int | None:
    """When a file was begun; None where that cannot be told."""
    try:
        created_ns = read_header(file[1], file[0]).created_ns
    except (Corruption, FileNotFoundError):
        return None
    return created_ns if created_ns <= now_ns else None


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
