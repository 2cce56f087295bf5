"""An event loop whose clock stands still while anything can be done, and jumps to the next moment that somebody waits for."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Deadlock", "run_virtually"]

T = TypeVar("T")


class Deadlock(AssertionError):
    """Nothing will ever happen again."""


class _Jumping(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("everybody waits, and for no time")
        self.now += max(0.0, timeout)
        return []  # there is nothing but timers


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time: what waits for hours takes as long as what it does then."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
