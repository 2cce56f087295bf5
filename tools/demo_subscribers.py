"""The demo's subscriber processes: three ways to read one bus, all four topics between them.

tape: real-time, gets the trades the moment they are published.
auditor: real-time, gets the orders once they are durable.
late joiner: starts in the middle, reads quotes and accounts from their first record on, and goes on into the present.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from threading import Event

from ..subscribers import Historical, Overrun, RealTime
from .demo_reports import REPORT_EVERY_S, SubscriberReport, send, stop_event
from .demo_tally import Tally
from .demo_work import Auditor, Keeper, Tape, Work

__all__ = ["AUDITOR", "LATE_JOINER", "TAPE", "TOPICS_READ"]

TAPE, AUDITOR, LATE_JOINER = "tape", "auditor", "late joiner"
TOPICS_READ = {TAPE: ("trades",), AUDITOR: ("orders",), LATE_JOINER: ("quotes", "accounts")}
IDLE_S = 0.01  # how long a reader of several waits for its topic before the next one has its turn
OPEN_S = 30.0


def open_part(name: str, bus: str) -> tuple[list[RealTime | Historical], Work]:
    """Open a subscriber's readers; gives them with what is to be done with their records."""
    topics = [f"{bus}/{topic}" for topic in TOPICS_READ[name]]
    if name == TAPE:
        return [RealTime(topic, start="earliest", name=name, open_timeout=OPEN_S) for topic in topics], Tape()
    if name == AUDITOR:
        return [
            RealTime(topic, start="earliest", follow="durable", name=name, open_timeout=OPEN_S) for topic in topics
        ], Auditor()
    return [Historical(topic, live=True, name=name) for topic in topics], Keeper()


def read(readers: Sequence[RealTime | Historical], work: Work, stop: Event) -> None:
    """Read until the bus is closed and everything is read, or until told to stop; report all the while."""
    tallies = [Tally(reader) for reader in readers]

    def report(ended: bool = False) -> None:
        send(
            SubscriberReport(
                topics=[tally.result() for tally in tallies],
                fault_count=work.fault_count,
                market=work.market(),
                ended=ended,
            )
        )

    wait_s, report_at = IDLE_S, time.monotonic()
    while not stop.is_set() and not all(reader.ended for reader in readers):
        got_some = False
        for tally in tallies:
            batch = tally.reader.take(wait_s)
            if batch is None:
                continue
            try:
                rows = batch.copy()  # counted, summed and checked below: proven whole once, before all that
            except Overrun:
                continue  # the reader gets these records again, from the log
            tally.count(rows)
            work.add(tally.reader.schema.name, rows)
            got_some = True
        wait_s = 0.0 if got_some and len(readers) > 1 else IDLE_S
        if time.monotonic() >= report_at:
            report()
            report_at = time.monotonic() + REPORT_EVERY_S
    report(ended=not stop.is_set())


def main() -> None:
    """Run as a process of its own; the demo starts it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(TOPICS_READ))
    parser.add_argument("bus")
    given = parser.parse_args()
    stop = stop_event()
    readers, work = open_part(given.name, given.bus)
    try:
        read(readers, work, stop)
    finally:
        for reader in readers:
            reader.close()


if __name__ == "__main__":
    main()
