"""Reading a topic's past, and on into its present."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from ..bus import NotFound, Overrun, attach
from ..bus._read import RingCursor
from ..bus.segments import split_address
from ..storage import FormatMismatch, LogReader, PastReader
from .reader import BATCH_ROWS_MAX, Follow, TopicReader, Wait

__all__ = ["Historical"]


class Historical(TopicReader):
    """Reads what a topic has kept: `for batch in Historical("exchange/trades", since=yesterday_ns): …`

    address: "BUS/TOPIC". The bus need not be running where its `data_dir` is given.
    start: "earliest" or the first sequence wanted; since: or the time of the first record, in ns since the Unix epoch.
    last: the last sequence wanted; until: or the time before which the last record was stamped.
    Without `live` it ends behind what there was when it was opened. With `live` it goes on into the ring, without a gap or a
    repeat, and then behaves as RealTime does (follow, reliable, wait, name, reopen).
    batch_rows: most rows a batch. Rows are views over the mapped log, valid for as long as they are kept.
    What the log has given up is read from its archive, or from the tables of a topic that keeps all versions or has no key.

    data_dir of a log that the running bus does not write is read alone; it must be a log of that bus, or of none (a Store's).
    Raises NotFound, AttachError, FileNotFoundError, StorageError (HistoryGone where `start` is no longer kept; FormatMismatch for
    the log of another bus), ValueError.
    """

    def __init__(
        self,
        address: str,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        start: Literal["earliest"] | int = "earliest",
        since: int | None = None,
        last: int | None = None,
        until: int | None = None,
        live: bool = False,
        follow: Follow | None = None,
        reliable: bool = False,
        wait: Wait = "futex",
        name: str = "",
        batch_rows: int | None = None,
        reopen: bool = False,
    ) -> None:
        if start != "earliest" and (since is not None or isinstance(start, str) or start < 1):
            raise ValueError(
                f'start: "earliest" or a sequence from 1 on is expected, and not with since; got {start!r}'
            )
        if last is not None and until is not None:
            raise ValueError("last, until: one of them, not both")
        bus, topic = split_address(address)
        try:
            ring = attach(address)
        except NotFound:
            if data_dir is None or live:
                raise
            ring = None
        directory = Path(data_dir) if data_dir is not None else ring.data_directory if ring is not None else None
        log = PastReader(directory, topic) if directory is not None else None
        if ring is not None and log is not None and ring.header["log_id"] != log.log_id:
            if live:
                raise ValueError(
                    f"{address}: the running bus does not write the log in {directory}; leave out data_dir"
                )
            ring = None
        # What a running node of a cluster writes is its own, also where it came from a host on which the bus has another name.
        if ring is None and log is not None and log.bus not in ("", bus):
            raise FormatMismatch(
                log.directory,
                "bus",
                repr(bus),
                repr(log.bus),
                f"read it as {log.bus}/{topic}, or give another data_dir",
            )
        if log is None and (since is not None or until is not None):
            raise ValueError(f"{address}: time can be asked for only where the bus has a data_dir")
        super().__init__(
            address,
            ring=ring,
            log=log,
            follow=follow,
            wait=wait,
            reliable=reliable,
            name=name,
            batch_rows=batch_rows,
            reopen=reopen,
        )
        first = 1 if start == "earliest" else start
        if log is not None:
            if since is not None:
                first = self._find_time(log, since)
            elif start == "earliest":
                first = log.oldest
            if until is not None:
                last = self._find_time(log, until) - 1
        self._open_at(first - 1, oldest=log is None and start == "earliest")
        if not live and self._cursor is not None:
            newest = self._cursor.watermark
            last = newest if last is None else min(last, newest)
        self._last = last
        self._from_log = log is not None

    def _find_time(self, log: LogReader, timestamp_ns: int) -> int:
        """The sequence of the first record stamped at or after that time, in the log or not logged yet."""
        found = log.find_time(timestamp_ns)
        if self._ring is None:
            return found
        cursor = RingCursor(self._ring.data.memory, self._ring.control.memory, self._ring.schema, self._follow, 0)
        cursor.cursor = found - 1
        try:
            while (batch := cursor.poll(BATCH_ROWS_MAX)) is not None:
                at = int(np.searchsorted(batch.rows["timestamp_ns"], timestamp_ns))
                batch.validate()
                if at < len(batch):
                    return batch.first + at
                found = batch.last + 1
        except Overrun:  # then it is in the log by now
            return log.find_time(timestamp_ns)
        return found
