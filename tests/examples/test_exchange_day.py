"""A real exchange day goes over the bus, and every quote of continuous trading is found in the rebuilt book."""

import gzip
import re
import shutil
from pathlib import Path

import pytest
from sse_day import FOLDER
from support.example_runs import TIME_LIMIT_S, run_example

pytestmark = [pytest.mark.process, pytest.mark.timeout(TIME_LIMIT_S + 30)]

COUNTS = "54,735 orders, 27,135 trades, 4,847 quotes"


@pytest.fixture
def changed_set(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the set, to be changed."""
    folder = tmp_path / FOLDER
    shutil.copytree(data_root / FOLDER, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    return folder


def rewrite(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(lines).encode(), compresslevel=1))


def read_lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)


@pytest.fixture(scope="module")
def reports(data_root: Path) -> dict[str, str]:
    """What a run of all ways printed about each."""
    run = run_example("exchange_day.py", data_root, "--all")
    assert (run.code, run.errors, run.left) == (0, "", []), run
    parts = re.split(r"^(\w+)\n", run.output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check_found_all(report: str) -> None:
    assert "  4,847 of 4,847 quotes equal the rebuilt book, all ten levels\n" in report
    assert f"  read {COUNTS}; " in report


def test_every_quote_is_found_while_the_day_goes_on(reports):
    check_found_all(reports["live"])
    assert "killed" not in reports["live"]


def test_every_quote_is_found_when_the_publisher_is_killed_in_mid_day(reports):
    check_found_all(reports["kill"])
    killed = re.search(r"publisher (\d+) is killed behind (.+)\n", reports["kill"])
    second = re.search(r"publisher (\d+) goes on behind (.+)\n", reports["kill"])
    assert killed is not None
    assert second is not None
    assert killed[1] != second[1]
    assert killed[2] == second[2] != COUNTS
    assert int(killed[2].split(" ")[0].replace(",", "")) >= 54_735 // 2
    assert "moved to a new publisher's rings 1 time\n" in reports["kill"]


def test_every_quote_is_found_in_the_log_when_the_day_is_over(reports):
    check_found_all(reports["historical"])
    assert "all of them from the log" in reports["historical"]


def test_a_subscriber_that_cannot_follow_gets_the_rest_from_the_log_and_finds_every_quote(data_root):
    run = run_example("exchange_day.py", data_root / FOLDER, "--seconds", 0, "--slots", 256)
    assert (run.code, run.errors, run.left) == (0, "", []), run
    check_found_all(run.output)
    refilled = re.search(r"; ([\d,]+) of them from the log", run.output)
    assert refilled is not None
    assert int(refilled[1].replace(",", "")) > 0


@pytest.mark.parametrize("way", [(), ("--historical",)], ids=["live", "historical"])
def test_a_quote_that_no_book_shows_is_told_and_the_run_fails(changed_set, way):
    path = changed_set / "snapshot.csv.gz"
    lines = read_lines(path)
    columns = lines[0].strip().split(",")
    trading = [number for number, line in enumerate(lines) if line.split(",")[columns.index("InstruStatus")] == "TRADE"]
    cells = lines[trading[1_000]].split(",")
    place = columns.index("AskVolume10")
    cells[place] = str(int(cells[place]) + 100)
    lines[trading[1_000]] = ",".join(cells)
    rewrite(path, lines)
    run = run_example("exchange_day.py", changed_set, "--seconds", 0, *way)
    assert (run.code, run.left) == (1, [])
    assert "  4,846 of 4,847 quotes" in run.output
    assert f"first not found: the quote after trade {int(cells[columns.index('TradNumber')]):,}\n" in run.output


def test_a_process_that_fails_ends_the_run_and_leaves_nothing(changed_set):
    """An order that is deleted but was never there: the subscriber cannot apply it."""
    path = changed_set / "entrust.csv.gz"
    lines = read_lines(path)
    del lines[1]
    rewrite(path, lines)
    run = run_example("exchange_day.py", changed_set, "--seconds", 0)
    assert (run.code, run.left) == (1, [])
    assert "KeyError" in run.errors


@pytest.mark.parametrize("made", [(), ("snapshot.csv.gz",)], ids=["empty", "no csv"])
def test_a_folder_that_is_not_the_set_is_refused_with_what_is_missing(tmp_path, made):
    (tmp_path / FOLDER).mkdir()
    for name in made:
        (tmp_path / FOLDER / name).write_bytes(b"not gzip")
    run = run_example("exchange_day.py", tmp_path)
    assert (run.code, run.output, run.left) == (2, "", [])
    assert f"{tmp_path} is not the set" in run.errors
    assert ("Not a gzipped file" if made else f"{tmp_path / FOLDER / 'snapshot.csv.gz'} is missing") in run.errors
    assert "Traceback" not in run.errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kill", "--historical"), "not allowed with argument"),
        (("--seconds", "-1"), "--seconds: 0 to 120 are possible, not -1"),
        (("--slots", "100"), "--slots: a power of two is expected, not 100"),
    ],
    ids=["two ways", "seconds", "slots"],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, words):
    run = run_example("exchange_day.py", tmp_path, *options)
    assert (run.code, run.output) == (2, "")
    assert words in run.errors
