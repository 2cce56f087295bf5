"""`ringmain demo`: it proves that nothing is lost, and whatever ends it, it leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ringmain.tools.exit_codes import FAILED, INTERRUPTED, OK, USAGE
from support.command import SHM, TIMEOUT_S, environment, facts, finish, on_terminal, ringmain, segments, started, stop
from support.logs import wait_until

pytestmark = pytest.mark.process

SHORT = ("--seconds", "2", "--rate", "5000")
DEMO_S = 120.0  # for a whole demo, on a machine that has much else to do
TOPICS = {"orders", "trades", "quotes", "accounts"}
READ = {("tape", "trades"), ("auditor", "orders"), ("late joiner", "quotes"), ("late joiner", "accounts")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demo makes its temporary folder."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def _clear_away() -> Iterator[None]:
    """What a demo left that a failing test has ended."""
    before = {path.name for path in SHM.glob("ringmain.demo-*")}
    yield
    for path in SHM.glob("ringmain.demo-*"):
        pid = int(path.name.removeprefix("ringmain.demo-").partition("-")[0])
        if path.name not in before and not psutil.pid_exists(pid):
            path.unlink(missing_ok=True)


def demo_in(folder: Path) -> dict[str, str]:
    return environment(TMPDIR=str(folder))


def processes_of(pid: int) -> list[psutil.Process]:
    """The processes of the demo with that pid: they have its bus's name in their command line."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if any(word.startswith(f"demo-{pid}-") for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def check_nothing_left(pid: int, folder: Path) -> None:
    assert processes_of(pid) == []
    assert segments(f"demo-{pid}-") == {}
    assert list(folder.iterdir()) == []


# --- to the end -------------------------------------------------------------------------------------------------------


def test_the_demo_proves_that_nothing_is_lost_double_or_altered(folder: Path) -> None:
    with started("demo", *SHORT, "--json", env=demo_in(folder)) as process:
        out, err = process.communicate(timeout=DEMO_S)
        assert (process.returncode, err) == (OK, b"")
        check_nothing_left(process.pid, folder)
    summary = json.loads(out)
    assert summary["ok"]
    assert summary["problems"] == []
    assert (summary["gap_count"], summary["repeat_count"], summary["lost_count"]) == (0, 0, 0)
    assert summary["published"].keys() == TOPICS
    assert summary["published_count"] == sum(summary["published"].values()) > 0
    assert {(reader["name"], reader["topic"]) for reader in summary["readers"]} == READ
    for reader in summary["readers"]:
        assert reader["read_count"] == summary["published"][reader["topic"]]
        assert (reader["gap_count"], reader["repeat_count"]) == (0, 0)
        assert reader["name"] != "late joiner" or reader["from_log_count"] > 0
    assert summary["recovered_from_log_count"] > 0
    assert summary["seconds"] >= 2


def test_it_tells_people_what_happens_and_what_came_of_it(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "kept"
    with started("demo", *SHORT, "--seed", "7", "--data-dir", data, env=demo_in(folder)) as process:
        out, err = process.communicate(timeout=DEMO_S)
        assert (process.returncode, err) == (OK, b"")
        check_nothing_left(process.pid, folder)
    text = " ".join(out.decode().split())
    assert re.search(r"publisher \d+ opens the bus", text)
    assert re.search(r"SIGKILL: publisher \d+ is dead after [\d,]+ records", text)
    assert re.search(r"recovers [\d,]+ from the log and [\d,]+ from the rings", text)
    assert "every subscriber has found the new rings and reads on" in text
    assert re.search(r"The exchange published [\d,]+ records in 4 topics", text)
    assert "Published and lost: 0." in text
    assert re.search(r"All is well: gaps 0, repeats 0, in \d+ seconds\.", text)
    assert f"The log is in {data}; look at it with: ringmain log verify {data}" in text
    assert "\x1b" not in out.decode()
    shown = facts("log", "verify", data)
    assert shown["damage"] == []
    published = re.search(r"The exchange published ([\d,]+) records", text)
    assert published is not None
    assert shown["record_count"] == int(published[1].replace(",", ""))


def test_what_is_wrong_with_the_log_is_found(folder: Path, tmp_path: Path) -> None:
    """A demo that cannot fail proves nothing: here one of its records is altered while it runs."""
    program = tmp_path / "altered.py"
    program.write_text(
        "import ringmain.tools.demo_check as check\n"
        "from ringmain.tools.exchange import Exchange\n"
        "class Altered(Exchange):\n"
        "    def step(self, events):\n"
        "        made = super().step(events)\n"
        "        if len(made['orders']):\n"
        "            made['orders'] = made['orders'].copy()\n"
        "            made['orders']['quantity'][0] += 1\n"
        "        return made\n"
        "check.Exchange = Altered\n"
        "from ringmain.tools.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-P", program, "demo", *SHORT, "--json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=DEMO_S, env=demo_in(folder))
    summary = json.loads(done.stdout)
    assert done.returncode == FAILED
    assert not summary["ok"]
    assert any("orders" in problem and "not what the exchange made" in problem for problem in summary["problems"])
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (100, 40)])
def test_the_live_view_fits_its_terminal_and_gives_it_back(columns: int, lines: int, folder: Path) -> None:
    environment = {"TMPDIR": str(folder)}
    with on_terminal("demo", *SHORT, columns=columns, lines=lines, env=environment) as terminal:
        assert terminal.process.wait(DEMO_S) == OK
        assert terminal.finish() == OK
        check_nothing_left(terminal.process.pid, folder)
        view, _, summary = terminal.text.rpartition("\nThe exchange published")
        assert "what happens" in view
        assert "late joiner" in view
        assert max(map(len, summary.splitlines())) <= columns
        assert "All is well: gaps 0, repeats 0" in summary
        assert terminal.raw.count("\x1b[?1049h") == terminal.raw.count("\x1b[?1049l") == 1
        assert terminal.attributes_after == terminal.attributes_before


