"""A record type: named fields with fixed types, laid out as one aligned little-endian row behind the 16-byte stamp.

1. Layout is a pure function of the fields in their declared order: each field lies at the next multiple of its
   alignment (the size of its scalar; 1 for bytes), the row ends at the next multiple of 8. That is numpy's `align=True`
   and a C compiler's rule on 64-bit machines; it is computed here so that it holds on every machine.
2. The payload is the row without its stamp: the same fields, 16 bytes lower.
3. Equal schemas encode to equal JSON, byte for byte.
4. What comes from a file or from another process passes through the same checks as what a caller writes.
"""

from __future__ import annotations

import hashlib
import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, TypeAlias, cast

import numpy as np

from .errors import SchemaError
from .field_types import FieldType, read_type
from .schema_documents import Document, Field, encode_json, first_repeated, read_json, read_table, read_toml

__all__ = ["STAMP_BYTES", "Field", "Schema"]

STAMP = (("sequence", "u8"), ("timestamp_ns", "i8"))
STAMP_BYTES = 16
ROW_BYTES_MAX = 65_528
FIELD_COUNT_MAX = 1_000
TOPIC_CHARS_MAX = 32
FIELD_CHARS_MAX = 63
UNIT_CHARS_MAX = 63
DESCRIPTION_CHARS_MAX = 1_000
DIFFERENCES_TOLD_MAX = 8

Rows: TypeAlias = np.dtype[np.void]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Schema:
    """The type of a topic's records. Immutable, hashable, picklable; equal when everything that was declared is equal.

    name: the topic, `[a-z_][a-z0-9_]*`, at most 32 characters.
    fields: name -> type, in the order of the row; 1 to 1,000 of them. Names are Python identifiers of at most 63
    characters. Types: `?` `i1` `i2` `i4` `i8` `u1` `u2` `u4` `u8` `f4` `f8`, `S<n>` for n bytes, and arrays of these
    with one or two dimensions: `10i8`, `(2,5)i8`; numpy's own classes and dtypes of these are understood too.
    key: fields that identify a record, in the order of comparison. units, description: prose for people, a line each.
    Raises SchemaError naming the field and the reason when the record cannot be laid out.

    dtype is the row: `sequence` u64, `timestamp_ns` i64 (nanoseconds since the Unix epoch), then the fields.
    payload_dtype is the row without that stamp. row_bytes is at most 65,528 and a multiple of 8.
    hash, an unsigned 64-bit number that no release may change, tells whether a program can read the rows: it covers the
    topic's name, the fields' names, types and order, and the key. Units and description are prose, which may be
    corrected without making old data unreadable: they are not in it, though they count for `==`. It is the first 8
    bytes, read little-endian, of the SHA-256 of the schema's JSON without that prose.
    """

    name: str
    fields: tuple[Field, ...]
    key: tuple[str, ...]
    description: str
    dtype: Rows = field(compare=False)
    payload_dtype: Rows = field(compare=False)
    row_bytes: int = field(compare=False)
    hash: int = field(compare=False)

    def __init__(
        self,
        name: str,
        fields: Mapping[str, FieldType],
        key: Iterable[str] = (),
        units: Mapping[str, str] | None = None,
        description: str = "",
    ) -> None:
        _check_topic(name)
        columns = _read_fields(name, fields, units or {})
        offsets, row_bytes = _lay_out(name, columns)
        keys = _read_key(name, key, columns)
        _check_prose(description, "description", DESCRIPTION_CHARS_MAX, topic=name)
        stamp = tuple(Field(*pair) for pair in STAMP)
        payload = _row_dtype(columns, [at - STAMP_BYTES for at in offsets], row_bytes - STAMP_BYTES)
        for attribute, value in (
            ("name", name),
            ("fields", columns),
            ("key", keys),
            ("description", description),
            ("dtype", _row_dtype(stamp + columns, [0, 8, *offsets], row_bytes)),
            ("payload_dtype", payload),
            ("row_bytes", row_bytes),
            ("hash", _content_hash(name, columns, keys)),
        ):
            object.__setattr__(self, attribute, value)

    def to_json(self) -> bytes:
        """Return the schema as canonical JSON: the same bytes for equal schemas, in every release that reads them."""
        return encode_json(Document(self.name, self.fields, self.key, self.description))

    @classmethod
    def from_json(cls, data: bytes | bytearray | memoryview) -> Schema:
        """Return the schema that `to_json` described; the bytes may come from anybody. Raises SchemaError."""
        place = "schema as JSON"
        return _build(read_json(data, place), place)

    @classmethod
    def from_toml(cls, source: str | PathLike[str] | bytes) -> dict[str, Schema]:
        """Return the schemas of a TOML file by topic, in the file's order.

        source: the file's path, or its content as bytes. Each topic is a table:

            [topics.trades]
            description = "What was traded"     # optional
            key = ["trade_id"]                  # optional
            [topics.trades.fields]
            trade_id = "u8"
            price = {type = "i8", unit = "1/10,000 CNY"}

        Raises SchemaError naming file, topic and field; OSError when the file cannot be read.
        """
        place, documents = read_toml(source)
        return {document.name: _build(document, place) for document in documents}

    @classmethod
    def from_table(cls, name: str, table: Mapping[str, object], place: str = "table") -> Schema:
        """Return the schema of one topic from such a table, read from TOML. place: for the error. Raises SchemaError."""
        return _build(read_table(place, name, table), place)

    def describe_difference(self, other: Schema) -> str:
        """Say in words how `other` differs from this schema, for an error message; "no difference" when they are equal.

        At most 8 differences are told and the others counted, so that the text stays readable with 1,000 fields.
        """
        told = list(_differences(self, other))
        if len(told) > DIFFERENCES_TOLD_MAX:
            told[DIFFERENCES_TOLD_MAX:] = [f"and {len(told) - DIFFERENCES_TOLD_MAX} more differences"]
        return "; ".join(told) or "no difference"

    def __repr__(self) -> str:
        parts = [repr(self.name), repr({column.name: column.type for column in self.fields})]
        units = {column.name: column.unit for column in self.fields if column.unit}
        parts += [f"{word}={value!r}" for word, value in (("key", self.key), ("units", units)) if value]
        parts += [f"description={self.description!r}"] if self.description else []
        return f"Schema({', '.join(parts)})"

    def __reduce__(self) -> tuple[object, ...]:
        return Schema.from_json, (self.to_json(),)


