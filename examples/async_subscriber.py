"""A subscriber in asyncio: `async for` waits for records while the event loop goes on with other work."""

import asyncio
import multiprocessing
import os
import time
from multiprocessing.synchronize import Event

from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import RealTime

TICKS = Schema("ticks", {"price": "i8"})


def publish(bus: str, begin: Event) -> None:
    with Writer(bus, [TICKS]) as writer:
        begin.wait(60)
        for number in range(20):
            writer["ticks"].publish(18_250_000 + 100 * number)
            time.sleep(0.01)


async def other_work(begin: Event) -> None:
    turns = 0
    try:
        while True:
            await asyncio.sleep(0.005)
            turns += 1
            if turns == 3:
                begin.set()  # the publisher has waited for this, and so has the subscriber, in its `async for`
    finally:
        print(f"{turns} turns of other work meanwhile")


async def subscribe(bus: str, begin: Event) -> None:
    with RealTime(f"{bus}/ticks", start="earliest", open_timeout=60) as ticks:
        work = asyncio.create_task(other_work(begin))
        async for batch in ticks:  # until the publisher closes the bus
            for row in batch.copy():
                print(f"tick {row['sequence']}: {row['price'] / 10_000:.2f}")
        work.cancel()
        await asyncio.wait([work])


def main() -> None:
    spawn, bus = multiprocessing.get_context("spawn"), f"async-{os.getpid()}"
    begin = spawn.Event()
    publisher = spawn.Process(target=publish, args=(bus, begin), daemon=True)
    publisher.start()
    asyncio.run(subscribe(bus, begin))
    publisher.join()


if __name__ == "__main__":
    main()
