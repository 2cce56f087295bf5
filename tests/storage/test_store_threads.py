"""One process, many threads: they read while another puts, flushes and compacts, and see whole states that never go back."""

from __future__ import annotations

import itertools
import os
import random
import threading

import pytest
from ringmain.storage import Store
from support.store_children import TOPICS, Place, open_store, write_some

SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
STORES, ROWS, LOOKS, READERS = (20, 30_000, 100, 6) if os.environ.get("RINGMAIN_NIGHTLY") else (2, 1_500, 4, 3)
pytestmark = pytest.mark.timeout(3600 if os.environ.get("RINGMAIN_NIGHTLY") else 180)


class Readers:
    """Threads that look again and again, and check all they see."""

    def __init__(self, store: Store, seed: str) -> None:
        self.store, self.looks = store, [0] * READERS
        self.failures: list[BaseException] = []
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._look_for_ever, args=(at, random.Random(f"{seed} {at}")))
            for at in range(READERS)
        ]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _look_for_ever(self, at: int, choice: random.Random) -> None:
        try:
            seen = {topic.name: 0 for topic in TOPICS}
            while not self._done.is_set():
                topic = choice.choice(TOPICS)
                tree = self.store[topic.name]
                with tree.at() as view:
                    assert view.sequence >= seen[topic.name], f"{topic.name} went back"
                    seen[topic.name] = view.sequence
                    topic.check_all(view, view.sequence, choice)
                    topic.check_all(view, view.sequence, choice)  # the same as before, whatever has come since
                if topic.keeps_versions:
                    past = choice.randint(0, seen[topic.name])
                    with tree.at(past) as view:
                        topic.check_all(view, past, choice)
                if topic.keys is not None:  # without a view, time goes on
                    for key in choice.sample(range(len(topic.keys)), 20):
                        row = tree.get(*topic.keys[key].item())
                        if row is not None:
                            topic.check_row(row, key)
                self.looks[at] += 1
        except BaseException as error:
            self.failures.append(error)


def test_threads_read_whole_states_while_another_writes(tmp_path):
    for number in range(STORES):
        print(f"RINGMAIN_SEED={SEED}, store {number}")
        choice = random.Random(f"{SEED} {number}")
        place = Place(tmp_path / f"{number}.place")
        with open_store(tmp_path / str(number), choice) as store, Readers(store, f"{SEED} {number}") as readers:
            for row in itertools.count():
                topic = choice.choice(TOPICS)
                write_some(store[topic.name], topic, place, choice)
                if choice.random() < 0.01:
                    store.snapshot()
                elif choice.random() < 0.001:
                    store.compact()
                assert not readers.failures
                if row >= ROWS and min(readers.looks) >= LOOKS:
                    break
        assert not readers.failures
