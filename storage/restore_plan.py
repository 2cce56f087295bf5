"""What can be restored from a folder of backups, and what has to be copied to restore a store as of a row or a time.

A backup's tables hold the rows up to its checkpoints, and nothing of what those replaced; its log goes on in its folder. So from a
backup any place can be restored that lies at or behind its checkpoints, as far as that log goes. The newest such backup is taken.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from .backup_list import BackupDamaged, BackupList, ListedFile
from .backup_repository import Repository
from .backup_source import log_end
from .errors import Corruption, FormatMismatch, StorageError
from .log_cut import LogCut, cuts_at_rows, cuts_at_time, log_ends, plan_cut
from .log_files import LogTopic, file_path, list_files, open_file, starting_topics
from .manifest_state import Edit

__all__ = ["NotRestorable", "Restorable", "RestorePlan", "plan_restore", "restorable", "unreadable"]


class NotRestorable(StorageError):
    """The backups do not reach to what is wanted."""


@dataclass(frozen=True, slots=True)
class Restorable:
    """What can be restored from one backup and the log behind it: of each topic any of these sequences, and any of these times.

    topics: (lowest, highest) by name; 0 is no row at all. from_ns, to_ns: since the Unix epoch, both included.
    """

    backup: BackupList
    topics: Mapping[str, tuple[int, int]]
    from_ns: int
    to_ns: int

    def __str__(self) -> str:
        topics = ", ".join(f"{name} {lowest} to {highest}" for name, (lowest, highest) in sorted(self.topics.items()))
        return f"from backup {self.backup.number} on {topics}, times {_moment(self.from_ns)} to {_moment(self.to_ns)}"


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What to copy. logs: the log's files, oldest first, with how many bytes of each. cut: what then becomes of the log.

    last: the sequence that each topic ends with. passed_over: by number, what is wrong with the lists of newer backups, whose rows
    the log has.
    """

    repository: Repository
    backup: BackupList
    manifest: Edit | None
    logs: list[tuple[Path, int]]
    cut: LogCut | None
    last: Mapping[str, int]
    passed_over: Mapping[int, StorageError] = field(default_factory=dict[int, StorageError])

    @property
    def tables(self) -> list[ListedFile]:
        return [file for file in self.backup.files if not file.is_log]

    @property
    def listed_logs(self) -> dict[str, ListedFile]:
        return {file.base_name: file for file in self.backup.files if file.is_log}

    @property
    def size_bytes(self) -> int:
        return sum(end for _, end in self.logs) + sum(file.file_bytes for file in self.tables)


def restorable(target: str | os.PathLike[str]) -> list[Restorable]:
    """What each backup in a folder can be restored to, oldest first. Those that are `unreadable` are left out.

    Raises FileNotFoundError, BackupDamaged, FormatMismatch; what is wrong with a list only where no list can be read.
    """
    with _telling_of_backups():
        return _Planner(Repository.open(Path(target))).restorable()


def unreadable(target: str | os.PathLike[str]) -> dict[int, StorageError]:
    """By number, what is wrong with the lists of backups that cannot be read. Raises FileNotFoundError."""
    return _by_number(Repository.open(Path(target)).read()[1])


def plan_restore(
    repository: Repository, to: int | Mapping[str, int] | None, time_ns: int | None, number: int | None
) -> RestorePlan:
    """Find what `restore` needs, whose arguments these are. Raises as it does."""
    if to is not None and time_ns is not None:
        raise ValueError("to, time: one of them, not both")
    with _telling_of_backups():
        return _Planner(repository, number).plan(to, time_ns)


