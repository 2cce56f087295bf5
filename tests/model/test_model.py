"""Protocols, checked over every interleaving: `spin` proves the models here and refutes each broken variant.

What is modelled and what is not: README.md beside this file.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODELS = Path(__file__).parent
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
MEMORY_MIB_MAX = 500
SEARCH_S_MAX = 120  # each takes seconds; the machine may be busy
DEPTH_MAX = 10_000  # steps; the longest path here has fewer than 1,000

pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("cc") is None,
    reason="needs the model checker: `apt-get install -y spin gcc`, or `make test`, which installs it",
)

SOUND = [
    ("ring", "RECORDS=3"),
    ("ring", "NO_RELIABLE RECORDS=4"),
    ("ring", "NO_RELIABLE SLOTS=4 RECORDS=5 BATCH=2 ABORTS=0"),
    ("ring", "NO_LOSSY SLOTS=4 RECORDS=5 BATCH=2"),
    ("wake", ""),
    ("wake", "KILL"),
    ("wake", "WRITER_BARRIER KILL"),
    ("register", ""),
    ("register", "SLOTS=8 RECORDS=8 ABORTS=0"),
    ("register", "SLOTS=1 AHEAD=0 ABORTS=0"),
    ("register", "RESTARTED RECORDS=7"),
    ("register", "READERS=2 SLOTS=2 AHEAD=1 RECORDS=4 ABORTS=0"),
    ("lane", ""),
    ("cluster", "SENT=4"),
]
SOUND_NIGHTLY = [
    ("ring", "RECORDS=4 ABORTS=0"),
    ("ring", "NO_RELIABLE"),
    ("ring", "NO_RELIABLE SLOTS=4 RECORDS=6 BATCH=2 ABORTS=0"),
    ("ring", "NO_LOSSY SLOTS=4 RECORDS=7 BATCH=2"),
    ("lane", "ROWS=4 OTHERS=0"),
    ("cluster", ""),
    ("cluster", "CRASHES=2"),
    ("cluster", "LENGTH=5 SENT=6 CRASHES=0"),
    ("cluster", "LENGTH=5 SENT=6 RECORDS=1"),
    ("cluster", "RECORDS=3 CRASHES=0"),
    ("cluster", "NODES=3 RECORDS=1 CRASHES=0"),
]

TORN = "assertion violated  !(wrong)"
LAPPED = "assertion violated  !(1)"
LAPPED_AFTER_REGISTERING = "assertion violated (memory[0]<=(cursor+4))"
ASLEEP = "invalid end state"
NOT_ONCE = "assertion violated ((position+1)==expected)"
DEPOSED_ACKNOWLEDGED = "(net[i].node==leader_at[(last-1)])"
NOT_IN_STREAM = "(streamed[net[i].place]==net[i].record)"
MISSING_IN_LOG = "assertion violated (length[n]>=ends_at[applied[n]])"
OTHER_IN_LOG = "assertion violated (log[n].record[j]==streamed[j])"
TOO_MUCH_IN_LOG = "assertion violated (length[n]==ends_at[applied[n]])"
EPOCH_WENT_BACK = "assertion violated (net[i].epoch>epoch_at[(last-1)])"

BROKEN = [
    ("ring", "PUBLISH_FIRST", TORN),
    ("ring", "CLAIM_LATE", TORN),
    ("ring", "ABORT_REWINDS", TORN),
    ("ring", "NO_LIMIT", LAPPED),
    ("ring", "VALIDATE_EARLY", TORN),
    ("ring", "VALIDATE_OFF_BY_ONE", TORN),
    ("ring", "CONSUME_EARLY", LAPPED),
    ("ring", "NO_CLAIM_FENCE", TORN),
    ("ring", "NO_PUBLISH_RELEASE", TORN),
    ("ring", "NO_PUBLISH_ACQUIRE", TORN),
    ("ring", "NO_LAP_FENCE", TORN),
    ("wake", "NO_RECHECK", ASLEEP),
    ("wake", "DOORBELL_LATE", ASLEEP),
    ("wake", "LOCAL_BARRIER", ASLEEP),
    ("wake", "NO_READER_BARRIER", ASLEEP),
    ("wake", "LOOK_FIRST", ASLEEP),
    ("wake", "CLEAR_LATE", ASLEEP),
    ("wake", "BELL_RELAXED", ASLEEP),
    ("wake", "NO_BELL", ASLEEP),
    ("wake", "KILL NO_TIMEOUT", ASLEEP),
    ("register", "NO_REREAD", LAPPED_AFTER_REGISTERING),
    ("register", "NO_QUARTER", LAPPED_AFTER_REGISTERING),
    ("register", "WITHIN_HALF", LAPPED_AFTER_REGISTERING),
    ("register", "NO_INTACT RESTARTED RECORDS=7", LAPPED_AFTER_REGISTERING),
    ("register", "CLAIM_MORE", LAPPED_AFTER_REGISTERING),
    ("register", "AHEAD=2", LAPPED_AFTER_REGISTERING),
    ("register", "AHEAD_OF_LIMIT", LAPPED_AFTER_REGISTERING),
    ("register", "LOCAL_BARRIER", LAPPED_AFTER_REGISTERING),
    ("register", "ATTENTION_FIRST", LAPPED_AFTER_REGISTERING),
    ("register", "LOOK_EARLY", LAPPED_AFTER_REGISTERING),
    ("register", "NO_SCAN", LAPPED_AFTER_REGISTERING),
    ("register", "CLEAR_AFTER_SCAN RECORDS=7", LAPPED_AFTER_REGISTERING),
    ("register", "PLAIN_CLEAR RECORDS=7", LAPPED_AFTER_REGISTERING),
    ("register", "LEAVE_SILENTLY", ASLEEP),
    ("lane", "NO_POSITION", NOT_ONCE),
    ("lane", "PUBLISH_FIRST", NOT_ONCE),
    ("lane", "DRAINED_EARLY", NOT_ONCE),
    ("lane", "LANE_FIRST", NOT_ONCE),
    ("lane", "READ_TOPIC_FIRST", NOT_ONCE),
    ("lane", "POSITION_RELAXED", NOT_ONCE),
    ("lane", "PUBLISH_RELAXED", NOT_ONCE),
    ("lane", "NO_LOOK", NOT_ONCE),
    ("lane", "NO_BARRIER", NOT_ONCE),
    ("lane", "IN_LANE", NOT_ONCE),
    ("cluster", "TWO_IN_FLIGHT", DEPOSED_ACKNOWLEDGED),
    ("cluster", "CLAIM_ANYWHERE", MISSING_IN_LOG),
    ("cluster", "REFUSED_IS_STORED", NOT_IN_STREAM),
    ("cluster", "TAIL_KEPT", TOO_MUCH_IN_LOG),
    ("cluster", "POSITION_AHEAD", MISSING_IN_LOG),
]
BROKEN_NIGHTLY = [
    ("cluster", "OTHERS_ARE_MINE", MISSING_IN_LOG),
    ("cluster", "NEVER_COMPARED", OTHER_IN_LOG),
    ("cluster", "ID_REUSED", NOT_IN_STREAM),
    ("cluster", "SAME_EPOCH", EPOCH_WENT_BACK),
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one exhaustive search found."""

    errors: int
    states: int
    complete: bool
    report: str


