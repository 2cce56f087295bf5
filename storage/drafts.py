"""How a file of a damaged log should look: what of it is valid, and what goes into the places that are not.

Types that repair_headers.py, damage.py and repair.py share. Sizes and places in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from . import _log
from .log_files import FileHeader, LogFile, LogTopic, read_topics
from .mend import mend_page

__all__ = ["Draft", "Lost", "Region", "TopicSlot", "declared_topics", "encode_header", "read_header"]

HEADER, FRAME = _log.LOG_HEADER_BYTES, _log.FRAME_HEADER_BYTES
LOST_BYTES = _log.LOST_DTYPE.itemsize


@dataclass(frozen=True, slots=True)
class Lost:
    """Records of one topic that are gone. at_most: nothing tells how many there were, only how many there can have been."""

    topic: int
    first: int
    count: int
    at_most: bool = False


@dataclass(slots=True)
class TopicSlot:
    """A topic's declaration that must be written again."""

    topic: LogTopic
    json: bytes

    @property
    def frame_bytes(self) -> int:
        return FRAME + (len(self.json) + 7) // 8 * 8


@dataclass(slots=True)
class Region:
    """Bytes of a file that hold no valid frame and should."""

    start: int
    end: int
    slots: list[TopicSlot] = field(default_factory=list[TopicSlot])
    lost: list[Lost] = field(default_factory=list[Lost])

    @property
    def room(self) -> int:
        """Bytes behind the declarations that are written into it."""
        return self.end - self.start - sum(slot.frame_bytes for slot in self.slots)

    @property
    def room_lost(self) -> int:
        """How many more entries fit into the first gap."""
        return (self.room - FRAME) // LOST_BYTES - len(self.lost)


@dataclass(slots=True)
class Draft:
    """One file as it should be: what is at `path`, with another header, patches, and regions filled."""

    header: FileHeader
    path: Path | None  # None where nothing of it is left
    size_bytes: int
    header_wrong: str = ""  # what was wrong with the header, in words
    patches: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    regions: list[Region] = field(default_factory=list[Region])
    end: int = 0
    reserved: list[Lost] = field(default_factory=list[Lost])  # given up behind `end`

    @property
    def changed(self) -> bool:
        return bool(self.header_wrong or self.patches or self.regions or self.reserved)

    def load(self) -> LogFile:
        """The file in memory, its header and patches put right; regions not yet filled."""
        data = bytearray() if self.path is None else bytearray(self.path.read_bytes())
        data.extend(bytes(max(0, HEADER - len(data))))
        data[:HEADER] = encode_header(self.header)
        for offset, patch in self.patches:
            data[offset : offset + len(patch)] = patch
        return LogFile(self.path or Path(), self.header, data)


def encode_header(header: FileHeader) -> bytes:
    """A file header's bytes."""
    return _log.encode_file_header(
        log_id=header.log_id,
        file_number=header.file_number,
        start_position=header.start_position,
        previous_end=header.previous_end,
        epoch=header.epoch,
        created_ns=header.created_ns,
        file_bytes=header.file_bytes,
        start_bytes=header.start_bytes,
        bus=header.bus,
    )


def read_header(path: Path) -> tuple[FileHeader | None, str]:
    """A file's header, mended where one byte was wrong, and what was wrong with it. Raises FormatMismatch."""
    with path.open("rb") as file:
        data = file.read(HEADER)
    fields = _log.decode_file_header(data, path)
    if fields is not None:
        return FileHeader(**fields), ""
    mended = mend_page(data)
    fields = None if mended is None else _log.decode_file_header(mended, path)
    if fields is None:
        return None, "the header is damaged" if len(data) == HEADER else "the file is cut off inside its header"
    return FileHeader(**fields), "one byte of the header was wrong"


def declared_topics(draft: Draft) -> list[TopicSlot]:
    """The declarations that a file holds, as far as they are valid."""
    if draft.path is None:
        return []
    file = draft.load()
    slots: list[TopicSlot] = []
    at: int | None = HEADER
    limit = draft.header.start_bytes if draft.header.start_bytes > HEADER else 2**63
    while (at := file.find_frame(at)) is not None and at < limit:
        frames, end = file.scan(at)
        slots += [TopicSlot(topic, topic.schema.to_json()) for topic in read_topics(file, frames)]
        at = end
    return slots
