"""Cutting off the end of a data directory's log, as if those rows had never been; they are kept as a small log of their own.

1. Nothing is lost: what is cut off is on the disk in its new place before the log is changed.
2. Killed at any instant, the log is whole, cut or not; a cut that counts already is finished by who opens the log next.
3. No file that stays is written to: the file behind the cut says where the one before ends, as a new writer's does. Its epoch is
   a new one, so nothing that was cut off can pass for a part of the log again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import files
from .checked_copy import Tally, copy_file
from .errors import StorageError
from .log import LOG_FILE_BYTES_MIN, Log
from .log_cut import LogCut, append_kept, plan_cut, rows_behind
from .log_files import LogTopic, file_path, list_files, open_file, starting_topics
from .log_restart import continue_log
from .manifest_reader import read_manifest
from .recovery import Contents, examine
from .unfinished_cut import BUILDING, CUT, finish_cut

__all__ = ["Cut", "cut_tail"]


@dataclass(frozen=True, slots=True)
class Cut:
    """What was set aside. where: the log of its own that has these rows, under their sequences; None where there were none."""

    row_count: int
    where: Path | None


def cut_tail(data_dir: Path, ends: Mapping[str, int]) -> Cut:
    """Cut a data directory's log behind each topic's last sequence to be kept. No writer may be open.

    ends: by topic; one that is not named keeps nothing. What a topic does not have need not be cut.
    What an earlier call was killed over is finished, and not told here: look into `lost+found`.
    Raises LogLocked; Corruption for a damaged log; StorageError where tables hold rows behind the cut, or the log begins behind it;
    OSError, and then nothing is changed, or the next call goes on.
    """
    directory = data_dir / "log"
    if not directory.is_dir():
        return Cut(0, None)
    lock = files.lock_directory(directory, take_over=False)
    try:
        finish_cut(directory)
        contents = examine(directory)
        for problem in contents.problems:
            raise problem
        cuts = {
            name: min(ends.get(name, 0), topic.next_sequence - 1) for name, topic in sorted(contents.topics.items())
        }
        if all(cut == contents.topics[name].next_sequence - 1 for name, cut in cuts.items()):
            return Cut(0, None)
        _check_tables(data_dir / "store", ends)
        _check_beginning(directory, cuts)
        row_count = _make_ready(directory, contents, cuts)
        return Cut(row_count, finish_cut(directory))
    finally:
        os.close(lock)


def _check_tables(store: Path, ends: Mapping[str, int]) -> None:
    try:
        state = read_manifest(store)
    except FileNotFoundError:
        return
    for name, checkpoint in state.checkpoints.items():
        end = ends.get(name, 0)
        tables = [f"table {info.number}" for info in state.versions[name].tables() if info.sequence_max > end]
        if tables or checkpoint > end:
            holds = ", ".join(tables) or "the tables"
            raise StorageError(
                f"{store}: topic {name!r}: the log cannot be cut behind sequence {end}: {holds} have rows up to {checkpoint}"
            )


def _check_beginning(directory: Path, cuts: Mapping[str, int]) -> None:
    number, path = list_files(directory)[0]
    for name, topic in starting_topics(open_file(path, number)).items():
        if cuts[name] < topic.next_sequence - 1:
            raise StorageError(
                f"{directory}: topic {name!r}: the log cannot be cut behind sequence {cuts[name]}: it begins with "
                f"{topic.next_sequence}"
            )


def _make_ready(directory: Path, contents: Contents, cuts: Mapping[str, int]) -> int:
    """Have everything in a folder, on the disk, and then let it count. Returns how many rows are set aside."""
    paths = list_files(directory)
    building = directory / BUILDING
    building.mkdir(mode=0o700)
    try:
        cut = plan_cut(paths, cuts)
        row_count = _save(building, contents, cuts, cut)
        _continue(building, directory, contents, cut)
        files.sync_directory(building)
        files.rename_file(building, directory / CUT)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    files.sync_directory(directory)
    return row_count


def _save(building: Path, contents: Contents, cuts: Mapping[str, int], cut: LogCut) -> int:
    """Make a log of what is cut off, in a folder whose name says when, and what it begins with."""
    topics = [
        replace(topic, next_sequence=cuts[name] + 1)
        for name, topic in sorted(contents.topics.items())
        if topic.next_sequence > cuts[name] + 1
    ]
    folder = building / _name(topics)
    paths = [(number, path) for number, path in list_files(contents.directory) if number >= cut.number]
    row_count = 0
    continue_log(folder, folder / "archive", contents.log_id, topics, {})
    log = Log(folder, [], bus=cut.bus, file_bytes=LOG_FILE_BYTES_MIN)
    try:
        for name, rows, tombstones in rows_behind(paths, cuts):
            if isinstance(rows, int):
                log.close()
                continue_log(folder, folder / "archive", contents.log_id, [], {name: rows})
                log = Log(folder, [], bus=cut.bus, file_bytes=LOG_FILE_BYTES_MIN)
                continue
            log.keep(0)
            log.appender.append(log.topic(name).number, rows, tombstones)
            row_count += len(rows)
    finally:
        log.close()
    (folder / "LOCK").unlink()
    files.sync_directory(folder)
    return row_count


def _name(topics: list[LogTopic]) -> str:
    now_ns = time.time_ns()
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns // 1_000_000_000))
    others = f"-and-{len(topics) - 1}-more" if len(topics) > 1 else ""
    return f"{when}.{now_ns % 1_000_000_000:09d}Z-{topics[0].schema.name}-{topics[0].next_sequence}{others}"


def _continue(building: Path, directory: Path, contents: Contents, cut: LogCut) -> None:
    """Make the files that are to follow the one that is cut, whose beginning they are made behind."""
    before = file_path(building, cut.number)
    descriptor = files.open_file_to_read(file_path(directory, cut.number))
    try:
        copy_file(descriptor, cut.offset, before, Tally(None, 0))
    finally:
        os.close(descriptor)
    topics = sorted(contents.topics.values(), key=lambda topic: topic.number)
    append_kept(building, cut, [topic.schema for topic in topics], contents.epoch + 1)
    before.unlink()
    (building / "LOCK").unlink()
