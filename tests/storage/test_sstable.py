"""Sstables: what was written is read back, in any block size and compression; what is damaged is named and never returned."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringmain.storage import Corruption, FormatMismatch, Schema
from ringmain.storage._tree import KeyCodec, Memtable, Merge, State, Table, TableWriter, table_schema_json
from ringmain.storage.table_files import TableFiles, compressor, open_table
from support.keyed import Rows, key_order, key_values, keyed, keyed_schemas, keys_of, rows_of, taken
from support.sstables import (
    COMPRESSIONS,
    LOG_ID,
    PAGE_BYTES,
    blocks,
    in_table_order,
    info_of,
    needs,
    opened,
    parts,
    sealed,
    write_table,
)

NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
SEQUENCE_MAX = (1 << 64) - 1
POINTS = keyed("u4", name="points")
PAIRS = keyed("S9", "i4", "u2", name="pairs")  # two words and a bit
WIDE = Schema("wide", {"k": "i8", "value": "u8", "body": "S500"}, key=("k",))
PLAIN = Schema("plain", {"value": "u8"})
FORTY = rows_of(POINTS, [(key,) for key in range(40)])


def state_of(*tables: Table) -> State:
    return State(tables[0].codec, (), tables, ())


def scan(table: Table, *, reverse: bool = False, versions: bool = False, visible: int = SEQUENCE_MAX) -> list[bytes]:
    merge = Merge(table.codec, [], [table], reverse=reverse)
    merge.begin_scan(visible, versions)
    rows, found = np.empty(64, table.codec.dtype), []
    while count := merge.fill(rows):
        found += [row.tobytes() for row in rows[:count]]
    return found


# --- read back ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=COMPRESSIONS)
def compression(request: pytest.FixtureRequest) -> str:
    return needs(request.param)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_written_is_read_back(data, tmp_path, compression):
    schema = data.draw(keyed_schemas(fields_max=3))
    keys = data.draw(keys_of(schema, count_max=40))
    rows = rows_of(schema, keys, data.draw(st.sampled_from([1, 1 << 40])))
    rows = taken(rows, in_table_order(schema, rows))
    flags = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    block_bytes = data.draw(st.sampled_from([1, 50, 64, 200, 1000, 4096, 1 << 20]))
    path = tmp_path / "0000000003.sst"
    path.unlink(missing_ok=True)
    how: dict[str, Any] = {
        "block_bytes": block_bytes,
        "compression": compression,
        "add_rows": data.draw(st.integers(1, 40)),
    }
    write_table(path, schema, rows, flags, number=3, **how)

    table = opened(path, schema)
    orders = [key_order(schema, key_values(schema, row)) for row in rows]
    assert (table.row_count, table.tombstone_count, table.number) == (len(rows), sum(flags), 3)
    assert table.shadowed_count == sum(one == other for one, other in pairwise(orders))
    assert table.block_rows == max(1, block_bytes // schema.row_bytes)
    assert table.block_count == -(-len(rows) // table.block_rows)
    assert (table.sequence_min, table.sequence_max) == (rows["sequence"].min(), rows["sequence"].max())
    assert (table.timestamp_min_ns, table.timestamp_max_ns) == (rows["timestamp_ns"].min(), rows["timestamp_ns"].max())
    words = table.codec.encode(rows).tolist()
    assert (table.key_min, table.key_max) == (tuple(words[0]), tuple(words[-1]))
    assert table.file_bytes == path.stat().st_size
    assert Schema.from_json(table.schema_json()) == schema
    table.verify()

    assert table.rows().tobytes() == rows.tobytes()
    first, end = sorted(data.draw(st.tuples(st.integers(0, len(rows)), st.integers(0, len(rows)))))
    assert table.rows(first, end).tobytes() == rows[first:end].tobytes()
    assert table.flags(0, len(rows)).tolist() == flags
    assert scan(table, versions=True) == [row.tobytes() for row, dead in zip(rows, flags, strict=True) if not dead]

    state, middle = state_of(table), int(np.median(rows["sequence"]))
    for visible in (0, middle, SEQUENCE_MAX):
        newest: dict[Any, bytes | None] = {}
        for order, row, dead in zip(orders, rows, flags, strict=True):
            if row["sequence"] <= visible:
                newest.setdefault(order, None if dead else row.tobytes())
        got = [state.get(key, visible) for key in keys]
        assert [row if row is None else row.tobytes() for row in got] == [
            newest.get(key_order(schema, key)) for key in keys
        ]
        many, found = state.get_many(rows, visible)
        got = [row.tobytes() if there else None for row, there in zip(many, found, strict=True)]
        assert got == [newest.get(order) for order in orders]
        there = [row for row in newest.values() if row is not None]
        assert scan(table, visible=visible) == there
        assert scan(table, visible=visible, reverse=True) == there[::-1]

    low, high = data.draw(st.sampled_from(keys)), data.draw(st.sampled_from(keys))
    low, high = low[: data.draw(st.integers(1, len(low)))], high[: data.draw(st.integers(1, len(high)))]
    begin, end = table.bounds(low, high)
    low_order, high_order = key_order(schema, low), key_order(schema, high)
    assert begin == sum(order[: len(low)] < low_order for order in orders)
    assert end == max(begin, sum(order[: len(high)] <= high_order for order in orders))


@pytest.mark.parametrize("block_bytes", [1, 64, 333, 4096, 65_536, 1 << 22])
@pytest.mark.parametrize("schema", [POINTS, PAIRS, WIDE], ids=lambda schema: schema.name)
def test_a_table_of_many_blocks_finds_every_key_and_no_other(tmp_path, compression, schema, block_bytes):
    count = 3000
    rows: Rows = np.zeros(count, schema.dtype)
    rows["sequence"] = np.random.default_rng(5).permutation(count) + 1
    rows["timestamp_ns"] = rows["sequence"]
    rows["value"] = rows["sequence"] * np.uint64(0x9E3779B97F4A7C15)
    keys = np.arange(count) * 2 + 2
    last = schema.key[1] if schema is PAIRS else schema.key[0]
    rows[last] = keys
    table = opened(
        write_table(tmp_path / "t.sst", schema, rows, block_bytes=block_bytes, compression=compression), schema
    )
    assert (table.compression, table.topic) == (compression, schema.name)
    assert (table.tombstone_count, table.shadowed_count) == (0, 0)
    table.verify()
    state = state_of(table)

    absent: Rows = rows.copy()
    absent[last] = keys + 1
    absent[last][-1] = 0
    mixed = np.concatenate([rows, absent])
    order = np.random.default_rng(6).permutation(len(mixed))
    got, found = state.get_many(mixed[order])
    assert (found == (order < count)).all()
    assert (got[found] == mixed[order][found]).all()
    assert (got[~found] == np.zeros(1, schema.dtype)).all()
    _, found = state.get_many(rows, count // 2)
    assert (found == (rows["sequence"] <= count // 2)).all()

    name, place = table.codec.names, schema.key.index(last)
    for row in rows[:: count // 7]:
        key = [row[field].item() for field in name]
        there = state.get(tuple(key), SEQUENCE_MAX)
        assert there is not None
        assert there.tobytes() == row.tobytes()
        key[place] += 1
        assert state.get(tuple(key), SEQUENCE_MAX) is None
    assert b"".join(scan(table)) == rows.tobytes()
    for first in range(0, count, count // 5):
        assert table.rows(first, first + 700).tobytes() == rows[first : first + 700].tobytes()
    assert table.rows(count, count + 5).size == table.rows(5, 5).size == table.rows(5, 4).size == 0


def test_one_key_with_more_versions_than_blocks_hold_is_found_as_of_every_sequence(tmp_path, compression):
    rows = rows_of(POINTS, [(4,)] * 2 + [(5,)] * 400 + [(6,)] * 2)
    rows = taken(rows, in_table_order(POINTS, rows))
    flags = rows["sequence"] % 5 == 0
    path = write_table(
        tmp_path / "t.sst", POINTS, rows, flags, block_bytes=5 * POINTS.row_bytes, compression=compression
    )
    state = state_of(opened(path, POINTS))
    probe = rows_of(POINTS, [(5,)])
    for visible in range(0, 410):
        last = min(visible, 402)
        wanted = None if last < 3 or last % 5 == 0 else last
        row = state.get((5,), visible)
        assert (None if row is None else int(row["sequence"])) == wanted
        many, found = state.get_many(probe, visible)
        assert (int(many["sequence"][0]) if found[0] else None) == wanted


def test_a_topic_without_a_key_has_its_rows_by_sequence(tmp_path, compression):
    rows = rows_of(PLAIN, [()] * 50, 100)
    table = opened(write_table(tmp_path / "t.sst", PLAIN, rows, block_bytes=100, compression=compression), PLAIN)
    assert table.rows().tobytes() == rows.tobytes()
    assert table.bounds(110, 119) == (10, 20)
    assert table.bounds(150, None) == (50, 50)
    assert table.bounds(None, 99) == (0, 0)
    assert table.bounds(119, 110) == (19, 19)
    row = state_of(table).get((149,), SEQUENCE_MAX)
    assert row is not None
    assert row["sequence"] == 149


def test_rows_are_read_only_and_outlive_the_table_and_its_file(tmp_path, compression):
    rows = rows_of(POINTS, [(key,) for key in range(100)])
    path = write_table(tmp_path / "t.sst", POINTS, rows, compression=compression)
    table = opened(path, POINTS)
    views = [table.rows(), table.rows(3, 60)]
    path.unlink()
    del table
    assert views[0].tobytes() == rows.tobytes()
    assert views[1].tobytes() == rows[3:60].tobytes()
    for view in views:
        with pytest.raises(ValueError, match="read-only"):
            view["value"] = 0


def test_many_threads_read_a_fresh_table_at_once(tmp_path, compression):
    rows = rows_of(POINTS, [(0,)] * 20_000)
    rows["k0"] = np.arange(20_000)
    path = write_table(tmp_path / "t.sst", POINTS, rows, block_bytes=65_536, compression=compression)
    failures: list[BaseException] = []

    def read(state: State, table: Table, start: threading.Barrier) -> None:
        try:
            start.wait(30)
            got, found = state.get_many(rows)
            assert found.all()
            assert got.tobytes() == rows.tobytes() == b"".join(scan(table))
        except BaseException as error:
            failures.append(error)

    for _ in range(15):
        table, start = opened(path, POINTS), threading.Barrier(4)
        state = state_of(table)
        threads = [threading.Thread(target=read, args=(state, table, start)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        if failures:
            raise failures[0]


def test_the_same_rows_make_the_same_bytes(tmp_path, compression):
    rows = rows_of(POINTS, [(key,) for key in range(300)])
    one = write_table(tmp_path / "1", POINTS, rows, compression=compression)
    other = write_table(tmp_path / "2", POINTS, rows, compression=compression, add_rows=7)
    assert one.read_bytes() == other.read_bytes()


# --- what the writer refuses ------------------------------------------------------------------------------------------------


@pytest.fixture
def draft(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "draft.sst.new"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    yield path, descriptor
    os.close(descriptor)


def writer_of(path: Path, descriptor: int, schema: Schema = POINTS, **changed: Any) -> TableWriter:
    fields = {"schema": schema, "table_number": 1, "log_id": LOG_ID, "created_ns": 5, "block_bytes": 128, **changed}
    return TableWriter(KeyCodec(schema), descriptor, path, **fields)


@pytest.mark.parametrize(
    ("keys", "sequences"),
    [
        ([5, 4], [1, 2]),  # a key falls
        ([5, 5], [1, 2]),  # within a key a sequence rises
        ([5, 5], [2, 2]),  # the same row twice
        ([1, 2, 3, 3, 3, 2], [9, 9, 9, 8, 7, 10]),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_rows_out_of_order_are_refused_naming_the_file(draft, keys, sequences, at_once):
    path, descriptor = draft
    rows = rows_of(POINTS, [(key,) for key in keys])
    rows["sequence"] = sequences
    writer = writer_of(path, descriptor)
    if not at_once:
        writer.add(rows[:-1])
        rows = rows[-1:]
    with pytest.raises(ValueError, match=r"draft\.sst\.new: rows must come with keys rising, and sequences falling"):
        writer.add(rows)


def test_rows_in_order_are_taken_also_across_calls(draft):
    path, descriptor = draft
    rows = rows_of(POINTS, [(key,) for key in (1, 1, 2, 2, 3)])
    rows["sequence"] = [2, 1, 9, 8, 7]
    writer = writer_of(path, descriptor)
    for at in range(5):
        writer.add(rows[at : at + 1])
    writer.finish()
    assert opened(path, POINTS).rows().tobytes() == rows.tobytes()


def test_rows_or_flags_of_another_kind_are_refused(draft):
    writer = writer_of(*draft)
    rows = rows_of(POINTS, [(1,), (2,)])
    with pytest.raises(TypeError, match=r"points.*its row dtype"):
        writer.add(rows_of(PAIRS, [(b"", 1, 1)]))
    for flags in (np.zeros(1, "u1"), np.zeros(2, bool), np.zeros(2, "u4")):
        with pytest.raises(ValueError, match="flags: a u8 array as long as the rows"):
            writer.add(rows, flags)


@pytest.mark.parametrize("compression", ["none", "lying"])
def test_a_file_that_cannot_be_written_is_an_error_that_stays(draft, compression):
    path, _ = draft
    rows = rows_of(POINTS, [(key,) for key in range(100)])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"draft\.sst\.new") as caught:
            writer_of(path, descriptor).add(rows)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(descriptor)
    assert path.stat().st_size == 0


def test_a_full_disk_is_an_error_and_every_later_call_says_the_same(draft):
    """The header fits; a limit on the file's size stands for the full disk (the signal that goes with it is off in Python)."""
    import resource

    path, descriptor = draft
    rows = rows_of(POINTS, [(key,) for key in range(100)])
    writer = writer_of(path, descriptor)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE_BYTES + 100, before[1]))
    try:
        writer.add(rows)
        for _ in range(2):
            with pytest.raises(OSError, match=r"draft\.sst\.new") as caught:
                writer.finish()
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(OSError) as caught:
        writer.finish()
    assert caught.value.errno == errno.EFBIG  # also when there is room again
    with pytest.raises(Corruption):
        opened(path, POINTS)


