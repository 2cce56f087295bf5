"""A bus of one host gets others: the stream begins with what is there, and every other node receives it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import BusError, Writer, open_lane
from ringmain.bus.cluster.jetstream import JetStream
from ringmain.bus.cluster.local_replica import LocalReplica
from ringmain.bus.cluster.messages import Kind, Message, encode
from ringmain.bus.cluster.replica import Position
from ringmain.bus.cluster.seeding import check_seeded, log_id_of, seed, seeding
from ringmain.storage import LogReader
from ringmain.subscribers import RealTime
from support.command import ringmain
from support.live_nodes import TIMEOUT_S, live_node
from support.logs import PAIRS, POINTS, make_rows
from support.nats_servers import PASSWORD, Servers, nats_servers
from support.services import service

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with nats_servers(1) as servers:
        yield servers


def write(bus: str, data_dir: Path, count: int) -> None:
    """What a bus of one host wrote before."""
    with Writer(bus, [PAIRS, POINTS], data_dir=data_dir) as writer:
        writer["pairs"].publish_batch(make_rows(PAIRS, 1, count))
        writer["points"].publish_batch(make_rows(POINTS, 1, 10))


async def seeded(servers: Servers, cluster: str, bus: str, data_dir: Path) -> Position:
    log_id = log_id_of(data_dir)
    stream = await JetStream.open(servers.access(cluster), servers.stream(cluster), log_id=log_id)
    try:
        assert stream.log_id == log_id
        async with LocalReplica(bus, [PAIRS], data_dir, log_id) as replica:
            with seeding(replica):
                return await seed("a", replica, stream)
    finally:
        await stream.close()


def rows_of(data_dir: Path, topic: str, last: int) -> np.ndarray:
    found = LogReader(data_dir / "log", topic)
    parts, first = [], 1
    while first <= last:
        rows = found.read(first, last)
        assert rows is not None
        parts.append(rows.copy())
        first = int(rows["sequence"][-1]) + 1
    return np.concatenate(parts)


def test_others_receive_what_a_node_had_before_there_was_a_cluster_and_follow(servers, bus_name, tmp_path):
    a, b = f"{bus_name}a", f"{bus_name}b"
    write(a, tmp_path / "a", 1000)

    async def scenario() -> None:
        position = await seeded(servers, "c0", a, tmp_path / "a")
        assert position == Position(1, 1, "a", {"pairs": 1000, "points": 10})
        access, settings = servers.access("c0"), servers.stream("c0")
        async with live_node(access, settings, "a", a, tmp_path / "a") as one:
            await one.until(lambda: one.node.leads)
            async with live_node(access, settings, "b", b, tmp_path / "b") as two:
                await two.has({"pairs": 1000})
                with open_lane(f"{a}/pairs") as lane:
                    lane.publish_batch(make_rows(PAIRS, 1001, 50))
                    await asyncio.to_thread(lane.wait, 50, "replicated", TIMEOUT_S)
                await two.has({"pairs": 1050})
            assert any("receiving a snapshot of a" in words for words in two.told)

    asyncio.run(scenario())
    for topic, last in (("pairs", 1050), ("points", 10)):  # also one that is configured no more
        assert rows_of(tmp_path / "a", topic, last).tobytes() == rows_of(tmp_path / "b", topic, last).tobytes()


def test_what_was_broken_off_is_finished_and_what_has_begun_is_not_begun_again(
    servers, bus_name, tmp_path, monkeypatch
):
    write(bus_name, tmp_path / "data", 100)

    async def fail(*_: object) -> None:
        raise OSError("as if it were killed")

    async def begin() -> Position:
        return await seeded(servers, "c1", bus_name, tmp_path / "data")

    for owner, method in ((LocalReplica, "store"), (JetStream, "trim")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, fail)
            with pytest.raises(OSError, match="as if it were killed"):
                asyncio.run(begin())
        with pytest.raises(
            BusError, match="has not come to its end, and this node's rows would be set aside: run it again"
        ):
            check_seeded(tmp_path / "data")
    assert asyncio.run(begin()) == Position(1, 1, "a", {"pairs": 100, "points": 10})
    with pytest.raises(BusError, match=r"the stream has 1 messages already, without what is here\. If this node"):
        asyncio.run(begin())
    check_seeded(tmp_path / "data")  # it is one of the cluster's, and may be started


def test_a_node_is_not_started_whose_rows_others_began_without(servers, bus_name, tmp_path):
    """Its rows would be set aside: they are not in the stream."""
    write(bus_name, tmp_path / "data", 100)

    async def scenario() -> None:
        log_id = log_id_of(tmp_path / "data")
        stream = await JetStream.open(servers.access("c3"), servers.stream("c3"), log_id=log_id)
        await stream.append(encode(Message(Kind.CLAIM, "b", 1, 0, 7)), 0, "claim")
        await stream.close()
        with pytest.raises(BusError, match="has 1 messages already, without what"):
            await seeded(servers, "c3", bus_name, tmp_path / "data")

    asyncio.run(scenario())
    with pytest.raises(BusError, match="run it again"):
        check_seeded(tmp_path / "data")


def test_the_command_begins_a_stream_with_which_the_node_goes_on(servers, bus_name, tmp_path):
    config, password = tmp_path / "ringmain.toml", tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(PASSWORD)
    fields = "\n".join(f'{field.name} = "{field.type}"' for field in PAIRS.fields)

    config.write_text(
        f'[bus.{bus_name}]\ndata_dir = "data"\n[bus.{bus_name}.topics.pairs.fields]\n{fields}\n'
        f'[cluster]\nname = "c2"\nnode = "a"\nservers = {list(servers.addresses)}\nreplicas = 1\nuser = "user-c2"\n'
        'password_file = "password"\nstream_bytes = "64 MiB"\n'
    )
    empty = ringmain("cluster", "seed", config)
    assert (empty.returncode, b"there is no log to begin with" in empty.stderr) == (3, True), empty.stderr
    with Writer(bus_name, [PAIRS], data_dir=tmp_path / "data") as writer:
        writer["pairs"].publish_batch(make_rows(PAIRS, 1, 500))
        writer["pairs"].wait(500)
        busy = ringmain("cluster", "seed", config)
        assert (busy.returncode, b"another" in busy.stderr) == (1, True), busy.stderr
    done = ringmain("cluster", "seed", config)
    assert done.returncode == 0, done.stderr
    assert b"the stream ringmain-c2 begins with what a has: pairs up to 500" in done.stderr
    again = ringmain("cluster", "seed", config)
    assert (
        again.returncode,
        b"has 1 messages already, without what is here. If this node is one of the cluster's, start it" in again.stderr,
    ) == (1, True), again.stderr

    with service("cluster", "node", str(config)) as node:
        node.wait_for("leads", epoch=2)
        lane = open_lane(f"{bus_name}/pairs")
        assert lane.publish_batch(make_rows(PAIRS, 501, 5)) == 5
        lane.wait(5, "replicated", TIMEOUT_S)
        with RealTime(f"{bus_name}/pairs", start=501) as reader:
            batch = reader.take(TIMEOUT_S)
            assert batch is not None
            assert batch.first == 501
        lane.close()
        assert node.stop() == 0
    with Writer(bus_name, [PAIRS], data_dir=tmp_path / "other") as writer:
        writer["pairs"].publish_batch(make_rows(PAIRS, 1, 3))
    config.write_text(config.read_text().replace('"data"', '"other"'))
    other = ringmain("cluster", "seed", config)
    assert (other.returncode, b"is there, of another log: to begin anew with what is here, empty" in other.stderr) == (
        1,
        True,
    ), other.stderr
    assert rows_of(tmp_path / "data", "pairs", 505)["sequence"].tolist() == list(range(1, 506))
