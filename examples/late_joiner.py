"""A late joiner gets what it missed from the log, and then goes on in the ring, without a gap or a repeat."""

import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Event

import numpy as np
from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import Overrun, RealTime

POINTS = Schema("points", {"value": "u8"})
HALF, SLOTS = 10_000, 1_024  # the ring holds about a tenth of what is published before the joiner comes


def join_late(bus: str, caught_up: Event) -> None:
    total = 0
    with RealTime(f"{bus}/points", start="earliest") as points:
        for batch in points:
            try:
                total += int(batch.copy()["value"].sum())
            except Overrun:
                continue  # overwritten while it was copied: the same records come again, from the log
            if batch.last == HALF:
                caught_up.set()
        stats = points.stats
    print(f"read {stats.read_count:,} records, {stats.lost_count} lost, up to sequence {stats.position:,}")
    print(f"{stats.refilled_count:,} came from the log, {stats.read_count - stats.refilled_count:,} from the ring")
    print("the sum is right" if total == sum(range(2 * HALF)) else "the sum is wrong")


def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    caught_up = spawn.Event()
    rows = np.arange(2 * HALF, dtype="u8").view(POINTS.payload_dtype)
    with (
        tempfile.TemporaryDirectory() as data_dir,
        Writer(f"late-joiner-{os.getpid()}", [POINTS], data_dir=data_dir, slots=SLOTS) as writer,
    ):
        points = writer["points"]
        points.publish_batch(rows[:HALF])
        print(f"published {HALF:,} records, {SLOTS:,} of which the ring holds", flush=True)
        joiner = spawn.Process(target=join_late, args=(writer.bus, caught_up), daemon=True)
        joiner.start()
        caught_up.wait(60)
        for first in range(HALF, 2 * HALF, 100):
            points.publish_batch(rows[first : first + 100])
            time.sleep(0.001)
        writer.close()  # and so tell the joiner that nothing more will come
        joiner.join()


if __name__ == "__main__":
    main()
