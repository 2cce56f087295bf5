"""A real exchange day over the bus: is every quote of it the order book that a subscriber rebuilds from orders and trades?

A publisher process replays the share's orders, trades and quotes as three topics, in the order of the exchange's number
over orders and trades (BizIndex, the field `event`). A subscriber process reads the topics, brings them back into that
order, rebuilds the book and looks for all ten levels of every quote of continuous trading. Three ways to do it:

live        the subscriber reads the rings while the day goes on.
kill        the same, and the publisher is killed with SIGKILL in mid-day and started again. It goes on behind the last
            record that the bus has of each topic; the subscriber's readers move to the new rings by themselves.
historical  the day is over and the bus is closed; the subscriber reads the log.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from book_oracle import BookOracle
from ringmain.bus import Overrun, Writer, attach
from ringmain.storage import ORDERS, QUOTES, TRADES
from ringmain.subscribers import Historical, RealTime
from sse_day import FOLDER, Day, Rows, load_day

SCHEMAS = (ORDERS, TRADES, QUOTES)
TOPICS: tuple[str, ...] = ("orders", "trades", "quotes")
WAYS = ("live", "kill", "historical")
SPAWN = multiprocessing.get_context("spawn")
START_S, END_S = 60.0, 120.0  # what a process may need to start, and to end
IDLE_S = 0.005  # how long the subscriber waits for one topic before it looks at the next
EARLY_S = 0.001  # rows due within this time go together

Counts = Mapping[str, int]


# --- the publisher process ----------------------------------------------------------------------------------------------


def publish(bus: str, data_dir: str, root: Path, slots: int, seconds: float, attached: Event | None) -> None:
    """Publish what the bus does not have yet of the day, spread over `seconds` for the whole of it."""
    day = load_day(root)
    with Writer(bus, SCHEMAS, data_dir=data_dir, slots=slots) as writer:
        topics = {name: writer[name] for name in TOPICS}
        published = {name: topic.watermarks.published for name, topic in topics.items()}
        if any(published.values()):
            say(f"publisher {os.getpid()} goes on behind {in_words(published)}")
        if attached is not None and not attached.wait(START_S):
            sys.exit("no subscriber has come")
        total_count = sum(len(rows) for rows in rows_of(day).values())
        begin_count = done_count = sum(published.values())
        begin = time.monotonic()
        for name, rows in day.in_order(published):
            topics[name].publish_batch(rows)
            done_count += len(rows)
            early_s = (done_count - begin_count) / total_count * seconds - (time.monotonic() - begin)
            if early_s > EARLY_S:
                time.sleep(early_s)


# --- the subscriber process ---------------------------------------------------------------------------------------------


def subscribe(bus: str, expected: Counts, attached: Event) -> None:
    """Read the rings until the publisher closes them, and check the quotes as they come."""
    oracle = BookOracle()
    feed = feeders(oracle)
    read = dict.fromkeys(TOPICS, 0)
    with ExitStack() as stack:
        readers = {
            name: stack.enter_context(RealTime(f"{bus}/{name}", start="earliest", open_timeout=START_S))
            for name in TOPICS
        }
        attached.set()
        wait_s = IDLE_S
        while not all(reader.ended for reader in readers.values()):
            found = False
            for name, reader in readers.items():
                batch = reader.take(wait_s)
                if batch is None:
                    continue
                try:
                    rows = batch.copy()  # whole, proven before the book changes by it
                except Overrun:
                    continue  # lapped: the reader gets these rows again, from the log
                feed[name](rows)
                read[name] += len(rows)
                found = True
            wait_s = 0.0 if found else IDLE_S
        oracle.finish()
        stats = [reader.stats for reader in readers.values()]
    notes = [f"{sum(stat.refilled_count for stat in stats):,} of them from the log, the others from the rings"]
    if moved := max(stat.reopen_count for stat in stats):
        notes.append(f"moved to a new publisher's rings {moved} time")
    conclude(oracle, read, expected, "; ".join(notes))


def subscribe_to_log(bus: str, data_dir: str, expected: Counts) -> None:
    """Read the log of a bus that is closed, merge the topics and check the quotes."""
    oracle = BookOracle()
    feed = feeders(oracle)
    topics = {name: read_log(f"{bus}/{name}", data_dir) for name in TOPICS}
    day = Day(topics["orders"], topics["trades"], topics["quotes"], other_quotes=topics["quotes"][:0])
    for name, rows in day.in_order():
        feed[name](rows)
    oracle.finish()
    conclude(oracle, {name: len(rows) for name, rows in topics.items()}, expected, "all of them from the log")


def read_log(address: str, data_dir: str) -> Rows:
    with Historical(address, data_dir=data_dir) as reader:
        return np.concatenate([batch.rows for batch in reader])


def feeders(oracle: BookOracle) -> dict[str, Callable[[Rows], None]]:
    return {"orders": oracle.on_orders, "trades": oracle.on_trades, "quotes": oracle.on_quotes}


def conclude(oracle: BookOracle, read: Counts, expected: Counts, notes: str) -> None:
    """Print what was found and end the process: with 0 only if every record came and every quote is in the book."""
    say(f"{oracle.matched:,} of {expected['quotes']:,} quotes equal the rebuilt book, all ten levels")
    say(f"read {in_words(read)}; {notes}")
    if oracle.mismatched:
        say(f"first not found: the quote after trade {oracle.mismatched[0]:,}")
    if read != expected:
        say(f"but the day has {in_words(expected)}")
    sys.exit(0 if read == expected and oracle.matched == expected["quotes"] else 1)


# --- who starts them ----------------------------------------------------------------------------------------------------


def replay(way: str, root: Path, slots: int, seconds: float, expected: Counts) -> bool:
    """Replay the day one way, on a bus of its own; True if every record came and every quote was found."""
    bus, begin = f"day-{way}-{os.getpid()}", time.monotonic()
    processes: list[SpawnProcess] = []

    def start(name: str, target: Callable[..., None], *args: object) -> SpawnProcess:
        process = SPAWN.Process(target=target, args=args, name=name)
        process.start()
        processes.append(process)
        return process

    print(way, flush=True)
    with tempfile.TemporaryDirectory(prefix="exchange-day-") as data_dir:
        try:
            if way == "historical":
                join(start("publisher", publish, bus, data_dir, root, slots, 0.0, None))
                say("the day is published and the bus closed")
                subscriber = start("subscriber", subscribe_to_log, bus, data_dir, expected)
            else:
                attached = SPAWN.Event()
                publisher = start("publisher", publish, bus, data_dir, root, slots, seconds, attached)
                subscriber = start("subscriber", subscribe, bus, expected, attached)
                if way == "kill":
                    kill_at_midday(publisher, bus, expected, attached)
                    publisher = start("publisher", publish, bus, data_dir, root, slots, seconds, attached)
                join(publisher)
            subscriber.join(END_S)
        except BaseException:
            end_all(processes)
            # Takes over what a dead publisher left in shared memory, and removes it.
            Writer(bus, SCHEMAS, data_dir=data_dir, slots=slots).close()
            raise
        end_all(processes)
    say(f"{time.monotonic() - begin:.1f} s")
    return subscriber.exitcode == 0


def kill_at_midday(publisher: SpawnProcess, bus: str, expected: Counts, attached: Event) -> None:
    """SIGKILL the publisher once half of the orders are out."""
    if not attached.wait(START_S):
        sys.exit("the subscriber did not come")
    orders, deadline = attach(f"{bus}/orders"), time.monotonic() + END_S
    while orders.watermarks().published < expected["orders"] // 2:
        if not publisher.is_alive() or time.monotonic() > deadline:
            sys.exit(f"the publisher did not come to the middle of the day, exit code {publisher.exitcode}")
        time.sleep(0.001)
    publisher.kill()
    publisher.join()
    if publisher.exitcode == 0:
        sys.exit("the publisher was through before it could be killed; give it more --seconds")
    left = {name: attach(f"{bus}/{name}").watermarks().published for name in TOPICS}
    say(f"publisher {publisher.pid} is killed behind {in_words(left)}")


def join(process: SpawnProcess) -> None:
    process.join(END_S)
    if process.exitcode != 0:
        sys.exit(f"the {process.name} failed, exit code {process.exitcode}")


def end_all(processes: list[SpawnProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def rows_of(day: Day) -> dict[str, Rows]:
    return {"orders": day.orders, "trades": day.trades, "quotes": day.quotes}


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def in_words(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, metavar="DIR", help=f"the folder {FOLDER}, or the one that holds it")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--kill", action="store_const", dest="ways", const=["kill"], help="kill the publisher in mid-day")
    ways.add_argument("--historical", action="store_const", dest="ways", const=["historical"], help="read the log")
    ways.add_argument("--all", action="store_const", dest="ways", const=WAYS, help="all three ways in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long the day takes, live (default: 3)")
    parser.add_argument("--slots", type=int, default=65_536, help="records that a ring holds (default: 65,536)")
    given = parser.parse_args()
    if not 0 <= given.seconds < END_S:
        parser.error(f"--seconds: 0 to {END_S:g} are possible, not {given.seconds:g}")
    if given.slots < 1 or given.slots & (given.slots - 1):
        parser.error(f"--slots: a power of two is expected, not {given.slots}")
    folder = given.dir.resolve()
    root = folder.parent if folder.name == FOLDER else folder
    try:
        expected = {name: len(rows) for name, rows in rows_of(load_day(root)).items()}
    except FileNotFoundError as error:
        parser.error(f"{given.dir} is not the set: {error.filename} is missing")
    except (OSError, EOFError, ValueError, KeyError, csv.Error) as error:
        parser.error(f"{given.dir} is not the set {FOLDER}: {error}")
    print(f"{FOLDER}: {in_words(expected)}", flush=True)
    results = [replay(way, root, given.slots, given.seconds, expected) for way in given.ways or ["live"]]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
