"""What a field may hold: fixed-size numbers and bytes, and arrays of them, that mean the same in every process.

A type has one canonical spelling, numpy's shortest: `?`, `i8`, `S12`, `10i8`, `(2,5)f8`. Everything is little-endian.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias, cast

import numpy as np

__all__ = ["FieldType", "ValueType", "read_type"]

FieldType: TypeAlias = str | np.dtype[Any] | type[np.generic]
"""A type as a caller may declare it: a spelling such as `"i8"`, or the scalar class or dtype of numpy that it means."""

SCALARS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
TYPE_CHARS_MAX = 64
ALLOWED = f"allowed are {' '.join(SCALARS)}, S<n> for n bytes, and arrays of these such as 10i8 or (2,5)i8"

_SPELLING = re.compile(r"(?:([0-9]+)|\(([^()]*)\))?([<>=|]?)([A-Za-z?].*)")
_OBJECT = "a Python object is a pointer, which means nothing in another process"
_UNICODE = "unicode text takes four bytes a character; use S<n> for n bytes of UTF-8"
_VOID = "void and structured types have no columns of their own; declare each part as a field"
_COMPLEX = "a complex number is two values; declare two fields of f4 or f8"
_TIME = "a time is a number with a unit; use i8 and let units say what it counts, such as ns since the Unix epoch"
_REFUSED = (
    (r"O[0-9]*|object.*", _OBJECT),
    (r"U[0-9]*|str.*|unicode.*", _UNICODE),
    (r"V[0-9]*|void.*", _VOID),
    (r"c[0-9]+|complex.*|[FDG]", _COMPLEX),
    (r"[mM]8?(\[.*\])?|datetime.*|timedelta.*", _TIME),
)


@dataclass(frozen=True, slots=True)
class ValueType:
    """A type taken apart: its scalar in numpy's spelling, and its dimensions, outermost first (none for one value)."""

    scalar: str
    shape: tuple[int, ...]

    @property
    def spelling(self) -> str:
        match self.shape:
            case ():
                return self.scalar
            case (length,):
                return f"{length}{self.scalar}"
            case lengths:
                return f"({','.join(str(length) for length in lengths)}){self.scalar}"

    @property
    def alignment(self) -> int:
        """The number of bytes whose multiples this type may start at: its scalar's size, and 1 for bytes."""
        return 1 if self.scalar[0] in "?S" else int(self.scalar[1:])

    @property
    def size_bytes(self) -> int:
        return (1 if self.scalar == "?" else int(self.scalar[1:])) * prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype((np.dtype(self.scalar).newbyteorder("<"), self.shape))


def read_type(declared: object) -> ValueType:
    """Return the type that `declared` spells, or raise ValueError saying why a row cannot hold it."""
    text = _spell(declared)
    if len(text) > TYPE_CHARS_MAX:
        raise ValueError(f"its type is spelt in {len(text)} characters; {ALLOWED}")
    match = _SPELLING.fullmatch(text)
    if match is None:
        raise ValueError(f"type {text!r}: {ALLOWED}")
    count, dimensions, order, scalar = match.groups()
    try:
        scalar = _read_scalar(order, scalar)
        return ValueType(scalar, _read_shape(count, dimensions))
    except ValueError as error:
        raise ValueError(f"type {text!r}: {error}") from None


def _spell(declared: object) -> str:
    if isinstance(declared, type) and issubclass(declared, np.generic):
        declared = np.dtype(cast("type[np.generic[Any]]", declared))
    if isinstance(declared, np.dtype):
        dtype = cast("np.dtype[Any]", declared)
        lengths = ",".join(str(length) for length in dtype.shape)
        return f"({lengths}){dtype.base.str}" if lengths else dtype.str
    if not isinstance(declared, str):
        raise ValueError(f"type {declared!r} is not a string; {ALLOWED}")
    return declared


def _read_scalar(order: str, spelt: str) -> str:
    scalar = "?" if spelt == "b1" else spelt  # numpy's own name for its bool, as in np.dtype("?").str
    if re.fullmatch("S0*", scalar):
        raise ValueError("no bytes at all; say how many, as in S8")
    if re.fullmatch("S[0-9]+", scalar):
        scalar = f"S{int(scalar[1:])}"
    elif scalar not in SCALARS:
        raise ValueError(next((why for pattern, why in _REFUSED if re.fullmatch(pattern, scalar)), ALLOWED))
    if order == ">":
        raise ValueError(f"big-endian; rows are little-endian, so write {scalar}")
    if order == "=":
        raise ValueError(f"a byte order that differs between machines; rows are little-endian, so write {scalar}")
    return scalar


def _read_shape(count: str | None, dimensions: str | None) -> tuple[int, ...]:
    lengths = [count] if count else [] if dimensions is None else dimensions.removesuffix(",").split(",")
    if not all(re.fullmatch(" *[0-9]+ *", length) for length in lengths):
        raise ValueError("the dimensions are not whole numbers; write them as in 10i8 or (2,5)i8")
    shape = tuple(int(length) for length in lengths)
    if len(shape) > 2:
        raise ValueError(f"{len(shape)} dimensions; at most 2 are allowed")
    if 0 in shape:
        raise ValueError("an array without elements; leave the field out")
    return shape
