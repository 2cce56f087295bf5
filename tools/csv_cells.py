"""How the text of a CSV cell becomes a value of a schema field, exactly.

A `Cell` converts one text (`value`, which says what it expected) or a whole column (`column`, which only says that
something in it is wrong). Decimal text becomes a scaled integer by integer arithmetic: no float is ever involved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

Value: TypeAlias = int | float | bool | bytes
Column: TypeAlias = npt.NDArray[Any]

NUMBER_CHARS_MAX = 400  # longer texts are no number: bounds what one cell can cost
MEMO_TEXTS_MAX = 1 << 16

_INTEGER = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"(-?)(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?(?:[eE]([-+]?[0-9]{1,3}))?")
_FLOAT = re.compile(r"[-+]?(?:(?=\.?[0-9])[0-9]*(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
_TRUTH = {"0": False, "1": True, "false": False, "true": True}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)

# What each directive of a time format matches. Widths are fixed: 1:15 and 11:5 must not both be read from "115".
_DIRECTIVES = {
    "Y": r"(?P<Y>[0-9]{4})",
    "m": r"(?P<m>[0-9]{2})",
    "d": r"(?P<d>[0-9]{2})",
    "H": r"(?P<H>[0-9]{2})",
    "M": r"(?P<M>[0-9]{2})",
    "S": r"(?P<S>[0-9]{2})",
    "f": r"(?P<f>[0-9]{1,9})",
    "%": "%",
}


class CellError(ValueError):
    """A text that is not what its field needs."""

    def __init__(self, expected: str) -> None:
        self.expected = expected
        super().__init__(f"expected {expected}")


class Cell:
    """Converts the cells of one column. Remembers the texts it has seen, since market data repeat themselves."""

    def __init__(self, dtype: np.dtype[Any], expected: str, empty: Value | None = None) -> None:
        self.dtype, self.expected, self.empty = dtype, expected, empty
        self._low, self._high = _bounds(dtype) if dtype.kind in "iu" else (0, 0)
        self._memo = _Memo(self)

    def parse(self, text: str) -> Value:
        """Return the value of a text. Raises ValueError, KeyError or OverflowError for one that has none."""
        raise NotImplementedError

    def value(self, text: str) -> Value:
        """Return the value of a text, or of an empty cell if the map gives one. Raises CellError."""
        if not text and self.empty is not None:
            return self.empty
        try:
            return self.parse(text)
        except (ValueError, KeyError, OverflowError) as error:
            raise CellError(self.expected) from error

    def in_range(self, number: int) -> int:
        if not self._low <= number <= self._high:
            raise OverflowError
        return number

    def column(self, texts: Sequence[str]) -> Column:
        """Return the values of many texts. Raises ValueError or OverflowError if any is wrong, without saying which."""
        if len(self._memo) > MEMO_TEXTS_MAX:
            self._memo.clear()
        return np.array([*map(self._memo.__getitem__, texts)], self.dtype)


class _Memo(dict[str, Value]):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self._cell = cell

    def __missing__(self, text: str) -> Value:
        value = self[text] = self._cell.value(text)
        return value


class IntegerCell(Cell):
    """Decimal digits with an optional minus sign, as they stand."""

    def __init__(self, dtype: np.dtype[Any], empty: Value | None = None) -> None:
        super().__init__(dtype, f"a whole number {_bounds_text(dtype)}", empty)

    def parse(self, text: str) -> Value:
        if len(text) > NUMBER_CHARS_MAX or not _INTEGER.fullmatch(text):
            raise ValueError
        return self.in_range(int(text))

    def column(self, texts: Sequence[str]) -> Column:
        if self.empty is not None and "" in texts:
            return super().column(texts)
        joined = "".join(texts)
        # int() alone would also take blanks, underscores and the digits of other scripts
        if not (joined.isascii() and (joined.isdigit() or joined.replace("-", "").isdigit())):
            raise CellError(self.expected)
        return np.fromiter(map(int, texts), self.dtype, len(texts))


class ScaledCell(Cell):
    """Decimal text times `scale`, as an integer; rounded to the nearest (halves away from zero) only if asked."""

    def __init__(self, dtype: np.dtype[Any], scale: int, rounded: bool, empty: Value | None = None) -> None:
        grid = "a decimal number" if rounded else f"a multiple of 1/{scale} (or set round = true)"
        super().__init__(dtype, f"{grid}; times {scale} it must be {_bounds_text(dtype)}", empty)
        self._scale, self._rounded = scale, rounded

    def parse(self, text: str) -> Value:
        match = _DECIMAL.fullmatch(text)
        if match is None or len(text) > NUMBER_CHARS_MAX:
            raise ValueError
        sign, whole, fraction, exponent = match.groups()
        fraction = fraction or ""
        power = int(exponent or 0) - len(fraction)
        number = int(whole + fraction) * self._scale
        if power >= 0:
            number *= 10**power
        else:
            divisor = 10**-power
            number, rest = divmod(number, divisor)
            if rest and not self._rounded:
                raise ValueError
            number += 2 * rest >= divisor
        return self.in_range(-number if sign else number)


class FloatCell(Cell):
    """The binary number nearest to the text; "nan" and "inf" are taken, a finite text that overflows is not."""

    def __init__(self, dtype: np.dtype[Any], empty: Value | None = None) -> None:
        super().__init__(dtype, f"a number that fits {code(dtype)}", empty)

    def parse(self, text: str) -> Value:
        if len(text) > NUMBER_CHARS_MAX or not _FLOAT.fullmatch(text):
            raise ValueError
        value = float(text)
        with np.errstate(over="ignore"):
            overflowed = bool(np.isinf(self.dtype.type(value)))
        if overflowed and "inf" not in text.lower():
            raise OverflowError
        return value


class BoolCell(Cell):
    """0 or 1, false or true in any case."""

    def __init__(self, dtype: np.dtype[Any], empty: Value | None = None) -> None:
        super().__init__(dtype, "0, 1, false or true", empty)

    def parse(self, text: str) -> Value:
        return _TRUTH[text.lower()]


class TextCell(Cell):
    """The bytes of the cell as they stand in the file, at most as many as the field has."""

    def __init__(self, dtype: np.dtype[Any], encoding: str, empty: Value | None = None) -> None:
        super().__init__(dtype, f"text of at most {dtype.itemsize} bytes", empty)
        self._encoding = encoding

    def parse(self, text: str) -> Value:
        data = text.encode(self._encoding)
        if len(data) > self.dtype.itemsize:
            raise ValueError
        return data


class ChoiceCell(Cell):
    """One of the texts that the map lists, each with its value."""

    def __init__(self, dtype: np.dtype[Any], values: Mapping[str, Value], empty: Value | None = None) -> None:
        listed = [repr(text) for text in values]
        shown = ", ".join(listed[:20]) + (", …" if len(listed) > 20 else "")
        super().__init__(dtype, f"one of {shown}", empty)
        self._values = dict(values)

    def parse(self, text: str) -> Value:
        return self._values[text]


class TimeCell(Cell):
    """A time in `zone`, as nanoseconds since 1970-01-01 UTC.

    form: literal text with %Y %m %d %H %M %S %f %%, each of fixed width but %f (one to nine digits of a second).
    day: the date of every row, for a form that has none. pad: put zeros before a text, not before an empty one, up to this many
    characters.
    A time that the zone's clocks skip is refused; of a time that they show twice the first is taken.
    Raises ValueError, with what was expected, for a form that cannot give a time.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        form: str,
        day: date | None,
        zone: ZoneInfo,
        pad: int = 0,
        empty: Value | None = None,
    ) -> None:
        super().__init__(dtype, f"a time like {form} in {zone.key}", empty)
        self._pattern = _time_pattern(form, day)
        self._day, self._zone, self._pad = day, zone, pad
        self._minutes: dict[tuple[str | None, ...], int] = {}  # date, hour and minute -> seconds since the epoch

    def parse(self, text: str) -> Value:
        match = self._pattern.fullmatch(text.zfill(self._pad)) if text else None  # zeros alone would be midnight
        if match is None:
            raise ValueError
        *minute, second, fraction = match.group("Y", "m", "d", "H", "M", "S", "f")
        key = tuple(minute)
        start_s = self._minutes.get(key)
        if start_s is None:
            if len(self._minutes) > MEMO_TEXTS_MAX:
                self._minutes.clear()
            start_s = self._minutes[key] = self._minute_start_s(*key)
        if second > "59":
            raise ValueError
        return self.in_range((start_s + int(second or 0)) * 1_000_000_000 + int(fraction.ljust(9, "0")))

    def _minute_start_s(self, *parts: str | None) -> int:
        year, month, day, hour, minute = (int(part or 0) for part in parts)
        if self._day is not None:
            year, month, day = self._day.year, self._day.month, self._day.day
        wall = datetime(year, month, day, hour, minute, tzinfo=self._zone)
        moment = wall.astimezone(UTC)
        if moment.astimezone(self._zone).replace(tzinfo=None) != wall.replace(tzinfo=None):
            raise ValueError
        return (moment - _EPOCH) // _SECOND