def test_a_file_without_its_footer_is_no_table(draft):
    path, descriptor = draft
    writer = writer_of(path, descriptor)
    writer.add(rows_of(POINTS, [(key,) for key in range(1000)]))
    with pytest.raises(Corruption, match=r"draft\.sst\.new"):
        opened(path, POINTS)
    writer.finish()
    assert opened(path, POINTS).row_count == 1000


# --- damage -----------------------------------------------------------------------------------------------------------------
# A small table with every kind of byte, and everything that can be asked of it. Whatever is damaged, an answer is either right or
# an error that names the file and where in it.

KEYS = [(key,) for key in (1, 1, 1, 2, 4, 4, 5, 5, 7, 9, 9, 10, 11, 12, 12, 12, 13, 15, 20, 21)]
PROBES = [(key,) for key in range(23)]


def damage_table(path: Path, compression: str, number: int = 2, shift: int = 0) -> Path:
    rows = rows_of(POINTS, KEYS, 1000 + shift)
    rows = taken(rows, in_table_order(POINTS, rows))
    flags = rows["sequence"] % 4 == 0
    return write_table(
        path, POINTS, rows, flags, number=number, block_bytes=3 * POINTS.row_bytes, compression=compression
    )


def older_table(path: Path) -> Path:
    """What lies below: every probed key, with older rows that no answer may bring back where the table above has newer ones."""
    return write_table(path, POINTS, rows_of(POINTS, PROBES, 1), number=1)


