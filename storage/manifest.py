"""The manifest: which sstables hold which topic's rows, as a log of edits. The bytes are manifest_format.py's.

1. An edit is on the disk before `commit` returns. What it adds was on the disk before; what it removes goes afterwards.
2. A state is a frozen value, replaced whole. Edits are checked before anything is written.
3. The file is written anew when it is several times as long as it was when that was last done, and by every writer that
   opens it: beside the old one, synced, and renamed over it. Killed at any instant, one of the two is there, whole.
4. After a write or sync that failed nothing is tried again: whether that edit counts shows when the manifest is opened.
5. A writer that was taken over, its lock with it, acknowledges nothing more and replaces nothing. It looks at its lock when all
   that it needs is there: an appended record, or the file to be renamed. Whoever has taken the lock removes such files first and
   then reads. So what was acknowledged before is read, and a rename that comes later finds no file, however long its writer slept.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType

import msgspec

from . import files
from .errors import Corruption, ManifestFailed
from .manifest_format import DURABLE_OFFSET, HEADER_BYTES, Header, encode_durable, encode_header, encode_record
from .manifest_reader import MANIFEST_NAME, ManifestFile, ManifestFollower, patiently, read_manifest
from .manifest_state import Edit, State, TopicInfo

__all__ = ["Edit", "Manifest", "ManifestFollower", "State", "TopicInfo", "read_manifest"]

REWRITE_BYTES_MIN = 1 << 20
REWRITE_RATIO = 4


class Manifest:
    """A store's manifest, held for writing. The caller holds the directory's lock; `commit` may come from any thread.

    directory: the store's, which exists; a manifest is made in it where there is neither one nor a table. log_id: of the log
    that the store belongs to. mode: the file's permissions. holds_lock: whether the caller's lock still counts, where another
    writer can take it over.
    torn_bytes: what an earlier writer had begun to write and nobody relied upon; it is cut off.
    Raises Corruption (nothing is changed then), FormatMismatch, ManifestFailed, OSError.
    """

    def __init__(
        self, directory: Path, log_id: int, *, mode: int = 0o600, holds_lock: Callable[[], bool] = lambda: True
    ) -> None:
        self.directory, self.path = directory, directory / MANIFEST_NAME
        self.torn_bytes = 0
        self._mode, self._holds_lock = mode, holds_lock
        self._lock = threading.Lock()
        self._failure: ManifestFailed | None = None
        self._descriptor = -1
        self._end = self._rewrite_at = 0
        for left in directory.glob(f"{MANIFEST_NAME}.*.new"):  # before reading: see 5
            left.unlink(missing_ok=True)
        try:
            found = patiently(lambda: ManifestFile(self.path, log_id))
        except FileNotFoundError:
            self._header, self.state = Header(log_id, 0, 0), State.empty(log_id)
            self._refuse_orphans()
        else:
            found.close()
            self._header, self.state, self.torn_bytes = found.header, found.state, found.torn_bytes
        try:
            self._rewrite(self.state)
        except BaseException:
            self._close_file()
            raise

    def commit(self, edit: Edit) -> State:
        """Make an edit durable and return the state behind it, which is `state` from now on.

        Raises ValueError for an edit that cannot follow (nothing has changed then), or ManifestFailed, the same for ever.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            if self._descriptor < 0:
                raise ValueError(f"{self.path}: this manifest is closed")
            state = self.state.edit(edit)
            record = encode_record(self._header, self._end, msgspec.json.encode(edit))
            try:
                if self._end + len(record) < self._rewrite_at:
                    self._append(record)
                else:
                    self._rewrite(state)
            except ManifestFailed as failure:
                self._failure = failure
                raise
            except BaseException:
                self._failure = ManifestFailed(self.path, "commit", "it was interrupted")
                raise
            self.state = state
            return state

    def failure(self) -> ManifestFailed | None:
        """Why nothing can be committed any more, or None."""
        return self._failure

    @property
    def file_bytes(self) -> int:
        """How long the file is."""
        return self._end

    def close(self) -> None:
        """Let the file go. Nothing need be written: every commit is on the disk."""
        with self._lock:
            self._close_file()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_orphans(self) -> None:
        """A directory with tables and no manifest has lost it: they must not pass for left-overs."""
        table = next(self.directory.glob("*.sst"), None)
        if table is not None:
            raise Corruption(self.path, 0, f"a manifest, as there are tables such as {table.name}", "no file")

    def _append(self, record: bytes) -> None:
        end = self._end + len(record)
        with _telling(self.path, "write"):
            files.write_at(self._descriptor, record, self._end)
        with _telling(self.path, "sync"):
            files.sync_data(self._descriptor)
        self._check_lock()
        with _telling(self.path, "write"):
            files.write_at(self._descriptor, encode_durable(self._header, end), DURABLE_OFFSET)
        self._end = end

    def _rewrite(self, state: State) -> None:
        """Put a manifest that holds just this state in place of the one there is."""
        header = Header(state.log_id, self._header.generation + 1, time.time_ns())
        record = encode_record(header, HEADER_BYTES, msgspec.json.encode(state.as_edit()))
        end = HEADER_BYTES + len(record)
        # A name that is nobody else's: a writer that was taken over must not rename what this one has half written.
        temporary = self.directory / f"{MANIFEST_NAME}.{secrets.token_hex(4)}.new"
        with _telling(temporary, "create"):
            descriptor = files.create_file(temporary, self._mode)
        try:
            with _telling(temporary, "write"):
                files.write_at(descriptor, encode_header(header, end) + record, 0)
            with _telling(temporary, "sync"):
                files.sync_data(descriptor)
            self._check_lock()  # now that the new file is there: whoever takes over from here on removes it before reading
            with _telling(self.path, "rename"):
                files.rename_file(temporary, self.path)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._close_file()
        self._descriptor, self._header, self._end = descriptor, header, end
        self._rewrite_at = max(REWRITE_BYTES_MIN, REWRITE_RATIO * end)
        with _telling(self.directory, "sync of the directory"):
            files.sync_directory(self.directory)

    def _check_lock(self) -> None:
        if not self._holds_lock():
            raise ManifestFailed(self.path, "commit", "another writer has taken over")

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def _telling(path: Path, operation: str) -> Generator[None]:
    """Say what the system refused, and where."""
    try:
        yield
    except OSError as error:
        raise ManifestFailed(path, operation, error) from error
