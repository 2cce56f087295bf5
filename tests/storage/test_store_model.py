"""The store is a dict: whatever is put, deleted, read, flushed, compacted, reopened or killed, in any order and any configuration.

RINGMAIN_SEED chooses another run (it is printed); RINGMAIN_NIGHTLY makes each configuration at least 10,000 operations long.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ringmain.storage import Schema, Shape, Store, StoreReader, Tree, View, ViewGone
from ringmain.storage.log import LOG_FILE_BYTES_MIN
from support import forked
from support.keyed import Order, Rows, key_order, keyed, values_of
from support.sstables import needs

SEED = int(os.environ.get("RINGMAIN_SEED", "20230201"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
STEPS, OPERATIONS = (100, 10_000) if NIGHTLY else (40, 80)
KILLS = 100 if NIGHTLY else 1
pytestmark = pytest.mark.timeout(3600 if NIGHTLY else 180)

PLAIN = Schema("plain", {"value": "u8"})
KEYS_MAX = 40


@dataclass(frozen=True)
class Configuration:
    """A topic's key, and how its store is set up. The second topic, without a key, shares the log."""

    name: str
    kinds: Sequence[str] = ("u4",)
    keep_versions: bool = False
    compression: str = "none"
    memtable_bytes: int = 900  # 10 rows; a table of a few takes 12 KiB
    block_bytes: int = 150
    value: str = "u8"
    shape: dict[str, int] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        if not self.kinds:
            return Schema("keyed", {"value": self.value})
        return keyed(*self.kinds, value=self.value, backwards=len(self.kinds) == 2)

    def open(self, directory: Path) -> Store:
        tiny = {
            "level0_tables": 2,
            "ratio": 2,
            "table_bytes": 300,
            "level1_bytes": 40_000,
            "slowdown_tables": 30,
            "stop_tables": 40,
        }
        fixed: dict[str, Any] = {
            "sync": "never",
            "keep_versions": ["keyed", "plain"] if self.keep_versions else [],
            "memtable_bytes": self.memtable_bytes,
            "block_bytes": self.block_bytes,
            "compression": needs(self.compression),
            "shape": Shape(**{**tiny, **self.shape}),
            "snapshot_interval": None,
            "log_file_bytes": LOG_FILE_BYTES_MIN,
        }
        return Store(directory, [self.schema, PLAIN], **{**fixed, **self.others})


C = Configuration
PATIENT = {"slowdown_tables": 100, "stop_tables": 200}
CONFIGURATIONS = [
    C("plain numbers"),
    C("plain numbers, all versions", keep_versions=True),
    C("signed numbers", kinds=("i8",)),
    C("floats", kinds=("f8",)),
    C("small floats with a flag, all versions", kinds=("f4", "?"), keep_versions=True),
    C("bytes", kinds=("S3",)),
    C("long bytes", kinds=("S40", "u2"), memtable_bytes=1400),
    C(
        "long bytes, all versions, zstd",
        kinds=("S40", "i1"),
        memtable_bytes=1400,
        keep_versions=True,
        compression="zstd",
    ),
    C("three fields", kinds=("i2", "S9", "u1"), memtable_bytes=1200),
    C("two keys in all", kinds=("?",)),
    C("without a key", kinds=()),
    C("zstd", compression="zstd"),
    C("lz4", compression="lz4", kinds=("i4",)),
    C("lz4, all versions", compression="lz4", keep_versions=True),
    C("zstd, one row a block", compression="zstd", block_bytes=1),
    C("one row a block", block_bytes=1, keep_versions=True),
    C("one block a table", block_bytes=1 << 20, kinds=("u8", "S1")),
    C("memtables of one row", memtable_bytes=0, shape=PATIENT),
    C(
        "memtables of one row, all versions",
        memtable_bytes=0,
        keep_versions=True,
        shape=PATIENT,
    ),
    C("tables of one key, all levels full", shape={"table_bytes": 1, "level1_bytes": 1}),
    C(
        "tables of one key, all versions",
        shape={"table_bytes": 1, "level1_bytes": 1},
        keep_versions=True,
        compression="zstd",
    ),
    C("two levels", shape={"level_count": 2, "level0_tables": 1}),
    C("putting waits for the flush", others={"immutable_max": 1}, shape={"stop_tables": 3, "slowdown_tables": 3}),
    C("all in memory", memtable_bytes=1 << 20),
    C("all in memory, written now and then", memtable_bytes=1 << 20, others={"snapshot_interval": 0.005}),
    C("synced each time", others={"sync": "always"}),
    C("synced behind", others={"sync": "interval", "sync_interval": 0.0005}, kinds=("i8",)),
    C("wide rows, zstd", value="S500", memtable_bytes=6000, compression="zstd", block_bytes=4096),
]
configurations = pytest.mark.parametrize(
    "configuration", CONFIGURATIONS, ids=lambda one: one.name.replace(",", "").replace(" ", "-")
)


