"""What the fuzzers of tests/fuzz found once, and some of what they try: rows, or a documented error, and nothing else.

RINGMAIN_SEED chooses other changes (it is printed); RINGMAIN_NIGHTLY makes many more of them.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import sys
import traceback
from pathlib import Path

import pytest
from fuzz import log, manifest, sstable
from fuzz.harness import Input, Target, mutate

SEED = int(os.environ.get("RINGMAIN_SEED", "20230701"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
COUNT = 20_000 if NIGHTLY else 150
INPUT_S = 20  # for one input
MORE_BYTES = 1 << 30  # of memory, above what the test itself takes
TARGETS = {target.name: target for target in (log.TARGET, manifest.TARGET, sstable.TARGET)}
pytestmark = [pytest.mark.process, pytest.mark.timeout(3600 if NIGHTLY else 180)]


def read_all(target: Target, inputs: list[Input], folder: Path) -> list[int]:
    """Read inputs in a child with bounded memory and time; fails with what went wrong. Returns which of them are sound."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        faulthandler.disable()
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MORE_BYTES, taken + MORE_BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        at = -1
        try:
            known = target.known_rows(folder)
            for at, given in enumerate(inputs):
                signal.alarm(INPUT_S)
                if target.check(given, known, folder):
                    os.write(writer, at.to_bytes(4, "little"))
            os._exit(0)
        except BaseException:
            (folder / "found").write_bytes(inputs[at].data)
            print(f"input {at}:", traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"reading ended with {status}; the input may be in {folder / 'found'}"
    return [int.from_bytes(told[at : at + 4], "little") for at in range(0, len(told), 4)]


@pytest.mark.parametrize("name", TARGETS)
def test_every_file_of_the_corpus_is_read_or_refused(name, tmp_path):
    target = TARGETS[name]
    paths = target.inputs()
    inputs = [Input(path.read_bytes(), is_forged=False) for path in paths]
    sound = {paths[at].name for at in read_all(target, inputs, tmp_path)}
    (tmp_path / "seeds").mkdir()
    assert sound >= target.make_seeds(tmp_path / "seeds").keys()


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_that_was_changed_where_it_matters_is_read_or_refused(name, tmp_path):
    print(f"RINGMAIN_SEED={SEED}")
    target, chosen = TARGETS[name], random.Random(SEED)
    others = [path.read_bytes() for path in target.inputs()]
    inputs = [mutate(chosen.choice(others), target, chosen, others) for _ in range(COUNT)]
    assert 0 < len(read_all(target, inputs, tmp_path)) < COUNT
