"""The `ringmain` command: its parts put together, and faults turned into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from .bench import bench_app
from .cleaning import clean
from .demo import demo
from .exit_codes import EXIT_CODES_HELP, explain
from .inspecting import inspect
from .listing import ls
from .log_command import log_app
from .printing import plain, stderr
from .publishing import publish
from .subscribing import subscribe
from .top import top

__all__ = ["app", "main"]

TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="ringmain",
    help="Publish records into shared memory and a durable log, read them from any process, and look inside.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=EXIT_CODES_HELP)(demo)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(publish)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(subscribe)
app.command(epilog=EXIT_CODES_HELP)(ls)
app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(inspect)
app.command(epilog=EXIT_CODES_HELP)(top)
app.add_typer(log_app, name="log")
app.command(epilog=EXIT_CODES_HELP)(clean)
app.add_typer(bench_app, name="bench")


def main() -> NoReturn:
    """Run the command line and leave with its exit code. RINGMAIN_TRACEBACK=1 shows where an error came from."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        app(prog_name="ringmain")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads us any more: that is not an error
        sys.exit(0)
    except Exception as error:
        told = explain(error)
        if told is None or os.environ.get("RINGMAIN_TRACEBACK"):
            raise
        code, line = told
        stderr().print(plain(f"ringmain: {line}"), soft_wrap=True)
        sys.exit(code)
    sys.exit(0)


def _on_terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """End in good order: a bus is closed, a file is finished."""
    sys.exit(TERMINATED)
