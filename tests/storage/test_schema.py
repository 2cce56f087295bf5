"""What a schema promises: its layout, its written forms, its hash, and refusals that name the field and the reason."""

import copy
import json
import keyword
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from ringmain.storage import ACCOUNTS, ORDERS, QUOTES, SHIPPED, TRADES, Field, Schema, SchemaError, StorageError

SCALARS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"]

topics = st.from_regex("[a-z_][a-z0-9_]{0,31}", fullmatch=True)
names = st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,62}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name) and name not in ("sequence", "timestamp_ns")
)
scalars = st.sampled_from(SCALARS) | st.integers(1, 40).map(lambda length: f"S{length}")
lengths = st.integers(1, 6)
types = (
    scalars
    | st.builds(lambda length, scalar: f"{length}{scalar}", lengths, scalars)
    | st.builds(lambda rows, columns, scalar: f"({rows},{columns}){scalar}", lengths, lengths, scalars)
)
prose = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=40)


@st.composite
def declarations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of a schema that can be laid out."""
    fields = draw(st.dictionaries(names, types, min_size=1, max_size=12))
    single = [name for name, type_text in fields.items() if not np.dtype(type_text).shape]
    key = draw(st.lists(st.sampled_from(single), unique=True, max_size=3)) if single else []
    units = {name: draw(prose) for name in fields if draw(st.booleans())}
    return {"name": draw(topics), "fields": fields, "key": key, "units": units, "description": draw(prose)}


schemas = declarations().map(lambda declared: Schema(**declared))


def refusal(*arguments: Any, **named: Any) -> SchemaError:
    with pytest.raises(SchemaError) as caught:
        Schema(*arguments, **named)
    return caught.value


# Layout


@given(declarations())
def test_the_layout_is_that_of_an_aligned_numpy_struct_behind_the_stamp(declared: dict[str, Any]) -> None:
    schema = Schema(**declared)
    stamped = [("sequence", "<u8"), ("timestamp_ns", "<i8"), *declared["fields"].items()]
    assert schema.dtype == np.dtype(stamped, align=True)
    assert schema.row_bytes == schema.dtype.itemsize
    assert schema.row_bytes % 8 == 0


@given(schemas)
def test_the_payload_is_the_row_without_its_first_16_bytes(schema: Schema) -> None:
    row, payload = schema.dtype.fields, schema.payload_dtype.fields
    assert row is not None
    assert payload is not None
    assert list(row) == ["sequence", "timestamp_ns", *payload]
    assert {name: (kind, offset + 16) for name, (kind, offset, *_) in payload.items()} == {
        name: (kind, offset) for name, (kind, offset, *_) in row.items() if name in payload
    }
    assert schema.payload_dtype.itemsize == schema.row_bytes - 16


@given(schemas)
def test_every_type_is_little_endian_and_spelt_as_numpy_reads_it(schema: Schema) -> None:
    for field in schema.fields:
        assert schema.dtype[field.name] == np.dtype(field.type).newbyteorder("<")


@pytest.mark.parametrize(
    ("declared", "canonical"),
    [
        ("<i8", "i8"),
        ("|S3", "S3"),
        ("S03", "S3"),
        ("|b1", "?"),
        ("(10,)i8", "10i8"),
        ("(10)i8", "10i8"),
        ("(10,)<i8", "10i8"),
        ("(2, 5)f4", "(2,5)f4"),
        ("1u2", "1u2"),
        (np.int64, "i8"),
        (np.bool_, "?"),
        (np.dtype("S7"), "S7"),
        (np.dtype(("<u2", (2, 3))), "(2,3)u2"),
    ],
)
def test_each_spelling_of_a_type_is_kept_in_one_form(declared: Any, canonical: str) -> None:
    schema = Schema("t", {"x": declared})
    assert schema.fields == (Field("x", canonical),)
    assert schema == Schema("t", {"x": canonical})


def test_a_row_is_filled_up_to_a_multiple_of_eight_bytes() -> None:
    schema = Schema("t", {"flag": "?", "price": "i8", "side": "S1"})
    assert [schema.dtype.fields[name][1] for name in ("flag", "price", "side")] == [16, 24, 32]  # type: ignore[index]
    assert schema.row_bytes == 40


# Content: equality, hash, forms


@given(schemas)
def test_json_gives_the_same_schema_back(schema: Schema) -> None:
    again = Schema.from_json(schema.to_json())
    assert again == schema
    assert again.dtype == schema.dtype
    assert again.payload_dtype == schema.payload_dtype
    assert again.to_json() == schema.to_json()


def as_toml(schema: Schema) -> bytes:
    text = [f"[topics.{schema.name}]", f"description = {json.dumps(schema.description, ensure_ascii=False)}"]
    text += [f"key = {json.dumps(schema.key)}", f"[topics.{schema.name}.fields]"]
    for field in schema.fields:
        unit = json.dumps(field.unit, ensure_ascii=False)
        text.append(
            f'{field.name} = {{ type = "{field.type}", unit = {unit} }}'
            if field.unit
            else f"{field.name} = '{field.type}'"
        )
    return "\n".join(text).encode()


@given(st.lists(schemas, min_size=1, max_size=4, unique_by=lambda schema: schema.name))
def test_toml_gives_the_same_schemas_back_in_the_same_order(declared: list[Schema]) -> None:
    read = Schema.from_toml(b"\n".join(as_toml(schema) for schema in declared))
    assert list(read.items()) == [(schema.name, schema) for schema in declared]


def test_toml_is_read_from_a_file_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(as_toml(TRADES))
    assert Schema.from_toml(path) == Schema.from_toml(str(path)) == {"trades": TRADES}


@given(schemas)
def test_a_schema_survives_pickling_copying_and_its_own_repr(schema: Schema) -> None:
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert copy.deepcopy(schema) == schema
    assert eval(repr(schema), {"Schema": Schema}) == schema
    assert {schema: 1}[Schema.from_json(schema.to_json())] == 1


@given(declarations(), prose)
def test_the_hash_depends_on_rows_and_key_and_not_on_prose(declared: dict[str, Any], text: str) -> None:
    schema = Schema(**declared)
    reworded = Schema(**{**declared, "units": dict.fromkeys(declared["fields"], text), "description": text})
    assert reworded.hash == schema.hash
    assert 0 <= schema.hash < 2**64


@given(schemas, schemas)
@example(Schema("t", {"x": "i8"}), Schema("t", {"x": "u8"}))
@example(Schema("t", {"x": "i8"}), Schema("t", {"y": "i8"}))
@example(Schema("t", {"x": "i8"}), Schema("u", {"x": "i8"}))
@example(Schema("t", {"x": "i8", "y": "i8"}), Schema("t", {"y": "i8", "x": "i8"}))
@example(Schema("t", {"x": "i8", "y": "i8"}, ("x", "y")), Schema("t", {"x": "i8", "y": "i8"}, ("y", "x")))
@example(Schema("t", {"x": "8S1"}), Schema("t", {"x": "S8"}))
def test_schemas_whose_rows_or_keys_differ_have_different_hashes(one: Schema, other: Schema) -> None:
    bare = [(s.name, [(field.name, field.type) for field in s.fields], s.key) for s in (one, other)]
    assume(bare[0] != bare[1])
    assert one.hash != other.hash
    assert one != other


def test_the_json_form_and_the_hash_stay_as_they_were_first_written() -> None:
    schema = Schema("trades", {"price": "i8", "side": "S1"}, key=("side",), units={"price": "1/10,000 CNY"})
    assert schema.to_json() == (
        b'{"name":"trades","fields":[{"name":"price","type":"i8","unit":"1/10,000 CNY"},{"name":"side","type":"S1"}],'
        b'"key":["side"]}'
    )
    assert schema.hash == 0x8B152E148FD025A1


@pytest.mark.parametrize("attribute", ["name", "fields", "key", "dtype", "hash", "new"])
def test_a_schema_cannot_be_changed(attribute: str) -> None:
    with pytest.raises((AttributeError, TypeError)):
        setattr(copy.copy(TRADES), attribute, None)


def test_names_in_other_scripts_are_welcome() -> None:
    schema = Schema("quotes", {"价格": "i8"}, key=("价格",), units={"价格": "分"})
    assert Schema.from_json(schema.to_json()) == schema


# The difference of two schemas, in words


@given(schemas, schemas)
def test_a_difference_is_told_exactly_when_there_is_one(one: Schema, other: Schema) -> None:
    assert one.describe_difference(one) == "no difference"
    assert (one.describe_difference(other) == "no difference") == (one == other)


def test_a_difference_is_told_in_words() -> None:
    ours = Schema("t", {"a": "i8", "b": "i8", "c": "S1"}, key=("a",), units={"b": "ms"}, description="one")
    theirs = Schema("u", {"b": "i8", "a": "f8", "d": "S1"}, units={"b": "ns"}, description="two")
    assert ours.describe_difference(theirs).split("; ") == [
        "the topic is 't' here and 'u' there",
        "field 'c' exists only here",
        "field 'd' exists only there",
        "field 'a' is i8 here and f8 there",
        "the shared fields stand in another order: where 'a' is here, 'b' is there",
        "the key is (a) here and none there",
        "field 'b' has the unit 'ms' here and 'ns' there",
        "the descriptions differ",
    ]


def test_a_long_difference_is_cut_and_the_rest_counted() -> None:
    wide = Schema("t", {f"x{number}": "i8" for number in range(1_000)})
    assert wide.describe_difference(Schema("t", {"y": "i8"})).endswith("; and 993 more differences")


# Refusals


@pytest.mark.parametrize(
    ("type_text", "why"),
    [
        (">i4", "big-endian; rows are little-endian, so write i4"),
        ("=i4", "byte order that differs between machines"),
        ("O", "a pointer"),
        ("object", "a pointer"),
        ("U4", "use S<n>"),
        ("<U4", "use S<n>"),
        ("str", "use S<n>"),
        ("V8", "declare each part as a field"),
        ("c16", "declare two fields"),
        ("M8[ns]", "use i8"),
        ("datetime64[ns]", "use i8"),
        ("m8[s]", "use i8"),
        ("S", "say how many, as in S8"),
        ("S0", "say how many, as in S8"),
        ("0i4", "an array without elements"),
        ("(2,0)i4", "an array without elements"),
        ("(2,3,4)i4", "3 dimensions; at most 2"),
        ("()i4", "not whole numbers"),
        ("(-1,)i4", "not whole numbers"),
        ("(2,3)(4,)i8", "allowed are"),
        ("i3", "allowed are"),
        ("f2", "allowed are"),
        ("int64", "allowed are"),
        ("i4,i4", "allowed are"),
        ("i4\n", "allowed are"),
        ("", "allowed are"),
        ("٣i4", "allowed are"),
        ("S" + "9" * 5_000, "5001 characters"),
        (None, "not a string"),
        (8, "not a string"),
        (int, "not a string"),
        (np.dtype("O"), "a pointer"),
        (np.dtype(">i8"), "big-endian"),
        (np.dtype([("a", "i4")]), "declare each part as a field"),
        (np.complex64, "declare two fields"),
        (np.str_, "use S<n>"),
        (np.dtype(("i4", (2, 2, 2))), "3 dimensions"),
    ],
)
def test_a_type_without_a_fixed_meaning_is_refused_by_field_and_reason(type_text: Any, why: str) -> None:
    error = refusal("trades", {"good": "i8", "bad": type_text})
    assert (error.topic, error.field) == ("trades", "bad")
    assert why in error.reason
    assert str(error).startswith("topic 'trades', field 'bad': ")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sequence", "reserved"),
        ("timestamp_ns", "reserved"),
        ("class", "keyword"),
        ("None", "keyword"),
        ("", "identifier"),
        ("9lives", "identifier"),
        ("bid price", "identifier"),
        ("bid.price", "identifier"),
        ("price\n", "identifier"),
        ("\ud800", "identifier"),
        ("ﬁeld", "'field'"),
        ("x" * 64, "64 characters; at most 63"),
    ],
)
def test_a_field_name_that_python_could_not_say_is_refused(name: str, why: str) -> None:
    error = refusal("trades", {"good": "i8", name: "i8"})
    assert (error.topic, error.field) == ("trades", name)
    assert why in error.reason


@pytest.mark.parametrize(
    "name", ["", "Trades", "tra-des", "9trades", "a/b", "..", "trades\n", "térmico", "t" * 33, None]
)
def test_a_topic_name_that_is_not_a_short_plain_word_is_refused(name: Any) -> None:
    error = refusal(name, {"price": "i8"})
    assert "name" in error.reason
    assert repr(name) in str(error)


def test_the_longest_names_are_accepted() -> None:
    assert Schema("t" * 32, {"x" * 63: "i8"}).row_bytes == 24


def test_a_record_has_between_one_and_a_thousand_fields() -> None:
    assert "1 to 1,000 fields, not 0" in refusal("t", {}).reason
    assert "1 to 1,000 fields, not 1,001" in refusal("t", {f"x{number}": "i1" for number in range(1_001)}).reason
    assert Schema("t", {f"x{number}": "i1" for number in range(1_000)}).row_bytes == 1_016


def test_a_row_that_grows_too_long_names_the_field_at_which_it_does() -> None:
    assert Schema("t", {"text": "S65504", "price": "i8"}).row_bytes == 65_528
    error = refusal("t", {"text": "S65504", "price": "i8", "flag": "?"})
    assert error.field == "flag"
    assert "65,529 bytes here; at most 65,528" in error.reason
    assert refusal("t", {"a": "i8", "huge": "(4000000000,4000000000)i8"}).field == "huge"
    assert refusal("t", {"huge": "S" + "9" * 60}).field == "huge"


@pytest.mark.parametrize(
    ("key", "field", "why"),
    [
        (("missing",), "missing", "not among the fields"),
        (("price", "price"), "price", "twice"),
        (("levels",), "levels", "an array (10i8)"),
        ((5,), None, "5, not a string"),
        ((["price"],), None, "not a string"),
        ("price", None, "write ('price',)"),
    ],
)
def test_a_key_that_cannot_identify_a_record_is_refused(key: Any, field: str | None, why: str) -> None:
    error = refusal("quotes", {"price": "i8", "levels": "10i8"}, key)
    assert (error.topic, error.field) == ("quotes", field)
    assert why in error.reason


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "\ud800", "\u202ereversed", 5])
def test_prose_that_could_garble_a_terminal_is_refused(text: Any) -> None:
    assert "description" in refusal("t", {"x": "i8"}, description=text).reason
    error = refusal("t", {"x": "i8"}, units={"x": text})
    assert error.field == "x"
    assert "unit" in error.reason


def test_prose_is_bounded() -> None:
    assert "64 characters" in refusal("t", {"x": "i8"}, units={"x": "u" * 64}).reason
    assert "1001 characters" in refusal("t", {"x": "i8"}, description="d" * 1_001).reason


def test_a_unit_for_a_field_that_is_not_there_is_refused() -> None:
    assert refusal("t", {"x": "i8"}, units={"y": "ms"}).field == "y"


def test_fields_and_units_that_are_not_mappings_are_refused() -> None:
    assert "map" in refusal("t", [("x", "i8")]).reason
    assert "map" in refusal("t", {"x": "i8"}, units=["ms"]).reason
    assert "not a string" in refusal("t", {5: "i8"}).reason


def test_a_schema_error_is_a_value_error_a_storage_error_and_survives_pickling() -> None:
    error = refusal("t", {"x": "O"})
    assert isinstance(error, ValueError)
    assert isinstance(error, StorageError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.topic, again.field, again.reason) == (str(error), "t", "x", error.reason)


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        ("[topics.trades]\nkey = []", None, "missing required field `fields`"),
        ("[topics.trades]\nkee = []\nfields = {x = 'i8'}", None, "unknown field `kee`"),
        ("[topics.trades]\nkey = 'x'\nfields = {x = 'i8'}", None, "`$.key`"),
        ("[topics]\ntrades = 5", None, "a topic has a table of fields"),
        ("[topics.trades.fields]\nx = 5", "x", 'write a type such as "i8"'),
        ("[topics.trades.fields]\nx = {unit = 'ms'}", "x", "missing required field `type`"),
        ("[topics.trades.fields]\nx = {type = 'i8', units = 'ms'}", "x", "unknown field `units`"),
        ("[topics.trades.fields]\nx = {type = 8}", "x", "`$.type`"),
        ("[topics.trades.fields]\nok = 'i8'\nx = 'U4'", "x", "use S<n>"),
        ("[topics.trades]\nkey = ['x']\nfields = {y = 'i8'}", "x", "not among the fields"),
    ],
)
def test_a_toml_error_names_file_topic_and_field(tmp_path: Path, text: str, field: str | None, why: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SchemaError) as caught:
        Schema.from_toml(path)
    assert (caught.value.source, caught.value.topic, caught.value.field) == (str(path), "trades", field)
    assert why in caught.value.reason
    assert str(caught.value).startswith(f"{path}: topic 'trades'")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[topics",
        b"[other]\nx = 1",
        b"\xff",
        b"x = " + b"[" * 100_000,
        b"x = " + b"9" * 10_000,
        b"[topics]\n[topics]",
    ],
)
def test_what_is_not_a_file_of_schemas_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(SchemaError, match=r"bad\.toml"):
        Schema.from_toml(path)


def test_json_that_declares_a_field_twice_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"topic 't', field 'x': this name is declared twice"):
        Schema.from_json(b'{"name":"t","fields":[{"name":"x","type":"i8"},{"name":"x","type":"i4"}]}')


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"name":"t","fields":' + b"[" * 100_000)
@example(b'{"name":"t","fields":[{"name":"\xff","type":"i8"}]}')
@example(b'{"name":"t","fields":[{"name":"x","type":"i8","offset":8}]}')
@example(b'{"name":"t","fields":[{"name":"x","type":5}]}')
def test_bytes_from_anybody_give_a_schema_or_a_schema_error(data: bytes) -> None:
    with pytest.raises(SchemaError, match="schema as JSON"):
        Schema.from_json(data)


@given(schemas, st.data())
def test_json_with_one_byte_changed_gives_a_schema_or_a_schema_error(schema: Schema, data: st.DataObject) -> None:
    damaged = bytearray(schema.to_json())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = Schema.from_json(damaged)
    except SchemaError:
        return
    assert Schema.from_json(read.to_json()) == read


# The shipped schemas


def test_orders_trades_accounts_and_quotes_ship_with_the_package() -> None:
    assert {"orders": ORDERS, "trades": TRADES, "accounts": ACCOUNTS, "quotes": QUOTES} == SHIPPED
    assert {name: schema.row_bytes for name, schema in SHIPPED.items()} == {
        "orders": 72,
        "trades": 80,
        "accounts": 80,
        "quotes": 368,
    }
    assert QUOTES.dtype["bid_price"].shape == (10,)


@pytest.mark.parametrize("schema", SHIPPED.values(), ids=lambda schema: schema.name)
def test_a_shipped_row_has_no_gap_between_its_fields(schema: Schema) -> None:
    used_bytes = sum(schema.dtype[name].itemsize for name in schema.dtype.names or ())
    assert schema.row_bytes - used_bytes < 8


@pytest.mark.parametrize("schema", SHIPPED.values(), ids=lambda schema: schema.name)
def test_shipped_prices_and_money_are_whole_numbers_with_their_unit(schema: Schema) -> None:
    money = {"price", "last_price", "bid_price", "ask_price", "balance", "available", "margin", "commission"}
    for field in schema.fields:
        if field.name in money or field.name.endswith("_profit"):
            assert field.type in ("i8", "10i8")
            assert field.unit == "1/10,000 of the currency unit"
        if field.name.endswith("_ns"):
            assert (field.type, field.unit) == ("i8", "ns since the Unix epoch")
