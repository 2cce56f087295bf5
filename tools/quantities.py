"""Amounts of bytes and of time as people write them: "10 GB", "64 MiB", "30 d", "1.5 ms"; a bare number is bytes, or seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["read_bytes", "read_seconds"]

BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def read_bytes(given: str | float) -> int:
    """A number of bytes, at least 1. Raises ValueError saying what is expected."""
    count = round(_read(given, BYTES, "bytes", '"10 GB"'))
    if count < 1:
        raise ValueError(f"at least one byte is expected, not {given!r}")
    return count


def read_seconds(given: str | float) -> float:
    """A positive number of seconds. Raises ValueError saying what is expected."""
    seconds = _read(given, SECONDS, "seconds", '"30 d"')
    if seconds <= 0:
        raise ValueError(f"a time above 0 is expected, not {given!r}")
    return seconds


def _read(given: str | float, units: Mapping[str, float], bare: str, example: str) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool):
        return given
    expected = f"a number of {bare}, or text such as {example} in {', '.join(units)}"
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", given) if isinstance(given, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"{expected} is expected, not {given!r}")
    return float(match[1]) * units[match[2]]
