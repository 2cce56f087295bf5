"""Rows come out of a CSV file as they went in: none lost, none invented, and a bad one named."""

import csv
import gzip
import io
import math
import os
import re
import sys
import threading
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ringmain.storage import ORDERS, QUOTES, TRADES, Schema
from ringmain.tools.csv_lines import LINE_BYTES_MAX, InputDamaged
from ringmain.tools.csv_map import CsvPlan, load_map, parse_map
from ringmain.tools.csv_rows import CsvRows, RowCounts
from ringmain.tools.csv_split import QUOTED_LINES_MAX, BadRow

MAPS = Path(__file__).parents[2] / "examples" / "maps"
EVERY = Schema(
    "every",
    {"a": "u1", "b": "i8", "c": "S5", "d": "f8", "e": "?", "f": "(2,3)i2", "g": "f4", "h": "u8", "i": "4S2"},
)
PAIR = Schema("pair", {"n": "i4", "t": "S4"})
PAIR_MAP = b'[fields]\nn = "n"\nt = "t"\n'


class Outcome(NamedTuple):
    rows: npt.NDArray[Any]
    counts: RowCounts
    error: Exception | None


def read_all(content: bytes, plan: CsvPlan, batch_rows: int = 1000, rejects: Path | None = None) -> Outcome:
    """Read everything, through the error if there is one."""
    batches: list[npt.NDArray[Any]] = []
    error = None
    with CsvRows(io.BytesIO(content), plan, batch_rows=batch_rows, rejects=rejects) as reader:
        try:
            for batch in reader:
                assert 0 <= len(batch) <= batch_rows
                assert batch.dtype == plan.schema.payload_dtype
                batches.append(batch.copy())
        except (BadRow, InputDamaged) as caught:
            error = caught
        counts = reader.counts
    rows = np.zeros(sum(map(len, batches)), plan.schema.payload_dtype)
    for name in rows.dtype.names or ():
        if batches:
            rows[name] = np.concatenate([batch[name] for batch in batches])
    assert counts.good == len(rows)
    return Outcome(rows, counts, error)


def pairs(content: bytes, head: bytes = b"n,t\n", options: bytes = b"", **how: Any) -> Outcome:
    return read_all(head + content, parse_map(PAIR_MAP + options, PAIR), **how)


def bad_pair(content: bytes, options: bytes = b"") -> BadRow:
    error = pairs(content, options=options).error
    assert isinstance(error, BadRow)
    return error


# What goes in comes out.


def identity_map(schema: Schema, csv_options: str) -> CsvPlan:
    dtype = schema.payload_dtype
    lines = ["[csv]", csv_options, "[fields]"]
    for name in dtype.names or ():
        shape = dtype[name].shape
        columns = f'{{columns = "{name}{{1..{int(np.prod(shape))}}}"}}' if shape else f'"{name}"'
        lines.append(f"{name} = {columns}")
    return parse_map("\n".join(lines).encode(), schema)


def cell_text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else repr(value)


def as_csv(rows: npt.NDArray[Any], delimiter: str, line_end: str, quote_all: bool) -> str:
    """Write rows as RFC 4180 has it (Python 3.11's own writer leaves a lone carriage return unquoted)."""
    shapes = {name: rows.dtype[name].shape for name in rows.dtype.names or ()}
    lines = [
        [name + str(index + 1) * bool(shape) for name, shape in shapes.items() for index in range(math.prod(shape))]
    ]
    lines += [[cell_text(value) for name in shapes for value in row[name].reshape(-1).tolist()] for row in rows]

    def quoted(text: str) -> str:
        odd = quote_all or any(char in text for char in (delimiter, '"', "\r", "\n"))
        return '"' + text.replace('"', '""') + '"' if odd else text

    return "".join(delimiter.join(map(quoted, line)) + line_end for line in lines)


def texts(bytes_max: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(b'ab,;|"\r\n \t\xff') | st.integers(1, 255), max_size=bytes_max).map(bytes)


every_row = hnp.arrays(
    EVERY.payload_dtype,
    st.integers(0, 12),
    elements=st.tuples(
        st.integers(0, 255),
        st.integers(-(2**63), 2**63 - 1),
        texts(5),
        st.floats(allow_nan=False),
        st.booleans(),
        hnp.arrays("i2", (2, 3)),
        st.floats(allow_nan=False, width=32),
        st.integers(0, 2**64 - 1),
        hnp.arrays("S2", (4,), elements=texts(2)),
    ),
)


