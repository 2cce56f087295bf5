"""The manifest: what was acknowledged is there, whatever is cut, flipped, killed or refused; and nothing else is ever read."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.storage import Corruption, FormatMismatch, ManifestFailed, manifest
from ringmain.storage._log import crc32c
from ringmain.storage.manifest import (
    Edit,
    Manifest,
    ManifestFollower,
    State,
    TopicInfo,
    read_manifest,
)
from ringmain.storage.manifest_format import (
    DURABLE_OFFSET,
    HEADER_BYTES,
    Header,
    encode_durable,
    encode_header,
    encode_record,
)
from ringmain.storage.manifest_reader import ManifestFile
from ringmain.storage.version import Version
from support.disk import Disk, Killed, counted
from support.tables import table

LOG_ID = 0x1234_5678_9ABC_DEF0
POINTS = TopicInfo(schema='{"name":"points"}')
FIRST = Edit(topics={"points": POINTS, "pairs": TopicInfo(schema="{}", keep_versions=True)})
EDITS = [
    FIRST,
    Edit(added=[table(1, 0, 5), table(2, 3, 9)], checkpoints={"points": 29}),
    Edit(added=[table(3, 0, 9, level=1)], removed=[1, 2]),
    Edit(added=[table(4, 7, topic="pairs")], checkpoints={"pairs": 49}),
    Edit(added=[table(3, 0, 9, level=2)], removed=[3], next_number=9),
]


def path_of(directory: Path) -> Path:
    return directory / "MANIFEST"


def commit_all(directory: Path, edits=EDITS) -> list[tuple[int, State]]:
    """Commit the edits one by one; returns where the file ended and what the state was, at first and after each."""
    with Manifest(directory, LOG_ID) as made:
        seen = [(made.file_bytes, made.state)]
        for edit in edits:
            state = made.commit(edit)
            assert state is made.state
            seen.append((made.file_bytes, state))
    return seen


def read_strictly(path: Path) -> tuple[State, int]:
    """The state and the torn bytes of a file that nobody writes."""
    found = ManifestFile(path, LOG_ID)
    os.close(found.descriptor)
    return found.state, found.torn_bytes


def header_of(path: Path) -> Header:
    found = ManifestFile(path, None)
    os.close(found.descriptor)
    return found.header


@contextmanager
def wrong_byte(path: Path, place: int, flip: int) -> Iterator[None]:
    """One byte of a file with these bits the other way round."""
    with path.open("r+b", buffering=0) as file:
        sound = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([sound[0] ^ flip]), place)
        yield
        os.pwrite(file.fileno(), sound, place)


def with_durable(data: bytes, header: Header, durable_bytes: int) -> bytes:
    """The file as a power cut may leave it: its header's last word not yet on the disk."""
    slot = encode_durable(header, durable_bytes)
    return data[:DURABLE_OFFSET] + slot + data[DURABLE_OFFSET + len(slot) :]


# --- committing and reopening -----------------------------------------------------------------------------------------------


def test_a_new_manifest_is_empty_and_continues_where_it_ended(tmp_path):
    with Manifest(tmp_path, LOG_ID) as made:
        assert made.state == State(LOG_ID, {}, {}, {}, 1)
    assert read_manifest(tmp_path) == made.state
    state = made.state
    for edit in EDITS:
        with Manifest(tmp_path, LOG_ID) as opened:
            assert opened.state == read_manifest(tmp_path)
            assert opened.torn_bytes == 0
            state = opened.commit(edit)
    assert read_manifest(tmp_path, LOG_ID) == state
    assert state.topics == FIRST.topics
    assert state.versions == {
        "points": Version().edit([table(3, 0, 9, level=2)], []),
        "pairs": Version().edit([table(4, 7, topic="pairs")], []),
    }
    assert state.checkpoints == {"points": 29, "pairs": 49}
    assert state.next_number == 9
    assert os.listdir(tmp_path) == ["MANIFEST"]


