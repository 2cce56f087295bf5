"""Power cuts: whatever a disk may have kept when the power went, the store opens, and all that was durable is there.

A store lives on a recording disk (`support/recording_disk.c`): it flushes, compacts, makes snapshots and recycles log files.
After each of its system calls the states that a cut may leave are built (`support/power_cut.py`), opened, and compared with what
was acknowledged. RINGMAIN_SEED chooses another run (it is printed); RINGMAIN_NIGHTLY makes it 10,000 openings.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from ringmain.storage import StorageError
from ringmain.storage.backup_repository import is_repository
from ringmain.storage.backup_verify import verify_backups
from ringmain.storage.log_files import list_files
from ringmain.storage.log_tail import cut_tail
from ringmain.storage.recovery import examine
from ringmain.storage.store_reader import StoreReader
from ringmain.storage.store_verify import verify_store
from support import recorded_store
from support.logs import make_rows, read_rows
from support.power_cut import OPERATIONS, Cut, Disk, Operation, Start, cuts, read_journal
from support.preload import build_preload
from support.told_store import Note, Told, check_goes_on, check_opened, check_rows, check_tidy, file_kind, open_store

SEED = int(os.environ.get("RINGMAIN_SEED", "20230301"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
OPENINGS = {"log files": 5_500, "tables": 3_500} if NIGHTLY else {"log files": 260, "tables": 180}
STORES_CUT_TWICE, OPENINGS_CUT_TWICE = (100, 1_000) if NIGHTLY else (4, 60)
STEPS = 1_000 if NIGHTLY else 30  # of a backup, a restore, a cut of a log
OPENINGS_NEVER_SYNCED = 500 if NIGHTLY else 30
TRIES_TO_FIND_OUT = 150
MEMTABLE_BYTES = 1_100_000  # as small as it can be with FILLER's batches: openings are many
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
CUTS_OF_STEPS = (Cut(names=0, contents=0), Cut(names=1, contents=0), *[Cut(names=0.5, contents=1)] * 2)


@pytest.fixture(scope="module")
def memory_disk() -> Iterator[Path]:
    """A folder in memory, where there is one: what is measured here is not the disk."""
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ringmain-cut-", dir=place) as name:
        yield Path(name)


def contents_of(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@dataclass(frozen=True)
class Recording:
    """What stores did, from where they were when that began. told: what had to be in each then, by its directory's name."""

    start: Start
    operations: list[Operation]
    told: dict[str, Told]


