"""`ringmain clean`: removing from shared memory what no living writer owns.

1. A bus is cleaned under its writer's lock, so that no writer can open it meanwhile.
2. What a dead writer had published and not logged is only in its ring: the next writer saves it, and cleaning would not.
3. Subscribers and publishers with lanes may live. So rings and lanes are fenced before they go, as the next writer would: then
   nothing more comes into them, and the living look for that writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from typing import Annotated

import msgspec
import typer

from ..bus import AttachError, NotFound, _lanes, _segment
from ..bus.observing import Observer
from ..bus.segments import (
    DIRECTORY,
    Segment,
    bus_name,
    check_bus_name,
    control_name,
    data_name,
    draft_name,
    lane_name,
    list_lanes,
    list_names,
    open_control,
)
from ..bus.snapshot import BusFacts, TopicFacts
from .exit_codes import FAILED
from .inspecting import no_such_bus
from .printing import counted, memory, note, plain, print_json, print_text, stdout

__all__ = ["clean"]


class Cleaned(msgspec.Struct, kw_only=True):
    """What was done about one bus, and why."""

    bus: str
    action: str  # removed, would remove, left alone (its writer lives), refused
    reason: str
    segments: list[str] = []
    freed_bytes: int = 0
    lost_count: int = 0  # records that were only in its rings and lanes
    unread: list[str] = []  # topics whose ring cannot be read: how many records are only there is not known


def clean(
    bus: Annotated[str | None, typer.Argument(metavar="BUS", help="Only this bus; all without.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, remove nothing.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Remove rings also when records in them are not in their log; those are lost."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Remove the shared memory of buses whose writer is dead.

    Usually there is no need: the next writer of the bus takes over what the dead one left, and saves what it had not
    logged. Buses with a living writer are left alone. Exit code 1 when something that should go had to stay.

    Example: ringmain clean --dry-run
    """
    if bus is not None and check_bus_name(bus) not in list_names():
        raise no_such_bus(bus)
    results = [_clean_bus(name, dry_run, force) for name in list_names() if bus is None or name == bus]
    if as_json:
        print_json({"dry_run": dry_run, "buses": results})
    else:
        _tell(results)
    if any(result.action == "refused" or (result.action == "left alone" and bus is not None) for result in results):
        raise typer.Exit(FAILED)


def _clean_bus(bus: str, dry_run: bool, force: bool) -> Cleaned:
    with _lock(bus) as free:
        facts = next(iter(Observer().look(bus).buses), None)
        if facts is None:
            return Cleaned(bus=bus, action="left alone", reason="it is gone already")
        if not free or _lives(facts):
            pid = "" if facts.writer.pid is None else f", process {facts.writer.pid}"
            return Cleaned(bus=bus, action="left alone", reason=f"its writer is {facts.writer.state}{pid}")
        refused = None if force else _refusal(facts)
        if refused is None and not dry_run:
            facts = _fence(facts)  # a publisher with a lane may have published meanwhile; from here on none can
            refused = None if force else _refusal(facts)
        return _remove(facts, dry_run) if refused is None else refused


def _refusal(facts: BusFacts) -> Cleaned | None:
    """Why the bus should stay: there are records that are in no log, or may be. None where nothing speaks for it."""
    unlogged, unread = _unlogged(facts), _unread(facts)
    if not unlogged and not unread:
        return None
    reasons = [f"topic {topic.topic!r} cannot be read ({topic.problem})" for topic in unread]
    if unlogged:
        reasons.append(f"{unlogged:,} records are published and not in its log {facts.data_dir}/log")
    return Cleaned(
        bus=facts.bus,
        action="refused",
        reason=f"{'; '.join(reasons)}: open its writer again to save them, or lose them with --force",
        lost_count=unlogged,
        unread=[topic.topic for topic in unread],
    )


def _unlogged(facts: BusFacts) -> int:
    return sum(topic.unlogged_count for topic in facts.topics)


def _unread(facts: BusFacts) -> list[TopicFacts]:
    """The topics of a bus with a log, or that may have one, whose ring is there and cannot be read."""
    if facts.data_dir is None and not facts.problem:
        return []
    return [
        topic for topic in facts.topics if topic.published is None and _size_bytes(data_name(facts.bus, topic.topic))
    ]


