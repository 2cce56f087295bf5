"""Clients that do not read: they slow nobody else, and get what they asked for where they are too slow. And very many clients."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.bus import Writer
from ringmain.storage import Schema
from ringmain.tools.bench.gateway_client import BareClient
from ringmain.tools.exit_codes import OK
from ringmain.tools.gateway.frames import Frame, decode_rows
from support.gateways import TIMEOUT_S, Client, Gateway
from support.logs import wait_until

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
CLIENTS = 1000 if NIGHTLY else 200
pytestmark = [pytest.mark.process, pytest.mark.timeout(600 if NIGHTLY else 180)]

WIDE = Schema("wide", {"key": "u4", "number": "u8", "rest": "S1000"}, key=("key",))
KEYS = 10
QUEUE_BYTES = 1 << 20
ENOUGH = 30_000  # rows: 31 MB, far more than queue, kernel and library hold of a client that does not read


class Place:
    def __init__(self, folder: Path, bus: str) -> None:
        config = folder / "ringmain.toml"
        config.write_text(
            f'[bus.{bus}]\nschemas = "schemas.toml"\n[gateway]\nport = 0\nqueue_bytes = {QUEUE_BYTES}\n'
            'stall_time = "4 s"\ndrain_time = "2 s"\n'
        )
        (folder / "schemas.toml").write_text('[topics.wide.fields]\nkey = "u4"\nnumber = "u8"\nrest = "S1000"\n')
        self.topic = f"{bus}/wide"
        self.writer = Writer(bus, [WIDE], slots=4096, data_dir=folder / "data", retention_bytes=64 << 20)
        self.gateway = Gateway("--config", str(config))

    def publish(self, count: int) -> int:
        """Publish rows whose numbers are their sequences; the last."""
        last = self.writer["wide"].watermarks.published
        for _ in range(0, count, 100):
            rows = np.zeros(min(100, count), WIDE.payload_dtype)
            rows["number"] = np.arange(last + 1, last + 1 + len(rows))
            rows["key"], rows["rest"] = rows["number"] % KEYS, b"x" * 1000
            last = self.writer["wide"].publish_batch(rows)
        return last

    def slow_client(self, **options: Any) -> Client:
        """A client that reads only when it is told to, with little room in its socket."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        raw.connect(("127.0.0.1", self.gateway.port))
        return Client(self.gateway.url, sock=raw, max_queue=2, **options)

    def metrics(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.gateway.port}/metrics", timeout=TIMEOUT_S) as answer:
            return json.load(answer)

    def close(self) -> None:
        self.gateway.process.kill()
        self.gateway.wait()
        self.writer.close()


@pytest.fixture
def place(tmp_path: Path, bus_name: str) -> Iterator[Place]:
    place = Place(tmp_path, bus_name)
    try:
        yield place
    finally:
        place.close()


def read_all(client: Client, stream: int, first: int, last: int) -> None:
    """Read rows `first` to `last`: each must come, once."""
    expected = first
    for frame in client.batches(stream):
        assert isinstance(frame, Frame)
        assert (frame.first, frame.lost, frame.conflated) == (expected, 0, False)
        assert frame.rows["number"].tolist() == list(range(expected, frame.last + 1))
        expected = frame.last + 1
        if expected > last:
            return


def test_who_stops_reading_is_disconnected_and_the_others_get_every_row(place):
    with Client(place.gateway.url) as good, place.slow_client() as slow:
        stream = good.subscribe(place.topic, format="binary")["stream"]
        slow.subscribe(place.topic, format="binary")
        reading = threading.Thread(target=read_all, args=(good, stream, 1, ENOUGH))
        reading.start()
        while place.writer["wide"].watermarks.published < ENOUGH:
            place.publish(100)
            time.sleep(0.002)  # at a pace that a client that reads can keep
        reading.join(TIMEOUT_S)
        assert not reading.is_alive()
        told = place.gateway.wait_for("disconnected", code=4408)
        assert told["reason"] == "subscription 1: the queue is full, and no conflation was asked for"
        wait_until(lambda: place.metrics()["connections"] == 1, TIMEOUT_S)
        assert place.metrics()["endings"]["4408"] == 1


