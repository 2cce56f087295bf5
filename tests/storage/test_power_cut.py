"""Power cuts: whatever a disk may have kept when the power went, the store opens, and all that was durable is there.

A store lives on a recording disk (`support/recording_disk.c`): it flushes, compacts, makes snapshots and recycles log files.
After each of its system calls the states that a cut may leave are built (`support/power_cut.py`), opened, and compared with what
was acknowledged. RINGMAIN_SEED chooses another run (it is printed); RINGMAIN_NIGHTLY makes it 10,000 openings.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from ringmain.storage.store import Store
from support import recorded_store
from support.power_cut import Cut, Disk, Operation, build_recording_disk, cuts, read_journal
from support.recorded_store import KEYS, Note, Told, open_store, value_of

SEED = int(os.environ.get("RINGMAIN_SEED", "20230301"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
OPENINGS = {"log files": 5_500, "tables": 4_500} if NIGHTLY else {"log files": 300, "tables": 200}
pytestmark = pytest.mark.timeout(7200 if NIGHTLY else 300)

CUTS = (
    Cut(names=0, contents=0),  # only what was synced
    Cut(names=1, contents=1),  # everything, as after a kill
    Cut(names=1, contents=0),
    Cut(names=0, contents=1),
    Cut(names=0.5, contents=0.3),
    Cut(names=0.5, contents=0.3, unit_bytes=4096),
    Cut(names=0.5, contents=0.9),
    Cut(names=0.8, contents=0.1),
)


@pytest.fixture(scope="module")
def memory_disk() -> Iterator[Path]:
    """A folder in memory, where there is one: what is measured here is not the disk."""
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ringmain-cut-", dir=place) as name:
        yield Path(name)


@dataclass(frozen=True)
class Recording:
    """What a store did: the journal, and the directory as it was when that began."""

    kind: str
    root: Path
    operations: list[Operation]


@pytest.fixture(scope="module")
def recorded(memory_disk) -> Callable[[str], Recording]:
    """The recording of a life, made when it is first asked for."""
    library = build_recording_disk(memory_disk)
    made: dict[str, Recording] = {}

    def record(kind: str) -> Recording:
        if kind not in made:
            place = memory_disk / kind.replace(" ", "-")
            root, journal = place / "root", place / "journal"
            root.mkdir(parents=True)
            command = [sys.executable, "-m", recorded_store.__name__, kind, str(SEED), str(root / "store")]
            environment = {
                **os.environ,
                "LD_PRELOAD": str(library),
                "RECORDED_ROOT": str(root),
                "RECORDED_JOURNAL": str(journal),
            }
            tests = Path(__file__).parents[1]
            done = subprocess.run(command, env=environment, cwd=tests, capture_output=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr.decode()
            shutil.rmtree(root / "store")
            made[kind] = Recording(kind, root, read_journal(journal))
        return made[kind]

    return record


@pytest.fixture
def tmp_image(memory_disk) -> Iterator[Path]:
    """Where an image goes."""
    with tempfile.TemporaryDirectory(dir=memory_disk) as place:
        yield Path(place) / "image"


# --- what must be there -------------------------------------------------------------------------------------------------------


def check_opened(store: Store, told: Told) -> dict[str, int]:
    """All that was durable is there, nothing is invented, nothing is missing in between. Returns where each topic stands."""
    stood = {name: stats.sequence for name, stats in store.stats().items()}
    for name, topic in told.topics.items():
        last = stood[name]
        assert topic.durable <= last <= len(topic.history), f"{name}: {topic.durable} were durable, {last} are there"
        assert last in topic.ends, f"{name}: a batch was cut in two at {last}"
        check_rows(store, name, topic.newest(last), topic.versions(last))
    return stood


def check_rows(store: Store, name: str, newest: dict[int, int], versions: dict[int, list[int]]) -> None:
    tree = store[name]
    found = {int(row["key"]): (int(row["sequence"]), int(row["value"])) for rows in tree.scan() for row in rows}
    assert found == {key: (sequence, value_of(sequence)) for key, sequence in newest.items()}, name
    for key in range(KEYS):
        row = tree.get(key)
        assert (None if row is None else int(row["sequence"])) == newest.get(key), (name, key)
        if tree.keeps_versions:
            history = tree.history(key)
            assert [int(row["sequence"]) for row in history] == versions.get(key, []), (name, key)


def check_goes_on(store: Store, stood: dict[str, int]) -> None:
    """Writing continues with the next sequence, and what is written reaches a table."""
    for name, last in stood.items():
        assert store[name].delete(0) == last + 1
        assert store[name].put(key=1, value=1, **({"nothing": b""} if name == "filler" else {})) == last + 2
    store.snapshot()
    for name in stood:
        assert store[name].get(0) is None
        row = store[name].get(1)
        assert row is not None
        assert int(row["value"]) == 1


def check_tidy(directory: Path) -> None:
    """Nothing is left behind that no opening would remove."""
    assert not list(directory.rglob("*.new"))
    assert not list(directory.rglob("spare-*"))
    assert {path.name for path in directory.iterdir()} == {"log", "store"}


def check_image(directory: Path, told: Told) -> None:
    with open_store(directory / "store") as store:
        stood = check_opened(store, told)
        check_goes_on(store, stood)
    check_tidy(directory / "store")


# --- the tests ----------------------------------------------------------------------------------------------------------------


def places_of(operations: list[Operation], count: int, rng: random.Random) -> dict[int, list[Cut]]:
    """Where to cut, and how: everywhere as often as possible."""
    places = [place for place, operation in enumerate(operations) if operation.is_cut]
    rounds: list[tuple[int, Cut]] = []
    while len(rounds) < count:
        cuts_by_chance = rng.choices(CUTS, k=len(places))
        rounds += rng.sample(list(zip(places, cuts_by_chance, strict=True)), min(len(places), count - len(rounds)))
    chosen: dict[int, list[Cut]] = {}
    for place, cut in rounds:
        chosen.setdefault(place, []).append(cut)
    return chosen


@pytest.mark.process
@pytest.mark.parametrize("kind", OPENINGS)
def test_whatever_a_power_cut_leaves_has_all_that_was_durable(kind, recorded, tmp_image):
    print(f"RINGMAIN_SEED={SEED}")
    rng = random.Random(f"{SEED} {kind}")
    recording = recorded(kind)
    chosen = places_of(recording.operations, OPENINGS[kind], rng)
    disk, told, taken, image = Disk(recording.root), Told(), 0, tmp_image
    for place in cuts(disk, recording.operations):
        for cut in chosen.get(place, ()):
            while taken < len(recording.operations):  # what was told up to the next call
                if taken > place and recording.operations[taken].is_cut:
                    break
                if recording.operations[taken].kind == "N":
                    told.take(msgspec.json.decode(recording.operations[taken].data, type=Note))
                taken += 1
            disk.write_image(image, cut, rng)
            try:
                check_image(image, told)
            except BaseException:
                print(f"cut behind operation {place} of {kind}, {recording.operations[place]!r:.300}: {cut}")
                raise
            shutil.rmtree(image)
