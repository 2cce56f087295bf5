"""Runs an example as a user would, and looks at what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
TIME_LIMIT_S = 150.0


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. left: its segments that are still in shared memory, and its files that are still in the temporary folder."""

    code: int
    output: str
    errors: str
    left: list[str]


def run_example(name: str, *arguments: object) -> Run:
    """Run examples/NAME to its end, in a temporary folder of its own. Whatever it leaves is listed, then removed."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": folder},
            start_new_session=True,  # so that its own children can be ended with it
        )
        try:
            output, errors = process.communicate(timeout=TIME_LIMIT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            segments = segments_of(process.pid)
            for segment in segments:
                segment.unlink(missing_ok=True)
        left = [path.name for path in (*segments, *Path(folder).iterdir())]
    return Run(process.returncode, output, errors, left)


def segments_of(pid: int) -> list[Path]:
    """The segments of the buses that an example run as process `pid` has: their names end in the pid."""
    ours = re.compile(rf"ringmain\.[a-z-]+-{pid}(\..*)?")
    return [path for path in Path("/dev/shm").iterdir() if ours.fullmatch(path.name)]
