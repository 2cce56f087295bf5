"""The files of sstables: their names, compression, writing one whole, opening, and removing."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ._tree import KeyCodec, Table, TableWriter
from .errors import FormatMismatch
from .files import sync_directory
from .schema import Schema
from .version import TableInfo

__all__ = ["COMPRESSIONS", "NAME", "RowSource", "TableFiles", "compressor", "describe", "open_table"]

NAME = re.compile(r"(\d{10})\.sst(\.new)?")
CHUNK_ROWS, CHUNK_BYTES = 8_192, 1 << 20  # at most, of rows merged at a time
COMPRESSIONS = ("none", "zstd", "lz4")


def compressor(name: str) -> tuple[Callable[[bytes], bytes] | None, Callable[[bytes, int], bytes] | None]:
    """(compress, decompress) of a block. Raises ModuleNotFoundError saying what to install, ValueError for an unknown name."""
    if name == "none":
        return None, None
    if name == "zstd":
        try:
            import zstandard
        except ModuleNotFoundError:
            raise ModuleNotFoundError("zstd compression needs `pip install ringmain[compression]`") from None
        local = threading.local()  # a context serves one thread at a time, and a table's readers are many

        def compress(data: bytes) -> bytes:
            if not hasattr(local, "packer"):
                local.packer = zstandard.ZstdCompressor(level=1, write_checksum=False)
            return local.packer.compress(data)

        def decompress(data: bytes, size: int) -> bytes:
            if zstandard.frame_content_size(data) > size:  # memory would be reserved for what it claims
                raise zstandard.ZstdError(f"at most {size} bytes are expected")
            if not hasattr(local, "unpacker"):
                local.unpacker = zstandard.ZstdDecompressor()
            return local.unpacker.decompress(data, max_output_size=size)

        return compress, decompress
    if name == "lz4":
        try:
            from lz4 import block
        except ModuleNotFoundError:
            raise ModuleNotFoundError("lz4 compression needs `pip install ringmain[compression]`") from None
        return (
            lambda data: block.compress(data, store_size=False),
            lambda data, size: block.decompress(data, uncompressed_size=size),
        )
    raise ValueError(f"compression: one of {', '.join(COMPRESSIONS)} is expected, got {name!r}")


class RowSource(Protocol):
    """Rows in a table's order, such as a Merge."""

    @property
    def within_key(self) -> bool: ...

    def fill(self, rows: np.ndarray[Any, Any], flags: np.ndarray[Any, Any] | None = None, /) -> int: ...


class TableFiles:
    """The sstables of a store's directory.

    A table is written as `<number>.sst.new`, synced, and only then gets its name. Raises OSError where the disk refuses.
    """

    def __init__(self, directory: Path, log_id: int, block_bytes: int) -> None:
        self.directory, self.log_id, self.block_bytes = directory, log_id, block_bytes

    def path(self, number: int) -> Path:
        return self.directory / f"{number:010d}.sst"

    def open(self, info: TableInfo, schema: Schema, codec: KeyCodec) -> Table:
        """Map a table; it must be the one that the manifest means. Raises FileNotFoundError, Corruption, FormatMismatch."""
        path = self.path(info.number)
        table = open_table(path, schema, codec)
        for what, expected, found in (
            ("number", info.number, table.number),
            ("log_id", self.log_id, table.log_id),
            ("topic", info.topic, table.topic),
            ("rows", info.row_count, table.row_count),
            ("bytes", info.file_bytes, table.file_bytes),
            ("sequences", (info.sequence_min, info.sequence_max), (table.sequence_min, table.sequence_max)),
            ("first time", info.timestamp_min_ns, table.timestamp_min_ns),
            ("last time", info.timestamp_max_ns, table.timestamp_max_ns),
            ("first key", info.key_min, table.key_min),
            ("last key", info.key_max, table.key_max),
        ):
            if expected != found:
                raise FormatMismatch(path, f"{what} of a table", expected, found, "the manifest means another file")
        return table

    def write(
        self,
        merge: RowSource,
        schema: Schema,
        codec: KeyCodec,
        level: int,
        *,
        compression: str,
        table_bytes: int,
        next_number: Callable[[], int],
        throttle: Callable[[int], None],
    ) -> Iterator[TableInfo]:
        """Write what a merge yields into tables of about `table_bytes`, each durable under its name before it is yielded.

        throttle: called with the bytes of each chunk; may wait, or raise to cancel. What was not yielded is removed.
        """
        compress, _ = compressor(compression)
        chunk_rows = max(2, min(CHUNK_ROWS, min(CHUNK_BYTES, table_bytes) // schema.row_bytes))
        rows, flags = np.empty(chunk_rows, schema.dtype), np.zeros(chunk_rows, np.uint8)
        count = merge.fill(rows, flags)
        while count:
            number = next_number()
            path = self.path(number)
            draft = path.with_suffix(".sst.new")
            descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                writer = TableWriter(
                    codec,
                    descriptor,
                    path,
                    schema=schema,
                    table_number=number,
                    log_id=self.log_id,
                    created_ns=time.time_ns(),
                    block_bytes=self.block_bytes,
                    compression=compression,
                    compress=compress,
                )
                while count:
                    throttle(count * schema.row_bytes)
                    writer.add(rows[:count], flags)
                    within_key = merge.within_key
                    count = merge.fill(rows, flags)
                    if writer.data_bytes >= table_bytes and not within_key:
                        break
                writer.finish()
                os.rename(draft, path)
                sync_directory(self.directory)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
            yield describe(open_table(path, schema, codec), schema.name, level)

    def remove(self, numbers: Iterable[int]) -> None:
        """Unlink tables; who has one open keeps it."""
        for number in numbers:
            self.path(number).unlink(missing_ok=True)

    def strays(self, known: frozenset[int]) -> list[Path]:
        """Files that a killed writer left: drafts, and tables that the manifest does not know."""
        matches = [match for name in sorted(os.listdir(self.directory)) if (match := NAME.fullmatch(name))]
        return [self.directory / match[0] for match in matches if match[2] or int(match[1]) not in known]


def describe(table: Table, topic: str, level: int) -> TableInfo:
    """What the manifest is to say of a table."""
    return TableInfo(
        number=table.number,
        topic=topic,
        level=level,
        file_bytes=table.file_bytes,
        row_count=table.row_count,
        tombstone_count=table.tombstone_count,
        sequence_min=table.sequence_min,
        sequence_max=table.sequence_max,
        timestamp_min_ns=table.timestamp_min_ns,
        timestamp_max_ns=table.timestamp_max_ns,
        key_min=table.key_min,
        key_max=table.key_max,
    )


def open_table(path: Path, schema: Schema, codec: KeyCodec) -> Table:
    """Map an sstable and check its header and footer."""
    table = Table(path, codec, schema.hash)
    table.decompress_with(compressor(table.compression)[1])
    return table
