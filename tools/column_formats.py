"""Rows as files of columns, as storage/arrow.py makes them of rows: Parquet, and Arrow's own format (which is Feather too)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any, TypeAlias

import numpy as np

from ..storage import Schema, to_arrow

__all__ = ["ArrowFormat", "ColumnFormat", "ParquetFormat"]

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]

GROUP_ROWS = 262_144  # of a row group or record batch, at most about
GROUP_BYTES = 64 << 20


class ColumnFormat:
    """Gathers rows until they make a good piece of a file."""

    def __init__(self, schema: Schema, names: Sequence[str]) -> None:
        self._schema, self._names = schema, list(names)
        self._rows_max = max(1, min(GROUP_ROWS, GROUP_BYTES // schema.row_bytes))
        self._tables: list[Any] = []
        self._count = 0
        self.schema = self._table(np.empty(0, schema.dtype)).schema

    def write(self, rows: Rows) -> None:
        self._tables.append(self._table(rows))
        self._count += len(rows)
        if self._count >= self._rows_max:
            self._write_gathered()

    def abandon(self) -> None:
        """Write no more: the file is given up."""
        self._tables = []

    def _table(self, rows: Rows) -> Any:
        return to_arrow(rows[self._names], self._schema)

    def _write_gathered(self) -> None:
        import pyarrow as pa

        if self._count:
            self._write_table(pa.concat_tables(self._tables).combine_chunks())
        self._tables, self._count = [], 0

    def _write_table(self, table: Any) -> None:
        raise NotImplementedError


class ParquetFormat(ColumnFormat):
    """Apache Parquet, compressed with zstd. Arrow's schema is kept in it, so that pyarrow reads the same types back."""

    def __init__(self, out: IO[bytes], schema: Schema, names: Sequence[str]) -> None:
        super().__init__(schema, names)
        from pyarrow.parquet import ParquetWriter

        self._writer = ParquetWriter(out, self.schema, compression="zstd")

    def _write_table(self, table: Any) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._write_gathered()
        self._writer.close()

    def abandon(self) -> None:
        super().abandon()
        # Or else it would close itself when it is deleted, and complain about the closed file.
        self._writer.is_open = False


class ArrowFormat(ColumnFormat):
    """Arrow's IPC file format, uncompressed, so that it can be mapped."""

    def __init__(self, out: IO[bytes], schema: Schema, names: Sequence[str]) -> None:
        super().__init__(schema, names)
        from pyarrow import ipc

        self._writer = ipc.new_file(out, self.schema)

    def _write_table(self, table: Any) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._write_gathered()
        self._writer.close()
