"""Cutting the end off a log: the rest goes on, what is cut off is kept, and nothing is lost or kept twice whenever it is killed."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from ringmain.storage import Corruption, Log, LogLocked, LogReader, Schema, StorageError, files, log_tail
from ringmain.storage.log_files import file_path, list_files
from ringmain.storage.log_tail import cut_tail
from ringmain.storage.recovery import examine
from ringmain.storage.repair import repair
from ringmain.storage.store import Store
from ringmain.tools.export_sources import log_source
from ringmain.tools.log_contents import find_log, look_at_log
from support.backups import at_disk_step, content
from support.logs import FILE_BYTES, PAIRS, POINTS, append, check_rows, flip, make_rows, read_rows, trim

SEED = int(os.environ.get("RINGMAIN_SEED", "20261126"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
LATER = Schema("later", {"number": "u4"})  # a topic that not every file knows
SCHEMAS = (POINTS, PAIRS, LATER)


def open_log(data_dir: Path, schemas=(POINTS, PAIRS), **settings) -> Log:
    return Log(data_dir / "log", schemas, **{"bus": "test", "file_bytes": FILE_BYTES, "sync_files": False, **settings})


def write(data_dir: Path, *counts: int, schemas=(POINTS, PAIRS)) -> None:
    """A writer's life: rows of the topics in turn, so many at a time."""
    log = open_log(data_dir, schemas)
    for place, count in enumerate(counts):
        append(log, schemas[place % len(schemas)], count)
    log.close()


def ends(directory: Path) -> dict[str, int]:
    """Where each topic of a sound log ends."""
    contents = examine(directory)
    assert contents.problems == []
    return {name: topic.next_sequence - 1 for name, topic in contents.topics.items()}


def set_aside(data_dir: Path) -> list[Path]:
    folder = data_dir / "lost+found"
    return sorted(folder.iterdir()) if folder.exists() else []


def check_log(directory: Path, last: Mapping[str, int], first: Mapping[str, int] | None = None) -> None:
    """Assert that a log holds exactly these rows of each topic, as they were made."""
    assert ends(directory) == last
    for schema in SCHEMAS:
        if schema.name in last:
            begins = first[schema.name] if first is not None else 1
            rows = read_rows(directory, schema)
            check_rows(schema, rows, begins)
            assert len(rows) == last[schema.name] - begins + 1
            reader = LogReader(directory, schema.name)
            assert (reader.oldest, reader.newest) == (begins, last[schema.name])


def check_tail(directory: Path, cuts: Mapping[str, int], last: Mapping[str, int]) -> None:
    """Assert that a log holds exactly the rows behind a cut."""
    behind = {name: end for name, end in last.items() if end > cuts.get(name, 0)}
    check_log(directory, behind, {name: cuts.get(name, 0) + 1 for name in behind})
    assert {path.name for path in directory.iterdir()} == {path.name for _, path in list_files(directory)}


def check_cut(data_dir: Path, cuts: Mapping[str, int], last: Mapping[str, int]) -> None:
    check_log(data_dir / "log", {name: min(end, cuts.get(name, 0)) for name, end in last.items()})
    [tail] = set_aside(data_dir)
    check_tail(tail, cuts, last)
    assert {path.name for path in (data_dir / "log").iterdir() if path.suffix != ".log"} <= {"LOCK"}


# --- what it leaves -------------------------------------------------------------------------------------------------------


def test_rows_behind_the_cut_are_in_a_log_of_their_own_and_no_more_in_this_one(tmp_path: Path) -> None:
    write(tmp_path, 50, 20)
    write(tmp_path, 50, 20, 30)
    epoch = examine(tmp_path / "log").epoch
    cut = cut_tail(tmp_path, {"points": 40, "pairs": 40})
    assert cut.row_count == 90
    assert cut.where is not None
    assert set_aside(tmp_path) == [cut.where]
    assert "-points-41" in cut.where.name
    check_cut(tmp_path, {"points": 40, "pairs": 40}, {"points": 130, "pairs": 40})
    assert examine(tmp_path / "log").epoch > epoch
    assert examine(cut.where).log_id == examine(tmp_path / "log").log_id


