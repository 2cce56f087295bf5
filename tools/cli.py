"""The `ringmain` command: its parts put together, and faults turned into one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Generator
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from .backup_command import backup_command
from .bench import bench_app
from .cleaning import clean
from .cluster_command import cluster_app
from .demo import demo
from .exit_codes import EXIT_CODES_HELP, OK, explain
from .exporting import export
from .gateway_command import gateway, token
from .getting import get
from .health_command import health
from .inspecting import inspect
from .listing import ls
from .log_command import log_app
from .manifest_command import manifest_app
from .printing import note
from .publishing import publish
from .restore_command import restore_command
from .scanning import scan
from .serving import serve
from .sstable_command import sstable_app
from .store_command import store_app
from .subscribing import subscribe
from .top import top
from .verify_command import verify

__all__ = ["app", "main"]

TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def _written_out() -> Generator[None]:
    """All output is written, or its error is raised. A pipe that nobody reads any more (`| head`) is an end, and no error."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(OK) from None
    finally:
        _flush()


class _Commands(TyperGroup):
    """Runs the commands."""

    def make_context(self, *args: Any, **options: Any) -> Any:  # `--help` is printed in here
        with _written_out():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _written_out():
            return super().invoke(ctx)


app = typer.Typer(
    name="ringmain",
    cls=_Commands,
    help="Publish records into shared memory and a durable log, read them from any process, and look inside.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # a paragraph of a docstring is one, however its lines break
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=EXIT_CODES_HELP)(demo)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(publish)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(subscribe)
app.command(epilog=EXIT_CODES_HELP)(ls)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(inspect)
app.command(epilog=EXIT_CODES_HELP)(top)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(health)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(serve)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(gateway)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(token)
app.add_typer(cluster_app, name="cluster")
app.add_typer(log_app, name="log")
app.add_typer(store_app, name="store")
app.add_typer(sstable_app, name="sstable")
app.add_typer(manifest_app, name="manifest")
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(get)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(scan)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(export)
app.command("backup", epilog=EXIT_CODES_HELP, no_args_is_help=True)(backup_command)
app.command("restore", epilog=EXIT_CODES_HELP, no_args_is_help=True)(restore_command)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(verify)
app.command(epilog=EXIT_CODES_HELP)(clean)
app.add_typer(bench_app, name="bench")


def main() -> NoReturn:
    """Run the command line and leave with its exit code. RINGMAIN_TRACEBACK=1 shows where an error came from."""
    signal.signal(signal.SIGTERM, _on_terminate)
    _open_standard_streams()
    try:
        app(prog_name="ringmain")
    except Exception as error:
        told = explain(error)
        if told is None or os.environ.get("RINGMAIN_TRACEBACK"):
            raise
        code, line = told
        note(f"ringmain: {line}")
        sys.exit(code)
    sys.exit(0)


def _flush() -> None:
    """Write what is still to be written, while an error can be told. What cannot be goes nowhere, so that it fails once."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # that nobody reads us any more is no fault
            raise


def _open_standard_streams() -> None:
    """Make them fit for use, however we were started.

    Where a shell has closed one (`>&-`), what is for it goes nowhere, and into no file that is opened later.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 takes the lowest free descriptor, which is its own
    if isinstance(sys.stdout.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED: its `write` may write a part of what it gets, when a signal comes, and tells by the count alone.
        given = sys.stdout
        stream = io.BufferedWriter(given.buffer)
        sys.stdout = io.TextIOWrapper(stream, given.encoding, given.errors, line_buffering=given.isatty())


def _on_terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """End in good order: a bus is closed, a file is finished."""
    sys.exit(TERMINATED)
