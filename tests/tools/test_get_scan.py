"""`ringmain get` and `ringmain scan`: rows of a store by key, as of any moment, in every format, with keys as people write them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.storage import Schema, Store
from ringmain.tools.exit_codes import FAILED, MISSING, OK, USAGE
from ringmain.tools.keys import read_bound, read_key, shown_key
from support.command import on_terminal, ringmain, started, succeed
from support.logs import POINTS, Builder, flip
from support.stored import AT_NS, BOOK, EXPECTED, KEYS, ROUND, TAPE, fill, open_store, price_of, put_round

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stored")
    fill(directory)
    return directory


def objects(*arguments: str | Path) -> list[dict[str, Any]]:
    """The rows that a command prints as JSON."""
    return [json.loads(line) for line in succeed(*arguments, "--format", "json").splitlines()]


def book_rows(found: list[dict[str, Any]]) -> list[tuple[int, bytes, int]]:
    return [(row["instrument"], row["venue"].encode(), row["price"]) for row in found]


# --- get --------------------------------------------------------------------------------------------------------------


def test_get_prints_the_newest_row_of_a_key_a_field_a_line(store: Path) -> None:
    place = KEYS.index((5, b"XETR"))
    lines = succeed("get", store, "book", "5", "XETR").splitlines()
    shown = [line.split() for line in lines[2:]]
    assert lines[0].split() == ["field", "value", "unit"]
    assert [line[0] for line in shown] == list(BOOK.dtype.names or ())
    assert shown[2] == ["instrument", "5"]
    assert shown[4] == ["price", str(price_of(place)), "1/10,000", "EUR"]
    assert shown[5] == ["at_ns", "2023-11-14", f"22:13:20.{place:09d}", "UTC"]
    assert shown[6] == ["bids", f"{place},", f"{-place},", "0"]


@pytest.mark.parametrize("place", [0, 1, 50, ROUND - 1])
def test_get_finds_every_key_there_is(place: int, store: Path) -> None:
    instrument, venue = KEYS[place]
    (row,) = objects("get", store, "book", str(instrument), venue.decode())
    assert (row["price"], row["sequence"], row["at_ns"]) == (price_of(place), 2 * ROUND + place + 1, AT_NS + place)


@pytest.mark.parametrize("key", [("7", "PAR"), ("41", "PAR"), ("1", "XETRA"[:3])])
def test_a_key_without_a_row_is_missing(key: tuple[str, str], store: Path) -> None:
    done = ringmain("get", store, "book", *key)
    assert (done.returncode, done.stdout) == (MISSING, b"")
    assert done.stderr.decode() == f"ringmain: {store}: topic 'book' has no row with the key {','.join(key)}\n"


def test_get_as_of_a_sequence_has_the_row_of_then(store: Path) -> None:
    done = ringmain("get", store, "book", "7", "PAR", "--at", str(3 * ROUND))  # before it was deleted
    assert done.returncode == OK
    done = ringmain("get", store, "book", "7", "PAR", "--at", str(3 * ROUND + 1))
    assert done.returncode == MISSING
    assert f"as of sequence {3 * ROUND + 1}" in done.stderr.decode()


def test_what_lies_too_far_back_is_told_with_the_oldest_that_can_be_read(store: Path) -> None:
    done = ringmain("get", store, "book", "1", "PAR", "--at", "5")
    assert done.returncode == FAILED
    assert f"as of sequence 5 any more; {2 * ROUND} is the oldest" in done.stderr.decode()


def test_a_topic_without_a_key_is_kept_by_sequence(store: Path) -> None:
    assert [row["number"] for row in objects("get", store, "tape", "3")] == [300]
    assert [row["number"] for row in objects("scan", store, "tape", "--first", "9")] == [900, 1000]


def test_history_has_every_version_that_is_kept_the_newest_first(tmp_path: Path) -> None:
    fill(tmp_path, keep_versions=["book"])
    place = KEYS.index((7, b"PAR"))
    found = objects("get", tmp_path, "book", "7", "PAR", "--history")
    assert [row["price"] for row in found] == [price_of(place, number) for number in (3, 2, 1)]
    found = objects("get", tmp_path, "book", "7", "PAR", "--history", "--at", str(2 * ROUND))
    assert [row["price"] for row in found] == [price_of(place, number) for number in (2, 1)]


# --- scan -------------------------------------------------------------------------------------------------------------


def test_scan_prints_all_rows_in_the_order_of_their_keys(store: Path) -> None:
    done = ringmain("scan", store, "book", "--format", "json")
    assert book_rows([json.loads(line) for line in done.stdout.splitlines()]) == EXPECTED
    assert done.stderr.decode() == f"{len(EXPECTED)} rows of book\n"
    assert book_rows(objects("scan", store, "book", "--reverse")) == EXPECTED[::-1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--first", "39"], [row for row in EXPECTED if row[0] >= 39]),
        (["--last", "2"], [row for row in EXPECTED if row[0] <= 2]),
        (["--first", "7", "--last", "7"], [row for row in EXPECTED if row[0] == 7]),
        (["--first", "7,PAR", "--last", "8,PAR"], [row for row in EXPECTED if (7, b"PAR") <= row[:2] <= (8, b"PAR")]),
        (["--first", '40,"A,B"', "--last", '40,"A,B"'], [row for row in EXPECTED if row[:2] == (40, b"A,B")]),
        (["--first", "20", "--limit", "5"], [row for row in EXPECTED if row[0] >= 20][:5]),
        (["--last", "20", "--reverse", "--limit", "5"], [row for row in EXPECTED if row[0] <= 20][:-6:-1]),
        (["--limit", "0"], []),
        (["--first", "9", "--last", "8"], []),
    ],
)
def test_scan_prints_the_range_that_is_asked_for(options: list[str], expected: list[Any], store: Path) -> None:
    assert book_rows(objects("scan", store, "book", *options)) == expected


def test_scan_as_of_a_sequence_shows_that_moment(store: Path) -> None:
    found = book_rows(objects("scan", store, "book", "--at", str(2 * ROUND)))
    assert found == [(*key, price_of(place, 2)) for place, key in enumerate(KEYS)]


def test_every_format_has_the_same_rows(store: Path) -> None:
    arguments = ("scan", store, "book", "--fields", "venue,price,bids", "--format")
    read = list(csv.reader(io.StringIO(succeed(*arguments, "csv"))))
    assert read[0] == ["venue", "price", "bids_0", "bids_1", "bids_2"]
    assert [(row[0].encode(), int(row[1])) for row in read[1:]] == [row[1:] for row in EXPECTED]
    rows = np.load(io.BytesIO(ringmain(*arguments, "npy").stdout))
    assert rows.dtype.names == ("venue", "price", "bids")
    assert [(row["venue"], row["price"]) for row in rows] == [row[1:] for row in EXPECTED]
    lines = succeed(*arguments, "table").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[row[1].decode(), str(row[2])] for row in EXPECTED]


def test_rows_fit_a_terminal_and_say_what_they_left_out(store: Path) -> None:
    with on_terminal("scan", store, "book", "--limit", "5", columns=60) as terminal:
        assert terminal.finish() == OK
        lines = terminal.text.splitlines()
    assert max(map(len, lines)) <= 60
    assert "no room for" in " ".join(lines)
    assert "5 rows of book" in lines[-1]


def test_binary_is_not_written_to_a_terminal(store: Path) -> None:
    with on_terminal("scan", store, "tape", "--format", "npy") as terminal:
        assert terminal.finish() == USAGE
        assert "--format npy is binary" in terminal.text


def test_a_scan_whose_reader_has_seen_enough_ends_quietly(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:  # with more in it than a pipe holds
        store["tape"].put_batch(np.zeros(20_000, TAPE.payload_dtype))
    for form in ("table", "npy"):
        with started("scan", tmp_path, "tape", "--format", form) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(100)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == OK


def test_a_store_that_is_being_written_can_be_read(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in range(1, 4):
            put_round(store, number)
            if number == 2:
                store.snapshot()
            found = book_rows(objects("scan", tmp_path, "book"))
            assert found == [(*key, price_of(place, number)) for place, key in enumerate(KEYS)]
            assert objects("get", tmp_path, "book", "3", "PAR")[0]["sequence"] > (number - 1) * ROUND


def test_a_damaged_row_is_never_printed(tmp_path: Path) -> None:
    fill(tmp_path)
    for table in (tmp_path / "store").glob("*.sst"):
        flip(table, 4096 + 20)
    for command in (["scan", tmp_path, "book"], ["get", tmp_path, "book", "1", "A,B", "--at", str(2 * ROUND)]):
        done = ringmain(*command)
        assert done.returncode == FAILED
        assert ".sst: damaged at byte 4096" in done.stderr.decode()
        assert "ringmain store repair" in done.stderr.decode()
        assert b"A,B" not in done.stdout


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("get DIR nosuch 1", MISSING, "no topic 'nosuch' in this store; it has book, tape"),
        ("scan DIR nosuch", MISSING, "no topic 'nosuch' in this store; it has book, tape"),
        (
            "get DIR book 1",
            USAGE,
            "the key of topic 'book' is instrument (u4), venue (S4): 2 values are expected, got 1",
        ),
        ("get DIR tape 1 2", USAGE, "the key of topic 'tape' is sequence (u8): one value is expected, got 2"),
        (
            "get DIR book x PAR",
            USAGE,
            "KEY: field 'instrument': a whole number from 0 to 4294967295 is expected, got 'x'",
        ),
        ("get DIR book 4294967296 PAR", USAGE, "a whole number from 0 to 4294967295 is expected"),
        ("get DIR book 1 XETRA", USAGE, "KEY: field 'venue': a text of at most 4 bytes is expected, got 'XETRA'"),
        ("get DIR book -- -1 PAR", USAGE, "a whole number from 0 to 4294967295 is expected, got '-1'"),
        (
            "scan DIR book --first 1,2,3",
            USAGE,
            "--first: the key of topic 'book' is instrument (u4), venue (S4): at most 2",
        ),
        ("scan DIR book --last y", USAGE, "--last: field 'instrument': a whole number"),
        (
            "scan DIR book --fields price,nosuch",
            USAGE,
            "topic 'book' has no field 'nosuch'; it has sequence, timestamp_ns",
        ),
        ("scan DIR book --limit -1", USAGE, "greater than or equal to 0"),
        ("get nosuch book 1", MISSING, "nosuch: holds no store"),
        ("scan nosuch book", MISSING, "nosuch: holds no store"),
    ],
)
def test_a_slip_is_told_with_its_place_and_what_was_expected(line: str, code: int, words: str, store: Path) -> None:
    done = ringmain(*line.replace("DIR", str(store)).split())
    told = " ".join(done.stderr.decode().replace("│", " ").split())
    assert done.returncode == code
    assert words in told
    assert done.stdout == b""


def test_a_folder_with_only_a_log_says_so(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "log")
    builder.begin()
    builder.rows(POINTS, 10)
    builder.close()
    for command in (["get", tmp_path, "points", "1"], ["scan", tmp_path, "points"], ["store", "stats", tmp_path]):
        done = ringmain(*command)
        assert done.returncode == MISSING
        assert f"holds no store, only a log: see `ringmain log dump {tmp_path}`" in done.stderr.decode()


# --- keys as people write them ----------------------------------------------------------------------------------------

KINDS = Schema(
    "kinds",
    {"small": "i1", "large": "u8", "ratio": "f4", "flag": "?", "name": "S5", "at": "i8", "ms": "i8"},
    key=("small", "large", "ratio", "flag", "name", "at", "ms"),
    units={"at": "ns since the Unix epoch", "ms": "ms since the Unix epoch"},
)
TEXTS = ["-128", "18446744073709551615", "0.1", "true", "grö", "2023-11-14T22:13:20Z", "5"]


def test_a_value_is_read_by_the_type_of_its_field() -> None:
    assert read_key(KINDS, TEXTS) == (-128, 2**64 - 1, float(np.float32(0.1)), True, "grö".encode(), AT_NS, 5)
    assert read_bound(KINDS, "+7,0,-inf,0", "--first") == (7, 0, float("-inf"), False)
    assert read_bound(KINDS, r'1,2,3,1,"\xff,\x00"', "--first") == (1, 2, 3.0, True, b"\xff,\0")
    assert read_bound(KINDS, None, "--first") is None


@pytest.mark.parametrize(
    ("place", "text", "words"),
    [
        (0, "128", "'small': a whole number from -128 to 127"),
        (0, "1.0", "'small': a whole number"),
        (0, "", "'small': a whole number"),
        (1, "-1", "'large': a whole number from 0 to 18446744073709551615"),
        (2, "one", "'ratio': a number"),
        (2, "1e39", "'ratio': a number"),
        (3, "yes", "'flag': true or false"),
        (4, "größe", "'name': a text of at most 5 bytes"),
        (5, "yesterday", "'at': a whole number from -9223372036854775808 to 9223372036854775807, or a time such as"),
        (5, "latest", "'at': a whole number"),
        (6, "2023-11-14", "'ms': a whole number"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_the_name_of_its_field(place: int, text: str, words: str) -> None:
    texts = ["1", "1", "1", "1", "a", "1", "1"]
    texts[place] = text
    with pytest.raises(ValueError, match=f"KEY: field {words}.*is expected, got {text!r}"):
        read_key(KINDS, texts)


@pytest.mark.parametrize(
    "values",
    [
        (-5, 0, 0.5, True, b"abc", AT_NS, 1),
        (1, 2**64 - 1, float(np.float32(0.1)), False, b'",\xff', -1, 0),
        (0, 0, float("inf"), True, b"", 0, 0),
    ],
)
def test_a_key_that_was_shown_can_be_given_again(values: tuple[Any, ...]) -> None:
    assert read_bound(KINDS, shown_key(values), "--first") == values


def test_a_store_kept_by_such_a_key_is_found_by_it(tmp_path: Path) -> None:
    with Store(tmp_path, [KINDS], log_file_bytes=4 << 20) as store:
        store["kinds"].put(-128, 2**64 - 1, np.float32(0.1), True, "grö".encode(), AT_NS, 5)
    row = json.loads(succeed("get", tmp_path, "kinds", "--format", "json", "--", *TEXTS))
    assert (row["sequence"], row["name"]) == (1, "grö")
