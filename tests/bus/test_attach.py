"""Attaching to a topic by its name: what a process learns, what it is refused, and what it cannot do to the others."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ringmain.bus import AttachError, NotFound, RingFull, Writer, _segment, attach
from ringmain.bus.observing import Observer, schema_facts
from ringmain.bus.segments import Segment, open_control
from ringmain.storage import QUOTES, Schema
from ringmain.storage.log_files import list_files
from ringmain.subscribers import Historical, RealTime
from support.children import TIMEOUT_S, Child, Children, read_now
from support.logs import FILE_BYTES, PAIRS, make_rows, wait_until

SHM = Path("/dev/shm")
NOBODY = 65534
HEADER_BYTES = _segment.DATA_HEADER_BYTES
READERS_AT, ENTRY_BYTES = 4096, 256

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def children() -> Iterator[Children]:
    with Children() as children:
        yield children


def publish(writer: Writer, count: int) -> int:
    """Publish the next records; their content follows from their sequence. Returns the last sequence."""
    topic = writer["pairs"]
    return topic.publish_batch(make_rows(PAIRS, topic.watermarks.published + 1, count))


def replace(bus: str, suffix: str, data: bytes) -> None:
    """Put a forged segment in the place of the real one; whoever has that mapped keeps it."""
    forged = SHM / f"ringmain.{bus}-forged"
    forged.write_bytes(data)
    forged.rename(SHM / f"ringmain.{bus}{suffix}")


def content(bus: str, suffix: str) -> bytes:
    return (SHM / f"ringmain.{bus}{suffix}").read_bytes()


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


# --- by the name alone ------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_an_attaching_process_learns_the_schema_from_the_name_only(bus_name, tmp_path, children):
    schema = Schema(
        "fills",
        {"account": "u4", "price": "i8", "levels": "(2,3)f4", "venue": "S7", "firm": "?"},
        key=("account", "venue"),
        units={"price": "1/10000 CNY"},
        description="what was filled — ÄÖ",
    )
    child = children.start()
    child.run(
        "writer = Writer(bus, [schema, *more], data_dir=data_dir, slots=256)\n"
        "writer['fills'].publish(7, -5, [[1, 2, 3], [4, 5, 6]], b'SSE', True)",
        bus=bus_name,
        schema=schema,
        more=[QUOTES],
        data_dir=tmp_path,
    )
    found = attach(f"{bus_name}/fills")
    assert found.schema == schema
    assert found.schema.to_json() == schema.to_json()
    assert found.schema.dtype == schema.dtype
    assert (found.bus, found.topic, found.log_directory) == (bus_name, "fills", tmp_path / "log")
    assert (found.header["slot_count"], found.header["pid"], found.header["epoch"]) == (256, child.pid, 1)
    assert attach(f"{bus_name}/quotes").schema == QUOTES
    with Historical(f"{bus_name}/fills") as reader:
        (row,) = [row for batch in reader for row in batch.copy()]
    assert row["levels"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert (row["account"], row["price"], row["venue"], row["firm"]) == (7, -5, b"SSE", True)


def test_what_is_not_there_is_not_found_and_the_error_says_what_to_do(bus_name):
    with pytest.raises(NotFound, match=f"no topic '{bus_name}/pairs' is open.*start its writer"):
        attach(f"{bus_name}/pairs")
    with Writer(bus_name, [PAIRS]):
        attach(f"{bus_name}/pairs")
        with pytest.raises(NotFound, match=f"'{bus_name}/pears'"):
            attach(f"{bus_name}/pears")
        with pytest.raises(NotFound):
            attach(f"{bus_name}-b/pairs")
    for reader in (RealTime, Historical):
        with pytest.raises(NotFound):
            reader(f"{bus_name}/pairs")


@pytest.mark.parametrize(
    "address", ["", "bus", "bus/", "/topic", "Bus/topic", "bus/Topic", "bus/a/b", "bus/a.ctl", "../x/y"]
)
def test_what_is_no_address_is_refused_with_an_example(address):
    with pytest.raises(ValueError, match="BUS/TOPIC is expected, such as exchange/trades"):
        attach(address)


@pytest.mark.process
def test_a_subscriber_may_wait_for_its_topic_to_be_opened(bus_name, children):
    child = children.start()
    child.begin(
        "reader = RealTime(f'{bus}/pairs', start='earliest', open_timeout=30); batch = reader.take(30)", bus=bus_name
    )
    wait_until(child.is_blocked, TIMEOUT_S)
    with Writer(bus_name, [PAIRS]) as writer:
        publish(writer, 1)
        assert child.ask("batch.first") == 1


# --- segments that cannot be used -------------------------------------------------------------------------------------

# What is forged, and what the error must name. Offsets are layout.hpp's.
FORGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "empty; its writer is starting, or died"),
    "one byte": (lambda data: data[:1], "1 bytes are too few"),
    "cut in its header": (lambda data: data[: HEADER_BYTES - 1], "8191 bytes are too few"),
    "cut behind its header": (lambda data: data[:HEADER_BYTES], "sizes contradict each other .*8192 mapped"),
    "cut in its last slot": (lambda data: data[:-1], "sizes contradict each other"),
    "zeros": (lambda data: bytes(len(data)), r"begins with b'\\x00.*not made by ringmain"),
    "a text": (lambda data: (b"Lorem ipsum dolor " * 9999)[: len(data)], "begins with b'Lorem ip'"),
    "magic of a control segment": (
        lambda data: patched(data, 0, b"RMAINCTL"),
        "begins with b'RMAINCTL', expected b'RMAINRNG'",
    ),
    "newer version": (lambda data: patched(data, 8, u32(2)), "format version 2, this release knows 1"),
    "version 0": (lambda data: patched(data, 8, u32(0)), "format version 0"),
    "byte order": (lambda data: patched(data, 12, u32(0x04030201)), "another byte order"),
    "schema hash": (lambda data: patched(data, 16, u64(1)), "schema does not match its header"),
    "schema bytes": (lambda data: patched(data, 24, u32(0xFFFFFFFF)), "sizes contradict"),
    "row bytes 0": (lambda data: patched(data, 28, u32(0)), "sizes contradict .*of 0 bytes"),
    "row bytes 16": (lambda data: patched(data, 28, u32(16)), "sizes contradict"),
    "row bytes 25": (lambda data: patched(data, 28, u32(25)), "sizes contradict"),
    "row bytes, many": (lambda data: patched(data, 28, u32(0xFFFFFFF8)), "sizes contradict"),
    "slot count 0": (lambda data: patched(data, 32, u64(0)), "sizes contradict .*0 slots"),
    "slot count 7": (lambda data: patched(data, 32, u64(7)), "sizes contradict .*7 slots"),
    "slot count, many": (lambda data: patched(data, 32, u64(1 << 63)), "sizes contradict"),
    "slots that wrap to nothing": (lambda data: patched(data, 32, u64(1 << 61)), "sizes contradict"),
    "slots offset 0": (lambda data: patched(data, 40, u64(0)), "sizes contradict .*from 0 on"),
    "slots offset far away": (lambda data: patched(data, 40, u64(1 << 62)), "sizes contradict"),
    "segment bytes": (lambda data: patched(data, 48, u64(1 << 40)), "sizes contradict"),
    "bus": (lambda data: patched(data, 88, b"other\0"), "made for other/pairs"),
    "bus without an end": (lambda data: patched(data, 88, b"\xff" * 64), "made for .*/pairs"),
    "topic": (lambda data: patched(data, 152, b"other\0"), "made for .*/other"),
    "not ready": (lambda data: patched(data, 1240, u32(0)), "not ready; its writer is starting, or died"),
}


@pytest.mark.parametrize(("forge", "text"), FORGED.values(), ids=FORGED.keys())
def test_a_segment_that_cannot_be_used_is_refused_and_the_error_names_it_and_what_is_wrong(bus_name, forge, text):
    with Writer(bus_name, [PAIRS], slots=8) as writer:
        publish(writer, 3)
        replace(bus_name, ".pairs", forge(content(bus_name, ".pairs")))
        with pytest.raises(AttachError, match=rf"(?s)^segment /ringmain\.{bus_name}\.pairs: .*{text}"):
            attach(f"{bus_name}/pairs")
        (seen,) = Observer().look(bus_name).buses[0].topics
        assert f"ringmain.{bus_name}.pairs" in seen.problem or seen.schema == schema_facts(PAIRS)
        assert publish(writer, 3) == 6


def forge_schema(change: Callable[[bytes], bytes], data: bytes) -> bytes:
    """A data segment with another schema text, and a header that says how long it is."""
    length = int.from_bytes(data[24:28], "little")
    text = change(data[HEADER_BYTES : HEADER_BYTES + length])
    assert len(text) <= 4096
    return patched(patched(data, HEADER_BYTES, text), 24, u32(len(text)))


SCHEMAS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda text: b"",
    "cut": lambda text: text[:-1],
    "longer": lambda text: text + b" x",
    "not UTF-8": lambda text: text.replace(b"left", b"\xff\xfe\x80t"),
    "not JSON": lambda text: b"schema",
    "another document": lambda text: b'{"a": [1, 2]}',
    "nested deeply": lambda text: b"[" * 4000,
    "an unknown type": lambda text: text.replace(b"i8", b"i9"),
    "another type": lambda text: text.replace(b"i8", b"u8"),
    "wider rows": lambda text: text.replace(b"i8", b"9i8"),
    "rows beyond all bounds": lambda text: text.replace(b'"i8"', b'"(99999,99999)i8"'),
}


@pytest.mark.parametrize("change", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_schema_that_cannot_be_read_is_an_attach_error(bus_name, change):
    with Writer(bus_name, [PAIRS], slots=8):
        replace(bus_name, ".pairs", forge_schema(change, content(bus_name, ".pairs")))
        with pytest.raises(AttachError, match=rf"^segment /ringmain\.{bus_name}\.pairs: .*(schema|sizes)"):
            attach(f"{bus_name}/pairs")
        Observer().look(bus_name)


CONTROLS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "empty"),
    "cut": (lambda data: data[:-1], "bytes are too few"),
    "zeros": (lambda data: bytes(len(data)), "not made by ringmain"),
    "magic of a data segment": (
        lambda data: patched(data, 0, b"RMAINRNG"),
        "begins with b'RMAINRNG', expected b'RMAINCTL'",
    ),
    "newer version": (lambda data: patched(data, 8, u32(9)), "format version 9, this release knows 1"),
    "not ready": (lambda data: patched(data, 16, u32(0)), "not ready"),
}


@pytest.mark.parametrize(("forge", "text"), CONTROLS.values(), ids=CONTROLS.keys())
def test_a_control_segment_that_cannot_be_used_is_refused_too(bus_name, forge, text):
    with Writer(bus_name, [PAIRS], slots=8) as writer:
        replace(bus_name, ".pairs.ctl", forge(content(bus_name, ".pairs.ctl")))
        with pytest.raises(AttachError, match=rf"^segment /ringmain\.{bus_name}\.pairs\.ctl: .*{text}"):
            attach(f"{bus_name}/pairs")
        (seen,) = Observer().look(bus_name).buses[0].topics
        assert f"ringmain.{bus_name}.pairs.ctl" in seen.problem
        assert publish(writer, 20) == 20


def test_a_topic_without_its_control_segment_is_not_found(bus_name):
    with Writer(bus_name, [PAIRS]):
        (SHM / f"ringmain.{bus_name}.pairs.ctl").unlink()
        with pytest.raises(NotFound):
            attach(f"{bus_name}/pairs")


@pytest.mark.process
def test_whatever_bytes_a_segment_holds_attaching_and_reading_ends_in_an_error_or_in_rows(bus_name, children):
    child = children.start()
    child.run(FUZZ)
    with Writer(bus_name, [PAIRS], slots=8) as writer:
        publish(writer, 20)
        outcome: Counter[str] = Counter()
        child.run("", bus=bus_name, whole=content(bus_name, ".pairs"))
        for seed in range(5):
            outcome += child.ask(f"fuzz(bus, whole, 400, {seed})")
    assert outcome["read"] > 200
    assert outcome["AttachError"] > 200


def test_inspect_shows_a_topic_whatever_number_its_log_failed_with(bus_name):
    with Writer(bus_name, [PAIRS], slots=8):
        replace(bus_name, ".pairs", patched(content(bus_name, ".pairs"), 2308, u32(0xFFFFFFFF)))
        (seen,) = Observer().look(bus_name).buses[0].topics
        assert seen.log_error


# In a child, since a mistake here ends the process. Every field of the header, the schema's text and the watermarks get
# numbers from the edge of what they may be, and anything else.
FUZZ = """if True:
    import collections, random
    from pathlib import Path
    from ringmain.storage import StorageError
    from ringmain.bus.observing import Observer
    EDGES = [0, 1, 7, 8, 24, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 61, 1 << 63, (1 << 64) - 1]
    def damage(whole, choice):
        data = bytearray(whole)
        for _ in range(choice.randint(1, 3)):
            at, length = choice.choice([
                (choice.randrange(0, 88, 4), choice.choice([1, 4, 8])),           # numbers
                (choice.randrange(88, 1248), choice.choice([1, 4, 8])),           # texts, ready
                (1280 + 128 * choice.randrange(10), choice.choice([1, 4])),       # watermarks, status, heartbeat
                (1280 + 128 * choice.randrange(8), 8),
                (8192 + choice.randrange(int.from_bytes(whole[24:28], "little")), 1),  # schema
            ])
            value = choice.choice([choice.choice(EDGES), choice.getrandbits(64)])
            data[at : at + length] = value.to_bytes(8, "little")[:length]
        return data
    def fuzz(bus, whole, count, seed):
        choice, outcome = random.Random(seed), collections.Counter()
        path, forged = Path(f"/dev/shm/ringmain.{bus}.pairs"), Path(f"/dev/shm/ringmain.{bus}-forged")
        for turn in range(count):
            forged.write_bytes(damage(whole, choice))
            forged.rename(path)
            try:
                Observer().look(bus)
                with RealTime(f"{bus}/pairs", start=choice.choice(["latest", 1, 15, 1 << 40])) as reader:
                    for _ in range(20):
                        batch = reader.poll()
                        if batch is not None:
                            batch.rows["left"].sum()
                            batch.valid
                outcome["read"] += 1
            except (BusError, StorageError, OSError) as error:  # OSError: a log directory that is not there
                outcome[type(error).__name__] += 1
        return outcome
