"""What can go wrong in storage: a small tree, with words for people and fields for code.

A caller's slip that has no place on disk stays a plain `ValueError` or `TypeError`. Every error here survives pickling,
so that a worker process can hand it to its parent.
"""

from __future__ import annotations

import re
from os import PathLike, fspath
from os.path import basename
from typing import TypeAlias

__all__ = [
    "Corruption",
    "FormatMismatch",
    "LogFailed",
    "LogLocked",
    "ManifestFailed",
    "SchemaError",
    "StorageError",
    "TablesFailed",
]

_Path: TypeAlias = str | PathLike[str]
_STORE_FILE = re.compile(r"MANIFEST.*|.*\.sst(\.new)?")


class StorageError(Exception):
    """Anything that storage reports about its data, its files or its schemas."""

    def __reduce__(self) -> tuple[object, ...]:
        # Exception would call the class with the finished message, which is not what the constructors below take.
        return _revive, (type(self), self.args, dict(self.__dict__))


def _revive(kind: type[StorageError], args: tuple[object, ...], fields: dict[str, object]) -> StorageError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class SchemaError(StorageError, ValueError):
    """A schema that cannot be read or laid out.

    reason: why, in words. source: the file, or the form, it was read from. topic, field: where in it. All but the
    reason are None where they do not apply.
    """

    def __init__(
        self, reason: str, *, topic: str | None = None, field: str | None = None, source: str | None = None
    ) -> None:
        self.reason, self.topic, self.field, self.source = reason, topic, field, source
        place = ", ".join(f"{word} {name!r}" for word, name in (("topic", topic), ("field", field)) if name is not None)
        super().__init__(": ".join(part for part in (source, place, reason) if part))


class Corruption(StorageError):
    """Bytes on disk that are not what was written there, with valid data after them: damage, not a torn tail.

    path: the file. offset: the byte in it where the check failed. expected, found: both sides of the check.
    """

    def __init__(self, path: _Path, offset: int, expected: object, found: object) -> None:
        self.path, self.offset, self.expected, self.found = fspath(path), offset, expected, found
        tool = "store" if _STORE_FILE.fullmatch(basename(self.path)) else "log"
        super().__init__(
            f"{self.path}: damaged at byte {offset}: expected {expected}, found {found}; these bytes are not "
            f"returned. See how far it goes with `ringmain {tool} verify`; then restore a copy, or give up what is damaged "
            f"with `ringmain {tool} repair`"
        )


class FormatMismatch(StorageError):
    """A sound file that this release cannot use: another format, another version, or another schema.

    path: the file or directory. what: which property differs. expected, found: ours and the file's. advice: what to do.
    """

    def __init__(
        self,
        path: _Path,
        what: str,
        expected: object,
        found: object,
        advice: str = "open it with the release that wrote it, or give another directory",
    ) -> None:
        self.path, self.what, self.expected, self.found, self.advice = fspath(path), what, expected, found, advice
        super().__init__(f"{self.path}: {what}: expected {expected}, found {found}; {advice}")


class LogLocked(StorageError):
    """Another living writer holds the log directory.

    path: the directory. pid: the process that holds it, or None if it could not be told. to_write: whether who was refused is a
    writer, which may as well go elsewhere; what repairs or compacts may not.
    """

    def __init__(self, path: _Path, pid: int | None = None, *, to_write: bool = True) -> None:
        self.path, self.pid = fspath(path), pid
        holder = "another process" if pid is None else f"process {pid}"
        elsewhere = ", or give this writer a data_dir of its own" if to_write else ""
        super().__init__(f"{self.path}: {holder} is writing to this log; stop it first{elsewhere}")


class LogFailed(StorageError):
    """The log stopped because the operating system refused a write or a sync; it acknowledges nothing more.

    path: the file. operation: what was refused, such as "write" or "fdatasync". cause: what the system said.
    A failed sync is never tried again: the kernel may have dropped the pages, and the second call would report success.
    """

    def __init__(self, path: _Path, operation: str, cause: OSError | str) -> None:
        self.path, self.operation = fspath(path), operation
        self.errno = cause.errno if isinstance(cause, OSError) else None
        self.reason = (cause.strerror or str(cause)) if isinstance(cause, OSError) else cause
        super().__init__(
            f"{self.path}: {operation} failed: {self.reason}. The log has stopped; what it acknowledged stays "
            "readable. Free space or mend the disk, then open the writer again"
        )


class ManifestFailed(StorageError):
    """The manifest stopped because the system refused a write, a sync or a rename, or another writer has taken over.

    path: the file. operation: what was refused. errno: the system's, or None. Whether the edit that was being committed
    counts is known when the manifest is opened again; until then neither its new tables nor its old ones may be removed.
    """

    def __init__(self, path: _Path, operation: str, cause: OSError | str) -> None:
        self.path, self.operation = fspath(path), operation
        self.errno = cause.errno if isinstance(cause, OSError) else None
        self.reason = (cause.strerror or str(cause)) if isinstance(cause, OSError) else cause
        advice = (
            "Free space or mend the disk, then open the writer again"
            if self.errno
            else "Open the writer again to go on"
        )
        super().__init__(
            f"{self.path}: {operation} failed: {self.reason}. The store takes no more changes; what it acknowledged stays "
            f"readable. {advice}"
        )


class TablesFailed(StorageError):
    """A topic's tables could not be written: the system refused something to a flush or a compaction.

    path: the file. operation: "flush" or "compaction". topic. errno: the system's, or None. Nothing is tried again before the
    store is opened anew. Until then rows are still taken as long as there is room for them in memory.
    """

    def __init__(self, path: _Path, operation: str, topic: str, cause: OSError) -> None:
        self.path, self.operation, self.topic, self.errno = fspath(path), operation, topic, cause.errno
        self.reason = cause.strerror or str(cause)
        super().__init__(
            f"{self.path}: {operation} of topic {topic!r} failed: {self.reason}. No more of it goes into tables; what it "
            "acknowledged stays readable. Free space or mend the disk, then open the store again"
        )
