"""Where a command writes rows to, each completely or not at all, also when Ctrl-C ends it or nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import IO

from .row_formats import RowWriter

__all__ = ["Interrupt", "Output"]


class Output:
    """Standard output, or a file, and what was written to it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.stream: IO[bytes] = sys.stdout.buffer if path is None else open(path, "wb")  # noqa: SIM115
        self.span = (0, 0, 0)  # first and last sequence, count
        self.broken = False  # the reader of our pipe has gone

    @property
    def width(self) -> int | None:
        """The terminal's width, None where it is none."""
        return (
            os.get_terminal_size(self.stream.fileno()).columns if self._path is None and sys.stdout.isatty() else None
        )

    def wrote(self, first: int, last: int, count: int) -> None:
        self.stream.flush()
        self.span = (self.span[0] or first, last, self.span[2] + count)

    def finish(self, rows: RowWriter) -> bool:
        """Write what the format still wants to; False where nobody reads it any more."""
        try:
            rows.close()
            self.stream.flush()
        except BrokenPipeError:
            self.give_up()
        return not self.broken

    def give_up(self) -> None:
        """Let the rest go nowhere, so that flushing it at exit fails no more."""
        self.broken = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self.stream.close()


class Interrupt:
    """Ctrl-C, held off while a row is being written. The second one is not."""

    def __init__(self) -> None:
        self.asked = False
        self._writing = False

    def __enter__(self) -> Interrupt:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again or not self._writing:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
        if self.asked:
            raise KeyboardInterrupt