class _Planner:
    """The backups up to a number, and how far the log behind each goes."""

    def __init__(self, repository: Repository, number: int | None = None) -> None:
        self.repository, self.number = repository, number
        self.all, problems = repository.read()
        self.unreadable = _by_number(problems)
        if number in self.unreadable:
            raise self.unreadable[number]
        if problems and not self.all:
            raise problems[0]
        self.chosen = [item for item in self.all if number is None or item.number <= number]
        if number is not None and not any(item.number == number for item in self.chosen):
            words = {item.number: str(item.number) for item in self.all}
            words |= {item: f"{item} (which cannot be read)" for item in self.unreadable}
            there = ", ".join(words[item] for item in sorted(words))
            raise NotRestorable(f"{repository.path}: no backup {number}; there are {there}")
        self._ends: dict[int, Mapping[str, LogTopic]] = {}

    def restorable(self) -> list[Restorable]:
        return [self._reach(item) for item in self.chosen]

    def plan(self, to: int | Mapping[str, int] | None, time_ns: int | None) -> RestorePlan:
        if to is None and time_ns is None:
            return self._plan_all(self.chosen[-1])
        rows = self._rows_named(to) if to is not None else dict[str, int]()
        reasons: list[str] = []
        for item in reversed(self.chosen):
            log, ends = self._log_of(item), self._ends_of(item)
            if time_ns is not None:
                if time_ns > self._reach(item).to_ns:
                    continue
                cuts = cuts_at_time(log, time_ns)
            else:
                if any(name not in ends or sequence >= ends[name].next_sequence for name, sequence in rows.items()):
                    continue
                cuts = cuts_at_rows(log, rows)
            reasons = [
                f"topic {name!r} would end with {cuts.get(name, 0)}, and backup {item.number} has it in tables up to {topic.lowest}"
                for name, topic in item.topics.items()
                if cuts.get(name, 0) < topic.lowest
            ]
            if not reasons:
                return self._plan_cut(item, log, cuts)
        earliest = {item.log_folder: item for item in reversed(self.chosen)}
        reach = "; ".join(str(self._reach(item)) for _, item in sorted(earliest.items()))
        left_out = ", ".join(str(item) for item in self.unreadable if self.number is None or item <= self.number)
        raise NotRestorable(
            f"{self.repository.path}: this cannot be restored{': ' if reasons else ''}{', '.join(reasons)}. What can be: {reach}"
            + (f". What cannot be read was left out: backup {left_out}" if left_out else "")
        )

    def _newer_unreadable(self, newest: BackupList) -> Mapping[int, StorageError]:
        """Newer backups whose lists are damaged and whose log is that of `newest`, so that nothing is lost without them.

        Raises what is wrong with one that has a log of its own, or may have: an older one must not pass for all there is.
        """
        newer = {number: self.unreadable[number] for number in sorted(self.unreadable) if number > newest.number}
        for number, problem in reversed(newer.items()):
            if isinstance(problem, FormatMismatch) or list_files(self.repository.folder(number)):
                problem.args = (f"{problem}. {self._way_out(newest)}",)
                raise problem
        return newer

    def _way_out(self, newest: BackupList) -> str:
        """What can be had instead of a newer backup."""
        try:
            reach = self._reach(newest)
        except StorageError:  # its log is damaged as well
            return f"`--backup {newest.number}` restores only what that one held"
        topics = ", ".join(f"{name} {highest}" for name, (_, highest) in sorted(reach.topics.items()))
        return f"`--time {_moment(reach.to_ns)}` restores up to {topics}; `--backup {newest.number}` only what that one held"

    def _plan_all(self, item: BackupList) -> RestorePlan:
        """All that there is, or just what the backup holds that was asked for by its number."""
        if self.number is None:
            passed_over = self._newer_unreadable(item)
            last = {name: topic.next_sequence - 1 for name, topic in self._ends_of(item).items()}
            logs = _with_ends(self._log_of(item))
            return RestorePlan(self.repository, item, self._manifest(item, last), logs, None, last, passed_over)
        listed = [(self.repository.find(file), file.file_bytes) for file in item.files if file.is_log]
        last = {name: topic.last for name, topic in item.topics.items()}
        return RestorePlan(self.repository, item, item.manifest, sorted(listed), None, last)

    def _plan_cut(self, item: BackupList, log: list[tuple[int, Path]], cuts: Mapping[str, int]) -> RestorePlan:
        cut = plan_cut(log, cuts)
        logs = [(path, end) for path, end in _with_ends(log) if int(path.stem) < cut.number]
        logs.append((file_path(self.repository.folder(item.log_folder), cut.number), cut.offset))
        names = starting_topics(open_file(logs[-1][0], cut.number))
        return RestorePlan(self.repository, item, self._manifest(item, names), logs, cut, cuts)

    def _rows_named(self, to: int | Mapping[str, int]) -> Mapping[str, int]:
        topics = sorted({name for item in self.chosen for name in item.topics})
        if isinstance(to, int):
            if len(topics) != 1:
                raise ValueError(
                    f"to: a sequence for each topic is expected, TOPIC=SEQUENCE; the topics are {', '.join(topics)}"
                )
            to = {topics[0]: to}
        for name, sequence in to.items():
            if sequence < 0:
                raise ValueError(f"to: a sequence from 0 on is expected for topic {name!r}, got {sequence}")
            if name not in topics:
                raise ValueError(f"to: no topic {name!r}; there are {', '.join(topics)}")
        return to

    def _manifest(self, item: BackupList, logged: Container[str]) -> Edit | None:
        """The backup's manifest, and of later topics those that are in the log as it is restored."""
        if item.manifest is None:
            return None
        topics = dict(item.manifest.topics)
        for other in self._with_same_log(item):
            if other.manifest is not None:
                later = {name: about for name, about in other.manifest.topics.items() if name in logged}
                topics = {**later, **topics}
        return msgspec.structs.replace(item.manifest, topics=topics)

    def _reach(self, item: BackupList) -> Restorable:
        ends = self._ends_of(item)
        times = [other.created_ns for other in self._with_same_log(item)]
        return Restorable(
            item,
            {
                name: (item.topics[name].lowest if name in item.topics else 0, topic.next_sequence - 1)
                for name, topic in ends.items()
            },
            max((topic.lowest_timestamp_ns for topic in item.topics.values()), default=0),
            max(*times, *(topic.last_timestamp_ns for topic in ends.values())),
        )

    def _with_same_log(self, item: BackupList) -> Iterator[BackupList]:
        return (other for other in self.all if other.log_folder == item.log_folder)

    def _log_of(self, item: BackupList) -> list[tuple[int, Path]]:
        """The log's files from the first that the backup lists on. Raises BackupDamaged where one is missing."""
        listed = sorted(self.repository.find(file) for file in item.files if file.is_log)
        log = [(number, path) for number, path in list_files(listed[0].parent) if path >= listed[0]]
        there = {path for _, path in log}
        for path in listed:
            if path not in there:
                raise BackupDamaged(path, None, "a file that the backup lists", "no file")
        return log

    def _ends_of(self, item: BackupList) -> Mapping[str, LogTopic]:
        """Where each topic stands at the end of the backup's log."""
        if item.log_folder not in self._ends:
            self._ends[item.log_folder] = log_ends(self._log_of(item))
        return self._ends[item.log_folder]


def _by_number(problems: Iterable[StorageError]) -> dict[int, StorageError]:
    """The backups whose lists have these problems."""
    return {
        int(Path(problem.path).parent.name): problem
        for problem in problems
        if isinstance(problem, BackupDamaged | FormatMismatch)
    }


def _with_ends(log: list[tuple[int, Path]]) -> list[tuple[Path, int]]:
    """The files with how many of their bytes count."""
    ends = [open_file(path, number).header.previous_end for number, path in log[1:]]
    ends.append(log_end(open_file(log[-1][1], log[-1][0]), None))
    return [(path, end) for (_, path), end in zip(log, ends, strict=True)]


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
