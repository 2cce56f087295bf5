"""`ringmain top`: topics, rates and readers of all buses, live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Generator, Iterator, Sequence
from typing import Annotated, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..bus.observing import Observer
from ..bus.segments import check_bus_name
from ..bus.snapshot import BusFacts, Snapshot, with_rates
from .inspecting import no_such_bus, reader_state
from .printing import count, new_table, plain, print_json_line, rate, state_text, stdout

__all__ = ["frame", "top"]

FIRST_LOOK_S = 0.3  # two looks make a rate; the first frame should not be long in coming
WIDE_COLUMNS = 80
FRAME_LINES = {True: 5, False: 8}  # what a frame has besides the table's rows; wide -> lines
COLUMNS = ("~TOPIC / reader", ">PID", "STATE", ">SEQUENCE", ">PER S", ">BEHIND", ">LAPS", ">LOST")
GIVE_WAY = (1, 6, 7, 2, 3)  # columns that are left out, in this order, until names have this room
NAME_COLUMNS_MIN = 18


def top(
    bus: Annotated[str | None, typer.Argument(metavar="BUS", help="Only this bus.")] = None,
    interval: Annotated[float, typer.Option(metavar="S", help="Seconds between two looks.", min=0.05)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for each look.")] = False,
) -> None:
    """Watch all buses live: rates, how far the log is behind, and each reader's lag. Leave with q or Ctrl-C.

    Looks only, as `inspect` does. Where the output is not a terminal it prints one look, and goes on only with --json.

    Example: ringmain top --interval 0.5
    """
    if bus is not None:
        check_bus_name(bus)
    console, observer = stdout(), Observer()
    before = observer.look(bus)
    if bus is not None and not before.buses:
        raise no_such_bus(bus)
    time.sleep(min(interval, FIRST_LOOK_S))
    now = observer.look(bus)
    if as_json:
        while True:
            print_json_line(with_rates(before, now))
            if once:
                return
            time.sleep(interval)
            before, now = now, observer.look(bus)
    if once or not console.is_terminal:
        console.print(frame(with_rates(before, now), None, bus))
        return
    with (
        _keys() as keyboard,
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            live.update(frame(with_rates(before, now), console.size, bus), refresh=True)
            if "q" in _pressed(keyboard, interval).lower():
                return
            before, now = now, observer.look(bus)


def frame(snapshot: Snapshot, size: tuple[int, int] | None, bus: str | None = None) -> RenderableType:
    """What one look shows. bus: the only one wanted.

    size: columns and lines there are, None: any number. Readers with little lag give way first.
    """
    topics = sum(len(entry.topics) for entry in snapshot.buses)
    readers = sum(len(topic.readers) for entry in snapshot.buses for topic in entry.topics)
    title = Text.assemble(
        ("ringmain top", "bold"),
        time.strftime("  %H:%M:%S", time.localtime(snapshot.taken_ns / 1e9)),
        f"  buses {len(snapshot.buses)}, topics {topics}, readers {readers}",
    )
    if not snapshot.buses:
        words = "no buses are open on this machine" if bus is None else f"bus {bus!r} is not open on this machine"
        return Group(title, Text(f"\n{words}. q leaves", style="dim"))
    lines = [line for entry in snapshot.buses for line in _bus_lines(entry)]
    shown, columns = lines, range(len(COLUMNS))
    if size is not None:
        width, height = size
        shown = _fitting(lines, max(1, height - FRAME_LINES[width >= WIDE_COLUMNS]))
        columns = _fitting_columns(shown, width)
    table = new_table(*(COLUMNS[column] for column in columns))
    for line in shown:
        table.add_row(*(line.cells[column] for column in columns))
    hidden = f"{len(lines) - len(shown)} more lines do not fit; " if len(shown) < len(lines) else ""
    legend = f"{hidden}BEHIND: a topic's records not durable (replicated) yet, a reader's lag. q leaves"
    return Group(title, table, Text(legend, style="dim"))


class _Line(NamedTuple):
    cells: tuple[str | Text, ...]
    importance: int  # lines with less give way first


TOPIC_LINE = 1 << 64


def _bus_lines(bus: BusFacts) -> Iterator[_Line]:
    pid = "-" if bus.writer.pid is None else str(bus.writer.pid)
    if not bus.topics:
        yield _Line((_name(bus.bus, "bold"), pid, state_text(bus.writer.state), "-", "-", "-", "", ""), TOPIC_LINE)
    for topic in bus.topics:
        safe = topic.durable if topic.replicated is None else topic.replicated
        unsafe = None if safe is None or topic.published is None else max(0, topic.published - safe)
        state = (
            "log failed"
            if "log failed" in topic.status
            else "unreadable"
            if topic.published is None
            else bus.writer.state
        )
        yield _Line(
            (
                _name(f"{bus.bus}/{topic.topic}", "bold"),
                pid,
                state_text(state),
                count(topic.published),
                rate(topic.published_per_s),
                count(unsafe),
                "",
                "",
            ),
            TOPIC_LINE,
        )
        for reader in topic.readers:
            yield _Line(
                (
                    _name(f"  {reader.name}"),
                    str(reader.pid),
                    reader_state(reader),
                    count(reader.consumed),
                    rate(reader.consumed_per_s),
                    count(reader.lag_count),
                    count(reader.overrun_count),
                    count(reader.lost_count),
                ),
                reader.lag_count,
            )


def _name(name: str, style: str = "") -> Text:
    """A name that is cut off where there is no room for it: every line here is one line."""
    text = plain(name, style)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _fitting(lines: list[_Line], room: int) -> list[_Line]:
    """As many lines as there is room for, the most important ones, in their order."""
    order = sorted(range(len(lines)), key=lambda index: -lines[index].importance)
    return [lines[index] for index in sorted(order[:room])]


def _fitting_columns(lines: list[_Line], width: int) -> Sequence[int]:
    """Those of the columns that leave a readable name."""
    widths = [max(map(len, (name[1:], *(line.cells[column] for line in lines)))) for column, name in enumerate(COLUMNS)]
    kept = list(range(len(COLUMNS)))
    for column in GIVE_WAY:
        if NAME_COLUMNS_MIN + sum(widths[other] + 2 for other in kept[1:]) <= width:
            break
        kept.remove(column)
    return kept


@contextlib.contextmanager
def _keys() -> Generator[int | None]:
    """The keyboard, giving every key at once; None where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(keyboard: int | None, timeout_s: float) -> str:
    """The keys pressed within the time, "" for none."""
    if keyboard is None:
        time.sleep(timeout_s)
        return ""
    ready, _, _ = select.select([keyboard], [], [], timeout_s)
    return os.read(keyboard, 64).decode("ascii", "replace") if ready else ""
