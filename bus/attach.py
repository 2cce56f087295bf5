"""A topic as another process sees it: its ring mapped read-only, its header checked, its schema read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..storage import Schema, SchemaError
from . import _segment
from .errors import AttachError, NotFound
from .segments import Segment, data_name, open_control, split_address

__all__ = ["Attached", "Watermarks", "attach"]


class Watermarks(NamedTuple):
    """What is known of a topic's records, each the last sequence of which it holds."""

    claimed: int
    published: int
    logged: int
    durable: int
    indexed: int
    replicated: int


@dataclass(frozen=True, slots=True)
class Attached:
    """One topic's two segments, mapped, and what the header says. Nothing here changes; the rings' content does."""

    bus: str
    topic: str
    data: Segment
    control: Segment
    header: dict[str, Any]
    schema: Schema

    @property
    def data_directory(self) -> Path | None:
        """Where the bus keeps its log, and its store; None for rings only."""
        return Path(self.header["data_dir"]) if self.header["data_dir"] else None

    @property
    def log_directory(self) -> Path | None:
        """Where the bus keeps its log; None for rings only."""
        return self.data_directory / "log" if self.data_directory is not None else None

    def is_current(self) -> bool:
        """Whether the topic's name still means this ring, and not that of a newer writer."""
        return self.data.is_current()

    def watermarks(self) -> Watermarks:
        state = _segment.read_state(self.data.memory)
        return Watermarks(*(state[name] for name in Watermarks._fields))


def attach(address: str) -> Attached:
    """Attach to a topic, "BUS/TOPIC". The data segment is mapped read-only: the kernel sees to it that nobody here writes it.

    Raises NotFound where no such topic is open, AttachError where its segments cannot be used, and says why.
    """
    bus, topic = split_address(address)
    name = data_name(bus, topic)
    try:
        data = Segment.open(name, writable=False)
        control = open_control(bus, topic)
    except NotFound:
        raise NotFound(
            f"no topic {address!r} is open on this machine; start its writer, or see `ringmain ls`"
        ) from None
    header = _segment.read_data(data.memory, name)
    if (header["bus"], header["topic"]) != (bus, topic) or data.uid != control.uid:
        raise AttachError(
            f"segment {name}: made for {header['bus']}/{header['topic']} or by two users; not to be trusted"
        )
    try:
        schema = Schema.from_json(header["schema_json"])
    except SchemaError as error:
        raise AttachError(f"segment {name}: its schema cannot be read: {error}") from None
    if schema.hash != header["schema_hash"] or schema.row_bytes != header["row_bytes"]:
        raise AttachError(f"segment {name}: its schema does not match its header; damaged, or of another release")
    return Attached(bus, topic, data, control, header, schema)
