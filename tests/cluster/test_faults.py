"""A cluster of real processes under every fault that one machine can make, and an outside oracle of what was acknowledged.

One cluster lives through many rounds: each makes a fault at a random moment, lets the others go on, mends, and waits until records
are acknowledged again. At the end everything that was seen must fit together (`Oracle.conclude`).
RINGMAIN_SEED=N takes the same faults in the same order.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.preload import build_preload

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
from support.clusters import HOSTS, Cluster, Oracle, cluster

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
ROUNDS_NIGHTLY = 100
QUIET_S = 3.6  # after which a follower claims: fault long enough for another to lead
MOMENT_S = 0.4
pytestmark = [pytest.mark.process, pytest.mark.timeout(36_000 if NIGHTLY else 300)]

Fault = Callable[["Round"], None]


class Round:
    """What a fault may use: the cluster, who leads in it, and chance."""

    def __init__(self, running: Cluster, oracle: Oracle, chance: random.Random) -> None:
        self.cluster, self.oracle, self.chance = running, oracle, chance
        self.leader = oracle.wait_for_leader()

    @property
    def follower(self) -> int:
        return self.chance.choice([host for host in HOSTS if host != self.leader])

    @property
    def stream_leader(self) -> int:
        return self.cluster.servers.names.index(self.oracle.watch.state().leader)

    def other_leads(self) -> None:
        """Wait until another node leads."""
        from support.logs import wait_until

        epoch = self.oracle.watch.epoch
        wait_until(lambda: self.oracle.watch.epoch > epoch, 60.0)

    def moment(self) -> None:
        time.sleep(self.chance.uniform(0.05, MOMENT_S))


# --- killed, and stopped ------------------------------------------------------------------------------------------------


def the_leader_is_killed(it: Round) -> None:
    it.cluster.kill([it.cluster.nodes[it.leader]])
    it.oracle.wait_for_acknowledged()


def a_follower_is_killed(it: Round) -> None:
    it.cluster.kill([it.cluster.nodes[it.follower]])
    it.oracle.wait_for_acknowledged()
