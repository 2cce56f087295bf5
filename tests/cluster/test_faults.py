"""A cluster of real processes under every fault that one machine can make, and an outside oracle of what was acknowledged.

One cluster lives through many rounds: each makes a fault at a random moment, lets the others go on, mends, and waits until records
are acknowledged again. At the end everything that was seen must fit together (`Oracle.conclude`).
RINGMAIN_SEED=N takes the same faults in the same order.

By default each fault that costs no change of leadership has its ten rounds, and so have a killed and a stopped leader. Others cost
three seconds and more: of silence, after which a follower claims, of the servers' own election, of routes that must be found dead.
They have a round each. Nightly all faults have a hundred rounds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from typing import TypeAlias

import pytest
from support.logs import wait_until
from support.preload import build_preload
from support.small_disk import filled, mounted

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
from ringmain.bus import BusError
from support.clusters import HOSTS, TIMEOUT_S, Oracle, cluster
from support.fault_rounds import Round

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
ROUNDS_NIGHTLY = 100
USUAL, COSTLY = 10, 1  # rounds by default
ROUNDS_FULL = ROUNDS_DISK = 2  # by default: to fill something up takes seconds, and a node that ended is started again
HOUR_NS = 3_600 * 10**9
pytestmark = [pytest.mark.process, pytest.mark.timeout(36_000 if NIGHTLY else 600)]


# --- killed, and stopped ------------------------------------------------------------------------------------------------


def kill_leader(it: Round) -> None:
    it.cluster.kill([it.cluster.nodes[it.leader]])
    it.until_another_leads()


def kill_leader_and_start_it_at_once(it: Round) -> None:
    """It goes on with its tail."""
    it.cluster.kill([it.cluster.nodes[it.leader]])


def kill_follower(it: Round) -> None:
    it.cluster.kill([it.cluster.nodes[it.follower]])
    it.until_acknowledged()


def stop_leader(it: Round) -> None:
    it.cluster.stop([it.cluster.nodes[it.leader]])
    it.until_another_leads()


def stop_leader_shortly(it: Round) -> None:
    it.cluster.stop([it.cluster.nodes[it.leader]])
    it.for_a_moment()


def stop_follower(it: Round) -> None:
    it.cluster.stop([it.cluster.nodes[it.follower]])
    it.until_acknowledged()


def kill_server_that_follows(it: Round) -> None:
    it.cluster.kill([it.cluster.servers.processes[it.stream_follower]])
    it.until_acknowledged()


def kill_server_that_leads(it: Round) -> None:
    it.cluster.kill([it.cluster.servers.processes[it.stream_leader]])
    it.until_acknowledged()


def stop_server_that_follows(it: Round) -> None:
    it.cluster.stop([it.cluster.servers.processes[it.stream_follower]])
    it.until_acknowledged()


def stop_server_that_leads(it: Round) -> None:
    it.cluster.stop([it.cluster.servers.processes[it.stream_leader]])
    it.until_acknowledged()


def stop_server_shortly(it: Round) -> None:
    it.cluster.stop([it.cluster.servers.processes[it.host]])
    it.for_a_moment()


def kill_leader_and_server_that_leads(it: Round) -> None:
    it.cluster.kill([it.cluster.nodes[it.leader], it.cluster.servers.processes[it.stream_leader]])
    it.until_another_leads()


def stop_leader_and_server_that_leads(it: Round) -> None:
    it.cluster.stop([it.cluster.nodes[it.leader], it.cluster.servers.processes[it.stream_leader]])
    it.until_another_leads()


def kill_host(it: Round) -> None:
    it.cluster.kill([it.cluster.nodes[it.leader], it.cluster.servers.processes[it.leader]])
    it.until_another_leads()


def kill_all_nodes(it: Round) -> None:
    it.cluster.kill(it.cluster.nodes)


def kill_all_servers(it: Round) -> None:
    it.cluster.kill(it.cluster.servers.processes)
    it.for_a_moment()


def kill_all(it: Round) -> None:
    it.cluster.kill([*it.cluster.nodes, *it.cluster.servers.processes])


def stop_all(it: Round) -> None:
    it.cluster.stop([*it.cluster.nodes, *it.cluster.servers.processes])
    it.for_a_moment()


def end_leader_in_good_order(it: Round) -> None:
    it.cluster.nodes[it.leader].terminate()
    it.until_another_leads()


def switch_over(it: Round) -> None:
    with contextlib.suppress(BusError):  # a node that has just been started may not have come so far
        it.oracle.watch.switch_over()


# --- cut off ------------------------------------------------------------------------------------------------------------


def cut_leader_off(it: Round) -> None:
    it.cluster.cut_off(it.leader)
    it.until_another_leads()
    it.until_acknowledged()


def cut_follower_off(it: Round) -> None:
    """With luck its server leads the stream, and another must."""
    it.cluster.cut_off(it.follower)
    it.until_acknowledged()


def cut_host_off_shortly(it: Round) -> None:
    it.cluster.cut_off(it.host)
    it.for_a_moment()


def let_nothing_out_of_host(it: Round) -> None:
    it.cluster.cut_off(it.host, inward=False)
    it.until_acknowledged()


def let_nothing_into_host(it: Round) -> None:
    it.cluster.cut_off(it.host, outward=False)
    it.until_acknowledged()


def cut_routes_of_host(it: Round) -> None:
    it.cluster.cut_routes(it.host)
    it.until_acknowledged()


def cut_one_route(it: Round) -> None:
    """Two servers do not see each other; the third sees both."""
    one, other = it.chance.sample(HOSTS, 2)
    for ends in ((one, other), (other, one)):
        it.cluster.servers.routes[ends].cut()
    it.until_acknowledged()


def cut_leading_node_off(it: Round) -> None:
    """From all servers; they see each other."""
    it.cluster.cut_node(it.leader)
    it.until_another_leads()


def cut_following_node_off(it: Round) -> None:
    it.cluster.cut_node(it.follower)
    it.until_acknowledged()


def cut_everybody_off(it: Round) -> None:
    for host in HOSTS:
        it.cluster.cut_off(host)
    it.for_a_moment()


# --- slow, and lossy ----------------------------------------------------------------------------------------------------


def slow_host(it: Round) -> None:
    for link, _ in it.cluster.between(it.host):
        link.slow(it.chance.uniform(0.002, 0.05))
    it.until_acknowledged()


def slow_everybody(it: Round) -> None:
    for host in HOSTS:
        for link, _ in it.cluster.between(host):
            link.slow(it.chance.uniform(0.001, 0.02))
    it.until_acknowledged()


def lose_at_host(it: Round) -> None:
    for link, _ in it.cluster.between(it.host):
        link.lose(0.05)
    it.until_acknowledged()


def lose_everywhere(it: Round) -> None:
    for host in HOSTS:
        for link, _ in it.cluster.between(host):
            link.lose(0.02)
    it.until_acknowledged()


# --- clocks -------------------------------------------------------------------------------------------------------------


def move_clock(it: Round) -> None:
    """A host's, by up to an hour, forward or back; it stays so."""
    it.cluster.move_clock(it.host, it.chance.randint(-HOUR_NS, HOUR_NS))
    it.until_acknowledged()


