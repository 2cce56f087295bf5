"""A thread that keeps a subscriber's position on the disk, so that reading need not wait for it.

1. What is stored never goes beyond what the log has on the disk: after a power cut the topic holds all that a position counts.
2. A position and its state are stored together, or neither.
3. A subscriber that reads on is not held up: positions without a state are stored without the interpreter, see bus/slots.hpp.
4. A newer checkpoint counts even where its sequence is lower: a topic may be opened again with less, and go on with other records.
5. It sleeps while there is nothing to store. What the disk refuses is not tried again: whoever asks for more is told.
"""

from __future__ import annotations

import math
import mmap
import threading
import time
from pathlib import Path
from typing import NamedTuple

from ..bus._slots import KeptPosition
from ..bus.errors import BusError
from ..bus.positions import KIND_RESUMABLE, Position
from ..bus.slot_file import SlotFile
from ..storage.files import naming
from .reader import TopicReader

__all__ = ["Checkpoint", "PositionKeeper"]

NAP_S_MAX = 0.25  # between looks at a log that does not become durable
NAP_WAITED_FOR_S = 0.0005
CLOSE_S = 1.0
NO_STATE, STATE = b"\0", b"\1"


class Checkpoint(NamedTuple):
    """Everything up to `sequence` is done with, and this came of it. number: of the offer, by which a newer one is told."""

    sequence: int
    state: bytes | None = None
    number: int = 0

    @classmethod
    def of(cls, position: Position) -> Checkpoint:
        body = position.body
        return cls(position.sequence, body[1:] if body[:1] == STATE else None)

    def position(self, log_id: int) -> Position:
        body = NO_STATE if self.state is None else STATE + self.state
        return Position(KIND_RESUMABLE, log_id, self.sequence, body)


