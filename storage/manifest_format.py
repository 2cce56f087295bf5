"""Every byte of a manifest, pure: a header, then records, each the JSON of an edit. All numbers are little-endian.

    offset  type    header, 64 bytes
         0  8 bytes magic, RMAINMAN
         8  u32     version, 1
        12  u32     byte_order, 0x01020304
        16  u64     log_id of the log that the store belongs to
        24  u64     generation: how often the manifest has been written anew, the first is 1
        32  i64     created_ns, since the Unix epoch
        40  u32     header_bytes, 64
        44  u32     CRC-32C of bytes 0 to 43
        48  u64     durable_bytes: so much of the file was on the disk when this was written; the end of a record
        56  u32     0
        60  u32     CRC-32C of log_id, generation and bytes 48 to 59

         0  u32     record: payload_bytes
         4  u32     CRC-32C of log_id, generation, the record's offset in the file (u64 each), payload_bytes, payload
         8          payload, a JSON object

1. A record's CRC is right in one place of one file only, so a record that was repeated, moved or left over is none.
2. Each record is synced before the next is written; then durable_bytes is, which goes to the disk with the next sync and
   so may be behind, never ahead. It lies in the first sector, which a disk writes whole or not at all.
3. Records end at the first place where none is valid. It is damage if durable_bytes lies behind it, or a valid record
   (which by 2 was written when everything before it was synced). Otherwise it is a torn tail that nobody relied upon.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from ._log import crc32c
from .errors import Corruption, FormatMismatch
from .mend import mend

__all__ = [
    "DURABLE_OFFSET",
    "HEADER_BYTES",
    "Header",
    "Records",
    "decode_header",
    "encode_durable",
    "encode_header",
    "encode_record",
    "mend_record",
    "scan",
    "scan_past_damage",
]

MAGIC, VERSION, BYTE_ORDER = b"RMAINMAN", 1, 0x01020304
FIXED = struct.Struct("<8sIIQQqI")  # and its CRC
DURABLE = struct.Struct("<QI")  # and its CRC
CRC = struct.Struct("<I")
RECORD = struct.Struct("<II")
FILE, PLACE = struct.Struct("<QQ"), struct.Struct("<QI")
DURABLE_OFFSET = FIXED.size + CRC.size
HEADER_BYTES = DURABLE_OFFSET + DURABLE.size + CRC.size
PAYLOAD_BYTES_MAX = (1 << 32) - 1
assert (DURABLE_OFFSET, HEADER_BYTES) == (48, 64)


@dataclass(frozen=True, slots=True)
class Header:
    """What a manifest says of itself."""

    log_id: int
    generation: int
    created_ns: int

    @property
    def seed(self) -> int:
        """What the CRCs of this file begin with."""
        return crc32c(FILE.pack(self.log_id, self.generation))


@dataclass(frozen=True, slots=True)
class Records:
    """The payloads of the valid records with their offsets, where they end, and how many bytes follow that are none."""

    payloads: list[tuple[int, bytes]]
    end: int
    torn_bytes: int


def encode_header(header: Header, durable_bytes: int) -> bytes:
    fixed = FIXED.pack(MAGIC, VERSION, BYTE_ORDER, header.log_id, header.generation, header.created_ns, HEADER_BYTES)
    return fixed + CRC.pack(crc32c(fixed)) + encode_durable(header, durable_bytes)


def encode_durable(header: Header, durable_bytes: int) -> bytes:
    """What stands at DURABLE_OFFSET."""
    slot = DURABLE.pack(durable_bytes, 0)
    return slot + CRC.pack(crc32c(slot, header.seed))


def encode_record(header: Header, offset: int, payload: bytes) -> bytes:
    """A record to stand at `offset`. Raises ValueError for a payload of 4 GiB or more."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a record of {len(payload)} bytes is too long; at most {PAYLOAD_BYTES_MAX}")
    return RECORD.pack(len(payload), _record_crc(header.seed, offset, payload)) + payload


def mend_record(data: bytes, offset: int, header: Header) -> bytes | None:
    """The payload of a record of which one byte is wrong, or None. data: all that can belong to it, from its first byte on."""
    if len(data) <= RECORD.size:
        return None
    said, crc = RECORD.unpack_from(data)
    for size in dict.fromkeys((len(data) - RECORD.size, said)):
        payload = data[RECORD.size : RECORD.size + size]
        if len(payload) == size and (found := mend(payload, crc, crc32c(PLACE.pack(offset, size), header.seed))):
            return found
    return None


