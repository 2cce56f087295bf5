"""A node that is new, or was away long: it receives a peer's data while the leader writes, and then follows; killed anywhere, all
is whole."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ringmain.bus import BusError, LanePublisher, open_lane
from ringmain.bus.cluster import snapshot_sender
from ringmain.bus.cluster.messages import Kind, Message, Run, encode
from ringmain.bus.cluster.node import Node
from ringmain.bus.cluster.peers import ClaimStatus, NodeStatus, ask_all
from ringmain.bus.cluster.snapshot_sender import PartAsked, SnapshotRefused, decode_part
from ringmain.bus.cluster.stream import NoAnswer, StreamState
from ringmain.bus.cluster.trimming import Sizes, Trimming, trim_to
from ringmain.storage import Log, LogReader
from ringmain.storage.snapshot_transfer import Snapshot, snapshot_files
from ringmain.subscribers import Historical, RealTime
from support.children import Children
from support.cluster_models import ROW_BYTES, TOPICS, Journal, ModelReplica, ModelStream, Network, Oracle, Wire, row
from support.cut_links import Links
from support.live_nodes import TIMEOUT_S, LiveNode, live_node
from support.logs import PAIRS, Rows, append, make_rows
from support.nats_servers import Servers, nats_servers
from support.replicas import read_up_to
from support.virtual_time import run_virtually

pytestmark = pytest.mark.process
MB = 1 << 20
MIXER = 0x2545F4914F6CDD1D


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with nats_servers(1) as servers:
        yield servers


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> str:
    """One of its own for each test."""
    names = [item.name for item in request.session.items if item.path == request.path]
    return f"c{names.index(request.node.name)}"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(3 * TIMEOUT_S):
            await test()

    asyncio.run(in_time())


def make_pairs(first: int, count: int) -> Rows:
    """Rows that tell their sequences, and do not pack: the stream grows by as much as they are."""
    rows = make_rows(PAIRS, first, count)
    rows["left"] = (rows["left"] ^ rows["left"] >> 32) * MIXER
    return rows


async def publish(lane: LanePublisher, first: int, count: int) -> None:
    """Publish rows, and wait until they are replicated."""
    sequence = await asyncio.to_thread(lane.publish_batch, make_pairs(first, count))
    await asyncio.to_thread(lane.wait, sequence, timeout=TIMEOUT_S)


async def stored(*lives: LiveNode) -> int:
    """Wait until all of them have stored all of the stream; returns its last message then."""
    last = (await lives[0].stream.state()).last
    for live in lives:
        await live.until(lambda live=live: live.replica.position.stream >= last)
    return last


def check_log(data_dir: Path, last: int) -> None:
    """Assert that a log holds all rows up to one, as they were published."""
    log, first = LogReader(data_dir / "log", "pairs"), 1
    while first <= last:
        rows = log.read(first, last)
        assert rows is not None
        assert (rows["left"] == make_pairs(first, len(rows))["left"]).all()
        assert rows["sequence"].tolist() == list(range(first, first + len(rows)))
        first += len(rows)


def test_a_new_node_follows_a_stream_that_is_there_from_its_beginning(servers, cluster, bus_name, tmp_path):
    async def test() -> None:
        access, settings = servers.access(cluster), servers.stream(cluster)
        async with live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a") as a:
            await a.until(lambda: a.node.leads)
            with open_lane(f"{bus_name}a/pairs") as lane:
                await publish(lane, 1, 5000)
                async with live_node(access, settings, "b", f"{bus_name}b", tmp_path / "b") as b:
                    await b.has({"pairs": 5000})
                    assert b.told == []
        check_log(tmp_path / "b", 5000)

    run(test)


def test_a_node_that_the_stream_has_left_behind_gets_a_snapshot_and_its_readers_go_on(
    servers, cluster, bus_name, tmp_path
):
    async def test() -> None:
        access, settings = servers.access(cluster), servers.stream(cluster)
        async with (
            live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a") as a,
            live_node(access, settings, "c", f"{bus_name}c", tmp_path / "c", writer={"slots": 4096}) as c,
        ):
            await a.until(lambda: a.node.leads or c.node.leads)
            leader, away = (a, c) if a.node.leads else (c, a)
            lane = open_lane(f"{leader.replica.bus}/pairs")
            address = f"{away.replica.bus}/pairs"
            await publish(lane, 1, 10_000)
            await away.has({"pairs": 10_000})
            quick, slow = RealTime(address, start=9_000), Historical(address, live=True)
            read_up_to(quick, 10_000, TIMEOUT_S)
            assert slow.take(TIMEOUT_S) is not None
            assert away.living is not None
            away.living.cancel()
            await asyncio.gather(away.living, return_exceptions=True)
            for first in range(10_001, 210_001, 4000):  # more messages than a reader asks for ahead
                await publish(lane, first, 4000)
            await leader.stream.trim(await stored(leader))
            publishing = asyncio.create_task(publish(lane, 210_001, 50_000))
            away.live()
            await publishing
            await away.has({"pairs": 260_000})
            assert any("is in place" in words for words in away.told)
            rows = await asyncio.to_thread(read_up_to, quick, 260_000, TIMEOUT_S)
            assert (rows["left"] == make_pairs(10_001, 250_000)["left"]).all()
            first = slow.position + 1
            rows = await asyncio.to_thread(read_up_to, slow, 260_000, TIMEOUT_S)
            assert (rows["left"] == make_pairs(first, 260_001 - first)["left"]).all()
            assert quick.stats.lost_count == slow.stats.lost_count == 0
            lane.close()
        for side in "ac":
            check_log(tmp_path / side, 260_000)

    run(test)


def test_the_stream_goes_on_for_many_times_its_size_while_a_node_is_away(servers, cluster, bus_name, tmp_path):
    async def test() -> None:
        access, settings = servers.access(cluster), servers.stream(cluster, 4 * MB)
        last = 0
        async with (
            live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a", keep_bytes=MB) as a,
            live_node(access, settings, "b", f"{bus_name}b", tmp_path / "b", keep_bytes=MB) as b,
        ):
            async with live_node(access, settings, "c", f"{bus_name}c", tmp_path / "c", keep_bytes=MB) as c:
                await a.until(lambda: any(live.node.leads for live in (a, b, c)))
                leader = next(live for live in (a, b, c) if live.node.leads)
                if leader is c:
                    await c.node.switchover("a")
                    await a.until(lambda: a.node.leads)
                    leader = a
                lane = open_lane(f"{leader.replica.bus}/pairs")
                await publish(lane, 1, 1000)
                await c.has({"pairs": 1000})
                left_at = c.replica.position.stream
            last = 1000
            for _ in range(20):
                await publish(lane, last + 1, 100_000)
                last += 100_000
            state = await leader.stream.state()
            assert state.first > left_at + 1  # c cannot follow from where it was
            assert state.stored_bytes <= 4 * MB
            async with live_node(access, settings, "c", f"{bus_name}c", tmp_path / "c", keep_bytes=MB) as c:
                await publish(lane, last + 1, 1000)
                await c.has({"pairs": last + 1000})
                assert any("is in place" in words for words in c.told)
            lane.close()
        check_log(tmp_path / "c", last + 1000)

    run(test)


def test_pieces_come_over_the_server_that_the_sender_is_connected_to_and_nothing_else_does(
    servers, cluster, bus_name, tmp_path, monkeypatch
):
    access, settings = servers.access(cluster), servers.stream(cluster)
    read_part, receivers, over = snapshot_sender._read_part, list[LiveNode](), set[str]()

    def read_and_look(*given: Any) -> bytes:
        over.add(receivers[0].bootstrap._connection.server)
        return read_part(*given)

    monkeypatch.setattr(snapshot_sender, "_read_part", read_and_look)

    async def test() -> None:
        async with live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a") as a:
            await a.until(lambda: a.node.leads)
            with open_lane(f"{bus_name}a/pairs") as lane, Links(1) as links:
                await trimmed(lane, 1000, a)
                detour = links.open((servers.hosts[0], 4222)).address
                own = replace(access, servers=(detour, *access.servers))
                async with live_node(own, settings, "c", f"{bus_name}c", tmp_path / "c") as c:
                    receivers.append(c)
                    await c.has({"pairs": 1000})
                    assert any("is in place" in words for words in c.told)
                    assert over == set(access.servers)
                    await c.until(lambda: c.bootstrap._connection.server == detour)
                    assert c.stream.connection.server == detour

    run(test)


# --- what goes wrong ----------------------------------------------------------------------------------------------------

NODE = """if True:
    import asyncio
    from ringmain.bus.cluster import bootstrap, snapshot_sender
    from support.live_nodes import live_node

    bootstrap.PART_BYTES, bootstrap.PATIENCE_S = 1 << 16, 1.0
    if slowly:
        read_part = snapshot_sender._read_part

        def read_slowly(held, asked):
            time.sleep(0.02)
            return read_part(held, asked)

        snapshot_sender._read_part = read_slowly

    async def live():
        async with live_node(access, settings, name, bus, data_dir) as node:
            await node.living

    asyncio.run(live())
