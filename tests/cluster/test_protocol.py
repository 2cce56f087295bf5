"""The protocol of a cluster under every fault that its models know, and broken ones, which the oracle must find.

RINGMAIN_SEED=N runs one seed again.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping
from typing import Literal

import pytest
from ringmain.bus.cluster.following import Following, Timing
from ringmain.bus.cluster.leading import RESERVE_PARTS, UNANSWERED_S, Deposed, Leading
from ringmain.bus.cluster.messages import RUN_BYTES, Kind, Message, Run, encode
from ringmain.bus.cluster.node import Node
from ringmain.bus.cluster.place import Place
from ringmain.bus.cluster.replica import Diverged, Position
from ringmain.bus.cluster.stream import MESSAGE_BYTES_MAX
from support.cluster_models import ROW_BYTES, TOPICS, Journal, ModelReplica, ModelStream, Network, Oracle, Wire, row
from support.cluster_simulation import simulate
from support.virtual_time import run_virtually

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
SEEDS = 10_000 if NIGHTLY else 500
GROUPS = 10
SEEDS_BROKEN = 200
pytestmark = [pytest.mark.long, pytest.mark.timeout(36_000 if NIGHTLY else 180)]


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_acknowledged_record_is_lost_and_all_hosts_have_one_sequence(group):
    seeds = range(group, SEEDS, GROUPS)
    if "RINGMAIN_SEED" in os.environ:
        seeds = [int(os.environ["RINGMAIN_SEED"])] if group == 0 else []
    for seed in seeds:
        try:
            simulate(seed)
        except BaseException:
            print(f"seed {seed}")
            raise


def test_rows_that_came_with_a_snapshot_are_never_taken_for_a_tail_of_ones_own():
    """A peer's data may end with what the peer published and the stream never got, while the last claim is this node's."""
    topic = next(iter(TOPICS))
    rows = [row(sequence, sequence) for sequence in range(1, 6)]
    shipped = Run(topic, TOPICS[topic], 1, ROW_BYTES, b"".join(rows[:3]))

    async def live(foreign: bool) -> list[bytes]:
        stream, chance = ModelStream(), random.Random(1)
        stream.append(encode(Message(Kind.CLAIM, "a", 1, 0, 7)), 0, "claim")
        stream.append(encode(Message(Kind.DATA, "a", 1, 1, 7, (shipped,))), 1, "data")
        journal = Journal(position=Position(1, 1, "a", foreign=foreign))
        journal.rows[topic], journal.durable[topic] = list(rows), len(rows)
        replica = ModelReplica(journal, Oracle(stream), 0.01, chance)
        living = asyncio.create_task(Node("a", Wire(stream, Network(), chance), replica, chance=chance).run())
        await asyncio.sleep(30)
        living.cancel()
        replica.end()
        await asyncio.gather(living, replica.syncing, return_exceptions=True)
        assert not journal.position.foreign
        return Oracle(stream).in_stream()[topic]

    assert run_virtually(live(foreign=False)) == rows  # its own, published before it was killed
    assert run_virtually(live(foreign=True)) == rows[:3]


class Shelf(ModelReplica):
    """One to lead with whose rows lie there from the beginning, of one topic."""

    def __init__(self, stream: ModelStream, chance: random.Random, rows: bytes, row_bytes: int) -> None:
        super().__init__(Journal(), Oracle(stream), 0.01, chance)
        self.rows, self.row_bytes = rows, row_bytes
        self.shipped = self.handed_out = 0
        self.all_shipped = asyncio.Event()

    async def lead(self, epoch: int, ends: Mapping[str, int]) -> None:
        pass

    async def gather(self, bytes_max: int, timeout_s: float) -> list[Run]:
        first = self.shipped * self.row_bytes
        rows = self.rows[first : first + (bytes_max - RUN_BYTES) // self.row_bytes * self.row_bytes]
        self.handed_out = self.shipped + len(rows) // self.row_bytes
        if not rows:
            self.all_shipped.set()
            await asyncio.sleep(timeout_s)
            return []
        return [Run("records", 7, self.shipped + 1, self.row_bytes, rows)]

    def gathered(self) -> None:
        self.shipped = self.handed_out

    def raise_replicated(self, ends: Mapping[str, int]) -> None:
        pass


def test_a_message_takes_as_many_rows_as_pack_into_it_whatever_they_are_like():
    megabyte, chance = 1 << 20, random.Random(1)
    packable, mixed = bytes(128) * (4 * megabyte // 128), chance.randbytes(4 * megabyte)
    half = b"".join(chance.randbytes(64) + bytes(64) for _ in range(4 * megabyte // 128))
    rows = packable + mixed + half + packable

    async def ship() -> list[Message]:
        stream = ModelStream()
        shelf = Shelf(stream, chance, rows, 128)
        sequence = stream.append(encode(Message(Kind.CLAIM, "a", 1, 0, 7)), 0, "claim")
        place = Place.at(Position(sequence, 1, "a"))
        wire = Wire(stream, Network(), chance)
        leading = Leading("a", 7, wire, shelf, place, Timing(), acknowledge="sync", moved=lambda: None)
        living = asyncio.create_task(leading.run())
        await shelf.all_shipped.wait()
        living.cancel()
        shelf.end()
        await asyncio.gather(living, shelf.syncing, return_exceptions=True)
        assert max(map(len, stream.history)) <= MESSAGE_BYTES_MAX
        return [message for message in stream.messages() if message.kind is Kind.DATA]

    shipped = run_virtually(ship())
    assert b"".join(bytes(message.runs[0].rows) for message in shipped) == rows
    assert [message.number for message in shipped] == list(range(1, len(shipped) + 1))
    assert len(shipped[0].runs[0].rows) > 1.9 * megabyte
    assert len(shipped[-2].runs[0].rows) > 1.5 * megabyte  # it dares more again
    assert len(shipped) <= 2 + 5 + 4 + 3


def test_a_leader_is_heard_soon_after_an_append_that_was_long_under_way():
    """It rests behind a message, and longer behind one that took longer; but its followers take silence for its death."""
    chance = random.Random(1)

    async def lead() -> float:
        stream = ModelStream()
        shelf = Shelf(stream, chance, bytes(128) * 100, 128)
        place = Place.at(Position(stream.append(encode(Message(Kind.CLAIM, "a", 1, 0, 7)), 0, "claim"), 1, "a"))
        wire = Wire(stream, Network(), chance)
        leading = Leading("a", 7, wire, shelf, place, Timing(), acknowledge="sync", moved=lambda: None)
        wire.cut_out = True
        living = asyncio.create_task(leading.run())
        await asyncio.sleep(60)
        wire.cut_out = False
        clock = asyncio.get_running_loop().time
        while stream.last < 2:
            await asyncio.sleep(0.01)
        stored = clock()
        while stream.last < 3:  # a beat, since nothing is left to ship
            await asyncio.sleep(0.01)
        living.cancel()
        shelf.end()
        await asyncio.gather(living, shelf.syncing, return_exceptions=True)
        return clock() - stored

    assert run_virtually(lead()) < Timing().quiet  # virtual seconds


@pytest.mark.parametrize("acknowledge", ["async", "sync"])
def test_a_leader_that_is_not_answered_takes_rows_no_more_where_it_acknowledges_them_itself(
    acknowledge: Literal["sync", "async"],
):
    """It may have been deposed, and all that it takes would be lost."""
    chance = random.Random(1)

    async def lead() -> None:
        stream = ModelStream()
        shelf = Shelf(stream, chance, bytes(128) * 100, 128)
        place = Place.at(Position(stream.append(encode(Message(Kind.CLAIM, "a", 1, 0, 7)), 0, "claim"), 1, "a"))
        wire = Wire(stream, Network(), chance)
        leading = Leading("a", 7, wire, shelf, place, Timing(), acknowledge=acknowledge, moved=lambda: None)
        wire.cut_out = True
        living = asyncio.create_task(leading.run())
        await asyncio.sleep(UNANSWERED_S + 0.5)  # it has asked first, in vain, whether there is room
        assert not shelf.held
        await asyncio.sleep(2 * UNANSWERED_S)
        assert shelf.held == (acknowledge == "async")
        wire.cut_out = False
        await shelf.all_shipped.wait()
        assert not shelf.held
        living.cancel()
        shelf.end()
        await asyncio.gather(living, shelf.syncing, return_exceptions=True)

    run_virtually(lead())


def test_the_lead_is_handed_over_to_nobody_whose_name_no_node_can_have():
    async def live() -> None:
        stream, chance = ModelStream(), random.Random(1)
        replica = ModelReplica(Journal(), Oracle(stream), 0.01, chance)
        node = Node("a", Wire(stream, Network(), chance), replica, chance=chance)
        living = asyncio.create_task(node.run())
        await asyncio.sleep(10)
        for target in ("B.example.com", "b" * 33, "bé"):
            with pytest.raises(ValueError, match="is no node's name"):
                await node.switchover(target)
        await asyncio.sleep(10)
        assert node.leads
        assert Kind.HANDOVER not in {message.kind for message in stream.messages()}
        living.cancel()
        replica.end()
        await asyncio.gather(living, replica.syncing, return_exceptions=True)

    run_virtually(live())


# --- a full stream ----------------------------------------------------------------------------------------------------


def test_a_leader_whose_stream_is_full_goes_on_beating_and_leaves_room_for_another_s_claim():
    megabyte, chance = 1 << 20, random.Random(1)

    async def lead() -> None:
        reserve = (2 * megabyte) // RESERVE_PARTS
        stream = ModelStream(bytes_max=2 * megabyte + reserve // 2)  # a second message would take half the reserve
        shelf = Shelf(stream, chance, chance.randbytes(4 * megabyte), 128)
        place = Place.at(Position(stream.append(encode(Message(Kind.CLAIM, "a", 1, 0, 7)), 0, "claim"), 1, "a"))
        wire = Wire(stream, Network(), chance)
        leading = Leading("a", 7, wire, shelf, place, Timing(), acknowledge="sync", moved=lambda: None)
        living = asyncio.create_task(leading.run())
        while not leading.full:
            await asyncio.sleep(Timing().retry)
        assert stream.bytes_max - stream.stored_bytes >= reserve
        before = stream.last
        await asyncio.sleep(10)
        assert stream.last - before > 10 / Timing().quiet
        assert {message.kind for message in stream.messages()[before:]} == {Kind.BEAT}
        assert stream.stored_bytes + len(encode(Message(Kind.CLAIM, "b", 2, 0, 7))) <= stream.bytes_max

        while not shelf.all_shipped.is_set():  # it goes on as room is made
            stream.first = stream.last
            await asyncio.sleep(1)
        assert not leading.full
        living.cancel()
        shelf.end()
        await asyncio.gather(living, shelf.syncing, return_exceptions=True)

    run_virtually(lead())


def test_rows_wait_while_the_servers_are_not_fit_and_the_leader_goes_on_leading():
    chance, fit = random.Random(1), [False]

    async def lead() -> None:
        stream = ModelStream()
        shelf = Shelf(stream, chance, bytes(128) * 100, 128)
        place = Place.at(Position(stream.append(encode(Message(Kind.CLAIM, "a", 1, 0, 7)), 0, "claim"), 1, "a"))
        leading = Leading("a", 7, Wire(stream, Network(), chance), shelf, place, Timing(), acknowledge="sync",
                          moved=lambda: None, fit=lambda: fit[0])  # fmt: skip
        living = asyncio.create_task(leading.run())
        await asyncio.sleep(10)
        assert stream.last > 10 / Timing().quiet
        assert {message.kind for message in stream.messages()[1:]} == {Kind.BEAT}
        assert not leading.full
        fit[0] = True
        await shelf.all_shipped.wait()
        living.cancel()
        shelf.end()
        await asyncio.gather(living, shelf.syncing, return_exceptions=True)

    run_virtually(lead())


def test_a_node_that_comes_back_tells_its_publishers_who_leads_though_that_was_claimed_long_ago():
    async def live() -> str:
        stream, chance = filled(110, ("b", 1)), random.Random(1)
        replica = ModelReplica(Journal(position=Position(100, 1, "b")), Oracle(stream), 0.01, chance)
        living = asyncio.create_task(Node("a", Wire(stream, Network(), chance), replica, chance=chance).run())
        await asyncio.sleep(1)
        living.cancel()
        replica.end()
        await asyncio.gather(living, replica.syncing, return_exceptions=True)
        return replica.leader

    assert run_virtually(live()) == "b"


# --- a stream that lost what it had acknowledged ----------------------------------------------------------------------


def filled(last: int, *leaderships: tuple[str, int]) -> ModelStream:
    """A stream of so many messages: each leadership's claim, by node and the place where it stands, and beats."""
    stream, epoch, node = ModelStream(), 0, ""
    for sequence in range(1, last + 1):
        claims = [name for name, at in leaderships if at == sequence]
        if claims:
            epoch, node = epoch + 1, claims[0]
        message = Message(Kind.CLAIM if claims else Kind.BEAT, node, epoch, sequence, 7)
        stream.append(encode(message), sequence - 1, message.id)
    return stream


