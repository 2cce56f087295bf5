"""Short lives of a store on a disk on which one call fails (`faulty_disk.c`): another one in each process, forked from one server.

Run as `python -m support.faulted_store FOLDER ERRNO CALLS [NTH…]`; prints an `Outcome` a line, of every call where no NTH is given.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ringmain.storage import StorageError
from ringmain.storage.store import Store
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


class Error(msgspec.Struct):
    """What a step raised."""

    step: str
    kind: str
    text: str


class Outcome(msgspec.Struct):
    """What came of a life. call, path: what failed in it. wrong: a traceback, or how the process ended, where a check failed."""

    nth: int
    call: str = ""
    path: str = ""
    errors: list[Error] = []
    wrong: str = ""


class Life:
    """Put, delete, flush, compact, begin new log files, close and reopen; go on after an error as far as that is possible."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.told = directory, Told()
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
        with open_store(self.directory) as store:
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
        """One call fails only, so the second attempt must succeed."""

        def opened() -> None:
            self.store = open_store(self.directory, sync="always")

        if not self.attempt(step, opened):
            gc.collect()  # what the failed one held
            opened()
        assert self.store is not None
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
            rows = np.zeros(len(keys), tree.schema.payload_dtype)
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


def set_fault(calls: str, nth: int, error: int, folder: Path) -> None:
    """From now on the nth of these calls fails, in this process."""
    os.environ.update(
        FAULTY_CALL=calls,
        FAULTY_NTH=str(nth),
        FAULTY_ERRNO=str(error),
        FAULTY_PATH=str(folder / "life"),
        FAULTY_TRACE=str(folder / "trace"),
    )


def run(folder: Path, calls: str, error: int, nth: int) -> Outcome:
    """A life in a process of its own."""
    outcome_path = folder / "outcome"
    for name in ("outcome", "trace", "stacks"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "life", ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        outcome = Outcome(nth)
        with (folder / "stacks").open("w") as stacks:
            faulthandler.dump_traceback_later(TIMEOUT_S, exit=True, file=stacks)
            life = Life(folder / "life")
            try:
                set_fault(calls, nth, error, folder)
                life.live()
                set_fault("none", 0, 0, folder / "nowhere")
                life.check_kept()
            except BaseException:
                outcome.wrong = traceback.format_exc()
            outcome.errors = life.errors
            outcome_path.write_bytes(msgspec.json.encode(outcome))
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    outcome = msgspec.json.decode(outcome_path.read_bytes(), type=Outcome) if outcome_path.exists() else Outcome(nth)
    if status:
        outcome.wrong += f"the process ended with status {status:#x}\n" + (folder / "stacks").read_text()
    wanted = calls.split(",")
    tried = [line.split(" ", 1) for line in trace_of(folder) if line.split(" ")[0] in wanted]
    if len(tried) >= nth > 0:
        outcome.call, outcome.path = tried[nth - 1]
    elif nth > 0 and not outcome.wrong:
        outcome.call = "none"  # there were fewer this time
    return outcome


def trace_of(folder: Path) -> list[str]:
    return (folder / "trace").read_text().splitlines() if (folder / "trace").exists() else []


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    folder, error, calls = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    nths = [int(nth) for nth in sys.argv[4:]]
    if not nths:
        outcome = run(folder, calls, error, 0)
        print(msgspec.json.encode(outcome).decode())
        wanted = calls.split(",")
        nths = list(range(1, 1 + sum(line.split(" ")[0] in wanted for line in trace_of(folder))))
    for nth in nths:
        print(msgspec.json.encode(run(folder, calls, error, nth)).decode(), flush=True)


if __name__ == "__main__":
    main()
