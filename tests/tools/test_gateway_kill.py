"""Writers and gateways that are killed and started again: a client that resumes misses no row and sees none twice.

RINGMAIN_SEED chooses another run (it is printed); RINGMAIN_NIGHTLY makes it 100 rounds of each.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus import Writer, attach
from ringmain.storage import Schema
from ringmain.tools.gateway.frames import Frame
from support.children import Child, Children
from support.gateways import TIMEOUT_S, Client, gateway, values
from support.logs import POINTS, make_rows
from websockets.exceptions import ConnectionClosed, InvalidHandshake

SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
ROUNDS = 100 if os.environ.get("RINGMAIN_NIGHTLY") else 3
pytestmark = [pytest.mark.process, pytest.mark.timeout(180 + 10 * ROUNDS)]

# Publishes what tells its own sequence, at a few thousand rows a second, until it is told to stop or killed.
PUBLISH = """if True:
    stop, opened = threading.Event(), threading.Event()
    def publish():
        with Writer(bus, [POINTS], data_dir=data_dir, slots=1024) as writer:
            topic = writer["points"]
            opened.set()
            while not stop.wait(0.005):
                topic.publish_batch(make_rows(POINTS, topic.watermarks.published + 1, 20))
    thread = threading.Thread(target=publish)
    thread.start()
    assert opened.wait(30.0)
"""


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def publisher(children: Children, bus: str, data_dir: Path | None) -> Child:
    child = children.start()
    child.run(PUBLISH, bus=bus, data_dir=data_dir)
    return child


class Resuming:
    """A client that comes again whenever it is cut off, and checks that its rows are the stream, each once."""

    def __init__(self, topic: str, port: int, **wishes: Any) -> None:
        self.position = 0
        self._topic, self._url, self._wishes = topic, f"ws://127.0.0.1:{port}/ws", wishes
        self._client: Client | None = None
        self.connect_count = 0

    def read_to(self, sequence: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while self.position < sequence:
            assert time.monotonic() < deadline, f"at {self.position}, and {sequence} does not come"
            try:
                self._read(self._client or self._connect())
            except (ConnectionClosed, OSError, InvalidHandshake, EOFError, TimeoutError):
                self.close()
                time.sleep(0.05)

    def _connect(self) -> Client:
        client = self._client = Client(self._url, open_timeout=2)
        wishes = {"id": 1, "topic": self._topic, "format": "binary", "from": self.position + 1} | self._wishes
        answer = client.ask("subscribe", **wishes)
        if answer["type"] != "subscribed":  # its writer is being started again
            raise ConnectionError(answer["reason"])
        assert answer["sequence"] == self.position
        self.connect_count += 1
        return client

    def _read(self, client: Client) -> None:
        message = client.receive(1.0)
        if isinstance(message, dict):
            assert message["type"] == "rows", message
        first = message.first if isinstance(message, Frame) else message["first"]
        last = message.last if isinstance(message, Frame) else message["last"]
        assert first == self.position + 1, "a gap or a repeat"
        count = last - self.position
        expected = make_rows(POINTS, first, count)
        assert values(message, "sequence") == list(range(first, last + 1))
        assert values(message, "value") == expected["value"].tolist()
        self.position = last

    def close(self) -> None:
        if self._client is not None:
            with contextlib.suppress(OSError):
                self._client.close()
            self._client = None


def newest(bus: str) -> int:
    return attach(f"{bus}/points").watermarks().published


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("wishes", [{}, {"mode": "delayed", "interval": 0.05}], ids=["real-time", "delayed"])
def test_a_gateway_that_is_killed_costs_its_clients_no_row_and_repeats_none(children, bus_name, tmp_path, wishes):
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    publisher(children, bus_name, tmp_path / "data")
    port = free_port()
    client = Resuming(f"{bus_name}/points", port, **wishes)
    try:
        for _ in range(ROUNDS):
            with gateway(bus_name, port=port):  # it is killed at the end
                client.read_to(newest(bus_name) + choice.randrange(1, 1000))
        assert client.connect_count >= ROUNDS
    finally:
        client.close()


def test_a_writer_that_is_killed_costs_the_clients_no_row_and_repeats_none(children, bus_name, tmp_path):
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    writer = publisher(children, bus_name, tmp_path / "data")
    with gateway(bus_name) as running:
        clients = [
            Resuming(f"{bus_name}/points", running.port),
            Resuming(f"{bus_name}/points", running.port, mode="delayed", interval=0.05, format="json"),
        ]
        try:
            for _ in range(ROUNDS):
                for client in clients:
                    client.read_to(newest(bus_name) + choice.randrange(1, 500))
                writer.kill()
                writer = publisher(children, bus_name, tmp_path / "data")
            for client in clients:
                client.read_to(newest(bus_name) + 100)
                assert client.connect_count == 1, "the connection outlives the writer"
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize("wishes", [{}, {"mode": "delayed", "interval": 0.05}], ids=["real-time", "delayed"])
def test_where_there_is_no_log_a_stream_that_begins_again_is_told_as_a_reset(bus_name, wishes):
    with gateway(bus_name) as running, Client(running.url) as client:
        with Writer(bus_name, [POINTS]) as writer:
            writer["points"].publish_batch(make_rows(POINTS, 1, 50))
            subscribed = client.subscribe(f"{bus_name}/points", **{"from": 1}, **wishes)
            assert subscribed["log"] is None
            assert values(next(client.batches(subscribed["stream"])), "sequence") == list(range(1, 51))
        with Writer(bus_name, [POINTS]) as another:
            another["points"].publish_batch(make_rows(POINTS, 1, 3))
            reset = client.wait_for("reset")
            assert (reset["stream"], reset["sequence"]) == (subscribed["stream"], 0)
            assert values(next(client.batches(subscribed["stream"])), "sequence")[0] == 1


def test_a_writer_with_another_schema_ends_the_subscription_and_a_new_one_has_the_new_schema(children, bus_name):
    with gateway(bus_name) as running, Client(running.url) as client:
        with Writer(bus_name, [POINTS]):
            client.subscribe(f"{bus_name}/points")
        wider = Schema("points", {"value": "u8", "more": "u4"})
        with Writer(bus_name, [wider]) as another:
            ended = client.wait_for("unsubscribed")
            assert ended["id"] == 1
            assert "another schema" in ended["reason"]
            subscribed = client.subscribe(f"{bus_name}/points")
            assert subscribed["dtype"]["names"] == ["sequence", "timestamp_ns", "value", "more"]
            another["points"].publish(7, 8)
            assert values(next(client.batches(subscribed["stream"])), "more") == [8]


def test_after_a_writer_has_closed_its_clients_wait_for_the_next_one(bus_name, tmp_path):
    with gateway(bus_name) as running, Client(running.url) as client:
        with Writer(bus_name, [POINTS], data_dir=tmp_path / "data") as writer:
            stream = client.subscribe(f"{bus_name}/points")["stream"]
            writer["points"].publish_batch(make_rows(POINTS, 1, 3))
        with Writer(bus_name, [POINTS], data_dir=tmp_path / "data") as writer:
            writer["points"].publish_batch(make_rows(POINTS, 4, 3))
            found: list[int] = []
            for message in client.batches(stream):
                found += values(message, "sequence")
                if found[-1] == 6:
                    break
        assert found == [1, 2, 3, 4, 5, 6]
