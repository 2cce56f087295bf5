"""What a consumer of records runs."""

from ..bus import Batch, Overrun
from .delayed import Delayed, DelayedStats
from .filtered import Filtered
from .health import Change, HealthMonitor
from .historical import Historical
from .judging import Condition, Subject, Thresholds
from .real_time import RealTime
from .reducing import Reduction, ohlcv
from .subscriber import Stats, Subscriber

__all__ = [
    "Batch",
    "Change",
    "Condition",
    "Delayed",
    "DelayedStats",
    "Filtered",
    "HealthMonitor",
    "Historical",
    "Overrun",
    "RealTime",
    "Reduction",
    "Stats",
    "Subject",
    "Subscriber",
    "Thresholds",
    "ohlcv",
]
