"""Positions from trades, each trade counted exactly once although the process that counts is killed again and again."""

import multiprocessing
import os
import random
import tempfile
import time
from multiprocessing.sharedctypes import Synchronized

from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.subscribers import Resumable

FILLS = Schema("fills", {"instrument": "u4", "quantity": "i8"}, units={"quantity": "bought; sold if negative"})
COUNT = 30_000
KILLS = 5


def keep_positions(bus: str, reached: "Synchronized[int]") -> None:
    """Count every fill. The positions are stored together with how far they reach, or not at all."""
    with Resumable(f"{bus}/fills", "positions", start="earliest", state=dict[int, int], batch_rows=100) as fills:
        positions = fills.state or {}
        print(f"begin behind fill {fills.position:,} with {len(positions)} positions", flush=True)
        while fills.position < COUNT:
            batch = fills.take(timeout=60)
            assert batch is not None
            for row in batch.copy():  # a copy is known to be whole
                instrument = int(row["instrument"])
                positions[instrument] = positions.get(instrument, 0) + int(row["quantity"])
            fills.commit(
                positions
            )  # position and positions in one step, in the background: a kill loses both, or neither
            reached.value = batch.last
            time.sleep(0.001)


def main() -> None:
    chance, bus, spawn = random.Random(7), f"keeping-{os.getpid()}", multiprocessing.get_context("spawn")
    expected: dict[int, int] = {}
    reached = spawn.Value("q", 0)
    with tempfile.TemporaryDirectory() as data_dir, Writer(bus, [FILLS], data_dir=data_dir) as writer:
        for _ in range(COUNT):
            instrument, quantity = chance.choice([600519, 601318, 600036]), 100 * chance.randint(-9, 9)
            expected[instrument] = expected.get(instrument, 0) + quantity
            writer["fills"].publish(instrument, quantity)
        for number in range(1, KILLS + 2):
            keeper = spawn.Process(target=keep_positions, args=(bus, reached), daemon=True)
            keeper.start()
            while number <= KILLS and keeper.is_alive() and reached.value < number * COUNT // (KILLS + 2):
                time.sleep(0.001)
            if number <= KILLS:
                keeper.kill()
            keeper.join()
        with Resumable(f"{bus}/fills", "positions", state=dict[int, int]) as fills:
            print(f"counted {fills.position:,} fills, in spite of {KILLS} kills")
            for instrument, quantity in sorted((fills.state or {}).items()):
                print(f"{instrument}: {quantity:,}, as it should be: {quantity == expected[instrument]}")


if __name__ == "__main__":
    main()
