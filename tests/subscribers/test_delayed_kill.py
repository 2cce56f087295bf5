"""Delayed subscribers and their writers, killed and stopped at random instants: every row is in one batch, or told as lost.

A failure names seed and round; RINGMAIN_SEED gives other instants, RINGMAIN_NIGHTLY 100 rounds of each.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.delayed_children import Place
from support.forked import Child, Server

SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
ROUNDS = 100 if NIGHTLY else 6
SLOTS = 4096
CHILDREN = Path(__file__).parents[1] / "support" / "delayed_children.py"

pytestmark = [pytest.mark.process, pytest.mark.timeout(1800 if NIGHTLY else 120)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, CHILDREN, Place)
    yield server
    server.close()


@pytest.mark.parametrize("kind", ["all", "filtered", "newest", "reduced"])
@pytest.mark.parametrize("logged", [True, False], ids=["log", "rings only"])
def test_whoever_is_killed_or_stopped_every_row_is_in_a_batch_or_told_as_lost(tmp_path, bus_name, server, kind, logged):
    choice = random.Random(f"{SEED} {kind} {logged}")
    data_dir = str(tmp_path / "data") if logged else None
    writer_count = 0

    def start_writer() -> Child:
        nonlocal writer_count
        writer_count += 1
        seed = choice.randrange(1 << 30)
        return server.start("write", bus=bus_name, writer=writer_count, seed=seed, data_dir=data_dir, slots=SLOTS)

    def start_reader(reliable: bool, begin: int) -> Child:
        seed, nap_s = choice.randrange(1 << 30), 0.0 if reliable else 0.01
        return server.start(
            "read", bus=bus_name, seed=seed, kind=kind, reliable=reliable, interval=0.003, nap_s=nap_s, start=begin
        )

    writer = start_writer()
    writer.wait_for("ready")
    readers, begun = [start_reader(True, 1), start_reader(False, 1)], [1, 1]
    for number in range(ROUNDS):
        try:
            for reader in readers:
                reader.wait_for("ready")
            writer.wait_for("returned", writer["opened"] + 1)
            time.sleep(choice.random() * 0.03)  # any instant
            at, kill = choice.randrange(3), choice.random() < 0.6
            target = [*readers, writer][at]
            if not kill:
                target.pause()
                time.sleep(choice.random() * 0.03)
                target.resume()
            elif target is writer:
                writer.kill()
                writer = start_writer()
            else:
                target.kill()
                begun[at] = max(begun[at], target["position"] + 1)
                readers[at] = start_reader(at == 0, begun[at])
        except BaseException as error:
            error.add_note(f"RINGMAIN_SEED={SEED}, round {number}")
            raise
    writer.wait_for("ready")
    for reader in readers:  # one that has not found this writer's ring when it closes would wait for the next
        reader.wait_for("position", writer["opened"] + 1)
    writer.finish()
    for reader, first in zip(readers, begun, strict=True):
        reader.end()
        assert reader["position"] == writer["returned"]
        assert reader["row_count"] + reader["lost_count"] == writer["returned"] - first + 1