def grow(stream: ModelStream, whole: ModelStream) -> None:
    """Append what another has more."""
    for sequence in range(stream.last + 1, whole.last + 1):
        stream.append(whole.history[sequence - 1], sequence - 1, f"{sequence}")


async def run_node(stream: ModelStream, position: Position, seconds: float, meanwhile=lambda: None) -> None:
    """A node that had taken the stream up to there lives so long; in the midst of it something happens."""
    chance = random.Random(1)
    replica = ModelReplica(Journal(position=position), Oracle(stream), 0.01, chance)
    living = asyncio.create_task(Node("a", Wire(stream, Network(), chance), replica, chance=chance).run())
    try:
        await asyncio.wait({living}, timeout=seconds / 2)
        meanwhile()
        await asyncio.wait({living}, timeout=seconds / 2)
        if living.done():
            living.result()
    finally:
        living.cancel()
        replica.end()
        await asyncio.gather(living, replica.syncing, return_exceptions=True)


def test_a_node_that_is_ahead_of_the_stream_says_so_and_does_not_claim():
    async def live() -> None:
        stream = filled(90, ("b", 1))
        with pytest.raises(
            Diverged, match=r"ends with message 90, and message 110 was taken .* lost what they had ack"
        ):
            await run_node(stream, Position(110, 1, "b"), 120)
        assert stream.last == 90

    run_virtually(live())


