"""Servers with TLS on all sides: who has a certificate of the authority gets in, and who has not learns why."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.nats_servers import TIMEOUT_S, Servers, nats_servers, why_refused

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
pytest.importorskip("cryptography", reason="the cluster needs `pip install ringmain[cluster]`")
from ringmain.bus.cluster.certificates import make_authority, make_certificate
from ringmain.bus.cluster.jetstream import JetStream
from ringmain.bus.cluster.stream import Stored

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def secured() -> Iterator[Servers]:
    with nats_servers(3, tls=True) as servers:
        yield servers


def test_servers_and_nodes_speak_tls_with_certificates_on_both_sides(secured: Servers) -> None:
    async def scenario() -> None:
        streams = [await JetStream.open(secured.access("c0", number), secured.stream("c0")) for number in range(3)]
        assert {stream.connection.server for stream in streams} <= set(secured.addresses)
        assert await streams[0].append(b"one", 0, "n-1-1") == 1  # three replicas: the routes work too
        for stream in streams:
            assert await stream.read(1) == [Stored(1, b"one")]
            await stream.close()

    asyncio.run(scenario())


def test_without_a_certificate_of_the_authority_nobody_gets_in(secured: Servers, tmp_path: Path) -> None:
    make_authority(tmp_path)
    stranger = make_certificate(tmp_path, ["x.example.com"])
    good = secured.access("c1")
    assert good.tls is not None
    mixed = replace(stranger, ca=good.tls.ca)  # trusts them, and is not trusted

    async def scenario() -> None:
        assert "does it expect TLS?" in await why_refused(replace(good, tls=None))
        assert "its certificate is not good: " in await why_refused(replace(good, tls=stranger))
        assert secured.addresses[0] in await why_refused(replace(good, tls=mixed))
        assert "refuses this user or password" in await why_refused(replace(good, password="guessed"))

    asyncio.run(scenario())
    assert all("ringmain-c1" not in secured.log(number) for number in range(3))  # no stream was made


def test_a_server_under_another_name_than_its_certificate_s_is_not_believed(secured: Servers) -> None:
    async def scenario() -> None:
        # Its neighbour's address leads to it as well, so to say.
        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ours, theirs = await asyncio.open_connection(secured.hosts[0], 4222)
            await asyncio.gather(_copy(reader, theirs), _copy(ours, writer))

        host = secured.hosts[0].rpartition(".")[0] + ".77"
        proxy = await asyncio.start_server(pass_on, host, 4222)
        async with proxy:
            words = await why_refused(replace(secured.access("c1"), servers=(f"{host}:4222",)))
        assert f"IP address mismatch, certificate is not valid for '{host}'" in words

    asyncio.run(scenario())


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


def test_a_password_is_not_told_to_whoever_greets_in_the_clear(secured: Servers) -> None:
    heard: list[bytes] = []
    host = secured.hosts[0].rpartition(".")[0] + ".78"
    greeting = (
        b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true,"auth_required":true}\r\n'
    )

    def pretend(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(greeting)
                    while data := peer.recv(1 << 16):
                        heard.append(data)

    with socket.create_server((host, 4222)) as listener:
        thread = threading.Thread(target=pretend, args=(listener,), daemon=True)
        thread.start()
        access = replace(secured.access("c1"), servers=(f"{host}:4222",))
        words = asyncio.run(why_refused(access))
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(TIMEOUT_S)
    assert "its tls block needs `handshake_first: true`" in words
    assert heard
    assert not any(b"CONNECT" in data or b"user" in data for data in heard)