def each_key(ask: Callable[[tuple[int, ...]], Any]) -> list[Any]:
    """What is answered for each key; an error that one meets does not keep the others from being asked."""
    answers: list[Any] = []
    for key in PROBES:
        try:
            answers.append(ask(key))
        except (Corruption, FormatMismatch) as error:
            answers.append(error)
    return answers


def get_each(table: Table, below: Table) -> list[Any]:
    state = State(table.codec, (), (table,), ((below,),))

    def ask(key: tuple[int, ...]) -> bytes | None:
        row = state.get(key, SEQUENCE_MAX)
        return None if row is None else row.tobytes()

    return each_key(ask)


def get_many_of_one(table: Table, below: Table) -> list[Any]:
    state = State(table.codec, (), (table,), ((below,),))

    def ask(key: tuple[int, ...]) -> bytes | None:
        rows, found = state.get_many(rows_of(POINTS, [key]))
        return rows.tobytes() if found[0] else None

    return each_key(ask)


def get_many(table: Table, below: Table) -> Any:
    rows, found = State(table.codec, (), (table,), ((below,),)).get_many(rows_of(POINTS, PROBES))
    return rows.tobytes(), found.tolist()


def get_many_as_of(table: Table, below: Table) -> Any:
    rows, found = State(table.codec, (), (), ((table,), (below,))).get_many(rows_of(POINTS, PROBES), 1008)
    return rows.tobytes(), found.tolist()


