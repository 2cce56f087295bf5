"""Batches as messages, none of them large: one that is large would hold up everything behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from ...bus import Batch
from ...bus._read import owned_batch
from ...subscribers.folding import Rows, pick
from .connection import Framed, framed
from .frames import Message
from .selecting import project

__all__ = ["Encode", "encode_batch", "encode_pieces", "rows_behind"]

MESSAGE_ROWS_BYTES = 128 << 10

Encode: TypeAlias = Callable[[int, Rows, int, int, int, bool], Message]


def encode_batch(
    batch: Batch, stream: int, dtype: np.dtype[np.void], encode: Encode, *, conflated: bool = False
) -> Sequence[Framed]:
    """A batch's rows, with the fields of `dtype`, in as many messages as they take."""
    rows = project(batch.rows, dtype)
    if len(rows) <= _rows_max(rows):
        return (framed(encode(stream, rows, batch.first, batch.last, batch.lost, conflated)),)
    return list(encode_pieces(batch, stream, dtype, encode, conflated=conflated))


def encode_pieces(
    batch: Batch, stream: int, dtype: np.dtype[np.void], encode: Encode, *, conflated: bool = False
) -> Iterator[Framed]:
    """The same messages one after the other, each made when it is wanted."""
    rows = project(batch.rows, dtype)
    for piece, first, last, lost in _pieces(batch, rows, _rows_max(rows)):
        yield framed(encode(stream, piece, first, last, lost, conflated))


def _rows_max(rows: Rows) -> int:
    return max(1, MESSAGE_ROWS_BYTES // rows.itemsize)


def _pieces(batch: Batch, rows: Rows, count: int) -> Iterator[tuple[Rows, int, int, int]]:
    first, lost = batch.first, batch.lost
    for at in range(0, len(rows), count):
        piece = rows[at : at + count]
        last = int(piece["sequence"][-1]) if at + count < len(rows) else batch.last
        yield piece, first, last, lost
        first, lost = last + 1, 0


def rows_behind(batch: Batch, sequence: int) -> Batch | None:
    """What of an owned batch lies behind a sequence; None where no row does."""
    if batch.first > sequence:
        return batch
    rows = batch.rows
    marks = rows["sequence"] > sequence
    if not marks.any():
        return None
    return owned_batch(pick(rows, marks), batch.schema, sequence + 1, batch.last, batch.lost)
