"""`ringmain publish`: a CSV file, or standard input, into a topic.

Whatever ends the run (the end of the input, a bad row, Ctrl-C, a failing log), what was published before stays published,
the bus is closed in good order, and the counts are told.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ..bus import Publisher, Writer
from ..bus.segments import split_address
from ..storage import SHIPPED, Schema
from .csv_map import CsvPlan, load_map
from .csv_rows import CsvRows
from .pace import Pace
from .printing import note, print_json, stderr, stdout

__all__ = ["publish"]

POLL_S = 0.02


class Sync(StrEnum):
    """When the log waits for the disk."""

    interval = "interval"
    always = "always"
    never = "never"


class Reached(StrEnum):
    """Watermarks that can be waited for."""

    published = "published"
    logged = "logged"
    durable = "durable"


class Tally(msgspec.Struct, kw_only=True):
    """What a run has done so far; printed at its end."""

    topic: str
    published_count: int = 0
    filtered_count: int = 0
    rejected_count: int = 0
    last_sequence: int = 0
    durable_sequence: int | None = None  # None: there is no log, or it does not sync
    seconds: float = 0.0
    rejects: str | None = None


def publish(
    address: Annotated[str, typer.Argument(metavar="BUS/TOPIC", help="Where to, such as exchange/trades.")],
    csv: Annotated[
        str, typer.Option("--csv", metavar="FILE|-", help="The CSV file, plain or gzip; - is standard input.")
    ],
    mapping: Annotated[Path, typer.Option("--map", metavar="MAP.toml", help="How columns become the topic's fields.")],
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Declares the topic; without it, one that ships with ringmain."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the log lives. Without it: ring only.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", help="Records a second; as fast as possible without.")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(metavar="X", help="Keep to the recorded times, X times as fast. The map names them, under pace."),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Set bad rows aside there and go on, instead of stopping at the first."),
    ] = None,
    sync: Annotated[Sync, typer.Option(help="When the log waits for the disk.")] = Sync.interval,
    slots: Annotated[
        int, typer.Option(metavar="N", help="Records that the ring holds; a power of two.", min=1)
    ] = 65_536,
    wait: Annotated[
        Reached | None,
        typer.Option(help="Read on only when what was read is that safe; the counts then hold in any case."),
    ] = None,
    readers: Annotated[int, typer.Option(metavar="N", help="Begin when so many readers have attached.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Publish a CSV file into a topic, and make it durable where there is a data directory.

    A bad row stops the run with its line, or is set aside with --rejects.

    Example: ringmain publish sse/trades --csv trade.csv.gz --map trades.toml --data-dir data --speed 60
    """
    bus, topic = split_address(address)
    if wait in (Reached.logged, Reached.durable) and data_dir is None:
        raise ValueError(f"--wait {wait}: nothing is {wait} without --data-dir")
    if wait is Reached.durable and sync is Sync.never:
        raise ValueError("--wait durable: nothing is known to be durable with --sync never")
    plan = load_map(mapping, find_schema(topic, schema))
    pace = Pace(rate, speed)
    if speed is not None and plan.pace is None:
        raise ValueError(f'--speed: {mapping} names no recorded time; give it [pace] with field = "…", or use --rate')
    tally = Tally(topic=address, rejects=None if rejects is None else str(rejects))
    started = time.monotonic()
    with CsvRows(csv, plan, rejects=rejects) as rows:
        writer = Writer(bus, [plan.schema], data_dir=data_dir, slots=slots, sync=sync.value)
        try:
            publisher = writer[topic]
            try:
                _await_readers(address, readers)
                _publish_rows(publisher, rows, plan, pace, wait, tally)
            finally:
                tally.last_sequence = publisher.watermarks.published
                writer.close()
                if data_dir is not None and sync is not Sync.never:
                    tally.durable_sequence = tally.last_sequence  # closing has synced everything
        finally:
            tally.filtered_count, tally.rejected_count = rows.counts.filtered, rows.counts.bad
            tally.seconds = round(time.monotonic() - started, 3)
            _tell(tally, as_json)


def find_schema(topic: str, path: Path | None) -> Schema:
    """The topic's schema, from a TOML file or among those that ship with the package."""
    if path is None:
        if topic not in SHIPPED:
            raise ValueError(
                f"topic {topic!r}: declare it with --schema FILE.toml; those that ship are {', '.join(SHIPPED)}"
            )
        return SHIPPED[topic]
    schemas = Schema.from_toml(path)
    if topic not in schemas:
        raise ValueError(f"{path}: declares no topic {topic!r}, but {', '.join(schemas) or 'none'}")
    return schemas[topic]


def _publish_rows(
    publisher: Publisher, rows: CsvRows, plan: CsvPlan, pace: Pace, wait: Reached | None, tally: Tally
) -> None:
    with _progress(rows) as advance:
        for batch in rows:
            advance.begin(len(batch))
            times_ns = None if plan.pace is None else batch[plan.pace]
            for part in pace.slices(len(batch), times_ns):
                last = publisher.publish_batch(batch[part])
                tally.published_count += part.stop - part.start
                if wait is not None:
                    publisher.wait(last, wait.value)
                advance(tally.published_count, part.stop)


def _await_readers(address: str, wanted: int) -> None:
    """Wait until so many processes read the topic."""
    from ..bus.observing import Observer  # not needed by most runs

    bus, topic = split_address(address)
    observer = Observer()
    while wanted > 0:
        snapshot = observer.look(bus, topic)
        found = [reader for entry in snapshot.buses for facts in entry.topics for reader in facts.readers]
        if sum(reader.process != "dead" for reader in found) >= wanted:
            return
        time.sleep(POLL_S)


class _Advance:
    """Moves a progress bar, or does nothing where there is none."""

    def __init__(self, progress: Progress | None, rows: CsvRows) -> None:
        self._progress, self._rows = progress, rows
        self._before = self._behind = self._batch_count = 0
        if progress is not None:
            self._task = progress.add_task("publishing", total=rows.bytes_total, records="0")

    def begin(self, batch_count: int) -> None:
        """A batch of so many rows is to be published, that was made of the bytes read since the one before."""
        self._before, self._behind, self._batch_count = self._behind, self._rows.bytes_read, batch_count

    def __call__(self, published_count: int, batch_done: int) -> None:
        """So many rows are published in all, so many of this batch."""
        if self._progress is not None:
            done = self._before + (self._behind - self._before) * batch_done / self._batch_count
            self._progress.update(self._task, completed=done, records=f"{published_count:,}")


@contextlib.contextmanager
def _progress(rows: CsvRows) -> Generator[_Advance]:
    """A progress bar on standard error, by the bytes read, if that is a terminal."""
    if not sys.stderr.isatty():
        yield _Advance(None, rows)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[records]} records"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as progress:
        yield _Advance(progress, rows)


def _tell(tally: Tally, as_json: bool) -> None:
    if as_json:
        print_json(tally)
        return
    durable = "" if tally.durable_sequence is None else f", durable up to {tally.durable_sequence:,}"
    per_second = f", {tally.published_count / tally.seconds:,.0f}/s" if tally.seconds > 0 else ""
    stdout().print(
        f"published {tally.published_count:,} records to {tally.topic} in {tally.seconds:.2f} s{per_second}\n"
        f"last sequence {tally.last_sequence:,}{durable}; filtered {tally.filtered_count:,}, rejected {tally.rejected_count:,}",
        soft_wrap=True,
    )
    if tally.rejected_count and tally.rejects is not None:
        note(f"the rejected rows are in {tally.rejects}")
