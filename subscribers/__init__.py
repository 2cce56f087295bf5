"""What a consumer of records runs."""

from ..bus import Batch, Overrun
from .historical import Historical
from .reader import Stats
from .real_time import RealTime

__all__ = ["Batch", "Historical", "Overrun", "RealTime", "Stats"]
