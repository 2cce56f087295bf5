"""The shared-memory objects of a bus: their names, making and opening them, and who owns them.

A bus `exchange` with a topic `trades` is three objects: `/ringmain.exchange` (who writes it; locked for life),
`/ringmain.exchange.trades` (the ring) and `/ringmain.exchange.trades.ctl` (its reader table). A new ring is made as
`/ringmain.exchange.trades.new` and put in the old one's place once it is whole: a writer may be killed at any instant.
A process that publishes through a lane makes `/ringmain.exchange.trades.lane.` and the lane's number, 16 hexadecimal digits.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import posix_ipc

from . import _segment
from .errors import AttachError, NotFound

__all__ = [
    "MODES",
    "Segment",
    "bus_name",
    "check_bus_name",
    "control_name",
    "data_name",
    "draft_name",
    "lane_name",
    "list_lanes",
    "list_names",
    "open_control",
    "split_address",
]

PREFIX = "ringmain."
DIRECTORY = Path("/dev/shm")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
TOPIC = re.compile(r"[a-z_][a-z0-9_]{0,31}")
LANE = re.compile(r"[0-9a-f]{16}")
NO_SEGMENT = errno.ELOOP, errno.ENXIO  # what opening a link, or a socket, says
MODES = {
    False: (0o600, 0o600),
    True: (0o640, 0o660),
}  # group_readable -> (data, control): readers enter themselves in control


def check_bus_name(name: str) -> str:
    """The name itself. ValueError unless it is one."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"bus name {name!r}: lower-case letters, digits, - and _, a letter first, at most 32 characters"
        )
    return name


def split_address(address: str) -> tuple[str, str]:
    """("exchange", "trades") of "exchange/trades". ValueError says what an address looks like."""
    bus, slash, topic = address.partition("/")
    if not slash or not NAME.fullmatch(bus) or not TOPIC.fullmatch(topic):
        raise ValueError(f"address {address!r}: BUS/TOPIC is expected, such as exchange/trades")
    return bus, topic


def bus_name(bus: str) -> str:
    return f"/{PREFIX}{bus}"


def data_name(bus: str, topic: str) -> str:
    return f"/{PREFIX}{bus}.{topic}"


def control_name(bus: str, topic: str) -> str:
    return f"/{PREFIX}{bus}.{topic}.ctl"


def draft_name(bus: str, topic: str) -> str:
    return f"/{PREFIX}{bus}.{topic}.new"


def lane_name(bus: str, topic: str, lane: int) -> str:
    return f"/{PREFIX}{bus}.{topic}.lane.{lane:016x}"


def list_lanes(bus: str, topic: str, *, user: int | None = None) -> list[int]:
    """The numbers of the lanes that have segments, sorted: of the living, and those that a dead writer left.

    user: only that user's; anybody can give a file such a name.
    """
    prefix = lane_name(bus, topic, 0)[1:-16]
    names = (name for name in os.listdir(DIRECTORY) if name.startswith(prefix))
    return sorted(
        int(name[len(prefix) :], 16)
        for name in names
        if LANE.fullmatch(name[len(prefix) :]) and (user is None or _owner(name) == user)
    )


def list_names(*, user: int | None = None) -> dict[str, list[str]]:
    """The buses that have segments on this machine, each with its topics, both sorted. Names only: nothing is opened.

    user: only by that user's segments.
    """
    found: dict[str, set[str]] = {}
    for name in os.listdir(DIRECTORY):
        if name.startswith(PREFIX) and (user is None or _owner(name) == user):
            bus, _, topic = name[len(PREFIX) :].partition(".")
            topic = topic.partition(".lane.")[0].removesuffix(".ctl").removesuffix(".new")
            if NAME.fullmatch(bus) and (not topic or TOPIC.fullmatch(topic)):
                found.setdefault(bus, set()).update([topic] if topic else [])
    return {bus: sorted(topics) for bus, topics in sorted(found.items())}