class Recorder:
    """Runs processes on the recording disk."""

    def __init__(self, place: Path) -> None:
        self.place, self._library = place, build_preload("recording_disk", place)
        self._lives: dict[str, Recording] = {}

    def begin(self) -> Path:
        """A new directory for the stores of the next recording."""
        return Path(tempfile.mkdtemp(dir=self.place))

    def life(self, kind: str) -> Recording:
        """The life of a new store, recorded when it is first asked for."""
        if kind not in self._lives:
            self._lives[kind] = self.record(kind, self.begin(), {"life": Told()})
        return self._lives[kind]

    def record(self, kind: str, root: Path, told: dict[str, Told]) -> Recording:
        """Let a process do something with the stores in a directory, which is removed afterwards."""
        start, journal = Start.of(root), root.with_suffix(".journal")
        command = [sys.executable, "-m", recorded_store.__name__, kind, str(SEED), *(str(root / name) for name in told)]
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "RECORDED_ROOT": str(root),
            "RECORDED_JOURNAL": str(journal),
        }
        tests = Path(__file__).parents[1]
        done = subprocess.run(command, env=environment, cwd=tests, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        recording = Recording(start, read_journal(journal), told)
        self._check(recording, root)
        journal.unlink()
        shutil.rmtree(root)
        return recording

    def _check(self, recording: Recording, root: Path) -> None:
        """All of it together is what the process has really left: nothing that it did went past the layer."""
        disk, rebuilt = Disk(recording.start), root.with_suffix(".rebuilt")
        for _ in cuts(disk, recording.operations):
            pass
        for name in recording.told:
            disk.write_image(rebuilt, name, Cut(names=1, contents=1), random.Random(0))
            assert contents_of(rebuilt / name) == contents_of(root / name)
            shutil.rmtree(rebuilt)


@pytest.fixture
def tmp_memory(memory_disk) -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(dir=memory_disk) as place:
        yield Path(place)


@pytest.fixture
def tmp_image(tmp_memory) -> Path:
    """Where images go."""
    return tmp_memory / "image"


@pytest.fixture(scope="module")
def recorder(memory_disk) -> Recorder:
    return Recorder(memory_disk)


@dataclass(frozen=True)
class Image:
    """What a cut left of a store's directory, and what must be in it. operation: the last one before the cut."""

    directory: Path
    told: Told
    place: int
    operation: Operation
    cut: Cut


def nothing(name: str) -> bool:
    return False


def images(
    recording: Recording,
    chosen: Mapping[int, list[Cut]],
    rng: random.Random,
    target: Path,
    forget: Callable[[str], bool] = nothing,
) -> Iterator[Image]:
    """What the cuts leave, each behind its place, of the store that is written there. Each is gone when the next one comes."""
    disk, told = Disk(recording.start, forget), copy.deepcopy(recording.told)
    where = next(iter(told))
    for place, notes in cuts(disk, recording.operations):
        for text in notes:
            note = msgspec.json.decode(text, type=Note)
            where = note.where
            told[where].take(note)
        for cut in chosen.get(place, ()):
            disk.write_image(target, where, cut, rng)
            yield Image(target / where, told[where], place, recording.operations[place], cut)
            shutil.rmtree(target)


def chosen_cuts(recording: Recording, count: int, rng: random.Random, kinds: str = OPERATIONS) -> dict[int, list[Cut]]:
    """Where to cut, and how: behind each operation of these kinds as often as possible."""
    places = [place for place, operation in enumerate(recording.operations) if operation.kind in kinds]
    chosen: dict[int, list[Cut]] = {}
    while count > 0:
        for place in rng.sample(places, min(len(places), count)):
            chosen.setdefault(place, []).append(rng.choice(CUTS))
        count -= len(places)
    return chosen


# --- what must be there -------------------------------------------------------------------------------------------------------


def check_read_only(directory: Path, told: Told) -> None:
    """Whoever only reads, before a writer has put the store in order, sees the same."""
    with StoreReader(directory) as reader:
        for name in reader:
            tree, topic = reader[name], told.topics[name]
            last = tree.sequence
            assert topic.durable <= last <= len(topic.history), f"{name}: {topic.durable} were durable, {last} are read"
            check_rows(tree, topic, last)


def check_image(image: Image, *, thoroughly: bool = False) -> None:
    """thoroughly: also before a writer has put the store in order, and every byte once it is closed."""
    try:
        if thoroughly and (image.directory / "store" / "MANIFEST").exists():
            assert verify_store(image.directory).findings == ()
            check_read_only(image.directory, image.told)
        with open_store(image.directory, memtable_bytes=MEMTABLE_BYTES) as store:
            stood = check_opened(store, image.told)
            check_goes_on(store, stood)
        if thoroughly:
            check_tidy(image.directory)
    except BaseException:
        print(f"behind operation {image.place}, {image.operation!r:.300}: {image.cut}")
        raise


# --- the tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_stores_that_are_cut_do_all_that_stores_do_to_files(recorder):
    done = {
        (operation.kind, *(file_kind(name[1]) if name else "" for name in (operation.name, operation.to_name)))
        for kind in OPENINGS
        for operation in recorder.life(kind).operations
    }
    assert done >= {
        ("C", "spare", ""),
        ("R", "spare", "N.log"),  # begun
        ("R", "N.log", "spare"),  # used again
        ("R", "N.log", "N.log"),  # archived
        ("U", "N.log", ""),
        ("C", "N.sst.new", ""),
        ("R", "N.sst.new", "N.sst"),
        ("U", "N.sst", ""),  # compacted
        ("R", "MANIFEST.new", "MANIFEST"),
    }
    kinds = {operation.kind for kind in OPENINGS for operation in recorder.life(kind).operations}
    assert kinds >= set("WMPAS")


@pytest.mark.process
@pytest.mark.parametrize("kind", OPENINGS)
def test_whatever_a_power_cut_leaves_has_all_that_was_durable(kind, recorder, tmp_image):
    print(f"RINGMAIN_SEED={SEED}")
    rng = random.Random(f"{SEED} {kind}")
    recording = recorder.life(kind)
    for image in images(recording, chosen_cuts(recording, OPENINGS[kind], rng), rng, tmp_image):
        check_image(image, thoroughly=rng.random() < 0.2)


@pytest.mark.process
def test_a_cut_while_a_store_recovers_from_a_cut_loses_nothing_either(recorder, tmp_image):
    print(f"RINGMAIN_SEED={SEED}")
    rng = random.Random(f"{SEED} again")
    lives = [recorder.life(kind) for kind in OPENINGS]
    root, told = recorder.begin(), dict[str, Told]()
    for recording in lives:
        for image in images(recording, chosen_cuts(recording, STORES_CUT_TWICE // len(lives), rng), rng, tmp_image):
            name = f"{len(told)}"
            told[name] = copy.deepcopy(image.told)
            if image.directory.exists():
                image.directory.rename(root / name)
    recording = recorder.record("recovery", root, told)
    for image in images(recording, chosen_cuts(recording, OPENINGS_CUT_TWICE, rng), rng, tmp_image):
        check_image(image, thoroughly=rng.random() < 0.2)


@pytest.mark.process
def test_a_store_that_never_syncs_is_opened_right_or_not_at_all(recorder, tmp_image):
    """Nothing is promised of what was put; but no sequence is given out twice, and nothing is answered that was never so."""
    print(f"RINGMAIN_SEED={SEED}")
    rng = random.Random(f"{SEED} never")
    recording = recorder.life("no syncs")
    opened, refused = 0, 0
    for image in images(recording, chosen_cuts(recording, OPENINGS_NEVER_SYNCED, rng), rng, tmp_image):
        try:
            check_image(image)
            opened += 1
        except (StorageError, OSError):
            refused += 1
    assert opened
    assert refused


FORGOTTEN: dict[str, Callable[[str], bool]] = {
    "new tables": lambda name: name.endswith(".sst.new"),
    "the names of tables": lambda name: name == "store",
    "the log's rows": lambda name: name.endswith(".log"),
    "the headers of log files": lambda name: name.startswith("spare-"),
    "the names of log files": lambda name: name == "log",
    "edits of the manifest": lambda name: name == "MANIFEST",
    "manifests written anew": lambda name: name.startswith("MANIFEST."),
    "the names of directories": lambda name: name == "life",
}


@pytest.mark.process
@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_disk_that_forgets_a_sync_is_found_out(what, recorder, tmp_image):
    """What the other tests would say if the store left it out."""
    rng = random.Random(f"{SEED} {what}")
    recording = recorder.life("log files")
    chosen = chosen_cuts(recording, TRIES_TO_FIND_OUT, rng, kinds="RSU")
    with pytest.raises((AssertionError, StorageError, OSError)):  # noqa: PT012  which cut is the one is a matter of chance
        for image in images(recording, chosen, rng, tmp_image, FORGOTTEN[what]):
            check_image(image)


# --- what is done with a store's directory ------------------------------------------------------------------------------------


def places_of(recording: Recording, what: str) -> tuple[list[int], list[int]]:
    """Where a cut matters most to something that is done: each change of a name while it goes on; and where it is just done."""
    during, behind = list[int](), list[int]()
    under_way, last = False, 0
    for place, operation in enumerate(recording.operations):
        if operation.kind == "N":
            note = msgspec.json.decode(operation.data, type=Note)
            under_way = (under_way or note.begun == what) and note.done != what
            behind += [last] if note.done == what else []
        else:
            last = place
            during += [place] if under_way and operation.kind in "RLUK" else []
    return during, behind


def step_images(recording: Recording, what: str, top: str, target: Path) -> Iterator[tuple[Path, int]]:
    """What cuts leave of a directory while something is done there, and behind it; and how often it was done by then."""
    rng = random.Random(f"{SEED} {what}")
    during, behind = places_of(recording, what)
    chosen = {place: list(CUTS_OF_STEPS) for place in behind}
    for _ in range(0, STEPS, len(during)):
        for place in rng.sample(during, min(len(during), STEPS)):
            chosen.setdefault(place, []).append(rng.choice(CUTS_OF_STEPS))
    disk, done_count = Disk(recording.start), 0
    for place, notes in cuts(disk, recording.operations):
        done_count += sum(msgspec.json.decode(text, type=Note).done == what for text in notes)
        for cut in chosen.get(place, ()):
            print(f"behind operation {place}, {recording.operations[place]!r:.300}: {cut}")
            disk.write_image(target, top, cut, rng)
            yield target / top, done_count
            shutil.rmtree(target)


@pytest.mark.process
def test_a_backup_that_is_listed_after_a_power_cut_is_whole_and_the_newest_that_was_made_is_there(recorder, tmp_image):
    print(f"RINGMAIN_SEED={SEED}")
    for directory, done_count in step_images(recorder.life("backup"), "backup", "backups", tmp_image):
        if done_count or (directory.exists() and is_repository(directory)):
            found = verify_backups(directory)
            assert found.findings == ()
            assert max(found.sound) >= done_count


@pytest.mark.process
def test_a_restored_store_has_its_name_after_a_power_cut_only_when_it_is_whole(recorder, tmp_image):
    print(f"RINGMAIN_SEED={SEED}")
    for directory, done_count in step_images(recorder.life("backup"), "restore", "restored", tmp_image):
        if done_count or directory.exists():
            assert verify_store(directory).findings == ()


@pytest.mark.process
def test_what_is_cut_off_a_log_is_there_once_after_a_power_cut_as_its_end_or_set_aside(recorder, tmp_image):
    print(f"RINGMAIN_SEED={SEED}")
    whole = make_rows(recorded_store.CUT, 1, recorded_store.CUT_ROWS)
    for directory, done_count in step_images(recorder.life("cut"), "cut", "life", tmp_image):
        assert examine(directory / "log").problems == []  # for who only reads, before the cut is finished
        cut = cut_tail(directory, {"cut": recorded_store.CUT_AT})
        assert not (cut.row_count and done_count)
        [aside] = (directory / "lost+found").iterdir()
        for log, expected in (
            (directory / "log", whole[: recorded_store.CUT_AT]),
            (aside, whole[recorded_store.CUT_AT :]),
        ):
            assert examine(log).problems == []
            assert read_rows(log, recorded_store.CUT).tobytes() == expected.tobytes()


@pytest.mark.process
def test_between_the_files_of_a_log_and_its_archive_none_is_missing_after_a_power_cut(recorder, tmp_image):
    print(f"RINGMAIN_SEED={SEED}")
    for directory, done_count in step_images(recorder.life("archive"), "archive", "life", tmp_image):
        numbers = {number for place in ("archive", "log") for number, _ in list_files(directory / place)}
        assert numbers == set(range(min(numbers), max(numbers) + 1))
        assert not done_count or numbers