def test_a_leader_whose_last_messages_are_lost_ends():
    async def live() -> None:
        stream = filled(110, ("a", 1))
        with pytest.raises(Diverged, match=r"ends with message 90, and message .* was taken .* lost what they had ack"):
            await run_node(stream, Position(110, 1, "a"), 120, lambda: stream.lose(90))
        assert stream.last == 90

    run_virtually(live())


@pytest.mark.parametrize("lost", [3, 20])
def test_a_leader_whose_last_messages_are_lost_leaves_those_alone_who_go_on_without_them(lost):
    """Though the stream is once again just as long as it expects."""

    async def live() -> None:
        stream, chance = filled(110, ("a", 1)), random.Random(1)
        a = asyncio.create_task(run_node(stream, Position(110, 1, "a"), 60))
        while stream.last < 115:
            await asyncio.sleep(0.1)
        keep = stream.last - lost
        epoch = stream.messages()[keep - 1].epoch
        stream.lose(keep)
        replica = ModelReplica(Journal(position=Position(keep, epoch, "a")), Oracle(stream), 0.01, chance)
        b = asyncio.create_task(Node("b", Wire(stream, Network(), chance), replica, chance=chance).run())
        with pytest.raises(Diverged, match="the servers lost what they had acknowledged"):
            await a
        await asyncio.sleep(10)
        assert replica.leads
        assert {message.node for message in stream.messages()[keep:]} == {"b"}
        b.cancel()
        replica.end()
        await asyncio.gather(b, replica.syncing, return_exceptions=True)

    run_virtually(live())


