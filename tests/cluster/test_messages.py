"""What goes over the wire: it comes back as it went, and nothing that is damaged does."""

from __future__ import annotations

import dataclasses
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lz4 import block as lz4
from ringmain.bus.cluster.messages import (
    HEADER_BYTES,
    ROWS_BYTES_MAX,
    RUN_BYTES,
    BadMessage,
    Kind,
    Message,
    MessageTooLong,
    Run,
    decode,
    encode,
)
from ringmain.bus.cluster.stream import MESSAGE_BYTES_MAX
from ringmain.storage._log import crc32c

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)


@st.composite
def runs(draw):
    row_bytes = draw(st.sampled_from([24, 32, 128]))
    rows = draw(st.binary(min_size=0, max_size=4 * row_bytes))
    rows = rows[: len(rows) // row_bytes * row_bytes] * draw(st.sampled_from([1, 1, 50]))  # the latter pack well
    return Run(draw(NAMES), draw(st.integers(0, 2**64 - 1)), draw(st.integers(1, 2**63)), row_bytes, rows)


def without_rows(run: Run) -> Run:
    return dataclasses.replace(run, rows=b"")


@st.composite
def messages(draw):
    number, kind = st.integers(0, 2**64 - 1), draw(st.sampled_from(Kind))
    return Message(
        kind,
        draw(NAMES),
        draw(number),
        draw(number),
        draw(number),
        tuple(draw(st.lists(runs() if kind is Kind.DATA else runs().map(without_rows), max_size=4))),
        draw(st.one_of(st.just(""), NAMES)),
    )


@settings(max_examples=60, deadline=None)
@given(messages())
def test_a_message_comes_back_as_it_went(message):
    assert decode(encode(message)) == message


@settings(max_examples=60, deadline=None)
@given(messages(), st.randoms(use_true_random=False))
def test_no_damaged_message_is_taken(message, chance: random.Random):
    payload = bytearray(encode(message))
    if chance.random() < 0.5:
        payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
    else:
        del payload[chance.randrange(len(payload)) :]
    with pytest.raises(BadMessage):
        decode(bytes(payload))


@pytest.mark.parametrize("name", ["B.example.com", "a" * 33, "bé", "a\0"])
def test_a_name_that_nobody_could_read_is_not_sent(name):
    topic = Run(name, 7, 1, 24, bytes(24))
    for message in (
        Message(Kind.HANDOVER, "a", 1, 1, 1, target=name),
        Message(Kind.BEAT, name, 1, 1, 1),
        Message(Kind.DATA, "a", 1, 1, 1, (topic,)),
    ):
        with pytest.raises(ValueError, match="a name of the form"):
            encode(message)


def forged(at: int, form: str, value: object) -> bytes:
    """A message with another value in a place, and a checksum that fits."""
    run = Run("trades", 7, 1, 24, bytes(48))
    payload = bytearray(encode(Message(Kind.DATA, "a", 1, 1, 1, (run,))))
    struct.pack_into(form, payload, at, value)
    struct.pack_into("<I", payload, 4, crc32c(bytes(payload[8:])))
    return bytes(payload)


@pytest.mark.parametrize(
    ("at", "form", "value", "told"),
    [
        (8, "<H", 2, "version 1 is expected, got 2"),
        (10, "<B", 9, "kind 9"),
        (10, "<B", Kind.CLAIM, "a CLAIM without rows is expected, got 2"),
        (12, "<I", 2**32 - 1, "runs do not fit"),
        (12, "<I", 3, "runs do not fit"),
        (40, "32s", b"A node!", "a name of the form"),
        (HEADER_BYTES, "32s", b"\xff\xfe", "a name of the form"),
        (HEADER_BYTES + 40, "<Q", 0, "counted from 1"),
        (HEADER_BYTES + 48, "<I", 3, "72 bytes are expected, got 48"),
        (HEADER_BYTES + 48, "<I", 1, "24 bytes are expected, got 48"),
        (HEADER_BYTES + 48, "<I", 2**32 - 1, f"at most {ROWS_BYTES_MAX} bytes of rows are expected"),
        (11, "<B", 1, "packed bytes that are none"),
        (11, "<B", 2, "packed bytes that are none"),
        (11, "<B", 3, "packed in a way 3"),
        (HEADER_BYTES + 52, "<I", 0, "a multiple of 8"),
        (HEADER_BYTES + 52, "<I", 20, "a multiple of 8"),
    ],
)
def test_what_cannot_be_is_refused_in_words_although_its_checksum_fits(at, form, value, told):
    with pytest.raises(BadMessage, match=told):
        decode(forged(at, form, value))


def test_rows_are_packed_where_that_makes_them_smaller():
    alike, mixed = (
        Run("alike", 1, 1, 64, bytes(64) * 16_000),
        Run("mixed", 2, 1, 64, random.Random(1).randbytes(64 * 1000)),
    )
    for runs, bytes_max in (((alike,), 8_000), ((alike, mixed), 75_000), ((mixed,), 64_000 + HEADER_BYTES + RUN_BYTES)):
        payload = encode(Message(Kind.DATA, "a", 1, 1, 1, runs))
        assert len(payload) <= bytes_max
        assert decode(payload).runs == runs


def test_a_packed_message_that_names_more_or_fewer_rows_than_it_has_is_refused():
    run = Run("alike", 1, 1, 64, bytes(64) * 1000)
    for count in (999, 1001):
        payload = bytearray(encode(Message(Kind.DATA, "a", 1, 1, 1, (run,))))
        struct.pack_into("<I", payload, HEADER_BYTES + 48, count)
        struct.pack_into("<I", payload, 4, crc32c(bytes(payload[8:])))
        with pytest.raises(BadMessage, match=r"packed bytes that are none|bytes are expected, got"):
            decode(bytes(payload))


def transposed(runs: list[Run]) -> bytes:
    """As FORMAT.md says."""
    found = bytearray()
    for run in runs:
        rows = [bytes(run.rows[at : at + run.row_bytes]) for at in range(0, len(run.rows), run.row_bytes)]
        stripe = max(1, 32768 // run.row_bytes)
        for at in range(0, len(rows), stripe):
            found += bytes(row[byte] for byte in range(run.row_bytes) for row in rows[at : at + stripe])
    return bytes(found)


def packed(message: Message, packing: int, rows: bytes) -> bytes:
    """The message, whose rows are packed in this way."""
    payload = bytearray(encode(dataclasses.replace(message, runs=tuple(map(without_rows, message.runs)))))
    payload[11] = packing
    for index, run in enumerate(message.runs):
        struct.pack_into("<I", payload, HEADER_BYTES + index * RUN_BYTES + 48, run.count)
    payload += lz4.compress(rows, store_size=False)
    struct.pack_into("<I", payload, 4, crc32c(bytes(payload[8:])))
    return bytes(payload)


EXTENTS = [(1, 24), (1400, 24), (3, 20_000), (0, 32), (513, 128), (256, 128)]  # rows, and the bytes of one


def test_packed_rows_are_those_of_the_format():
    chance = random.Random(1)
    runs = [
        Run(f"t{index}", 1, 1, row_bytes, b"".join(chance.randbytes(4) + bytes(row_bytes - 4) for _ in range(count)))
        for index, (count, row_bytes) in enumerate(EXTENTS)
    ]
    for some in ([run] for run in runs if len(run.rows) >= 1024):
        message = Message(Kind.DATA, "a", 1, 1, 1, tuple(some))
        assert encode(message) == packed(message, 2, transposed(some))
    message = Message(Kind.DATA, "a", 1, 1, 1, tuple(runs))
    assert encode(message) == packed(message, 2, transposed(runs))
    assert decode(encode(message)) == message


def test_rows_that_were_packed_as_they_stand_are_read():
    message = Message(Kind.DATA, "a", 1, 1, 1, (Run("alike", 1, 1, 64, bytes(range(64)) * 1000),))
    assert decode(packed(message, 1, bytes(message.runs[0].rows))) == message


def test_part_of_a_row_is_not_sent():
    with pytest.raises(ValueError, match="1008 bytes of rows are expected, got 1030"):
        encode(Message(Kind.DATA, "a", 1, 1, 1, (Run("torn", 1, 1, 24, bytes(1030)),)))


@settings(max_examples=60, deadline=None)
@given(messages(), st.randoms(use_true_random=False))
def test_damage_whose_checksum_fits_is_refused_in_words_or_is_a_message(message, chance: random.Random):
    payload = bytearray(encode(message))
    for _ in range(chance.randint(1, 4)):
        payload[chance.randrange(8, len(payload))] ^= 1 << chance.randrange(8)
    struct.pack_into("<I", payload, 4, crc32c(bytes(payload[8:])))
    try:
        found = decode(bytes(payload))
    except BadMessage:
        return
    assert sum(len(run.rows) for run in found.runs) <= ROWS_BYTES_MAX


def test_a_message_is_never_longer_than_the_servers_take():
    rows = random.Random(1).randbytes(MESSAGE_BYTES_MAX)
    with pytest.raises(MessageTooLong):
        encode(Message(Kind.DATA, "a", 1, 1, 1, (Run("mixed", 2, 1, 64, rows),)))
    fitting = rows[: (MESSAGE_BYTES_MAX - HEADER_BYTES - RUN_BYTES) // 64 * 64]
    assert len(encode(Message(Kind.DATA, "a", 1, 1, 1, (Run("mixed", 2, 1, 64, fitting),)))) <= MESSAGE_BYTES_MAX


def test_its_bytes_are_those_of_the_format():
    run = Run("trades", 0x0102030405060708, 5, 24, bytes(range(24)))
    payload = encode(Message(Kind.CLAIM, "a", 2, 3, 4, (run,), "b"))
    head = b"RMS1" + payload[4:8] + bytes([1, 0, 3, 0, 1, 0, 0, 0])
    head += struct.pack("<QQQ", 2, 3, 4) + b"a".ljust(32, b"\0") + b"b".ljust(32, b"\0")
    table = b"trades".ljust(32, b"\0") + bytes(range(8, 0, -1)) + struct.pack("<QII", 5, 1, 24)
    assert payload == head + table + bytes(range(24))
    assert (len(head), len(table)) == (HEADER_BYTES, RUN_BYTES)
