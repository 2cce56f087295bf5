"""How far named subscribers are done with a topic, for those who wait for them: resumable ones and groups.

Those that run say it in the reader table; what they have stored counts as well, and for those that do not run it is all there is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from ..storage import StorageError
from . import _segment
from .attach import Attached, attach
from .positions import check_position_name, position_folder, read_position

__all__ = ["Standing", "standings", "wait_acknowledged", "wait_for_standings"]

NAP_S, NAP_S_MAX = 0.0002, 0.002
STORED_EVERY_S = 0.02  # how often files are looked at


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a name stands: everything up to `acknowledged` is done with. pids: its living processes. problem: with its files."""

    name: str
    acknowledged: int
    pids: tuple[int, ...]
    problem: str = ""

    def __str__(self) -> str:
        where = f"{self.name} has acknowledged up to {self.acknowledged}"
        runs = f"process {', '.join(map(str, self.pids))}" if self.pids else "it is not running"
        return f"{where} ({runs}{'; ' + self.problem if self.problem else ''})"


def wait_acknowledged(address: str, sequence: int, names: Iterable[str], timeout: float | None = None) -> None:
    """Return once all the named subscribers of a topic are done with everything up to `sequence`. Any process may ask.

    Raises TimeoutError after `timeout` seconds (None: never), which says who is not and where each stands; NotFound, AttachError.
    """
    wait_for_standings(attach(address), sequence, names, timeout)


def wait_for_standings(topic: Attached, sequence: int, names: Iterable[str], timeout: float | None) -> None:
    """The same, attached already."""
    waiting = sorted({check_position_name(name) for name in names})
    start = time.monotonic()
    deadline = None if timeout is None else start + timeout
    look_at, nap_s = start, NAP_S
    while True:
        now = time.monotonic()
        over = deadline is not None and now >= deadline
        stored = now >= look_at or over
        if stored:
            look_at = now + STORED_EVERY_S
        behind = [found for found in standings(topic, waiting, stored=stored) if found.acknowledged < sequence]
        if not behind:
            return
        if over:
            raise TimeoutError(
                f"topic {topic.topic!r}: sequence {sequence} was not acknowledged by all within {timeout} s: "
                + "; ".join(map(str, behind))
            )
        waiting = [found.name for found in behind]
        time.sleep(nap_s)
        nap_s = min(2 * nap_s, NAP_S_MAX)


def standings(topic: Attached, names: Iterable[str], *, stored: bool = True) -> list[Standing]:
    """Where names stand. stored: look at what they have stored as well."""
    told: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for entry in _segment.list_readers(topic.control.memory):
        if entry["name"] in told and _segment.process_lives(entry["pid"], entry["process_start"]):
            told[entry["name"]].append((entry["pid"], entry["acknowledged"]))
    found: list[Standing] = []
    for name, entries in told.items():
        acknowledged, problem = max((sequence for _, sequence in entries), default=0), ""
        if stored and topic.data_directory is not None:
            try:
                position = read_position(position_folder(topic.data_directory, topic.topic, name))
            except (OSError, StorageError) as error:
                problem = str(error)
            else:
                if position is not None and position.log_id == topic.header["log_id"]:
                    acknowledged = max(acknowledged, position.sequence)
        found.append(Standing(name, acknowledged, tuple(sorted({pid for pid, _ in entries})), problem))
    return found