"""


async def until(live: LiveNode, node: str, condition: Callable[[NodeStatus], bool]) -> None:
    """Wait until another node says that something is so."""
    cluster = live.stream.settings.subject.split(".")[1]
    async with asyncio.timeout(TIMEOUT_S):
        while not any(s.node == node and condition(s) for s in await ask_all(live.stream.connection, cluster, 0.05)):
            pass


async def trimmed(lane: LanePublisher, rows: int, *lives: LiveNode) -> None:
    """Publish rows, and trim the stream behind them: a new node cannot follow it."""
    await publish(lane, 1, rows)
    await lives[0].stream.trim(await stored(*lives))


def test_when_the_sender_is_killed_another_one_is_asked(servers, cluster, bus_name, tmp_path, children):
    given = {"access": servers.access(cluster), "settings": servers.stream(cluster)}
    b, c = children.start(), children.start()

    async def test() -> None:
        async with live_node(**given, name="a", bus=f"{bus_name}a", data_dir=tmp_path / "a") as a:
            await a.until(lambda: a.node.leads)
            with open_lane(f"{bus_name}a/pairs") as lane:
                b.begin(NODE, **given, name="b", bus=f"{bus_name}b", data_dir=str(tmp_path / "b"), slowly=True)
                await until(a, "b", lambda _status: True)
                await publish(lane, 1, 300_000)
                last = await stored(a)
                await until(a, "b", lambda status: status.stored >= last)
                await a.stream.trim(last)
                c.begin(NODE, **given, name="c", bus=f"{bus_name}c", data_dir=str(tmp_path / "c"), slowly=False)
                await until(a, "c", lambda status: status.receiving > 0)
                assert not any("sending c" in words for words in a.told)  # who follows is asked first
                b.kill()
                await publish(lane, 300_001, 100)
                await a.until(lambda: any("sending c" in words for words in a.told))
                await until(a, "c", lambda status: bool(status.topics) and status.topics["pairs"].durable == 300_100)

    run(test)
    check_log(tmp_path / "c", 300_100)


def test_a_receiver_that_is_killed_begins_anew_and_its_sender_lets_go(
    servers, cluster, bus_name, tmp_path, children, monkeypatch
):
    given = {"access": servers.access(cluster), "settings": servers.stream(cluster)}
    c = children.start()
    read_part = snapshot_sender._read_part
    slowness = [0.02]

    def read_slowly(*given: Any) -> bytes:
        time.sleep(slowness[0])
        return read_part(*given)

    monkeypatch.setattr(snapshot_sender, "_read_part", read_slowly)
    monkeypatch.setattr(snapshot_sender, "UNUSED_S", 0.5)
    monkeypatch.setattr(snapshot_sender, "LOOK_S", 0.05)

    async def test() -> None:
        async with live_node(**given, name="a", bus=f"{bus_name}a", data_dir=tmp_path / "a") as a:
            await a.until(lambda: a.node.leads)
            with open_lane(f"{bus_name}a/pairs") as lane:
                await trimmed(lane, 300_000, a)
                open_before = len(os.listdir("/proc/self/fd"))
                c.begin(NODE, **given, name="c", bus=f"{bus_name}c", data_dir=str(tmp_path / "c"), slowly=False)
                await until(a, "c", lambda status: status.receiving > 0)
                assert len(os.listdir("/proc/self/fd")) > open_before
                c.kill()
                await a.until(lambda: "c asks for its snapshot no more" in a.told)
                await a.until(lambda: len(os.listdir("/proc/self/fd")) <= open_before)
                assert (tmp_path / "c" / "cluster" / ".snapshot.ringmain-restore").is_dir()
                slowness[0] = 0.0
                async with live_node(**given, name="c", bus=f"{bus_name}c", data_dir=tmp_path / "c") as again:
                    await again.has({"pairs": 300_000})
                    await publish(lane, 300_001, 100)
                    await again.has({"pairs": 300_100})
        check_log(tmp_path / "c", 300_100)
        assert {path.name for path in (tmp_path / "c" / "cluster").iterdir()} == {"position", "LOCK"}

    run(test)


def test_a_snapshot_from_a_bad_disk_is_refused_and_another_node_asked(
    servers, cluster, bus_name, tmp_path, monkeypatch
):
    access, settings = servers.access(cluster), servers.stream(cluster)
    read = Snapshot.read

    def read_badly(self: Snapshot, number: int, offset: int, bytes_max: int) -> bytes:
        data = bytearray(read(self, number, offset, bytes_max))
        if self.directory == tmp_path / "b" and offset == 0:
            data[20_000] ^= 1
        return bytes(data)

    monkeypatch.setattr(Snapshot, "read", read_badly)

    async def test() -> None:
        async with (
            live_node(access, settings, "a", f"{bus_name}a", tmp_path / "a") as a,
            live_node(access, settings, "b", f"{bus_name}b", tmp_path / "b", lives=False) as b,
        ):
            await a.until(lambda: a.node.leads)
            b.live()
            with open_lane(f"{bus_name}a/pairs") as lane:
                await trimmed(lane, 50_000, a, b)
                async with live_node(access, settings, "c", f"{bus_name}c", tmp_path / "c") as c:
                    await c.has({"pairs": 50_000})
                    assert any(words.startswith("sending c") for words in b.told)
                    assert any(words.startswith("the snapshot of a is in place") for words in c.told)
        check_log(tmp_path / "c", 50_000)

    run(test)


# --- pieces -------------------------------------------------------------------------------------------------------------


def test_a_piece_is_taken_only_as_it_was_asked_for_and_as_it_was_sent(tmp_path):
    log = Log(tmp_path / "log", [PAIRS], bus="test")
    append(log, PAIRS, 1000)
    log.close()
    with snapshot_files(tmp_path) as snapshot:
        held = snapshot_sender._Held("c", b"list", snapshot, None, 0.0)  # pyright: ignore[reportArgumentType]
        asked = PartAsked("x", 0, 64, 500)
        answer = snapshot_sender._read_part(held, asked)
        assert bytes(decode_part(answer, asked)) == snapshot.read(0, 64, 500)
        assert (
            bytes(decode_part(snapshot_sender._read_part(held, PartAsked("x", -1, 1, 3)), PartAsked("x", -1, 1, 3)))
            == b"ist"
        )
        for other in (PartAsked("x", 0, 65, 500), PartAsked("x", -1, 64, 500), PartAsked("x", 0, 64, 501)):
            with pytest.raises(NoAnswer):
                decode_part(answer, other)
        for at in range(len(answer)):
            with pytest.raises(NoAnswer):
                decode_part(answer[:at] + bytes([answer[at] ^ 4]) + answer[at + 1 :], asked)
        for cut in (0, 3, 20, len(answer) - 1):
            with pytest.raises(NoAnswer):
                decode_part(answer[:cut], asked)
        with pytest.raises(BusError, match="no such thing"):
            decode_part(msgspec.json.encode(SnapshotRefused("no such thing")), asked)
        for wrong in ((1, 0, 10), (-2, 0, 10), (0, -1, 10), (0, 0, 0), (0, 0, -5), (1 << 40, 0, 10)):
            with pytest.raises(NoAnswer, match="has no bytes"):
                snapshot_sender._read_part(held, PartAsked("x", *wrong))
        assert len(snapshot_sender._read_part(held, PartAsked("x", 0, 0, 1 << 60))) < 2 * MB


# --- trimming -----------------------------------------------------------------------------------------------------------


def a_status(node: str, stored: int, receiving: int = 0) -> NodeStatus:
    return NodeStatus(node=node, bus="x", pid=1, leads=False, leader="", epoch=1, sequence=stored, acknowledge="sync",
                      server="", lag_ms=None, stored=stored, receiving=receiving)  # fmt: skip


def test_an_answer_that_is_no_status_hides_nobody():
    class Answers:
        async def gather(self, *_asked: object) -> list[bytes]:
            none = [b"{", b'{"node": 7}', b'{"node": "\xff"}', b'{"node": ' + b"[" * 100_000]
            return [msgspec.json.encode(a_status("b", 1)), *none, msgspec.json.encode(a_status("a", 2))]

    answers: Any = Answers()
    assert asyncio.run(ask_all(answers, "c")) == [a_status("a", 2), a_status("b", 1)]


def test_the_stream_is_trimmed_only_behind_what_enough_nodes_have_stored():
    def trim(keep_from: int, *statuses: NodeStatus, stored_bytes: int = 600, nodes_min: int = 2) -> int:
        return trim_to(StreamState(101, 1000, stored_bytes, 1000, "s", 0), keep_from, 500, statuses, nodes_min)

    a, b, c = a_status("a", 900), a_status("b", 800), a_status("c", 500)
    assert trim(999, a, b, c) == 501
    assert trim(300, a, b, c) == 301
    assert trim(999, a, b) == 801
    assert trim(999, a) == 101  # who knows when another comes
    assert trim(999, a, nodes_min=1) == 901
    assert trim(999, a, b, c, stored_bytes=900) == 801  # no room to wait for the third
    assert trim(999, a, c, stored_bytes=900) == 501
    assert trim(999, a, b, a_status("d", 99)) == 801  # needs a snapshot anyhow
    assert trim(999, a, b, a_status("d", 100)) == 101
    assert trim(999, a, b, a_status("d", 0, receiving=700)) == 701  # and will follow from there
    assert trim(999, a, a_status("d", 0, receiving=700)) == 101  # has it not yet
    assert trim(2000, a_status("a", 1500), a_status("b", 1500)) == 1001


def test_a_majority_of_all_nodes_ever_heard_of_must_have_stored_what_is_trimmed():
    """Those that do not answer now count as well: one of them may be the only one that comes back."""

    async def first_after(rounds: tuple[str, ...], claimed: str, several: bool) -> int:
        """Where a stream begins after looks at which these nodes answered. They have stored up to 90, 89, … of 100 messages."""
        stream, answers = ModelStream(), iter(rounds)
        for number in range(1, 101):
            stream.append(encode(Message(Kind.BEAT, "a", 1, number, 7)), number - 1, f"{number}")
        stream.bytes_max = 100 * stream.stored_bytes

        async def statuses() -> list[NodeStatus]:
            claims = [ClaimStatus(epoch, name, 0) for epoch, name in enumerate(claimed, 1)]
            found = [a_status(name, 90 - at) for at, name in enumerate(next(answers))]
            return [msgspec.structs.replace(status, claims=claims) for status in found]

        wire = Wire(stream, Network(), random.Random(1))
        trimming = Trimming(wire, 1, lambda: True, statuses, several=several)
        for _ in rounds:
            stream.first = 1
            await trimming._look()
        return stream.first

    def trimmed_to(*rounds: str, claimed: str = "", several: bool = True) -> int:
        return run_virtually(first_after(rounds, claimed, several))

    assert trimmed_to("abcde", "ab") == 1  # two of five
    assert trimmed_to("abcd", "ab") == 1  # half of them are no majority
    assert trimmed_to("abc", "ab") == 90  # two of three, the slower of which has stored 89
    assert trimmed_to("abcde", "abc") == 89
    assert trimmed_to("ab", claimed="acd") == 1  # two of four, as those that led tell
    assert trimmed_to("a") == 1  # another one is to be there
    assert trimmed_to("a", several=False) == 91


def test_a_node_that_was_there_and_does_not_answer_for_a_while_is_missed_by_the_one_that_trims():
    leads, there = [True], ["a", "b", "c"]

    async def statuses() -> list[NodeStatus]:
        return [a_status(node, 1) for node in there]

    async def live() -> None:
        stream = ModelStream()
        trimming = Trimming(
            Wire(stream, Network(), random.Random(1)), 1 << 20, lambda: leads[0], statuses, several=True
        )
        watching = asyncio.create_task(trimming.run())
        await asyncio.sleep(10)
        assert trimming.missed == []
        there.remove("b")
        await asyncio.sleep(3)
        assert trimming.missed == []  # an answer may be lost
        await asyncio.sleep(10)
        assert trimming.missed == ["b"]
        there.append("b")
        await asyncio.sleep(3)
        assert trimming.missed == []
        there.remove("c")
        leads[0] = False  # it is for another one to say
        await asyncio.sleep(10)
        assert trimming.missed == []
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    run_virtually(live())


def test_how_much_lies_behind_a_message_is_known_from_looking():
    sizes = Sizes(10)
    sizes.look(StreamState(1, 100, 1000, 10_000, "s", 0))
    assert sizes.before_last(500) == 50  # nothing else is known yet
    sizes.look(StreamState(1, 110, 2000, 10_000, "s", 0))
    sizes.look(StreamState(1, 1110, 3000, 10_000, "s", 0))
    assert [sizes.before_last(bytes_) for bytes_ in (0, 1000, 1500, 2000, 2500, 3000, 9000)] == [
        1110,
        110,
        105,
        100,
        50,
        0,
        0,
    ]
    assert [sizes.behind(sequence, 500) for sequence in (0, 50, 100, 105, 1110)] == [50, 100, 105, 110, 1110]
    sizes.look(StreamState(106, 1110, 1500, 10_000, "s", 0))  # trimmed
    sizes.look(StreamState(106, 1210, 2500, 10_000, "s", 0))
    assert [sizes.before_last(bytes_) for bytes_ in (0, 500, 1000, 2000, 2500)] == [1210, 1160, 1110, 110, 105]
    for number in range(1000):
        sizes.look(StreamState(1111 + number, 1211 + number, 1000, 10_000, "s", 0))
    assert len(sizes._sequences) < 300


def test_a_stream_without_room_for_a_claim_is_trimmed_by_who_wants_to_lead():
    topic, chance = next(iter(TOPICS)), random.Random(1)

    async def live() -> None:
        stream = ModelStream()
        stream.append(encode(Message(Kind.CLAIM, "a", 1, 0, 7)), 0, "claim")
        for number in range(1, 50):
            run = Run(topic, TOPICS[topic], number, ROW_BYTES, row(number, number))
            stream.append(encode(Message(Kind.DATA, "a", 1, number, 7, (run,))), number, f"data {number}")
        stream.bytes_max = stream.stored_bytes
        replicas = {name: ModelReplica(Journal(), Oracle(stream), 0.01, chance) for name in ("b", "c")}
        nodes = {
            name: Node(name, Wire(stream, Network(), chance), replica, chance=chance)
            for name, replica in replicas.items()
        }

        async def statuses() -> list[NodeStatus]:
            return [a_status(name, replica.journal.position.stream) for name, replica in replicas.items()]

        def trimming(node: Node) -> Trimming:
            keep_bytes = stream.bytes_max // 2
            return Trimming(node.stream, keep_bytes, lambda: node.trims, statuses, several=True)

        tasks = [asyncio.create_task(node.run()) for node in nodes.values()]
        tasks += [asyncio.create_task(trimming(node).run()) for node in nodes.values()]
        await asyncio.sleep(30)
        assert [node.leads for node in nodes.values()].count(True) == 1
        for task in tasks:
            task.cancel()
        for replica in replicas.values():
            replica.end()
        syncing = [replica.syncing for replica in replicas.values()]
        await asyncio.gather(*tasks, *syncing, return_exceptions=True)

    run_virtually(live())
