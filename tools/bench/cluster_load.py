"""What a cluster is measured with: rows that pack as an exchange's do, how many a second, and how often one is waited for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .measuring import Figures
from .rows import SCHEMA, Rows

__all__ = [
    "PACED_ROWS",
    "RATE",
    "REST_S",
    "WAITS",
    "WARM_UP_S",
    "paced_batches",
    "replicated_figures",
    "stamped_rows",
    "unstamped_rows",
]

LOAD_ROWS = 51_200  # all different, 6.5 MB: more than a message holds, since servers compress each and would find what is repeated
RATE, PACED_ROWS = 100_000, 100  # records a second, and how many at once
WARM_UP_S = 0.5
WAITS, REST_S = 200, 0.005  # single records, each waited for; between two of them


def unstamped_rows() -> Rows:
    """LOAD_ROWS payloads that pack 4 times smaller, about as badly as the worst of an exchange's (bus/cluster/packing.py)."""
    chance = np.random.default_rng(1)
    block = np.zeros(LOAD_ROWS, SCHEMA.payload_dtype)
    instrument = 600_000 + 37 * chance.integers(0, 30, LOAD_ROWS)
    block["instrument"], block["symbol"] = instrument, [b"%d.SH" % number for number in instrument.tolist()]
    block["price"] = instrument * 30 + 100 * chance.integers(-50, 50, LOAD_ROWS)
    block["quantity"] = 100 * chance.integers(1, 5000, LOAD_ROWS)
    block["order_id"] = (1 << 40) + np.cumsum(chance.integers(1, 60, LOAD_ROWS))
    block["flags"], block["venue"] = chance.integers(0, 4, LOAD_ROWS), 17
    block["note"] = [b"client order %016x" % number for number in chance.integers(0, 1 << 62, LOAD_ROWS).tolist()]
    return block


def stamped_rows() -> Rows:
    """The same with room for the stamps, which are 0."""
    rows, block = np.zeros(LOAD_ROWS, SCHEMA.dtype), unstamped_rows()
    for name in SCHEMA.payload_dtype.names or ():
        rows[name] = block[name]
    return rows


def paced_batches(seconds: float) -> int:
    """How many batches of PACED_ROWS, the warm-up's included."""
    return int((WARM_UP_S + seconds) * RATE / PACED_ROWS)


def replicated_figures(rows_per_s: float, lags_us: Sequence[float], waits_ms: Sequence[float]) -> Figures:
    p50, p99 = np.percentile(np.array(lags_us), [50, 99]).tolist()
    return {
        "replicated_mb_per_s": rows_per_s * SCHEMA.row_bytes / 1e6,
        "replicated_rows_per_s": rows_per_s,
        "lag_p50_ms": p50 / 1000,
        "lag_p99_ms": p99 / 1000,
        "wait_replicated_p50_ms": float(np.percentile(waits_ms, 50)),
    }