def decode_header(data: bytes, path: Path) -> tuple[Header, int]:
    """Return the header at the beginning of `data`, and durable_bytes.

    Raises Corruption, or FormatMismatch for a sound header of another version or byte order.
    """
    if len(data) < HEADER_BYTES:
        raise Corruption(path, len(data), f"a header of {HEADER_BYTES} bytes", f"the end of the file at {len(data)}")
    magic, version, byte_order, log_id, generation, created_ns, header_bytes = FIXED.unpack_from(data)
    if magic != MAGIC:
        raise Corruption(path, 0, MAGIC, magic)
    _check_crc(path, 0, crc32c(data[: FIXED.size]), data, FIXED.size)
    for what, expected, found in (
        ("version", VERSION, version),
        ("byte order", BYTE_ORDER, byte_order),
        ("header_bytes", HEADER_BYTES, header_bytes),
    ):
        if found != expected:
            raise FormatMismatch(path, what, expected, found)
    header = Header(log_id, generation, created_ns)
    slot = data[DURABLE_OFFSET : DURABLE_OFFSET + DURABLE.size]
    _check_crc(path, DURABLE_OFFSET, crc32c(slot, header.seed), data, DURABLE_OFFSET + DURABLE.size)
    return header, DURABLE.unpack(slot)[0]


def scan(data: bytes, start: int, header: Header, durable_bytes: int, path: Path) -> Records:
    """Return the records of a manifest from a record's place on.

    data: the file from byte `start` to its end. Raises Corruption where there is damage, see 3.
    """
    payloads: list[tuple[int, bytes]] = []
    at, seed = 0, header.seed
    while (payload := _record_at(data, at, start, seed)) is not None:
        payloads.append((start + at, payload))
        at += RECORD.size + len(payload)
    if start + at < durable_bytes or _find_record(data, at + 1, start, seed) is not None:
        raise Corruption(path, start + at, *_what_is_wrong(data, at, start, seed, durable_bytes))
    return Records(payloads, start + at, len(data) - at)


def scan_past_damage(data: bytes, start: int, header: Header) -> tuple[list[tuple[int, bytes]], list[tuple[int, int]]]:
    """Every valid record from a record's place on, with its offset, and the places, (first, one behind the last), between them."""
    payloads: list[tuple[int, bytes]] = []
    holes: list[tuple[int, int]] = []
    at: int | None = 0
    while at is not None and at < len(data):
        payload = _record_at(data, at, start, header.seed)
        if payload is not None:
            payloads.append((start + at, payload))
            at += RECORD.size + len(payload)
            continue
        found = _find_record(data, at + 1, start, header.seed)
        holes.append((start + at, start + (len(data) if found is None else found)))
        at = found
    return payloads, holes


def _record_crc(seed: int, offset: int, payload: bytes) -> int:
    return crc32c(payload, crc32c(PLACE.pack(offset, len(payload)), seed))


def _record_at(data: bytes, at: int, start: int, seed: int) -> bytes | None:
    """The payload of the record at data[at], or None where no valid one begins."""
    if len(data) - at < RECORD.size:
        return None
    payload_bytes, crc = RECORD.unpack_from(data, at)
    if payload_bytes > len(data) - at - RECORD.size:
        return None
    payload = data[at + RECORD.size : at + RECORD.size + payload_bytes]
    return payload if _record_crc(seed, start + at, payload) == crc else None


def _find_record(data: bytes, at: int, start: int, seed: int) -> int | None:
    """Where the first valid record at or behind data[at] begins: eight bytes before a brace."""
    brace = data.find(b"{", at + RECORD.size)
    while brace >= 0:
        if _record_at(data, brace - RECORD.size, start, seed) is not None:
            return brace - RECORD.size
        brace = data.find(b"{", brace + 1)
    return None


def _what_is_wrong(data: bytes, at: int, start: int, seed: int, durable_bytes: int) -> tuple[str, str]:
    """What was expected at data[at], and what was found."""
    size = start + len(data)
    if len(data) - at < RECORD.size:
        return f"{durable_bytes} bytes, which were on the disk", f"the end of the file at {size}"
    payload_bytes, crc = RECORD.unpack_from(data, at)
    room = len(data) - at - RECORD.size
    if payload_bytes > room:
        return f"a record of at most {room} bytes up to the end of the file", f"{payload_bytes} bytes"
    found = _record_crc(seed, start + at, data[at + RECORD.size : at + RECORD.size + payload_bytes])
    return f"a record with the CRC {crc:#010x}", f"{found:#010x}"


def _check_crc(path: Path, offset: int, computed: int, data: bytes, place: int) -> None:
    """Raises Corruption at `offset` unless data[place] has the CRC `computed`."""
    (stored,) = CRC.unpack_from(data, place)
    if stored != computed:
        raise Corruption(path, offset, f"the CRC {stored:#010x}", f"{computed:#010x}")
