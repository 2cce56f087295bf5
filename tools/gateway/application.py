"""The gateway as an ASGI application: who may connect, and where to look at it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..service_log import event
from .connection import CONNECTION
from .hub import Hub
from .limits import Connections, Refused
from .past import Past
from .session import GOING_AWAY, NORMAL, Ending, Event, Receive, Send, Session
from .settings import GatewaySettings
from .stream import facts
from .tokens import ANYBODY, Token, find_token, token_of

__all__ = ["Application"]

PROTOCOL = "ringmain.1"


class Application:
    """`await application(scope, receive, send)`, as an ASGI server calls it, in one event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._past = Past()
        self._hub = Hub(self._past)
        self._connections = Connections(settings)
        self._sessions = set[Session]()
        self._nobody_left = asyncio.Event()
        self._nobody_left.set()
        self._stopping = False
        self._served_count = 0  # connections that have ended
        self._sent_count = self._sent_bytes = 0  # by those
        self._endings = dict[int, int]()
        self._started = time.monotonic()

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._connect(scope, receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, send)

    async def stop(self) -> None:
        """Take no more clients, and part from those that are there: each is sent what waits for it, in time, and 1001."""
        self._stopping = True
        for session in tuple(self._sessions):
            session.end(Ending(GOING_AWAY, "the gateway is stopping", drain=True))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s + 3):
                await self._nobody_left.wait()
        self._past.close()

    # --- clients ----------------------------------------------------------------------------------------------------

    async def _connect(self, scope: Event, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        address = scope["client"][0] if scope.get("client") else ""
        try:
            with contextlib.ExitStack() as places:

                def count(token: Token) -> None:
                    places.enter_context(self._connections.place_of_token(token.name))

                token = self._admit(scope, address, places)
                if token is not None:
                    count(token)
                connection = scope["state"][CONNECTION]
                session = Session(receive, connection, self._settings, self._hub, self._past, token, count)
                chosen = PROTOCOL if PROTOCOL in scope["subprotocols"] else None
                await send({"type": "websocket.accept", "subprotocol": chosen})
                await self._serve(session, address)
        except Refused as refused:
            event("refused", level=logging.WARNING, address=address, status=refused.status, reason=str(refused))
            await _answer(send, refused.status, {"error": str(refused)}, prefix="websocket.http.response")

    def _admit(self, scope: Event, address: str, places: contextlib.ExitStack) -> Token | None:
        """The token that the handshake shows; None where one must be shown later. Raises Refused."""
        headers = _headers(scope)
        if self._stopping:
            raise Refused(503, "the gateway is stopping")
        if scope["path"] != "/ws":
            raise Refused(404, "nothing is here; clients connect to /ws")
        places.enter_context(self._connections.place(address))
        try:
            welcome = self._is_welcome(headers.get("origin"), headers.get("host", ""))
        except ValueError:  # one of them is none
            welcome = False
        if not welcome:
            raise Refused(403, "pages of this origin may not connect")
        if not self._settings.tokens:
            return ANYBODY
        shown = token_of(headers.get("authorization", ""), scope["subprotocols"])
        return None if shown is None else self._known(shown)

    def _known(self, shown: str) -> Token:
        token = find_token(self._settings.tokens, shown)
        if token is None:
            raise Refused(401, "this token is not known")
        return token

    def _is_welcome(self, origin: str | None, host: str) -> bool:
        """Whether a page of that origin may connect. Programs have none, and may; a browser names it in every handshake.

        Without tokens a page's host must be an address or localhost: a foreign page could have its own name mean ours.
        """
        if origin is None or origin in self._settings.origins:
            return True
        if not self._settings.tokens and not _is_literal(urlsplit(f"//{host}").hostname or ""):
            return False
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc == host

    async def _serve(self, session: Session, address: str) -> None:
        started = time.monotonic()
        self._sessions.add(session)
        self._nobody_left.clear()
        event("connected", address=address, token=session.token.name if session.token is not None else None)
        ending = Ending(NORMAL, "")
        try:
            ending = await session.run()
        finally:
            self._sessions.discard(session)
            if not self._sessions:
                self._nobody_left.set()
            self._served_count += 1
            self._endings[ending.code] = self._endings.get(ending.code, 0) + 1
            self._sent_count += session.outbox.sent_count
            self._sent_bytes += session.outbox.sent_bytes
            event(
                "disconnected",
                level=logging.INFO if ending.code in (NORMAL, GOING_AWAY) else logging.WARNING,
                address=address,
                token=session.token.name if session.token is not None else None,
                code=ending.code,
                reason=ending.reason,
                messages=session.outbox.sent_count,
                bytes=session.outbox.sent_bytes,
                seconds=round(time.monotonic() - started, 3),
            )

    # --- looking at it ----------------------------------------------------------------------------------------------

    async def _respond(self, scope: Event, send: Send) -> None:
        if scope["path"] == "/health":
            state = "stopping" if self._stopping else "healthy"
            await _answer(send, 503 if self._stopping else 200, {"state": state})
        elif scope["path"] != "/metrics":
            await _answer(send, 404, {"error": "nothing is here; there are /ws, /health and /metrics"})
        else:
            try:
                if self._settings.tokens:
                    self._known(token_of(_headers(scope).get("authorization", ""), ()) or "")
            except Refused as refused:
                await _answer(send, refused.status, {"error": str(refused)})
            else:
                await _answer(send, 200, self._metrics())

    def _metrics(self) -> dict[str, Any]:
        boxes = [session.outbox for session in self._sessions]
        return {
            "seconds": round(time.monotonic() - self._started, 3),
            "connections": self._connections.count,
            "connections_ended": self._served_count,
            "endings": {str(code): count for code, count in sorted(self._endings.items())},
            "messages_sent": self._sent_count + sum(box.sent_count for box in boxes),
            "bytes_sent": self._sent_bytes + sum(box.sent_bytes for box in boxes),
            "fill_max": round(max((box.fill for box in boxes), default=0.0), 3),
            "streams": [facts(stream) for stream in self._hub.streams],
        }


def _headers(scope: Event) -> Mapping[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _is_literal(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, content: object, prefix: str = "http.response") -> None:
    body = msgspec.json.encode(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})
