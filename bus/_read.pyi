"""Reading from a ring; see _read.pyx."""

from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
from typing_extensions import Buffer

from ..storage import Schema

_Rows = np.ndarray[Any, np.dtype[np.void]]

class Batch:
    """Some consecutive records of a topic, or what a subscriber makes of them: newest rows by key, those that pass a filter.

    rows: a read-only numpy array of the schema's dtype. In a ring it is the writer's own memory: valid until the writer
    comes round again, which `validate` tells; from the log it stays valid for as long as you keep it.
    first, last: the part of the stream that it covers. schema: the rows'.
    lost: records missed before this batch, 0 unless the reader was lapped and no log holds them.
    deliveries: how often a group has handed these rows out, this time included; 0 from other subscribers.
    """

    lost: int
    deliveries: int
    @property
    def schema(self) -> Schema: ...
    @property
    def rows(self) -> _Rows: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    def __len__(self) -> int: ...
    def head(self, count: int) -> Batch:
        """Its first `count` rows, 1 to all of them, as a batch of their own. The rows must be the records `first` to `last`."""
    def validate(self) -> None:
        """Raise Overrun if the writer has overwritten any of these rows meanwhile."""
    @property
    def valid(self) -> bool:
        """Whether the rows were whole until now."""
    def copy(self) -> _Rows:
        """The rows as an array of your own, proven whole. Raises Overrun like `validate`."""
    def to_arrow(self) -> pyarrow.Table:
        """The rows as an Arrow table of its own memory, proven whole. Raises Overrun like `validate`.

        Times are timestamps there, whole numbers of "1/10,000 EUR" decimals, bytes strings, arrays fixed-size lists; the units
        of the schema say which. Raises ModuleNotFoundError saying what to install.
        """
    def to_pandas(self) -> pandas.DataFrame:
        """The same as a pandas data frame."""
    def to_polars(self) -> polars.DataFrame:
        """The same as a polars data frame."""

def log_batch(rows: _Rows, schema: Schema) -> Batch: ...
def owned_batch(rows: _Rows, schema: Schema, first: int, last: int, lost: int) -> Batch: ...

class RingCursor:
    cursor: int
    def __init__(self, segment: Buffer, control: Buffer, schema: Schema, follow: int, strategy: int) -> None: ...
    def register(self, name: str, cursor: int) -> None: ...
    def adopt(self, former: RingCursor) -> bool: ...
    def release(self) -> None: ...
    def hold_writer(self) -> bool: ...
    def count_overrun(self, lost: int, refilled: int, lapped: bool) -> None: ...
    def acknowledge(self, sequence: int) -> None: ...
    def beat(self) -> None: ...
    def poll(self, count_max: int) -> Batch | None: ...
    def wait(self, timeout: float, count: int = 1) -> bool: ...
    def take(self, timeout: float, count_max: int) -> Batch | None: ...
    @property
    def dropped(self) -> bool: ...
    @property
    def oldest(self) -> int: ...
    @property
    def watermark(self) -> int: ...
    @property
    def next_timestamp_ns(self) -> int: ...
    @property
    def published(self) -> int: ...
    @property
    def status(self) -> int: ...
