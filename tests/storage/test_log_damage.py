"""What is wrong on the disk is told apart, named, and never returned: torn tails, flipped bytes, files that are not there."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ringmain.storage import Corruption, FormatMismatch, Log, _log
from ringmain.storage.log_files import file_path, list_files
from ringmain.storage.recovery import Contents, examine
from support.logs import FILE_BYTES, PAIRS, POINTS, Builder, append, check_rows, flip, make_rows, read_rows

FRAME = _log.FRAME_HEADER_BYTES
FRAME_FIELDS = {
    "magic": range(0, 4), "crc": range(4, 8), "frame_bytes": range(8, 12), "kind": [12], "flags": [13],
    "topic": range(14, 16), "position": range(16, 24), "first_sequence": range(24, 32), "row_count": range(32, 36),
    "epoch": range(36, 40), "durable_position": range(40, 48), "first_timestamp_ns": range(48, 56),
    "row_bytes": range(56, 60), "payload_bytes": range(60, 64),
}  # fmt: skip
CHANGES = (0x01, 0x80, 0xFF)
STRIDE = 1 if os.environ.get("RINGMAIN_NIGHTLY") else 7  # from one flipped byte of a file to the next


def open_log(directory: Path) -> Log:
    return Log(directory, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES)


def row_counts(directory: Path) -> dict[str, int]:
    """How many rows of each topic there are; they are checked to be 1, 2, 3, …, every byte."""
    counts: dict[str, int] = {}
    for schema in (POINTS, PAIRS):
        rows = read_rows(directory, schema)
        check_rows(schema, rows, 1)
        counts[schema.name] = len(rows)
    return counts


def only_problem(contents: Contents) -> Corruption:
    assert len(contents.problems) == 1, contents.problems
    problem = contents.problems[0]
    assert isinstance(problem, Corruption)
    assert problem.path in str(problem)
    assert str(problem.offset) in str(problem)
    return problem


def build_three_files(directory: Path) -> tuple[Builder, list[int]]:
    """Two whole files and one being written; returns the offsets of the last file's row frames, of which two are durable."""
    builder = Builder(directory)
    for _ in range(2):
        builder.begin()
        builder.rows(POINTS, 4)
        builder.rows(PAIRS, 3)
        builder.sync()
        builder.rows(POINTS, 2)
    builder.begin()
    offsets = [builder.rows(POINTS, 3), builder.rows(PAIRS, 2)]
    builder.sync()
    offsets += [builder.rows(POINTS, 1), builder.rows(PAIRS, 5)]
    return builder, offsets


@pytest.fixture
def pristine(tmp_path) -> tuple[Path, Builder, list[int]]:
    directory = tmp_path / "pristine"
    builder, offsets = build_three_files(directory)
    assert examine(directory).problems == []
    return directory, builder, offsets


def copies(pristine: Path) -> Iterator[Path]:
    """The same directory again and again, as it was."""
    directory = pristine.parent / "copy"
    while True:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(pristine, directory)
        yield directory


# --- torn tails -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["cut", "zeros", "noise"])
def test_a_tail_torn_at_any_byte_is_cut_off_and_everything_before_it_kept(tmp_path, style):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 2)
    builder.sync()
    tail = [builder.rows(PAIRS, 3), builder.rows(POINTS, 1), builder.rows(PAIRS, 1)]
    whole = bytes(builder.data)
    ends = [*tail[1:], len(whole)]
    complete = [len(whole[:end].rstrip(b"\0")) for end in ends] if style == "zeros" else ends
    for cut in range(tail[0], len(whole)):
        kept = whole[:cut]
        if style == "zeros":
            kept = kept.ljust(len(whole) + 4096, b"\0")
        elif style == "noise":
            kept += bytes((3 + 7 * at) % 256 for at in range(len(whole) + 64 - cut))
        path.write_bytes(kept)
        contents = examine(tmp_path)
        assert contents.problems == []
        survivors = sum(end <= cut for end in complete)
        torn_at = [tail[0], *ends][survivors]
        assert contents.files[0].end == torn_at
        assert row_counts(tmp_path) == {"points": 2 + (survivors >= 2), "pairs": 3 * (survivors >= 1)}
        if cut > torn_at + 24 and style != "noise":  # enough of it to be known for one
            assert contents.torn_bytes > 0


