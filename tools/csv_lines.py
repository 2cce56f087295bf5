"""The bytes of a CSV file as lines: from a path or a stream, plain or gzip, in bounded memory.

1. Every complete line is handed out, once, in order; whatever goes wrong later.
2. The unfinished line before a damage (a gzip file that ends early or fails its check, a read error) is not handed out:
   half a number is a number too. The unfinished last line of an undamaged file is.
3. Nothing waits for the end: a gzip file's checksum, which stands there, can only condemn what was handed out before.
"""

from __future__ import annotations

import os
import stat
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, BinaryIO, Protocol

BLOCK_BYTES = 256 << 10
LINE_BYTES_MAX = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class InputDamaged(ValueError):
    """The input ends or breaks where it must not; `byte` counts from the start of the file as stored."""

    def __init__(self, path: str, byte: int, problem: str) -> None:
        self.path, self.byte, self.problem = path, byte, problem
        super().__init__(f"{path}, byte {byte}: {problem}")


class LineSource:
    """The lines of one input, without their line ends. For one thread.

    source: a path, "-" for standard input, or a binary stream (left open). Gzip is recognised by its first bytes.
    `error` is what ended the input early, once `take` has returned nothing; None at a proper end.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        self._owned: IO[bytes] | None = None
        if isinstance(source, str | Path) and str(source) != "-":
            self.name = str(source)
            self._owned = open(source, "rb", buffering=0)  # noqa: SIM115
            self._file: IO[bytes] = self._owned
        elif isinstance(source, str | Path):
            self.name, self._file = "standard input", sys.stdin.buffer
        else:
            self.name, self._file = str(getattr(source, "name", "input")), source
        self.bytes_read = 0  # of the file as stored
        self.error: InputDamaged | OSError | None = None
        self._chunks = self._read_lines()
        self._ready: deque[bytes] = deque()

    @property
    def bytes_total(self) -> int | None:
        """The size of the file as stored; None for a pipe or another stream of unknown length."""
        try:
            status = os.fstat(self._file.fileno())
        except (OSError, ValueError):  # a stream without a descriptor; a closed one
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def take(self, limit: int) -> list[bytes]:
        """Return the next lines that are at hand, at most `limit`; waits for one. Empty only at the end."""
        while not self._ready:
            try:
                self._ready.extend(next(self._chunks))
            except StopIteration:
                return []
            except (InputDamaged, OSError) as error:
                self.error = error
                return []
        ready = self._ready
        if len(ready) <= limit:
            lines = list(ready)
            ready.clear()
            return lines
        return [ready.popleft() for _ in range(limit)]

    def close(self) -> None:
        if self._owned is not None:
            self._owned.close()

    def _read_lines(self) -> Iterator[list[bytes]]:
        rest = b""
        for number, block in enumerate(_whole_head(self._unpacked(), len(UTF8_BOM))):
            if number == 0:
                if block.startswith(UTF16_BOMS):
                    raise InputDamaged(self.name, 0, "this is UTF-16; convert it to UTF-8 first")
                block = block.removeprefix(UTF8_BOM)
            lines = (rest + block).split(b"\n")
            if len(rest) + len(block) > LINE_BYTES_MAX:
                for index, line in enumerate(lines):
                    if len(line) > LINE_BYTES_MAX:
                        yield lines[:index]
                        problem = f"a line of more than {LINE_BYTES_MAX} bytes was read up to here; is this a CSV file?"
                        raise InputDamaged(self.name, self.bytes_read, problem)
            rest = lines.pop()
            yield lines
        if rest:
            yield [rest]

    def _unpacked(self) -> Iterator[bytes]:
        blocks = _whole_head(self._stored(), len(GZIP_MAGIC))
        for first in blocks:
            if first.startswith(GZIP_MAGIC):
                yield from _gunzip(first, blocks, self.name)
            else:
                yield first
                yield from blocks

    def _stored(self) -> Iterator[bytes]:
        # read1 where there is one: a live pipe must not wait for a full block
        read = getattr(self._file, "read1", self._file.read)
        while block := read(BLOCK_BYTES):
            self.bytes_read += len(block)
            yield block


def _whole_head(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Hand the blocks on, the first of them with at least `size` bytes if there are as many."""
    head = b""
    try:
        for block in blocks:
            head += block
            if len(head) >= size:
                break
    except (InputDamaged, OSError):
        if head:
            yield head
        raise
    if head:
        yield head
    yield from blocks


def _gunzip(first: bytes, blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Unpack gzip members one after another; zeros after a member are padding."""
    inflate = zlib.decompressobj(wbits=31)
    block_start, fed = 0, False  # fed: this member has begun
    for block in chain((first,), blocks):
        data = block
        while data:
            if inflate.eof:
                inflate, fed = zlib.decompressobj(wbits=31), False
            if not fed:
                data = data.lstrip(b"\0") if block_start or len(data) < len(block) else data
                if not data:
                    break
                fed = True
            before = inflate.copy()
            try:
                unpacked = inflate.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                good, used = _unpack_until_error(before, data)
                if good:
                    yield bytes(good)
                byte = block_start + len(block) - len(data) + used
                raise InputDamaged(name, byte, f"damaged gzip data ({error})") from error
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if unpacked:
                yield unpacked
        block_start += len(block)
    if fed and not inflate.eof:
        if rest := inflate.flush():
            yield rest
        raise InputDamaged(name, block_start, "the gzip data end in the middle; the file was cut off")


class _Inflate(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


def _unpack_until_error(inflate: _Inflate, data: bytes) -> tuple[bytearray, int]:
    """Feed byte by byte to find which one breaks; return what came out before it."""
    unpacked = bytearray()
    for used in range(len(data)):
        try:
            unpacked += inflate.decompress(data[used : used + 1])
        except zlib.error:
            return unpacked, used
    return unpacked, len(data)
