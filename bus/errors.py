"""What can go wrong on a bus: a small tree, with words for people and fields for code."""

from __future__ import annotations

__all__ = [
    "AlreadyRunning",
    "AttachError",
    "BusError",
    "Fenced",
    "NotFound",
    "NotLeader",
    "Overrun",
    "PositionRefused",
    "RingFull",
    "WriterAlive",
    "WriterFailed",
]


class BusError(Exception):
    """Anything that the bus reports about its segments, its writer or its readers."""


class Overrun(BusError):
    """The writer lapped this reader: rows that it held, or wanted next, are overwritten in the ring.

    wanted: the first sequence concerned. resume_at: the oldest sequence still whole in the ring. lost_count: how many lie
    between. Where the bus has a log the rows are still there: read on, and the subscriber fetches them by itself.
    """

    def __init__(self, wanted: int, resume_at: int) -> None:
        self.wanted, self.resume_at, self.lost_count = wanted, resume_at, max(0, resume_at - wanted)
        super().__init__(
            f"sequence {wanted} was overwritten ({self.lost_count} records from there on); the ring now begins at "
            f"{resume_at}. Read more often, take smaller batches, give the topic more slots, or subscribe with reliable=True"
        )

    def __reduce__(self) -> tuple[type[Overrun], tuple[int, int]]:
        return type(self), (self.wanted, self.resume_at)


class RingFull(BusError):
    """There was no room for a record within the time allowed: readers or the log hold the ring.

    held_by: who holds it, for people. published_count: how many records of the batch were published before.
    """

    def __init__(self, topic: str, held_by: str, published_count: int = 0) -> None:
        self.topic, self.held_by, self.published_count = topic, held_by, published_count
        super().__init__(
            f"topic {topic!r}: the ring is full, held back by {held_by}; {published_count} records of this call were published"
        )

    def __reduce__(self) -> tuple[type[RingFull], tuple[str, str, int]]:
        return type(self), (self.topic, self.held_by, self.published_count)


class Fenced(BusError):
    """A newer writer has taken over this bus; this one may not publish any more and should be closed."""


class WriterFailed(BusError):
    """The writer's log has stopped; the cause says why. Nothing more is acknowledged."""


class WriterAlive(BusError):
    """Another living process is this bus's writer. pid: which."""

    def __init__(self, bus: str, pid: int) -> None:
        self.bus, self.pid = bus, pid
        super().__init__(
            f"bus {bus!r} already has a writer, process {pid}; stop it first, use another bus name, or take over with "
            "take_over=True (the other one is then fenced)"
        )

    def __reduce__(self) -> tuple[type[WriterAlive], tuple[str, int]]:
        return type(self), (self.bus, self.pid)


class NotLeader(BusError):
    """This host's node of a replicated bus does not lead; another one takes records. leader: its name, "" where none is known.

    again: it leads by now, but did not in between, and what a lane has brought it before may be lost.
    """

    def __init__(self, bus: str, leader: str, more: str = "", again: bool = False) -> None:
        self.bus, self.leader, self.more, self.again = bus, leader, more, again
        who = f"node {leader!r} does: publish there" if leader else "no node is known to; try again soon"
        role = "leads again, and another may have led meanwhile" if again else f"does not lead; {who}"
        super().__init__(f"bus {bus!r}: this node {role}{more}")

    def __reduce__(self) -> tuple[type[NotLeader], tuple[str, str, str, bool]]:
        return type(self), (self.bus, self.leader, self.more, self.again)


class NotFound(BusError):
    """No such bus or topic is open on this machine."""


class AttachError(BusError):
    """A segment that cannot be used: foreign, of another version, damaged, or not ours to open. The text says which."""


class AlreadyRunning(BusError):
    """Another living process goes by this subscriber's name. name: which. pid: that process, None where it cannot be told."""

    def __init__(self, name: str, pid: int | None) -> None:
        self.name, self.pid = name, pid
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"subscriber {name!r} is running already, as {holder}; stop it first, or give this one a name of its own"
        )

    def __reduce__(self) -> tuple[type[AlreadyRunning], tuple[str, int | None]]:
        return type(self), (self.name, self.pid)


class PositionRefused(BusError):
    """A stored position that does not belong to what is read: of another log, of another kind, or ahead of the topic."""