@pytest.mark.parametrize("missing", [1, 17, 63, 64, 65, 100])
def test_a_writer_reopens_a_torn_log_and_goes_on_from_the_last_whole_frame(tmp_path, missing):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 2)
    builder.sync()
    builder.rows(PAIRS, 3)
    builder.rows(POINTS, 2)
    os.truncate(path, len(builder.data) - missing)
    log = open_log(tmp_path)
    assert log.recovered.torn_bytes == FRAME + 2 * POINTS.row_bytes - missing
    assert not log.recovered.closed
    assert append(log, POINTS, 3) == 5
    assert append(log, PAIRS, 1) == 4
    log.close()
    assert examine(tmp_path).problems == []
    assert row_counts(tmp_path) == {"points": 5, "pairs": 4}


def test_a_hole_in_what_was_not_durable_is_a_torn_tail_too(tmp_path):
    """A power cut may keep the second of two frames and not the first; what follows the hole must not come back."""
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 2)
    builder.sync()
    hole, after = builder.rows(POINTS, 2), builder.rows(POINTS, 2)
    data = bytearray(builder.data)
    data[hole:after] = bytes(after - hole)
    path.write_bytes(data)
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.torn_bytes == len(data) - hole
    log = open_log(tmp_path)
    assert append(log, POINTS, 1) == 3
    log.close()
    assert examine(tmp_path).problems == []
    assert row_counts(tmp_path)["points"] == 3


def test_what_a_recycled_file_held_before_is_no_torn_tail(tmp_path):
    builder = Builder(tmp_path)
    builder.begin()
    builder.rows(POINTS, 9)
    old = builder.rows(POINTS, 2)
    stale = bytes(builder.data[old:])
    path = builder.begin()
    builder.rows(POINTS, 1)
    path.write_bytes(
        bytes(builder.data) + stale + stale
    )  # a whole frame of the earlier use, exactly where the next would be
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.torn_bytes == 0
    assert row_counts(tmp_path)["points"] == 12


