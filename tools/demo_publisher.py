"""The demo's publisher process: a small exchange whose four topics go out at a steady rate.

Started again after a kill, it opens the same bus and the exchange's next session: sequences and ids go on where they ended.
"""

from __future__ import annotations

import argparse
import time
from threading import Event

from ..bus import Writer
from ..storage import ACCOUNTS, ORDERS, QUOTES, TRADES
from .demo_reports import REPORT_EVERY_S, PublisherReport, send, stop_event
from .exchange import Exchange
from .pace import Pace

SCHEMAS = (ORDERS, TRADES, QUOTES, ACCOUNTS)
SLOTS = {"orders": 65_536, "trades": 32_768, "quotes": 16_384, "accounts": 16_384}  # seconds' worth, 15 MB in all
LOG_FILE_BYTES = 16 << 20
BURST = 2_000  # most records at a time when it has fallen behind
IDLE_S = 0.001


def publish(bus: str, data_dir: str, seed: int, session: int, rate: float, stop: Event) -> None:
    """Publish one session of the exchange until told to stop, and close the bus."""
    exchange, pace = Exchange(seed, session=session), Pace(rate)
    started = time.monotonic()
    with Writer(bus, SCHEMAS, data_dir=data_dir, slots=SLOTS, log_file_bytes=LOG_FILE_BYTES) as writer:
        topics = {schema.name: writer[schema.name] for schema in SCHEMAS}
        published = {name: topic.watermarks.published for name, topic in topics.items()}
        report = PublisherReport(
            opened_at=published.copy(),
            published=published,
            from_log_count=writer.carried.log.record_count if writer.carried.log is not None else 0,
            from_rings_count=sum(writer.carried.from_rings.values()),
            open_s=time.monotonic() - started,
        )
        send(report)
        owed_count, report_at = 0, time.monotonic()
        while not stop.is_set():
            owed_count += pace.take(BURST)
            if owed_count <= 0:
                time.sleep(IDLE_S)
                continue
            for name, rows in exchange.step(max(1, owed_count * 5 // 6)).items():  # the sixth is quotes and accounts
                if len(rows):
                    published[name] = topics[name].publish_batch(rows)
                    owed_count -= len(rows)
            if time.monotonic() >= report_at:
                send(report)
                report_at += REPORT_EVERY_S
    send(
        PublisherReport(
            opened_at=report.opened_at,
            published=published,
            from_log_count=report.from_log_count,
            from_rings_count=report.from_rings_count,
            open_s=report.open_s,
            closed=True,
        )
    )


def main() -> None:
    """Run as a process of its own; the demo starts it."""
    parser = argparse.ArgumentParser(description=publish.__doc__)
    parser.add_argument("bus")
    parser.add_argument("data_dir")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--session", type=int, default=0)
    parser.add_argument("--rate", type=float, default=50_000)
    given = parser.parse_args()
    publish(given.bus, given.data_dir, given.seed, given.session, given.rate, stop_event())


if __name__ == "__main__":
    main()
