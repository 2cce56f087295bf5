"""`ringmain clean`: removing from shared memory what no living writer owns.

A bus is cleaned under its writer's lock, so that no writer can open it meanwhile. What a dead writer had published and not
logged is only in its ring: the next writer saves it, and cleaning would not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from typing import Annotated

import msgspec
import typer

from ..bus import AttachError
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
        unlogged = sum(topic.unlogged_count for topic in facts.topics)
        if unlogged and not force:
            return Cleaned(
                bus=bus,
                action="refused",
                reason=f"{unlogged:,} records are published and not in its log {facts.data_dir}/log: open its writer "
                "again to save them, or lose them with --force",
                lost_count=unlogged,
            )
        return _remove(facts, dry_run, unlogged)


def _remove(facts: BusFacts, dry_run: bool, unlogged: int) -> Cleaned:
    lost = unlogged or sum(_only_in_ring(topic) for topic in facts.topics)
    result = Cleaned(
        bus=facts.bus, action="would remove" if dry_run else "removed", reason="its writer is dead", lost_count=lost
    )
    names = [make(facts.bus, topic.topic) for topic in facts.topics for make in (data_name, draft_name, control_name)]
    lanes = [
        lane_name(facts.bus, topic.topic, lane) for topic in facts.topics for lane in list_lanes(facts.bus, topic.topic)
    ]
    for name in [*lanes, *names, bus_name(facts.bus)]:  # its lock goes last
        try:
            size_bytes = os.stat(DIRECTORY / name[1:]).st_size
            if not dry_run:
                Segment.unlink(name)
        except FileNotFoundError:
            continue
        except AttachError as error:
            result.action, result.reason = "refused", str(error)
            break
        result.segments.append(name)
        result.freed_bytes += size_bytes
    return result


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
