"""How far apart two cores are: one cache line sent there and back, as Python sees it.

On a virtual machine this changes while one looks on, since the host moves its cores about, and everything between two
processes changes with it. So every report tells the least and the most of it that was met.
"""

from __future__ import annotations

from multiprocessing import get_context
from typing import Any

import numpy as np

from .rows import clock
from .workers import Job, Stage, run_together

__all__ = ["core_round_trip_ns"]

ROUNDS = 20_000
LINE_WORDS = 16  # two lines: neighbours are fetched together


def core_round_trip_ns() -> int:
    """Median round trip between cores 0 and 1, the two loops of Python included."""
    words = get_context("spawn").RawArray("q", 2 * LINE_WORDS)
    times_ns, _ = run_together(Job(_serve, (words,), core=0), Job(_return, (words,), core=1), seconds_max=10)
    return int(np.median(times_ns))


def _serve(stage: Stage, words: Any) -> list[int]:
    there, back = _views(words)
    times_ns: list[int] = []
    stage.begin(settle=True)
    for ball in range(1, ROUNDS + 1):
        start = clock()
        there[0] = ball
        while back[0] != ball:
            pass
        times_ns.append(clock() - start)
    return times_ns


def _return(stage: Stage, words: Any) -> None:
    there, back = _views(words)
    stage.begin()
    for ball in range(1, ROUNDS + 1):
        while there[0] != ball:
            pass
        back[0] = ball


def _views(words: Any) -> tuple[memoryview[int], memoryview[int]]:
    view = memoryview(words).cast("B").cast("q")
    return view[:LINE_WORDS], view[LINE_WORDS:]
