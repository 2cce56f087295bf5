"""One of the demo's child processes, as the demo sees it: started, listened to, killed, and never left behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from .demo_reports import PublisherReport, SubscriberReport

__all__ = ["Child", "ChildFailed"]

STOP_S = 5.0
ERROR_LINES = 5

Report = TypeVar("Report", PublisherReport, SubscriberReport)


class ChildFailed(Exception):
    """A child of the demo ended by itself, or did not end when it should."""


class Child(Generic[Report]):
    """Runs `python -m ringmain.tools.MODULE ARGUMENTS` and keeps its latest report. errors: file for its standard error."""

    def __init__(self, name: str, report_type: type[Report], module: str, arguments: list[str], errors: Path) -> None:
        self.name = name
        self.report: Report | None = None
        self._killed = False
        self._errors = errors
        with errors.open("wb") as error_file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"ringmain.tools.{module}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error_file,
                process_group=0,  # Ctrl-C is for the demo alone, which then stops its children
            )
        self._listener = threading.Thread(target=self._listen, args=(report_type,), name=f"demo-{name}", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def check(self, *, may_end: bool = False) -> None:
        """Raise ChildFailed where the process has ended and should not have, or not in good order."""
        code = self._process.poll()
        if code is not None and (code != 0 or not may_end) and not self._killed:
            raise ChildFailed(f"the {self.name} process {self.pid} ended with exit code {code}{self._last_words()}")

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone and all that it had reported is read."""
        self._killed = True
        self._process.kill()
        self._process.wait()
        self._listener.join()

    def request_stop(self) -> None:
        """End its standard input, upon which it ends."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def join(self, timeout: float) -> None:
        """Wait for its end. Raises ChildFailed where that does not come in time, or is not a good one."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"the {self.name} process {self.pid} did not end within {timeout:.0f} s") from None
        self._listener.join()
        self.check(may_end=True)

    def clear_away(self) -> None:
        """Make sure that the process is gone: asked first, killed then."""
        self.request_stop()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(STOP_S)  # what the process had started may still have its output open
        if self._process.stdout is not None and not self._listener.is_alive():
            self._process.stdout.close()

    def _listen(self, report_type: type[Report]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(msgspec.DecodeError):  # cut off by a kill
                self.report = msgspec.json.decode(line, type=report_type)

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()[-ERROR_LINES:]
        return ":\n  " + "\n  ".join(lines) if lines else ""
