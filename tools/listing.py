"""`ringmain ls`: the buses of this machine and their topics, a line each."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ..bus.observing import Observer
from ..bus.snapshot import BusFacts
from .printing import count, memory, new_table, note, plain, print_json, state_text, stdout

__all__ = ["ls"]


def ls(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the buses and topics that are open on this machine.

    A bus whose writer is dead stays until its next writer opens it, or `ringmain clean` removes it.

    Example: ringmain ls
    """
    snapshot = Observer().look()
    if as_json:
        print_json(snapshot)
        return
    if not snapshot.buses:
        note("no buses are open on this machine")
        return
    table = new_table("~BUS/TOPIC", "WRITER", ">PID", ">EPOCH", ">RECORDS", ">MEMORY", ">READERS", ">LANES")
    problems: list[str] = []
    for bus in snapshot.buses:
        _add(table, bus)
        problems += [text for text in (bus.problem, *(topic.problem for topic in bus.topics)) if text]
    stdout().print(table)
    for text in problems:
        note(text)


def _add(table: Table, bus: BusFacts) -> None:
    pid = "-" if bus.writer.pid is None else str(bus.writer.pid)
    epoch = "-" if bus.writer.epoch is None else str(bus.writer.epoch)
    if not bus.topics:
        table.add_row(bus.bus, state_text(bus.writer.state), pid, epoch, "-", "-", "-", "-")
    for topic in bus.topics:
        table.add_row(
            plain(f"{bus.bus}/{topic.topic}"),
            state_text(bus.writer.state),
            pid,
            "-" if topic.epoch is None else str(topic.epoch),
            count(topic.published),
            memory(topic.segment_bytes),
            "-" if topic.published is None else str(len(topic.readers)),
            "-" if topic.published is None else str(len(topic.lanes)),
        )
