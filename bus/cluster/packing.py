"""Bytes on their way to other hosts, compressed where that makes them smaller: LZ4 blocks, whose size is known beforehand.

It costs a processor less than the servers, their disks and the network save. Rows are transposed first: the first bytes of all,
then their second ones, and so on. What seldom changes from row to row then lies side by side, and LZ4 has less to do: an exchange's
orders, trades and quotes become 3.8 to 17 times smaller, and as they stand 2.7 to 8 times, in about the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from lz4 import block as lz4

from ..errors import BusError

__all__ = ["BadPacking", "pack", "pack_rows", "unpack", "unpack_rows"]

PLAIN, LZ4, TRANSPOSED = range(3)
PACKED_FROM = 1024  # bytes; fewer are not worth it
BLOCK_BYTES = 16 << 10  # of rows that are transposed at once: more would not stay in a processor's nearest cache

Shape: TypeAlias = tuple[int, int]  # how many rows, and the bytes of one


class BadPacking(BusError):
    """Bytes that are not what was packed, or in a way that this release does not know."""


def pack(data: bytes | memoryview) -> tuple[int, bytes | memoryview]:
    """(how they are packed, what to send in the place of these bytes)."""
    if len(data) >= PACKED_FROM:
        packed = lz4.compress(data, store_size=False)
        if len(packed) < len(data):
            return LZ4, packed
    return PLAIN, data


def unpack(packed: memoryview, packing: int, size: int) -> memoryview:
    """The bytes that were packed, as many as are expected. Raises BadPacking."""
    if packing == PLAIN:
        found = packed
    elif packing == LZ4:
        try:
            found = memoryview(lz4.decompress(packed, uncompressed_size=size))
        except lz4.LZ4BlockError as error:
            raise BadPacking(f"{len(packed)} packed bytes that are none: {error}") from None
    else:
        raise BadPacking(f"packed in a way {packing}, which this release does not know; update this node")
    if len(found) != size:
        raise BadPacking(f"{size} bytes are expected, got {len(found)}")
    return found


def pack_rows(rows: bytes | memoryview, shapes: Sequence[Shape]) -> tuple[int, bytes | memoryview]:
    """As `pack`, for rows of one shape or several, one behind the other."""
    if len(rows) >= PACKED_FROM:
        given = np.frombuffer(rows, np.uint8)
        transposed = np.empty_like(given)
        for at, end, count, row_bytes in _blocks(shapes):
            transposed[at:end].reshape(row_bytes, count)[:] = given[at:end].reshape(count, row_bytes).T
        packed = lz4.compress(transposed.data, store_size=False)
        if len(packed) < len(rows):
            return TRANSPOSED, packed
    return PLAIN, rows


def unpack_rows(packed: memoryview, packing: int, shapes: Sequence[Shape]) -> memoryview:
    """The rows that were packed, of these shapes. Raises BadPacking."""
    size = sum(count * row_bytes for count, row_bytes in shapes)
    if packing != TRANSPOSED:
        return unpack(packed, packing, size)
    transposed = np.frombuffer(unpack(packed, LZ4, size), np.uint8)
    rows = np.empty_like(transposed)
    for at, end, count, row_bytes in _blocks(shapes):
        rows[at:end].reshape(count, row_bytes)[:] = transposed[at:end].reshape(row_bytes, count).T
    return rows.data


def _blocks(shapes: Sequence[Shape]) -> Iterator[tuple[int, int, int, int]]:
    """(first byte, end, how many rows, the bytes of one) of what is transposed at once: FORMAT.md."""
    at = 0
    for row_count, row_bytes in shapes:
        step = max(1, BLOCK_BYTES // row_bytes)
        for first in range(0, row_count, step):
            count = min(step, row_count - first)
            yield at, (at := at + count * row_bytes), count, row_bytes
