"""A disk that is full or failing: the log stops, says why and where, and loses nothing that it acknowledged."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from ringmain.storage import Log, LogFailed, StorageError
from ringmain.storage import log as log_module
from ringmain.storage.files import write_around_cache, write_at
from ringmain.storage.log_files import list_files, open_file
from ringmain.storage.recovery import Contents, examine, newest_durable
from support.logs import FILE_BYTES, PAIRS, POINTS, Builder, append, check_rows, read_rows
from support.power_cut import Content, Cut, Disk, Start, read_journal
from support.preload import build_preload
from support.small_disk import mounted

SUPPORT = Path(__file__).parents[1] / "support"
ROWS = 5000  # a step's worth: 200 kB, so that a file takes some fifteen steps


class Outcome(msgspec.Struct):
    """What the child saw: how far it got, what stopped it, and what happened when it tried again."""

    durable: int = 0
    appended: int = 0
    error: str = ""
    path: str = ""
    operation: str = ""
    errno: int = 0
    again: list[str] = []
    trace_at_failure: int = 0
    durable_position_moved: bool = False


CHILD = """if True:
    import json, sys
    from ringmain.storage import Log, LogFailed
    from support.logs import FILE_BYTES, POINTS, append, make_rows
    directory, steps, rows, trace, mapped = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "mapped"
    seen = {"durable": 0, "appended": 0, "again": []}
    log = None
    try:
        log = Log(directory, [POINTS], bus="test", file_bytes=FILE_BYTES, map_small_groups=mapped)
        for _ in range(steps):
            seen["appended"] = append(log, POINTS, rows)
            log.appender.sync()
            seen["durable"] = seen["appended"]
    except (LogFailed, OSError) as error:
        seen["error"] = str(error)
        seen["path"] = error.path if isinstance(error, LogFailed) else error.filename
        seen["operation"] = getattr(error, "operation", "")
        seen["errno"] = error.errno
        if log is not None:
            with open(trace) as lines:
                seen["trace_at_failure"] = len(lines.readlines())
            durable = log.appender.durable_position
            one = make_rows(POINTS, log.appender.next_sequence(0), 1)
            for again in (
                log.appender.sync,
                lambda: append(log, POINTS, 1),
                lambda: log.appender.append_one(0, one),
                log.appender.make_room,
                log.appender.mark,
                log.appender.finish,
            ):
                try:
                    again()
                    seen["again"].append("")
                except LogFailed as repeated:
                    seen["again"].append(str(repeated))
            seen["durable_position_moved"] = log.appender.durable_position != durable
    if log is not None:
        log.close()
    print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def faulty_disk(tmp_path_factory) -> Path:
    """The library that makes calls fail, compiled."""
    return build_preload("faulty_disk", tmp_path_factory.mktemp("faulty"))


