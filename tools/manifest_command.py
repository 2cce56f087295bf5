"""`ringmain manifest`: looking into a store's manifest, edit by edit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..storage.manifest_reader import MANIFEST_NAME, read_edits
from ..storage.manifest_state import Edit
from .exit_codes import EXIT_CODES_HELP
from .printing import memory, moment, new_table, note, pairs, plain_lines, print_json, stdout
from .store_contents import find_store, read_state

__all__ = ["manifest_app"]

manifest_app = typer.Typer(help="Look into a store's manifest.", no_args_is_help=True)


class EditFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a manifest. offset: bytes from the file's beginning. edit: field for field as it is stored."""

    offset: int
    edit: Edit


class ManifestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest, or its first edits. torn_bytes: behind the last edit, begun and never finished."""

    path: str
    log_id: str  # hexadecimal
    generation: int  # how often it has been written anew
    created_ns: int
    file_bytes: int
    torn_bytes: int
    edit_count: int
    edits: tuple[EditFacts, ...]
    more: bool


@manifest_app.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction]  so that a lone command keeps its name
    pass


@manifest_app.command("dump", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def dump(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A store's directory.")],
    limit: Annotated[int, typer.Option(metavar="N", help="Most edits; 0: all.", min=0)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the edits of a store's manifest: which tables came and went, and how far each topic's tables reach.

    The first edit of a manifest holds all that there was when it was written anew. Changes nothing, and may run beside the
    store's writer.

    Example: ringmain manifest dump data
    """
    store = find_store(directory)
    read_state(store)  # says what is missing, and that the edits can follow each other
    path = store / "store" / MANIFEST_NAME
    header, edits, torn_bytes = read_edits(path.parent)
    facts = ManifestFacts(
        path=str(path),
        log_id=f"{header.log_id:016x}",
        generation=header.generation,
        created_ns=header.created_ns,
        file_bytes=path.stat().st_size,
        torn_bytes=torn_bytes,
        edit_count=len(edits),
        edits=tuple(EditFacts(offset=offset, edit=edit) for offset, edit in edits[: limit or None]),
        more=bool(limit) and len(edits) > limit,
    )
    if as_json:
        print_json(facts)
    else:
        _print_manifest(facts)


def _print_manifest(facts: ManifestFacts) -> None:
    console = stdout()
    rows = [
        ("manifest", facts.path),
        ("log", facts.log_id),
        ("written anew", f"{facts.generation:,} times, last at {moment(facts.created_ns)} UTC"),
        ("holds", f"{facts.edit_count:,} edits, {memory(facts.file_bytes)}"),
    ]
    if facts.torn_bytes:
        rows.append(("torn", f"the last {facts.torn_bytes:,} bytes were never finished; the next writer cuts them off"))
    console.print(pairs(*rows))
    table = new_table(">offset", "~edit")
    for item in facts.edits:
        table.add_row(f"{item.offset:,}", plain_lines("\n".join(_words(item.edit))))
    console.print()
    console.print(table)
    if facts.more:
        note("there are more; --limit 0 prints all")


def _words(edit: Edit) -> Iterator[str]:
    """What an edit changes, a line for each kind of change."""
    before, now = {*edit.removed}, {table.number for table in edit.added}
    if edit.topics:
        yield f"topics {', '.join(edit.topics)}"
    for verb, numbers in (("added", now - before), ("moved", now & before)):
        places = sorted({(table.topic, table.level) for table in edit.added if table.number in numbers})
        for topic, level in places:
            tables = [
                table
                for table in edit.added
                if table.number in numbers and (table.topic, table.level) == (topic, level)
            ]
            yield f"{verb} {_joined(table.number for table in tables)} to level {level} of {topic}"
    if before - now:
        yield f"removed {_joined(before - now)}"
    for topic, sequence in edit.checkpoints.items():
        yield f"checkpoint of {topic} {sequence:,}"


def _joined(numbers: Iterator[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