def _fence(facts: BusFacts) -> BusFacts:
    """Fence rings and lanes, and look at the bus once more: what waits in its lanes now is all that ever will."""
    waiting: dict[str, int] = {}
    for topic in facts.topics:
        ring = _fence_ring(facts.bus, topic.topic)
        for number in list_lanes(facts.bus, topic.topic, user=os.geteuid() if ring is None else ring.uid):
            waiting[f"{number:016x}"] = _fence_lane(lane_name(facts.bus, topic.topic, number), number, ring)
    again = next(iter(Observer().look(facts.bus).buses), facts)
    topics = [
        msgspec.structs.replace(
            topic,
            lanes=tuple(msgspec.structs.replace(lane, waiting_count=waiting.get(lane.lane, 0)) for lane in topic.lanes),
        )
        for topic in again.topics
    ]
    return msgspec.structs.replace(again, topics=tuple(topics))


def _fence_ring(bus: str, topic: str) -> Segment | None:
    """The topic's ring, fenced; None where there is none that can be read. One that was closed tells its readers already."""
    try:
        ring = Segment.open(data_name(bus, topic), writable=True)
        _segment.read_data(ring.memory, ring.name)
    except (NotFound, AttachError):
        return None
    with contextlib.suppress(NotFound, AttachError):
        control = open_control(bus, topic)
        if not _segment.read_state(ring.memory)["status"] & _segment.STATUS_CLOSED:
            _segment.fence(ring.memory, control.memory)
    return ring


def _fence_lane(name: str, number: int, ring: Segment | None) -> int:
    """Fence a lane; returns how many of its records are not in the topic. One that was never finished has none."""
    try:
        lane = Segment.open(name, writable=True)
        _segment.read_data(lane.memory, name)
    except (NotFound, AttachError):
        return 0
    end = _segment.fence(lane.memory, _lanes.control_page(lane.memory))
    known = _lanes.find_position(ring.memory, number) if ring is not None else None
    return max(0, end - (_segment.read_state(lane.memory)["drained"] if known is None else known))


def _remove(facts: BusFacts, dry_run: bool) -> Cleaned:
    result = Cleaned(
        bus=facts.bus,
        action="would remove" if dry_run else "removed",
        reason="its writer is dead",
        lost_count=_unlogged(facts) or sum(_only_in_ring(topic) for topic in facts.topics),
        unread=[topic.topic for topic in _unread(facts)],
    )
    names = [make(facts.bus, topic.topic) for topic in facts.topics for make in (data_name, draft_name, control_name)]
    lanes = [
        lane_name(facts.bus, topic.topic, lane) for topic in facts.topics for lane in list_lanes(facts.bus, topic.topic)
    ]
    for name in [*lanes, *names, bus_name(facts.bus)]:  # its lock goes last
        try:
            size_bytes = _size_bytes(name)
            if size_bytes is None:
                continue
            if not dry_run:
                Segment.unlink(name)
        except AttachError as error:
            if name in lanes:  # another user's, and none of ours: anybody can give a file such a name
                continue
            result.action, result.reason = "refused", str(error)
            break
        result.segments.append(name)
        result.freed_bytes += size_bytes
    return result


def _size_bytes(name: str) -> int | None:
    """None where there is no such segment."""
    try:
        return os.stat(DIRECTORY / name[1:]).st_size
    except FileNotFoundError:
        return None


def _only_in_ring(topic: TopicFacts) -> int:
    """Records of a topic without a log that its ring still holds, and its lanes."""
    if topic.log_directory is not None or topic.published is None or topic.slot_count is None:
        return 0
    return min(topic.published, topic.slot_count) + topic.waiting_count


def _lives(facts: BusFacts) -> bool:
    if facts.writer.state in ("alive", "stopped", "starting"):
        return True
    return any(topic.writer_process not in (None, "dead") for topic in facts.topics)


@contextlib.contextmanager
def _lock(bus: str) -> Generator[bool]:
    """Hold the bus's writer lock; gives False where a living process has it. A bus without its own segment has no lock."""
    try:
        descriptor = os.open(DIRECTORY / bus_name(bus)[1:], os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # another user's: removing will say so
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _tell(results: list[Cleaned]) -> None:
    if not results:
        note("nothing to clean: no buses are open on this machine")
    for result in results:
        what = f" {counted(len(result.segments), 'segment')}, {memory(result.freed_bytes)}" if result.segments else ""
        print_text(stdout(), plain(f"{result.bus}: {result.action}{what}; {result.reason}"))
        if result.lost_count and result.segments:
            note(f"warning: {result.bus}: {result.lost_count:,} records are only in its rings, and are lost with them")
        if result.unread and result.segments:
            note(
                f"warning: {result.bus}: what is only in the rings of {', '.join(result.unread)} could not be read, and is lost"
            )
