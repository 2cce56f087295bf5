"""Whether the servers are fit to keep the stream: recent enough, and acknowledging only what is on the disk.

They are asked for their settings by a request that the system account lets ours make (servers.py writes that into their
configuration), so that no port for monitoring need be open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from ...storage.decodable import decodable
from .api import convert
from .connection import Connection
from .servers import SETTINGS_SUBJECT, ServersUnfit, version_fault
from .stream import NoAnswer

__all__ = ["ServerWatch", "check_servers"]

PAYLOAD_BYTES_MIN = (1 << 20) + (1 << 16)
GATHER_S = 1.0
TRIES = 3
INTERVAL_S = 30.0


class _Config(msgspec.Struct, frozen=True):
    sync_always: bool = False


class _JetStream(msgspec.Struct, frozen=True):
    config: _Config | None = None


class _Settings(msgspec.Struct, frozen=True):
    version: str = ""
    max_payload: int = 0
    jetstream: _JetStream | None = None


class _Server(msgspec.Struct, frozen=True):
    name: str = ""


@decodable
class _Answer(msgspec.Struct, frozen=True):
    server: _Server
    data: _Settings


async def check_servers(connection: Connection, names: Sequence[str], synced: bool) -> None:
    """Check every server that answers. names: of those that keep the stream; empty: one server, whatever its name.

    Raises ServersUnfit saying of each server what is wrong, and NoAnswer where none answers.
    """
    answers = await _settings(connection, names)
    if not answers:
        if not synced:
            return
        raise ServersUnfit(
            f"no server tells its settings ({SETTINGS_SUBJECT}), so nobody knows whether an acknowledged message is on a disk: "
            'give the account the import that `ringmain cluster server-config` writes, or choose acknowledge = "async"'
        )
    if faults := _all_faults(answers, synced):
        raise ServersUnfit(faults)


class ServerWatch:
    """Checks them again and again: one may be down at first, or come back with another configuration. Run it beside the node.

    names: asks which keep the stream. told: hears of a change, for the log. fit: whether none that answers has a fault.
    """

    def __init__(
        self,
        connection: Connection,
        names: Callable[[], Awaitable[Sequence[str]]],
        synced: bool,
        told: Callable[[str], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._connection, self._names, self._synced = connection, names, synced
        self._told, self._interval_s = told, interval_s
        self._faults = ""

    @property
    def fit(self) -> bool:
        return not self._faults

    @property
    def words(self) -> str:
        """What comes of their faults; "" if they have none."""
        return f"nothing is replicated: {self._faults}" if self._faults else ""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s if self.fit else self._interval_s / 10)
            with contextlib.suppress(NoAnswer):
                await self._look()

    async def _look(self) -> None:
        answers = await _settings(self._connection, await self._names())
        faults = _all_faults(answers, self._synced)
        if answers and faults != self._faults:  # silence says nothing
            self._faults = faults
            self._told(self.words or "the servers are fit again")


async def _settings(connection: Connection, names: Sequence[str]) -> dict[str, _Settings]:
    found: dict[str, _Settings] = {}
    enough = len(names) or 1
    for attempt in range(TRIES):
        try:  # the first answers are often all; else others are among them, or one is down
            answers = await connection.gather(SETTINGS_SUBJECT, b"", GATHER_S, 1000 if attempt else enough)
        except NoAnswer:
            continue
        for answer in answers:
            with contextlib.suppress(NoAnswer):
                one = convert(answer, _Answer)
                if not names or one.server.name in names:
                    found[one.server.name] = one.data
        if len(found) >= enough:
            break
    return found


def _all_faults(answers: Mapping[str, _Settings], synced: bool) -> str:
    return "; ".join(f"{name}: {fault}" for name, found in sorted(answers.items()) for fault in _faults(found, synced))


def _faults(found: _Settings, synced: bool) -> list[str]:
    faults: list[str] = []
    if fault := version_fault(found.version):
        faults.append(fault)
    config = None if found.jetstream is None else found.jetstream.config
    if config is None:
        faults.append("it has no jetstream block")
    elif synced and not config.sync_always:
        faults.append(
            "it acknowledges messages minutes before it syncs them: its jetstream block needs `sync_interval: always` "
            '(or choose acknowledge = "async")'
        )
    if found.max_payload < PAYLOAD_BYTES_MIN:
        faults.append(f"max_payload {found.max_payload} is too small: `max_payload: 2MB`")
    return faults
