"""A cluster of real processes of which a host, all nodes, all servers or all are killed, again and again: support/faults.py."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
from support.faults import OF_HOSTS, ROUNDS, ROUNDS_NIGHTLY, live_through

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
pytestmark = [pytest.mark.process, pytest.mark.long, pytest.mark.timeout(36_000 if NIGHTLY else 1_500)]


def test_no_acknowledged_record_is_lost_and_all_hosts_see_one_sequence_whatever_is_gone(tmp_path, bus_name):
    live_through(tmp_path, bus_name, OF_HOSTS, ROUNDS_NIGHTLY if NIGHTLY else ROUNDS)