def _time_pattern(form: str, day: date | None) -> re.Pattern[str]:
    """Compile a time format; directives that it lacks match nothing, as empty groups."""
    pattern, used = "", set[str]()
    for literal, directive in re.findall(r"([^%]+)|%(.?)", form, re.DOTALL):
        if literal:
            pattern += re.escape(literal)
        elif directive not in _DIRECTIVES:
            raise ValueError(f"a time format with {', '.join('%' + name for name in _DIRECTIVES)}, not %{directive}")
        elif directive in used and directive != "%":
            raise ValueError(f"a time format with %{directive} only once")
        else:
            pattern += _DIRECTIVES[directive]
            used.add(directive)
    if "H" not in used or ("f" in used and "S" not in used) or ("S" in used and "M" not in used):
        raise ValueError("a time format with %H, then %M, %S and %f each only after the one before")
    if day is None and not {"Y", "m", "d"} <= used:
        raise ValueError('a date, as date = "YYYY-MM-DD" or as %Y, %m and %d in the time format')
    if day is not None and {"Y", "m", "d"} & used:
        raise ValueError("the date either in the time format or as date, not both")
    missing = "".join(f"(?P<{name}>)" for name in "YmdHMSf" if name not in used)
    return re.compile(missing + pattern)


def code(dtype: np.dtype[Any]) -> str:
    """Return a scalar type as schemas write it, such as "i8" or "S4"."""
    return "?" if dtype.kind == "b" else f"{dtype.kind}{dtype.itemsize}"


def fixed_value(dtype: np.dtype[Any], given: object, encoding: str) -> Value:
    """Check a value written in a map (a constant, an empty cell's, a choice's) against a type. Raises CellError."""
    if dtype.kind == "S":
        if isinstance(given, str) and "\0" not in given:
            return TextCell(dtype, encoding).value(given)
        raise CellError(f"text of at most {dtype.itemsize} bytes")
    if dtype.kind == "b":
        if isinstance(given, bool):
            return given
        raise CellError("true or false")
    if dtype.kind == "f":
        if isinstance(given, int | float) and not isinstance(given, bool):
            return FloatCell(dtype).value(repr(given))
        raise CellError(f"a number that fits {code(dtype)}")
    if isinstance(given, int) and not isinstance(given, bool):
        return IntegerCell(dtype).value(str(given))
    raise CellError(f"a whole number {_bounds_text(dtype)}")


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _bounds_text(dtype: np.dtype[Any]) -> str:
    low, high = _bounds(dtype)
    return f"from {low} to {high} ({code(dtype)})"
