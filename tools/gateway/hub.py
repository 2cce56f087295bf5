"""All sources and streams of a gateway: identical wishes find the same one, and what nobody wants any more is closed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from ...bus import attach
from ...subscribers import Delayed, RealTime, Subscriber
from .past import Past
from .requests import Subscribe
from .source import Source
from .stream import Stream

__all__ = ["Busy", "Hub"]

SOURCES_MAX = 64  # each is a thread, and an entry in its topic's reader table
BATCH_BYTES = 256 << 10  # most that a source hands to the event loop at once
DELAYED_S = 0.1
_Way: TypeAlias = tuple[str, float | None, tuple[str, ...]]


class Busy(Exception):
    """The gateway reads as many topics, in as many ways, as it can."""


@dataclass(slots=True)
class _Opened:
    """A source that somebody wants. opening: its task. users: who is about to use it, or does."""

    opening: asyncio.Task[Source]
    users: int = 0
    streams: dict[bytes, Stream] = field(default_factory=dict[bytes, Stream])

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come: whoever wants it now begins afresh."""
        done = self.opening.done() and not self.opening.cancelled() and self.opening.exception() is None
        return done and bool(self.opening.result().ended)


class Hub:
    """Lives in the event loop."""

    def __init__(self, past: Past) -> None:
        self._past = past
        self._opened: dict[_Way, _Opened] = {}
        self._numbers = itertools.count(1)

    @property
    def streams(self) -> Iterable[Stream]:
        return [stream for opened in self._opened.values() for stream in opened.streams.values()]

    @asynccontextmanager
    async def stream(self, request: Subscribe) -> AsyncGenerator[Stream]:
        """The stream that serves a request, for as long as it is wanted.

        Raises Busy, what opening a reader raises, and ValueError naming what the topic cannot serve.
        """
        interval = (request.interval or DELAYED_S) if request.mode == "delayed" else None
        way = (request.topic, interval, tuple(request.conflate or ()))
        opened = self._opened.get(way)
        if opened is None or opened.has_ended:
            if len(self._opened) >= SOURCES_MAX:
                raise Busy(f"{SOURCES_MAX} topics and intervals are being read; no more are")
            opened = self._opened[way] = _Opened(asyncio.create_task(self._open(way)))
        opened.users += 1
        wish = _wish(request)
        try:
            source = await asyncio.shield(opened.opening)
            stream = opened.streams.get(wish)
            if stream is None or stream.ended:
                stream = Stream(next(self._numbers), source, request)
                opened.streams[wish] = stream
                source.takers.add(stream)
            stream.users += 1
            try:
                yield stream
            finally:
                stream.users -= 1
                if not stream.users:
                    source.takers.discard(stream)
                    if opened.streams.get(wish) is stream:
                        del opened.streams[wish]
        finally:
            opened.users -= 1
            if not opened.users:
                if self._opened.get(way) is opened:
                    del self._opened[way]
                opened.opening.add_done_callback(_close)

    async def _open(self, way: _Way) -> Source:
        address, interval, conflate = way
        reader = await self._past.run(_open_reader, address, interval, conflate)
        return Source(address, reader, asyncio.get_running_loop())


def _open_reader(address: str, interval: float | None, conflate: tuple[str, ...]) -> Subscriber:
    rows_max = max(1, BATCH_BYTES // attach(address).schema.row_bytes)
    if interval is None:
        return RealTime(address, reopen=True, name="ringmain gateway", batch_rows=rows_max)
    try:
        if conflate:
            return Delayed(address, interval, last=conflate, reopen=True, name="ringmain gateway")
        return Delayed(address, interval, rows=rows_max, reopen=True, name="ringmain gateway")
    except ValueError as error:
        raise ValueError(str(error).replace("last:", "conflate:", 1)) from None


def _close(opening: asyncio.Task[Source]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _wish(request: Subscribe) -> bytes:
    """Equal for requests that the same stream serves."""
    chosen = {name: sorted(values, key=repr) for name, values in request.key.items()}
    return msgspec.json.encode(
        (request.fields, chosen, sorted(request.where, key=repr), request.format), order="sorted"
    )
