"""The `ringmain` command as a shell runs it: with pipes, with a terminal, and with a /dev/shm of its own."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.logs import wait_until

TIMEOUT_S = 60.0
COMMAND = [sys.executable, "-P", "-m", "ringmain.tools"]
SHM = Path("/dev/shm")

# All of /dev/shm is the command's own here, so that what it does to every bus concerns no other process.
PRIVATE = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o "$0" tmpfs /dev/shm && exec "$@"']

FORKS = """if True:
    import contextlib, gc, json, os, socket, sys
    from ringmain.bus import observing
    from ringmain.tools import cli
    for name in cli.COMMANDS:  # what a run would load when it needs it need not be loaded by each
        cli.app.get_command(None, name)
    with contextlib.suppress(Exception):
        cli.app(["ls", "--nosuch"], standalone_mode=False)
    gc.freeze()  # so that a run does not copy it all, only to look for rubbish in it
    channel = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, streams, *_ = socket.recv_fds(channel, 1 << 20, 3)
        if not data:
            break
        pid = os.fork()
        if pid == 0:
            channel.close()
            request = json.loads(data)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["directory"])
            sys.argv = ["ringmain", *request["arguments"]]
            sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))
            cli.main()
        channel.send(str(pid).encode())
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(pid, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())
"""

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


def environment(**more: str) -> dict[str, str]:
    """The environment of a plain shell: nothing in it says how wide or colourful to be, or how to write."""
    telling = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TERMINAL_WIDTH", "TTY_COMPATIBLE")
    telling += ("PYTHONUNBUFFERED", "RINGMAIN_TRACEBACK")
    return {name: value for name, value in os.environ.items() if name not in telling} | more


class Forks:
    """Has the command's modules loaded and forks for each run, so that a run does not pay for starting Python.

    Its results go to files; what depends on pipes or a terminal is for `started` and `on_terminal`, which start Python.
    """

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", FORKS, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._channel.settimeout(TIMEOUT_S)
        atexit.register(self.close)

    def run(self, arguments: Sequence[str], stdin: bytes, env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            request = json.dumps({"arguments": arguments, "env": dict(env), "directory": os.getcwd()}).encode()
            socket.send_fds(self._channel, [request], [given.fileno(), out.fileno(), err.fileno()])
            pid = int(self._channel.recv(100))
            try:
                code = int(self._channel.recv(100))
            except BaseException:  # it hangs, or the test's own time is over: the next one gets a new server
                os.kill(pid, signal.SIGKILL)
                forks.cache_clear()
                self.close()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


@functools.cache
def forks() -> Forks:
    return Forks()


def ringmain(
    *arguments: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return forks().run([*map(str, arguments)], stdin, environment() if env is None else env)


def ringmain_in(
    private: tuple[str, ...], *arguments: str | Path, command: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end with what `private_shm` gave. command: False: a Python program instead."""
    return subprocess.run(
        [*private, *(COMMAND if command else [sys.executable]), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
    )


def succeed(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run it, and have its standard output; it must end well."""
    done = ringmain(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def facts(*arguments: str | Path, code: int = 0) -> Any:
    """Run it with --json, and have what it printed."""
    done = ringmain(*arguments, "--json")
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout)


@contextlib.contextmanager
def started(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Generator[subprocess.Popen[bytes]]:
    """The command while it runs, with pipes; it does not outlive the block."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment() if env is None else dict(env),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Its exit code and what it wrote, once it has ended."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """The command with a terminal of that size. `text` is all that it has written, without what steers the terminal."""

    def __init__(self, arguments: tuple[str | Path, ...], columns: int, lines: int, env: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._theirs = theirs
        self.attributes_before = termios.tcgetattr(theirs)
        self._written = bytearray()
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(TERM="xterm-256color", **env),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def raw(self) -> str:
        return bytes(self._written).decode(errors="replace")

    @property
    def text(self) -> str:
        return CONTROL.sub("", self.raw)

    @property
    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.text or self.process.poll() is not None, TIMEOUT_S)
        assert words in self.text, self.text

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def finish(self) -> int:
        code = self.process.wait(TIMEOUT_S)
        self._hang_up()
        return code

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # nobody has it open on the other side any more
            while data := os.read(self._ours, 1 << 16):
                self._written += data

    def _hang_up(self) -> None:
        if self._theirs >= 0:
            self.attributes_after = termios.tcgetattr(self._theirs)
            os.close(self._theirs)
            self._theirs = -1
            self._listener.join(TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._hang_up()
        os.close(self._ours)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def on_terminal(
    *arguments: str | Path, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    terminal = Terminal(arguments, columns, lines, env or {})
    try:
        yield terminal
    finally:
        terminal.close()


def private_shm(options: str = "size=64m") -> tuple[str, ...]:
    """What to put before a command so that it has an empty /dev/shm of its own. Skips the test where that is not allowed."""
    prefix = (*PRIVATE, options)
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets nobody have a /dev/shm of its own (unshare --map-root-user --mount)")
    return prefix


def segments(bus: str) -> dict[str, bytes]:
    """The shared memory of a bus, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(SHM.glob(f"ringmain.{bus}*"))}


def mapped_as(pid: int, bus: str) -> set[str]:
    """With which permissions a process has a bus's segments mapped, such as "r--s"."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[1] for line in lines if f"/dev/shm/ringmain.{bus}" in line}


def stop(pid: int) -> None:
    """SIGSTOP, and return once it stands still."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", TIMEOUT_S)
