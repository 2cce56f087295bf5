"""A publisher is killed with SIGKILL in the middle of its work; the next one goes on, and nothing published is lost."""

import multiprocessing
import os
import tempfile

from ringmain.bus import Writer, attach
from ringmain.storage import Schema
from ringmain.subscribers import Overrun, RealTime

NUMBERS = Schema("numbers", {"number": "u8"})
ENOUGH = 20_000


def publish(bus: str, data_dir: str, count: int) -> None:
    """Publish the `count` numbers that follow what the bus has already."""
    with Writer(bus, [NUMBERS], data_dir=data_dir) as writer:
        numbers = writer["numbers"]
        begin = numbers.watermarks.published
        print(f"publisher {os.getpid()} goes on behind {begin:,}", flush=True)
        for number in range(begin + 1, begin + count + 1):
            numbers.publish(number)


def main() -> None:
    bus, spawn = f"crash-{os.getpid()}", multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as data_dir:
        first = spawn.Process(target=publish, args=(bus, data_dir, 1_000_000_000), daemon=True)
        second = spawn.Process(target=publish, args=(bus, data_dir, 1_000), daemon=True)
        first.start()
        wrong = left = 0
        with RealTime(f"{bus}/numbers", start="earliest", open_timeout=60) as reader:
            for batch in reader:
                try:
                    rows = batch.copy()
                except Overrun:
                    continue  # overwritten while it was copied: the same records come again, from the log
                wrong += int((rows["number"] != rows["sequence"]).sum())
                if batch.last > ENOUGH and first.is_alive():
                    first.kill()
                    first.join()
                    left = attach(reader.address).watermarks().published
                    print(f"publisher {first.pid} is killed behind {left:,}", flush=True)
                    second.start()
            stats = reader.stats  # the second publisher has closed the bus
        second.join()
    print(
        f"read 1 to {stats.position:,}: {stats.position - left:,} of the second, {wrong} wrong, {stats.lost_count} lost"
    )


if __name__ == "__main__":
    main()
