"""The gateway in TOML: the table [gateway] of a ringmain.toml, and files of tokens.

[gateway]
host = "0.0.0.0"                        # this machine only unless told; without tokens also `open = true`
port = 8765
topics = ["exchange/*"]                 # patterns; all topics of the buses in this file unless told
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
from .settings import GatewaySettings
from .tokens import Token

__all__ = ["TokenError", "load_tokens", "read_gateway"]

Quantity: TypeAlias = str | int | float
Value = TypeVar("Value")


class TokenError(TomlError):
    """A file of tokens that is not TOML, or is none."""


class _Token(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    sha256: str
    topics: list[str] = msgspec.field(default_factory=lambda: ["*"])


class _Tokens(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    tokens: dict[str, Any]


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


def read_gateway(document: TomlDocument, given: Any, folder: Path, buses: Sequence[str]) -> GatewaySettings:
    """What the table [gateway] of a document says. folder: of the file. buses: whose topics are offered unless told.

    Raises the document's error naming the place and what was expected.
    """
    table: _Gateway = document.convert(given, _Gateway, "gateway")
    chosen: dict[str, Any] = {name: value for name in PLAIN if (value := getattr(table, name)) is not None}
    for name, (setting, read) in AMOUNTS.items():
        if (value := getattr(table, name)) is not None:
            chosen[setting] = _attempt(document, f"gateway.{name}", read, value)
    chosen["topics"] = tuple(table.topics if table.topics is not None else [f"{bus}/*" for bus in buses])
    chosen["origins"] = tuple(table.origins or ())
    for name in ("cert", "key"):
        if (value := getattr(table, name)) is not None:
            chosen[name] = folder / value
            if not chosen[name].is_file():
                raise document.error(f"gateway.{name}", f"a file; there is none at {chosen[name]}")
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
        one: _Token = document.convert(table, _Token, place)
        tokens.append(_attempt(document, place, Token, name, one.sha256, tuple(one.topics)))
    return tuple(tokens)


def _attempt(document: TomlDocument, where: str, call: Callable[..., Value], *arguments: Any) -> Value:
    try:
        return call(*arguments)
    except (ValueError, OSError) as error:
        raise document.error(where, str(error)) from error
