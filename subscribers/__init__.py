"""What a consumer of records runs."""

from ..bus import Batch, Overrun
from .health import Change, HealthMonitor
from .historical import Historical
from .judging import Condition, Subject, Thresholds
from .reader import Stats
from .real_time import RealTime

__all__ = [
    "Batch",
    "Change",
    "Condition",
    "HealthMonitor",
    "Historical",
    "Overrun",
    "RealTime",
    "Stats",
    "Subject",
    "Thresholds",
]
