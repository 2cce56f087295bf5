"""`ringmain export`: a topic of a store, or of a log, as a file for other programs."""

from __future__ import annotations

import contextlib
import errno
import secrets
import time
from collections.abc import Generator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

import msgspec
import typer

from ..storage import Schema
from ..storage.files import move_file, rename_file, sync_data, sync_directory
from .column_formats import ArrowFormat, ColumnFormat, ParquetFormat
from .exit_codes import FAILED
from .export_sources import Source, log_source, store_source
from .keys import read_bound
from .log_contents import find_log
from .positions import Position, read_position
from .printing import counted, memory, note, print_json, stdout
from .progress import row_progress
from .row_formats import Format, RowWriter, choose_fields, open_format, read_fields
from .store_contents import find_store, is_store, open_tree, read_state

__all__ = ["export"]


class Target(StrEnum):
    """What kind of file is written."""

    parquet = "parquet"
    arrow = "arrow"
    csv = "csv"
    npy = "npy"


class ExportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    path: str
    topic: str
    source: str  # store, log
    row_count: int
    lost_count: int  # rows that an earlier repair of the log has given up
    file_bytes: int
    seconds: float


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A store's directory, or that of a log.")],
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="One of its topics.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    to: Annotated[Target | None, typer.Option(help="What to write; without it, as OUT ends.")] = None,
    first: Annotated[
        str | None, typer.Option(metavar="KEY", help="Of a store: the first key, or its first values.")
    ] = None,
    last: Annotated[
        str | None, typer.Option(metavar="KEY", help="Of a store: the last key, or its first values.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="SEQ|TIME", help="Only rows put since.")] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="SEQ|TIME", help="The last sequence, or the time before which rows were put."),
    ] = None,
    fields: Annotated[str | None, typer.Option(metavar="A,B,…", help="Only these fields.")] = None,
    from_log: Annotated[
        bool, typer.Option("--log", help="Of a store: every row that log and archive have, not the newest of each key.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")] = False,
) -> None:
    """Write a topic's rows to a file: by key, the newest of each, where a store has it; else those of its log, as published.

    Parquet and Arrow files (they need `pip install ringmain[arrow]`) have times as timestamps and whole numbers of "1/10,000
    EUR" as decimals, as the schema's units say; CSV and npy files have the numbers as they are stored. The file has its name
    once it is whole. May run beside the writer.

    Example: ringmain export data trades trades.parquet
    """
    started = time.monotonic()
    kind = to or _kind_of(output)
    begin, ending = _position(start, "--from"), _position(until, "--until")
    store = find_store(directory)
    by_key = not from_log and is_store(store) and topic in read_state(store).topics
    if not by_key and (first is not None or last is not None):
        raise ValueError(f"--first, --last: {topic} is not read by key here, but from the log: give --from and --until")
    with contextlib.ExitStack() as stack:
        if by_key:
            tree = stack.enter_context(open_tree(store, topic))
            bounds = read_bound(tree.schema, first, "--first"), read_bound(tree.schema, last, "--last")
            source = store_source(tree, *bounds, begin, ending)
        else:
            source = log_source(find_log(directory), topic, begin, ending)
        names = choose_fields(source.schema, read_fields(fields))
        with _new_file(output, force=force) as file:
            count = _copy(source, _open_writer(kind, file, source.schema, names), f"writing {output.name}")
    facts = ExportFacts(
        path=str(output),
        topic=topic,
        source="store" if by_key else "log",
        row_count=count,
        lost_count=source.log.lost_count if source.log is not None else 0,
        file_bytes=output.stat().st_size,
        seconds=round(time.monotonic() - started, 3),
    )
    if as_json:
        print_json(facts)
    else:
        stdout().print(
            f"wrote {counted(count, 'row')} of {topic} to {output}, {memory(facts.file_bytes)} in {facts.seconds:.2f} s",
            markup=False,
            soft_wrap=True,
        )
    if facts.lost_count:
        note(f"{counted(facts.lost_count, 'row')} LOST: an earlier repair of the log has given them up")
        raise typer.Exit(FAILED)


def _kind_of(output: Path) -> Target:
    suffix = output.suffix.removeprefix(".")
    if suffix not in [*Target]:
        raise ValueError(f"--to: {', '.join(Target)} is expected, as {output.name!r} ends in none of them")
    return Target(suffix)


def _position(text: str | None, option: str) -> Position | None:
    return None if text is None else read_position(text, option, ("sequence", "time"))


def _copy(source: Source, writer: RowWriter, what: str) -> int:
    """Write all rows; returns how many."""
    count = 0
    try:
        with row_progress(what) as advance:
            for rows, looked_at in source.batches:
                if len(rows):
                    writer.write(rows)
                    count += len(rows)
                if advance is not None:
                    advance(looked_at, source.row_count)
        writer.close()
    except BaseException:
        if isinstance(writer, ColumnFormat):
            writer.abandon()
        raise
    return count


def _open_writer(kind: Target, out: IO[bytes], schema: Schema, names: Sequence[str]) -> RowWriter:
    if kind is Target.parquet:
        return ParquetFormat(out, schema, names)
    if kind is Target.arrow:
        return ArrowFormat(out, schema, names)
    return open_format(Format(kind.value), out, schema, names)


@contextlib.contextmanager
def _new_file(path: Path, *, force: bool) -> Generator[IO[bytes]]:
    """A file under another name beside `path`, which it gets, whole and synced, at the end of the block; gone if that fails.

    force: in place of what is there, otherwise FileExistsError.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory; name a file", str(path))
    if path.exists() and not force:
        raise FileExistsError(errno.EEXIST, "is there already; --force replaces it", str(path))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open(draft, "xb") as file:
            yield file
            file.flush()
            sync_data(file.fileno())
        if force:
            rename_file(draft, path)
        else:
            move_file(draft, path)
        sync_directory(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        draft.unlink(missing_ok=True)
