"""CRC-32C: both ways of computing it agree with each other, with the published value, and with an independent package."""

from __future__ import annotations

import crc32c as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ringmain.storage._log import crc32c

BLOCK = bytes(range(256)) * 256  # 64 KiB


@pytest.mark.parametrize("portable", [False, True])
def test_the_published_values(portable):
    assert crc32c(b"123456789", portable=portable) == 0xE3069283
    assert crc32c(b"", portable=portable) == 0
    assert crc32c(bytes(32), portable=portable) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"\xff" * 32, portable=portable) == 0x62A8AB43


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("around", [0, 8, 256, 3 * 256, 4096, 3 * 4096, 3 * 4096 + 3 * 256, 6 * 4096])
def test_every_length_around_the_edges_of_the_three_streams(portable, around):
    for length in range(max(0, around - 9), around + 10):
        assert crc32c(BLOCK[:length], portable=portable) == reference.crc32c(BLOCK[:length])


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1), st.integers(0, 15))
def test_it_agrees_with_the_crc32c_package(data, seed, start):
    view = memoryview(data)[start:]  # at any alignment
    expected = reference.crc32c(bytes(view), seed)
    assert crc32c(view, seed) == crc32c(view, seed, portable=True) == expected


@given(st.integers(0, 40_000), st.integers(0, 40_000), st.integers(0, 7), st.booleans())
def test_a_checksum_can_be_continued(first, second, start, portable):
    data = BLOCK[start : start + first + second]
    assert crc32c(data[first:], crc32c(data[:first]), portable=portable) == reference.crc32c(data)


def test_any_contiguous_buffer_will_do():
    assert crc32c(bytearray(b"123456789")) == crc32c(memoryview(b"123456789")) == 0xE3069283
    with pytest.raises((TypeError, BufferError, ValueError)):
        crc32c(memoryview(BLOCK)[::2])
    with pytest.raises(TypeError):
        crc32c("text")  # pyright: ignore[reportArgumentType]
