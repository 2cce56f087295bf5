"""The stream over real nats-servers: one of them, and three that keep it together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import pytest
from support.cut_links import Links
from support.nats_servers import TIMEOUT_S, Servers, nats_servers, why_refused
from support.virtual_time import run_virtually

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
from nats.aio.client import Client
from nats.aio.msg import Msg
from ringmain.bus.cluster import connection
from ringmain.bus.cluster.api import ApiError
from ringmain.bus.cluster.connection import Connection
from ringmain.bus.cluster.jetstream import JetStream, StreamDiffers
from ringmain.bus.cluster.server_checks import ServerWatch
from ringmain.bus.cluster.servers import ServersUnfit
from ringmain.bus.cluster.stream import NoAnswer, Refused, Shorter, Stored, StreamFull, Trimmed

pytestmark = pytest.mark.process
Value = TypeVar("Value")
NIGHTLY = pytest.mark.skipif(
    not os.environ.get("RINGMAIN_NIGHTLY"), reason="takes a while: set RINGMAIN_NIGHTLY to run it"
)


@pytest.fixture(scope="module")
def one() -> Iterator[Servers]:
    with nats_servers(1) as servers:
        yield servers


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with nats_servers(3) as servers:
        yield servers


@pytest.fixture
def three(running: Servers) -> Iterator[Servers]:
    yield running
    running.mend()


@contextlib.asynccontextmanager
async def opened(
    servers: Servers, cluster: str, first: int = 0, bytes_max: int = 64 << 20
) -> AsyncGenerator[JetStream]:
    stream = await JetStream.open(servers.access(cluster, first), servers.stream(cluster, bytes_max))
    try:
        yield stream
    finally:
        await stream.close()


async def insist(call: Callable[[], Awaitable[Value]], *passing: type[Exception]) -> Value:
    """Call again while there is no answer, as a node does."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                return await call()
            except (NoAnswer, *passing):
                await asyncio.sleep(0.02)


async def append_run(stream: JetStream, first: int, count: int) -> None:
    for sequence in range(first, first + count):
        assert await insist(lambda at=sequence: stream.append(payload(at), at - 1, f"n-1-{at}")) == sequence


async def read_run(stream: JetStream, first: int, count: int) -> list[Stored]:
    found: list[Stored] = []
    while len(found) < count:
        at = first + len(found)
        found += await insist(lambda at=at: stream.read(at))
    return found


def payload(sequence: int) -> bytes:
    return b"%d " % sequence * (sequence % 97 + 1)


def check_run(found: list[Stored], first: int, count: int) -> None:
    assert found == [Stored(sequence, payload(sequence)) for sequence in range(first, first + count)]


def test_the_first_node_makes_the_stream_and_all_know_it_by_one_number(three: Servers) -> None:
    async def scenario() -> None:
        async with opened(three, "c0", 0) as a, opened(three, "c0", 1) as b, opened(three, "c0", 2) as c:
            assert a.log_id == b.log_id == c.log_id
            assert 0 < a.log_id < 1 << 63
        made = await asyncio.gather(*(JetStream.open(three.access("c1", n), three.stream("c1")) for n in range(3)))
        assert len({stream.log_id for stream in made}) == 1
        for stream in made:
            await stream.close()

    asyncio.run(scenario())


def test_what_is_appended_on_one_node_is_read_on_another(three: Servers) -> None:
    async def scenario() -> None:
        async with opened(three, "c2", 0) as leader, opened(three, "c2", 1) as follower:
            assert await follower.read(1) == []
            reading = asyncio.create_task(read_run(follower, 1, 60))
            await append_run(leader, 1, 60)
            check_run(await reading, 1, 60)
            assert await follower.read(61) == []
            check_run(await read_run(follower, 17, 44), 17, 44)  # from anywhere, again
            assert await follower.get(5) == Stored(5, payload(5))
            assert await follower.get(61) is None
            state = await leader.state()
            assert (state.first, state.last, state.bytes_max) == (1, 60, 64 << 20)
            assert state.leader in three.names
            assert state.stored_bytes > 0

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["leads", pytest.param("follows", marks=NIGHTLY)])
def test_a_server_that_is_cut_off_from_its_peers_is_left_for_another(what: str) -> None:
    """One that led the stream answers on: as its leader for 20 s, and then as who leads nothing. One that followed is silent."""

    async def ask_on(stream: JetStream) -> None:
        while True:
            with contextlib.suppress(NoAnswer):
                await stream.state()
            await asyncio.sleep(0.3)

    async def open_and_read(servers: Servers, first: int) -> None:
        async with opened(servers, "c0", first) as stream:
            check_run(await read_run(stream, 1, 6), 1, 6)

    async def scenario(servers: Servers) -> None:
        async with opened(servers, "c0") as stream:
            await append_run(stream, 1, 3)
            leader = servers.names.index((await insist(stream.state)).leader)
        own = leader if what == "leads" else (leader + 1) % 3
        async with opened(servers, "c0", own) as stream:
            asking = asyncio.create_task(ask_on(stream))  # as other tasks of a node do
            await append_run(stream, 4, 1)
            for ends, link in servers.routes.items():
                if own in ends:
                    link.cut()
            await asyncio.gather(append_run(stream, 5, 2), open_and_read(servers, own))
            check_run(await read_run(stream, 1, 6), 1, 6)
            asking.cancel()

    with Links(1) as links, nats_servers(3, links=links) as servers:
        asyncio.run(scenario(servers))


