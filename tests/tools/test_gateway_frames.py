"""Frames of the gateway as the library `websockets` would make them."""

from __future__ import annotations

import numpy as np
import pytest
from ringmain.storage import Schema
from ringmain.tools.gateway.connection import framed
from ringmain.tools.gateway.frames import encode_json, json_row_bytes_max
from websockets.frames import Frame, Opcode


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20])
def test_a_message_becomes_one_whole_frame(size):
    data = bytes(number % 251 for number in range(size))
    assert framed(data) == Frame(Opcode.BINARY, data).serialize(mask=False)
    text = "µ" * size
    assert framed(text) == Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


EXTREMES = Schema(
    "extremes",
    {
        "yes": "?",
        "a": "i1",
        "b": "u1",
        "c": "i2",
        "d": "u2",
        "e": "i4",
        "f": "u4",
        "g": "i8",
        "h": "u8",
        "x": "f4",
        "y": "f8",
    }
    | {"schön": "S1", "name": "S30", "grid": "(2,3)f8", "many": "5i8", "texts": "3S4"},
)


@pytest.mark.parametrize("name", [field.name for field in EXTREMES.fields])
def test_no_row_is_longer_as_json_than_its_fields_allow(name):
    for filled in (0x00, 0x01, 0x0A, 0x22, 0x5C, 0x7E, 0x80, 0xFF):  # of text: what has to be escaped, in each way
        rows = np.frombuffer(bytes([filled]) * 100 * EXTREMES.row_bytes, EXTREMES.dtype).copy()[["sequence", name]]
        kind = rows.dtype[name].base
        if kind.kind == "f":
            rows[name] = -np.finfo(kind).tiny
        elif kind.kind == "i":
            rows[name] = np.iinfo(kind).min
        empty = encode_json(1, rows[:0], 1, 1, 0, False)
        text = encode_json(1, rows, 1, 1, 0, False)
        assert len(text.encode()) - len(empty) <= len(rows) * json_row_bytes_max(rows.dtype)