def test_rows_of_another_topic_behind_the_cut_stay(tmp_path: Path) -> None:
    write(tmp_path, 10, 10, 10, 10)
    write(tmp_path, 5, 10, 5, schemas=SCHEMAS)
    assert cut_tail(tmp_path, {"points": 5, "pairs": 27, "later": 5}).row_count == 23
    check_cut(tmp_path, {"points": 5, "pairs": 27, "later": 5}, {"points": 25, "pairs": 30, "later": 5})


def test_a_topic_that_is_not_named_keeps_nothing_and_one_that_is_not_there_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path, 10, 10)
    assert cut_tail(tmp_path, {"points": 10, "nobody": 7}).row_count == 10
    check_cut(tmp_path, {"points": 10}, {"points": 10, "pairs": 10})


def test_where_nothing_lies_behind_the_cut_nothing_is_changed(tmp_path: Path) -> None:
    assert cut_tail(tmp_path, {}) == cut_tail(tmp_path, {"points": 3})
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, 10, 10)
    before = content(tmp_path)
    cut = cut_tail(tmp_path, {"points": 10, "pairs": 1 << 40})
    assert (cut.row_count, cut.where) == (0, None)
    assert content(tmp_path) == before


def test_a_log_that_was_cut_goes_on_behind_the_cut_and_can_be_cut_again(tmp_path: Path) -> None:
    last = dict.fromkeys(("points", "pairs"), 0)
    for life in range(1, 6):
        write(tmp_path, 30, 30)
        last = {name: end + 30 for name, end in last.items()}
        assert ends(tmp_path / "log") == last
        last = {"points": last["points"] - 7, "pairs": last["pairs"] - life}
        cut_tail(tmp_path, last)
        check_log(tmp_path / "log", last)
        assert len(set_aside(tmp_path)) == life


def test_rows_that_were_cut_off_never_come_back_beside_those_that_took_their_sequences(tmp_path: Path) -> None:
    write(tmp_path, 60_000, 10)  # a file more than one, and a writer's end
    write(tmp_path, 100, 10)
    cut_tail(tmp_path, {"points": 20_000, "pairs": 10})
    log = open_log(tmp_path)
    rows = make_rows(POINTS, 20_001, 60_000)
    rows["tag"] = b"new"
    for first in range(0, len(rows), 5_000):
        log.keep(0)
        log.appender.append(0, rows[first : first + 5_000])
    log.close()
    found = read_rows(tmp_path / "log", POINTS)
    check_rows(POINTS, found[:20_000], 1)
    assert (found[20_000:] == rows).all()
    assert ends(tmp_path / "log") == {"points": 80_000, "pairs": 10}


def test_rows_that_a_reader_holds_stay_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, 5_000, 10)
    write(tmp_path, 5_000, 10)
    reader = LogReader(tmp_path / "log", "points")
    held = [reader.read(first, rows_max=1_000) for first in (1, 4_001, 9_001)]
    cut_tail(tmp_path, {"points": 4_100})
    write(tmp_path, 20_000)
    for rows, first in zip(held, (1, 4_001, 9_001), strict=True):
        assert rows is not None
        check_rows(POINTS, rows, first)


