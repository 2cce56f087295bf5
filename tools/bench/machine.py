"""The machine that figures are measured on, and how quiet it was."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

__all__ = ["ForeignCpu", "machine_settings", "package_version"]


def machine_settings() -> dict[str, Any]:
    """What a figure depends on."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": package_version("numpy"),
        "ringmain": package_version("ringmain"),
    }


def package_version(package: str) -> str:
    """Its installed version, or "missing"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


class ForeignCpu:
    """How much of the machine others used while we measured; `worst_percent` is the busiest stretch's.

    Of all cores' time, what was neither idle nor ours. The system's own work for us, such as writing to the disk, counts too.
    """

    def __init__(self) -> None:
        self.worst_percent = 0.0

    @contextlib.contextmanager
    def watched(self) -> Generator[None]:
        """Watch one stretch. Children started in it must have ended by its end."""
        busy, mine, began = _busy_s(), _mine_s(), monotonic()
        yield
        seconds = (monotonic() - began) * (os.cpu_count() or 1)
        foreign = max(0.0, _busy_s() - busy - (_mine_s() - mine))
        self.worst_percent = max(self.worst_percent, 100 * foreign / seconds)


def _busy_s() -> float:
    times: Any = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _mine_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
