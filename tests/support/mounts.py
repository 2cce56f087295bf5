"""File systems of a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["mount", "unmount"]


def mount(place: Path, *arguments: str) -> None:
    """Mount a file system there: `arguments` say which one. Skips the test where one cannot be mounted."""
    program = shutil.which("mount")
    if os.geteuid() != 0 or program is None or shutil.which("umount") is None:
        pytest.skip("only root can mount the file system that this test is about")
    place.mkdir(exist_ok=True)
    done = subprocess.run([program, *arguments, str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{' '.join(arguments)} cannot be mounted here: {done.stderr.decode().strip()}")


def unmount(place: Path, *, lazily: bool = True) -> None:
    """lazily: also while files in it are open; it is gone for good once they are closed."""
    subprocess.run(["umount", *(["-l"] if lazily else []), str(place)], check=True)
