"""`ringmain publish` and `ringmain subscribe`: what goes in as CSV comes out again, in every format, and nothing bad goes in."""

from __future__ import annotations

import csv
import gzip
import io
import json
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.storage import ACCOUNTS, Schema
from ringmain.tools.exit_codes import FAILED, INTERRUPTED, OK, USAGE
from support.children import Children
from support.command import (
    COMMAND,
    TIMEOUT_S,
    environment,
    facts,
    finish,
    on_terminal,
    private_shm,
    ringmain,
    ringmain_in,
    segments,
    started,
    stop,
    succeed,
)
from support.logs import PAIRS, log_rests, make_rows, wait_until
from support.streams import readers

pytestmark = pytest.mark.process

TICK = Schema("ticks", {"at_ns": "i8", "price": "f8", "size": "2u4", "name": "S12"})
SCHEMA = """
[topics.ticks.fields]
at_ns = { type = "i8", unit = "ns since the Unix epoch" }
price = "f8"
size = "2u4"
name = "S12"
"""
MAP = """
[fields]
at_ns = "at_ns"
price = "price"
size = {columns = ["size_0", "size_1"]}
name = "name"

[pace]
field = "at_ns"
"""
FIELDS = "at_ns,price,size,name"
HEADER = "at_ns,price,size_0,size_1,name\n"
START_NS = 1_700_000_000_000_000_000
TIME_STEP_NS = 3_600_000_000_000
NAMES = ("plain", "a, comma", 'a "quote"', "", "žluť")


def make_csv(count: int, first: int = 0) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for n in range(first, first + count):
        writer.writerow((START_NS + n * TIME_STEP_NS, (n - 7) / 8 + 0.1, n, n + 1, NAMES[n % len(NAMES)]))
    return HEADER + out.getvalue()


