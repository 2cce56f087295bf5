"""What a manifest says: the tables, checkpoints and topics of a store at one instant, and an edit of that. Values, nothing else.

A state is never edited, it is replaced whole. A store's table numbers are unique in all of its topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from .decodable import decodable
from .version import TableInfo, Version

__all__ = ["Draft", "Edit", "State", "TopicInfo"]


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topic as the store keeps it. schema: its JSON, as `Schema.to_json` writes it.

    keep_versions: every row stays, not only the newest of a key.
    """

    schema: str
    keep_versions: bool = False


@decodable
class Edit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a commit changes; field for field also its JSON form. What is left out stays as it is.

    removed: numbers of tables; one that is added as well moves to its new level. checkpoints: of a topic, every row up to
    this sequence is in tables, deleted or replaced; it only rises. topics: new ones, or old ones described anew.
    next_number: no table had this number or a higher one; a lower one says nothing, and it rises by itself past every
    table that is added.
    """

    topics: Mapping[str, TopicInfo] = {}
    removed: Sequence[int] = ()
    added: Sequence[TableInfo] = ()
    checkpoints: Mapping[str, int] = {}
    next_number: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """What a manifest says at one instant. Every topic has a version and a checkpoint, empty and 0 at first."""

    log_id: int
    topics: Mapping[str, TopicInfo]
    versions: Mapping[str, Version]
    checkpoints: Mapping[str, int]
    next_number: int

    @classmethod
    def empty(cls, log_id: int) -> State:
        return cls(log_id, {}, {}, {}, 1)

    def edit(self, edit: Edit) -> State:
        """Return the state behind an edit. Raises ValueError for one that cannot follow, and then nothing has changed."""
        draft = Draft(self)
        draft.apply(edit)
        return draft.finish()

    def as_edit(self) -> Edit:
        """The edit that makes this state from an empty one."""
        return Edit(
            topics=self.topics,
            added=tuple(table for version in self.versions.values() for table in version.tables()),
            checkpoints={topic: sequence for topic, sequence in self.checkpoints.items() if sequence},
            next_number=self.next_number,
        )


class Draft:
    """A state while edits are applied to it; a topic's version is made once, at the end."""

    def __init__(self, state: State) -> None:
        self.start = state
        self.topics, self.checkpoints = dict(state.topics), dict(state.checkpoints)
        self.tables = {table.number: table for version in state.versions.values() for table in version.tables()}
        self.next_number = state.next_number
        self.touched: set[str] = set()

    def apply(self, edit: Edit) -> None:
        self.topics.update(edit.topics)
        for number in edit.removed:
            table = self.tables.pop(number, None)
            if table is None:
                raise ValueError(f"table {number} is removed and was not there")
            self.touched.add(table.topic)
        for table in edit.added:
            self._check_topic(table.topic)
            if table.number in self.tables:
                raise ValueError(f"table {table.number} is there twice")
            self.tables[table.number] = table
            self.touched.add(table.topic)
        for topic, sequence in edit.checkpoints.items():
            self._check_topic(topic)
            if sequence < self.checkpoints.get(topic, 0):
                raise ValueError(
                    f"the checkpoint of topic {topic!r} goes back from {self.checkpoints[topic]} to {sequence}"
                )
            self.checkpoints[topic] = sequence
        self.next_number = max(self.next_number, edit.next_number, *(table.number + 1 for table in edit.added))

    def finish(self) -> State:
        versions = {topic: self.start.versions.get(topic, Version()) for topic in self.topics}
        now: dict[str, dict[int, TableInfo]] = {topic: {} for topic in self.touched}
        for number, table in self.tables.items():
            if table.topic in now:
                now[table.topic][number] = table
        for topic, tables in now.items():
            before = {table.number: table for table in versions[topic].tables()}
            versions[topic] = versions[topic].edit(
                [table for number, table in tables.items() if before.get(number) is not table],
                [number for number, table in before.items() if tables.get(number) is not table],
            )
        checkpoints = {topic: self.checkpoints.get(topic, 0) for topic in self.topics}
        return State(self.start.log_id, self.topics, versions, checkpoints, self.next_number)

    def _check_topic(self, topic: str) -> None:
        if topic not in self.topics:
            raise ValueError(f"topic {topic!r} is not known")
