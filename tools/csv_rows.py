"""A CSV file as batches of rows of a schema, by the plan of a map.

1. Every row of the file is, in order, handed out, left out by the filter, or bad: `counts` adds up to the rows read.
2. A bad row either ends the reading, after all rows before it were handed out, or is set aside: its text and the reason
   go to a rejects file, and the rows after it follow.
3. A batch is converted column by column; only one with something odd in it is gone through row by row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from .csv_cells import Value
from .csv_fill import CellFault, Filler, Rows
from .csv_lines import InputDamaged, LineSource
from .csv_map import CsvPlan
from .csv_split import UNCLOSED, BadRow, Row, split_columns, split_rows

REJECT_COLUMNS = ("line", "column", "value", "expected", "row")


@dataclass(slots=True)
class RowCounts:
    """How many rows were handed out (or are about to be), left out by the filter, and bad."""

    good: int = 0
    filtered: int = 0
    bad: int = 0


class CsvRows:
    """Iterates, once, over the rows of a CSV file as arrays of `plan.schema.payload_dtype`. A context manager.

    source: a path, "-" for standard input, or a binary stream; plain or gzip.
    batch_rows: most rows of one array.
    rejects: a file to set bad rows aside in (replaced; one CSV line each: line, column, value, expected, row), of which
    `row` is the text as it stood; None: the first bad row ends the reading with BadRow.
    Raises also MapError, if the header lacks a column, InputDamaged, if there is no header row, and InputDamaged or OSError, after
    the rows before a damage.
    """

    def __init__(
        self,
        source: str | Path | BinaryIO,
        plan: CsvPlan,
        *,
        rejects: str | Path | None = None,
        batch_rows: int = 4096,
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, not {batch_rows}")
        self._source, self._plan, self._batch_rows = LineSource(source), plan, batch_rows
        self._line = 1  # number of the next line to take
        self.counts = RowCounts()
        try:
            self._rejects = None if rejects is None else _Rejects(rejects, source, plan.encoding)
        except BaseException:
            self._source.close()
            raise

    @property
    def bytes_read(self) -> int:
        """How much of the file as stored was read."""
        return self._source.bytes_read

    @property
    def bytes_total(self) -> int | None:
        """The size of the file as stored; None if it cannot be known."""
        return self._source.bytes_total

    def __enter__(self) -> CsvRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._source.close()
        if self._rejects is not None:
            self._rejects.close()

    def __iter__(self) -> Iterator[Rows]:
        filler = self._filler()
        while filler is not None and (lines := self._source.take(self._batch_rows)):
            first_line = self._line
            for rows, bad in self._read(filler, lines, first_line):
                for start in range(0, len(rows), self._batch_rows):
                    part = rows[start : start + self._batch_rows]
                    self.counts.good += len(part)
                    yield part
                if bad is not None:
                    self.counts.bad += 1
                    raise bad
            self._line = first_line + len(lines)
        if self._source.error is not None:
            raise self._source.error

    def _filler(self) -> Filler | None:
        """Read the header, if the file has one; None if the input is damaged before its end."""
        plan = self._plan
        if plan.header is not None:
            return Filler(plan, plan.header)
        while lines := self._source.take(1):
            first_line, self._line = self._line, self._line + 1
            for row in split_rows(lines, first_line, self._more, 0, plan.delimiter, plan.encoding):
                if row.problem is not None:
                    raise self._whole_row_bad(row)
                self._line = first_line + len(lines)
                return Filler(plan, row.cells)
        if self._source.error is None:
            raise InputDamaged(self._source.name, self._source.bytes_read, "the file has no header row")
        return None

    def _more(self) -> bytes | None:
        lines = self._source.take(1)
        return lines[0] if lines else None

    def _read(self, filler: Filler, lines: list[bytes], first_line: int) -> Iterator[tuple[Rows, BadRow | None]]:
        """Yield the good rows of a batch of lines, and the bad row that ends them; may take further lines."""
        plan = self._plan
        columns = split_columns(lines, filler.width, plan.delimiter, plan.encoding)
        if columns is not None:
            try:
                rows, filtered = filler.fill_columns(columns, len(lines))
            except (ValueError, OverflowError):
                pass  # some row is bad: find it below
            else:
                self.counts.filtered += filtered
                yield rows, None
                return
        split = split_rows(lines, first_line, self._more, filler.width, plan.delimiter, plan.encoding)
        yield self._read_rows(filler, split)

    def _read_rows(self, filler: Filler, split: Iterator[Row]) -> tuple[Rows, BadRow | None]:
        good: list[list[Value]] = []
        bad: BadRow | None = None
        for row in split:
            if row.problem == UNCLOSED and self._source.error is not None:
                break  # not bad but unfinished: the damage lies inside this row
            try:
                values = self._row_values(filler, row)
            except BadRow as error:
                if self._rejects is None:
                    bad = error
                    break
                self.counts.bad += 1
                self._rejects.add(error, row.raw)
            else:
                if values is None:
                    self.counts.filtered += 1
                else:
                    good.append(values)
        return filler.fill_rows(good), bad

    def _row_values(self, filler: Filler, row: Row) -> list[Value] | None:
        if row.problem is not None:
            raise self._whole_row_bad(row)
        try:
            return filler.read_row(row.cells)
        except CellFault as fault:
            raise BadRow(row.line, fault.column, fault.value, fault.expected, self._source.name) from None

    def _whole_row_bad(self, row: Row) -> BadRow:
        text = row.raw.decode(self._plan.encoding, "backslashreplace")
        return BadRow(row.line, "", text, row.problem or "", self._source.name)


class _Rejects:
    """The file of rows set aside. Each row's bytes are kept as they were, whatever their encoding."""

    def __init__(self, path: str | Path, source: object, encoding: str) -> None:
        if (
            isinstance(source, str | Path)
            and os.path.exists(path)
            and os.path.exists(source)
            and os.path.samefile(path, source)
        ):
            raise ValueError(f"{path}: the rejects must go to another file than the one that is read")
        self._encoding = encoding
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(",".join(REJECT_COLUMNS).encode() + b"\n")
        self._file.flush()

    def add(self, bad: BadRow, raw: bytes) -> None:
        reason = (str(bad.line), bad.column, bad.value if bad.column else "", bad.expected)
        cells = [_quoted(text.encode(self._encoding, "backslashreplace")) for text in reason]
        self._file.write(b",".join([*cells, _quoted(raw)]) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _quoted(cell: bytes) -> bytes:
    if not any(odd in cell for odd in (b'"', b",", b"\r", b"\n")):
        return cell
    return b'"' + cell.replace(b'"', b'""') + b'"'
