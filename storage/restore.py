"""Restoring a store from its backups: as it was last, as of a row, or as of a time.

1. The store is built beside the place it is for, proven, and only then gets its name. A place where anything is, is refused.
2. Every file is compared with the checksum in the backup's list; what the log has beyond that, with those of its frames.
3. Tables hold no row behind the checkpoints of their backup, and the log ends where it should: so nothing later is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Container, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from . import files
from .backup_list import BackupDamaged, BackupList, ListedFile
from .backup_repository import Repository
from .backup_source import log_end
from .checked_copy import Progress, Tally, checksum, copy_file
from .errors import Corruption, StorageError
from .log_cut import LogCut, append_kept, cuts_at_rows, cuts_at_time, log_ends, plan_cut
from .log_files import file_path, list_files, open_file, starting_topics
from .manifest import Edit, Manifest
from .parallel import side_by_side
from .recovery import examine
from .store_verify import Finding, verify_store

__all__ = ["NotRestorable", "Restorable", "Restored", "restorable", "restore"]


class NotRestorable(StorageError):
    """The backups do not reach to what is wanted."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored. backup: the number of the one that the tables are from. last: each topic's newest sequence."""

    directory: Path
    backup: int
    last: Mapping[str, int]
    file_count: int
    restored_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Restorable:
    """What can be restored from one backup and the log behind it: of each topic any of these sequences, and any of these times.

    topics: (lowest, highest) by name; 0 is no row at all. from_ns, to_ns: since the Unix epoch, both included.
    """

    backup: BackupList
    topics: Mapping[str, tuple[int, int]]
    from_ns: int
    to_ns: int


def restorable(target: str | os.PathLike[str]) -> list[Restorable]:
    """What each backup in a folder can be restored to, oldest first. Raises FileNotFoundError, StorageError."""
    repository = Repository.open(Path(target))
    backups, _ = repository.read()
    with _telling_of_backups():
        return [_restorable(repository, item, backups) for item in backups]


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
    Neither: all that there is; with backup, just what that one holds. backup: take the tables from this one, and no newer one.
    progress: called with (bytes done, bytes in all), from any thread; a byte counts when it is copied and when it is proven.

    Raises NotRestorable where no backup reaches so far, BackupDamaged, FileNotFoundError, FileExistsError, OSError, ValueError.
    """
    began = time.monotonic()
    repository, place = Repository.open(Path(target).absolute()), Path(directory).absolute()
    _check_free(place)
    with _telling_of_backups():
        plan = _plan(repository, to, time_ns, backup)
    with _building(place) as building:
        size_bytes = sum(end for _, end in plan.logs) + sum(file.file_bytes for file in plan.tables)
        _build(plan, building, Tally(progress, 2 * size_bytes))
        last = _prove(plan, building, progress, size_bytes)
        _put_in_place(plan, building, place)
    count = len(plan.logs) + len(plan.tables)
    return Restored(place, plan.backup.number, last, count, size_bytes, time.monotonic() - began)


# --- what to restore --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """logs: the log's files, oldest first, and how many bytes of each to take. last: the sequence that each topic ends with."""

    repository: Repository
    backup: BackupList
    manifest: Edit | None
    logs: list[tuple[Path, int]]
    cut: LogCut | None
    last: Mapping[str, int]

    @property
    def tables(self) -> list[ListedFile]:
        return [file for file in self.backup.files if not file.is_log]

    @property
    def listed_logs(self) -> dict[str, ListedFile]:
        return {file.base_name: file for file in self.backup.files if file.is_log}