def test_states_that_were_handed_out_do_not_change(tmp_path):
    seen = commit_all(tmp_path)
    states = [State.empty(LOG_ID)]
    for edit in EDITS:
        states.append(states[-1].edit(edit))
    assert [state for _, state in seen] == states
    assert (
        states[3].versions["pairs"] is states[2].versions["pairs"]
    )  # of what an edit does not touch, nothing is made anew


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit(removed=[7]), "7 is removed and was not there"),
        (Edit(removed=[1, 1]), "1 is removed and was not there"),
        (Edit(added=[table(1, 50)]), "1 is there twice"),
        (Edit(added=[table(4, 50, topic="pairs"), table(4, 60)]), "4 is there twice"),
        (Edit(added=[table(4, 50, topic="nobody's")]), 'topic "nobody\'s" is not known'),
        (Edit(added=[table(4, 3, level=1), table(5, 2, 4, level=1)]), "overlap"),
        (Edit(checkpoints={"points": 28}), "goes back from 29 to 28"),
        (Edit(checkpoints={"none": 1}), "topic 'none' is not known"),
    ],
)
def test_an_edit_that_cannot_follow_is_refused_and_nothing_is_written(tmp_path, edit, words):
    commit_all(tmp_path, EDITS[:2])
    with Manifest(tmp_path, LOG_ID) as opened:
        before, data = opened.state, path_of(tmp_path).read_bytes()
        with pytest.raises(ValueError, match=words):
            opened.commit(edit)
        assert opened.state is before
        assert path_of(tmp_path).read_bytes() == data
        assert opened.failure() is None
        opened.commit(EDITS[2])


@st.composite
def histories(draw: st.DrawFn) -> list[Edit]:
    """Edits that can follow each other."""
    state, edits, number = State.empty(LOG_ID), [], 0
    for _ in range(draw(st.integers(1, 12))):
        topics = draw(
            st.dictionaries(st.sampled_from(["a", "b", "c"]), st.builds(TopicInfo, schema=st.text(max_size=5)))
        )
        known = sorted({*state.topics, *topics})
        here = [t for version in state.versions.values() for t in version.tables()]
        removed = draw(st.lists(st.sampled_from(here), unique_by=lambda t: t.number)) if here else []
        moved = [t for t in removed if draw(st.booleans())]
        added = [msgspec.structs.replace(t, level=0) for t in moved]
        for _ in range(draw(st.integers(0, 3)) if known else 0):
            number += 1
            words = draw(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2).map(sorted))
            added.append(table(number, *words, topic=draw(st.sampled_from(known))))
        checkpoints = {
            topic: state.checkpoints.get(topic, 0) + draw(st.integers(0, 2**40))
            for topic in known
            if draw(st.booleans())
        }
        edits.append(
            Edit(
                topics=topics,
                added=added,
                removed=[t.number for t in removed],
                checkpoints=checkpoints,
                next_number=draw(st.integers(0, 20)),
            )
        )
        state = state.edit(edits[-1])
    return edits


@settings(deadline=None, max_examples=30)
@given(history=histories(), reopen=st.sets(st.integers(0, 11)), rewrite_bytes=st.sampled_from([0, 1500, 1 << 20]))
def test_reading_gives_what_was_committed_however_often_it_was_written_anew(
    tmp_path_factory, history, reopen, rewrite_bytes
):
    directory = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "REWRITE_BYTES_MIN", rewrite_bytes)
        state, opened = State.empty(LOG_ID), Manifest(directory, LOG_ID)
        with ManifestFollower(directory) as follower:
            for place, edit in enumerate(history):
                if place in reopen:
                    opened.close()
                    opened = Manifest(directory, LOG_ID)
                changed = state.edit(edit) != state
                state = state.edit(edit)
                assert opened.commit(edit) == state
                assert follower.refresh() == (state if changed else None)
                assert follower.state == read_manifest(directory) == state
        opened.close()
    assert State.empty(LOG_ID).edit(state.as_edit()) == state