def test_a_stream_that_the_servers_have_no_room_for_is_refused_in_their_words(one: Servers) -> None:
    async def scenario() -> None:
        with pytest.raises(NoAnswer, match=r"cannot be made: .*insufficient storage"):
            await JetStream.open(one.access("c4"), one.stream("c4", 1 << 40), 2.0)

    asyncio.run(scenario())


def test_large_messages_go_through_whole(one: Servers) -> None:
    body = os.urandom((1 << 20) + (1 << 16))

    async def scenario() -> None:
        async with opened(one, "c0") as stream:
            for sequence in range(1, 41):
                await stream.append(body, sequence - 1, f"n-1-{sequence}")
            at = 1
            while at <= 40:
                for stored in await stream.read(at):
                    assert stored == Stored(at, body)
                    at += 1

    asyncio.run(scenario())


def test_an_append_behind_another_message_than_the_expected_is_refused(three: Servers) -> None:
    async def scenario() -> None:
        async with opened(three, "c3", 0) as a, opened(three, "c3", 1) as b:
            await append_run(a, 1, 3)
            for expected in (0, 2, 4):
                with pytest.raises(Refused, match=f"message {expected} is not the last one"):
                    await b.append(b"another's", expected, f"b-2-{expected}")
            assert (await b.state()).last == 3
            assert await b.append(b"another's", 3, "b-2-3") == 4

    asyncio.run(scenario())


def test_a_message_that_is_sent_twice_is_stored_once(three: Servers) -> None:
    async def scenario() -> None:
        async with opened(three, "c4", 0) as stream:
            await append_run(stream, 1, 2)
            assert await stream.append(payload(2), 1, "n-1-2") == 2
            assert (await stream.state()).last == 2

    asyncio.run(scenario())


def test_a_full_stream_says_so_and_takes_messages_again_once_it_is_trimmed(three: Servers) -> None:
    async def scenario() -> None:
        async with opened(three, "c5", bytes_max=1 << 20) as stream:
            last = 12
            for sequence in range(1, last + 1):
                await stream.append(bytes(80 << 10), sequence - 1, f"n-1-{sequence}")
            with pytest.raises(StreamFull, match=r"no room: .*maximum bytes"):
                await stream.append(bytes(80 << 10), last, "n-1-13")
            await stream.trim(last - 2)
            assert await stream.append(bytes(80 << 10), last, "n-1-13") == last + 1
            state = await stream.state()
            assert (state.first, state.last) == (last - 2, last + 1)

    asyncio.run(scenario())


def test_who_wants_a_trimmed_message_learns_which_is_the_oldest(one: Servers) -> None:
    async def scenario() -> None:
        async with opened(one, "c1") as stream:
            await append_run(stream, 1, 20)
            await stream.trim(11)
            with pytest.raises(Trimmed) as trimmed:
                await stream.read(4)
            assert (trimmed.value.wanted, trimmed.value.oldest) == (4, 11)
            assert await stream.get(4) is None
            check_run(await read_run(stream, 11, 10), 11, 10)
            await stream.trim(21)  # nothing is left
            with pytest.raises(Trimmed) as trimmed:
                await stream.read(20)
            assert trimmed.value.oldest == 21
            assert await stream.read(21) == []
            await append_run(stream, 21, 1)
            check_run(await read_run(stream, 21, 1), 21, 1)

    asyncio.run(scenario())


def test_a_stream_that_ends_before_what_was_read_from_it_says_so(one: Servers) -> None:
    async def scenario() -> None:
        async with opened(one, "c3") as stream:
            await append_run(stream, 1, 3)
            assert await stream.read(4) == []
            with pytest.raises(Shorter) as shorter:
                await stream.read(11)
            assert (shorter.value.taken, shorter.value.last) == (10, 3)
            check_run(await read_run(stream, 1, 3), 1, 3)

    asyncio.run(scenario())


