"""What is provably good in a damaged sstable: the rows of blocks that their index, and what proves the index, vouch for.

1. A block's rows count where its bytes have the checksum that the index names, and the index is proven: by the footer and what
   tells the schema, or, where one of these is damaged, by first keys and tags that fit every row. Nothing is taken on looks.
2. Whether a row is a tombstone must be proven as well. A tombstone has nothing but stamp and key; so without the bits a row
   that has more is none, and the others are given up unless all of them must be.
3. One wrong byte in header, footer, index or tombstones is put right where what it proves then fits (see mend.py).

The bytes are those of FORMAT.md, "A table". Nothing is changed here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ._log import crc32c
from ._tree import COMPRESSIONS, KeyCodec
from .errors import FormatMismatch, SchemaError
from .files import map_file
from .mend import mend, mend_page
from .schema import Schema
from .table_files import compressor
from .version import Key, TableInfo

__all__ = ["LostBlocks", "Salvaged", "TableFile", "read_table_file", "salvage"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PAGE_BYTES = 4096
HEADER = struct.Struct("<8sIIQQQqIIII64s")
FOOTER = struct.Struct("<8sQQQQQQQQqqQ")
SECTION = struct.Struct("<QQII")
SECTIONS_AT, KEYS_AT, KEY_WORDS_MAX = FOOTER.size, 288, 32
assert SECTIONS_AT == 96
ENTRY = np.dtype([("offset", "<u8"), ("first_sequence", "<u8"), ("bytes", "<u4"), ("crc", "<u4")])
KEYS, BLOCKS, TAGS, BLOOM, TOMBSTONES, SCHEMA = range(6)
BLOOM_BITS_PER_KEY, BLOOM_LINE_BITS = 12, 512
BLOCK_BYTES_MAX = 1 << 30  # of a block once decompressed


@dataclass(frozen=True, slots=True)
class Header:
    number: int
    schema_hash: int
    log_id: int
    row_bytes: int
    key_bytes: int
    block_rows: int
    compression: int
    topic: str


@dataclass(frozen=True, slots=True)
class Footer:
    number: int
    file_bytes: int
    row_count: int
    block_count: int
    tombstone_count: int
    shadowed_count: int
    sequence_min: int
    sequence_max: int
    sections: tuple[tuple[int, int, int], ...]  # offset, bytes, CRC
    key_words: tuple[tuple[int, ...], tuple[int, ...]]  # of the first and the last row, all 32 of each


@dataclass(frozen=True, slots=True)
class TableFile:
    """An sstable's bytes, and what it says of itself where that is proven. header, footer: None where they are not."""

    path: Path
    data: mmap.mmap | bytes
    header: Header | None
    footer: Footer | None
    wrong: tuple[str, ...]  # what is wrong with them, in words

    @property
    def number(self) -> int | None:
        """Which table it is."""
        return (
            self.header.number if self.header is not None else self.footer.number if self.footer is not None else None
        )

    def schema(self) -> Schema | None:
        """The schema that the file holds, where it is proven."""
        found = self.section(SCHEMA)
        try:
            return Schema.from_json(found) if found else None
        except SchemaError:
            return None

    @property
    def schema_hash(self) -> int | None:
        """Of the schema that its rows have, where that is proven."""
        if self.header is not None:
            return self.header.schema_hash
        schema = self.schema()
        return None if schema is None else schema.hash

    def section(self, which: int) -> bytes | None:
        """A section's bytes where the footer vouches for them, with one wrong byte put right; None where they are damaged."""
        if self.footer is None:
            return None
        offset, size, crc = self.footer.sections[which]
        data = self.data[offset : offset + size]
        if crc32c(data) == crc:
            return data
        mended = mend(data, crc)
        return mended if mended is not None and crc32c(mended) == crc else None


@dataclass(frozen=True, slots=True)
class LostBlocks:
    """Rows that are gone. keys: the first and the last that they can have had; None where nothing is known of them."""

    keys: tuple[Key, Key] | None
    row_count: int