"""


IN_THE_WAY = [(suffix, size) for suffix in ("", ".pairs", ".pairs.ctl", ".pairs.new") for size in (0, 10, 9000)]


@pytest.mark.parametrize(("suffix", "size"), IN_THE_WAY)
def test_what_is_in_the_way_of_a_writer_and_nobodys_is_replaced(bus_name, suffix, size):
    (SHM / f"ringmain.{bus_name}{suffix}").write_bytes(b"\xa5" * size)
    with Writer(bus_name, [PAIRS]) as writer:
        assert publish(writer, 10) == 10
        with Historical(f"{bus_name}/pairs") as reader:
            assert read_now(reader) == list(range(1, 11))
    assert list(SHM.glob(f"ringmain.{bus_name}*")) == []


# --- who may attach ---------------------------------------------------------------------------------------------------


def modes(bus: str) -> list[str]:
    """The permissions of a bus's own segment, its ring, and its reader table."""
    paths = [SHM / f"ringmain.{bus}{suffix}" for suffix in ("", ".pairs", ".pairs.ctl")]
    return [oct(stat.S_IMODE(path.stat().st_mode)) for path in paths]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_the_user_may_open_the_segments_unless_the_group_is_let_in(bus_name, umask):
    before = os.umask(umask)
    try:
        with Writer(bus_name, [PAIRS]):
            assert modes(bus_name) == ["0o600", "0o600", "0o600"]
        with Writer(bus_name, [PAIRS], group_readable=True):
            assert modes(bus_name) == ["0o640", "0o640", "0o660"]  # readers enter themselves in the last
    finally:
        os.umask(before)