def test_a_reader_that_is_trimmed_past_while_it_reads_learns_it(one: Servers) -> None:
    async def scenario() -> None:
        async with opened(one, "c2") as stream:
            await append_run(stream, 1, 200)
            at = 1 + len(await read_run(stream, 1, 1))
            await stream.trim(151)
            with contextlib.suppress(Trimmed):  # after what was on its way already
                while at < 151:
                    found = await stream.read(at)
                    check_run(found, at, len(found))
                    at += len(found)
            assert at < 151

    asyncio.run(scenario())


def test_without_a_leader_nobody_says_that_there_is_nothing(three: Servers) -> None:
    async def scenario() -> None:
        async with opened(three, "c6") as stream:
            await append_run(stream, 1, 3)
            leader = three.names.index((await stream.state()).leader)
        own, other = (number for number in range(3) if number != leader)
        async with opened(three, "c6", own) as stream:
            check_run(await read_run(stream, 1, 3), 1, 3)
            three.stop(leader)
            three.stop(other)
            for call in (lambda: stream.append(b"4", 3, "n-1-4"), lambda: stream.read(4), stream.state):
                with pytest.raises(NoAnswer):
                    await call()
            three.mend()
            assert await insist(lambda: stream.append(b"4", 3, "n-1-4"), Refused) == 4

    asyncio.run(scenario())


@NIGHTLY
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_it_goes_on_with_another_server_when_its_own_is_gone(three: Servers, how: str) -> None:
    cluster = {"kill": "c7", "stop": "c8"}[how]

    async def scenario() -> None:
        told: list[str] = []
        settings = three.stream(cluster)
        stream = await JetStream.open(three.access(cluster, 1), settings, told=told.append)
        try:
            await append_run(stream, 1, 5)
            check_run(await read_run(stream, 1, 5), 1, 5)
            getattr(three, how)(1)
            await append_run(stream, 6, 5)
            check_run(await read_run(stream, 6, 5), 6, 5)
        finally:
            await stream.close()
        own, other = three.addresses[1], three.addresses[2]
        assert told[0] == f"connected to {own}"
        assert told[1] == f"the connection to {own} is lost"
        assert told[-2] == f"connected to {other}"

    asyncio.run(scenario())


def test_a_connection_goes_on_over_the_server_that_it_is_told(three: Servers) -> None:
    async def scenario() -> None:
        told: list[str] = []
        own, gone, other = three.addresses
        connection, subject = Connection(three.access("c10"), told.append), "ringmain.c10.node.x.status"

        async def answer(message: Msg) -> None:
            await connection.publish(message.reply, b"here")

        try:
            await connection.connected(TIMEOUT_S)
            await connection.listen(subject, answer)
            connection.move_to(own)  # is there already
            connection.move_to("elsewhere:4222")  # is none of its own
            assert told == [f"connected to {own}"]
            for server in (other, gone, own):
                connection.move_to(server)
                assert await connection.request(subject, timeout_s=TIMEOUT_S) == b"here"
                assert connection.server == server
            three.kill(1)
            connection.move_to(gone)
            assert await connection.request(subject, timeout_s=TIMEOUT_S) == b"here"
            assert connection.server == other
        finally:
            await connection.close()

    asyncio.run(scenario())


def test_a_connection_that_is_closed_just_as_it_is_made_is_closed(
    one: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Swallowing(Client):
        """Connects though it was cancelled, as asyncio.wait_for lets one do that was about to have its answer."""

        async def connect(self, *args: Any, **options: Any) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)
            await super().connect(*args, **options)

    monkeypatch.setattr(connection, "Client", Swallowing)

    async def scenario() -> None:
        told: list[str] = []
        made = Connection(one.access("c11"), told.append)
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(made.close())
        assert (await asyncio.wait({closing}, timeout=TIMEOUT_S))[0] == {closing}
        assert told == [f"connected to {one.addresses[0]}", "closed"]

    asyncio.run(scenario())


def test_nothing_is_lost_or_doubled_when_the_server_that_leads_the_stream_dies(three: Servers) -> None:
    async def scenario() -> None:
        async with opened(three, "c9", 0) as writer, opened(three, "c9", 1) as reader:
            reading = asyncio.create_task(read_run(reader, 1, 120))
            await append_run(writer, 1, 40)
            leader = three.names.index((await writer.state()).leader)
            three.kill(leader)
            await append_run(writer, 41, 40)
            three.start(leader)
            await append_run(writer, 81, 40)
            check_run(await reading, 1, 120)

    asyncio.run(scenario())


