"""`ringmain serve` as a service: ready, at work, killed, started again, stopped in good order; and `ringmain health` beside it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ringmain.bus import attach, open_lane
from ringmain.subscribers import RealTime
from ringmain.tools.exit_codes import FAILED, MISSING, OK
from support.command import COMMAND, TIMEOUT_S, environment, facts, ringmain, succeed
from support.gateways import Client
from support.logs import wait_until
from support.services import serving

pytestmark = pytest.mark.process


@pytest.fixture
def config(tmp_path: Path, bus_name: str) -> Path:
    path = tmp_path / "ringmain.toml"
    path.write_text(
        f'[bus.{bus_name}]\ndata_dir = "data"\nslots = 1024\ntopics.points.fields.value = "u8"\ntopics.points.key = ["value"]\n'
        "store = {}\n"
    )
    return path


def test_it_is_ready_then_stops_in_good_order_when_told_to(config, bus_name):
    with serving(config) as service:
        service.wait_for("ready", buses=bus_name)
        ring = attach(f"{bus_name}/points")
        assert (ring.header["pid"], ring.header["slot_count"]) == (service.process.pid, 1024)
        assert ring.header["indexes"]
        assert ring.header["data_dir"] == str(config.parent / "data")
        service.wait_for("health", kind="writer", state="healthy")
        assert service.stop() == OK
        assert [line["event"] for line in service.lines][-3:] == ["stopping", "closed", "stopped"]
        assert service.rest == []
        assert all({"time", "level", "event"} <= line.keys() for line in service.lines)
    assert not list(Path("/dev/shm").glob(f"ringmain.{bus_name}*"))


def test_ctrl_c_stops_it_as_well_and_sighup_says_that_a_restart_is_needed(config):
    with serving(config) as service:
        service.wait_for("ready")
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("SIGHUP: a changed configuration needs a restart", level="warning")
        assert service.stop(signal.SIGINT) == OK


def test_other_processes_publish_to_what_it_serves_also_after_it_was_killed(config, bus_name):
    with serving(config) as first:
        first.wait_for("ready")
        with open_lane(f"{bus_name}/points", reopen=True) as lane, RealTime(f"{bus_name}/points", start=1) as reader:
            lane.wait(lane.publish(10), "durable", TIMEOUT_S)
            first.process.kill()
            first.wait()
            with serving(config) as second:
                second.wait_for("ready")
                lane.wait(lane.publish(20), "indexed", TIMEOUT_S)
                found: list[int] = []
                while len(found) < 2:
                    batch = reader.take(TIMEOUT_S)
                    assert batch is not None, found
                    found += batch.copy()["value"].tolist()
                assert found == [10, 20]
                lane.close()
                assert second.stop() == OK
    assert "20" in succeed("get", config.parent / "data", "points", "20")


def test_killed_and_started_again_it_has_what_it_had(config, bus_name):
    with serving(config) as service:
        service.wait_for("health", kind="writer", state="healthy")
        with RealTime(f"{bus_name}/_health", start=1) as reader:
            assert reader.take(TIMEOUT_S) is not None  # so the row is published, and in the ring at least
        service.process.kill()
        service.wait()
    with serving(config) as service:
        opened = service.wait_for("opened", bus=bus_name)
        assert opened["recovered_rows"] + opened["saved_from_rings"] >= 1
        assert opened["epoch"] == 2


def test_a_second_writer_is_refused_and_takes_over_when_it_is_told_to(config, bus_name):
    with serving(config) as first:
        first.wait_for("ready")
        refused = ringmain("serve", config)
        assert refused.returncode == FAILED
        assert f"already has a writer, process {first.process.pid}" in refused.stderr.decode()
        with serving(config, "--take-over") as second:
            second.wait_for("ready")
            assert attach(f"{bus_name}/points").header["pid"] == second.process.pid


def test_systemd_is_told_when_it_is_ready_alive_and_stopping(config, bus_name, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(TIMEOUT_S)
        with serving(config, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000") as service:
            assert receiver.recv(1000).decode() == f"READY=1\nSTATUS=serving {bus_name}"
            assert receiver.recv(1000).decode() == "WATCHDOG=1"
            service.process.terminate()
            while (told := receiver.recv(1000).decode()) != "STOPPING=1":
                assert told == "WATCHDOG=1"
            assert service.wait() == OK


def test_what_happens_to_a_subscriber_is_logged_and_can_be_read_on_the_bus(config, bus_name):
    with serving(config) as service, RealTime(f"{bus_name}/_health", start="latest", open_timeout=TIMEOUT_S) as health:
        service.wait_for("ready")
        victim = subprocess.Popen([*COMMAND, "subscribe", f"{bus_name}/points"], stdout=subprocess.DEVNULL)
        try:
            service.wait_for("health", kind="subscriber", pid=victim.pid, state="healthy", topic="points")
            os.kill(victim.pid, signal.SIGSTOP)
            service.wait_for("health", pid=victim.pid, state="failed", reason="stopped", level="error")
        finally:
            victim.kill()
            victim.wait()
        service.wait_for("health", pid=victim.pid, state="failed", reason="dead")
        found: list[tuple[bytes, bytes]] = []
        while (b"failed", b"dead") not in found:
            batch = health.take(TIMEOUT_S)
            assert batch is not None, found
            found += [(bytes(row["state"]), bytes(row["reason"])) for row in batch.copy() if row["pid"] == victim.pid]
        assert found == [(b"healthy", b""), (b"failed", b"stopped"), (b"failed", b"dead")]


def test_health_tells_how_everybody_is_and_its_exit_code_says_whether_all_is_well(config, bus_name):
    assert ringmain("health", bus_name).returncode == MISSING
    with serving(config) as service:
        service.wait_for("ready")
        shown = facts("health", bus_name)
        assert shown["state"] == "healthy"
        assert [(entry["kind"], entry["pid"]) for entry in shown["subjects"]] == [("writer", service.process.pid)]
        assert "healthy" in succeed("health", bus_name)
        os.kill(service.process.pid, signal.SIGSTOP)
        shown = facts("health", bus_name, code=FAILED)
        assert [(entry["state"], entry["reason"]) for entry in shown["subjects"]] == [("failed", "stopped")]
        os.kill(service.process.pid, signal.SIGCONT)


def test_check_says_what_would_run_and_opens_nothing(config, bus_name):
    shown = succeed("serve", config, "--check")
    assert f"{bus_name}/points" in shown
    assert str(config.parent / "data") in shown
    assert not (config.parent / "data").exists()
    assert not list(Path("/dev/shm").glob(f"ringmain.{bus_name}*"))


def test_a_bad_configuration_ends_it_before_anything_is_opened(config, bus_name):
    config.write_text(config.read_text().replace("1024", "1000"))
    done = ringmain("serve", config)
    assert done.returncode == FAILED
    assert f"{config}, line 3: bus.{bus_name}.slots: a power of two" in done.stderr.decode()
    assert not (config.parent / "data").exists()
    assert ringmain("serve", config.with_name("nowhere.toml")).returncode == MISSING


def test_the_example_of_a_configuration_is_sound_and_so_is_the_unit(tmp_path):
    examples = Path(__file__).parents[2] / "examples"
    check = ringmain("serve", examples / "ringmain.toml", "--check", env=environment(COLUMNS="80"))
    *_, trades, orders, limits, data, gateway = check.stdout.decode().splitlines()
    assert [line.split()[0] for line in (trades, orders, limits)] == [
        f"exchange/{name}" for name in ("trades", "orders", "limits")
    ]
    assert data == "exchange: data in /var/lib/ringmain/exchange"
    assert gateway.startswith("gateway: ws://127.0.0.1:8765/ws")
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the unit is not checked")
    unit = tmp_path / "ringmain.service"
    text = (examples / "ringmain.service").read_text()
    unit.write_text(text.replace("/usr/local/bin/ringmain", sys.executable))
    checked = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert unit.name not in checked.stderr, checked.stderr


def with_gateway(config: Path) -> None:
    config.write_text(config.read_text() + "[gateway]\nport = 0\n")


def test_the_gateway_of_a_configuration_serves_its_topics_and_stops_with_it(config, bus_name):
    with_gateway(config)
    assert f"gateway: ws://127.0.0.1:0/ws, no tokens, {bus_name}/*" in succeed("serve", config, "--check")
    with serving(config) as service:
        port = service.wait_for("ready", host="127.0.0.1")["port"]
        with Client(f"ws://127.0.0.1:{port}/ws") as client:
            client.subscribe(f"{bus_name}/_health")
            assert service.stop() == OK
            assert client.closed()[0] == 1001
        ended = [line["event"] for line in service.lines if line["event"] in ("closed", "stopped")]
        assert ended == ["stopped", "closed", "stopped"]  # the gateway first
        assert service.rest == []


def test_a_gateway_that_dies_is_started_again_and_ends_when_its_server_is_killed(config, bus_name):
    with_gateway(config)
    with serving(config) as service:
        service.wait_for("ready", host="127.0.0.1")
        (gateway,) = psutil.Process(service.process.pid).children()
        gateway.kill()
        service.wait_for("the gateway ended", code=-signal.SIGKILL)
        wait_until(lambda: len([line for line in service.lines if line.get("host")]) == 2, TIMEOUT_S)
        (gateway,) = psutil.Process(service.process.pid).children()
        service.process.kill()
        gateway.wait(TIMEOUT_S)
