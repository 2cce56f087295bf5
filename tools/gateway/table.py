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

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

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
    document: TomlDocument, given: Any, folder: Path, topics: Mapping[str, Sequence[str]]
) -> GatewaySettings:
    """What the table [gateway] of a document says. folder: of the file. topics: of each bus of the file; offered unless told.

    Raises the document's error naming the place and what was expected.
    """
    table: _Gateway = document.convert(given, _Gateway, "gateway")
    chosen: dict[str, Any] = {name: value for name in PLAIN if (value := getattr(table, name)) is not None}
    for name, (setting, read) in AMOUNTS.items():
        if (value := getattr(table, name)) is not None:
            chosen[setting] = _attempt(document, f"gateway.{name}", read, value)
    if table.topics is not None:
        _check_patterns(document, table.topics, topics)
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


def _check_patterns(document: TomlDocument, patterns: Sequence[str], topics: Mapping[str, Sequence[str]]) -> None:
    """Each must match a topic of the file, unless it may be of another process's bus, of which nothing is known here."""
    addresses = [f"{bus}/{topic}" for bus, names in topics.items() for topic in names]
    for pattern in patterns:
        bus, slash, _ = pattern.partition("/")
        foreign = bus not in topics and (slash or WILDCARDS.intersection(pattern))
        if not foreign and not any(matches(address, [pattern]) for address in addresses):
            raise document.error(
                "gateway.topics", f"topics of this file ({', '.join(addresses)}), or patterns of them, not {pattern!r}"
            )


def _attempt(document: TomlDocument, where: str, call: Callable[..., Value], *arguments: Any) -> Value:
    try:
        return call(*arguments)
    except OSError as error:
        raise document.error(where, f"a file that can be read; {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise document.error(where, str(error)) from error