@dataclass(slots=True)
class Salvaged:
    """The rows that are proven, in the table's order, and what is not. sequences: the first and last that the table can have.

    flags: a u8 array, 1 where the row is a tombstone.
    """

    rows: Array
    flags: Array
    lost: list[LostBlocks] = field(default_factory=list[LostBlocks])
    sequences: tuple[int, int] | None = None
    compression: str = "none"
    wrong: list[str] = field(default_factory=list[str])


def read_table_file(path: Path, file_bytes: int | None = None) -> TableFile:
    """Read a file that should be an sstable. file_bytes: how long it should be, where that is known.

    Raises FormatMismatch for a sound one of another version, FileNotFoundError.
    """
    data = map_file(path) or b""
    if file_bytes is not None and len(data) > file_bytes:
        data = data[:file_bytes]
    wrong: list[str] = []
    head, foot = data[:PAGE_BYTES], data[-PAGE_BYTES:] if len(data) >= 2 * PAGE_BYTES else b""
    header = _header(path, head)
    if header is None:
        mended = mend_page(head)
        header = None if mended is None else _header(path, mended)
        wrong.append("the header is damaged" if header is None else "one byte of the header was wrong")
    footer = _footer(foot, len(data))
    if footer is None:
        mended = mend_page(foot)
        footer = None if mended is None else _footer(mended, len(data))
        wrong.append("the footer is damaged" if footer is None else "one byte of the footer was wrong")
    if header is not None and footer is not None and header.number != footer.number:
        header, wrong = None, [*wrong, f"the header is that of table {header.number}"]
    return TableFile(path, data, header, footer, tuple(wrong))


def salvage(file: TableFile, schema: Schema, info: TableInfo | None) -> Salvaged:
    """What is good in a table. schema: of its topic, and the file's where `schema_hash` is known.

    info: what the manifest says of it, where it says something.
    """
    return _Salvage(file, schema, info).run()


# --- pages ------------------------------------------------------------------------------------------------------------


def _page_is_sound(page: bytes) -> bool:
    return len(page) == PAGE_BYTES and crc32c(page[:-4]) == int.from_bytes(page[-4:], "little")


def _header(path: Path, page: bytes) -> Header | None:
    if not _page_is_sound(page):
        return None
    magic, version, order, number, schema_hash, log_id, _, row_bytes, key_bytes, block_rows, compression, topic = (
        HEADER.unpack_from(page)
    )
    if magic != b"RMAINSST" or block_rows == 0:
        return None
    for what, expected, found in (("version", 1, version), ("byte order", 0x01020304, order)):
        if found != expected:
            raise FormatMismatch(path, what, expected, found)
    if compression >= len(COMPRESSIONS):
        raise FormatMismatch(path, "compression", ", ".join(COMPRESSIONS), compression)
    name = topic.split(b"\0")[0].decode("utf-8", "replace")
    return Header(number, schema_hash, log_id, row_bytes, key_bytes, block_rows, compression, name)


def _footer(page: bytes, size: int) -> Footer | None:
    if not _page_is_sound(page):
        return None
    magic, number, file_bytes, rows, blocks, tombstones, shadowed, first, last, _, _, _ = FOOTER.unpack_from(page)
    if magic != b"RMAINEND" or file_bytes != size or rows == 0 or blocks == 0:
        return None
    sections = tuple(SECTION.unpack_from(page, SECTIONS_AT + 24 * which)[:3] for which in range(SCHEMA + 1))
    if any(offset + length > size - PAGE_BYTES for offset, length, _ in sections):
        return None
    words = struct.unpack_from(f"<{2 * KEY_WORDS_MAX}Q", page, KEYS_AT)
    keys = words[:KEY_WORDS_MAX], words[KEY_WORDS_MAX:]
    return Footer(number, file_bytes, rows, blocks, tombstones, shadowed, first, last, sections, keys)


