"""Every bench of the store at a tiny size: that it runs, loses nothing, and prints what it promises. No time is asserted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.tools.bench import store_command
from ringmain.tools.bench._skip_list import SkipList
from ringmain.tools.bench.store_rows import SCHEMA, make_keys, make_rows

pytestmark = pytest.mark.process

FIGURES = {
    "memtable": {"memtable_insert_p50_us", "memtable_insert_p99_us", "memtable_rows_per_s"},
    "put": {"put_p50_us", "put_p99_us", "put_batch_rows_per_s", "durable_batch1000_rows_per_s"},
    "get": {
        "get_memtable_p50_us",
        "get_memtable_p99_us",
        "get_sstable_p50_us",
        "get_sstable_p99_us",
        "get_missing_p50_us",
        "get_missing_p99_us",
        "get_many_keys_per_s",
    },
    "scan": {"scan_first_rows_per_s", "scan_rows_per_s", "scan_merged_first_rows_per_s", "scan_merged_rows_per_s"},
    "recover": {"recover_gb_per_s", "recover_seconds"},
    "compaction": {
        "write_amplification",
        "flush_cpu_percent",
        "compaction_cpu_percent",
        "background_cpu_percent",
    },
    "open": {"open_1000_tables_ms"},
    "backup": {"backup_mb_per_s", "restore_mb_per_s", "backup_linked_mb_per_s"},
}
OURS = "skip_list"  # built with the package, and so always there, without other libraries too
COMPARED = {  # the figures that a peer has too; the others lack what is measured
    "memtable": {OURS: FIGURES["memtable"]},
    "put": dict.fromkeys(("rocksdict", "lmdb", "plyvel"), FIGURES["put"]),
    "get": {
        "rocksdict": FIGURES["get"],
        "lmdb": FIGURES["get"],
        "plyvel": FIGURES["get"] - {"get_many_keys_per_s"},
    },
    "scan": dict.fromkeys(("rocksdict", "lmdb", "plyvel"), FIGURES["scan"]),
    "recover": {peer: {"recover_gb_per_s"} for peer in ("rocksdict", "plyvel")},
    "compaction": {
        "rocksdict": FIGURES["compaction"] - {"flush_cpu_percent"},
        "plyvel": {"write_amplification", "background_cpu_percent"},
    },
    "open": {"rocksdict": FIGURES["open"]},
}


def run_bench(name: str, directory: Path, *options: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "ringmain.tools", "bench", "store", name, "--json"]
    sizes = ["--rows", "2000", "--runs", "1", "--seconds", "0.05", "--directory", str(directory)]
    done = subprocess.run(
        [*command, *sizes, *options],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_bench_of_the_store_is_looked_at_here() -> None:
    assert {f"store {name}" for name in FIGURES} == {bench.name for bench in store_command.BENCHES}


@pytest.mark.parametrize("name", FIGURES)
def test_a_bench_prints_its_figures_and_those_of_other_stores_and_what_they_were_measured_with(
    name: str, tmp_path: Path
) -> None:
    compared = COMPARED.get(name, {})
    report = run_bench(name, tmp_path, *(["--no-peers"] if name == "memtable" else []))
    assert report["bench"] == f"store {name}"
    assert report["figures"].keys() == FIGURES[name]
    assert all(isinstance(value, int | float) and value >= 0 for value in report["figures"].values())
    assert {"rows", "runs", "cpu_count", "python", "numpy", "foreign_cpu_percent_max"} <= report["settings"].keys()
    assert report["settings"]["rows"] == 2000
    installed = {peer: names for peer, names in compared.items() if peer == OURS or importlib.util.find_spec(peer)}
    assert {peer: set(figures) for peer, figures in report["peers"].items()} == installed
    for peer, figures in report["peers"].items():
        both = {figure for figure, value in figures.items() if value and report["figures"][figure]}
        assert report["ratios"][peer].keys() == both
    for peer in compared.keys() - installed.keys():
        assert any(peer in note for note in report["notes"])
    assert list(tmp_path.iterdir()) == []  # it takes its stores away


def test_a_store_that_is_not_installed_is_left_out_with_a_note(tmp_path: Path) -> None:
    stores, missing = tmp_path / "stores", tmp_path / "missing"
    stores.mkdir()
    missing.mkdir()
    (missing / "rocksdict.py").write_text("raise ModuleNotFoundError(\"No module named 'rocksdict'\")\n")
    report = run_bench("open", stores, PYTHONPATH=str(missing))
    assert report["figures"].keys() == FIGURES["open"]
    assert report["peers"] == {}
    assert any("rocksdict" in note and "cannot be used" in note for note in report["notes"])


def test_the_skip_list_holds_every_row_in_the_order_of_keys_the_newer_first() -> None:
    keys = make_keys(3000)
    rows = make_rows(keys + keys[:500])
    skip_list = SkipList(SCHEMA.dtype, "key")
    for row_count in (1, 999, 2500):
        skip_list.insert(rows[len(skip_list) : len(skip_list) + row_count])
    expected = sorted(range(len(rows)), key=lambda place: ((keys + keys[:500])[place], -place))
    assert len(skip_list) == len(rows)
    np.testing.assert_array_equal(skip_list.rows(), rows[expected])
