"""How a node reaches the servers, and what stream it wants of them: settings alone, which need nothing installed."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Access", "StreamSettings", "Tls", "is_loopback"]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the authority that servers and nodes trust, and the node's own certificate and key."""

    ca: Path
    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """For a client. Raises OSError (ssl.SSLError among them) where a file cannot be read or does not fit."""
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.cert, self.key)
        return context


@dataclass(frozen=True, slots=True)
class Access:
    """servers: host:port of each, the node's own first. name: told to the servers, for their logs."""

    servers: tuple[str, ...]
    name: str = ""
    user: str | None = None
    password: str | None = None
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """name: of the stream. subject: what is appended to it goes there. synced: refuse servers that acknowledge before they sync."""

    name: str
    subject: str
    replicas: int
    bytes_max: int
    synced: bool = True

    @staticmethod
    def of_cluster(cluster: str, replicas: int, bytes_max: int, synced: bool = True, name: str = "") -> StreamSettings:
        """The stream of a cluster; it is named after it unless told."""
        return StreamSettings(name or f"ringmain-{cluster}", f"ringmain.{cluster}.log", replicas, bytes_max, synced)


def is_loopback(host: str) -> bool:
    """Whether it is this machine under a name that no other machine can have."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
