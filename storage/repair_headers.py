"""Which files a damaged log should have, and where each begins: headers mended, made anew, or made up for missing files.

1. A header that is sound, or has one wrong byte, is believed.
2. One that is not is made anew from the file's own frames, where they fit between the neighbours.
3. A file of which nothing is left gets exactly the positions between its neighbours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from . import _log
from .drafts import Draft, declared_topics, read_header
from .errors import StorageError
from .log_files import FileHeader, chain_files

__all__ = ["draft_files"]

HEADER = _log.LOG_HEADER_BYTES


def draft_files(directory: Path, archive: Path | None = None, log_id: int = 0) -> tuple[list[Draft], list[Path]]:
    """A draft with the right header for every file from the oldest to the newest, and the files that are no part of the log.

    archive: where the oldest files are, if they are not in the directory. log_id: the log's, where it is known.
    Raises StorageError where missing files leave open what was where, FormatMismatch for another version.
    """
    return _Survey(directory, archive, log_id).resolve()


class _Survey:
    """Gives every file number from the oldest to the newest a header."""

    def __init__(self, directory: Path, archive: Path | None, log_id: int) -> None:
        self.directory, self.archive, self.log_id = directory, archive, log_id
        self.drafts: dict[int, Draft] = {}
        self.headless: dict[int, tuple[Path, str]] = {}  # what was found, and what is wrong with it
        self.foreign: set[int] = set()  # of those, the ones with a sound header of something else
        self.strangers: list[Path] = []

    def resolve(self) -> tuple[list[Draft], list[Path]]:
        paths = chain_files(self.directory, self.archive)
        for number, path in paths:
            header, wrong = read_header(path)
            if header is not None and header.file_number == number:
                self.drafts[number] = Draft(header, path, path.stat().st_size, wrong)
            elif header is not None:
                self.headless[number] = (path, f"the file says that it is number {header.file_number}")
                self.foreign.add(number)
            else:
                self.headless[number] = (path, wrong)
        self._find_own_log()
        for number in sorted(self.headless):
            self._rebuild(number)
        known = sorted(self.drafts)
        if not known:
            self.strangers += [path for path, _ in self.headless.values()]
            return [], self.strangers
        for number, (path, _) in self.headless.items():
            if number < known[0] or number > known[-1] + (number not in self.foreign):
                self.strangers.append(path)  # nothing in it, and its place is before or beyond all that there is
        if known[-1] + 1 in self.headless.keys() - self.foreign:
            self._replace_newest(known[-1] + 1)
        known = sorted(self.drafts)
        for before, after in pairwise(known):
            if after != before + 1:
                self._replace_between(before, after)
        return [self.drafts[number] for number in sorted(self.drafts)], self.strangers

    def _find_own_log(self) -> None:
        """Files of another log have no place here: set them aside as if they held nothing."""
        ids = Counter(draft.header.log_id for draft in self.drafts.values())
        if len(ids) > 1:
            own = ids.most_common(1)[0][0]
            for number, draft in list(self.drafts.items()):
                if draft.header.log_id != own and draft.path is not None:
                    del self.drafts[number]
                    self.headless[number] = (draft.path, "the file belongs to another log")
                    self.foreign.add(number)

    def _rebuild(self, number: int) -> None:
        """Make a header from the file's own frames and its neighbours, where they agree."""
        path, wrong = self.headless[number]
        data = path.read_bytes()
        evidence = _newest_frames(data)
        before, after = self.drafts.get(number - 1), self.drafts.get(number + 1)
        if evidence is None or number in self.foreign:
            return
        start, epoch = evidence
        if after is not None and after.header.start_position != start + after.header.previous_end:
            return  # what is valid here is left from an earlier use of the file
        if before is not None and start < before.header.start_position + HEADER:
            return
        like = before or after or next(iter(self.drafts.values()), None)
        header = FileHeader(
            # For a log's only file any will do, unless somebody else knows it.
            log_id=like.header.log_id if like else self.log_id or path.stat().st_mtime_ns | 1,
            file_number=number,
            start_position=start,
            previous_end=start - before.header.start_position if before else 0,
            epoch=epoch,
            created_ns=after.header.created_ns if after else path.stat().st_mtime_ns,  # too young: kept rather too long
            file_bytes=max(len(data), like.header.file_bytes if like else 0),
            start_bytes=HEADER,
            bus=like.header.bus if like else "",
        )
        self.drafts[number] = Draft(header, path, len(data), wrong)
        del self.headless[number]

    def _replace_newest(self, number: int) -> None:
        """Nothing of the newest file is left, but its name: it was there."""
        before = self.drafts[number - 1]
        path, wrong = self.headless.pop(number)
        end = _lenient_end(before)
        header = replace(
            before.header,
            file_number=number,
            start_position=before.header.start_position + end,
            previous_end=end,
            epoch=before.header.epoch + 1,
            created_ns=path.stat().st_mtime_ns,
            start_bytes=HEADER,
        )
        self.drafts[number] = Draft(header, None, path.stat().st_size, f"{wrong}, and nothing valid is in the file")

    def _replace_between(self, before_number: int, after_number: int) -> None:
        """Make up files that are missing, or of which nothing is left, so that they fill exactly the positions between."""
        before, after = self.drafts[before_number], self.drafts[after_number]
        count = after_number - before_number - 1
        begin = before.header.start_position + _lenient_end(before)
        smallest = HEADER + sum(slot.frame_bytes for slot in declared_topics(after))
        starts = [begin + index * smallest for index in range(count)]
        if after.header.previous_end:
            starts[-1] = after.header.start_position - after.header.previous_end
        else:  # itself made anew, when nothing told where the file before it began
            after.header = replace(after.header, previous_end=after.header.start_position - starts[-1])
        edges = [before.header.start_position, *starts, after.header.start_position]
        if any(later - earlier < HEADER for earlier, later in pairwise(edges)):
            raise StorageError(
                f"{self.directory}: the {count} files between {before_number:010d}.log and {after_number:010d}.log cannot be "
                "replaced: their neighbours do not tell where they began. Restore them from a copy"
            )
        for index, number in enumerate(range(before_number + 1, after_number)):
            path, wrong = self.headless.pop(number, (None, "the file is missing"))
            header = replace(
                after.header,
                file_number=number,
                start_position=edges[index + 1],
                previous_end=edges[index + 1] - edges[index],
                epoch=before.header.epoch,
                start_bytes=HEADER,
            )
            size_bytes = path.stat().st_size if path is not None else 0
            self.drafts[number] = Draft(header, None, size_bytes, wrong)


def _newest_frames(data: bytes) -> tuple[int, int] | None:
    """(start position, epoch) according to the newest frames in a file; those of an earlier use have lower positions."""
    newest: tuple[int, int] | None = None
    at = data.find(b"RMF1", HEADER)
    while at >= 0:
        position, epoch = (
            int.from_bytes(data[at + 16 : at + 24], "little"),
            int.from_bytes(data[at + 36 : at + 40], "little"),
        )
        if position >= at and (newest is None or position - at > newest[0]):
            _, end = _log.scan(data, start_position=position - at, epoch=epoch, offset=at)
            if end > at:
                newest = position - at, epoch
        at = data.find(b"RMF1", at + 1)
    return newest


def _lenient_end(draft: Draft) -> int:
    """Where a file ends that has no sound successor: behind the last valid frame in it."""
    file = draft.load()
    _, end = file.scan()
    while (found := file.find_frame(end)) is not None:
        _, end = file.scan(found)
    return max(end, draft.header.start_bytes)
