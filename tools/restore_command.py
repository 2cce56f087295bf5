"""`ringmain restore`: a store, or a log, from its backups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..storage import StorageError
from ..storage.backup_list import BackupDamaged
from ..storage.restore import Restored, restore
from ..storage.restore_plan import Restorable, restorable, unreadable
from .backup_command import BackupFacts, facts_of, kind_of
from .exit_codes import FAILED
from .positions import read_position
from .printing import (
    counted,
    memory,
    moment,
    new_table,
    note,
    pairs,
    plain,
    plain_lines,
    print_json,
    print_text,
    state_text,
    stdout,
)
from .progress import byte_progress

__all__ = ["restore_command"]


class RestorableTopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The sequences of a topic that can be restored to; 0 is no row at all."""

    topic: str
    lowest: int
    highest: int


class RestorableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one backup and the log behind it can be restored to. Times in ns since the Unix epoch, both included."""

    backup: BackupFacts
    topics: tuple[RestorableTopicFacts, ...]
    from_ns: int
    to_ns: int


class UnreadableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A backup whose list cannot be read, and what is wrong with it."""

    backup: int
    message: str


class RestoredFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored. last: each topic's newest sequence. passed_over: newer backups whose lists are damaged, though not what is
    in them."""

    directory: str
    backup: int
    last: Mapping[str, int]
    file_count: int
    restored_bytes: int
    seconds: float
    passed_over: list[int]


def restore_command(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A folder of backups.")],
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where to; not there yet, or an empty directory.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="[TOPIC=]SEQ", help="Only up to this row. May be given for several topics."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="Only rows stamped at or before this time.")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("--backup", metavar="N", help="Take the tables from this backup, and none after it.", min=1),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print what can be restored, and restore nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Restore a store, or a log, from its backups: as it was last, up to a row, or up to a time.

    The log is cut behind the row of --to: a topic that is not named ends with what had been logged by then. With --backup and
    no place, it is just what that backup holds. Every checksum is proven before DIR gets its name. Times without an offset are
    UTC. The exit code of --list is 1 where a backup cannot be read.

    Example: ringmain restore /mnt/backups restored --time 2023-02-01T09:30:00+08:00
    """
    if listing:
        found, problems = restorable(target), unreadable(target)
        if as_json:
            others = [UnreadableFacts(backup=item, message=str(problems[item])) for item in sorted(problems)]
            print_json({"target": str(target), "backups": [_facts_of(item) for item in found], "unreadable": others})
        else:
            _print_list(found, problems)
        if problems:
            raise typer.Exit(FAILED)
        return
    if directory is None:
        raise ValueError("DIR: name the directory to restore to, or give --list")
    rows, time_ns = _read_rows(to or []), None
    if at is not None:
        time_ns = read_position(at, "--time", ("time",)).value
    if rows is not None and time_ns is not None:
        raise ValueError("--to, --time: one of them, not both")
    with byte_progress("restoring") as progress:
        restored = restore(target, directory, to=rows, time_ns=time_ns, backup=number, progress=progress)
    for passed_over, problem in sorted(restored.passed_over.items()):
        note(f"warning: backup {passed_over} was passed over, the log has its rows: {problem}")
    if as_json:
        print_json(
            RestoredFacts(
                directory=str(restored.directory),
                backup=restored.backup,
                last=restored.last,
                file_count=restored.file_count,
                restored_bytes=restored.restored_bytes,
                seconds=round(restored.seconds, 3),
                passed_over=sorted(restored.passed_over),
            )
        )
    else:
        _print_restored(target, restored)


def _read_rows(given: list[str]) -> int | dict[str, int] | None:
    """What --to says: a number, or sequences by topic. Raises ValueError."""
    rows: dict[str, int] = {}
    for text in given:
        topic, equals, number = text.rpartition("=")
        if not (number.isascii() and number.isdigit()):
            raise ValueError(f"--to: a sequence, or TOPIC=SEQUENCE, is expected, got {text!r}")
        if not equals:
            if len(given) > 1:
                raise ValueError("--to: with several, each is TOPIC=SEQUENCE")
            return int(number)
        if topic in rows:
            raise ValueError(f"--to: topic {topic!r} is given twice")
        rows[topic] = int(number)
    return rows or None


def _facts_of(found: Restorable) -> RestorableFacts:
    return RestorableFacts(
        backup=facts_of(found.backup),
        topics=tuple(
            RestorableTopicFacts(topic=name, lowest=lowest, highest=highest)
            for name, (lowest, highest) in sorted(found.topics.items())
        ),
        from_ns=found.from_ns,
        to_ns=found.to_ns,
    )


def _print_list(found: list[Restorable], problems: Mapping[int, StorageError]) -> None:
    table = new_table(
        ">backup\n", "made (UTC)\nkind, size", "can be restored\nfrom, to (UTC)", "~topic\n", ">rows from\n", ">to\n"
    )
    readable = {item.backup.number: item for item in found}
    for number in sorted([*readable, *problems]):
        if number in problems:
            table.add_row(str(number), state_text(_state_of(problems[number])), "-", "-", "-", "-")
            continue
        item = readable[number]
        backup, topics = item.backup, sorted(item.topics.items())
        table.add_row(
            str(number),
            f"{moment(backup.created_ns)}\n{kind_of(backup.is_full)}, {memory(backup.file_bytes)}",
            f"{moment(item.from_ns) if item.from_ns else 'the beginning'}\n{moment(item.to_ns)}",
            plain_lines("\n".join(name for name, _ in topics)),
            "\n".join(f"{lowest:,}" if highest else "-" for _, (lowest, highest) in topics),
            "\n".join(f"{highest:,}" if highest else "-" for _, (_, highest) in topics),
        )
    console = stdout()
    console.print(table)
    for number in sorted(problems):
        words = f"{_state_of(problems[number]).upper()} backup {number}: {problems[number]}"
        print_text(console, plain(words, style="red"))


def _state_of(problem: StorageError) -> str:
    return "damaged" if isinstance(problem, BackupDamaged) else "unreadable"


def _print_restored(target: Path, restored: Restored) -> None:
    console = stdout()
    console.print(
        pairs(
            ("restored", restored.directory), ("from", f"backup {restored.backup} and the log in {target.absolute()}")
        )
    )
    table = new_table("~topic", ">last")
    for name, last in sorted(restored.last.items()):
        table.add_row(name, f"{last:,}" if last else "-")
    console.print()
    console.print(table)
    console.print()
    speed = restored.restored_bytes / restored.seconds / 1e6 if restored.seconds else 0.0
    console.print(plain("sound", style="green"))
    console.print(
        f"restored {counted(restored.file_count, 'file')}, {memory(restored.restored_bytes)} in {restored.seconds:.2f} s"
        + (f", {speed:,.0f} MB/s" if restored.restored_bytes >= 1 << 20 else "")
    )
