"""The same as streaming.py through another library."""

from __future__ import annotations

import os
import struct
from multiprocessing import get_context
from typing import Any

import numpy as np

from .peer import Peer
from .rows import BATCH, BLOCK, NS, SCHEMA, clock, make_block
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["peer_stream"]

SEQUENCE = struct.Struct("<Q")
CLOCK_EVERY = 256  # records: a reader of single ones does not look at the clock each time
GIVE_UP_NS = NS  # with nothing more coming, so long after the publisher has finished


def peer_stream(peer: Peer, seconds: float, *, add_up: bool = False) -> float:
    """Records a second; raises BenchFailed where any was lost."""
    alone = peer.subscriber_count == 1
    total = get_context("spawn").RawValue("q", -1)  # how many were sent, once that is known
    reader = _receive_batches if peer.batches else _receive_ones
    try:
        start, *read = run_together(
            Job(_send, (peer, seconds, total), core=0 if alone else None),
            *[
                Job(reader, (peer, index, total, add_up), core=1 if alone else None)
                for index in range(peer.subscriber_count)
            ],
            seconds_max=20 * seconds,
        )
    finally:
        peer.clean_up()
    return min(count / (last - start) * NS for count, last in read)


def _items(peer: Peer) -> list[Any]:
    rows = np.zeros(BLOCK, SCHEMA.dtype)
    block = make_block()
    for name in SCHEMA.fields:
        rows[name.name] = block[name.name]
    rows["sequence"] = np.arange(BLOCK)
    raw = rows.tobytes()
    return [peer.item(raw[at : at + peer.item_bytes]) for at in range(0, len(raw), peer.item_bytes)]


def _send(stage: Stage, peer: Peer, seconds: float, total: Any) -> int:
    items, send, count = _items(peer), peer.open_sender(), 0
    stage.begin(settle=True)
    start = clock()
    end = start + int(seconds * NS)
    while clock() < end and count + BLOCK <= peer.record_count_max:
        for item in items:
            send(item)
        count += BLOCK
    total.value = count
    return start


class _Ending:
    """Says when a receiver that has got nothing should stop: at the end, or when what is missing will not come any more."""

    def __init__(self, peer: Peer, total: Any) -> None:
        self._total, self._since, self._yields = total, 0, peer.subscriber_count > 1

    def reached(self, count: int) -> bool:
        total = self._total.value
        if total < 0 or count < total:
            if self._yields:
                os.sched_yield()
            if total >= 0:
                self._since = self._since or clock()
                if clock() - self._since > GIVE_UP_NS:
                    raise BenchFailed(f"lost {100 * (1 - count / total):.2g} % of {total} records")
            return False
        return True


def _receive_ones(stage: Stage, peer: Peer, index: int, total: Any, add_up: bool) -> tuple[int, int]:
    receive, unpack, mask = peer.open_receiver(index), SEQUENCE.unpack_from, BLOCK - 1
    ending, count, counted, last = _Ending(peer, total), 0, 0, 0
    stage.begin()
    while True:
        record = receive()
        if record is None:
            if ending.reached(count):
                return counted, last
            continue
        if unpack(record)[0] != count & mask:
            raise BenchFailed(f"a record was lost or came twice after {count}")
        count += 1
        if not count % CLOCK_EVERY:
            counted, last = count, clock()


def _receive_batches(stage: Stage, peer: Peer, index: int, total: Any, add_up: bool) -> tuple[int, int]:
    receive, dtype, mask = peer.open_receiver(index), SCHEMA.dtype, BLOCK - 1
    ending, count, last, added = _Ending(peer, total), 0, 0, 0
    stage.begin()
    while True:
        records = receive()
        if records is None:
            if ending.reached(count):
                break
            continue
        rows = np.frombuffer(records, dtype)
        sequence, following = rows["sequence"], count + len(rows)
        if sequence[0] != count & mask or sequence[-1] != (following - 1) & mask:
            raise BenchFailed(f"a batch was lost or came twice after {count} records")
        if add_up:
            added += int(rows["quantity"].sum())
        count = following
        last = clock()
    if add_up and added != count // BLOCK * sum(range(BLOCK)):
        raise BenchFailed("the sum of a field is not what was sent")
    return count, last


assert BLOCK % BATCH == BLOCK % CLOCK_EVERY == 0