def test_commits_from_many_threads_are_all_there(tmp_path):
    with Manifest(tmp_path, LOG_ID) as made:
        made.commit(FIRST)

        def add(first: int) -> None:
            for number in range(first, first + 20):
                made.commit(Edit(added=[table(number, number)]))

        threads = [threading.Thread(target=add, args=(start,)) for start in (1, 21, 41)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    state = read_manifest(tmp_path)
    assert sorted(t.number for t in state.versions["points"].tables()) == list(range(1, 61))
    assert state.next_number == 61


def test_a_closed_manifest_says_so(tmp_path):
    made = Manifest(tmp_path, LOG_ID)
    made.close()
    made.close()
    with pytest.raises(ValueError, match="closed"):
        made.commit(FIRST)


def test_the_file_has_the_permissions_that_were_asked_for(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Manifest(tmp_path / "a", LOG_ID).close()
    Manifest(tmp_path / "b", LOG_ID, mode=0o640).close()
    assert [stat.S_IMODE(path_of(tmp_path / name).stat().st_mode) for name in ("a", "b")] == [0o600, 0o640]


# --- what is on the disk ------------------------------------------------------------------------------------------------------

GOLDEN = (
    bytes.fromhex(
        "524d41494e4d414e 01000000 04030201 f0debc9a78563412 0100000000000000 15cd5b0700000000 40000000 168e1e64"
    )
    + bytes.fromhex("af00000000000000 00000000 28e0dfd0")
    + bytes.fromhex("67000000 9381a19a")
    + b'{"topics":{"points":{"schema":"{}","keep_versions":false}},"checkpoints":{"points":29},"next_number":3}'
)


def test_the_bytes_of_version_1_are_pinned(tmp_path):
    edit = Edit(topics={"points": TopicInfo(schema="{}")}, checkpoints={"points": 29}, next_number=3)
    header = Header(LOG_ID, 1, 123_456_789)
    record = encode_record(header, HEADER_BYTES, msgspec.json.encode(edit))
    assert encode_header(header, len(GOLDEN)) + record == GOLDEN
    path_of(tmp_path).write_bytes(GOLDEN)
    assert read_manifest(tmp_path, LOG_ID) == State.empty(LOG_ID).edit(edit)


def test_whatever_byte_of_an_acknowledged_manifest_is_wrong_it_is_damage_named_with_its_place(tmp_path):
    ends = [end for end, _ in commit_all(tmp_path)]
    path = path_of(tmp_path)
    data = path.read_bytes()
    assert ends[-1] == len(data)
    starts = [0, DURABLE_OFFSET, HEADER_BYTES, *ends[:-1]]
    for place in range(len(data)):
        expected = max(start for start in starts if start <= place)
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255, data[place]):  # the last makes it zero
            if flip == 0:
                continue
            with wrong_byte(path, place, flip), pytest.raises(Corruption) as caught:
                read_strictly(path)
            assert (caught.value.path, caught.value.offset) == (str(path), expected), place
    assert path.read_bytes() == data
    assert read_strictly(path)[1] == 0


def test_wherever_an_acknowledged_manifest_is_cut_it_is_damage_named_with_its_place(tmp_path):
    seen = commit_all(tmp_path)
    path = path_of(tmp_path)
    data = path.read_bytes()
    starts = [HEADER_BYTES, *(end for end, _ in seen)]
    for size in reversed(range(len(data))):
        os.truncate(path, size)
        with pytest.raises(Corruption) as caught:
            read_strictly(path)
        expected = max((start for start in starts if start <= size), default=size)
        assert (caught.value.path, caught.value.offset) == (str(path), expected)


def test_after_a_power_cut_every_cut_or_wrong_byte_gives_an_exact_earlier_state_or_damage(tmp_path):
    """The header may be behind by any number of commits. What it vouches for is still never given up."""
    seen = commit_all(tmp_path)
    path, header = path_of(tmp_path), header_of(path_of(tmp_path))
    whole = path.read_bytes()
    ends = [end for end, _ in seen]
    for durable in ends:
        data = with_durable(whole, header, durable)
        path.write_bytes(data)
        for place in range(HEADER_BYTES, len(data)):
            start = max(start for start in (HEADER_BYTES, *ends) if start <= place)
            with wrong_byte(path, place, 0x11):
                if place < durable or place < ends[-2]:  # vouched for by the header, or by what was written after it
                    with pytest.raises(Corruption) as caught:
                        read_strictly(path)
                    assert caught.value.offset == start
                else:
                    assert read_strictly(path) == (seen[-2][1], len(data) - ends[-2])
        for size in reversed(range(HEADER_BYTES, len(data) + 1)):
            os.truncate(path, size)
            if size < durable:
                with pytest.raises(Corruption):
                    read_strictly(path)
                continue
            end, state = max((entry for entry in seen if entry[0] <= size), key=lambda entry: entry[0])
            assert read_strictly(path) == (state, size - end)


def test_a_record_counts_only_in_its_own_place_and_file(tmp_path):
    edits = [FIRST, *(Edit(checkpoints={"points": number}) for number in (1, 2, 3))]  # of equal length
    seen = commit_all(tmp_path, edits)
    path = path_of(tmp_path)
    data = path.read_bytes()
    ends = [end for end, _ in seen]
    records = [data[start:end] for start, end in pairwise(ends)]
    assert len(records[1]) == len(records[2]) == len(records[3])
    for order in ([0, 2, 1, 3], [0, 1, 1, 3], [0, 1, 3, 2]):
        path.write_bytes(data[: ends[0]] + b"".join(records[number] for number in order))
        with pytest.raises(Corruption) as caught:
            read_strictly(path)
        assert caught.value.offset == ends[next(at for at, number in enumerate(order) if at != number)]
    path.write_bytes(data + records[3])  # repeated at the end
    assert read_strictly(path) == (seen[-1][1], len(records[3]))
    strange = Header(LOG_ID, header_of(path).generation + 1, 0)  # of an earlier or later manifest of this store
    path.write_bytes(data + encode_record(strange, len(data), msgspec.json.encode(Edit(checkpoints={"points": 9}))))
    assert read_strictly(path)[0] == seen[-1][1]


def test_room_that_was_reserved_and_not_written_is_a_torn_tail(tmp_path):
    _, state = commit_all(tmp_path)[-1]
    with path_of(tmp_path).open("ab") as file:
        file.write(bytes(5000))
    assert read_strictly(path_of(tmp_path)) == (state, 5000)


def test_the_next_writer_cuts_a_torn_tail_off_and_says_how_long_it_was(tmp_path):
    seen = commit_all(tmp_path, EDITS[:3])
    path = path_of(tmp_path)
    record = encode_record(header_of(path), seen[-1][0], msgspec.json.encode(EDITS[3]))
    with path.open("ab") as file:
        file.write(record[:-1])
    assert read_manifest(tmp_path) == seen[-1][1]
    with Manifest(tmp_path, LOG_ID) as opened:
        assert opened.torn_bytes == len(record) - 1
        assert opened.state == seen[-1][1]
        assert path.stat().st_size == opened.file_bytes
        opened.commit(EDITS[3])
    assert read_strictly(path) == (opened.state, 0)


def test_a_sound_record_that_makes_no_sense_is_damage(tmp_path):
    end, _ = commit_all(tmp_path)[-1]
    path = path_of(tmp_path)
    data, header = path.read_bytes(), header_of(path)
    for payload in (b"{}}", b"[]", b'{"removed":[77]}', b'{"unknown":1}', b'{"added":[{"number":0}]}', b"\xff"):
        path.write_bytes(data + encode_record(header, end, payload))
        with pytest.raises(Corruption, match="an edit that can follow") as caught:
            read_strictly(path)
        assert caught.value.offset == end


def test_damage_is_refused_by_everyone_and_nothing_is_changed(tmp_path):
    commit_all(tmp_path)
    path = path_of(tmp_path)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    for attempt in (read_manifest, ManifestFollower, lambda directory: Manifest(directory, LOG_ID)):
        with pytest.raises(Corruption):
            attempt(tmp_path)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["MANIFEST"]


def test_a_newer_version_is_refused_with_both_versions_named(tmp_path):
    commit_all(tmp_path)
    path = path_of(tmp_path)
    sound = path.read_bytes()
    for offset, value, what in ((8, 2, "version"), (12, 0x04030201, "byte order"), (40, 128, "header_bytes")):
        data = bytearray(sound)
        struct.pack_into("<I", data, offset, value)
        struct.pack_into("<I", data, 44, crc32c(data[:44]))
        path.write_bytes(data)
        for attempt in (read_manifest, lambda directory: Manifest(directory, LOG_ID)):
            with pytest.raises(FormatMismatch) as caught:
                attempt(tmp_path)
            assert (caught.value.what, caught.value.found) == (what, value)
        assert path.read_bytes() == data


def test_the_store_of_another_log_is_refused(tmp_path):
    commit_all(tmp_path)
    before = path_of(tmp_path).read_bytes()
    for attempt in (read_manifest, ManifestFollower, Manifest):
        with pytest.raises(FormatMismatch, match="log_id") as caught:
            attempt(tmp_path, LOG_ID + 1)
        assert hex(LOG_ID) in str(caught.value)
    assert path_of(tmp_path).read_bytes() == before


def test_a_manifest_that_is_missing_among_tables_is_not_made_anew(tmp_path):
    (tmp_path / "0000000007.sst").touch()
    with pytest.raises(Corruption, match=r"0000000007\.sst"):
        Manifest(tmp_path, LOG_ID)
    assert os.listdir(tmp_path) == ["0000000007.sst"]
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path)


