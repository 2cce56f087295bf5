"""How a schema is written down: as canonical JSON beside the data, as TOML by people.

A document says what somebody declared; whether it can be laid out is for Schema to decide. JSON is canonical because
msgspec writes fields in declared order, without spaces, and leaves out what is empty: equal documents, equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path

import msgspec

from .decodable import decodable
from .errors import SchemaError

__all__ = ["Document", "Field", "encode_json", "first_repeated", "read_json", "read_table", "read_toml"]


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One column of a record: its name, the spelling of its type, and the unit of its values in words."""

    name: str
    type: str
    unit: str = ""


@decodable
class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A schema as declared; also, field for field, its JSON form."""

    name: str
    fields: tuple[Field, ...]
    key: tuple[str, ...] = ()
    description: str = ""


def encode_json(document: Document) -> bytes:
    return msgspec.json.encode(document)


def read_json(data: bytes | bytearray | memoryview, place: str) -> Document:
    """Return the document in `data`; raise SchemaError for anything else. place: where it is from, for the error."""
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SchemaError(str(error), source=place) from None
    twice = first_repeated(column.name for column in document.fields)
    if twice is not None:
        raise SchemaError("this name is declared twice", topic=document.name, field=twice, source=place)
    return document


class _TomlFile(msgspec.Struct, forbid_unknown_fields=True):
    topics: dict[str, object]  # each table is converted by itself, so that an error can name it


class _TomlTopic(msgspec.Struct, forbid_unknown_fields=True):
    fields: dict[str, object]
    key: tuple[str, ...] = ()
    description: str = ""


class _TomlField(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    unit: str = ""


def read_toml(source: str | PathLike[str] | bytes) -> tuple[str, list[Document]]:
    """Return where the schemas are from, for errors, and what is declared there, in the file's order.

    source: a path, or the content. Raises SchemaError naming file, topic and field; OSError when it cannot be read.
    """
    place = "schemas as TOML" if isinstance(source, bytes) else fspath(source)
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        topics = msgspec.toml.decode(data, type=_TomlFile).topics
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SchemaError(f"{error}; declare each schema as a table [topics.NAME]", source=place) from None
    return place, [read_table(place, name, table) for name, table in topics.items()]


def read_table(place: str, name: str, table: object) -> Document:
    """Return what the table of one topic declares. place: where it is from. Raises SchemaError."""
    try:
        topic = msgspec.convert(table, _TomlTopic)
    except msgspec.ValidationError as error:
        raise SchemaError(
            f"{error}; a topic has a table of fields, and may have a key and a description", topic=name, source=place
        ) from None
    columns = tuple(_read_field(place, name, field, value) for field, value in topic.fields.items())
    return Document(name, columns, topic.key, topic.description)


def _read_field(place: str, topic: str, name: str, value: object) -> Field:
    try:
        column = msgspec.convert({"type": value} if isinstance(value, str) else value, _TomlField)
    except msgspec.ValidationError as error:
        reason = f'{error}; write a type such as "i8", or {{type = "i8", unit = "shares"}}'
        raise SchemaError(reason, topic=topic, field=name, source=place) from None
    return Field(name, column.type, column.unit)


def first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