@given(
    every_row,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 13),
    st.booleans(),
)
def test_reading_undoes_writing(
    rows: npt.NDArray[Any], delimiter: str, line_end: str, quote_all: bool, batch_rows: int, last_line_ends: bool
) -> None:
    plan = identity_map(EVERY, f'delimiter = "{delimiter}"\nencoding = "latin-1"'.replace("\t", "\\t"))
    text = as_csv(rows, delimiter, line_end, quote_all)
    if not last_line_ends:
        text = text.removesuffix(line_end)
    read = read_all(text.encode("latin-1"), plan, batch_rows)
    assert read.error is None
    for name in rows.dtype.names or ():
        assert np.array_equal(read.rows[name], rows[name]), name


def test_gaps_between_fields_are_zeros() -> None:
    gapped = Schema("gapped", {"a": "u1", "b": "i8"})
    with CsvRows(io.BytesIO(b"a,b\n255,-1\n"), parse_map(b'[fields]\na = "a"\nb = "b"\n', gapped)) as reader:
        assert next(iter(reader)).tobytes() == b"\xff" + bytes(7) + b"\xff" * 8


odd_bytes = st.lists(
    st.sampled_from([*map(bytes, zip(b'1-,"\n\r\0\xffx')), b"\r\n", b"23", b"7,a\n", b'8,"b,"\r\n']),
    max_size=40,
).map(b"".join)


@settings(max_examples=2000 if os.environ.get("RINGMAIN_NIGHTLY") else 100)
@given(odd_bytes, st.integers(1, 8), st.sampled_from([b"", b'[filter]\nt = ["a", "x", ""]\n']))
def test_what_is_read_does_not_depend_on_how_the_lines_fall_into_batches(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, batch_rows: int, options: bytes
) -> None:
    rejects = [tmp_path_factory.getbasetemp() / name for name in ("one.csv", "many.csv", "whole.csv")]
    outcomes = [
        pairs(content, options=options, batch_rows=size, rejects=path)
        for path, size in zip(rejects, (1, batch_rows, 1000), strict=True)
    ]
    assert len({outcome.rows.tobytes() for outcome in outcomes}) == 1
    assert outcomes[0].counts == outcomes[1].counts == outcomes[2].counts
    assert len({path.read_bytes() for path in rejects}) == 1
    stopped = [pairs(content, options=options, batch_rows=size) for size in (1, batch_rows, 1000)]
    assert len({(outcome.rows.tobytes(), str(outcome.error)) for outcome in stopped}) == 1
    assert (stopped[0].error is None) == (outcomes[0].counts.bad == 0)
    assert outcomes[0].rows.tobytes().startswith(stopped[0].rows.tobytes())


