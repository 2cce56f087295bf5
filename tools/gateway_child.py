"""The gateway beside `ringmain serve`: a process of its own, so that clients cost a writer nothing; started again when it dies."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import subprocess
import sys
import time
from pathlib import Path

from .service_log import LogFormat, event

__all__ = ["GatewayChild"]

PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 30.0  # between its death and the next start; it doubles
STEADY_S = 60.0  # one that ran for so long begins with the shortest pause again
STOP_S = 15.0  # its own deadlines are shorter


class GatewayChild:
    """Runs `ringmain gateway --config`, which writes its events where ours go, and ends when we do, however we end.

    Call `look` now and then. Raises ModuleNotFoundError where the extra `web` is not installed.
    """

    def __init__(self, config: Path, log_format: LogFormat) -> None:
        if any(importlib.util.find_spec(name) is None for name in ("uvicorn", "uvloop", "websockets")):
            raise ModuleNotFoundError("the gateway needs `pip install ringmain[web]`")
        command = [sys.executable, "-P", "-m", "ringmain.tools", "gateway", "--until-eof"]
        self._command = [*command, "--config", str(config), "--log-format", log_format.value]
        self._pause_s = PAUSE_S_MIN
        self._next_start = 0.0
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(self._command, stdin=subprocess.PIPE)

    def look(self) -> None:
        """Start it again if it has died, after a pause."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._next_start:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._close_pipe()
            self._process = None
            self._pause_s = PAUSE_S_MIN if now - self._started > STEADY_S else min(2 * self._pause_s, PAUSE_S_MAX)
            self._next_start = now + self._pause_s
            event("the gateway ended", level=logging.ERROR, code=code, next_start_s=self._pause_s)

    def close(self) -> None:
        """Stop it in good order; in the end by force."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._close_pipe()
        self._process = None

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
