"""`ringmain store`, `sstable` and `manifest`: what a store is made of, proving it, and compacting it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus import Writer
from ringmain.storage import Store, StoreSettings
from ringmain.storage.levels import Shape
from ringmain.storage.manifest import read_manifest
from ringmain.tools.exit_codes import FAILED, MISSING, OK, USAGE
from support.command import environment, facts, on_terminal, ringmain, succeed
from support.logs import flip
from support.stored import BOOK, EXPECTED, KEYS, ROUND, TAPE, fill, open_store, put_round

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stored")
    fill(directory)
    return directory


def words_of(text: str) -> str:
    return " ".join(text.split())


def topic_of(shown: Any, name: str) -> Any:
    (topic,) = [topic for topic in shown["topics"] if topic["topic"] == name]
    return topic


def content(directory: Path) -> dict[str, bytes]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "LOCK")
    return {str(path): path.read_bytes() for path in paths}


def tables(directory: Path) -> list[Path]:
    return sorted((directory / "store").glob("*.sst"))


# --- stats ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "store"])
def test_stats_has_the_figures_of_every_topic(where: str, store: Path) -> None:
    before = content(store)
    shown = facts("store", "stats", store / where)
    assert (shown["directory"], shown["writer_pid"]) == (str(store), None)
    assert shown["log_file_count"] == 1
    assert 3 * ROUND * BOOK.row_bytes < shown["log_bytes"] < 4 << 20  # the room behind was given back
    book, tape = topic_of(shown, "book"), topic_of(shown, "tape")
    assert (book["key"], tape["key"]) == (["instrument", "venue"], [])
    assert (book["sequence"], book["checkpoint"]) == (3 * ROUND + 1, 2 * ROUND)
    assert (book["memtable_row_count"], book["memtable_row_bytes"]) == (ROUND + 1, (ROUND + 1) * BOOK.row_bytes)
    assert (tape["sequence"], tape["checkpoint"], tape["row_count"], tape["memtable_row_count"]) == (10, 10, 10, 0)
    assert sum(topic["table_count"] for topic in shown["topics"]) == len(tables(store))
    assert sum(topic["table_bytes"] for topic in shown["topics"]) == sum(path.stat().st_size for path in tables(store))
    for topic in (book, tape):
        assert sum(level["row_count"] for level in topic["levels"]) + topic["memtable_row_count"] == topic["row_count"]
        for figure in ("table_count", "table_bytes"):
            by_level = sum(level[figure.replace("table_bytes", "file_bytes")] for level in topic["levels"])
            assert by_level == topic[figure]
    text = words_of(succeed("store", "stats", store / where))
    assert f"store {store} log " in text
    assert f"book {book['row_count']} {ROUND + 1} " in text
    assert f"instrument, venue {3 * ROUND + 1} " in text
    assert "write" not in text.lower().replace("writer", "")  # what only the writer knows is not made up
    assert content(store) == before


def test_stats_counts_tombstones_and_says_which_topics_keep_all_versions(tmp_path: Path) -> None:
    with open_store(tmp_path, keep_versions=["book"]) as store:
        put_round(store, 1)
        for instrument, venue in KEYS[:5]:
            store["book"].delete(instrument, venue)
        store.snapshot()
    book = topic_of(facts("store", "stats", tmp_path), "book")
    assert book["keep_versions"]
    assert [(level["row_count"], level["tombstone_count"]) for level in book["levels"]] == [(ROUND + 5, 5)]
    assert "instrument, venue, all versions" in words_of(succeed("store", "stats", tmp_path))


def test_a_store_that_is_being_written_can_be_looked_at(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in range(1, 6):
            put_round(store, number)
            shown = facts("store", "stats", tmp_path)
            assert shown["writer_pid"] == os.getpid()
            assert topic_of(shown, "book")["sequence"] == number * ROUND
            if number == 3:
                store.snapshot()
        assert topic_of(facts("store", "stats", tmp_path), "book")["checkpoint"] == 3 * ROUND
        assert f"process {os.getpid()} is writing it" in words_of(succeed("store", "stats", tmp_path))
        assert facts("store", "verify", tmp_path)["findings"] == []
        assert facts("manifest", "dump", tmp_path)["edit_count"] > 0
        assert facts("store", "dump", tmp_path)["tables"]


def test_an_empty_store_has_topics_and_nothing_else(tmp_path: Path) -> None:
    Store(tmp_path, [BOOK], log_file_bytes=4 << 20).close()
    (book,) = facts("store", "stats", tmp_path)["topics"]
    assert (book["row_count"], book["sequence"], book["table_count"], book["levels"]) == (0, 0, 0, [])
    assert "book: no tables" in succeed("store", "dump", tmp_path)
    assert "sound" in succeed("store", "verify", tmp_path)


@pytest.mark.parametrize("line", ["store stats", "store dump", "store verify", "store compact", "manifest dump"])
def test_a_folder_without_a_store_is_told_from_a_damaged_one(line: str, tmp_path: Path) -> None:
    done = ringmain(*line.split(), tmp_path)
    assert (done.returncode, done.stdout) == (MISSING, b"")
    assert done.stderr.decode() == f"ringmain: {tmp_path}: holds no store\n"
    fill(tmp_path)
    (tmp_path / "store" / "MANIFEST").unlink()
    done = ringmain(*line.split(), tmp_path)
    assert done.returncode == FAILED
    assert "expected a manifest, as there are tables such as 00000000" in (done.stdout + done.stderr).decode()


# --- dump -------------------------------------------------------------------------------------------------------------


def test_dump_lists_the_tables_with_their_keys(store: Path) -> None:
    shown = facts("store", "dump", store)
    known = {
        info.number: info for version in read_manifest(store / "store").versions.values() for info in version.tables()
    }
    assert {table["number"] for table in shown["tables"]} == set(known)
    for table in shown["tables"]:
        info = known[table["number"]]
        assert Path(table["path"]) == store / "store" / f"{info.number:010d}.sst"
        assert Path(table["path"]).stat().st_size == table["file_bytes"]
        assert (table["topic"], table["level"], table["row_count"]) == (info.topic, info.level, info.row_count)
        assert (table["sequence_min"], table["sequence_max"]) == (info.sequence_min, info.sequence_max)
    book = [table for table in shown["tables"] if table["topic"] == "book"]
    assert min(table["key_min"] for table in book) == [1, "A,B"]
    assert max(table["key_max"] for table in book) == [40, "XETR"]
    of_tape = facts("store", "dump", store, "--topic", "tape")["tables"]
    assert of_tape == [table for table in shown["tables"] if table["topic"] == "tape"]
    text = succeed("store", "dump", store)
    assert "book, by instrument, venue" in text
    assert "tape, by sequence" in text
    assert '1,"A,B"' in text


def test_dump_says_when_there_is_more(tmp_path: Path) -> None:
    with open_store(tmp_path, shape=Shape(level0_tables=12)) as store:
        for number in range(1, 4):
            put_round(store, number)
            store.snapshot()
    done = ringmain("store", "dump", tmp_path, "--limit", "2")
    assert done.stderr.decode() == "there are more; --limit 0 prints all\n"
    shown = facts("store", "dump", tmp_path, "--limit", "2")
    assert (len(shown["tables"]), shown["more"]) == (2, True)
    shown = facts("store", "dump", tmp_path, "--limit", "0")
    assert (len(shown["tables"]), shown["more"]) == (3, False)


@pytest.mark.parametrize("command", ["dump", "compact"])
def test_a_topic_that_is_not_there_is_told_with_those_that_are(command: str, store: Path) -> None:
    done = ringmain("store", command, store, "--topic", "nosuch")
    assert (done.returncode, done.stdout) == (MISSING, b"")
    assert done.stderr.decode() == f"ringmain: {store}: no topic 'nosuch' in this store; it has book, tape\n"


def test_what_is_printed_fits_a_terminal(store: Path) -> None:
    for line in (["store", "stats"], ["store", "dump"], ["store", "verify"], ["manifest", "dump"], ["sstable", "dump"]):
        where = tables(store)[0] if line[0] == "sstable" else store
        lines = ringmain(*line, where, env=environment(COLUMNS="80")).stdout.decode().splitlines()
        assert lines
        assert max(map(len, lines)) <= 80
        assert not any("…" in line for line in lines)


# --- sstable and manifest ---------------------------------------------------------------------------------------------


def test_an_sstable_tells_of_itself(store: Path) -> None:
    listed = facts("store", "dump", store)["tables"]
    for table in listed:
        shown = facts("sstable", "dump", table["path"])
        assert {name: shown[name] for name in table.keys() - {"level"}} == {
            name: table[name] for name in table.keys() - {"level"}
        }
        assert int(shown["log_id"], 16) == read_manifest(store / "store").log_id
        assert shown["compression"] == "none"
    text = words_of(succeed("sstable", "dump", listed[0]["path"]))
    assert "topic book, by instrument, venue" in text
    assert 'first key 1,"A,B"' in text


def test_an_sstable_shows_its_rows_and_tombstones_in_the_order_of_keys(tmp_path: Path) -> None:
    with open_store(tmp_path, keep_versions=["book"]) as store:
        for key in KEYS[:4]:
            store["book"].put(*key, 1, 2, [0, 0, 0])
        store["book"].delete(*KEYS[1])
        store.snapshot()
    (path,) = tables(tmp_path)
    shown = facts("sstable", "dump", path, "--rows")
    assert [(row["sequence"], row["tombstone"]) for row in shown["rows"]] == [
        (1, False),
        (5, True),
        (2, False),
        (3, False),
        (4, False),
    ]
    assert (shown["rows"][0]["venue"], shown["rows"][0]["price"], shown["more"]) == ("A,B", 1, False)
    assert facts("sstable", "dump", path)["shadowed_count"] == 1
    limited = ringmain("sstable", "dump", path, "--rows", "--limit", "2")
    assert limited.stdout.decode().split()[:4] == ["tombstone", "sequence", "timestamp", "instrument"]
    assert [line.split()[:2] for line in limited.stdout.decode().splitlines()[1:]] == [["False", "1"], ["True", "5"]]
    assert limited.stderr.decode() == "there are more; --limit 0 prints all\n"


def test_what_is_no_sstable_is_refused(store: Path, tmp_path: Path) -> None:
    log = next((store / "log").glob("*.log"))
    (tmp_path / "short").write_bytes(b"short")
    for path, magic in (
        (store / "store" / "MANIFEST", b"RMAINMAN"),
        (log, b"RMAINLOG"),
        (tmp_path / "short", b"short"),
    ):
        done = ringmain("sstable", "dump", path)
        told = f"{path}: not an sstable: expected the magic b'RMAINSST', found {magic!r}; name one of a store's .sst files\n"
        assert (done.returncode, done.stderr.decode()) == (FAILED, f"ringmain: {told}")
    shutil.copy(log, tmp_path / "1.sst")  # by its name it should be one
    done = ringmain("sstable", "dump", tmp_path / "1.sst")
    assert done.returncode == FAILED
    assert "expected an sstable's magic b'RMAINSST', found b'RMAINLOG'" in done.stderr.decode()
    assert "ringmain store repair" in done.stderr.decode()
    done = ringmain("sstable", "dump", store / "store")
    assert done.returncode == FAILED
    assert "is a directory; name one of its .sst files" in done.stderr.decode()
    done = ringmain("sstable", "dump", store / "store" / "9999999999.sst")
    assert done.returncode == MISSING


def test_a_manifest_shows_every_edit_with_its_place(tmp_path: Path) -> None:
    with open_store(tmp_path, shape=Shape(level0_tables=12)) as store:
        put_round(store, 1)
        store.snapshot()
        put_round(store, 2)
        store.snapshot()
    shown = facts("manifest", "dump", tmp_path)
    assert Path(shown["path"]) == tmp_path / "store" / "MANIFEST"
    assert (shown["file_bytes"], shown["torn_bytes"]) == (Path(shown["path"]).stat().st_size, 0)
    edits = [item["edit"] for item in shown["edits"]]
    assert [edit.get("checkpoints") for edit in edits[-2:]] == [{"book": ROUND}, {"book": 2 * ROUND}]
    assert [[table["number"] for table in edit["added"]] for edit in edits[-2:]] == [[1], [2]]
    assert set(edits[-3]["topics"]) == {"book", "tape"}
    data = Path(shown["path"]).read_bytes()
    for item in shown["edits"]:
        assert data[item["offset"] + 8 : item["offset"] + 9] == b"{"
    text = words_of(succeed("manifest", "dump", tmp_path))
    assert "topics book, tape" in text
    assert f"added 2 to level 0 of book checkpoint of book {2 * ROUND}" in text
    with open_store(tmp_path) as store:
        store.compact("book")
    assert "removed 1, 2" in words_of(succeed("manifest", "dump", tmp_path))
    limited = ringmain("manifest", "dump", tmp_path, "--limit", "1")
    assert limited.stderr.decode() == "there are more; --limit 0 prints all\n"


def test_damage_in_a_manifest_is_told_with_the_tool_that_mends_it(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_store(tmp_path) as store:  # its one record is written anew, and another comes behind
        put_round(store, 4)
        store.snapshot()
    flip(tmp_path / "store" / "MANIFEST", 100)
    for line in (["store", "stats"], ["store", "dump"], ["manifest", "dump"]):
        done = ringmain(*line, tmp_path)
        assert (done.returncode, done.stdout) == (FAILED, b"")
        assert f"{tmp_path / 'store' / 'MANIFEST'}: damaged at byte 64" in done.stderr.decode()
        assert "ringmain store repair" in done.stderr.decode()


# --- verify -----------------------------------------------------------------------------------------------------------


def test_a_sound_store_is_called_sound(store: Path) -> None:
    before = content(store)
    text = words_of(succeed("store", "verify", store))
    assert f"store {store}" in text
    assert "sound checked " in text
    assert f"{3 * ROUND + 1 + 10} in the log" in text
    shown = facts("store", "verify", store)
    assert (shown["findings"], shown["strays"], shown["torn_bytes"]) == ([], [], 0)
    assert topic_of(shown, "book")["newest"] == 3 * ROUND + 1
    assert content(store) == before


def test_damage_is_named_with_its_file_and_byte(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "store" / "0000000999.sst.new").touch()
    table = tables(tmp_path)[0]
    flip(table, 4096 + 20)
    done = ringmain("store", "verify", tmp_path)
    assert done.returncode == FAILED
    text = done.stdout.decode()
    assert f"DAMAGED {table}, byte 4,096: expected " in text
    assert "0000000999.sst.new belongs to nothing" in text
    assert "give up what is damaged with `ringmain store repair`" in text
    assert "sound" not in text
    (found,) = facts("store", "verify", tmp_path, code=FAILED)["findings"]
    assert (found["path"], found["offset"]) == (str(table), 4096)


# --- repair -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A store whose first table has lost a block, the rows of which are still in the log."""
    fill(tmp_path)
    flip(tables(tmp_path)[0], 4096 + 20)
    return tmp_path