def test_a_frame_of_an_older_epoch_at_the_right_position_does_not_count(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin(new_writer=True)
    builder.rows(POINTS, 1)
    end = len(builder.data)
    rows = make_rows(POINTS, 2, 1)
    for epoch in (0, 2):
        stale = _log.encode_frame(
            _log.FRAME_ROWS, rows.tobytes(), position=end, epoch=epoch, frame_bytes=FRAME + POINTS.row_bytes, row_count=1,
            row_bytes=POINTS.row_bytes, first_sequence=2,
        )  # fmt: skip
        path.write_bytes(bytes(builder.data) + stale)
        assert examine(tmp_path).topics["points"].next_sequence == 2


def test_what_a_paused_writer_adds_behind_the_named_end_does_not_exist(tmp_path):
    builder = Builder(tmp_path)
    builder.begin()
    builder.rows(POINTS, 3)
    end = len(builder.data)
    late = builder.rows(POINTS, 4)
    assert late == end
    builder.next["points"] = 4  # the next writer never saw them
    builder.begin(new_writer=True, previous_end=end)
    builder.rows(POINTS, 2)
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.record_count == 5
    check_rows(POINTS, read_rows(tmp_path, POINTS), 1)


def test_nothing_exists_behind_a_close(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 1)
    builder.close()
    closed = bytes(builder.data)
    builder.sync()
    builder.rows(POINTS, 1)
    path.write_bytes(closed + bytes(64) + bytes(builder.data[len(closed) :]))
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.files[0].closed
    assert contents.record_count == 1


# --- flipped bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_byte_of_a_file_header_is_proven(pristine, number):
    directory, _, _ = pristine
    path = file_path(directory, number)
    for offset in [*range(0, 160), 1000, 4091, *range(4092, 4096)]:
        for change in CHANGES:
            flip(path, offset, change)
            problem = examine(directory).problems[0]
            assert isinstance(problem, Corruption)
            assert (problem.path, problem.offset) == (str(path), 0)
            flip(path, offset, change)
    assert examine(directory).problems == []


@pytest.mark.parametrize("field", FRAME_FIELDS)
def test_every_field_of_a_frame_header_in_the_middle_is_proven(pristine, field):
    directory, _, offsets = pristine
    first_file = file_path(directory, 1)
    places = [(first_file, 4096), (first_file, 4464), (file_path(directory, 2), 4464), (file_path(directory, 3), offsets[0]),
              (file_path(directory, 3), offsets[1])]  # fmt: skip
    for path, frame in places:
        for byte in FRAME_FIELDS[field]:
            for change in CHANGES:
                flip(path, frame + byte, change)
                problem = only_problem(examine(directory))
                assert (problem.path, problem.offset) == (str(path), frame)
                flip(path, frame + byte, change)
    assert examine(directory).problems == []


def test_bytes_anywhere_in_the_rest_of_whole_files_are_proven(pristine):
    """Behind the header of the files that have a successor: topics, padding, rows, all of it, and at night every byte."""
    directory, _, _ = pristine
    for number in (1, 2):
        path = file_path(directory, number)
        for offset in range(4096, path.stat().st_size, STRIDE):
            flip(path, offset)
            problem = only_problem(examine(directory))
            assert problem.path == str(path)
            assert problem.offset <= offset
            flip(path, offset)
    assert examine(directory).problems == []


def test_in_the_last_file_what_was_durable_is_damage_and_the_rest_is_a_torn_tail(pristine):
    directory, builder, offsets = pristine
    path = file_path(directory, 3)
    before = {"points": 12, "pairs": 6}
    whole = [*offsets, len(builder.data)]
    edges = {at for edge in whole for at in (edge - 1, edge, edge + 1) if at < whole[-1]}
    for offset in sorted({*range(4096, whole[-1], STRIDE), *edges}):
        flip(path, offset)
        contents = examine(directory)
        if offset < offsets[2]:
            problem = only_problem(contents)
            frame = max([4096, 4296, *offsets], key=lambda start: (start <= offset, start if start <= offset else 0))
            assert (problem.path, problem.offset) == (str(path), frame)
        else:  # nothing behind says that these were on the disk
            assert contents.problems == []
            assert contents.files[-1].end == (offsets[2] if offset < offsets[3] else offsets[3])
            assert contents.torn_bytes > 0
            expected = before | {"points": 15 + (offset >= offsets[3]), "pairs": 8}
            assert row_counts(directory) == expected
        flip(path, offset)
    assert whole[-1] == path.stat().st_size
    assert examine(directory).problems == []


def test_a_mark_makes_a_flip_in_the_last_rows_damage(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    rows = builder.rows(POINTS, 2)
    flip(path, rows + 70)
    assert examine(tmp_path).problems == []  # nothing says that they were durable
    builder.mark()  # written anew, so sound again
    flip(path, rows + 70)
    problem = only_problem(examine(tmp_path))
    assert (problem.path, problem.offset) == (str(path), rows)
    assert "checksum does not match" in str(problem)


def test_the_declarations_of_a_file_that_has_its_name_were_on_the_disk(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    for offset in range(4096, len(builder.data)):
        flip(path, offset)
        assert only_problem(examine(tmp_path)).offset in (4096, 4296)
        flip(path, offset)


def test_a_flipped_byte_in_a_mark_or_a_close_is_a_torn_tail_when_it_is_the_last(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 2)
    builder.close()
    for offset in range(len(builder.data) - FRAME, len(builder.data)):
        flip(path, offset)
        contents = examine(tmp_path)
        assert contents.problems == []
        assert not contents.files[-1].closed
        assert contents.record_count == 2
        flip(path, offset)


def test_zeroed_pages_in_the_middle_are_damage(pristine):
    directory, _, offsets = pristine
    for number, start in ((1, 4464), (2, 4700), (3, offsets[0])):
        path = file_path(directory, number)
        data = path.read_bytes()
        path.write_bytes(data[:start] + bytes(50) + data[start + 50 :])
        assert only_problem(examine(directory)).path == str(path)
        path.write_bytes(data)


def test_damage_in_several_places_is_all_named(pristine):
    directory, _, offsets = pristine
    flip(file_path(directory, 1), 4500)
    flip(file_path(directory, 2), 4800)
    flip(file_path(directory, 3), offsets[0] + 5)
    problems = examine(directory).problems
    assert [os.path.basename(problem.path) for problem in problems if isinstance(problem, Corruption)] == [
        "0000000001.log", "0000000002.log", "0000000003.log",
    ]  # fmt: skip


# --- files ----------------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(pristine):
    directory, _, _ = pristine
    file_path(directory, 2).unlink()
    problem = only_problem(examine(directory))
    assert problem.path == str(file_path(directory, 2))
    assert problem.found == "no file"


def test_many_missing_files_are_named_once(pristine):
    directory, _, _ = pristine
    file_path(directory, 3).rename(file_path(directory, 9_999_999_999))
    problem = examine(directory).problems[0]
    assert isinstance(problem, Corruption)
    assert problem.path == str(file_path(directory, 3))
    assert "nor any other before 9999999999.log" in str(problem)


def test_a_missing_first_file_is_what_retention_leaves(pristine):
    directory, _, _ = pristine
    file_path(directory, 1).unlink()
    contents = examine(directory)
    assert contents.problems == []
    assert contents.topics["points"].next_sequence == 17


@pytest.mark.parametrize("pair", [(1, 2), (2, 3), (1, 3)])
def test_swapped_files_are_noticed(pristine, pair):
    directory, _, _ = pristine
    one, other = (file_path(directory, number) for number in pair)
    one.rename(directory / "x")
    other.rename(one)
    (directory / "x").rename(other)
    problem = examine(directory).problems[0]
    assert isinstance(problem, Corruption)
    assert (problem.path, problem.offset) == (str(one), 24)
    assert (problem.expected, problem.found) == (f"the number in the file's name, {pair[0]}", pair[1])


def test_a_file_of_another_log_is_noticed(pristine, tmp_path):
    directory, _, _ = pristine
    log = Log(tmp_path / "other", [POINTS], bus="test", file_bytes=FILE_BYTES)
    log.close()
    log = Log(tmp_path / "other", [POINTS], bus="test", file_bytes=FILE_BYTES)
    log.close()
    shutil.copy(file_path(tmp_path / "other", 2), file_path(directory, 2))
    problems = examine(directory).problems
    assert {(problem.path, problem.offset) for problem in problems if isinstance(problem, Corruption)} >= {
        (str(file_path(directory, 2)), 16)
    }


@pytest.mark.parametrize("size_bytes", [0, 1, 100, 4095])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_without_a_whole_header_is_damaged(pristine, number, size_bytes):
    directory, _, _ = pristine
    os.truncate(file_path(directory, number), size_bytes)
    problem = examine(directory).problems[0]
    assert isinstance(problem, Corruption)
    assert (problem.path, problem.offset) == (str(file_path(directory, number)), 0)


@pytest.mark.parametrize("number", [1, 2])
def test_a_whole_file_that_was_cut_is_damaged_wherever_it_was_cut(pristine, number):
    directory, _, _ = pristine
    path = file_path(directory, number)
    data = path.read_bytes()
    for cut in range(4096, len(data), 5):
        path.write_bytes(data[:cut])
        problem = only_problem(examine(directory))
        assert problem.path == str(path)
        assert problem.offset <= cut
    path.write_bytes(data)


def test_files_that_are_not_the_logs_are_let_be(pristine):
    directory, _, _ = pristine
    for name in ("notes.txt", "0000000004.log.bak", "4.log", "LOCK"):
        (directory / name).write_bytes(b"x")
    (directory / "lost+found").mkdir()
    assert examine(directory).problems == []
    assert [number for number, _ in list_files(directory)] == [1, 2, 3]


def test_a_directory_that_is_not_there_is_not_an_empty_log(tmp_path):
    with pytest.raises(FileNotFoundError):
        examine(tmp_path / "nowhere")


def test_a_newer_version_is_refused_and_not_called_damage(pristine):
    directory, _, _ = pristine
    path = file_path(directory, 3)
    data = bytearray(path.read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    data[4092:4096] = _log.crc32c(bytes(data[:4092])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(FormatMismatch, match="log format version: expected 1, found 2"):
        examine(directory)


@pytest.mark.parametrize(
    ("at", "wrong"),
    [(72, b"caf\xe9"), (72, b"a\0b"), (72, b"x" * 64), (52, b"\0\0"), (52, b"\xff\xff")],
    ids=["not UTF-8", "a zero within", "no zero behind", "a header of no bytes", "a header of 65535 bytes"],
)
def test_a_header_that_no_writer_writes_is_damaged_though_its_checksum_is_right(pristine, at, wrong):
    directory, _, _ = pristine
    path = file_path(directory, 3)
    data = bytearray(path.read_bytes())
    data[at : at + len(wrong)] = wrong
    data[4092:4096] = _log.crc32c(bytes(data[:4092])).to_bytes(4, "little")
    path.write_bytes(data)
    problem = examine(directory).problems[0]
    assert isinstance(problem, Corruption)
    assert (problem.path, problem.offset) == (str(path), 0)


# --- sound frames that do not belong together --------------------------------------------------------------------------------


def test_a_step_in_the_sequences_is_damage(tmp_path):
    builder = Builder(tmp_path)
    builder.begin()
    builder.rows(POINTS, 2)
    builder.next["points"] = 4
    place = builder.rows(POINTS, 2)
    problem = only_problem(examine(tmp_path))
    assert problem.offset == place
    assert "sequence 3 of topic 'points'" in str(problem)


def test_a_repeated_sequence_is_damage(tmp_path):
    builder = Builder(tmp_path)
    builder.begin()
    builder.rows(POINTS, 5)
    builder.next["points"] = 3
    builder.rows(POINTS, 1)
    assert only_problem(examine(tmp_path)).found == 3


def test_a_step_between_two_files_is_damage(tmp_path):
    builder = Builder(tmp_path)
    builder.begin()
    builder.rows(POINTS, 5)
    builder.next["points"] = 7
    builder.begin()
    problem = only_problem(examine(tmp_path))
    assert problem.path == str(file_path(tmp_path, 2))
    assert (problem.expected, problem.found) == ("topic 'points' at sequence 6", 7)


def test_a_first_file_that_does_not_begin_at_one_is_damage(tmp_path):
    builder = Builder(tmp_path)
    builder.next["points"] = 5
    builder.begin()
    assert only_problem(examine(tmp_path)).found == 5


def test_rows_of_an_undeclared_topic_are_damage(tmp_path):
    builder = Builder(tmp_path, [POINTS])
    builder.begin()
    builder.schemas.append(PAIRS)
    builder.next["pairs"] = 1
    place = builder.rows(PAIRS, 2)
    problem = only_problem(examine(tmp_path))
    assert (problem.offset, problem.found) == (place, "topic number 1")


def test_rows_of_another_size_are_damage(tmp_path):
    builder = Builder(tmp_path, [PAIRS])
    builder.begin()
    builder.data += _log.encode_frame(
        _log.FRAME_ROWS, bytes(80), position=builder.position, epoch=1, frame_bytes=FRAME + 80, row_count=2, row_bytes=40,
        first_sequence=1, topic=0,
    )  # fmt: skip
    builder.path.write_bytes(builder.data)
    problem = only_problem(examine(tmp_path))
    assert (problem.expected, problem.found) == ("rows of 24 bytes", 40)


def test_a_topic_that_vanishes_is_damage(tmp_path):
    builder = Builder(tmp_path)
    builder.begin()
    builder.schemas.pop()
    builder.begin()
    assert "a declaration of topic 'pairs'" in str(only_problem(examine(tmp_path)))


def test_frames_of_a_kind_that_a_later_release_may_add_are_passed_over(tmp_path):
    builder = Builder(tmp_path)
    path = builder.begin()
    builder.rows(POINTS, 1)
    builder.data += _log.encode_frame(99, b"news", position=builder.position, epoch=1, frame_bytes=FRAME + 8, topic=7)
    builder.rows(POINTS, 1)
    assert path.stat().st_size == len(builder.data)
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.record_count == 2


# --- a writer refuses -------------------------------------------------------------------------------------------------------


def test_a_writer_refuses_a_damaged_log_and_changes_nothing(pristine):
    directory, _, offsets = pristine
    for place in ((1, 4500), (2, 17), (3, offsets[0] + 80)):
        copy = next(copies(directory))
        flip(file_path(copy, place[0]), place[1])
        before = {path.name: path.read_bytes() for path in copy.glob("*.log")}
        with pytest.raises(Corruption, match="ringmain log repair") as caught:
            open_log(copy)
        assert caught.value.path == str(file_path(copy, place[0]))
        assert {path.name: path.read_bytes() for path in copy.glob("*.log")} == before
        assert sorted(path.name for path in copy.iterdir()) == [
            "0000000001.log",
            "0000000002.log",
            "0000000003.log",
            "LOCK",
        ]
        with pytest.raises(Corruption):  # the lock was given back, and the answer is the same
            open_log(copy)


def test_a_log_of_another_version_is_refused_and_nothing_is_changed(pristine):
    directory, _, _ = pristine
    path = file_path(directory, 3)
    data = bytearray(path.read_bytes())
    data[8:12] = (9).to_bytes(4, "little")
    data[4092:4096] = _log.crc32c(bytes(data[:4092])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(FormatMismatch):
        open_log(directory)
    assert path.read_bytes() == data


def test_examining_beside_a_living_writer_finds_nothing_wrong(tmp_path):
    log = Log(tmp_path, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES, retention_bytes=FILE_BYTES)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            append(log, POINTS, 5000)
            append(log, PAIRS, 1)
            log.appender.sync()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        looked = 0
        while looked < 40:
            try:
                contents = examine(tmp_path)
            except FileNotFoundError:  # expired between the listing and the reading
                continue
            assert contents.problems == []
            looked += 1
    finally:
        stop.set()
        writer.join(30)
    log.close()
