"""Tombstones in the log: rows that delete their key. They number on with the rows, and count wherever rows count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringmain.storage import Corruption, Log, LogReader, Schema, StorageError, _log
from ringmain.storage.log_files import file_path, open_file, row_frames
from ringmain.storage.log_reader import VIEW_ROWS_MIN
from ringmain.storage.recovery import Contents, examine
from ringmain.storage.repair import repair
from support.logs import FILE_BYTES, START_NS, Builder, Rows, flip, make_rows

LEVELS = Schema("levels", {"price": "i8", "size": "u4", "side": "S1"}, key=("price", "side"))
OTHER = Schema("other", {"x": "u8"})
GOLDEN = Path(__file__).parent / "golden" / "log-v1-tombstones.bin"
FRAME = _log.FRAME_HEADER_BYTES


def make_tombstones(schema: Schema, first: int, count: int) -> Rows:
    """Tombstones `first` to `first + count - 1`: stamp and key as `make_rows` has them, the rest zero."""
    rows = make_rows(schema, first, count)
    for column in schema.fields:
        if column.name not in schema.key:
            rows[column.name] = np.zeros((), rows.dtype[column.name])
    return rows


def make(schema: Schema, first: int, count: int, tombstones: bool) -> Rows:
    return make_tombstones(schema, first, count) if tombstones else make_rows(schema, first, count)


class KeyedBuilder(Builder):
    """Writes tombstones as well."""

    def tombstones(self, schema: Schema, count: int) -> int:
        """Append a frame of tombstones; returns its offset."""
        offset, first = len(self.data), self.next[schema.name]
        rows = make_tombstones(schema, first, count)
        self._add(
            _log.FRAME_TOMBSTONES,
            rows.tobytes(),
            topic=self.schemas.index(schema),
            first_sequence=first,
            row_count=count,
            first_timestamp_ns=int(rows["timestamp_ns"][0]),
            row_bytes=schema.row_bytes,
        )
        self.frames.append((self.number, offset, schema.name, first, count))
        self.next[schema.name], self.last_ns[schema.name] = first + count, int(rows["timestamp_ns"][-1])
        self._save()
        return offset


def open_log(directory: Path) -> Log:
    return Log(directory, [LEVELS, OTHER], bus="test", file_bytes=FILE_BYTES)


def append(log: Log, schema: Schema, count: int, tombstones: bool = False) -> int:
    """Append the topic's next rows; returns the last sequence."""
    number = log.topic(schema.name).number
    first = log.appender.next_sequence(number)
    log.keep(0)
    log.appender.append(number, make(schema, first, count, tombstones), tombstones)
    return first + count - 1


def read(reader: LogReader, sequence: int) -> Rows:
    rows = reader.read(sequence)
    assert rows is not None
    return rows


def read_both(
    reader: LogReader, first: int = 1, last: int | None = None, rows_max: int = 1000
) -> list[tuple[Rows, bool]]:
    """All batches that `read_all` hands out."""
    batches: list[tuple[Rows, bool]] = []
    while (batch := reader.read_all(first, last, rows_max)) is not None:
        batches.append(batch)
        first = int(batch[0]["sequence"][-1]) + 1
    return batches


def assert_holds(directory: Path, runs: list[tuple[int, bool]], rows_max: int = 1000) -> None:
    """Reading finds exactly these runs of (count, tombstones), in order, and `read` their rows only."""
    expected: list[tuple[int, bool]] = []  # every sequence and its kind
    for count, tombstones in runs:
        expected += [(sequence, tombstones) for sequence in range(len(expected) + 1, len(expected) + 1 + count)]
    found: list[tuple[int, bool]] = []
    for rows, tombstones in read_both(LogReader(directory, LEVELS.name), rows_max=rows_max):
        assert 1 <= len(rows) <= rows_max
        assert not rows.flags.writeable
        assert (rows == make(LEVELS, int(rows["sequence"][0]), len(rows), tombstones)).all()
        found += [(sequence, tombstones) for sequence in rows["sequence"].tolist()]
    assert found == expected

    reader, position, kept = LogReader(directory, LEVELS.name), 1, []
    while (rows := reader.read(position, rows_max=rows_max)) is not None:
        assert (rows == make_rows(LEVELS, int(rows["sequence"][0]), len(rows))).all()
        kept += rows["sequence"].tolist()
        position = int(rows["sequence"][-1]) + 1
    assert kept == [sequence for sequence, tombstones in expected if not tombstones]
    behind = kept[-1] if kept else 0  # tombstones with no row behind them yet are not counted yet
    assert reader.tombstone_count == sum(tombstones for sequence, tombstones in expected if sequence <= behind)
    assert reader.lost_count == 0