# --- kills, refusals and power cuts -------------------------------------------------------------------------------------------


def open_and_commit(directory: Path) -> None:
    with Manifest(directory, LOG_ID) as opened:
        opened.commit(EDITS[2])


STEPS = {
    "append": [
        "create_file",
        "write_at",
        "sync_data",
        "rename_file",
        "sync_directory",
        "write_at",
        "sync_data",
        "write_at",
    ],
    "rewrite": ["create_file", "write_at", "sync_data", "rename_file", "sync_directory"] * 2,
}


FAILURES = [
    (kind, place, how)
    for kind, steps in STEPS.items()
    for place, step in enumerate(steps)
    for how in (("refused", "half", "late") if step == "write_at" else ("refused", "late"))
]


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two edits, which the third makes to be written anew if the test's `kind` says so."""
    directory = tmp_path / "store"
    directory.mkdir()
    commit_all(directory, EDITS[:2])
    if request.getfixturevalue("kind") == "rewrite":
        monkeypatch.setattr(manifest, "REWRITE_BYTES_MIN", 0)
        monkeypatch.setattr(manifest, "REWRITE_RATIO", 1)
    return directory


@pytest.mark.parametrize("kind", STEPS)
def test_each_step_is_one_that_the_tests_below_make_fail(store, kind):
    with counted(store) as steps:
        open_and_commit(store)
    assert steps == STEPS[kind]


