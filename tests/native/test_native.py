"""The C++ core under stress, as it is, under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Each program is told by its opening comment. The last tests break one thing in a copy of the headers: the programs must notice.
What they cannot notice on x86, a missing release fence, is tests/model's to find.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BINARIES = ROOT / "build" / "native"
CXX = shlex.split(os.environ.get("CXX", "g++"))
PYTHON_H = Path(sysconfig.get_paths()["include"]) / "Python.h"
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
SECONDS, SEEDS = ("1", 20) if NIGHTLY else ("0.3", 60)  # a run; and how many there may be until one comes to the point
FUZZED = ["plain", "address"] if NIGHTLY else ["address"]
FLAGS = ["-std=c++20", "-O2", "-g1", "-pthread", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = {  # with -O1 they take half as long to build
    "plain": [],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    "thread": [
        "-O1",
        "-fsanitize=thread",
        "-Wno-tsan",
    ],  # the warning: it does not model fences, and nothing here rests on them
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=66",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:second_deadlock_stack=1",
}

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which(CXX[0]) is None, reason=f"needs a C++ compiler; {CXX[0]} is not there (set CXX)"),
    pytest.mark.skipif(not PYTHON_H.exists(), reason=f"needs Python's headers; {PYTHON_H} is not there"),
]


def compile_command(program: str, sanitizer: str, headers: Path) -> list[str]:
    folders = [HERE, headers / "bus", headers / "storage", PYTHON_H.parent]
    includes = [f"-I{folder}" for folder in folders]
    return [*CXX, *FLAGS, *SANITIZERS[sanitizer], *includes, str(HERE / f"{program}.cpp")]


def compiled(program: str, sanitizer: str) -> Path:
    """The program, built now unless a build of the same sources is there."""
    command = compile_command(program, sanitizer, ROOT)
    version = subprocess.run([*CXX, "--version"], check=True, capture_output=True).stdout
    sources = sorted(
        [*ROOT.glob("bus/*.hpp"), *ROOT.glob("storage/*.hpp"), HERE / "stress.hpp", HERE / f"{program}.cpp"]
    )
    parts = [version, shlex.join(command).encode(), *(source.read_bytes() for source in sources)]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    binary = BINARIES / f"{program}-{sanitizer}-{digest}"
    if not binary.exists():
        BINARIES.mkdir(parents=True, exist_ok=True)
        for old in BINARIES.glob(f"{program}-{sanitizer}-*"):
            old.unlink(missing_ok=True)
        build(command, binary)
    return binary


def build(command: list[str], binary: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / binary.name
        done = subprocess.run([*command, "-o", str(made)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shutil.move(made, binary)


def run(binary: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program. It ends by itself; one that hangs kills itself."""
    command = [str(binary), *map(str, arguments)]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **OPTIONS},
        timeout=170,
    )


