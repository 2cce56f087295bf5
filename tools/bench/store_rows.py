"""What every store bench stores: random keys of 16 bytes, rows of 128 bytes, made before any clock starts.

A row is its stamp, the key and one value, as key-value stores have it. The peers keep the same bytes: 16 of key, 112 of value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np

from ...storage import Schema
from .rows import Rows

__all__ = [
    "BATCH",
    "PEER_VALUES",
    "SCHEMA",
    "TOPIC",
    "VALUES",
    "key_array",
    "lookups",
    "make_keys",
    "make_payloads",
    "make_rows",
    "pairs_of",
]

TOPIC = "rows"
KEY_BYTES, VALUE_BYTES, STAMP_BYTES = 16, 96, 16
SCHEMA = Schema(TOPIC, {"key": f"S{KEY_BYTES}", "value": f"S{VALUE_BYTES}"}, key=("key",))
assert SCHEMA.row_bytes == 128

BATCH = 1000  # rows a batch, keys a call of get_many

_POOL = Random(9).randbytes(1 << 19).replace(b"\0", b"\1")  # nothing that a compressor or a string's end could shorten
VALUES = [_POOL[at : at + VALUE_BYTES] for at in range(0, 4096 * 101, 101)]
PEER_VALUES = [_POOL[at : at + STAMP_BYTES + VALUE_BYTES] for at in range(0, 4096 * 101, 101)]


def make_keys(count: int, seed: int = 1) -> list[bytes]:
    """Random keys. Those of different seeds do not meet."""
    drawn = Random(seed).randbytes(KEY_BYTES * count)
    return [drawn[at : at + KEY_BYTES] for at in range(0, KEY_BYTES * count, KEY_BYTES)]


def lookups(keys: list[bytes], count: int, seed: int = 3) -> list[bytes]:
    """`count` of the keys in an order of their own, as fresh objects: what lies cold in memory is the store's, not the caller's."""
    return [b"%b" % key for key in Random(seed).choices(keys, k=count)]


def key_array(keys: list[bytes]) -> Rows:
    """As numpy has them."""
    return np.frombuffer(b"".join(keys), SCHEMA.payload_dtype["key"])


def make_payloads(keys: list[bytes]) -> Rows:
    """Rows to put."""
    rows = np.zeros(len(keys), SCHEMA.payload_dtype)
    rows["key"] = key_array(keys)
    rows["value"] = np.resize(np.array(VALUES, SCHEMA.payload_dtype["value"]), len(keys))
    return rows


def make_rows(keys: list[bytes], first_sequence: int = 1) -> Rows:
    """Rows as a memtable takes them, stamped."""
    rows = np.zeros(len(keys), SCHEMA.dtype)
    payloads: Any = make_payloads(keys)
    for name in payloads.dtype.names:
        rows[name] = payloads[name]
    rows["sequence"] = rows["timestamp_ns"] = np.arange(first_sequence, first_sequence + len(keys))
    return rows


def pairs_of(keys: list[bytes], values: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Keys with values, which are used over and over."""
    return zip(keys, itertools.cycle(values), strict=False)
