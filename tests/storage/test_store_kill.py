"""A store's writer killed at any instant, 200 times: what `put` returned is there, and nothing else but the call it died in.

It dies while it opens, puts, flushes, compacts and removes files; each life begins with what all lives before have left. What a
store must hold follows from sequences alone (store_children.py), and what was acknowledged lies in shared memory outside of it.
RINGMAIN_KILL_SEED gives other instants; a failure names the seed and the round.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ringmain.storage import StoreReader
from ringmain.storage.log_files import list_files
from ringmain.storage.manifest import read_manifest
from support.forked import Child, Server
from support.logs import wait_until
from support.store_children import NAMES, TOPICS, Place, open_store

SEED = int(os.environ.get("RINGMAIN_KILL_SEED", "20240229"))
ROUNDS = 1000 if os.environ.get("RINGMAIN_NIGHTLY") else 200
CHILDREN = Path(__file__).parents[1] / "support" / "store_children.py"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, CHILDREN, Place)
    yield server
    server.close()


class Story:
    """What the writers have said, one after another: by topic, what must be there, and what may be."""

    def __init__(self) -> None:
        self.acknowledged = dict.fromkeys(NAMES, 0)
        self.attempted = dict.fromkeys(NAMES, 0)
        self.in_tables = dict.fromkeys(NAMES, 0)

    def tell(self, writer: Child) -> None:
        """A writer's part, once it has ended."""
        for name in NAMES:
            if writer[f"attempted_{name}"]:  # else it died before it said anything, or had another topic
                assert writer[f"opened_{name}"] == self.acknowledged[name], f"{name}: recovered otherwise than read"
                self.acknowledged[name] = writer[f"returned_{name}"]
                self.attempted[name] = writer[f"attempted_{name}"]
            self.in_tables[name] = max(self.in_tables[name], writer[f"tables_{name}"])

    def see(self, name: str, sequence: int) -> None:
        """What the store holds now that nobody writes: the call that the writer died in is done, or not."""
        assert sequence in (self.acknowledged[name], self.attempted[name]), name
        self.acknowledged[name] = self.attempted[name] = sequence


def check_what_is_read(directory: Path, story: Story, choice: random.Random) -> None:
    """By a process that only reads, as the writer has left it."""
    if not (directory / "store" / "MANIFEST").exists():
        assert not any(story.attempted.values())
        return
    checkpoints = read_manifest(directory / "store").checkpoints
    with StoreReader(directory, memtable_bytes=1 << 14) as store:
        for topic in TOPICS:
            if topic.name not in store:
                story.see(topic.name, 0)
                continue
            tree = store[topic.name]
            story.see(topic.name, tree.sequence)
            topic.check_all(tree, tree.sequence, choice)
            assert checkpoints[topic.name] >= story.in_tables[topic.name]
            if topic.keeps_versions:
                past = choice.randint(0, tree.sequence)
                with tree.at(past) as view:
                    topic.check_all(view, past, choice)


def check_what_is_recovered(directory: Path, story: Story, choice: random.Random) -> None:
    """By the next writer: this process. It leaves the directory clean, and everything as it was."""
    with open_store(directory, choice) as store:
        for step in (lambda: None, store.snapshot, store.compact):
            step()
            for topic in TOPICS:
                assert store.stats()[topic.name].sequence == story.acknowledged[topic.name]
                topic.check_all(store[topic.name], story.acknowledged[topic.name], choice)
        numbers = {table.number for version in manifest_versions(directory) for table in version.tables()}
        wait_until(
            lambda: {path.name for path in (directory / "store").glob("*.sst*")} == {f"{n:010d}.sst" for n in numbers}
        )
        wait_until(lambda: len(list_files(directory / "log")) == 1)  # all of it is in tables


def manifest_versions(directory: Path):
    return read_manifest(directory / "store").versions.values()


@contextlib.contextmanager
def reported(number: int) -> Iterator[None]:
    """Name the seed and the round in whatever fails within."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"RINGMAIN_KILL_SEED={SEED}, round {number}")
        raise


@pytest.mark.process
@pytest.mark.timeout(3600 if os.environ.get("RINGMAIN_NIGHTLY") else 600)
def test_a_store_killed_200_times_holds_what_was_acknowledged_and_nothing_else(tmp_path, server):
    choice = random.Random(SEED)
    directory = tmp_path / "store"
    story = Story()
    reader: Child | None = None
    opened = at_work = drafts = looks = 0
    for number in range(ROUNDS):
        with reported(number):
            topics = NAMES if choice.random() < 0.8 else tuple(choice.sample(NAMES, 2))
            writer = server.start("write", directory=str(directory), seed=choice.randrange(1 << 30), topics=topics)
            if reader is None and choice.random() < 0.3 and (directory / "store" / "MANIFEST").exists():
                reader = server.start("read", directory=str(directory), seed=choice.randrange(1 << 30))
            if number % 4:  # else it may die while it opens
                writer.wait_for("open")
            if number % 4 > 1:
                name = choice.choice(topics)
                writer.wait_for(f"returned_{name}", writer[f"opened_{name}"] + choice.randint(1, 300))
            time.sleep(choice.random() * choice.choice([0.001, 0.01, 0.05]))
            writer.kill()
            opened += writer["open"]
            at_work += any(writer[f"returned_{name}"] > writer[f"opened_{name}"] for name in NAMES)
            drafts += any((directory / "store").glob("*.new"))
            seen = {name: reader[f"position_{name}"] if reader is not None else 0 for name in NAMES}
            story.tell(writer)
            check_what_is_read(directory, story, choice)
            assert all(seen[name] <= story.acknowledged[name] for name in NAMES), "a reader saw what is gone now"
            if number % 20 == 19:
                check_what_is_recovered(directory, story, choice)
            if reader is not None and choice.random() < 0.3:
                reader.wait_for("looks", reader["looks"] + 1)
                looks += reader["looks"]
                if choice.random() < 0.5:
                    reader.kill()
                else:
                    reader.finish()
                reader = None
    assert opened > ROUNDS // 2  # it was killed in all its phases
    assert at_work > ROUNDS // 3
    assert drafts > 0
    assert looks > 0
    assert all(story.acknowledged.values())
