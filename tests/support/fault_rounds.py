"""A round of a test of faults: one fault in a cluster that runs."""

from __future__ import annotations

import random
import time

from support.clusters import HOSTS, TIMEOUT_S, Cluster, Oracle
from support.logs import wait_until

__all__ = ["Round"]

MOMENT_S = 0.2


class Round:
    """What a fault may use: the cluster, who leads in it, and chance."""

    def __init__(self, running: Cluster, oracle: Oracle, chance: random.Random) -> None:
        self.cluster, self.oracle, self.chance = running, oracle, chance
        oracle.wait_for_servers()
        self.leader = oracle.wait_for_leader()
        self.epoch = oracle.watch.epoch

    @property
    def host(self) -> int:
        return self.chance.choice(HOSTS)

    @property
    def follower(self) -> int:
        return self.chance.choice([host for host in HOSTS if host != self.leader])

    @property
    def stream_leader(self) -> int:
        return self.cluster.servers.names.index(self.oracle.watch.state().leader)

    @property
    def stream_follower(self) -> int:
        leader = self.stream_leader
        return self.chance.choice([host for host in HOSTS if host != leader])

    def until_another_leads(self) -> None:
        wait_until(lambda: self.oracle.watch.epoch > self.epoch and self.oracle.watch.leader != "", TIMEOUT_S)

    def until_acknowledged(self) -> None:
        """Records are acknowledged while the fault lasts."""
        self.oracle.wait_for_acknowledged()

    def for_a_moment(self) -> None:
        time.sleep(self.chance.uniform(0.02, MOMENT_S))