def merged(table: Table, below: Table, *, reverse: bool) -> Any:
    merge = Merge(table.codec, [], [table, below], 1, 20, reverse)
    merge.begin_scan(SEQUENCE_MAX)
    rows, found = np.empty(4, POINTS.dtype), []
    while count := merge.fill(rows):
        found.append(rows[:count].tobytes())
    return b"".join(found)


def compacted(table: Table, below: Table) -> Any:
    merge = Merge(table.codec, [], [table, below])
    merge.begin_compaction([1010], all_versions=False, bottom=False)
    rows, flags, found = np.empty(4, POINTS.dtype), np.zeros(4, "u1"), []
    while count := merge.fill(rows, flags):
        found.append(rows[:count].tobytes() + flags[:count].tobytes())
    return b"".join(found)


QUESTIONS: dict[str, Callable[[Table, Table], Any]] = {
    "get": get_each,
    "get_many": get_many,
    "get_many of one": get_many_of_one,
    "get_many as of": get_many_as_of,
    "scan": lambda table, below: merged(table, below, reverse=False),
    "scan back": lambda table, below: merged(table, below, reverse=True),
    "compaction": compacted,
    "rows": lambda table, _: table.rows().tobytes(),
    "some rows": lambda table, _: table.rows(4, 11).tobytes(),
    "bounds": lambda table, _: [table.bounds(key, key) for key in PROBES],
    "flags": lambda table, _: table.flags(0, len(KEYS)).tolist(),
    "schema": lambda table, _: table.schema_json(),
    "verify": lambda table, _: table.verify(),
    "facts": lambda table, _: info_of(table),
}
READS_ALL = {"scan", "scan back", "compaction", "rows", "verify"}  # so they must notice


