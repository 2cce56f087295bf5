"""Small values on disk: replaced whole, damage told, and a power cut at any instant leaves one that was to be there."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ringmain.bus.cluster.local_replica import _PositionFile
from ringmain.bus.group_state import Group
from ringmain.bus.positions import KEPT, Position, shared_by_group
from ringmain.bus.shared_slot_file import SharedSlotFile
from ringmain.bus.slot_file import SlotFile, SlotsDamaged
from ringmain.storage import FormatMismatch, _log
from support.logs import flip
from support.power_cut import Cut, Disk, Start, cuts, read_journal
from support.preload import build_preload

SEED = int(os.environ.get("RINGMAIN_SEED", "20240601"))
IMAGES = 20 if os.environ.get("RINGMAIN_NIGHTLY") else 3  # of each place to cut

# On the recording disk, by whoever keeps values in slot files: every byte of a value says which one it is, small ones and such that
# need more room.
RECORDED = """if True:
    import ctypes, sys
    from pathlib import Path
    from ringmain.bus.shared_slot_file import SharedSlotFile
    from ringmain.bus.slot_file import SlotFile
    note, path = ctypes.CDLL(None).recording_note, Path(sys.argv[2])
    if sys.argv[1] == "alone":
        file = None
        def store(number, value):
            global file
            if file is not None and file.has_room(value):
                file.write(value, sync=True)
            else:
                file = SlotFile.replace(path, value)
    elif sys.argv[1] == "shared":
        file = SharedSlotFile(path.parent, path.name, sync=True, patience_s=30)
        def store(number, value):
            if number in (4, 8):  # somebody takes over
                SlotFile.open_new(Path(f"{path}.{file._number + 1}")).close()
            file.change(lambda before: value)
    elif sys.argv[1] == "subscriber":
        from ringmain.subscribers.position_keeper import Checkpoint, PositionKeeper
        class Reader:
            position, safe_position, data_segment = 0, 100, None
            def acknowledge(self, sequence): pass
        keeper = PositionKeeper(path, 7, None, Reader(), whole=True, every=0.001, every_rows=None)
        keeper.start()
        def store(number, value):
            keeper.offer(Checkpoint(number, value))
            keeper.sync(30)
    elif sys.argv[1] == "group":
        from ringmain.bus.group_state import Member
        from ringmain.subscribers.group_file import GroupFile
        def store(number, value):
            file = GroupFile(path.parent, 7, 1, lambda position: None)
            file.change(lambda group: setattr(group, "members", [Member(byte, 1, 1) for byte in value]))
            file.close()
    else:
        from ringmain.bus.cluster.local_replica import _PositionFile
        from ringmain.bus.cluster.replica import Position
        file = _PositionFile(path)
        def store(number, value):
            file.store(Position(number, ends={chr(number) * len(value): number}))
    for number, size in enumerate([16, 700, 1, 5000, 30, 1900, 9000, 100, 40000, 8], start=1):
        note(b"trying %d" % number)
        store(number, bytes([number]) * size)
        note(b"durable %d" % number)