# --- rows -------------------------------------------------------------------------------------------------------------


class _Salvage:
    def __init__(self, file: TableFile, schema: Schema, info: TableInfo | None) -> None:
        self.file, self.schema, self.info = file, schema, info
        self.codec = KeyCodec(schema)
        self.words = self.codec.key_words
        self.wrong = list(file.wrong)
        self.row_bytes = schema.row_bytes
        self.entries_at = 0  # of the index, where it was searched for

    def run(self) -> Salvaged:
        footer, info = self.file.footer, self.info
        bounds = self._bounds()
        sequences = (
            (footer.sequence_min, footer.sequence_max)
            if footer is not None
            else (info.sequence_min, info.sequence_max)
            if info is not None
            else None
        )
        nothing = Salvaged(np.empty(0, self.schema.dtype), np.empty(0, "u1"), sequences=sequences, wrong=self.wrong)
        entries = self._entries()
        row_count = footer.row_count if footer is not None else info.row_count if info is not None else None
        if entries is None:
            self.wrong.append("the index of the blocks is damaged")
            nothing.lost.append(LostBlocks(bounds, row_count or 0))
            return nothing
        index, proven = entries
        proven = proven and self.file.schema_hash is not None  # else these may be another topic's rows
        shape = self._shape(index, row_count)
        if shape is None:
            self.wrong.append("nothing tells how many rows a block has")
            nothing.lost.append(LostBlocks(bounds, row_count or 0))
            return nothing
        compression, block_rows, counts = shape
        keys, tags = self._index_keys(index, counts)
        blocks: list[Array | None] = []
        for number, entry in enumerate(index):
            rows = self._block(entry, compression, counts[number])
            if rows is not None and not self._vouched(rows, number, block_rows, keys, tags, proven, sequences):
                rows = None
            blocks.append(rows)
        flags = self._flags(blocks, counts, block_rows)
        return self._collect(blocks, flags, counts, keys, bounds, sequences, COMPRESSIONS[compression])

    def _bounds(self) -> tuple[Key, Key] | None:
        if self.info is not None:
            return self.info.key_min, self.info.key_max
        if self.file.footer is not None:
            low, high = self.file.footer.key_words
            return low[: self.words], high[: self.words]
        return None

    # --- the index --------------------------------------------------------------------------------------------------

    def _entries(self) -> tuple[Array, bool] | None:
        """The index of the blocks, and whether the footer proves it."""
        footer = self.file.footer
        if footer is not None:
            whole = self.file.section(BLOCKS)
            if whole is not None and len(whole) == footer.block_count * ENTRY.itemsize:
                offset, size, _ = footer.sections[BLOCKS]
                if whole != self.file.data[offset : offset + size]:
                    self.wrong.append("one byte of the index was wrong")
                return np.frombuffer(whole, ENTRY), True
            offset, size, _ = footer.sections[BLOCKS]
            if size == footer.block_count * ENTRY.itemsize:
                self.wrong.append("the index of the blocks is damaged")
                return np.frombuffer(self.file.data, ENTRY, footer.block_count, offset), False
        return self._search_entries()

    def _search_entries(self) -> tuple[Array, bool] | None:
        """The index where no footer tells its place: it begins with block 0, which lies behind the header."""
        data = self.file.data
        begin = np.frombuffer(data, "<u8", len(data) // 64 * 8)[::8]
        for at in (np.flatnonzero(begin == PAGE_BYTES) * 64)[::-1].tolist():
            if at < PAGE_BYTES or at + ENTRY.itemsize > len(data):
                continue
            head = np.frombuffer(data, ENTRY, min(2, (len(data) - at) // ENTRY.itemsize), at)
            is_followed = len(head) == 2 and int(head[1]["offset"]) == PAGE_BYTES + int(head[0]["bytes"])
            if not is_followed and self._stored(head[0]) is None:
                continue  # a value that is the same by chance, as one of every row may be
            rest = np.frombuffer(data, ENTRY, (len(data) - at) // ENTRY.itemsize, at)
            ends = rest["offset"] + rest["bytes"]
            follows = (rest["offset"][1:] == ends[:-1]) & (ends[1:] <= at) & (rest["bytes"][1:] > 0)
            count = 1 + (len(follows) if follows.all() else int(np.argmin(follows)))
            if count > 1 or self._stored(rest[0]) is not None:
                self.entries_at = at
                return rest[:count], False
        return None

    def _shape(self, index: Array, row_count: int | None) -> tuple[int, int, list[int]] | None:
        """(compression, rows of a block, rows of each block)."""
        header, count = self.file.header, len(index)
        if header is not None:
            compression, block_rows = header.compression, header.block_rows
        else:
            compression = self._guess_compression(index)
            first = self._decompressed(index[0], compression)
            if first is None or len(first) % self.row_bytes or not first:
                return None
            block_rows = len(first) // self.row_bytes
        if row_count is None:
            last = self._decompressed(index[-1], compression)
            if last is None or len(last) % self.row_bytes or not 0 < len(last) // self.row_bytes <= block_rows:
                return None
            row_count = (count - 1) * block_rows + len(last) // self.row_bytes
        if -(-row_count // block_rows) != count:
            return None
        return compression, block_rows, [min(block_rows, row_count - at * block_rows) for at in range(count)]

    def _guess_compression(self, index: Array) -> int:
        entry = index[0]
        stored = self.file.data[int(entry["offset"]) : int(entry["offset"]) + int(entry["bytes"])]
        if stored[:4] == b"\x28\xb5\x2f\xfd":
            return COMPRESSIONS.index("zstd")
        whole = not len(stored) % self.row_bytes and (index["bytes"][:-1] == entry["bytes"]).all()
        return COMPRESSIONS.index("none" if whole else "lz4")

    def _decompressed(self, entry: np.void, compression: int) -> bytes | None:
        stored = self._stored(entry)
        if stored is None or compression == 0:
            return stored
        return self._decompress(stored, compression, min(BLOCK_BYTES_MAX, 256 * len(stored)))

    def _stored(self, entry: np.void) -> bytes | None:
        offset, size = int(entry["offset"]), int(entry["bytes"])
        if not PAGE_BYTES <= offset <= len(self.file.data) - size:
            return None
        stored = self.file.data[offset : offset + size]
        return stored if size and crc32c(stored) == int(entry["crc"]) else None

    def _decompress(self, stored: bytes, compression: int, size: int) -> bytes | None:
        decompress: Callable[[bytes, int], bytes] | None = compressor(COMPRESSIONS[compression])[1]
        assert decompress is not None
        try:
            return decompress(stored, size)
        except MemoryError:
            raise
        except Exception:  # whatever the library raises: these are no block
            return None

    def _block(self, entry: np.void, compression: int, row_count: int) -> Array | None:
        """The rows of a block where its bytes have the checksum that the index names."""
        stored = self._stored(entry)
        if stored is not None and compression:
            stored = self._decompress(stored, compression, row_count * self.row_bytes)
        if stored is None or len(stored) != row_count * self.row_bytes:
            return None
        return np.frombuffer(stored, self.schema.dtype)

    # --- what vouches for a block -----------------------------------------------------------------------------------

    def _index_keys(self, index: Array, counts: list[int]) -> tuple[Array | None, Array | None]:
        """First keys and tags: from proven sections, or, where the footer is gone, from where they must lie."""
        count, row_count = len(index), sum(counts)
        if self.file.footer is not None:
            keys, tags = self.file.section(KEYS), self.file.section(TAGS)
        else:
            keys_at = _aligned(int(index["offset"][-1]) + int(index["bytes"][-1]))
            keys = self.file.data[keys_at : keys_at + count * self.words * 8]
            tags = self.file.data[self._tags_at(count) : self._tags_at(count) + row_count]
        if keys is None or len(keys) != count * self.words * 8:
            keys = None
        if tags is None or len(tags) != row_count:
            tags = None
        return (
            None if keys is None else np.frombuffer(keys, "<u8").reshape(count, self.words),
            None if tags is None else np.frombuffer(tags, "u1"),
        )

    def _tags_at(self, block_count: int) -> int:
        return _aligned(self.entries_at + block_count * ENTRY.itemsize)

    def _vouched(
        self,
        rows: Array,
        number: int,
        block_rows: int,
        keys: Array | None,
        tags: Array | None,
        proven: bool,
        sequences: tuple[int, int] | None,
    ) -> bool:
        """Whether a block whose checksum is right belongs where it lies."""
        if proven:
            return True
        if keys is None or tags is None:
            return False
        first = number * block_rows
        if (self.codec.encode(rows[:1])[0] != keys[number]).any():
            return False
        if (self.codec.hashes(rows) >> np.uint64(56) != tags[first : first + len(rows)]).any():
            return False
        if sequences is None:
            return True
        return bool((rows["sequence"] >= sequences[0]).all() and (rows["sequence"] <= sequences[1]).all())

    # --- tombstones -------------------------------------------------------------------------------------------------

    def _flags(self, blocks: list[Array | None], counts: list[int], block_rows: int) -> list[Array | None]:
        """For each good block: 1 where a row is a tombstone, 0 where it is none, 2 where nothing tells."""
        footer, info = self.file.footer, self.info
        total = footer.tombstone_count if footer is not None else info.tombstone_count if info is not None else None
        bare = [None if rows is None else self._bare(rows) for rows in blocks]
        marks = None if total == 0 else self._marks(blocks, bare, counts, total)
        found: list[Array | None] = []
        for number, rows in enumerate(blocks):
            at = bare[number]
            if rows is None or at is None:
                found.append(None)
            elif total == 0:
                found.append(np.zeros(len(rows), "u1"))
            elif marks is not None:
                found.append(marks[number * block_rows : number * block_rows + len(rows)])
            else:
                found.append(np.where(at, 2, 0).astype("u1"))
        known = [at for at in bare if at is not None]
        if marks is None and len(known) == len(blocks) and sum(int(at.sum()) for at in known) == total:
            return [at.astype("u1") for at in known]  # all of them, then
        return found

    def _bare(self, rows: Array) -> Array:
        """Which rows have nothing but stamp and key."""
        covered = np.ones(self.row_bytes, bool)
        covered[:16] = False
        fields = self.schema.dtype.fields
        assert fields is not None
        for name, (kind, offset, *_) in fields.items():
            if name not in self.codec.names:
                continue
            covered[offset : offset + kind.itemsize] = False
        plain = np.frombuffer(rows.tobytes(), "u1").reshape(len(rows), self.row_bytes)
        return np.logical_not(plain[:, covered].any(axis=1))

    def _marks(
        self, blocks: list[Array | None], bare: list[Array | None], counts: list[int], total: int | None
    ) -> Array | None:
        """The tombstone bits of all rows, one byte each, where they are proven."""
        row_count = sum(counts)
        size = (row_count + 63) // 64 * 8
        if self.file.footer is not None:
            section = self.file.section(TOMBSTONES)
        elif total is None:
            return np.zeros(row_count, "u1") if self._has_no_tombstones(blocks, counts) else None
        else:
            at = self.file.data.find(self.schema.to_json()) - _aligned(size)
            section = self.file.data[at : at + size] if at > 0 else None
        if section is None or len(section) != size:
            return None
        marks = np.unpackbits(np.frombuffer(section, "u1"), bitorder="little")
        place, fits = 0, int(marks.sum()) == total and not marks[row_count:].any()
        for at, count in zip(bare, counts, strict=True):
            fits = fits and (at is None or not (marks[place : place + count].astype(bool) & ~at).any())
            place += count
        return marks[:row_count] if fits else None

    def _has_no_tombstones(self, blocks: list[Array | None], counts: list[int]) -> bool:
        """Whether the schema lies right behind the filter, whose size follows from the number of keys."""
        found = [rows for rows in blocks if rows is not None]
        if len(found) != len(blocks):
            return False
        keys = self.codec.encode(np.concatenate(found))
        key_count = 1 + int((keys[1:] != keys[:-1]).any(axis=1).sum())
        lines = -(-key_count * BLOOM_BITS_PER_KEY // BLOOM_LINE_BITS)
        return (
            self.file.data.find(self.schema.to_json())
            == _aligned(self._tags_at(len(blocks)) + sum(counts)) + 64 * lines
        )

    # --- together ---------------------------------------------------------------------------------------------------

    def _collect(
        self,
        blocks: list[Array | None],
        flags: list[Array | None],
        counts: list[int],
        keys: Array | None,
        bounds: tuple[Key, Key] | None,
        sequences: tuple[int, int] | None,
        compression: str,
    ) -> Salvaged:
        whole = f"V{self.row_bytes}"  # with the bytes between the fields
        parts, marks, lost = [np.empty(0, whole)], [np.empty(0, "u1")], list[LostBlocks]()
        for number, (rows, at) in enumerate(zip(blocks, flags, strict=True)):
            if rows is None or at is None:
                lost.append(LostBlocks(self._range_of(number, blocks, keys, bounds), counts[number]))
                continue
            unsure = at == 2
            if unsure.any():
                words = self.codec.encode(np.ascontiguousarray(rows[unsure]))
                lost += [LostBlocks((tuple(key), tuple(key)), 1) for key in words.tolist()]
            parts.append(rows.view(whole)[~unsure])
            marks.append(at[~unsure])
        if any(rows is None for rows in blocks):
            self.wrong.append(f"{sum(rows is None for rows in blocks)} of {len(blocks)} blocks are damaged")
        if sum(len(rows) for rows in blocks if rows is not None) != sum(len(part) for part in parts):
            self.wrong.append("nothing tells which of some rows delete their keys")
        rows = np.concatenate(parts).view(self.schema.dtype)
        return Salvaged(rows, np.concatenate(marks), _joined(lost), sequences, compression, self.wrong)

    def _range_of(
        self, number: int, blocks: list[Array | None], keys: Array | None, bounds: tuple[Key, Key] | None
    ) -> tuple[Key, Key] | None:
        """Between which keys a damaged block's rows lie."""
        proven = keys is not None and self.file.footer is not None
        low, high = bounds if bounds is not None else (None, None)
        if proven:
            assert keys is not None
            low = tuple(keys[number].tolist())
        else:
            before = next((rows for rows in reversed(blocks[:number]) if rows is not None), None)
            if before is not None:
                low = tuple(self.codec.encode(before[-1:])[0].tolist())
        if proven and number + 1 < len(blocks):
            assert keys is not None
            high = tuple(keys[number + 1].tolist())
        else:
            behind = next((rows for rows in blocks[number + 1 :] if rows is not None), None)
            if behind is not None:
                high = tuple(self.codec.encode(behind[:1])[0].tolist())
        if low is None and high is None:
            return None
        return low or (0,) * self.words, high or ((1 << 64) - 1,) * self.words


def _aligned(offset: int) -> int:
    return (offset + 63) // 64 * 64


def _joined(lost: list[LostBlocks]) -> list[LostBlocks]:
    """Neighbours that meet, as one."""
    joined: list[LostBlocks] = []
    for part in lost:
        last = joined[-1] if joined else None
        if last is not None and last.keys is not None and part.keys is not None and last.keys[1] >= part.keys[0]:
            joined[-1] = LostBlocks((last.keys[0], max(last.keys[1], part.keys[1])), last.row_count + part.row_count)
        else:
            joined.append(part)
    return joined