def move_clock_of_leader_and_kill_it(it: Round) -> None:
    it.cluster.move_clock(it.leader, HOUR_NS)
    it.until_acknowledged()
    it.cluster.kill([it.cluster.nodes[it.leader]])


Fault: TypeAlias = Callable[[Round], None]
ROUNDS: dict[Fault, int] = {
    kill_follower: USUAL,
    stop_follower: USUAL,
    stop_leader_shortly: USUAL,
    stop_server_shortly: USUAL,
    kill_server_that_follows: USUAL,
    cut_host_off_shortly: USUAL,
    cut_one_route: USUAL,
    cut_following_node_off: USUAL,
    slow_host: USUAL,
    slow_everybody: USUAL,
    lose_at_host: USUAL,
    move_clock: USUAL,
    switch_over: USUAL,
    end_leader_in_good_order: COSTLY,
    kill_leader: USUAL,
    kill_leader_and_start_it_at_once: COSTLY,
    stop_leader: USUAL,
    kill_server_that_leads: COSTLY,
    stop_server_that_leads: COSTLY,
    stop_server_that_follows: USUAL,
    kill_leader_and_server_that_leads: COSTLY,
    stop_leader_and_server_that_leads: COSTLY,
    kill_host: COSTLY,
    kill_all_nodes: COSTLY,
    kill_all_servers: COSTLY,
    kill_all: COSTLY,
    stop_all: USUAL,
    cut_leader_off: COSTLY,
    cut_follower_off: USUAL,
    let_nothing_out_of_host: COSTLY,
    let_nothing_into_host: COSTLY,
    cut_routes_of_host: COSTLY,
    cut_leading_node_off: COSTLY,
    cut_everybody_off: USUAL,
    lose_everywhere: USUAL,
    move_clock_of_leader_and_kill_it: COSTLY,
}


