"""How facts look on a terminal: consoles, tables, numbers, sizes, ages. JSON is the same facts for programs."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "age",
    "count",
    "mebibytes",
    "new_table",
    "note",
    "pairs",
    "plain",
    "plain_lines",
    "print_json",
    "rate",
    "state_text",
    "stderr",
    "stdout",
]

STATE_STYLES = {
    "alive": "green", "stopped": "yellow", "starting": "yellow", "dead": "red", "closed": "dim",
    "log failed": "red", "unreadable": "yellow",
}  # fmt: skip


def stdout() -> Console:
    """The console for results. Made when it is needed, since tests and pipes replace the stream."""
    return Console(file=sys.stdout, highlight=False)


def stderr() -> Console:
    """The console for everything that is not the result."""
    return Console(file=sys.stderr, highlight=False)


def note(text: str) -> None:
    """A line beside the result."""
    stderr().print(plain(text), soft_wrap=True)


def print_json(facts: object) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")


def plain(text: str, style: str = "") -> Text:
    """Text of anybody's, shown as it is: no markup, and nothing that could steer the terminal."""
    return Text("".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text), style=style)


def plain_lines(text: str) -> Text:
    """The same for several lines."""
    return Text("\n").join(plain(line) for line in text.splitlines())


def new_table(*columns: str, title: str = "") -> Table:
    """A table without frames. A column named ">x" is aligned to the right; "\\n" in a name makes two lines of it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="ellipsis", no_wrap=True
        )
    return table


def state_text(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:,.0f}"


def mebibytes(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 2**20:,.1f}"


def age(seconds: float | None) -> str:
    """A time span in the largest unit that leaves something before the point."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def pairs(*rows: tuple[str, Any]) -> Table:
    """Names and their values, one a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else plain(str(value)))
    return table