def test_a_wrong_password_is_told(one: Servers) -> None:
    access = replace(one.access("c3"), password="guessed")
    assert "it refuses this user or password" in asyncio.run(why_refused(access))


def test_the_user_of_another_cluster_cannot_touch_the_stream(one: Servers) -> None:
    async def scenario() -> None:
        async with opened(one, "c4") as stream:
            await append_run(stream, 1, 1)
            with pytest.raises(NoAnswer, match=r"(?i)permissions violation"):
                await JetStream.open(one.access("c5"), one.stream("c4"), timeout_s=1.2)
            async with opened(one, "c5") as other:
                with pytest.raises(NoAnswer):
                    await other.connection.request(stream.settings.subject, b"x", 0.5, {"Nats-Msg-Id": "x"})
            assert (await stream.state()).last == 1

    asyncio.run(scenario())


def test_a_stream_that_is_not_as_configured_is_told(one: Servers) -> None:
    async def scenario() -> None:
        async with opened(one, "c6"):
            with pytest.raises(StreamDiffers, match=r"max_bytes = 67108864, and 1048576 is wanted"):
                await JetStream.open(one.access("c6"), one.stream("c6", 1 << 20))

    asyncio.run(scenario())


def test_more_replicas_than_servers_are_told_at_once(one: Servers) -> None:
    with pytest.raises(ApiError, match=r"cannot be made: .*replicas"):
        asyncio.run(JetStream.open(one.access("c7"), replace(one.stream("c7"), replicas=3)))


def test_servers_that_acknowledge_before_they_sync_will_not_do_unless_asked_for() -> None:
    async def scenario(servers: Servers) -> None:
        with pytest.raises(ServersUnfit, match="s0: it acknowledges messages minutes before it syncs them"):
            await JetStream.open(servers.access("c0"), servers.stream("c0"))
        stream = await JetStream.open(servers.access("c0"), servers.stream("c0", synced=False))
        told: asyncio.Queue[str] = asyncio.Queue()
        watch = ServerWatch(stream.connection, stream.servers, synced=True, told=told.put_nowait, interval_s=0.01)
        watching = asyncio.create_task(watch.run())
        assert "s0: it acknowledges messages minutes before" in await asyncio.wait_for(told.get(), TIMEOUT_S)
        assert not watch.fit
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await stream.close()

    with nats_servers(1, synced=False) as servers:
        asyncio.run(scenario(servers))


def test_a_server_that_comes_back_with_another_configuration_is_found_and_so_is_that_it_is_mended() -> None:
    def answer(name: str, *, synced: bool) -> bytes:
        settings = {"version": "9.0.0", "max_payload": 1 << 21, "jetstream": {"config": {"sync_always": synced}}}
        return msgspec.json.encode({"server": {"name": name}, "data": settings})

    class Answers:
        def __init__(self) -> None:
            self.answers: list[bytes] = []

        async def gather(self, *_asked: object) -> list[bytes]:
            return self.answers

    async def names() -> list[str]:
        return ["s0", "s1"]

    async def scenario() -> None:
        there, told = Answers(), list[str]()
        connection: Any = there
        watch = ServerWatch(connection, names, synced=True, told=told.append)
        watching = asyncio.create_task(watch.run())
        for answers, fit in (
            ([answer("s0", synced=True)], True),
            ([answer("s0", synced=True), answer("other", synced=False)], True),
            ([answer("s0", synced=True), answer("s1", synced=False)], False),
            ([], False),
            ([answer("s0", synced=True), answer("s1", synced=True)], True),
        ):
            there.answers = answers
            await asyncio.sleep(60)
            assert watch.fit == fit
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert [words.split(":")[:2] for words in told] == [
            ["nothing is replicated", " s1"],
            ["the servers are fit again"],
        ]

    run_virtually(scenario())


def test_where_no_server_runs_each_one_is_named(one: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    host = one.hosts[0]
    access = replace(one.access("c8"), servers=(f"{host}:1", f"{host}:2"))
    assert asyncio.run(why_refused(access)).endswith(f": {host}:1: connection refused; {host}:2: connection refused")

    def resolve(*_asked: object, **_more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    words = asyncio.run(why_refused(replace(access, servers=("a.example.com:4222",))))
    assert words.endswith(": a.example.com:4222: name or service not known")
    with pytest.raises(NoAnswer, match=rf"did not answer within 0\.1 s \(no server can be reached: {host}:1: "):
        asyncio.run(JetStream.open(access, one.stream("c8"), timeout_s=0.1))
