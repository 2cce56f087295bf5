"""`ringmain verify`: proving backups, a store, or a log, whichever is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from ..storage.backup_repository import is_repository
from ..storage.backup_verify import VerifiedBackups, verify_backups
from ..storage.manifest_reader import MANIFEST_NAME
from .backup_command import kind_of
from .exit_codes import FAILED
from .log_command import verify as verify_log
from .log_contents import find_log
from .printing import counted, memory, moment, new_table, note, pairs, plain, print_json, print_text, state_text, stdout
from .progress import byte_progress
from .store_checking import verify as verify_store
from .store_contents import find_store

__all__ = ["verify"]


class FindingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong. offset: bytes from the file's beginning; None where it is all of the file."""

    path: str
    offset: int | None
    message: str
    backups: tuple[int, ...]  # those that need the file


class BackupsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of backups, read from beginning to end."""

    target: str
    backups: tuple[int, ...]
    sound: tuple[int, ...]
    findings: tuple[FindingFacts, ...]
    file_count: int
    checked_bytes: int
    seconds: float


def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of backups, a store's directory, or a log's.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read backups, a store or a log from beginning to end, and prove every checksum. Says which of them it found.

    Every damaged place is named with its byte, and the exit code is then 1. Changes nothing, and may run beside a writer.

    Example: ringmain verify /mnt/backups
    """
    if is_repository(path):
        _verify_backups(path, as_json)
    elif _is_store(path):
        note(f"{path}: a store")
        verify_store(path, as_json)
    elif _is_log(path):
        note(f"{path}: a log")
        verify_log(path, as_json)
    else:
        raise FileNotFoundError(2, "holds no backups, no store and no log", str(path))


def _is_store(path: Path) -> bool:
    folder = find_store(path) / "store"
    return (folder / MANIFEST_NAME).exists() or any(folder.glob("*.sst"))


def _is_log(path: Path) -> bool:
    try:
        find_log(path)
    except FileNotFoundError:
        return False
    return True


def _verify_backups(path: Path, as_json: bool) -> None:
    note(f"{path}: a folder of backups")
    with byte_progress("verifying") as progress:
        verified = verify_backups(path, progress)
    if as_json:
        print_json(_facts(path, verified))
    else:
        _print_verdict(stdout(), path, verified)
    if verified.findings:
        raise typer.Exit(FAILED)


def _facts(path: Path, verified: VerifiedBackups) -> BackupsFacts:
    return BackupsFacts(
        target=str(path),
        backups=tuple(backup.number for backup in verified.backups),
        sound=tuple(verified.sound),
        findings=tuple(
            FindingFacts(path=str(found.path), offset=found.offset, message=found.message, backups=found.backups)
            for found in verified.findings
        ),
        file_count=verified.file_count,
        checked_bytes=verified.checked_bytes,
        seconds=round(verified.seconds, 3),
    )


def _print_verdict(console: Console, path: Path, verified: VerifiedBackups) -> None:
    sources = dict.fromkeys(backup.source for backup in verified.backups)
    console.print(pairs(("backups", path.absolute()), ("of", ", ".join(sources))))
    table = new_table(">backup", "made (UTC)", "kind", ">files", ">size", "is")
    for backup in verified.backups:
        table.add_row(
            str(backup.number),
            moment(backup.created_ns),
            kind_of(backup.is_full),
            f"{len(backup.files):,}",
            memory(backup.file_bytes),
            state_text("sound" if backup.number in verified.sound else "damaged"),
        )
    console.print()
    console.print(table)
    console.print()
    for found in verified.findings:
        place = str(found.path) if found.offset is None else f"{found.path}, byte {found.offset:,}"
        needed = f"backup{'s' if len(found.backups) > 1 else ''} {', '.join(map(str, found.backups))}"
        print_text(console, plain(f"DAMAGED {place}: {found.message}; needed by {needed}", style="red"))
    if verified.findings:
        print_text(console, plain("make a full backup while the store is there: `ringmain backup --full`"))
    else:
        console.print(plain("sound", style="green"))
    speed = verified.checked_bytes / verified.seconds / 1e9 if verified.seconds else 0.0
    console.print(
        f"checked {counted(verified.file_count, 'file')}, {memory(verified.checked_bytes)} in {verified.seconds:.2f} s"
        + (f", {speed:.1f} GB/s" if speed >= 0.1 else "")
    )
