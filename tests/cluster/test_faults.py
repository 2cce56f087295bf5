"""A cluster of real processes under every fault that one machine can make, and an outside oracle of what was acknowledged.

Here are the faults that cost no change of leadership, and what is full. The others take their time, and so stand in files of their
own: a file is what runs beside another. Each fault has ten rounds by default, and a hundred nightly: support/faults.py.
"""

from __future__ import annotations

import os
import random
import signal
from functools import partial

import pytest
from support.logs import wait_until
from support.small_disk import filled, mounted

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
from support.clusters import HOSTS, TIMEOUT_S, Oracle, cluster
from support.fault_rounds import Round
from support.faults import QUICK, ROUNDS, ROUNDS_NIGHTLY, live_through, new_seed

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
STREAM_BYTES = 4 << 20  # the smallest there is
ROUNDS_DISK = 2  # of a full disk, in a cluster's life: what is published stays there
pytestmark = [pytest.mark.process, pytest.mark.long, pytest.mark.timeout(36_000 if NIGHTLY else 600)]


def test_no_acknowledged_record_is_lost_and_all_hosts_see_one_sequence_while_one_leads(tmp_path, bus_name):
    live_through(tmp_path, bus_name, QUICK, ROUNDS_NIGHTLY if NIGHTLY else ROUNDS)


@pytest.fixture
def seed() -> int:
    return new_seed()


def test_a_full_stream_holds_publishers_back_and_loses_nothing(tmp_path, bus_name, seed):
    """It fills up while there is nobody but the leader to trim it behind; then room is made again by itself."""
    chance = random.Random(seed)
    with cluster(tmp_path, bus_name, seed, stream_bytes=STREAM_BYTES) as running, Oracle(running) as oracle:
        for _ in range(ROUNDS_NIGHTLY if NIGHTLY else ROUNDS):
            it = Round(running, oracle, chance)
            for host in HOSTS:
                if host != it.leader:
                    running.nodes[host].send_signal(signal.SIGSTOP)
            wait_until(partial(running.fill, it.leader, STREAM_BYTES), TIMEOUT_S)
            wait_until(lambda: any(status.stream_full for status in oracle.watch.statuses()), TIMEOUT_S)
            it.for_a_moment()
            running.mend()
            oracle.wait_for_acknowledged()
        print(f"{oracle.conclude()} records were acknowledged, in {oracle.watch.epoch} leaderships")


@pytest.mark.parametrize("life", range((ROUNDS_NIGHTLY if NIGHTLY else ROUNDS) // ROUNDS_DISK))
def test_a_node_with_a_full_disk_ends_and_comes_back_once_there_is_room(tmp_path, bus_name, seed, life):
    """Whoever leads; publishers go on where another node does. What is published stays, so that each cluster's life is short."""
    chance, host = random.Random(seed), 2
    with (
        mounted(tmp_path / "small", "160m") as small,
        cluster(tmp_path, bus_name, seed, directories={host: small}) as running,
        Oracle(running) as oracle,
    ):
        for _ in range(ROUNDS_DISK):
            oracle.wait_for_acknowledged()
            it = Round(running, oracle, chance)
            with filled(small):
                running.fill(it.leader, 10 << 20)
                wait_until(lambda: running.nodes[host].poll() is not None, TIMEOUT_S)
                oracle.wait_for_acknowledged()
            wait_until(lambda: running.caught_up(host), TIMEOUT_S)
        print(f"{oracle.conclude()} records were acknowledged, in {oracle.watch.epoch} leaderships")