def choose_faults() -> list[Fault]:
    """Those of this run; RINGMAIN_FAULTS names some, with spaces between them."""
    if names := os.environ.get("RINGMAIN_FAULTS", "").split():
        return [fault for fault in ROUNDS if fault.__name__ in names]
    return list(ROUNDS)


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("RINGMAIN_SEED") or random.SystemRandom().getrandbits(32))
    print(f"RINGMAIN_SEED={seed}")
    return seed


def test_no_acknowledged_record_is_lost_and_all_hosts_see_one_sequence_through_all_faults(tmp_path, bus_name, seed):
    chance = random.Random(seed)
    rounds = [fault for fault in choose_faults() for _ in range(ROUNDS_NIGHTLY if NIGHTLY else ROUNDS[fault])]
    chance.shuffle(rounds)
    clock = build_preload("jumping_clock", tmp_path)
    with cluster(tmp_path, bus_name, seed, clock=clock) as running, Oracle(running) as oracle:
        for number, fault in enumerate(rounds):
            begun = time.monotonic()
            try:
                it = Round(running, oracle, chance)
                it.for_a_moment()
                fault(it)
                running.mend()
                oracle.wait_for_acknowledged()
            finally:
                print(f"round {number}: {fault.__name__}, {time.monotonic() - begun:.1f} s", flush=True)
        acknowledged = oracle.conclude()
    print(f"{acknowledged} records were acknowledged, in {oracle.watch.epoch} leaderships")


def test_a_full_stream_holds_publishers_back_and_loses_nothing(tmp_path, bus_name, seed):
    """It fills up while there is nobody but the leader to trim it behind; then room is made again by itself."""
    chance = random.Random(seed)
    with cluster(tmp_path, bus_name, seed, stream_bytes=2 << 20) as running, Oracle(running) as oracle:
        for _ in range(ROUNDS_NIGHTLY if NIGHTLY else ROUNDS_FULL):
            it = Round(running, oracle, chance)
            for host in HOSTS:
                if host != it.leader:
                    running.nodes[host].send_signal(signal.SIGSTOP)
            running.fill(it.leader, 2 << 20)
            wait_until(lambda: any(status.stream_full for status in oracle.watch.statuses()), TIMEOUT_S)
            it.for_a_moment()
            running.mend()
            oracle.wait_for_acknowledged()
        print(f"{oracle.conclude()} records were acknowledged, in {oracle.watch.epoch} leaderships")


@pytest.mark.parametrize("life", range(ROUNDS_NIGHTLY // ROUNDS_DISK if NIGHTLY else 1))
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
