"""What compaction costs: bytes written for each byte put, and processor time while rows keep coming at a steady rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...storage.levels import Shape
from ...storage.store import Store
from .measuring import Bar, Bench, Figures, Plan, bench_directory
from .rows import NS, clock
from .store_filling import settle
from .store_peer import MEMTABLE_BYTES, StorePeer
from .store_rows import PEER_VALUES, SCHEMA, TOPIC, VALUES, make_keys, pairs_of
from .workers import BenchFailed, Job, Stage, run_together

__all__ = ["BENCH"]

RATE = 100_000  # rows a second
TICK_NS = 1_000_000
TICK_ROWS = RATE * TICK_NS // NS
RANDOM_PUTS = 5_000_000
STEADY_SEED = 4


def _run(plan: Plan) -> Figures:
    with bench_directory(plan) as directory:
        return run_together(Job(_compact, (directory, *_sizes(plan))), seconds_max=900)[0]


def _sizes(plan: Plan) -> tuple[int, int]:
    """(random puts, steady puts)."""
    return min(RANDOM_PUTS, 5 * plan.rows), int(RATE * plan.seconds)


def _compact(stage: Stage, directory: str, put_count: int, steady_count: int) -> Figures:
    with Store(directory, [SCHEMA], sync="never") as store:
        put = store[TOPIC].put
        stage.begin(settle=True)
        for key, value in pairs_of(make_keys(put_count), VALUES):
            put(key, value)
        settle(store, Shape())
        counts = store.stats()[TOPIC].counts
        written = counts.flushed_bytes + counts.compacted_bytes
        names = {"flush": "ringmain-flush", "compaction": "ringmain-compaction"}
        cpu_s = {what: _own_thread_cpu(name) for what, name in names.items()}
        shares = _steady(
            put, pairs_of(make_keys(steady_count, STEADY_SEED), VALUES), lambda: settle(store, Shape()), cpu_s
        )
        if store[TOPIC].core.visible != put_count + steady_count:
            raise BenchFailed("not all rows are there")
    return {"write_amplification": written / (put_count * SCHEMA.row_bytes), **shares}


def _steady(
    put: Callable[[bytes, bytes], object],
    pairs: Iterator[tuple[bytes, bytes]],
    finish: Callable[[], None],
    cpu_s: dict[str, Callable[[], float]],
) -> Figures:
    """Put the pairs at RATE; the processor time that was used meanwhile and until all is compacted, in % of the time of putting."""
    cpu_s = {**cpu_s, "background": _background_s}
    before = {what: used() for what, used in cpu_s.items()}
    began = due = clock()
    done = False
    while not done:
        for _ in range(TICK_ROWS):
            pair = next(pairs, None)
            if pair is None:
                done = True
                break
            put(*pair)
        due += TICK_NS
        time.sleep(max(0, due - clock()) / NS)
    seconds = (clock() - began) / NS
    finish()
    return {f"{what}_cpu_percent": 100 * (used() - before[what]) / seconds for what, used in cpu_s.items()}


def _background_s() -> float:
    """The processor time of all threads but this one."""
    return time.process_time() - time.thread_time()


def _own_thread_cpu(name: str) -> Callable[[], float]:
    for thread in threading.enumerate():
        if thread.name == name and thread.native_id is not None:
            path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            return lambda: int(path.read_text().split()[0]) / NS
    raise BenchFailed(f"there is no thread {name}")


def _library_threads_cpu(prefix: str) -> Callable[[], float]:
    def used() -> float:
        total = 0
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().startswith(prefix):
                total += int((task / "schedstat").read_text().split()[0])
        return total / NS

    return used


def _run_peer(plan: Plan, peer: Any) -> Figures:
    if not issubclass(peer, StorePeer) or not peer.has_levels:
        return {}
    with bench_directory(plan) as directory:
        return run_together(Job(_compact_peer, (peer, directory, *_sizes(plan))), seconds_max=900)[0]


def _compact_peer(stage: Stage, peer: type[StorePeer], directory: str, put_count: int, steady_count: int) -> Figures:
    store = peer(directory, count_writes=True)
    stage.begin(settle=True)
    for key, value in pairs_of(make_keys(put_count), PEER_VALUES):
        store.put(key, value)
    store.settle()
    written = store.written_bytes()
    threads = peer.compaction_threads
    cpu_s = {"compaction": _library_threads_cpu(threads)} if threads else {}
    shares = _steady(store.put, pairs_of(make_keys(steady_count, STEADY_SEED), PEER_VALUES), store.settle, cpu_s)
    store.close()
    return {"write_amplification": written / (put_count * SCHEMA.row_bytes), **shares}


BENCH = Bench(
    "store compaction",
    "Bytes written to tables for every byte put at random; and the processor time that a steady 100,000 puts a second cost.",
    {"compaction_cpu_percent": Bar(10)},
    _run,
    {
        "random_puts": f"{RANDOM_PUTS}, or 5 times the rows where that is less; then steady ones on top of them",
        "rate_per_s": RATE,
        "cpu_percent": "of one core; flush and compaction: of those threads; background: of all threads but the putting one",
        "written": "flushes and compactions, until none is due; the log is left out",
        "memtable_bytes": MEMTABLE_BYTES,
    },
    _run_peer,
)