@pytest.mark.parametrize("slow", [{"conflate": ["key"]}, {"newest": 50}], ids=["conflate", "newest"])
def test_who_stops_reading_and_goes_on_gets_the_newest_rows_and_then_all(place, slow):
    with place.slow_client() as client:
        stream = client.subscribe(place.topic, format="binary", slow=slow)["stream"]
        last = place.publish(ENOUGH)
        wait_until(lambda: place.metrics()["streams"][0]["position"] == last, TIMEOUT_S)
        assert place.metrics()["fill_max"] <= 1
        position, conflated = 0, list[Frame]()
        for frame in client.batches(stream):
            assert isinstance(frame, Frame)
            assert (frame.first, frame.lost) == (position + 1, 0)
            position = frame.last
            if frame.conflated:
                conflated.append(frame)
                newest = KEYS if "conflate" in slow else 50
                assert frame.rows["number"].tolist() == list(range(position - newest + 1, position + 1))
            else:
                assert frame.rows["number"].tolist() == list(range(frame.first, position + 1))
            if position == last:
                break
        assert conflated
        read = place.publish(300)
        read_all(client, stream, last + 1, read)


def test_who_reads_history_slowly_gets_all_of_it_and_holds_no_more_than_its_queue(place):
    last = place.publish(ENOUGH)
    with place.slow_client() as slow, Client(place.gateway.url) as good:
        slow_stream = slow.subscribe(place.topic, format="binary", **{"from": 1})["stream"]
        good_stream = good.subscribe(place.topic, format="binary", **{"from": 1})["stream"]
        read_all(good, good_stream, 1, last)  # while the other one reads nothing
        assert place.metrics()["fill_max"] <= 1
        read_all(slow, slow_stream, 1, last)
        place.publish(100)
        read_all(slow, slow_stream, last + 1, last + 100)


def test_who_takes_nothing_for_long_is_cut_off(place):
    with place.slow_client() as client:
        client.subscribe(place.topic, format="binary", slow={"newest": 10})
        place.publish(ENOUGH)
        place.gateway.wait_for("disconnected", reason="the connection was lost")
        wait_until(lambda: place.metrics()["connections"] == 0, TIMEOUT_S)


def test_when_it_stops_clients_get_what_waits_for_them_and_are_told(place):
    with Client(place.gateway.url) as good, place.slow_client() as stuck:
        stream = good.subscribe(place.topic, format="binary")["stream"]
        stuck.subscribe(place.topic, format="binary", slow={"newest": 10})
        last = place.publish(500)
        wait_until(lambda: place.metrics()["streams"][0]["position"] == last, TIMEOUT_S)
        place.gateway.process.send_signal(signal.SIGTERM)
        read_all(good, stream, 1, last)
        assert good.closed() == (1001, "the gateway is stopping")
        assert place.gateway.wait() == OK  # although one client reads nothing
    assert [line["event"] for line in place.gateway.lines][-1] == "stopped"
    assert not place.gateway.rest


def test_very_many_clients_each_get_every_row(place):
    place.gateway.process.kill()
    place.gateway.wait()
    place.gateway = Gateway(place.writer.bus, "--port", "0")
    clients = [
        BareClient(place.gateway.port, topic=place.topic, mode="delayed", interval=0.05, fields=["number"])
        for _ in range(CLIENTS)
    ]
    try:
        assert len({client.confirmed["stream"] for client in clients}) == 1
        dtype = np.dtype(clients[0].confirmed["dtype"])
        last = place.publish(100)
        positions = dict.fromkeys(clients, 0)
        with selectors.DefaultSelector() as selector:
            for client in clients:
                selector.register(client.socket, selectors.EVENT_READ, client)
            deadline = time.monotonic() + 60
            while min(positions.values()) < last + 500:
                assert time.monotonic() < deadline, sorted(set(positions.values()))
                if place.writer["wide"].watermarks.published < last + 500 and min(positions.values()) >= last:
                    place.publish(500)
                for key, _ in selector.select(1):
                    client: BareClient = key.data
                    for message in client.receive():
                        frame = decode_rows(message, dtype)
                        assert frame.rows["number"].tolist() == list(range(positions[client] + 1, frame.last + 1))
                        positions[client] = frame.last
        (stream,) = place.metrics()["streams"]
        assert stream["subscriptions"] == CLIENTS
    finally:
        for client in clients:
            client.socket.close()
    wait_until(lambda: place.metrics()["connections"] == 0, TIMEOUT_S)
