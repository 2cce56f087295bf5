"""A small store for the tests of the commands that read one, with what they must show of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ringmain.storage import Schema, Store
from ringmain.storage.levels import Shape

BOOK = Schema(
    "book",
    {"instrument": "u4", "venue": "S4", "price": "i8", "at_ns": "i8", "bids": "3i8"},
    key=("instrument", "venue"),
    units={"price": "1/10,000 EUR", "at_ns": "ns since the Unix epoch"},
)
TAPE = Schema("tape", {"number": "u8"})
VENUES = (b"A,B", b"PAR", b"XETR")
KEYS = sorted((instrument, venue) for instrument in range(1, 41) for venue in VENUES)
AT_NS = 1_700_000_000_000_000_000
SMALL = Shape(level0_tables=2, ratio=4, table_bytes=1 << 13, level1_bytes=1 << 14)


def open_store(directory: Path, **settings: Any) -> Store:
    given: dict[str, Any] = {"memtable_bytes": 1 << 20, "log_file_bytes": 4 << 20, "shape": SMALL, "sync": "never"}
    return Store(directory, [BOOK, TAPE], **given | settings)


def put_round(store: Store, round_number: int) -> None:
    """Put a row of every key; its price is ten times its place among them, and the round."""
    rows = np.zeros(len(KEYS), BOOK.payload_dtype)
    for place, (instrument, venue) in enumerate(KEYS):
        rows[place] = (instrument, venue, place * 10 + round_number, AT_NS + place, [place, -place, 0])
    store["book"].put_batch(rows)


def fill(directory: Path, **settings: Any) -> None:
    """Three rounds of `book`, of which two are in tables and the third in the log, where key (7, PAR) is deleted; ten of `tape`."""
    with open_store(directory, **settings) as store:
        put_round(store, 1)
        store.snapshot()
        put_round(store, 2)
        for number in range(1, 11):
            store["tape"].put(number * 100)
        store.snapshot()
        put_round(store, 3)
        store["book"].delete(7, b"PAR")


def price_of(place: int, round_number: int = 3) -> int:
    return place * 10 + round_number


EXPECTED = [(*key, price_of(place)) for place, key in enumerate(KEYS) if key != (7, b"PAR")]
ROUND = len(KEYS)  # rows; so sequence ROUND ends the first round