@pytest.mark.process
def test_a_new_writer_decides_anew_who_may_attach_and_read_the_log(bus_name, tmp_path, children):
    given = {"bus": bus_name, "data_dir": str(tmp_path), "file_bytes": FILE_BYTES}
    for files, (group_readable, expected) in enumerate(((True, ["0o640", "0o660"]), (False, ["0o600", "0o600"])), 1):
        child = children.start()
        opening = "writer = Writer(bus, [PAIRS], data_dir=data_dir, log_file_bytes=file_bytes, group_readable=group)"
        child.run(opening, **given, group=group_readable)
        assert modes(bus_name)[1:] == expected
        logged = [oct(stat.S_IMODE(path.stat().st_mode)) for _, path in list_files(tmp_path / "log")]
        assert logged == files * expected[:1]  # those of the writer before, too
        child.kill()


def become(child: Child, groups: list[int]) -> None:
    """Turn a child into a process of the user nobody. Everything it may need has been imported by then."""
    child.run("from ringmain.bus.observing import Observer; from ringmain.bus import attach; attach(f'{bus}/pairs')")
    child.run("os.setgroups(groups); os.setgid(nobody); os.setuid(nobody)", groups=groups, nobody=NOBODY)
    assert child.ask("(os.getuid(), os.geteuid(), os.getgid())") == (NOBODY, NOBODY, NOBODY)


