"""Copying the log into the backups as it grows: what can be restored to, and what happens when the log goes another way."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ringmain.storage import Schema
from ringmain.storage.backup import BackupMade, backup, follow
from ringmain.storage.backup_repository import BackupBusy, Repository
from ringmain.storage.backup_verify import verify_backups
from ringmain.storage.log_files import list_files
from ringmain.storage.restore import restore
from ringmain.storage.restore_plan import restorable
from ringmain.storage.store import Store
from ringmain.storage.store_reader import StoreReader
from support.backups import check_restored
from support.followed_store import Child, open_store, write_on
from support.logs import POINTS, Builder, wait_until

WIDE = Schema("wide", {"value": "S1000"})


class Following:
    """`follow` in a thread. told: what it reported."""

    def __init__(self, directory: Path, target: Path, **settings: Any) -> None:
        self.target, self.told, self._stop = target, list[BackupMade | int](), threading.Event()
        self._failure: list[BaseException] = []

        def run() -> None:
            try:
                follow(directory, target, stop=self._stop, report=self.told.append, **{"interval_s": 0.01, **settings})
            except BaseException as error:
                self._failure.append(error)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def wait_for(self, sequence: int, topic: str = "book") -> None:
        """Return when a topic can be restored up to that sequence."""

        def is_there() -> bool:
            assert not self._failure, self._failure
            with contextlib.suppress(FileNotFoundError):
                return restorable(self.target)[-1].topics[topic][1] >= sequence
            return False

        wait_until(is_there)

    @property
    def backups(self) -> int:
        return sum(isinstance(item, BackupMade) for item in self.told)

    def stop(self) -> None:
        """Let it copy the rest, and end."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert not self._failure, self._failure


@contextlib.contextmanager
def following(directory: Path, target: Path, **settings: Any) -> Iterator[Following]:
    started = Following(directory, target, **settings)
    try:
        yield started
    finally:
        started.stop()


def patiently(work: Callable[[], object]) -> None:
    """Do it once nobody else is at the backups."""

    def is_done() -> bool:
        try:
            work()
        except BackupBusy:
            return False
        return True

    wait_until(is_done)


def test_any_row_since_the_first_backup_can_be_restored_to(tmp_path: Path) -> None:
    target, chance = tmp_path / "backups", random.Random(7)
    with open_store(tmp_path / "data") as store, following(tmp_path / "data", target) as copying:
        write_on(store["book"], 100)
        copying.wait_for(100)
        for until in (5000, 90_000, 90_001):  # over several files of the log
            write_on(store["book"], until)
            copying.wait_for(until)
        assert copying.backups == 1
        write_on(store["book"], 91_000)
        store.sync()
    assert check_restored(target, tmp_path / "restored")["book"] == 91_000  # the rest came when it ended
    assert len(list_files(target / "0000000001")) > 1
    for place in (1, *chance.sample(range(1, 91_000), 3)):
        assert check_restored(target, tmp_path / "restored", to={"book": place})["book"] == place
    assert verify_backups(target).findings == ()


@pytest.mark.process
def test_a_writer_that_is_killed_and_started_again_is_followed(tmp_path: Path) -> None:
    directory, target, last = tmp_path / "data", tmp_path / "backups", 0
    with open_store(directory):
        pass
    with following(directory, target) as copying:
        for _ in range(3):
            with Child(f"be_writer({str(directory)!r})") as writer:
                writer.hear("ready")
                writer.tell("for-ever")
                goal = last + 700
                while last < goal:
                    last = int(writer.hear("wrote")[0])
                last = int(([[0, last]] + [words for words in writer.kill() if words[0] == "wrote"])[-1][1])
        with open_store(directory) as store:
            last = store["book"].core.visible
            copying.wait_for(last)
    assert copying.backups == 1
    assert check_restored(target, tmp_path / "restored")["book"] == last


