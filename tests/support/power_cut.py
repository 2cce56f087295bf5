"""What a power cut may leave of files, rebuilt from the journal of `recording_disk.c`.

The disk that is assumed keeps what POSIX promises, and what every journaling file system does beyond that, and no more:

1. What was written to a file before its last sync is there, and so is its size. Each sector of 512 bytes is written whole or not at
   all. What was written since is there or not, sector by sector and in any order; so are sizes, room and holes.
2. A name (made, renamed, linked, removed) is there for sure once its directory was synced, whatever was synced in the file. Before
   that it may be lost, in any order; but a rename happens whole, and what happened to one name stays in order.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

SECTOR_BYTES, PAGE_BYTES = 512, 4096
ENTRY = struct.Struct("<c3xIII6Q")
ZEROS = bytes(PAGE_BYTES)
OPERATIONS = "CDWMTAPSYRLUK"  # all kinds but notes

Name: TypeAlias = tuple[int, str]  # the directory's inode, and the name in it


@dataclass(frozen=True, slots=True)
class Operation:
    """An entry of the journal. `kind` is what recording_disk.c says it is."""

    kind: str
    inode: int
    name: Name | None
    to_name: Name | None
    offset: int
    length: int
    data: bytes


def read_journal(path: Path) -> list[Operation]:
    """All that was recorded, in order. What was stored into a map stands before the call that found it."""
    data, at = path.read_bytes(), 0
    found: list[Operation] = []
    while at < len(data):
        kind, name_bytes, to_bytes, _, inode, directory, to_directory, offset, length, size = ENTRY.unpack_from(
            data, at
        )
        at += ENTRY.size
        name, to_name = data[at : at + name_bytes].decode(), data[at + name_bytes : at + name_bytes + to_bytes].decode()
        at += name_bytes + to_bytes
        found.append(
            Operation(
                kind.decode(),
                inode,
                (directory, name) if name else None,
                (to_directory, to_name) if to_name else None,
                offset,
                length,
                data[at : at + size],
            )
        )
        at += size
    return found


# --- one file ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Content:
    """Bytes of a file: its pages that are not all zeros, and its size."""

    size: int = 0
    pages: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def write_to(self, path: Path) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.ftruncate(descriptor, self.size)
            numbers = sorted(number for number in self.pages if number * PAGE_BYTES < self.size)
            for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
                first, *rest = [number for _, number in run]
                data = b"".join([self.pages[number] for number in (first, *rest)])
                os.pwrite(descriptor, data[: self.size - first * PAGE_BYTES], first * PAGE_BYTES)
        finally:
            os.close(descriptor)

    @classmethod
    def read_from(cls, path: Path) -> Content:
        data = path.read_bytes()
        pages = {
            at // PAGE_BYTES: data[at : at + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
            for at in range(0, len(data), PAGE_BYTES)
        }
        return cls(len(data), {number: page for number, page in pages.items() if page != ZEROS})


Choose: TypeAlias = Callable[[int], int]  # of n changes to one place, how many are kept: those from the first on


def keep_all(count: int) -> int:
    return count


def keep_none(count: int) -> int:
    return 0


class File:
    """A file: what of it is on the disk for sure, and what happened since."""

    def __init__(self, content: Content | None = None) -> None:
        self.durable = content or Content()
        self.pending: list[Operation] = []

    def sync(self) -> None:
        self.durable = self.survivor(keep_all, keep_all, PAGE_BYTES)
        self.pending.clear()

    def survivor(self, choose: Choose, choose_size: Choose, unit_bytes: int) -> Content:
        """What a cut leaves. choose: for each unit (page or sector) of which something is not synced."""
        if not self.pending:
            return self.durable
        sizes = [self.durable.size]
        pages: dict[int, bytearray] = {}
        kept: dict[int, int] = {}  # unit -> so many of the changes, of the whole file, are in it
        for place, change in enumerate(self.pending):
            size = sizes[-1]
            if change.kind == "T":
                size = change.length
                begin, end = (size, sizes[-1]) if size < sizes[-1] else (0, 0)
            elif change.kind == "A":
                size = max(size, change.offset + change.length)
                begin = end = 0
            elif change.kind == "P":
                begin, end = change.offset, min(size, change.offset + change.length)
            else:
                begin, end = change.offset, change.offset + len(change.data)
                size = max(size, end)
            sizes.append(size)
            self._apply(change, place, begin, end, unit_bytes, pages, kept, choose)
        whole = dict(self.durable.pages)
        for number, page in pages.items():
            if page == ZEROS:
                whole.pop(number, None)
            else:
                whole[number] = bytes(page)
        return Content(_some_size(sizes, choose_size), whole)

    def _apply(
        self,
        change: Operation,
        place: int,
        begin: int,
        end: int,
        unit_bytes: int,
        pages: dict[int, bytearray],
        kept: dict[int, int],
        choose: Choose,
    ) -> None:
        for unit in range(begin // unit_bytes, (end + unit_bytes - 1) // unit_bytes):
            if unit not in kept:
                kept[unit] = choose(len(self.pending))
            if place >= kept[unit]:
                continue
            start, stop = max(begin, unit * unit_bytes), min(end, (unit + 1) * unit_bytes)
            number = start // PAGE_BYTES
            data = change.data[start - begin : stop - begin] if change.data else bytes(stop - start)
            if number not in pages:
                before = self.durable.pages.get(number)
                if before is None and not any(data):
                    continue
                pages[number] = bytearray(before or ZEROS)
            at = start - number * PAGE_BYTES
            pages[number][at : at + len(data)] = data


def _some_size(sizes: list[int], choose: Choose) -> int:
    """One of the sizes that a file has had, or one on the way."""
    at = choose(len(sizes) - 1)
    size, following = sizes[at], sizes[min(at + 1, len(sizes) - 1)]
    steps = max(0, following - size) // SECTOR_BYTES
    return size + SECTOR_BYTES * (choose(steps) if steps > 0 and at + 1 < len(sizes) else 0)


# --- all of them -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Naming:
    """A change of names: what each of these means from now on, None for nothing."""

    meanings: Mapping[Name, int | None]


@dataclass(frozen=True, slots=True)
class Cut:
    """How much survives of what was not synced. Each is the chance of a change, or of a unit of a file, to be on the disk."""

    names: float
    contents: float
    unit_bytes: int = SECTOR_BYTES


@dataclass(frozen=True)
class Start:
    """The files under a directory, all on the disk, before a recording begins."""

    root: int
    directories: frozenset[int]
    files: Mapping[int, Content]
    names: Mapping[Name, int]

    @classmethod
    def of(cls, root: Path) -> Start:
        paths = {path: path.stat().st_ino for path in sorted(root.rglob("*"))}
        return cls(
            root.stat().st_ino,
            frozenset(inode for path, inode in paths.items() if path.is_dir()),
            {inode: Content.read_from(path) for path, inode in paths.items() if not path.is_dir()},
            {(path.parent.stat().st_ino, path.name): inode for path, inode in paths.items()},
        )


class Disk:
    """The files under one directory, as the journal makes them.

    forget: says by its name of which file, or of the names in which directory, no sync is carried out.
    """

    def __init__(self, start: Start, forget: Callable[[str], bool] = lambda name: False) -> None:
        self.root = start.root
        self.files = {inode: File(content) for inode, content in start.files.items()}
        self.directories = {start.root, *start.directories}
        self.names: dict[Name, int | None] = dict(start.names)  # on the disk for sure
        self.pending: list[Naming] = []
        self._forget = forget
        self._called = {inode: name for (_, name), inode in start.names.items()}  # the last part of the newest name

    def apply(self, operation: Operation) -> None:
        """Carry out the next entry of the journal."""
        kind, inode = operation.kind, operation.inode
        if kind in "WMTAP":
            self.files[inode].pending.append(operation)
        elif kind in "CDRLUK":
            self._rename(operation)
        elif kind == "Y":
            for file in self.files.values():
                file.sync()
            self._sync_names(lambda directory: True)
        elif kind == "S" and not self._forget(self._called.get(inode, "")):
            if inode in self.directories:
                self._sync_names(lambda directory: directory == inode)
            else:
                self.files[inode].sync()

    def _rename(self, operation: Operation) -> None:
        kind, inode, name = operation.kind, operation.inode, operation.name
        assert name is not None
        if kind == "C":
            self.files[inode] = File()
        elif kind == "D":
            self.directories.add(inode)
        if kind == "R":
            assert operation.to_name is not None
            self._called[inode] = operation.to_name[1]
            self.pending.append(Naming({name: None, operation.to_name: inode}))
        else:
            self._called[inode] = name[1]
            self.pending.append(Naming({name: None if kind in "UK" else inode}))

    def _sync_names(self, is_synced: Callable[[int], bool]) -> None:
        """Make all changes in a directory durable, and those on which they rest."""
        needed: set[Name] = set()
        left: list[Naming] = []
        for change in reversed(self.pending):
            if any(is_synced(name[0]) or name in needed for name in change.meanings):
                needed.update(change.meanings)
            else:
                left.append(change)
        kept = {id(change) for change in left}
        for change in self.pending:
            if id(change) not in kept:
                self.names.update(change.meanings)
        self.pending = left[::-1]

    def _surviving_names(self, keep: Callable[[], bool]) -> dict[Name, int | None]:
        names, lost = dict(self.names), set[Name]()
        for change in self.pending:
            if not lost.isdisjoint(change.meanings) or not keep():
                lost.update(change.meanings)
            else:
                names.update(change.meanings)
        return names

    def write_image(self, target: Path, top: str, cut: Cut, rng: random.Random) -> None:
        """Write to the new directory `target` what a cut now leaves of the directory `top` in the root: nothing, if it is lost."""

        def choose(count: int) -> int:
            if cut.contents in (0, 1):
                return count if cut.contents else 0
            return count if rng.random() < cut.contents else rng.randint(0, count)

        names = self._surviving_names(lambda: cut.names == 1 or rng.random() < cut.names)
        children: dict[int, list[tuple[str, int]]] = {}
        for (directory, name), inode in names.items():
            if inode is not None:
                children.setdefault(directory, []).append((name, inode))
        contents: dict[int, Content] = {}

        def write(directory: int, path: Path) -> None:
            path.mkdir()
            for name, inode in sorted(children.get(directory, ())):
                if inode in self.directories:
                    write(inode, path / name)
                    continue
                if inode not in contents:
                    contents[inode] = self.files[inode].survivor(choose, choose, cut.unit_bytes)
                contents[inode].write_to(path / name)

        target.mkdir()
        kept = names.get((self.root, top))
        if kept is not None:
            write(kept, target / top)


def cuts(disk: Disk, operations: Iterable[Operation]) -> Iterator[tuple[int, list[bytes]]]:
    """Carry the operations out, and stop behind each: yields its place, and what was noted between it and the next one."""
    place, notes = -1, list[bytes]()
    for at, operation in enumerate(operations):
        if operation.kind == "N":
            notes.append(operation.data)
            continue
        if place >= 0:
            yield place, notes
            notes = []
        disk.apply(operation)
        place = at
    if place >= 0:
        yield place, notes