@pytest.mark.parametrize(("kind", "place", "how"), FAILURES)
def test_killed_before_within_or_after_any_step_one_of_two_states_is_there(store, kind, place, how):
    before = read_manifest(store)
    with Disk(store, place, how, kill=True), pytest.raises(Killed):
        open_and_commit(store)
    after = before.edit(EDITS[2])
    found = read_manifest(store)
    assert found in (before, after)
    if place < 5:  # it had only been opened
        assert found == before
    with Manifest(store, LOG_ID) as opened:
        assert opened.state == found
        opened.commit(EDITS[3])
    assert read_manifest(store) == found.edit(EDITS[3])
    assert os.listdir(store) == ["MANIFEST"]


@pytest.mark.parametrize(("kind", "place", "how"), FAILURES)
def test_after_a_refusal_nothing_more_is_taken_or_tried(store, kind, place, how):
    before = read_manifest(store)
    with Disk(store, place, how) as disk:
        if place < 5:
            with pytest.raises(ManifestFailed):
                Manifest(store, LOG_ID)
            assert read_manifest(store) == before
            return
        opened = Manifest(store, LOG_ID)
        with pytest.raises(ManifestFailed) as caught:
            opened.commit(EDITS[2])
        taken = len(disk.steps)
        for _ in range(2):
            with pytest.raises(ManifestFailed) as again:
                opened.commit(EDITS[3])
            assert again.value is caught.value is opened.failure()
        assert len(disk.steps) == taken == place + 1
    error = caught.value
    assert error.errno == errno.EIO
    assert os.strerror(errno.EIO) in str(error)
    assert error.path.startswith(str(store))
    assert "stays readable" in str(error)
    assert opened.state == before  # the last that was acknowledged
    opened.close()
    with Manifest(store, LOG_ID) as opened:
        assert opened.state in (before, before.edit(EDITS[2]))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_what_was_acknowledged_survives_a_power_cut_at_any_step(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("power")
    directory = place / "store"
    directory.mkdir()
    acknowledged, tried = State.empty(LOG_ID), State.empty(LOG_ID)
    Manifest(directory, LOG_ID).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "REWRITE_BYTES_MIN", data.draw(st.sampled_from([0, 3000])))
        patch.setattr(manifest, "REWRITE_RATIO", data.draw(st.sampled_from([1, 4])))
        fail_at, how = data.draw(st.integers(0, 50)), data.draw(st.sampled_from(["refused", "half", "late"]))
        with Disk(directory, fail_at, how, kill=True) as disk:
            try:
                with Manifest(directory, LOG_ID) as opened:
                    for edit in (FIRST, *(Edit(added=[table(10 * at + n, n) for n in range(8)]) for at in range(1, 9))):
                        tried = acknowledged.edit(edit)
                        opened.commit(edit)
                        acknowledged = tried
            except Killed:
                pass
            disk.crash_image(place / "image", lambda limit: data.draw(st.integers(0, limit)))
    assert read_manifest(place / "image") in (acknowledged, tried)
    with Manifest(place / "image", LOG_ID) as opened:
        assert opened.state in (acknowledged, tried)


