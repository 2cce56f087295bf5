"""`ringmain sstable`: looking into one sstable."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer

from ..storage import FormatMismatch, Schema
from ..storage._tree import TABLE_MAGIC, KeyCodec, Table, table_schema_json
from ..storage.table_files import open_table
from .exit_codes import EXIT_CODES_HELP
from .keys import key_as_text, shown_key
from .printing import date_time, memory, moment, note, pairs, print_json, stdout
from .row_formats import TableFormat, column_values, times_of

__all__ = ["sstable_app"]

sstable_app = typer.Typer(help="Look into an sstable.", no_args_is_help=True)

BATCH_ROWS = 8192


class SstableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an sstable says of itself. Keys are given by their values, bytes as text."""

    path: str
    number: int
    topic: str
    key: tuple[str, ...]
    schema_hash: str  # hexadecimal
    log_id: str  # hexadecimal
    created_ns: int
    file_bytes: int
    row_bytes: int
    row_count: int
    tombstone_count: int
    shadowed_count: int  # rows with the key of the row before
    block_count: int
    block_rows: int
    compression: str
    sequence_min: int
    sequence_max: int
    timestamp_min_ns: int
    timestamp_max_ns: int
    key_min: tuple[Any, ...]
    key_max: tuple[Any, ...]


@sstable_app.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction]  so that a lone command keeps its name
    pass


@sstable_app.command("dump", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def dump(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="An sstable, such as data/store/0000000001.sst.")],
    rows: Annotated[
        bool, typer.Option("--rows", help="Print its rows, replaced ones and tombstones included.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="With --rows: most rows; 0: all.", min=0)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what an sstable says of itself, or its rows in the order of their keys.

    Needs nothing but the file. Everything that is printed was proven by its checksums.

    Example: ringmain sstable dump data/store/0000000001.sst --rows --limit 5
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory; name one of its .sst files", str(path))
    _check_kind(path)
    schema = Schema.from_json(table_schema_json(path))
    table = open_table(path, schema, KeyCodec(schema))
    if rows:
        _dump_rows(table, schema, limit, as_json)
    elif as_json:
        print_json(_facts(table, schema))
    else:
        _print(_facts(table, schema))


def _check_kind(path: Path) -> None:
    """A file of another name that does not begin as an sstable is none, rather than a damaged one."""
    if path.suffix == ".sst":
        return
    with path.open("rb") as file:
        magic = file.read(len(TABLE_MAGIC))
    if magic != TABLE_MAGIC:
        advice = "name one of a store's .sst files"
        raise FormatMismatch(path, "not an sstable", f"the magic {TABLE_MAGIC!r}", repr(magic), advice)


def _facts(table: Table, schema: Schema) -> SstableFacts:
    facts: dict[str, Any] = {
        name: getattr(table, name) for name in SstableFacts.__struct_fields__ if hasattr(table, name)
    }
    facts |= {name: key_as_text(table.codec.values(facts[name])) for name in ("key_min", "key_max")}
    facts |= {"path": str(table.path), "schema_hash": f"{table.schema_hash:016x}", "log_id": f"{table.log_id:016x}"}
    return SstableFacts(key=table.codec.names, row_bytes=schema.row_bytes, **facts)


def _print(facts: SstableFacts) -> None:
    stdout().print(
        pairs(
            ("sstable", facts.path),
            ("number", f"{facts.number:,}"),
            ("topic", f"{facts.topic}, by {', '.join(facts.key)}"),
            ("schema", facts.schema_hash),
            ("log", facts.log_id),
            ("created", f"{moment(facts.created_ns)} UTC"),
            ("size", memory(facts.file_bytes)),
            ("rows", f"{facts.row_count:,} of {facts.row_bytes:,} bytes"),
            ("tombstones", f"{facts.tombstone_count:,}"),
            ("replaced", f"{facts.shadowed_count:,}"),
            ("blocks", f"{facts.block_count:,} of {facts.block_rows:,} rows, compression {facts.compression}"),
            ("sequences", f"{facts.sequence_min:,} to {facts.sequence_max:,}"),
            ("times", f"{date_time(facts.timestamp_min_ns)} to {date_time(facts.timestamp_max_ns)} UTC"),
            ("first key", shown_key(facts.key_min)),
            ("last key", shown_key(facts.key_max)),
        )
    )


def _dump_rows(table: Table, schema: Schema, limit: int, as_json: bool) -> None:
    """Print the first rows, each with whether it is a tombstone."""
    names = ("tombstone", *(schema.dtype.names or ()))
    dtype: np.dtype[np.void] = np.dtype([("tombstone", "?"), *((name, schema.dtype[name]) for name in names[1:])])
    end = min(table.row_count, limit or table.row_count)
    console = stdout()
    printed = TableFormat(
        sys.stdout.buffer, dtype, names, times_of(schema), console.width if console.is_terminal else None
    )
    objects: list[dict[str, Any]] = []
    for first in range(0, end, BATCH_ROWS):
        rows = table.rows(first, min(first + BATCH_ROWS, end))
        marked = np.empty(len(rows), dtype)
        marked["tombstone"] = table.flags(first, first + len(rows))
        for name in names[1:]:
            marked[name] = rows[name]
        if as_json:
            columns = [column_values(marked[name]) for name in names]
            objects += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        else:
            printed.write(marked)
            sys.stdout.buffer.flush()
    more = end < table.row_count
    if as_json:
        print_json({"path": str(table.path), "rows": objects, "more": more})
    elif more:
        note("there are more; --limit 0 prints all")
