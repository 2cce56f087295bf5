"""What nodes append to the stream, as bytes: FORMAT.md has the layout. What comes from the stream is checked before it is used."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum

from ...storage._log import crc32c
from ..errors import BusError
from ..segments import NAME, TOPIC
from .packing import BadPacking, pack_rows, unpack_rows
from .stream import MESSAGE_BYTES_MAX

__all__ = [
    "HEADER_BYTES",
    "ROWS_BYTES_MAX",
    "RUN_BYTES",
    "BadMessage",
    "Kind",
    "Message",
    "MessageTooLong",
    "Run",
    "decode",
    "encode",
]

MAGIC, VERSION = b"RMS1", 1
ROWS_BYTES_MAX = 2 << 20  # unpacked
NAME_BYTES = 32
HEADER = struct.Struct(
    "<4sI HBB I Q Q Q 32s 32s"
)  # magic, crc, version, kind, packing, run count, epoch, number, life, node, target
RUN = struct.Struct("<32s Q Q I I")  # topic, schema hash, first sequence, row count, row bytes
CHECKED_FROM = 8  # the checksum covers everything behind itself
HEADER_BYTES, RUN_BYTES = HEADER.size, RUN.size
RUNS_MAX = 4096


class BadMessage(BusError):
    """A message in the stream is damaged, or of nobody's making that this release knows."""


class MessageTooLong(BusError):
    """Its rows, packed, are more than a message holds. Rows of MESSAGE_BYTES_MAX less the header and the runs always fit."""


class Kind(IntEnum):
    """In the stream for as long as it is kept: add new ones, never change or reuse an old one."""

    DATA = 1  # rows
    BEAT = 2  # the leader is there and has nothing to send
    CLAIM = 3  # its node leads from here on
    HANDOVER = 4  # its node leads no more; `target` is to claim at once


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of one topic that follow each other. rows: their bytes, stamps included; none in anything but DATA, where `first` is the
    topic's next sequence."""

    topic: str
    schema_hash: int
    first: int
    row_bytes: int
    rows: bytes | memoryview = b""

    @property
    def count(self) -> int:
        return len(self.rows) // self.row_bytes

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(frozen=True, slots=True)
class Message:
    """epoch: of the leadership; number: counts the messages of an epoch, the claim is 0. life: a random number of the process that
    sends it, so that no two messages are taken for one. target: of a handover."""

    kind: Kind
    node: str
    epoch: int
    number: int
    life: int
    runs: tuple[Run, ...] = ()
    target: str = ""

    @property
    def id(self) -> str:
        """By which the stream knows a message that is sent twice."""
        return f"{self.life:x}-{self.epoch}-{self.number}"


def encode(message: Message) -> bytes:
    """The message's bytes. Raises MessageTooLong; ValueError for what `decode` would refuse: names, parts of rows."""
    rows = message.runs[0].rows if len(message.runs) == 1 else b"".join(run.rows for run in message.runs)
    packing, packed = pack_rows(rows, [(run.count, run.row_bytes) for run in message.runs])
    table = [
        RUN.pack(_encode_name(run.topic, TOPIC), run.schema_hash, run.first, run.count, run.row_bytes)
        for run in message.runs
    ]
    head = bytearray(
        HEADER.pack(
            MAGIC,
            0,
            VERSION,
            message.kind,
            packing,
            len(table),
            message.epoch,
            message.number,
            message.life,
            _encode_name(message.node, NAME),
            _encode_name(message.target, NAME) if message.target else b"",
        )
    )
    parts = [*table, packed]
    crc = crc32c(memoryview(head)[CHECKED_FROM:])
    for part in parts:
        crc = crc32c(part, crc)
    struct.pack_into("<I", head, 4, crc)
    payload = b"".join([head, *parts])
    if len(payload) > MESSAGE_BYTES_MAX:
        raise MessageTooLong(
            f"a message of at most {MESSAGE_BYTES_MAX} bytes is expected, and this one has {len(payload)}"
        )
    return payload


def _encode_name(name: str, pattern: re.Pattern[str]) -> bytes:
    if not pattern.fullmatch(name):
        raise ValueError(f"a name of the form {pattern.pattern} is expected, got {name!r}")
    return name.encode()


def decode(payload: bytes) -> Message:
    """The message that these bytes are. Rows that are not packed stay where they are: the runs hold views of them.

    Raises BadMessage.
    """
    if len(payload) < HEADER_BYTES:
        raise BadMessage(f"a message of at least {HEADER_BYTES} bytes is expected, got {len(payload)}")
    magic, crc, version, kind, packing, run_count, epoch, number, life, node, target = HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise BadMessage(f"a message that begins with {MAGIC!r} is expected, got {magic!r}")
    if crc32c(memoryview(payload)[CHECKED_FROM:]) != crc:
        raise BadMessage(f"a message of {len(payload)} bytes: its checksum does not match; damaged")
    if version != VERSION:
        raise BadMessage(f"message version {VERSION} is expected, got {version}; update this node")
    if kind not in Kind.__members__.values():
        raise BadMessage(f"a message of kind {kind}, which this release does not know; update this node")
    if run_count > RUNS_MAX or HEADER_BYTES + run_count * RUN_BYTES > len(payload):
        raise BadMessage(f"{run_count} runs do not fit into a message of {len(payload)} bytes")
    runs = _decode_runs(payload, run_count, packing)
    if kind != Kind.DATA and any(run.count for run in runs):
        raise BadMessage(f"a {Kind(kind).name} without rows is expected, got {sum(run.count for run in runs)}")
    return Message(
        Kind(kind), _name(node, NAME), epoch, number, life, runs, target=_name(target, NAME) if target[0] else ""
    )


def _decode_runs(payload: bytes, run_count: int, packing: int) -> tuple[Run, ...]:
    table = list(RUN.iter_unpack(memoryview(payload)[HEADER_BYTES : HEADER_BYTES + run_count * RUN_BYTES]))
    for index, (_, _, first, _, row_bytes) in enumerate(table):
        if row_bytes < 24 or row_bytes % 8 or first < 1:
            raise BadMessage(f"run {index}: rows of a multiple of 8 bytes, counted from 1, are expected")
    extents = [(row_count, row_bytes) for *_, row_count, row_bytes in table]
    rows_bytes = sum(row_count * row_bytes for row_count, row_bytes in extents)
    if rows_bytes > ROWS_BYTES_MAX:
        raise BadMessage(f"at most {ROWS_BYTES_MAX} bytes of rows are expected, the message's runs name {rows_bytes}")
    try:
        rows = unpack_rows(memoryview(payload)[HEADER_BYTES + run_count * RUN_BYTES :], packing, extents)
    except BadPacking as error:
        raise BadMessage(f"the rows of {run_count} runs: {error}") from None
    runs, at = list[Run](), 0
    for topic, schema_hash, first, row_count, row_bytes in table:
        end = at + row_count * row_bytes
        runs.append(Run(_name(topic, TOPIC), schema_hash, first, row_bytes, rows[at:end]))
        at = end
    return tuple(runs)


def _name(raw: bytes, pattern: re.Pattern[str]) -> str:
    name = raw.rstrip(b"\0").decode("ascii", "replace")
    if not pattern.fullmatch(name):
        raise BadMessage(f"a name of the form {pattern.pattern} is expected, got {name!r}")
    return name
