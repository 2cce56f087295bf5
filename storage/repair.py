"""Making a damaged log usable again: what is valid stays readable, what is not is given up and written down as lost.

1. Nothing is destroyed: a damaged file goes to `lost+found` beside the log, whole, before another takes its name.
2. A file is replaced at once, by a rename. Killed at any instant, repair leaves a log that repair can finish.
3. A torn tail is not damage, and stays for the next writer to cut off.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import _log
from .damage import plan
from .drafts import Draft, Lost, read_header
from .errors import StorageError
from .files import lock_directory, sync_directory
from .log_files import file_path, list_files
from .recovery import examine
from .schema import Schema
from .unfinished_cut import LOST_AND_FOUND, finish_cut

__all__ = [
    "LOST_AND_FOUND",
    "TEMPORARY",
    "LostRecords",
    "RepairReport",
    "RepairedFile",
    "gaps",
    "keep_copy",
    "repair",
    "repair_held",
    "set_aside",
]

TEMPORARY = "spare-repair"  # a name that the next writer clears away
MOVED = re.compile(r"moved-(\d{10})\.log")


@dataclass(frozen=True, slots=True)
class RepairedFile:
    """A file that was replaced. copy: the damaged one, whole; None where the file was missing.

    damaged: the bytes given up, as (first, one behind the last) in the file.
    """

    path: Path
    copy: Path | None
    what: str
    damaged: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class LostRecords:
    """Consecutive records of one topic that are gone: `first` is the first one's sequence.

    at_most: nothing tells how many there were at the log's end; so many sequences will not be used again.
    """

    topic: str
    first: int
    count: int
    path: Path
    at_most: bool


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did. `str()` of it is for people. set_aside: files in lost+found that were no part of the log."""

    directory: Path
    files: tuple[RepairedFile, ...] = ()
    lost: tuple[LostRecords, ...] = ()
    set_aside: tuple[Path, ...] = ()
    renamed: tuple[Path, ...] = ()

    @property
    def lost_count(self) -> int:
        return sum(item.count for item in self.lost)

    def __str__(self) -> str:
        if not (self.files or self.set_aside or self.renamed):
            return f"{self.directory}: nothing is damaged, and nothing was changed"
        lines = [f"{self.directory}: repaired; {self.lost_count} records are lost"]
        lines += [f"  {path.name}: got its right name back" for path in self.renamed]
        for file in self.files:
            places = ", ".join(f"{first} to {behind - 1}" for first, behind in file.damaged)
            given_up = f"; bytes {places} were given up" if places else ""
            kept = f"; the damaged file is {file.copy.parent.name}/{file.copy.name}" if file.copy is not None else ""
            lines.append(f"  {file.path.name}: {file.what}{given_up}{kept}")
        for item in self.lost:
            count = f"at most {item.count} records" if item.at_most else f"{item.count} records"
            lines.append(
                f"  {item.path.name}: topic {item.topic!r} lost {count}, {item.first} to {item.first + item.count - 1}"
            )
        lines += [
            f"  {path.parent.name}/{path.name}: set aside, nothing in it belongs to the log" for path in self.set_aside
        ]
        return "\n".join(lines)


def repair(directory: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> RepairReport:
    """Give up what is damaged in a log, so that it opens again. Does nothing to a sound one.

    progress: called with (bytes looked at, bytes in all) while the log is read.
    Raises LogLocked while a writer lives; StorageError where the log, or a part of it, cannot be repaired;
    FormatMismatch for files of another version; OSError.
    """
    directory = Path(directory)
    lock = lock_directory(directory, take_over=False, to_write=False)
    try:
        return repair_held(directory, None, progress)
    finally:
        os.close(lock)


def repair_held(
    directory: Path,
    archive: Path | None,
    progress: Callable[[int, int], None] | None = None,
    declared: Mapping[int, Schema] | None = None,
    log_id: int = 0,
) -> RepairReport:
    """What `repair` does, where the caller holds the directory's lock.

    archive: the directory of the log's oldest files, repaired as a part of it; it may be missing. declared, log_id: as for `plan`.
    """
    finish_cut(directory)
    (directory / TEMPORARY).unlink(missing_ok=True)
    renamed, strange = _give_names_back(directory, archive)
    if archive is not None and archive.is_dir():
        (archive / TEMPORARY).unlink(missing_ok=True)
        more_renamed, more_strange = _give_names_back(archive, directory)
        renamed, strange = more_renamed + renamed, more_strange + strange
    if not examine(directory, progress, archive).problems:
        return RepairReport(directory, set_aside=strange, renamed=renamed)
    first_here = min((number for number, _ in list_files(directory)), default=0)
    drafts, strangers, names = plan(directory, archive, declared, log_id)
    files: list[RepairedFile] = []
    lost: list[LostRecords] = []
    for draft in drafts:
        if draft.changed:
            archived = archive is not None and draft.header.file_number < first_here
            files.append(_replace(archive if archive is not None and archived else directory, draft))
            lost += _records(files[-1].path, draft, names)
    strange += tuple(set_aside(path) for path in strangers)
    for problem in examine(directory, archive=archive).problems:
        raise StorageError(
            f"{directory}: not all of the damage could be repaired; the damaged files are in {LOST_AND_FOUND}. {problem}"
        ) from problem
    return RepairReport(directory, tuple(files), tuple(lost), strange, renamed)


def _records(path: Path, draft: Draft, names: Mapping[int, str]) -> list[LostRecords]:
    entries = [lost for region in draft.regions for lost in region.lost] + draft.reserved
    return [LostRecords(names[lost.topic], lost.first, lost.count, path, lost.at_most) for lost in entries]


# --- replacing a file --------------------------------------------------------------------------------------------------


def _replace(directory: Path, draft: Draft) -> RepairedFile:
    """Put a file as it should be in the place of the damaged one, which is kept in lost+found."""
    path = file_path(directory, draft.header.file_number)
    temporary = directory / TEMPORARY
    with temporary.open("wb") as file:
        file.write(_content(draft))
        file.truncate(max(file.tell(), draft.size_bytes))
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o600)
    copy = keep_copy(path) if path.exists() else None
    temporary.rename(path)
    sync_directory(directory)
    what = [draft.header_wrong] if draft.header_wrong else []
    if draft.patches:
        what.append("a wrong byte in the declaration of a topic was put right")
    if any(region.slots for region in draft.regions):
        what.append("declarations of topics were written again")
    if draft.regions and draft.path is not None:
        what.append("frames were damaged")
    if any(region.end - region.room < draft.header.start_bytes for region in draft.regions):
        what.append("the declaration of a topic without records is gone")
    places = tuple((region.start, region.end) for region in draft.regions)
    return RepairedFile(path, copy, ", ".join(what), places)


