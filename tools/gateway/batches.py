"""Batches as messages, none of them large: one that is large would hold up everything behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from ...bus import Batch
from ...bus._read import owned_batch
from ...subscribers.folding import Rows, pick
from .connection import Framed, framed
from .frames import Message, json_row_bytes_max
from .selecting import project

__all__ = ["Encode", "encode_batch", "encode_pieces", "rows_behind", "rows_max"]

ROWS_BYTES = 128 << 10  # of a message
TEXT_BYTES = 256 << 10  # or of one that is JSON; many a client takes no message above 1 MiB

Encode: TypeAlias = Callable[[int, Rows, int, int, int, bool], Message]


def rows_max(dtype: np.dtype[np.void], *, text: bool) -> int:
    """How many rows a message has at most. text: as JSON, where each may be as long as its fields allow."""
    return max(1, TEXT_BYTES // json_row_bytes_max(dtype) if text else ROWS_BYTES // dtype.itemsize)


def encode_batch(
    batch: Batch, stream: int, dtype: np.dtype[np.void], encode: Encode, count_max: int, *, conflated: bool = False
) -> Sequence[Framed]:
    """A batch's rows, with the fields of `dtype`, in as many messages as they take. count_max: rows of each."""
    rows = project(batch.rows, dtype)
    if len(rows) <= count_max:
        return (framed(encode(stream, rows, batch.first, batch.last, batch.lost, conflated)),)
    return list(encode_pieces(batch, stream, dtype, encode, count_max, conflated=conflated))


def encode_pieces(
    batch: Batch, stream: int, dtype: np.dtype[np.void], encode: Encode, count_max: int, *, conflated: bool = False
) -> Iterator[Framed]:
    """The same messages one after the other, each made when it is wanted."""
    rows = project(batch.rows, dtype)
    for piece, first, last, lost in _pieces(batch, rows, count_max):
        yield framed(encode(stream, piece, first, last, lost, conflated))


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