def test_repair_makes_a_damaged_store_whole_and_keeps_the_damaged_file(damaged: Path) -> None:
    table = tables(damaged)[0]
    before = table.read_bytes()
    would = facts("store", "repair", damaged, "--dry-run")
    assert would["dry_run"]
    assert table.read_bytes() == before
    assert facts("store", "verify", damaged, code=FAILED)["findings"]
    text = succeed("store", "repair", damaged, "--yes")
    assert text.splitlines()[0] == f"{damaged}: repaired; no row is lost"
    assert f"  {would['taken_again_count']} rows are taken from the log again" in text.splitlines()
    assert (damaged / "store" / "lost+found" / table.name).read_bytes() == before
    assert facts("store", "verify", damaged)["findings"] == []
    rows = ringmain("scan", damaged, "book", "--format", "json").stdout.splitlines()
    assert [json.loads(row)["price"] for row in rows] == [row[2] for row in EXPECTED]


def test_what_is_lost_is_listed_by_keys_and_sequences(damaged: Path) -> None:
    with open_store(damaged / "fresh") as store:  # a log without those rows
        put_round(store, 1)
        store.snapshot()
    table = tables(damaged / "fresh")[0]
    for path in (damaged / "fresh" / "log").glob("*.log"):
        path.unlink()
    flip(table, 4096 + 20)
    shown = facts("store", "repair", damaged / "fresh", "--yes")
    (lost,) = [lost for lost in shown["lost"] if lost["path"] == f"store/{table.name}"]
    assert (lost["topic"], lost["keys"][0], lost["first"]) == ("book", [1, "A,B"], 1)
    assert facts("store", "verify", damaged / "fresh")["findings"] == []
    found = [json.loads(row) for row in succeed("scan", damaged / "fresh", "book", "--format", "json").splitlines()]
    assert len(found) == ROUND - lost["count"]