@as_root
@pytest.mark.process
def test_another_user_cannot_attach(bus_name, children):
    with Writer(bus_name, [PAIRS], slots=64) as writer:
        publish(writer, 10)
        child = children.start()
        child.run("", bus=bus_name)
        become(child, groups=[])
        for call in ("attach(f'{bus}/pairs')", "RealTime(f'{bus}/pairs')", "Historical(f'{bus}/pairs')"):
            with pytest.raises(
                AttachError, match=r"permission denied; it belongs to another user.*group_readable=True"
            ):
                child.run(call)
        for take_over in (False, True):
            with pytest.raises(AttachError, match="permission denied"):
                child.run("Writer(bus, [PAIRS], take_over=take_over)", take_over=take_over)
        for suffix in ("", ".pairs", ".pairs.ctl"):
            for mode in ("rb", "r+b"):
                with pytest.raises(PermissionError):
                    child.run(f"open(f'/dev/shm/ringmain.{{bus}}{suffix}', '{mode}')")
            with pytest.raises(PermissionError):
                child.run(f"os.unlink(f'/dev/shm/ringmain.{{bus}}{suffix}')")
        assert "permission denied" in child.ask("Observer().look(bus).buses[0].topics[0].problem")
        assert publish(writer, 10) == 20
        assert attach(f"{bus_name}/pairs").watermarks().published == 20