@given(odd_bytes.filter(lambda content: b'"' not in content))
def test_every_line_is_a_row_handed_out_left_out_or_set_aside(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    read = pairs(content, options=b'[filter]\nt = ["a", "x"]\n', rejects=tmp_path_factory.getbasetemp() / "rest.csv")
    lines = [line for line in content.split(b"\n") if line.removesuffix(b"\r")]
    assert read.counts.good + read.counts.filtered + read.counts.bad == len(lines)


# Files.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"n,t\n", []),
        (b"n,t", []),
        (b"n,t\r\n", []),
        (b"\n\nn,t\n1,a\n", [(1, b"a")]),
        (b"\xef\xbb\xbfn,t\n1,a\n", [(1, b"a")]),
        (b"n,t\n1,a", [(1, b"a")]),
        (b"n,t\r\n1,a\r\n2,b\r\n", [(1, b"a"), (2, b"b")]),
        (b"n,t\r\n1,a\n2,b", [(1, b"a"), (2, b"b")]),
        (b"n,t\n1,a\n\n2,b\n\n\n", [(1, b"a"), (2, b"b")]),
        (b'n,t\n1,"a,b"\n2,"c""d"\n3,e"f\n', [(1, b"a,b"), (2, b'c"d'), (3, b'e"f')]),
        (b'n,t\n1,"a\nb"\n2,"c\r\nd"\n3,"\n"\n', [(1, b"a\nb"), (2, b"c\r\nd"), (3, b"\n")]),
        (b'"n","t"\n"1",""\n', [(1, b"")]),
        (b"t,x,n\na,,1\n", [(1, b"a")]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_ordinary_files_of_all_kinds(content: bytes, expected: list[tuple[int, bytes]], packed: bool) -> None:
    read = read_all(gzip.compress(content) if packed else content, parse_map(PAIR_MAP, PAIR))
    assert read.error is None
    assert read.rows.tolist() == expected


def test_a_file_without_a_header_row_is_read_by_the_names_in_the_map() -> None:
    read = pairs(b"a,1\nb,2\n", head=b"", options=b'[csv]\nheader = ["t", "n"]\n')
    assert read.rows.tolist() == [(1, b"a"), (2, b"b")]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_a_file_without_any_row_lacks_its_header_row(content: bytes, packed: bool) -> None:
    given = gzip.compress(content) if packed else content
    read = read_all(given, parse_map(PAIR_MAP, PAIR))
    assert str(read.error) == f"input, byte {len(given)}: the file has no header row"
    named = read_all(given, parse_map(PAIR_MAP + b'[csv]\nheader = ["t", "n"]\n', PAIR))
    assert (named.error, len(named.rows)) == (None, 0)


def test_the_filter_leaves_rows_out_before_they_are_converted() -> None:
    options = b'[filter]\nt = ["a", "b"]\nn = ["1", "2", "x"]\n'
    read = pairs(b"1,a\nnot a number,c\n2,toolong\n2,b\n3,a\n", options=options)
    assert read.rows.tolist() == [(1, b"a"), (2, b"b")]
    assert read.counts == RowCounts(good=2, filtered=3, bad=0)


def test_text_is_kept_as_the_bytes_of_the_file() -> None:
    wide = Schema("wide", {"n": "i4", "t": "S8"})
    plan = parse_map(PAIR_MAP + b'[csv]\nencoding = "gb18030"\ndelimiter = "|"\n', wide)
    read = read_all("n|t\n1|恒盛能源\n".encode("gb18030"), plan)
    assert read.rows["t"].tolist() == ["恒盛能源".encode("gb18030")]


def test_a_delimiter_that_may_be_half_a_character_does_not_split_it() -> None:
    text = next(char for char in map(chr, range(0x4E00, 0x9FFF)) if b"|" in char.encode("gbk"))
    plan = parse_map(PAIR_MAP + b'[csv]\nencoding = "gbk"\ndelimiter = "|"\n', PAIR)
    assert read_all(f"n|t\n1|{text}\n2|a\n".encode("gbk"), plan).rows["t"].tolist() == [text.encode("gbk"), b"a"]


def test_utf_16_is_refused_in_words() -> None:
    error = read_all("n,t\n1,a\n".encode("utf-16"), parse_map(PAIR_MAP, PAIR)).error
    assert isinstance(error, InputDamaged)
    assert "UTF-16" in str(error)


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"n,t\n1,a\n", gzip.compress(b"n,t\n1,a\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        with CsvRows("-", parse_map(PAIR_MAP, PAIR)) as reader:
            assert [row.tolist() for row in reader] == [[(1, b"a")]]


def test_a_live_pipe_gives_each_row_as_it_comes() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as pipe, CsvRows(pipe, parse_map(PAIR_MAP, PAIR)) as reader:
        assert reader.bytes_total is None
        os.write(write_end, b"n,t\n1,a\n2,")
        batches = iter(reader)
        assert next(batches).tolist() == [(1, b"a")]
        writer = threading.Thread(target=lambda: (os.write(write_end, b"b\n"), os.close(write_end)))
        writer.start()
        assert next(batches).tolist() == [(2, b"b")]
        assert list(batches) == []
        writer.join()


def test_a_line_without_end_is_refused_and_the_rows_before_it_kept() -> None:
    read = pairs(b"1,a\n2," + b"x" * (LINE_BYTES_MAX + 1))
    assert read.rows.tolist() == [(1, b"a")]
    assert isinstance(read.error, InputDamaged)
    assert "is this a CSV file?" in str(read.error)


def test_progress_is_known_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"n,t\n1,a\n"))
    with CsvRows(path, parse_map(PAIR_MAP, PAIR)) as reader:
        assert (reader.bytes_read, reader.bytes_total) == (0, path.stat().st_size)
        assert sum(map(len, reader)) == 1
        assert reader.bytes_read == reader.bytes_total


def test_an_error_while_reading_comes_after_the_rows_before_it() -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            data = super().read1(8)
            if not data:
                raise OSError(5, "Input/output error")
            return data

    plan = parse_map(PAIR_MAP, PAIR)
    reader = iter(CsvRows(Failing(b"n,t\n1,a\n2,b\n3,"), plan))
    assert [next(reader).tolist(), next(reader).tolist()] == [[(1, b"a")], [(2, b"b")]]
    with pytest.raises(OSError, match="Input/output"):
        next(reader)


# Damaged gzip.

PLAIN = b"n,t\n" + b"".join(b"%d,%x\n" % (index, index * 7919 % 65536) for index in range(300))
WHOLE = pairs(PLAIN.removeprefix(b"n,t\n")).rows


def test_a_truncated_gzip_file_is_named_with_its_byte_and_the_rows_before_it_are_kept() -> None:
    packed = gzip.compress(PLAIN)
    plan = parse_map(PAIR_MAP, PAIR)
    for cut in range(3, len(packed)):
        read = read_all(packed[:cut], plan)
        inflate = zlib.decompressobj(31)
        there = inflate.decompress(packed[:cut]) + inflate.flush()
        assert isinstance(read.error, InputDamaged)
        assert read.error.byte == cut
        assert len(read.rows) == max(0, there.count(b"\n") - 1)
        assert np.array_equal(read.rows, WHOLE[: len(read.rows)])


def test_a_flipped_bit_in_a_gzip_file_never_goes_unnoticed() -> None:
    packed = gzip.compress(PLAIN, mtime=0)
    plan = parse_map(PAIR_MAP, PAIR)
    for at in range(10, len(packed)):  # the ten bytes of the header say nothing about the rows
        read = read_all(packed[:at] + bytes([packed[at] ^ 4]) + packed[at + 1 :], plan)
        assert read.error is not None
        if isinstance(read.error, InputDamaged):
            assert at <= read.error.byte <= len(packed)


def test_gzip_members_follow_each_other_and_zeros_are_padding() -> None:
    packed = gzip.compress(b"n,t\n1,") + gzip.compress(b"a\n") + bytes(600) + gzip.compress(b"2,b\n") + bytes(100)
    assert read_all(packed, parse_map(PAIR_MAP, PAIR)).rows.tolist() == [(1, b"a"), (2, b"b")]


def test_rubbish_after_a_gzip_member_is_named_with_its_byte() -> None:
    packed = gzip.compress(b"n,t\n1,a\n")
    read = read_all(packed + b"rubbish", parse_map(PAIR_MAP, PAIR))
    assert read.rows.tolist() == [(1, b"a")]
    assert isinstance(read.error, InputDamaged)
    assert len(packed) <= read.error.byte <= len(packed) + 2


def test_a_cell_that_a_damage_cuts_is_no_row_and_no_bad_row(tmp_path: Path) -> None:
    packed = gzip.compress(b'n,t\n1,a\n2,"x\n3,y\n' + bytes(np.random.default_rng(1).integers(97, 123, 4000, "u1")))
    read = read_all(packed[:-1500], parse_map(PAIR_MAP, PAIR), rejects=tmp_path / "rejects.csv")
    assert read.counts == RowCounts(good=1, filtered=0, bad=0)
    assert isinstance(read.error, InputDamaged)


# Bad rows.


@pytest.mark.parametrize(
    ("row", "column", "value", "expected"),
    [
        (b"1", "", "1", "2 columns expected, not 1"),
        (b"1,a,b", "", "1,a,b", "2 columns expected, not 3"),
        (b",a", "n", "", "a whole number from -2147483648 to 2147483647 (i4)"),
        (b"x,a", "n", "x", "a whole number"),
        (b"1.0,a", "n", "1.0", "a whole number"),
        (b"1_0,a", "n", "1_0", "a whole number"),
        (b" 1,a", "n", " 1", "a whole number"),
        (b"+1,a", "n", "+1", "a whole number"),
        (b"1-2,a", "n", "1-2", "a whole number"),
        ("\N{ARABIC-INDIC DIGIT ONE},a".encode(), "n", "\N{ARABIC-INDIC DIGIT ONE}", "a whole number"),
        (b"2147483648,a", "n", "2147483648", "a whole number"),
        (b"-2147483649,a", "n", "-2147483649", "a whole number"),
        (b"9" * 5000 + b",a", "n", "9" * 5000, "a whole number"),
        (b"1,abcde", "t", "abcde", "text of at most 4 bytes"),
        ("1,äöü".encode(), "t", "äöü", "text of at most 4 bytes"),
        (b"1,a\0", "", "1,a\0", "text without NUL expected"),
        (b"1,\xff", "", "1,\\xff", "utf-8 text expected, not the byte 0xff at 2"),
        (b'1,"a', "", '1,"a', "a closing quote expected"),
        (b'1,"a"b', "", '1,"a"b', "',' expected after a closing quote"),
        (b"1,a\r\r", "", "1,a\r", "a carriage return expected only at the end of a line"),
        (b"1,a\rb", "", "1,a\rb", "a carriage return expected only at the end of a line"),
    ],
)
@pytest.mark.parametrize("rows_before", [0, 3])
def test_a_bad_row_is_named_after_the_rows_before_it_and_can_be_set_aside(
    row: bytes, column: str, value: str, expected: str, rows_before: int, tmp_path: Path
) -> None:
    content = b"".join(b"%d,ok\n" % index for index in range(rows_before)) + row + b"\n8,more\n9,more\n"
    good = [(index, b"ok") for index in range(rows_before)]
    for batch_rows in (1, 2, 100):
        stopped = pairs(content, batch_rows=batch_rows)
        assert stopped.rows.tolist() == good
        assert stopped.counts == RowCounts(good=rows_before, bad=1)
        bad = stopped.error
        assert isinstance(bad, BadRow)
        assert (bad.line, bad.column, bad.value) == (rows_before + 2, column, value)
        assert bad.expected.startswith(expected)
        assert f"line {bad.line}" in str(bad)
        assert len(str(bad)) < 400

        rejects = tmp_path / "rejects.csv"
        aside = pairs(content, batch_rows=batch_rows, rejects=rejects)
        assert aside.error is None
        assert aside.rows.tolist() == [*good, (8, b"more"), (9, b"more")]
        assert aside.counts == RowCounts(good=rows_before + 2, bad=1)
        with open(rejects, encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, reject = list(csv.reader(file))
        assert header == ["line", "column", "value", "expected", "row"]
        assert reject[:4] == [str(bad.line), column, value if column else "", bad.expected]
        assert reject[4].encode("utf-8", "surrogateescape") == row.removesuffix(b"\r")


VALUES = Schema("values", {"v": "i8", "u": "u2", "f": "f4", "b": "?", "s": "S2"})


def one_value(field: str, source: str, text: str) -> Any:
    """Read one text through one source, both as a batch and as a row beside a bad one."""
    schema = Schema("one", {field: {item.name: item.type for item in VALUES.fields}[field]})
    plan = parse_map(f"[fields]\n{field} = {source}\n".encode(), schema)
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerow([text])
    read = read_all(b"C,D\n" + out.getvalue().strip().encode() + b",\n", plan)
    if read.error is not None:
        assert isinstance(read.error, BadRow)
        return read.error.expected
    alone = read_all(b"C,D\n" + out.getvalue().strip().encode() + b",\n1,2,3\n", plan)
    assert alone.rows.tobytes() == read.rows.tobytes()
    return read.rows[field][0].item()


ROUNDED = '{column = "C", scale = 10000, round = true}'
EXACT = '{column = "C", scale = 10000}'
SHANGHAI = '{column = "C", time = "%H:%M:%S.%f", date = "2023-02-01", zone = "Asia/Shanghai"}'
NEW_YORK = '{column = "C", time = "%Y-%m-%d %H:%M", zone = "America/New_York"}'
NUMERIC = '{column = "C", time = "%H%M%S%f", date = "2021-01-04", pad = 9}'


@pytest.mark.parametrize(
    ("field", "source", "text", "value"),
    [
        ("v", ROUNDED, "15.929999999999999", 159300),
        ("v", ROUNDED, "1801.00999999999999", 18010100),
        ("v", ROUNDED, "1855.549999999999954", 18555500),
        ("v", ROUNDED, "-0.00005", -1),
        ("v", ROUNDED, "0.00004999999999999999999999", 0),
        ("v", ROUNDED, "922337203685477.5807", 2**63 - 1),
        ("v", EXACT, "1801.0100", 18010100),
        ("v", EXACT, "7", 70000),
        ("v", EXACT, ".5", 5000),
        ("v", EXACT, "5.", 50000),
        ("v", EXACT, "1.5e2", 1500000),
        ("v", EXACT, "15e-4", 15),
        ("v", '{column = "C", scale = 1}', "100.0", 100),
        ("v", '{column = "C", empty = -3}', "", -3),
        ("v", '{column = "C", scale = 10, empty = 7}', "", 7),
        ("v", '{column = "C", map = {"" = 0, buy = 1}}', "", 0),
        ("v", '{column = "C", map = {buy = 1}, empty = 5}', "", 5),
        ("v", SHANGHAI, "09:15:00.020", 1_675_214_100_020_000_000),
        ("v", SHANGHAI, "09:15:00.000000001", 1_675_214_100_000_000_001),
        ("v", '{column = "C", time = "%Y.%m.%dT%H:%M:%S"}', "1970.01.01T00:00:01", 1_000_000_000),
        ("v", NUMERIC, "92900400", 1_609_752_540_400_000_000),
        ("v", NUMERIC, "0", 1_609_718_400_000_000_000),
        ("v", NUMERIC.replace("pad", "empty = 7, pad"), "", 7),
        ("v", NEW_YORK, "2024-11-03 01:30", 1_730_611_800_000_000_000),  # shown twice: the first is meant
        ("u", '"C"', "65535", 65535),
        ("u", '"C"', "-0", 0),
        ("f", '"C"', "0.1", float(np.float32(0.1))),
        ("f", '"C"', "-inf", float("-inf")),
        ("f", '"C"', "1E3", 1000.0),
        ("b", '"C"', "True", True),
        ("b", '"C"', "0", False),
        ("s", '"C"', "ab", b"ab"),
        ("s", '"C"', "", b""),
        ("s", '{column = "C", empty = "-"}', "", b"-"),
        ("s", '{column = "C", map = {buy = "B"}}', "buy", b"B"),
    ],
)
def test_a_text_becomes_its_exact_value(field: str, source: str, text: str, value: object) -> None:
    assert one_value(field, source, text) == value


@pytest.mark.parametrize(
    ("field", "source", "text", "expected"),
    [
        ("v", EXACT, "15.929999999999999", "a multiple of 1/10000 (or set round = true)"),
        ("v", ROUNDED, "922337203685477.58075", "a decimal number; times 10000 it must be from -9223372036854775808"),
        ("v", ROUNDED, "1e999", "a decimal number"),
        ("v", ROUNDED, "1e9999", "a decimal number"),
        ("v", ROUNDED, ".", "a decimal number"),
        ("v", ROUNDED, "nan", "a decimal number"),
        ("v", ROUNDED, "1,5", "a decimal number"),
        ("v", ROUNDED, "", "a decimal number"),
        ("v", '{column = "C", map = {buy = 1, sell = 2}}', "hold", "one of 'buy', 'sell'"),
        ("v", SHANGHAI, "9:15:00.020", "a time like %H:%M:%S.%f in Asia/Shanghai"),
        ("v", SHANGHAI, "24:00:00.0", "a time like"),
        ("v", SHANGHAI, "09:60:00.0", "a time like"),
        ("v", SHANGHAI, "09:15:60.0", "a time like"),
        ("v", SHANGHAI, "09:15:00.0000000001", "a time like"),
        ("v", NUMERIC, "", "a time like %H%M%S%f in UTC"),  # no midnight, though zeros are put before the text
        ("v", NUMERIC, " ", "a time like"),
        ("v", NEW_YORK, "2024-03-10 02:30", "a time like"),  # the clocks skip it
        ("v", NEW_YORK, "2023-02-29 12:00", "a time like"),
        ("v", NEW_YORK, "1600-01-01 12:00", "a time like"),
        ("v", NEW_YORK, "0001-01-01 00:00", "a time like"),
        ("v", NEW_YORK, "9999-12-31 23:59", "a time like"),
        ("u", '"C"', "65536", "a whole number from 0 to 65535 (u2)"),
        ("u", '"C"', "-1", "a whole number from 0 to 65535 (u2)"),
        ("f", '"C"', "1e39", "a number that fits f4"),
        ("f", '"C"', "1_0", "a number that fits f4"),
        ("f", '"C"', "", "a number that fits f4"),
        ("b", '"C"', "yes", "0, 1, false or true"),
        ("s", '"C"', "abc", "text of at most 2 bytes"),
    ],
)
def test_a_text_that_has_no_value_says_what_was_expected(field: str, source: str, text: str, expected: str) -> None:
    assert str(one_value(field, source, text)).startswith(expected)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=-(10**11), max_value=10**11))
