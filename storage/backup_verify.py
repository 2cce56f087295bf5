"""Proving a folder of backups: every list, every file that one names, and the log behind them. Changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from . import files
from ._tree import KeyCodec
from .backup_list import BackupDamaged, BackupList
from .backup_repository import Repository
from .checked_copy import Progress, Tally, checksum
from .errors import Corruption, FormatMismatch, StorageError
from .log_files import open_file
from .parallel import side_by_side
from .recovery import examine
from .schema import Schema
from .table_files import TableFiles

__all__ = ["BackupFinding", "VerifiedBackups", "verify_backups"]


@dataclass(frozen=True, slots=True)
class BackupFinding:
    """Something that is wrong. offset: the byte in the file, None where it is all of it. backups: those that need the file."""

    path: Path
    offset: int | None
    message: str
    backups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VerifiedBackups:
    """What was looked at, and what was found. checked_bytes: of files that backups list, each once."""

    backups: tuple[BackupList, ...]
    findings: tuple[BackupFinding, ...]
    file_count: int
    checked_bytes: int
    seconds: float

    @property
    def sound(self) -> list[int]:
        """The backups that nothing is wrong with."""
        damaged = {number for finding in self.findings for number in finding.backups}
        return [backup.number for backup in self.backups if backup.number not in damaged]


@dataclass(slots=True)
class _Wanted:
    """What backups say of one file: the checksum of its first so many bytes, by how many; and which say so."""

    path: Path
    checksums: dict[int, int] = field(default_factory=dict[int, int])
    backups: list[BackupList] = field(default_factory=list[BackupList])

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(backup.number for backup in self.backups)


def verify_backups(target: str | os.PathLike[str], progress: Progress | None = None) -> VerifiedBackups:
    """Read all backups of a folder and compare every file with its checksum; the log's frames with theirs.

    progress: called with (bytes done, bytes in all), from any thread. Raises FileNotFoundError where there is no backup.
    """
    began = time.monotonic()
    repository = Repository.open(Path(target))
    backups, problems = repository.read()
    findings = [_finding(problem, (_number(problem),)) for problem in problems]
    wanted: dict[Path, _Wanted] = {}
    for backup in backups:
        for file in backup.files:
            path = repository.find(file)
            entry = wanted.setdefault(path, _Wanted(path))
            entry.checksums[file.file_bytes] = file.crc32c
            entry.backups.append(backup)
    sizes_bytes = {path: max(entry.checksums) for path, entry in wanted.items()}
    tally = Tally(progress, sum(sizes_bytes.values()))
    found = side_by_side(lambda entry: _verify_file(entry, tally), wanted.values())
    findings += [finding for finding in found if finding is not None]
    damaged = {finding.path for finding in findings}
    for folder in sorted({backup.log_folder for backup in backups}):
        numbers = tuple(backup.number for backup in backups if backup.log_folder == folder)
        log = (_finding(problem, numbers) for problem in _log_problems(repository.folder(folder)))
        findings += [finding for finding in log if finding.path not in damaged]
    return VerifiedBackups(
        tuple(backups), tuple(findings), len(wanted), sum(sizes_bytes.values()), time.monotonic() - began
    )


def _verify_file(wanted: _Wanted, tally: Tally) -> BackupFinding | None:
    ends = sorted(wanted.checksums)
    try:
        descriptor = files.open_file_to_read(wanted.path)
    except FileNotFoundError:
        tally.add(ends[-1])
        return BackupFinding(wanted.path, None, "is missing", wanted.numbers)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes < ends[-1]:
            tally.add(ends[-1])
            return BackupFinding(wanted.path, size_bytes, f"ends here, expected {ends[-1]} bytes", wanted.numbers)
        for end, crc in zip(ends, checksum(descriptor, ends, tally), strict=True):
            if crc != wanted.checksums[end]:
                return _locate(wanted, end, crc)
    finally:
        os.close(descriptor)
    return None


def _locate(wanted: _Wanted, end: int, crc: int) -> BackupFinding:
    """Say where in a file with a wrong checksum the damage is, as far as the file's own checksums tell."""
    try:
        if wanted.path.suffix == ".log":
            file = open_file(wanted.path, int(wanted.path.stem))
            _, offset = file.scan(limit=end)
            if offset < end:
                return BackupFinding(wanted.path, offset, "expected a valid frame", wanted.numbers)
        else:
            _verify_table(wanted)
    except (Corruption, FormatMismatch) as error:
        return _finding(error, wanted.numbers)
    return BackupFinding(
        wanted.path, None, f"expected the CRC {wanted.checksums[end]:08x}, found {crc:08x}", wanted.numbers
    )


def _verify_table(wanted: _Wanted) -> None:
    """Raises Corruption, FormatMismatch."""
    backup = wanted.backups[0]
    assert backup.manifest is not None
    info = next(table for table in backup.manifest.added if table.number == int(wanted.path.stem))
    schema = Schema.from_json(backup.manifest.topics[info.topic].schema.encode())
    TableFiles(wanted.path.parent, backup.log_id, 0).open(info, schema, KeyCodec(schema)).verify()


def _log_problems(folder: Path) -> Iterable[StorageError]:
    try:
        return examine(folder).problems
    except (StorageError, FileNotFoundError) as error:
        return [error] if isinstance(error, StorageError) else []  # what is missing was listed, and is told of already


def _finding(problem: StorageError, backups: tuple[int, ...]) -> BackupFinding:
    offset = getattr(problem, "offset", None)
    if isinstance(problem, Corruption | BackupDamaged):
        return BackupFinding(Path(problem.path), offset, f"expected {problem.expected}, found {problem.found}", backups)
    return BackupFinding(Path(getattr(problem, "path", "")), offset, str(problem), backups)


def _number(problem: StorageError) -> int:
    """The backup whose list cannot be read."""
    return int(Path(getattr(problem, "path", "")).parent.name)
