"""Frames of the gateway as the library `websockets` would make them."""

from __future__ import annotations

import pytest
from ringmain.tools.gateway.connection import framed
from websockets.frames import Frame, Opcode


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20])
def test_a_message_becomes_one_whole_frame(size):
    data = bytes(number % 251 for number in range(size))
    assert framed(data) == Frame(Opcode.BINARY, data).serialize(mask=False)
    text = "µ" * size
    assert framed(text) == Frame(Opcode.TEXT, text.encode()).serialize(mask=False)
