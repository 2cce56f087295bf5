"""`ringmain scan`: the rows of a store, in the order of their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .exit_codes import INTERRUPTED, OK
from .getting import at_sequence, refuse_binary_on_terminal
from .keys import read_bound
from .output import Interrupt, Output
from .printing import counted, note
from .row_formats import Format, choose_fields, open_format, read_fields
from .store_contents import find_store, open_tree

__all__ = ["scan"]


def scan(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A store's directory.")],
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="One of its topics.")],
    first: Annotated[
        str | None, typer.Option(metavar="KEY", help="The first key, or its first values, as in 600519,1000.")
    ] = None,
    last: Annotated[str | None, typer.Option(metavar="KEY", help="The last key, or its first values.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The last key first.")] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Most rows.", min=0)] = None,
    at: Annotated[int | None, typer.Option(metavar="SEQ", help="As of this sequence; now, without.", min=0)] = None,
    format: Annotated[Format, typer.Option(help="json: one object a line. npy: one array of all rows.")] = Format.table,
    fields: Annotated[str | None, typer.Option(metavar="A,B,…", help="Only these fields.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not count on standard error at the end.")] = False,
) -> None:
    """Print a store's rows in the order of their keys, the newest of each.

    May run beside the store's writer: all rows are those of one moment. For a file use `ringmain export`.

    Example: ringmain scan data trades --first 600519 --last 600519 --limit 20
    """
    refuse_binary_on_terminal(format)
    with open_tree(find_store(directory), topic) as tree, at_sequence(tree, at) as view:
        low, high = read_bound(tree.schema, first, "--first"), read_bound(tree.schema, last, "--last")
        names = choose_fields(tree.schema, read_fields(fields))
        count, code = 0, OK
        with Output(None) as out, Interrupt() as interrupt:
            writer = open_format(format, out.stream, tree.schema, names, out.width)
            try:
                for rows in view.scan(low, high, reverse=reverse, limit=limit):
                    with interrupt.held():
                        writer.write(rows)
                        out.stream.flush()
                        count += len(rows)
            except KeyboardInterrupt:
                code = INTERRUPTED
            except BrokenPipeError:
                out.give_up()
            if not out.broken:
                out.finish(writer)
        if not quiet and not out.broken:
            note(f"{counted(count, 'row')} of {topic}" + ("; interrupted" if code else ""))
    raise typer.Exit(code)