def _content(draft: Draft) -> bytes:
    """The file's bytes: what is valid at its old place, declarations and gaps in the places between."""
    data = bytearray(draft.load().data[: draft.end])
    data.extend(bytes(draft.end - len(data)))
    start_position, epoch = draft.header.start_position, draft.header.epoch
    for region in draft.regions:
        at = region.start
        for slot in region.slots:
            data[at : at + slot.frame_bytes] = _log.encode_frame(
                _log.FRAME_TOPIC,
                slot.json,
                position=start_position + at,
                epoch=epoch,
                frame_bytes=slot.frame_bytes,
                topic=slot.topic.number,
                first_sequence=slot.topic.next_sequence,
                first_timestamp_ns=slot.topic.last_timestamp_ns,
                row_bytes=slot.topic.schema.row_bytes,
            )
            at += slot.frame_bytes
        data[at : region.end] = gaps(start_position + at, epoch, region.end - at, region.lost)
    if draft.reserved:
        needed = _log.FRAME_HEADER_BYTES + len(draft.reserved) * _log.LOST_DTYPE.itemsize
        data += gaps(start_position + draft.end, epoch, needed, draft.reserved)
    return bytes(data)


def gaps(position: int, epoch: int, size_bytes: int, lost: list[Lost]) -> bytes:
    """Gap frames that fill exactly so many bytes; the first one names what is lost."""
    out: list[bytes] = []
    entries = np.array([(item.first, item.count, item.topic, 0) for item in lost], _log.LOST_DTYPE)
    while size_bytes:
        frame_bytes = min(size_bytes, _log.GROUP_BYTES_MAX)
        if 0 < size_bytes - frame_bytes < _log.FRAME_HEADER_BYTES:
            frame_bytes -= _log.FRAME_HEADER_BYTES
        frame = _log.encode_frame(
            _log.FRAME_GAP,
            entries.tobytes(),
            position=position,
            epoch=epoch,
            frame_bytes=frame_bytes,
            row_count=len(entries),
        )
        out.append(frame)
        position, size_bytes, entries = position + frame_bytes, size_bytes - frame_bytes, entries[:0]
    return b"".join(out)


# --- names -------------------------------------------------------------------------------------------------------------


def _give_names_back(directory: Path, other: Path | None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Undo renames: a file's header says which it is. Returns the files renamed, and those that turned out to be copies.

    other: a directory that holds files of the same log.
    """
    strange: list[Path] = []
    for number, path in list_files(directory):
        header, _ = read_header(path)
        if header is not None and header.file_number != number:
            if other is not None and _is_file(file_path(other, header.file_number), header.file_number):
                strange.append(set_aside(path))
                continue
            waiting = directory / f"moved-{header.file_number:010d}.log"
            if waiting.exists():
                strange.append(set_aside(waiting))
            path.rename(waiting)
    renamed: list[Path] = []
    for waiting in sorted(directory.iterdir()):
        match = MOVED.fullmatch(waiting.name)
        if not match:
            continue
        path = file_path(directory, int(match[1]))
        if path.exists() and read_header(path)[0] is not None:
            strange.append(set_aside(waiting))
            continue
        if path.exists():
            strange.append(set_aside(path))
        waiting.rename(path)
        renamed.append(path)
    if renamed or strange:
        sync_directory(directory)
    return tuple(renamed), tuple(strange)


def _is_file(path: Path, number: int) -> bool:
    header = read_header(path)[0] if path.exists() else None
    return header is not None and header.file_number == number


def set_aside(path: Path) -> Path:
    """Move a file into lost+found, and return where."""
    copy = keep_copy(path)
    path.unlink()
    sync_directory(path.parent)
    return copy


def keep_copy(path: Path) -> Path:
    """Put the whole file into lost+found, once, and return where. A link is enough, since files are only ever replaced."""
    folder = path.parent / LOST_AND_FOUND
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)
    copy, count = folder / path.name, 0
    while copy.exists():
        if copy.samefile(path):
            return copy
        count += 1
        copy = folder / f"{path.name}.{count}"
    try:
        os.link(path, copy)
    except OSError:  # a file system without links
        partial = folder / "partial"
        shutil.copyfile(path, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(copy)
    sync_directory(folder)
    return copy