@pytest.fixture
def declared(tmp_path: Path) -> list[str]:
    """The options that say what a row is."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "map.toml").write_text(MAP)
    return ["--map", str(tmp_path / "map.toml"), "--schema", str(tmp_path / "schema.toml")]


@pytest.fixture
def log(tmp_path: Path, declared: list[str], bus_name: str) -> Path:
    """A log with a thousand ticks."""
    succeed(
        "publish",
        f"{bus_name}/ticks",
        "--csv",
        "-",
        *declared,
        "--data-dir",
        tmp_path / "data",
        stdin=make_csv(1000).encode(),
    )
    return tmp_path / "data"


def read(bus: str, log: Path, *options: str) -> str:
    return succeed("subscribe", f"{bus}/ticks", "--mode", "historical", "--data-dir", log, *options)


def sequences(lines: str) -> list[int]:
    return [json.loads(line)["sequence"] for line in lines.splitlines()]


def test_the_log_of_another_bus_is_refused(log: Path, bus_name: str) -> None:
    done = ringmain("subscribe", f"{bus_name}-other/ticks", "--mode", "historical", "--data-dir", log)
    assert (done.returncode, done.stdout) == (FAILED, b"")
    assert f"read it as {bus_name}/ticks, or give another data_dir" in done.stderr.decode()


# --- in and out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("source", ["file", "pipe"])
def test_a_csv_file_comes_out_as_it_went_in(
    source: str, packed: bool, tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    text = make_csv(1000)
    content = gzip.compress(text.encode()) if packed else text.encode()
    path = tmp_path / "ticks.csv"
    path.write_bytes(content if source == "file" else b"")
    given = str(path) if source == "file" else "-"
    with started(
        "publish", f"{bus_name}/ticks", "--csv", given, *declared, "--data-dir", tmp_path, "--json"
    ) as process:
        out, err = process.communicate(content if source == "pipe" else b"", TIMEOUT_S)
    assert (process.returncode, err) == (OK, b"")
    assert json.loads(out) == {
        "topic": f"{bus_name}/ticks",
        "published_count": 1000,
        "filtered_count": 0,
        "rejected_count": 0,
        "last_sequence": 1000,
        "durable_sequence": 1000,
        "seconds": json.loads(out)["seconds"],
        "rejects": None,
    }
    assert read(bus_name, tmp_path, "--format", "csv", "--fields", FIELDS) == text
    assert not segments(bus_name)


def test_a_publisher_waits_for_its_readers_and_their_end_is_its_end(
    tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    address, path = f"{bus_name}/ticks", tmp_path / "ticks.csv"
    path.write_text(make_csv(20_000))
    with started("publish", address, "--csv", path, *declared, "--readers", "1") as publisher:
        wait_until(lambda: any(name.endswith(".ctl") for name in segments(bus_name)), TIMEOUT_S)
        with started("subscribe", address, "--format", "csv", "--fields", FIELDS, "--open-timeout", "60") as subscriber:
            told = f"20,000 records of {address}, sequences 1 to 20,000\n"
            assert finish(subscriber) == (OK, make_csv(20_000), told)
        assert publisher.wait(TIMEOUT_S) == OK


def test_the_next_run_goes_on_with_the_next_sequence(log: Path, declared: list[str], bus_name: str) -> None:
    done = ringmain(
        "publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--data-dir", log, stdin=make_csv(5).encode()
    )
    assert b"published 5 records" in done.stdout
    assert b"last sequence 1,005, durable up to 1,005" in done.stdout
    assert sequences(read(bus_name, log, "--format", "json", "--from", "998")) == list(range(998, 1006))


def test_topics_that_ship_need_no_schema(tmp_path: Path, bus_name: str) -> None:
    names = ACCOUNTS.payload_dtype.names or ()
    (tmp_path / "map.toml").write_text("[fields]\n" + "".join(f'{name} = "{name}"\n' for name in names))
    text = ",".join(names) + "\n7,EUR,1700000000000000000,1,2,3,-4,-5,6\n"
    address, log = f"{bus_name}/accounts", ("--data-dir", tmp_path)
    succeed("publish", address, "--csv", "-", "--map", tmp_path / "map.toml", *log, stdin=text.encode())
    options = ("--format", "csv", "--fields", ",".join(names))
    assert succeed("subscribe", address, "--mode", "historical", *log, *options) == text


# --- formats ----------------------------------------------------------------------------------------------------------


def expected_rows() -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(make_csv(1000)))
    return [
        {
            "sequence": sequence,
            "at_ns": int(row["at_ns"]),
            "price": float(row["price"]),
            "size": [int(row["size_0"]), int(row["size_1"])],
            "name": row["name"],
        }
        for sequence, row in enumerate(rows, start=1)
    ]


def test_json_is_one_object_a_line(log: Path, bus_name: str) -> None:
    out = read(bus_name, log, "--format", "json", "--fields", f"sequence,{FIELDS}")
    assert [json.loads(line) for line in out.splitlines()] == expected_rows()


@pytest.mark.parametrize("target", ["pipe", "file", "output"])
@pytest.mark.parametrize("names", [("sequence", *FIELDS.split(",")), TICK.dtype.names])
def test_npy_is_an_array_that_numpy_loads(
    target: str, names: tuple[str, ...], log: Path, tmp_path: Path, bus_name: str
) -> None:
    path = tmp_path / "rows.npy"
    line = ["subscribe", f"{bus_name}/ticks", "--mode", "historical", "--data-dir", str(log), "--format", "npy"]
    line += ["--fields", ",".join(names)]
    if target == "pipe":
        with started(*line) as process:
            out, _ = process.communicate(timeout=TIMEOUT_S)
        path.write_bytes(out)
    elif target == "file":
        path.write_bytes(ringmain(*line).stdout)
    else:
        assert succeed(*line, "--output", path) == ""
    rows = np.load(path)
    assert rows.dtype.names == names
    assert len(rows) == 1000
    for row, expected in zip(rows, expected_rows(), strict=True):
        assert [row[name].tolist() for name in expected] == [*[*expected.values()][:-1], expected["name"].encode()]


def test_npy_without_rows_is_an_empty_array(log: Path, tmp_path: Path, bus_name: str) -> None:
    read(bus_name, log, "--format", "npy", "--from", "2100-01-01", "--output", str(tmp_path / "rows.npy"))
    assert np.load(tmp_path / "rows.npy").shape == (0,)


def test_npy_is_kept_off_a_terminal(log: Path, bus_name: str) -> None:
    line = ("subscribe", f"{bus_name}/ticks", "--mode", "historical", "--data-dir", log, "--format", "npy")
    with on_terminal(*line) as terminal:
        assert terminal.finish() == USAGE
        assert "--format npy is binary: name a file with --output, or use a pipe" in " ".join(terminal.text.split())


def test_a_table_lines_its_columns_up(log: Path, bus_name: str) -> None:
    out = read(bus_name, log, "--count", "3", "--fields", f"sequence,{FIELDS}")
    assert out.splitlines() == [
        "sequence               at   price   size  name",
        "       1  22:13:20.000000  -0.775  [0 1]  plain",
        "       2  23:13:20.000000   -0.65  [1 2]  a, comma",
        '       3  00:13:20.000000  -0.525  [2 3]  a "quote"',
    ]


def test_a_table_fits_its_terminal_and_says_what_it_leaves_out(log: Path, bus_name: str) -> None:
    line = ("subscribe", f"{bus_name}/ticks", "--mode", "historical", "--data-dir", log, "--count", "3")
    with on_terminal(*line, columns=50) as terminal:
        assert terminal.finish() == OK
        assert "no room for size, name: widen the terminal" in terminal.text
        table = [line for line in terminal.text.splitlines() if line.endswith(("price", "0.775", "0.65", "0.525"))]
    assert [len(line) for line in table] == [50] * 4


def test_nothing_in_a_record_steers_the_terminal(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    given = HEADER.encode() + b"1,1,1,1,\x1b[31mred\n"
    succeed("publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--data-dir", tmp_path, stdin=given)
    assert "\\x1b[31mred" in read(bus_name, tmp_path)
    assert "\x1b" not in read(bus_name, tmp_path)
    assert "\x1b[31mred" in read(bus_name, tmp_path, "--format", "csv")


# --- which rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--count 2", [1, 2]),
        ("--from 997", [997, 998, 999, 1000]),
        ("--from 5 --until 7", [5, 6, 7]),
        ("--from earliest --until 2", [1, 2]),
        ("--from 2100-01-01T00:00:00Z", []),
        ("--until 2000-01-01", []),
    ],
)
def test_the_past_is_read_from_where_to_where_one_likes(
    options: str, expected: list[int], log: Path, bus_name: str
) -> None:
    assert sequences(read(bus_name, log, "--format", "json", *options.split())) == expected


def test_a_time_that_was_read_finds_its_record_again(log: Path, bus_name: str) -> None:
    stamps = [json.loads(line)["timestamp_ns"] for line in read(bus_name, log, "--format", "json").splitlines()]
    middle = np.datetime64(stamps[500], "ns")
    found = sequences(read(bus_name, log, "--format", "json", "--from", f"{middle}Z"))
    assert found == [sequence for sequence, stamp in enumerate(stamps, start=1) if stamp >= stamps[500]]
    before = sequences(read(bus_name, log, "--format", "json", "--until", f"{middle}Z"))
    assert before + found == list(range(1, 1001))


@pytest.mark.parametrize("follow", ["published", "logged", "durable"])
def test_a_late_subscriber_begins_at_the_earliest_record_and_ends_with_the_bus(
    follow: str, tmp_path: Path, bus_name: str
) -> None:
    address = f"{bus_name}/pairs"
    with Writer(bus_name, [PAIRS], data_dir=tmp_path, slots=64) as writer:
        rows = make_rows(PAIRS, 1, 1000)[["left"]].astype(PAIRS.payload_dtype)
        writer["pairs"].wait(writer["pairs"].publish_batch(rows), "durable", TIMEOUT_S)
        line = ("subscribe", address, "--from", "earliest", "--follow", follow, "--format", "json")
        with started(*line) as subscriber:
            wait_until(lambda: [entry["follow"] for entry in readers(address).values()] == [follow], TIMEOUT_S)
            writer["pairs"].publish_batch(rows[:10])
            writer.close()
            code, out, err = finish(subscriber)
    assert (code, sequences(out)) == (OK, list(range(1, 1011)))
    assert err.startswith(f"1,010 records of {address}, sequences 1 to 1,010, ")  # and how many came from the log


def test_a_count_ends_a_live_subscriber(tmp_path: Path, bus_name: str) -> None:
    with Writer(bus_name, [PAIRS]) as writer:
        writer["pairs"].publish_batch(np.zeros(5, PAIRS.payload_dtype))
        done = ringmain(
            "subscribe", f"{bus_name}/pairs", "--from", "earliest", "--count", "3", "--format", "json", "--quiet"
        )
    assert (done.returncode, sequences(done.stdout.decode()), done.stderr) == (OK, [1, 2, 3], b"")


def test_records_that_are_gone_for_good_are_counted_and_are_a_failure(bus_name: str) -> None:
    with (
        Writer(bus_name, [PAIRS], slots=64) as writer,
        started("subscribe", f"{bus_name}/pairs", "--from", "earliest", "--format", "json") as subscriber,
    ):
        writer["pairs"].publish_batch(np.zeros(1, PAIRS.payload_dtype))
        assert subscriber.stdout is not None
        assert sequences(subscriber.stdout.readline().decode()) == [1]
        stop(subscriber.pid)
        writer["pairs"].publish_batch(np.zeros(1000, PAIRS.payload_dtype))
        subscriber.send_signal(signal.SIGCONT)
        writer.close()
        code, out, err = finish(subscriber)
    found = sequences(out)
    assert code == FAILED
    assert found[-1] == 1001
    lost = 1000 - len(found)
    assert lost >= 1000 - 64
    assert f"{lost:,} LOST: overwritten in the ring before they were read, and in no log" in err


def test_a_reliable_subscriber_misses_nothing(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    """It holds the publisher back, and that for as long as nobody takes what it writes."""
    address = f"{bus_name}/ticks"
    with (
        started("subscribe", address, "--reliable", "--format", "json", "--open-timeout", "60") as subscriber,
        started("publish", address, "--csv", "-", *declared, "--readers", "1", "--slots", "16") as publisher,
    ):
        assert publisher.stdin is not None
        publisher.stdin.write(make_csv(2000).encode())
        publisher.stdin.flush()
        wait_until(lambda: watermark(address) > 0, TIMEOUT_S)
        publisher.stdin.close()
        publisher.stdin = None
        code, out, _ = finish(subscriber)
        assert publisher.wait(TIMEOUT_S) == OK
    assert (code, sequences(out)) == (OK, list(range(1, 2001)))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_ctrl_c_in_the_middle_of_a_row_lets_it_be_finished(
    form: str, unbuffered: str, log: Path, declared: list[str], bus_name: str
) -> None:
    """The pipe is full, and the subscriber stands in the middle of a row when the signal comes."""
    rest = make_csv(9000, first=1000).encode()
    succeed("publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--data-dir", log, stdin=rest)
    line = ("subscribe", f"{bus_name}/ticks", "--mode", "historical", "--data-dir", log, "--format", form)
    with started(*line, env=environment(PYTHONUNBUFFERED=unbuffered)) as process:
        wait_until(lambda: "pipe" in Path(f"/proc/{process.pid}/wchan").read_text(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
    lines = out.splitlines()
    assert out.endswith("\n")
    if form == "json":
        rows = [json.loads(line)["sequence"] for line in lines]
    else:
        rows = [int(line.replace(",", " ").split()[0]) for line in lines[1:]]
        assert len(lines[-1].split("," if form == "csv" else None)) >= 6
    assert rows == list(range(1, len(rows) + 1))
    assert code == INTERRUPTED
    assert err == f"{len(rows):,} records of {bus_name}/ticks, sequences 1 to {len(rows):,}; interrupted\n"


# --- bad rows ---------------------------------------------------------------------------------------------------------


BAD = make_csv(10) + f"{START_NS},not a number,1,2,x\n" + make_csv(5, first=10).removeprefix(HEADER) + "1,2,3\n"


def test_a_bad_row_stops_the_run_with_its_line(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    (tmp_path / "ticks.csv").write_text(BAD)
    line = (
        "publish",
        f"{bus_name}/ticks",
        "--csv",
        tmp_path / "ticks.csv",
        *declared,
        "--data-dir",
        tmp_path,
        "--json",
    )
    done = ringmain(*line)
    assert done.returncode == FAILED
    told = done.stderr.decode()
    assert told.startswith(f"ringmain: {tmp_path}/ticks.csv, line 12, column price: 'not a number' is")
    assert told.count("\n") == 1
    tally = json.loads(done.stdout)
    assert (tally["published_count"], tally["rejected_count"], tally["durable_sequence"]) == (10, 1, 10)
    assert read(bus_name, tmp_path, "--format", "csv", "--fields", FIELDS) == make_csv(10)


def test_bad_rows_are_set_aside_where_that_is_asked_for(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    rejects = tmp_path / "rejects.csv"
    line = ("publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--data-dir", tmp_path, "--rejects", rejects)
    done = ringmain(*line, stdin=BAD.encode())
    assert done.returncode == OK
    assert b"published 15 records" in done.stdout
    assert b"filtered 0, rejected 2" in done.stdout
    assert done.stderr.decode() == f"the rejected rows are in {rejects}\n"
    aside = list(csv.DictReader(rejects.read_text().splitlines()))
    assert [row["line"] for row in aside] == ["12", "18"]
    assert [row["row"] for row in aside] == [f"{START_NS},not a number,1,2,x", "1,2,3"]
    assert read(bus_name, tmp_path, "--format", "csv", "--fields", FIELDS) == make_csv(15)


def test_rows_that_the_map_leaves_out_are_counted(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    with (tmp_path / "map.toml").open("a") as file:
        file.write('[filter]\nname = ["plain"]\n')
    done = ringmain("publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--json", stdin=make_csv(10).encode())
    tally = json.loads(done.stdout)
    assert (tally["published_count"], tally["filtered_count"], tally["durable_sequence"]) == (2, 8, None)


def test_an_input_that_breaks_off_is_named_after_its_good_rows(
    tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    packed = gzip.compress(make_csv(1000).encode())[:-200]
    done = ringmain("publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--data-dir", tmp_path, stdin=packed)
    assert done.returncode == FAILED
    assert done.stderr.decode().startswith(
        f"ringmain: standard input, byte {len(packed)}: the gzip data end in the middle"
    )
    out = read(bus_name, tmp_path, "--format", "csv", "--fields", FIELDS)
    assert len(out) > len(HEADER)
    assert make_csv(1000).startswith(out)


def test_an_input_without_a_header_row_is_a_fault(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    (tmp_path / "ticks.csv").touch()
    done = ringmain("publish", f"{bus_name}/ticks", "--csv", tmp_path / "ticks.csv", *declared)
    assert done.returncode == FAILED
    assert done.stderr.decode() == f"ringmain: {tmp_path / 'ticks.csv'}, byte 0: the file has no header row\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fields]\n", "at_ns"),
        (MAP.replace('"price"', '"cost"'), "cost"),
        (MAP + "[nonsense]\n", "nonsense"),
        ("not toml", "line 1"),
    ],
)
def test_a_map_that_does_not_fit_publishes_nothing(
    text: str, words: str, tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    (tmp_path / "map.toml").write_text(text)
    done = ringmain(
        "publish",
        f"{bus_name}/ticks",
        "--csv",
        "-",
        *declared,
        "--data-dir",
        tmp_path / "data",
        stdin=make_csv(3).encode(),
    )
    assert done.returncode == FAILED
    told = done.stderr.decode().splitlines()[-1]
    assert f"{tmp_path}/map.toml" in told
    assert words in told
    assert not segments(bus_name)


# --- pace, signals, faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", [("--rate", "0.001"), ("--speed", "0.000001")], ids=["rate", "speed"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_paced_run_waits_and_a_signal_ends_it_in_good_order(
    pace: tuple[str, str], number: signal.Signals, code: int, tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    """The second row is due in minutes: only the first is published, whenever the signal comes."""
    address = f"{bus_name}/ticks"
    with started("publish", address, "--csv", "-", *declared, *pace, "--data-dir", tmp_path, "--json") as process:
        assert process.stdin is not None
        process.stdin.write(make_csv(1000).encode())
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: watermark(address) == 1, TIMEOUT_S)
        process.send_signal(number)
        got, out, err = finish(process)
    assert (got, err) == (code, "")
    tally = json.loads(out)
    assert (tally["published_count"], tally["last_sequence"], tally["durable_sequence"]) == (1, 1, 1)
    assert not segments(bus_name)
    assert sequences(read(bus_name, tmp_path, "--format", "json")) == [1]


def watermark(address: str, name: str = "published") -> int:
    """What `ringmain ls` says; 0 while the topic is not open."""
    topics = {f"{bus['bus']}/{topic['topic']}": topic for bus in facts("ls")["buses"] for topic in bus["topics"]}
    return (topics[address][name] or 0) if address in topics else 0


def test_a_fast_pace_publishes_everything(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    for pace in (("--rate", "1e6"), ("--speed", "1e12")):
        done = ringmain(
            "publish", f"{bus_name}/ticks", "--csv", "-", *declared, *pace, "--json", stdin=make_csv(50).encode()
        )
        assert json.loads(done.stdout)["published_count"] == 50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--rate 1 --speed 1", "rate or speed, not both"),
        ("--rate 0", "rate must be a number above 0"),
        ("--speed nan", "speed must be a number above 0"),
        ("--slots 1000", "a power of two is expected"),
        ("--wait durable", "nothing is durable without --data-dir"),
        ("--wait durable --sync never --data-dir nosuch", "nothing is known to be durable with --sync never"),
    ],
)
def test_options_that_make_no_sense_publish_nothing(
    options: str, words: str, declared: list[str], bus_name: str
) -> None:
    done = ringmain(
        "publish", f"{bus_name}/ticks", "--csv", "-", *declared, *options.split(), stdin=make_csv(3).encode()
    )
    assert (done.returncode, done.stdout) == (USAGE, b"")
    assert words in done.stderr.decode()
    assert not segments(bus_name)


def test_speed_needs_a_recorded_time(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    (tmp_path / "map.toml").write_text(MAP.partition("[pace]")[0])
    done = ringmain("publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--speed", "1", stdin=make_csv(3).encode())
    assert done.returncode == USAGE
    assert b"names no recorded time" in done.stderr


def test_rows_that_must_be_durable_are_so_before_more_are_read(
    tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    """The log can write no more: the run ends, although there may be more to come from its input."""
    line = (
        "publish",
        f"{bus_name}/ticks",
        "--csv",
        "-",
        *declared,
        "--wait",
        "durable",
        "--data-dir",
        tmp_path,
        "--json",
    )
    with started(*line) as process:
        assert process.stdin is not None
        process.stdin.write(make_csv(3).encode())
        process.stdin.flush()
        wait_until(lambda: watermark(f"{bus_name}/ticks", "durable") == 3, TIMEOUT_S)
        wait_until(lambda: log_rests(tmp_path), TIMEOUT_S)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        process.stdin.write(make_csv(2, first=3).removeprefix(HEADER).encode())
        process.stdin.flush()
        assert process.wait(TIMEOUT_S) == FAILED
        assert process.stderr is not None
        assert process.stdout is not None
        assert "File too large" in process.stderr.read().decode()
        tally = json.loads(process.stdout.read())
        assert (tally["published_count"], tally["durable_sequence"]) == (5, None)
    assert sequences(read(bus_name, tmp_path, "--format", "json"))[:3] == [1, 2, 3]


def test_a_bus_has_one_publisher(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    with Children() as children:
        writer = children.start()
        writer.run("writer = Writer(name, [POINTS])", name=bus_name)
        done = ringmain("publish", f"{bus_name}/ticks", "--csv", "-", *declared, stdin=make_csv(3).encode())
        assert done.returncode == FAILED
        assert f"already has a writer, process {writer.pid}" in done.stderr.decode()
        assert writer.ask("writer['points'].publish(1, 2, b'x')") == 1  # and is not disturbed


def test_another_schema_under_the_same_name_is_refused(
    log: Path, tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA.replace('"f8"', '"f4"'))
    done = ringmain(
        "publish", f"{bus_name}/ticks", "--csv", "-", *declared, "--data-dir", log, stdin=make_csv(3).encode()
    )
    assert done.returncode == FAILED
    assert "price" in done.stderr.decode()
    assert len(read(bus_name, log, "--format", "csv").splitlines()) == 1001


def test_shared_memory_that_is_full_is_told_at_once(declared: list[str], bus_name: str) -> None:
    private = private_shm("size=1m")
    done = ringmain_in(private, "publish", f"{bus_name}/ticks", "--csv", "/dev/null", *declared, "--slots", "1048576")
    assert done.returncode == FAILED
    assert "shared memory is full" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_progress_is_shown_on_a_terminal_and_leaves_no_trace(
    tmp_path: Path, declared: list[str], bus_name: str
) -> None:
    (tmp_path / "ticks.csv").write_text(make_csv(5000))
    line = ("publish", f"{bus_name}/ticks", "--csv", tmp_path / "ticks.csv", *declared, "--rate", "5000")
    with on_terminal(*line) as terminal:
        assert terminal.finish() == OK
        assert "publishing" in terminal.text
        assert "100%" in terminal.text or "9" in terminal.text
        assert "published 5,000 records" in terminal.text.splitlines()[-2]


def test_a_pipeline_of_both_does_what_a_shell_user_expects(tmp_path: Path, declared: list[str], bus_name: str) -> None:
    """A log becomes CSV and another bus's log, row for row."""
    source, target = f"{bus_name}/ticks", f"{bus_name}-copy/ticks"
    succeed("publish", source, "--csv", "-", *declared, "--data-dir", tmp_path / "a", stdin=make_csv(500).encode())
    read_it = [
        *COMMAND,
        "subscribe",
        source,
        "--mode",
        "historical",
        "--data-dir",
        str(tmp_path / "a"),
        "--format",
        "csv",
    ]
    write_it = [*COMMAND, "publish", target, "--csv", "-", *declared, "--data-dir", str(tmp_path / "b"), "--json"]
    with subprocess.Popen(read_it, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()) as first:
        second = subprocess.run(write_it, stdin=first.stdout, capture_output=True, check=True, env=environment())
    assert first.returncode == OK
    assert json.loads(second.stdout)["published_count"] == 500
    out = succeed(
        "subscribe", target, "--mode", "historical", "--data-dir", tmp_path / "b", "--format", "csv", "--fields", FIELDS
    )
    assert out == make_csv(500)
