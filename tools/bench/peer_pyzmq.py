"""pyzmq over a Unix socket: push and pull for one subscriber; for several, a publisher told to block rather than drop."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from .peer import RECEIVE_S, Peer, Receive, Send

__all__ = ["Pyzmq"]

QUEUE = 10_000  # items, at either end


class Pyzmq(Peer):
    name, module = "pyzmq", "zmq"
    sleeps_only = True  # its own thread does the work, and polling takes the core from it

    def _socket(self, sending: bool) -> Any:
        library, alone = self.load(), self.subscriber_count == 1
        kinds = (library.PUSH, library.PULL) if alone else (library.XPUB, library.SUB)
        socket = library.Context.instance().socket(kinds[0 if sending else 1])
        self.held.append(socket)
        socket.set_hwm(QUEUE)
        socket.linger = 0
        socket.rcvtimeo = int(RECEIVE_S * 1000)
        address = f"ipc:///tmp/{self.label}"
        if sending:
            if not alone:
                socket.setsockopt(library.XPUB_NODROP, 1)
            socket.bind(address)
        else:
            if not alone:
                socket.subscribe(b"")
            socket.connect(address)
        return socket

    def open_sender(self) -> Send:
        return self._socket(True).send

    def open_receiver(self, index: int) -> Receive:
        receive, nothing = self._socket(False).recv, self.load().Again

        def receive_or_none() -> bytes | None:
            try:
                return receive()
            except nothing:
                return None

        return receive_or_none

    def clean_up(self) -> None:
        with contextlib.suppress(OSError):
            Path(f"/tmp/{self.label}").unlink()
