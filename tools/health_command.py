"""`ringmain health`: how the writer and the subscribers of a bus are, once, or every change as it comes."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import msgspec
import typer

from ..subscribers.health import Change, HealthMonitor
from ..subscribers.judging import Thresholds, worst
from .exit_codes import FAILED, OK
from .printing import count, new_table, plain, print_json, print_json_line, state_text, stdout

__all__ = ["health"]

SETTLE_S = 0.6  # by then everybody has moved who is well
LOOK_S = 0.1  # between the looks at one of whom that is not sure yet
DEFAULTS = Thresholds()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One subject, as it is printed with --json."""

    kind: str
    bus: str
    topic: str
    name: str
    pid: int
    state: str  # healthy, degraded, failed; gone, in a change
    reason: str
    amount: int


def health(
    bus: Annotated[str, typer.Argument(metavar="BUS", help="Which bus.")],
    watch: Annotated[bool, typer.Option("--watch", help="Print changes as they come, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON; with --watch an object a line.")] = False,
    lag_records: Annotated[
        int | None, typer.Option(metavar="N", help="A subscriber so far behind is degraded; by default half the ring.")
    ] = None,
    lag_seconds: Annotated[float, typer.Option(metavar="S", help="The same in seconds.")] = DEFAULTS.lag_seconds,
) -> None:
    """Tell how the writer and the subscribers of a bus are: healthy, degraded or failed, and why.

    It looks for 0.6 s; longer where somebody is behind, has no leader or waits to be replicated, until that is for too long, by
    default 5 s at most. The exit code is 1 if any of them is not healthy.

    Example: ringmain health exchange --watch
    """
    limits = Thresholds(lag_seconds=lag_seconds, lag_records=lag_records)
    with HealthMonitor(bus, thresholds=limits) as monitor:
        if watch:
            for change in monitor:
                if as_json:
                    print_json_line(_report(change))
                else:
                    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {plain(str(change)).plain}\n")
                    sys.stdout.flush()
            return
        _look_until_sure(monitor, limits)
        reports = [_report(Change(subject, None, found, 0)) for subject, found in sorted(monitor.conditions.items())]
        state = worst(list(monitor.conditions.values()))
    if as_json:
        print_json({"state": state, "subjects": reports})
    else:
        table = new_table("KIND", "~BUS/TOPIC", "~NAME", ">PID", "STATE", "REASON", ">RECORDS")
        for report in reports:
            table.add_row(
                report.kind,
                plain(f"{report.bus}/{report.topic}".rstrip("/")),
                plain(report.name),
                str(report.pid),
                state_text(report.state),
                report.reason,
                count(report.amount) if report.reason else "",
            )
        stdout().print(table)
    raise typer.Exit(OK if state == "healthy" else FAILED)


def _look_until_sure(monitor: HealthMonitor, limits: Thresholds) -> None:
    """A lag, or what is missing, is nobody's fault before it has lasted; so whoever is suspect is watched for as long."""
    longest = max(limits.lag_seconds, limits.reader_silent, limits.leaderless, limits.unreplicated)
    ends = time.monotonic() + SETTLE_S + longest
    monitor.look()
    time.sleep(SETTLE_S)
    monitor.look()
    while monitor.undecided and time.monotonic() < ends:
        time.sleep(LOOK_S)
        monitor.look()


def _report(change: Change) -> Report:
    subject, condition = change.subject, change.after
    return Report(
        kind=subject.kind,
        bus=subject.bus,
        topic=subject.topic,
        name=subject.name,
        pid=subject.pid,
        state=change.state,
        reason=condition.reason if condition is not None else "",
        amount=condition.amount if condition is not None else 0,
    )
