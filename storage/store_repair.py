"""Making a damaged store usable again: what is provably good is kept, what is not is given up and listed.

1. Nothing is deleted. A damaged file goes to `lost+found` beside it, whole, and its good rows into a new one. A file is only
   ever replaced by a rename, so repair can be killed at any instant, and run again.
2. What the log and its archive still hold of the lost rows is taken from there. A row that is lost otherwise lies within the
   keys and sequences of an entry in `lost`; older rows of these keys may show again.
3. In the end the whole store is verified, and anything left is an error.
4. Which topics are kept by key only the manifest tells. Without it a bus's topic of which there is no table counts as logged only:
   the next writer that keeps it takes it in from the log, whereas in the manifest it would hold the log for ever. A remark tells of
   it, and of its rows before the log's: they have expired, or their tables are lost too.

The log's own repair is repair.py's, a topic's tables are topic_repair.py's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import msgspec

from . import files as disk
from .errors import StorageError
from .log_files import LogTopic, list_files
from .log_restart import continue_log
from .manifest_format import HEADER_BYTES, Header, encode_header, encode_record
from .manifest_reader import MANIFEST_NAME
from .manifest_state import State, TopicInfo
from .recovery import Contents, examine
from .repair import LOST_AND_FOUND, RepairReport, keep_copy, repair_held
from .repaired import Change, LostRows, Notes, Repaired
from .schema import Schema
from .store_survey import give_table_names_back, list_tables, survey
from .store_verify import verify_store
from .table_files import NAME, TableFiles
from .table_salvage import read_table_file
from .topic_repair import TopicRepair

__all__ = ["Change", "LostRows", "Repaired", "repair_store"]

BLOCK_BYTES = 4096
DRY_RUN = "repair-dry-run"
LOST_LOG_SEQUENCES = 1 << 32  # given up where a log is gone: more than any log holds behind its tables


def repair_store(
    directory: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    keep_versions: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Repaired:
    """Give up what is damaged in a store, so that it opens again. Does nothing to a sound one.

    directory: a Store's, which nobody writes to. dry_run: repair a copy made of links instead, and throw that away; it takes the
    room of the files that would be written. keep_versions: topics of which all versions are kept, for where the manifest is lost.
    progress: called with (bytes looked at, bytes in all) while the log is read. Takes memory for a damaged table's rows.
    Raises FileNotFoundError where there is no store, LogLocked while a writer lives, FormatMismatch for files of another version,
    StorageError where it, or a part of it, cannot be repaired, OSError.
    """
    directory = Path(directory).absolute()
    store, log = directory / "store", directory / "log"
    if not store.is_dir() or not any(
        NAME.fullmatch(path.name) or path.name == MANIFEST_NAME for path in store.iterdir()
    ):
        raise FileNotFoundError(2, "holds no store", str(directory))
    kept = frozenset(keep_versions)
    if not dry_run:
        disk.make_directory(log)
    with _locked(log):
        if not dry_run:
            return _Repair(directory, kept, progress).run(directory, dry_run=False)
        with _links(directory) as copy:
            return _Repair(copy, kept, progress).run(directory, dry_run=True)


@contextlib.contextmanager
def _locked(log: Path) -> Generator[None]:
    if not log.is_dir():  # then no writer can live
        yield
        return
    lock = disk.lock_directory(log, take_over=False, to_write=False)
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _links(directory: Path) -> Generator[Path]:
    """A copy of the store made of links, removed in the end. Repair never changes a file in place."""
    copy = directory / DRY_RUN
    shutil.rmtree(copy, ignore_errors=True)
    try:
        for part in ("store", "log", "archive"):
            if (directory / part).is_dir():
                shutil.copytree(
                    directory / part, copy / part, copy_function=_link, ignore=shutil.ignore_patterns("LOCK")
                )
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


class _Repair:
    def __init__(
        self, directory: Path, keep_versions: frozenset[str], progress: Callable[[int, int], None] | None
    ) -> None:
        self.directory, self.keep_versions, self.progress = directory, keep_versions, progress
        self.store, self.log, self.archive = directory / "store", directory / "log", directory / "archive"
        self.notes = Notes(directory)
        give_table_names_back(self.store, self.notes)
        found = survey(directory)
        self.log_id, self.evidence = found.log_id, found.evidence
        self.numbers = itertools.count(found.next_number)
        self.files = TableFiles(self.store, self.log_id, BLOCK_BYTES)
        self.topics: dict[str, TopicRepair] = {}

    def run(self, named: Path, *, dry_run: bool) -> Repaired:
        """named: the directory as it is told to the caller."""
        report = self._repair_log()
        self._doubt_manifest()
        self._find_topics()
        self._tell_of_log(report)
        self._pass_holes()
        for number, name in self._wanted():
            self.topics[name].keep_or_rebuild(number, self.evidence.tables.get(number))
        all_accounted = self._all_accounted()
        for topic in self.topics.values():
            if not self.evidence.is_whole:
                topic.look_for_unknown_loss(all_accounted=all_accounted)
            topic.arrange()
        self._end_log()
        if self.evidence.wrong or self._is_changed():
            self._write_manifest()
        for path, what in self.notes.bad:
            self.notes.set_aside(path, what)
        if self.notes.changes:
            for finding in verify_store(self.directory).findings:
                raise StorageError(
                    f"{named}: not all of the damage could be repaired; the damaged files are in {LOST_AND_FOUND}. {finding}"
                )
        notes = self.notes
        return Repaired(
            named, dry_run, tuple(notes.changes), tuple(notes.lost), tuple(notes.remarks), notes.taken_again_count
        )

    # --- the log ------------------------------------------------------------------------------------------------------

    def _repair_log(self) -> RepairReport:
        """Make log and archive readable."""
        self.contents = Contents(self.log)
        if not self.log.is_dir() or not list_files(self.log):
            if not self.archive.is_dir():
                return RepairReport(self.log)
            report = repair_held(self.archive, None, self.progress, log_id=self.log_id)
            self.contents = examine(self.archive)
            return report
        topics = self.evidence.topics.values()  # which the log learnt of in this order, if it has no others
        declared = {number: Schema.from_json(info.schema.encode()) for number, info in enumerate(topics)}
        report = repair_held(self.log, self.archive, self.progress, declared, self.log_id)
        self.contents = examine(self.log, archive=self.archive)
        return report

    def _tell_of_log(self, report: RepairReport) -> None:
        for path in report.renamed:
            self.notes.change(path, "got its right name back")
        for item in report.files:
            self.notes.change(item.path, item.what, item.copy)
        for path in report.set_aside:
            self.notes.change(path, "set aside, nothing in it belongs to the log")
        for lost in report.lost:
            last, path = lost.first + lost.count - 1, self.notes.relative(lost.path)
            checkpoint = self.topics[lost.topic].checkpoint if lost.topic in self.topics else 0
            if lost.first <= checkpoint:
                self.notes.remarks.append(
                    f"{path}: topic {lost.topic!r}: sequences {lost.first} to {min(last, checkpoint)} are gone from the history; "
                    "the tables hold what of it was not replaced"
                )
            if last > checkpoint:
                first = max(lost.first, checkpoint + 1)
                self.notes.lost.append(LostRows(lost.topic, path, None, first, last, last - first + 1, lost.at_most))

    def _holes(self) -> dict[str, tuple[int, Path]]:
        """Topics of which rows behind the checkpoint are not in the log's folder: where it begins, and in which file."""
        checkpoints = (
            self.evidence.checkpoints if not self.topics else {n: t.checkpoint for n, t in self.topics.items()}
        )
        begins = self._beginnings()
        return {name: place for name, place in begins.items() if place[0] > checkpoints.get(name, place[0]) + 1}

    def _beginnings(self) -> dict[str, tuple[int, Path]]:
        """By topic, the sequence that it begins with in the log's folder, and in which file."""
        found: dict[str, tuple[int, Path]] = {}
        for item in self.contents.files if self.contents.directory == self.log else ():
            if item.path.parent == self.log:
                for name, begins in item.begins.items():
                    found.setdefault(name, (begins, item.path))
        return found

    def _pass_holes(self) -> None:
        """Where log files behind the tables are missing, see what the archive has, and go on from where the log begins."""
        for name, (begins, path) in self._holes().items():
            self.topics[name].take_missing(path, begins - 1)

    def _doubt_manifest(self) -> None:
        """A manifest that is older than the tables beside it does not tell which there should be."""
        if not self.evidence.is_whole:
            return
        here = {number for number, _ in list_tables(self.store)}
        newer = any(number >= self.evidence.next_number for number in here)
        if newer and (self._holes() or not here >= self.evidence.tables.keys()):
            self.evidence.is_whole, self.evidence.wrong = False, "it is older than the tables beside it"

    def _end_log(self) -> None:
        """See that the log goes on behind the tables. Where it does not, its end is lost, and nobody knows how much that was."""
        known = self.contents.topics
        ends = {name: known[name].next_sequence if name in known else 0 for name in self.topics}
        is_there = self.log.is_dir() and bool(list_files(self.log))
        if is_there and all(ends[name] > topic.checkpoint for name, topic in self.topics.items()):
            return
        begins = {name: max(ends[name], topic.checkpoint + 1) for name, topic in self.topics.items()}
        topics = [
            LogTopic(
                0,
                topic.schema,
                topic.checkpoint + 1,
                max((one.info.timestamp_max_ns for one in topic.placed), default=0),
            )
            for topic in self.topics.values()
        ]
        next_sequences = {name: first + LOST_LOG_SEQUENCES for name, first in begins.items()}
        path = continue_log(self.log, self.archive, self.log_id, topics, next_sequences)
        self.notes.change(path, "made, to go on behind the tables")
        for name, first in begins.items():
            relative = self.notes.relative(path)
            self.notes.lost.append(LostRows(name, relative, None, first, next_sequences[name] - 1, None))

    # --- topics and tables --------------------------------------------------------------------------------------------

    def _find_topics(self) -> None:
        """The topics, from the manifest, and where that is not whole from tables and log."""
        infos, checkpoints = dict(self.evidence.topics), dict(self.evidence.checkpoints)
        shadowed: set[str] = set()
        kept = {info.topic for info in self.evidence.tables.values()} | checkpoints.keys() | self.keep_versions
        takes_all = all(not item.header.bus for item in self.contents.files[-1:])  # a Store keeps all that it logs
        for _, path in list_tables(self.store) if not self.evidence.is_whole else ():
            file = read_table_file(path)
            schema = file.schema()
            if file.header is not None and file.header.log_id != self.log_id:
                continue
            if file.header is not None:
                kept.add(file.header.topic)
            elif schema is not None:
                kept.add(schema.name)
            else:
                takes_all = True  # it may be of any topic
            if schema is None or file.footer is None:
                continue
            infos.setdefault(schema.name, TopicInfo(schema=schema.to_json().decode()))
            checkpoints[schema.name] = max(checkpoints.get(schema.name, 0), file.footer.sequence_max)
            shadowed |= {schema.name} if file.footer.shadowed_count else set()
        for name, known in self.contents.topics.items() if not self.evidence.is_whole else ():
            if takes_all or name in infos.keys() | kept:
                infos.setdefault(name, TopicInfo(schema=known.schema.to_json().decode()))
            else:
                self._leave_to_log(name)
        for name, info in infos.items():
            if name not in self.evidence.topics:
                keeps = name in (self.keep_versions or shadowed)
                info = TopicInfo(schema=info.schema, keep_versions=keeps)
                self.notes.remarks.append(
                    f"topic {name!r}: only the manifest told whether its old versions are kept; from now on they are "
                    f"{'kept' if keeps else 'not kept'}"
                )
            self.topics[name] = TopicRepair(
                info,
                Schema.from_json(info.schema.encode()),
                checkpoints.get(name, 0),
                self.files,
                self.log,
                self.archive,
                self.numbers.__next__,
                self.notes,
                manifest_is_whole=self.evidence.is_whole,
            )

    def _leave_to_log(self, name: str) -> None:
        """A topic of the log that nothing else tells of."""
        begins, _ = self._beginnings().get(name, (1, self.log))
        before = (
            f"; its rows up to sequence {begins - 1} have expired, or are lost with the manifest" if begins > 1 else ""
        )
        self.notes.remarks.append(
            f"topic {name!r}: no table has rows of it, so it counts as one that is only logged{before}. A writer that keeps it by "
            "key takes its rows in from the log"
        )

    def _wanted(self) -> list[tuple[int, str]]:
        """The numbers and topics of all tables that there should be, or may be."""
        wanted = {number: info.topic for number, info in self.evidence.tables.items()}
        for number, path in list_tables(self.store) if not self.evidence.is_whole else ():
            if number in wanted or number in self.evidence.removed:
                continue
            file = read_table_file(path)
            schema = file.schema()
            name = file.header.topic if file.header is not None else schema.name if schema is not None else None
            if name in self.topics:
                wanted[number] = name
            else:
                self.notes.bad.append((path, "nothing tells what this table holds"))
        return sorted(wanted.items())

    def _all_accounted(self) -> bool:
        """Whether every table there ever was is known of: it is here, or is known to be gone."""
        known = self.evidence.tables.keys() | self.evidence.removed | {number for number, _ in list_tables(self.store)}
        return self.evidence.next_number > 1 and known >= set(range(1, self.evidence.next_number))

    # --- the manifest -------------------------------------------------------------------------------------------------

    def _is_changed(self) -> bool:
        """Whether the manifest would say something else."""
        tables = {one.number: one for topic in self.topics.values() for one in topic.version.tables()}
        checkpoints = {name: topic.checkpoint for name, topic in self.topics.items() if topic.checkpoint}
        before = {name: sequence for name, sequence in self.evidence.checkpoints.items() if sequence}
        return tables != self.evidence.tables or checkpoints != before

    def _write_manifest(self) -> None:
        """Put a manifest that says how things are now in the place of the one there is."""
        path = self.store / MANIFEST_NAME
        for one, _ in self.notes.bad:
            keep_copy(one)  # while the manifest still names it
        state = State(
            self.log_id,
            {name: topic.info for name, topic in self.topics.items()},
            {name: topic.version for name, topic in self.topics.items()},
            {name: topic.checkpoint for name, topic in self.topics.items()},
            next(self.numbers),
        )
        header = Header(self.log_id, self.evidence.generation + 1, time.time_ns())
        record = encode_record(header, HEADER_BYTES, msgspec.json.encode(state.as_edit()))
        temporary = self.store / f"{MANIFEST_NAME}.{secrets.token_hex(4)}.new"
        descriptor = disk.create_file(temporary)
        try:
            disk.write_at(descriptor, encode_header(header, HEADER_BYTES + len(record)) + record, 0)
            disk.sync_data(descriptor)
        finally:
            os.close(descriptor)
        copy = keep_copy(path) if path.exists() else None
        disk.rename_file(temporary, path)
        disk.sync_directory(self.store)
        wrong = f": {self.evidence.wrong}" if self.evidence.wrong else ""
        self.notes.change(path, f"written anew{wrong}", copy)
