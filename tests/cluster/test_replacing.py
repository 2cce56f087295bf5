"""Another node's data in the place of a node's own: nothing of the stream is lost, a tail is set aside, readers go on, and a kill
at any instant leaves a whole directory."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from ringmain.bus import BusError, open_lane
from ringmain.bus.cluster import replacing
from ringmain.bus.cluster.local_replica import LocalReplica
from ringmain.bus.cluster.messages import Run
from ringmain.bus.cluster.replacing import snapshot_place
from ringmain.bus.cluster.replica import Position
from ringmain.storage import Log, LogLocked, LogReader, Schema, Shape, StoreSettings
from ringmain.storage.recovery import Contents
from ringmain.storage.snapshot_transfer import receive_snapshot, snapshot_files
from ringmain.storage.store_reader import StoreReader
from ringmain.subscribers import Historical, RealTime
from support.children import TIMEOUT_S
from support.logs import FILE_BYTES, PAIRS, append, make_rows
from support.replicas import LOG_ID, read_up_to, row_bytes

pytestmark = pytest.mark.process
KEYED = Schema("keyed", {"key": "u8", "value": "u8"}, key=("key",))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(4 * TIMEOUT_S):
            await test()

    asyncio.run(in_time())


def a_run(first: int, count: int) -> Run:
    return Run("pairs", PAIRS.hash, first, PAIRS.row_bytes, row_bytes(PAIRS, first, count))


def copy(data_dir: Path, to: Path) -> Contents:
    """Have a snapshot of one node's data proven at another's; returns what is in its log."""
    with snapshot_files(data_dir) as snapshot, receive_snapshot(snapshot_place(to), snapshot.listing) as receiving:
        for number, file in enumerate(snapshot.listing.files):
            receiving.write(number, snapshot.read(number, 0, file.file_bytes))
        return receiving.finish()


async def make_peer(bus: str, data_dir: Path, rows: int) -> Position:
    """The data of a node that has so many rows, and its position."""
    position = Position(9, 2, "peer", {"pairs": rows}, foreign=True)
    async with LocalReplica(bus, [PAIRS], data_dir, LOG_ID) as peer:
        await peer.apply(a_run(1, rows))
        await peer.store(position)
    return position


def left_of(data_dir: Path) -> list[Path]:
    """Tails that were set aside."""
    return sorted((data_dir / "lost+found").iterdir()) if (data_dir / "lost+found").is_dir() else []


# --- what stays, and what goes ------------------------------------------------------------------------------------------


def test_a_tail_of_its_own_is_set_aside_and_readers_go_on_behind_it(bus_name, tmp_path):
    told: list[str] = []
    read: list[int] = []

    async def test() -> None:
        position = await make_peer(f"{bus_name}p", tmp_path / "peer", 5000)
        settings = {"slots": 256, "progress": lambda done, total: read.append(done)}
        async with LocalReplica(bus_name, [PAIRS], tmp_path / "own", LOG_ID, settings, told=told.append) as own:
            await own.apply(a_run(1, 60))
            await own.lead(1, {"pairs": 60})
            with open_lane(f"{bus_name}/pairs") as lane:
                lane.publish_batch(make_rows(PAIRS, 9001, 40))
                await asyncio.to_thread(lane.wait, 40, "logged")
            reader, past = (
                RealTime(f"{bus_name}/pairs", start=1),
                Historical(f"{bus_name}/pairs", live=True, batch_rows=20),
            )
            await asyncio.to_thread(read_up_to, reader, 60, TIMEOUT_S)
            await asyncio.to_thread(read_up_to, past, 20, TIMEOUT_S)
            received = copy(tmp_path / "peer", tmp_path / "own")
            assert received.ends == {"pairs": 5000}
            await own.replace(position, received)
            assert read == []  # it was when it was proven
            assert own.position == position
            assert own.ends() == {"pairs": 5000}
            for subscriber, first in ((reader, 61), (past, 21)):
                rows = await asyncio.to_thread(read_up_to, subscriber, 5000, TIMEOUT_S)
                assert (rows["left"] == make_rows(PAIRS, first, 5001 - first)["left"]).all()
            await own.apply(a_run(5001, 10))
            (aside,) = left_of(tmp_path / "own")
            rows = LogReader(aside, "pairs").read(61)
            assert rows is not None
            assert rows["left"].tolist() == make_rows(PAIRS, 9001, 40)["left"].tolist()
            assert told == [f"40 rows that are not in the stream are set aside in {aside}"]
        async with LocalReplica(bus_name, [PAIRS], tmp_path / "own", LOG_ID) as own:
            assert own.position == position
            assert own.ends() == {"pairs": 5010}

    run(test)


def test_rows_that_the_snapshot_has_too_are_not_set_aside(bus_name, tmp_path):
    async def test() -> None:
        position = await make_peer(f"{bus_name}p", tmp_path / "peer", 5000)
        async with LocalReplica(bus_name, [PAIRS], tmp_path / "own", LOG_ID) as own:
            await own.apply(a_run(1, 3000))
            await own.store(Position(3, 1, "peer", {"pairs": 1000}))
        async with LocalReplica(
            bus_name, [PAIRS], tmp_path / "own", LOG_ID
        ) as own:  # knows of 1000 that they are the stream's
            await own.replace(position, copy(tmp_path / "peer", tmp_path / "own"))
            assert own.ends() == {"pairs": 5000}
        assert left_of(tmp_path / "own") == []

    run(test)


def test_a_snapshot_with_less_than_is_here_is_refused_and_nothing_changes(bus_name, tmp_path):
    async def test() -> None:
        position = await make_peer(f"{bus_name}p", tmp_path / "peer", 500)
        async with LocalReplica(bus_name, [PAIRS], tmp_path / "own", LOG_ID) as own:
            await own.apply(a_run(1, 600))
            with pytest.raises(BusError, match="up to 500, and 600 are here: it is too old"):
                await own.replace(position, copy(tmp_path / "peer", tmp_path / "own"))
            await own.apply(a_run(601, 10))
        async with LocalReplica(bus_name, [PAIRS], tmp_path / "own", LOG_ID) as own:
            assert own.position == Position()
            assert own.ends() == {"pairs": 610}
            assert not snapshot_place(tmp_path / "own").exists()

    run(test)


def test_what_else_is_in_the_directory_stays(bus_name, tmp_path):
    own_dir = tmp_path / "own"
    places = ["positions/pairs/x/position", "lost+found/tail/x", "log/lost+found/0000000001.log"]

    async def test() -> None:
        position = await make_peer(f"{bus_name}p", tmp_path / "peer", 500)
        async with LocalReplica(bus_name, [PAIRS], own_dir, LOG_ID) as own:
            for place in places:
                (own_dir / place).parent.mkdir(parents=True, exist_ok=True)
                (own_dir / place).write_text(place)
            await own.replace(position, copy(tmp_path / "peer", own_dir))
            assert [(own_dir / place).read_text() for place in places] == places
        assert {path.name for path in own_dir.iterdir()} == {"cluster", "log", "lost+found", "positions"}
        assert {path.name for path in (own_dir / "cluster").iterdir()} == {"position", "LOCK"}

    run(test)


def test_two_processes_cannot_hold_the_same_directory(bus_name, tmp_path):
    async def test() -> None:
        async with LocalReplica(bus_name, [PAIRS], tmp_path, LOG_ID) as own:
            with pytest.raises(LogLocked):
                await LocalReplica(f"{bus_name}b", [PAIRS], tmp_path, LOG_ID).open()
            await own.apply(a_run(1, 10))

    run(test)


# --- the store ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer_bytes", [1 << 20, 16 << 20], ids=["larger tables", "none yet"])
def test_readers_of_the_store_see_the_other_nodes_tables_and_no_old_ones_under_their_numbers(
    bus_name, tmp_path, peer_bytes
):
    def settings(memtable_bytes: int) -> dict[str, Any]:
        return {"store": StoreSettings(memtable_bytes=memtable_bytes, shape=Shape(table_bytes=1 << 18))}

    def keyed(first: int, count: int, value: int) -> Run:
        rows = np.zeros(count, KEYED.dtype)
        rows["sequence"] = np.arange(first, first + count)
        rows["timestamp_ns"] = rows["sequence"]
        rows["key"], rows["value"] = rows["sequence"] % 110_000, rows["sequence"] + value
        return Run("keyed", KEYED.hash, first, KEYED.row_bytes, rows.tobytes())

    async def fill(replica: LocalReplica, last: int) -> None:
        for first in range(1, last, 1000):
            await replica.apply(keyed(first, 1000, 0))

    async def test() -> None:
        async with LocalReplica(f"{bus_name}p", [KEYED], tmp_path / "peer", LOG_ID, settings(peer_bytes)) as peer:
            await fill(peer, 120_000)
            await peer.store(Position(9, 2, "peer", {"keyed": 120_000}, foreign=True))
            position = peer.position
            async with LocalReplica(bus_name, [KEYED], tmp_path / "own", LOG_ID, settings(1 << 18)) as own:
                await fill(own, 60_000)
                await own.store(Position(3, 2, "peer", {"keyed": 60_000}))
            async with LocalReplica(bus_name, [KEYED], tmp_path / "own", LOG_ID, settings(16 << 20)) as own:
                with StoreReader(tmp_path / "own", refresh_s=0) as store:
                    tree = store["keyed"]
                    row = tree.get(59_000)
                    assert row is not None
                    assert int(row["sequence"]) == 59_000
                    await own.replace(position, copy(tmp_path / "peer", tmp_path / "own"))
                    await own.apply(keyed(120_001, 1000, 0))
                    await own.store(Position(10, 2, "peer", {"keyed": 121_000}))  # once they are in the log
                    newest = {int(row["key"]): int(row["sequence"]) for part in tree.scan() for row in part}
                    assert newest == {sequence % 110_000: sequence for sequence in range(1, 121_001)}

    run(test)


# --- kills --------------------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


def test_killed_at_any_step_it_starts_again_with_all_of_the_old_or_all_of_the_new(bus_name, tmp_path, monkeypatch):
    own_dir, peer_dir, prepared = tmp_path / "own", tmp_path / "peer", tmp_path / "prepared"
    steps_left = [0]

    def killed_after(work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            if steps_left[0] == 0:
                raise _Killed
            steps_left[0] -= 1
            return work(*given, **named)

        return step

    async def opened() -> str:
        async with LocalReplica(bus_name, [PAIRS], own_dir, LOG_ID) as own:
            kind = {0: "old", 9: "new"}[own.position.stream]
            assert own.ends() == {"pairs": {"old": 700, "new": 5000}[kind]}
        rows = LogReader(own_dir / "log", "pairs").read(1, 700)
        assert rows is not None
        assert (rows["left"] == make_rows(PAIRS, 1, 700)["left"]).all()
        assert {path.name for path in (own_dir / "cluster").iterdir()} <= {"position", "LOCK"}
        return kind

    async def test() -> None:
        position = await make_peer(f"{bus_name}p", peer_dir, 5000)
        async with LocalReplica(bus_name, [PAIRS], prepared, LOG_ID) as own:
            await own.apply(a_run(1, 700))
        for module, name in (
            (replacing, "rename_file"),
            (replacing, "sync_directory"),
            (replacing, "cut_tail"),
            (replacing.shutil, "rmtree"),
            (replacing.SlotFile, "replace"),
        ):
            monkeypatch.setattr(module, name, killed_after(getattr(module, name)))
        kinds: list[str] = []
        for steps in range(100):
            steps_left[0] = -1
            if own_dir.exists():
                shutil.rmtree(own_dir)
            shutil.copytree(prepared, own_dir)
            copy(peer_dir, own_dir)
            steps_left[0] = steps
            try:
                await asyncio.to_thread(
                    replacing.replace_data, own_dir, {"pairs": 700}, msgspec.msgpack.encode(position)
                )
            except _Killed:
                steps_left[0] = steps // 2 + 1  # and once more
                with contextlib.suppress(_Killed):
                    await asyncio.to_thread(replacing.finish_replacing, own_dir)
                steps_left[0] = -1
                kinds.append(await opened())
                continue
            break
        steps_left[0] = -1
        assert await opened() == "new"
        assert len(kinds) > 8
        assert kinds == sorted(kinds, reverse=True)  # first always the old one, then always the new one

    run(test)


def test_each_rename_is_on_the_disk_before_what_rests_on_it(tmp_path, monkeypatch):
    """A kill loses no name, but a power cut does: of one that is not synced, in any order."""
    place, steps = snapshot_place(tmp_path), list[str]()
    for folder in (tmp_path, place):
        for name in ("archive", "store", "log"):
            (folder / name).mkdir(parents=True)
            (folder / name / "file").touch()
    (tmp_path / "log" / "lost+found").mkdir()
    (place / "position").touch()

    def named(path: Path) -> str:
        return path.relative_to(tmp_path).as_posix()

    def listening(work: Callable[..., Any], word: str) -> Callable[..., Any]:
        def step(*paths: Path) -> None:
            steps.append(" ".join([word, *map(named, paths)]))
            work(*paths)

        return step

    monkeypatch.setattr(replacing, "rename_file", listening(replacing.rename_file, "rename"))
    monkeypatch.setattr(replacing, "sync_directory", listening(replacing.sync_directory, "sync"))
    monkeypatch.setattr(replacing, "discard_snapshot", lambda _data_dir: steps.append("discard"))
    replacing.finish_replacing(tmp_path)
    expected: list[str] = []
    for name in ("archive", "store", "log"):
        new, old = f"cluster/snapshot/{name}", f"cluster/snapshot/old-{name}"
        expected += [f"rename {name} {old}", "sync cluster/snapshot"]
        if name == "log":
            expected += [f"rename {old}/lost+found {new}/lost+found", f"sync {new}", f"sync {old}"]
        expected += [f"rename cluster/snapshot/{name} {name}", "sync .", "sync cluster/snapshot"]
    expected += ["rename cluster/snapshot/position cluster/position", "sync cluster", "discard"]
    assert steps == expected


def test_a_reader_of_a_log_goes_on_in_another_one_with_the_same_rows(tmp_path):
    for name, file_bytes, count in (("one", FILE_BYTES, 400_000), ("other", 2 * FILE_BYTES, 500_000)):
        log = Log(tmp_path / name, [PAIRS], bus="test", file_bytes=file_bytes, sync_files=False)
        for _ in range(count // 10_000):
            append(log, PAIRS, 10_000)
        log.close()
    reader, first = LogReader(tmp_path / "one", "pairs"), 1
    while first <= 500_000:
        rows = reader.read(first)
        assert rows is not None
        assert (rows == make_rows(PAIRS, first, len(rows))).all()
        first += len(rows)
        if first == 300_001:
            (tmp_path / "one").rename(tmp_path / "gone")
            (tmp_path / "other").rename(tmp_path / "one")
            assert reader.newest == 500_000
