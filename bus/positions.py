"""Where subscribers have come to, for those who go on after their end: one folder a name, DATA_DIR/positions/TOPIC/NAME.

A subscriber that is alone has the file `position` there, and holds the folder's lock. A group has `live.N`, which its members
change without waiting for the disk, and `kept.N`, a copy that is on the disk: it counts if the machine was restarted since.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import struct
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from ..storage import FormatMismatch, LogLocked, StorageError
from ..storage.files import lock_directory
from .errors import AlreadyRunning
from .shared_slot_file import SharedSlotFile
from .slot_file import SlotFile

__all__ = [
    "ALONE",
    "KEPT",
    "KINDS",
    "KIND_GROUP",
    "KIND_RESUMABLE",
    "LIVE",
    "NameLock",
    "Position",
    "boot_id",
    "check_position_name",
    "list_positions",
    "position_folder",
    "read_position",
    "shared_by_group",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,46}")
HEAD = struct.Struct("<I4xQQ16s")  # kind, log_id, sequence, boot
KIND_RESUMABLE, KIND_GROUP = 1, 2
KINDS = {KIND_RESUMABLE: "a resumable subscriber", KIND_GROUP: "a group"}
ALONE, LIVE, KEPT = "position", "live", "kept"
PATIENCE_S = {LIVE: 1.0, KEPT: 10.0}  # a member that keeps a file longer than this is stopped, or its disk hangs


@functools.cache
def boot_id() -> bytes:
    """Another one each time the machine is started, 16 bytes."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes


@dataclass(frozen=True, slots=True)
class Position:
    """What a position file holds. sequence: the last record of which it and all before are done with. body: the kind's own."""

    kind: int
    log_id: int
    sequence: int
    body: bytes = b""
    boot: bytes = field(default_factory=boot_id)

    def encode(self) -> bytes:
        return HEAD.pack(self.kind, self.log_id, self.sequence, self.boot) + self.body

    @classmethod
    def decode(cls, data: bytes, source: Path) -> Position:
        """Raises FormatMismatch for a kind that this release does not know."""
        if len(data) < HEAD.size:
            raise FormatMismatch(source, "size", f"at least {HEAD.size} bytes", len(data))
        kind, log_id, sequence, boot = HEAD.unpack_from(data)
        if kind not in KINDS:
            raise FormatMismatch(source, "kind of position", sorted(KINDS), kind)
        return cls(kind, log_id, sequence, data[HEAD.size :], boot)


def check_position_name(name: str) -> str:
    """The name itself. ValueError unless it is one."""
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name!r}: letters, digits, - and _, not - or _ first, at most 47 characters")
    return name


def position_folder(data_directory: Path, topic: str, name: str) -> Path:
    """Where a name's files lie, which need not be there."""
    return data_directory / "positions" / topic / name


def shared_by_group(folder: Path, stem: str) -> SharedSlotFile:
    """A group's file LIVE or KEPT."""
    return SharedSlotFile(folder, stem, sync=stem == KEPT, patience_s=PATIENCE_S[stem])


def read_position(folder: Path) -> Position | None:
    """What a name's files say now, whoever is changing them; None where there is nothing yet.

    Raises StorageError for damage, and what this release does not know.
    """
    if not folder.is_dir():
        return None
    try:
        file = SlotFile.open(folder / ALONE, writable=False)
    except FileNotFoundError:
        return _read_group(folder)
    try:
        payload = file.read()
    finally:
        file.close()
    return None if payload is None else Position.decode(payload, file.path)


def _read_group(folder: Path) -> Position | None:
    for stem in (LIVE, KEPT):
        payload = shared_by_group(folder, stem).read()
        if payload is not None:
            position = Position.decode(payload, folder / stem)
            if stem == KEPT or position.boot == boot_id():
                return position
    return None


def list_positions(data_directory: Path, topic: str) -> dict[str, Position | Exception]:
    """By name: what is stored for a topic, or what is wrong with it."""
    found: dict[str, Position | Exception] = {}
    try:
        names = sorted(os.listdir(data_directory / "positions" / topic))
    except OSError:  # none, or not for us to see
        return found
    for name in filter(NAME.fullmatch, names):
        try:
            position = read_position(position_folder(data_directory, topic, name))
        except (OSError, StorageError) as error:
            found[name] = error
        else:
            if position is not None:
                found[name] = position
    return found


class NameLock:
    """The right to be the one process of a name: for life, or until it is closed. Raises AlreadyRunning."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            self._descriptor = lock_directory(folder, take_over=False)
        except LogLocked as held:
            raise AlreadyRunning(name, held.pid) from None
        _LOCKS.add(self)

    def close(self) -> None:
        """Let go, at once: a child that was forked just now may still hold the descriptor."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.leave()

    def leave(self) -> None:
        """Let go of the descriptor alone: in a forked child, where the lock is the parent's."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_LOCKS: weakref.WeakSet[NameLock] = weakref.WeakSet()


def _leave_locks() -> None:
    """In a forked child: let go of the parent's locks, so that they end with the parent."""
    for lock in _LOCKS:
        lock.leave()


os.register_at_fork(after_in_child=_leave_locks)
