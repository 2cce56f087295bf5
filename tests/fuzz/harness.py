"""What the fuzzers of file formats share: running one, by atheris where it is installed, and changing bytes in ways that matter.

    pip install ringmain[fuzz]                             (atheris, which finds its way by the code that is reached)
    python tests/fuzz/sstable.py -max_total_time=60        (libFuzzer's options; without atheris: this one, -runs and -seed)

A target reads bytes as a file, and returns what it was given; what the readers document is no error of theirs. Anything else is a
find: another exception, a crash, a hang, more memory than MEMORY_BYTES; and, where no checksum was made right again (which atheris
does not tell, so only without it), rows that are in no file of the corpus. What was found is written to the directory where the
fuzzer runs; put it into corpus/<target>/ under a name that says what it was, and every run of the test suite tries it from then on.

Compiled readers have fuzzers of their own, for the sanitizers: table_fuzz.cpp and scan_fuzz.cpp of tests/native.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
MEMORY_BYTES = 3 << 30  # of the whole process: numpy alone takes most of one
TIMEOUT_S = 20
INTERESTING = (0, 1, 2, 7, 8, 63, 64, 255, 4095, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32)
INTERESTING += ((1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 8)
MAX_BYTES = 64 << 10


@dataclass
class Given:
    """What a reader made of bytes. is_sound: it found nothing wrong. rows: what it handed out, repaired or not."""

    is_sound: bool = False
    rows: set[tuple[Any, ...]] = field(default_factory=set[tuple[Any, ...]])


@dataclass(frozen=True)
class Input:
    """Bytes to read. is_forged: checksums were made right for bytes that nobody wrote, so that the rows may be anything."""

    data: bytes
    is_forged: bool


@dataclass(frozen=True)
class Target:
    """A reader to be fuzzed. read: takes bytes as a file, and a folder to put it in.

    reseal: makes checksums right again, where it can be told how. make_seeds: sound files by name, written by the code of today.
    """

    name: str
    read: Callable[[bytes, Path], Given]
    reseal: Callable[[bytearray, random.Random], None]
    make_seeds: Callable[[Path], dict[str, bytes]]

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name

    def inputs(self) -> list[Path]:
        """The files of the corpus."""
        return sorted(path for path in self.corpus.iterdir() if path.is_file())

    def known_rows(self, folder: Path) -> set[tuple[Any, ...]]:
        """The rows of the corpus."""
        return set[tuple[Any, ...]]().union(*(self.read(path.read_bytes(), folder).rows for path in self.inputs()))

    def check(self, given: Input, known: set[tuple[Any, ...]], folder: Path) -> bool:
        """Read an input; AssertionError where it gives rows that were never written. Returns whether it is a sound file."""
        found = self.read(given.data, folder)
        assert given.is_forged or found.rows <= known, f"never written: {found.rows - known}"
        return found.is_sound


def mutate(data: bytes, target: Target, chosen: random.Random, others: list[bytes]) -> Input:
    """Change a few things, and mostly make the checksums right again, so that what is behind them is reached."""
    changed = bytearray(data)
    for _ in range(chosen.choice((1, 1, 1, 2, 3, 8))):
        _change(changed, chosen, others)
    del changed[MAX_BYTES:]
    is_forged = chosen.random() < 0.8
    if is_forged:
        target.reseal(changed, chosen)
    return Input(bytes(changed), is_forged)


def _change(data: bytearray, chosen: random.Random, others: list[bytes]) -> None:
    size = len(data)
    if not size:
        data += chosen.choice(others)
        return
    at = chosen.randrange(size)
    if chosen.random() < 0.5:  # most fields lie in the first and last few hundred bytes
        at = chosen.choice((chosen.randrange(min(size, 160)), max(0, size - 4096 + chosen.randrange(800)) % size))
    match chosen.randrange(9):
        case 0:
            data[at] ^= 1 << chosen.randrange(8)
        case 1:
            data[at] = chosen.randrange(256)
        case 2 | 3 | 4:
            width = chosen.choice((1, 2, 4, 8))
            at -= at % width
            value = chosen.choice(INTERESTING)
            if chosen.random() < 0.5:
                value = int.from_bytes(data[at : at + width], "little") + chosen.choice((-64, -8, -1, 1, 8, 64))
            data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")[: size - at]
        case 5:
            length = chosen.randrange(1, 200)
            data[at : at + length] = bytes(len(data[at : at + length]))
        case 6:
            other = chosen.choice(others)
            start, length = chosen.randrange(len(other)), chosen.randrange(1, 4200)
            data[at : at + length] = other[start : start + length][: len(data[at : at + length])]
        case 7:
            del data[at : at + chosen.choice((1, 8, 64, size))]
        case _:
            data[at:at] = bytes(chosen.choice((1, 8, 64, 4096)))


def run(target: Target, arguments: list[str]) -> None:
    """Fuzz by hand, until the options say that it is enough or something is found."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(
        tempfile.mkdtemp(prefix=f"fuzz-{target.name}-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    others = [path.read_bytes() for path in target.inputs()]
    try:
        try:
            import atheris  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            print("atheris is not installed: by chance, without looking at what code is reached", flush=True)
            _run_by_chance(target, folder, others, arguments)
            return

        def change(data: bytes, max_size: int, seed: int) -> bytes:
            return mutate(data, target, random.Random(seed), others).data[:max_size]

        def read(data: bytes) -> None:
            target.read(data, folder)

        found = folder / "corpus"  # what is new; the corpus of the checkout is only read
        found.mkdir()
        fixed = [f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_BYTES >> 20}", f"-max_len={MAX_BYTES}"]
        _instrument(atheris.instrument_func)  # pyright: ignore[reportAttributeAccessIssue]
        atheris.Setup([sys.argv[0], *fixed, *arguments, str(found), str(target.corpus)], read, custom_mutator=change)
        atheris.Fuzz()  # ends the process
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _instrument(instrument: Callable[[Any], Any]) -> None:
    """Have the functions of storage tell the fuzzer what they reach; all others would only be slower for it."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("ringmain.storage"):
            continue
        owners = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        for owner in owners:
            for value in list(vars(owner).values()):
                function = getattr(value, "__func__", value)
                if isinstance(function, FunctionType) and function.__module__ == name:
                    instrument(function)


def _run_by_chance(target: Target, folder: Path, others: list[bytes], arguments: list[str]) -> None:
    options = dict(argument.lstrip("-").split("=", 1) for argument in arguments if "=" in argument)
    until = time.monotonic() + float(options.get("max_total_time", 60))
    seed, most = int(options.get("seed", time.time_ns())), int(options.get("runs", 1 << 62))
    print(f"seed {seed}", flush=True)
    chosen, known, count = random.Random(seed), target.known_rows(folder), 0
    while count < most and time.monotonic() < until:
        given = mutate(chosen.choice(others), target, chosen, others)
        count += 1
        try:
            target.check(given, known, folder)
        except BaseException:
            path = Path(f"crash-{target.name}-{seed}-{count}")
            path.write_bytes(given.data)
            print(f"found something: {path}", flush=True)
            raise
    print(f"{count} inputs, nothing found")


def main(target: Target) -> None:
    """What a fuzzer's file does when it is run: with `--seeds` it writes the sound files into the corpus, else it fuzzes."""
    if "--seeds" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            target.corpus.mkdir(parents=True, exist_ok=True)
            for name, data in target.make_seeds(Path(folder)).items():
                (target.corpus / name).write_bytes(data)
        return
    run(target, sys.argv[1:])