@as_root
@pytest.mark.process
def test_another_user_of_the_group_can_attach_and_read_when_the_group_is_let_in_but_not_write(bus_name, children):
    with Writer(bus_name, [PAIRS], slots=64, group_readable=True, full="raise") as writer:
        publish(writer, 10)
        child = children.start()
        child.run("", bus=bus_name)
        become(child, groups=[os.getegid()])
        child.run("reader = RealTime(f'{bus}/pairs', start='earliest', reliable=True)")
        assert child.ask("read_now(reader)") == list(range(1, 11))
        publish(writer, 64)
        with pytest.raises(RingFull, match=f"pid {child.pid}"):
            publish(writer, 1)
        child.run("reader.close()")
        assert publish(writer, 1) == 75
        for suffix in ("", ".pairs"):
            with pytest.raises(PermissionError):
                child.run(f"open(f'/dev/shm/ringmain.{{bus}}{suffix}', 'r+b')")


@as_root
@pytest.mark.process
def test_another_user_who_was_there_first_is_said_to_be_in_the_way(bus_name, children):
    path = SHM / f"ringmain.{bus_name}.pairs"
    path.write_bytes(b"x" * 100)
    os.chown(path, NOBODY, NOBODY)
    child = children.start()
    child.run("os.setgroups([]); os.setgid(1); os.setuid(1)")
    with pytest.raises(AttachError, match="belongs to another user and is in the way; choose another bus name"):
        child.run("Writer(bus, [PAIRS])", bus=bus_name)
    assert path.read_bytes() == b"x" * 100


