"""Reading a topic as it is published."""

from __future__ import annotations

from ..storage import LogReader
from .reader import Follow, Start, TopicReader, Wait, followed, wait_for_topic

__all__ = ["RealTime"]


class RealTime(TopicReader):
    """Follows a topic's ring: `for batch in RealTime("exchange/trades"): …`

    address: "BUS/TOPIC".
    follow: hand records out once they are published (at once), logged (they survive a kill), durable (and a power cut), or
    replicated (and the loss of the host); None: published, on a replicated bus replicated.
    start: "latest" (what comes from now on), "earliest" (all that is kept, log included), or the first sequence wanted.
    reliable: hold the writer back rather than be lapped. Otherwise records missed in the ring are read from the log, and
    where there is no log they are counted in `batch.lost` and `stats.lost_count`.
    wait: "futex" sleeps and costs nothing while idle, "spin" answers fastest and keeps a core busy, "yield" is between.
    name: shown by `ringmain inspect`; by default the script's. batch_rows: most rows a batch, by default a quarter of the ring.
    reopen: after a writer has closed in good order, wait for the next one instead of ending. A killed writer is always waited for.
    open_timeout: seconds to wait for the topic to be opened.

    Raises NotFound, AttachError, ValueError.
    """

    def __init__(
        self,
        address: str,
        *,
        follow: Follow | None = None,
        start: Start = "latest",
        reliable: bool = False,
        wait: Wait = "futex",
        name: str = "",
        batch_rows: int | None = None,
        reopen: bool = False,
        open_timeout: float = 0.0,
    ) -> None:
        if start not in ("latest", "earliest") and (isinstance(start, str) or start < 1):
            raise ValueError(f'start: "latest", "earliest" or a sequence from 1 on is expected, got {start!r}')
        ring = wait_for_topic(address, open_timeout)
        has_log = ring.log_directory is not None
        log = (
            LogReader(ring.log_directory, ring.topic) if ring.log_directory is not None and start != "latest" else None
        )
        super().__init__(
            address,
            ring=ring,
            log=log,
            follow=follow,
            wait=wait,
            reliable=reliable,
            name=name,
            batch_rows=batch_rows,
            reopen=reopen,
        )
        if start == "latest":
            marks = ring.watermarks()
            self._open_at(getattr(marks, followed(ring, follow)))
        elif start == "earliest":
            self._open_at(log.oldest - 1 if log is not None else 0, oldest=not has_log)
        else:
            self._open_at(start - 1)
