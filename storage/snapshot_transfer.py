"""Sending a data directory to another host while it is written, and building it there: what is between the two is the caller's.

1. The sender stores nothing: it holds the files open, tables and log as of one instant, and reads them as they are asked for.
2. The receiver builds a directory beside the place it is for. It proves every checksum of tables and log, and that all belongs
   together, before that gets its name: so no other checksum is needed from end to end.
3. A listing comes from another host: nothing in it is believed before it is checked.
4. What arrives does not stay in the page cache: little of it is read soon, and on a virtual machine a fresh page of memory may
   cost more than all else that is done with its bytes. So what is proven comes from the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator
from pathlib import Path

import msgspec

from . import files
from .backup_list import PLACE
from .backup_source import Source, allow_many_files, find_log_file
from .built_place import building, check_free, put_in_place
from .checked_copy import Progress
from .decodable import decodable
from .errors import Corruption, StorageError
from .log_files import list_files, open_file
from .manifest import Manifest
from .manifest_state import Edit
from .recovery import Contents, examine
from .store_verify import Finding, prove_store

__all__ = [
    "ReceivedSnapshot",
    "Snapshot",
    "SnapshotFile",
    "SnapshotList",
    "decode_snapshot_list",
    "encode_snapshot_list",
    "receive_snapshot",
    "snapshot_files",
]

FILES_FEW = 200  # more, and the process may need leave to open so many


class SnapshotFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file. name: its place in a data directory, as log/0000000001.log. file_bytes: so much of it counts."""

    name: str
    file_bytes: int

    def __post_init__(self) -> None:
        if not PLACE.fullmatch(self.name):
            raise ValueError(f"a file cannot be {self.name!r}")
        if self.file_bytes < 1:
            raise ValueError(f"{self.name} cannot have {self.file_bytes} bytes")


@decodable
class SnapshotList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What there is to be sent. manifest: what makes the store's manifest from an empty one; None where there is only a log.

    files: tables first, then the log, newest first. Numbered from 0 for `read` and `write`.
    """

    log_id: int
    manifest: Edit | None
    files: tuple[SnapshotFile, ...]

    def __post_init__(self) -> None:
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a file is listed twice")
        logs, archived = (
            [file.name for file in self.files if file.name.startswith(place)] for place in ("log/", "archive/")
        )
        if not logs:
            raise ValueError("there is no log among the files")
        if archived and Path(max(archived)).name >= Path(min(logs)).name:
            raise ValueError("the archive's files are not all older than the log's")
        tables = {f"store/{info.number:010d}.sst" for info in (self.manifest.added if self.manifest else ())}
        if tables != {file.name for file in self.files if file.name.startswith("store/")}:
            raise ValueError("the tables are not those that the manifest names")

    @property
    def size_bytes(self) -> int:
        return sum(file.file_bytes for file in self.files)


def encode_snapshot_list(listing: SnapshotList) -> bytes:
    return msgspec.json.encode(listing)


def decode_snapshot_list(data: bytes) -> SnapshotList:
    """Raises StorageError for what is no such list."""
    try:
        return msgspec.json.decode(data, type=SnapshotList)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StorageError(f"not the list of a snapshot: {error}") from error


# --- sending ------------------------------------------------------------------------------------------------------------


class Snapshot:
    """A data directory at one instant, its files held open. Any thread may read."""

    def __init__(self, directory: Path, listing: SnapshotList, descriptors: list[int]) -> None:
        self.directory, self.listing, self._descriptors = directory, listing, descriptors

    def read(self, number: int, offset: int, bytes_max: int) -> bytes:
        """The next bytes of a file; none behind its end. Raises Corruption where the disk has fewer than there were, OSError."""
        file = self.listing.files[number]
        count = max(0, min(bytes_max, file.file_bytes - offset))
        data = files.read_from(self._descriptors[number], offset, count)
        if len(data) < count:
            raise Corruption(self.directory / file.name, offset + len(data), f"{file.file_bytes} bytes", "its end")
        return data


@contextlib.contextmanager
def snapshot_files(data_dir: Path) -> Generator[Snapshot]:
    """Take hold of a store, or of a directory with a log only, while its writer goes on. Holds all that was acknowledged by now.

    The log goes back as far as it is kept, the archive's files included. What the writer gives up meanwhile takes room on the disk
    until this ends. Raises FileNotFoundError where there is neither store nor log, Corruption, FormatMismatch, OSError.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Source.open(data_dir))
        if sum(len(list_files(path)) for path in (data_dir / "log", data_dir / "archive") if path.is_dir()) > FILES_FEW:
            allow_many_files()
        held = [
            (f"store/{source.table_path(info.number).name}", info.file_bytes, source.tables[info.number])
            for info in source.tables_named()
        ]
        held += [(f"{log.place}/{log.path.name}", log.end, log.descriptor) for log in reversed(source.logs)]
        header = source.logs[0].file.header
        for number in range(header.file_number - 1, 0, -1):
            try:
                log = find_log_file(data_dir, number)
            except FileNotFoundError:
                break  # no more is kept
            stack.callback(os.close, log.descriptor)
            held.append((f"{log.place}/{log.path.name}", header.previous_end, log.descriptor))
            header = log.file.header
        listing = SnapshotList(
            log_id=source.log_id,
            manifest=source.state.as_edit() if source.state is not None else None,
            files=tuple(SnapshotFile(name=name, file_bytes=size_bytes) for name, size_bytes, _ in held),
        )
        yield Snapshot(data_dir, listing, [descriptor for _, _, descriptor in held])