def test_rounding_is_to_the_nearest_however_many_digits_are_written(number: Decimal) -> None:
    scaled = one_value("v", ROUNDED, f"{number:f}")
    assert abs(Fraction(scaled) - Fraction(number) * 10000) <= Fraction(1, 2)


@given(st.datetimes(datetime(1700, 1, 1), datetime(2261, 12, 31)), st.integers(0, 999))
def test_a_time_is_exact_to_the_nanosecond(moment: datetime, nanoseconds: int) -> None:
    text = f"{moment:%Y}".zfill(4) + f"{moment:-%m-%d %H:%M:%S.%f}{nanoseconds:03}"
    since = moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    expected = ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000 + nanoseconds
    assert one_value("v", '{column = "C", time = "%Y-%m-%d %H:%M:%S.%f"}', text) == expected


def test_a_time_may_be_made_of_two_columns() -> None:
    plan = parse_map(b'[fields]\nv = {columns = ["D", "T"], time = "%Y.%m.%d %H:%M:%S"}\n', Schema("x", {"v": "i8"}))
    assert read_all(b"T,D\n00:00:01,1970.01.02\n", plan).rows["v"].tolist() == [86_401_000_000_000]
    bad = read_all(b"T,D\n00:00:01,1970.01.32\n", plan).error
    assert isinstance(bad, BadRow)
    assert (bad.column, bad.value) == ("D+T", "1970.01.32 00:00:01")


