"""A writer whose bus other hosts hold as well: it follows, and a leader's rows are applied; or it leads, and takes lanes.

1. Rings, log and store are the same ones in both roles. What changes is who publishes in the rings: `apply`, or the drains of the
   topics' lanes; never both.
2. The bus segment tells the role, and the leader's name, to those who want to publish. That it leads is told when the drains run,
   that it follows before they end: so nobody waits for an answer that does not come.
3. What is replicated is said by whoever holds this object (`raise_replicated`), and knows what the other hosts have.

It belongs to one thread at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..storage import Schema
from ..storage.recovery import Contents
from . import _lanes, _segment
from ._journal import Journal
from ._publish import RingPublisher
from .errors import NotLeader
from .lanes import LeftLane, TopicLanes, find_left
from .segments import Segment

__all__ = ["Drains", "Replicating", "Replication", "Ring"]

STEP_DOWN_S = (
    1.0  # for which readers may leave no room for what is in the lanes; the rest stays there for the next time
)


@dataclass(frozen=True, slots=True)
class Replication:
    """Of a bus that other hosts hold as well.

    log_id: what all of them call its log; a log that is there must have it. ends: each topic's last sequence that is known to be
    replicated; a topic that is not named has none. acknowledge: what publishers wait for unless they say it: "sync": that a record
    is replicated; "async": that it is durable here. proven: what was found in a log that came from another host, when
    this process proved it: it is not read again to open it.
    """

    log_id: int
    ends: Mapping[str, int] = field(default_factory=dict[str, int])
    acknowledge: Literal["sync", "async"] = "sync"
    proven: Contents | None = None

    @property
    def number(self) -> int:
        """As in the rings' headers: REPLICATES_SYNC, REPLICATES_ASYNC."""
        return 1 if self.acknowledge == "sync" else 2


@dataclass(frozen=True, slots=True)
class Ring:
    """A topic's ring, and how to make who publishes in it."""

    schema: Schema
    data: Segment
    control: Segment
    make_lanes: Callable[[list[LeftLane]], TopicLanes]
    make_publisher: Callable[[], RingPublisher]


@dataclass(slots=True)
class Drains:
    """Those that run, by topic; the writer ends them when it closes."""

    lanes: dict[str, TopicLanes] = field(default_factory=dict[str, TopicLanes])
    threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def start(self, topic: str) -> None:
        thread = threading.Thread(target=self.lanes[topic].run, name=f"ringmain-lanes-{topic}", daemon=True)
        self.threads.append(thread)
        thread.start()

    def stop(self, patience_s: float, *, for_good: bool) -> None:
        """Let the lanes end, and the threads: those that have begun."""
        for topic in self.lanes if self.threads else ():
            self.lanes[topic].request_stop(patience_s, for_good=for_good)
        for thread in self.threads:
            thread.join()


class Replicating:
    """A replicated writer's role. It follows at first; whom, nobody has told yet."""

    def __init__(
        self,
        bus: str,
        bus_segment: Segment,
        rings: Mapping[str, Ring],
        drains: Drains,
        journal: Journal,
        rose: Callable[[], None],
    ) -> None:
        """rose: called when more is replicated."""
        self.journal = journal
        self._bus, self._bus_segment, self._rings, self._drains = bus, bus_segment, rings, drains
        self._rose = rose
        self._publishers = {topic: ring.make_publisher() for topic, ring in rings.items()}
        self._leader = ""
        self._leads = self._retired = False

    @property
    def leads(self) -> bool:
        return self._leads

    @property
    def topics(self) -> Mapping[str, Ring]:
        return self._rings

    def check_leads(self) -> None:
        """Raise NotLeader unless it leads."""
        if not self._leads:
            raise NotLeader(self._bus, self._leader)

    def apply(self, topic: str, rows: bytes | memoryview) -> int:
        """Publish the leader's rows, stamps included, right behind the topic's end: as many as there is room for now. Never waits.

        rows: the bytes of whole rows. Returns how many were published. Raises ValueError where they do not go on there, Fenced,
        WriterFailed.
        """
        assert not self._leads
        return self._publishers[topic].apply(rows)

    def raise_replicated(self, topic: str, sequence: int) -> None:
        """A topic's rows up to a sequence, as far as they are here, are replicated."""
        ring = self._rings[topic]
        _segment.raise_replicated(ring.data.memory, ring.control.memory, sequence)
        if self._retired:
            self._drains.lanes[topic].raise_known()
        self._rose()

    def lead(self) -> None:
        """Take lanes for all topics from now on."""
        if self._leads:
            return
        self._take_lanes_away()
        for topic, ring in self._rings.items():
            self._publishers.pop(topic).close()
            left = find_left(self._bus, topic, ring.schema, ring.data)
            _lanes.clear_table(ring.control.memory)
            for index, lane in enumerate(left):
                _lanes.begin_position(ring.data.memory, index, lane.number, lane.drained)
            self._drains.lanes[topic] = ring.make_lanes(left)
            self._drains.start(topic)
        self._leads = True
        _segment.set_role(self._bus_segment.memory, _segment.ROLE_LEADS)

    def retire(self, leader: str) -> None:
        """Take no lanes from now on; who publishes is told who leads. leader: "" where nobody knows. Nothing is applied yet.

        What is in the lanes is drained before, unless they are held: then it is in no topic. May take a second. Who waits there for
        what was taken in is told as that is replicated, until `follow`.
        """
        self._leader = leader
        _segment.set_role(self._bus_segment.memory, _segment.ROLE_FOLLOWS, leader)
        if not self._leads:
            return
        self._drains.stop(STEP_DOWN_S, for_good=False)
        self._drains.threads.clear()
        self._publishers = {topic: ring.make_publisher() for topic, ring in self._rings.items()}
        self._leads, self._retired = False, True

    def follow(self, leader: str) -> None:
        """Retire, and be ready to apply rows."""
        self.retire(leader)
        self._take_lanes_away()

    def _take_lanes_away(self) -> None:
        self._retired = False
        for lanes in self._drains.lanes.values():
            lanes.finish()
        self._drains.lanes.clear()

    def hold(self, held: bool) -> None:
        """While it leads: take nothing out of the lanes for now."""
        for lanes in self._drains.lanes.values():
            lanes.hold(held)

    @property
    def holds(self) -> bool:
        """Whether nothing is taken out of the lanes any more, since `hold`."""
        return all(lanes.holds for lanes in self._drains.lanes.values())

    def close(self) -> None:
        """Refuse every later call of `apply`. The writer does this."""
        for publisher in self._publishers.values():
            publisher.close()