CHILD = """if True:
    import sys
    from pathlib import Path
    from ringmain.storage import manifest
    from ringmain.storage.manifest import Edit, Manifest, TopicInfo
    manifest.REWRITE_BYTES_MIN = 1000
    with Manifest(Path(sys.argv[1]), int(sys.argv[2])) as opened:
        opened.commit(Edit(topics={"points": TopicInfo(schema="{}")}))
        for sequence in range(opened.state.checkpoints["points"] + 1, int(sys.argv[3])):
            opened.commit(Edit(checkpoints={"points": sequence}))
            sys.stdout.write(f"{sequence}\\n")
            sys.stdout.flush()
"""


def start_child(directory: Path, limit: int) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", CHILD, str(directory), str(LOG_ID), str(limit)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE)


@pytest.mark.process
def test_a_writer_killed_at_any_instant_loses_nothing_that_it_acknowledged(tmp_path):
    chance = random.Random(7)
    reached = 0
    for _ in range(6):
        child = start_child(tmp_path, 1_000_000)
        try:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 60)):
                child.stdout.readline()
        finally:
            child.kill()
        told, _ = child.communicate(timeout=30)
        acknowledged = int((told.rpartition(b"\n")[0].rsplit(b"\n") or [b""])[-1] or reached)
        reached = read_manifest(tmp_path, LOG_ID).checkpoints["points"]
        assert reached >= acknowledged
        assert Manifest(tmp_path, LOG_ID).state.checkpoints["points"] == reached
    assert reached > 6


# --- following ------------------------------------------------------------------------------------------------------------------


def test_a_follower_sees_each_commit_once(tmp_path):
    with Manifest(tmp_path, LOG_ID) as made, ManifestFollower(tmp_path) as follower:
        assert follower.state == made.state
        assert follower.refresh() is None
        for edit in EDITS:
            made.commit(edit)
            assert follower.refresh() == made.state
            assert follower.refresh() is None
        for sequence in (100, 101):
            made.commit(Edit(checkpoints={"points": sequence}))
        assert follower.refresh() == made.state


