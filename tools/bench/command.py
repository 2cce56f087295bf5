"""`ringmain bench`: the command around the benches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import (
    append,
    catchup,
    cluster,
    delayed,
    fanout,
    gateway,
    lanes,
    latency,
    logged,
    publish,
    recover,
    resumable,
    throughput,
    wake,
)
from .measuring import Bench, Plan
from .peer import Library
from .peer_iceoryx2 import Iceoryx2
from .peer_kickmsg import Kickmsg
from .peer_mmbus import Mmbus
from .peer_pyzmq import Pyzmq
from .running import DIRECTORY, run_and_print
from .store_command import store_app

__all__ = ["bench_app"]

BENCHES: tuple[Bench, ...] = (
    publish.BENCH,
    latency.BENCH,
    throughput.BENCH,
    fanout.BENCH,
    logged.BENCH,
    append.BENCH,
    recover.BENCH,
    wake.BENCH,
    catchup.BENCH,
    delayed.BENCH,
    lanes.BENCH,
    resumable.BENCH,
    gateway.BENCH,
    cluster.BENCH,
)
PEERS: tuple[type[Library], ...] = (Kickmsg, Mmbus, Iceoryx2, Pyzmq, cluster.JetStreamAlone)

bench_app = typer.Typer(
    help="Measure the bus on this machine, beside what could be picked instead (the extra `bench` installs those).",
    no_args_is_help=True,
)


def _command(benches: tuple[Bench, ...]) -> Callable[..., None]:
    def run(
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
        seconds: Annotated[float, typer.Option(metavar="S", help="Length of each timed stretch.", min=0.01)] = 3.0,
        runs: Annotated[int, typer.Option(metavar="N", help="How often; medians are printed.", min=1)] = 3,
        peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure the other libraries too.")] = True,
        directory: Annotated[
            Path, typer.Option(metavar="DIR", help="Where logs are written; use a real disk.")
        ] = DIRECTORY,
        clients: Annotated[int, typer.Option(metavar="N", help="Of `gateway`: how many it serves.", min=1)] = 1000,
        minutes: Annotated[
            float, typer.Option(metavar="M", help="Of `gateway`: how long it serves them, if longer than --seconds.")
        ] = 0.0,
    ) -> None:
        plan = Plan(seconds, runs, directory, PEERS if peers else (), clients=clients, minutes=minutes)
        run_and_print(benches, plan, as_json)

    return run


for _bench in BENCHES:
    bench_app.command(_bench.name, help=_bench.about)(_command((_bench,)))
bench_app.command("all", help="Everything about the bus, one after the other.")(_command(BENCHES))
bench_app.add_typer(store_app, name="store")