# --- receiving ----------------------------------------------------------------------------------------------------------


class ReceivedSnapshot:
    """A directory that is being built from what arrives. Write every file from its first byte to its last, then `finish`."""

    def __init__(self, place: Path, beside: Path, listing: SnapshotList) -> None:
        self.place, self.listing, self._beside = place, listing, beside
        self.finished = False
        self.written = [0] * len(listing.files)  # bytes of each file that are here
        self._descriptors: dict[int, int] = {}
        for folder in sorted({file.name.partition("/")[0] for file in listing.files} | {"log"}):
            (beside / folder).mkdir()
        if listing.manifest is not None:
            (beside / "store").mkdir(exist_ok=True)
            with Manifest(
                beside / "store", listing.log_id
            ) as manifest:  # first: it refuses tables that it does not know
                try:
                    manifest.commit(listing.manifest)
                except ValueError as error:
                    raise StorageError(f"{place}: not the manifest of a snapshot: {error}") from error

    def write(self, number: int, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of a file; one thread for each file at a time. Raises ValueError for more than it has, OSError."""
        file = self.listing.files[number]
        at, data = self.written[number], memoryview(data)
        if at + len(data) > file.file_bytes:
            raise ValueError(f"{file.name}: has {file.file_bytes} bytes, and now {at + len(data)} are given")
        if number not in self._descriptors:
            self._descriptors[number] = files.allocate(self._beside / file.name, file.file_bytes)
        files.write_at(self._descriptors[number], data, at)
        self.written[number] = at + len(data)
        if self.written[number] == file.file_bytes:
            descriptor = self._descriptors.pop(number)
            try:
                files.sync_data(descriptor)
                files.leave_cache(descriptor)
            finally:
                os.close(descriptor)

    def finish(self, progress: Progress | None = None) -> Contents:
        """Prove everything, and give the directory its name. Returns what is in the log, which need not be proven again.

        progress: called with (bytes proven, bytes in all). Raises Corruption where something is not as it was written; StorageError
        where something is missing, or does not belong to the rest.
        """
        for file, written in zip(self.listing.files, self.written, strict=True):
            if written != file.file_bytes:
                raise StorageError(f"{self.place}: {file.name}: {written} of {file.file_bytes} bytes have arrived")
        log, archive = self._beside / "log", self._beside / "archive"
        number, path = list_files(log)[-1]
        if (log_id := open_file(path, number).header.log_id) != self.listing.log_id:
            raise StorageError(f"{self.place}: the log is {log_id:#x}, and {self.listing.log_id:#x} is listed")
        if self.listing.manifest is None:
            contents = examine(log, progress, archive, _leave_cache)
            findings = [Finding.of(problem, log) for problem in contents.problems]
        else:
            found, contents = prove_store(self._beside, progress, _leave_cache)
            findings = list(found)
        for finding in findings:
            place = self.place / finding.path.relative_to(self._beside)
            raise Corruption(place, finding.offset or 0, finding.expected, finding.found)
        assert contents is not None
        put_in_place(self._beside, self.place)
        self.finished = True
        return contents.moved_to(self.place / "log")

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _leave_cache(path: Path) -> None:
    descriptor = files.open_file_to_read(path)
    try:
        files.leave_cache(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def receive_snapshot(place: Path, listing: SnapshotList) -> Generator[ReceivedSnapshot]:
    """Build a data directory, which must not be there yet, or be empty. Without `finish` nothing of it stays.

    Raises FileExistsError; StorageError where another process does the same, and for a manifest that cannot be; OSError,
    ENOSPC before anything is written where the disk has not room enough.
    """
    place = place.absolute()
    check_free(place)
    with building(place) as beside:
        free_bytes = shutil.disk_usage(beside).free
        if free_bytes < listing.size_bytes:
            raise OSError(errno.ENOSPC, f"{listing.size_bytes} bytes are needed, and {free_bytes} are free", str(place))
        receiving = ReceivedSnapshot(place, beside, listing)
        try:
            yield receiving
        finally:
            receiving.close()
        if not receiving.finished:
            shutil.rmtree(beside)
