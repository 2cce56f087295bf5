"""The processes that the kill tests of lanes kill: a writer, publishers with a lane each, and a reader (forked.py runs them).

1. Every byte of a row follows from its number and its publisher. A publisher counts its rows 1, 2, 3, …, and its number is the
   sequence that its lane gives it.
2. `attempted` is stored before a call, `returned` after it.
3. The reader gets every record of the topic. Of each publisher it must see 1, 2, 3, …: a row that comes twice, is missing, or
   stands before an earlier one is found at once.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
from ringmain.bus import LanePublisher, Writer, open_lane
from ringmain.subscribers import RealTime
from support import forked
from support.kill_children import KEPT_BYTES, LOG_FILE_BYTES, MARKS, MIXES, Rows, make_rows
from support.kill_children import mix as mix_of

PUBLISHERS_MAX = 400
TIMEOUT_S = 30.0

WORDS = (
    "stop",  # the test: end in good order
    "ready",  # the writer is open; the lane is; the reader has its place
    "opening_ns",  # writer: how long it took to open
    "attempted",  # publisher: the number of the last row that the call under way would give
    "returned",  # publisher: the number of the last row that a call has returned for
    "closed",  # it ended in good order
    "position",  # reader: the last sequence that it has found good
)


class Place(forked.Place):
    """Also, by publisher, the number of the last row that a reader has seen of it."""

    WORDS = WORDS

    def seen(self, publisher: int) -> int:
        return self._words[len(WORDS) + publisher]

    def see(self, rows: Rows) -> None:
        """Check rows that follow those seen before."""
        for index, name in enumerate(MIXES):
            torn = rows[name] != mix_of(rows["number"], rows["writer"], index)
            assert not torn.any(), f"a row is not whole: {rows[int(np.argmax(torn))]}"
        for publisher in np.unique(rows["writer"]).tolist():
            mine = rows[rows["writer"] == publisher]
            first = self.seen(publisher) + 1
            expected = np.arange(first, first + len(mine), dtype="u8")
            wrong = mine["number"] != expected
            assert not wrong.any(), (
                f"publisher {publisher}: {expected[int(np.argmax(wrong))]} was expected, and {mine[int(np.argmax(wrong))]} came"
            )
            self._words[len(WORDS) + publisher] = first + len(mine) - 1


assert len(WORDS) + PUBLISHERS_MAX <= forked.PLACE_BYTES // 8


def write(place: Place, bus: str, *, data_dir: str | None, slots: int, take_over: bool = False) -> None:
    """Hold the bus open, until told to stop, taken over or killed."""
    started_ns = time.monotonic_ns()
    writer = Writer(
        bus,
        [MARKS],
        data_dir=data_dir,
        slots=slots,
        lanes=True,
        log_file_bytes=LOG_FILE_BYTES,
        retention_bytes=KEPT_BYTES,
        take_over=take_over,
    )
    place["opening_ns"] = time.monotonic_ns() - started_ns
    place["ready"] = 1
    while not place["stop"]:
        time.sleep(0.001)
    writer.close()
    place["closed"] = 1


def publish(place: Place, bus: str, publisher: int, seed: int, *, slots: int, durable: bool) -> None:
    """Publish one by one, in batches and in claims, until told to stop or killed."""
    choice = random.Random(seed)
    lane = open_lane(f"{bus}/{MARKS.name}", slots=slots, open_timeout=TIMEOUT_S, reopen=True)
    place["ready"] = 1
    last = 0
    while not place["stop"]:
        last = _publish_some(lane, place, choice, last, publisher, slots)
        if choice.random() < 0.05:
            lane.wait(last, choice.choice(["drained", "durable"]) if durable else "drained", TIMEOUT_S)
        if choice.random() < 0.1:  # let the drain fall asleep
            time.sleep(choice.random() * 0.003)
    lane.wait(last, "durable" if durable else "drained", TIMEOUT_S)
    lane.close()
    place["closed"] = 1


def _publish_some(
    lane: LanePublisher, place: Place, choice: random.Random, last: int, publisher: int, slots: int
) -> int:
    """One call or a few; returns the number of the last row."""
    kind = choice.choice(["one", "batch", "batch", "claim", "abort"])
    count = choice.choice([1, 7, choice.randint(1, slots // 2)])
    if kind == "batch" and choice.random() < 0.2:
        count = 2 * slots
    rows = make_rows(last + 1, count, publisher)
    if kind == "one":
        values: list[Any] = rows[:100].tolist()
        for row in values:
            place["attempted"] = last + 1
            last = _returned(place, lane.publish(*row), last + 1)
        return last
    place["attempted"] = last + count
    if kind == "batch":
        return _returned(place, lane.publish_batch(rows), last + count)
    claim = lane.claim(count)
    claim.rows[:] = rows
    if kind == "claim":
        return _returned(place, claim.commit(), last + count)
    claim.rows["mix0"] = 0  # nobody may ever see these
    claim.abort()
    place["attempted"] = last
    return last


def _returned(place: Place, sequence: int, expected: int) -> int:
    assert sequence == expected
    place["returned"] = sequence
    return sequence


def read(place: Place, bus: str) -> None:
    """Follow the topic from its first record on, reliably, until it has ended."""
    with RealTime(f"{bus}/{MARKS.name}", start=1, reliable=True, open_timeout=TIMEOUT_S) as reader:
        reader.poll()
        place["ready"] = 1
        position = 0
        while not reader.ended:
            batch = reader.take(0.05)
            if batch is None:
                continue
            assert (batch.first, batch.lost) == (position + 1, 0)
            place.see(batch.copy())
            position = place["position"] = batch.last
    place["closed"] = 1


ROLES = {"write": write, "publish": publish, "read": read}


if __name__ == "__main__":
    forked.serve(ROLES, Place)
