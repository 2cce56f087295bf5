"""Frames and file headers: decoding undoes encoding, and nothing that was not written ever comes out."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ringmain.storage import FormatMismatch, _log
from support.logs import PAIRS, POINTS, Builder, make_rows

HEADER = _log.LOG_HEADER_BYTES
FRAME = _log.FRAME_HEADER_BYTES
START, EPOCH = 1 << 40, 7
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)

header_fields = st.fixed_dictionaries({
    "log_id": u64, "file_number": u64, "start_position": u64, "previous_end": u64, "epoch": u32,
    "created_ns": st.integers(-(2**63), 2**63 - 1), "file_bytes": u64, "start_bytes": u64,
    "bus": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=15),
})  # fmt: skip

frame_specs = st.lists(
    st.one_of(
        st.tuples(st.just(_log.FRAME_ROWS), st.integers(1, 20), st.integers(0, 2**64 - 1)),
        st.tuples(st.just(_log.FRAME_MARK), st.just(0), st.just(0)),
        st.tuples(st.just(_log.FRAME_TOPIC), st.integers(0, 90), st.integers(0, 2**64 - 1)),
        st.tuples(st.just(_log.FRAME_GAP), st.integers(0, 5), st.just(0)),
        st.tuples(st.integers(100, 255), st.integers(0, 90), st.integers(0, 2**64 - 1)),  # of a later release
    ),
    max_size=8,
)


def encode(specs) -> tuple[bytes, list[tuple[int, int, int, bytes]]]:
    """Frames behind an empty file header, and (offset, kind, first sequence, payload) of each."""
    out = bytearray(HEADER)
    written = []
    for kind, count, sequence in specs:
        row_bytes = row_count = 0
        frame_bytes = 0
        if kind == _log.FRAME_ROWS:
            payload, row_bytes, row_count = bytes(24 * count), 24, count
        elif kind == _log.FRAME_GAP:
            payload, row_count, frame_bytes = bytes(range(24)) * count, count, FRAME + 24 * count + 40
        else:
            payload = bytes(index % 251 for index in range(count))
        frame_bytes = frame_bytes or FRAME + (len(payload) + 7) // 8 * 8
        offset = len(out)
        out += _log.encode_frame(
            kind, payload, position=START + offset, epoch=EPOCH, frame_bytes=frame_bytes, row_count=row_count,
            row_bytes=row_bytes, first_sequence=sequence, durable_position=sequence // 2, topic=sequence % 65536,
        )  # fmt: skip
        written.append((offset, kind, sequence, payload))
    return bytes(out), written


def scan(data, offset=HEADER, **changes):
    return _log.scan(data, **{"start_position": START, "epoch": EPOCH, "offset": offset, **changes})


@given(frame_specs)
def test_scanning_undoes_encoding(specs):
    data, written = encode(specs)
    frames, end = scan(data)
    assert end == len(data)
    assert [(int(f["offset"]), int(f["kind"]), int(f["first_sequence"])) for f in frames] == [w[:3] for w in written]
    for frame, (offset, _, sequence, payload) in zip(frames, written, strict=True):
        start = offset + FRAME
        assert data[start : start + len(payload)] == payload
        assert int(frame["payload_bytes"]) >= len(payload)
        assert int(frame["durable_position"]) == sequence // 2
        assert int(frame["topic"]) == sequence % 65536


@given(frame_specs.filter(bool), st.data())
def test_a_changed_byte_never_yields_a_frame_that_was_not_written(specs, data):
    encoded, written = encode(specs)
    changed = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(HEADER, len(encoded) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    first_change = next((at for at in range(len(encoded)) if changed[at] != encoded[at]), len(encoded))
    frames, end = scan(bytes(changed))
    ends = [w[0] for w in written[1:]] + [len(encoded)]
    assert len(frames) == sum(stop <= first_change for stop in ends)  # all before the change, none from there on
    originals, _ = scan(encoded)
    assert frames.tobytes() == originals[: len(frames)].tobytes()
    found = _log.find_frame(bytes(changed), start_position=START, epoch=EPOCH, offset=end)
    while found is not None:  # further on, only what was written there
        later, stop = scan(bytes(changed), found)
        assert all(any((frame == original) for original in originals) for frame in later)
        found = _log.find_frame(bytes(changed), start_position=START, epoch=EPOCH, offset=stop)


@given(frame_specs.filter(bool), st.data())
def test_a_cut_leaves_the_whole_frames_before_it(specs, data):
    encoded, written = encode(specs)
    cut = data.draw(st.integers(0, len(encoded)))
    ends = [w[0] for w in written[1:]] + [len(encoded)]
    for frames, _ in (scan(encoded[:cut]), scan(encoded, limit=cut)):
        assert len(frames) == sum(stop <= cut for stop in ends)


@given(st.binary(max_size=2000), u64, u32, u64, u64)
@example(b"RMF1" * 100, 0, 0, 0, 2**63)
@example(b"RMF1" + b"\xff" * 200, 0, 2**32 - 1, 0, 2**64 - 1)
def test_arbitrary_bytes_yield_no_frame_and_no_crash(data, start, epoch, offset, limit):
    frames, end = _log.scan(data, start_position=start, epoch=epoch, offset=offset, limit=limit)
    assert len(frames) == 0
    assert end == offset
    assert _log.find_frame(data, start_position=start, epoch=epoch, offset=offset, limit=limit) is None


@given(st.binary(min_size=FRAME, max_size=400))
def test_a_sound_frame_is_found_behind_any_rubbish(rubbish):
    rubbish = rubbish[: len(rubbish) // 8 * 8]
    body = make_rows(PAIRS, 1, 3).tobytes()
    at = HEADER + len(rubbish)
    frame = _log.encode_frame(
        _log.FRAME_ROWS,
        body,
        position=START + at,
        epoch=EPOCH,
        frame_bytes=FRAME + len(body),
        row_count=3,
        row_bytes=24,
    )
    data = bytes(HEADER) + rubbish + frame + bytes(24)
    assert _log.find_frame(data, start_position=START, epoch=EPOCH, offset=HEADER) == at
    assert _log.find_frame(data, start_position=START, epoch=EPOCH, offset=at + 1) is None
    assert _log.find_frame(data, start_position=START, epoch=EPOCH + 1, offset=HEADER) is None
    assert _log.find_frame(data, start_position=START + 8, epoch=EPOCH, offset=HEADER) is None


@given(header_fields)
def test_a_file_header_survives_the_round_trip(fields):
    encoded = _log.encode_file_header(**fields)
    assert len(encoded) == HEADER
    assert _log.decode_file_header(encoded, "x.log") == fields


@given(header_fields, st.data())
def test_any_changed_byte_of_a_header_is_noticed(fields, data):
    encoded = bytearray(_log.encode_file_header(**fields))
    at = data.draw(st.one_of(st.integers(0, 160), st.integers(0, HEADER - 1), st.integers(HEADER - 4, HEADER - 1)))
    encoded[at] ^= data.draw(st.integers(1, 255))
    assert _log.decode_file_header(bytes(encoded), "x.log") is None


@given(st.binary(max_size=200), st.integers(0, HEADER))
def test_arbitrary_bytes_are_no_header(data, length):
    assert _log.decode_file_header(data, "x.log") is None
    assert _log.decode_file_header(data.ljust(length, b"\0"), "x.log") is None
    assert _log.decode_file_header((b"RMAINLOG" + data).ljust(HEADER, b"\0"), "x.log") is None


@pytest.mark.parametrize(("offset", "value", "what"), [(8, 2, "version"), (12, 0x04030201, "byte order")])
def test_a_sound_header_of_another_version_or_byte_order_is_refused_with_words(offset, value, what):
    encoded = bytearray(
        _log.encode_file_header(log_id=1, file_number=1, start_position=0, previous_end=0, epoch=1, created_ns=0, file_bytes=0,
                                start_bytes=4096, bus="b")
    )  # fmt: skip
    encoded[offset : offset + 4] = value.to_bytes(4, "little")
    encoded[-4:] = _log.crc32c(bytes(encoded[:-4])).to_bytes(4, "little")
    with pytest.raises(FormatMismatch, match=what):
        _log.decode_file_header(bytes(encoded), "x.log")


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match="frame_bytes"):
        _log.encode_frame(_log.FRAME_MARK, b"", position=0, epoch=1, frame_bytes=60)
    with pytest.raises(ValueError, match="frame_bytes"):
        _log.encode_frame(_log.FRAME_MARK, b"", position=0, epoch=1, frame_bytes=72)
    with pytest.raises(ValueError, match="frame_bytes"):
        _log.encode_frame(_log.FRAME_GAP, b"", position=0, epoch=1, frame_bytes=_log.GROUP_BYTES_MAX + 8)
    with pytest.raises(ValueError, match="63 bytes"):
        _log.encode_file_header(log_id=1, file_number=1, start_position=0, previous_end=0, epoch=1, created_ns=0, file_bytes=0,
                                start_bytes=0, bus="b" * 64)  # fmt: skip


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_gathering_joins_the_rows_of_frames(tmp_path_factory, counts):
    builder = Builder(tmp_path_factory.mktemp("log"))
    builder.begin()
    for count in counts:
        builder.rows(POINTS, count)
    data = bytes(builder.data)
    frames, _ = _log.scan(data, start_position=0, epoch=1, offset=HEADER)
    frames = frames[frames["kind"] == _log.FRAME_ROWS]
    expected = make_rows(POINTS, 1, sum(counts))
    out = expected.copy()
    out["value"] = 0
    offsets, sizes = frames["offset"].copy(), frames["row_count"].astype("u8")
    _log.gather(data, offsets, sizes, POINTS.row_bytes, out)
    assert (out == expected).all()
    with pytest.raises(ValueError, match="beyond the data"):
        _log.gather(data[:-8], offsets, sizes, POINTS.row_bytes, out)
    with pytest.raises(ValueError, match="room"):
        _log.gather(data, offsets, sizes, POINTS.row_bytes, out[:-1])
