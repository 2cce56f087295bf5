"""The machine that figures are measured on."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

__all__ = ["machine_settings"]


def machine_settings() -> dict[str, Any]:
    """What a figure depends on."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": _package_version("numpy"),
        "ringmain": _package_version("ringmain"),
    }


def _package_version(package: str) -> str:
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
