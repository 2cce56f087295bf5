"""`ringmain store verify`: proving a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from ..storage.store_verify import Verified, verify_store
from .exit_codes import FAILED
from .printing import counted, memory, new_table, pairs, plain, print_json, print_text, stdout
from .progress import byte_progress
from .store_contents import find_store, no_store

__all__ = ["verify"]


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
    with byte_progress("verifying") as progress:
        try:
            verified = verify_store(store, progress=progress)
        except FileNotFoundError as error:
            raise no_store(store) if error.filename == str(store.absolute()) else error from None
    if as_json:
        facts: dict[str, Any] = msgspec.to_builtins(dataclasses.asdict(verified), enc_hook=str)
        print_json(facts)
    else:
        print_verdict(stdout(), verified)
    if not verified.is_sound:
        raise typer.Exit(FAILED)


def print_verdict(console: Console, verified: Verified) -> None:
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
