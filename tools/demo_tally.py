"""How the demo's subscribers count what they get: by the records' own sequences, from the first record there ever was."""

from __future__ import annotations

import time
import zlib
from collections import deque
from statistics import median

import numpy as np
import numpy.typing as npt

from ..subscribers import Historical, RealTime
from .demo_reports import TopicRead

__all__ = ["Tally"]

DELAYS_KEPT = 101


class Tally:
    """Counts one reader's records."""

    def __init__(self, reader: RealTime | Historical) -> None:
        self.reader = reader
        self._first = self._last = self._read_count = self._gap_count = self._repeat_count = self._digest = 0
        self._delays_us: deque[float] = deque(maxlen=DELAYS_KEPT)

    def count(self, rows: npt.NDArray[np.void]) -> None:
        """Count the next rows, at least one."""
        self._delays_us.append((time.time_ns() - int(rows["timestamp_ns"][-1])) / 1e3)
        sequences = rows["sequence"].astype(np.int64)
        steps = np.diff(sequences, prepend=self._last)
        self._gap_count += int((steps[steps > 1] - 1).sum())
        self._repeat_count += int((steps < 1).sum())
        self._first = self._first or int(sequences[0])
        self._last = int(sequences[-1])
        self._read_count += len(rows)
        self._digest = zlib.crc32(rows.tobytes(), self._digest)

    def result(self) -> TopicRead:
        """What was counted so far."""
        stats = self.reader.stats
        return TopicRead(
            topic=self.reader.schema.name,
            first=self._first,
            last=self._last,
            read_count=self._read_count,
            gap_count=self._gap_count,
            repeat_count=self._repeat_count,
            digest=self._digest,
            from_log_count=stats.refilled_count,
            overrun_count=stats.overrun_count,
            reopen_count=stats.reopen_count,
            delay_us=median(self._delays_us) if self._delays_us else None,
        )
