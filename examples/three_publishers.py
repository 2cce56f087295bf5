"""Three processes publish to one topic, each through a lane; one is killed in the middle, and nothing that it published is lost."""

import multiprocessing
import os
from multiprocessing.synchronize import Event

import numpy as np
from ringmain.bus import Writer, open_lane
from ringmain.storage import Schema
from ringmain.subscribers import RealTime

ORDERS = Schema("orders", {"desk": "u4", "number": "u8", "price": "i8"})
ENOUGH = 30_000


def trade(bus: str, desk: int, stop: Event) -> None:
    """A desk: numbers its orders 1, 2, 3, …, and publishes until it is told to stop."""
    with open_lane(f"{bus}/orders", schema=ORDERS) as lane:
        number = 0
        while not stop.is_set():
            number = lane.publish(desk, number + 1, 100 + desk)  # the lane counts as we do
        lane.wait(number, "drained")  # in the topic: subscribers see it


def main() -> None:
    bus, spawn = f"desks-{os.getpid()}", multiprocessing.get_context("spawn")
    stops = [
        spawn.Event() for _ in range(3)
    ]  # one each: who is killed while it looks at an event leaves that one locked
    with Writer(bus, [ORDERS], lanes=["orders"]), RealTime(f"{bus}/orders", reliable=True) as reader:
        desks = [spawn.Process(target=trade, args=(bus, desk, stops[desk]), daemon=True) for desk in range(3)]
        for desk in desks:
            desk.start()
        seen = np.zeros(3, "u8")  # the number of each desk's last order
        wrong = 0

        def count(rows: np.ndarray) -> None:
            nonlocal wrong
            for desk in range(3):
                numbers = rows["number"][rows["desk"] == desk]
                wrong += int((numbers != np.arange(seen[desk] + 1, seen[desk] + 1 + len(numbers))).sum())
                seen[desk] += len(numbers)

        while seen.min() < ENOUGH:
            batch = reader.take(60)
            assert batch is not None, "no order came for a minute"
            count(batch.rows)
            if seen[0] >= ENOUGH and desks[0].is_alive():
                desks[0].kill()
                desks[0].join()
                print(f"desk 0 is killed, {seen[0]:,} of its orders seen so far", flush=True)
        for desk in (1, 2):
            stops[desk].set()
        while any(desk.is_alive() for desk in desks) or reader.stats.lag:
            if (batch := reader.take(0.1)) is not None:
                count(batch.rows)
    by_desk = ", ".join(f"{count:,} of desk {desk}" for desk, count in enumerate(seen))
    print(f"read {reader.stats.position:,} orders: {by_desk}; {wrong} wrong")


if __name__ == "__main__":
    main()
