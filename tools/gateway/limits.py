"""How much anybody may have: messages in a time, connections in all and for each address and token."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from .settings import GatewaySettings

__all__ = ["TOO_MANY", "Connections", "Refused", "TokenBucket"]

TOO_MANY = 4429  # the close code


class Refused(Exception):
    """A handshake that is refused, with an HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class TokenBucket:
    """`rate` a second, and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = float(burst), time.monotonic()

    def take(self) -> bool:
        """Whether there is one left; it is then used."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Connections:
    """Counts those that are there."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self.count = 0
        self._of_address, self._of_token = Counter[str](), Counter[str]()

    @contextmanager
    def place(self, address: str) -> Generator[None]:
        """A place for a connection from that address. Raises Refused."""
        if self.count >= self._settings.connections_max:
            raise Refused(503, "the gateway has as many connections as it may have")
        if self._of_address[address] >= self._settings.connections_per_address_max:
            raise Refused(429, "too many connections from this address")
        self.count += 1
        with _counted(self._of_address, address):
            try:
                yield
            finally:
                self.count -= 1

    @contextmanager
    def place_of_token(self, name: str) -> Generator[None]:
        """A place for a connection with that token; "" for none. Raises Refused."""
        if name and self._of_token[name] >= self._settings.connections_per_token_max:
            raise Refused(429, "too many connections with this token")
        with _counted(self._of_token, name):
            yield


@contextmanager
def _counted(counts: Counter[str], name: str) -> Generator[None]:
    counts[name] += 1
    try:
        yield
    finally:
        counts[name] -= 1
        if not counts[name]:
            del counts[name]
