"""The exchange day from three publishers through lanes, writer and a consumer killed in mid-day: the book is found all the same.

A subscriber, a group of three and a client of the gateway read it, and all get the same rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sse_day
from exchange_day import TOPICS, rows_of
from ringmain.storage import SHIPPED, Schema
from ringmain.tools.gateway.frames import Frame
from sse_day import Day, load_day
from support.children import Children
from support.days import Following, check_book
from support.gateways import Client, gateway
from support.services import serving

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]
TIMEOUT_S = 60.0
BATCH_ROWS = 200
EXAMPLES = str(Path(sse_day.__file__).parent)

PUBLISH = """if True:
    sys.path.insert(0, examples)
    from pathlib import Path
    from ringmain.bus import open_lane
    from sse_day import load_day
    rows = getattr(load_day(Path(root)), topic)
    with open_lane(f"{bus}/{topic}", open_timeout=30.0) as lane:
        begin = time.monotonic()
        for first in range(0, len(rows), step):
            lane.publish_batch(rows[first : first + step])
            time.sleep(max(0.0, begin + seconds * first / len(rows) - time.monotonic()))
        lane.wait(len(rows), "durable", 60.0)
"""

# What a member has written down it acknowledges, and not before. It ends when all of the topics is settled.
SHARE = """if True:
    from pathlib import Path
    from ringmain.subscribers import Acknowledged
    readers = {topic: Acknowledged(f"{bus}/{topic}", "book", start="earliest", batch_rows=500) for topic in counts}
    files = {topic: open(Path(folder) / f"{topic}-{os.getpid()}", "wb", buffering=0) for topic in counts}
    while any(reader.stats.acknowledged < counts[topic] for topic, reader in readers.items()):
        for topic, reader in readers.items():
            batch = reader.take(0.005)
            if batch is not None:
                files[topic].write(batch.copy().tobytes())
                reader.ack(batch)
    for reader in readers.values():
        reader.close()
"""


@pytest.fixture(scope="module")
def day(data_root: Path) -> Day:
    return load_day(data_root)


@pytest.fixture
def config(tmp_path: Path, bus_name: str) -> Path:
    path = tmp_path / "ringmain.toml"
    topics = "".join(f"topics.{topic} = {{}}\n" for topic in TOPICS)
    path.write_text(f'[bus.{bus_name}]\ndata_dir = "data"\nslots = 4096\n{topics}')
    return path


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def test_the_book_is_found_by_subscriber_group_and_gateway_client_though_writer_and_member_are_killed(
    data_root, day, config, bus_name, tmp_path, children
):
    counts = {topic: len(rows) for topic, rows in rows_of(day).items()}
    with gateway(bus_name) as remote:
        with serving(config) as first:
            first.wait_for("ready")
            subscriber, client = Following(bus_name, counts), Remote(remote.url, bus_name, counts)
            client.connect()
            members = [children.start() for _ in range(3)]
            for member in members:
                member.begin(SHARE, bus=bus_name, folder=str(tmp_path), counts=counts)
            publishers = [children.start() for _ in TOPICS]
            for topic, publisher in zip(TOPICS, publishers, strict=True):
                facts = {"topic": topic, "root": str(data_root), "examples": EXAMPLES, "step": BATCH_ROWS}
                publisher.begin(PUBLISH, bus=bus_name, seconds=4.0, **facts)
            read_up_to(counts["orders"] // 3, subscriber, client)
            members[0].kill()
            read_up_to(counts["orders"] // 2, subscriber, client)
            client.close()
            first.process.kill()
            first.wait()
        with serving(config) as second:
            second.wait_for("ready")
            assert client.position("orders") < counts["orders"]
            client.connect()
            read_until(lambda: all([subscriber.read(), client.read()]))
            for each in (subscriber, client):
                each.close()
            for process in (*publishers, *members[1:]):
                process.settle()
            assert second.stop() == 0
    check_book(client.rows, counts)
    for topic in TOPICS:
        assert np.array_equal(subscriber.rows[topic], client.rows[topic])
        assert np.array_equal(shared_rows(tmp_path, SHIPPED[topic]), client.rows[topic])


class Remote:
    """Reads the three topics through one connection to the gateway. Connected again, it goes on behind what it has."""

    def __init__(self, url: str, bus: str, counts: Mapping[str, int]) -> None:
        self._url, self._bus, self._counts = url, bus, counts
        self._positions = dict.fromkeys(counts, 0)
        self._parts: dict[str, list[np.ndarray[Any, Any]]] = {topic: [] for topic in counts}
        self._topics: dict[int, str] = {}

    @property
    def rows(self) -> dict[str, np.ndarray[Any, Any]]:
        return {topic: np.concatenate(parts) for topic, parts in self._parts.items()}

    def position(self, topic: str) -> int:
        return self._positions[topic]

    def connect(self) -> None:
        self._client = Client(self._url)
        for id, (topic, position) in enumerate(self._positions.items()):
            wishes = {"id": id, "format": "binary", "from": position + 1}
            answer = self._client.subscribe(f"{self._bus}/{topic}", **wishes)
            assert answer["sequence"] == position
            self._topics[answer["stream"]] = topic

    def read(self) -> bool:
        with contextlib.suppress(TimeoutError):
            frame = self._client.receive(0.005)
            assert isinstance(frame, Frame), frame
            topic = self._topics[frame.stream]
            assert (frame.first, frame.lost) == (self._positions[topic] + 1, 0), "a gap or a repeat"
            self._parts[topic].append(frame.rows)
            self._positions[topic] = frame.last
        return self._positions == self._counts

    def close(self) -> None:
        self._client.close()


def read_up_to(sequence: int, *readers: Following | Remote) -> None:
    """Until each of them has so many orders."""

    def there() -> bool:
        for reader in readers:
            reader.read()
        return all(reader.position("orders") >= sequence for reader in readers)

    read_until(there)


def read_until(there: Callable[[], bool]) -> None:
    """Without a pause, in which a gateway's client would fall behind."""
    deadline = time.monotonic() + TIMEOUT_S
    while not there():
        assert time.monotonic() < deadline, "not all has come in time"


def shared_rows(folder: Path, schema: Schema) -> np.ndarray[Any, Any]:
    """What all members have written down, each row once. Rows that came twice must be the same."""
    rows = np.concatenate([np.fromfile(path, schema.dtype) for path in folder.glob(f"{schema.name}-*")])
    rows = rows[np.argsort(rows["sequence"], kind="stable")]
    again = np.flatnonzero(np.diff(rows["sequence"]) == 0)
    assert all(rows[at] == rows[at + 1] for at in again)
    return np.delete(rows, again)
