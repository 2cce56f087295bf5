"""The bus moves rows: rings in shared memory, their one writer, and attaching to them from other processes."""

from ._read import Batch
from .acknowledgement import wait_acknowledged
from .attach import Attached, Watermarks, attach
from .errors import (
    AlreadyRunning,
    AttachError,
    BusError,
    Fenced,
    NotFound,
    NotLeader,
    Overrun,
    PositionRefused,
    RingFull,
    WriterAlive,
    WriterFailed,
)
from .lane_publisher import LanePublisher, open_lane
from .leader_lane import LeaderLane, NobodyLeads
from .publisher import Claim, Publisher
from .replicating import Replication
from .writer import Carried, Writer

__all__ = [
    "AlreadyRunning",
    "AttachError",
    "Attached",
    "Batch",
    "BusError",
    "Carried",
    "Claim",
    "Fenced",
    "LanePublisher",
    "LeaderLane",
    "NobodyLeads",
    "NotFound",
    "NotLeader",
    "Overrun",
    "PositionRefused",
    "Publisher",
    "Replication",
    "RingFull",
    "Watermarks",
    "Writer",
    "WriterAlive",
    "WriterFailed",
    "attach",
    "open_lane",
    "wait_acknowledged",
]
