"""What README.md and docs/store.md show runs as it stands there, pasted into real processes."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


def pieces(page: str, bus: str) -> list[str]:
    """The Python of a page, piece by piece, with a bus of its own."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r'"exchange(?=["/])', f'"{bus}', piece) for piece in found]


@contextlib.contextmanager
def pasted(code: str, folder: Path) -> Generator[subprocess.Popen[str]]:
    """A process that runs it; it does not outlive the block."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def complaint(process: subprocess.Popen[str]) -> str:
    """What a process that did not say what it should wrote to standard error. It is ended."""
    process.kill()
    return process.communicate()[1]


def test_the_start_of_the_readme_works_in_two_terminals(bus_name: str, tmp_path: Path) -> None:
    first, second, *_ = pieces("README.md", bus_name)
    with pasted(first, tmp_path) as writer:
        assert writer.stdout is not None
        assert writer.stdout.read(len("Enter ends it")) == "Enter ends it", complaint(writer)
        with pasted(second, tmp_path) as subscriber:
            assert subscriber.stdout is not None
            assert subscriber.stdout.readline() == "100\n", complaint(subscriber)
            assert writer.communicate("\n", TIMEOUT_S) == ("", "")
            assert subscriber.communicate(timeout=TIMEOUT_S) == ("", "")
    assert (writer.returncode, subscriber.returncode) == (0, 0)


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "rows and columns"])
def test_the_pieces_of_the_page_about_the_store_follow_each_other(columns: bool, bus_name: str, tmp_path: Path) -> None:
    *rows, last = pieces("docs/store.md", bus_name)
    assert "to_polars()" in last
    if columns:
        for library in ("pyarrow", "pandas", "polars"):
            pytest.importorskip(library, reason=f"{library} is not installed")
    with pasted("\n".join([*rows, last] if columns else rows), tmp_path) as process:
        assert process.communicate(timeout=TIMEOUT_S) == ("182500\n", "")
    assert process.returncode == 0
