"""A short but wide walk through the compiled parts, for a build with sanitizers: `python drive.py BUS FOLDER LIBRARY`.

LIBRARY is where that build was installed. What is right is told elsewhere; here everything is only done once, the awkward ways
too, so that a sanitizer sees it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ringmain.bus import (
    AttachError,
    Fenced,
    NotFound,
    NotLeader,
    Overrun,
    Replication,
    RingFull,
    Writer,
    _journal,
    _lanes,
    _publish,
    _read,
    _segment,
    _slots,
    attach,
    open_lane,
)
from ringmain.bus.segments import Segment, bus_name, control_name, data_name, lane_name, list_lanes
from ringmain.bus.slot_file import SlotFile
from ringmain.storage import Log, LogReader, Schema, StorageError, _log
from ringmain.storage.log_files import list_files, open_file
from ringmain.storage.recovery import examine
from ringmain.storage.repair import repair
from ringmain.subscribers import Delayed, Filtered, Historical, RealTime, Reduction, Resumable, Subscriber, _grouping

BUS, FOLDER, LIBRARY = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

for module in (_journal, _lanes, _publish, _read, _segment, _slots, _log, _grouping):
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(LIBRARY), f"{module.__file__} is not the build with sanitizers"

WIDE = Schema(
    "wide",
    {
        **{name: name for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")},
        "truth": "?",
        "text": "S7",
        "levels": "5i8",
        "grid": "(2,3)f4",
    },
)
SMALL = Schema("small", {"value": "i8"})
WIDE_ROW = (-1, -2, -3, -4, 1, 2, 3, 4, 0.5, 0.25, True, b"seven", [1, 2, 3, 4, 5], [[1, 2, 3], [4, 5, 6]])
CHANCE = random.Random(1)


def refused(*errors: type[Exception]) -> contextlib.AbstractContextManager[None]:
    @contextlib.contextmanager
    def check() -> Iterator[None]:
        try:
            yield
        except errors:
            return
        raise AssertionError(f"nothing was raised; expected {errors}")

    return check()


def small_rows(count: int) -> np.ndarray:
    rows = np.zeros(count, SMALL.payload_dtype)
    rows["value"] = np.arange(count)
    return rows


def open_writer(**settings: object) -> Writer:
    given: dict[str, object] = {"data_dir": FOLDER / "data", "slots": 64, "log_file_bytes": 4 << 20, **settings}
    return Writer(BUS, [WIDE, SMALL], **given)  # type: ignore[arg-type]


# --- what is driven -------------------------------------------------------------------------------------------------------


def publish_in_every_way() -> None:
    with open_writer() as writer:
        wide, small = writer["wide"], writer["small"]
        wide.publish(*WIDE_ROW)
        wide.publish(**dict(zip(WIDE.payload_dtype.names or (), WIDE_ROW, strict=True)))
        wide.publish(*WIDE_ROW[:3], **dict(zip((WIDE.payload_dtype.names or ())[3:], WIDE_ROW[3:], strict=True)))
        wide.publish(
            *(np.int8(1),) * 8, np.float32(1), np.float64(1), np.bool_(0), b"", np.zeros(5, "i4"), np.ones((2, 3))
        )
        for index, wrong in [(0, 128), (0, -129), (1, 2**15), (2, 2**31), (3, 2**63), (4, 256), (4, -1), (5, 2**16), (6, 2**32),
                             (7, 2**64), (8, "x"), (9, None), (11, b"eight888"), (11, "text"), (12, [1]), (12, [0.5] * 5),
                             (12, [2**70] * 5), (13, [[1]]), (0, 0.5), (7, "7")]:  # fmt: skip
            with refused(TypeError, ValueError, OverflowError):
                wide.publish(*WIDE_ROW[:index], wrong, *WIDE_ROW[index + 1 :])
        with refused(TypeError):
            wide.publish(1, 2)
        with refused(TypeError):
            wide.publish(*WIDE_ROW, nothing=1)
        for count in (0, 1, 15, 16, 17, 63, 64, 65, 1000):
            small.publish_batch(small_rows(count))
            small.publish_batch(small_rows(2 * count)[::2])
            small.publish_batch(small_rows(count)[::-1])
            small.publish_batch(np.zeros(count, SMALL.dtype))
        rows = np.zeros(3, WIDE.payload_dtype)
        rows["levels"] = 7
        wide.publish_batch(rows)
        for wrong_rows in (np.zeros(3), np.zeros((2, 2), SMALL.payload_dtype), [1, 2]):
            with refused(TypeError):
                small.publish_batch(wrong_rows)  # type: ignore[arg-type]
        for count in (1, 5, 31, 32, 32, 32, 7):
            with small.claim(count) as claimed:
                claimed["value"] = 9
        claim = small.claim(32)
        claim.rows["value"] = 3
        claim.commit(1)
        small.claim(20).abort()
        with refused(KeyError), small.claim(3):
            raise KeyError
        for count in (0, 33):
            with refused(ValueError):
                small.claim(count)
        for watermark in ("published", "logged", "durable"):
            small.wait(small.watermarks.published, watermark, timeout=30)
        with refused(RuntimeError):

            class Again:
                def __index__(self) -> int:
                    return small.publish(1)

            small.publish(Again())
        left = small.claim(2)
    with refused(ValueError):
        wide.publish(*WIDE_ROW)
    with refused(RuntimeError):
        small.publish(1)
    with refused(ValueError):
        left.commit()


def read_in_every_way() -> None:
    kept = []
    with open_writer(sync="always") as writer:
        small = writer["small"]
        before = small.watermarks.published
        with (
            RealTime(f"{BUS}/small", reliable=True, name="reliable") as reliable,
            RealTime(f"{BUS}/small", name="lossy" * 20, wait="spin") as lossy,
            RealTime(f"{BUS}/small", follow="durable", start="earliest", wait="yield", batch_rows=7) as durable,
            Historical(f"{BUS}/small", start=5, last=before) as past,
        ):
            assert reliable.poll() is None
            stale = None
            for turn in range(10):
                small.publish_batch(small_rows(40))
                batch = reliable.take(30)
                while batch is not None:
                    assert batch.copy()["sequence"][0] == batch.first
                    batch.validate()
                    kept.append(batch.rows["value"][::2])
                    repr(batch)
                    batch = reliable.poll()
                if turn == 0:
                    stale = lossy.poll()
            assert stale is not None
            with refused(Overrun):
                stale.validate()
            with refused(Overrun):
                stale.copy()
            small.wait(small.watermarks.published, "durable", timeout=30)
            for reader in (lossy, durable):
                while reader.position < small.watermarks.published:
                    batch = reader.take(30)
                    assert batch is not None
                    kept.append(batch.rows["sequence"])
                assert reader.stats.lost_count == 0
            kept += [batch.rows for batch in past]
        when = int(kept[-1]["timestamp_ns"][0])
        kept += [batch.rows for batch in Historical(f"{BUS}/wide", since=0, until=when)]
        attached = attach(f"{BUS}/small")
        assert attached.watermarks().published == small.watermarks.published
        _segment.list_readers(attached.control.memory)
        _segment.free_dead(attached.control.memory)
        with refused(ValueError, TypeError, BufferError):
            _segment.beat(attached.data.memory)  # read-only
    assert sum(int(array.view("u1").sum()) if array.flags.c_contiguous else len(array) for array in kept) > 0


def hold_the_writer_back() -> None:
    for full in ("raise", "block", "drop"):
        with open_writer(data_dir=None, full=full, full_timeout=0.05) as writer:
            small = writer["small"]
            with RealTime(f"{BUS}/small", reliable=True) as reader:
                reader.poll()
                if full == "drop":
                    small.publish_batch(small_rows(500))
                else:
                    with refused(RingFull):
                        small.publish_batch(small_rows(500))
                while reader.poll() is not None:
                    pass
            small.publish_batch(small_rows(500))


def die_and_take_over() -> None:
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        writer = open_writer()
        writer["small"].publish_batch(small_rows(50))
        open_claim = writer["small"].claim(4)
        open_claim.rows["value"] = 1
        os.write(go, b"x")
        while True:
            time.sleep(1)
    os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open_writer(slots=128) as first:
        assert first.carried.log is not None
        first["small"].publish(1)
        second = open_writer(take_over=True)
        with refused(Fenced):
            first["small"].publish(2)
        second["small"].publish(3)
        second.close()


def damage_a_log() -> None:
    directory = FOLDER / "data" / "log"
    good = FOLDER / "good"
    for number, path in list_files(directory)[:-2]:  # the newest two are enough, and their size on the disk is small
        assert number > 0
        path.unlink()
    shutil.copytree(directory, good)
    used_bytes = {path.name: open_file(path, number).scan()[1] for number, path in list_files(good)}
    for turn in range(16):
        shutil.rmtree(directory)
        shutil.copytree(good, directory)
        for _ in range(1 + turn % 3):
            name, size = CHANCE.choice([*used_bytes.items()])
            with (directory / name).open("r+b") as file:
                if turn % 4 == 3:
                    file.truncate(CHANCE.randrange(size))
                else:
                    file.seek(CHANCE.randrange(size + 64))
                    file.write(CHANCE.randbytes(CHANCE.choice([1, 1, 8, 200])))
            with contextlib.suppress(StorageError):
                examine(directory)
        with contextlib.suppress(StorageError):
            reader, position = LogReader(directory, "small"), 0
            while (rows := reader.read(max(position + 1, reader.oldest))) is not None:
                position = int(rows["sequence"][-1])
        with contextlib.suppress(StorageError):
            repair(directory)
            Log(directory, [WIDE, SMALL], bus=BUS, file_bytes=4 << 20).close()
    shutil.rmtree(directory)
    shutil.copytree(good, directory)


def call_the_log_by_hand() -> None:
    data = bytes(range(256)) * 64
    for start in range(0, 40):
        for length in (0, 1, 7, 8, 9, 255, 767, 768, 769, 12287, 12288, 12300):
            part = memoryview(data)[start : start + length]
            assert _log.crc32c(part) == _log.crc32c(part, portable=True)
    for frame_bytes, payload in ((64, b""), (72, b"x"), (72, b"12345678")):
        frame = _log.encode_frame(_log.FRAME_MARK, payload, position=0, epoch=1, frame_bytes=frame_bytes)
        for cut in range(len(frame) + 1):
            _log.scan(frame[:cut], start_position=0, epoch=1, offset=0)
        for offset in (0, 1, 8, 1 << 40, 2**63, 2**64 - 64, 2**64 - 8, 2**64 - 1):
            _log.scan(frame, start_position=0, epoch=1, offset=offset)
            found = _log.find_frame(frame, start_position=0, epoch=1, offset=offset)
            assert found is None or found >= offset
    for frame_bytes in (0, 63, 65, 1 << 21):
        with refused(ValueError):
            _log.encode_frame(_log.FRAME_MARK, b"", position=0, epoch=1, frame_bytes=frame_bytes)
    for length in (0, 1, 4095, 4096, 5000):
        with contextlib.suppress(StorageError):
            _log.decode_file_header(CHANCE.randbytes(length), "nowhere")


def attach_to_garbage() -> None:
    name, control = data_name(BUS, "small"), control_name(BUS, "small")
    with open_writer(data_dir=None) as writer:
        writer["small"].publish_batch(small_rows(100))
        data_bytes = bytes(Segment.open(name, writable=False).memory)
        control_bytes = bytes(Segment.open(control, writable=False).memory)
    tries: list[tuple[bytes, bytes]] = [
        (b"\0", control_bytes),
        (data_bytes, b"\0" * 64),
        (data_bytes[:8192], control_bytes),
    ]
    tries += [(CHANCE.randbytes(length), control_bytes) for length in (1, 8, 64, 4096, 8192, 20000)]
    tries += [(data_bytes[: CHANCE.randrange(1, len(data_bytes))], control_bytes) for _ in range(20)]
    for _ in range(150):
        changed = bytearray(data_bytes)
        at = CHANCE.choice([*range(0, 88, 4), 8192, 8200])
        changed[at : at + 4] = CHANCE.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", CHANCE.randbytes(4)])
        tries.append((bytes(changed), control_bytes))
    for watermarks in ((0, 2**64 - 1), (2**64 - 1, 2**64 - 1), (2**64 - 1, 0), (0, 0), (2**63, 2**63), (65, 10**6)):
        changed = bytearray(data_bytes)
        for index, value in enumerate(watermarks):
            changed[1280 + 128 * index : 1288 + 128 * index] = value.to_bytes(8, "little")
        tries.append((bytes(changed), control_bytes))
    tries.append((data_bytes, control_bytes[:4096] + CHANCE.randbytes(len(control_bytes) - 4096)))
    tries.append((data_bytes, control_bytes[:128] + CHANCE.randbytes(len(control_bytes) - 128)))
    for data, table in tries:
        for made, content in ((name, data), (control, table)):
            Segment.unlink(made)
            Segment.create(made, len(content), 0o600).memory[:] = content
        for start in ("earliest", "latest", 90, 2**63):
            with contextlib.suppress(AttachError, StorageError), RealTime(f"{BUS}/small", start=start) as reader:
                _segment.list_readers(attach(f"{BUS}/small").control.memory)
                for _ in range(4):
                    with contextlib.suppress(OverflowError):
                        batch = reader.poll()
                        if batch is not None:
                            batch.rows["value"].sum()
                            with contextlib.suppress(Overrun):
                                batch.copy()
    for made in (name, control, bus_name(BUS)):
        Segment.unlink(made)


def write_beside_hostile_readers() -> None:
    for full in ("raise", "drop"):
        with open_writer(data_dir=None, full=full, full_timeout=0.01) as writer:
            small = writer["small"]
            control = Segment.open(control_name(BUS, "small"), writable=True)
            for turn in range(30):
                control.memory[128:] = CHANCE.randbytes(len(control.memory) - 128)
                if turn % 2:  # entries that look like reliable readers, dead and alive
                    for at in range(4096, 4096 + 256 * CHANCE.choice([3, 1024]), 256):
                        owner = CHANCE.choice([1, os.getpid(), 1 << 22]) << 32 | CHANCE.choice([1, 2, 2, 3])
                        control.memory[at : at + 8] = owner.to_bytes(8, "little")
                        control.memory[at + 64] = 1
                        control.memory[at + 65 : at + 68] = bytes(3)
                    with contextlib.suppress(AttachError), RealTime(f"{BUS}/small", reliable=True) as reader:
                        reader.poll()
                        _segment.list_readers(control.memory)
                with contextlib.suppress(RingFull):
                    small.publish(1)
                    small.publish_batch(small_rows(200))
            control.memory[128:] = bytes(len(control.memory) - 128)


def publish_through_lanes() -> None:
    for data_dir in (FOLDER / "data", None):
        with (
            open_writer(data_dir=data_dir, lanes=True) as writer,
            RealTime(f"{BUS}/small", reliable=True) as reader,
            open_lane(f"{BUS}/wide", slots=16) as wide,
        ):
            reader.poll()
            begin = reader.position
            lanes = [open_lane(f"{BUS}/small", slots=2**power) for power in (0, 4, 8)]
            wide.publish(*WIDE_ROW)
            for count in (1, 3, 16, 200):
                for lane in lanes:
                    for at in range(0, count, 8):
                        lane.publish_batch(small_rows(min(8, count - at)))
                        while reader.poll() is not None:
                            pass
            with lanes[1].claim(5) as rows:
                rows["value"] = 3
            lanes[2].claim(5).abort()
            while reader.position < begin + 3 * 220 + 5:
                reader.poll()
            for lane in lanes:
                lane.wait(lane.watermarks.published, "drained" if data_dir is None else "durable", 30)
            writer["wide"].publish(*WIDE_ROW)
            lanes.pop().close()
            second = open_writer(data_dir=data_dir, lanes=["small"], take_over=True)
            lanes[0].publish(5)
            wide.close()
            lanes[1].wait(lanes[1].publish(6), "drained", 30)
            second.close()
            with refused(NotFound):
                lanes[0].publish(7)


def drain_beside_a_hostile_table() -> None:
    with open_writer(data_dir=None, lanes=True) as writer:
        sound = open_lane(f"{BUS}/small", slots=64)
        control = Segment.open(control_name(BUS, "small"), writable=True)
        for turn in range(60):
            at = 1536 + 32 * CHANCE.randrange(64)
            control.memory[at : at + 32] = CHANCE.randbytes(32)
            control.memory[at : at + 4] = CHANCE.choice([0, 1, 2, 3, 4, 5, 77]).to_bytes(4, "little")
            for number in list_lanes(BUS, "small")[:1] if turn % 10 == 0 else ():
                with contextlib.suppress(NotFound):  # it may be going
                    segment = Segment.open(lane_name(BUS, "small", number), writable=True)
                    segment.memory[1280:2304] = CHANCE.randbytes(1024)
            _lanes.announce(control.memory)
            with (
                contextlib.suppress(AttachError, Fenced, NotFound, RingFull),
                open_lane(f"{BUS}/small", slots=8) as lane,
            ):
                lane.publish(turn)
        sound.close()
        writer["wide"].publish(*WIDE_ROW)


def read_from_another_process() -> None:
    with open_writer() as writer:
        writer["small"].publish_batch(small_rows(1000))
        program = (
            "import sys; from ringmain.subscribers import Historical\n"
            "with Historical(sys.argv[1], start=1 if len(sys.argv) < 3 else 'earliest') as reader:\n"
            "    print(sum(len(batch) for batch in reader))\n"
        )
        command = [sys.executable, "-c", program, f"{BUS}/small", "earliest"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
        assert int(done.stdout) >= 1000


def follow_and_lead() -> None:
    settings = {"data_dir": FOLDER / "replicated", "replication": Replication(7), "slots": 64, "full": "block"}
    with open_writer(**settings) as writer, RealTime(f"{BUS}/small") as reader:
        node, last = writer.replicating, 0
        assert node.topics["small"].schema == SMALL
        for _ in range(3):
            for count in (1, 7, 64, 200, 0):
                rows = np.zeros(count, SMALL.dtype)
                rows["sequence"] = np.arange(last + 1, last + count + 1)
                left = rows.tobytes()
                while left:
                    taken = node.apply("small", left)
                    left, last = left[taken * SMALL.row_bytes :], last + taken
                    node.raise_replicated("small", last)
                    reader.poll()
            for bad in (bytes(SMALL.row_bytes), bytes(7), b""):
                with contextlib.suppress(ValueError):
                    assert node.apply("small", bad) == 0
            node.follow("north" * 9)
            with refused(NotLeader):
                open_lane(f"{BUS}/small")
            node.lead()
            with open_lane(f"{BUS}/small", slots=64) as lane:
                last = last + lane.publish_batch(small_rows(30))
                lane.wait(30, "logged", 30)
                node.raise_replicated("small", last + 5)
                lane.wait(30, "replicated", 30)
                node.hold(True)
                lane.publish(1)
                node.follow("")
                with refused(NotLeader):
                    lane.publish(2)
        writer.close_to_cut({"small": last - 3})


def group_and_filter() -> None:
    rows = np.frombuffer(CHANCE.randbytes(3000 * WIDE.row_bytes), WIDE.dtype)  # any bytes are a key
    names = [
        name
        for name in WIDE.payload_dtype.names or ()
        if WIDE.dtype[name].kind in "iubS" and not WIDE.dtype[name].shape
    ]
    for fields in [(name,) for name in names] + [
        tuple(CHANCE.sample(names, count)) for count in (2, 3, 9) for _ in range(5)
    ]:
        keys = _grouping.Keys(WIDE.dtype, fields)
        for part in (rows, rows[::-1], rows[::7], rows[:0]):
            assert len(keys.number(part)) == len(part)
            assert keys.known(part).all()
            assert sum(int(keys.partition(part, index, 3).sum()) for index in range(3)) == len(part)
        keys.clear()
        assert not keys.known(rows).any()
    keys = _grouping.Keys(WIDE.dtype, ("i1",))
    with refused(TypeError):
        keys.number(np.zeros(3, SMALL.dtype))
    with refused(ValueError):
        keys.partition(rows, 3, 3)
    for fields in ((), ("f4",), ("levels",), ("nothing",)):
        with refused(ValueError):
            _grouping.Keys(WIDE.dtype, fields)
    with open_writer() as writer:
        address = f"{BUS}/wide"
        readers: list[Subscriber] = [
            Delayed(address, 1e-6),
            Delayed(address, 3600, rows=20),
            Delayed(address, 1e-6, last=("u1", "text")),
            Delayed(address, 1e-6, reduce=Reduction("truth", i1="sum", f4=("min", "max", "sum"), grid="last")),
            Filtered(RealTime(address), key={"u4": [3], "text": [b"seven"]}, partition=(0, 2), by="i8"),
            Filtered(RealTime(address), where=lambda rows: rows["u8"] % 2 == 1),
        ]
        rows = np.zeros(40, WIDE.payload_dtype)
        rows["u8"] = np.arange(40)
        for _ in range(20):  # the ring goes round, and some are lapped
            writer["wide"].publish_batch(rows)
            for reader in CHANCE.sample(readers, 4):
                batch = reader.take(0.001)
                if batch is not None and batch.valid:
                    batch.rows["sequence"].sum()
        for reader in readers:
            reader.close()


def keep_positions() -> None:
    with open_writer() as writer:
        address, rows = f"{BUS}/wide", np.zeros(5, WIDE.payload_dtype)
        for _ in range(2):  # the second time they go on
            readers = [
                Resumable(address, "often", start=1, every=1e-4),
                Resumable(address, "seldom", start=1, every=3600, every_rows=7),
                Resumable(address, "state", start=1, every=1e-4, state=bytes),
            ]
            for turn in range(20):
                writer["wide"].publish_batch(rows)
                for reader in readers:
                    while reader.poll() is not None:
                        pass
                    if reader.name == "state":
                        reader.commit(CHANCE.randbytes(300 * turn))
                time.sleep(0.003)
            for reader in readers:
                reader.sync(60)
                reader.close()
        reader = Resumable(address, "seldom", every=0.01)
        file = SlotFile.replace(FOLDER / "no position", b"x" * 5000)
        assert file.writer is not None
        segment, kept = attach(address).data.memory, _slots.KeptPosition()
        with refused(ValueError):
            kept.keep(file.writer, b"short", segment, 0, 0)
        with refused(BufferError):
            kept.keep(file.writer, b"x" * 40, memoryview(bytes(16))[::2], 0, 0)
        os.close(file.descriptor)
        kept.move_to(1)
        with refused(OSError):
            kept.keep(file.writer, b"x" * 40, segment, 0, 0)
        reader.close()


for part in (
    publish_in_every_way,
    follow_and_lead,
    group_and_filter,
    keep_positions,
    read_in_every_way,
    hold_the_writer_back,
    die_and_take_over,
    publish_through_lanes,
    drain_beside_a_hostile_table,
    read_from_another_process,
    damage_a_log,
    call_the_log_by_hand,
    attach_to_garbage,
    write_beside_hostile_readers,
):
    started = time.monotonic()
    part()
    print(f"{part.__name__}: {time.monotonic() - started:.1f} s", flush=True)