def verify(folder: Path, model: str, settings: str, only_assertions: bool = False, optimized: str = "-O0") -> Verdict:
    """Search every state of a model; `settings` are its macros, as `NAME` or `NAME=VALUE` between blanks.

    What ends early, at a fault, is searched sooner than a compiler could optimize the search.
    """
    source = MODELS / f"{model}.pml"
    for setting in settings.split():
        name = setting.partition("=")[0]
        known = source.read_text() + (MODELS / "store_buffer.pml").read_text()
        assert re.search(rf"#.*\b{name}\b", known), f"{source.name} has no macro {name}"
    run(folder, "spin", *(f"-D{setting}" for setting in settings.split()), "-a", str(source))
    run(folder, "cc", optimized, "-w", "-DSAFETY", f"-DMEMLIM={MEMORY_MIB_MAX}", "-o", "pan", "pan.c")
    report = run(folder, "./pan", f"-m{DEPTH_MAX}", *(["-E"] if only_assertions else []))
    counts = re.search(r"errors: (\d+)\n\s*(\d+) states, stored", report)
    assert counts, report
    complete = "Search not completed" not in report and "max search depth too small" not in report
    return Verdict(int(counts[1]), int(counts[2]), complete, report)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=SEARCH_S_MAX)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def never_reached(report: str) -> list[str]:
    """Steps of those who do the work that no path took: a model may hold because it does nothing."""
    by_process = re.findall(r"unreached in proctype (\w+)\n((?:\t.*\n)*)", report)
    assert by_process, report
    return [
        f"{process}: {line.strip()}"
        for process, lines in by_process
        if process in ("Writer", "Reliable", "Node", "Network")
        for line in lines.splitlines()
        if not line.endswith("states)") and not (process in ("Node", "Network") and '"-end-"' in line)
    ]


