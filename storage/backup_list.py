"""What a backup is: the list of its files with their checksums, and what a restore must know of the store. The bytes are these.

    RMAINBAK 1 <CRC-32C of all that follows the first line, 8 hexadecimal digits> <bytes that follow the first line>\\n
    a JSON object, the fields of BackupList

The list is written last, so a folder without one holds no backup. The prose is FORMAT.md; change both together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import msgspec

from ._log import crc32c
from .decodable import decodable
from .errors import FormatMismatch, StorageError
from .manifest_state import Edit

__all__ = [
    "LIST_NAME",
    "PLACE",
    "BackupDamaged",
    "BackupList",
    "ListedFile",
    "TopicRange",
    "decode_list",
    "encode_list",
]

LIST_NAME = "LIST"
VERSION = 1
HEADER = re.compile(rb"RMAINBAK ([1-9]\d{0,8}) ([0-9a-f]{8}) (\d{1,12})\n")
HEADER_BYTES_MAX = 64
PLACE = re.compile(r"(store/\d{10}\.sst|(log|archive)/\d{10}\.log)")


class BackupDamaged(StorageError):
    """A file of a backup that is not what was backed up. offset: the byte where a check failed, None for all of the file."""

    def __init__(self, path: Path, offset: int | None, expected: object, found: object) -> None:
        self.path, self.offset, self.expected, self.found = str(path), offset, expected, found
        place = "" if offset is None else f" at byte {offset}"
        super().__init__(
            f"{self.path}: damaged{place}: expected {expected}, found {found}. `ringmain verify` says what else is; restore from "
            "another backup, and make a full one while the store is there"
        )


class ListedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file. name: its place in a store's directory. folder: the backup in whose folder the file is.

    file_bytes: so much of the file counts, and has the checksum; a log file may go on behind it.
    """

    name: str
    folder: int
    file_bytes: int
    crc32c: int

    def __post_init__(self) -> None:
        if not PLACE.fullmatch(self.name):
            raise ValueError(f"a file cannot be {self.name!r}")
        if self.folder < 1 or self.file_bytes < 1:
            raise ValueError(f"{self.name} cannot have {self.file_bytes} bytes in folder {self.folder}")

    @property
    def base_name(self) -> str:
        return PurePosixPath(self.name).name

    @property
    def is_log(self) -> bool:
        return self.name.endswith(".log")


class TopicRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far back a topic can be restored, and where it stood. lowest: rows up to this sequence are in tables, or expired.

    last: the newest. The times are of these two rows, 0 where there is none.
    """

    lowest: int
    lowest_timestamp_ns: int
    last: int
    last_timestamp_ns: int


@decodable
class BackupList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backup. number: its folder's. log_id: of the log, and so of the store, that was backed up. source: where that was.

    is_full: took nothing from an earlier backup. created_ns: when it began; what was acknowledged by then is in it.
    manifest: what makes the store's manifest from an empty one; None where there is only a log.
    """

    number: int
    log_id: int
    created_ns: int
    source: str
    is_full: bool
    manifest: Edit | None
    topics: Mapping[str, TopicRange]
    files: tuple[ListedFile, ...]

    def __post_init__(self) -> None:
        runs = {file.folder for file in self.files if file.is_log}
        if len(runs) != 1:
            raise ValueError(f"the log's files cannot lie in {len(runs)} folders")
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a file is listed twice")

    @property
    def log_folder(self) -> int:
        """The folder of the log's files, where it may go on."""
        return next(file.folder for file in self.files if file.is_log)

    @property
    def file_bytes(self) -> int:
        return sum(file.file_bytes for file in self.files)


def encode_list(backup: BackupList) -> bytes:
    body = msgspec.json.encode(backup) + b"\n"
    return b"RMAINBAK %d %08x %d\n" % (VERSION, crc32c(body), len(body)) + body


def decode_list(data: bytes, path: Path, number: int) -> BackupList:
    """Read a list that is in the folder with that number. Raises BackupDamaged, FormatMismatch."""
    header = HEADER.match(data[:HEADER_BYTES_MAX])
    if header is None:
        raise BackupDamaged(path, 0, "a line RMAINBAK, version, CRC and size", data[:24])
    if int(header[1]) != VERSION:
        raise FormatMismatch(path, "version", VERSION, int(header[1]))
    body = data[header.end() :]
    if len(body) != int(header[3]):
        raise BackupDamaged(path, len(data), f"{int(header[3])} bytes behind the first line", len(body))
    if crc32c(body) != int(header[2], 16):
        raise BackupDamaged(path, header.end(), f"the CRC {header[2].decode()}", f"{crc32c(body):08x}")
    try:
        backup = msgspec.json.decode(body, type=BackupList)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BackupDamaged(path, header.end(), "a backup's list", error) from error
    if backup.number != number:
        raise BackupDamaged(path, header.end(), f"the number of its folder, {number}", backup.number)
    return backup
