"""What a damaged manifest still proves: each valid record of it is an edit that was made. Nothing is changed here.

1. Records on both sides of a damaged place count. What the one between them added or removed is not known (`is_whole`).
2. A header is mended where it has one wrong byte, or made from what else is known where the records then fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ._log import crc32c
from .errors import Corruption
from .manifest_format import (
    CRC,
    DURABLE,
    DURABLE_OFFSET,
    FILE,
    FIXED,
    HEADER_BYTES,
    Header,
    decode_header,
    encode_durable,
    mend_record,
    scan_past_damage,
)
from .manifest_reader import ManifestFile
from .manifest_state import Edit, State, TopicInfo
from .mend import mend
from .version import TableInfo

__all__ = ["Evidence", "read_evidence"]

GENERATION_MAX = 100_000  # looked for, where the header does not tell


@dataclass(slots=True)
class Evidence:
    """What is known of a store. is_whole: nothing is missing; then it is the state. wrong: in words, empty where all is well.

    removed: tables that are known to be gone. log_id: 0 where it is not known. generation: of the file.
    """

    log_id: int = 0
    generation: int = 0
    topics: dict[str, TopicInfo] = field(default_factory=dict[str, TopicInfo])
    tables: dict[int, TableInfo] = field(default_factory=dict[int, TableInfo])
    removed: set[int] = field(default_factory=set[int])
    checkpoints: dict[str, int] = field(default_factory=dict[str, int])
    next_number: int = 1
    is_whole: bool = False
    wrong: str = ""

    def apply(self, edit: Edit) -> None:
        """Take in an edit, whatever is missing before it."""
        self.topics.update(edit.topics)
        for number in edit.removed:
            self.tables.pop(number, None)
            self.removed.add(number)
        for table in edit.added:
            self.tables[table.number] = table
            self.removed.discard(table.number)
        for topic, sequence in edit.checkpoints.items():
            self.checkpoints[topic] = max(sequence, self.checkpoints.get(topic, 0))
        self.next_number = max(self.next_number, edit.next_number, *(table.number + 1 for table in edit.added))


def read_evidence(path: Path, log_id: int) -> Evidence:
    """What a manifest says, sound or not; nothing, where it is missing. log_id: of the log beside it, 0 where that is not known.

    Raises FormatMismatch for one of another version.
    """
    try:
        found = ManifestFile(path, None)
    except FileNotFoundError:
        return Evidence(wrong="it is missing")
    except Corruption:
        return _salvage(path, log_id)
    evidence = Evidence(found.header.log_id, found.header.generation, is_whole=True)
    found.close()
    evidence.apply(found.state.as_edit())
    return evidence


def _salvage(path: Path, log_id: int) -> Evidence:
    data = path.read_bytes()
    for header, durable_bytes, wrong in _headers(data, path, log_id):
        payloads, holes = scan_past_damage(data[HEADER_BYTES:], HEADER_BYTES, header)
        found = {offset: edit for offset, payload in payloads if (edit := _decode(payload)) is not None}
        is_whole = len(found) == len(payloads) and (durable_bytes is None or durable_bytes <= len(data))
        for first, behind in holes:
            if behind == len(data) and durable_bytes is not None:
                behind = min(behind, durable_bytes)
                if first >= behind:
                    continue  # a torn tail
            edit = _decode(mend_record(data[first:behind], first, header))
            if edit is not None:
                found[first], wrong = edit, "one byte of a record was wrong"
            is_whole = is_whole and edit is not None
        if not found:
            continue
        edits = [found[offset] for offset in sorted(found)]
        evidence = Evidence(header.log_id, header.generation)
        for edit in edits:
            evidence.apply(edit)
        evidence.is_whole = is_whole and _can_follow(header, edits)
        evidence.wrong = wrong if evidence.is_whole else "records of it are damaged"
        return evidence
    return Evidence(wrong="nothing in it can be read")


def _headers(data: bytes, path: Path, log_id: int) -> Iterator[tuple[Header, int | None, str]]:
    """What the header may be, the surest first; durable_bytes where it is proven; what was wrong."""
    fixed = data[: FIXED.size]
    if len(data) < HEADER_BYTES:
        return
    stored = int.from_bytes(data[FIXED.size : DURABLE_OFFSET], "little")
    mended = mend(fixed, stored)
    known = Header(log_id, 0, 0)
    if mended is not None:
        header = _decode_fixed(mended, path)
        if header is not None:
            known = header
            yield header, _durable(data, header), "one byte of the header was wrong"
    _, _, _, found_log_id, generation, _, _ = FIXED.unpack(fixed)
    slot, crc = data[DURABLE_OFFSET : DURABLE_OFFSET + DURABLE.size], data[DURABLE_OFFSET + DURABLE.size : HEADER_BYTES]
    wanted = int.from_bytes(crc, "little")
    for candidate in dict.fromkeys((found_log_id, log_id)):
        if not candidate:
            continue
        header = Header(candidate, generation, 0)
        if mended is None or (header.log_id, header.generation) != (known.log_id, known.generation):
            yield header, _durable(data, header), "the header was damaged"
        for number in range(1, GENERATION_MAX):
            if crc32c(slot, crc32c(FILE.pack(candidate, number))) == wanted and number != generation:
                yield Header(candidate, number, 0), DURABLE.unpack(slot)[0], "the header was damaged"


def _decode_fixed(fixed: bytes, path: Path) -> Header | None:
    """The header's first part, if that is one. Raises FormatMismatch."""
    header = Header(*FIXED.unpack(fixed)[3:6])
    page = fixed + CRC.pack(crc32c(fixed)) + encode_durable(header, HEADER_BYTES)
    try:
        return decode_header(page, path)[0]
    except Corruption:
        return None


def _durable(data: bytes, header: Header) -> int | None:
    """durable_bytes, where its checksum is right for this header."""
    slot = data[DURABLE_OFFSET : DURABLE_OFFSET + DURABLE.size]
    is_right = crc32c(slot, header.seed) == int.from_bytes(data[DURABLE_OFFSET + DURABLE.size : HEADER_BYTES], "little")
    return DURABLE.unpack(slot)[0] if is_right else None


def _decode(payload: bytes | None) -> Edit | None:
    try:
        return None if payload is None else msgspec.json.decode(payload, type=Edit)
    except (msgspec.MsgspecError, ValueError):
        return None


def _can_follow(header: Header, edits: list[Edit]) -> bool:
    """Whether the edits make a state one after the other."""
    state = State.empty(header.log_id)
    try:
        for edit in edits:
            state = state.edit(edit)
    except ValueError:
        return False
    return True
