"""One topic of a bus, as its writer publishes into it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal

import numpy as np

from ..storage import Schema
from ._journal import Journal
from ._lanes import LaneDoor
from ._publish import RingPublisher
from ._segment import WATERMARKS, read_data
from .acknowledgement import wait_for_standings
from .attach import Attached, Watermarks
from .segments import Segment

__all__ = ["Claim", "Publisher"]

REPLICATES_SYNC = 1

_Rows = np.ndarray[Any, np.dtype[np.void]]


class Publisher:
    """Publishes records of one topic. One thread at a time.

    publish(*fields, **fields) -> int packs one record from values in the schema's order, or by name, makes it visible, and
    returns its sequence. publish_batch(rows) -> int does so for a numpy array of the schema's payload_dtype and returns the
    last sequence. Both raise TypeError, ValueError or OverflowError naming the field where something does not fit (nothing
    of that record is published then), RingFull, Fenced, WriterFailed.
    """

    def __init__(
        self,
        data: Segment,
        control: Segment | None,
        schema: Schema,
        *,
        full: Literal["block", "raise", "drop"],
        full_timeout: float | None,
        journal: Journal | LaneDoor | None,
        syncs: bool = True,
        indexes: bool = False,
        replicates: int = 0,
        mover: Callable[[RingPublisher, bool], bool] | None = None,
    ) -> None:
        self.schema = schema
        self._data, self._control = data, control
        self._journal, self._syncs, self._indexes, self._replicates = journal, syncs, indexes, replicates
        asleep = journal.asleep() if journal is not None else None
        self._ring = RingPublisher(
            data.memory,
            control.memory if control is not None else None,
            schema,
            full=full,
            full_timeout=full_timeout,
            journal=journal,
            asleep=asleep,
            mover=mover,
        )
        # The compiled calls themselves, so that nothing stands between the caller and them.
        self.publish = self._ring.publish
        self.publish_batch = self._ring.publish_batch

    def claim(self, count: int = 1) -> Claim:
        """Claim `count` slots to fill in place: `with topic.claim(64) as rows: rows["price"] = …`.

        Leaving the block commits, leaving it by an exception aborts. At most half the ring.
        """
        return Claim(self._ring, count)

    @property
    def watermarks(self) -> Watermarks:
        """The topic's watermarks, now."""
        return Watermarks(*self._ring.watermarks)

    def wait(
        self,
        sequence: int,
        watermark: Literal["published", "logged", "durable", "indexed", "replicated"] | None = None,
        timeout: float | None = None,
        *,
        acknowledged_by: Iterable[str] = (),
    ) -> None:
        """Return once the watermark has reached `sequence`. Any thread may. Once it is indexed, `get` finds it.

        watermark: unless told "durable", or "replicated" on a replicated bus that acknowledges so. acknowledged_by: wait for these
        resumable subscribers and groups to be done with everything up to `sequence`; the watermark is then waited for only if it is
        given.
        Raises TimeoutError after `timeout` seconds (None: never), which says who has not acknowledged, and where each stands;
        WriterFailed as soon as the log has stopped; ValueError for a watermark that this topic does not have (without a log,
        with one that is never synced, not kept by key), or a sequence that is not published.
        """
        names, started = list(acknowledged_by), time.monotonic()
        if watermark is not None or not names:
            self._wait_for_watermark(sequence, watermark or self._safest, timeout)
        elif sequence > self.watermarks.published:
            raise ValueError(f"topic {self.schema.name!r}: sequence {sequence} is not published yet")
        if names:
            assert self._control is not None  # a lane has its own way to wait
            header = read_data(self._data.memory, self._data.name)
            topic = Attached(header["bus"], header["topic"], self._data, self._control, header, self.schema)
            if timeout is not None and watermark is not None:
                timeout = max(0.0, timeout - (time.monotonic() - started))
            wait_for_standings(topic, sequence, names, timeout)

    def _wait_for_watermark(self, sequence: int, watermark: str, timeout: float | None) -> None:
        if watermark not in WATERMARKS[1:]:
            raise ValueError(f"watermark: one of {', '.join(WATERMARKS[1:])} is expected, got {watermark!r}")
        if self._journal is None and watermark != "published":
            raise ValueError(f"topic {self.schema.name!r}: nothing is {watermark} without a data_dir")
        if watermark == "durable" and not self._syncs:
            raise ValueError(f"topic {self.schema.name!r}: nothing is durable with sync='never'; wait for 'logged'")
        if watermark == "indexed" and not self._indexes:
            raise ValueError(f"topic {self.schema.name!r}: nothing is indexed: the writer does not keep it by key")
        if watermark == "replicated" and not self._replicates:
            raise ValueError(f"topic {self.schema.name!r}: nothing is replicated: the bus is on this host alone")
        if sequence > self.watermarks.published:
            raise ValueError(f"topic {self.schema.name!r}: sequence {sequence} is not published yet")
        if self._journal is not None:
            self._journal.kick()
        if sequence > 0 and not self._ring.wait(sequence, WATERMARKS.index(watermark), timeout):
            raise TimeoutError(
                f"topic {self.schema.name!r}: sequence {sequence} was not {watermark} within {timeout} s; "
                f"{getattr(self.watermarks, watermark)} is"
            )

    @property
    def _safest(self) -> Literal["durable", "replicated"]:
        return "replicated" if self._replicates == REPLICATES_SYNC else "durable"

    def stamp_after(self, timestamp_ns: int) -> None:
        """Stamp no record earlier than this: time never steps back within a topic, whatever the clock does."""
        self._ring.last_timestamp(timestamp_ns)

    def close(self) -> None:
        """Refuse every later call. The writer does this."""
        self._ring.close()


class Claim:
    """Slots being filled in place. `rows` are their payloads: zeroed, writable, valid until commit or abort."""

    def __init__(self, ring: RingPublisher, count: int) -> None:
        self._ring, self._count = ring, count
        self.rows: _Rows = ring.begin(count)
        self._open = True

    def commit(self, count: int | None = None) -> int:
        """Make the first `count` rows (all, by default) visible; returns the last one's sequence."""
        count = self._count if count is None else count
        if not 0 < count <= self._count:
            raise ValueError(f"count: between 1 and the {self._count} rows claimed, got {count}")
        self._end()
        return self._ring.commit(self.rows, count)

    def abort(self) -> None:
        """Give the slots up: nothing becomes visible."""
        self._end()
        self._ring.abort()

    def _end(self) -> None:
        if not self._open:
            raise ValueError("this claim was committed or aborted already")
        self._open = False
        self.rows.flags.writeable = False

    def __enter__(self) -> _Rows:
        return self.rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            if kind is None:
                self.commit()
            else:
                self.abort()
