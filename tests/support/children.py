"""Other Python processes for tests, led from here: say what one should run, and get back what came of it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from ringmain.subscribers import Historical, RealTime
from support.logs import make_rows, wait_until

TIMEOUT_S = 30.0

# Has imported everything and forks for each child, so that one more costs little. Between it and a child stands a process that
# says the child's pid and then its exit code. All of them end with the process that started them, even while they are stopped.
SERVER = """if True:
    import ctypes, gc, json, os, signal, socket, sys, traceback
    from multiprocessing.connection import Connection
    end_with_parent = lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    end_with_parent()
    names, connection = {}, None
    exec(sys.argv[2], names)
    gc.freeze()  # so that a child does not copy it all, only to look for rubbish in it
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those between
    while connection is None:
        request, streams, *_ = socket.recv_fds(channel, 1 << 20, 2)
        if not request:
            sys.exit()
        if os.fork() == 0:
            end_with_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            given, told = streams[0], Connection(streams[1])
            pid = os.fork()
            if pid:
                os.close(given)
                told.send(pid)
                told.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os._exit(0)
            end_with_parent()
            told.close()
            request = json.loads(request)
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["directory"])
            connection = Connection(given)
        else:
            for stream in streams:
                os.close(stream)

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
    from support.logs import PAIRS, POINTS, make_rows, stop_the_log
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


@functools.cache
def server() -> socket.socket:
    """The channel to the server."""
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-c", SERVER, str(theirs.fileno()), PRELUDE]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment())
    atexit.register(process.wait)
    atexit.register(channel.close)
    return channel


def environment() -> dict[str, str]:
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


class Process:
    """What is known of a child's process, and can be done with it."""

    def __init__(self, connection: Connection) -> None:
        """connection: the child's end of what it is told."""
        self._told, theirs = Pipe(duplex=False)
        self._code: int | None = None
        request = json.dumps({"env": environment(), "directory": os.getcwd()}).encode()
        with theirs:
            socket.send_fds(server(), [request], [connection.fileno(), theirs.fileno()])
        if not self._told.poll(TIMEOUT_S):
            raise TimeoutError(f"no child began within {TIMEOUT_S} s")
        self.pid: int = self._told.recv()

    def kill(self) -> None:
        if self._code is None and not self._told.poll():
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout_s: float) -> int:
        """Its exit code once it has ended: a signal's number, negative, where that killed it."""
        if self._code is None:
            if not self._told.poll(timeout_s):
                raise TimeoutError(f"process {self.pid} did not end within {timeout_s} s")
            self._code = self._told.recv()
            self._told.close()
        assert self._code is not None
        return self._code


class Child:
    """A process that runs what it is told, in one namespace, and answers. Its exceptions are raised here."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._pending = False
        with theirs:
            self.process = Process(theirs)

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