def test_one_forgotten_quote_does_not_swallow_the_rest_of_the_file(tmp_path: Path) -> None:
    rows = b"".join(b"%d,x\n" % index for index in range(3 * QUOTED_LINES_MAX))
    read = pairs(b'1,"a\n' + rows, rejects=tmp_path / "rejects.csv")
    assert read.rows["n"].tolist() == list(range(3 * QUOTED_LINES_MAX))
    assert read.counts.bad == 1


def test_a_bad_row_of_several_lines_counts_its_lines_and_is_kept_whole(tmp_path: Path) -> None:
    content = b'1,"a\nb"\nx,"c\nd\r\ne"\n2,f\ny,g\n'
    for batch_rows in (1, 3, 100):
        read = pairs(content, rejects=tmp_path / "rejects.csv", batch_rows=batch_rows)
        assert read.rows.tolist() == [(1, b"a\nb"), (2, b"f")]
        with open(tmp_path / "rejects.csv", newline="") as file:
            rejects = list(csv.reader(file))[1:]
        assert [(row[0], row[4]) for row in rejects] == [("4", 'x,"c\nd\r\ne"'), ("8", "y,g")]


def test_rejects_must_not_overwrite_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"n,t\n1,a\n")
    (tmp_path / "link.csv").symlink_to(path)
    with pytest.raises(ValueError, match="another file"):
        CsvRows(path, parse_map(PAIR_MAP, PAIR), rejects=tmp_path / "link.csv")
    assert path.read_bytes() == b"n,t\n1,a\n"


