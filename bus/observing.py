"""Looking at the buses of this machine from outside. Everything is mapped read-only; nothing here waits for anybody.

A hung, killed or half-started writer looks like any other: what can be read is read, and the rest is said in words.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..storage import Schema, SchemaError
from . import _lanes, _segment
from .errors import AttachError, NotFound
from .group_state import Group
from .positions import KIND_GROUP, Position, list_positions
from .processes import flock_holder, process_state
from .segments import DIRECTORY, Segment, bus_name, control_name, data_name, lane_name, list_lanes, list_names
from .snapshot import (
    BusFacts,
    LaneFacts,
    PositionFacts,
    ReaderFacts,
    SchemaFacts,
    Snapshot,
    TopicFacts,
    WriterFacts,
)

__all__ = ["Observer", "schema_facts"]


ROLES = {_segment.ROLE_FOLLOWS: "follows", _segment.ROLE_LEADS: "leads"}
LANE_STATES = {
    _lanes.TAKEN: "taken",
    _lanes.ASKED: "asked",
    _lanes.OPEN: "open",
    _lanes.LEFT: "left",
    _lanes.REFUSED: "refused",
}


class Observer:
    """Takes snapshots; keeps the segments mapped from one to the next. For one thread.

    positions: look at what subscribers have stored as well, in files.
    """

    def __init__(self, *, positions: bool = False) -> None:
        self._positions = positions
        self._segments: dict[str, Segment] = {}
        self._schemas: dict[bytes, Schema] = {}

    def look(self, bus: str | None = None, topic: str | None = None) -> Snapshot:
        """What there is now: everything, one bus, or one topic of it. Empty where there is no such bus."""
        found = {name: topics for name, topics in list_names().items() if bus is None or name == bus}
        buses: list[BusFacts] = []
        for name, topics in found.items():
            wanted = [entry for entry in topics if topic is None or entry == topic]
            buses.append(self._look_at_bus(name, wanted))
        self._segments = {name: segment for name, segment in self._segments.items() if segment.is_current()}
        return Snapshot(taken_ns=time.time_ns(), buses=tuple(buses))

    def _open(self, name: str) -> Segment:
        segment = self._segments.get(name)
        if segment is None or not segment.is_current():
            self._segments.pop(name, None)
            segment = self._segments[name] = Segment.open(name, writable=False)
        return segment

    def _look_at_bus(self, bus: str, topics: list[str]) -> BusFacts:
        found = tuple(self._look_at_topic(bus, topic) for topic in topics)
        problem, header = "", None
        try:
            header = _segment.read_bus(self._open(bus_name(bus)).memory, bus_name(bus))
        except NotFound:
            problem = f"no segment {bus_name(bus)}: its writer's own segment was removed"
        except AttachError as error:
            problem = str(error)
        data_dir = header["data_dir"] or None if header is not None else None
        return BusFacts(bus=bus, writer=_writer(bus, header, found), problem=problem, data_dir=data_dir, topics=found)

    def _look_at_topic(self, bus: str, topic: str) -> TopicFacts:
        try:
            segment = self._open(data_name(bus, topic))
            header = _segment.read_data(segment.memory, segment.name)
            state = _segment.read_state(segment.memory)
        except (NotFound, AttachError) as error:
            return TopicFacts(topic=topic, problem=str(error))
        problem, schema = "", None
        readers: tuple[ReaderFacts, ...] = ()
        lanes: tuple[LaneFacts, ...] = ()
        now_ns = time.time_ns()
        try:
            schema = self._schema(header["schema_json"])
        except SchemaError as error:
            problem = f"segment {segment.name}: {error}"
        try:
            control = self._open(control_name(bus, topic))
            _segment.check_control(control.memory, control.name)
            entries = _segment.list_readers(control.memory)
            readers = tuple(_reader(entry, state, now_ns) for entry in entries)
            lanes = tuple(self._lanes(bus, topic, _lanes.list_entries(control.memory)))
        except (NotFound, AttachError) as error:
            problem = problem or str(error)
        return TopicFacts(
            topic=topic,
            problem=problem,
            epoch=header["epoch"],
            writer_pid=header["pid"],
            writer_process=process_state(header["pid"], header["process_start"]),
            slot_count=header["slot_count"],
            segment_bytes=header["segment_bytes"],
            opened_age_s=_age_s(header["created_ns"], now_ns),
            heartbeat_age_s=_age_s(state["heartbeat_ns"], now_ns),
            status=tuple(_status_words(state["status"])),
            log_error=_error_text(state["log_errno"]),
            log_directory=str(Path(header["data_dir"]) / "log") if header["data_dir"] else None,
            schema=schema_facts(schema) if schema is not None else None,
            claimed=state["claimed"],
            published=state["published"],
            logged=state["logged"] if header["data_dir"] else None,
            durable=state["durable"] if header["data_dir"] else None,
            indexed=state["indexed"] if header["indexes"] else None,
            replicated=state["replicated"] if header["replicates"] else None,
            readers=readers,
            lanes=lanes,
            positions=_positions(header, state["published"]) if self._positions else (),
        )

    def _lanes(self, bus: str, topic: str, entries: list[dict[str, int]]) -> Iterator[LaneFacts]:
        states = {entry["lane"]: LANE_STATES.get(entry["state"], "unknown") for entry in entries}
        for number in list_lanes(bus, topic):
            try:
                segment = self._open(lane_name(bus, topic, number))
                header = _segment.read_data(segment.memory, segment.name)
            except (NotFound, AttachError):  # going, or coming
                continue
            state = _segment.read_state(segment.memory)
            yield LaneFacts(
                lane=f"{number:016x}",
                pid=header["pid"],
                process=process_state(header["pid"], header["process_start"]),
                entry=states.get(number, ""),
                slot_count=header["slot_count"],
                published=state["published"],
                drained=state["drained"],
                waiting_count=min(max(0, state["published"] - state["drained"]), header["slot_count"]),
            )

    def _schema(self, encoded: bytes) -> Schema:
        schema = self._schemas.get(encoded)
        if schema is None:
            schema = self._schemas[encoded] = Schema.from_json(encoded)
        return schema


def schema_facts(schema: Schema) -> SchemaFacts:
    """A schema as facts to print."""
    return SchemaFacts(
        description=schema.description,
        key=schema.key,
        fields=schema.fields,
        hash=f"{schema.hash:016x}",
        row_bytes=schema.row_bytes,
    )


def _writer(bus: str, header: dict[str, Any] | None, topics: tuple[TopicFacts, ...]) -> WriterFacts:
    """Who writes a bus: from its own segment, or who is about to, from that segment's lock."""
    ages = [topic.heartbeat_age_s for topic in topics if topic.heartbeat_age_s is not None]
    state = process_state(header["pid"], header["process_start"]) if header is not None else "dead"
    if header is not None and state != "dead":
        role, leader = header["role"], header["leader"]
        return WriterFacts(
            state=state,
            pid=header["pid"],
            epoch=header["epoch"],
            heartbeat_age_s=min(ages, default=None),
            role=ROLES.get(role),
            leader=leader,
        )
    starting = flock_holder(DIRECTORY / bus_name(bus)[1:])
    if starting is not None:
        return WriterFacts(state="starting", pid=starting or None)
    if header is None:
        known = next((topic for topic in topics if topic.writer_pid is not None), None)
        if known is None:
            return WriterFacts(state="dead")
        return WriterFacts(state=known.writer_process or "dead", pid=known.writer_pid, epoch=known.epoch)
    closed = bool(topics) and all("closed" in topic.status for topic in topics)
    return WriterFacts(
        state="closed" if closed else "dead",
        pid=header["pid"],
        epoch=header["epoch"],
        heartbeat_age_s=min(ages, default=None),
    )


