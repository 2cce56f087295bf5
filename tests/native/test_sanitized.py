"""The compiled parts of the packages, built with AddressSanitizer and UndefinedBehaviorSanitizer, under a wide walk: drive.py.

The build is kept in build/sanitized as long as the sources stay as they are.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILDS = ROOT / "build" / "sanitized"
ROOMS = ("bus", "storage", "subscribers", "tools")
CXX = shlex.split(os.environ.get("CXX", "g++"))
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1"
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so.6")  # the last: or the first does not find what throws
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",  # the interpreter keeps things for good
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=66",
    "PYTHONMALLOC": "malloc",  # so that every object of Python's has its own guarded block
}

pytestmark = [pytest.mark.process, pytest.mark.timeout(3_000)]


def runtimes() -> list[str]:
    """Where the sanitizers' libraries are. Skips where the compiler has none."""
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"needs a C++ compiler; {CXX[0]} is not there (set CXX)")
    found: list[str] = []
    for name in RUNTIMES:
        told = subprocess.run([*CXX, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
        path = told.stdout.strip()
        if not Path(path).is_absolute():
            pytest.skip(f"needs {name}, which {CXX[0]} does not have")
        found.append(path)
    return found


def can_build_here() -> bool:
    """Whether this environment has what pyproject.toml asks for to build; otherwise pip makes one that has."""
    try:
        return int(version("setuptools").partition(".")[0]) >= 77 and importlib.util.find_spec("Cython") is not None
    except PackageNotFoundError:
        return False


def copy_sources(to: Path) -> None:
    """The packages as they are in the checkout, without what was made there."""
    made = shutil.ignore_patterns("*.so", "*.cpp", "__pycache__")
    for room in ROOMS:
        shutil.copytree(ROOT / room, to / room, ignore=made)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    (to / "setup.cfg").write_text("[build_ext]\nparallel = 2\n")


def built(tmp_path: Path) -> Path:
    """The folder to import from: compiled parts from the build, everything else as it is now."""
    sources = sorted(
        path
        for room in ("bus", "storage", "subscribers")
        for kind in ("pyx", "pxd", "hpp")
        for path in ROOT.glob(f"{room}/*.{kind}")
    )
    compiler = subprocess.run([*CXX, "--version"], check=True, capture_output=True).stdout
    parts = [
        compiler,
        sys.version.encode(),
        FLAGS.encode(),
        *(path.read_bytes() for path in [*sources, ROOT / "setup.py"]),
    ]
    library = BUILDS / hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    if not library.exists():
        shutil.rmtree(BUILDS, ignore_errors=True)
        copy_sources(tmp_path / "sources")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += ["--no-build-isolation", "--no-index"] if can_build_here() else []
        command += ["--target", str(tmp_path / "library"), str(tmp_path / "sources")]
        environment = {**os.environ, "RINGMAIN_CFLAGS": FLAGS, "CXX": shlex.join(CXX)}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=2_000)
        assert done.returncode == 0, done.stdout + done.stderr
        BUILDS.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "library", library)
    for room in ROOMS:
        for kind in ("py", "toml"):
            for path in ROOT.glob(f"{room}/**/*.{kind}"):
                shutil.copy(path, library / "ringmain" / path.relative_to(ROOT))
    return library


def run(preload: list[str], *arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(preload)}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, errors="replace", env=environment, timeout=900
    )


@pytest.mark.skipif(
    not os.environ.get("RINGMAIN_NIGHTLY"),
    reason="builds everything once more: set RINGMAIN_NIGHTLY to run it; by day tests/native runs the same headers sanitized",
)
def test_the_compiled_parts_break_no_rule_of_memory_or_language(bus_name: str, tmp_path: Path) -> None:
    preload = runtimes()
    library = built(tmp_path)
    done = run(preload, HERE / "drive.py", bus_name, tmp_path, library, path=library)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "write_beside_hostile_readers" in done.stdout  # the last part
    for word in ("Sanitizer", "runtime error"):
        assert word not in done.stderr, done.stderr


def test_the_sanitizer_would_have_seen_a_byte_too_many() -> None:
    program = "import ctypes, numpy; ours = numpy.zeros(1000, 'u1'); ctypes.memset(ours.ctypes.data, 1, 1001)"
    done = run(runtimes(), "-c", program)
    assert done.returncode == 66, done.stdout + done.stderr
    assert "heap-buffer-overflow" in done.stderr
