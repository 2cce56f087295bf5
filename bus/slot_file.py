"""A small value on disk of which there is always a whole copy: a file with two slots, written in turn.

1. Writing goes to the slot that does not hold the newest value. Whatever a kill leaves of it, the other one is whole.
2. With `sync`, a slot is written again only when the other is on the disk: whatever a power cut leaves, one is whole.
3. The second slot is written the first time when the first one is whole. So a file whose second slot was never written, and
   whose first is not whole, was about to be made: it has held nothing yet.

The bytes are in FORMAT.md, "Positions".
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from ..storage import FormatMismatch, StorageError
from ..storage._log import crc32c
from ..storage.files import (
    allocate,
    create_file,
    naming,
    open_file_to_change,
    open_file_to_read,
    read_from,
    rename_file,
    sync_data,
    sync_directory,
)
from ._slots import SLOT_HEADER_BYTES, SLOT_MAGIC, SLOT_VERSION, SlotWriter

__all__ = ["SlotFile", "SlotsDamaged"]

HEADER = struct.Struct("<8sIIQI4x")  # magic, crc32c of all behind it, version, generation, payload bytes
UNCHECKED_BYTES = 12
assert HEADER.size == SLOT_HEADER_BYTES
SLOT_BYTES_MIN = 4096
READ_TRIES = 100  # of finding a whole slot while another process writes one after the other


class SlotsDamaged(StorageError):
    """Neither slot of a file is whole. path: which."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        super().__init__(
            f"{self.path}: damaged: neither of its two slots is what was written. Put a copy in its place; or remove the folder "
            "that it is in, and whoever it belongs to begins anew"
        )


class SlotFile:
    """An open slot file. Whoever writes must be the only one, and must have read it since anybody else did."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.writer: SlotWriter | None = None  # once it is known where the newest value is
        self._slot_bytes = 0

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> SlotFile:
        """Raises FileNotFoundError."""
        return cls(path, open_file_to_change(path) if writable else open_file_to_read(path))

    @classmethod
    def open_new(cls, path: Path) -> SlotFile:
        """A file without a value yet, to be filled. Raises FileExistsError."""
        return cls(path, create_file(path))

    @classmethod
    def replace(cls, path: Path, payload: bytes) -> SlotFile:
        """A file with this value, durable, in place of whatever has its name: at once, whatever happens meanwhile."""
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        made = cls(path, allocate(draft, 2 * _slot_bytes(payload)))
        try:
            made.fill(payload, sync=True)
            rename_file(draft, path)
            sync_directory(path.parent)
        except BaseException:
            made.close()
            raise
        return made

    def read(self) -> bytes | None:
        """The newest value; None where there has been none yet. Raises SlotsDamaged, FormatMismatch."""
        self._slot_bytes = os.fstat(self.descriptor).st_size // 2
        for _ in range(READ_TRIES):
            slots = self._headers()
            for generation, place, _ in slots:
                payload = self._read_slot(place)
                if payload is not None:
                    self.writer = SlotWriter(self.descriptor, self._slot_bytes, generation, place)
                    return payload
            if slots == self._headers():
                break
        if not any(read_from(self.descriptor, self._slot_bytes, SLOT_BYTES_MIN)):
            return None
        raise SlotsDamaged(self.path)

    def write(self, payload: bytes, *, sync: bool) -> None:
        """Put another value in the place of the newest one, which was read; there must be room."""
        assert self.writer is not None
        assert self.has_room(payload)
        with naming(self.path):
            self.writer.write(payload, sync=sync)

    @property
    def has_value(self) -> bool:
        """Whether one was found when it was last read, or written since."""
        return self.writer is not None

    def has_room(self, payload: bytes) -> bool:
        return HEADER.size + len(payload) <= self._slot_bytes

    def fill(self, payload: bytes, *, sync: bool) -> None:
        """Write the first value into a file that holds none."""
        self._slot_bytes = max(self._slot_bytes, _slot_bytes(payload))
        with naming(self.path):
            os.ftruncate(self.descriptor, 2 * self._slot_bytes)
            if sync:
                sync_data(self.descriptor)  # the size says where the second slot is, and so comes first
            writer = SlotWriter(self.descriptor, self._slot_bytes, 0, 1)
            for _ in range(2):
                writer.write(payload, sync=sync)
        self.writer = writer

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _headers(self) -> list[tuple[int, int, int]]:
        """(generation, place, checksum) as the slots have it, the greatest first."""
        found: list[tuple[int, int, int]] = []
        for place in (0, 1):
            header = read_from(self.descriptor, place * self._slot_bytes, HEADER.size)
            if len(header) == HEADER.size:
                magic, checksum, _, generation, _ = HEADER.unpack(header)
                if magic == SLOT_MAGIC:
                    found.append((generation, place, checksum))
        return sorted(found, reverse=True)

    def _read_slot(self, place: int) -> bytes | None:
        """The payload of a slot that is whole."""
        head = read_from(self.descriptor, place * self._slot_bytes, HEADER.size)
        if len(head) < HEADER.size:
            return None
        _, checksum, version, _, payload_bytes = HEADER.unpack(head)
        if payload_bytes > self._slot_bytes - HEADER.size:
            return None
        payload = read_from(self.descriptor, place * self._slot_bytes + HEADER.size, payload_bytes)
        if len(payload) < payload_bytes or crc32c(payload, crc32c(head[UNCHECKED_BYTES:])) != checksum:
            return None
        if version != SLOT_VERSION:
            raise FormatMismatch(self.path, "format version", SLOT_VERSION, version)
        return payload


def _slot_bytes(payload: bytes) -> int:
    """Room for a value, and for it to grow."""
    needed = HEADER.size + len(payload)
    return SLOT_BYTES_MIN if needed <= SLOT_BYTES_MIN // 2 else (2 * needed + 4095) & ~4095