class Damaged:
    """A table to damage, and what undamaged it answers."""

    def __init__(self, folder: Path, compression: str) -> None:
        self.path = damage_table(folder / "0000000002.sst", compression)
        self.data = self.path.read_bytes()
        self.below = opened(older_table(folder / "0000000001.sst"), POINTS)
        self.codec = KeyCodec(POINTS)
        self.answers = {name: ask(opened(self.path, POINTS), self.below) for name, ask in QUESTIONS.items()}
        self.parts = parts(self.data)

    def with_bytes(self, offset: int, data: bytes) -> None:
        """Change bytes of the file in place."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def open(self) -> Table:
        return open_table(self.path, POINTS, self.codec)

    def check(self, place: str) -> dict[str, Corruption | FormatMismatch | None]:
        """Ask every question of a freshly opened table; no wrong answer is allowed. Returns the error that each met."""
        try:
            self.open()
        except (Corruption, FormatMismatch) as error:
            self._check_error(error, place)
            return dict.fromkeys(QUESTIONS, error)
        errors: dict[str, Corruption | FormatMismatch | None] = dict.fromkeys(QUESTIONS)
        for name, ask in QUESTIONS.items():
            try:
                answer = ask(self.open(), self.below)
            except (Corruption, FormatMismatch) as error:
                self._check_error(error, place)
                errors[name] = error
            else:
                errors[name] = self._check_answer(answer, self.answers[name], f"{place}: {name}")
        return errors

    def _check_answer(self, answer: Any, right: Any, place: str) -> Corruption | FormatMismatch | None:
        if not isinstance(answer, list):
            assert answer == right, f"{place} gave a wrong answer"
            return None
        found = [one for one in answer if isinstance(one, (Corruption, FormatMismatch))]
        for error in found:
            self._check_error(error, place)
        assert len(answer) == len(right)
        for one, wanted in zip(answer, right, strict=True):
            assert one == wanted or one in found, f"{place} gave a wrong answer"
        return found[0] if found else None

    def _check_error(self, error: Corruption | FormatMismatch, place: str) -> None:
        assert error.path == str(self.path), place
        assert str(self.path) in str(error), place
        if isinstance(error, Corruption):
            assert 0 <= error.offset <= max(len(self.data), self.path.stat().st_size), f"{place}: {error}"
            assert f"byte {error.offset}:" in str(error)


@pytest.fixture
def damaged(tmp_path: Path, compression: str) -> Damaged:
    return Damaged(tmp_path, compression)


def test_the_table_for_damage_has_every_kind_of_byte(damaged):
    kinds = [kind for kind, _, _ in damaged.parts]
    assert set(kinds) == {
        "header",
        "block",
        "keys",
        "blocks",
        "tags",
        "bloom",
        "tombstones",
        "schema",
        "padding",
        "footer",
    }
    assert kinds.count("block") == len(blocks(damaged.data)) == 7
    assert not any(damaged.check("sound").values())
    assert damaged.answers["get"] != damaged.answers["get_many as of"]
    assert None in damaged.answers["get"]  # deleted above, though there is an older row


def where(kind: str, offset: int, end: int) -> set[int]:
    """The offsets that a message may name for damage in a part."""
    if kind in ("header", "footer"):
        return set(range(offset, end))
    return {offset}


def test_a_flipped_byte_of_any_kind_is_named_and_nothing_wrong_is_returned(damaged):
    for kind, offset, end in damaged.parts:
        step = {"header": 7, "footer": 7, "padding": 61, "schema": 5, "bloom": 3}.get(kind, 1)
        first = {"header": 128, "footer": 800}.get(kind, 0)  # the fields, each byte of them; then a sample
        step *= 1 if NIGHTLY else 5
        places = [*range(offset, offset + first), *range(offset + first, end, step), end - 1]
        for at in places:
            bit = 1 << (at * 5 % 8)
            damaged.with_bytes(at, bytes([damaged.data[at] ^ bit]))
            place = f"{kind} at {offset}, byte {at}, bit {bit:#x}"
            errors = damaged.check(place)
            damaged.with_bytes(at, damaged.data[at : at + 1])
            if kind == "padding":  # means nothing, and is looked at by nobody else
                assert [name for name, error in errors.items() if error is not None] == ["verify"], place
                continue
            for name in READS_ALL:
                assert errors[name] is not None, f"{place}: {name} did not notice"
            for error in errors.values():
                if isinstance(error, Corruption):
                    assert error.offset in where(kind, offset, end), f"{place}: {error}"
    assert not any(damaged.check("sound again").values())


def test_damage_in_one_block_leaves_the_others_readable(damaged):
    offset, _ = blocks(damaged.data)[3]
    damaged.with_bytes(offset, bytes([damaged.data[offset] ^ 1]))
    table = damaged.open()
    sound = opened(damage_table(damaged.path.with_name("sound.sst"), table.compression), POINTS).rows()
    assert table.rows(0, 9).tobytes() == sound[:9].tobytes()
    assert table.rows(12, 20).tobytes() == sound[12:].tobytes()
    for _ in range(2):  # what was found once is not believed the next time
        with pytest.raises(Corruption) as caught:
            table.rows(9, 10)
        assert caught.value.offset == offset


def test_a_run_of_zeros_or_of_other_bytes_anywhere_is_named_too(damaged):
    random = np.random.default_rng(9)
    for at in range(0, len(damaged.data), 256):
        for junk in (bytes(256), b"\xff" * 256, random.bytes(256)):
            old = damaged.data[at : at + 256]
            if len(old) < 256 or junk == old:
                continue
            damaged.with_bytes(at, junk)
            errors = damaged.check(f"{at}: {junk[:4]!r}…")
            damaged.with_bytes(at, old)
            touched = {kind for kind, offset, end in damaged.parts if offset < at + 256 and end > at}
            if touched != {"padding"}:
                changed = [i for i in range(256) if junk[i] != old[i]]
                only_padding = all(
                    any(kind == "padding" and offset <= at + i < end for kind, offset, end in damaged.parts)
                    for i in changed
                )
                assert only_padding or all(errors[name] for name in READS_ALL), at


def test_a_file_cut_anywhere_is_no_table(damaged):
    ends = {0, 1, PAGE_BYTES, 2 * PAGE_BYTES - 1, 2 * PAGE_BYTES, len(damaged.data) - 1, len(damaged.data) - PAGE_BYTES}
    ends |= {edge for _, offset, end in damaged.parts for edge in (offset, end - 1)}
    ends |= set(range(0, len(damaged.data), 511))
    for size in sorted(ends, reverse=True):
        os.truncate(damaged.path, size)
        with pytest.raises(Corruption) as caught:
            damaged.open()
        damaged._check_error(caught.value, f"cut to {size}")
    damaged.path.write_bytes(damaged.data)
    assert not any(damaged.check("whole again").values())


def refused(damaged: Damaged, call: Callable[[], object]) -> tuple[int, str, str]:
    with pytest.raises(Corruption) as caught:
        call()
    return caught.value.offset, str(caught.value.expected), str(caught.value.found)


def test_a_wrong_magic_and_a_size_are_said_as_people_read_them(damaged):
    end = len(damaged.data) - PAGE_BYTES
    for call in (damaged.open, lambda: table_schema_json(damaged.path)):
        damaged.with_bytes(0, b"RMAINLOG")
        assert refused(damaged, call) == (0, "an sstable's magic b'RMAINSST'", "b'RMAINLOG'")
        damaged.with_bytes(0, damaged.data[:8])
        damaged.with_bytes(end, b"\0\xff      ")
        assert refused(damaged, call) == (end, "a footer's magic b'RMAINEND'", r"b'\x00\xff      '")
        os.truncate(damaged.path, 6)
        assert refused(damaged, call) == (0, "a header and a footer, at least 8192 bytes", "6")
        damaged.path.write_bytes(damaged.data)


@pytest.mark.parametrize("more", [1, 64, PAGE_BYTES])
def test_a_file_that_grew_is_no_table(damaged, more):
    for tail in (bytes(more), damaged.data[-more:]):
        damaged.path.write_bytes(damaged.data + tail)
        with pytest.raises(Corruption) as caught:
            damaged.open()
        damaged._check_error(caught.value, f"{more} more")


def test_parts_of_an_older_file_are_not_taken_for_the_newer_ones(damaged):
    """Blocks and pages of another table of the same shape in the place of this one's: what a lost write leaves."""
    table = damaged.open()
    other = damage_table(damaged.path.with_name("older.sst"), table.compression, number=1, shift=-400).read_bytes()
    for kind, offset, end in damaged.parts:
        if kind == "padding" or other[offset:end] == damaged.data[offset:end]:
            continue
        damaged.with_bytes(offset, other[offset:end])
        errors = damaged.check(f"{kind} at {offset} of an older file")
        damaged.path.write_bytes(damaged.data)
        assert all(errors[name] for name in READS_ALL), (kind, offset)
        for error in errors.values():
            if isinstance(error, Corruption) and kind != "header":
                assert error.offset in where(kind, offset, end), f"{kind} at {offset}: {error}"


