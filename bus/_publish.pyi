"""Publishing into a ring; see _publish.pyx."""

from collections.abc import Callable
from typing import Any

import numpy as np
from typing_extensions import Buffer

from ..storage import Schema
from ._journal import Journal
from ._lanes import LaneDoor

_Rows = np.ndarray[Any, np.dtype[np.void]]

class RingPublisher:
    topic: str
    dtype: np.dtype[np.void]
    payload_dtype: np.dtype[np.void]
    segment: Buffer
    busy: bool
    def __init__(
        self,
        segment: Buffer,
        control: Buffer | None,
        schema: Schema,
        *,
        full: str,
        full_timeout: float | None,
        journal: Journal | LaneDoor | None = None,
        asleep: object = None,
        mover: Callable[[RingPublisher, bool], bool] | None = None,
    ) -> None: ...
    def rebind(self, segment: Buffer, ended: int, journal: LaneDoor, asleep: object) -> None: ...
    def publish(self, *values: object, **fields: object) -> int: ...
    def publish_batch(self, rows: _Rows) -> int: ...
    def apply(self, rows: Buffer) -> int: ...
    def begin(self, count: int) -> _Rows: ...
    def commit(self, rows: _Rows, count: int) -> int: ...
    def abort(self) -> None: ...
    def wait(self, sequence: int, which: int, timeout: float | None) -> bool: ...
    def last_timestamp(self, timestamp_ns: int) -> None: ...
    def close(self) -> None: ...
    @property
    def watermarks(self) -> tuple[int, int, int, int, int, int]: ...
    @property
    def published(self) -> int: ...
    @property
    def slot_count(self) -> int: ...
