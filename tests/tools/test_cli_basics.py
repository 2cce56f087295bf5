"""What all commands have in common: help, exit codes, one line for an error, pipes that close, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus.errors import AttachError, NotFound
from ringmain.storage import SchemaError
from ringmain.tools.cli import app
from ringmain.tools.exit_codes import EXIT_CODES_HELP, FAILED, INTERRUPTED, MISSING, OK, TERMINATED, USAGE, explain
from support.children import Children
from support.command import COMMAND, TIMEOUT_S, environment, finish, ringmain, started
from support.logs import PAIRS, POINTS, Builder, wait_until
from support.streams import readers

pytestmark = pytest.mark.process

BENCHES = (
    "publish",
    "latency",
    "throughput",
    "fanout",
    "log",
    "append",
    "recover",
    "wake",
    "catchup",
    "delayed",
    "lanes",
    "resumable",
    "gateway",
    "cluster",
    "all",
)
STORE_BENCHES = ("memtable", "put", "get", "scan", "recover", "compaction", "open", "backup", "all")
GROUPS = ("", "log", "store", "sstable", "manifest", "cluster", "bench", "bench store")
COMMANDS = (
    *("demo", "publish", "subscribe", "ls", "inspect", "top", "clean", "serve", "health", "gateway", "token"),
    *("cluster node", "cluster up", "cluster status", "cluster switchover"),
    *("cluster certificates", "cluster server-config", "cluster seed"),
    *("log dump", "log verify", "log repair"),
    *("store stats", "store dump", "store verify", "store repair", "store compact", "sstable dump", "manifest dump"),
    *("get", "scan", "export", "backup", "restore", "verify"),
    *(f"bench {name}" for name in BENCHES),
    *(f"bench store {name}" for name in STORE_BENCHES),
)
# All print facts as JSON on request, but for these: some have --format json, others run until they are stopped, or write files.
PRINT_FACTS = {*COMMANDS} - {"subscribe", "get", "scan", "serve", "gateway", "token"}
PRINT_FACTS -= {path for path in COMMANDS if path.startswith("cluster ")} - {"cluster status"}


def declared() -> Iterator[str]:
    """Every command there is, "log" and "log dump" alike."""

    def walk(command: Any, path: str) -> Iterator[str]:
        yield path
        for name in getattr(command, "commands", ()):
            yield from walk(command.get_command(None, name), f"{path} {name}".strip())

    return walk(app, "")


def test_there_are_these_commands() -> None:
    assert set(declared()) == {*GROUPS, *COMMANDS}


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*GROUPS, *COMMANDS], ids=lambda path: path or "ringmain")
def test_every_command_explains_itself(path: str) -> None:
    done = ringmain(*path.split(), "--help")
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (OK, b"")
    assert f"Usage: ringmain {path}".strip() in text
    assert max(map(len, text.splitlines())) <= 80
    assert ("--json" in text) == (path in PRINT_FACTS)
    if path and not path.startswith("bench") and path not in GROUPS:
        assert f"Example: ringmain {path}" in text
        assert "Exit codes: 0 all is well" in text


def test_help_has_a_short_name() -> None:
    assert ringmain("ls", "-h").stdout == ringmain("ls", "--help").stdout


def test_it_says_which_version_it_is() -> None:
    done = ringmain("--version")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (OK, f"ringmain {version('ringmain')}\n", b"")


@pytest.mark.parametrize("path", ["", "log", "store", "bench", "publish", "subscribe", "export", "log verify"])
def test_a_command_that_needs_more_shows_its_help(path: str) -> None:
    done = ringmain(*path.split())
    assert done.returncode == USAGE
    assert f"Usage: ringmain {path}".strip() in (done.stdout + done.stderr).decode()


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("ringmain")
    if not script.exists():
        pytest.skip("ringmain is not installed beside this Python")
    done = subprocess.run([script, "--help"], capture_output=True, check=True, env=environment())
    assert done.stdout == ringmain("--help").stdout


# --- loading ------------------------------------------------------------------------------------------------------------

RUN = """if True:
    import atexit, sys
    from ringmain.tools import cli
    atexit.register(lambda: print(*sys.modules, file=sys.stderr))
    cli.main()
