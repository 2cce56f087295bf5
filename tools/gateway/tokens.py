"""Who may read what: tokens, of which only the SHA-256 is kept.

A token is 32 random bytes, so nothing is gained by guessing, and a slow hash would add nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["ANYBODY", "Token", "check_token_name", "find_token", "matches", "may_read", "new_token", "token_of"]

NAME = re.compile(r"[A-Za-z0-9_-]+")  # what TOML takes as a key without quotes
HEX_DIGITS = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Token:
    """name: for the log. sha256: of the token, 64 hex digits. topics: patterns of BUS/TOPIC, such as "exchange/*"."""

    name: str
    sha256: str
    topics: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not HEX_DIGITS.fullmatch(self.sha256):
            raise ValueError("sha256: 64 lower-case hex digits are expected; `ringmain token NAME` makes them")
        if not self.topics:
            raise ValueError('topics: at least one pattern is expected, such as "exchange/*"')


ANYBODY = Token("", "0" * 64)  # who connects to a gateway without tokens


def check_token_name(name: str) -> str:
    """The name itself. ValueError unless it is one."""
    if not NAME.fullmatch(name):
        raise ValueError(f"token name {name!r}: letters (a to z), digits, - and _ are expected")
    return name


def new_token(name: str, topics: Iterable[str]) -> tuple[str, Token]:
    """A token to be handed over, and what is to be kept of it."""
    text = secrets.token_urlsafe(32)
    return text, Token(check_token_name(name), _hash(text), tuple(topics))


def find_token(tokens: Iterable[Token], text: str) -> Token | None:
    """The token that this is, if any. It takes as long whichever it is."""
    given, found = _hash(text), None
    for token in tokens:
        if hmac.compare_digest(token.sha256, given):
            found = token
    return found


def may_read(token: Token, address: str) -> bool:
    return matches(address, token.topics)


def matches(address: str, patterns: Iterable[str]) -> bool:
    """Whether BUS/TOPIC is one of these, each of which may hold *, ? and [letters]."""
    return any(fnmatchcase(address, pattern) for pattern in patterns)


def token_of(authorization: str, subprotocols: Iterable[str]) -> str | None:
    """The token that a handshake shows, or None."""
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip()
    for protocol in subprotocols:
        if protocol.startswith("token."):
            return protocol.removeprefix("token.")
    return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
