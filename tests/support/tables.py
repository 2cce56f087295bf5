"""What the store's tests share: sstables as the manifest describes them, without files."""

from __future__ import annotations

from typing import Any

from ringmain.storage.version import TableInfo


def table(number: int, first: int = 0, last: int | None = None, *, level: int = 0, **fields: Any) -> TableInfo:
    """A table of topic `points` with one-word keys from `first` to `last` (default: only `first`)."""
    settings: dict[str, Any] = {
        "topic": "points",
        "file_bytes": 1000,
        "row_count": 10,
        "tombstone_count": 0,
        "sequence_min": number * 10,
        "sequence_max": number * 10 + 9,
        "timestamp_min_ns": number * 1000,
        "timestamp_max_ns": number * 1000 + 999,
        "key_min": (first,),
        "key_max": (first if last is None else last,),
    }
    return TableInfo(number=number, level=level, **{**settings, **fields})
