"""How facts look on a terminal: consoles, tables, numbers, sizes, ages. JSON is the same facts for programs."""

from __future__ import annotations

import datetime
import os
import sys
import time
from typing import Any, TextIO

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "age",
    "count",
    "counted",
    "date_time",
    "memory",
    "moment",
    "new_table",
    "note",
    "pairs",
    "plain",
    "plain_lines",
    "print_json",
    "print_json_line",
    "print_text",
    "rate",
    "state_text",
    "stderr",
    "stdout",
]

PIPE_COLUMNS = 1000
STATE_STYLES = {
    "alive": "green", "stopped": "yellow", "starting": "yellow", "dead": "red", "closed": "dim",
    "healthy": "green", "degraded": "yellow", "failed": "red",
    "log failed": "red", "unreadable": "yellow", "sound": "green", "damaged": "red",
}  # fmt: skip


def stdout() -> Console:
    """The console for results. Made when it is needed, since tests and pipes replace the stream."""
    return _Console(file=sys.stdout, highlight=False, width=_width(sys.stdout))


def stderr() -> Console:
    """The console for everything that is not the result."""
    return _Console(file=sys.stderr, highlight=False, width=_width(sys.stderr))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line to say what that means; Rich would end the process with exit code 1."""
        raise BrokenPipeError


def _width(stream: TextIO) -> int | None:
    """None: the terminal's, or what COLUMNS says. Where there is no terminal nothing need be cut to fit one."""
    return None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS


def note(text: str) -> None:
    """A line beside the result."""
    print_text(stderr(), plain(text))


def print_text(console: Console, text: Text) -> None:
    """A sentence or more, wrapped between words on a terminal and left whole elsewhere."""
    console.print(text, soft_wrap=not console.is_terminal)


def print_json(facts: object) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")


def print_json_line(facts: object) -> None:
    """One JSON object on a line of its own, at once."""
    sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    sys.stdout.flush()


def plain(text: str, style: str = "") -> Text:
    """Text of anybody's, shown as it is: no markup, and nothing that could steer the terminal."""
    return Text("".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text), style=style)


def plain_lines(text: str) -> Text:
    """The same for several lines."""
    return Text("\n").join(plain(line) for line in text.splitlines())


def new_table(*columns: str) -> Table:
    """A table without frames. "\\n" in a column's name makes two lines of it.

    ">x" is aligned to the right. "~x" gives way where the terminal is too narrow, and is then folded; all others stay whole.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold" if column.startswith("~") else "ellipsis",
            no_wrap=not column.startswith("~"),
        )
    return table


def state_text(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A count of things: "1 file", "2 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:,.0f}"


def memory(size_bytes: int | None) -> str:
    """A size in the largest unit that leaves something before the point."""
    if size_bytes is None:
        return "-"
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << power:
            return f"{size_bytes / (1 << power):,.1f} {unit}"
    return f"{size_bytes} B"


def age(seconds: float | None) -> str:
    """A time span in the largest unit that leaves something before the point."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def moment(time_ns: int) -> str:
    """A time in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_ns / 1e9))


def date_time(time_ns: int) -> str:
    """A time in UTC, to the nanosecond; the raw number where it is not a time."""
    try:
        moment = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000, datetime.UTC)
    except (ValueError, OSError, OverflowError):
        return str(time_ns)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{time_ns % 1_000_000_000:09d}"


def pairs(*rows: tuple[str, Any]) -> Table:
    """Names and their values, one a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else plain(str(value)))
    return table