class Run:
    """A child that writes to a log on a disk that fails."""

    def __init__(self, library: Path, directory: Path) -> None:
        self.library, self.directory = library, directory / "the-log"
        self.trace_path = directory / "trace"

    def __call__(
        self, call: str, path: str, nth: int, error: int, steps: int = 40, rows: int = ROWS, *, mapped: bool = False
    ) -> Outcome:
        arguments = [str(steps), str(rows), str(self.trace_path), "mapped" if mapped else ""]
        return msgspec.json.decode(self.child(CHILD, call, path, nth, error, *arguments), type=Outcome)

    def child(self, code: str, call: str, path: str, nth: int, error: int, *arguments: str, **more: str) -> bytes:
        """Run code on this disk, with the log's directory as its first argument; returns what it prints."""
        self.trace_path.write_text("")
        environment = {
            **os.environ, "LD_PRELOAD": str(self.library), "FAULTY_CALL": call, "FAULTY_PATH": path, "FAULTY_NTH": str(nth),
            "FAULTY_ERRNO": str(error), "FAULTY_TRACE": str(self.trace_path), "PYTHONPATH": str(SUPPORT.parent),
            **more,
        }  # fmt: skip
        command = [sys.executable, "-c", code, str(self.directory), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    @property
    def trace(self) -> list[str]:
        return self.trace_path.read_text().splitlines()

    def reopen(self, outcome: Outcome) -> int:
        """Open the log on a sound disk: all that was durable is there, nothing is invented. Returns the last sequence."""
        contents = examine(self.directory)
        assert contents.problems == []
        rows = read_rows(self.directory, POINTS)
        check_rows(POINTS, rows, 1)
        assert outcome.durable <= len(rows)
        log = Log(self.directory, [POINTS], bus="test", file_bytes=FILE_BYTES)
        assert log.topic("points").next_sequence == len(rows) + 1
        assert append(log, POINTS, 3) == len(rows) + 3
        log.close()
        check_rows(POINTS, read_rows(self.directory, POINTS), 1)
        assert not list(self.directory.glob("spare-*"))
        return len(rows)


@pytest.fixture
def run(faulty_disk, tmp_path) -> Run:
    return Run(faulty_disk, tmp_path)


def assert_stopped(run: Run, outcome: Outcome, operation: str, name: str, error: int) -> None:
    assert outcome.error
    assert os.path.basename(outcome.path) == name
    assert outcome.operation.startswith(operation)
    assert outcome.errno == error
    assert os.strerror(error) in outcome.error
    assert name in outcome.error
    assert "stays readable" in outcome.error
    assert outcome.again == [outcome.error] * 6  # the same answer for ever
    assert not outcome.durable_position_moved
    tried = [
        line for line in run.trace[outcome.trace_at_failure :] if line.split()[0] in ("pwritev", "fdatasync", "rename")
    ]
    assert tried == []  # and nothing is tried again


@pytest.mark.process
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("nth", [1, 7, 30])
def test_a_failed_write_stops_the_log(run, nth, error):
    outcome = run("pwritev", ".log", nth, error)
    number = 1 if nth < 17 else 2
    assert_stopped(run, outcome, "write", f"{number:010d}.log", error)
    assert outcome.durable == (nth - 1) * ROWS
    assert run.reopen(outcome) == outcome.durable


@pytest.mark.process
@pytest.mark.parametrize("nth", [1, 7, 30])
def test_a_failed_sync_stops_the_log_and_is_never_tried_again(run, nth):
    outcome = run("fdatasync", ".log", nth, errno.EIO)
    assert_stopped(run, outcome, "sync", f"{1 if nth < 17 else 2:010d}.log", errno.EIO)
    assert outcome.durable < outcome.appended
    assert [line.split()[0] for line in run.trace].count("fdatasync") == nth
    run.reopen(outcome)


ENDING = """if True:
    import sys
    from ringmain.storage import Log, LogFailed
    from support.logs import FILE_BYTES, POINTS, append
    log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES)
    for _ in range(3):
        append(log, POINTS, 1000)
        log.appender.sync()
    append(log, POINTS, 60_000)
    try:
        log.close()
    except LogFailed as error:
        print(error)
"""
OPENING = """if True:
    import sys
    from ringmain.storage import Log, log
    from support.logs import FILE_BYTES, POINTS
    log.WRITE_AGAIN_BYTES = (1 << 20) + 4096  # so that it takes several turns
    log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES)
    print(log.recovered.record_count)
"""


def without_unsynced(start: Start, path: Path, scratch: Path) -> Start:
    """The same disk, but of this log file it holds only what the file knows to be on the disk. Memory has had the rest."""
    ((number, _),) = list_files(path.parent)
    file = open_file(path, number)
    durable_bytes = newest_durable(file, file.scan()[0]) - file.header.start_position
    scratch.write_bytes(file.data[:durable_bytes])
    os.truncate(scratch, len(file.data))
    files = {**start.files, path.stat().st_ino: Content.read_from(scratch)}
    return Start(start.root, start.directories, files, start.names)


@pytest.mark.process
@pytest.mark.parametrize("nth", [4, 5], ids=["rows", "close"])
def test_what_a_sync_failed_to_bring_to_the_disk_is_written_again_when_the_log_is_opened(
    run, tmp_path, monkeypatch, nth
):
    """Its pages are clean in memory: a sync alone writes none of them, and the next file would say that they are durable."""
    said = run.child(ENDING, "fdatasync", ".log", nth, errno.EIO).decode()
    assert "sync at byte" in said
    root, journal = tmp_path / "disk", tmp_path / "journal"
    root.mkdir()
    run.directory = run.directory.rename(root / "the-log")
    start = without_unsynced(Start.of(root), run.directory / "0000000001.log", tmp_path / "scratch")
    monkeypatch.setattr(run, "library", build_preload("recording_disk", tmp_path))
    places = {"RECORDED_ROOT": str(root), "RECORDED_JOURNAL": str(journal)}
    recovered = int(run.child(OPENING, "none", "the-log", 1, 0, **places))
    assert recovered == 63_000
    disk = Disk(start)
    for operation in read_journal(journal):
        disk.apply(operation)
    disk.write_image(tmp_path / "image", "the-log", Cut(names=0, contents=0), random.Random(0))
    contents = examine(tmp_path / "image" / "the-log")
    assert contents.problems == []
    assert contents.record_count == recovered


def open_ended(directory: Path) -> Path:
    """A log of 2000 rows whose writer was killed: the second half is not known to be on the disk. Returns its file."""
    builder = Builder(directory)
    builder.begin()
    builder.rows(POINTS, 1000)
    builder.sync()
    builder.rows(POINTS, 1000)
    os.truncate(builder.path, FILE_BYTES)
    return builder.path


@pytest.mark.parametrize("sync_files", [True, False])
def test_what_is_written_again_goes_to_the_disk_itself_and_changes_nothing(tmp_path, monkeypatch, sync_files):
    """Through memory ext4 writes it too, but not that the blocks, reserved and never written, are in use."""
    path = open_ended(tmp_path)
    before, (item,), written = path.read_bytes(), examine(tmp_path).files, []

    def note(descriptor: int, data: memoryview, offset: int) -> None:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        written.append((offset, offset + len(data)))
        write_at(descriptor, data, offset)

    with path.open("r+b") as file:
        write_around_cache(file.fileno(), True)
        if not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT:
            pytest.skip("the file system of the temporary folder cannot write past the page cache")
    monkeypatch.setattr(log_module, "write_at", note)
    Log(tmp_path, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES, sync_files=sync_files).close()
    page = 4096
    expected = [(item.durable_end // page * page, -(-item.end // page) * page)]
    assert written == (expected if sync_files else [])
    assert path.read_bytes()[: item.end] == before[: item.end]


def test_a_log_whose_end_memory_loses_while_it_is_opened_says_so_and_opens_without_it(tmp_path, monkeypatch):
    path = open_ended(tmp_path)

    def examine_and_lose(directory: Path, progress: object) -> Contents:
        contents = examine(directory)
        with path.open("r+b") as file:
            file.seek(contents.files[-1].durable_end)
            file.write(bytes(FILE_BYTES - file.tell()))
        return contents

    with monkeypatch.context() as patched:
        patched.setattr(log_module, "examine", examine_and_lose)
        with pytest.raises(StorageError, match=r"0000000001\.log: what was read at byte .* is gone"):
            Log(tmp_path, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES)
    log = Log(tmp_path, [POINTS, PAIRS], bus="test", file_bytes=FILE_BYTES)
    assert log.recovered.record_count == 1000
    log.close()
    assert examine(tmp_path).problems == []


@pytest.mark.process
@pytest.mark.parametrize("nth", [1, 7])
def test_a_short_write_is_carried_on_where_it_stopped(run, nth):
    outcome = run("pwritev", ".log", nth, 0)
    assert outcome.error == ""
    assert outcome.durable == 40 * ROWS
    assert run.reopen(outcome) == 40 * ROWS


@pytest.mark.process
@pytest.mark.parametrize("rows", [1, 60_000])
def test_a_short_write_of_small_and_of_many_groups(run, rows):
    outcome = run("pwritev", ".log", 2, 0, steps=3, rows=rows)
    assert outcome.error == ""
    assert run.reopen(outcome) == 3 * rows


@pytest.mark.process
def test_a_short_write_of_a_new_files_header_is_carried_on(run):
    outcome = run("pwrite", "spare-", 2, 0)
    assert outcome.error == ""
    assert run.reopen(outcome) == 40 * ROWS


@pytest.mark.process
@pytest.mark.parametrize(
    ("call", "path", "operation"),
    [
        ("pwrite", "spare-", "write"),
        ("fdatasync", "spare-", "sync"),
        ("rename", "0000000002.log", "rename"),
        ("fsync", "the-log", "sync of the directory"),
    ],
)
def test_a_file_that_cannot_be_begun_stops_the_log(run, call, path, operation):
    nth = 1 if call == "rename" else 2
    outcome = run(call, path, nth, errno.EIO)
    assert_stopped(run, outcome, operation, "0000000002.log", errno.EIO)
    assert outcome.durable > 0
    run.reopen(outcome)


@pytest.mark.process
@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "rename", "fsync"])
def test_a_first_file_that_cannot_be_begun_is_an_error_at_opening(run, call):
    outcome = run(call, {"rename": ".log", "fsync": "the-log"}.get(call, "spare-"), 1, errno.EIO, steps=1)
    assert outcome.errno == errno.EIO
    assert outcome.durable == outcome.appended == 0
    assert not list(run.directory.glob("spare-*"))
    run.reopen(outcome)


@pytest.mark.process
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_at_opening_is_an_error_that_says_so_and_leaves_nothing(run, error):
    outcome = run("fallocate", "spare-", 1, error, steps=1)
    assert outcome.errno == error
    assert os.strerror(error) in outcome.error
    assert [path.name for path in run.directory.iterdir()] == ["LOCK"]
    run.reopen(outcome)


@pytest.mark.process
def test_a_passing_lack_of_room_is_survived_as_long_as_a_spare_is_left(run):
    outcome = run("fallocate", "spare-", 4, errno.ENOSPC)
    assert outcome.error == ""
    assert run.reopen(outcome) == 40 * ROWS


# --- groups written through the map ------------------------------------------------------------------------------------------


def skip_unless_mapped(directory: Path) -> None:
    """Skip where the file system does not let the log write through a map."""
    log = Log(directory / "probe", [POINTS], file_bytes=FILE_BYTES, map_small_groups=True)
    mapped = log.appender.is_mapped
    log.close()
    if not mapped:
        pytest.skip("the file system of the temporary folder is none on which the log writes through a map")


@pytest.mark.process
def test_small_groups_need_no_write_call_where_they_are_mapped_and_large_ones_do(run, tmp_path):
    skip_unless_mapped(tmp_path)
    outcome = run("none", "the-log", 1, 0, steps=20, rows=100, mapped=True)
    assert outcome.error == ""
    assert [line for line in run.trace if line.split()[0] == "pwritev"] == []
    assert [line for line in run.trace if line.startswith("fdatasync") and line.endswith(".log")]
    assert run.reopen(outcome) == 2000
    outcome = run("none", "the-log", 1, 0, steps=3, rows=ROWS, mapped=True)
    assert len([line for line in run.trace if line.split()[0] == "pwritev"]) == 3


@pytest.mark.process
@pytest.mark.parametrize("nth", [1, 7])
def test_a_failed_sync_of_mapped_groups_stops_the_log(run, nth, tmp_path):
    skip_unless_mapped(tmp_path)
    outcome = run("fdatasync", ".log", nth, errno.EIO, rows=100, mapped=True)
    assert_stopped(run, outcome, "sync", "0000000001.log", errno.EIO)
    assert outcome.durable < outcome.appended
    run.reopen(outcome)


# --- a sync that fails in another thread ----------------------------------------------------------------------------------------

BEHIND = """if True:
    import json, sys, threading
    from ringmain.storage import Log, LogFailed
    from support.logs import FILE_BYTES, POINTS, append
    log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES)
    stop, seen = threading.Event(), {"durable": 0, "behind": "", "owner": ""}
    def behind():
        try:
            while not stop.is_set():
                appended = log.appender.next_sequence(0) - 1
                log.appender.sync_behind()
                seen["durable"] = appended
        except LogFailed as error:
            seen["behind"] = str(error)
            seen["durable_position"] = log.appender.durable_position
    thread = threading.Thread(target=behind)
    thread.start()
    try:
        while thread.is_alive():
            seen["appended"] = append(log, POINTS, 2000)
        seen["appended"] = append(log, POINTS, 1)
    except LogFailed as error:
        seen["owner"] = str(error)
    stop.set()
    thread.join()
    for again in (log.appender.sync, log.appender.sync_behind, log.appender.finish):
        try:
            again()
        except LogFailed as error:
            assert str(error) == seen["behind"]
        else:
            raise AssertionError("a failed log synced")
    assert log.appender.durable_position == seen["durable_position"] <= log.appender.position
    log.close()
    print(json.dumps(seen))
"""


@pytest.mark.process
@pytest.mark.parametrize("nth", [1, 5])
def test_a_failed_sync_behind_the_owner_stops_the_owner(run, nth):
    seen = json.loads(run.child(BEHIND, "fdatasync", ".log", nth, errno.EIO))
    assert "sync at byte" in seen["behind"]
    assert os.strerror(errno.EIO) in seen["behind"]
    assert seen["owner"] == seen["behind"]
    assert [line.split()[0] for line in run.trace if line.endswith(".log")].count(
        "fdatasync"
    ) == nth  # never tried again
    run.reopen(Outcome(durable=seen["durable"]))


ROTATING = """if True:
    import json, pathlib, sys, threading, time
    from ringmain.storage import Log, LogFailed
    from support.logs import FILE_BYTES, POINTS, append, make_rows, wait_until
    gate = pathlib.Path(sys.argv[2])
    log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES)
    append(log, POINTS, 5000)
    durable, seen = log.appender.durable_position, {"behind": "", "owner": ""}
    def noting(name, call):
        try:
            call()
        except LogFailed as error:
            seen[name] = str(error)
    def rotate():
        while log.appender.file_number == 1:
            log.appender.append(0, make_rows(POINTS, log.appender.next_sequence(0), 20_000))
    behind = threading.Thread(target=noting, args=("behind", log.appender.sync_behind))
    behind.start()
    wait_until(gate.with_name(gate.name + ".reached").exists)
    owner = threading.Thread(target=noting, args=("owner", rotate))
    owner.start()
    def is_stuck():
        asleep = 0
        while owner.is_alive() and asleep < 50:  # a hundredth of a second each
            state = pathlib.Path(f"/proc/self/task/{owner.native_id}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.01)
        return asleep > 0
    try:
        seen["waited"] = is_stuck()
        seen["file_number"] = log.appender.file_number
    finally:
        gate.touch()
    behind.join()
    owner.join()
    seen["appended"] = log.appender.next_sequence(0) - 1
    seen["durable_moved"] = log.appender.durable_position != durable
    log.close()
    print(json.dumps(seen))
"""


@pytest.mark.process
@pytest.mark.parametrize("error", [errno.EIO, 0])
def test_the_owner_begins_no_file_before_a_sync_under_way_has_told_how_it_ended(run, tmp_path, error):
    """The kernel reports a failed write-back once: the owner's own sync would succeed, and call lost bytes durable."""
    gate = tmp_path / "gate"
    seen = json.loads(run.child(ROTATING, "fdatasync", ".log", 1, error, str(gate), FAULTY_GATE=str(gate)))
    assert seen["waited"]
    assert seen["file_number"] == 1
    if error:
        assert "sync at byte" in seen["behind"]
        assert seen["owner"] == seen["behind"]
        assert not seen["durable_moved"]
        assert not (run.directory / "0000000002.log").exists()
    else:
        assert (seen["behind"], seen["owner"]) == ("", "")
        assert seen["durable_moved"]
        assert run.reopen(Outcome()) == seen["appended"]


@pytest.mark.process
@pytest.mark.parametrize("mapped", ["", "mapped"])
def test_a_sync_does_not_call_durable_what_was_appended_while_it_was_under_way(run, tmp_path, mapped):
    code = """if True:
        import json, pathlib, sys, threading
        from ringmain.storage import Log
        from support.logs import FILE_BYTES, POINTS, append, wait_until
        gate = pathlib.Path(sys.argv[2])
        log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES, map_small_groups=bool(sys.argv[3]))
        append(log, POINTS, 100)
        thread = threading.Thread(target=log.appender.sync_behind)
        thread.start()
        wait_until(gate.with_name(gate.name + ".reached").exists)
        asked = log.appender.position
        append(log, POINTS, 100)
        gate.touch()
        thread.join()
        print(json.dumps([asked, log.appender.durable_position, log.appender.position]))
        log.close()
    """
    gate = tmp_path / "gate"
    asked, durable, position = json.loads(
        run.child(code, "fdatasync", ".log", 1, 0, str(gate), mapped, FAULTY_GATE=str(gate))
    )
    assert asked == durable < position


@pytest.mark.process
def test_a_file_is_synced_before_its_successor_gets_its_name_whoever_syncs(run):
    code = """if True:
        import sys, threading
        from ringmain.storage import Log
        from support.logs import FILE_BYTES, POINTS, append
        log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES)
        stop = threading.Event()
        def behind():
            while not stop.is_set():
                log.appender.sync_behind()
        thread = threading.Thread(target=behind)
        thread.start()
        while log.appender.file_number < 6:
            append(log, POINTS, 3000)
        stop.set()
        thread.join()
        log.close()
    """
    run.child(code, "none", "the-log", 1, 0)
    calls = [(line.split()[0], os.path.basename(line.split()[1])) for line in run.trace]
    for number in range(2, 7):
        before = calls[: calls.index(("rename", f"{number:010d}.log"))]
        mine = [call for call, name in before if name == f"{number - 1:010d}.log" and call in ("pwritev", "fdatasync")]
        assert "pwritev" in mine
        assert mine[-1] == "fdatasync"


# --- a disk that is really full -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 18 MiB."""
    with mounted(tmp_path / "small", "18m") as place:
        yield place


def fill(log: Log) -> tuple[int, LogFailed]:
    """Append and sync until the disk is full; returns the last durable sequence and the error."""
    durable = 0
    try:
        for _ in range(1000):
            last = append(log, POINTS, ROWS)
            log.appender.sync()
            durable = last
    except LogFailed as error:
        return durable, error
    raise AssertionError("the disk never filled up")


def test_a_full_disk_stops_the_log_and_room_lets_it_go_on(small_disk):
    directory = small_disk / "log"
    log = Log(directory, [POINTS], bus="test", file_bytes=FILE_BYTES)
    durable, error = fill(log)
    assert error.errno == errno.ENOSPC
    assert "No space left on device" in str(error)
    assert error.path == str(directory / "0000000005.log")
    assert error.operation == "create"
    assert durable > 12 * FILE_BYTES // 4 // POINTS.row_bytes
    rows = read_rows(directory, POINTS)  # beside the stopped writer
    assert len(rows) == durable
    log.close()
    check_rows(POINTS, rows, 1)
    del rows

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    log = Log(directory, [POINTS], bus="test", file_bytes=FILE_BYTES)
    assert log.recovered.record_count == durable
    assert append(log, POINTS, 1) == durable + 1
    log.close()
    assert examine(directory).problems == []


@pytest.mark.process
def test_a_full_disk_stops_a_log_that_writes_through_a_map_and_kills_nobody(small_disk):
    code = """if True:
        import sys
        from ringmain.storage import Log, LogFailed
        from support.logs import FILE_BYTES, POINTS, append
        log = Log(sys.argv[1], [POINTS], bus="test", file_bytes=FILE_BYTES, map_small_groups=True)
        assert log.appender.is_mapped
        durable = 0
        try:
            while True:
                last = append(log, POINTS, 300)
                log.appender.sync()
                durable = last
        except LogFailed as error:
            print(durable, error)
    """
    command = [sys.executable, "-c", code, str(small_disk / "log")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(SUPPORT.parent)}, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    durable, _, words = done.stdout.decode().partition(" ")
    assert "No space left on device" in words
    assert int(durable) > 2 * FILE_BYTES // POINTS.row_bytes
    rows = read_rows(small_disk / "log", POINTS)
    check_rows(POINTS, rows, 1)
    assert len(rows) == int(durable)


def test_a_disk_that_is_full_already_is_an_error_at_opening(small_disk):
    (small_disk / "ballast").write_bytes(bytes(15 << 20))
    directory = small_disk / "log"
    with pytest.raises(OSError, match="No space left on device") as caught:
        Log(directory, [POINTS], bus="test", file_bytes=FILE_BYTES)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in directory.iterdir()] == ["LOCK"]
    (small_disk / "ballast").unlink()
    log = Log(directory, [POINTS], bus="test", file_bytes=FILE_BYTES)
    append(log, POINTS, 1)
    log.close()


def test_retention_keeps_a_small_disk_going(small_disk):
    log = Log(small_disk / "log", [POINTS], bus="test", file_bytes=FILE_BYTES, retention_bytes=1)
    last = 0
    for _ in range(150):  # 30 MB through 18
        last = append(log, POINTS, ROWS)
    log.appender.sync()
    log.close()
    contents = examine(small_disk / "log")
    assert contents.problems == []
    assert contents.topics["points"].next_sequence == last + 1
