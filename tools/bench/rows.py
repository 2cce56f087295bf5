"""What every bench publishes: 128-byte rows of eight fields behind the stamp, made before any clock starts."""

from __future__ import annotations

from time import perf_counter_ns as clock  # CLOCK_MONOTONIC: the same in all processes of a machine
from typing import Any, TypeAlias

import numpy as np

from ...storage import Schema

__all__ = ["BATCH", "BLOCK", "NS", "SCHEMA", "TOPIC", "Rows", "batches_of", "clock", "fields_of", "make_block"]

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]

TOPIC = "records"
SCHEMA = Schema(
    TOPIC,
    {
        "instrument": "u8",
        "price": "i8",
        "quantity": "i8",
        "order_id": "u8",
        "flags": "u4",
        "venue": "u4",
        "symbol": "S16",
        "note": "S56",
    },
)
assert SCHEMA.row_bytes == 128

BLOCK = 1024  # different rows, published over and over
BATCH = 64  # rows a batch
NS = 1_000_000_000


def make_block() -> Rows:
    """BLOCK payloads; `quantity` counts from 0."""
    block = np.zeros(BLOCK, SCHEMA.payload_dtype)
    number = np.arange(BLOCK)
    block["instrument"], block["price"], block["quantity"] = 600_519, 18_250_000 + number, number
    block["order_id"], block["flags"], block["venue"] = (1 << 40) + number, 3, 17
    block["symbol"], block["note"] = b"600519.SH", b"limit order, good for the day"
    return block


def batches_of(rows: Rows, count: int = BATCH) -> list[Rows]:
    """The rows in batches of so many, the last one perhaps shorter."""
    return [rows[at : at + count] for at in range(0, len(rows), count)]


def fields_of(block: Rows) -> list[tuple[Any, ...]]:
    """The same as Python values, for publishing one at a time."""
    return [row.item() for row in block]