def test_a_rejects_file_without_rejects_is_a_header(tmp_path: Path) -> None:
    (tmp_path / "rejects.csv").write_text("old")
    pairs(b"1,a\n", rejects=tmp_path / "rejects.csv")
    assert (tmp_path / "rejects.csv").read_bytes() == b"line,column,value,expected,row\n"


# Real data, against the plainest possible reading of the same files.


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("RINGMAIN_DATA")
    if not folder:
        pytest.skip("RINGMAIN_DATA does not name the folder of market data")
    return Path(folder)


def real(data: Path, file: str, map_name: str, schema: Schema) -> tuple[npt.NDArray[Any], list[dict[str, str]]]:
    with CsvRows(data / file, load_map(MAPS / map_name, schema)) as reader:
        rows = np.concatenate(list(reader))
        assert reader.counts == RowCounts(good=len(rows))
    with gzip.open(data / file, "rt", encoding="utf-8", newline="") as text:
        return rows, list(csv.DictReader(text))


def cents(text: str) -> int:
    return round(Decimal(text or 0) * 100) * 100


def shanghai_ns(text: str) -> int:
    hour, minute, second = text.split(":")
    return 1_675_180_800 * 10**9 + (int(hour) * 3600 + int(minute) * 60) * 10**9 + int(Decimal(second) * 10**9)


