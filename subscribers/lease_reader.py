"""Reading here and there in a topic, as a member of a group does: any rows that are kept, from the ring or from the past."""

from __future__ import annotations

from ..bus import Attached, Batch
from ..storage import PastReader
from .reader import Follow, TopicReader, Wait

__all__ = ["LeaseReader"]


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
        self._open_at(ring.watermarks().published)

    @property
    def newest(self) -> int:
        """The last sequence that could be read now."""
        if self._cursor is not None:
            return self._cursor.watermark
        return self._log.newest if self._log is not None else self._position

    @property
    def oldest(self) -> int:
        """The first sequence that is kept."""
        assert self._log is not None
        return self._log.oldest

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