"""


def loaded(*arguments: str) -> set[str]:
    """The modules that a run has loaded."""
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, env=environment())
    return set(done.stderr.split())


def test_a_command_does_not_wait_for_the_modules_of_others() -> None:
    modules = loaded("token", "--nosuch")
    assert "ringmain.tools.gateway_command" in modules
    assert not {"ringmain.tools.bench", "ringmain.tools.publishing", "ringmain.tools.demo"} & modules


def test_help_does_not_wait_for_optional_libraries() -> None:
    modules = loaded("--help")
    assert "ringmain.tools.bench" in modules
    assert not {"pyarrow", "pandas", "polars", "uvicorn", "websockets", "zstandard", "lz4", "lmdb", "zmq"} & modules


# --- exit codes and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("nosuch", USAGE, "No such command 'nosuch'"),
        ("--nosuch", USAGE, "No such option: --nosuch"),
        ("ls --nosuch", USAGE, "No such option: --nosuch"),
        ("ls more", USAGE, "unexpected extra argument"),
        ("subscribe a/b --format xml", USAGE, "'xml' is not one of 'table', 'csv', 'json', 'npy'"),
        ("subscribe a/b --count 0", USAGE, "greater than or equal to 1"),
        ("subscribe a", USAGE, "BUS/TOPIC is expected"),
        ("subscribe a/b --from yesterday", USAGE, "--from: latest, earliest, a sequence, or a time"),
        (
            "subscribe a/b --mode historical --from yesterday",
            USAGE,
            "--from: earliest, a sequence, or a time such as 20",
        ),
        ("subscribe a/b --mode historical --from latest", USAGE, "--from latest leaves nothing to read"),
        ("subscribe a/b --from 0", USAGE, "--from: a sequence from 1 on is expected, got 0"),
        (
            "subscribe a/b --until latest",
            USAGE,
            "--until: a sequence or a time such as 2023-02-01T09:30:00+08:00 is exp",
        ),
        (
            "subscribe a/b --until yesterday",
            USAGE,
            "--until: a sequence or a time such as 2023-02-01T09:30:00+08:00 is",
        ),
        (
            "restore a b --time yesterday",
            USAGE,
            "--time: a time such as 2023-02-01T09:30:00+08:00 is expected, got 'yes",
        ),
        (
            "restore a b --time latest",
            USAGE,
            "--time: a time such as 2023-02-01T09:30:00+08:00 is expected, got 'latest'",
        ),
        ("restore a b --time 5", USAGE, "--time: a time such as 2023-02-01T09:30:00+08:00 is expected, got '5'"),
        ("subscribe a/b --data-dir x", USAGE, "--data-dir is for --mode historical"),
        ("inspect A", USAGE, "bus name 'A': lower-case letters"),
        ("inspect a/b/c", USAGE, "BUS/TOPIC is expected"),
        ("top A", USAGE, "bus name 'A'"),
        ("clean A", USAGE, "bus name 'A'"),
        ("publish a/b --csv -", USAGE, "Missing option '--map'"),
        ("publish a/b --csv - --map nosuch.toml", USAGE, "those that ship are orders, trades, accounts, quotes"),
        ("publish a/trades --csv - --map nosuch.toml", MISSING, "nosuch.toml: No such file or directory"),
        ("subscribe nosuch/trades", MISSING, "no topic 'nosuch/trades' is open on this machine"),
        ("inspect nosuch", MISSING, "no bus 'nosuch' is open on this machine"),
        ("inspect nosuch/trades", MISSING, "no bus 'nosuch' is open on this machine"),
        ("top nosuch", MISSING, "no bus 'nosuch' is open on this machine"),
        ("clean nosuch", MISSING, "no bus 'nosuch' is open on this machine"),
        ("log verify nosuch", MISSING, "nosuch: holds no log"),
        ("log dump nosuch", MISSING, "nosuch: holds no log"),
        ("log repair nosuch", MISSING, "nosuch: holds no log"),
        ("store stats nosuch", MISSING, "nosuch: holds no store"),
        ("sstable dump nosuch", MISSING, "nosuch: No such file or directory"),
        ("manifest dump nosuch", MISSING, "nosuch: holds no store"),
        ("demo --seconds 1", USAGE, "greater than or equal to 2"),
    ],
)
def test_an_error_is_told_beside_the_result_and_by_the_exit_code(line: str, code: int, words: str) -> None:
    done = ringmain(*line.split())
    told = " ".join(done.stderr.decode().replace("│", " ").split())
    assert done.returncode == code
    assert words in told
    assert "Traceback" not in told
    assert done.stdout == b""


def test_the_exit_codes_are_what_scripts_rely_on() -> None:
    assert (OK, FAILED, USAGE, MISSING, INTERRUPTED, TERMINATED) == (0, 1, 2, 3, 130, 143)


def test_the_help_and_the_documentation_name_every_exit_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for code in (OK, FAILED, USAGE, MISSING, INTERRUPTED, TERMINATED):
        assert f" {code} " in EXIT_CODES_HELP
        assert f"\n| {code} | " in text
    assert "143 ended by SIGTERM (services: 0)" in " ".join(ringmain("top", "--help").stdout.decode().split())


def test_an_error_is_one_line_with_its_kind_as_exit_code() -> None:
    assert explain(NotFound("no bus")) == (MISSING, "no bus")
    assert explain(AttachError("damaged")) == (FAILED, "damaged")
    assert explain(SchemaError("no fields", source="a.toml")) == (FAILED, "a.toml: no fields")
    assert explain(FileNotFoundError(2, "No such file or directory", "a")) == (MISSING, "a: No such file or directory")
    assert explain(OSError(28, "No space left on device")) == (FAILED, "No space left on device")
    assert explain(ValueError("--rate: a number")) == (USAGE, "--rate: a number")
    assert explain(ModuleNotFoundError("it needs `pip install it`")) == (FAILED, "it needs `pip install it`")
    assert explain(ModuleNotFoundError("No module named 'mine'", name="mine")) is None
    assert explain(ZeroDivisionError()) is None  # a defect of ours: it is to be seen as one


def test_who_wants_to_know_where_an_error_comes_from_can_see_it() -> None:
    done = ringmain("inspect", "nosuch", env=environment(RINGMAIN_TRACEBACK="1"))
    assert b"Traceback" in done.stderr
    assert done.returncode != OK


# --- pipes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with more in it than a pipe holds."""
    builder = Builder(tmp_path / "log")
    builder.begin()
    for _ in range(10):
        builder.rows(POINTS, 5_000)
        builder.rows(PAIRS, 100)
    builder.close()
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "log dump DIR --topic points --limit 0",
        "log dump DIR --topic points --limit 0 --json",
        "subscribe test/points --mode historical --data-dir DIR",
        "subscribe test/points --mode historical --data-dir DIR --format csv",
        "subscribe test/points --mode historical --data-dir DIR --format json",
        "subscribe test/points --mode historical --data-dir DIR --format npy",
    ],
)
def test_a_reader_that_has_seen_enough_ends_it_quietly(line: str, log: Path) -> None:
    with started(*line.replace("DIR", str(log)).split()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert os.read(process.stdout.fileno(), 100)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == OK


@pytest.mark.parametrize("line", ["log verify DIR", "log verify DIR --json", "log dump DIR --frames"])
def test_a_reader_that_never_began_ends_it_quietly(line: str, log: Path) -> None:
    with started(*line.replace("DIR", str(log)).split()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == OK


def test_output_that_nobody_takes_is_no_fault() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "ls", "--json"], capture_output=True, check=False, env=environment()
    )
    assert (done.returncode, done.stderr) == (OK, b"")