# --- what was appended is there -------------------------------------------------------------------------------------------


def test_tombstones_number_on_with_the_rows_and_a_writer_continues_behind_them(tmp_path):
    log = open_log(tmp_path)
    append(log, LEVELS, 3)
    append(log, OTHER, 2)
    append(log, LEVELS, 2, tombstones=True)
    append(log, LEVELS, 1)
    append(log, LEVELS, 4, tombstones=True)
    log.close()
    log = open_log(tmp_path)
    assert log.recovered.record_count == 12
    assert log.recovered.closed
    assert log.topic("levels").next_sequence == log.appender.next_sequence(0) == 11
    assert log.topic("levels").last_timestamp_ns == make_rows(LEVELS, 10, 1)["timestamp_ns"][0]
    append(log, LEVELS, 1)
    log.close()
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.topics["levels"].next_sequence == 12
    assert_holds(tmp_path, [(3, False), (2, True), (1, False), (4, True), (1, False)])
    assert len(read(LogReader(tmp_path, "other"), 1)) == 2


def test_tombstones_that_do_not_follow_are_refused(tmp_path):
    log = open_log(tmp_path)
    append(log, LEVELS, 3)
    with pytest.raises(ValueError, match="run on from 4"):
        log.appender.append(0, make_tombstones(LEVELS, 3, 1), True)
    append(log, LEVELS, 1, tombstones=True)
    with pytest.raises(ValueError, match="run on from 5"):
        log.appender.append(0, make_rows(LEVELS, 4, 1))
    log.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(
        st.tuples(st.sampled_from([1, 2, 9, VIEW_ROWS_MIN - 1, VIEW_ROWS_MIN, 700]), st.booleans()), max_size=25
    ),
    turns=st.sets(st.integers(0, 24)),
    rows_max=st.sampled_from([1, 50, 1000]),
)
def test_any_mixture_over_any_files_reads_back_in_order(tmp_path_factory, runs, turns, rows_max):
    builder = KeyedBuilder(tmp_path_factory.mktemp("log"), [LEVELS, OTHER])
    builder.begin()
    for index, (count, tombstones) in enumerate(runs):
        if index in turns:
            builder.begin(new_writer=bool(index % 2))
        (builder.tombstones if tombstones else builder.rows)(LEVELS, count)
        builder.rows(OTHER, 1)
    builder.close()
    assert examine(builder.directory).problems == []
    assert_holds(builder.directory, runs, rows_max)


def test_each_batch_is_of_one_kind_and_large_frames_are_views_of_the_file(tmp_path):
    builder = KeyedBuilder(tmp_path, [LEVELS])
    builder.begin()
    builder.rows(LEVELS, VIEW_ROWS_MIN)
    builder.tombstones(LEVELS, VIEW_ROWS_MIN)
    for _ in range(3):
        builder.tombstones(LEVELS, 1)
        builder.tombstones(LEVELS, 2)
        builder.rows(LEVELS, 2)
    batches = read_both(LogReader(tmp_path, "levels"))
    small = [(3, True), (2, False)] * 3
    assert [(len(rows), tombstones) for rows, tombstones in batches] == [(256, False), (256, True), *small]
    file = open_file(file_path(tmp_path, 1), 1)
    for rows, _ in batches[:2]:
        base: Any = rows
        while isinstance(base, np.ndarray):
            base = base.base
        assert type(base.obj) is type(file.data)  # the map


def test_reading_ends_where_it_is_told_whatever_the_kind(tmp_path):
    builder = KeyedBuilder(tmp_path, [LEVELS])
    builder.begin()
    builder.rows(LEVELS, 3)
    builder.tombstones(LEVELS, 3)
    builder.rows(LEVELS, 300)
    reader = LogReader(tmp_path, "levels")
    for last in range(1, 10):
        kinds = [(s, kind) for rows, kind in read_both(reader, last=last) for s in rows["sequence"].tolist()]
        assert kinds == [(s, 4 <= s <= 6) for s in range(1, last + 1)]
        rows = reader.read(4, last)
        assert (None if rows is None else rows["sequence"].tolist()) == (list(range(7, last + 1)) or None)
    assert reader.read_all(5, 4) is None
    assert reader.read_all(307) is None


