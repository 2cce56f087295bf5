"""A service of ours, run as a supervisor would: what it logs is heard, and it can be told to stop, or killed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from support.command import COMMAND, TIMEOUT_S, environment
from support.logs import wait_until


class Service:
    """A running `ringmain COMMAND … --log-format json`; `lines` are the events that it has logged."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.rest: list[str] = []
        self.process = subprocess.Popen(
            [*COMMAND, *arguments, "--log-format", "json"],
            stderr=subprocess.PIPE,
            env=environment(**env),
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except json.JSONDecodeError:
                self.rest.append(line)

    def wait_for(self, event: str, **facts: Any) -> dict[str, Any]:
        def there() -> list[dict[str, Any]]:
            wanted = {"event": event, **facts}
            return [line for line in list(self.lines) if {name: line.get(name) for name in wanted} == wanted]

        wait_until(lambda: bool(there()) or self.process.poll() is not None, TIMEOUT_S)
        assert there(), (self.lines, self.rest)
        return there()[-1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(TIMEOUT_S)
        self._listener.join(TIMEOUT_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code


def serving(config: Path, *options: str, **env: str) -> contextlib.AbstractContextManager[Service]:
    """`ringmain serve`, as `service`."""
    return service("serve", str(config), *options, **env)


@contextlib.contextmanager
def service(*arguments: str, **env: str) -> Generator[Service]:
    """A command while the block runs; killed at its end, if it runs still."""
    service = Service(*arguments, **env)
    try:
        yield service
    finally:
        service.process.kill()
        service.wait()
