"""`ringmain store`: looking into a store, and compacting it. Verifying and repairing it are store_checking.py's."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Generator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..storage import Log, LogLocked, StoreSettings
from ..storage._tree import KeyCodec
from ..storage.engine import Engine
from ..storage.log_files import list_files, open_file
from ..storage.manifest_state import State
from ..storage.table_files import TableFiles
from ..storage.tree_writer import WriteCounts
from .exit_codes import EXIT_CODES_HELP
from .keys import shown_key
from .printing import age, counted, memory, moment, new_table, note, pairs, plain, plain_lines, print_json, stdout
from .progress import spinner
from .store_checking import repair, verify
from .store_contents import (
    StoreFacts,
    StoreTopicFacts,
    TableFacts,
    find_store,
    look_at_store,
    no_such_topic,
    read_state,
    schema_of,
    tables_of,
)

__all__ = ["store_app"]

store_app = typer.Typer(help="Look into a store, verify it, repair it, compact it.", no_args_is_help=True)

store_app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(verify)
store_app.command(epilog=EXIT_CODES_HELP, no_args_is_help=True)(repair)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A store's directory.")]
Topic = Annotated[str | None, typer.Option(metavar="T", help="Only this topic.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Compression(StrEnum):
    """How tables below level 0 are written."""

    none = "none"
    zstd = "zstd"
    lz4 = "lz4"


class CompactionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What compacting a topic did. written_bytes: of tables, by flushes and compactions."""

    topic: str
    before: StoreTopicFacts
    after: StoreTopicFacts
    compaction_count: int
    written_bytes: int
    write_amplification: (
        float | None
    )  # bytes written to tables for each byte flushed to level 0; None: nothing was flushed
    seconds: float


