"""What the `ringmain` command returns to the shell, and how a fault becomes one line of it."""

from __future__ import annotations

from ..bus import BusError, NotFound
from ..storage import SchemaError, StorageError
from .csv_lines import InputDamaged
from .csv_split import BadRow
from .toml_document import TomlError

__all__ = ["EXIT_CODES_HELP", "FAILED", "INTERRUPTED", "MISSING", "OK", "TERMINATED", "USAGE", "explain"]

# Scripts rely on these: add new ones, never change one.
OK, FAILED, USAGE, MISSING, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

EXIT_CODES_HELP = (
    "Exit codes: 0 all is well, 1 problems were found or something failed, 2 wrong usage, 3 no such bus, topic, key or file, "
    "130 interrupted, 143 ended by SIGTERM (services: 0)."
)


def explain(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the line for an error that a user can do something about; None for a defect of ours."""
    if isinstance(error, NotFound):
        return MISSING, str(error)
    if isinstance(error, BusError | StorageError | BadRow | InputDamaged | TomlError | SchemaError):
        return FAILED, str(error)
    if isinstance(error, OSError):
        return MISSING if isinstance(error, FileNotFoundError) else FAILED, _os_words(error)
    if isinstance(error, ValueError):
        return USAGE, str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is None:  # ours: it says what to install
        return FAILED, str(error)
    return None


def _os_words(error: OSError) -> str:
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words
