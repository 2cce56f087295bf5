"""The processes that the kill tests of positions kill: a writer, resumable subscribers, members of a group (forked.py runs them).

1. Every byte of a row follows from its number, and its number is its sequence.
2. What a subscriber at least once has worked on it counts, row by row, in a file that the test maps: a byte a row, up to MANY.
3. A subscriber exactly once keeps what it has worked on in its state: how many rows, and what they come to.
"""

from __future__ import annotations

import random
import time

import msgspec
import numpy as np
from ringmain.bus import Overrun, Writer
from ringmain.subscribers import Acknowledged, Resumable
from support import forked
from support.kill_children import MARKS, Place, find_fault, make_rows

ROWS_MAX = 8 << 20
MANY = 250
TIMEOUT_S = 30.0


class Tally(msgspec.Struct):
    """What came of all rows up to `last`, each counted once."""

    last: int = 0
    count: int = 0
    total: int = 0
    mixed: int = 0


def tally_of(last: int) -> Tally:
    """What it should be."""
    return Tally(last, last, last * (last + 1) // 2, int(np.bitwise_xor.reduce(make_rows(1, last, 0)["mix3"])))


class Counts:
    """How often each row was worked on."""

    def __init__(self, path: str) -> None:
        self._counts = np.memmap(path, "u1", "r+", shape=(ROWS_MAX,))

    def add(self, rows: np.ndarray) -> None:
        counts = self._counts[int(rows["sequence"][0]) : int(rows["sequence"][-1]) + 1]
        counts += counts < MANY


def write(place: Place, bus: str, seed: int, *, data_dir: str, slots: int) -> None:
    """Publish batches until told to stop or killed, not as fast as it can."""
    choice = random.Random(seed)
    with Writer(bus, [MARKS], data_dir=data_dir, slots=slots, log_file_bytes=8 << 20) as writer:
        topic = writer[MARKS.name]
        last = topic.watermarks.published
        place["opened"] = place["returned"] = last
        place["ready"] = 1
        while not place["stop"]:
            count = choice.choice([1, 5, 60, slots // 4])
            assert last + count < ROWS_MAX
            last = topic.publish_batch(make_rows(last + 1, count, 0))
            place["returned"] = last
            time.sleep(choice.random() * 0.004)
    place["closed"] = 1


def resume(place: Place, bus: str, seed: int, *, exactly_once: bool, counts: str) -> None:
    """Read on under the name, until told to stop or killed."""
    choice, counted = random.Random(seed), Counts(counts)
    with Resumable(
        f"{bus}/{MARKS.name}",
        "exactly-once" if exactly_once else "at-least-once",
        start=1,
        state=Tally if exactly_once else None,
        every=0.001,
        batch_rows=choice.choice([None, 70, 1000]),
        reopen=True,
        open_timeout=TIMEOUT_S,
    ) as reader:
        tally = reader.state or Tally()
        assert not exactly_once or tally.last == reader.position
        place["ready"] = 1
        while not place["stop"]:
            batch = reader.take(0.05)
            if batch is None:
                continue
            try:
                rows = batch.copy()
            except Overrun:
                continue
            assert batch.lost == 0
            assert not (fault := find_fault(rows)), fault
            if exactly_once:
                assert batch.first == tally.last + 1
                tally.last, tally.count = batch.last, tally.count + len(rows)
                tally.total += int(rows["number"].sum())
                tally.mixed ^= int(np.bitwise_xor.reduce(rows["mix3"]))
                if choice.random() < 0.7:
                    reader.commit(tally)
            else:
                counted.add(rows)
            place["position"] = batch.last
            if choice.random() < 0.1:
                time.sleep(choice.random() * 0.01)
        if exactly_once:
            reader.commit(tally)
        else:
            reader.commit()
    place["closed"] = 1


def share(place: Place, bus: str, seed: int, *, counts: str, timeout: float) -> None:
    """Work in the group, until told to stop or killed: count rows, then acknowledge them, in one of the ways there are."""
    choice, counted = random.Random(seed), Counts(counts)
    with Acknowledged(
        f"{bus}/{MARKS.name}",
        "group",
        start=1,
        timeout=timeout,
        batch_rows=choice.choice([7, 100, 1000]),
        reopen=True,
        open_timeout=TIMEOUT_S,
    ) as reader:
        place["ready"] = 1
        while not place["stop"]:
            batch = reader.take(0.05)
            place["position"] = reader.stats.acknowledged
            if batch is None:
                continue
            try:
                rows = batch.copy()
            except Overrun:
                continue
            assert batch.lost == 0
            assert not (fault := find_fault(rows)), fault
            if choice.random() < 0.05:
                reader.nack(batch)
                continue
            counted.add(rows)
            kind = choice.random()
            if kind < 0.1 and len(rows) < 100:
                for sequence in range(batch.first, batch.last + 1):
                    reader.ack(sequence)
            elif kind < 0.2:
                reader.ack_to(batch.last)
            elif kind < 0.97:
                reader.ack(batch)
            place["row_count"] += len(rows)
    place["closed"] = 1


ROLES = {"write": write, "resume": resume, "share": share}


if __name__ == "__main__":
    forked.serve(ROLES, Place)
