"""A value that several processes change: none of what counted is lost, whoever is killed or stopped in the middle of it."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ringmain.bus.shared_slot_file import SharedSlotFile
from ringmain.bus.slot_file import SlotFile, SlotsDamaged
from support.children import TIMEOUT_S, Child, Children
from support.logs import flip, wait_until

SEED = int(os.environ.get("RINGMAIN_KILL_SEED", "20240612"))
ROUNDS = 300 if os.environ.get("RINGMAIN_NIGHTLY") else 15
PATIENCE_S = 0.05  # so short that who is stopped within a change has it taken away

# Each counts in its own entry; now and then the value grows or shrinks, so that it has to move.
COUNT = """if True:
    import json, mmap, random
    from pathlib import Path
    from ringmain.bus.shared_slot_file import SharedSlotFile
    def count(folder, name, seed, patience_s):
        choice, file = random.Random(seed), SharedSlotFile(Path(folder), "value", sync=False, patience_s=patience_s)
        with open(Path(folder) / f"told.{name}", "r+b") as told:
            words = memoryview(mmap.mmap(told.fileno(), 4096)).cast("Q")
        def edit(payload):
            value = json.loads(payload) if payload is not None else {}
            value[name] = words[0]
            value["room"] = "x" * choice.choice([0, 0, 0, 10, 3000, 20000])
            return json.dumps(value).encode()
        while True:
            words[0] += 1      # tried
            file.change(edit)
            words[1] = words[0]  # counts
    count(folder, name, seed, patience_s)
"""


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


def change(folder: Path, value: bytes, *, sync: bool = False) -> None:
    file = SharedSlotFile(folder, "value", sync=sync, patience_s=TIMEOUT_S)
    file.change(lambda before: value)
    file.close()


def read(folder: Path, *, sync: bool = False) -> bytes | None:
    return SharedSlotFile(folder, "value", sync=sync, patience_s=TIMEOUT_S).read()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("value.*"))


@pytest.mark.process
def test_no_change_that_counts_is_lost_whoever_is_killed_or_stopped(tmp_path, children):
    print(f"RINGMAIN_KILL_SEED={SEED}")
    choice = random.Random(SEED)
    told = {name: tmp_path / f"told.{name}" for name in ("a", "b", "c")}
    for path in told.values():
        path.write_bytes(bytes(4096))

    def start(name: str) -> Child:
        child = children.start()
        child.begin(COUNT, folder=str(tmp_path), name=name, seed=choice.randrange(1 << 30), patience_s=PATIENCE_S)
        return child

    def words(name: str) -> tuple[int, int]:
        data = told[name].read_bytes()
        return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:16], "little")

    running = {name: start(name) for name in told}
    for name in told:
        wait_until(lambda name=name: words(name)[1] > 0, TIMEOUT_S)
    for _ in range(ROUNDS):
        name = choice.choice(list(running))
        time.sleep(choice.random() * 0.02)
        if choice.random() < 0.15:
            running[name].kill()
            running[name] = start(name)
            wait_until(lambda name=name: words(name)[0] == words(name)[1] or words(name)[1] > 0, TIMEOUT_S)
        else:
            running[name].pause()
            others = {other: words(other)[1] for other in told if other != name}
            for other, before in others.items():  # nobody is held up
                wait_until(lambda other=other, before=before: words(other)[1] > before, TIMEOUT_S)
            running[name].resume()
    for child in running.values():
        child.kill()
    payload = read(tmp_path)
    assert payload is not None
    value = json.loads(payload)
    for name in told:
        tried, counts = words(name)
        assert counts <= value[name] <= tried, f"{name}: {counts} count, {tried} were tried, {value[name]} is there"
        assert tried > 10
    assert int(files(tmp_path)[-1].split(".")[1]) > 1


def test_a_value_that_does_not_fit_moves_to_a_larger_file(tmp_path):
    for size in (10, 5_000, 100, 50_000):
        change(tmp_path, size * b"x")
        assert read(tmp_path) == size * b"x"
    assert files(tmp_path) == ["value.3"]


def test_nothing_is_written_where_nothing_changes(tmp_path):
    file = SharedSlotFile(tmp_path, "value", sync=False, patience_s=TIMEOUT_S)
    file.change(lambda before: None)
    assert read(tmp_path) is None
    file.change(lambda before: b"value")
    data = (tmp_path / "value.1").read_bytes()
    file.change(lambda before: None)
    assert (tmp_path / "value.1").read_bytes() == data
    file.close()


def test_an_error_within_a_change_leaves_everything_as_it_was(tmp_path):
    change(tmp_path, b"before")
    file = SharedSlotFile(tmp_path, "value", sync=False, patience_s=TIMEOUT_S)
    with pytest.raises(ZeroDivisionError):
        file.change(lambda before: bytes(1 // 0))
    assert read(tmp_path) == b"before"
    change(tmp_path, b"after")  # nobody has it locked
    assert read(tmp_path) == b"after"
    file.close()


def test_who_took_over_and_died_is_taken_over_as_well(tmp_path):
    change(tmp_path, b"value")
    for number in (2, 3):
        SlotFile.open_new(tmp_path / f"value.{number}").close()
    assert read(tmp_path) == b"value"
    file = SharedSlotFile(tmp_path, "value", sync=False, patience_s=TIMEOUT_S)
    file.change(lambda before: (before or b"") + b" and more")
    file.close()
    assert (files(tmp_path), read(tmp_path)) == (["value.3"], b"value and more")


def test_damage_is_an_error_where_the_value_was_on_the_disk_and_no_value_where_it_was_not(tmp_path):
    change(tmp_path, b"value", sync=True)
    for at in (40, 4096 + 40):
        flip(tmp_path / "value.1", at - 8)
    with pytest.raises(SlotsDamaged, match=r"value\.1"):
        read(tmp_path, sync=True)
    assert read(tmp_path) is None
