"""How fast a store is copied to a backup, and back, every byte read, summed and proven: 1 GB of tables and archived log files."""

from __future__ import annotations

from pathlib import Path

from ...storage.backup import backup
from ...storage.backup_verify import verify_backups
from ...storage.levels import Shape
from ...storage.restore import restore
from ...storage.store import Store
from ...storage.store_reader import StoreReader
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, clock
from .store_filling import load, settle
from .store_rows import SCHEMA, TOPIC, make_keys, make_payloads
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["BENCH"]

STORED_BYTES = 1_000_000_000
CHUNK_ROWS = 1_000_000


def _run(plan: Plan) -> Figures:
    row_count = min(STORED_BYTES // (2 * SCHEMA.row_bytes), 4 * plan.rows)  # each is in a table and in the log
    with bench_directory(plan) as directory:
        run_together(Job(_make, (directory, row_count)), seconds_max=600)
        return run_together(Job(_back_up_and_restore, (directory, row_count)), seconds_max=600)[0]


def _make(stage: Stage, directory: str, row_count: int) -> None:
    with Store(f"{directory}/data", [SCHEMA], sync="never") as store:
        for at in range(0, row_count, CHUNK_ROWS):
            load(store, make_payloads(make_keys(min(CHUNK_ROWS, row_count - at), 1 + at)))
        settle(store, Shape())


def _back_up_and_restore(stage: Stage, directory: str, row_count: int) -> Figures:
    data, target, restored = (Path(directory) / name for name in ("data", "backups", "restored"))
    stage.begin(settle=True)
    start = clock()
    made = backup(data, target, link=False)
    backup_s = (clock() - start) / NS
    if verify_backups(target).findings:
        raise BenchFailed("the backup is damaged")
    start = clock()
    restore(target, restored)
    restore_s = (clock() - start) / NS
    start = clock()
    linked = backup(data, Path(directory) / "linked")
    linked_s = (clock() - start) / NS
    with StoreReader(restored) as store:
        if sum(len(rows) for rows in store[TOPIC].scan()) != row_count:
            raise BenchFailed(f"{row_count} rows were stored, others were restored")
    return {
        "backup_mb_per_s": made.backup.file_bytes / backup_s / 1e6,
        "restore_mb_per_s": made.backup.file_bytes / restore_s / 1e6,
        "backup_linked_mb_per_s": linked.backup.file_bytes / linked_s / 1e6,
    }


BENCH = Bench(
    "store backup",
    "Backing a store up and restoring it, every file proven and synced; and a backup of hard links.",
    {"backup_mb_per_s": Bar(500), "restore_mb_per_s": Bar(500)},
    _run,
    {
        "stored": f"{STORED_BYTES} bytes of tables and log, or 4 times the rows where that is less; backup and store on one disk",
        "cache": "warm",
    },
)