def same(rows: npt.NDArray[Any], source: list[dict[str, str]], **columns: tuple[str, Callable[[str], object]]) -> None:
    assert len(rows) == len(source)
    for field, (column, convert) in columns.items():
        assert rows[field].tolist() == [convert(row[column]) for row in source], field


def test_real_orders(data: Path) -> None:
    rows, source = real(data, "sse_600519_20230201/entrust.csv.gz", "sse_600519_orders.toml", ORDERS)
    same(
        rows, source, order_id=("OrderNO", int), event=("BizIndex", int), exchange_ns=("OrderTime", shanghai_ns),
        price=("OrderPrice", cents), quantity=("Balance", int), instrument=("SecurityID", int),
        side=("OrderBSFlag", str.encode), kind=("OrderType", str.encode),
    )  # fmt: skip
    assert len(rows) == 54_735


def test_real_trades(data: Path) -> None:
    rows, source = real(data, "sse_600519_20230201/trade.csv.gz", "sse_600519_trades.toml", TRADES)
    same(
        rows, source, trade_id=("TradeIndex", int), event=("BizIndex", int), exchange_ns=("TradTime", shanghai_ns),
        buy_order_id=("TradeBuyNo", int), sell_order_id=("TradeSellNo", int), price=("TradPrice", cents),
        quantity=("TradVolume", int), instrument=("SecurityID", int), side=("TradeBSFlag", str.encode),
    )  # fmt: skip
    assert (len(rows), int(rows["quantity"].sum())) == (27_135, 3_397_389)
    assert int((rows["price"] * rows["quantity"]).sum()) == 62_446_789_246_100