def test_answers_that_are_behind_now_and_then_prove_nothing():
    async def live() -> None:
        stream, whole = filled(109, ("b", 1)), filled(110, ("b", 1))

        def meanwhile() -> None:
            stream.has_leader = True

        living = asyncio.create_task(run_node(stream, Position(110, 1, "b"), 100, meanwhile))
        await asyncio.sleep(2)
        stream.has_leader = False  # for 48 s
        await asyncio.sleep(49)
        grow(stream, whole)
        await living
        assert stream.last > 110

    run_virtually(live())


@pytest.mark.parametrize("sees_it", [False, True])
def test_a_stream_that_has_grown_again_is_not_taken_for_what_it_was(sees_it):
    """Otherwise a claim might stand right behind it by chance, of a node whose rows are not the stream's."""

    async def live() -> None:
        stream, grown = filled(90, ("b", 1)), filled(110, ("b", 1), ("c", 91))
        if not sees_it:
            grow(stream, grown)
        with pytest.raises(
            Diverged, match="message 110 of the stream is of c, epoch 2; when this node took it, it was of b"
        ):
            await run_node(stream, Position(110, 1, "b"), 20, lambda: grow(stream, grown))
        assert stream.history == grown.history

    run_virtually(live())


def test_servers_that_are_behind_for_a_while_are_waited_for():
    async def live() -> None:
        stream, whole = filled(90, ("b", 1)), filled(110, ("b", 1))
        await run_node(stream, Position(110, 1, "b"), 40, lambda: grow(stream, whole))
        claims = [message for message in stream.messages() if message.kind is Kind.CLAIM]
        assert [(claim.node, claim.epoch) for claim in claims] == [("b", 1), ("a", 2)]
        assert stream.messages().index(claims[1]) == 110

    run_virtually(live())