def test_repair_says_what_would_be_done_and_asks(damaged: Path) -> None:
    before = content(damaged)
    done = ringmain("store", "repair", damaged)
    assert done.returncode == USAGE
    told = done.stderr.decode()
    assert "would be repaired; no row is lost" in told
    assert "say --yes to repair it where nobody can be asked" in told
    assert content(damaged) == before
    with on_terminal("store", "repair", damaged) as terminal:
        terminal.wait_for("Give up what is damaged?")
        terminal.type("y\n")
        assert terminal.finish() == OK
        assert "repaired; no row is lost" in words_of(terminal.text)
    assert facts("store", "verify", damaged)["findings"] == []


def test_repair_leaves_a_sound_store_alone(store: Path) -> None:
    before = content(store)
    assert succeed("store", "repair", store) == f"{store}: nothing is damaged, and nothing was changed\n"
    assert content(store) == before


def test_repair_makes_a_manifest_of_what_the_tables_say(tmp_path: Path) -> None:
    done = ringmain("store", "repair", tmp_path, "--yes")
    assert (done.returncode, done.stderr.decode()) == (MISSING, f"ringmain: {tmp_path}: holds no store\n")
    fill(tmp_path, keep_versions=["book"])
    (tmp_path / "store" / "MANIFEST").unlink()
    assert "repaired; no row is lost" in succeed("store", "repair", tmp_path, "--yes", "--keep-versions", "book")
    assert topic_of(facts("store", "stats", tmp_path), "book")["keep_versions"]
    assert facts("store", "verify", tmp_path)["findings"] == []