# --- what a subscriber can do -----------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize(
    "address", ["batch.rows.ctypes.data", "np.frombuffer(found.data.memory, 'u1').ctypes.data"], ids=["rows", "header"]
)
def test_a_subscriber_that_writes_into_the_data_segment_gets_a_fault(bus_name, children, address):
    with Writer(bus_name, [PAIRS]) as writer:
        publish(writer, 10)
        before = content(bus_name, ".pairs")[HEADER_BYTES:]
        child = children.start()
        child.run(
            "import ctypes; found = attach(f'{bus}/pairs')\n"
            "reader = RealTime(f'{bus}/pairs', start='earliest'); batch = reader.poll()",
            bus=bus_name,
        )
        assert child.ask(f"ctypes.string_at({address}, 1)") is not None
        child.begin(f"ctypes.memset({address}, 0x55, 8)")
        with pytest.raises(ChildProcessError):
            child.settle()
        assert child.process.wait(TIMEOUT_S) == -signal.SIGSEGV
        assert content(bus_name, ".pairs")[HEADER_BYTES:] == before
        assert publish(writer, 1) == 11


@pytest.mark.process
def test_a_subscriber_cannot_make_its_view_writable(bus_name, children):
    with Writer(bus_name, [PAIRS]) as writer:
        publish(writer, 10)
        child = children.start()
        child.run(
            "import ctypes, mmap; found = attach(f'{bus}/pairs')\n"
            "reader = RealTime(f'{bus}/pairs', start='earliest'); batch = reader.poll()",
            bus=bus_name,
        )
        with pytest.raises(ValueError, match="read-only"):
            child.run("batch.rows['left'] = 1")
        with pytest.raises(ValueError, match="WRITEABLE"):
            child.run("batch.rows.flags.writeable = True")
        with pytest.raises(TypeError):
            child.run("found.data.memory[0] = 1")
        page = "np.frombuffer(found.data.memory, 'u1').ctypes.data"
        protect = f"ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p({page}), 4096, 3)"
        assert child.ask(f"({protect}, ctypes.get_errno())") == (-1, 13)  # EACCES: the object was opened for reading


# --- garbage in the reader table --------------------------------------------------------------------------------------


