"""A store whose rows follow from their sequences, written and read by children of the test: any look at it can be checked whole.

Row `n` of `book` puts the key `key_of(n)`, or deletes it; so what a reader must see follows from the sequence it reads at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ringmain.storage import Schema
from ringmain.storage.levels import Shape
from ringmain.storage.store import Store
from ringmain.storage.store_reader import StoreReader
from ringmain.storage.tree import KeysAt, Tree

BOOK = Schema("book", {"key": "u8", "number": "u8"}, key=("key",))  # 32 bytes a row
TAPE = Schema("tape", {"number": "u8"})
KEY_COUNT = 400
TIMEOUT_S = 60.0
SMALL = Shape(level0_tables=2, ratio=4, table_bytes=1 << 13, level1_bytes=1 << 14)
MIXER = np.uint64(0x9E3779B97F4A7C15)


def key_of(sequence: Any) -> Any:
    """The key that a row of `book` has; takes arrays too."""
    return (np.asarray(sequence, "u8") * MIXER >> np.uint64(40)) % np.uint64(KEY_COUNT)


def deletes(sequence: Any) -> Any:
    """Whether a row of `book` is a tombstone."""
    return (np.asarray(sequence, "u8") * MIXER >> np.uint64(20)) % np.uint64(6) == 0


class Oracle:
    """What `book` holds as of a sequence, which only rises."""

    def __init__(self) -> None:
        self.sequence = 0
        self._newest = np.zeros(KEY_COUNT, "u8")  # by key; 0 where it is absent

    def advance(self, sequence: int) -> None:
        assert sequence >= self.sequence, f"went back from {self.sequence} to {sequence}"
        numbers = np.arange(self.sequence + 1, sequence + 1, dtype="u8")
        self._newest[key_of(numbers).astype("i8")] = np.where(
            deletes(numbers), 0, numbers
        )  # of several the last counts
        self.sequence = sequence

    def newest(self, key: int) -> int | None:
        return int(self._newest[key]) or None

    def check(self, book: KeysAt) -> None:
        """Assert that a tree or view of `book` holds exactly what it should: forwards, backwards, and key by key."""
        keys = np.flatnonzero(self._newest).astype("u8")
        numbers = self._newest[keys.astype("i8")]
        for rows, order in (
            (np.concatenate([np.empty(0, BOOK.dtype), *book.scan()]), slice(None)),
            (np.concatenate([np.empty(0, BOOK.dtype), *book.scan(reverse=True)]), slice(None, None, -1)),
        ):
            assert rows["key"].tolist() == keys[order].tolist()
            assert rows["sequence"].tolist() == rows["number"].tolist() == numbers[order].tolist()
        rows, found = book.get_many(np.arange(KEY_COUNT, dtype="u8"))
        assert np.flatnonzero(found).tolist() == keys.tolist()
        assert rows["number"][found].tolist() == numbers.tolist()


def write_on(book: Tree, until: int) -> int:
    """Write rows of `book` until that sequence: in batches, one by one, and deleting. Returns the last sequence."""
    first = book.core.next_sequence
    while first <= until:
        if deletes(first):
            assert book.delete(int(key_of(first))) == first
        elif first % 3:
            assert book.put(int(key_of(first)), first) == first
        else:  # up to where one deletes
            ahead = np.arange(first, min(first + 40, until + 1), dtype="u8")
            count = int(np.argmax(deletes(ahead))) or len(ahead)
            rows = np.zeros(count, BOOK.payload_dtype)
            rows["key"], rows["number"] = key_of(ahead[:count]), ahead[:count]
            first = book.put_batch(rows)
            assert first == ahead[count - 1]
        first += 1
    return first - 1


def open_store(directory: Path | str, **settings: Any) -> Store:
    """The store, small everywhere: it flushes and compacts all the time."""
    return Store(
        directory, [BOOK, TAPE], **{"memtable_bytes": 1 << 13, "shape": SMALL, "log_file_bytes": 4 << 20, **settings}
    )


def be_writer(directory: str) -> None:
    """A child that writes: obeys lines until there are no more."""
    with open_store(directory) as store:
        say("ready", store["book"].core.visible)
        for line in sys.stdin:
            word, *numbers = line.split()
            if word == "write":  # book, and some of tape
                write_on(store["book"], int(numbers[0]))
                last = store["tape"].core.next_sequence
                for number in range(last, last + 30):
                    store["tape"].put(number)
            elif word == "for-ever":
                while True:
                    say("wrote", write_on(store["book"], store["book"].core.next_sequence + 99))
            elif word == "snapshot":
                store.snapshot()
            elif word == "compact":
                store.compact()
            say(word, "done")


def be_reader(directory: str, refresh_s: float) -> None:
    """A child that reads: `until <sequence>` looks again and again, and checks all it sees, up to there and at least once."""
    oracle, keys, tape_count = Oracle(), np.zeros(KEY_COUNT, "u8"), 0
    with StoreReader(directory, refresh_s=refresh_s, memtable_bytes=1 << 13) as store:
        say("ready", store["book"].sequence)
        for line in sys.stdin:
            until, looks = int(line.split()[1]), 0
            while looks == 0 or oracle.sequence < until:
                with store["book"].at() as view:
                    oracle.advance(view.sequence)
                    oracle.check(view)
                for key in range(0, KEY_COUNT, 7):  # without a view, time goes on, but never back
                    row = store["book"].get(key)
                    if row is not None:
                        assert row["number"] == row["sequence"] >= keys[key], (key, row, keys[key])
                        keys[key] = row["sequence"]
                        history = store["book"].history(key)["sequence"].tolist()
                        assert history == sorted(set(history), reverse=True)
                tape = [number for rows in store["tape"].scan() for number in rows["number"].tolist()]
                assert tape == list(range(1, len(tape) + 1))
                assert len(tape) >= tape_count
                tape_count = len(tape)
                looks += 1
            say("saw", oracle.sequence, looks, tape_count)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Child:
    """A process that runs a function of this module; `tell` it lines and `hear` what it answers. Gone after the `with` block."""

    def __init__(self, call: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from support import followed_store as here; here.{call}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self._heard = b""

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()

    def hear(self, word: str) -> list[str]:
        """The next line, which must begin with that word."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + TIMEOUT_S
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited {TIMEOUT_S} s in vain for {word!r}"
            data = os.read(self.process.stdout.fileno(), 65_536)
            assert data, f"the child ended: {self._error()}"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        words = line.decode().split()
        assert words[0] == word, words
        return words[1:]

    def ask(self, *words: object) -> None:
        """Tell it, and wait until it is done."""
        self.tell(*words)
        self.hear(str(words[0]))

    def kill(self) -> list[list[str]]:
        """kill -9; returns the whole lines that it had said and nobody heard."""
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        said = self._heard + self.process.stdout.read()
        return [line.decode().split() for line in said.split(b"\n")[:-1]]

    def finish(self) -> None:
        """Let it end by itself, in good order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(TIMEOUT_S) == 0, self._error()

    def _error(self) -> str:
        assert self.process.stderr is not None
        self.process.wait(TIMEOUT_S)
        return self.process.stderr.read().decode()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
