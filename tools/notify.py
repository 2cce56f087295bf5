"""Telling systemd how a service is, by datagrams to the socket it names: see sd_notify(3). Nothing happens where none is named."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Sends to $NOTIFY_SOCKET. watchdog_s: how often systemd wants to hear that all is well, or None."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = f"\0{self._address[1:]}"  # in the abstract name space
        self._fed_at = 0.0
        asked = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(asked) / 2e6 if asked.isdecimal() and int(asked) and mine else None

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def feed(self) -> None:
        """Tell that all is well, if systemd wants to hear it again. Call it several times a second."""
        now = time.monotonic()
        if self.watchdog_s is not None and now - self._fed_at >= self.watchdog_s / 2:
            self._fed_at = now
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.sendto(text.encode(), self._address)
            except OSError:  # whoever asked has gone: no reason to stop
                return