# --- ended before -----------------------------------------------------------------------------------------------------

# What the demo has told when it is ended: at its start, in the middle, during the outage, and afterwards.
MOMENTS = ("opens the bus", "a late joiner reads", "SIGKILL", "recovers")


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_nothing_behind(moment: str, folder: Path) -> None:
    with started("demo", "--seconds", "4", "--rate", "5000", env=demo_in(folder)) as process:
        _read_until(process, moment)
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
        assert code == INTERRUPTED
        assert err == "interrupted; processes, shared memory and temporary files are gone\n"
        check_nothing_left(process.pid, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_it_in_order_too(number: signal.Signals, folder: Path) -> None:
    with started("demo", "--seconds", "60", "--rate", "5000", env=demo_in(folder)) as process:
        _read_until(process, "read: trades once published")
        process.send_signal(number)
        code, _, err = finish(process)
        assert code == 128 + number
        assert "Traceback" not in err
        check_nothing_left(process.pid, folder)


def test_ctrl_c_on_the_live_view_leaves_nothing_behind_and_the_terminal_as_before(folder: Path) -> None:
    """Ctrl-C as the terminal sends it, twice: while a child hangs, the second one cannot stop the cleaning up."""
    with on_terminal("demo", "--seconds", "60", "--rate", "5000", env={"TMPDIR": str(folder)}) as terminal:
        terminal.wait_for("read: trades once published")
        pid = terminal.process.pid
        (publisher,) = (child for child in processes_of(pid) if "ringmain.tools.demo_publisher" in child.cmdline())
        stop(publisher.pid)
        terminal.type("\x03")
        wait_until(lambda: processes_of(pid) == [publisher], TIMEOUT_S)
        terminal.type("\x03")
        assert terminal.finish() == INTERRUPTED
        check_nothing_left(pid, folder)
        assert "interrupted" in terminal.text
        assert terminal.attributes_after == terminal.attributes_before


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ctrl_c_amid_the_start_of_a_child_leaves_nothing_behind(count: int, folder: Path, tmp_path: Path) -> None:
    """It comes when the child is there, and the demo does not have it yet."""
    program = tmp_path / "interrupted.py"
    program.write_text(
        "import signal, subprocess\n"
        "import ringmain.tools.demo_child\n"
        "started = []\n"
        "class Interrupted(subprocess.Popen):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        started.append(self)\n"
        f"        if len(started) == {count}:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "subprocess.Popen = Interrupted\n"
        "from ringmain.tools.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-P", program, "demo", *SHORT]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=demo_in(folder)) as process:
        assert process.wait(DEMO_S) == INTERRUPTED
        check_nothing_left(process.pid, folder)


def test_children_of_a_demo_that_was_killed_end_by_themselves(folder: Path) -> None:
    with started("demo", "--seconds", "60", "--rate", "5000", env=demo_in(folder)) as process:
        _read_until(process, "read: trades once published")
        assert len(processes_of(process.pid)) == 3
        process.kill()
        process.wait()
        wait_until(lambda: not processes_of(process.pid) and not segments(f"demo-{process.pid}-"), TIMEOUT_S)


def test_a_child_that_fails_ends_the_demo_with_its_last_words(folder: Path) -> None:
    with started("demo", "--seconds", "60", "--rate", "5000", env=demo_in(folder)) as process:
        _read_until(process, "read: trades once published")
        (auditor,) = (child for child in processes_of(process.pid) if "auditor" in child.cmdline())
        auditor.kill()
        code, _, err = finish(process)
        assert code == FAILED
        assert f"ringmain demo: the auditor process {auditor.pid} ended with exit code -9" in err
        check_nothing_left(process.pid, folder)


def _read_until(process: subprocess.Popen[bytes], words: str) -> None:
    assert process.stdout is not None
    told = b""
    while words.encode() not in told:
        line = process.stdout.readline()
        assert line, told.decode()
        told += line


# --- what it is asked -------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = ringmain("demo", *SHORT, "--data-dir", tmp_path)
    assert done.returncode == USAGE
    assert f"--data-dir: {tmp_path} is not empty" in done.stderr.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("options", ["--seconds 0", "--seconds nan", "--rate 0", "--seed -1", "--rate x"])
def test_options_that_make_no_sense_are_refused(options: str) -> None:
    assert ringmain("demo", *options.split()).returncode == USAGE
