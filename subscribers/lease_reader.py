"""Reading here and there in a topic, as a member of a group does: any rows that are kept, from the ring or from the past."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from ..bus import Attached, AttachError, Batch, NotFound, attach
from ..bus._read import RingCursor
from ..storage import PastReader
from .reader import FINISHED, Follow, TopicReader, Wait, began_at, followed

__all__ = ["LeaseReader"]


class Succession(NamedTuple):
    """A newer writer goes on with a log, in a ring of its own.

    published: the last sequence in the former ring. began: the last one that the newer ring began with. inode: the newer ring.
    """

    published: int
    began: int
    inode: int

    @classmethod
    def of(cls, former: RingCursor, newer: Attached) -> Succession:
        return cls(former.published, began_at(newer, newer.watermarks().published), newer.data.inode)


class LeaseReader(TopicReader):
    """Reads what it is told to, and between that stands where it is told to wait.

    ring: of a bus with a log. name: in the reader table.
    """

    def __init__(
        self,
        address: str,
        ring: Attached,
        *,
        follow: Follow | None,
        wait: Wait,
        name: str,
        batch_rows: int,
        reopen: bool,
    ) -> None:
        assert ring.data_directory is not None
        super().__init__(
            address,
            ring=ring,
            log=PastReader(ring.data_directory, ring.topic),
            follow=follow,
            wait=wait,
            reliable=False,
            name=name,
            batch_rows=batch_rows,
            reopen=reopen,
        )
        self._follows_replicated = followed(ring, follow) == "replicated"
        self.moved: Succession | None = None  # what made it move to another ring; whoever has seen to that sets it back
        self._newer: Attached | None = None
        self._open_at(ring.watermarks().published)

    def _enter(self, ring: Attached, position: int, former: RingCursor | None = None) -> None:
        before, log_id = self._cursor, self.log_id
        super()._enter(ring, position, former)
        self._newer = None
        if before is not None and self.log_id == log_id:
            self.moved = Succession.of(before, ring)

    @property
    def newest(self) -> int:
        """The last sequence that could be read now. What an old ring holds, but the newer one began without, is no more."""
        if self._cursor is not None:
            newest, succession = self._cursor.watermark, self._find_succession()
            return newest if succession is None else min(newest, succession.began)
        return self._log.newest if self._log is not None else self._position

    @property
    def oldest(self) -> int:
        """The first sequence that is kept."""
        assert self._log is not None
        return self._log.oldest

    @property
    def succession(self) -> Succession | None:
        """What has made it move, or soon will: a newer ring of the same log is there. None where there is none."""
        return self.moved or self._find_succession()

    def _find_succession(self) -> Succession | None:
        cursor, ring = self._cursor, self._ring
        if cursor is None or ring is None or not cursor.status & FINISHED or ring.is_current():
            return None
        if self._newer is None or not self._newer.is_current():
            self._newer = None
            with contextlib.suppress(NotFound, AttachError):
                self._newer = attach(self.address)
        newer = self._newer
        return Succession.of(cursor, newer) if newer is not None and newer.header["log_id"] == self.log_id else None

    def end_before(self, given: int) -> int | None:
        """Where the topic ended when the ring that is read was made, if it has not come to `given` since; else None.

        given: what others have read up to, known before this is asked. They may have found a newer ring: an old one tells nothing.
        Nor does one of a replicated bus of which only what is replicated is read: that is not lost, this host is behind.
        """
        cursor, ring = self._cursor, self._ring
        if cursor is None or ring is None or (ring.header["replicates"] and self._follows_replicated):
            return None
        published = cursor.published
        if given <= published or cursor.status & FINISHED or not ring.is_current():  # in this order
            return None
        return began_at(ring, published)

    def read(self, first: int, last: int) -> Batch | None:
        """Rows from `first` on, as many as come in one piece, none behind `last`. They must have been there, as `newest` tells.

        None where they are not there any more: the end of the topic was lost. Raises HistoryGone as `poll` does.
        """
        self._move_to(first - 1)
        self._ended, self._last = False, last
        self._from_log = self._cursor is None or first < self._cursor.oldest
        try:
            return self.poll()
        finally:
            self._ended, self._last = False, None

    def stand(self, position: int) -> None:
        """Wait behind a position from now on; `ended` tells whether nothing will come behind it.

        Moves to another ring where there is one. Raises BusError where that ends before the position: see `TopicReader`.
        """
        self._move_to(position)
        self._from_log = False
        if self._cursor is None:
            self._ended = position >= self.newest
        elif self._cursor.status:
            self._look_at_status(self._cursor)
