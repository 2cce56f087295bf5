"""What `ringmain ls`, `inspect` and `clean` say and do about lanes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import typer
from ringmain.bus.observing import Observer
from ringmain.bus.segments import lane_name, list_lanes
from ringmain.bus.snapshot import Snapshot
from ringmain.tools import cleaning
from ringmain.tools.exit_codes import FAILED, OK
from support.children import Child, Children
from support.command import facts, ringmain, segments, succeed

pytestmark = pytest.mark.process


class Scene(NamedTuple):
    """A bus with one lane, whose publisher has published ten records that are in the topic, and seven that are not yet."""

    bus: str
    writer: Child
    publisher: Child


@pytest.fixture(params=["rings only", "with log"])
def scene(request, tmp_path, bus_name: str) -> Iterator[Scene]:
    with Children() as children:
        writer, publisher = children.start(), children.start()
        data_dir = str(tmp_path) if request.param == "with log" else None
        writer.run(
            "writer = Writer(name, [PAIRS], lanes=['pairs'], data_dir=data_dir)", name=bus_name, data_dir=data_dir
        )
        publisher.run("lane = open_lane(f'{name}/pairs', slots=64)", name=bus_name)
        publisher.run("for _ in range(10): last = lane.publish(1)\nlane.wait(last, 'drained', 30)")
        if data_dir is not None:
            publisher.run("lane.wait(last, 'logged', 30)")
        writer.kill()
        publisher.run("for _ in range(7): lane.publish(2)")
        yield Scene(bus_name, writer, publisher)


def test_inspect_shows_each_lane_with_its_publisher_and_what_waits_in_it(scene: Scene) -> None:
    (number,) = list_lanes(scene.bus, "pairs")
    (topic,) = facts("inspect", f"{scene.bus}/pairs", "--interval", "0")["topics"]
    assert topic["lanes"] == [
        {
            "lane": f"{number:016x}",
            "pid": scene.publisher.pid,
            "process": "alive",
            "entry": "open",
            "slot_count": 64,
            "published": 17,
            "drained": 10,
            "waiting_count": 7,
        }
    ]
    for told in (succeed("inspect", f"{scene.bus}/pairs"), succeed("inspect", scene.bus)):
        assert f"{number:016x}" in told
        assert str(scene.publisher.pid) in told
    scene.publisher.kill()
    (topic,) = facts("inspect", f"{scene.bus}/pairs", "--interval", "0")["topics"]
    assert topic["lanes"][0]["process"] == "dead"


def test_ls_counts_lanes_and_takes_none_for_a_topic(scene: Scene) -> None:
    (bus,) = [bus for bus in facts("ls")["buses"] if bus["bus"] == scene.bus]
    assert [(topic["topic"], len(topic["lanes"])) for topic in bus["topics"]] == [("pairs", 1)]


def test_clean_removes_lanes_and_counts_what_is_lost_with_them(scene: Scene) -> None:
    lane = lane_name(scene.bus, "pairs", list_lanes(scene.bus, "pairs")[0])
    scene.publisher.kill()
    done = ringmain("clean", scene.bus)
    if done.returncode == FAILED:
        assert b"refused; 7 records are published and not in its log" in done.stdout
        assert list_lanes(scene.bus, "pairs")
        done = ringmain("clean", scene.bus, "--force")
        assert b"7 records are only in its rings" in done.stderr
    else:
        assert b"17 records are only in its rings" in done.stderr
    assert done.returncode == OK
    assert segments(scene.bus) == {}
    assert list_lanes(scene.bus, "pairs") == [], lane


def test_a_publisher_that_lives_while_its_bus_is_cleaned_goes_on_with_the_next_writer(tmp_path, bus_name: str) -> None:
    with Children() as children:
        first, second, publisher = children.start(), children.start(), children.start()
        opens = "writer = Writer(name, [PAIRS], lanes=['pairs'], data_dir=data_dir)"
        first.run(opens, name=bus_name, data_dir=str(tmp_path))
        publisher.run("lane = open_lane(f'{name}/pairs', slots=64, full_timeout=30)", name=bus_name)
        publisher.run("for _ in range(10): last = lane.publish(1)\nlane.wait(last, 'logged', 30)")
        first.kill()
        assert succeed("clean", bus_name)
        assert segments(bus_name) == {}
        second.run(opens, name=bus_name, data_dir=str(tmp_path))
        publisher.run("for _ in range(200): last = lane.publish(2)\nlane.wait(last, 'logged', 30)")
        (topic,) = facts("inspect", f"{bus_name}/pairs", "--interval", "0")["topics"]
        assert topic["published"] == 210


def test_what_is_published_in_a_lane_while_its_bus_is_cleaned_is_kept_for_the_next_writer(
    tmp_path, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look that finds nothing to lose and the removing."""
    with Children() as children:
        first, second, publisher = children.start(), children.start(), children.start()
        opens = "writer = Writer(name, [PAIRS], lanes=['pairs'], data_dir=data_dir)"
        first.run(opens, name=bus_name, data_dir=str(tmp_path))
        publisher.run("lane = open_lane(f'{name}/pairs', slots=64)", name=bus_name)
        publisher.run("for _ in range(10): last = lane.publish(1)\nlane.wait(last, 'logged', 30)")
        first.kill()
        looks: list[int] = []

        class Late(Observer):
            def look(self, bus: str | None = None, topic: str | None = None) -> Snapshot:
                found = super().look(bus, topic)
                if not looks:
                    publisher.run("for _ in range(7): last = lane.publish(2)")
                looks.append(len(found.buses))
                return found

        monkeypatch.setattr(cleaning, "Observer", Late)
        with pytest.raises(typer.Exit) as ended:
            cleaning.clean(bus_name)
        assert ended.value.exit_code == FAILED
        assert len(list_lanes(bus_name, "pairs")) == 1
        second.run(opens, name=bus_name, data_dir=str(tmp_path))
        publisher.run("lane.wait(last, 'logged', 30)")
        (topic,) = facts("inspect", f"{bus_name}/pairs", "--interval", "0")["topics"]
        assert topic["published"] == 17
