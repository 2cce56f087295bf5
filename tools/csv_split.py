"""Lines into cells: a whole batch at once when nothing is odd, else row by row, where each bad row is found.

Quoting is that of RFC 4180, taken strictly: a quoted cell may hold delimiters, doubled quotes and line ends; nothing
but a delimiter may follow its closing quote. Quotes elsewhere are ordinary characters. Empty lines are not rows.
A row whose quoting is broken ends with its first line, and reading goes on with the next line: one forgotten quote must
not swallow the rest of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

QUOTED_LINES_MAX = 100  # most lines that one row may take
UNCLOSED = "a closing quote expected"
STRAY_RETURN = "a carriage return expected only at the end of a line"


class BadRow(ValueError):
    """A row that cannot be read. `column` is empty when the row as a whole is at fault; `value` is then its text.

    line: where the row begins, the file's first line being 1.
    """

    def __init__(self, line: int, column: str, value: str, expected: str, path: str = "") -> None:
        self.line, self.column, self.value, self.expected, self.path = line, column, value, expected, path
        place = f"{path}, line {line}" if path else f"line {line}"
        shown = repr(value if len(value) <= 80 else value[:79] + "…")
        fault = f", column {column}: {shown} is not {expected}" if column else f": {expected}: {shown}"
        super().__init__(place + fault)


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the file: its bytes without the last line end, and its cells or what is wrong."""

    line: int
    raw: bytes
    cells: list[str]
    problem: str | None


def split_columns(lines: list[bytes], width: int, delimiter: str, encoding: str) -> list[Sequence[str]] | None:
    """Return the columns of a batch in which every line is one faultless row, else None: ask `split_rows`."""
    block = b"\n".join(lines)
    if b"\0" in block:
        return None
    try:
        text = block.decode(encoding)
    except UnicodeDecodeError:
        return None
    if "\r" in text:
        text = text.replace("\r\n", "\n").removesuffix("\r")
        if "\r" in text:
            return None
    if '"' in text:
        return _split_quoted(text, len(lines), width, delimiter)
    if width == 1:
        cells = text.split("\n")
        return None if delimiter in text or "" in cells else [cells]
    # every line has width-1 delimiter bytes, and so has the text on the whole: then so has every line of it
    if set(map(bytes.count, lines, repeat(delimiter.encode()))) != {width - 1}:
        return None
    cells = text.replace("\n", delimiter).split(delimiter)
    if len(cells) != width * len(lines):
        return None
    return [cells[index::width] for index in range(width)]


def _split_quoted(text: str, line_count: int, width: int, delimiter: str) -> list[Sequence[str]] | None:
    try:
        rows = list(csv.reader(text.split("\n"), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    if len(rows) != line_count or set(map(len, rows)) != {width}:
        return None
    return list(zip(*rows, strict=True))


def split_rows(
    lines: list[bytes], first_line: int, more: Callable[[], bytes | None], width: int, delimiter: str, encoding: str
) -> Iterator[Row]:
    """Yield the rows of `lines` one by one, those with a problem too.

    more: gives the line after the last, for a row whose quotes are still open there; such lines join `lines`.
    width: how many cells a row must have; 0: any number.
    """
    start = 0
    while start < len(lines):
        cells, used, problem = _read_cells(lines, start, more, delimiter, encoding)
        raw = b"\n".join(lines[start : start + used]).removesuffix(b"\r")
        if raw:
            if problem is None:
                problem = _problem(raw, encoding)
            if problem is None and width and len(cells) != width:
                problem = f"{width} columns expected, not {len(cells)}"
            yield Row(first_line + start, raw, cells, problem)
        start += used


def _read_cells(
    lines: list[bytes], start: int, more: Callable[[], bytes | None], delimiter: str, encoding: str
) -> tuple[list[str], int, str | None]:
    """Return the cells of the row that begins at `start`, how many lines it has, and what is wrong with its quoting."""

    def texts() -> Iterator[str]:
        for index in range(start, start + QUOTED_LINES_MAX):
            if index == len(lines):
                line = more()
                if line is None:
                    return
                lines.append(line)
            yield lines[index].decode(encoding, "surrogateescape") + "\n"

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    try:
        return next(reader), reader.line_num, None
    except csv.Error as error:
        if "unexpected end" in str(error):
            return [], 1, UNCLOSED
        if "expected after" in str(error):
            return [], 1, f"{delimiter!r} expected after a closing quote"
        if "new-line" in str(error):
            return [], 1, STRAY_RETURN
        return [], 1, f"a CSV row expected ({error})"


def _problem(raw: bytes, encoding: str) -> str | None:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        return f"{encoding} text expected, not the byte 0x{raw[error.start]:02x} at {error.start}"
    if raw.endswith(b"\r"):  # csv.reader passes over any number of them there
        return STRAY_RETURN
    return "text without NUL expected" if b"\0" in raw else None