@pytest.mark.parametrize(("model", "settings"), SOUND + SOUND_NIGHTLY * NIGHTLY)
def test_the_protocol_holds_in_every_interleaving(model: str, settings: str, tmp_path: Path) -> None:
    verdict = verify(tmp_path, model, settings, optimized="-O1")
    assert verdict.errors == 0, verdict.report
    assert verdict.complete, verdict.report
    assert verdict.states > 0
    if "ABORTS=0" not in settings and (model != "cluster" or settings == "SENT=4"):
        assert never_reached(verdict.report) == []


@pytest.mark.parametrize(("model", "settings", "found"), BROKEN + BROKEN_NIGHTLY * NIGHTLY)
def test_a_broken_protocol_is_found_out(model: str, settings: str, found: str, tmp_path: Path) -> None:
    if model == "ring":  # smaller, and an aborted row is not blamed for what something else broke
        settings += " RECORDS=3" if settings == "ABORT_REWINDS" else " RECORDS=3 ABORTS=0"
    verdict = verify(tmp_path, model, settings, only_assertions=found != ASLEEP)
    assert verdict.errors == 1, verdict.report
    assert found in verdict.report


def test_the_lossy_reader_of_the_model_does_get_lapped(tmp_path: Path) -> None:
    verdict = verify(tmp_path, "ring", "REACH_LAPPED RECORDS=4 ABORTS=0")
    assert "assertion violated 0" in verdict.report


@pytest.mark.parametrize("reached", ["REACH_HELD", "REACH_REFUSED"])
def test_a_reader_of_the_model_comes_to_hold_the_writer_and_is_refused_before(reached: str, tmp_path: Path) -> None:
    assert "assertion violated" in verify(tmp_path, "register", reached).report


@pytest.mark.parametrize("reached", ["REACH_COUNTED", "REACH_VOID"])
def test_a_turn_of_the_model_is_known_as_published_or_not_from_its_position_alone(reached: str, tmp_path: Path) -> None:
    assert "assertion violated" in verify(tmp_path, "lane", reached).report


@pytest.mark.parametrize("missing", ["NO_CLAIM_FENCE", "NO_PUBLISH_RELEASE"])
def test_x86_would_hide_a_missing_release_so_a_stress_test_there_proves_nothing(missing: str, tmp_path: Path) -> None:
    assert verify(tmp_path, "ring", f"{missing} FIFO RECORDS={4 if NIGHTLY else 3} ABORTS=0").errors == 0
