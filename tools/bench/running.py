"""Carrying benches out for the command line, and printing what came of it."""

from __future__ import annotations

from pathlib import Path

import typer

from ..exit_codes import FAILED
from ..printing import note, print_json, stderr
from .measuring import Bench, Plan, measure
from .tables import print_report
from .workers import BenchFailed

__all__ = ["DIRECTORY", "run_and_print"]

DIRECTORY = Path("/var/tmp")


def run_and_print(benches: tuple[Bench, ...], plan: Plan, as_json: bool) -> None:
    """Raises typer.Exit where a measurement failed."""
    console = stderr()
    try:
        with console.status("") as status:

            def tell(what: str) -> None:
                status.update(f"measuring {what} …")
                if not console.is_terminal:  # where nothing is drawn, a line says how far it is
                    note(f"measuring {what}")

            report = measure(list(benches), plan, tell)
    except BenchFailed as error:
        note(f"ringmain: {error}")
        raise typer.Exit(FAILED) from None
    if as_json:
        print_json(report)
    else:
        print_report(report, [bench.bars for bench in benches])
