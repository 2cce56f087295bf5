"""What a field's unit says to programs: that it counts time, that it is a decimal fraction, that its bytes are no text.

Units are prose; these beginnings of them have a meaning:

    ns since the Unix epoch     a time; also us, ms, s. For integers, u8 excepted
    1/10,000 EUR                a decimal number with four places. For integers; 1/10, 1/100, …
    bytes of SHA-256            no text. For S<n>, which is UTF-8 text otherwise
"""

from __future__ import annotations

import re

from .field_types import read_type
from .schema import STAMP, Field, Schema

__all__ = ["all_fields", "decimal_places", "is_text", "time_unit"]

TIME = re.compile(r"(ns|us|ms|s) since the Unix epoch\b.*")
FRACTION = re.compile(r"1/1(?=,?0)([0,]*+)(?!\w|\.\d).*")
BYTES = re.compile(r"bytes\b.*")


def all_fields(schema: Schema) -> tuple[Field, ...]:
    """The fields of a row, those of its stamp first."""
    sequence, timestamp = (Field(*pair) for pair in STAMP)
    return sequence, Field(timestamp.name, timestamp.type, "ns since the Unix epoch"), *schema.fields


def time_unit(field: Field) -> str | None:
    """What a time counts since the Unix epoch: "ns", "us", "ms" or "s". None where the field is no time."""
    match = TIME.fullmatch(field.unit)
    return match[1] if match and _scalar(field)[0] in "iu" and _scalar(field) != "u8" else None


def decimal_places(field: Field) -> int | None:
    """How many decimal places a whole number stands for. None where it is just a number."""
    match = FRACTION.fullmatch(field.unit)
    return match[1].count("0") if match and _scalar(field)[0] in "iu" else None


def is_text(field: Field) -> bool:
    """Whether bytes are UTF-8 text."""
    return _scalar(field)[0] == "S" and not BYTES.fullmatch(field.unit)


def _scalar(field: Field) -> str:
    return read_type(field.type).scalar
