"""The table [cluster] of a ringmain.toml: this host's place among those that hold the same bus.

[cluster]
node = "a"                              # unlike any other node's
servers = ["a.example.com:4222", "b.example.com:4222", "c.example.com:4222"]  # nats-servers, this host's own first
user = "exchange"                       # who may touch the stream; see `ringmain cluster server-config`
password_file = "password"              # relative to this file, as all files here
ca = "tls/ca.pem"                       # `ringmain cluster certificates` makes these; without them servers of this machine only
cert = "tls/a.example.com.pem"
key = "tls/a.example.com.key"
name = "exchange"                       # of the cluster; its bus's unless told
acknowledge = "sync"                    # what publishers wait for unless told; sync: replicated; async: durable on the leader
replicas = 3                            # servers that keep the stream; all of them unless told
stream_bytes = "50 GB"                  # what it may hold; the same on every node
stream_keep = "25 GB"                   # what it keeps for nodes that are away; half of stream_bytes unless told
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from ..bus.cluster.access import Access, StreamSettings, Tls, is_loopback
from ..bus.cluster.servers import ServerSettings, User
from ..bus.cluster.stream import MESSAGE_BYTES_MAX
from ..bus.segments import check_bus_name
from .quantities import read_bytes
from .toml_document import TomlDocument

__all__ = ["ClusterPlan", "read_cluster", "server_settings"]

STREAM_BYTES = 20 * 10**9
REPLICAS_MAX = 5  # JetStream keeps no more
SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})")
Quantity: TypeAlias = str | int | float


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """name: of the cluster. node, bus: this host's. acknowledge: what publishers wait for unless they are told.

    keep_bytes: so much of the stream is not trimmed, for nodes that are away.
    """

    name: str
    node: str
    bus: str
    access: Access
    stream: StreamSettings
    acknowledge: Literal["sync", "async"]
    keep_bytes: int


class _Cluster(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    node: str
    servers: list[str]
    user: str | None = None
    password_file: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    name: str | None = None
    stream: str = ""
    acknowledge: Literal["sync", "async"] = "sync"
    replicas: int | None = None
    stream_bytes: Quantity = STREAM_BYTES
    stream_keep: Quantity | None = None


def read_cluster(document: TomlDocument, given: Any, folder: Path, buses: Sequence[str]) -> ClusterPlan:
    """What the table says. folder: of the file. buses: those of the file; one is expected.

    Raises the document's error naming the place and what was expected.
    """
    table: _Cluster = document.convert(given, _Cluster, "cluster")
    if len(buses) != 1:
        raise document.error(
            "cluster", f"one table [bus.NAME] beside it: a node holds one bus; here are {', '.join(buses)}"
        )
    name = buses[0] if table.name is None else table.name
    for place, value in (("node", table.node), ("name", name)):
        try:
            check_bus_name(value)
        except ValueError as error:
            raise document.error(
                f"cluster.{place}", str(error).replace("bus name", "a name as of a bus, not")
            ) from error
    hosts = [_host(document, server) for server in table.servers]
    if not hosts:
        raise document.error("cluster.servers", 'at least one nats-server, such as "a.example.com:4222"')
    if (table.user is None) != (table.password_file is None):
        raise document.error("cluster.user", "user and password_file, both or none")
    password = None if table.password_file is None else _password(document, folder / table.password_file)
    tls = _tls(document, table, folder)
    if tls is None and not all(is_loopback(host) for host in hosts):
        raise document.error(
            "cluster.servers", "ca, cert and key beside servers of other machines: they are spoken to over TLS only"
        )
    replicas = min(len(hosts), REPLICAS_MAX) if table.replicas is None else table.replicas
    if not 1 <= replicas <= REPLICAS_MAX:
        raise document.error("cluster.replicas", f"1 to {REPLICAS_MAX}, an odd number; got {replicas}")
    try:
        bytes_max = read_bytes(table.stream_bytes)
    except ValueError as error:
        raise document.error("cluster.stream_bytes", str(error)) from error
    if bytes_max < 4 * MESSAGE_BYTES_MAX:
        raise document.error("cluster.stream_bytes", f"at least {4 * MESSAGE_BYTES_MAX} bytes; got {bytes_max}")
    # Beside it a message has room, the rest of one of which a part is kept, and a leader's reserve.
    keep_bytes_max = bytes_max * 9 // 10 - 2 * MESSAGE_BYTES_MAX
    try:
        keep_bytes = min(bytes_max // 2, keep_bytes_max) if table.stream_keep is None else read_bytes(table.stream_keep)
    except ValueError as error:
        raise document.error("cluster.stream_keep", str(error)) from error
    if not 0 < keep_bytes <= keep_bytes_max:
        raise document.error(
            "cluster.stream_keep", "more than nothing, and at most nine tenths of stream_bytes less 2 MiB"
        )
    access = Access(tuple(table.servers), f"{name}/{table.node}", table.user, password, tls)
    stream = StreamSettings.of_cluster(name, replicas, bytes_max, table.acknowledge == "sync", table.stream)
    return ClusterPlan(name, table.node, buses[0], access, stream, table.acknowledge, keep_bytes)


def _host(document: TomlDocument, server: str) -> str:
    match = SERVER.fullmatch(server)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise document.error("cluster.servers", f'HOST:PORT, such as "a.example.com:4222", not {server!r}')
    return match[1].strip("[]")


def _tls(document: TomlDocument, table: _Cluster, folder: Path) -> Tls | None:
    named = {name: value for name in ("ca", "cert", "key") if (value := getattr(table, name)) is not None}
    if not named:
        return None
    for name in ("ca", "cert", "key"):
        if name not in named:
            raise document.error(f"cluster.{next(iter(named))}", f"ca, cert and key together; {name} is missing")
    return Tls(*(folder / named[name] for name in ("ca", "cert", "key")))


def _password(document: TomlDocument, path: Path) -> str:
    try:
        password = path.read_text().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise document.error("cluster.password_file", f"a file that can be read; {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise document.error("cluster.password_file", f"text; {path} is none") from error
    if mode & 0o007:
        raise document.error("cluster.password_file", f"a file for its owner alone: chmod 600 {path}")
    if not password:
        raise document.error("cluster.password_file", f"a password; {path} is empty")
    return password


def server_settings(plan: ClusterPlan, store: Path, route_port: int) -> ServerSettings:
    """What the nats-server of this node's host is to be like. Raises ValueError where the table leaves something open."""
    access = plan.access
    if access.user is None or access.password is None:
        raise ValueError("cluster.user: user and password_file are needed for a server's configuration")
    own, _, port = access.servers[0].rpartition(":")
    hosts = [server.rpartition(":")[0] for server in access.servers]
    return ServerSettings(
        re.sub(r"[^A-Za-z0-9]+", "-", own).strip("-"),
        own if access.tls is None else "0.0.0.0",  # a host's own name may stand for 127.0.1.1
        store,
        (User(plan.name, access.user, access.password, plan.stream.name),),
        port=int(port),
        route_port=route_port,
        peers=tuple(f"{host}:{route_port}" for host in hosts) if len(hosts) > 1 else (),
        store_bytes=2 * plan.stream.bytes_max,
        tls=access.tls,
        synced=plan.stream.synced,
    )