def _plan(repository: Repository, to: int | Mapping[str, int] | None, time_ns: int | None, number: int | None) -> _Plan:
    if to is not None and time_ns is not None:
        raise ValueError("to, time: one of them, not both")
    backups, problems = repository.read()
    if problems and not backups:
        raise problems[0]
    chosen = [item for item in backups if number is None or item.number <= number]
    if number is not None and not any(item.number == number for item in chosen):
        there = ", ".join(str(item.number) for item in backups)
        raise NotRestorable(f"{repository.path}: no backup {number}; there are {there}")
    if to is None and time_ns is None:
        return _plan_all(repository, chosen[-1], backups, exactly=number is not None)
    for item in reversed(chosen):
        log = _log_of(repository, item)
        if time_ns is not None:
            if not _restorable(repository, item, backups).to_ns >= time_ns:
                continue
            cuts = cuts_at_time(log, time_ns)
        else:
            assert to is not None
            rows = _rows_named(item, to)
            ends = log_ends(log)
            if any(sequence >= ends[name].next_sequence for name, sequence in rows.items() if name in ends):
                continue
            cuts = cuts_at_rows(log, rows)
        if all(cuts.get(name, 0) >= topic.lowest for name, topic in item.topics.items()):
            cut = plan_cut(log, cuts)
            logs = [(path, end) for path, end in _with_ends(log) if int(path.stem) < cut.number]
            logs.append((file_path(repository.folder(item.log_folder), cut.number), cut.offset))
            names = starting_topics(open_file(logs[-1][0], cut.number))
            return _Plan(repository, item, _manifest(item, backups, names), logs, cut, cuts)
    reach = {
        item.log_folder: _restorable(repository, item, backups) for item in reversed(chosen)
    }  # the earliest of each log
    words = "; ".join(_describe(found) for found in reversed(reach.values()))
    raise NotRestorable(f"{repository.path}: this cannot be restored. What can be: {words}")


def _plan_all(repository: Repository, item: BackupList, backups: list[BackupList], *, exactly: bool) -> _Plan:
    log = _log_of(repository, item)
    if not exactly:
        last = {name: topic.next_sequence - 1 for name, topic in log_ends(log).items()}
        return _Plan(repository, item, _manifest(item, backups, last), _with_ends(log), None, last)
    logs = [(repository.find(file), file.file_bytes) for file in item.files if file.is_log]
    last = {name: topic.last for name, topic in item.topics.items()}
    return _Plan(repository, item, item.manifest, sorted(logs, key=lambda log: log[0].name), None, last)


def _log_of(repository: Repository, item: BackupList) -> list[tuple[int, Path]]:
    """The log's files from the first that the backup lists to the newest there is. Raises BackupDamaged where one is missing."""
    listed = sorted(repository.find(file) for file in item.files if file.is_log)
    log = [(number, path) for number, path in list_files(listed[0].parent) if path >= listed[0]]
    there = {path for _, path in log}
    for path in listed:
        if path not in there:
            raise BackupDamaged(path, None, "a file that the backup lists", "no file")
    return log


def _with_ends(log: list[tuple[int, Path]]) -> list[tuple[Path, int]]:
    """The files with how many of their bytes count."""
    ends = [open_file(path, number).header.previous_end for number, path in log[1:]]
    ends.append(log_end(open_file(log[-1][1], log[-1][0]), None))
    return [(path, end) for (_, path), end in zip(log, ends, strict=True)]


def _rows_named(item: BackupList, to: int | Mapping[str, int]) -> Mapping[str, int]:
    names = ", ".join(sorted(item.topics))
    if isinstance(to, int):
        if len(item.topics) != 1:
            raise ValueError(f"to: a sequence for each topic is expected, TOPIC=SEQUENCE; the topics are {names}")
        to = dict.fromkeys(item.topics, to)
    for name, sequence in to.items():
        if sequence < 0:
            raise ValueError(f"to: a sequence from 0 on is expected for topic {name!r}, got {sequence}")
        if name not in item.topics:
            raise ValueError(f"to: no topic {name!r}; there are {names}")
    return to


def _manifest(item: BackupList, backups: list[BackupList], logged: Container[str]) -> Edit | None:
    """The backup's manifest, and of later topics those that are in the log as it is restored."""
    if item.manifest is None:
        return None
    topics = dict(item.manifest.topics)
    for other in backups:
        if other.log_folder == item.log_folder and other.manifest is not None:
            later = {name: about for name, about in other.manifest.topics.items() if name in logged}
            topics = {**later, **topics}
    return msgspec.structs.replace(item.manifest, topics=topics)


def _restorable(repository: Repository, item: BackupList, backups: list[BackupList]) -> Restorable:
    ends = log_ends(_log_of(repository, item))
    same_log = [other for other in backups if other.log_folder == item.log_folder]
    return Restorable(
        item,
        {
            name: (item.topics[name].lowest if name in item.topics else 0, topic.next_sequence - 1)
            for name, topic in ends.items()
        },
        max((topic.lowest_timestamp_ns for topic in item.topics.values()), default=0),
        max(*(other.created_ns for other in same_log), *(topic.last_timestamp_ns for topic in ends.values())),
    )


