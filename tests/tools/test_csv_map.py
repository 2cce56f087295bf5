"""A map says what is wrong with it, and where, before any row is read."""

from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import ORDERS, QUOTES, TRADES, Schema
from ringmain.tools.csv_map import MapError, load_map, parse_map
from ringmain.tools.csv_rows import CsvRows

MAPS = Path(__file__).parents[2] / "examples" / "maps"
TICK = Schema("ticks", {"at_ns": "i8", "price": "i8", "side": "S1", "ratio": "f8", "open": "?", "levels": "3u2"})
GOOD = {
    "at_ns": '{column = "Time", time = "%H:%M:%S.%f", date = "2023-02-01", zone = "Asia/Shanghai"}',
    "price": '{column = "Price", scale = 10000, round = true}',
    "side": '"Side"',
    "ratio": "{constant = 0.5}",
    "open": '{column = "Open", empty = true}',
    "levels": '{columns = "L{1..3}", empty = 0}',
}


def map_text(tail: str = "", **changed: str | None) -> bytes:
    fields = {name: source for name, source in {**GOOD, **changed}.items() if source is not None}
    return ("[fields]\n" + "".join(f"{name} = {source}\n" for name, source in fields.items()) + tail).encode()


def error_of(text: bytes, schema: Schema = TICK) -> MapError:
    with pytest.raises(MapError) as caught:
        parse_map(text, schema, "a.toml")
    return caught.value


def test_a_good_map_is_taken() -> None:
    plan = parse_map(map_text('[filter]\nStatus = ["T"]\n[pace]\nfield = "at_ns"\n'), TICK)
    columns = [field.columns for field in plan.fields]
    assert columns == [("Time",), ("Price",), ("Side",), (), ("Open",), ("L1", "L2", "L3")]
    assert plan.pace == "at_ns"
    assert plan.filters == (("Status", frozenset({"T"})),)
    assert (plan.delimiter, plan.header, plan.encoding) == (",", None, "utf-8")


@pytest.mark.parametrize(
    ("field", "source", "where", "words"),
    [
        ("price", "5", "fields.price", "a column's name"),
        ("price", '{colum = "P"}', "fields.price.colum", "unknown here"),
        ("price", '{column = "P", scale = "x"}', "fields.price.scale", "Expected `int"),
        ("price", '{column = "P", scale = 0}', "fields.price.scale", ">= 1"),
        ("price", '{column = "P", round = true}', "fields.price.round", "scale beside it"),
        ("price", '{column = "P", zone = "UTC"}', "fields.price.zone", "time beside it"),
        ("price", "{scale = 10}", "fields.price", "exactly one of column, columns, constant"),
        ("price", '{column = "P", constant = 1}', "fields.price", "exactly one of column, columns, constant"),
        ("price", "{constant = 1, scale = 10}", "fields.price.scale", "nothing beside constant"),
        ("price", '{column = "P", scale = 10, map = {a = 1}}', "fields.price", "at most one of scale, map, time"),
        ("price", "{constant = 1.5}", "fields.price.constant", "a whole number"),
        ("price", "{constant = true}", "fields.price.constant", "a whole number"),
        ("price", "{constant = 9223372036854775808}", "fields.price.constant", "to 9223372036854775807"),
        ("price", "{constant = [1]}", "fields.price.constant", "one value, not a list"),
        ("price", '{column = "P", empty = "x"}', "fields.price.empty", "a whole number"),
        ("price", '{columns = ["P", "Q"]}', "fields.price", "one column, since the type is i8"),
        ("price", '{columns = ["P"]}', "fields.price", "column, not columns"),
        ("price", '{column = "P", map = {}}', "fields.price.map", "at least one"),
        ("price", '{column = "P", map = {a = "b"}}', "fields.price.map.a", "a whole number"),
        ("side", '{constant = "BS"}', "fields.side.constant", "at most 1 bytes"),
        ("side", '{column = "S", map = {buy = "BUY"}}', "fields.side.map.buy", "at most 1 bytes"),
        ("side", '{column = "S", scale = 10}', "fields.side.scale", "an integer field; the type is S1"),
        ("side", '{column = "S", time = "%H", date = "2023-02-01"}', "fields.side.time", "an i8 or u8 field"),
        ("ratio", '{column = "R", scale = 10}', "fields.ratio.scale", "an integer field; the type is f8"),
        ("open", "{constant = 1}", "fields.open.constant", "true or false"),
        ("levels", '"L1"', "fields.levels", 'columns with 3 names, such as "Name{1..3}"'),
        ("levels", '{columns = "L{1..4}"}', "fields.levels", "since the type is (3,)u2; got 4"),
        ("levels", '{columns = "L{1-3}"}', "fields.levels.columns", "a pattern such as"),
        ("levels", '{columns = "L{3..1}"}', "fields.levels.columns", "a rising range"),
        ("levels", '{columns = "L{1..999999999}"}', "fields.levels.columns", "a rising range"),
        ("levels", "{constant = [1, 2]}", "fields.levels.constant", "a list of 3"),
        ("levels", "{constant = [1, 2, 65536]}", "fields.levels.constant", "to 65535"),
        ("at_ns", '{column = "T", time = "%H:%M"}', "fields.at_ns.time", "a date, as date"),
        ("at_ns", '{column = "T", time = "%Y%m%d%H", date = "2023-02-01"}', "fields.at_ns.time", "not both"),
        ("at_ns", '{column = "T", time = "%Y%m%d"}', "fields.at_ns.time", "with %H"),
        ("at_ns", '{column = "T", time = "%H%q", date = "2023-02-01"}', "fields.at_ns.time", "not %q"),
        ("at_ns", '{column = "T", time = "%H%H", date = "2023-02-01"}', "fields.at_ns.time", "%H only once"),
        ("at_ns", '{column = "T", time = "%H", date = "2023-02-30"}', "fields.at_ns.date", "YYYY-MM-DD"),
        ("at_ns", '{column = "T", time = "%H", date = "2023-02-01", zone = "Mars"}', "fields.at_ns.zone", "time zone"),
        ("at_ns", '{columns = ["D", "T"], time = "%Y%m%d %H", pad = 9}', "fields.at_ns.pad", "one column"),
    ],
)
def test_a_wrong_source_is_named_with_its_line(field: str, source: str, where: str, words: str) -> None:
    error = error_of(map_text(**{field: source}))
    assert (error.path, error.where, error.line) == ("a.toml", where, 2 + list(GOOD).index(field))
    assert words in error.expected
    assert str(error).startswith(f"a.toml, line {error.line}: {where}: ")