def test_two_blocks_that_changed_places_are_noticed(damaged):
    (one, size), (other, _) = blocks(damaged.data)[1:3]
    second = damaged.data[other : other + size]
    if size == blocks(damaged.data)[2][1]:
        damaged.with_bytes(one, second)
        damaged.with_bytes(other, damaged.data[one : one + size])
        errors = damaged.check("two blocks in each other's place")
        assert all(errors[name] for name in READS_ALL)


# --- sound files that are not the one that is meant ----------------------------------------------------------------------------


def test_a_file_that_another_release_or_schema_wrote_is_refused_as_such(tmp_path):
    path = damage_table(tmp_path / "t.sst", "none")
    data = path.read_bytes()
    for offset, value, what in (
        (8, 2, "version"),
        (12, 0x04030201, "byte order"),
        (24, 1, "schema"),
        (60, 3, "compression"),
    ):
        changed = bytearray(data)
        struct.pack_into("<I", changed, offset, value)
        path.write_bytes(sealed(changed))
        with pytest.raises(FormatMismatch) as caught:
            opened(path, POINTS)
        assert (caught.value.path, caught.value.what) == (str(path), what)
    path.write_bytes(data)
    renamed = keyed("u4", name="others")
    with pytest.raises(FormatMismatch, match="schema"):
        opened(path, renamed)


def test_a_file_whose_checksums_are_right_and_whose_counts_are_not_is_damaged(tmp_path):
    path = damage_table(tmp_path / "t.sst", "none")
    data = path.read_bytes()
    footer = len(data) - PAGE_BYTES
    wrong = {
        **{f"header {offset}": offset for offset in (48, 52, 56)},  # row_bytes, key_bytes, block_rows
        **{f"footer {offset}": footer + offset for offset in (16, 24, 32, 88)},  # bytes, rows, blocks, bloom lines
        **{f"section at {at}": footer + 96 + at for which in range(5) for at in (24 * which, 24 * which + 8)},
    }
    for name, at in wrong.items():
        for value in (0, 1, 0xFFFF_FFFF, (1 << 64) - 1):
            changed = bytearray(data)
            code = "<I" if at < PAGE_BYTES else "<Q"
            value &= 0xFFFF_FFFF if code == "<I" else (1 << 64) - 1
            if struct.unpack_from(code, changed, at)[0] == value:
                continue
            struct.pack_into(code, changed, at, value)
            path.write_bytes(sealed(changed))
            with pytest.raises(Corruption) as caught:
                opened(path, POINTS).verify()
            assert caught.value.path == str(path), name
            assert 0 <= caught.value.offset <= len(data), name


def test_a_block_takes_no_more_memory_than_the_rows_that_are_there(tmp_path, compression):
    rows = rows_of(POINTS, [(key,) for key in range(10)])
    path = write_table(tmp_path / "t.sst", POINTS, rows, block_bytes=1 << 20, compression=compression)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 56, 0xFFFF_FFFF)  # block_rows
    path.write_bytes(sealed(data))
    table = opened(path, POINTS)
    assert scan(table) == [row.tobytes() for row in rows]
    assert table.rows().tobytes() == rows.tobytes()


def test_a_table_of_another_number_topic_store_or_size_is_not_the_one_that_the_manifest_means(tmp_path):
    files, codec = TableFiles(tmp_path, LOG_ID, 4096), KeyCodec(POINTS)
    rows = rows_of(POINTS, [(key,) for key in range(400)])
    meant = info_of(opened(write_table(files.path(5), POINTS, rows, number=5), POINTS))
    assert files.open(meant, POINTS, codec).number == 5
    files.path(5).unlink()
    with pytest.raises(FileNotFoundError):
        files.open(meant, POINTS, codec)
    others: tuple[tuple[str, Rows, dict[str, Any]], ...] = (
        ("number of a table", rows, {"number": 4}),
        ("log_id of a table", rows, {"number": 5, "log_id": LOG_ID + 1}),
        ("rows of a table", rows[:399], {"number": 5}),
        ("bytes of a table", rows, {"number": 5, "block_bytes": 1}),
    )
    for what, kept, changed in others:
        write_table(files.path(5), POINTS, kept, **changed)
        with pytest.raises(FormatMismatch, match="the manifest means another file") as caught:
            files.open(meant, POINTS, codec)
        assert (caught.value.path, caught.value.what) == (str(files.path(5)), what)
        files.path(5).unlink()


def test_an_older_copy_with_the_same_number_and_size_is_not_the_one_that_the_manifest_means(tmp_path):
    """Such as a table of a copied store that went its own way since."""
    files, codec = TableFiles(tmp_path, LOG_ID, 4096), KeyCodec(POINTS)
    keys = [(key,) for key in range(50)]
    meant = info_of(opened(write_table(files.path(5), POINTS, rows_of(POINTS, keys, 101), number=5), POINTS))
    for other in (rows_of(POINTS, keys, 102), rows_of(POINTS, [(key + 1,) for (key,) in keys], 101)):
        files.path(5).unlink()
        write_table(files.path(5), POINTS, other, number=5)
        with pytest.raises(FormatMismatch, match="the manifest means another file"):
            files.open(meant, POINTS, codec)


