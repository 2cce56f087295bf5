"""Finding the one wrong byte behind a wrong CRC-32C, where there is only one: for headers and schemas, which nothing else
on the disk may repeat.

A changed byte changes the checksum in a way that depends on the byte's place and on the difference only; so the place can be
searched from the end backwards in one pass. A false find is as rare as 255 * bytes / 2^32: rare enough for a few KiB whose
content is then checked as well, and not for rows.
"""

from __future__ import annotations

from . import _log

__all__ = ["mend", "mend_frame", "mend_page"]

MEND_BYTES_MAX = 64 << 10  # of a frame
_CRC_AT = _log.LOG_HEADER_BYTES - 4
_SHIFT = [_log.crc32c(bytes([byte])) ^ _log.crc32c(b"\0") for byte in range(256)]  # what one byte's difference makes
_BY_TOP = {entry >> 24: index for index, entry in enumerate(_SHIFT)}
_DIFFERENCE = {entry: index for index, entry in enumerate(_SHIFT)}


def mend_page(data: bytes) -> bytes | None:
    """A page of 4096 bytes that ends with its checksum, with its one wrong byte put right, or None."""
    if len(data) < _log.LOG_HEADER_BYTES:
        return None
    covered = mend(data[:_CRC_AT], int.from_bytes(data[_CRC_AT : _CRC_AT + 4], "little"))
    return None if covered is None else covered + _log.crc32c(covered).to_bytes(4, "little")


def mend_frame(data: bytes) -> bytes | None:
    """A whole frame with its one wrong byte put right, or None. data: from its first byte to its last."""
    if not 64 <= len(data) <= MEND_BYTES_MAX:
        return None
    covered = mend(data[8:], int.from_bytes(data[4:8], "little"))
    return None if covered is None else b"RMF1" + _log.crc32c(covered).to_bytes(4, "little") + covered


def mend(data: bytes, stored: int, crc: int = 0) -> bytes | None:
    """Bytes whose checksum should be `stored`, with their one wrong byte put right; as they are where none is wrong. Or None.

    crc: of what the checksum covers before them, which is right.
    """
    difference = _log.crc32c(data, crc) ^ stored
    if sum(1 for shift in (0, 8, 16, 24) if difference >> shift & 0xFF) <= 1:
        return data  # nothing wrong, or one byte of the checksum itself
    for place in range(len(data) - 1, -1, -1):
        if difference in _DIFFERENCE:
            mended = bytearray(data)
            mended[place] ^= _DIFFERENCE[difference]
            return bytes(mended)
        low = _BY_TOP[difference >> 24]  # take back one step of the checksum over a byte that is right
        difference = ((difference ^ _SHIFT[low]) << 8 & 0xFFFFFFFF) | low
    return None
