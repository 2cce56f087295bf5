"""Replicated buses for tests: opening one, the rows that a leader elsewhere would send, and watching what readers get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ringmain.bus import Replication, Writer
from ringmain.storage import Schema
from support.logs import PAIRS, Rows, make_rows

LOG_ID = 0x1234


def open_replicated(
    bus: str,
    data_dir: Path,
    ends: Mapping[str, int] | None = None,
    schemas: Iterable[Schema] = (PAIRS,),
    **settings: Any,
) -> Writer:
    """A replicated writer, which follows."""
    replication = Replication(LOG_ID, ends or {}, settings.pop("acknowledge", "sync"))
    return Writer(bus, schemas, data_dir=data_dir, replication=replication, **settings)


def row_bytes(schema: Schema, first: int, count: int) -> bytes:
    """The bytes of rows `first` to `first + count - 1` as another node's leader published them."""
    return make_rows(schema, first, count).tobytes()


def apply(writer: Writer, schema: Schema, first: int, count: int) -> None:
    """Apply a leader's rows, and say that they are replicated."""
    assert writer.replicating.apply(schema.name, row_bytes(schema, first, count)) == count
    writer.replicating.raise_replicated(schema.name, first + count - 1)


def read_up_to(reader: Any, last: int, timeout_s: float) -> Rows:
    """All rows up to the topic's sequence `last`, without a gap, as copies."""
    parts: list[Rows] = []
    first = reader.position + 1
    while reader.position < last:
        batch = reader.take(timeout_s)
        assert batch is not None, f"{reader.position} of {last} rows came"
        parts.append(batch.copy())
    rows = np.concatenate(parts)
    assert rows["sequence"].tolist() == list(range(first, last + 1))
    return rows