def _reader(entry: dict[str, Any], state: dict[str, int], now_ns: int) -> ReaderFacts:
    started = 0 if entry["state"] == "joining" else entry["process_start"]
    return ReaderFacts(
        index=entry["index"],
        name=entry["name"],
        pid=entry["pid"],
        process=process_state(entry["pid"], started),
        entry=entry["state"],
        policy=entry["policy"],
        follow=entry["follow"],
        consumed=entry["consumed"],
        acknowledged=entry["acknowledged"],
        lag_count=max(0, state.get(entry["follow"], state["published"]) - entry["consumed"]),
        overrun_count=entry["overrun_count"],
        lost_count=entry["lost_count"],
        refilled_count=entry["refilled_count"],
        heartbeat_age_s=_age_s(entry["heartbeat_ns"], now_ns),
        attached_age_s=_age_s(entry["attached_ns"], now_ns),
    )


def _positions(header: dict[str, Any], published: int) -> tuple[PositionFacts, ...]:
    """What subscribers of a topic have stored in the bus's data directory."""
    if not header["data_dir"]:
        return ()
    stored = list_positions(Path(header["data_dir"]), header["topic"])
    return tuple(_position(name, found, header["log_id"], published) for name, found in stored.items())


def _position(name: str, found: Position | Exception, log_id: int, published: int) -> PositionFacts:
    if isinstance(found, Exception):
        return PositionFacts(name=name, problem=str(found))
    facts = PositionFacts(
        name=name,
        kind="group" if found.kind == KIND_GROUP else "resumable",
        problem="" if found.log_id == log_id else f"belongs to another log, {found.log_id:016x}",
        acknowledged=found.sequence,
        behind_count=max(0, published - found.sequence),
    )
    if found.kind != KIND_GROUP:
        return facts
    try:
        group = msgspec.msgpack.decode(found.body, type=Group)
    except msgspec.DecodeError as error:
        return msgspec.structs.replace(facts, problem=f"the state of the group cannot be read: {error}")
    open_count = sum(held.last - held.first + 1 for held in group.ranges)
    return msgspec.structs.replace(facts, open_count=open_count, member_count=len(group.members))


def _status_words(status: int) -> list[str]:
    words = {
        _segment.STATUS_FENCED: "fenced",
        _segment.STATUS_LOG_FAILED: "log failed",
        _segment.STATUS_CLOSED: "closed",
    }
    return [word for bit, word in words.items() if status & bit]


def _age_s(since_ns: int, now_ns: int) -> float:
    return round(max(0, now_ns - since_ns) / 1e9, 3)


def _error_text(number: int) -> str:
    """What an errno means; the number itself where it cannot be one."""
    if not number:
        return ""
    return os.strerror(number) if number < 1 << 31 else f"error {number}"
