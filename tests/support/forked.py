"""Children for the kill tests: forked by a server that has imported everything before, so that one more costs little.

1. What a child knows it stores in its `Place`, shared memory of the test: a killed one has said everything up to the instant of
   its death.
2. A child that finds something wrong ends with an error, and whoever waits for a child then fails with it.

A module with roles ends with `serve(ROLES, Place)` under `__main__`; a test starts its children with a `Server` of that module.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.logs import wait_until

PLACE_BYTES = 4096
TIMEOUT_S = 30.0


class Place:
    """Words that a child and the test share, u64 each."""

    WORDS: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            self.path.write_bytes(bytes(PLACE_BYTES))
        with self.path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), PLACE_BYTES)).cast("Q")

    def __getitem__(self, word: str) -> int:
        return self._words[self.WORDS.index(word)]

    def __setitem__(self, word: str, value: int) -> None:
        self._words[self.WORDS.index(word)] = value

    def __repr__(self) -> str:
        return f"{self.path.stem}: " + ", ".join(f"{word} {self[word]}" for word in self.WORDS if self[word])


class Child:
    """A process, and what it says."""

    def __init__(self, server: Server, pid: int, place: Any) -> None:
        self._server, self.pid, self.place = server, pid, place
        self.alive = True

    def __getitem__(self, word: str) -> int:
        return self.place[word]

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; an error of any child ends the waiting."""
        try:
            wait_until(lambda: self._server.complain() or condition(), TIMEOUT_S)
        except AssertionError as error:
            error.add_note("\n".join(repr(child.place) for child in self._server.children if child.alive))
            raise

    def wait_for(self, word: str, value: int = 1) -> None:
        self.wait(lambda: self[word] >= value)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._server.reap(self)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/stat")
        self.wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def finish(self) -> None:
        """Tell it to stop, and wait until it has ended in good order."""
        self.place["stop"] = 1
        self.end()

    def end(self) -> None:
        """Wait until it has ended in good order by itself."""
        self.wait_for("closed")
        self._server.reap(self)


class Server:
    """Starts children in the roles of a module, and remembers them. folder: for what they say."""

    def __init__(self, folder: Path, module: Path, place: type[Place]) -> None:
        self.folder, self._place = folder, place
        self.children: list[Child] = []
        self._running: list[Child] = []
        self._process = subprocess.Popen(
            [sys.executable, str(module)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(module.parents[1]), os.environ.get("PYTHONPATH", "")]),
                "OPENBLAS_NUM_THREADS": "1",
            },
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, role: str, **arguments: object) -> Child:
        place = self._place(self.folder / f"{len(self.children)}-{role}.place")
        child = Child(self, self.ask({"role": role, "place": str(place.path), **arguments}), place)
        self.children.append(child)
        self._running.append(child)
        return child

    def reap(self, child: Child) -> None:
        """Wait for a child's end."""
        self.ask({"reap": child.pid})
        child.alive = False
        self.complain()
        self._running.remove(child)

    def complain(self) -> bool:
        """Fail with what a child has failed with, if one that is not reaped has."""
        for child in self._running:
            error = child.place.path.with_suffix(".error")
            if error.exists():
                pytest.fail(f"{error.stem}: {error.read_text()}")
        return False

    def close(self) -> None:
        for child in self.children:
            if child.alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()


# --- in the server's process ------------------------------------------------------------------------------------------


def serve(roles: Mapping[str, Callable[..., None]], place: type[Place]) -> None:
    """Fork a child for every request on standard input, a line of JSON; a request to reap waits for a child's end."""
    _end_with_parent()
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _run(roles[request.pop("role")], place(request.pop("place")), request)
        print(answer, flush=True)


def _run(role: Callable[..., None], place: Place, arguments: dict[str, Any]) -> None:
    _end_with_parent()
    code = 1
    try:
        role(place, **arguments)
        code = 0
    except BaseException:
        draft = place.path.with_suffix(".draft")
        draft.write_text(traceback.format_exc())
        draft.rename(draft.with_suffix(".error"))
    finally:
        os._exit(code)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
