"""`ringmain log`: looking into a log, proving it, and repairing it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from ..storage import LogLocked
from ..storage.log_files import list_files, open_file, read_topics
from ..storage.repair import RepairReport
from ..storage.repair import repair as repair_log
from .exit_codes import EXIT_CODES_HELP, FAILED
from .log_contents import FRAME_KINDS, ROW_KINDS, LogFacts, find_log, look_at_log, open_topic, writer_of
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
    stderr,
    stdout,
)
from .progress import byte_progress
from .row_formats import Format, column_values, open_format

__all__ = ["log_app"]

log_app = typer.Typer(help="Look into a log directory, verify it, repair it.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A data directory, or the log directory in it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class FrameFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One frame of a log file."""

    file: str
    offset: int  # bytes
    kind: str
    topic: str
    first_sequence: int
    row_count: int
    payload_bytes: int
    durable_position: int  # bytes of the whole log that were on the disk when it was written


@log_app.command("dump", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def dump(
    directory: Directory,
    topic: Annotated[str | None, typer.Option(metavar="T", help="Print this topic's records.")] = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="Print the frames: where they lie and what is in them.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="Most records or frames; 0: all.", min=0)] = 50,
    as_json: AsJson = False,
) -> None:
    """Print what is in a log: its files and topics, or one topic's records, or its frames.

    Changes nothing, and may run beside the log's writer. For many records use `ringmain subscribe --mode historical`.

    Example: ringmain log dump data --topic trades --limit 5
    """
    log = find_log(directory)
    if frames:
        _dump_frames(log, topic, limit, as_json)
    elif topic is not None:
        _dump_rows(log, topic, limit, as_json)
    else:
        facts = look_at_log(log)
        if as_json:
            print_json(facts)
        else:
            _print_log(stdout(), facts)


@log_app.command("verify", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Read a whole log and prove every checksum, order and connection in it. Changes nothing.

    The first damage of each file is named with its byte, and the exit code is then 1. A last frame that a killed writer
    did not finish is no damage: the next writer cuts it off.

    Example: ringmain log verify data
    """
    log = find_log(directory)
    with byte_progress("verifying") as progress:
        facts = look_at_log(log, progress)
    if as_json:
        print_json(facts)
    else:
        _print_verdict(stdout(), facts)
    if not facts.is_sound:
        raise typer.Exit(FAILED)


@log_app.command("repair", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def repair(
    directory: Directory,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give up what is damaged in a log, so that the rest can be used and written again.

    Records that cannot be read are lost; readers are told which. The damaged files are kept whole in lost+found beside the
    log. Its writer must not be running.

    Example: ringmain log repair data
    """
    log = find_log(directory)
    if (writer_pid := writer_of(log)) is not None:  # told at once, not after all of it was read
        raise LogLocked(log, writer_pid, to_write=False)
    with byte_progress("verifying") as progress:
        before = look_at_log(log, progress)
    if not yes:
        _print_verdict(stderr(), before)
        if not before.is_sound:
            _ask(log)
    with byte_progress("repairing") as progress:
        report = repair_log(log, progress)
    if as_json:
        print_json({"damage_before": before.damage, "lost_count": report.lost_count, **_as_facts(report)})
    else:
        print_text(stdout(), plain_lines(str(report)))


def _ask(log: Path) -> None:
    if not sys.stdin.isatty():
        raise ValueError(f"{log}: say --yes to repair it where nobody can be asked")
    typer.confirm("Give up what is damaged?", abort=True, err=True)


def _as_facts(report: RepairReport) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(dataclasses.asdict(report), enc_hook=str)
    return facts


# --- a log as a whole -----------------------------------------------------------------------------------------------


def _print_log(console: Console, facts: LogFacts) -> None:
    _print_head(console, facts)
    table = new_table("file", ">epoch", "created (UTC)", ">frames", ">used", "end")
    for number, file in enumerate(facts.files, start=1):
        ended = (
            "closed" if file.closed else "" if number < len(facts.files) else "open" if facts.writer_pid else "killed"
        )
        frames, used = f"{file.frame_count:,}", memory(file.used_bytes)
        table.add_row(Path(file.path).name, str(file.epoch), moment(file.created_ns), frames, used, ended)
    console.print()
    console.print(table)
    _print_topics(console, facts)
    _print_findings(console, facts)


def _print_verdict(console: Console, facts: LogFacts) -> None:
    _print_head(console, facts)
    _print_topics(console, facts)
    _print_findings(console, facts)
    speed = facts.checked_bytes / facts.seconds / 1e9 if facts.seconds else 0.0
    console.print(
        f"checked {counted(len(facts.files), 'file')}, {counted(facts.record_count, 'record')}, {memory(facts.checked_bytes)} in "
        f"{facts.seconds:.2f} s" + (f", {speed:.1f} GB/s" if speed >= 0.1 else "")
    )


def _print_head(console: Console, facts: LogFacts) -> None:
    rows = [("log", facts.directory), ("bus", facts.bus)]
    if facts.writer_pid is not None:
        rows.append(("writer", f"process {facts.writer_pid} is writing it; this is what was there when it was read"))
    console.print(pairs(*rows))


def _print_topics(console: Console, facts: LogFacts) -> None:
    table = new_table("~topic", ">records", ">oldest", ">last", "last published\n(UTC)", ">row\nbytes")
    for topic in facts.topics:
        held = topic.last - topic.oldest + 1
        table.add_row(
            topic.topic,
            f"{held:,}",
            f"{topic.oldest:,}" if held else "-",
            f"{topic.last:,}" if held else "-",
            moment(topic.last_timestamp_ns) if topic.last else "-",
            f"{topic.row_bytes:,}",
        )
    console.print()
    console.print(table)
    console.print()


def _print_findings(console: Console, facts: LogFacts) -> None:
    if facts.lost_count:
        console.print(f"{facts.lost_count:,} records were given up by an earlier repair")
    if facts.torn_bytes:
        console.print(
            f"the last {facts.torn_bytes:,} bytes were never finished; the next writer cuts them off. That is no damage"
        )
    for damage in facts.damage:
        place = damage.path if damage.offset is None else f"{damage.path}, byte {damage.offset:,}"
        print_text(console, plain(f"DAMAGED {place}: {damage.message}", style="red"))
    if facts.damage:
        print_text(console, plain("restore a copy, or give up what is damaged with `ringmain log repair`"))
    else:
        console.print(plain("sound", style="green"))


# --- records and frames ---------------------------------------------------------------------------------------------


def _dump_rows(log: Path, topic: str, limit: int, as_json: bool) -> None:
    reader = open_topic(log, topic)
    console = stdout()
    table = open_format(
        Format.table, sys.stdout.buffer, reader.schema, width=console.width if console.is_terminal else None
    )
    names = reader.schema.dtype.names or ()
    objects: list[dict[str, Any]] = []
    sequence, count = reader.oldest, 0
    while (left := limit - count if limit else 1 << 16) > 0:
        rows = reader.read(sequence, rows_max=left)
        if rows is None:
            break
        if as_json:
            columns = [column_values(rows[name]) for name in names]
            objects += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        else:
            table.write(rows)
            sys.stdout.buffer.flush()
        count += len(rows)
        sequence = int(rows["sequence"][-1]) + 1
    more = reader.read(sequence, rows_max=1) is not None
    if as_json:
        print_json({"directory": str(log), "topic": topic, "rows": objects, "more": more})
    elif more:
        note(f"there are more: sequence {sequence:,} is next; --limit 0 prints all")
    elif not count:
        note(f"topic {topic} is empty")


def _dump_frames(log: Path, topic: str | None, limit: int, as_json: bool) -> None:
    found: list[FrameFacts] = []
    more = False
    for frame in _frames(log, topic):
        if limit and len(found) == limit:
            more = True
            break
        found.append(frame)
    if as_json:
        print_json({"directory": str(log), "frames": found, "more": more})
        return
    table = new_table("file", ">offset", "kind", "~topic", ">first\nsequence", ">rows", ">bytes", ">durable\nbefore")
    for frame in found:
        table.add_row(
            Path(frame.file).name,
            f"{frame.offset:,}",
            frame.kind,
            frame.topic,
            f"{frame.first_sequence:,}" if frame.topic else "",
            f"{frame.row_count:,}" if frame.kind in ROW_KINDS else "",
            f"{frame.payload_bytes:,}",
            f"{frame.durable_position:,}",
        )
    stdout().print(table)
    if more:
        note("there are more; --limit 0 prints all")


def _frames(log: Path, topic: str | None) -> Iterator[FrameFacts]:
    for number, path in list_files(log):
        file = open_file(path, number)
        frames, _ = file.scan()
        names = {entry.number: entry.schema.name for entry in read_topics(file, frames)}
        for frame in frames:
            kind = FRAME_KINDS.get(int(frame["kind"]), "unknown")
            name = names.get(int(frame["topic"]), "") if kind in (*ROW_KINDS, "topic") else ""
            if topic is None or name == topic:
                yield FrameFacts(
                    file=str(path),
                    offset=int(frame["offset"]),
                    kind=kind,
                    topic=name,
                    first_sequence=int(frame["first_sequence"]),
                    row_count=int(frame["row_count"]),
                    payload_bytes=int(frame["payload_bytes"]),
                    durable_position=int(frame["durable_position"]),
                )
