"""Reading a manifest, once or again and again, also while another process writes it. No lock is taken, nothing is changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from . import files
from .errors import Corruption, FormatMismatch
from .manifest_format import HEADER_BYTES, Header, Records, decode_header, scan
from .manifest_state import Draft, Edit, State

__all__ = ["MANIFEST_NAME", "ManifestFile", "ManifestFollower", "patiently", "read_edits", "read_manifest"]

MANIFEST_NAME = "MANIFEST"
READ_TRIES, READ_PAUSE_S = 5, 0.001

Result = TypeVar("Result")


def read_manifest(directory: Path, log_id: int | None = None) -> State:
    """Return what a store's manifest says now. Takes no lock and changes nothing; a writer may be at work.

    log_id: of the log that the store must belong to. Raises FileNotFoundError, Corruption, FormatMismatch.
    """
    with ManifestFollower(directory, log_id) as follower:
        return follower.state


def read_edits(directory: Path) -> tuple[Header, list[tuple[int, Edit]], int]:
    """Return a manifest's header, its edits with their offsets, and how many bytes behind them were never finished.

    Takes no lock; a writer may be at work. Raises FileNotFoundError, Corruption, FormatMismatch.
    """
    path = directory / MANIFEST_NAME

    def read() -> tuple[Header, Records]:
        descriptor = files.open_file_to_read(path)
        try:
            header, durable_bytes = decode_header(files.read_from(descriptor, 0, HEADER_BYTES), path)
            return header, scan(files.read_from(descriptor, HEADER_BYTES), HEADER_BYTES, header, durable_bytes, path)
        finally:
            os.close(descriptor)

    header, records = patiently(read)
    edits: list[tuple[int, Edit]] = []
    for offset, payload in records.payloads:
        try:
            edits.append((offset, msgspec.json.decode(payload, type=Edit)))
        except (msgspec.MsgspecError, ValueError) as error:
            raise Corruption(path, offset, "an edit", str(error)) from error
    return header, edits, records.torn_bytes


class ManifestFollower:
    """A reader that keeps up with a manifest which another process writes. For one thread.

    Takes no lock and changes nothing. A record that is still being written is read later. An edit may be seen a moment
    before it is on the disk. Raises as `read_manifest`.
    """

    def __init__(self, directory: Path, log_id: int | None = None) -> None:
        self.path = directory / MANIFEST_NAME
        self._found = patiently(lambda: ManifestFile(self.path, log_id))

    @property
    def state(self) -> State:
        """As of the last refresh."""
        return self._found.state

    @property
    def torn_bytes(self) -> int:
        """Behind the last record: begun and never finished, or still being written."""
        return self._found.torn_bytes

    def refresh(self) -> State | None:
        """Return the state where it has changed since the last time, otherwise None."""
        before = self._found.state
        if files.is_named(self._found.descriptor, self.path):
            patiently(self._found.read_on)
        else:
            found = patiently(lambda: ManifestFile(self.path, before.log_id))
            self._found.close()
            self._found = found
        now = self._found.state
        return None if now is before or now == before else now

    def close(self) -> None:
        self._found.close()

    def __enter__(self) -> ManifestFollower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ManifestFile:
    """A manifest file, open, and what has been read of it so far."""

    def __init__(self, path: Path, log_id: int | None) -> None:
        self.path, self.torn_bytes = path, 0
        self.descriptor = files.open_file_to_read(path)
        try:
            self.header, _ = self._read_header()
            if log_id is not None and self.header.log_id != log_id:
                raise FormatMismatch(
                    path,
                    "log_id",
                    f"{log_id:#x}",
                    f"{self.header.log_id:#x}",
                    "this store belongs to another log: put back the log that it was made with, or give another directory",
                )
            self.state, self.end = State.empty(self.header.log_id), HEADER_BYTES
            self.read_on()
        except BaseException:
            os.close(self.descriptor)
            raise

    def read_on(self) -> None:
        """Take in the records that have come since. Raises Corruption, and then is as it was."""
        _, durable_bytes = self._read_header()  # first: what it says of the rest may be behind, and must not be ahead
        with files.naming(self.path):
            data = files.read_from(self.descriptor, self.end)
        records = scan(data, self.end, self.header, durable_bytes, self.path)
        self.torn_bytes = records.torn_bytes
        if not records.payloads:
            return
        at, draft = self.end, Draft(self.state)
        try:
            for offset, payload in records.payloads:
                at = offset
                draft.apply(msgspec.json.decode(payload, type=Edit))
            self.state = draft.finish()
        except (msgspec.MsgspecError, ValueError) as error:
            raise Corruption(self.path, at, "an edit that can follow", str(error)) from error
        self.end = records.end

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _read_header(self) -> tuple[Header, int]:
        with files.naming(self.path):
            data = files.read_from(self.descriptor, 0, HEADER_BYTES)
        return decode_header(data, self.path)


def patiently(read: Callable[[], Result]) -> Result:
    """Read while somebody may write: what looks damaged may have been read half written. Look again before saying so."""
    for _ in range(READ_TRIES - 1):
        try:
            return read()
        except Corruption:
            time.sleep(READ_PAUSE_S)
    return read()