@store_app.command("stats", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def stats(directory: Directory, as_json: AsJson = False) -> None:
    """Print what a store holds, by topic and level: rows, sequences, tables, sizes.

    Changes nothing, and may run beside the store's writer. Rows are counted with those that newer ones replace and with
    tombstones, which go when tables are compacted.

    Example: ringmain store stats data
    """
    facts = look_at_store(find_store(directory))
    if as_json:
        print_json(facts)
    else:
        _print_store(stdout(), facts)


@store_app.command("dump", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def dump(
    directory: Directory,
    topic: Topic = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Most tables of a topic; 0: all.", min=0)] = 50,
    as_json: AsJson = False,
) -> None:
    """List a store's tables: their levels, rows, sequences and keys.

    Changes nothing, and may run beside the store's writer. `ringmain sstable dump` looks into one of them, `ringmain scan`
    prints the rows.

    Example: ringmain store dump data --topic trades
    """
    store = find_store(directory)
    state = read_state(store)
    tables = {name: tables_of(store, state, name) for name in _chosen(store, state, topic)}
    shown = {name: found[: limit or None] for name, found in tables.items()}
    more = shown != tables
    if as_json:
        print_json(
            {"directory": str(store), "tables": [table for found in shown.values() for table in found], "more": more}
        )
        return
    for name, found in shown.items():
        _print_tables(stdout(), state, name, found)
    if more:
        note("there are more; --limit 0 prints all")


@store_app.command("compact", epilog=EXIT_CODES_HELP, no_args_is_help=True)
def compact(
    directory: Directory,
    topic: Topic = None,
    compression: Annotated[
        Compression | None, typer.Option(help="Of the tables written; without it, as most of the store's are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge a topic's tables (of all topics, by default) into one level, without what was replaced or deleted.

    The store's writer must not be running. May be interrupted at any time, and loses nothing then.

    Example: ringmain store compact data --topic trades
    """
    store = find_store(directory)
    state = read_state(store)
    names = _chosen(store, state, topic)
    chosen = compression or _usual_compression(store, state)
    before = {facts.topic: facts for facts in look_at_store(store).topics}
    done: list[tuple[str, WriteCounts, float]] = []
    with _open_engine(store, state, chosen) as engine:
        for number, name in enumerate(names, start=1):
            started = time.monotonic()
            with spinner(f"compacting {name} ({number} of {len(names)})"):
                engine.compact(name)
            done.append((name, engine.stats()[name].counts, time.monotonic() - started))
    after = {facts.topic: facts for facts in look_at_store(store).topics}
    facts = [
        CompactionFacts(
            topic=name,
            before=before[name],
            after=after[name],
            compaction_count=counts.compaction_count,
            written_bytes=counts.flushed_bytes + counts.compacted_bytes,
            write_amplification=counts.write_amplification,
            seconds=round(seconds, 3),
        )
        for name, counts, seconds in done
    ]
    if as_json:
        print_json({"directory": str(store), "topics": facts})
    else:
        stdout().print(_compactions(facts))


def _chosen(directory: Path, state: State, topic: str | None) -> list[str]:
    """The topics that are meant: this one, or all."""
    if topic is not None and topic not in state.topics:
        raise no_such_topic(directory, topic, state.topics)
    return [topic] if topic is not None else list(state.topics)


def _usual_compression(directory: Path, state: State) -> Compression:
    """How the tables that a compaction wrote are compressed: most bytes of those that are; "none" where none is."""
    files, found = TableFiles(directory / "store", state.log_id, 0), Counter[str]()
    for topic, version in state.versions.items():
        schema = schema_of(state, topic)
        codec = KeyCodec(schema)
        for info in version.tables():
            found[files.open(info, schema, codec).compression] += info.file_bytes
    del found["none"]  # also of tables that only moved down
    return Compression(found.most_common(1)[0][0]) if found else Compression.none


@contextlib.contextmanager
def _open_engine(directory: Path, state: State, compression: Compression) -> Generator[Engine]:
    """The store with its log, which is a bus's perhaps, and of which nothing is given up. Raises LogLocked beside a writer."""
    schemas = {topic: schema_of(state, topic) for topic in state.topics}
    number, path = list_files(directory / "log")[-1]
    bus, mode = open_file(path, number).header.bus, path.stat().st_mode & 0o777
    settings = StoreSettings(topics=list(schemas), compression=compression.value, compaction_bytes_per_s=None)
    try:
        log = Log(directory / "log", schemas.values(), bus=bus, mode=mode, checkpoints={})
    except LogLocked as locked:
        raise LogLocked(locked.path, locked.pid, to_write=False) from None
    with contextlib.closing(log):
        engine = Engine(directory, log, schemas, settings.codecs(schemas), settings)
        with contextlib.closing(engine):
            yield engine


# --- on a terminal --------------------------------------------------------------------------------------------------


def _print_store(console: Console, facts: StoreFacts) -> None:
    log = f"{memory(facts.log_bytes)} in {counted(facts.log_file_count, 'file')}"
    rows = [("store", facts.directory), ("log", log)]
    if facts.archive_file_count:
        rows.append(("archive", f"{memory(facts.archive_bytes)} in {counted(facts.archive_file_count, 'file')}"))
    if facts.writer_pid is not None:
        rows.append(("writer", f"process {facts.writer_pid} is writing it; this is what was there just now"))
    console.print(pairs(*rows))
    topics = new_table("~topic\nkey", ">rows\nsequence", ">in memory\n", ">in tables\ncheckpoint", ">tables\nsize")
    levels = new_table("~topic", ">level", ">tables", ">size", ">rows", ">tombstones")
    for topic in facts.topics:
        kept = ", all versions" if topic.keep_versions else ""
        in_tables = topic.row_count - topic.memtable_row_count
        topics.add_row(
            plain_lines(f"{topic.topic}\n{', '.join(topic.key) or 'sequence'}{kept}"),
            f"{topic.row_count:,}\n{topic.sequence:,}",
            f"{topic.memtable_row_count:,}\n{memory(topic.memtable_row_bytes)}",
            f"{in_tables:,}\n{topic.checkpoint:,}",
            f"{topic.table_count:,}\n{memory(topic.table_bytes)}",
        )
        for level in topic.levels:
            counts = (
                f"{level.table_count:,}",
                memory(level.file_bytes),
                f"{level.row_count:,}",
                f"{level.tombstone_count:,}",
            )
            levels.add_row(topic.topic, str(level.level), *counts)
    for table in (topics, levels):
        if table.row_count:
            console.print()
            console.print(table)


def _print_tables(console: Console, state: State, topic: str, tables: Sequence[TableFacts]) -> None:
    key = ", ".join(schema_of(state, topic).key) or "sequence"
    table = new_table(
        ">table\nlevel", ">rows\ntombstones", ">size\n", ">sequences\n", "times (UTC)\n", "~first key\nlast"
    )
    for facts in tables:
        table.add_row(
            f"{facts.number}\n{facts.level}",
            f"{facts.row_count:,}\n{facts.tombstone_count:,}",
            memory(facts.file_bytes),
            f"{facts.sequence_min:,}\n{facts.sequence_max:,}",
            f"{moment(facts.timestamp_min_ns)}\n{moment(facts.timestamp_max_ns)}",
            plain(shown_key(facts.key_min)).append("\n").append(plain(shown_key(facts.key_max))),
        )
    console.print(Text.assemble((topic, "bold"), f", by {key}" if tables else ": no tables"))
    if tables:
        console.print(table)
    console.print()


def _compactions(done: Sequence[CompactionFacts]) -> Table:
    table = new_table("~topic", ">rows before\nnow", ">size before\nnow", ">tables before\nnow", ">written", ">time")
    for facts in done:
        before, after = facts.before, facts.after
        table.add_row(
            facts.topic,
            f"{before.row_count:,}\n{after.row_count:,}",
            f"{memory(before.table_bytes)}\n{memory(after.table_bytes)}",
            f"{before.table_count:,}\n{after.table_count:,}",
            memory(facts.written_bytes),
            age(facts.seconds),
        )
    return table
