"""`ringmain subscribe`: a topic's records, live or from the past, as text or arrays.

Rows are copied out of the ring and proven whole before they are written: no line ever shows a record that was overwritten
while it was read. Each row is written completely or not at all, also when Ctrl-C ends the run.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..bus import Overrun
from ..bus.segments import split_address
from ..subscribers import Historical, RealTime, Stats
from ..subscribers.reader import TopicReader, wait_for_topic
from .exit_codes import FAILED, INTERRUPTED, OK
from .log_contents import open_topic
from .output import Interrupt, Output
from .positions import Position, read_position
from .printing import note
from .row_formats import Format, RowWriter, open_format, read_fields

__all__ = ["subscribe"]

NAME = "ringmain subscribe"
HISTORY_BATCH_ROWS = 8192


class Mode(StrEnum):
    """Where rows come from."""

    realtime = "realtime"
    historical = "historical"


class Follow(StrEnum):
    """How safe a record must be before it is shown."""

    published = "published"
    logged = "logged"
    durable = "durable"
    indexed = "indexed"
    replicated = "replicated"


def subscribe(
    address: Annotated[str, typer.Argument(metavar="BUS/TOPIC", help="What to read, such as exchange/trades.")],
    mode: Annotated[
        Mode, typer.Option(help="realtime follows the writer until it closes; historical ends behind what there is.")
    ] = Mode.realtime,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="latest|earliest|SEQ|TIME", help="Where to begin; latest, or for historical earliest."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="SEQ|TIME", help="The last sequence, or the time before which records were published."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With historical: read the log there; the bus need not be open.")
    ] = None,
    follow: Annotated[
        Follow | None,
        typer.Option(
            help="Show records once they are that safe; unless told, once published, on a replicated bus once replicated."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="End after so many records.", min=1)] = None,
    reliable: Annotated[
        bool, typer.Option("--reliable", help="Hold the writer back rather than miss anything.")
    ] = False,
    format: Annotated[Format, typer.Option(help="json: one object a line. npy: one array of all rows.")] = Format.table,
    fields: Annotated[str | None, typer.Option(metavar="A,B,…", help="Only these fields.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of standard output.")] = None,
    open_timeout: Annotated[
        float, typer.Option(metavar="S", help="Wait so many seconds for the topic to open.", min=0)
    ] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not count on standard error at the end.")] = False,
) -> None:
    """Print a topic's records as they are published, or those of the past.

    Times without an offset are UTC. Records missed in the ring are read from the log; where there is none they are counted,
    and the exit code is 1.

    Example: ringmain subscribe exchange/trades --from earliest --format csv --count 100
    """
    if format is Format.npy and output is None and sys.stdout.isatty():
        raise ValueError("--format npy is binary: name a file with --output, or use a pipe")
    ending = None if until is None else read_position(until, "--until", ("sequence", "time"))
    begin = _begin(mode, start)
    reader = _open(address, mode, begin, ending, data_dir, follow, reliable, open_timeout)
    with reader, Output(output) as out:
        rows = open_format(format, out.stream, reader.schema, read_fields(fields), out.width)
        code = _copy(reader, rows, out, ending, count)
        stats, span = reader.stats, out.span
    if not quiet and not out.broken:
        note(_summary(address, stats, span, code == INTERRUPTED))
    raise typer.Exit(code if code != OK or not stats.lost_count else FAILED)


def _begin(mode: Mode, start: str | None) -> Position:
    if mode is Mode.realtime:
        return read_position(start or "latest", "--from")
    if start == "latest":
        raise ValueError(
            "--from latest leaves nothing to read in --mode historical; give earliest, a sequence or a time"
        )
    return read_position(start or "earliest", "--from", ("earliest", "sequence", "time"))


def _open(
    address: str,
    mode: Mode,
    begin: Position,
    ending: Position | None,
    data_dir: Path | None,
    follow: Follow | None,
    reliable: bool,
    open_timeout: float,
) -> TopicReader:
    split_address(address)
    if mode is Mode.realtime and data_dir is not None:
        raise ValueError("--data-dir is for --mode historical; in realtime the bus itself says where its log is")
    if open_timeout > 0:
        wait_for_topic(address, open_timeout)
    watermark = None if follow is None else follow.value
    if mode is Mode.realtime and begin.kind != "time":
        start = begin.value if begin.kind == "sequence" else "latest" if begin.kind == "latest" else "earliest"
        return RealTime(address, follow=watermark, start=start, reliable=reliable, name=NAME)
    past = mode is Mode.historical
    if data_dir is not None:
        open_topic(data_dir / "log", split_address(address)[1])  # says what is missing, and what there is instead
    return Historical(
        address,
        data_dir=data_dir,
        start=begin.value if begin.kind == "sequence" else "earliest",
        since=begin.value if begin.kind == "time" else None,
        last=ending.value if past and ending is not None and ending.kind == "sequence" else None,
        until=ending.value if past and ending is not None and ending.kind == "time" else None,
        live=not past,
        follow=watermark,
        reliable=reliable,
        name=NAME,
        batch_rows=HISTORY_BATCH_ROWS,
    )


def _copy(reader: TopicReader, rows: RowWriter, out: Output, ending: Position | None, count: int | None) -> int:
    """Write rows until the reader has ended, enough was written, or somebody stops it; returns the exit code."""
    left = count
    with Interrupt() as interrupt:
        try:
            for batch in reader:
                try:
                    mine = batch.copy()
                except Overrun:  # lapped while copying: the reader has stepped back, and delivers these again
                    continue
                kept = _before(mine, ending)[:left]
                with interrupt.held():
                    if len(kept):
                        rows.write(kept)
                        out.wrote(int(kept["sequence"][0]), int(kept["sequence"][-1]), len(kept))
                left = None if left is None else left - len(kept)
                if left == 0 or len(kept) < len(mine) or _reached(ending, mine):
                    break
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            out.give_up()
            return OK
    if out.finish(rows):
        return INTERRUPTED if interrupt.asked else OK
    return OK


def _before(rows: np.ndarray[Any, np.dtype[np.void]], ending: Position | None) -> np.ndarray[Any, np.dtype[np.void]]:
    if ending is None:
        return rows
    if ending.kind == "sequence":
        return rows[: int(np.searchsorted(rows["sequence"], ending.value, side="right"))]
    return rows[: int(np.searchsorted(rows["timestamp_ns"], ending.value, side="left"))]


def _reached(ending: Position | None, rows: np.ndarray[Any, np.dtype[np.void]]) -> bool:
    return ending is not None and ending.kind == "sequence" and int(rows["sequence"][-1]) >= ending.value


def _summary(address: str, stats: Stats, span: tuple[int, int, int], interrupted: bool) -> str:
    first, last, written = span
    parts = [f"{written:,} records of {address}"]
    if written:
        parts.append(f"sequences {first:,} to {last:,}")
    if stats.refilled_count:
        parts.append(f"{stats.refilled_count:,} read from the log")
    if stats.lost_count:
        parts.append(f"{stats.lost_count:,} LOST: overwritten in the ring before they were read, and in no log")
    return ", ".join(parts) + ("; interrupted" if interrupted else "")