# --- broken protocols -------------------------------------------------------------------------------------------------


def believes_that_it_is_stored(monkeypatch):
    """What was refused is taken for stored."""
    monkeypatch.setattr(Leading, "_settle", lambda _self, stored, _payload: stored.sequence)


def keeps_its_tail(monkeypatch):
    """What another's claim has fenced stays."""

    async def keep(_self: Following) -> None:
        pass

    monkeypatch.setattr(Following, "_cut_tail", keep)


def claims_whatever_is_last(monkeypatch):
    """A claim that expects what the stream says is its last, and not what this node has."""
    append = Wire.append

    async def blindly(self: Wire, payload: bytes, expected: int, message_id: str) -> int:
        return await append(self, payload, self.stream.last if message_id.endswith("-0") else expected, message_id)

    monkeypatch.setattr(Wire, "append", blindly)


def leads_on(monkeypatch):
    """A deposed leader tries again instead of stepping down."""
    settle = Leading._settle

    def stubborn(self: Leading, stored, payload):
        try:
            return settle(self, stored, payload)
        except Deposed:
            self._place.sequence = stored.sequence
            return None

    monkeypatch.setattr(Leading, "_settle", stubborn)


def stores_positions_early(monkeypatch):
    """A position is stored before the disk has what it counts."""

    async def early(self: ModelReplica, position) -> None:
        self.journal.position = position

    monkeypatch.setattr(ModelReplica, "store", early)


def forgets_who_it_is(monkeypatch):
    """Two lives of a node use the same message ids."""
    monkeypatch.setattr(Message, "id", property(lambda self: f"{self.node}-{self.number}"))


def acknowledges_before_the_answer(monkeypatch):
    """What was sent is called replicated."""
    append = Leading._append

    async def hasty(self: Leading, kind, runs=(), target="") -> None:
        self._replica.raise_replicated({run.topic: run.last for run in runs})
        await append(self, kind, runs, target)

    monkeypatch.setattr(Leading, "_append", hasty)


@pytest.mark.parametrize(
    "breaking",
    [
        believes_that_it_is_stored,
        keeps_its_tail,
        claims_whatever_is_last,
        leads_on,
        stores_positions_early,
        forgets_who_it_is,
        acknowledges_before_the_answer,
    ],
    ids=lambda breaking: breaking.__name__,
)
def test_a_broken_protocol_is_found(monkeypatch, breaking):
    breaking(monkeypatch)
    for seed in range(SEEDS_BROKEN):
        try:
            simulate(seed)
        except Exception as error:
            print(f"seed {seed}: {error!r}")
            return
    raise AssertionError(f"nothing was found in {SEEDS_BROKEN} runs")
