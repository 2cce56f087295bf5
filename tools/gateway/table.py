"""The gateway in TOML: the table [gateway] of a ringmain.toml, and files of tokens.

[gateway]
host = "0.0.0.0"                        # this machine only unless told; without tokens also `open = true`
port = 8765
topics = ["exchange/*"]                 # patterns, also of other processes' buses; all topics of this file's buses unless told
cert = "cert.pem"                       # relative to this file
key = "key.pem"
tokens = "tokens.toml"                  # or tables [gateway.tokens.NAME] as below
origins = ["https://example.com"]
queue_bytes = "4 MiB"                   # that may wait for one client
connections_max = 2000

A file of tokens:

[tokens.dashboard]
sha256 = "…"                            # `ringmain token dashboard` makes it
topics = ["exchange/trades", "exchange/quotes"]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from ...storage import StorageError
from ...storage.log_files import list_files, open_file, starting_topics
from ..quantities import read_bytes, read_seconds
from ..toml_document import TomlDocument, TomlError
from .settings import GatewaySettings, readable
from .tokens import Token, check_token_name, matches

__all__ = ["TokenError", "load_tokens", "read_gateway"]

Quantity: TypeAlias = str | int | float
Value = TypeVar("Value")


class TokenError(TomlError):
    """A file of tokens that is not TOML, or is none."""


class _Token(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    sha256: str
    topics: list[str] = msgspec.field(default_factory=lambda: ["*"])


class _Tokens(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    tokens: dict[str, Any] = {}


class _Gateway(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    host: str | None = None
    port: int | None = None
    topics: list[str] | None = None
    cert: str | None = None
    key: str | None = None
    tokens: str | dict[str, Any] | None = None
    open: bool | None = None
    origins: list[str] | None = None
    queue_bytes: Quantity | None = None
    message_bytes_max: Quantity | None = None
    messages_per_s: float | None = None
    messages_burst: int | None = None
    subscriptions_max: int | None = None
    connections_max: int | None = None
    connections_per_address_max: int | None = None
    connections_per_token_max: int | None = None
    authenticate_time: Quantity | None = None
    stall_time: Quantity | None = None
    drain_time: Quantity | None = None


WILDCARDS = frozenset("*?[")
PLAIN = (
    "host",
    "port",
    "open",
    "messages_per_s",
    "messages_burst",
    "subscriptions_max",
    "connections_max",
    "connections_per_address_max",
    "connections_per_token_max",
)
AMOUNTS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "queue_bytes": ("queue_bytes", read_bytes),
    "message_bytes_max": ("message_bytes_max", read_bytes),
    "authenticate_time": ("authenticate_s", read_seconds),
    "stall_time": ("stall_s", read_seconds),
    "drain_time": ("drain_s", read_seconds),
}


def read_gateway(
    document: TomlDocument,
    given: Any,
    folder: Path,
    topics: Mapping[str, Sequence[str]],
    data_dirs: Mapping[str, Path],
) -> GatewaySettings:
    """What the table [gateway] of a document says. folder: of the file. topics: that the file declares, by bus; those are offered
    unless told. data_dirs: by bus; in its log a bus may have more topics, of an earlier configuration.

    Raises the document's error naming the place and what was expected.
    """
    table: _Gateway = document.convert(given, _Gateway, "gateway")
    chosen: dict[str, Any] = {name: value for name in PLAIN if (value := getattr(table, name)) is not None}
    for name, (setting, read) in AMOUNTS.items():
        if (value := getattr(table, name)) is not None:
            chosen[setting] = _attempt(document, f"gateway.{name}", read, value)
    if table.topics is not None:
        _check_patterns(document, table.topics, topics, data_dirs)
    chosen["topics"] = tuple(table.topics if table.topics is not None else [f"{bus}/*" for bus in topics])
    chosen["origins"] = tuple(table.origins or ())
    for name in ("cert", "key"):
        if (value := getattr(table, name)) is not None:
            chosen[name] = _attempt(document, f"gateway.{name}", readable, folder / value)
    if isinstance(table.tokens, str):
        chosen["tokens"] = _attempt(document, "gateway.tokens", load_tokens, folder / table.tokens)
    elif table.tokens is not None:
        chosen["tokens"] = _tokens(document, table.tokens, "gateway.tokens")
    try:
        return GatewaySettings(**chosen)
    except ValueError as error:
        place, colon, expected = str(error).partition(": ")
        where = f"gateway.{place}" if colon and place in _Gateway.__struct_fields__ else "gateway"
        raise document.error(where, expected if where != "gateway" else str(error)) from error


def load_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file. Raises TokenError naming the place; OSError where it cannot be read."""
    document = TomlDocument(path.read_bytes(), str(path), TokenError)
    return _tokens(document, document.convert(document.tables, _Tokens, "").tokens, "tokens")


def _tokens(document: TomlDocument, given: Mapping[str, Any], where: str) -> tuple[Token, ...]:
    if not given:
        raise document.error(where, "at least one token; `ringmain token NAME` makes one")
    tokens: list[Token] = []
    for name, table in given.items():
        place = f"{where}.{name}"
        _attempt(document, place, check_token_name, name)
        one: _Token = document.convert(table, _Token, place)
        tokens.append(_attempt(document, place, Token, name, one.sha256, tuple(one.topics)))
    return tuple(tokens)


def _check_patterns(
    document: TomlDocument,
    patterns: Sequence[str],
    topics: Mapping[str, Sequence[str]],
    data_dirs: Mapping[str, Path],
) -> None:
    """Each must match a topic that the file declares, or that its bus's log has: the writer makes rings for those too.

    One that may be of another process's bus, of which nothing is known here, need not.
    """
    addresses = [f"{bus}/{topic}" for bus, names in topics.items() for topic in names]
    for pattern in patterns:
        bus, slash, _ = pattern.partition("/")
        foreign = bus not in topics and (slash or WILDCARDS.intersection(pattern))
        if foreign or any(matches(address, [pattern]) for address in addresses):
            continue
        logged = _logged_topics(data_dirs[bus]) if bus in data_dirs else ()
        if logged is not None and not any(matches(f"{bus}/{topic}", [pattern]) for topic in logged):
            raise document.error(
                "gateway.topics",
                f"topics that this file declares ({', '.join(addresses)}) or that a bus's log has, or patterns of them, "
                f"not {pattern!r}",
            )


def _logged_topics(data_dir: Path) -> Collection[str] | None:
    """The topics of a bus's log, by its newest file; None where that cannot be read."""
    try:
        found = list_files(data_dir / "log")
        return starting_topics(open_file(found[-1][1], found[-1][0])) if found else ()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, StorageError):
        return None


def _attempt(document: TomlDocument, where: str, call: Callable[..., Value], *arguments: Any) -> Value:
    try:
        return call(*arguments)
    except OSError as error:
        raise document.error(where, f"a file that can be read; {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise document.error(where, str(error)) from error
