"""A client of the gateway that does as little as one can: it measures the gateway, not a library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from typing import Any

import psutil

from .workers import BenchFailed

__all__ = ["BareClient", "running_gateway"]

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PATIENCE_S = 60
# One for all clients of a process, for as long as it runs: a new one for each look at a socket costs more than the look.
BUFFER = memoryview(bytearray(256 << 10))


@contextlib.contextmanager
def running_gateway(bus: str) -> Generator[tuple[int, psutil.Process]]:
    """`ringmain gateway` for a bus: its port and its process."""
    command = [sys.executable, "-m", "ringmain.tools", "gateway", bus, "--port", "0", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            if not line.startswith("{"):
                raise BenchFailed(f"the gateway did not start: {line.strip()}")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would wait to be heard
            yield json.loads(line)["port"], psutil.Process(process.pid)
        finally:
            process.kill()


class BareClient:
    """Connected and subscribed. Blocks in `receive`, unless its socket was told not to."""

    def __init__(self, port: int, **subscribe: Any) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = bytearray()
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(HANDSHAKE.format(port=port, key=key).encode())
        while b"\r\n\r\n" not in self._held:
            self._fill()
        head, _, rest = bytes(self._held).partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise BenchFailed(f"the gateway refuses a client: {head.decode()}")
        self._held = bytearray(rest)
        self._send(TEXT, json.dumps({"op": "subscribe", "id": 1, "format": "binary", **subscribe}).encode())
        self.confirmed: dict[str, Any] = {}
        while not self.confirmed:
            self.receive()

    def receive(self) -> list[bytes]:
        """The binary messages that one look at the socket completes. Raises BenchFailed where the gateway says no."""
        self._fill()
        found: list[bytes] = []
        while (frame := self._next_frame()) is not None:
            kind, payload = frame
            if kind == BINARY:
                found.append(payload)
            elif kind == PING:
                self._send(PONG, payload)
            elif kind == CLOSE:
                raise BenchFailed(f"the gateway closed: {payload[2:].decode()}")
            elif not self.confirmed:
                self.confirmed = json.loads(payload)
                if self.confirmed["type"] != "subscribed":
                    raise BenchFailed(f"the gateway does not subscribe: {self.confirmed}")
        return found

    def _fill(self) -> None:
        count = self.socket.recv_into(BUFFER)
        if not count:
            raise BenchFailed("the gateway cut a client off")
        self._held += BUFFER[:count]

    def _next_frame(self) -> tuple[int, bytes] | None:
        held = self._held
        if len(held) < 2:
            return None
        begin, length = 2, held[1]
        if length == 126:
            begin, length = 4, int.from_bytes(held[2:4])
        elif length == 127:
            begin, length = 10, int.from_bytes(held[2:10])
        if len(held) < begin + length:
            return None
        frame = held[0] & 15, bytes(held[begin : begin + length])
        del held[: begin + length]
        return frame

    def _send(self, kind: int, payload: bytes) -> None:
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
        # Masked with zeros: a client must mask.
        self.socket.sendall(bytes([0x80 | kind]) + length + bytes(4) + payload)
