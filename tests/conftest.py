"""What every test may use: a bus name of its own, cleaned up whatever happens, and the real data where it is there."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

_COUNTER = itertools.count(1)

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
settings.register_profile("ringmain", deadline=None, max_examples=500 if NIGHTLY else 40)  # where a test says no number
settings.load_profile("ringmain")

# Where Python keeps no bytecode, each of the many processes that tests start would compile all there is, anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# And no test multiplies matrices: each of these processes would spin for a tenth of a second, in a thread for that.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.dont_write_bytecode = False
# A shell that starts the suite in the background lets it ignore Ctrl-C, and so would all that tests start, and send a Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def bus_name() -> Iterator[str]:
    """A bus name that no other test or run uses. Whatever the test leaves of it in shared memory is removed afterwards."""
    name = f"t{os.getpid()}-{next(_COUNTER)}"
    yield name
    for left in Path("/dev/shm").glob(f"ringmain.{name}*"):
        left.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real exchange data, RINGMAIN_DATA."""
    root = os.environ.get("RINGMAIN_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("RINGMAIN_DATA names no folder with the real market data; set it to run this test")
    return Path(root)
