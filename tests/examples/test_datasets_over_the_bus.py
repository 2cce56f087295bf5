"""Real data sets go in through a publisher process and come out equal to their files, through the rings and through the log.

The rings are small, so that every set goes around them many times; the subscriber is reliable and the publisher waits for it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from csv_columns import read_columns
from other_sets import BTCUSDT, SSE, DataSet
from ringmain.subscribers import Historical, RealTime
from support.example_runs import EXAMPLES, TIME_LIMIT_S

pytestmark = [pytest.mark.process, pytest.mark.timeout(TIME_LIMIT_S + 30)]

Rows = np.ndarray[Any, np.dtype[np.void]]
SLOTS = 4_096
WITH_NOISE = {"OrderPrice", "TradePrice", "TradeMoney"}  # columns that are written as binary floats: 15.929999999999999
ROW_COUNTS = {
    "sse": {"sse_orders": 149_359, "sse_trades": 109_616},  # 258,975 events
    "btcusdt": {
        "btcusdt_trades": 21_313,
        "btcusdt_book_ticker": 66_089,
        "btcusdt_depth_updates": 443_521,
        "btcusdt_depth_snapshot": 2_000,
    },
    "futures": {"futures_ticks": 27_955 + 28_254},
}


@dataclass(frozen=True, slots=True)
class Passage:
    """What a subscriber got of each topic of a set."""

    rings: Mapping[str, Rows]
    log: Mapping[str, Rows]


def pass_through(name: str, bus: str, data_dir: str) -> Passage:
    """Publish a set in a process of its own; read it from the rings meanwhile, and from the log when the bus is closed."""
    publisher = subprocess.Popen(
        [sys.executable, "-m", "support.set_publisher", name, bus, data_dir, str(SLOTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent / "tests")])},
    )
    assert publisher.stdin is not None
    assert publisher.stdout is not None
    readers: dict[str, RealTime] = {}
    try:
        assert publisher.stdout.readline() == b"open\n"
        for topic in ROW_COUNTS[name]:
            readers[topic] = RealTime(f"{bus}/{topic}", start="earliest", reliable=True)
            assert readers[topic].poll() is None  # from here on the writer waits for it
        publisher.stdin.write(b"go\n")
        publisher.stdin.close()
        parts: dict[str, list[Rows]] = {topic: [] for topic in readers}
        idle_s = 0.001  # only where the round before brought nothing
        while not all(reader.ended for reader in readers.values()):
            batches = {topic: reader.take(idle_s) for topic, reader in readers.items()}
            for topic, batch in batches.items():
                if batch is not None:
                    parts[topic].append(batch.copy())
            idle_s = 0.0 if any(batches.values()) else 0.001
        assert publisher.wait(TIME_LIMIT_S) == 0
        for reader in readers.values():
            assert (reader.stats.refilled_count, reader.stats.lost_count, reader.stats.overrun_count) == (0, 0, 0)
        return Passage(
            {topic: joined(some) for topic, some in parts.items()},
            {topic: read_log(f"{bus}/{topic}", data_dir) for topic in readers},
        )
    finally:
        for reader in readers.values():
            reader.close()
        publisher.kill()
        publisher.wait()
        publisher.stdout.close()
        publisher.stdin.close()
        for left in Path("/dev/shm").glob(f"ringmain.{bus}*"):
            left.unlink(missing_ok=True)


def read_log(address: str, data_dir: str) -> Rows:
    with Historical(address, data_dir=data_dir) as reader:
        return joined([batch.rows for batch in reader])


def joined(parts: Sequence[Rows]) -> Rows:
    """The parts as one array, byte for byte; np.concatenate would leave out the bytes between the fields."""
    return np.frombuffer(b"".join(part.tobytes() for part in parts), parts[0].dtype)


@pytest.fixture(scope="module")
def passages(data_root: Path) -> Iterator[Callable[[str], Passage]]:
    """Every set passes through once, for all tests."""
    done: dict[str, Passage] = {}
    with TemporaryDirectory() as folder:

        def passage(name: str) -> Passage:
            if name not in done:
                done[name] = pass_through(name, f"sets-{name}-{os.getpid()}", f"{folder}/{name}")
            return done[name]

        yield passage


def check_columns(back: Mapping[str, Sequence[str]], file: Mapping[str, Sequence[str]]) -> None:
    assert set(back) == set(file)
    for name, text in file.items():
        if name in WITH_NOISE:
            assert list(back[name]) == [f"{float(value):.2f}" for value in text], name
        else:
            assert list(back[name]) == list(text), name


@pytest.mark.parametrize("name", list(ROW_COUNTS))
def test_every_record_comes_once_in_order_and_the_log_has_what_the_rings_had(passages, name):
    if name == "futures":
        pytest.importorskip("zstandard", reason="the packed records are zstd-compressed")
    passage = passages(name)
    for topic, count in ROW_COUNTS[name].items():
        rows = passage.rings[topic]
        assert np.array_equal(rows["sequence"], np.arange(1, count + 1))
        assert (np.diff(rows["timestamp_ns"]) >= 0).all()
        assert rows.tobytes() == passage.log[topic].tobytes()


@pytest.mark.parametrize("way", ["rings", "log"])
@pytest.mark.parametrize(("name", "source"), [("sse", SSE), ("btcusdt", BTCUSDT)], ids=["sse", "btcusdt"])
def test_a_set_comes_out_equal_to_its_files_column_by_column(passages, data_root, name, source: DataSet, way):
    topics: Mapping[str, Rows] = getattr(passages(name), way)
    for topic, file in source.files.items():
        check_columns(source.to_columns(topic, topics[topic]), read_columns(data_root / source.folder / file))


@pytest.mark.parametrize("way", ["rings", "log"])
def test_packed_records_come_out_byte_for_byte_and_equal_to_their_csv(passages, data_root, way):
    pytest.importorskip("zstandard", reason="the packed records are zstd-compressed")
    import futures_ticks

    topics: Mapping[str, Rows] = getattr(passages("futures"), way)
    days = np.split(topics["futures_ticks"], [27_955])
    for file, rows in zip(futures_ticks.FILES, days, strict=True):
        path = data_root / futures_ticks.FOLDER / file
        assert futures_ticks.to_records(rows) == futures_ticks.read_records(path)
        check_columns(futures_ticks.to_columns(rows), read_columns(path.with_suffix(".csv.gz")))
