"""`ringmain demo`: a small exchange, three subscribers, a kill half-way, and the proof that nothing was lost."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from .demo_check import Summary, check
from .demo_child import ChildFailed
from .demo_play import Play
from .demo_view import LiveView, PlainView
from .exit_codes import FAILED, INTERRUPTED
from .printing import new_table, note, print_json, stdout

__all__ = ["demo"]


def demo(
    seconds: Annotated[
        float, typer.Option(metavar="S", help="How long the exchange is open.", min=2.0, max=3600.0)
    ] = 20.0,
    rate: Annotated[float, typer.Option(metavar="N", help="Records per second, over all topics.", min=10.0)] = 50_000.0,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Chooses the order flow; the same seed makes the same records.", min=0)
    ] = 1,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Empty or new folder for the log, kept afterwards. Without: a temporary one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only print one JSON object at the end.")] = False,
) -> None:
    """Show the whole of it at work in half a minute, and check that nothing gets lost.

    A small exchange publishes orders, trades, quotes and accounts; three other processes read them. Half-way the
    publisher is killed with SIGKILL and started again. In the end every record is compared with the log. Exit code 1 when
    anything is missing, double or altered.

    Example: ringmain demo --seconds 10
    """
    console = stdout()
    try:
        with _folder(data_dir) as folder, _view(console, as_json) as show:
            bus = f"demo-{os.getpid()}-{secrets.token_hex(2)}"
            with Play(bus, data_dir or folder / "data", folder, seconds, rate, seed, show) as play:
                outcome = play.perform()
                play.tell("every record in the log is compared with what the exchange made")
                summary = check(bus, play.data_dir, seed, outcome, play.tell_checked)
    except ChildFailed as failed:
        note(f"ringmain demo: {failed}")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        note("interrupted; processes, shared memory and temporary files are gone")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(summary)
    else:
        _tell(console, summary)
        if data_dir is not None:
            console.print(f"The log is in {data_dir}; look at it with: ringmain log verify {data_dir}", markup=False)
    if not summary.ok:
        raise typer.Exit(FAILED)


@contextlib.contextmanager
def _view(console: Console, as_json: bool) -> Generator[Callable[[Play], None], None, None]:
    """Gives the function that shows how the play stands."""
    if as_json:
        yield lambda _play: None
    elif console.is_terminal:
        with LiveView(console) as view:
            yield view.show
    else:
        yield PlainView(console).show


@contextlib.contextmanager
def _folder(data_dir: Path | None) -> Generator[Path, None, None]:
    """The folder to work in, removed in the end unless it is the user's. A closed terminal ends the demo in order too."""
    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
        if any(data_dir.iterdir()):
            raise ValueError(f"--data-dir: {data_dir} is not empty; the demo's log wants a folder of its own")
    folder = Path(tempfile.mkdtemp(prefix="ringmain-demo-"))
    before = signal.signal(signal.SIGHUP, _on_hangup)
    try:
        yield folder
    finally:
        signal.signal(signal.SIGHUP, before)
        shutil.rmtree(folder, ignore_errors=True)


def _on_hangup(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal.SIGHUP)


def _tell(console: Console, summary: Summary) -> None:
    """The result in words."""
    recovered = summary.recovered_from_log_count + summary.recovered_from_rings_count
    console.print(
        Text.assemble(
            "\nThe exchange published ",
            (f"{summary.published_count:,} records", "bold"),
            f" in {len(summary.published)} topics, {summary.published_per_s:,.0f} a second: "
            + ", ".join(f"{count:,} {topic}" for topic, count in summary.published.items())
            + ".",
        )
    )
    console.print(
        Text.assemble(
            "Half-way its publisher was killed with SIGKILL. The next one published ",
            (f"{summary.outage_s:.2f} s later", "bold"),
            ", having recovered ",
            (f"{recovered:,} records", "bold"),
            f": {summary.recovered_from_log_count:,} from the log, and {summary.recovered_from_rings_count:,} that only the "
            "rings held. Published and lost: ",
            _zero(summary.lost_count),
            ".",
        )
    )
    table = new_table("Subscriber", "Topic", ">Read", ">From the log", ">Gaps", ">Repeats")
    for reader in summary.readers:
        table.add_row(
            reader.name,
            reader.topic,
            f"{reader.read_count:,}",
            f"{reader.from_log_count:,}",
            _zero(reader.gap_count),
            _zero(reader.repeat_count),
        )
    console.print()
    console.print(table)
    console.print()
    if summary.ok:
        console.print(
            "Every record in the log is what the exchange makes from its seed, computed once more; every byte that the "
            "subscribers read is what the log holds."
        )
    for problem in summary.problems:
        console.print(Text(f"Problem: {problem}", "bold red"))
    verdict = "All is well" if summary.ok else f"{len(summary.problems)} problems"
    console.print(
        Text.assemble(
            (verdict, "bold green" if summary.ok else "bold red"),
            ": gaps ",
            _zero(summary.gap_count),
            ", repeats ",
            _zero(summary.repeat_count),
            f", in {summary.seconds:.0f} seconds.",
        )
    )


def _zero(number: int) -> Text:
    """A count that should be 0."""
    return Text(f"{number:,}", "bold red" if number else "bold green")
