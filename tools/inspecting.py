"""`ringmain inspect`: everything that a bus, or one topic of it, shows to the outside."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bus import NotFound
from ..bus.observing import Observer
from ..bus.segments import check_bus_name, split_address
from ..bus.snapshot import (
    BusFacts,
    LaneFacts,
    PositionFacts,
    ReaderFacts,
    SchemaFacts,
    Snapshot,
    TopicFacts,
    with_rates,
)
from .printing import age, count, memory, new_table, pairs, plain, print_json, rate, state_text, stdout

__all__ = ["inspect", "no_such_bus", "reader_state"]


def inspect(
    address: Annotated[str, typer.Argument(metavar="BUS[/TOPIC]", help="A bus, or one topic of it.")],
    interval: Annotated[
        float, typer.Option(metavar="S", help="Seconds over which rates are measured; 0: no rates.", min=0.0)
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with everything in it.")] = False,
) -> None:
    """Look inside a bus, or one topic of it: header, schema, watermarks, rates, and each reader.

    Works beside a writer that hangs, is stopped or is dead, and writes to nothing.

    Example: ringmain inspect exchange/trades
    """
    bus_name, _, topic_name = address.partition("/")
    if "/" in address:
        split_address(address)
    check_bus_name(bus_name)
    bus = _look(bus_name, topic_name or None, interval)
    if as_json:
        print_json(bus)
    elif topic_name:
        print_topic(stdout(), bus, bus.topics[0])
    else:
        print_bus(stdout(), bus)


def _look(bus: str, topic: str | None, interval: float) -> BusFacts:
    observer = Observer(positions=True)
    snapshot = _found(observer.look(bus, topic), bus, topic)
    if interval > 0:
        time.sleep(interval)
        snapshot = with_rates(snapshot, _found(observer.look(bus, topic), bus, topic))
    return snapshot.buses[0]


def no_such_bus(bus: str) -> NotFound:
    """What to say where a bus is asked for that is not there."""
    return NotFound(f"no bus {bus!r} is open on this machine; start its writer, or see `ringmain ls`")


def _found(snapshot: Snapshot, bus: str, topic: str | None) -> Snapshot:
    if not snapshot.buses:
        raise no_such_bus(bus)
    if topic is not None and not snapshot.buses[0].topics:
        raise NotFound(f"bus {bus!r} has no topic {topic!r}; `ringmain inspect {bus}` lists those it has")
    return snapshot


# --- a bus ----------------------------------------------------------------------------------------------------------


def print_bus(console: Console, bus: BusFacts) -> None:
    console.print(_title(bus, bus.bus))
    console.print(pairs(("log", _directory(bus)), *_problem_rows(bus.problem)))
    replicates = any(topic.replicated is not None for topic in bus.topics)
    table = new_table(
        "~topic",
        ">published\nper second",
        ">logged\nbehind",
        ">durable\nbehind",
        *([">replicated\nbehind"] if replicates else []),
        ">slots\nmemory",
        ">row\nbytes",
        ">readers\nmost lag",
    )
    for topic in bus.topics:
        worst = max((reader.lag_count for reader in topic.readers), default=None)
        table.add_row(
            plain(topic.topic),
            f"{count(topic.published)}\n{rate(topic.published_per_s)}",
            f"{count(topic.logged)}\n{_behind(topic, topic.logged)}",
            f"{count(topic.durable)}\n{_behind(topic, topic.durable)}",
            *([f"{count(topic.replicated)}\n{_behind(topic, topic.replicated)}"] if replicates else []),
            f"{count(topic.slot_count)}\n{memory(topic.segment_bytes)}",
            count(topic.schema.row_bytes if topic.schema is not None else None),
            f"{len(topic.readers)}\n{count(worst)}",
        )
    console.print()
    console.print(table)
    for topic in bus.topics:
        for name, text in _problem_rows(topic.problem, topic):
            console.print(pairs((f"{topic.topic} {name}", text)))
        if topic.readers:
            _print_readers(console, topic.readers, f"readers of {topic.topic}")
        if topic.lanes:
            _print_lanes(console, topic.lanes, f"lanes of {topic.topic}")
        if topic.positions:
            _print_positions(console, topic.positions, f"positions in {topic.topic}")
    if bus.topics:
        console.print()
        console.print(
            Text(f"ringmain inspect {bus.bus}/{bus.topics[0].topic} shows a topic's schema", style="dim"),
            soft_wrap=True,
        )


# --- a topic --------------------------------------------------------------------------------------------------------


def print_topic(console: Console, bus: BusFacts, topic: TopicFacts) -> None:
    console.print(_title(bus, f"{bus.bus}/{topic.topic}"))
    rows = [("log", _directory(bus)), *_problem_rows(bus.problem), *_problem_rows(topic.problem, topic)]
    if topic.slot_count is not None and topic.schema is not None:
        ring = f"{topic.slot_count:,} slots of {topic.schema.row_bytes:,} bytes, {memory(topic.segment_bytes)}; opened "
        rows.insert(0, ("ring", plain(f"{ring}{age(topic.opened_age_s)} ago")))
    console.print(pairs(*rows))
    if topic.published is not None:
        console.print()
        console.print(_watermarks(topic))
    if topic.schema is not None:
        _print_schema(console, topic.topic, topic.schema)
    if topic.readers:
        _print_readers(console, topic.readers, f"readers ({len(topic.readers)})")
    elif topic.published is not None:
        console.print()
        console.print(Text("no readers", style="dim"))
    if topic.lanes:
        _print_lanes(console, topic.lanes, f"lanes ({len(topic.lanes)})")
    if topic.positions:
        _print_positions(console, topic.positions, f"positions ({len(topic.positions)})")


def _watermarks(topic: TopicFacts) -> Table:
    table = new_table("watermark", ">sequence", ">behind published", ">per second")
    rates = {"published": topic.published_per_s, "logged": topic.logged_per_s, "durable": topic.durable_per_s}
    for name in ("claimed", "published", "logged", "durable", "indexed", "replicated"):
        sequence: int | None = getattr(topic, name)
        if sequence is not None:
            behind = "" if name in ("claimed", "published") else _behind(topic, sequence)
            table.add_row(name, count(sequence), behind, rate(rates[name]) if name in rates else "")
    return table


def _print_schema(console: Console, topic: str, schema: SchemaFacts) -> None:
    table = new_table("field", "type", "key", "~unit")
    for column in schema.fields:
        position = str(schema.key.index(column.name) + 1) if column.name in schema.key else ""
        table.add_row(column.name, column.type, position, plain(column.unit))
    _print_title(console, f"schema {topic}, hash {schema.hash}")
    console.print(table)
    if schema.description:
        console.print(plain(schema.description, style="dim"))


# --- shared ---------------------------------------------------------------------------------------------------------


def _title(bus: BusFacts, name: str) -> Text:
    writer = bus.writer
    title = Text.assemble((name, "bold"), "  writer ", state_text(writer.state))
    title.append("" if writer.pid is None else f", pid {writer.pid}")
    title.append("" if writer.epoch is None else f", epoch {writer.epoch}")
    title.append("" if writer.heartbeat_age_s is None else f", heartbeat {age(writer.heartbeat_age_s)} ago")
    if writer.role is not None:
        title.append(f", {writer.role} ").append_text(plain(writer.leader))
    return title


def _directory(bus: BusFacts) -> Text:
    if bus.data_dir is None:
        return Text("none: rings only" if not bus.problem else "unknown", style="dim")
    return plain(f"{bus.data_dir}/log")


def _problem_rows(problem: str, topic: TopicFacts | None = None) -> list[tuple[str, Text]]:
    rows = [("problem", plain(problem, style="yellow"))] if problem else []
    if topic is not None and topic.status:
        words = ", ".join(topic.status) + (f": {topic.log_error}" if topic.log_error else "")
        rows.append(("status", plain(words, style="red" if "log failed" in topic.status else "yellow")))
    return rows


def _behind(topic: TopicFacts, sequence: int | None) -> str:
    return "-" if topic.published is None or sequence is None else f"{max(0, topic.published - sequence):,}"


def reader_state(reader: ReaderFacts) -> Text:
    """The reader's process, and its entry where that says more."""
    if reader.process == "alive" and reader.entry != "active":
        return Text(reader.entry, style="yellow")
    return state_text(reader.process)


