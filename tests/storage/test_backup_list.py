"""The list of a backup: its bytes as they are on disks in the field, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from ringmain.storage import FormatMismatch, Schema
from ringmain.storage._log import crc32c
from ringmain.storage.backup_list import BackupDamaged, BackupList, ListedFile, TopicRange, decode_list, encode_list
from ringmain.storage.manifest_state import Edit, TopicInfo
from ringmain.storage.version import TableInfo

GOLDEN = Path(__file__).parent / "golden" / "backup-list-v1"
BOOK = Schema("book", {"key": "u8", "number": "u8"}, key=("key",))

LISTED = BackupList(
    number=2,
    log_id=0x1234567890ABCDEF,
    created_ns=1_700_000_000_000_000_000,
    source="/srv/data",
    is_full=False,
    manifest=Edit(
        topics={"book": TopicInfo(schema=BOOK.to_json().decode(), keep_versions=True)},
        added=[
            TableInfo(
                number=7,
                topic="book",
                level=1,
                file_bytes=12_288,
                row_count=4,
                tombstone_count=1,
                sequence_min=1,
                sequence_max=5,
                timestamp_min_ns=1_600_000_000_000_000_000,
                timestamp_max_ns=1_600_000_000_000_000_004,
                key_min=(1,),
                key_max=(9,),
            )
        ],
        checkpoints={"book": 5},
        next_number=8,
    ),
    topics={
        "book": TopicRange(
            lowest=5, lowest_timestamp_ns=1_600_000_000_000_000_004, last=6, last_timestamp_ns=1_600_000_000_000_000_005
        )
    },
    files=(
        ListedFile(name="archive/0000000003.log", folder=1, file_bytes=4296, crc32c=0xE3069283),
        ListedFile(name="log/0000000004.log", folder=1, file_bytes=4392, crc32c=0),
        ListedFile(name="store/0000000007.sst", folder=2, file_bytes=12_288, crc32c=0xFFFFFFFF),
    ),
)


def with_line(body: bytes, version: int = 1) -> bytes:
    return b"RMAINBAK %d %08x %d\n" % (version, crc32c(body), len(body)) + body


def test_a_list_of_the_first_version_is_read_and_written_byte_for_byte() -> None:
    data = GOLDEN.read_bytes()
    assert decode_list(data, GOLDEN, 2) == LISTED
    assert encode_list(LISTED) == data
    assert LISTED.log_folder == 1


@pytest.mark.parametrize("at", range(0, GOLDEN.stat().st_size, 29))
def test_a_wrong_byte_anywhere_is_found(at: int) -> None:
    data = bytearray(GOLDEN.read_bytes())
    data[at] ^= 1
    with pytest.raises((BackupDamaged, FormatMismatch)):
        decode_list(bytes(data), GOLDEN, 2)


def test_a_list_in_another_folder_or_cut_off_is_damaged_and_a_newer_one_is_refused() -> None:
    data = GOLDEN.read_bytes()
    with pytest.raises(BackupDamaged, match="expected the number of its folder, 3, found 2"):
        decode_list(data, GOLDEN, 3)
    for end in (0, 5, data.index(b"\n") + 1, len(data) - 1):
        with pytest.raises(BackupDamaged):
            decode_list(data[:end], GOLDEN, 2)
    body = data[data.index(b"\n") + 1 :]
    with pytest.raises(FormatMismatch, match="version: expected 1, found 2"):
        decode_list(with_line(body, version=2), GOLDEN, 2)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"store/0000000007.sst", b"store/../../secret", "a file cannot be"),
        (b'store/0000000007.sst","folder":2', b'log/0000000004.log","folder":1', "twice"),
        (b'"folder":1,"file_bytes":4296', b'"folder":9,"file_bytes":4296', "2 folders"),
        (b'"file_bytes":4296', b'"file_bytes":0', "cannot have 0 bytes"),
        (b'"is_full":false', b'"is_full":false,"colour":1', "colour"),
        (b'"is_full":false,', b"", "is_full"),
        (b'"row_count":4', b'"row_count":0', "cannot have"),
    ],
)
def test_what_cannot_be_is_not_believed_though_its_checksum_is_right(old: bytes, new: bytes, words: str) -> None:
    data = GOLDEN.read_bytes()
    body = data[data.index(b"\n") + 1 :]
    assert old in body
    with pytest.raises(BackupDamaged, match=re.escape(words)):
        decode_list(with_line(body.replace(old, new)), GOLDEN, 2)
    assert msgspec.json.decode(body)["number"] == 2
