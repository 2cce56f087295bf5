"""Restoring a store from its backups: as it was last, as of a row, or as of a time.

1. The store is built beside the place it is for, proven, and only then gets its name. A place where anything is, is refused.
2. Every file is compared with the checksum in the backup's list; what the log has beyond that, with those of its frames.
3. Tables hold no row behind the checkpoints of their backup, and the log ends where it should: so nothing later is there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import files
from .backup_list import BackupDamaged, ListedFile
from .backup_repository import Repository
from .built_place import building, check_free, put_in_place
from .checked_copy import Progress, Tally, checksum, copy_file
from .errors import StorageError
from .log_cut import append_kept, log_ends
from .log_files import list_files
from .manifest import Manifest
from .parallel import side_by_side
from .recovery import examine
from .restore_plan import RestorePlan, plan_restore
from .store_verify import Finding, verify_store

__all__ = ["Restored", "restore"]


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored. backup: the number of the one that the tables are from. last: each topic's newest sequence.

    passed_over: newer backups, by number, and what is wrong with their lists; the log that they share has brought their rows.
    """

    directory: Path
    backup: int
    last: Mapping[str, int]
    file_count: int
    restored_bytes: int
    seconds: float
    passed_over: Mapping[int, StorageError]


def restore(
    target: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    to: int | Mapping[str, int] | None = None,
    time_ns: int | None = None,
    backup: int | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Restore a store from a folder of backups into a directory that is not there yet, or is empty.

    to: sequences by topic; the log is cut behind those rows, and a topic that is not named ends with what the log held before the
    last of them. A number will do where there is one topic. time_ns: every topic ends with the last row stamped at or before it.
    Neither: all there is; with backup, just what that one holds. Where the newest backup's list is damaged, and its log goes on
    in an older one's folder, that is taken (`passed_over`); where it has a log of its own, BackupDamaged.
    backup: take the tables from this one, and no newer one.
    progress: called with (bytes done, bytes in all), from any thread; a byte counts when it is copied and when it is proven.

    Raises NotRestorable where no backup reaches so far, BackupDamaged, FormatMismatch, FileNotFoundError, FileExistsError, OSError,
    ValueError.
    """
    began = time.monotonic()
    repository, place = Repository.open(Path(target).absolute()), Path(directory).absolute()
    check_free(place)
    plan = plan_restore(repository, to, time_ns, backup)
    with building(place) as beside:
        _build(plan, beside, Tally(progress, 2 * plan.size_bytes))
        last = _prove(plan, beside, progress)
        _move_archived(plan, beside)
        put_in_place(beside, place)
    count = len(plan.logs) + len(plan.tables)
    seconds = time.monotonic() - began
    return Restored(place, plan.backup.number, last, count, plan.size_bytes, seconds, plan.passed_over)


def _build(plan: RestorePlan, beside: Path, tally: Tally) -> None:
    log, store = beside / "log", beside / "store"
    log.mkdir()
    side_by_side(lambda item: _copy_log(plan, *item, log, tally), plan.logs)
    if plan.manifest is not None:
        store.mkdir()
        with Manifest(store, plan.backup.log_id) as manifest:  # first: it refuses tables of which nothing is known
            manifest.commit(plan.manifest)
        side_by_side(lambda file: _copy_table(plan, file, store, tally), plan.tables)
    if plan.cut is not None and plan.cut.kept:
        append_kept(log, plan.cut)


def _copy_table(plan: RestorePlan, file: ListedFile, store: Path, tally: Tally) -> None:
    path = plan.repository.find(file)
    with _opened(path) as descriptor, _whole(path, file.file_bytes):
        _compare(path, file.crc32c, copy_file(descriptor, file.file_bytes, store / file.base_name, tally))


def _copy_log(plan: RestorePlan, path: Path, end: int, log: Path, tally: Tally) -> None:
    listed = plan.listed_logs.get(path.name)
    with _opened(path) as descriptor:
        if listed is not None and listed.file_bytes != end:
            with _whole(path, listed.file_bytes):
                _compare(path, listed.crc32c, checksum(descriptor, [listed.file_bytes], Tally(None, 0))[0])
        with _whole(path, end):
            crc = copy_file(descriptor, end, log / path.name, tally)
        if listed is not None and listed.file_bytes == end:
            _compare(path, listed.crc32c, crc)


@contextlib.contextmanager
def _opened(path: Path) -> Generator[int]:
    try:
        descriptor = files.open_file_to_read(path)
    except FileNotFoundError:
        raise BackupDamaged(path, None, "a file that the backup lists", "no file") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _whole(path: Path, size_bytes: int) -> Generator[None]:
    try:
        yield
    except EOFError:
        raise BackupDamaged(path, path.stat().st_size, f"{size_bytes} bytes", "the end of the file") from None


def _compare(path: Path, expected: int, found: int) -> None:
    if expected != found:
        raise BackupDamaged(path, None, f"the CRC {expected:08x}", f"{found:08x}")


def _prove(plan: RestorePlan, beside: Path, progress: Progress | None) -> Mapping[str, int]:
    """Read all of the store as it was built. Returns each topic's last sequence. Raises BackupDamaged."""

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(plan.size_bytes + plan.size_bytes * done // max(1, total), 2 * plan.size_bytes)

    if plan.manifest is None:
        found = [Finding.of(problem, beside / "log") for problem in examine(beside / "log", told).problems]
    else:
        found = verify_store(beside, progress=told).findings
    for finding in found:
        name = finding.path.name
        folder = next((file.folder for file in plan.backup.files if file.base_name == name), plan.backup.log_folder)
        raise BackupDamaged(plan.repository.folder(folder) / name, finding.offset, finding.expected, finding.found)
    last = {name: topic.next_sequence - 1 for name, topic in log_ends(list_files(beside / "log")).items()}
    if last != {name: plan.last.get(name, 0) for name in last}:
        raise StorageError(f"{plan.repository.path}: the log was restored up to {last}, not up to {plan.last}")
    return last


def _move_archived(plan: RestorePlan, beside: Path) -> None:
    archive = beside / "archive"
    for file in plan.backup.files:
        path = beside / "log" / file.base_name
        if file.name.startswith("archive/") and path.exists() and path.name < plan.logs[-1][0].name:
            archive.mkdir(exist_ok=True)
            files.move_file(path, archive / path.name)
