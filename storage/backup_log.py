"""The copy of a log in a folder of a repository: made once, and then growing as the log grows.

1. Bytes of the copy never change, they are only followed by more: so a backup's list may say how many of them are its own.
2. The copy has no hole between its files. It goes on only from a log whose beginning is the same, byte for byte: a log that
   went back (a power cut, a store that was restored and written) gets a copy of its own.
3. The checksums of frames tell where the newest file ends; what a killed copier left behind that end is written over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from . import files
from .backup_source import SourceLog, find_log_file
from .checked_copy import CHUNK_BYTES, Tally, copy_file, link_or_copy, naming
from .errors import Corruption
from .log_files import file_path, list_files, open_file, whole_batches
from .recovery import describe

__all__ = ["LogCopy", "LogWentBack"]


class LogWentBack(Exception):
    """The log is not one with the copy as its beginning, or files between the two have expired."""


class LogCopy:
    """The log's files in a folder. number, end: its newest file, and how many bytes of that are frames; 0, 0 where it is empty.

    checksums: by number, of files that were copied whole. Raises Corruption where the newest file's header is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.checksums = folder, dict[int, int]()
        self.number, self.end = max(((number, 0) for number, _ in list_files(folder)), default=(0, 0))
        if self.number:
            _, self.end = whole_batches(*open_file(file_path(folder, self.number), self.number).scan())

    def check_beginning(self, log: SourceLog) -> None:
        """Raises LogWentBack unless the newest file here is the beginning of that one."""
        if log.number != self.number or log.end < self.end:
            raise LogWentBack
        copy = files.open_file_to_read(file_path(self.folder, self.number))
        try:
            for at in range(0, self.end, CHUNK_BYTES):
                count = min(CHUNK_BYTES, self.end - at)
                if files.read_from(copy, at, count) != files.read_from(log.descriptor, at, count):
                    raise LogWentBack
        finally:
            os.close(copy)

    def take(self, log: SourceLog, tally: Tally, *, link: bool) -> int:
        """Copy what is new of the newest file, or a whole one, which is the next. Returns how many bytes that were.

        link: where the file is in the archive, and so never changes, give it a second name instead.
        """
        if log.number == self.number:
            new_bytes = log.end - self.end
            if new_bytes:
                self._append(log, tally)
                self.checksums.pop(log.number, None)
        else:
            assert log.number == self.number + 1 or not self.number
            new_bytes = self.take_whole(log, tally, link=link)
        self.number, self.end = log.number, log.end
        return new_bytes

    def take_whole(self, log: SourceLog, tally: Tally, *, link: bool) -> int:
        """Copy what counts of a file that is not here. Returns how many bytes that are."""
        target = file_path(self.folder, log.number)
        if link and log.place == "archive":
            self.checksums[log.number] = link_or_copy(log.descriptor, log.path, log.end, target, tally)
        else:
            self.checksums[log.number] = copy_file(log.descriptor, log.end, target, tally)
        files.sync_directory(self.folder)
        return log.end

    def follow(self, directory: Path) -> int:
        """Copy what a store's log has grown by since the last time. Returns how many bytes that were.

        Raises LogWentBack, Corruption.
        """
        total = 0
        while True:
            with _found(directory, self.number) as log, _found(directory, self.number + 1) as following:
                if log is None:
                    raise LogWentBack
                frames, log.end = log.file.scan(self.end, following.file.header.previous_end if following else 2**63)
                if following is None:
                    _, log.end = whole_batches(frames, log.end)
                else:
                    header, stop = log.file.header, following.file.header.previous_end
                    if stop < self.end or following.file.header.start_position != header.start_position + stop:
                        raise LogWentBack
                    if log.end != stop:
                        raise Corruption(log.path, log.end, "a valid frame", describe(log.file, log.end))
                total += self.take(log, Tally(None, 0), link=False)
                if following is None:
                    return total
                _, following.end = whole_batches(*following.file.scan())
                total += self.take(following, Tally(None, 0), link=False)

    def _append(self, log: SourceLog, tally: Tally) -> None:
        copy = files.open_file_to_change(file_path(self.folder, log.number))
        try:
            for at in range(self.end, log.end, CHUNK_BYTES):
                with naming(log.descriptor):
                    part = files.read_from(log.descriptor, at, min(CHUNK_BYTES, log.end - at))
                with naming(copy):
                    files.write_at(copy, part, at)
                tally.add(len(part))
            with naming(copy):
                files.sync_data(copy)
        finally:
            os.close(copy)


@contextlib.contextmanager
def _found(directory: Path, number: int) -> Generator[SourceLog | None]:
    """A log file of a store, open; None where there is none."""
    try:
        log = find_log_file(directory, number)
    except FileNotFoundError:
        yield None
        return
    try:
        yield log
    finally:
        log.close()
