"""Bars of a chart: every 50 ms a row for each instrument, with its first, highest, lowest and last price and its volume."""

import multiprocessing
import os
import time
from multiprocessing.synchronize import Event

import numpy as np
from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import Delayed, ohlcv

TRADES = Schema("trades", {"instrument": "u4", "price": "i8", "quantity": "i8"}, units={"price": "1/100 EUR"})


def publish(bus: str, ready: Event) -> None:
    chance = np.random.default_rng(7)
    with Writer(bus, [TRADES]) as writer:
        ready.wait(60)
        for _ in range(20):
            trades = np.zeros(100, TRADES.payload_dtype)
            trades["instrument"] = chance.choice([600519, 601318], 100)
            trades["price"] = 182_500 + np.cumsum(chance.integers(-5, 6, 100))
            trades["quantity"] = 100 * chance.integers(1, 10, 100)
            writer["trades"].publish_batch(trades)
            time.sleep(0.01)


def subscribe(bus: str, ready: Event) -> dict[int, list[np.void]]:
    of_instrument: dict[int, list[np.void]] = {}
    with Delayed(f"{bus}/trades", 0.05, reduce=ohlcv(), start="earliest", open_timeout=60) as bars:
        ready.set()
        for batch in bars:  # until the publisher closes the bus
            for bar in batch.rows:
                of_instrument.setdefault(int(bar["instrument"]), []).append(bar)
    return of_instrument


def main() -> None:
    spawn, bus = multiprocessing.get_context("spawn"), f"bars-{os.getpid()}"
    ready = spawn.Event()
    publisher = spawn.Process(target=publish, args=(bus, ready), daemon=True)
    publisher.start()
    for instrument, bars in sorted(subscribe(bus, ready).items()):
        first, last = bars[0]["price_first"], bars[-1]["price_last"]
        high, low = max(bar["price_max"] for bar in bars), min(bar["price_min"] for bar in bars)
        volume, count = sum(bar["quantity_sum"] for bar in bars), sum(bar["row_count"] for bar in bars)
        print(
            f"{instrument}: open {first / 100:.2f}, high {high / 100:.2f}, low {low / 100:.2f}, close {last / 100:.2f}"
        )
        print(f"{instrument}: {volume:,} in {count:,} trades; more than one bar: {len(bars) > 1}")
    publisher.join()


if __name__ == "__main__":
    main()
