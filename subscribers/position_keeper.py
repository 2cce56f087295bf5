"""A thread that keeps a subscriber's position on the disk, so that reading need not wait for it.

1. What is stored never goes beyond what the log has on the disk: after a power cut the topic holds all that a position counts.
2. A position and its state are stored together, or neither.
3. The subscriber's thread waits for the interpreter while this one has it: what happens for each position is kept short.
4. It sleeps while there is nothing to store. What the disk refuses is not tried again: `check` raises it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..bus.errors import BusError
from ..bus.positions import KIND_RESUMABLE, Position
from ..bus.slot_file import SlotFile

__all__ = ["Checkpoint", "PositionKeeper"]

NAP_S_MAX = 0.25  # between looks at a log that does not become durable
NAP_WAITED_FOR_S = 0.0005
CLOSE_S = 1.0
NO_STATE, STATE = b"\0", b"\1"


class Checkpoint(NamedTuple):
    """Everything up to `sequence` is done with, and this came of it."""

    sequence: int
    state: bytes | None = None

    @classmethod
    def of(cls, position: Position) -> Checkpoint:
        body = position.body
        return cls(position.sequence, body[1:] if body[:1] == STATE else None)

    def position(self, log_id: int) -> Position:
        body = NO_STATE if self.state is None else STATE + self.state
        return Position(KIND_RESUMABLE, log_id, self.sequence, body)


class PositionKeeper:
    """Stores what is offered, every now and then, in the file `path`. From `start` to `close`.

    log_id: what the positions belong to. stored: what the file holds, None where there is none.
    safe: up to where records will not go any more. tell: called with every sequence that was stored.
    whole: checkpoints are stored as they were offered. Otherwise `done`, which the subscriber sets, and no state: a part of the way
    counts, too, up to what is safe by then.
    every: seconds between two, at least. every_rows: or as soon as so many records are done with.

    done: everything up to this sequence is done with. listens: after `done` was set, `look` is to be called; else there is no need:
    reading pays for a position with one store and one load.
    """

    def __init__(
        self,
        path: Path,
        log_id: int,
        stored: Checkpoint | None,
        *,
        safe: Callable[[], int],
        tell: Callable[[int], None],
        whole: bool,
        every: float,
        every_rows: int | None,
    ) -> None:
        self.path, self.stored = path, stored
        self._log_id, self._safe, self._tell, self._whole = log_id, safe, tell, whole
        self._every, self._every_rows = every, every_rows
        self.done = 0
        self.listens = every_rows is not None
        self._offered = stored or Checkpoint(0)  # where `whole`
        self._held: Checkpoint | None = None  # offered before, and waiting to become safe
        self._file: SlotFile | None = None
        self._failure: OSError | None = None
        self._alarm, self._moved = threading.Lock(), threading.Condition()
        self._alarm.acquire()  # while it is held, the thread may sleep
        self._stopping = self._idle = False
        self._waiting = 0  # callers of `sync`
        self._thread: threading.Thread | None = None

    # --- the subscriber's thread ------------------------------------------------------------------------------------

    def start(self, begin: int) -> None:
        """Begin to keep. begin: the sequence up to which everything is done with."""
        self.done = begin
        if self.stored is not None:
            self._tell(self.stored.sequence)
        elif self._whole:
            self._offered = Checkpoint(begin)
        self._thread = threading.Thread(target=self._run, name="ringmain-position", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Checkpoint) -> None:
        """Have this stored, sooner or later, unless a newer one is. Raises BusError as `look`."""
        self._offered, self.done = checkpoint, checkpoint.sequence
        if self.listens:
            self.look()

    def look(self) -> None:
        """See to what `done` was set to. Raises BusError where nothing is stored any more."""
        if self._failure is not None:
            self._check()
        stored = self.stored
        if self._idle or (
            self._every_rows is not None and stored is not None and self.done - stored.sequence >= self._every_rows
        ):
            self._wake()

    def sync(self, timeout: float | None) -> None:
        """Wait until what was offered is on the disk. Raises TimeoutError after `timeout` seconds, BusError as `look`."""
        wanted = self._wanted()
        with self._moved:
            self._waiting += 1
            self._wake()
            done = self._moved.wait_for(lambda: self._failure is not None or self._covers(wanted), timeout)
            self._waiting -= 1
        self._check()
        if not done:
            raise TimeoutError(
                f"{self.path}: sequence {wanted.sequence} was not stored within {timeout} s: no position is before its records are "
                f"on the disk, and the log is up to {self._safe()}"
            )

    def close(self) -> None:
        """Store what can be stored still, and end. Raises BusError as `look`."""
        if self._thread is None:
            return
        self._stopping = True
        self._wake()
        self._thread.join()
        self._thread = None
        if self._file is not None:
            self._file.close()
        self._check()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is woken already
            self._alarm.release()

    def _check(self) -> None:
        if self._failure is not None:
            raise BusError(f"{self.path}: the position is not stored any more: {self._failure}") from self._failure

    # --- its own thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._keep()
        except OSError as error:
            with self._moved:
                self._failure, self.listens = error, True
                self._moved.notify_all()

    def _keep(self) -> None:
        nap_s = self._every
        while not self._stopping:
            if self._store_due():
                nap_s = self._every
            elif self._covers(self._wanted()):
                self._idle = self.listens = True
                if self._covers(self._wanted()) and not self._stopping:
                    self._alarm.acquire()
                self._idle, self.listens = False, self._every_rows is not None
                continue
            else:
                nap_s = min(2 * nap_s, NAP_S_MAX)
            self._alarm.acquire(timeout=min(NAP_WAITED_FOR_S if self._waiting else nap_s, threading.TIMEOUT_MAX))
        give_up = time.monotonic() + CLOSE_S
        while not self._covers(self._wanted()) and time.monotonic() < give_up:
            if not self._store_due():
                time.sleep(NAP_WAITED_FOR_S)

    def _wanted(self) -> Checkpoint:
        """What is to be stored now, or once it is safe."""
        return self._offered if self._whole else Checkpoint(self.done)

    def _covers(self, wanted: Checkpoint) -> bool:
        stored = self.stored
        if stored is None:
            return False
        if self._whole:
            return stored is wanted or stored.sequence > wanted.sequence
        return stored.sequence == wanted.sequence

    def _due(self) -> Checkpoint | None:
        """What may be stored now and is not yet."""
        offered, safe = self._wanted(), self._safe()
        if offered.sequence <= safe:
            self._held = None
            return None if self._covers(offered) else offered
        if not self._whole:
            part = Checkpoint(safe)
            return None if self._covers(part) else part
        held = self._held
        if held is None or held.sequence <= safe:
            self._held = offered
        return held if held is not None and held.sequence <= safe else None

    def _store_due(self) -> bool:
        """Store what is due. False where nothing is."""
        checkpoint = self._due()
        if checkpoint is None:
            return False
        payload = checkpoint.position(self._log_id).encode()
        if self._file is None and self.stored is not None:
            self._file = SlotFile.open(self.path)
            self._file.read()
        if self._file is not None and self._file.has_room(payload):
            self._file.write(payload, sync=True)
        else:
            former, self._file = self._file, SlotFile.replace(self.path, payload)
            if former is not None:
                former.close()
        self.stored = checkpoint
        if self._waiting:
            with self._moved:
                self._moved.notify_all()
        self._tell(checkpoint.sequence)
        return True
