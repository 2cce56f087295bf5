"""The journal's compiled half; see _journal.pyx."""

from collections.abc import Callable

from typing_extensions import Buffer

from ..storage import LogFailed
from ..storage._log import LogAppender
from ..storage._tree import TreeCore

class Journal:
    def __init__(self, appender: LogAppender, sync: str, interval: float) -> None: ...
    unindexed: dict[str, BaseException]
    def add_ring(
        self,
        segment: Buffer,
        control: Buffer,
        core: TreeCore | None = None,
        rotate: Callable[[], None] | None = None,
    ) -> None: ...
    def asleep(self) -> object: ...
    def kick(self) -> None: ...
    def failure(self) -> LogFailed | None: ...
    def request_stop(self) -> None: ...
    def run(self) -> int: ...
