"""What a consumer of records runs."""

from ..bus import Batch, Overrun
from .historical import Historical
from .real_time import RealTime
from .subscriber import Stats, Subscriber

__all__ = ["Batch", "Historical", "Overrun", "RealTime", "Stats", "Subscriber"]
