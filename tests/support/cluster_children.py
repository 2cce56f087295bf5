"""What publishers and subscribers of a cluster's bus do, in processes of their own; what each one knows it writes into a file.

Publishers know what was acknowledged to them, and by which node; subscribers know the rows that they got.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from time import sleep

import numpy as np
from ringmain.bus import BusError, NotLeader, Overrun, open_lane
from ringmain.storage import Schema
from ringmain.subscribers import Historical, RealTime

__all__ = ["ACKNOWLEDGED", "RECORDS", "publish", "subscribe", "value_of"]

RECORDS = Schema("records", {"value": "u8"})
ACKNOWLEDGED = np.dtype([("value", "u8"), ("node", "u8")])
ROWS_MAX = 8  # that are published together
WAIT_S = 2.0
OPEN_S = 30.0
PAUSE_S = 0.02


def value_of(publisher: int, count: int) -> int:
    """No two rows have the same."""
    return publisher << 40 | count


def publish(number: int, buses: Mapping[str, str], told: str, stop: str) -> None:
    """Publish on whichever node leads, until the file `stop` is there. buses: by the node's name."""
    nodes = itertools.cycle(buses)
    numbers = {node: at for at, node in enumerate(buses)}
    counts = itertools.count(1)
    node = next(itertools.islice(nodes, number, None))
    with open(told, "ab", buffering=0) as file:
        while not Path(stop).exists():
            try:
                with open_lane(f"{buses[node]}/records", full_timeout=WAIT_S) as lane:
                    while not Path(stop).exists():
                        run = [value_of(number, next(counts)) for _ in range(1 + next(counts) % ROWS_MAX)]
                        for value in run:
                            last = lane.publish(value)
                        lane.wait(last, "replicated", WAIT_S)
                        file.write(np.array([(value, numbers[node]) for value in run], ACKNOWLEDGED).tobytes())
            except NotLeader as error:
                node = error.leader or next(nodes)
            except (BusError, TimeoutError, OSError):
                node = next(nodes)
            sleep(PAUSE_S)


def subscribe(address: str, live: bool, told: str, stop: str) -> None:
    """Write down all rows of a topic as they come, until the file `stop` is there. live: by a Historical reader."""
    if live:
        reader = Historical(address, live=True, reopen=True)
    else:
        reader = RealTime(address, start="earliest", reopen=True, open_timeout=OPEN_S)
    with reader, open(told, "ab", buffering=0) as file:
        while not Path(stop).exists():
            batch = reader.take(PAUSE_S)
            if batch is None:
                continue
            try:
                rows = batch.copy()
            except Overrun:
                continue  # lapped: the reader gets these rows again, from the log
            file.write(rows.tobytes())