def _owner(name: str) -> int | None:
    """Whose the file is; None where it has gone. Of a link, whose the link is."""
    try:
        return os.lstat(DIRECTORY / name).st_uid
    except FileNotFoundError:
        return None


@dataclass(slots=True, eq=False)
class Segment:
    """One mapped shared-memory object. It stays mapped for as long as anything points into `memory`."""

    name: str
    memory: mmap.mmap
    inode: int
    uid: int

    @classmethod
    def create(cls, name: str, size_bytes: int, mode: int) -> Segment:
        """Make a new object with all of its memory reserved, so that no later access can fail.

        Raises OSError (ENOSPC: /dev/shm is full; EEXIST). Nothing is left behind then.
        """
        try:
            made = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=mode, size=0)
        except posix_ipc.ExistentialError:
            raise FileExistsError(errno.EEXIST, "exists already", name) from None
        try:
            os.fchmod(made.fd, mode)  # whatever the umask says
            os.posix_fallocate(made.fd, 0, size_bytes)
            return cls._map(name, made.fd, writable=True)
        except OSError as error:
            cls.unlink(name)
            if error.errno == errno.ENOSPC:
                raise OSError(
                    errno.ENOSPC,
                    f"shared memory is full: {size_bytes} bytes are needed for {name}; give the topic fewer slots, run "
                    "`ringmain clean`, or enlarge /dev/shm",
                ) from None
            raise
        finally:
            made.close_fd()

    @classmethod
    def open(cls, name: str, *, writable: bool) -> Segment:
        """Map an existing object. Raises NotFound, or AttachError where permission is missing or it is empty."""
        try:
            found = posix_ipc.SharedMemory(name, read_only=not writable)
        except posix_ipc.ExistentialError:
            raise NotFound(f"no segment {name} on this machine") from None
        except (posix_ipc.PermissionsError, PermissionError):
            raise AttachError(
                f"segment {name}: permission denied; it belongs to another user. Its writer can share it with its group by "
                "group_readable=True"
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a folder
            if isinstance(error, OSError) and error.errno not in NO_SEGMENT:
                raise
            raise AttachError(
                f"segment {name}: shared memory is expected, found a link, a folder or a socket"
            ) from None
        try:
            return cls._map(name, found.fd, writable=writable)
        finally:
            found.close_fd()

    @classmethod
    def _map(cls, name: str, descriptor: int, *, writable: bool) -> Segment:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AttachError(f"segment {name}: shared memory is expected, found a folder or a pipe")
        if status.st_size == 0:
            raise AttachError(f"segment {name}: empty; its writer is starting, or died while it was")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        memory = mmap.mmap(descriptor, status.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=protection)
        return cls(name, memory, status.st_ino, status.st_uid)

    def is_current(self) -> bool:
        """Whether the name still means this object."""
        try:
            return os.stat(DIRECTORY / self.name[1:]).st_ino == self.inode
        except FileNotFoundError:
            return False

    def rename(self, name: str) -> None:
        """Give this object another name; whoever had that name loses it in the same instant."""
        try:
            os.rename(DIRECTORY / self.name[1:], DIRECTORY / name[1:])
        except PermissionError:
            raise AttachError(
                f"segment {name}: belongs to another user and is in the way; choose another bus name"
            ) from None
        self.name = name

    @staticmethod
    def unlink(name: str) -> None:
        """Remove a name if it is there; whoever has the object mapped keeps it."""
        try:
            posix_ipc.unlink_shared_memory(name)
        except posix_ipc.ExistentialError:
            pass
        except (posix_ipc.PermissionsError, PermissionError, IsADirectoryError):
            raise AttachError(
                f"segment {name}: belongs to another user and is in the way; choose another bus name"
            ) from None


def open_control(bus: str, topic: str) -> Segment:
    """Map a topic's control segment, checked."""
    name = control_name(bus, topic)
    control = Segment.open(name, writable=True)
    _segment.check_control(control.memory, name)
    return control
