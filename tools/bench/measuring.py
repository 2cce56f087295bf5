"""What a bench is, and how it is measured: a few runs of ours, each followed by one of every peer, and medians over the runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import msgspec

from .conditions import Conditions
from .machine import machine_settings
from .peer import Library, PeerMissing
from .workers import BenchFailed

__all__ = ["Bar", "Bench", "Figures", "Plan", "Report", "bench_directory", "measure", "more_is_better"]

Figures: TypeAlias = dict[str, float]

FOREIGN_CPU_PERCENT_MAX = 5  # above it the machine was not quiet


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, where, and against whom."""

    seconds: float = 3.0  # each timed stretch
    runs: int = 3
    directory: Path = Path("/var/tmp")  # logs and stores are written below it
    peers: tuple[type[Library], ...] = ()
    rows: int = 0  # in a store; 0 where there is none
    large: bool = False  # also what takes minutes
    clients: int = 1000  # of the gateway
    minutes: float = 0.0  # that they are served, if longer than `seconds`


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure is to reach on a quiet machine."""

    limit: float
    slack: float = 0.0  # what counts as reaching it, where the limit is 0

    def is_met(self, name: str, value: float) -> bool:
        return value >= self.limit if more_is_better(name) else value <= self.limit + self.slack


def more_is_better(name: str) -> bool:
    """Whether more of a figure is better: rates end in `per_s`, everything else is a time or a cost."""
    return name.endswith("per_s")


@dataclass(frozen=True, slots=True)
class Bench:
    """One idea of what to measure. `run` does it once; `run_peer` does the same to another library, of `peer_kind`."""

    name: str
    about: str
    bars: Mapping[str, Bar]
    run: Callable[[Plan], Figures]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    run_peer: Callable[[Plan, Any], Figures] | None = None
    peer_kind: type[Library] = Library
    between_cores: bool = False  # whether the distance of two cores matters


class Report(msgspec.Struct, kw_only=True):
    """What `--json` prints.

    figures: ours, medians over the runs. peers: the same names, each library's. ratios: how many times better ours is (more a
    second, or less time). notes: what could not be measured, and why.
    """

    bench: str
    settings: dict[str, Any]
    figures: Figures
    peers: dict[str, Figures] = msgspec.field(default_factory=dict[str, Figures])
    ratios: dict[str, Figures] = msgspec.field(default_factory=dict[str, Figures])
    notes: list[str] = msgspec.field(default_factory=list[str])


def measure(benches: list[Bench], plan: Plan, progress: Callable[[str], object] = lambda what: None) -> Report:
    """Measure and sum up. progress: told what begins. Raises BenchFailed where ours lost something, or could not run."""
    report = Report(
        bench=benches[0].name if len(benches) == 1 else "all",
        settings={"seconds": plan.seconds, "runs": plan.runs, "directory": str(plan.directory), **machine_settings()},
        figures={},
    )
    if plan.rows:
        report.settings["rows"] = plan.rows
    conditions = Conditions()
    for bench in benches:
        settings = report.settings if len(benches) == 1 else report.settings.setdefault(bench.name, {})
        settings.update(bench.settings)
        _measure_one(bench, plan, report, conditions, progress)
    report.settings.update(conditions.settings())
    if conditions.foreign_cpu_percent > FOREIGN_CPU_PERCENT_MAX:
        report.notes.append(
            f"others used up to {conditions.foreign_cpu_percent:.0f} % of the machine's cores meanwhile: "
            "measure again when it is quiet"
        )
    for peer, figures in report.peers.items():
        report.ratios[peer] = {
            name: round(report.figures[name] / value if more_is_better(name) else value / report.figures[name], 2)
            for name, value in figures.items()
            if value and report.figures.get(name)
        }
    return report


def _measure_one(
    bench: Bench, plan: Plan, report: Report, conditions: Conditions, progress: Callable[[str], object]
) -> None:
    ours: list[Figures] = []
    theirs: dict[str, list[Figures]] = {}
    for number in range(1, plan.runs + 1):
        progress(f"{bench.name}, run {number} of {plan.runs}")
        if bench.between_cores:
            conditions.look_at_cores()
        with conditions.watched():
            ours.append(bench.run(plan))
        for peer in plan.peers:
            if bench.run_peer is None or not issubclass(peer, bench.peer_kind):
                continue
            progress(f"{bench.name}, run {number} of {plan.runs}: {peer.name}")
            try:
                with conditions.watched():
                    figures = bench.run_peer(plan, peer)
                if figures:
                    theirs.setdefault(peer.name, []).append(figures)
            except (BenchFailed, PeerMissing) as error:
                if (note := f"{bench.name}: {peer.name}: {error}") not in report.notes:
                    report.notes.append(note)
    report.figures.update(_medians(ours))
    for name, runs in theirs.items():
        report.peers.setdefault(name, {}).update(_medians(runs))


def _medians(runs: list[Figures]) -> Figures:
    """Of every figure that at least one run gave."""
    names = {name: None for run in runs for name in run}
    return {name: _rounded(median(run[name] for run in runs if name in run)) for name in names}


def _rounded(value: float) -> float:
    return round(value) if value >= 1000 else round(value, 3)


def bench_directory(plan: Plan) -> tempfile.TemporaryDirectory[str]:
    """A folder for logs or stores, removed afterwards."""
    return tempfile.TemporaryDirectory(prefix="ringmain-bench-", dir=plan.directory)