class PositionKeeper(KeptPosition):
    """Stores what is offered, every now and then, in the file `path`. From `start` to `close`.

    log_id: what the positions belong to. checkpoint: what the file holds, None where there is none.
    reader: knows up to where records are safe, and shows what was stored, a tenth of a second later at most while it reads on.
    whole: checkpoints are stored as they were offered. Otherwise where it was moved to, and no state: a part of the way counts, up
    to what is safe by then.
    every: seconds between two, at least. every_rows: or as soon as so many records are done with.
    """

    def __init__(
        self,
        path: Path,
        log_id: int,
        checkpoint: Checkpoint | None,
        reader: TopicReader,
        *,
        whole: bool,
        every: float,
        every_rows: int | None,
    ) -> None:
        self.path = path
        self._log_id, self._reader, self._whole = log_id, reader, whole
        self._every, self._every_rows = every, every_rows
        self._checkpoint = checkpoint  # the last that this class has stored
        self._offered = checkpoint or Checkpoint(0)  # where `whole`
        self._held: Checkpoint | None = None  # offered before, and waiting to become safe
        self._withdrawn = -1  # offers up to this number are not stored any more
        self._file: SlotFile | None = None
        self._failure: OSError | None = None
        self._moved = threading.Condition()
        self._stopping = False
        self._waiting = 0  # callers of `sync`
        self._thread: threading.Thread | None = None

    # --- the subscriber's thread ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to keep. Everything before the reader's position is done with."""
        begin, stored = self._reader.position, self._checkpoint.sequence if self._checkpoint is not None else 0
        self.begin(begin, stored, self._every_rows)
        if self._checkpoint is not None:
            self._reader.acknowledge(stored)
        elif self._whole:
            self._offered = Checkpoint(begin)
        self._thread = threading.Thread(target=self._run, name="ringmain-position", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Checkpoint) -> None:
        """Have this stored, sooner or later, unless a newer one is. Raises BusError as `check`."""
        self._offered = checkpoint._replace(number=self._offered.number + 1)
        if self.move_to(checkpoint.sequence, anew=True):
            self.check()

    def take_back(self, position: int) -> None:
        """The records behind `position` are no more: what came of them is not stored, unless it is already.

        An older offer that waits to become safe, and goes no further than that, is as good as ever: it is made anew.
        """
        offered, held, withdrawn = self._offered, self._held, self._withdrawn
        if offered.sequence > position:
            self._withdrawn = offered.number
            if held is not None and held.number > withdrawn and held.sequence <= position:
                self._offered = held._replace(number=offered.number + 1)
                self.move_to(held.sequence, anew=True)
        if self.done > position:
            self.move_to(position)

    def check(self) -> None:
        """Raises BusError where nothing is stored any more."""
        if self._failure is not None:
            raise BusError(f"{self.path}: the position is not stored any more: {self._failure}") from self._failure

    def sync(self, timeout: float | None) -> None:
        """Wait until what was offered is on the disk. Raises TimeoutError after `timeout` seconds, BusError as `check`."""
        wanted = self._wanted()
        with self._moved:
            self._waiting += 1
            self.ask()
            done = self._moved.wait_for(lambda: self._failure is not None or self._covers(wanted), timeout)
            self._waiting -= 1
        self.check()
        if not done:
            raise TimeoutError(
                f"{self.path}: sequence {wanted.sequence} was not stored within {timeout} s: no position is before its records are "
                f"on the disk, and the log is up to {self._reader.safe_position}"
            )

    def close(self) -> None:
        """Store what can be stored still, and end. Raises BusError as `check`."""
        if self._thread is None:
            return
        self._stopping = True
        self.ask()
        self._thread.join()
        self._thread = None
        if self._file is not None:
            self._file.close()
        self.check()

    # --- its own thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._keep()
        except OSError as error:
            with self._moved:
                self._failure = error
                self.fail()
                self._moved.notify_all()

    def _keep(self) -> None:
        if self._checkpoint is not None:
            self._file = SlotFile.open(self.path)
            self._file.read()
        nap_s = self._every
        while not self._stopping:
            stored = self._store_due()
            covered = not stored and self._covers(self._wanted())
            nap_s = self._every if stored or covered else min(2 * nap_s, NAP_S_MAX)
            segment = self._reader.data_segment
            if self._waiting:
                self.wait(NAP_WAITED_FOR_S)
            elif segment is not None and not self._whole:
                self._store_on(segment, nap_s)
            elif covered:
                self._sleep()
            else:
                self.wait(nap_s)
        give_up = time.monotonic() + CLOSE_S
        while not self._covers(self._wanted()) and time.monotonic() < give_up:
            if not self._store_due():
                time.sleep(NAP_WAITED_FOR_S)

    def _wanted(self) -> Checkpoint:
        """What is to be stored now, or once it is safe."""
        return self._offered if self._whole else Checkpoint(self.done)

    def _covers(self, wanted: Checkpoint) -> bool:
        """Whether there is nothing to do for what was wanted: it, or a newer one, is stored; or it counts no more."""
        if self._whole and wanted.number <= self._withdrawn:
            return True
        if self._checkpoint is None:
            return False
        return self._checkpoint.number >= wanted.number if self._whole else self.stored == wanted.sequence

    def _due(self) -> Checkpoint | None:
        """What may be stored now and is not yet."""
        offered, safe = self._wanted(), self._reader.safe_position
        if offered.sequence <= safe:
            self._held = None
            return None if self._covers(offered) else offered
        if not self._whole:
            part = Checkpoint(safe)
            return None if self._covers(part) else part
        held = self._held
        if held is not None and held.number <= self._withdrawn:
            held = None
        if held is None or held.sequence <= safe:
            self._held = offered
        return held if held is not None and held.sequence <= safe else None

    def _store_due(self) -> bool:
        """Store what is due. False where nothing is."""
        checkpoint = self._due()
        if checkpoint is None:
            return False
        payload = checkpoint.position(self._log_id).encode()
        if self._file is not None and self._file.has_room(payload):
            self._file.write(payload, sync=True)
        else:
            former, self._file = self._file, SlotFile.replace(self.path, payload)
            if former is not None:
                former.close()
        self._checkpoint, self.stored = checkpoint, checkpoint.sequence
        self._tell()
        return True

    def _store_on(self, segment: mmap.mmap, nap_s: float) -> None:
        """Store what is done with after so many seconds, and so on, as long as there is nothing else to do."""
        assert self._file is not None
        assert self._file.writer is not None
        payload, again = Checkpoint(0).position(self._log_id).encode(), True
        while again:
            with naming(self.path):
                again = self.keep(self._file.writer, payload, segment, nap_s, self._every)
            nap_s = self._every
            self._tell()

    def _sleep(self) -> None:
        """Until it moves, or is asked."""
        self.set_idle(True)
        if self._covers(self._wanted()):
            self.wait(math.inf)
        self.set_idle(False)

    def _tell(self) -> None:
        """Say what was stored."""
        if self._waiting:
            with self._moved:
                self._moved.notify_all()
        self._reader.acknowledge(self.stored)