"""


def read(path: Path) -> bytes | None:
    file = SlotFile.open(path, writable=False)
    try:
        return file.read()
    finally:
        file.close()


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.binary(max_size=6000), min_size=1, max_size=12), damage=st.data())
def test_the_newest_whole_value_is_read_whatever_became_of_the_other_slot(tmp_path_factory, values, damage):
    path = tmp_path_factory.mktemp("slots") / "value"
    file, replaced = SlotFile.replace(path, values[0]), True
    for value in values[1:]:
        assert read(path) is not None
        replaced = not file.has_room(value)
        if replaced:
            file.close()
            file = SlotFile.replace(path, value)
        else:
            file.write(value, sync=False)
        assert file.read() == value
    file.close()
    assert read(path) == values[-1]
    slot_bytes = path.stat().st_size // 2
    data = path.read_bytes()
    newest = max((0, 1), key=lambda at: int.from_bytes(data[at * slot_bytes + 16 : at * slot_bytes + 24], "little"))
    place = damage.draw(st.integers(0, 31 + len(values[-1])))
    if place not in range(28, 32):  # zeros, which the checksum covers as well
        flip(path, newest * slot_bytes + place)
        assert read(path) == (values[-1] if replaced else values[-2])


def test_two_damaged_slots_are_an_error_with_the_file_in_it(tmp_path):
    path = tmp_path / "value"
    SlotFile.replace(path, b"something").close()
    flip(path, 33)
    assert read(path) == b"something"
    flip(path, 4096 + 33)
    with pytest.raises(SlotsDamaged, match="neither of its two slots") as raised:
        read(path)
    assert raised.value.path == str(path)


def test_a_file_that_was_about_to_be_made_holds_nothing_yet(tmp_path):
    path = tmp_path / "value"
    file = SlotFile.open_new(path)
    assert file.read() is None
    os.ftruncate(file.descriptor, 8192)
    os.pwrite(file.descriptor, b"RMAINPOS and what was written of it", 0)
    assert file.read() is None
    file.fill(b"a value", sync=False)
    assert file.read() == b"a value"
    file.close()


def test_another_version_is_refused_and_named(tmp_path):
    path = tmp_path / "value"
    SlotFile.replace(path, b"").close()
    data = bytearray(path.read_bytes())
    for at in (0, 4096):
        data[at + 12] = 2
        data[at + 8 : at + 12] = _log.crc32c(bytes(data[at + 12 : at + 32])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(FormatMismatch, match="format version: expected 1, found 2"):
        read(path)


@pytest.mark.process
@pytest.mark.parametrize("kind", ["alone", "shared", "subscriber", "group", "node"])
def test_a_power_cut_at_any_instant_leaves_the_newest_durable_value_or_the_one_being_written(tmp_path, kind):
    root, journal = tmp_path / "root", tmp_path / "journal"
    (root / "folder").mkdir(parents=True)
    start = Start.of(root)
    done = subprocess.run(
        [sys.executable, "-c", RECORDED, kind, str(root / "folder" / "value")],
        env={
            **os.environ,
            "LD_PRELOAD": str(build_preload("recording_disk", tmp_path)),
            "RECORDED_ROOT": str(root),
            "RECORDED_JOURNAL": str(journal),
        },
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    print(f"RINGMAIN_SEED={SEED}")
    rng, disk, target = random.Random(f"{SEED} {kind}"), Disk(start), tmp_path / "image"
    trying = durable = seen = 0
    for place, notes in cuts(disk, read_journal(journal)):
        for note in notes:
            word, number = note.split()
            trying, durable = (int(number), durable) if word == b"trying" else (trying, int(number))
        for _ in range(IMAGES):
            cut = Cut(names=rng.choice([0, 0.5, 1]), contents=rng.choice([0, 0.3, 0.9, 1]))
            disk.write_image(target, "folder", cut, rng)
            value = read_value(kind, target / "folder")
            shutil.rmtree(target)
            found = value[0] if value else 0
            assert durable <= found <= trying, f"{durable} was durable, {found} is there; cut {place}, {cut}"
            assert value is None or value == value[:1] * len(value)
            seen += 1
    assert durable == 10
    assert seen > 100


def read_value(kind: str, folder: Path) -> bytes | None:
    path = folder / "value"
    if kind == "shared":
        return read_shared(folder)
    if kind == "group":
        kept = shared_by_group(folder, KEPT).read()  # which counts once the machine was started anew
        group = msgspec.msgpack.decode(Position.decode(kept, folder).body, type=Group) if kept is not None else Group(1)
        return bytes(member.number for member in group.members)
    if not path.exists():
        return None
    if kind == "node":
        file = _PositionFile(path)
        file.load()
        file.close()
        return "".join(file.position.ends).encode()
    value = read(path)
    if kind == "alone" or value is None:
        return value
    position = Position.decode(value, path)
    assert position.body[1:2] == bytes([position.sequence] if position.sequence else b"")  # both, or neither
    return position.body[1:]


def read_shared(folder: Path) -> bytes | None:
    file = SharedSlotFile(folder, "value", sync=True, patience_s=30)
    before: list[bytes | None] = []
    seen = file.read()
    file.change(lambda value: before.append(value))
    file.close()
    assert before == [seen]
    return seen
