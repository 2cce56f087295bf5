"""A publisher process for whole data sets: `python -m support.set_publisher SET BUS DATA_DIR SLOTS`.

It opens the bus, waits for a line on its standard input, publishes the set in its order and closes the bus.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from other_sets import BTCUSDT, SSE
from ringmain.bus import Writer
from ringmain.storage import Schema

Rows = npt.NDArray[np.void]


def load(name: str, root: Path) -> tuple[list[Schema], Iterator[tuple[str, Rows]]]:
    """The schemas of a set, "sse", "btcusdt" or "futures", and its rows in the order to publish them."""
    if name == "futures":
        import futures_ticks

        parts = [futures_ticks.load_ticks(root / futures_ticks.FOLDER / file) for file in futures_ticks.FILES]
        return [futures_ticks.TICKS], ((topic, rows) for part in parts for topic, rows in part.items())
    source = {"sse": SSE, "btcusdt": BTCUSDT}[name]
    return [table.schema for table in source.tables.values()], source.in_order(source.load(root))


def main(name: str, bus: str, data_dir: str, slots: int) -> None:
    schemas, runs = load(name, Path(os.environ["RINGMAIN_DATA"]))
    with Writer(bus, schemas, data_dir=data_dir, slots=slots) as writer:
        print("open", flush=True)
        sys.stdin.readline()
        for topic, rows in runs:
            writer[topic].publish_batch(rows)


if __name__ == "__main__":
    main(*sys.argv[1:4], slots=int(sys.argv[4]))