HUGE_FRAME = struct.pack("<4sBQ", b"\x28\xb5\x2f\xfd", 0b1110_0000, 1 << 50) + bytes(40)  # of zstd, by what it says


@pytest.mark.parametrize("stored", [b"", b"x", b"no block at all" * 20, HUGE_FRAME])
def test_a_block_that_does_not_decompress_is_damage_though_its_checksum_is_right(tmp_path, compression, stored):
    if compression == "none":
        pytest.skip("nothing is decompressed there")
    path = tmp_path / "t.sst"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    writer = writer_of(path, descriptor, compression=compression, compress=lambda block: stored)
    writer.add(rows_of(POINTS, [(key,) for key in range(10)]))
    writer.finish()
    os.close(descriptor)
    for ask in (lambda table: table.rows(), lambda table: state_of(table).get((3,), 99), scan):
        with pytest.raises(Corruption) as caught:
            ask(opened(path, POINTS))
        assert (caught.value.path, caught.value.offset) == (str(path), PAGE_BYTES)


def test_a_block_that_decompresses_to_another_size_is_damage(tmp_path, compression):
    compress = compressor(compression)[0]
    if compress is None:
        pytest.skip("nothing is decompressed there")
    for change in (lambda block: block + b"\0" * 8, lambda block: block[:-8]):
        path = tmp_path / "t.sst"
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        writer = writer_of(
            path, descriptor, compression=compression, compress=lambda block, change=change: compress(change(block))
        )
        writer.add(rows_of(POINTS, [(key,) for key in range(10)]))
        writer.finish()
        os.close(descriptor)
        with pytest.raises(Corruption, match="compressed"):
            opened(path, POINTS).rows()


def test_a_compressor_that_fails_stops_the_writer(draft):
    def refuse(block: bytes) -> bytes:
        raise RuntimeError("too dull")

    writer = writer_of(*draft, compression="zstd", compress=refuse)
    writer.add(rows_of(POINTS, [(1,)]))
    for _ in range(2):
        with pytest.raises(OSError, match=r"cannot be compressed: too dull.*draft\.sst\.new") as caught:
            writer.finish()
        assert isinstance(caught.value.__cause__, RuntimeError)


# --- what happens while a block is compressed or decompressed, and says nothing of it ---------------------------------------


class Alarm(Exception):
    """What a signal's handler raises."""


@pytest.fixture(params=[name for name in COMPRESSIONS if name != "none"])
def decompress(request: pytest.FixtureRequest) -> Callable[[bytes, int], bytes]:
    call = compressor(needs(request.param))[1]
    assert call is not None
    return call


@pytest.fixture
def compressed(request: pytest.FixtureRequest, tmp_path: Path, decompress: Callable[[bytes, int], bytes]) -> Table:
    """A table of 40 rows in several blocks, of the compression to which `decompress` belongs."""
    compression = request.node.callspec.params["decompress"]
    return opened(write_table(tmp_path / "t.sst", POINTS, FORTY, compression=compression), POINTS)


@pytest.fixture(params=[KeyboardInterrupt, SystemExit, MemoryError, Alarm])
def stopped(request: pytest.FixtureRequest) -> Iterator[tuple[type[BaseException], Callable[..., Any]]]:
    """An exception, and how to have it raised on the way into a call: by the call itself, or by the handler of a pending signal."""
    error: type[BaseException] = request.param

    def stop(*_: object) -> NoReturn:
        raise error("stop")

    def stopped_by_signal(call: Callable[..., bytes]) -> Callable[..., bytes]:
        left = [signal.SIGUSR1]

        def stopped_call(*arguments: Any) -> bytes:
            if left:
                signal.raise_signal(left.pop())
            return call(*arguments)

        return stopped_call

    def stopped_by_itself(call: Callable[..., bytes]) -> Callable[..., bytes]:
        return stop

    before = signal.signal(signal.SIGUSR1, stop)
    yield error, stopped_by_signal if error is Alarm else stopped_by_itself
    signal.signal(signal.SIGUSR1, before)


def compaction(table: Table) -> None:
    merge = Merge(table.codec, [], [table])
    merge.begin_compaction([], all_versions=True, bottom=True)
    while merge.fill(np.empty(8, POINTS.dtype), np.empty(8, "u1")):
        pass


DECOMPRESSING: dict[str, Callable[[Table], Any]] = {
    "scan": scan,
    "scan backwards": lambda table: scan(table, reverse=True),
    "scan within bounds": lambda table: Merge(table.codec, [], [table], 3, 30),
    "bounds": lambda table: table.bounds(3, 30),
    "compaction": compaction,
    "rows": lambda table: table.rows(),
    "get": lambda table: state_of(table).get((3,), SEQUENCE_MAX),
    "get_many": lambda table: state_of(table).get_many(rows_of(POINTS, [(3,), (30,)])),
    "problems": lambda table: table.problems(),
}


@pytest.mark.parametrize("ask", DECOMPRESSING.values(), ids=DECOMPRESSING)
def test_what_stops_a_read_is_raised_as_it_is_and_no_damage(compressed, decompress, stopped, ask):
    error, stopped_in = stopped
    compressed.decompress_with(stopped_in(decompress))
    with pytest.raises(error, match="stop"):
        ask(compressed)
    compressed.decompress_with(decompress)
    ask(compressed)
    assert compressed.problems() == []


