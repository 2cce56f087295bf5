"""Replay: read the past again from the log, by sequence and by time. The bus need not be running."""

import os
import tempfile
import time

import numpy as np
from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import Historical

TRADES = Schema("trades", {"price": "i8", "quantity": "i8"})


def some_trades(first_price: int, count: int) -> np.ndarray:
    rows = np.zeros(count, TRADES.payload_dtype)
    rows["price"], rows["quantity"] = np.arange(first_price, first_price + count), 100
    return rows


def show(what: str, reader: Historical) -> None:
    with reader:
        rows = np.concatenate([batch.rows for batch in reader])  # the batches are views of the log itself
    print(f"{what}: {rows['sequence'][0]} to {rows['sequence'][-1]}, prices {rows['price'][0]} to {rows['price'][-1]}")


def main() -> None:
    bus = f"replay-{os.getpid()}"
    address = f"{bus}/trades"
    with tempfile.TemporaryDirectory() as data_dir:
        with Writer(bus, [TRADES], data_dir=data_dir) as writer:
            writer["trades"].publish_batch(some_trades(first_price=10_000, count=1_000))
            noon_ns = time.time_ns()  # every record carries the time at which it was published
            writer["trades"].publish_batch(some_trades(first_price=20_000, count=1_000))
        show("everything", Historical(address, data_dir=data_dir))
        show("from 501, up to 600", Historical(address, data_dir=data_dir, start=501, last=600))
        show("before noon", Historical(address, data_dir=data_dir, until=noon_ns))
        show("since noon", Historical(address, data_dir=data_dir, since=noon_ns))


if __name__ == "__main__":
    main()
