"""Damage of every kind to every file of a store: found and placed, never returned as rows; and repair keeps all that is good.

RINGMAIN_SEED chooses another sample (it is printed); RINGMAIN_NIGHTLY flips every byte of every file.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ringmain.storage.log_files import list_files
from ringmain.storage.store_repair import Repaired, repair_store
from ringmain.storage.store_verify import verify_store
from support.damaged_store import (
    TOPICS,
    Part,
    Whole,
    check_reads,
    check_repaired,
    edges_of,
    flipped,
    make_whole,
    parts_of,
    replace,
)
from support.sstables import needs

SEED = int(os.environ.get("RINGMAIN_SEED", "20230601"))
NIGHTLY = bool(os.environ.get("RINGMAIN_NIGHTLY"))
pytestmark = pytest.mark.timeout(4 * 3600 if NIGHTLY else 180)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A store whose archive has all that was ever put."""
    return make_whole(tmp_path_factory.mktemp("plain") / "store", "none")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The same with tables that are compressed from level 1 on."""
    return make_whole(tmp_path_factory.mktemp("packed") / "store", needs("zstd"))


@pytest.fixture(scope="module")
def bare(plain: Whole, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """`plain` without an archive: most of what is in tables is nowhere else."""
    directory = tmp_path_factory.mktemp("bare") / "store"
    whole = Whole(plain.copy(directory), plain.history, plain.older)
    shutil.rmtree(directory / "archive")
    return whole


def in_last_log(whole: Whole, name: Path) -> bool:
    return name.parent.name == "log" and name.name == list_files(whole.directory / "log")[-1][1].name


def expect_found(whole: Whole, copy: Path, name: Path, part: Part | None, *, may_be_torn: bool = False) -> bool:
    """The damage is named with its place. Or (False) it is where somebody may have begun to write, and all before that is right."""
    verified = verify_store(copy)
    if verified.is_sound:
        assert may_be_torn or in_last_log(whole, name), f"{name}: not found"
        assert part is None or part.kind in ("frame close", "frame mark")
        assert check_reads(whole, copy, to_its_end=in_last_log(whole, name) and part is None) == 0
        return False
    if part is not None:
        places = [finding.offset for finding in verified.findings if finding.path == copy / name]
        assert any(place is not None and part.offset <= place < part.end for place in places), (name, part, verified)
    return True


def repaired(whole: Whole, copy: Path) -> tuple[Repaired, int]:
    """Repair, and check that what is left is right but for what is listed. Returns also how many keys have changed."""
    report = repair_store(copy)
    assert verify_store(copy).findings == ()
    changed = check_repaired(whole, copy, report.lost)
    assert repair_store(copy).changes == ()
    assert str(report).count("\n") >= len(report.changes) + len(report.lost)
    return report, changed


def sample(whole: Whole, per_kind: int) -> Iterator[tuple[Path, Part, int]]:
    """Places of every kind of byte in every kind of file, chosen by chance."""
    chosen = random.Random(SEED)
    found: dict[str, list[tuple[Path, Part, int]]] = {}
    for name in whole.files():
        for part in parts_of(whole.directory / name):
            kind = f"{name.parent} {name.suffix} {part.kind}"
            found.setdefault(kind, []).extend((name, part, offset) for offset in edges_of(part))
    for kind in sorted(found):
        yield from chosen.sample(found[kind], min(per_kind, len(found[kind])))


def damaged(whole: Whole, copy: Path, name: Path, data: bytes | None) -> Path:
    """A copy in which one file has other content, or is gone."""
    whole.copy(copy)
    if data is None:
        (copy / name).unlink()
    else:
        replace(copy, name, data)
    return copy


def test_the_store_for_damage_has_every_kind_of_file_and_byte(plain, packed, bare):
    print(f"RINGMAIN_SEED={SEED}")
    for whole in (plain, packed, bare):
        kinds = {f"{name.parent} {part.kind}" for name in whole.files() for part in parts_of(whole.directory / name)}
        for kind in ("header", "block", "keys", "blocks", "tags", "bloom", "tombstones", "schema", "padding", "footer"):
            assert f"store {kind}" in kinds
        for kind in ("manifest header", "manifest durable", "manifest record"):
            assert f"store {kind}" in kinds
        for folder in ("log",) if whole is bare else ("log", "archive"):
            for kind in ("log header", "frame topic", "frame rows", "frame tombstones", "frame close"):
                assert f"{folder} {kind}" in kinds
        assert all(len(whole.tables(schema.name)) >= 2 for schema in TOPICS)
        assert verify_store(whole.directory).findings == ()
        assert check_reads(whole, whole.directory) == 0
        assert check_repaired(whole, whole.directory, ()) == 0
        assert repair_store(whole.directory, dry_run=True).changes == ()


# --- one byte ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_a_flipped_byte_anywhere_is_named_and_nothing_wrong_is_read(name, tmp_path, request):
    whole = request.getfixturevalue(name)
    for file, part, offset in sample(whole, 3):
        print(file, part, offset)
        copy = damaged(whole, tmp_path / "copy", file, flipped((whole.directory / file).read_bytes(), offset))
        if expect_found(whole, copy, file, part):
            check_reads(whole, copy)
        shutil.rmtree(copy)


def test_repair_of_a_flipped_byte_loses_nothing_that_tables_or_history_have(packed, tmp_path):
    for file, part, offset in sample(packed, 1):
        print(file, part, offset)
        copy = damaged(packed, tmp_path / "copy", file, flipped((packed.directory / file).read_bytes(), offset))
        report, changed = repaired(packed, copy)
        if file.parent.name != "log":
            assert (changed, report.lost) == (0, ()), (file, part, report)
        shutil.rmtree(copy)


def test_repair_of_a_flipped_byte_without_history_loses_at_most_the_block_or_frame(bare, tmp_path):
    for file, part, offset in sample(bare, 2):
        print(file, part, offset)
        copy = damaged(bare, tmp_path / "copy", file, flipped((bare.directory / file).read_bytes(), offset))
        report, changed = repaired(bare, copy)
        if part.kind == "block":
            assert changed <= sum(entry.count or 0 for entry in report.lost) <= 6
        elif part.kind in ("frame rows", "frame tombstones"):
            assert changed <= 20
        else:
            assert (changed, report.lost) == (0, ()), (file, part, report)
        shutil.rmtree(copy)


# --- more than one ------------------------------------------------------------------------------------------------------


def other_content(whole: Whole, file: Path, chosen: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """What may become of a file."""
    data = (whole.directory / file).read_bytes()
    at = chosen.choice([place for place in range(len(data)) if data[place]])
    sector = at // 512 * 512
    yield "missing", None
    yield "empty", b""
    yield "cut off", data[:at]
    yield "grown", data + bytes(chosen.randrange(1, 600))
    yield "zeros", data[:at] + bytes(64) + data[at + 64 :]
    yield "a sector of zeros", data[:sector] + bytes(512) + data[sector + 512 :]
    yield "junk", data[:at] + chosen.randbytes(100) + data[at + 100 :]
    yield "all zeros", bytes(len(data))
    same = [name for name in whole.files() if name.suffix == file.suffix and name != file]
    if same:
        yield "another file of the store", (whole.directory / chosen.choice(same)).read_bytes()
    older = [whole.older / file, whole.older / "log" / file.name]
    if (earlier := next((path.read_bytes() for path in older if path.exists()), data)) != data:
        yield "an older file", earlier


def kinds_of_files(whole: Whole) -> list[Path]:
    """One table of each topic and level, the manifest, and log files."""
    state = [next(iter(whole.tables(schema.name))) for schema in TOPICS] + [whole.tables("tape")[-1]]
    logs = [name for name in whole.files() if name.suffix == ".log"]
    return [*state, Path("store", "MANIFEST"), logs[1 % len(logs)], logs[-1]]


@pytest.mark.parametrize("name", ["bare", "packed"])
def test_whatever_becomes_of_a_file_is_found_and_repaired_and_what_is_lost_is_listed(name, tmp_path, request):
    whole, chosen = request.getfixturevalue(name), random.Random(SEED)
    for file in kinds_of_files(whole):
        for what, data in other_content(whole, file, chosen):
            print(file, what)
            copy = damaged(whole, tmp_path / "copy", file, data)
            is_torn = what == "grown" and file.suffix != ".sst"
            if expect_found(whole, copy, file, None, may_be_torn=is_torn):
                check_reads(whole, copy, to_its_end=in_last_log(whole, file))
                repaired(whole, copy)
            shutil.rmtree(copy)
