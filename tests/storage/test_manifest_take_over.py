"""Two writers of one manifest: the old one was taken over and does not know it yet, however both of their steps fall."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ringmain.storage import ManifestFailed, files, manifest
from ringmain.storage.manifest import Edit, Manifest, State, TopicInfo, read_manifest
from support.tables import table

LOG_ID = 0x1234_5678_9ABC_DEF0
TIMEOUT_S = 30
MADE = Edit(
    topics={"points": TopicInfo(schema="{}"), "pairs": TopicInfo(schema="{}")},
    added=[table(1, 0, 5), table(2, 3, 9)],
    checkpoints={"points": 29},
)
OLD = Edit(added=[table(3, 0, 9, level=1)], removed=[1, 2])
NEW = Edit(added=[table(4, 7, topic="pairs")], checkpoints={"pairs": 49})
LOCKS: list[int] = []
STEPS = (
    "create_file",
    "write_at",
    "sync_data",
    "rename_file",
    "sync_directory",
    "open_file_to_read",
    "read_from",
    "holds_lock",
    "lock_directory",
)


def open_manifest(place: Path, *, take_over: bool = False) -> Manifest:
    """Take the lock, which is held for as long as the test runs, and open the manifest."""
    for name in ("log", "store"):
        (place / name).mkdir(parents=True, exist_ok=True)
    lock = files.lock_directory(place / "log", take_over=take_over)
    LOCKS.append(lock)
    pause()
    return Manifest(place / "store", LOG_ID, holds_lock=lambda: files.holds_lock(place / "log", lock))


class Actor(threading.Thread):
    """Does its job step by step: stops before each call to the file layer, until it is let go on."""

    def __init__(self, job: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.job, self.done, self.step_count = job, False, 0
        self.result: object = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.start()

    def run(self) -> None:
        try:
            assert self._go.acquire(timeout=TIMEOUT_S)
            self.result = self.job()
        except BaseException as error:
            self.result = error
        finally:
            self.done = True
            self._stopped.release()

    def pause(self) -> None:
        """Called by the job: stop here."""
        self.step_count += 1
        self._stopped.release()
        assert self._go.acquire(timeout=TIMEOUT_S)

    def go(self, step_count: int = 1000) -> None:
        """Let it take so many steps, or those that are left, and stop again."""
        for _ in range(step_count):
            if self.done:
                return
            self._go.release()
            assert self._stopped.acquire(timeout=TIMEOUT_S)


def let_go() -> None:
    while LOCKS:
        os.close(LOCKS.pop())


def pause() -> None:
    actor = threading.current_thread()
    if isinstance(actor, Actor):
        actor.pause()


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each call to the file layer is a step; nothing waits for the disk."""

    def stepping(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            pause()
            return original(*arguments, **options)

        return step

    for name in STEPS:
        waits = name in ("sync_data", "sync_directory")
        monkeypatch.setattr(files, name, stepping((lambda *_: None) if waits else getattr(files, name)))
    yield
    let_go()


@pytest.fixture(params=["append", "rewrite"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a log's and a store's directory are. Edits are appended there, or each makes the file be written anew."""
    if request.param == "rewrite":
        monkeypatch.setattr(manifest, "REWRITE_BYTES_MIN", 0)
        monkeypatch.setattr(manifest, "REWRITE_RATIO", 1)
    return tmp_path


class Meeting:
    """A writer that commits an edit, and one that takes over and commits another one."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._old = open_manifest(place)
        self._before = self._old.commit(MADE)
        self._opened: Manifest | None = None
        self._found = State.empty(LOG_ID)
        self.old = Actor(lambda: self._old.commit(OLD))
        self.new = Actor(self._take_over)

    def _take_over(self) -> State:
        self._opened = open_manifest(self.place, take_over=True)
        self._found = self._opened.state
        return self._opened.commit(NEW)

    def check(self) -> None:
        """The old one's edit was acknowledged and is there, or was refused and may be there. The new one's is."""
        assert self._opened is not None, self.new.result
        after = self._before.edit(OLD)
        if self.old.result == after:
            assert self._found == after
        else:
            assert isinstance(self.old.result, ManifestFailed)
            assert self._found in (self._before, after)
        assert self.new.result == self._found.edit(NEW) == read_manifest(self.place / "store")
        assert os.listdir(self.place / "store") == ["MANIFEST"]
        with pytest.raises(ManifestFailed):
            self._old.commit(Edit(checkpoints={"points": 99}))
        assert read_manifest(self.place / "store") == self.new.result
        self._old.close()
        self._opened.close()
        let_go()


def test_a_writer_that_was_taken_over_acknowledges_nothing_more(place):
    old = open_manifest(place)
    old.commit(MADE)
    with open_manifest(place, take_over=True) as new:
        for _ in range(2):
            with pytest.raises(ManifestFailed, match="taken over"):
                old.commit(OLD)
        assert old.state == new.state
        new.commit(NEW)
    old.close()
    assert read_manifest(place / "store") == new.state


def test_whenever_a_writer_is_taken_over_its_edit_is_taken_along_or_refused(place):
    """The old one stops before any step, the new one comes as far as before any of its own, the old one goes on: all the way, or to
    another stop, from where it wakes only when the new one has long been at work."""
    alone = Meeting(place / "alone")
    alone.old.go()
    alone.new.go()
    alone.check()
    assert isinstance(alone.old.result, State)  # one after the other: acknowledged
    for first in range(alone.old.step_count + 1):
        for new in range(1, alone.new.step_count + 2):
            for second in range(1, alone.old.step_count - first + 2):
                meeting = Meeting(place / f"{first} {new} {second}")
                meeting.old.go(first)
                meeting.new.go(new)
                meeting.old.go(second)
                meeting.new.go()
                meeting.old.go()
                meeting.check()