# --- the model ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    key: tuple[Any, ...]
    order: Order
    sequence: int
    payload: bytes | None  # None: deleted

    def __lt__(self, other: Version) -> bool:
        return self.order < other.order


class Model:
    """A topic as a plain list of versions, and a dict of the newest."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.versions: list[Version] = []
        self.now: dict[Order, Version] = {}
        self.stamps: dict[int, int] = {}

    @property
    def sequence(self) -> int:
        return len(self.versions)

    def add(self, key: tuple[Any, ...], payload: bytes | None) -> None:
        version = Version(key, key_order(self.schema, key), self.sequence + 1, payload)
        self.versions.append(version)
        self.now[version.order] = version

    def at(self, visible: int | None) -> dict[Order, Version]:
        """What there is as of a sequence, by key."""
        found = self.now
        if visible is not None:
            found = {version.order: version for version in self.versions[:visible]}
        return {order: version for order, version in found.items() if version.payload is not None}

    def check_row(self, row: np.void | None, wanted: Version | None) -> None:
        if wanted is None:
            assert row is None
            return
        assert row is not None, f"{wanted.key} is missing"
        assert int(row["sequence"]) == wanted.sequence
        assert content(row) == wanted.payload
        stamp = int(row["timestamp_ns"])
        assert self.stamps.setdefault(wanted.sequence, stamp) == stamp

    def check_rows(self, rows: Sequence[np.void] | Rows, wanted: Sequence[Version]) -> None:
        assert [int(row["sequence"]) for row in rows] == [version.sequence for version in wanted]
        for row, version in zip(rows, wanted, strict=True):
            self.check_row(row, version)


def content(row: Any) -> bytes:
    """A row's fields, without its stamp and the bytes between fields."""
    return b"".join(row[name].tobytes() for name in row.dtype.names if name not in ("sequence", "timestamp_ns"))


def payload_of(schema: Schema, key: tuple[Any, ...], value: int) -> np.ndarray[Any, Any]:
    rows = np.zeros(1, schema.payload_dtype)
    for name, part in zip(schema.key, key, strict=False):
        rows[name] = part
    rows["value"] = b"%d" % value if schema.payload_dtype["value"].kind == "S" else value
    return rows


def flat(batches: Iterator[Rows], batch_rows: int) -> list[np.void]:
    found: list[np.void] = []
    for rows in batches:
        assert 0 < len(rows) <= batch_rows
        found += list(rows)
    return found


def copy_as_killed(directory: Path, target: Path) -> None:
    """Copy what the files hold while the store is open: what a kill at this moment would leave. Again if anything has moved."""

    def listing() -> list[tuple[str, int, int, int]]:
        found = []
        for path in sorted(directory.rglob("*")):
            status = path.stat()
            found.append((str(path), status.st_ino, status.st_size if path.is_file() else 0, status.st_mtime_ns))
        return found

    for _ in range(1000):
        with contextlib.suppress(FileNotFoundError, shutil.Error):
            before = listing()
            shutil.copytree(directory, target)
            if listing() == before:
                return
        shutil.rmtree(target, ignore_errors=True)
    raise AssertionError("the directory never came to rest")


# --- the machine --------------------------------------------------------------------------------------------------------------

