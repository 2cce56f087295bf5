"""The processes that the kill tests of delayed subscribers kill: writers, as in kill_children.py, and Delayed
of each kind, one of them Filtered.

A reader checks all that it is handed, and that its batches together are the whole stream: what is in none is told as lost.
"""

from __future__ import annotations

import random
import time

import numpy as np
from ringmain.bus import Batch, Overrun
from ringmain.storage import HistoryGone
from ringmain.subscribers import Delayed, Filtered, Reduction, Subscriber
from support import forked
from support.kill_children import MARKS, TIMEOUT_S, Place, Rows, find_fault, write

PASSING = 3000  # one row in so many passes the filter: in many a batch none does
BY_WRITER = Reduction("writer", number=("first", "last", "min", "max"))


def read(
    place: Place, bus: str, seed: int, *, kind: str, reliable: bool, interval: float, nap_s: float = 0.0, start: int = 1
) -> None:
    """Follow the topic until it has ended, told to stop or killed. kind: "all", "filtered", "newest" or "reduced"."""
    choice = random.Random(seed)
    reader: Subscriber = Delayed(
        f"{bus}/{MARKS.name}",
        interval,
        rows=choice.choice([None, 1000]),
        last="writer" if kind == "newest" else None,
        reduce=BY_WRITER if kind == "reduced" else None,
        start=start,
        reliable=reliable,
        name=f"delayed-{seed}",
        open_timeout=TIMEOUT_S,
    )
    if kind == "filtered":
        reader = Filtered(reader, where=lambda rows: rows["number"] % PASSING == 0)
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
        position += batch.lost
        try:
            rows = batch.copy()
        except Overrun:  # it comes again, or is told as lost then
            continue
        assert batch.last > position, f"{batch} behind {position}"
        CHECKS[kind](batch, rows, batch.last - position)
        place.see(rows)
        place["lost_count"] = lost_count
        place["row_count"] += batch.last - position
        place["position"] = position = batch.last
        stats = reader.stats
        place["refilled_count"], place["overrun_count"] = stats.refilled_count, stats.overrun_count
        if nap_s and choice.random() < 0.3:
            time.sleep(choice.random() * nap_s)
    place["row_count"] += reader.position - position  # what has been filtered out since the last batch
    place["position"] = reader.position
    reader.close()
    place["closed"] = 1


# --- what is right ----------------------------------------------------------------------------------------------------


def _check_all(batch: Batch, rows: Rows, count: int) -> None:
    assert (len(rows), int(rows["sequence"][0]), int(rows["sequence"][-1])) == (count, batch.first, batch.last)
    gaps = np.flatnonzero(np.diff(rows["sequence"]) != 1) + 1  # where some were lost
    assert len(gaps) == 0 or batch.lost
    for run in np.split(rows, gaps):
        assert not find_fault(run), f"{batch}: {find_fault(run)}"


def _check_filtered(batch: Batch, rows: Rows, count: int) -> None:
    first = batch.last - count + 1 - batch.lost
    passing = np.arange(first + -first % PASSING, batch.last + 1, PASSING, dtype="u8")
    assert len(rows)
    assert np.isin(rows["sequence"], passing).all(), f"{rows['sequence']} in {first} to {batch.last}"
    assert (np.diff(rows["sequence"].astype("i8")) > 0).all()
    assert len(passing) - len(rows) <= batch.lost, (
        f"{len(passing)} rows should pass, {len(rows)} have; {batch.lost} are lost"
    )
    assert not find_fault(rows, apart=True), f"{batch}: {find_fault(rows, apart=True)}"


def _check_newest(batch: Batch, rows: Rows, count: int) -> None:
    assert 0 < len(rows) <= count
    assert (np.diff(rows["writer"].astype("i8")) > 0).all(), "each writer's newest row, the later writer's last"
    assert int(rows["sequence"][-1]) == batch.last
    assert not find_fault(rows, apart=True), f"{batch}: {find_fault(rows, apart=True)}"


def _check_reduced(batch: Batch, rows: Rows, count: int) -> None:
    assert int(rows["row_count"].sum()) == count, f"{rows['row_count']} in {batch}, and not {count}"
    assert (rows["number_first"] == rows["first_sequence"]).all()
    assert (rows["number_last"] == rows["sequence"]).all()
    assert (rows["number_min"] == rows["number_first"]).all()
    assert (rows["number_max"] == rows["number_last"]).all()
    assert (int(rows["number_min"][0]), int(rows["number_max"][-1])) == (batch.first, batch.last)
    assert (rows["number_min"][1:] > rows["number_max"][:-1]).all()


CHECKS = {"all": _check_all, "filtered": _check_filtered, "newest": _check_newest, "reduced": _check_reduced}


if __name__ == "__main__":
    forked.serve({"write": write, "read": read}, Place)
