"""Every bench at a tiny size: that it runs, loses nothing, and prints what it promises. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ringmain.tools.bench import command
from ringmain.tools.bench.measuring import Bar

pytestmark = pytest.mark.process

FIGURES = {
    "publish": {"publish_ns"},
    "latency": {"p50_us", "p99_us", "p999_us"},
    "throughput": {"one_per_s", "batch64_per_s", "batch64_sum_per_s"},
    "fanout": {"one4_per_s", "batch4_per_s"},
    "log": {
        "logged_per_s",
        "durable_per_s",
        "logged_new_files_per_s",
        "durable_new_files_per_s",
        "logged_never_synced_per_s",
        "durable_one_p50_us",
        "durable_one_p99_us",
    },
    "append": {"append_p50_us", "append_p99_us", "append_p999_us", "append_flat_out_p50_us", "append_flat_out_p99_us"},
    "recover": {"recover_gb_per_s", "recover_seconds"},
    "catchup": {"catchup_rows_per_s"},
    "lanes": {"lane_p50_us", "lane_p99_us", "lanes4_rows_per_s"},
    "wake": {"wake_p50_us", "wake_p99_us", "idle_cpu_percent", "idle_with_log_cpu_percent"},
    "resumable": {"checkpoint_overhead_percent", "checkpoint_noise_percent", "checkpoint_p50_us", "group2_rows_per_s"},
    "delayed": {
        "conflate_rows_per_s",
        "ohlcv_rows_per_s",
        "gather_rows_per_s",
        "late_p50_us",
        "late_p99_us",
        "waiting_cpu_percent",
        "idle_cpu_percent",
    },
    "gateway": {
        "gateway_p50_us",
        "gateway_p99_us",
        "gateway_rows_per_s",
        "gateway_5_cores",
        "gateway_5_begin_mb",
        "gateway_5_end_mb",
        "gateway_5_growth_percent",
    },
}
FIGURES_AT_NIGHT = {  # it takes half a minute of both cores
    "cluster": {
        "replicated_mb_per_s",
        "replicated_rows_per_s",
        "lag_p50_ms",
        "lag_p99_ms",
        "packed_times",
        "wait_replicated_p50_ms",
        "bootstrap_mb_per_s",
        "switchover_s",
        "failover_s",
        "failover_with_server_s",
        "tls_replicated_rows_per_s",
    },
}
COMPARED = {  # the other libraries that are measured here too, those that an extra brings
    "cluster": {
        "jetstream": {
            "replicated_mb_per_s",
            "replicated_rows_per_s",
            "lag_p50_ms",
            "lag_p99_ms",
            "wait_replicated_p50_ms",
        }
    },
}
if os.environ.get("RINGMAIN_NIGHTLY"):
    FIGURES |= FIGURES_AT_NIGHT
NEEDED = {"cluster": ("nats", "cryptography", "lz4")}  # the extra of that name
OPTIONS = {"gateway": ["--clients", "5"]}
MAY_BE_0 = {  # it sleeps nearly all the time, its memory stays, and a position costs less than the noise
    "gateway_5_cores",
    "gateway_5_growth_percent",
    "checkpoint_overhead_percent",
}


def run_bench(name: str, directory: Path, *options: str) -> str:
    peers = "--peers" if name in COMPARED else "--no-peers"
    words = [sys.executable, "-m", "ringmain.tools", "bench", name, peers, "--runs", "1", "--seconds", "0.05"]
    done = subprocess.run(
        [*words, "--directory", directory, *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_bench_is_looked_at_here() -> None:
    assert FIGURES.keys() | FIGURES_AT_NIGHT.keys() == {bench.name for bench in command.BENCHES}


@pytest.mark.parametrize("name", FIGURES)
def test_a_bench_prints_its_figures_and_what_they_were_measured_with_and_leaves_nothing(
    name: str, tmp_path: Path
) -> None:
    for module in NEEDED.get(name, ()):
        pytest.importorskip(module, reason=f"needs `pip install ringmain[{name}]`")
    before = set(os.listdir("/dev/shm"))
    report = json.loads(run_bench(name, tmp_path, "--json", *OPTIONS.get(name, [])))
    assert report["bench"] == name
    assert report["figures"].keys() == FIGURES[name]
    assert all(isinstance(value, int | float) for value in report["figures"].values())
    assert all(value > 0 for figure, value in report["figures"].items() if figure not in MAY_BE_0)
    assert {"seconds", "runs", "cpu_count", "python", "numpy", "foreign_cpu_percent_max"} <= report["settings"].keys()
    compared = COMPARED.get(name, {})
    assert {peer: figures.keys() for peer, figures in report["peers"].items()} == compared
    assert {peer: ratios.keys() for peer, ratios in report["ratios"].items()} == compared
    assert all(value > 0 for figures in report["peers"].values() for value in figures.values())
    assert list(tmp_path.iterdir()) == []  # it takes its logs away
    assert not {left for left in set(os.listdir("/dev/shm")) - before if left.startswith("ringmain.bench")}


def test_people_get_a_table_with_the_bar(tmp_path: Path) -> None:
    text = run_bench("publish", tmp_path)
    assert "publish_ns" in text
    assert "≤ 150" in text


def test_a_rate_has_to_reach_its_bar_and_a_time_to_stay_below_it() -> None:
    assert Bar(10).is_met("one_per_s", 11)
    assert not Bar(10).is_met("one_per_s", 9)
    assert Bar(10).is_met("p50_us", 9)
    assert not Bar(10).is_met("p50_us", 11)
    assert Bar(0, slack=0.05).is_met("idle_cpu_percent", 0.04)