def _print_title(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="italic"))


def _print_readers(console: Console, readers: tuple[ReaderFacts, ...], title: str) -> None:
    columns = (
        "~reader\nreads",
        ">pid\nstate",
        ">consumed\nlag",
        ">per second\nseen",
        ">overruns\n",
        ">lost\nrefilled",
    )
    table = new_table(*columns)
    for reader in readers:
        name = plain(reader.name)
        name.append(f"\n{reader.follow}, {reader.policy}", style="dim")
        table.add_row(
            name,
            Text.assemble(f"{reader.pid}\n", reader_state(reader)),
            f"{reader.consumed:,}\n{reader.lag_count:,}",
            f"{rate(reader.consumed_per_s)}\n{age(reader.heartbeat_age_s)} ago",
            count(reader.overrun_count),
            f"{reader.lost_count:,}\n{reader.refilled_count:,}",
        )
    _print_title(console, title)
    console.print(table)


def _print_lanes(console: Console, lanes: tuple[LaneFacts, ...], title: str) -> None:
    table = new_table("~lane", ">pid", "state", ">published", ">waiting", ">slots")
    for lane in lanes:
        state = state_text(lane.process) if lane.entry in ("open", "") else Text(lane.entry, style="yellow")
        table.add_row(
            plain(lane.lane),
            str(lane.pid),
            state,
            count(lane.published),
            count(lane.waiting_count),
            count(lane.slot_count),
        )
    _print_title(console, title)
    console.print(table)


def _print_positions(console: Console, positions: tuple[PositionFacts, ...], title: str) -> None:
    table = new_table("~name", "kind", ">acknowledged", ">behind", ">open", ">members", "~problem")
    for position in positions:
        table.add_row(
            plain(position.name),
            position.kind or "-",
            count(position.acknowledged),
            count(position.behind_count),
            count(position.open_count),
            count(position.member_count),
            plain(position.problem, style="yellow"),
        )
    _print_title(console, title)
    console.print(table)
