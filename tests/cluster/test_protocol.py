"""The protocol of a cluster under every fault that its models know, and broken ones, which the oracle must find.

RINGMAIN_SEED=N runs one seed again.
"""

from __future__ import annotations

import os

import pytest
from ringmain.bus.cluster.following import Following
from ringmain.bus.cluster.leading import Deposed, Leading
from ringmain.bus.cluster.messages import Message
from support.cluster_models import ModelReplica, Wire
from support.cluster_simulation import simulate

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
SEEDS = 10_000 if NIGHTLY else 500
GROUPS = 10
SEEDS_BROKEN = 200


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
