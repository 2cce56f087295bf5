"""Other Python processes for tests, led from here: say what one should run, and get back what came of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any

from ringmain.subscribers import Historical, RealTime
from support.logs import make_rows, wait_until

TIMEOUT_S = 30.0

# It ends with the process that started it, even while it is stopped.
PROGRAM = """if True:
    import ctypes, signal, sys, traceback
    from multiprocessing.connection import Connection
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    connection, names = Connection(int(sys.argv[1])), {}
    while True:
        try:
            kind, code, given = connection.recv()
        except EOFError:
            break
        names.update(given)
        connection.send(None)  # begun
        try:
            result = eval(code, names) if kind == "ask" else exec(code, names)
            answer = (True, result)
        except Exception as error:
            error.add_note("in the child: " + traceback.format_exc())
            answer = (False, error)
        try:
            connection.send(answer)
        except BrokenPipeError:
            break
        del answer
"""

PRELUDE = """if True:
    import os, signal, sys, threading, time
    import numpy as np
    from ringmain.bus import *
    from ringmain.storage import Schema
    from ringmain.subscribers import Historical, RealTime
    from support.children import read_now
    from support.logs import PAIRS, POINTS, make_rows
"""


def read_now(reader: RealTime | Historical) -> list[int]:
    """Read all that is published; returns the sequences. The reader has then also said that it is done with them."""
    found: list[int] = []
    deadline = time.monotonic() + TIMEOUT_S
    while (batch := reader.poll()) is not None or reader.stats.lag:
        assert time.monotonic() < deadline, f"the reader does not catch up: {reader.stats}"
        if batch is None:
            continue
        rows = batch.copy()
        expected = make_rows(reader.schema, batch.first, len(batch))
        for name in reader.schema.payload_dtype.names or ():
            assert (rows[name] == expected[name]).all()
        found += rows["sequence"].tolist()
    return found


class Child:
    """A process that runs what it is told, in one namespace, and answers. Its exceptions are raised here."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._pending = False
        path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            )
        self.begin(PRELUDE)

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, code: str, **given: object) -> None:
        """Run statements; `given` are names for them. Returns when they have run."""
        self.begin(code, **given)
        self.settle()

    def ask(self, expression: str, **given: object) -> Any:
        """The value of an expression."""
        self.settle()
        self._send("ask", expression, given)
        return self._answer()

    def begin(self, code: str, **given: object) -> None:
        """Run statements, and return when they have begun; the next `run`, `ask` or `settle` waits for their end."""
        self.settle()
        self._send("run", code, given)
        self._pending = True

    def settle(self) -> None:
        """Wait for what was begun."""
        if self._pending:
            self._pending = False
            self._answer()

    def has_answered(self) -> bool:
        """Whether what was begun has ended."""
        return self._connection.poll()

    def is_blocked(self) -> bool:
        """Whether what was begun has not ended, and its process sleeps all the same."""
        return self._state() == "S" and not self.has_answered()

    def is_stopped(self) -> bool:
        """Whether the process stands still, as after SIGSTOP."""
        return self._state() == "T"

    def _send(self, kind: str, code: str, given: dict[str, object]) -> None:
        self._connection.send((kind, code, given))
        assert self._receive() is None

    def _answer(self) -> Any:
        good, value = self._receive()
        if not good:
            raise value
        return value

    def _receive(self) -> Any:
        try:
            if not self._connection.poll(TIMEOUT_S):
                raise TimeoutError(f"process {self.pid} did not answer within {TIMEOUT_S} s")
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise ChildProcessError(f"process {self.pid} has gone: {self.process.wait(TIMEOUT_S)}") from None

    def pause(self) -> None:
        """Stop the process, as SIGSTOP does, and return once it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(self.is_stopped, TIMEOUT_S)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def kill(self) -> None:
        """Kill the process, as SIGKILL does, and return once it is gone."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def exit(self) -> int:
        """Let the process come to its end by itself; returns its exit code (a signal's number, negative)."""
        self._connection.close()
        return self.process.wait(TIMEOUT_S)


class Children:
    """Starts children, and ends them all."""

    def __init__(self) -> None:
        self._all: list[Child] = []

    def start(self) -> Child:
        child = Child()
        self._all.append(child)
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._all:
            child.kill()
            child._connection.close()