def test_real_quotes(data: Path) -> None:
    rows, source = real(data, "sse_600519_20230201/snapshot.csv.gz", "sse_600519_quotes.toml", QUOTES)
    same(
        rows, source, trade_count=("TradNumber", int), exchange_ns=("UpdateTime", shanghai_ns),
        last_price=("LastPrice", cents), volume=("TradVolume", int), instrument=("SecurityID", int),
    )  # fmt: skip
    for side, name in (("bid", "Bid"), ("ask", "Ask")):
        for level in range(10):
            prices, volumes = (f"{name}{what}{level + 1}" for what in ("Price", "Volume"))
            assert rows[f"{side}_price"][:, level].tolist() == [cents(row[prices]) for row in source]
            assert rows[f"{side}_quantity"][:, level].tolist() == [int(row[volumes] or 0) for row in source]


def test_real_bitcoin_trades(data: Path) -> None:
    rows, source = real(data, "binance_usdm_btcusdt_20240808/trades.csv.gz", "btcusdt_trades.toml", TRADES)
    same(
        rows, source, trade_id=("t", int), exchange_ns=("T", lambda ms: int(ms) * 10**6),
        price=("p", lambda text: int(Decimal(text) * 10_000)), quantity=("q", lambda text: int(Decimal(text) * 1000)),
        side=("m", {"0": b"B", "1": b"S"}.__getitem__),
    )  # fmt: skip


def test_real_orders_of_five_securities_with_dates_in_a_column_of_their_own(data: Path) -> None:
    plan = parse_map(
        b"""
        [fields]
        order_id = "OrderNO"
        event = "ApplSeqNum"
        exchange_ns = {columns = ["MDDate", "MDTime"], time = "%Y.%m.%d %H:%M:%S.%f", zone = "Asia/Shanghai"}
        price = {column = "OrderPrice", scale = 10000, round = true}
        quantity = "OrderQty"
        instrument = {column = "SecurityID", map = {"605580.SH" = 605580, "600536.SH" = 600536}}
        account = {constant = 0}
        side = {column = "OrderBSFlag", map = {1 = "B", 2 = "S"}}
        kind = {column = "OrderType", map = {2 = "A", 10 = "D"}}
        [filter]
        SecurityID = ["605580.SH", "600536.SH"]
        """,
        ORDERS,
    )
    with CsvRows(data / "sse_orders_trades_20230711/SHorders.csv.gz", plan) as reader:
        rows = np.concatenate(list(reader))
    assert reader.counts.good + reader.counts.filtered == 149_359
    assert set(rows["instrument"].tolist()) == {605580, 600536}
    assert not (rows["price"] % 100).any()
    assert re.fullmatch(r"2023-07-11T01:15:00\.\d+", str(rows["exchange_ns"].min().astype("M8[ns]")))


def test_a_rejects_file_that_is_there_already_is_written_anew_beside_standard_input_too(tmp_path, monkeypatch):
    rejects = tmp_path / "rejects.csv"
    rejects.write_text("of an earlier run")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"n,t\n1,a\nx,b\n")))
    with CsvRows("-", parse_map(PAIR_MAP, PAIR), rejects=rejects) as reader:
        assert sum(len(batch) for batch in reader) == 1
    assert "earlier" not in rejects.read_text()
