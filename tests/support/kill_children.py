"""The processes that the kill tests of the bus kill: a writer and a reader (forked.py runs them).

1. Every byte of a row follows from its number and its writer, and its number is the sequence that it must get: a row that is
   torn, doubled, moved or another writer's is recognised by itself.
2. `attempted` is stored before a call, `returned` after it.
3. A reader checks all that it is handed, and ends with an error at the first thing that is wrong.
"""

from __future__ import annotations

import random
import time
from typing import Any, Literal, cast

import numpy as np
from ringmain.bus import Fenced, Overrun, Publisher, Writer
from ringmain.storage import HistoryGone, Schema
from ringmain.subscribers import RealTime
from support import forked

MIXES = tuple(f"mix{index}" for index in range(8))
MARKS = Schema("marks", {"number": "u8", "writer": "u4", **dict.fromkeys(MIXES, "u8")})
LOG_FILE_BYTES = 4 << 20
KEPT_BYTES = 5 * LOG_FILE_BYTES
WRITERS_MAX = 128
TIMEOUT_S = 30.0

Rows = np.ndarray[Any, np.dtype[np.void]]


# --- rows -------------------------------------------------------------------------------------------------------------


def mix(number: np.ndarray[Any, Any], writer: np.ndarray[Any, Any], index: int) -> np.ndarray[Any, Any]:
    mixed = (number * np.uint64(0x9E3779B97F4A7C15)) ^ (writer.astype("u8") * np.uint64(0xC2B2AE3D27D4EB4F))
    return (mixed >> np.uint64(index + 1)) ^ (mixed * np.uint64(2 * index + 3))


def make_rows(first: int, count: int, writer: int) -> Rows:
    """Payloads of the rows `first` to `first + count - 1` of one writer."""
    rows = np.zeros(count, MARKS.payload_dtype)
    rows["number"] = np.arange(first, first + count, dtype="u8")
    rows["writer"] = writer
    for index, name in enumerate(MIXES):
        rows[name] = mix(rows["number"], rows["writer"], index)
    return rows


def find_fault(rows: Rows, *, apart: bool = False) -> str:
    """What is wrong with the first row that is not whole, or (unless they may be apart) not the next; empty where all is well."""
    bad = rows["number"] != rows["sequence"]
    if not apart:
        bad[1:] |= rows["sequence"][1:] != rows["sequence"][:-1] + 1
    for index, name in enumerate(MIXES):
        bad |= rows[name] != mix(rows["number"], rows["writer"], index)
    return (
        "" if not bad.any() else f"row {int(np.argmax(bad))} of {len(rows)} is not whole: {rows[int(np.argmax(bad))]}"
    )


# --- what a process says ----------------------------------------------------------------------------------------------

WORDS = (
    "stop",  # the test: end in good order
    "go",  # the test: begin to publish
    "ready",  # the writer is open; the reader has its place and, if it is reliable, holds the writer
    "opening_ns",  # writer: how long it took to open
    "opened",  # writer: published when it had opened
    "attempted",  # writer: the last sequence that the call under way would give
    "returned",  # writer: the last sequence that a call has returned
    "fenced",  # writer: it was refused
    "closed",  # it ended in good order
    "position",  # reader: the last sequence that it has found good
    "row_count",  # reader: rows found good
    "lost_count",  # reader: told as lost
    "refilled_count",  # reader: read from the log
    "overrun_count",  # reader: times lapped
)


class Place(forked.Place):
    """Also, by writer, the first and last sequence that a reader has seen of it."""

    WORDS = WORDS

    def see(self, rows: Rows) -> None:
        writers = rows["writer"]
        assert (writers[1:] >= writers[:-1]).all(), "an earlier writer's row behind a later one's"
        # The last ones first, since who looks goes by the first ones.
        for at in [*np.flatnonzero(writers[1:] != writers[:-1]), len(rows) - 1]:
            self._words[len(WORDS) + 2 * int(writers[at]) + 1] = int(rows["sequence"][at])
        for at in [0, *(np.flatnonzero(writers[1:] != writers[:-1]) + 1)]:
            word = len(WORDS) + 2 * int(writers[at])
            self._words[word] = self._words[word] or int(rows["sequence"][at])

    def seen(self, writer: int) -> tuple[int, int]:
        """The first and the last sequence of a writer's rows, (0, 0) where there were none."""
        assert writer < WRITERS_MAX
        word = len(WORDS) + 2 * writer
        return self._words[word], self._words[word + 1]


assert len(WORDS) + 2 * WRITERS_MAX <= forked.PLACE_BYTES // 8


# --- roles ------------------------------------------------------------------------------------------------------------


