"""The log's format, pinned: `golden/log-v1.bin` was written by the first release and must stay readable, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ringmain.storage import Log, _log
from ringmain.storage.log_files import FileHeader, file_path, open_file, read_topics
from ringmain.storage.recovery import examine
from support.logs import FILE_BYTES, PAIRS, POINTS, START_NS, Builder, append, check_rows, read_rows

GOLDEN = Path(__file__).parent / "golden" / "log-v1.bin"


def build(directory: Path) -> bytes:
    builder = Builder(directory)
    builder.begin()
    builder.rows(POINTS, 3)
    builder.rows(PAIRS, 1)
    builder.mark()
    builder.rows(PAIRS, 2)
    builder.close()
    return bytes(builder.data)


def test_the_encoders_still_write_the_same_bytes(tmp_path):
    assert build(tmp_path).hex(" ", 8) == GOLDEN.read_bytes().hex(" ", 8)


def test_the_writer_still_writes_the_same_frames(tmp_path):
    log = Log(tmp_path, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES)
    append(log, POINTS, 3)
    append(log, PAIRS, 1)
    log.appender.sync()
    log.appender.mark()
    append(log, PAIRS, 2)
    log.close()
    golden = GOLDEN.read_bytes()
    written = file_path(tmp_path, 1).read_bytes()[: len(golden)]
    assert written[_log.LOG_HEADER_BYTES :].hex(" ", 8) == golden[_log.LOG_HEADER_BYTES :].hex(" ", 8)
    ours, pinned = (_log.decode_file_header(data, "x.log") for data in (written, golden))
    assert ours is not None
    assert pinned is not None
    assert ours | {"log_id": 0, "created_ns": 0} == pinned | {"log_id": 0, "created_ns": 0}


def test_it_reads_as_it_did(tmp_path):
    file_path(tmp_path, 1).write_bytes(GOLDEN.read_bytes())
    file = open_file(file_path(tmp_path, 1), 1)
    assert file.header == FileHeader(
        log_id=0x1234567890ABCDEF, file_number=1, start_position=0, previous_end=0, epoch=1, created_ns=START_NS + 1,
        file_bytes=FILE_BYTES, start_bytes=4464, bus="test",
    )  # fmt: skip
    frames, end = file.scan()
    assert end == len(file.data) == 4976
    kinds = [_log.FRAME_TOPIC] * 2 + [_log.FRAME_ROWS] * 2 + [_log.FRAME_MARK, _log.FRAME_ROWS, _log.FRAME_CLOSE]
    assert frames["kind"].tolist() == kinds
    assert frames["offset"].tolist() == [4096, 4296, 4464, 4648, 4736, 4800, 4912]
    assert frames["durable_position"].tolist() == [0, 0, 4464, 4464, 4736, 4736, 4912]
    assert [topic.schema for topic in read_topics(file, frames)] == [POINTS, PAIRS]
    contents = examine(tmp_path)
    assert contents.problems == []
    assert contents.files[0].closed
    assert contents.record_count == 6
    for schema, count in ((POINTS, 3), (PAIRS, 3)):
        rows = read_rows(tmp_path, schema)
        assert len(rows) == count
        check_rows(schema, rows, 1)


@pytest.mark.parametrize("life", [1, 2])
def test_a_writer_continues_it(tmp_path, life):
    file_path(tmp_path, 1).write_bytes(GOLDEN.read_bytes())
    for epoch in range(2, 2 + life):
        log = Log(tmp_path, [PAIRS], bus="test", file_bytes=FILE_BYTES)
        assert log.epoch == epoch
        append(log, POINTS, 1)
        append(log, PAIRS, 1)
        log.close()
    assert examine(tmp_path).problems == []
    rows = read_rows(tmp_path, POINTS)
    assert len(rows) == 3 + life
    check_rows(POINTS, rows, 1)


def test_the_worked_examples_of_the_format_page_are_these_files():
    page = Path(_log.__file__).parent / "FORMAT.md"
    first, second = page.read_text().split("\n# The manifest")[0].split("`tests/storage/golden/log-v1-tombstones.bin`")
    for text, golden, line_count in ((first, GOLDEN, 35), (second, GOLDEN.with_name("log-v1-tombstones.bin"), 6)):
        lines = re.findall(
            r"^    ([0-9a-f]{8})  ((?:[0-9a-f]{2} {1,2})+|(?:[0-9a-f]{2} {1,2})*[0-9a-f]{2}$)", text, re.M
        )
        assert len(lines) == line_count
        for offset, shown in lines:
            data = bytes.fromhex(shown)
            assert golden.read_bytes()[int(offset, 16) :][: len(data)] == data
