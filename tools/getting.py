"""`ringmain get`: the row that a store has for a key."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from ..bus import NotFound
from ..storage import Schema
from ..storage.tree import Tree, View
from ..storage.units import all_fields, time_unit
from .keys import read_key, shown_key
from .output import Output
from .printing import date_time, new_table, plain, stdout
from .row_formats import Format, choose_fields, column_values, open_format, read_fields, shown
from .store_contents import find_store, open_tree

__all__ = ["at_sequence", "get", "refuse_binary_on_terminal"]

Rows = np.ndarray[Any, np.dtype[np.void]]


def get(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A store's directory.")],
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="One of its topics.")],
    key: Annotated[list[str], typer.Argument(metavar="KEY", help="A value for each field of its key, in their order.")],
    at: Annotated[int | None, typer.Option(metavar="SEQ", help="As of this sequence; now, without.", min=0)] = None,
    history: Annotated[bool, typer.Option("--history", help="All versions that are kept, the newest first.")] = False,
    format: Annotated[Format, typer.Option(help="json: one object a line. npy: an array.")] = Format.table,
    fields: Annotated[str | None, typer.Option(metavar="A,B,…", help="Only these fields.")] = None,
) -> None:
    """Print the row that a store has for a key, or all of its versions.

    May run beside the store's writer. Put -- before a key that begins with a minus. The exit code is 3 where there is no such
    row.

    Example: ringmain get data trades 600519 1000
    """
    refuse_binary_on_terminal(format)
    store = find_store(directory)
    with open_tree(store, topic) as tree, at_sequence(tree, at) as view:
        names = choose_fields(tree.schema, read_fields(fields))
        wanted = read_key(tree.schema, key)
        if history:
            rows = view.history(*wanted)
        else:
            row = view.get(*wanted)
            rows = np.empty(0, tree.schema.dtype) if row is None else np.array([row], tree.schema.dtype)
        if not len(rows):
            then = "" if at is None else f" as of sequence {at}"
            raise NotFound(f"{store}: topic {topic!r} has no row with the key {shown_key(wanted)}{then}")
        if format is Format.table and not history:
            stdout().print(_row(tree.schema, rows, names))
            return
        with Output(None) as out:
            writer = open_format(format, out.stream, tree.schema, names, out.width)
            writer.write(rows)
            out.finish(writer)


def refuse_binary_on_terminal(format: Format) -> None:
    if format is Format.npy and sys.stdout.isatty():
        raise ValueError("--format npy is binary: use a pipe, or a file")


@contextlib.contextmanager
def at_sequence(tree: Tree, sequence: int | None) -> Generator[Tree | View]:
    """The tree as of a sequence; itself where none is given. Raises ViewGone."""
    if sequence is None:
        yield tree
        return
    with tree.at(sequence) as view:
        yield view


def _row(schema: Schema, rows: Rows, names: tuple[str, ...]) -> Table:
    """A row, a field a line."""
    fields = {field.name: field for field in all_fields(schema)}
    table = new_table("field", "~value", "~unit")
    for name in names:
        is_time = time_unit(fields[name]) == "ns"
        cells = np.array(rows[name][0]).reshape(-1)
        text = ", ".join(date_time(int(cell)) if is_time else _exact(cell) for cell in cells)
        table.add_row(name, plain(text), plain("UTC" if is_time else fields[name].unit, style="dim"))
    return table


def _exact(cell: np.generic[Any]) -> str:
    value = column_values(np.array([cell]))[0]
    return shown(value) if isinstance(value, str) else str(cell)
