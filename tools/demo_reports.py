"""What the demo's processes tell each other: a child prints reports, a line each, and ends when its standard input does.

A report is the whole state so far, so only the latest one counts, and a killed process has told all but the last instant.
"""

from __future__ import annotations

import os
import sys
import threading

import msgspec

__all__ = ["REPORT_EVERY_S", "Instrument", "PublisherReport", "SubscriberReport", "TopicRead", "send", "stop_event"]

REPORT_EVERY_S = 0.1


class PublisherReport(msgspec.Struct, frozen=True, kw_only=True):
    """One publisher's doings. Sequences by topic."""

    opened_at: dict[str, int]  # the last sequences there were when it opened the bus
    published: dict[str, int]  # the last sequences it has published
    from_log_count: int  # records that it recovered from the log
    from_rings_count: int  # records that it saved from the rings of the one before
    open_s: float  # how long opening took, recovery included
    closed: bool = False


class TopicRead(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscriber has read of one topic, counted from the records' own sequences."""

    topic: str
    first: int = 0
    last: int = 0
    read_count: int = 0
    gap_count: int = 0  # records passed over
    repeat_count: int = 0  # records handed out again
    digest: int = 0  # CRC-32 of all bytes read, in order
    from_log_count: int = 0
    overrun_count: int = 0
    reopen_count: int = 0  # moves to another publisher's ring
    delay_us: float | None = None  # of the latest records: from publishing to reading, the median


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """One instrument's trades so far."""

    number: int
    last_price: int  # 1/10,000
    volume: int
    trade_count: int


class SubscriberReport(msgspec.Struct, frozen=True, kw_only=True):
    """One subscriber's doings."""

    topics: list[TopicRead]
    fault_count: int = 0  # records whose content cannot be
    market: list[Instrument] = []
    ended: bool = False  # the bus was closed, and everything on it was read


def send(report: PublisherReport | SubscriberReport) -> None:
    """Print a report for the process that started this one."""
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def stop_event() -> threading.Event:
    """An event that is set when standard input ends: the starting process wants no more, or is gone."""
    event = threading.Event()

    def watch() -> None:
        while os.read(0, 64):
            pass
        event.set()

    threading.Thread(target=watch, name="demo-stdin", daemon=True).start()
    return event
