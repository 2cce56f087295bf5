"""Short lives of a store on a disk on which one call fails (`faulty_disk.c`): another one in each process, forked from one server.

Run as `python -m support.faulted_store FOLDER ERRNO CALLS archive|recycle NTH…`; prints an `Outcome` a line, of a life in which
the NTH of the calls fails; none does with 0. `7+`: all from the seventh on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ringmain.storage import StorageError
from ringmain.storage.store import Store
from support.logs import Rows
from support.told_store import (
    FILLER,
    FILLER_ROWS,
    GROUPS_OF_A_FILE,
    Told,
    check_goes_on,
    check_opened,
    check_rows,
    check_tidy,
    open_store,
    value_of,
)

TIMEOUT_S = 60
MEMTABLE_BYTES = 1_100_000  # a batch of FILLER just fits


class Error(msgspec.Struct):
    """What a step raised."""

    step: str
    kind: str
    text: str


class Outcome(msgspec.Struct):
    """What came of a life. tried: its calls of the kinds that may fail, (name, path). nth: which one failed, the first is 1.

    wrong: a traceback, or how the process ended, where a check failed.
    """

    nth: int
    tried: list[list[str]] = []
    errors: list[Error] = []
    wrong: str = ""


class Over(Exception):
    """The store cannot be opened any more."""


class Life:
    """Put, delete, flush, compact, begin new log files, close and reopen; go on after an error as far as that is possible."""

    def __init__(self, directory: Path, *, archive: bool) -> None:
        self.directory, self.archive, self.told = directory, archive, Told()
        self.errors: list[Error] = []
        self.store: Store | None = None

    def live(self) -> None:
        self.open("open")
        for key in range(3):
            self.put("things", key)
        self.batch("kept", [1, 2, 1, 3])
        self.act("snapshot", lambda store: store.snapshot())
        self.delete("things", 1)
        self.batch("things", [4, 5, 0])
        self.act("snapshot", lambda store: store.snapshot())
        self.act("compact", lambda store: store.compact())
        for _ in range(1 if self.archive else 2):  # without an archive, the first file is used again
            for _ in range(GROUPS_OF_A_FILE + 1):
                self.fill()
            self.act("sync", lambda store: store.sync())
            self.act("snapshot", lambda store: store.snapshot())
        self.put("kept", 2)
        self.close("close")
        self.open("reopen")
        self.put("things", 7)
        self.delete("kept", 3)
        self.act("snapshot", lambda store: store.snapshot())
        self.close("close again")

    def check_kept(self) -> None:
        """On a sound disk nothing acknowledged is missing, and the store goes on and tidies up."""
        with open_store(self.directory, memtable_bytes=MEMTABLE_BYTES) as store:
            stood = check_opened(store, self.told)
            check_goes_on(store, stood)
        check_tidy(self.directory)

    # --- steps --------------------------------------------------------------------------------------------------------

    def attempt(self, step: str, call: Callable[[], Any]) -> bool:
        try:
            call()
        except (StorageError, OSError) as error:
            self.errors.append(Error(step, type(error).__name__, str(error)))
            return False
        return True

    def open(self, step: str) -> None:
        """Where one call fails only, the second attempt must succeed."""
        opened: list[Store] = []

        def attempt() -> None:
            opened.append(
                open_store(self.directory, sync="always", memtable_bytes=MEMTABLE_BYTES, archive=self.archive)
            )

        self.store = None
        if not self.attempt(step, attempt):
            gc.collect()  # what the failed one held
            if not self.attempt(f"second {step}", attempt):
                raise Over
        (self.store,) = opened
        for name, stats in self.store.stats().items():
            topic = self.told.topics[name]
            assert topic.durable <= stats.sequence <= len(topic.history)
            topic.cut_off(stats.sequence)
        self.check_reads()

    def close(self, step: str) -> None:
        assert self.store is not None
        self.attempt(step, self.store.close)

    def act(self, step: str, call: Callable[[Store], None]) -> None:
        assert self.store is not None
        store = self.store
        if self.attempt(step, lambda: call(store)):
            for name, topic in self.told.topics.items():
                topic.durable = store[name].core.visible
        else:
            self.check_reads()

    def put(self, name: str, key: int) -> None:
        self.write(name, [(key, False)], lambda tree, first: tree.put(key, value_of(first)))

    def delete(self, name: str, key: int) -> None:
        self.write(name, [(key, True)], lambda tree, first: tree.delete(key))

    def batch(self, name: str, keys: list[int]) -> None:
        def put_batch(tree: Any, first: int) -> None:
            rows: Rows = np.zeros(len(keys), tree.schema.payload_dtype)
            rows["key"], rows["value"] = keys, [value_of(first + at) for at in range(len(keys))]
            tree.put_batch(rows)

        self.write(name, [(key, False) for key in keys], put_batch)

    def fill(self) -> None:
        self.batch(FILLER.name, [0] * FILLER_ROWS)

    def write(self, name: str, rows: list[tuple[int, bool]], call: Callable[[Any, int], Any]) -> None:
        assert self.store is not None
        topic, tree = self.told.topics[name], self.store[name]
        first = tree.core.next_sequence
        topic.cut_off(first - 1)  # what failed before is there or not, but not in this store
        topic.add(rows)
        if self.attempt(f"write {name}", lambda: call(tree, first)):
            topic.durable = len(topic.history)
        else:
            self.check_reads()

    def check_reads(self) -> None:
        """Reading goes on."""
        assert self.store is not None
        for name, topic in self.told.topics.items():
            tree = self.store[name]
            assert topic.durable <= tree.core.visible <= len(topic.history)
            check_rows(tree, topic, tree.core.visible)


# --- processes ----------------------------------------------------------------------------------------------------------


def set_fault(calls: str, nth: str, error: int, folder: Path) -> None:
    """From now on the nth of these calls fails, in this process."""
    os.environ.update(
        FAULTY_CALL=calls,
        FAULTY_NTH=nth,
        FAULTY_ERRNO=str(error),
        FAULTY_PATH=str(folder / "life"),
        FAULTY_TRACE=str(folder / "trace"),
    )


def run(folder: Path, calls: str, error: int, nth: str, *, archive: bool) -> Outcome:
    """A life in a process of its own."""
    outcome_path = folder / "outcome"
    for name in ("outcome", "trace", "stacks"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "life", ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        outcome = Outcome(int(nth.rstrip("+")))
        with (folder / "stacks").open("w") as stacks:
            faulthandler.dump_traceback_later(TIMEOUT_S, exit=True, file=stacks)
            life = Life(folder / "life", archive=archive)
            try:
                set_fault(calls, nth, error, folder)
                with contextlib.suppress(Over):
                    life.live()
                set_fault("none", "0", 0, folder / "nowhere")
                life.check_kept()
            except BaseException:
                outcome.wrong = traceback.format_exc()
            outcome.errors = life.errors
            outcome_path.write_bytes(msgspec.json.encode(outcome))
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    outcome = (
        msgspec.json.decode(outcome_path.read_bytes(), type=Outcome)
        if outcome_path.exists()
        else Outcome(int(nth.rstrip("+")))
    )
    if status:
        outcome.wrong += f"the process ended with status {status:#x}\n" + (folder / "stacks").read_text()
    if (folder / "trace").exists():
        lines = [line.split(" ", 1) for line in (folder / "trace").read_text().splitlines()]
        outcome.tried = [line for line in lines if line[0] in calls.split(",")]
    return outcome


def main() -> None:
    folder, error, calls, archive = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "archive"
    for nth in sys.argv[5:]:
        print(msgspec.json.encode(run(folder, calls, error, nth, archive=archive)).decode(), flush=True)


if __name__ == "__main__":
    main()
