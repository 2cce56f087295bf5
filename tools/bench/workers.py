"""The processes of a measurement: started afresh, let loose together, heard, and gone whatever happens."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Any

from ...bus.segments import Segment, bus_name, control_name, data_name, lane_name, list_lanes, list_names
from .rows import NS, clock

__all__ = ["BenchFailed", "Job", "Stage", "bench_bus", "remove_bus", "run_and_kill", "run_together"]

SETTLE_S = 0.3  # between everybody's being there and the first record
_CONTEXT = get_context("spawn")
_COUNTER = itertools.count(1)


class BenchFailed(Exception):
    """A measurement that does not count: something was lost, came twice, or a process failed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One process: calls `work(stage, *arguments)`. Pinned to `core` once it has opened what it needs; None: not at all."""

    work: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    core: int | None = None


class Stage:
    """What a worker sees of its measurement."""

    def __init__(self, core: int | None, barrier: Barrier, results: Connection) -> None:
        self._core, self._barrier, self._results = core, barrier, results
        self._has_reported = False

    def begin(self, *, settle: bool = False) -> None:
        """Return when all processes have opened what they need. From here on no garbage collection disturbs.

        Pins the calling thread only: threads that a library has started meanwhile may run where they like, unless `pin` was called
        before. settle: wait a moment longer, as publishers should.
        """
        self.pin()
        gc.collect()
        gc.disable()
        self._barrier.wait()
        if settle:
            time.sleep(SETTLE_S)

    def pin(self) -> None:
        """Pin the calling thread now, and so the threads that it starts: for a worker of which another thread does the work."""
        if self._core is not None and self._core in os.sched_getaffinity(0):
            os.sched_setaffinity(0, {self._core})

    def report(self, result: object) -> None:
        """Hand over the result, and wait until everybody has. Called with what `work` returns, unless it was before."""
        if self._has_reported:
            return
        self._has_reported = True
        self._results.send((True, result))
        with contextlib.suppress(EOFError):
            self._results.recv()


def run_together(*jobs: Job, seconds_max: float) -> list[Any]:
    """Run the jobs, each in a process of its own; their results. Raises BenchFailed when one fails or time is over."""
    barrier = _CONTEXT.Barrier(len(jobs), timeout=60)
    with _started(jobs, barrier) as (processes, connections):
        results = _collect(connections, seconds_max + 60)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        for process in processes:
            process.join(10)
        return results


def run_and_kill(job: Job, *, seconds_max: float) -> Any:
    """Run one job until it reports, and kill it (SIGKILL) there and then; its report."""
    with _started((job,), _CONTEXT.Barrier(1, timeout=60)) as (_, connections):
        return _collect(connections, seconds_max + 60)[0]


@contextlib.contextmanager
def _started(jobs: tuple[Job, ...], barrier: Barrier) -> Generator[tuple[list[SpawnProcess], list[Connection]]]:
    """The jobs' processes, running, and the way to each. Those still there at the end are killed."""
    pairs = [_CONTEXT.Pipe() for _ in jobs]
    processes = [
        _CONTEXT.Process(target=_work, args=(job, barrier, theirs), daemon=True)
        for job, (_, theirs) in zip(jobs, pairs, strict=True)
    ]
    try:
        for process in processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()
        yield processes, [ours for ours, _ in pairs]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _collect(connections: list[Connection], seconds_max: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting, deadline = list(connections), clock() + int(seconds_max * NS)
    while waiting:
        ready = wait(waiting, max(0.0, (deadline - clock()) / NS))
        if not ready:
            raise BenchFailed(
                f"{len(waiting)} of {len(connections)} processes did not finish within {seconds_max:.0f} s"
            )
        for connection in waiting.copy():
            if connection not in ready:
                continue
            try:
                well, result = connection.recv()
            except EOFError:
                raise BenchFailed("a process of the measurement died") from None
            if not well and result:
                raise BenchFailed(result)
            results[connections.index(connection)] = result
            waiting.remove(connection)
    return [results[index] for index in range(len(connections))]


def _work(job: Job, barrier: Barrier, results: Connection) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    stage = Stage(job.core, barrier, results)
    try:
        result = job.work(stage, *job.arguments)
    except BrokenBarrierError:
        results.send((False, ""))  # another one failed, and says why
    except BaseException as error:
        barrier.abort()
        results.send((False, f"{job.work.__name__}: {type(error).__name__}: {error}"))
    else:
        stage.report(result)


@contextlib.contextmanager
def bench_bus() -> Generator[str]:
    """A bus name of this run's own. What is left of it in shared memory afterwards is removed."""
    bus = f"bench-{os.getpid()}-{next(_COUNTER)}"
    try:
        yield bus
    finally:
        remove_bus(bus)


def remove_bus(bus: str) -> None:
    """Remove what processes that are gone have left of a bus in shared memory."""
    for topic in list_names().get(bus, []):
        Segment.unlink(data_name(bus, topic))
        Segment.unlink(control_name(bus, topic))
        for lane in list_lanes(bus, topic):
            Segment.unlink(lane_name(bus, topic, lane))
    Segment.unlink(bus_name(bus))
