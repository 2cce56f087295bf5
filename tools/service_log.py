"""What a service logs: one line an event on standard error, as JSON for programs or as text for people."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from enum import StrEnum
from typing import Any

__all__ = ["LogFormat", "event", "start_logging"]

LOGGER = logging.getLogger("ringmain")


class LogFormat(StrEnum):
    """How events are written."""

    text = "text"
    json = "json"


def event(text: str, *, level: int = logging.INFO, error: BaseException | None = None, **facts: Any) -> None:
    """Log an event. facts: what a program would look for, by name; units in the names. error: its traceback too."""
    LOGGER.log(level, text, extra={"facts": facts}, exc_info=error)


def start_logging(form: LogFormat) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form is LogFormat.json else _Text())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def _moment(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "facts", {})
        line = {"time": _moment(record), "level": record.levelname.lower(), "event": record.getMessage(), **facts}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "facts", {})
        told = "  ".join(f"{name}={value}" for name, value in facts.items())
        line = f"{_moment(record)} {record.levelname.lower():7} {record.getMessage()}{'  ' if told else ''}{told}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