def _build(document: Document, place: str) -> Schema:
    types = {column.name: column.type for column in document.fields}
    units = {column.name: column.unit for column in document.fields}
    try:
        return Schema(document.name, types, document.key, units, document.description)
    except SchemaError as error:
        raise SchemaError(error.reason, topic=error.topic, field=error.field, source=place) from None


# Names, keys and prose.


def _check_topic(name: object) -> None:
    if not isinstance(name, str):
        raise SchemaError(f"the topic's name is {name!r}, not a string")
    if not re.fullmatch("[a-z_][a-z0-9_]*", name):
        raise SchemaError("a topic's name has only a-z, 0-9 and _, and starts with no digit", topic=name)
    if len(name) > TOPIC_CHARS_MAX:
        raise SchemaError(f"the name has {len(name)} characters; at most {TOPIC_CHARS_MAX} are allowed", topic=name)


def _read_fields(topic: str, types: Mapping[str, FieldType], units: Mapping[str, str]) -> tuple[Field, ...]:
    if not isinstance(types, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SchemaError('fields map each name to its type, as in {"price": "i8"}', topic=topic)
    if not isinstance(units, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SchemaError('units map a field\'s name to words, as in {"price": "CNY"}', topic=topic)
    if not 1 <= len(types) <= FIELD_COUNT_MAX:
        raise SchemaError(f"a record has 1 to {FIELD_COUNT_MAX:,} fields, not {len(types):,}", topic=topic)
    for name in units:
        if name not in types:
            raise SchemaError("this name has a unit but is not among the fields", topic=topic, field=str(name))
    columns: list[Field] = []
    for name, declared in types.items():
        _check_field_name(topic, name)
        unit = units.get(name, "")
        _check_prose(unit, "unit", UNIT_CHARS_MAX, topic=topic, field=name)
        try:
            columns.append(Field(name, read_type(declared).spelling, unit))
        except ValueError as error:
            raise SchemaError(str(error), topic=topic, field=name) from None
    return tuple(columns)


def _check_field_name(topic: str, name: object) -> None:
    if not isinstance(name, str):
        raise SchemaError(f"the name of a field is {name!r}, not a string", topic=topic)
    reason = ""
    if len(name) > FIELD_CHARS_MAX:
        reason = f"the name has {len(name)} characters; at most {FIELD_CHARS_MAX} are allowed"
    elif name in dict(STAMP):
        reason = "this name is reserved: every row's stamp has it"
    elif keyword.iskeyword(name):
        reason = "this name is a keyword of Python, so it could not be given by name"
    elif not name.isidentifier():
        reason = "a field's name is a Python identifier: letters, digits and _, and no digit at the start"
    elif unicodedata.normalize("NFKC", name) != name:
        reason = f"Python would read this name as {unicodedata.normalize('NFKC', name)!r}; write it so"
    if reason:
        raise SchemaError(reason, topic=topic, field=name)


def _read_key(topic: str, key: Iterable[str], columns: tuple[Field, ...]) -> tuple[str, ...]:
    if isinstance(key, str):
        raise SchemaError(f"key is a sequence of field names: write ({key!r},)", topic=topic)
    keys = tuple(key)
    types = {column.name: column.type for column in columns}
    for name in keys:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SchemaError(f"a name in the key is {name!r}, not a string", topic=topic)
    twice = first_repeated(keys)
    for name in keys:
        reason = ""
        if name not in types:
            reason = "this name is in the key but not among the fields"
        elif name == twice:
            reason = "this name is in the key twice"
        elif read_type(types[name]).shape:
            reason = f"an array ({types[name]}) cannot be in the key; a key field holds one value"
        if reason:
            raise SchemaError(reason, topic=topic, field=name)
    return keys


def _check_prose(text: object, what: str, chars_max: int, *, topic: str, field: str | None = None) -> None:
    """Refuse what could garble a terminal or fill a header; both show this text to people who did not write it."""
    reason = ""
    if not isinstance(text, str):
        reason = f"the {what} is {text!r}, not a string"
    elif len(text) > chars_max:
        reason = f"the {what} has {len(text)} characters; at most {chars_max:,} are allowed"
    elif not text.isprintable():
        reason = f"the {what} is not one line of printable text: {text!r}"
    if reason:
        raise SchemaError(reason, topic=topic, field=field)


# Layout.


def _lay_out(topic: str, columns: tuple[Field, ...]) -> tuple[list[int], int]:
    """Return each field's offset in the row and the row's size, in bytes."""
    offsets: list[int] = []
    end = STAMP_BYTES
    for column in columns:
        value = read_type(column.type)
        offsets.append(_round_up(end, value.alignment))
        end = offsets[-1] + value.size_bytes
        if end > ROW_BYTES_MAX:
            reason = (
                f"type {column.type!r}: the row would reach {end:,} bytes here; at most {ROW_BYTES_MAX:,} are allowed, "
                f"{STAMP_BYTES} of them for the stamp"
            )
            raise SchemaError(reason, topic=topic, field=column.name)
    return offsets, _round_up(end, 8)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _row_dtype(columns: tuple[Field, ...], offsets: list[int], row_bytes: int) -> Rows:
    layout = {
        "names": [column.name for column in columns],
        "formats": [read_type(column.type).dtype for column in columns],
        "offsets": offsets,
        "itemsize": row_bytes,
    }
    return np.dtype(cast("Any", layout), align=True)  # computed above; numpy checks it against its own rule


# Content: the hash, and the difference of two schemas in words.


def _content_hash(name: str, columns: tuple[Field, ...], key: tuple[str, ...]) -> int:
    bare = tuple(Field(column.name, column.type) for column in columns)
    content = encode_json(Document(name, bare, key))
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _differences(this: Schema, other: Schema) -> Iterator[str]:
    """Tell first what makes rows unreadable, last what is only prose."""
    ours, theirs = ({column.name: column for column in schema.fields} for schema in (this, other))
    shared = [name for name in ours if name in theirs]
    if this.name != other.name:
        yield f"the topic is {this.name!r} here and {other.name!r} there"
    yield from (f"field {name!r} exists only here" for name in ours if name not in theirs)
    yield from (f"field {name!r} exists only there" for name in theirs if name not in ours)
    for name in shared:
        if ours[name].type != theirs[name].type:
            yield f"field {name!r} is {ours[name].type} here and {theirs[name].type} there"
    for name, at_its_place in zip(shared, (name for name in theirs if name in ours), strict=True):
        if name != at_its_place:
            yield f"the shared fields stand in another order: where {name!r} is here, {at_its_place!r} is there"
            break
    if this.key != other.key:
        yield f"the key is {_key_words(this.key)} here and {_key_words(other.key)} there"
    for name in shared:
        if ours[name].unit != theirs[name].unit:
            yield f"field {name!r} has the unit {ours[name].unit!r} here and {theirs[name].unit!r} there"
    if this.description != other.description:
        yield "the descriptions differ"


def _key_words(key: tuple[str, ...]) -> str:
    return f"({', '.join(key)})" if key else "none"
