"""`ringmain bench store`: the command around the store's benches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import (
    store_backup,
    store_compaction,
    store_get,
    store_memtable,
    store_open,
    store_put,
    store_recover,
    store_scan,
)
from .measuring import Bench, Plan
from .peer import Library
from .running import DIRECTORY, run_and_print
from .store_memtable import PlainSkipList
from .store_peer_lmdb import Lmdb
from .store_peer_plyvel import Plyvel
from .store_peer_rocksdict import Rocksdict

__all__ = ["store_app"]

BENCHES: tuple[Bench, ...] = (
    store_memtable.BENCH,
    store_put.BENCH,
    store_get.BENCH,
    store_scan.BENCH,
    store_recover.BENCH,
    store_compaction.BENCH,
    store_open.BENCH,
    store_backup.BENCH,
)
PEERS: tuple[type[Library], ...] = (Rocksdict, Lmdb, Plyvel)

store_app = typer.Typer(
    help="Measure the store, beside RocksDB, LMDB and LevelDB (the extra `bench` installs those).",
    no_args_is_help=True,
)


def _command(benches: tuple[Bench, ...]) -> Callable[..., None]:
    def run(
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
        rows: Annotated[int, typer.Option(metavar="N", help="Rows in the store.", min=1000)] = 1_000_000,
        seconds: Annotated[
            float, typer.Option(metavar="S", help="How long `compaction` puts at a steady rate.", min=0.01)
        ] = 40.0,
        large: Annotated[bool, typer.Option("--large", help="`recover` also with 10 GB stored.")] = False,
        runs: Annotated[int, typer.Option(metavar="N", help="How often; medians are printed.", min=1)] = 3,
        peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure the other stores too.")] = True,
        directory: Annotated[
            Path, typer.Option(metavar="DIR", help="Where stores are written; use a real disk.")
        ] = DIRECTORY,
    ) -> None:
        others = (PlainSkipList, *(PEERS if peers else ()))
        run_and_print(benches, Plan(seconds, runs, directory, others, rows, large), as_json)

    return run


for _bench in BENCHES:
    store_app.command(_bench.name.removeprefix("store "), help=_bench.about)(_command((_bench,)))
store_app.command("all", help="Everything about the store, one after the other.")(_command(BENCHES))