def test_output_that_does_not_fit_is_a_fault(log: Path) -> None:
    for line in (
        "--help",
        "ls --json",
        f"log dump {log}",
        f"subscribe test/points --mode historical --data-dir {log} --format csv",
    ):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*COMMAND, *line.split()], stdout=full, stderr=subprocess.PIPE, check=False, env=environment()
            )
        assert done.returncode == FAILED
        assert done.stderr == b"ringmain: No space left on device\n"


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_ends_a_waiting_command_at_once(number: signal.Signals, code: int, bus_name: str) -> None:
    with Children() as children:
        writer = children.start()
        writer.run("writer = Writer(name, [POINTS])", name=bus_name)
        with started("subscribe", f"{bus_name}/points") as process, started("top", bus_name, "--json") as other:
            wait_until(lambda: bool(readers(f"{bus_name}/points")), TIMEOUT_S)
            assert other.stdout is not None
            assert json.loads(other.stdout.readline())["buses"][0]["bus"] == bus_name
            for command in (process, other):
                command.send_signal(number)
                got, _, err = finish(command)
                assert got == code
                assert "Traceback" not in err
        assert not readers(f"{bus_name}/points")  # it has taken its name off the list


def test_nothing_but_json_is_on_standard_output() -> None:
    assert json.loads(ringmain("ls", "--json").stdout).keys() == {"taken_ns", "buses"}
