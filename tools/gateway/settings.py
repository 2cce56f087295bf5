"""What a gateway is told: where it listens, who may come, and how much of it anybody may have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .tokens import Token

__all__ = ["GatewaySettings", "is_loopback", "readable"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """topics: patterns of BUS/TOPIC that it offers at all.

    open: listen to other machines although there are no tokens. origins: of pages that may connect, beside those served under
    the gateway's own host. queue_bytes: how much of a client's rows may wait for it. messages_per_s, messages_burst: of a client's,
    counted as WebSocket frames. stall_s: how long a client may take nothing at all. drain_s: how long clients have to take the rest
    when it stops.
    """

    topics: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8765
    cert: Path | None = None
    key: Path | None = None
    tokens: tuple[Token, ...] = ()
    open: bool = False
    origins: tuple[str, ...] = ()
    queue_bytes: int = 4 << 20
    message_bytes_max: int = 64 << 10
    messages_per_s: float = 20.0
    messages_burst: int = 100
    subscriptions_max: int = 32
    connections_max: int = 2000
    connections_per_address_max: int = 1000
    connections_per_token_max: int = 1000
    authenticate_s: float = 5.0
    stall_s: float = 30.0
    drain_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.topics:
            raise ValueError("topics: at least one pattern is expected, such as exchange/*")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: 0 to 65535 is expected, got {self.port}")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert, key: both are expected, or neither")
        if not self.tokens and not self.open and not is_loopback(self.host):
            raise ValueError(
                f"host: without tokens it listens on this machine only, not on {self.host}; give it tokens, or say that it is open"
            )
        if self.queue_bytes < 1 << 20:
            raise ValueError(f"queue_bytes: at least 1 MiB is expected, got {self.queue_bytes:,} bytes")
        for name in (
            "message_bytes_max",
            "messages_burst",
            "subscriptions_max",
            "connections_max",
            "connections_per_address_max",
            "connections_per_token_max",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1 is expected, got {getattr(self, name)}")
        for name in ("messages_per_s", "authenticate_s", "stall_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: more than 0 is expected, got {getattr(self, name)}")


def is_loopback(host: str) -> bool:
    return host in LOOPBACK


def readable(path: Path) -> Path:
    """The path itself. Raises OSError naming it unless it is a file that this process may read."""
    path.open("rb").close()
    return path