def test_a_store_that_is_being_written_is_not_repaired(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_round(store, 1)
        done = ringmain("store", "repair", tmp_path, "--yes")
        assert done.returncode == FAILED
        assert f"process {os.getpid()} is writing to this log; stop it first\n" in done.stderr.decode()


# --- compact ----------------------------------------------------------------------------------------------------------


def test_compacting_leaves_one_level_of_the_newest_rows(tmp_path: Path) -> None:
    fill(tmp_path)
    shown = facts("store", "compact", tmp_path, "--topic", "book")
    (book,) = shown["topics"]
    assert book["before"]["row_count"] > book["after"]["row_count"] == len(EXPECTED)
    assert [level["table_count"] for level in book["after"]["levels"]] == [1]
    assert (book["after"]["memtable_row_count"], book["after"]["sequence"]) == (0, 3 * ROUND + 1)
    assert book["written_bytes"] > 0
    assert book["write_amplification"] > 1
    assert topic_of(facts("store", "stats", tmp_path), "book") == book["after"]
    assert facts("store", "verify", tmp_path)["findings"] == []
    assert words_of(succeed("store", "compact", tmp_path)).split().count(str(len(EXPECTED))) == 2  # before, and now


def test_compacting_keeps_all_versions_of_a_topic_that_has_them(tmp_path: Path) -> None:
    fill(tmp_path, keep_versions=["book"])
    (book,) = facts("store", "compact", tmp_path, "--topic", "book")["topics"]
    assert book["after"]["row_count"] == 3 * ROUND + 1


@pytest.mark.parametrize(("options", "expected"), [([], "zstd"), (["--compression", "none"], "none")])
def test_compacting_compresses_as_the_store_was_unless_told_otherwise(
    options: list[str], expected: str, tmp_path: Path
) -> None:
    pytest.importorskip("zstandard", reason="zstandard is not installed")
    with open_store(tmp_path, compression="zstd") as store:
        for number in (1, 2):
            put_round(store, number)
            store.snapshot()
        store.compact()
        put_round(store, 3)
        store.snapshot()  # to level 0, where nothing is compressed
    succeed("store", "compact", tmp_path, *options)
    for path in tables(tmp_path):
        assert facts("sstable", "dump", path)["compression"] == expected


def test_compacting_gives_up_no_history(tmp_path: Path) -> None:
    """The writer may keep its archive for ever; so what compacting releases of the log is kept."""
    fill(tmp_path)
    succeed("store", "compact", tmp_path)
    assert facts("store", "verify", tmp_path)["record_count"] == 3 * ROUND + 1 + 10


def test_the_store_of_a_bus_is_compacted_and_stays_the_bus_s(bus_name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data_dir": tmp_path, "log_file_bytes": 4 << 20, "group_readable": True}
    with Writer(bus_name, [BOOK, TAPE], store=StoreSettings(topics=["book"]), **settings) as writer:
        for number in range(1, 101):
            writer["book"].publish(number % 10, b"PAR", number, 0, [0, 0, 0])
            writer["tape"].publish(number)
        writer["book"].wait(100, "indexed")
    (book,) = facts("store", "compact", tmp_path)["topics"]
    assert (book["topic"], book["before"]["row_count"], book["after"]["row_count"]) == ("book", 100, 10)
    shown = facts("log", "verify", tmp_path)
    assert (shown["bus"], shown["record_count"], shown["damage"]) == (bus_name, 200, [])
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "log").glob("*.log")} == {0o640}
    with Writer(bus_name, [BOOK, TAPE], store=StoreSettings(topics=["book"]), **settings) as writer:
        assert writer["tape"].publish(1) == 101
        row = writer.get("book", 7, b"PAR")
        assert row is not None
        assert row["price"] == 97


def test_a_store_that_is_being_written_is_not_compacted(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_round(store, 1)
        done = ringmain("store", "compact", tmp_path)
        assert done.returncode == FAILED
        assert f"process {os.getpid()} is writing to this log; stop it first\n" in done.stderr.decode()