def test_tombstones_are_cut_and_kept_as_rows_are(tmp_path: Path) -> None:
    log = open_log(tmp_path, [POINTS])
    for first in range(1, 61, 10):
        log.appender.append(0, make_rows(POINTS, first, 10), first % 20 == 1)
    log.close()
    [where] = [cut_tail(tmp_path, {"points": 25}).where]
    assert where is not None
    for directory, at, last in ((tmp_path / "log", 1, 25), (where, 26, 60)):
        reader = LogReader(directory, "points")
        while (found := reader.read_all(at)) is not None:
            rows, tombstones = found
            assert {int(sequence - 1) // 10 % 2 == 0 for sequence in rows["sequence"]} == {tombstones}
            check_rows(POINTS, rows, at)
            at += len(rows)
        assert at == last + 1


def test_what_a_repair_gave_up_behind_the_cut_is_missing_in_the_tail_too(tmp_path: Path) -> None:
    write(tmp_path, 10, 10, 10, 10, 10, 10)
    path = file_path(tmp_path / "log", 1)
    place = path.read_bytes().index(make_rows(POINTS, 11, 10).tobytes())
    flip(path, place + 100)
    repair(tmp_path / "log")
    cut = cut_tail(tmp_path, {"points": 5, "pairs": 15})
    assert cut.row_count == 30
    assert cut.where is not None
    check_log(tmp_path / "log", {"points": 5, "pairs": 15})
    assert ends(cut.where) == {"points": 30, "pairs": 30}
    rows = read_rows(cut.where, POINTS)
    assert rows["sequence"].tolist() == [*range(6, 11), *range(21, 31)]
    reader = LogReader(cut.where, "points")
    assert [len(rows) for first in (6, 11) if (rows := reader.read(first)) is not None] == [5, 10]
    assert reader.lost_count == 10


def test_the_tail_is_read_as_the_commands_read_a_log(tmp_path: Path) -> None:
    write(tmp_path, 10, 10)
    where = cut_tail(tmp_path, {"points": 4, "pairs": 10}).where
    assert where is not None
    facts = look_at_log(find_log(where))
    assert (facts.is_sound, facts.record_count, [topic.topic for topic in facts.topics]) == (True, 6, ["points"])
    source = log_source(find_log(where), "points", None, None)
    check_rows(POINTS, np.concatenate([rows for rows, _ in source.batches]), 5)
    assert source.row_count == 6


def test_any_cut_of_any_log_leaves_each_row_in_one_of_the_two(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    for run in range(400 if NIGHTLY else 8):
        data_dir, last = tmp_path / str(run), dict[str, int]()
        for _ in range(chance.randint(1, 4)):
            schemas = SCHEMAS[: chance.randint(1 if not last else len(last), 3)]
            last |= {schema.name: last.get(schema.name, 0) for schema in schemas}
            counts = [chance.choice((1, 3, 300, 20_000)) for _ in range(chance.randint(0, 8))]
            write(data_dir, *counts, schemas=schemas)
            for place, count in enumerate(counts):
                last[schemas[place % len(schemas)].name] += count
        cuts = {name: chance.choice((0, end, chance.randint(0, end), max(0, end - 1))) for name, end in last.items()}
        row_count = cut_tail(data_dir, cuts).row_count
        assert row_count == sum(last.values()) - sum(cuts.values())
        if row_count:
            check_cut(data_dir, cuts, last)
        else:
            check_log(data_dir / "log", last)
        write(data_dir, 10, 10, 10, schemas=SCHEMAS)
        check_log(data_dir / "log", {schema.name: cuts.get(schema.name, 0) + 10 for schema in SCHEMAS})
        shutil.rmtree(data_dir)


# --- what it refuses ------------------------------------------------------------------------------------------------------


def test_it_refuses_while_a_writer_lives_and_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, 10)
    log = open_log(tmp_path)
    before = content(tmp_path)
    with pytest.raises(LogLocked):
        cut_tail(tmp_path, {})
    assert content(tmp_path) == before
    log.close()


def test_rows_that_are_in_tables_are_not_cut_off_and_the_table_is_named(tmp_path: Path) -> None:
    schema = Schema("book", {"key": "u8"}, key=("key",))
    with Store(tmp_path, [schema], archive=False) as store:
        store["book"].put_batch(np.zeros(20, schema.payload_dtype))
        store.snapshot()
        store["book"].put_batch(np.zeros(20, schema.payload_dtype))
    before = content(tmp_path)
    with pytest.raises(StorageError, match=r"topic 'book'.*behind sequence 19: table 1 have rows up to 20"):
        cut_tail(tmp_path, {"book": 19})
    assert content(tmp_path) == before
    assert cut_tail(tmp_path, {"book": 20}).row_count == 20
    with Store(tmp_path, [schema]) as store:
        assert store["book"].core.visible == 20


def test_a_log_that_begins_behind_the_cut_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 60_000, 10)
    write(tmp_path, 60_000, 10)
    log = open_log(tmp_path, retention_bytes=1)
    log.keep(0)
    log.close()
    before = content(tmp_path)
    with pytest.raises(StorageError, match=r"topic 'pairs'.*behind sequence 0: it begins with"):
        cut_tail(tmp_path, {"points": 120_000})
    assert content(tmp_path) == before


def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 10, 10)
    write(tmp_path, 10, 10)
    flip(file_path(tmp_path / "log", 1), 5_000)
    before = content(tmp_path)
    with pytest.raises(Corruption):
        cut_tail(tmp_path, {"points": 15, "pairs": 20})
    assert content(tmp_path) == before


