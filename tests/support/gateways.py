"""A gateway in a process of its own, and clients of it as anybody would write them, on the library `websockets`."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
from ringmain.tools.gateway.frames import Frame, decode_rows
from support.services import Service
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

TIMEOUT_S = 30.0


class Gateway(Service):
    """`ringmain gateway …`, ready to be connected to."""

    def __init__(self, *arguments: str, **env: str) -> None:
        super().__init__("gateway", *arguments, **env)
        try:
            self.port: int = self.wait_for("ready")["port"]
        except BaseException:
            self.process.kill()
            self.wait()
            raise

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"


@contextlib.contextmanager
def gateway(*arguments: str, port: int = 0, **env: str) -> Generator[Gateway]:
    running = Gateway(*arguments, "--port", str(port), **env)
    try:
        yield running
    finally:
        running.process.kill()
        running.wait()


def handshake(host: str, more: str = "") -> bytes:
    """The first bytes of a client that uses no library. more: further header lines."""
    key = base64.b64encode(bytes(16)).decode()
    return (
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n{more}\r\n"
    ).encode()


def values(message: dict[str, Any] | Frame, field: str) -> list[Any]:
    """A field of the rows of a message."""
    return message.rows[field].tolist() if isinstance(message, Frame) else [row[field] for row in message["rows"]]


class Client:
    """A client that decodes what it is sent. Messages that a call was not about are kept for the next one."""

    def __init__(self, url: str, **options: Any) -> None:
        self._opened = contextlib.ExitStack()
        opening = connect(url, compression=None, max_size=None, close_timeout=1, **options)
        self.connection: ClientConnection = self._opened.enter_context(opening)
        self.dtypes: dict[int, np.dtype[np.void]] = {}
        self._kept: list[dict[str, Any] | Frame] = []

    def send(self, op: str, **facts: Any) -> None:
        self.connection.send(json.dumps({"op": op, **facts}))

    def receive(self, timeout: float = TIMEOUT_S) -> dict[str, Any] | Frame:
        """The next message, decoded. Raises TimeoutError, and ConnectionClosed."""
        return self._kept.pop(0) if self._kept else self._receive(timeout)

    def _receive(self, timeout: float = TIMEOUT_S) -> dict[str, Any] | Frame:
        message = self.connection.recv(timeout)
        if isinstance(message, bytes):
            return decode_rows(message, self.dtypes[int.from_bytes(message[4:8], "little")])
        decoded = json.loads(message)
        if decoded["type"] == "subscribed":
            self.dtypes[decoded["stream"]] = np.dtype(decoded["dtype"])
        return decoded

    def wait_for(self, *kinds: str, id: int | None = None) -> dict[str, Any]:
        """The next message of one of these types, about that id where one is given."""
        passed: list[dict[str, Any] | Frame] = []
        try:
            while True:
                message = self.receive()
                if isinstance(message, dict) and message["type"] in kinds and id in (None, message.get("id")):
                    return message
                passed.append(message)
        finally:
            self._kept = passed + self._kept

    def subscribe(self, topic: str, id: int = 1, **facts: Any) -> dict[str, Any]:
        """Subscribe, and have the confirmation."""
        answer = self.ask("subscribe", id=id, topic=topic, **facts)
        assert answer["type"] == "subscribed", answer
        return answer

    def ask(self, op: str, **facts: Any) -> dict[str, Any]:
        """Send a message, and have the answer."""
        self.send(op, **facts)
        return self.wait_for("subscribed", "unsubscribed", "pong", "error", "authenticated", id=facts.get("id"))

    def batches(self, stream: int) -> Iterator[dict[str, Any] | Frame]:
        """The messages of rows of a stream, as they come."""
        while True:
            message = self.receive()
            if isinstance(message, Frame):
                assert message.stream == stream, message
                yield message
            else:
                assert (message["type"], message.get("stream")) == ("rows", stream), message
                yield message

    def frames(self, stream: int) -> Iterator[Frame]:
        """The same of a binary stream."""
        for message in self.batches(stream):
            assert isinstance(message, Frame), message
            yield message

    def closed(self) -> tuple[int, str]:
        """Read on until the server closes; code and reason."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                self._receive()
            except ConnectionClosed as closed:
                if closed.rcvd is None:
                    raise AssertionError("the connection broke without a close") from closed
                return closed.rcvd.code, closed.rcvd.reason
        raise AssertionError("the server does not close")

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