def scribble(control: Segment, choice: np.random.Generator) -> None:
    """Overwrite what readers may write: attention words, doorbells and the reader table."""
    memory = np.frombuffer(control.memory, "u1")
    memory[128:READERS_AT] = choice.integers(0, 256, READERS_AT - 128)
    count = len(memory) - READERS_AT
    memory[READERS_AT:] = choice.integers(0, 256, count)
    owners = np.frombuffer(control.memory, "u8")[READERS_AT // 8 :: ENTRY_BYTES // 8]
    states = choice.integers(0, 6, len(owners)).astype("u8")
    pids = choice.choice([0, 1, os.getpid(), 1 << 22, (1 << 31) - 1, 1 << 31, (1 << 32) - 1], len(owners)).astype("u8")
    owners[:] = pids << np.uint64(32) | states


def wipe(control: Segment) -> None:
    np.frombuffer(control.memory, "u1")[READERS_AT:] = 0
    np.frombuffer(control.memory, "u4")[33] = 1  # the reader table has changed


@pytest.mark.process
@pytest.mark.parametrize("full", ["block", "raise", "drop"])
def test_garbage_in_the_reader_table_crashes_neither_writer_nor_reader_nor_inspect(bus_name, tmp_path, children, full):
    writer, reader = children.start(), children.start()
    writer.run(
        "writer = Writer(bus, [PAIRS], slots=64, full=full, full_timeout=0, data_dir=data_dir); topic = writer['pairs']\n"
        "def publish(count):\n"
        "    published = topic.watermarks.published\n"
        "    try: topic.publish_batch(make_rows(PAIRS, published + 1, count))\n"
        "    except RingFull as full: str(full)\n",
        bus=bus_name,
        full=full,
        data_dir=tmp_path,
    )
    reader.run("reader = RealTime(f'{bus}/pairs', start='earliest')", bus=bus_name)
    control = open_control(bus_name, "pairs")
    choice = np.random.default_rng(20240229)
    found: list[int] = []
    for _ in range(30):
        scribble(control, choice)
        writer.run("publish(16)")
        scribble(control, choice)
        found += reader.ask("read_now(reader)")
        seen = Observer().look(bus_name).buses[0].topics[0]
        assert seen.problem == ""
        assert len(seen.readers) > 100
    scribble(control, choice)
    printed = subprocess.run(
        [sys.executable, "-m", "ringmain.tools", "inspect", f"{bus_name}/pairs", "--interval", "0", "--json"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr

    wipe(control)
    published = writer.ask("topic.watermarks.published")
    assert writer.ask(f"topic.publish_batch(make_rows(PAIRS, {published + 1}, 32))") == published + 32
    writer.run("topic.wait(topic.watermarks.published, timeout=30)")
    found += reader.ask("read_now(reader)")
    assert found == list(range(1, published + 33))
    assert reader.ask("reader.stats.lost_count") == 0
    writer.run("writer.close()")
    reader.run("reader.close()")
    assert list(SHM.glob(f"ringmain.{bus_name}*")) == []


@pytest.mark.process
def test_a_new_writer_opens_over_a_reader_table_of_garbage(bus_name, children):
    child = children.start()
    child.run(
        "writer = Writer(bus, [PAIRS], slots=64)\nwriter['pairs'].publish_batch(make_rows(PAIRS, 1, 10))", bus=bus_name
    )
    child.kill()
    scribble(open_control(bus_name, "pairs"), np.random.default_rng(7))
    with Writer(bus_name, [PAIRS], slots=64) as writer:
        assert writer["pairs"].watermarks.published == 10
        pids = {entry["pid"] for entry in _segment.list_readers(open_control(bus_name, "pairs").memory)}
        assert pids <= {1, os.getpid()}  # what claims to belong to the dead was freed


def test_more_readers_than_the_table_holds_are_refused_and_a_place_given_back_is_taken_again(bus_name):
    with Writer(bus_name, [PAIRS], slots=64) as writer:
        readers = [RealTime(f"{bus_name}/pairs") for _ in range(_segment.READERS_MAX)]
        with pytest.raises(AttachError, match="all 1024 entries of the reader table are taken"):
            RealTime(f"{bus_name}/pairs")
        assert publish(writer, 1000) == 1000
        readers.pop().close()
        with RealTime(f"{bus_name}/pairs", start="earliest") as reader:
            assert len(read_now(reader)) > 0
        for reader in readers:
            reader.close()
        assert _segment.list_readers(open_control(bus_name, "pairs").memory) == []
