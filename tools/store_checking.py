"""`ringmain store verify` and `repair`: proving a store, and giving up what is damaged in it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from ..storage import LogLocked
from ..storage.repaired import Repaired
from ..storage.store_repair import repair_store
from ..storage.store_verify import Verified, verify_store
from .exit_codes import FAILED
from .keys import key_as_text
from .log_contents import writer_of
from .printing import (
    counted,
    memory,
    new_table,
    pairs,
    plain,
    plain_lines,
    print_json,
    print_text,
    stderr,
    stdout,
)
from .progress import byte_progress
from .row_formats import read_fields
from .store_contents import find_store, no_store

__all__ = ["repair", "verify"]


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A store's directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a whole store and prove every checksum, order and count in it, and that its files belong together.

    Manifest, tables, log and archive. Every damaged place is named with its byte, and the exit code is then 1. What a killed
    writer did not finish is no damage. Changes nothing, and may run beside the store's writer.

    Example: ringmain store verify data
    """
    store = find_store(directory)
    with byte_progress("verifying") as progress, _saying_what_is_there(store):
        verified = verify_store(store, progress=progress)
    if as_json:
        print_json(_as_facts(verified))
    else:
        _print_verdict(stdout(), verified)
    if not verified.is_sound:
        raise typer.Exit(FAILED)


def repair(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A store's directory.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done and lost.")] = False,
    keep_versions: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Topics of which all versions are kept, for where the manifest is lost."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Give up what is damaged in a store, so that it opens again.

    What log and archive still have is taken from there; what is lost is listed by its keys and sequences. The damaged files are
    kept whole in lost+found folders. The store's writer must not be running. Asks, and says before what would be lost.

    Example: ringmain store repair data --dry-run
    """
    store, kept = find_store(directory), read_fields(keep_versions)
    if dry_run or not yes:
        report = _repair(store, kept, dry_run=True)
        if dry_run or not report.changes:
            _tell(dataclasses.replace(report, dry_run=dry_run), as_json)
            return
        print_text(stderr(), plain_lines(str(report)))
        if not sys.stdin.isatty():
            raise ValueError(f"{store}: say --yes to repair it where nobody can be asked")
        typer.confirm("Give up what is damaged?", abort=True, err=True)
    _tell(_repair(store, kept, dry_run=False), as_json)


def _repair(store: Path, keep_versions: list[str], *, dry_run: bool) -> Repaired:
    if (writer_pid := writer_of(store / "log")) is not None:  # told at once, not after all of it was read
        raise LogLocked(store / "log", writer_pid, to_write=False)
    with byte_progress("looking for damage" if dry_run else "repairing") as progress, _saying_what_is_there(store):
        return repair_store(store, dry_run=dry_run, keep_versions=keep_versions, progress=progress)


def _tell(report: Repaired, as_json: bool) -> None:
    if as_json:
        print_json(_as_facts(report))
    else:
        print_text(stdout(), plain_lines(str(report)))


def _as_facts(found: Verified | Repaired) -> dict[str, Any]:
    facts = dataclasses.asdict(found)
    for entry in facts.get("lost", ()):
        entry["keys"] = entry["keys"] and [key_as_text(key) for key in entry["keys"]]
    shown: dict[str, Any] = msgspec.to_builtins(facts, enc_hook=str)
    return shown


def _print_verdict(console: Console, verified: Verified) -> None:
    console.print(pairs(("store", verified.directory)))
    table = new_table("~topic", ">rows in\ntables", ">tables\n", ">size\n", ">checkpoint\n", ">newest\nin the log")
    for topic in verified.topics:
        table.add_row(
            topic.topic,
            f"{topic.row_count:,}",
            f"{topic.table_count:,}",
            memory(topic.table_bytes),
            f"{topic.checkpoint:,}",
            f"{topic.newest:,}",
        )
    if verified.topics:
        console.print()
        console.print(table)
    console.print()
    if verified.lost_count:
        console.print(f"{verified.lost_count:,} records were given up by an earlier repair")
    if verified.torn_bytes:
        console.print(
            f"the last {verified.torn_bytes:,} bytes were never finished; the next writer cuts them off. That is no damage"
        )
    for path in verified.strays:
        print_text(
            console,
            plain(f"{path} belongs to nothing: it is being written, or a killed writer left it. That is no damage"),
        )
    for found in verified.findings:
        place = str(found.path) if found.offset is None else f"{found.path}, byte {found.offset:,}"
        print_text(console, plain(f"DAMAGED {place}: expected {found.expected}, found {found.found}", style="red"))
    if verified.findings:
        print_text(console, plain("restore a copy, or give up what is damaged with `ringmain store repair`"))
    else:
        console.print(plain("sound", style="green"))
    speed = verified.checked_bytes / verified.seconds / 1e9 if verified.seconds else 0.0
    checked = [
        counted(verified.file_count, "file"),
        counted(verified.row_count, "row") + " in tables",
        f"{verified.record_count:,} in the log",
        memory(verified.checked_bytes),
    ]
    console.print(
        f"checked {', '.join(checked)} in {verified.seconds:.2f} s" + (f", {speed:.1f} GB/s" if speed >= 0.1 else "")
    )


@contextlib.contextmanager
def _saying_what_is_there(store: Path) -> Generator[None]:
    """Where there is no store, say what there is instead."""
    try:
        yield
    except FileNotFoundError as error:
        raise no_store(store) if error.filename == str(store.absolute()) else error from None
