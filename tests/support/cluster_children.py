"""What publishers and subscribers of a cluster's bus do, in processes of their own; what each one knows it writes into a file.

Publishers know what was acknowledged to them, and by which node; subscribers know the rows that they got.
"""

from __future__ import annotations

import io
import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ringmain.bus import BusError, LanePublisher, NotLeader, Overrun, attach, open_lane
from ringmain.storage import Schema
from ringmain.subscribers import Historical, RealTime
from support.logs import Rows

__all__ = ["ACKNOWLEDGED", "RECORDS", "publish", "publish_exactly", "subscribe", "value_of"]

RECORDS = Schema("records", {"value": "u8"})
ACKNOWLEDGED = np.dtype([("value", "u8"), ("node", "u8")])
STEP_ROWS = 500
ROWS_MAX = 8  # that are published together
WAIT_S = 2.0
OPEN_S = 90.0  # after a power cut of everything the servers elect, and the nodes claim, before there is a topic
PAUSE_S = 0.05
REST_S = 0.0 if os.environ.get("RINGMAIN_NIGHTLY") else 0.005  # between records: by day other tests run beside


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
                        last = [lane.publish(value) for value in run][-1]
                        lane.wait(last, "replicated", WAIT_S)
                        file.write(np.array([(value, numbers[node]) for value in run], ACKNOWLEDGED).tobytes())
                        time.sleep(REST_S)
            except NotLeader as error:
                node = error.leader or next(nodes)
            except (BusError, TimeoutError, OSError):
                node = next(nodes)
            time.sleep(PAUSE_S)


def publish_exactly(rows: Rows, topic: str, buses: Mapping[str, str], seconds: float) -> None:
    """Publish rows once each, over so many seconds, on whichever node leads; alone on its topic. Returns when all are replicated.

    A lane is left only once it has ended, or another node leads: what it has not brought into the topic by then never comes. So
    the topic of who leads now says how far it has come.
    """
    nodes = itertools.cycle(buses)
    node, begin = next(nodes), time.monotonic()
    while True:
        try:
            with open_lane(f"{buses[node]}/{topic}") as lane:
                first = attach(f"{buses[node]}/{topic}").watermarks().published
                while first < len(rows):
                    run = rows[first : first + STEP_ROWS]
                    last, first = lane.publish_batch(run), first + len(run)
                    while not _is_replicated(lane, last):
                        if others := [name for name, bus in buses.items() if name != node and _leads(f"{bus}/{topic}")]:
                            raise NotLeader(buses[node], others[0])
                    time.sleep(max(0.0, begin + seconds * first / len(rows) - time.monotonic()))
                return
        except NotLeader as error:
            node = error.leader or next(nodes)
        except BusError:
            node = next(nodes)
        time.sleep(PAUSE_S)


def _is_replicated(lane: LanePublisher, sequence: int) -> bool:
    try:
        lane.wait(sequence, "replicated", WAIT_S)
    except TimeoutError:
        return False
    return True


def _leads(address: str) -> bool:
    try:
        open_lane(address).close()
    except BusError:
        return False
    return True


def subscribe(address: str, told: Mapping[str, str], stop: str) -> None:
    """Write down all rows of a topic as they come, until the file `stop` is there; by two readers, each into its file of `told`.

    They go on behind what these have.
    """
    with (
        open(told["real-time"], "ab", buffering=0) as by_real_time,
        open(told["live"], "ab", buffering=0) as by_live,
        RealTime(address, start=_next(by_real_time), reopen=True, open_timeout=OPEN_S) as real_time,
        Historical(address, start=_next(by_live), live=True, reopen=True) as live,
    ):
        while not Path(stop).exists():
            for reader, file in ((real_time, by_real_time), (live, by_live)):
                batch = reader.take(PAUSE_S / 2)
                if batch is None:
                    continue
                try:
                    rows = batch.copy()
                except Overrun:
                    continue  # lapped: the reader gets these rows again, from the log
                file.write(rows.tobytes())


def _next(told: io.FileIO) -> int:
    """The sequence behind those in the file, which begins with the first; a row that was not written whole is taken off."""
    count = told.tell() // RECORDS.row_bytes
    told.truncate(count * RECORDS.row_bytes)
    return count + 1
