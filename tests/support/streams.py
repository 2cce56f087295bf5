"""Topics for tests: publish records whose content follows from their sequence, read them, and find every gap and every repeat."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from ringmain.bus import Batch, Overrun, Publisher, attach
from ringmain.bus._segment import list_readers
from ringmain.storage import Schema
from ringmain.subscribers import Historical, RealTime
from support.logs import POINTS, make_rows

TIMEOUT_S = 30.0

Rows = np.ndarray[Any, np.dtype[np.void]]


def publish(publisher: Publisher, count: int) -> int:
    """Publish the topic's next records as one batch. Returns the last one's sequence."""
    return publisher.publish_batch(make_rows(publisher.schema, publisher.watermarks.published + 1, count))


def check_content(schema: Schema, rows: Rows, first: int) -> None:
    """Assert that these are exactly the records from `first` on, whenever they were published."""
    expected = make_rows(schema, first, len(rows))
    expected["timestamp_ns"] = rows["timestamp_ns"]
    follows = rows["sequence"] == expected["sequence"]
    assert follows.all(), f"record {first} and on: {rows['sequence'].tolist()}"
    wrong = expected["sequence"][rows != expected].tolist()
    assert not wrong, f"records {wrong} are not what was published: {rows[rows != expected]}"
    assert (np.diff(rows["timestamp_ns"]) >= 0).all(), f"record {first} and on: time steps back"


def check_batch(batch: Batch, first: int, schema: Schema = POINTS) -> int:
    """Assert that a batch begins at `first` and is whole. Returns the sequence that follows it."""
    rows = batch.copy()
    assert batch.first == first, f"{first} should come next, got {batch}"
    assert batch.last == first + len(rows) - 1 == first + len(batch) - 1, f"{len(rows)} rows in {batch}"
    check_content(schema, rows, first)
    return first + len(rows)


def read(reader: RealTime | Historical, last: int, schema: Schema = POINTS, *, beyond: bool = False) -> None:
    """Read up to the record `last`, waiting for it: nothing is missing, nothing comes twice, nothing is torn.

    beyond: the last batch may go on behind it, since somebody is publishing.
    """
    expected, deadline = reader.position + 1, time.monotonic() + TIMEOUT_S
    while expected <= last:
        batch = reader.take(max(0.0, deadline - time.monotonic()))
        assert batch is not None, f"{expected} has not come; {reader.stats}"
        assert batch.lost == 0, f"lost before {batch}; {reader.stats}"
        try:
            expected = check_batch(batch, expected, schema)
        except Overrun:  # it has stepped back, and gives these records again
            assert batch.first == expected, f"{expected} should come next, got {batch}"
        assert reader.position == expected - 1, f"{expected} is next, but it stands at {reader.position}"
    assert beyond or expected == last + 1, f"{expected - 1} came, beyond {last}"


def poll_all(reader: RealTime | Historical) -> Rows:
    """What there is to read now, as a copy."""
    parts: list[Rows] = [np.empty(0, reader.schema.dtype)]
    while (batch := reader.poll()) is not None:
        parts.append(batch.copy())
    return np.concatenate(parts)


def readers(address: str) -> dict[str, dict[str, Any]]:
    """The topic's reader table, by name."""
    return {entry["name"]: entry for entry in list_readers(attach(address).control.memory)}
