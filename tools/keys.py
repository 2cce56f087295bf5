"""Keys as people write them on a command line, read by the types of the topic's key fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..storage import Field, Schema
from ..storage.units import all_fields, time_unit
from .positions import read_position
from .row_formats import shown

__all__ = ["key_as_text", "key_fields", "read_bound", "read_key", "shown_key"]

TRUTHS = {"true": True, "1": True, "false": False, "0": False}
ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


def key_fields(schema: Schema) -> list[Field]:
    """What a topic's rows are kept by: its key, or its sequence."""
    fields = {field.name: field for field in all_fields(schema)}
    return [fields[name] for name in schema.key or ("sequence",)]


def read_key(schema: Schema, texts: Sequence[str]) -> tuple[Any, ...]:
    """A whole key, a text for each of its fields. Raises ValueError naming the field, and what was expected."""
    fields = key_fields(schema)
    if len(texts) != len(fields):
        values = f"{len(fields)} values are" if len(fields) > 1 else "one value is"
        raise ValueError(
            f"KEY: the key of topic {schema.name!r} is {_words(fields)}: {values} expected, got {len(texts)}"
        )
    return tuple(_read_value("KEY", field, text) for field, text in zip(fields, texts, strict=True))


def read_bound(schema: Schema, text: str | None, option: str) -> tuple[Any, ...] | None:
    """The first values of a key, with commas between them (and quoted, as in CSV, where one contains a comma)."""
    if text is None:
        return None
    fields = key_fields(schema)
    texts: list[str] = next(csv.reader([text]), [""])
    if len(texts) > len(fields):
        at_most = f"at most {len(fields)} values are" if len(fields) > 1 else "one value is"
        raise ValueError(
            f"{option}: the key of topic {schema.name!r} is {_words(fields)}: {at_most} expected, got {len(texts)}"
        )
    return tuple(_read_value(option, field, part) for field, part in zip(fields, texts, strict=False))


def key_as_text(values: Iterable[Any]) -> tuple[Any, ...]:
    """A key's values with bytes as text."""
    return tuple(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values)


def shown_key(values: Sequence[Any]) -> str:
    """A key's values as text, as `read_bound` reads them."""
    line = io.StringIO()
    parts = [shown(value) if isinstance(value, str) else repr(value) for value in key_as_text(values)]
    csv.writer(line, lineterminator="").writerow(parts)
    return line.getvalue()


def _words(fields: Sequence[Field]) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in fields)


def _read_value(place: str, field: Field, text: str) -> Any:
    kind = np.dtype(field.type)
    value: Any = None
    if kind.kind == "S":
        expected = f"a text of at most {kind.itemsize} bytes"
        value = _read_bytes(text, kind.itemsize)
    elif kind.kind == "f":
        expected = "a number"
        value = _read_float(text, kind)
    elif kind.kind == "b":
        expected = "true or false"
        value = TRUTHS.get(text.lower())
    else:
        least, most = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
        expected = f"a whole number from {least} to {most}"
        if time_unit(field) == "ns":
            expected += ", or a time such as 2023-02-01T09:30:00+08:00"
        value = _read_integer(text, least, most, is_time=time_unit(field) == "ns")
    if value is None:
        raise ValueError(f"{place}: field {field.name!r}: {expected} is expected, got {text!r}")
    return value


def _read_integer(text: str, least: int, most: int, *, is_time: bool) -> int | None:
    if re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        return int(text) if least <= int(text) <= most else None
    if is_time:
        try:
            return read_position(text, "", ("time",)).value
        except ValueError:
            return None
    return None


def _read_float(text: str, kind: np.dtype[Any]) -> float | None:
    """A number of that type, the nearest to what is written."""
    try:
        value = float(text)
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        rounded = float(kind.type(value))
    return rounded if np.isfinite(rounded) or not np.isfinite(value) else None


def _read_bytes(text: str, bytes_max: int) -> bytes | None:
    """UTF-8, with \\x escapes for bytes that are none, as rows are printed."""
    value = ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text.encode("utf-8", "surrogateescape"))
    return value if len(value) <= bytes_max else None
