"""Publish and subscribe: one process publishes three trades, another reads them as numpy rows."""

import multiprocessing
import os

from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import RealTime

TRADES = Schema("trades", {"instrument": "u4", "price": "i8", "quantity": "i8", "side": "S1"})


def subscribe(bus: str) -> None:
    with RealTime(f"{bus}/trades", start="earliest") as trades:
        for batch in trades:
            for row in batch.rows:  # the publisher's own memory, mapped read-only
                print(f"{row['sequence']}: {row['quantity']} of {row['instrument']} at {row['price'] / 10_000:.2f}")
            batch.validate()  # raises if the rows were overwritten meanwhile
            if batch.last == 3:
                return


def main() -> None:
    with Writer(f"hello-{os.getpid()}", [TRADES]) as writer:
        subscriber = multiprocessing.get_context("spawn").Process(target=subscribe, args=(writer.bus,))
        subscriber.start()
        for quantity in (100, 200, 300):
            writer["trades"].publish(600519, 18_250_000, quantity, b"B")
        subscriber.join()


if __name__ == "__main__":
    main()
