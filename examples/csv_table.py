"""One CSV file and the topic that carries it: which column is which field, there and back.

Every column of the file is named once, as a field or as a constant, so that rows can give back the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from csv_columns import Text, integers, letters, prices, read_columns, shanghai_ns, shanghai_text
from ringmain.storage import Schema

Rows = npt.NDArray[np.void]
Column = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Codec:
    """How a column's text becomes values (ValueError if it cannot), and how values become text again."""

    decode: Callable[[Text], Column]
    encode: Callable[[Column], list[str]]


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file's columns and a schema's fields.

    columns: column of the file -> field of the schema and codec.
    constants: column of the file -> the text that each of its rows has there.
    """

    schema: Schema
    columns: Mapping[str, tuple[str, Codec]]
    constants: Mapping[str, str] = field(default_factory=dict[str, str])

    def load(self, path: Path) -> Rows:
        """Return the file's rows in its order. ValueError names the file and the column that is not as declared."""
        text = read_columns(path)
        if set(text) != {*self.columns, *self.constants}:
            raise ValueError(f"{path}: columns {sorted(text)}, expected {sorted({*self.columns, *self.constants})}")
        for name, value in self.constants.items():
            if other := set(text[name]) - {value}:
                raise ValueError(f"{path}: column {name} holds {other.pop()!r}, expected {value!r} throughout")
        rows = np.zeros(len(next(iter(text.values()))), self.schema.payload_dtype)
        for name, (target, codec) in self.columns.items():
            try:
                values = codec.decode(text[name])
            except ValueError as error:
                raise ValueError(f"{path}: column {name}: {error}") from error
            rows[target] = values
            if (lost := rows[target] != values).any():
                value = text[name][int(lost.argmax())]
                raise ValueError(f"{path}: column {name}: {value!r} does not fit {target} ({rows.dtype[target]})")
        return rows

    def to_columns(self, rows: Rows) -> dict[str, list[str]]:
        """Return the file's columns as text; rows may carry the 16-byte stamp."""
        columns = {name: codec.encode(rows[target]) for name, (target, codec) in self.columns.items()}
        return columns | {name: [value] * len(rows) for name, value in self.constants.items()}


def _integer_text(values: Column) -> list[str]:
    return [str(value) for value in values.astype(np.int64).tolist()]


def _utf8_text(values: Column) -> list[str]:
    return [value.decode() for value in values.tolist()]


def _price_text(values: Column) -> list[str]:
    return [f"{value // 10_000}.{value % 10_000 // 100:02d}" for value in values.tolist()]


INTEGER = Codec(integers, _integer_text)
TEXT = Codec(letters, _utf8_text)
PRICE = Codec(prices, _price_text)  # comes back with two decimals, without the float noise that the file may have


def decimal(places: int) -> Codec:
    """Decimals that are all written with this many places, as whole numbers of the last one."""
    unit = 10**places

    def decode(text: Text) -> Column:
        for value in text:
            if value[-places - 1 : -places] != "." or value[0] == "-":
                raise ValueError(f"{value!r} is not a positive number with {places} decimal places")
        return integers([value.replace(".", "") for value in text])

    def encode(values: Column) -> list[str]:
        return [f"{value // unit}.{value % unit:0{places}d}" for value in values.tolist()]

    return Codec(decode, encode)


def time_of_day(date: str) -> Codec:
    """Times such as `09:15:00.020` on a date such as `2023-07-11`, in Shanghai, as nanoseconds since the epoch."""
    return Codec(
        lambda text: shanghai_ns([f"{date}T{value}" for value in text]),
        lambda ns: [value[11:] for value in shanghai_text(ns.astype(np.int64))],
    )


DATE_TIME = Codec(  # such as 2023.07.11T09:25:21.401
    lambda text: shanghai_ns([value.replace(".", "-", 2) for value in text]),
    lambda ns: [value.replace("-", ".") for value in shanghai_text(ns.astype(np.int64))],
)