pick = st.integers(0, 1 << 30)  # of what there is, taken modulo its count
topics = st.sampled_from(["keyed", "keyed", "keyed", "plain"])
values = st.integers(0, (1 << 64) - 1)


class StoreMachine(RuleBasedStateMachine):
    configuration: Configuration
    operations = 0  # of all machines of a configuration

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ringmain-model-"))
        self.lives = 0
        self.age = 0  # steps since it was opened
        self.models = {"keyed": Model(self.configuration.schema), "plain": Model(PLAIN)}
        self.keys: list[tuple[Any, ...]] = []
        self.views: list[
            tuple[str, View | None, int]
        ] = []  # None: refused, which depends on the threads; steps must not
        self.scans: list[tuple[str, Iterator[Rows], list[Version]]] = []
        self.held: list[tuple[Rows | np.void, bytes]] = []
        self.directory = self.folder / "0"
        self.store = self.configuration.open(self.directory)

    def teardown(self) -> None:
        try:
            for rows, content in self.held:
                assert rows.tobytes() == content, "rows that were handed out have changed"
            self.scans.clear()
            self.store.close()
        finally:
            self.store.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    @initialize(data=st.data())
    def choose_keys(self, data: st.DataObject) -> None:
        kinds = self.configuration.kinds
        if kinds:
            fewest = 12 if len(kinds) == 1 else 4
            few = [data.draw(st.lists(values_of(kind), min_size=fewest, max_size=KEYS_MAX)) for kind in kinds]
            one = st.tuples(*(st.sampled_from(part) for part in few))
            self.keys = data.draw(st.lists(one, min_size=10, max_size=KEYS_MAX))

    def key(self, topic: str, number: int) -> tuple[Any, ...]:
        """One of a topic's keys, there or not; of a topic without one, a sequence."""
        if topic == "keyed" and self.keys:
            return self.keys[number % len(self.keys)]
        return (number % (self.models[topic].sequence + 2),)

    def add(self, topic: str, key: tuple[Any, ...], payload: bytes | None) -> None:
        model = self.models[topic]
        model.add(key if model.schema.key else (model.sequence + 1,), payload)

    def tree(self, topic: str) -> Tree:
        return self.store[topic]

    # --- writing

    @rule(topic=topics, number=pick, value=values, by_name=st.booleans())
    def put(self, topic: str, number: int, value: int, by_name: bool) -> None:
        schema, key = self.models[topic].schema, self.key(topic, number)
        payload = payload_of(schema, key, value)
        fields: dict[str, Any] = {column.name: payload[column.name][0].item() for column in schema.fields}
        tree = self.tree(topic)
        sequence = tree.put(**fields) if by_name else tree.put(*fields.values())
        self.add(topic, key, content(payload[0]))
        assert sequence == self.models[topic].sequence

    @rule(topic=topics, numbers=st.lists(pick, max_size=14), value=values, complete=st.booleans())
    def put_batch(self, topic: str, numbers: list[int], value: int, complete: bool) -> None:
        model, tree = self.models[topic], self.tree(topic)
        keys = [self.key(topic, number) for number in numbers]
        payloads = [payload_of(model.schema, key, (value + at) % (1 << 64)) for at, key in enumerate(keys)]
        rows = np.concatenate([np.zeros(0, model.schema.payload_dtype), *payloads])
        if complete:  # its stamps are replaced
            whole = np.full(len(rows), 7, "u1").repeat(model.schema.row_bytes).view(model.schema.dtype)
            for column in model.schema.fields:
                whole[column.name] = rows[column.name]
            rows = whole
        if len(rows) > self.store._trees[topic].active.capacity:
            with pytest.raises(ValueError, match="more than a memtable, or a file of the log, holds"):
                tree.put_batch(rows)
            return
        assert tree.put_batch(rows) == model.sequence + len(rows)
        for key, payload in zip(keys, payloads, strict=True):
            self.add(topic, key, content(payload[0]))

    @precondition(lambda self: self.configuration.kinds)
    @rule(number=pick)
    def delete(self, number: int) -> None:
        key = self.key("keyed", number)
        sequence = self.tree("keyed").delete(*key)
        self.add("keyed", key, None)
        assert sequence == self.models["keyed"].sequence

    @rule(number=pick)
    def delete_by_sequence(self, number: int) -> None:
        with pytest.raises(TypeError, match="has no key"):
            self.tree("plain").delete(*self.key("plain", number))

    @precondition(lambda self: self.configuration.kinds)
    @rule()
    def delete_everything(self) -> None:
        for version in sorted(self.models["keyed"].at(None).values()):
            self.tree("keyed").delete(*version.key)
            self.add("keyed", version.key, None)

    @rule(numbers=st.lists(pick, min_size=8, max_size=40), value=values)
    def write_many(self, numbers: list[int], value: int) -> None:
        """A third of it deletes."""
        for at, number in enumerate(numbers):
            if number % 3 or not self.configuration.kinds:
                self.put("keyed", number, (value + at) % (1 << 64), False)
            else:
                self.delete(number)

    @rule(topic=topics, number=pick)
    def put_what_does_not_fit(self, topic: str, number: int) -> None:
        """Nothing of it is stored."""
        schema = self.models[topic].schema
        fields = list(payload_of(schema, self.key(topic, number), 1)[0].item())
        fields[[column.name for column in schema.fields].index("value")] = object()
        with pytest.raises(TypeError):
            self.tree(topic).put(*fields)

    # --- reading

    def readers(self, topic: str) -> list[tuple[Tree | View, int | None]]:
        views = [
            (view, at) if view is not None else (self.tree(topic), None)
            for name, view, at in self.views
            if name == topic
        ]
        return [(self.tree(topic), None), *views]

    @rule(topic=topics, number=pick, reader=pick)
    def get(self, topic: str, number: int, reader: int) -> None:
        model, readers = self.models[topic], self.readers(topic)
        tree, at = readers[reader % len(readers)]
        key = self.key(topic, number)
        row = tree.get(*key)
        model.check_row(row, model.at(at).get(key_order(model.schema, key)))
        if row is not None:
            self.hold(row)

    @rule(topic=topics, numbers=st.lists(pick, max_size=40), reader=pick)
    def get_many(self, topic: str, numbers: list[int], reader: int) -> None:
        model, readers = self.models[topic], self.readers(topic)
        tree, at = readers[reader % len(readers)]
        keys = [self.key(topic, number) for number in numbers]
        names = model.schema.key or ("sequence",)
        probes = np.zeros(len(keys), [(name, model.schema.dtype[name]) for name in names])
        for place, name in enumerate(names):
            for row, key in enumerate(keys):
                probes[name][row] = key[place]
        rows, found = tree.get_many(probes)
        there = model.at(at)
        for row, has, key in zip(rows, found, keys, strict=True):
            model.check_row(row if has else None, there.get(key_order(model.schema, key)))
            assert has or not row.tobytes().strip(b"\0")

    def bounds(self, topic: str, bound: tuple[int, int] | None) -> tuple[Any, ...] | None:
        if bound is None:
            return None
        key = self.key(topic, bound[0])
        return key[: 1 + bound[1] % len(key)]

    def expected_scan(
        self,
        topic: str,
        at: int | None,
        first: tuple[Any, ...] | None = None,
        last: tuple[Any, ...] | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[Version]:
        model = self.models[topic]
        low = None if first is None else key_order(model.schema, first)
        high = None if last is None else key_order(model.schema, last)
        found = [
            version
            for order, version in sorted(model.at(at).items())
            if (low is None or order[: len(low)] >= low) and (high is None or order[: len(high)] <= high)
        ]
        return (found[::-1] if reverse else found)[:limit]

    @rule(
        topic=topics,
        reader=pick,
        first=st.none() | st.tuples(pick, pick),
        last=st.none() | st.tuples(pick, pick),
        reverse=st.booleans(),
        limit=st.none() | st.integers(0, 20),
        batch_rows=st.integers(2, 30),
        later=st.booleans(),
    )
    def scan(
        self,
        topic: str,
        reader: int,
        first: tuple[int, int] | None,
        last: tuple[int, int] | None,
        reverse: bool,
        limit: int | None,
        batch_rows: int,
        later: bool,
    ) -> None:
        readers = self.readers(topic)
        tree, at = readers[reader % len(readers)]
        low, high = self.bounds(topic, first), self.bounds(topic, last)
        wanted = self.expected_scan(topic, at, low, high, reverse, limit)
        batches = tree.scan(low, high, reverse=reverse, limit=limit, batch_rows=batch_rows)
        if later:
            self.scans.append((topic, batches, wanted))
        else:
            self.models[topic].check_rows(flat(batches, batch_rows), wanted)

    @precondition(lambda self: self.scans)
    @rule(which=pick)
    def finish_scan(self, which: int) -> None:
        """What was put since it began is not in it."""
        topic, batches, wanted = self.scans.pop(which % len(self.scans))
        self.models[topic].check_rows(flat(batches, 1 << 30), wanted)

    @rule(topic=topics)
    def hold_rows(self, topic: str) -> None:
        for rows in self.tree(topic).scan():
            self.hold(rows)

    def hold(self, rows: Rows | np.void) -> None:
        """What was handed out never changes, whatever becomes of where it was found."""
        self.held.append((rows, rows.tobytes()))
        del self.held[:-40]

    @rule(topic=topics, number=pick, reader=pick)
    def history(self, topic: str, number: int, reader: int) -> None:
        model, readers = self.models[topic], self.readers(topic)
        tree, at = readers[reader % len(readers)]
        key = self.key(topic, number)
        order = key_order(model.schema, key)
        mine = [version for version in model.versions[:at][::-1] if version.order == order]
        wanted = [version for version in mine if version.payload is not None]
        rows = tree.history(*key)
        if not self.configuration.keep_versions:  # some are gone, but never the newest
            there = set(rows["sequence"].tolist())
            assert not mine or mine[0].payload is None or mine[0].sequence in there
            wanted = [version for version in wanted if version.sequence in there]
        model.check_rows(rows, wanted)

    # --- views

    @rule(topic=topics)
    def open_view(self, topic: str) -> None:
        assume(len(self.views) < 6)
        self.views.append((topic, self.tree(topic).at(), self.models[topic].sequence))

    @rule(topic=topics, number=pick)
    def open_view_in_the_past(self, topic: str, number: int) -> None:
        """Right, or refused."""
        assume(len(self.views) < 6)
        sequence = number % (self.models[topic].sequence + 1)
        if self.configuration.keep_versions:
            self.views.append((topic, self.tree(topic).at(sequence), sequence))
            return
        view = None
        with contextlib.suppress(ViewGone):
            view = self.tree(topic).at(sequence)
        self.views.append((topic, view, sequence))
        assert view is not None or self.store._trees[topic].tree.dropped_through > sequence

    @precondition(lambda self: self.views)
    @rule(which=pick)
    def close_view(self, which: int) -> None:
        topic, view, at = self.views.pop(which % len(self.views))
        if view is None:
            return
        self.models[topic].check_rows(flat(view.scan(), 1 << 30), self.expected_scan(topic, at))
        view.close()
        view.close()
        with pytest.raises(ValueError, match="this view is closed"):
            view.get(*self.key(topic, 0))

    # --- what should make no difference

    @rule()
    def snapshot(self) -> None:
        self.store.snapshot()
        for topic, stats in self.store.stats().items():
            assert stats.checkpoint == stats.sequence == self.models[topic].sequence
            assert stats.immutable_count == 0

    @rule(topic=st.none() | topics)
    def compact(self, topic: str | None) -> None:
        self.store.compact(topic)
        for name, stats in self.store.stats().items():
            assert stats.checkpoint == stats.sequence
            if topic in (None, name):
                assert stats.tables_by_level[0] == 0

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @rule(topic=topics)
    def begin_a_flush(self, topic: str) -> None:
        """As when the memtable is full; what comes next meets it under way."""
        writer = self.store._trees[topic]
        with writer.tree.lock:
            writer.set_aside()
        self.store._changed()

    @rule(topic=topics, past=pick)
    def look_from_outside(self, topic: str, past: int) -> None:
        """As another process does that only reads."""
        model = self.models[topic]
        with StoreReader(self.directory, memtable_bytes=1 << 12) as store:
            tree = store[topic]
            assert tree.sequence == model.sequence
            model.check_rows(flat(tree.scan(), 1 << 30), self.expected_scan(topic, None))
            if self.configuration.keep_versions:
                at = past % (model.sequence + 1)
                with tree.at(at) as view:
                    model.check_rows(
                        flat(view.scan(reverse=True), 1 << 30), self.expected_scan(topic, at, reverse=True)
                    )

    def leave(self) -> None:
        """The views and scans of this life end with it."""
        for topic, batches, wanted in self.scans:
            self.models[topic].check_rows(flat(batches, 1 << 30), wanted)
        self.scans.clear()
        for _, view, _ in self.views:
            if view is not None:
                view.close()
        self.views.clear()

    @precondition(lambda self: self.age >= 12)
    @rule()
    def reopen(self) -> None:
        self.leave()
        self.store.close()
        with pytest.raises(ValueError, match="closed"):
            self.tree("plain").put(1)
        self.store = self.configuration.open(self.directory)
        assert self.store.recovered.closed
        self.check_all()

    @precondition(lambda self: self.age >= 12)
    @rule()
    def crash(self) -> None:
        """Go on with what the directory holds at this moment; the store that was open is never asked again."""
        self.lives += 1
        target = self.folder / str(self.lives)
        copy_as_killed(self.directory, target)
        self.leave()
        self.store.close()
        shutil.rmtree(self.directory)
        self.directory = target
        self.store = self.configuration.open(target)
        self.check_all()

    def check_all(self) -> None:
        self.age = 0
        for topic, model in self.models.items():
            assert self.store.stats()[topic].sequence == model.sequence
            for reverse in (False, True):
                got = flat(self.tree(topic).scan(reverse=reverse), 1 << 30)
                model.check_rows(got, self.expected_scan(topic, None, reverse=reverse))

    @invariant()
    def the_newest_sequence_is_known(self) -> None:
        self.age += 1
        type(self).operations += 1
        assert self.store["keyed"].core.visible == self.models["keyed"].sequence
        assert self.store["plain"].core.visible == self.models["plain"].sequence


@configurations
def test_a_store_equals_a_dict_whatever_is_done_to_it(configuration):
    needs(configuration.compression)
    machine = type("Machine", (StoreMachine,), {"configuration": configuration})
    first = SEED + 1000 * CONFIGURATIONS.index(configuration)
    for number in itertools.count(first):  # Hypothesis ends some of its examples early
        print(f"RINGMAIN_SEED={SEED}, example seed {number}")
        run_state_machine_as_test(
            seed(number)(machine),
            settings=settings(
                max_examples=max(1, (OPERATIONS - machine.operations) // STEPS),
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                print_blob=True,
                phases=[Phase.generate, Phase.shrink] if NIGHTLY else [Phase.generate],
                suppress_health_check=[
                    HealthCheck.too_slow,
                    HealthCheck.filter_too_much,
                    HealthCheck.data_too_large,
                ],
            ),
        )
        if machine.operations >= OPERATIONS:
            break


# --- killed -------------------------------------------------------------------------------------------------------------------


def steps_of(configuration: Configuration, randomness: random.Random) -> Iterator[tuple[str, list[Any]]]:
    """What a process does, without end: a call's name and its arguments, the same for the same seed."""
    keys: list[tuple[Any, ...]] = []
    for at in range(40):
        parts: list[Any] = []
        for kind in configuration.kinds:
            match kind[0]:
                case "S":
                    parts.append((b"%d" % (at * 7919))[: int(kind[1:])])
                case "f":
                    parts.append((at - 20) / 4)
                case "?":
                    parts.append(at % 2 == 1)
                case "i":
                    parts.append(at - 20)
                case _:
                    parts.append(at)
        keys.append(tuple(parts))
    while True:
        topic = randomness.choice(["keyed", "keyed", "plain"])
        what = randomness.choices(["put", "batch", "delete", "snapshot", "compact"], [60, 15, 20, 3, 1])[0]
        key, value = randomness.choice(keys), randomness.getrandbits(60)
        if what == "delete" and not configuration.kinds:
            continue
        if what == "batch":
            yield topic, [(randomness.choice(keys), value + at) for at in range(randomness.randint(1, 9))]
        elif what == "put":
            yield topic, [(key, value)]
        elif what == "delete":
            yield "keyed", [(key, None)]
        else:
            yield what, []


def carry_out(store: Store, schemas: dict[str, Schema], topic: str, rows: list[Any]) -> None:
    if topic in ("snapshot", "compact"):
        getattr(store, topic)()
        return
    if rows[0][1] is None:
        store[topic].delete(*rows[0][0])
        return
    payloads = [payload_of(schemas[topic], key, value) for key, value in rows]
    if len(rows) == 1:
        store[topic].put(*payloads[0][0].item())
    elif len(rows) <= store._trees[topic].active.capacity:
        store[topic].put_batch(np.concatenate(payloads))
    else:
        for payload in payloads:
            store[topic].put(*payload[0].item())


class Place(forked.Place):
    WORDS = ("open", "done")  # the store is; so many steps are


def carry_out_all(place: Place, directory: str, configuration: int, life: int) -> None:
    """A child's part: one step after another, until it is killed."""
    chosen = CONFIGURATIONS[configuration]
    store = chosen.open(Path(directory))
    place["open"] = 1
    for topic, rows in steps_of(chosen, random.Random(f"{SEED} {chosen.name} {life}")):
        carry_out(store, {"keyed": chosen.schema, "plain": PLAIN}, topic, rows)
        place["done"] += 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forked.Server]:
    server = forked.Server(tmp_path_factory.mktemp("places"), Path(__file__), Place)
    yield server
    server.close()


@pytest.mark.process
@configurations
def test_a_killed_process_loses_nothing_that_it_was_told_is_stored(configuration, tmp_path, server):
    """A child puts, deletes, flushes and compacts and says after each step that it is done, until it is killed."""
    print(f"RINGMAIN_SEED={SEED}")
    needs(configuration.compression)
    models = {"keyed": Model(configuration.schema), "plain": Model(PLAIN)}
    randomness = random.Random(f"{SEED} {configuration.name}")
    single = configuration.memtable_bytes == 0  # its batches go in row by row
    for life in range(KILLS):
        child = server.start(
            "carry_out_all", directory=str(tmp_path), configuration=CONFIGURATIONS.index(configuration), life=life
        )
        child.wait_for("open")
        child.wait_for("done", randomness.randint(0, 300))
        child.kill()
        steps = steps_of(configuration, random.Random(f"{SEED} {configuration.name} {life}"))
        done = list(itertools.islice(steps, child["done"]))
        pending = next(steps)  # done, or not, or it never began
        for topic, rows in done:
            for key, value in rows:
                store_version(models[topic], key, value)
        with configuration.open(tmp_path) as store:
            if pending[0] in models:
                model, rows = models[pending[0]], pending[1]
                more = store.stats()[pending[0]].sequence - model.sequence
                assert more in ((0, len(rows)) if not single else range(len(rows) + 1))
                for key, value in rows[:more]:
                    store_version(model, key, value)
            for topic, model in models.items():
                assert store.stats()[topic].sequence == model.sequence
                wanted_rows = [version for _, version in sorted(model.at(None).items())]
                model.check_rows(flat(store[topic].scan(), 1 << 30), wanted_rows)
                for version in wanted_rows:
                    model.check_row(store[topic].get(*version.key), version)
                if configuration.keep_versions:
                    at = randomness.randint(0, model.sequence)
                    with store[topic].at(at) as view:
                        model.check_rows(
                            flat(view.scan(), 1 << 30), [version for _, version in sorted(model.at(at).items())]
                        )


def store_version(model: Model, key: tuple[Any, ...], value: int | None) -> None:
    key = key if model.schema.key else (model.sequence + 1,)
    model.add(key, None if value is None else content(payload_of(model.schema, key, value)[0]))


if __name__ == "__main__":
    forked.serve({"carry_out_all": carry_out_all}, Place)
