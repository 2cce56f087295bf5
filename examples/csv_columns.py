"""CSV files as columns of text, and columns of text as the scaled integers and nanoseconds that records hold."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHANGHAI_OFFSET_NS = 8 * 3600 * 10**9  # UTC+08:00, no daylight saving

Text = Sequence[str]
Integers = npt.NDArray[np.int64]


def read_columns(path: Path) -> dict[str, Text]:
    """Return the columns of a gzip CSV file by name, as written in it."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        names = next(rows)
        columns: list[Text] = list(zip(*rows, strict=True)) or [()] * len(names)
    return dict(zip(names, columns, strict=True))


def integers(text: Text) -> Integers:
    """Whole numbers; an empty field is 0."""
    return np.array([int(field or 0) for field in text], np.int64)


def letters(text: Text) -> npt.NDArray[np.bytes_]:
    """Text as UTF-8 bytes, as wide as the longest."""
    return np.array([field.encode() for field in text], np.bytes_)


def prices(text: Text) -> Integers:
    """Decimals on the 0.01 grid, in 1/10,000; they may carry binary-float noise, and an empty field is 0.

    Raises ValueError for a value that is farther from the grid than noise takes it.
    """
    ticks = np.array([float(field or 0) for field in text]) * 100
    nearest = np.rint(ticks)
    if (off := ~(np.abs(ticks - nearest) < 1e-6)).any():
        raise ValueError(f"{text[int(off.argmax())]!r} is not a multiple of 0.01")
    return nearest.astype(np.int64) * 100


def shanghai_ns(text: Text) -> Integers:
    """Local exchange times such as `2023-02-01T09:15:00.020`, as nanoseconds since the epoch."""
    return np.array(text, "datetime64[ns]").astype(np.int64) - SHANGHAI_OFFSET_NS


def shanghai_text(ns: Integers) -> list[str]:
    """The inverse of `shanghai_ns`, to the millisecond."""
    return np.datetime_as_string((ns + SHANGHAI_OFFSET_NS).astype("datetime64[ns]"), unit="ms").tolist()
