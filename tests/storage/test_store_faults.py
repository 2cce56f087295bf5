"""A call to the system fails, each in turn: nothing acknowledged is lost, reading goes on, and writing says what failed.

A short life of a store (`support/faulted_store.py`) runs on a disk on which the nth call fails (`support/faulty_disk.c`), or a
write is cut in half. By default n is the place of one call of each kind on each kind of file, by chance (RINGMAIN_SEED, printed);
RINGMAIN_NIGHTLY lets every one fail.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import pytest
from support import faulted_store
from support.faulted_store import Outcome
from support.preload import build_preload
from support.told_store import file_kind

SEED = int(os.environ.get("RINGMAIN_SEED", "20230302"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
TIMEOUT_S = 3600 if NIGHTLY else 170

WRITES = ("pwritev", "pwrite")
CHANGES = (*WRITES, "open", "fallocate", "fdatasync", "fsync", "mkdir", "rename", "link", "unlink")
ALL = (*CHANGES, "mmap", "pread", "ftruncate")

# What may fail without a word, and why.
UNTOLD = {
    "LOCK": "what it holds is for messages only",
    "spare": "they are made ahead, and tried again when one is needed",
    "log": "opened to sync it when an old file goes, which is tried again",
    "archive": "an old file stays in the log, and is tried again",
    "mmap N.log": "rows are written with a call then; or an old file is looked at later",
    "open N.log": "an old file is looked at, recycled or freed of its unused room later",
    "unlink N.log": "an old file goes later",
    "rename N.log": "an old file goes later",
}
# A compaction that fails between the last flush and the closing concerns nobody: what it would have replaced is there.
COMPACTION = ("N.sst", "N.sst.new", "MANIFEST", "store")


@pytest.fixture(scope="module")
def faulty_disk(tmp_path_factory) -> Path:
    """The library that makes calls fail, compiled."""
    return build_preload("faulty_disk", tmp_path_factory.mktemp("faulty"))


def chosen(tried: Sequence[Sequence[str]], rng: random.Random) -> list[int]:
    """Which calls are to fail, counted from 1."""
    if NIGHTLY:
        return list(range(1, len(tried) + 1))
    kinds: dict[tuple[str, str], list[int]] = {}
    for nth, (call, path) in enumerate(tried, 1):
        kinds.setdefault((call, file_kind(Path(path).name)), []).append(nth)
    return sorted(rng.choice(nths) for nths in kinds.values())


class Faults:
    """Lives in which a call fails with an error, or 0: a write is cut in half."""

    def __init__(self, library: Path, folder: Path, error: int, calls: Sequence[str], kind: str) -> None:
        self.folder, self._arguments = folder, [str(error), ",".join(calls), kind]
        self._environment = {**os.environ, "LD_PRELOAD": str(library)}

    def lives(self, nths: Iterable[int], lasting: str = "") -> list[Outcome]:
        which = [f"{nth}{lasting}" for nth in nths]
        command = [sys.executable, "-m", faulted_store.__name__, str(self.folder), *self._arguments, *which]
        tests = Path(__file__).parents[1]
        done = subprocess.run(
            command, env=self._environment, cwd=tests, capture_output=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return [msgspec.json.decode(line, type=Outcome) for line in done.stdout.splitlines()]

    def all_lives(self, lasting: str = "", every: int = 1) -> list[Outcome]:
        """A life in which nothing fails, and then the others. lasting: "+", from the nth on all fail. every: some are enough."""
        print(f"RINGMAIN_SEED={SEED}")
        (sound,) = self.lives([0])
        assert (sound.errors, sound.wrong) == ([], "")
        nths = chosen(sound.tried, random.Random(f"{SEED} {self._arguments}"))
        return [sound, *self.lives(nths if NIGHTLY else nths[::every], lasting)]


def check_told(outcome: Outcome, folder: Path, error: int) -> None:
    """Whatever was raised says which file it was, and why; and something was, unless it is of no consequence."""
    call, path = outcome.tried[outcome.nth - 1]
    for told in outcome.errors:
        assert os.strerror(error) in told.text, (call, path, told)
        assert str(folder / "life") in told.text, (call, path, told)
    kind = file_kind(Path(path).name)
    tolerated = kind in UNTOLD or f"{call} {kind}" in UNTOLD or kind in COMPACTION
    assert outcome.errors or tolerated, (call, path)


@pytest.mark.process
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(
    ("error", "calls", "kind", "every"),
    [(errno.EIO, ALL, "archive", 1), (errno.ENOSPC, CHANGES, "recycle", 4)],
    ids=["input-output-error", "no-space"],
)
def test_whichever_call_fails_nothing_acknowledged_is_lost_and_the_error_says_what_it_was(
    faulty_disk, tmp_path, error, calls, kind, every
):
    _, *others = Faults(faulty_disk, tmp_path, error, calls, kind).all_lives(every=every)
    for outcome in others:
        assert not outcome.wrong, (outcome.nth, outcome.tried[outcome.nth - 1 : outcome.nth], outcome.wrong)
        if outcome.nth <= len(outcome.tried):  # in another life there may be fewer
            check_told(outcome, tmp_path, error)
        assert not [told for told in outcome.errors if told.step.startswith("second")]
    told = {
        file_kind(Path(one.tried[one.nth - 1][1]).name) for one in others if one.errors and one.nth <= len(one.tried)
    }
    assert told >= {"N.log", "N.sst.new"}


@pytest.mark.process
@pytest.mark.timeout(TIMEOUT_S)
def test_a_disk_that_fails_for_good_stops_the_store_and_loses_nothing(faulty_disk, tmp_path):
    for outcome in Faults(faulty_disk, tmp_path, errno.EIO, ALL, "archive").all_lives("+", every=4)[1:]:
        assert not outcome.wrong, (outcome.nth, outcome.tried[outcome.nth - 1 : outcome.nth], outcome.wrong)
        if outcome.nth <= len(outcome.tried):
            check_told(outcome, tmp_path, errno.EIO)


@pytest.mark.process
@pytest.mark.timeout(TIMEOUT_S)
def test_a_write_that_the_system_cuts_short_is_carried_on(faulty_disk, tmp_path):
    for outcome in Faults(faulty_disk, tmp_path, 0, WRITES, "archive").all_lives():
        assert (outcome.errors, outcome.wrong) == ([], ""), outcome.nth
