"""`ringmain export`: a topic as a file for other programs, whole or not at all, from a store by key or from a log."""

from __future__ import annotations

import csv
import datetime
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.storage import LogReader, Schema, StoreSettings, to_arrow
from ringmain.tools import column_formats, exporting
from ringmain.tools.exit_codes import FAILED, INTERRUPTED, MISSING, OK, USAGE
from support.command import environment, facts, on_terminal, private_shm, ringmain, started, succeed
from support.logs import POINTS, START_NS, Builder, check_rows, flip, wait_until
from support.stored import AT_NS, BOOK, EXPECTED, KEYS, ROUND, TAPE, fill, open_store, price_of, put_round

pytestmark = pytest.mark.process

COLUMNS = ["parquet", "arrow"]  # which need pyarrow
TARGETS = ["csv", "npy", *COLUMNS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stored")
    fill(directory)
    return directory


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("logged")
    builder = Builder(directory / "log")
    builder.begin()
    for _ in range(10):
        builder.rows(POINTS, 100)
    builder.close()
    return directory


def needs(target: str) -> None:
    if target in COLUMNS:
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install ringmain[arrow]")


def read(path: Path) -> list[dict[str, Any]]:
    """A file's rows as that kind of file has them."""
    if path.suffix == ".csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    if path.suffix == ".npy":
        rows = np.load(path)
        return [dict(zip(rows.dtype.names, row.tolist(), strict=True)) for row in rows]
    return table_of(path).to_pylist()


def table_of(path: Path) -> Any:
    from pyarrow import feather, parquet

    return parquet.read_table(path) if path.suffix == ".parquet" else feather.read_table(path)


def prices(rows: list[dict[str, Any]]) -> list[int]:
    return [int(row["price"].scaleb(4) if isinstance(row["price"], Decimal) else row["price"]) for row in rows]


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_topic_of_a_store_is_written_by_key(target: str, store: Path, tmp_path: Path) -> None:
    needs(target)
    path = tmp_path / f"book.{target}"
    shown = facts("export", store, "book", path)
    assert (shown["path"], shown["topic"], shown["source"]) == (str(path), "book", "store")
    assert (shown["row_count"], shown["file_bytes"]) == (len(EXPECTED), path.stat().st_size)
    assert prices(read(path)) == [row[2] for row in EXPECTED]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("target", COLUMNS)
def test_a_file_of_columns_has_the_types_that_the_units_say(target: str, store: Path, tmp_path: Path) -> None:
    needs(target)
    path = tmp_path / f"book.{target}"
    succeed("export", store, "book", path)
    table = table_of(path)
    assert table.schema.equals(to_arrow(np.empty(0, BOOK.dtype), BOOK).schema)
    assert Schema.from_json(table.schema.metadata[b"ringmain.schema"]) == BOOK
    place = KEYS.index((7, b"XETR"))
    row = table.to_pylist()[place - 1]  # one before it is deleted
    assert (row["venue"], row["price"]) == ("XETR", Decimal(price_of(place)).scaleb(-4))
    assert (row["at_ns"].value, row["bids"]) == (AT_NS + place, [place, -place, 0])


@pytest.mark.parametrize("target", COLUMNS)
def test_what_a_file_of_columns_is_made_of_is_gathered(
    target: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(target)
    monkeypatch.setattr(column_formats, "GROUP_ROWS", 100)
    rows = np.zeros(255, TAPE.dtype)
    rows["number"] = np.arange(255)
    kind = column_formats.ParquetFormat if target == "parquet" else column_formats.ArrowFormat
    path = tmp_path / f"tape.{target}"
    with path.open("wb") as file:
        writer = kind(file, TAPE, ["number"])
        for at in range(0, 255, 30):
            writer.write(rows[at : at + 30])
        writer.close()
    assert table_of(path).column("number").to_pylist() == list(range(255))
    pieces = 3  # 120, 120 and 15 rows
    if target == "parquet":
        from pyarrow.parquet import ParquetFile

        assert ParquetFile(path).metadata.num_row_groups == pieces
    else:
        from pyarrow import ipc

        assert ipc.open_file(path).num_record_batches == pieces


@pytest.mark.parametrize("target", TARGETS)
def test_no_rows_make_a_whole_file_too(target: str, store: Path, tmp_path: Path) -> None:
    needs(target)
    path = tmp_path / f"none.{target}"
    succeed("export", store, "book", path, "--first", "41")
    assert read(path) == []


@pytest.mark.parametrize("target", ["csv", "parquet"])
def test_fields_can_be_chosen(target: str, store: Path, tmp_path: Path) -> None:
    needs(target)
    path = tmp_path / f"some.{target}"
    succeed("export", store, "book", path, "--fields", "price,instrument", "--last", "1")
    rows = read(path)
    assert [[*row] for row in rows] == [["price", "instrument"]] * 3
    assert prices(rows) == [3, 13, 23]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--first", "39"], [row for row in EXPECTED if row[0] >= 39]),
        (["--first", "7,PAR", "--last", "8,PAR"], [row for row in EXPECTED if (7, b"PAR") <= row[:2] <= (8, b"PAR")]),
        (["--from", str(2 * ROUND + 11)], EXPECTED[10:]),
        (["--until", str(2 * ROUND + 10)], EXPECTED[:10]),
        (["--from", str(2 * ROUND + 5), "--until", str(2 * ROUND + 10), "--first", "3"], EXPECTED[6:10]),
        (["--until", "2020-01-01"], []),
        (["--from", "2020-01-01"], EXPECTED),
    ],
)
def test_a_range_of_a_store_is_chosen_by_key_sequence_and_time(
    options: list[str], expected: list[Any], store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "part.npy"
    succeed("export", store, "book", path, *options)
    assert [(row["instrument"], row["venue"], row["price"]) for row in read(path)] == expected


def test_the_time_is_that_at_which_a_row_was_put(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as store:
        put_round(store, 1)
        row = store["book"].get(*KEYS[0])
        assert row is not None
        moment = int(row["timestamp_ns"]) + 1
        store["tape"].put(1)  # so that the clock has moved on
        sequence = store["book"].put(*KEYS[5], 777, 0, [0, 0, 0])
        row = store["book"].get(*KEYS[5])
        assert row is not None
        assert int(row["timestamp_ns"]) >= moment
    text = f"{datetime.datetime.fromtimestamp(moment // 10**9, datetime.UTC):%Y-%m-%dT%H:%M:%S}.{moment % 10**9:09d}"
    succeed("export", tmp_path / "data", "book", tmp_path / "since.npy", "--from", text)
    assert [row["sequence"] for row in read(tmp_path / "since.npy")] == [sequence]
    succeed("export", tmp_path / "data", "book", tmp_path / "before.npy", "--until", text)
    assert [row["sequence"] for row in read(tmp_path / "before.npy")] == [n for n in range(1, ROUND + 1) if n != 6]


@pytest.mark.parametrize(
    ("options", "first", "count"),
    [
        ([], 1, 1000),
        (["--from", "501"], 501, 500),
        (["--until", "10"], 1, 10),
        (["--from", "990", "--until", "2000"], 990, 11),
        (["--from", "2023-11-14T22:13:20.000100000", "--until", "2023-11-14T22:13:20.000200000"], 100, 100),
    ],
)
def test_a_log_is_written_by_sequence_or_time(
    options: list[str], first: int, count: int, log: Path, tmp_path: Path
) -> None:
    path = tmp_path / "points.npy"
    shown = facts("export", log, "points", path, *options)
    assert (shown["source"], shown["row_count"]) == ("log", count)
    rows = np.load(path).astype(POINTS.dtype)
    assert len(rows) == count
    check_rows(POINTS, rows, first)
    assert START_NS + 100_000 == 1_700_000_000_000_100_000


def test_rows_that_are_not_there_any_more_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "log")
    offsets: list[tuple[Path, int]] = []
    for _ in range(3):
        path = builder.begin()
        offsets += [(path, builder.rows(POINTS, 100)) for _ in range(2)]
        builder.mark()
    builder.close()
    path, offset = offsets[3]
    flip(path, offset + 100)
    succeed("log", "repair", tmp_path, "--yes")
    offsets[0][0].unlink()  # as if it had expired
    done = ringmain("export", tmp_path, "points", tmp_path / "all.npy")
    assert done.returncode == FAILED
    assert done.stderr.decode() == "100 rows LOST: an earlier repair of the log has given them up\n"
    assert np.load(tmp_path / "all.npy")["sequence"].tolist() == [*range(201, 301), *range(401, 601)]
    done = ringmain("export", tmp_path, "points", tmp_path / "some.npy", "--from", "100")
    assert done.returncode == FAILED
    assert "sequence 100 is no longer kept; the oldest record is 201" in done.stderr.decode()
    assert not (tmp_path / "some.npy").exists()


def test_rows_behind_those_that_a_repair_gave_up_are_written_where_a_time_ends_the_export(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "log")
    path = builder.begin()
    _, offset, _ = (builder.rows(POINTS, count) for count in (40, 10, 50))
    builder.mark()
    flip(path, offset + 100)
    succeed("log", "repair", tmp_path, "--yes")
    done = ringmain("export", tmp_path, "points", tmp_path / "all.npy", "--until", "2200-01-01")
    assert done.returncode == FAILED
    assert done.stderr.decode() == "10 rows LOST: an earlier repair of the log has given them up\n"
    assert np.load(tmp_path / "all.npy")["sequence"].tolist() == [*range(1, 41), *range(51, 101)]


def test_every_row_of_a_store_is_in_its_log_and_archive(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with open_store(data) as store:
        rows = np.zeros(20_000, TAPE.payload_dtype)
        for number in range(10):  # more than a file of the log
            rows["number"] = number
            store["tape"].put_batch(rows)
        put_round(store, 1)
        put_round(store, 2)
        store.snapshot()
        wait_until(lambda: (data / "archive").is_dir() and any((data / "archive").iterdir()))
    assert LogReader(data / "log", "tape").oldest > 1
    shown = facts("export", data, "book", tmp_path / "all.npy", "--log")
    assert (shown["source"], shown["row_count"]) == ("log", 2 * ROUND)
    shown = facts("export", data, "tape", tmp_path / "tape.npy", "--log")
    assert shown["row_count"] == 200_000
    assert (np.load(tmp_path / "tape.npy")["sequence"] == np.arange(1, 200_001)).all()
    assert facts("export", data, "book", tmp_path / "newest.npy")["row_count"] == ROUND


def test_of_a_bus_topics_by_key_and_topics_that_are_only_logged_are_written(bus_name: str, tmp_path: Path) -> None:
    settings = StoreSettings(topics=["book"])
    with Writer(bus_name, [BOOK, TAPE], data_dir=tmp_path, store=settings, log_file_bytes=4 << 20) as writer:
        for number in range(1, 101):
            writer["book"].publish(number % 10, b"PAR", number, 0, [0, 0, 0])
            writer["tape"].publish(number)
        writer["book"].wait(100, "indexed")
    for topic, options, source, count in (
        ("book", [], "store", 10),
        ("book", ["--log"], "log", 100),
        ("tape", [], "log", 100),
    ):
        shown = facts("export", tmp_path, topic, tmp_path / "out.npy", "--force", *options)
        assert (shown["source"], shown["row_count"]) == (source, count)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_told(store: Path, tmp_path: Path) -> None:
    text = succeed("export", store, "tape", tmp_path / "tape.csv")
    assert text.startswith(f"wrote 10 rows of tape to {tmp_path / 'tape.csv'}, ")


@pytest.mark.parametrize("target", ["npy", "arrow"])
def test_the_kind_of_file_can_be_named(target: str, store: Path, tmp_path: Path) -> None:
    needs(target)
    path = tmp_path / "tape.data"
    succeed("export", store, "tape", path, "--to", target)
    path.rename(tmp_path / f"tape.{target}")
    assert [int(row["number"]) for row in read(tmp_path / f"tape.{target}")] == list(range(100, 1001, 100))


def test_a_file_that_is_there_is_replaced_only_by_force(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "tape.csv"
    path.write_text("mine")
    done = ringmain("export", store, "tape", path)
    assert done.returncode == FAILED
    assert done.stderr.decode() == f"ringmain: {path}: is there already; --force replaces it\n"
    assert path.read_text() == "mine"
    succeed("export", store, "tape", path, "--force")
    assert len(read(path)) == 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["tape.csv"]


def test_a_file_that_somebody_makes_meanwhile_is_not_replaced(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "tape.csv", exporting._copy

    def copy_and_make(*given: Any) -> int:
        path.write_text("mine")
        return copy(*given)

    monkeypatch.setattr(exporting, "_copy", copy_and_make)
    with pytest.raises(FileExistsError, match=r"tape\.csv"):
        exporting.export(store, "tape", path)
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tape.csv"]


@pytest.mark.parametrize("target", ["npy", "parquet"])
def test_an_export_that_meets_damage_leaves_no_file(target: str, tmp_path: Path) -> None:
    needs(target)
    with open_store(tmp_path / "data") as store:
        put_round(store, 1)
        store.snapshot()
    (table,) = (tmp_path / "data" / "store").glob("*.sst")
    flip(table, 4096 + 100 * BOOK.row_bytes)  # in the second block: the first is read when the scan begins
    done = ringmain("export", tmp_path / "data", "book", tmp_path / f"book.{target}")
    assert done.returncode == FAILED
    told = done.stderr.decode()
    assert f"{table}: damaged at byte " in told
    assert len(told.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("target", ["csv", "parquet"])
def test_a_full_disk_leaves_no_file(target: str, tmp_path: Path) -> None:
    needs(target)
    with open_store(tmp_path) as store:
        rows = np.zeros(20_000, TAPE.payload_dtype)
        rows["number"] = np.random.default_rng(1).integers(0, 1 << 62, len(rows))
        store["tape"].put_batch(rows)
    script = f"import sys, runpy; sys.argv = ['ringmain', 'export', {str(tmp_path)!r}, 'tape', '/dev/shm/o.{target}']\n"
    script += "from ringmain.tools import cli\ntry: cli.main()\n"
    script += "finally:\n    import os; print(os.listdir('/dev/shm'))\n"
    done = subprocess.run(
        [*private_shm("size=64k"), sys.executable, "-c", script], capture_output=True, check=False, env=environment()
    )
    assert done.returncode == FAILED, done.stderr.decode()
    assert done.stderr.decode() == f"ringmain: /dev/shm/o.{target}: No space left on device\n"
    assert done.stdout == b"[]\n"


@pytest.mark.parametrize(("number", "target"), [(signal.SIGINT, "csv"), (signal.SIGTERM, "parquet")])
def test_a_signal_leaves_no_file(number: signal.Signals, target: str, tmp_path: Path) -> None:
    needs(target)
    with open_store(tmp_path / "data") as store:
        rows = np.zeros(20_000, TAPE.payload_dtype)
        for _ in range(60):
            store["tape"].put_batch(rows)
    out = tmp_path / "out"
    out.mkdir()
    with started("export", tmp_path / "data", "tape", out / f"tape.{target}") as process:
        wait_until(lambda: any(out.iterdir()) or process.poll() is not None)
        assert not (out / f"tape.{target}").exists()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (INTERRUPTED if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in err
    assert [*out.iterdir()] == []


def test_progress_is_shown_on_a_terminal_and_leaves_no_trace(store: Path, tmp_path: Path) -> None:
    with on_terminal("export", store, "book", tmp_path / "book.csv", columns=100) as terminal:
        assert terminal.finish() == OK
        assert "writing book.csv" in terminal.raw
        assert terminal.raw.count("\x1b[?25l") == terminal.raw.count("\x1b[?25h")  # the cursor is there again
        assert terminal.text.rstrip().splitlines()[-1].startswith("wrote 119 rows of book to ")


def test_a_store_that_is_being_written_can_be_exported(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as store:
        put_round(store, 1)
        succeed("export", tmp_path / "data", "book", tmp_path / "book.npy")
    assert prices(read(tmp_path / "book.npy")) == [price_of(place, 1) for place in range(ROUND)]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("export STORE book OUT.txt", USAGE, "--to: parquet, arrow, csv, npy is expected, as 'new.txt' ends in none"),
        ("export STORE book OUT.csv --to xml", USAGE, "'xml' is not one of 'parquet', 'arrow', 'csv', 'npy'"),
        ("export STORE nosuch OUT.csv", MISSING, "no topic 'nosuch' in this log; it has book, tape"),
        ("export STORE nosuch OUT.csv --log", MISSING, "no topic 'nosuch' in this log; it has book, tape"),
        ("export LOG nosuch OUT.csv", MISSING, "no topic 'nosuch' in this log; it has points, pairs"),
        ("export nosuch book OUT.csv", MISSING, "nosuch: holds no log"),
        ("export STORE book OUT.csv --first x", USAGE, "--first: field 'instrument': a whole number"),
        ("export STORE book OUT.csv --from latest", USAGE, "--from: a sequence or a time such as 2023-"),
        ("export STORE book OUT.csv --until noon", USAGE, "--until: a sequence or a time such as 2023-"),
        ("export STORE book OUT.csv --fields nosuch", USAGE, "topic 'book' has no field 'nosuch'"),
        ("export LOG points OUT.csv --first 1", USAGE, "--first, --last: points is not read by key here"),
        ("export STORE book OUT.csv --last 1 --log", USAGE, "--first, --last: book is not read by key here"),
        ("export STORE book STORE/x/OUT.csv --to csv", MISSING, "No such file or directory"),
        ("export STORE book STORE --to csv", FAILED, "is a directory; name a file"),
    ],
)
def test_a_slip_is_told_and_nothing_is_written(
    line: str, code: int, words: str, store: Path, log: Path, tmp_path: Path
) -> None:
    line = line.replace("STORE/x/OUT", str(tmp_path / "x" / "new")).replace("OUT", str(tmp_path / "new"))
    done = ringmain(*line.replace("STORE", str(store)).replace("LOG", str(log)).split())
    told = " ".join(done.stderr.decode().replace("│", " ").split())
    assert done.returncode == code
    assert words in told
    assert "Traceback" not in told
    assert done.stdout == b""
    assert [*tmp_path.iterdir()] == []


def test_what_a_kind_of_file_needs_is_told_where_it_is_missing(store: Path, tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError('it is not installed')")
    with started(
        "export", store, "book", tmp_path / "book.parquet", env=environment(PYTHONPATH=str(tmp_path))
    ) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == FAILED
    assert err == b"ringmain: to_arrow needs `pip install ringmain[arrow]`\n"
    assert not (tmp_path / "book.parquet").exists()