def _describe(found: Restorable) -> str:
    topics = ", ".join(f"{name} {lowest} to {highest}" for name, (lowest, highest) in sorted(found.topics.items()))
    return f"from backup {found.backup.number} on {topics}, times {_moment(found.from_ns)} to {_moment(found.to_ns)}"


def _moment(time_ns: int) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_ns // 1_000_000_000))
    return f"{whole}.{time_ns % 1_000_000_000:09d}Z"


@contextlib.contextmanager
def _telling_of_backups() -> Generator[None]:
    """Damage in here is a backup's."""
    try:
        yield
    except Corruption as error:
        raise BackupDamaged(Path(error.path), error.offset, error.expected, error.found) from None


# --- building ---------------------------------------------------------------------------------------------------------


def _check_free(place: Path) -> None:
    """Raises FileExistsError unless nothing is there, or an empty directory."""
    if place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
        raise FileExistsError(17, "is there, and not an empty directory; restore to another place", str(place))


@contextlib.contextmanager
def _building(place: Path) -> Generator[Path]:
    """A directory beside the place, held by this process; what a killed restore left there goes, and so does this."""
    files.make_directory(place.parent)
    building = place.with_name(f".{place.name}.ringmain-restore")
    with contextlib.suppress(FileExistsError):
        building.mkdir()
    descriptor = os.open(building, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{place}: another process is restoring to this place") from None
        for left in building.iterdir():
            shutil.rmtree(left)
        try:
            yield building
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _build(plan: _Plan, building: Path, tally: Tally) -> None:
    log, store = building / "log", building / "store"
    log.mkdir()
    side_by_side(lambda item: _copy_log(plan, *item, log, tally), plan.logs)
    if plan.manifest is not None:
        store.mkdir()
        with Manifest(store, plan.backup.log_id) as manifest:  # first: it refuses tables of which nothing is known
            manifest.commit(plan.manifest)
        side_by_side(lambda file: _copy_table(plan, file, store, tally), plan.tables)
    if plan.cut is not None:
        append_kept(log, plan.cut)


def _copy_table(plan: _Plan, file: ListedFile, store: Path, tally: Tally) -> None:
    path = plan.repository.find(file)
    with _opened(path) as descriptor, _whole(path, file.file_bytes):
        _compare(path, file.crc32c, copy_file(descriptor, file.file_bytes, store / file.base_name, tally))


def _copy_log(plan: _Plan, path: Path, end: int, log: Path, tally: Tally) -> None:
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


def _prove(plan: _Plan, building: Path, progress: Progress | None, size_bytes: int) -> Mapping[str, int]:
    """Read all of the store as it was built. Returns each topic's last sequence. Raises BackupDamaged."""

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(size_bytes + size_bytes * done // max(1, total), 2 * size_bytes)

    if plan.manifest is None:
        found = [Finding.of(problem, building / "log") for problem in examine(building / "log", told).problems]
    else:
        found = verify_store(building, progress=told).findings
    for finding in found:
        name = finding.path.name
        folder = next((file.folder for file in plan.backup.files if file.base_name == name), plan.backup.log_folder)
        raise BackupDamaged(plan.repository.folder(folder) / name, finding.offset, finding.expected, finding.found)
    last = {name: topic.next_sequence - 1 for name, topic in log_ends(list_files(building / "log")).items()}
    if last != {name: plan.last.get(name, 0) for name in last}:
        raise StorageError(f"{plan.repository.path}: the log was restored up to {last}, not up to {plan.last}")
    return last


def _put_in_place(plan: _Plan, building: Path, place: Path) -> None:
    """Move archived files to where they belong, have everything on the disk, and give the store its name."""
    archive = building / "archive"
    for file in plan.backup.files:
        path = building / "log" / file.base_name
        if file.name.startswith("archive/") and path.exists() and path.name < plan.logs[-1][0].name:
            archive.mkdir(exist_ok=True)
            files.move_file(path, archive / path.name)
    for directory in (archive, building / "log", building / "store", building):
        if directory.is_dir():
            files.sync_directory(directory)
    files.rename_file(building, place)
    files.sync_directory(place.parent)
