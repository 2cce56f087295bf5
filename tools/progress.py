"""Progress bars on standard error, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from .printing import stderr

__all__ = ["byte_progress", "row_progress", "spinner"]

Advance = Callable[[int, int], None]


@contextlib.contextmanager
def byte_progress(what: str) -> Generator[Advance | None]:
    """A bar by bytes: call it with (done, total). None where there is no terminal."""
    with _bar(what, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as advance:
        yield advance


@contextlib.contextmanager
def row_progress(what: str) -> Generator[Advance | None]:
    """A bar by rows: call it with (done, total). None where there is no terminal."""
    with _bar(what, TaskProgressColumn(), _Rows(), TimeRemainingColumn()) as advance:
        yield advance


@contextlib.contextmanager
def spinner(what: str) -> Generator[None]:
    """Something that moves, and the time, for what cannot say how far it is."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as progress:
        progress.add_task(what, total=None)
        yield


@contextlib.contextmanager
def _bar(what: str, *columns: ProgressColumn) -> Generator[Advance | None]:
    if not sys.stderr.isatty():
        yield None
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *columns, console=stderr(), transient=True
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Rows(ProgressColumn):
    def render(self, task: Task) -> Text:
        per_second = "" if task.speed is None else f", {task.speed:,.0f}/s"
        return Text(f"{task.completed:,.0f} rows{per_second}")
