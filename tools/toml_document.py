"""A TOML file that a person wrote: read, converted, and faults told with the file, the line and the dotted place."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import msgspec

__all__ = ["TomlDocument", "TomlError"]


class TomlError(ValueError):
    """A file that is not TOML, or says what it cannot say. path, line (None: unknown) and where name the place."""

    def __init__(self, path: str, where: str, expected: str, line: int | None = None) -> None:
        self.path, self.where, self.expected, self.line = path, where, expected, line
        place = path if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {where}: {expected}" if where else f"{place}: {expected}")


class TomlDocument:
    """The tables of a file; `error` and `convert` name a place in it, such as "bus.exchange.slots".

    path: for the messages. error_type: what is raised, a TomlError.
    """

    def __init__(self, content: bytes, path: str, error_type: type[TomlError] = TomlError) -> None:
        self.path, self._error_type = path, error_type
        self._lines: list[str] = []
        try:
            text = content.decode()
            self._lines = text.split("\n")
            self.tables: dict[str, Any] = tomllib.loads(text)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise error_type(path, "", f"UTF-8 expected, not the byte 0x{content[error.start]:02x}", line) from error
        except tomllib.TOMLDecodeError as error:
            raise error_type(path, "", f"not TOML: {error}") from error

    def convert(self, given: Any, into: Any, where: str) -> Any:
        """What stands at `where` as a msgspec type."""
        try:
            return msgspec.convert(given, into)
        except msgspec.ValidationError as error:
            message, _, at = str(error).partition(" - at `$")
            where = (where + at.rstrip("`")).lstrip(".")
            if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message):
                where = f"{where}.{unknown[1]}".lstrip(".")
                message = f"unknown here; expected one of {', '.join(into.__struct_fields__)}"
            raise self.error(where, message) from error

    def error(self, where: str, expected: str) -> TomlError:
        return self._error_type(self.path, where, expected, self.line_of(where))

    def line_of(self, where: str) -> int | None:
        """The line of a dotted place such as "fields.price.scale": of its key, or of the nearest table around it."""
        wanted = _parts(where)
        best, found = 0, None
        inside: list[str] = []
        for number, line in enumerate(self._lines, start=1):
            if heading := re.match(r"\s*\[\[?\s*([^\]#]*?)\s*\]", line):
                inside = _parts(heading[1])
                there = inside
            elif assigned := re.match(r"\s*([^=#]*?)\s*=", line):
                there = inside + _parts(assigned[1])
            else:
                continue
            shared = 0
            while shared < min(len(there), len(wanted)) and there[shared] == wanted[shared]:
                shared += 1
            if shared > best and (shared == len(there) or shared == len(wanted)):
                best, found = shared, number
        return found


def _parts(where: str) -> list[str]:
    return [part.strip("\"' ") for part in re.split(r"[.\[]", where) if part]
