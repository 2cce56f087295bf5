"""`ringmain backup`: backing up a store or a log, once or all the time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..storage.backup import BackupMade, backup, follow
from ..storage.backup_list import BackupList
from .exit_codes import INTERRUPTED
from .printing import counted, memory, moment, new_table, note, pairs, print_json, print_json_line, stdout
from .progress import byte_progress

__all__ = ["BackupFacts", "backup_command", "facts_of", "kind_of"]

LOG_NOTE_S = 60.0  # how often a line tells how much of the log was copied


class BackupTopicFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A topic in a backup: the sequences that can be restored to from this backup alone, and the time of the last."""

    topic: str
    lowest: int
    last: int
    last_timestamp_ns: int


class BackupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A backup. Sizes in bytes."""

    number: int
    is_full: bool
    created_ns: int
    source: str
    log_id: str  # hexadecimal
    topics: tuple[BackupTopicFacts, ...]
    file_count: int
    file_bytes: int


class MadeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was just made, and what had to be copied or linked for it."""

    target: str
    backup: BackupFacts
    new_file_count: int
    new_bytes: int
    seconds: float


class ShippedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the log had grown by. log_bytes: since the last line."""

    target: str
    log_bytes: int


def backup_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A store's directory, or a data directory with a log.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder of its backups; made if missing.")],
    full: Annotated[bool, typer.Option("--full", help="Take nothing from earlier backups.")] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy all files, also where a hard link would do (on one file system).")
    ] = False,
    keep: Annotated[
        int | None, typer.Option(metavar="N", help="Remove all but the newest N backups afterwards.", min=1)
    ] = None,
    following: Annotated[bool, typer.Option("--follow", help="Then copy the log as it grows, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="S", help="With --follow: look at the log so often.", min=0.01)
    ] = 1.0,
    every: Annotated[
        float, typer.Option(metavar="S", help="With --follow: make another backup so often.", min=1)
    ] = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --follow an object a line.")] = False,
) -> None:
    """Back up a store, or a log, that may be written meanwhile. After the first backup only what is new is copied.

    Files that never change get a second name (a hard link) where TARGET is on the same file system: that costs no room, but
    a disk that fails takes both. With --follow any row, and any time, since the first backup can be restored to.

    Example: ringmain backup data /mnt/backups --keep 7
    """
    if following and full:
        raise ValueError("--full, --follow: one of them; make the full backup first")
    if not following:
        with byte_progress("backing up") as progress:
            made = backup(directory, target, full=full, keep=keep, link=not copy, progress=progress)
        if as_json:
            print_json(_facts_of_made(target, made))
        else:
            _print_made(target, made)
        return
    teller = _Teller(target, as_json)
    try:
        follow(
            directory,
            target,
            stop=threading.Event(),
            interval_s=interval,
            backup_interval_s=every,
            keep=keep,
            link=not copy,
            report=teller.tell,
        )
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        teller.sum_up()


class _Teller:
    """Tells what following does: every backup, and now and then how much of the log came."""

    def __init__(self, target: Path, as_json: bool) -> None:
        self._target, self._as_json = target, as_json
        self._log_bytes, self._told_at = 0, time.monotonic()

    def tell(self, what: BackupMade | int) -> None:
        if isinstance(what, int):
            self._log_bytes += what
            if time.monotonic() - self._told_at >= LOG_NOTE_S:
                self.sum_up()
        elif self._as_json:
            print_json_line(_facts_of_made(self._target, what))
        else:
            _print_made(self._target, what)
            note("following the log; Ctrl-C ends it")

    def sum_up(self) -> None:
        if self._log_bytes and self._as_json:
            print_json_line(ShippedFacts(target=str(self._target), log_bytes=self._log_bytes))
        elif self._log_bytes:
            note(f"{moment(time.time_ns())} UTC: {memory(self._log_bytes)} of log copied")
        self._log_bytes, self._told_at = 0, time.monotonic()


def facts_of(backup: BackupList) -> BackupFacts:
    return BackupFacts(
        number=backup.number,
        is_full=backup.is_full,
        created_ns=backup.created_ns,
        source=backup.source,
        log_id=f"{backup.log_id:016x}",
        topics=tuple(
            BackupTopicFacts(
                topic=name, lowest=topic.lowest, last=topic.last, last_timestamp_ns=topic.last_timestamp_ns
            )
            for name, topic in sorted(backup.topics.items())
        ),
        file_count=len(backup.files),
        file_bytes=backup.file_bytes,
    )


def kind_of(is_full: bool) -> str:
    return "full" if is_full else "incremental"


def _facts_of_made(target: Path, made: BackupMade) -> MadeFacts:
    return MadeFacts(
        target=str(target),
        backup=facts_of(made.backup),
        new_file_count=made.new_file_count,
        new_bytes=made.new_bytes,
        seconds=round(made.seconds, 3),
    )


def _print_made(target: Path, made: BackupMade) -> None:
    facts = facts_of(made.backup)
    console = stdout()
    console.print(
        pairs(
            ("backup", f"{facts.number}, {kind_of(facts.is_full)}, of {moment(facts.created_ns)} UTC"),
            ("of", facts.source),
            ("in", target.absolute()),
        )
    )
    table = new_table("~topic", ">last", "published (UTC)")
    for topic in facts.topics:
        at = moment(topic.last_timestamp_ns) if topic.last else "-"
        table.add_row(topic.topic, f"{topic.last:,}" if topic.last else "-", at)
    console.print()
    console.print(table)
    console.print()
    speed = made.new_bytes / made.seconds / 1e6 if made.seconds else 0.0
    new = f"{made.new_file_count:,} of {counted(facts.file_count, 'file')} and {memory(made.new_bytes)} of "
    console.print(
        f"{new}{memory(facts.file_bytes)} are new; {made.seconds:.2f} s"
        + (f", {speed:,.0f} MB/s" if made.new_bytes >= 1 << 20 else "")
    )