# --- killed, and out of room ----------------------------------------------------------------------------------------------

CUTS, LAST = {"points": 25, "pairs": 25}, {"points": 60, "pairs": 30, "later": 5}
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a log of several files and writers; the cut lies in the first one."""
    data_dir = tmp_path_factory.mktemp("written") / "data"
    write(data_dir, 30, 10, 10)
    write(data_dir, 10, 10)
    write(data_dir, 5, 5, 5, 5, 5, schemas=SCHEMAS)
    trim(data_dir / "log")
    return data_dir


def is_killed(step: int, data_dir: Path) -> bool:
    """Cut in a fork of this process, which is killed before its so-many-th change of the directory, if there are so many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy has threads, which a fork does not need
        pid = os.fork()
    if pid == 0:
        done = 0

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal done
            if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
                done += 1
                if done > step:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(die)
            cut_tail(data_dir, CUTS)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


@pytest.mark.process
@pytest.mark.parametrize("then", ["the same again", "a writer"])
def test_killed_at_any_step_the_next_call_or_writer_finishes_it(written: Path, tmp_path: Path, then: str) -> None:
    data_dir, killed_count, found = tmp_path / "data", 0, set[str]()
    stride = 1 if NIGHTLY else {"the same again": 3, "a writer": 5}[then]
    for step in range(SEED % stride, 500, stride):
        shutil.rmtree(data_dir, ignore_errors=True)
        shutil.copytree(written, data_dir)
        if not is_killed(step, data_dir):
            break
        killed_count += 1
        names = {path.name for path in (data_dir / "log").iterdir()} & {"cut", "cut.new"}
        found |= names or {"neither"}
        assert examine(data_dir / "log").problems == []  # at every instant
        if then == "a writer":
            open_log(data_dir).close()
            if "cut" not in names and not set_aside(data_dir):
                check_log(data_dir / "log", LAST)
        if cut_tail(data_dir, CUTS).where is None:
            assert set_aside(data_dir)
        check_cut(data_dir, CUTS, LAST)
    else:
        pytest.fail("the child never finished")
    assert killed_count > 5
    assert found == {"cut", "cut.new", "neither"}


@pytest.mark.process
def test_where_the_disk_refuses_a_step_it_says_so_and_the_next_call_goes_well(written: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(written, data_dir)
    with at_disk_step(-1, lambda name: None) as steps:
        cut_tail(data_dir, CUTS)

    def refuse(name: str) -> None:
        raise OSError(errno.ENOSPC, f"{name} is refused")

    for step in range(0, len(steps), 1 if NIGHTLY else 4):
        shutil.rmtree(data_dir)
        shutil.copytree(written, data_dir)
        with at_disk_step(step, refuse), pytest.raises(OSError, match="is refused"):
            cut_tail(data_dir, CUTS)
        assert not (data_dir / "log" / "cut.new").exists()
        cut_tail(data_dir, CUTS)
        check_cut(data_dir, CUTS, LAST)


def test_a_repair_finishes_a_cut_first(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(written, data_dir)
    with monkeypatch.context() as patch:
        patch.setattr(log_tail, "finish_cut", lambda directory: None)
        cut_tail(data_dir, CUTS)
    check_log(data_dir / "log", LAST)
    assert (data_dir / "log" / "cut").exists()
    repair(data_dir / "log")
    check_cut(data_dir, CUTS, LAST)


@pytest.mark.parametrize("refused", [errno.EXDEV, errno.EACCES])
def test_where_lost_and_found_cannot_be_beside_the_log_it_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    write(tmp_path, 10, 10)
    rename = files.rename_file

    def rename_here(path: Path, target: Path) -> None:
        if target.parent == tmp_path / "lost+found":
            raise OSError(refused, "refused", str(path))
        rename(path, target)

    monkeypatch.setattr(files, "rename_file", rename_here)
    cut = cut_tail(tmp_path, {"points": 5})
    assert cut.where is not None
    assert cut.where.parent == tmp_path / "log" / "lost+found"
    check_tail(cut.where, {"points": 5}, {"points": 10, "pairs": 10})
    check_log(tmp_path / "log", {"points": 5, "pairs": 0})