def test_a_follower_comes_along_when_the_file_is_replaced_and_takes_nothing_for_news_that_is_none(tmp_path):
    made = Manifest(tmp_path, LOG_ID)
    with ManifestFollower(tmp_path) as follower:
        made.commit(FIRST)
        made.close()
        with Manifest(tmp_path, LOG_ID) as opened:
            assert follower.refresh() == opened.state
            assert follower.refresh() is None
        with Manifest(tmp_path, LOG_ID):
            assert follower.refresh() is None
        with Manifest(tmp_path, LOG_ID) as opened:
            opened.commit(EDITS[1])
            assert follower.refresh() == opened.state


def test_a_follower_waits_for_the_rest_of_a_record(tmp_path):
    end, state = commit_all(tmp_path, EDITS[:2])[-1]
    path = path_of(tmp_path)
    record = encode_record(header_of(path), end, msgspec.json.encode(EDITS[2]))
    with ManifestFollower(tmp_path) as follower, path.open("ab", buffering=0) as file:
        for byte in record[:-1]:
            file.write(bytes([byte]))
            assert follower.refresh() is None
        file.write(record[-1:])
        assert follower.refresh() == state.edit(EDITS[2])


def test_a_follower_says_what_is_damaged_and_keeps_its_state(tmp_path):
    made = Manifest(tmp_path, LOG_ID)
    made.commit(FIRST)
    with ManifestFollower(tmp_path) as follower:
        end = made.file_bytes
        made.commit(EDITS[1])
        made.close()
        path = path_of(tmp_path)
        data = bytearray(path.read_bytes())
        data[end + 20] ^= 1
        path.write_bytes(data)
        with pytest.raises(Corruption) as caught:
            follower.refresh()
        assert caught.value.offset == end
        assert follower.state.versions["points"] == Version()
        data[end + 20] ^= 1
        path.write_bytes(data)
        assert follower.refresh() == made.state


def test_a_follower_does_not_follow_into_another_logs_store(tmp_path):
    for name, log_id in (("one", LOG_ID), ("other", LOG_ID + 1)):
        (tmp_path / name).mkdir()
        Manifest(tmp_path / name, log_id).close()
    with ManifestFollower(tmp_path / "one") as follower:
        path_of(tmp_path / "other").rename(path_of(tmp_path / "one"))
        with pytest.raises(FormatMismatch, match="log_id"):
            follower.refresh()
        path_of(tmp_path / "one").unlink()
        with pytest.raises(FileNotFoundError):
            follower.refresh()


@pytest.mark.process
def test_a_follower_in_another_process_only_ever_sees_states_that_were_committed(tmp_path):
    Manifest(tmp_path, LOG_ID).close()
    limit = 400
    child = start_child(tmp_path, limit)
    try:
        with ManifestFollower(tmp_path, LOG_ID) as follower:
            seen, generations = [0], set[int]()
            while child.poll() is None or seen[-1] < limit - 1:
                state = follower.refresh()
                if state is not None and "points" in state.topics:
                    seen.append(state.checkpoints["points"])
                    generations.add(header_of(path_of(tmp_path)).generation)
                elif state is None and child.returncode is not None:
                    break
    finally:
        child.kill()
        child.communicate(timeout=30)
    assert seen == sorted(seen)
    assert seen[-1] == limit - 1
    assert len(generations) > 5  # it was written anew in between


# --- growing -----------------------------------------------------------------------------------------------------------------


def test_a_manifest_is_written_anew_when_it_is_four_times_as_long_as_it_was_then(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "REWRITE_BYTES_MIN", 2000)
    with Manifest(tmp_path, LOG_ID) as made:
        made.commit(FIRST)
        sizes, generations = [], set[int]()
        for number in range(1, 121):
            gone = [number - 10] if number > 10 else []
            made.commit(Edit(added=[table(number, number)], removed=gone))
            sizes.append(made.file_bytes)
            generations.add(header_of(path_of(tmp_path)).generation)
            assert path_of(tmp_path).stat().st_size == made.file_bytes
            assert read_manifest(tmp_path) == made.state
        needed = HEADER_BYTES + 8 + len(msgspec.json.encode(made.state.as_edit()))
    assert 3 * needed < max(sizes) < 4 * needed + 1000
    assert 3 < len(generations) < 10  # not each time
    assert os.listdir(tmp_path) == ["MANIFEST"]
