"""The state of a group, on disk: changed by its members one after the other, and kept safe from power cuts in the background.

1. A change is in `live.N` when it is made, without a sync: it survives every kill. It is copied into `kept.N`, with a sync, within
   KEEP_S. A power cut takes at most what was settled since; those rows are handed out again.
2. Once the machine was restarted, `live.N` counts no more, and nobody is a member.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from ..bus import BusError
from ..bus.group_state import Group
from ..bus.positions import KEPT, KIND_GROUP, LIVE, Position, boot_id, shared_by_group
from ..storage import FormatMismatch

__all__ = ["GroupFile"]

KEEP_S = 0.05

T = TypeVar("T")


class GroupFile:
    """A member's way to the state of its group, in the folder of the group's name.

    begin: the first sequence to hand out, where the group is new. told: it is that one, even if it is still to come, and not where
    the topic stands. check: called with what was found there.
    """

    def __init__(
        self, folder: Path, log_id: int, begin: int, check: Callable[[Position], None], *, told: bool = False
    ) -> None:
        self.folder = folder
        self._log_id, self._begin, self._told, self._check_found = log_id, begin, told, check
        self._live = shared_by_group(folder, LIVE)
        self._failure: Exception | None = None
        self._changed, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="ringmain-group", daemon=True)
        self._thread.start()

    def change(self, edit: Callable[[Group], T]) -> T:
        """Change the state in one step. Raises what has stopped the keeping.

        `edit` is called again where this process was stopped within it and the others went on: with a newer state, in which what
        it did before may be found done, or not.
        """
        if self._failure is not None:
            raise BusError(
                f"{self.folder}: the state of the group is not kept any more: {self._failure}"
            ) from self._failure
        results: list[T] = []
        changes = False

        def apply(payload: bytes | None) -> bytes | None:
            nonlocal changes
            group = self._decode(payload)
            results[:] = [edit(group)]
            changed = self._encode(group)
            if changed == payload:
                return None
            changes = True
            return changed

        self._live.change(apply)
        if changes:
            self._changed.set()  # now that `live` has it: the thread would copy what was there before, and sleep again
        return results[0]

    def close(self) -> None:
        """Have the state on the disk."""
        self._stopping.set()
        self._changed.set()
        self._thread.join()
        self._live.close()

    def _encode(self, group: Group) -> bytes:
        return Position(KIND_GROUP, self._log_id, group.floor, msgspec.msgpack.encode(group)).encode()

    def _decode(self, payload: bytes | None) -> Group:
        """The state in `live.N`; else, as after a restart of the machine, what was kept; else a new one."""
        position = Position.decode(payload, self.folder / LIVE) if payload is not None else None
        if position is None or position.boot != boot_id():
            payload = shared_by_group(self.folder, KEPT).read()
            if payload is None:
                return Group(self._begin, begin=self._begin if self._told else 0)
            position = Position.decode(payload, self.folder / KEPT)
        self._check_found(position)
        try:
            group = msgspec.msgpack.decode(position.body, type=Group)
        except msgspec.DecodeError as error:
            raise FormatMismatch(self.folder, "state of a group", "one of this release", str(error)) from None
        if position.boot != boot_id():
            group.restart()
        return group

    # --- its own thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        live, kept = shared_by_group(self.folder, LIVE), shared_by_group(self.folder, KEPT)
        try:
            while True:
                self._changed.wait()
                self._changed.clear()
                stopping = self._stopping.is_set()
                kept.change(lambda before: live.read())
                if stopping:
                    return
                self._stopping.wait(KEEP_S)
        except Exception as error:
            self._failure = error
        finally:
            kept.close()
