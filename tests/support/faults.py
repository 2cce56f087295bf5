"""Every fault that one machine can make in a cluster, and a cluster that lives through some of them.

One cluster lives through many rounds: each makes a fault at a random moment, lets the others go on, mends, and waits until records
are acknowledged again. At the end everything that was seen must fit together (`Oracle.conclude`).
RINGMAIN_SEED=N takes the same faults in the same order; RINGMAIN_FAULTS names those to take, with spaces between them.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from ringmain.bus import BusError
from support.clusters import END_S, HOSTS, Oracle, cluster
from support.fault_rounds import Round
from support.preload import build_preload

__all__ = ["OF_HOSTS", "OF_LEADERS", "OF_SERVERS", "QUICK", "ROUNDS", "ROUNDS_NIGHTLY", "live_through", "new_seed"]

ROUNDS, ROUNDS_NIGHTLY = 10, 100  # of each fault
HOUR_NS = 3_600 * 10**9

Fault: TypeAlias = Callable[[Round], None]


def new_seed() -> int:
    seed = int(os.environ.get("RINGMAIN_SEED") or random.SystemRandom().getrandbits(32))
    print(f"RINGMAIN_SEED={seed}")
    return seed


def live_through(directory: Path, bus: str, faults: Sequence[Fault], rounds_each: int) -> None:
    """A cluster's life. Skips where RINGMAIN_FAULTS names others only."""
    names = os.environ.get("RINGMAIN_FAULTS", "").split()
    chosen = [fault for fault in faults if not names or fault.__name__ in names]
    if not chosen:
        pytest.skip("RINGMAIN_FAULTS names none of these faults")
    seed = new_seed()
    chance = random.Random(seed)
    rounds = [fault for fault in chosen for _ in range(rounds_each)]
    chance.shuffle(rounds)
    clock = build_preload("jumping_clock", directory)
    with cluster(directory, bus, seed, clock=clock) as running, Oracle(running) as oracle:
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
    """It hands over before it ends; the next round may end another, and this one must run again by then."""
    ending = it.cluster.nodes[it.leader]
    ending.terminate()
    it.until_another_leads()
    assert ending.wait(END_S) == 0


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


# Half a second each.
QUICK: tuple[Fault, ...] = (
    kill_follower,
    stop_follower,
    stop_leader_shortly,
    stop_server_shortly,
    kill_server_that_follows,
    stop_server_that_follows,
    stop_all,
    cut_follower_off,
    cut_host_off_shortly,
    cut_one_route,
    cut_following_node_off,
    cut_everybody_off,
    slow_host,
    slow_everybody,
    lose_at_host,
    lose_everywhere,
    move_clock,
    switch_over,
)
# A silence of three seconds before another claims, and more.
OF_LEADERS: tuple[Fault, ...] = (
    kill_leader,
    kill_leader_and_start_it_at_once,
    stop_leader,
    end_leader_in_good_order,
    move_clock_of_leader_and_kill_it,
    cut_leading_node_off,
    cut_leader_off,
    let_nothing_into_host,
    let_nothing_out_of_host,
)
# The servers' own election.
OF_SERVERS: tuple[Fault, ...] = (
    kill_server_that_leads,
    stop_server_that_leads,
    kill_leader_and_server_that_leads,
    stop_leader_and_server_that_leads,
    cut_routes_of_host,
)
# Where all are gone, their start as well.
OF_HOSTS: tuple[Fault, ...] = (
    kill_host,
    kill_all_nodes,
    kill_all_servers,
    kill_all,
)