def test_a_scan_that_was_stopped_does_not_look_as_if_it_had_come_to_its_end(compressed, decompress, stopped):
    error, stopped_in = stopped
    merge, other = (Merge(compressed.codec, [], [compressed]) for _ in range(2))
    for one in (merge, other):
        one.begin_scan(SEQUENCE_MAX)
    compressed.decompress_with(stopped_in(decompress))
    for _ in range(3):
        with pytest.raises(error, match="stop"):
            merge.fill(np.empty(64, POINTS.dtype))
    compressed.decompress_with(decompress)
    with pytest.raises(error, match="stop"):
        merge.fill(np.empty(64, POINTS.dtype))
    out = np.empty(64, POINTS.dtype)
    assert out[: other.fill(out)].tobytes() == FORTY.tobytes()  # what has stopped one scan does not stop another


def test_what_stops_a_writer_is_raised_as_it_is_and_by_every_later_call(draft, stopped):
    error, stopped_in = stopped
    writer = writer_of(*draft, compression="zstd", compress=stopped_in(lambda block: block))
    writer.add(rows_of(POINTS, [(1,)]))
    for again in (writer.finish, writer.finish, lambda: writer.add(rows_of(POINTS, [(2,)]))):
        with pytest.raises(error, match="stop"):
            again()


def test_an_unknown_compression_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"none, zstd, lz4.*'snappy'"):
        compressor("snappy")


def test_a_missing_package_says_what_to_install(monkeypatch):
    import sys

    for name, module in (("zstd", "zstandard"), ("lz4", "lz4")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ModuleNotFoundError, match=rf"{name} compression needs `pip install ringmain\[compression\]`"
        ):
            compressor(name)


# --- the directory's files ------------------------------------------------------------------------------------------------


def merge_of(schema: Schema, rows: Rows) -> Merge:
    memtable = Memtable(KeyCodec(schema), 1 << 20)
    memtable.insert(rows)
    merge = Merge(memtable.codec, [(memtable, len(rows))], [])
    merge.begin_compaction([], all_versions=True, bottom=True)
    return merge


def write_all(files: TableFiles, merge: Merge, schema: Schema, **changed: Any) -> list[Any]:
    numbers = iter(range(1, 10_000))
    settings = {
        "compression": "none",
        "table_bytes": 1 << 20,
        "next_number": lambda: next(numbers),
        "throttle": lambda count: None,
    }
    return list(files.write(merge, schema, KeyCodec(schema), 2, **{**settings, **changed}))


def test_a_merge_is_cut_into_tables_of_the_wanted_size_never_within_a_key(tmp_path):
    files, table_bytes = TableFiles(tmp_path, LOG_ID, 256), 40_000
    rows = rows_of(
        POINTS, [(place - (place % 10 == 0),) for place in range(1, 14_001)] + [(20_000,)] * 3000 + [(20_001,)]
    )
    infos = write_all(files, merge_of(POINTS, rows), POINTS, table_bytes=table_bytes)
    tables = [files.open(info, POINTS, KeyCodec(POINTS)) for info in infos]
    assert [info.number for info in infos] == list(range(1, len(infos) + 1))
    assert all(info.level == 2 for info in infos)
    assert all(one.key_max < other.key_min for one, other in pairwise(infos))
    assert sum(info.row_count for info in infos) == len(rows)
    assert (np.concatenate([table.rows() for table in tables]) == rows[in_table_order(POINTS, rows)]).all()
    sizes = [info.row_count * POINTS.row_bytes for info in infos]
    assert all(size >= table_bytes - 256 for size in sizes[:-1])
    assert len(infos) >= 6
    assert max(sizes) >= 3000 * POINTS.row_bytes  # the long key lies in one
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{number:010d}.sst" for number in range(1, len(infos) + 1)
    ]
    assert files.strays(frozenset(info.number for info in infos)) == []


def test_wide_rows_are_cut_into_tables_as_well(tmp_path):
    files, wide = (
        TableFiles(tmp_path, LOG_ID, 4096),
        Schema("wide", {"k": "u4", "value": "u8", "body": "S60000"}, key=("k",)),
    )
    rows = rows_of(wide, [(key,) for key in range(40)])
    memtable = Memtable(KeyCodec(wide), 4 << 20)
    memtable.insert(rows)
    merge = Merge(memtable.codec, [(memtable, len(rows))], [])
    merge.begin_compaction([], all_versions=True, bottom=True)
    infos = write_all(files, merge, wide, table_bytes=300_000)
    assert all(5 <= info.row_count <= 8 for info in infos[:-1])
    assert sum(info.row_count for info in infos) == len(rows)


def test_a_table_that_is_given_up_leaves_no_file(tmp_path):
    files = TableFiles(tmp_path, LOG_ID, 256)
    rows = rows_of(POINTS, [(place,) for place in range(20_000)])
    taken = 0

    def cancel(count: int) -> None:
        nonlocal taken
        taken += 1
        if taken == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(files, merge_of(POINTS, rows), POINTS, throttle=cancel)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_makes_no_table(tmp_path):
    assert write_all(TableFiles(tmp_path, LOG_ID, 256), merge_of(POINTS, rows_of(POINTS, [])), POINTS) == []
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_told_from_what_the_manifest_knows(tmp_path):
    files = TableFiles(tmp_path, LOG_ID, 256)
    for name in ("0000000001.sst", "0000000002.sst", "0000000003.sst.new", "MANIFEST", "notes.sst"):
        (tmp_path / name).touch()
    assert [path.name for path in files.strays(frozenset({1}))] == ["0000000002.sst", "0000000003.sst.new"]
    files.remove([2, 9])
    assert not files.path(2).exists()