def write(
    place: Place,
    bus: str,
    writer: int,
    seed: int,
    *,
    data_dir: str | None,
    slots: int,
    sync: Literal["interval", "always", "never"] = "interval",
    full: Literal["block", "raise", "drop"] = "block",
    take_over: bool = False,
    wait: bool = False,
) -> None:
    """Publish one by one, in batches and in claims, until told to stop, fenced or killed. wait: begin only at `go`."""
    choice = random.Random(seed)
    started_ns = time.monotonic_ns()
    opened = Writer(
        bus,
        [MARKS],
        data_dir=data_dir,
        slots=slots,
        sync=sync,
        full=full,
        log_file_bytes=LOG_FILE_BYTES,
        retention_bytes=KEPT_BYTES,
        take_over=take_over,
    )
    place["opening_ns"] = time.monotonic_ns() - started_ns
    topic = opened[MARKS.name]
    last = topic.watermarks.published
    place["opened"] = place["attempted"] = place["returned"] = last
    place["ready"] = 1
    while wait and not place["go"]:
        time.sleep(0.001)
    try:
        while not place["stop"]:
            last = _publish_some(topic, place, choice, last, writer, slots)
            if data_dir is not None and choice.random() < 0.05:
                topic.wait(last, "logged", TIMEOUT_S)
            if choice.random() < 0.1:  # let the readers fall asleep
                time.sleep(choice.random() * 0.003)
    except Fenced:
        place["fenced"] = 1
    opened.close()
    place["closed"] = 1


def _publish_some(topic: Publisher, place: Place, choice: random.Random, last: int, writer: int, slots: int) -> int:
    """One call or a few; returns the last sequence."""
    kind = choice.choice(["one", "batch", "batch", "claim", "abort"])
    count = choice.choice([1, 7, choice.randint(1, slots // 2), choice.randint(1, slots // 2)])
    if kind == "one":
        count = min(count, 200)
    elif kind == "batch" and choice.random() < 0.2:
        count = 2 * slots
    rows = make_rows(last + 1, count, writer)
    if kind == "one":
        for row in cast("list[tuple[int, ...]]", rows.tolist()):
            place["attempted"] = last + 1
            returned = topic.publish(*row)
            assert returned == last + 1
            place["returned"] = last = returned
        return last
    place["attempted"] = last + count
    if kind == "batch":
        returned = topic.publish_batch(rows)
        assert returned == last + count
    elif kind == "claim":
        claim = topic.claim(count)
        claim.rows[: count // 2] = rows[: count // 2]
        claim.rows[count // 2 :] = rows[count // 2 :]
        returned = claim.commit()
        assert returned == last + count
    else:
        claim = topic.claim(count)
        claim.rows[:] = rows
        claim.rows["mix0"] = 0  # nobody may ever see these
        claim.abort()
        returned = last
    place["attempted"] = place["returned"] = returned
    return returned


def read(
    place: Place,
    bus: str,
    seed: int,
    *,
    start: int = 1,
    reliable: bool = False,
    follow: Literal["published", "logged", "durable"] = "published",
    nap_s: float = 0.0,
) -> None:
    """Follow the topic, check everything, until it has ended, told to stop or killed. nap_s: be as slow as that at times."""
    choice = random.Random(seed)
    reader = RealTime(
        f"{bus}/{MARKS.name}",
        start=start,
        reliable=reliable,
        follow=follow,
        name=f"reader-{seed}",
        batch_rows=choice.choice([None, 500, 1000]),
        open_timeout=TIMEOUT_S,
    )
    position, lost_count = start - 1, 0
    while not place["stop"]:
        try:
            batch = reader.take(0.05) if place["ready"] else reader.poll()
        except HistoryGone:
            continue  # counted, and told with the next batch
        place["ready"] = 1
        if batch is None:
            if reader.ended:
                break
            continue
        lost_count += batch.lost
        assert batch.first == position + 1 + batch.lost, f"{batch} behind {position}"
        position = batch.first - 1
        try:
            if choice.random() < 0.5:
                rows = batch.copy()
                fault = find_fault(rows)
            else:  # in place: only what is still valid afterwards counts
                rows = batch.rows
                fault = find_fault(rows)
                seen = np.array(rows[["sequence", "writer"]])
                batch.validate()
                rows = seen
        except Overrun:
            place["lost_count"], place["position"] = lost_count, position
            continue
        assert not fault, f"{batch}: {fault}"
        assert len(rows) == batch.last - batch.first + 1
        position = batch.last
        place.see(rows)
        place["lost_count"] = lost_count
        place["row_count"] += len(rows)
        place["position"] = position
        stats = reader.stats
        place["refilled_count"], place["overrun_count"] = stats.refilled_count, stats.overrun_count
        if nap_s and choice.random() < 0.3:
            time.sleep(choice.random() * nap_s)
    stats = reader.stats
    reader.close()
    untold_count = stats.lost_count - lost_count  # found lost just before it was told to stop
    assert untold_count >= 0
    assert stats.position == position + untold_count, f"{stats}, but {lost_count} were told as lost, up to {position}"
    assert place["stop"] or untold_count == 0
    place["closed"] = 1


ROLES = {"write": write, "read": read}


if __name__ == "__main__":
    forked.serve(ROLES, Place)