def test_a_reader_at_the_end_passes_over_tombstones_again_until_a_row_follows_and_counts_them_once(tmp_path):
    log = open_log(tmp_path)
    append(log, LEVELS, 2)
    append(log, LEVELS, 5, tombstones=True)
    reader = LogReader(tmp_path, "levels")
    assert len(read(reader, 1)) == 2
    for _ in range(3):
        assert reader.read(3) is None
        append(log, LEVELS, 1, tombstones=True)
    assert reader.tombstone_count == 0
    append(log, LEVELS, 1)
    assert read(reader, 3)["sequence"].tolist() == [11]
    assert reader.tombstone_count == 8
    log.close()


def test_a_time_can_fall_on_a_tombstone(tmp_path):
    builder = KeyedBuilder(tmp_path, [LEVELS])
    builder.begin()
    builder.rows(LEVELS, 3)
    builder.tombstones(LEVELS, 3)
    builder.begin()
    builder.tombstones(LEVELS, 2)
    builder.rows(LEVELS, 2)
    reader = LogReader(tmp_path, "levels")
    for sequence in range(1, 11):
        assert reader.find_time(START_NS + sequence * 1000) == sequence
    assert reader.find_time(START_NS + 10_001) == 11


# --- what is wrong is told apart ------------------------------------------------------------------------------------------


def only_problem(contents: Contents) -> Corruption:
    assert len(contents.problems) == 1, contents.problems
    problem = contents.problems[0]
    assert isinstance(problem, Corruption)
    return problem


def test_a_tail_torn_inside_tombstones_is_cut_off(tmp_path):
    builder = KeyedBuilder(tmp_path, [LEVELS])
    path = builder.begin()
    builder.rows(LEVELS, 2)
    builder.sync()
    torn = builder.tombstones(LEVELS, 2)
    whole = bytes(builder.data)
    for cut in range(torn, len(whole), 7):
        path.write_bytes(whole[:cut])
        contents = examine(tmp_path)
        assert contents.problems == []
        assert contents.files[0].end == torn
        assert contents.topics["levels"].next_sequence == 3


@pytest.mark.parametrize("number", [1, 2])
def test_damaged_tombstones_are_refused_and_repaired_as_rows_are(tmp_path, number):
    builder = KeyedBuilder(tmp_path, [LEVELS])
    for _ in range(2):
        builder.begin()
        builder.rows(LEVELS, 3)
        builder.tombstones(LEVELS, 2)
        builder.rows(LEVELS, 1)
        builder.tombstones(LEVELS, 4)
    builder.mark()
    offset, first = next((at, begin) for file, at, _, begin, count in builder.frames if (file, count) == (number, 2))
    flip(file_path(tmp_path, number), offset + FRAME + 3)
    assert only_problem(examine(tmp_path)).offset == offset
    with pytest.raises(Corruption):
        read_both(LogReader(tmp_path, "levels"))

    report = repair(tmp_path)
    assert [(lost.first, lost.count) for lost in report.lost] == [(first, 2)]
    assert examine(tmp_path).problems == []
    reader = LogReader(tmp_path, "levels")
    kinds = [(s, kind) for rows, kind in read_both(reader) for s in rows["sequence"].tolist()]
    tombstones = {4, 5, 7, 8, 9, 10, 14, 15, 17, 18, 19, 20}
    assert kinds == [(s, s in tombstones) for s in range(1, 21) if not first <= s < first + 2]
    assert reader.lost_count == 2
    log = Log(tmp_path, [LEVELS], bus="test", file_bytes=FILE_BYTES)
    assert log.topic("levels").next_sequence == 21
    log.close()


def test_tombstones_that_end_a_repaired_log_keep_their_sequences(tmp_path):
    """A damaged place further on, and a tombstone last: what repair takes for the next sequence must be behind it."""
    builder = KeyedBuilder(tmp_path, [LEVELS])
    builder.begin()
    builder.rows(LEVELS, 3)
    builder.begin()
    offset = builder.rows(LEVELS, 2)
    builder.tombstones(LEVELS, 4)
    builder.mark()
    flip(file_path(tmp_path, 2), offset + FRAME)
    report = repair(tmp_path)
    assert [(lost.first, lost.count, lost.at_most) for lost in report.lost] == [(4, 2, False)]
    assert examine(tmp_path).topics["levels"].next_sequence == 10


