"""The gateway's process: a socket, uvicorn around the application, and an end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, cast

import uvicorn
import uvloop
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..service_log import LOGGER, event
from .application import Application
from .connection import Connection
from .settings import GatewaySettings, readable

__all__ = ["run_gateway"]

SPARE_FILES = 256  # file descriptors beside the connections'
SPARE_CONNECTIONS = 100  # beside the clients': that are being refused, or ask for /health
PING_S = 20.0  # that an answer to a ping may take at least
BACKLOG = 1024
UNSENT_BYTES = 256 << 10
# What uvicorn logs as errors, and is none: a handshake refused with a status, and a client's mistake. We log both by ourselves.
NO_NEWS = ("ASGI callable returned without completing handshake", "Invalid UTF-8 sequence received")


def run_gateway(settings: GatewaySettings, on_ready: Callable[[int], None], *, until_eof: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C. on_ready: called with the port once clients can connect. Raises OSError naming what failed.

    until_eof: or until standard input ends, which it does when whoever started this process has ended.
    """
    _allow_files(settings.connections_max + SPARE_FILES)
    for name in ("uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(name).handlers[:] = LOGGER.handlers
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addFilter(_is_news)
    with _listen(settings) as listener:
        uvloop.run(_serve(settings, listener, on_ready, until_eof))


async def _serve(
    settings: GatewaySettings, listener: socket.socket, on_ready: Callable[[int], None], until_eof: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        loop.add_reader(sys.stdin.fileno(), _on_input, loop, stop)
    application = Application(settings)
    server = _Server(_configure(settings, application), lambda: on_ready(listener.getsockname()[1]))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    event("stopping")
    await application.stop()
    server.should_exit = True
    await serving


def _configure(settings: GatewaySettings, application: Application) -> uvicorn.Config:
    """The server's settings, its certificate loaded. Raises OSError naming the files, which OpenSSL does not."""
    for path in (settings.cert, settings.key):
        if path is not None:
            readable(path)
    of_messages = {"messages_per_s": settings.messages_per_s, "messages_burst": settings.messages_burst}
    config = uvicorn.Config(
        application,
        http=_FirmHttp,
        ws=cast("type[Connection]", partial(Connection, **of_messages)),
        ws_max_size=settings.message_bytes_max,
        ws_ping_timeout=max(PING_S, settings.stall_s),
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=settings.cert,
        ssl_keyfile=settings.key,
        timeout_keep_alive=math.ceil(settings.authenticate_s),
        limit_concurrency=settings.connections_max + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    try:
        config.load()
    except OSError as error:
        raise OSError(f"{settings.cert}, {settings.key}: a certificate and its key are expected, in PEM") from error
    return config


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NO_NEWS)


def _on_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        stop.set()


class _Server(uvicorn.Server):
    """Leaves signals to us: clients are parted from before it ends. on_serving: called once clients can connect."""

    def __init__(self, config: uvicorn.Config, on_serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_serving = on_serving

    async def main_loop(self) -> None:
        self._on_serving()
        await super().main_loop()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _FirmHttp(H11Protocol):
    """Waits for each request for a while only, whatever comes of it meanwhile: half a request would hold a connection for ever.

    Those connections are no clients yet, and nobody counts them: more than there may be are cut off at once.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._overdue = self.loop.call_later(self.timeout_keep_alive, self._cut_off)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self.transport.abort()

    def _cut_off(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self.transport.abort()

    def on_response_complete(self) -> None:
        self._overdue.cancel()
        self._overdue = self.loop.call_later(self.timeout_keep_alive, self._cut_off)
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._overdue.cancel()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._overdue.cancel()
        super().connection_lost(exc)


def _listen(settings: GatewaySettings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise OSError(f"host {settings.host}: {error.strerror}") from error
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    # Connections inherit both. The kernel keeps little that was not sent yet, so that a slow client's rows wait here, where newer
    # ones may take their place; and it cuts off who takes nothing for so long, whatever state the connection is in.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.stall_s * 1000))
    return listener


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < count:
        event("fewer files may be open than connections are allowed", level=logging.WARNING, files=wanted)