def test_backups_are_made_on_the_way_and_old_ones_go(tmp_path: Path) -> None:
    target = tmp_path / "backups"
    settings = {"backup_interval_s": 0.05, "keep": 2}
    with open_store(tmp_path / "data") as store, following(tmp_path / "data", target, **settings) as copying:
        for until in range(300, 3000, 300):
            write_on(store["book"], until)
            before = copying.backups
            wait_until(lambda before=before: copying.backups > before)
        copying.wait_for(2700)
    backups, problems = Repository(target).read()
    assert (len(backups), problems) == (2, [])
    assert verify_backups(target).findings == ()
    for item in restorable(target):
        lowest, highest = item.topics["book"]
        assert highest == 2700
        for place in (lowest, highest):
            number = item.backup.number
            last = check_restored(target, tmp_path / "restored", to={"book": place}, backup=number)
            assert last["book"] == place


def test_others_may_make_backups_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "backups"
    with open_store(tmp_path / "data") as store, following(tmp_path / "data", target) as copying:
        write_on(store["book"], 500)
        copying.wait_for(500)
        patiently(lambda: backup(tmp_path / "data", target, full=True))
        write_on(store["book"], 1000)
        copying.wait_for(1000)

        def hold() -> None:
            with Repository(target).locked():
                write_on(store["book"], 1500)

        patiently(hold)
        copying.wait_for(1500)
    assert check_restored(target, tmp_path / "restored")["book"] == 1500
    assert restorable(target)[-1].backup.log_folder == 2


def test_a_log_that_went_back_is_copied_anew_and_what_was_copied_before_stays(tmp_path: Path) -> None:
    directory, target = tmp_path / "data", tmp_path / "backups"
    with open_store(directory, memtable_bytes=1 << 20) as store:  # nothing is flushed while it is copied
        write_on(store["book"], 300)
        shutil.copytree(directory, tmp_path / "earlier", ignore=shutil.ignore_patterns("spare-*"))
        with following(directory, target) as copying:
            write_on(store["book"], 1000)
            copying.wait_for(1000)
    shutil.rmtree(directory)
    shutil.move(tmp_path / "earlier", directory)  # as after a power cut, only longer ago
    with following(directory, target) as copying, open_store(directory) as store:
        write_on(store["book"], 400)
        copying.wait_for(400)
        wait_until(lambda: len(Repository(target).read()[0]) > 1)
    reach = restorable(target)
    assert {item.backup.log_folder for item in reach} > {1}
    assert check_restored(target, tmp_path / "restored")["book"] == 400
    assert check_restored(target, tmp_path / "restored", to={"book": 1000})["book"] == 1000


def test_a_log_whose_end_was_lost_while_it_was_followed_is_copied_anew(tmp_path: Path) -> None:
    directory, target = tmp_path / "data", tmp_path / "backups"
    log = Builder(directory / "log")
    log.begin()
    log.rows(POINTS, 10)
    end = log.rows(POINTS, 10)
    with following(directory, target) as copying:
        copying.wait_for(20, "points")

        def lose() -> None:  # what a power cut took, another writer cuts off; its rows get the sequences anew
            with Repository(target).locked():
                log.next["points"] = 11
                log.begin(new_writer=True, previous_end=end)
                log.rows(POINTS, 5)

        patiently(lose)
        wait_until(lambda: copying.backups == 2)
        copying.wait_for(15, "points")
    assert restore(target, tmp_path / "now").last["points"] == 15
    assert restore(target, tmp_path / "then", backup=1).last["points"] == 20
    assert verify_backups(target).findings == ()


def test_a_batch_is_copied_whole_and_can_be_cut_anywhere(tmp_path: Path) -> None:
    directory, target = tmp_path / "data", tmp_path / "backups"
    rows = np.zeros(3000, WIDE.payload_dtype)
    with Store(directory, [WIDE], log_file_bytes=16 << 20, memtable_bytes=16 << 20) as store:
        backup(directory, target)
        for _ in range(3):  # of three frames each
            rows["value"] = np.char.mod("%d", np.arange(3000) + int(store["wide"].core.next_sequence))
            store["wide"].put_batch(rows)
        backup(directory, target)
    for place in (1, 2999, 3000, 3001, 4500, 6000, 8999, 9000):
        restored = restore(target, tmp_path / "restored", to=place)
        assert restored.last == {"wide": place}
        with StoreReader(restored.directory) as reader:
            found = np.concatenate([rows.copy() for rows in reader["wide"].scan()])
        assert found["value"].tolist() == [b"%d" % number for number in range(1, place + 1)]
        shutil.rmtree(restored.directory)
