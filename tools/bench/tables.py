"""A report for people: figures beside their bars and the peers', then what they were measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from rich.text import Text

from ..printing import new_table, note, pairs, stdout
from .measuring import Bar, Report, more_is_better

__all__ = ["print_report"]


def print_report(report: Report, bars: Sequence[Mapping[str, Bar]]) -> None:
    """On standard output; notes beside it."""
    limits = {name: bar for each in bars for name, bar in each.items()}
    table = new_table("figure", ">bar", ">ringmain", *[f">{peer}" for peer in report.peers])
    if report.peers:
        table.caption = "under a peer's figure: how many times better ours is"
    for name, value in report.figures.items():
        bar = limits.get(name)
        style = "" if bar is None else "green" if bar.is_met(name, value) else "red"
        theirs = [_compared(report, peer, name) for peer in report.peers]
        table.add_row(name, "" if bar is None else _limit(name, bar), Text(_number(value), style=style), *theirs)
    stdout().print(table)
    stdout().print(pairs(*_lines(report.settings)))
    for line in report.notes:
        note(line)


def _compared(report: Report, peer: str, name: str) -> Text:
    if name not in report.peers[peer]:
        return Text("-", style="dim")
    ratio = report.ratios[peer].get(name)
    text = Text(_number(report.peers[peer][name]))
    return text if ratio is None else text.append(f"\n{ratio:.3g}x", style="dim")


def _limit(name: str, bar: Bar) -> str:
    return f"{'≥' if more_is_better(name) else '≤'} {_number(bar.limit)}"


def _number(value: float) -> str:
    """Three digits that count; a bar as it is."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_number(value / size)}{letter}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _lines(settings: Mapping[str, object]) -> list[tuple[str, object]]:
    """The settings of a report on all benches are nested once."""
    lines: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            nested = cast(Mapping[str, object], value)
            lines.append((name, ", ".join(f"{key}: {item}" for key, item in nested.items())))
        else:
            lines.append((name, value))
    return lines
