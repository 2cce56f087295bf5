"""What a consumer of records runs."""

from ..bus import Batch, Overrun
from .acknowledged import Acknowledged, AcknowledgedStats
from .delayed import Delayed, DelayedStats
from .filtered import Filtered
from .health import Change, HealthMonitor
from .historical import Historical
from .judging import Condition, Subject, Thresholds
from .real_time import RealTime
from .reducing import Reduction, ohlcv
from .resumable import Resumable, ResumableStats
from .subscriber import Stats, Subscriber

__all__ = [
    "Acknowledged",
    "AcknowledgedStats",
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
    "Resumable",
    "ResumableStats",
    "Stats",
    "Subject",
    "Subscriber",
    "Thresholds",
    "ohlcv",
]