def test_repair_gives_up_no_declaration_that_tombstones_need(tmp_path):
    builder = KeyedBuilder(tmp_path, [OTHER, LEVELS])
    path = builder.begin()
    builder.rows(OTHER, 1)
    builder.tombstones(LEVELS, 2)
    builder.mark()
    begin = _log.LOG_HEADER_BYTES + FRAME + (len(OTHER.to_json()) + 7) // 8 * 8  # behind the declaration of `other`
    for byte in (80, 90, 100):
        flip(path, begin + byte)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="the declaration of topic number 1 is damaged"):
        repair(tmp_path)
    assert path.read_bytes() == before


def test_a_step_before_tombstones_is_damage(tmp_path):
    builder = KeyedBuilder(tmp_path, [LEVELS])
    builder.begin()
    builder.rows(LEVELS, 3)
    builder.next["levels"] = 5
    offset = builder.tombstones(LEVELS, 1)
    problem = only_problem(examine(tmp_path))
    assert (problem.offset, problem.found) == (offset, 5)
    reader = LogReader(tmp_path, "levels")
    assert [len(rows) for rows, _ in read_both(reader, last=3)] == [3]
    with pytest.raises(Corruption, match="a hole"):
        reader.read_all(4)


def test_tombstones_of_a_topic_that_was_not_declared_are_damage(tmp_path):
    builder = KeyedBuilder(tmp_path, [LEVELS])
    builder.begin()
    builder.schemas.append(OTHER)
    builder.next["other"] = 1
    offset = builder.tombstones(OTHER, 1)
    problem = only_problem(examine(tmp_path))
    assert (problem.offset, problem.found) == (offset, "topic number 1")


def test_tombstones_whose_count_does_not_fit_their_bytes_are_no_frame(tmp_path):
    for row_count in (0, 1, 3):
        frame = _log.encode_frame(
            _log.FRAME_TOMBSTONES,
            bytes(80),
            position=0,
            epoch=1,
            frame_bytes=FRAME + 80,
            row_count=row_count,
            row_bytes=40,
        )
        assert len(_log.scan(frame, start_position=0, epoch=1, offset=0)[0]) == 0
    frame = _log.encode_frame(
        _log.FRAME_TOMBSTONES, bytes(80), position=0, epoch=1, frame_bytes=FRAME + 80, row_count=2, row_bytes=40
    )
    assert len(_log.scan(frame, start_position=0, epoch=1, offset=0)[0]) == 1


# --- the format, pinned ---------------------------------------------------------------------------------------------------


def build(directory: Path) -> bytes:
    builder = KeyedBuilder(directory, [LEVELS])
    builder.begin()
    builder.rows(LEVELS, 2)
    builder.tombstones(LEVELS, 1)
    builder.close()
    return bytes(builder.data)


def test_the_encoders_still_write_the_same_bytes(tmp_path):
    assert build(tmp_path).hex(" ", 8) == GOLDEN.read_bytes().hex(" ", 8)


def test_the_writer_still_writes_the_same_frames(tmp_path):
    log = Log(tmp_path, [LEVELS], bus="test", file_bytes=FILE_BYTES)
    append(log, LEVELS, 2)
    append(log, LEVELS, 1, tombstones=True)
    log.close()
    golden = GOLDEN.read_bytes()[_log.LOG_HEADER_BYTES :]
    end = _log.LOG_HEADER_BYTES + len(golden)
    assert file_path(tmp_path, 1).read_bytes()[_log.LOG_HEADER_BYTES : end].hex(" ", 8) == golden.hex(" ", 8)


def test_it_reads_as_it_did_and_a_writer_continues_it(tmp_path):
    file_path(tmp_path, 1).write_bytes(GOLDEN.read_bytes())
    file = open_file(file_path(tmp_path, 1), 1)
    frames, end = file.scan()
    assert end == len(file.data)
    assert row_frames(frames)["kind"].tolist() == [_log.FRAME_ROWS, _log.FRAME_TOMBSTONES]
    del file
    log = Log(tmp_path, [LEVELS], bus="test", file_bytes=FILE_BYTES)
    append(log, LEVELS, 1)
    log.close()
    assert examine(tmp_path).problems == []
    assert_holds(tmp_path, [(2, False), (1, True), (1, False)])
