"""Killed at any instant, and opened again: every row that was logged is there, in order, none twice, none invented."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ringmain.storage.log_files import list_files
from ringmain.storage.recovery import examine
from support.logs import FILE_BYTES, PAIRS, POINTS, check_rows, read_rows

ROUNDS = 200
KEEP_FILES = 3

# Forks a writer for every line it reads, so that a round does not pay for starting Python. What a writer has logged and
# made durable goes to the pipe as it happens; "dead" follows when it is gone.
SERVER = f"""if True:
    import os, random, signal, sys
    from ringmain.storage import Log
    from support.logs import PAIRS, POINTS, append
    def write(directory, seed):
        choice = random.Random(seed)
        say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
        log = Log(directory, [POINTS, PAIRS], bus="test", file_bytes={FILE_BYTES}, retention_bytes={KEEP_FILES * FILE_BYTES},
                  map_small_groups=choice.random() < 0.5)
        say("open", log.recovered.record_count)
        while True:
            for schema in choice.sample([POINTS, PAIRS], choice.randint(1, 2)):
                count = choice.choice([1, 7, 300, 6000, 20000])
                say("try", schema.name, log.appender.next_sequence(log.topic(schema.name).number) + count - 1)
                say("logged", schema.name, append(log, schema, count))
            if choice.random() < 0.5:
                log.appender.sync()
                say("durable")
                if choice.random() < 0.3:
                    log.appender.mark()
            if choice.random() < 0.02:
                log.close()
                say("closed")
                return
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                write(*line.split())
            except BaseException as error:
                os.write(1, f"error {{error!r}}\\n".encode())
            signal.pause()
        os.write(1, f"pid {{pid}}\\n".encode())
        os.waitpid(pid, 0)
        os.write(1, b"dead\\n")
"""


class Writers:
    """The server, and what its latest writer reported."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said: list[list[str]] = []
        self.pid: int | None = None

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        assert words, "the server of writers has gone"
        assert words[0] != "error", " ".join(words)
        return words

    def start(self, directory: Path, seed: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{directory} {seed}\n".encode())
        self.process.stdin.flush()
        self.said = []
        while (words := self.line())[0] != "pid":  # the writer may be faster than its parent
            self.said.append(words)
        self.pid = int(words[1])

    def wait_until(self, word: str) -> None:
        """However slow the machine is just now, the writer has come this far when this returns."""
        while not any(words[0] == word for words in self.said):
            self.said.append(self.line())

    def kill(self) -> list[list[str]]:
        """Kill the writer; returns all that it said."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            while (words := self.line()) != ["dead"]:
                self.said.append(words)
        self.pid = None
        return self.said


@pytest.fixture
def writers() -> Iterator[Writers]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    writers = Writers(process)
    yield writers
    if writers.pid is not None:
        os.kill(writers.pid, signal.SIGKILL)
    process.kill()
    process.communicate()


@pytest.mark.process
def test_a_writer_killed_200_times_loses_nothing_it_had_logged(tmp_path, writers):
    choice = random.Random(20_240_229)
    logged = {"points": 0, "pairs": 0}  # according to the reports
    tried = {"points": 0, "pairs": 0}
    present = {"points": 0, "pairs": 0}  # according to the log, after the round before
    opened = killed_at_work = 0
    deadline = time.monotonic() + 120
    for round_number in range(ROUNDS):
        assert time.monotonic() < deadline
        writers.start(tmp_path, round_number)
        if round_number % 4:  # else it may die while it opens
            writers.wait_until("open" if round_number % 4 == 1 else "logged")
        time.sleep(choice.choice([0.002, 0.01, 0.03, 0.08]) * choice.random())
        said = writers.kill()
        opened += any(words[0] == "open" for words in said)
        killed_at_work += any(words[0] == "logged" for words in said)
        for words in said:
            if words[0] == "logged":
                logged[words[1]] = int(words[2])
            elif words[0] == "try":
                tried[words[1]] = int(words[2])

        contents = examine(tmp_path)
        assert contents.problems == []
        for schema in (POINTS, PAIRS):
            name = schema.name
            topic = contents.topics.get(name)
            last = topic.next_sequence - 1 if topic is not None else 0
            assert max(logged[name], present[name]) <= last <= max(tried[name], present[name])
            present[name] = logged[name] = last
        if round_number % 10 == 9 or round_number > ROUNDS - 5:
            for schema in (POINTS, PAIRS):
                rows = read_rows(tmp_path, schema)
                if len(rows):
                    check_rows(schema, rows, int(rows["sequence"][0]))
                    assert int(rows["sequence"][-1]) == present[schema.name]

    numbers = [number for number, _ in list_files(tmp_path)]
    assert opened > ROUNDS // 4  # it was killed in all its phases
    assert killed_at_work > ROUNDS // 5
    assert numbers[0] > 1  # and files expired on the way