def counts_of(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    return json.loads(done.stdout)


def counts_until(
    reached: Callable[[Counter[str]], bool], run_with: Callable[[int], subprocess.CompletedProcess[str]]
) -> Counter[str]:
    """What runs with one seed after the other counted together, until that is enough: a busy machine may need more than one."""
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        counts.update(counts_of(run_with(seed)))
        if reached(counts):
            break
    return counts


@pytest.fixture(scope="session")
def working(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By sanitizer, why it cannot be used here; empty when it can."""
    folder = tmp_path_factory.mktemp("probe")
    source = folder / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    reasons: dict[str, str] = {}
    for sanitizer, flags in SANITIZERS.items():
        binary = folder / sanitizer
        done = subprocess.run(
            [*CXX, *flags, str(source), "-o", str(binary)], check=False, capture_output=True, text=True
        )
        if done.returncode == 0:
            done = subprocess.run([str(binary)], check=False, capture_output=True, text=True)
        reasons[sanitizer] = (
            "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it does not start"])[-1]
        )
    return reasons


@pytest.fixture
def need(working: dict[str, str]):
    """need(sanitizer) skips the test where that sanitizer's runtime cannot be had."""

    def check(sanitizer: str) -> None:
        if working[sanitizer]:
            pytest.skip(f"the {sanitizer} sanitizer does not work with {CXX[0]} here: {working[sanitizer]}")

    return check


# --- as it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sanitizer", "mode"),
    [
        ("plain", "processes"),
        ("plain", "threads"),
        ("address", "processes"),
        ("address", "threads"),
        ("thread", "threads"),
    ],
)
def test_no_torn_row_is_accepted_and_no_reliable_reader_is_lapped(sanitizer: str, mode: str, need) -> None:
    need(sanitizer)
    binary = compiled("ring_stress", sanitizer)
    counts = counts_until(
        lambda counts: min(counts.values()) > 0 and counts["held"] > 1,
        lambda seed: run(binary, mode, SECONDS, seed),
    )
    assert counts["published"] > 0
    assert counts["read"] > 0
    assert counts["lapped"] > 0, counts  # the writer did come round …
    assert counts["torn"] > 0, counts  # … in the middle of a copy, which was then not believed
    assert counts["held"] > 1, counts  # and somebody became reliable while it ran


@pytest.mark.parametrize(
    ("sanitizer", "sync"),  # early: at intervals, by a journal that soon sleeps
    [
        *((sanitizer, "interval") for sanitizer in SANITIZERS),
        ("plain", "early"),
        ("thread", "early"),
        ("plain", "always"),
        ("plain", "never"),
    ],
)
def test_what_is_said_to_be_logged_is_in_the_files_and_in_the_end_everything_is(
    sanitizer: str, sync: str, need, tmp_path: Path
) -> None:
    need(sanitizer)
    binary = compiled("journal_stress", sanitizer)

    def run_with(seed: int) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / str(seed)
        folder.mkdir()
        return run(binary, folder, sync, SECONDS, seed)

    counts = counts_until(lambda counts: counts["looks"] > 0, run_with)
    assert counts["rows"] > 0
    assert counts["looks"] > 0, counts


@pytest.mark.parametrize(
    ("sanitizer", "mode"),
    [("plain", "processes"), ("plain", "threads"), ("address", "processes"), ("thread", "threads")],
)
def test_rows_of_lanes_are_there_once_and_in_order_whatever_becomes_of_their_writers(
    sanitizer: str, mode: str, need
) -> None:
    need(sanitizer)
    binary = compiled("lane_stress", sanitizer)
    counts = counts_until(
        lambda counts: counts["writers"] > 10 and counts["carried"] > 0,
        lambda seed: run(binary, mode, SECONDS, seed),
    )
    assert counts["writers"] > 10, counts
    assert counts["rows"] > 0
    assert counts["carried"] > 0, counts  # writers did end while there was something in lanes


STEPS_OF_A_TURN = (
    "copy(lane, count);",
    "store_release(position.topic_last, topic_last);",
    "store_release(position.lane_last, lane_last);",
    "ring_.publish(topic_last);",
    "store_release(position.drained, lane_last);",
)


def copy_headers(to: Path) -> None:
    for room in ("bus", "storage"):
        (to / room).mkdir()
        for source in ROOT.glob(f"{room}/*.hpp"):
            shutil.copy(source, to / room)


def slow_down(headers: Path) -> None:
    """Let the drain rest between the steps of a turn, so that its end falls there."""
    header = headers / "bus" / "lanes.hpp"
    text = header.read_text()
    for step in STEPS_OF_A_TURN:
        assert text.count(step) == 1, f"lanes.hpp has changed: {step!r} is no longer there"
        text = text.replace(step, f"{step} usleep(10);")
    header.write_text(text)


@pytest.mark.parametrize("mode", ["processes", "threads"] if NIGHTLY else ["processes"])
def test_a_writer_may_end_between_any_two_steps_of_a_turn(mode: str, need, tmp_path: Path) -> None:
    need("plain")
    copy_headers(tmp_path)
    slow_down(tmp_path)
    binary = tmp_path / "lane_stress"
    build(compile_command("lane_stress", "plain", tmp_path), binary)
    counts = counts_until(lambda counts: counts["turns"] > 10, lambda seed: run(binary, mode, SECONDS, seed))
    assert counts["turns"] > 10, counts  # published, and known from the position alone


@pytest.mark.parametrize("sanitizer", FUZZED)
def test_a_changed_log_file_is_never_read_out_of_bounds_nor_believed(sanitizer: str, need) -> None:
    need(sanitizer)
    counts = counts_of(run(compiled("scan_fuzz", sanitizer), SECONDS, 1))
    assert counts["found"] > counts["rounds"] > 0, counts  # most of a file is still read
    assert 0 < counts["whole"] < counts["rounds"], counts
    assert counts["forged"] > 0, counts


@pytest.mark.parametrize("sanitizer", FUZZED)
def test_a_changed_sstable_is_never_read_out_of_bounds_nor_believed(sanitizer: str, need) -> None:
    need(sanitizer)
    counts = counts_of(run(compiled("table_fuzz", sanitizer), SECONDS, 1))
    assert counts["rounds"] > counts["opened"] > counts["sound"] > 0, counts
    assert counts["found"] > 0, counts


@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_no_row_of_a_memtable_is_missing_after_memory_ran_out_at_any_step_of_sorting_it(sanitizer: str, need) -> None:
    need(sanitizer)
    counts = counts_of(run(compiled("memtable_memory", sanitizer)))
    assert counts["failed"] > 20, counts  # allocations, each of which failed once
    assert counts["whole"] == 2, counts  # and then, both ways, none was left to fail


# --- broken on purpose --------------------------------------------------------------------------------------------------

FIRST = STEPS_OF_A_TURN[1]

BROKEN = {
    "the writer does not announce what it overwrites": (
        "ring_stress", "plain", "processes", "bus/ring.hpp",
        "store_relaxed(header->watermarks[CLAIMED].sequence, claimed);", "",
        "a torn row was accepted",
    ),
    "validation is off by one": (
        "ring_stress", "plain", "processes", "bus/ring.hpp",
        "first > claimed - slot_count;", "first >= claimed - slot_count;",
        "a torn row was accepted",
    ),
    "the writer does not wait for reliable readers": (
        "ring_stress", "plain", "processes", "bus/ring.hpp",
        "if (reader < allowed) allowed = reader;", "",
        "while it holds the writer",
    ),
    "PUBLISH is not a release": (
        "ring_stress", "thread", "threads", "bus/ring.hpp",
        "store_release(header->watermarks[PUBLISHED]", "store_relaxed(header->watermarks[PUBLISHED]",
        "data race",
    ),
    "CONSUME is not an acquire": (
        "ring_stress", "thread", "threads", "bus/ring.hpp",
        "load_acquire(control->readers[index].consumed)", "load_relaxed(control->readers[index].consumed)",
        "data race",
    ),
    "rows count as logged before they are written": (
        "journal_stress", "plain", "interval", "bus/journal.hpp",
        "const bool wrote = gather();\n", "const bool wrote = gather();\n            if (wrote) raise_logged();\n",
        "FAILED: ",
    ),
    "a memtable is replaced while rows are inserted": (
        "journal_stress", "thread", "interval", "storage/feed.hpp",
        "const std::lock_guard lock(mutex_);\n        active_ = memtable;", "active_ = memtable;",
        "data race",
    ),
    "LOGGED is not a release": (
        "journal_stress", "thread", "interval", "bus/wait.hpp",
        "store_release(header.watermarks[which].sequence", "store_relaxed(header.watermarks[which].sequence",
        "data race",
    ),
    "a frame may reach beyond the file": (
        "scan_fuzz", "address", "", "storage/log_scan.hpp",
        "header.frame_bytes > log.limit - offset ||", "",
        "AddressSanitizer",
    ),
    "a block's checksum is not looked at": (
        "table_fuzz", "plain", "", "storage/sstable_reader.hpp",
        'if (crc != entry.crc) return fail(damage, "a block\'s checksum", entry.offset, crc, entry.crc);', "",
        "a row was found that was never written",
    ),
    "the checksum is not looked at": (
        "scan_fuzz", "plain", "", "storage/log_scan.hpp",
        "return proven || crc32c(", "return true || crc32c(",
        "a frame with a wrong checksum was found",
    ),
    "a turn that was published and not finished is forgotten": (
        "lane_stress", "plain", "processes", "bus/lanes.hpp",
        "&& lane_last > drained ? lane_last : drained;", "&& false ? lane_last : drained;",
        "FAILED: ",
    ),
    "lane_last is written before topic_last": (
        "lane_stress", "plain", "processes", "bus/lanes.hpp",
        FIRST, f"store_release(position.lane_last, lane_last); usleep(10); {FIRST}",
        "FAILED: ",
    ),
    "DRAIN is not a release": (
        "lane_stress", "thread", "threads", "bus/wait.hpp",
        "store_release(header.watermarks[which].sequence", "store_relaxed(header.watermarks[which].sequence",
        "data race",
    ),
    "rows count as sorted before they are": (
        "memtable_memory", "plain", "", "storage/memtable.hpp",
        "runs_.push_back(sort_rows(ordered_, count));",
        "const uint64_t sorted = ordered_; ordered_ = count; runs_.push_back(sort_rows(sorted, count));",
        "is missing since",
    ),
}  # fmt: skip
BROKEN_AT_NIGHT = {
    "the writer does not look whether a reader has become reliable": (
        "ring_stress", "plain", "processes", "bus/ring.hpp",
        "load_relaxed(control->attention.wake[1]) == 0 &&", "",
        "FAILED: ",
    ),
    "PUBLISH is not an acquire": (
        "ring_stress", "thread", "threads", "bus/ring.hpp",
        "load_acquire(header->watermarks[follow].sequence);  // sync PUBLISH", "load_relaxed(header->watermarks[follow].sequence);",
        "data race",
    ),
    "rows count as indexed that are in no memtable": (
        "journal_stress", "plain", "interval", "storage/feed.hpp",
        "if (count == 0) return 0;\n", "if (count == 0) return 0;\n        if (count > 7) return count;\n",
        "FAILED: ",
    ),
    "a section may reach beyond the table": (
        "table_fuzz", "address", "", "storage/sstable_reader.hpp",
        "section.bytes > end - section.offset ||", "",
        "AddressSanitizer",
    ),
    "a filter may have more lines than the file": (
        "table_fuzz", "address", "", "storage/sstable_reader.hpp",
        "footer_.bloom_lines > bytes ||", "",
        "sstable_format.hpp",
    ),
    "the spare files have no lock": (
        "journal_stress", "thread", "interval", "storage/log_writer.hpp",
        "std::lock_guard lock(spares_mutex_);", "",
        "data race",
    ),
    "a place beyond the file is searched": (
        "scan_fuzz", "plain", "", "storage/log_scan.hpp",
        "if (offset >= end) return log.limit;", "if (offset >= end) return offset - 8;",
        "before the place where the search began",
    ),
    "a turn that was not published counts": (
        "lane_stress", "plain", "processes", "bus/lanes.hpp",
        "return topic_last <= load_acquire(ring.watermarks[ENDED].sequence) &&", "return",
        "FAILED: ",
    ),
    "the position is written behind the rows": (
        "lane_stress", "plain", "processes", "bus/lanes.hpp",
        FIRST, f"ring_.publish(topic_last); usleep(10); {FIRST}",
        "FAILED: ",
    ),
    "the lane is told before the topic": (
        "lane_stress", "plain", "processes", "bus/lanes.hpp",
        FIRST, f"store_release(position.drained, lane_last); usleep(10); {FIRST}",
        "FAILED: ",
    ),
    "a fenced writer finishes its turn": (
        "lane_stress", "plain", "threads", "bus/lanes.hpp",
        "if (ring_.fenced()) {", "if (false) {",
        "FAILED: ",
    ),
}  # fmt: skip
if NIGHTLY:
    BROKEN |= BROKEN_AT_NIGHT


@pytest.mark.parametrize("what", BROKEN if NIGHTLY else list(BROKEN)[::3])
def test_a_broken_core_is_found_out(what: str, need, tmp_path: Path) -> None:
    program, sanitizer, mode, header, right, wrong, found = BROKEN[what]
    need(sanitizer)
    copy_headers(tmp_path)
    if program == "lane_stress":
        slow_down(tmp_path)
    text = (tmp_path / header).read_text()
    assert right in text, f"{header} has changed: {right!r} is no longer there to be broken"
    (tmp_path / header).write_text(text.replace(right, wrong))
    binary = tmp_path / program
    build([*compile_command(program, sanitizer, tmp_path), "-Wno-error", "-O1", "-g0"], binary)  # sooner built
    log = tmp_path / "log"
    for seed in range(SEEDS):
        shutil.rmtree(log, ignore_errors=True)
        log.mkdir()
        before = {
            "ring_stress": [mode],
            "lane_stress": [mode],
            "journal_stress": [log, mode],
            "scan_fuzz": [],
            "table_fuzz": [],
            "memtable_memory": [],
        }[program]
        done = run(binary, *before, SECONDS, seed)
        if done.returncode != 0:
            assert found in done.stderr, done.stderr
            return
    pytest.fail(f"{SEEDS} runs did not notice that {what}")
