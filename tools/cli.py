"""The `ringmain` command: its parts put together, and faults turned into one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Generator
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

# Threads for matrices, which no command has: they spin for a tenth of a second each time that numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from .exit_codes import EXIT_CODES_HELP, OK, TERMINATED, explain
from .printing import note

__all__ = ["app", "main"]

MARKUP = "markdown"  # a paragraph of a docstring is one, however its lines break

COMMANDS = {  # where each is, in the order of the help
    "demo": ".demo:demo",
    "publish": ".publishing:publish",
    "subscribe": ".subscribing:subscribe",
    "ls": ".listing:ls",
    "inspect": ".inspecting:inspect",
    "top": ".top:top",
    "health": ".health_command:health",
    "serve": ".serving:serve",
    "gateway": ".gateway_command:gateway",
    "token": ".gateway_command:token",
    "cluster": ".cluster_command:cluster_app",
    "log": ".log_command:log_app",
    "store": ".store_command:store_app",
    "sstable": ".sstable_command:sstable_app",
    "manifest": ".manifest_command:manifest_app",
    "get": ".getting:get",
    "scan": ".scanning:scan",
    "export": ".exporting:export",
    "backup": ".backup_command:backup_command",
    "restore": ".restore_command:restore_command",
    "verify": ".verify_command:verify",
    "clean": ".cleaning:clean",
    "bench": ".bench.command:bench_app",
}
RUN_WITHOUT_ARGUMENTS = {"demo", "ls", "top", "clean"}  # the others print their help


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
    """Runs the commands. The module of one is loaded when that is run or told of, so that no command waits for another's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)  # pyright: ignore[reportAttributeAccessIssue]  # None: not loaded

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and self.commands[cmd_name] is None:
            self.commands[cmd_name] = _load(cmd_name)
        return super().get_command(ctx, cmd_name)

    def make_context(self, *args: Any, **options: Any) -> Any:  # `--help` is printed in here
        with _written_out():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _written_out():
            return super().invoke(ctx)


def _load(name: str) -> Any:
    module, _, attribute = COMMANDS[name].partition(":")
    command = getattr(import_module(module, __package__), attribute)
    around = typer.Typer(rich_markup_mode=MARKUP)
    if isinstance(command, typer.Typer):
        around.add_typer(command, name=name)
    else:
        around.command(name, epilog=EXIT_CODES_HELP, no_args_is_help=name not in RUN_WITHOUT_ARGUMENTS)(command)
    return typer.main.get_group(around).commands[name]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # no command waits for it

        with _written_out():
            print(f"ringmain {version('ringmain')}")
        raise typer.Exit(OK)


def _options() -> Any:
    """What the command itself takes."""
    around = typer.Typer(add_completion=False)

    @around.callback()
    def ringmain(  # pyright: ignore[reportUnusedFunction]
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    return typer.main.get_group(around).params


app = _Commands(
    name="ringmain",
    params=_options(),
    help="Publish records into shared memory and a durable log, read them from any process, and look inside.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
