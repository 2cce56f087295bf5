"""Which store and which log the files of a damaged directory belong to. Misnamed tables get their names back here."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import files as disk
from .drafts import read_header
from .errors import StorageError
from .log_files import chain_files
from .manifest_reader import MANIFEST_NAME
from .manifest_salvage import Evidence, read_evidence
from .repair import LOST_AND_FOUND
from .repaired import Notes
from .table_files import NAME
from .table_salvage import read_table_file

__all__ = ["Survey", "give_table_names_back", "list_tables", "survey"]

MOVED = re.compile(r"moved-(\d{10})\.sst")


@dataclass(frozen=True, slots=True)
class Survey:
    """next_number: no table, present or put aside, has it or a higher one."""

    log_id: int
    evidence: Evidence
    next_number: int


def list_tables(store: Path) -> list[tuple[int, Path]]:
    """The tables in a store's folder by number; drafts are none."""
    found = [(int(match[1]), path) for path in store.iterdir() if (match := NAME.fullmatch(path.name)) and not match[2]]
    return sorted(found)


def survey(directory: Path) -> Survey:
    """What the manifest says, sound or not, and which log is the store's. Raises StorageError where its parts do not agree."""
    store, log = directory / "store", directory / "log"
    headers = [read_header(path)[0] for _, path in chain_files(log, directory / "archive")] if log.is_dir() else []
    logs = Counter(header.log_id for header in headers if header is not None)
    files = [read_table_file(path) for _, path in list_tables(store)]
    tables = Counter(file.header.log_id for file in files if file.header is not None)
    log_id = logs.most_common(1)[0][0] if logs else 0
    table_id = tables.most_common(1)[0][0] if tables else 0
    evidence = read_evidence(store / MANIFEST_NAME, log_id or table_id)
    if log_id and evidence.log_id not in (0, log_id):
        if table_id != log_id:
            raise StorageError(
                f"{log}: this log ({log_id:#x}) is not that of the store beside it ({evidence.log_id:#x}); put the right one back, "
                "or move this one away and repair then"
            )
        evidence = Evidence(wrong="it belongs to another store")
    log_id = log_id or evidence.log_id or table_id
    if table_id not in (0, log_id):
        raise StorageError(
            f"{store}: its tables ({table_id:#x}) do not belong to the log beside it ({log_id:#x}); put the right one back"
        )
    if not log_id:
        raise StorageError(f"{directory}: nothing in this store can be read")
    names = [*store.iterdir(), *(store / LOST_AND_FOUND).glob("*")]
    numbers = [int(path.name[:10]) for path in names if re.match(r"\d{10}\.sst", path.name)]
    return Survey(log_id, evidence, max([evidence.next_number, *(number + 1 for number in numbers)]))


def give_table_names_back(store: Path, notes: Notes) -> None:
    """Undo renames: a table says which it is."""
    tables = dict(list_tables(store))
    says = {path: read_table_file(path).number for path in tables.values()}
    for number, path in tables.items():
        mine = says[path]
        if mine in (None, number):
            continue
        right = store / f"{mine:010d}.sst"
        if says.get(right) == mine:
            notes.set_aside(path, f"it is a copy of {right.name}")
        else:
            path.rename(store / f"moved-{mine:010d}.sst")
    for path in sorted(path for path in store.iterdir() if MOVED.fullmatch(path.name)):
        right = store / path.name.removeprefix("moved-")
        if right.exists():
            notes.set_aside(right, "another table has its place")
        path.rename(right)
        disk.sync_directory(store)
        notes.change(right, "got its right name back")