@pytest.mark.parametrize(
    ("text", "where", "line", "words"),
    [
        (map_text(price=None), "fields", 1, "nothing for the field 'price' of schema 'ticks'"),
        (map_text(colour='"C"'), "fields.colour", 8, "no such field; schema 'ticks' has the fields at_ns, price"),
        (map_text("[cvs]\n"), "cvs", 8, "unknown here; expected one of fields, csv, filter, pace"),
        (b"", "", None, "missing required field `fields`"),
        (b"fields = 3", "fields", 1, "Expected `object`"),
        (map_text('[csv]\ndelimiter = ";;"\n'), "csv.delimiter", 9, "one ASCII character"),
        (map_text("[csv]\ndelimiter = '\"'\n"), "csv.delimiter", 9, "not a quote"),
        (map_text("[csv]\nquote = 1\n"), "csv.quote", 9, "unknown here"),
        (map_text('[csv]\nencoding = "utf-16"\n'), "csv.encoding", 9, "contains ASCII"),
        (map_text('[csv]\nencoding = "hex"\n'), "csv.encoding", 9, "contains ASCII"),
        (map_text('[csv]\nencoding = "iso2022_jp"\n'), "csv.encoding", 9, "contains ASCII"),
        (map_text('[csv]\nencoding = "nonsense"\n'), "csv.encoding", 9, "contains ASCII"),
        (map_text("[csv]\nheader = false\n"), "csv.header", 9, "the list of the column names"),
        (map_text('[csv]\nheader = ["Time", "Price"]\n'), "fields.side", 4, "the file has no column 'Side'"),
        (map_text("[filter]\nStatus = 3\n"), "filter.Status", 9, "Expected `array`"),
        (map_text("[filter]\nStatus = []\n"), "filter.Status", 9, "at least one"),
        (map_text('[pace]\nfield = "nowhere"\n'), "pace.field", 9, "an i8 or u8 field"),
        (map_text('[pace]\nfield = "levels"\n'), "pace.field", 9, "an i8 or u8 field"),
        (map_text("[pace]\n"), "pace", 8, "missing required field `field`"),
        (map_text("[fields.sub\n"), "", None, "not TOML: "),
        (b"[fields]\nprice = \xff\n", "", 2, "not the byte 0xff"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(text: bytes, where: str, line: int | None, words: str) -> None:
    error = error_of(text)
    assert (error.where, error.line) == (where, line)
    assert words in str(error)


def test_a_toml_syntax_error_names_its_line() -> None:
    assert "line 2" in str(error_of(b"[fields]\nprice = = 3\n"))


def test_a_field_may_have_a_table_of_its_own() -> None:
    text = map_text('[fields.price]\ncolumn = "P"\nscale = 0\n', price=None)
    assert (error_of(text).where, error_of(text).line) == ("fields.price.scale", 9)


def test_a_date_may_be_a_toml_date() -> None:
    quoted, bare = (
        map_text(at_ns=f'{{column = "T", time = "%H", date = {date}}}') for date in ('"2023-02-01"', "2023-02-01")
    )
    assert parse_map(quoted, TICK).fields[0].columns == parse_map(bare, TICK).fields[0].columns == ("T",)


@pytest.mark.parametrize("header", ["A,B\n", "A,A,P\n"])
def test_a_column_that_the_file_lacks_or_has_twice_is_named(header: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(header)
    plan = parse_map(b'[fields]\np = "P"\nq = "A"\n', Schema("x", {"p": "i8", "q": "i8"}), "x.toml")
    expected = r"x.toml, line [23]: fields.[pq]: the file has (no column 'P'|2 columns 'A'); it has A, "
    with CsvRows(tmp_path / "x.csv", plan) as reader, pytest.raises(MapError, match=expected):
        list(reader)


def test_the_maps_that_ship_fit_their_schemas() -> None:
    schemas = {"orders": ORDERS, "trades": TRADES, "quotes": QUOTES}
    paths = sorted(MAPS.glob("*.toml"))
    assert len(paths) >= 4
    for path in paths:
        plan = load_map(path, schemas[path.stem.rpartition("_")[2]])
        assert plan.pace == "exchange_ns"


def test_a_constant_may_fill_an_array() -> None:
    plan = parse_map(map_text(levels="{constant = [1, 2, 3]}", ratio="{constant = 2}"), TICK)
    constants = {field.name: field.constant for field in plan.fields if field.cell is None}
    assert np.array_equal(constants["levels"], [1, 2, 3])
    assert constants["ratio"] == 2.0
