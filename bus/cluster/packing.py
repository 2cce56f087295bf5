"""Bytes on their way to other hosts, compressed where that makes them smaller: LZ4 blocks, whose size is known beforehand.

It costs a processor less than the servers, their disks and the network save.
"""

from __future__ import annotations

from collections.abc import Sequence

from lz4 import block as lz4

from ..errors import BusError

__all__ = ["BadPacking", "pack", "unpack"]

PLAIN, LZ4 = range(2)
PACKED_FROM = 1024  # bytes; fewer are not worth it


class BadPacking(BusError):
    """Bytes that are not what was packed, or in a way that this release does not know."""


def pack(parts: Sequence[bytes | memoryview]) -> tuple[int, Sequence[bytes | memoryview]]:
    """(how they are packed, what to send in the place of these bytes)."""
    size = sum(map(len, parts))
    if size >= PACKED_FROM:
        packed = lz4.compress(parts[0] if len(parts) == 1 else b"".join(parts), store_size=False)
        if len(packed) < size:
            return LZ4, [packed]
    return PLAIN, parts


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
