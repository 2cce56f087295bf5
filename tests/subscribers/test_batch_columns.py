"""Batches as columns: of the ring and of the log, and never of rows that were overwritten meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from ringmain.bus import Overrun, Writer
from ringmain.subscribers import Historical, RealTime
from support.logs import FILE_BYTES, POINTS, make_rows
from support.streams import publish

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install ringmain[arrow]")

SLOTS = 64


@pytest.mark.parametrize("source", ["ring", "log"])
def test_a_batch_becomes_columns(source: str, bus_name: str, tmp_path: Path) -> None:
    with Writer(bus_name, [POINTS], data_dir=tmp_path, slots=SLOTS, log_file_bytes=FILE_BYTES) as writer:
        publish(writer["points"], 10)
        kind = (
            RealTime(f"{bus_name}/points", start="earliest") if source == "ring" else Historical(f"{bus_name}/points")
        )
        with kind as reader:
            batch = reader.take(10.0)
            assert batch is not None
            assert batch.schema == POINTS
            table = batch.to_arrow()
    expected = make_rows(POINTS, 1, 10)
    assert table.column_names == ["sequence", "timestamp_ns", "value", "check", "tag"]
    for name in ("sequence", "value", "check"):
        assert table.column(name).to_pylist() == expected[name].tolist()
    assert table.column("tag").to_pylist() == [value.decode() for value in expected["tag"].tolist()]
    assert table.column("timestamp_ns").cast("int64").to_pylist() == batch.rows["timestamp_ns"].tolist()


@pytest.mark.parametrize("method", ["to_arrow", "to_pandas", "to_polars"])
def test_rows_that_were_overwritten_become_no_columns(method: str, bus_name: str) -> None:
    if method != "to_arrow":
        pytest.importorskip(method.removeprefix("to_"))
    with Writer(bus_name, [POINTS], slots=SLOTS) as writer, RealTime(f"{bus_name}/points", start="earliest") as reader:
        publish(writer["points"], 10)
        batch = reader.take(10.0)
        assert batch is not None
        assert len(getattr(batch, method)()) == 10
        publish(writer["points"], 2 * SLOTS)
        with pytest.raises(Overrun):
            getattr(batch, method)()
