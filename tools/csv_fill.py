"""Cells into rows: the plan of a map, met with the header of one file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .csv_cells import Cell, CellError, Value
from .csv_map import CsvPlan

Rows: TypeAlias = npt.NDArray[Any]


class CellFault(ValueError):
    """The cell that makes a row a bad one."""

    def __init__(self, column: str, value: str, expected: str) -> None:
        self.column, self.value, self.expected = column, value, expected
        super().__init__(f"column {column}: {value!r} is not {expected}")


class Filler:
    """Makes rows of `plan.schema.payload_dtype` from the cells of a file with this header.

    Raises MapError if the header lacks a column that the plan uses.
    """

    def __init__(self, plan: CsvPlan, header: Sequence[str]) -> None:
        positions = plan.positions(header)
        self._plan, self.width = plan, len(header)
        self._filters = [(positions[name], accepted) for name, accepted in plan.filters]
        # One entry for each text to convert: its cell type, where its parts stand, the columns' names.
        self._texts: list[tuple[Cell, tuple[int, ...], str]] = []
        for field in plan.fields:
            if field.cell is None:
                continue
            for names in (field.columns,) if field.joined else ((name,) for name in field.columns):
                self._texts.append((field.cell, tuple(positions[name] for name in names), "+".join(names)))

    def fill_columns(self, columns: Sequence[Sequence[str]], count: int) -> tuple[Rows, int]:
        """Convert a batch of `count` rows given as columns; return the rows kept, and how many the filter left out.

        Raises ValueError or OverflowError if any cell of a row kept is wrong, without saying which.
        """
        kept = count
        if self._filters:
            first, *others = self._filters
            keep = [text in first[1] for text in columns[first[0]]]
            for position, accepted in others:
                keep = [kept and text in accepted for kept, text in zip(keep, columns[position], strict=True)]
            kept = sum(keep)
            if kept < count:
                used = {position for _, parts, _ in self._texts for position in parts}
                columns = [list(compress(texts, keep)) if at in used else () for at, texts in enumerate(columns)]
        values: list[npt.NDArray[Any]] = []
        for cell, parts, _ in self._texts:
            if len(parts) == 1:
                texts = columns[parts[0]]
            else:
                texts = [" ".join(cells) for cells in zip(*(columns[part] for part in parts), strict=True)]
            values.append(cell.column(texts))
        return self._rows(kept, values), count - kept

    def read_row(self, cells: Sequence[str]) -> list[Value] | None:
        """Convert one row, for `fill_rows`; None if the filter leaves it out. Raises CellFault."""
        if any(cells[position] not in accepted for position, accepted in self._filters):
            return None
        values: list[Value] = []
        for cell, parts, column in self._texts:
            text = " ".join([cells[part] for part in parts])
            try:
                values.append(cell.value(text))
            except CellError as error:
                raise CellFault(column, text, error.expected) from None
        return values

    def fill_rows(self, rows: Sequence[list[Value]]) -> Rows:
        """Make the rows that `read_row` converted."""
        columns = zip(*rows, strict=True) if rows else ((),) * len(self._texts)
        cells = (cell for cell, _, _ in self._texts)
        return self._rows(
            len(rows), [np.array(column, cell.dtype) for cell, column in zip(cells, columns, strict=True)]
        )

    def _rows(self, count: int, values: Sequence[npt.NDArray[Any]]) -> Rows:
        rows = np.zeros(count, self._plan.schema.payload_dtype)  # zeros also in the gaps between fields
        at = 0
        for field in self._plan.fields:
            target = rows[field.name]
            if field.cell is None:
                target[...] = field.constant
            elif target.ndim == 1:
                target[...] = values[at]
                at += 1
            else:
                size = len(field.columns)
                target[...] = np.stack(values[at : at + size], axis=1).reshape(target.shape)
                at += size
        return rows
