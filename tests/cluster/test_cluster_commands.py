"""`ringmain cluster`, as a shell runs it: a whole cluster on this machine, and the files for real hosts."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.command import COMMAND, TIMEOUT_S, environment, ringmain, succeed
from support.logs import wait_until

pytest.importorskip("nats", reason="the cluster needs `pip install ringmain[cluster]`")
pytest.importorskip("cryptography", reason="the cluster needs `pip install ringmain[cluster]`")
from ringmain.bus import NotFound, NotLeader, open_lane
from ringmain.bus.cluster.peers import ClaimStatus, NodeStatus, StreamStatus
from ringmain.bus.cluster.servers import find_server
from ringmain.subscribers import RealTime
from ringmain.tools.cluster_status import report_of
from ringmain.tools.configuration import ConfigError, parse_configuration

pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster" / "ringmain.toml"
CONFIGURATION = EXAMPLE.read_text()


@contextlib.contextmanager
def up(directory: Path, *options: str) -> Generator[subprocess.Popen[str]]:
    try:
        find_server()
    except NotFound as error:
        pytest.skip(str(error))
    process = subprocess.Popen(
        [*COMMAND, "cluster", "up", str(directory), *options], stdout=subprocess.PIPE, env=environment(), text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def healthy(config: Path) -> dict[str, Any]:
    """What `status` tells, once all three nodes are there and nothing is wrong."""
    told: dict[str, Any] = {}

    def well() -> bool:
        done = ringmain("cluster", "status", str(config), "--json")
        told.update(json.loads(done.stdout))
        assert (done.returncode == 0) == (not told["faults"])
        return done.returncode == 0 and len(told["nodes"]) == 3

    wait_until(well, TIMEOUT_S)
    return told


def test_a_cluster_on_this_machine_is_led_and_followed_handed_over_and_gone_with_its_command(
    tmp_path: Path, bus_name: str
) -> None:
    with up(tmp_path / "up", "--tls", "--prefix", bus_name) as process:
        assert process.stdout is not None
        assert " leads, pid " in process.stdout.readline()
        config = tmp_path / "up" / "a" / "ringmain.toml"
        told = healthy(config)
        leader, follower = told["leader"], next(n["node"] for n in told["nodes"] if not n["leads"])

        with open_lane(f"{bus_name}{leader}/trades") as lane:
            for count in range(1, 101):
                lane.publish(count, 0, 0, 1, 2, 18_2500, 100, 600519, b"B")
            lane.wait(100, "replicated", timeout=TIMEOUT_S)
        with RealTime(f"{bus_name}{follower}/trades", start=1) as reader:
            found: list[int] = []
            for batch in reader:
                found += batch.copy()["sequence"].tolist()
                if len(found) >= 100:
                    break
            assert found == list(range(1, 101))
        with pytest.raises(NotLeader, match=f"node '{leader}' does: publish there"):
            open_lane(f"{bus_name}{follower}/trades")

        succeed("cluster", "switchover", str(config), "--to", follower)
        after = healthy(config)
        assert (after["leader"], after["epoch"]) == (follower, told["epoch"] + 1)
        assert [claim["node"] for claim in after["claims"][-2:]] == [leader, follower]
        assert all(node["applied"] == {"trades": 100} and node["lag_records"] == 0 for node in after["nodes"])
        assert ringmain("cluster", "switchover", str(config), "--to", "nobody").returncode == 1

        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 6
        process.kill()  # it can do nothing about them any more
        wait_until(lambda: all(not c.is_running() or c.status() == psutil.STATUS_ZOMBIE for c in children), TIMEOUT_S)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The folder of a host's files."""
    succeed("cluster", "certificates", tmp_path / "tls", "--host", "a.example.com,10.0.0.1")
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "ringmain.toml").write_text(CONFIGURATION)
    return tmp_path


def test_a_server_s_configuration_is_made_of_a_node_s_and_is_its_owner_s_alone(host: Path) -> None:
    output = host / "nats.conf"
    (host / "password").write_text("gehe\u00efm\n", "utf-8")
    succeed("cluster", "server-config", host / "ringmain.toml", "--store", host / "l\u00e4ger", "--output", output)
    assert output.stat().st_mode & 0o777 == 0o600
    try:
        program = find_server()
    except NotFound as error:
        pytest.skip(str(error))
    done = subprocess.run([program, "-c", output, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = output.read_text("utf-8")
    assert '"password": "gehe\u00efm"' in text
    assert '"sync_interval": "always"' in text
    assert text.count('"verify": true') == 2  # for clients, and for its peers


def test_what_nodes_know_to_be_wrong_is_a_fault_and_so_is_a_node_that_one_of_them_misses() -> None:
    def status(node: str, **more: Any) -> NodeStatus:
        facts: dict[str, Any] = {"bus": "x", "pid": 1, "leads": node == "a", "leader": "a", "epoch": 1, "sequence": 9}
        facts |= {"acknowledge": "sync", "server": "", "lag_ms": 1.0}
        return NodeStatus(node=node, **facts, **more)

    def faults(*statuses: NodeStatus) -> list[str]:
        stream = StreamStatus(1, 9, 100, 1000, "s1", 0)
        return report_of("demo", "sync", [*statuses], stream).faults

    assert faults(status("a"), status("b")) == []
    unfit = "nothing is replicated: s3: it acknowledges messages minutes before it syncs them"
    assert faults(status("a", faults=[unfit]), status("b")) == [f"node a: {unfit}"]
    assert faults(status("a", missed=["b", "c"]), status("c")) == ["node b does not answer"]
    led = [ClaimStatus(1, "b", 1), ClaimStatus(2, "a", 2)]
    assert faults(status("a", claims=led, missed=["b"])) == ["node b does not answer"]


def test_a_directory_that_was_made_otherwise_is_not_used_as_if_it_were_as_asked(tmp_path: Path) -> None:
    (tmp_path / "servers").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("secret")
    (tmp_path / "a" / "ringmain.toml").write_text(
        '[bus.xa]\ndata_dir = "data"\n[bus.xa.topics.trades]\n[cluster]\nname = "demo"\nnode = "a"\n'
        'servers = ["127.0.0.1:14222"]\nuser = "nodes"\npassword_file = "../password"\n'
    )
    for options, words in (
        (["--tls"], "it was made without --tls; take another directory"),
        (["--prefix", "y"], "it was made for a bus 'xa', not 'ya'; take another directory"),
        ([], "it was made for a bus 'xa', not 'a'; take another directory"),
    ):
        done = ringmain("cluster", "up", tmp_path, *options)
        assert (done.returncode, words in done.stderr.decode()) == (2, True), done.stderr


def test_what_is_wrong_with_a_cluster_s_table_is_told_with_its_line(host: Path) -> None:
    path = host / "ringmain.toml"
    plan = parse_configuration(CONFIGURATION.encode(), path).cluster
    assert plan is not None
    assert (plan.name, plan.node, plan.stream.name, plan.stream.replicas) == ("exchange", "a", "ringmain-exchange", 3)
    assert plan.access.password == "secret"
    assert plan.keep_bytes == plan.stream.bytes_max // 2
    data_dir = 'data_dir = "/var/lib/ringmain/exchange"'
    ca = CONFIGURATION.index("ca =")
    for old, new, words in (
        ('node = "a"', 'node = "A b"', r"line \d+: cluster\.node: .*lower-case"),
        ('"b.example.com:4222"', '"nats://b"', r"line \d+: cluster\.servers: HOST:PORT, .* not 'nats://b'"),
        ('user = "exchange"', "", r"cluster.*: user and password_file, both or none"),
        ('password_file = "password"', 'password_file = "none"', r"line \d+: cluster\.password_file: .*No such file"),
        ('ca = "tls/ca.pem"', "", r"ca, cert and key together; ca is missing"),
        (CONFIGURATION[ca:], "", r"cluster\.servers: ca, cert and key beside servers of other"),
        (data_dir, "", r"line \d+: bus\.exchange: data_dir: a node of a cluster keeps a log"),
        (
            data_dir,
            f'{data_dir}\nsync = "never"',
            r"line \d+: bus\.exchange\.sync: .*what is acknowledged is on a disk",
        ),
        ("[cluster]", "[bus.other.topics.orders]\n[cluster]", r"cluster: one table \[bus\.NAME\] beside it"),
        ('node = "a"', 'node = "a"\nreplicas = 7', r"cluster\.replicas: 1 to 5"),
        ("50 GB", "much", r"cluster\.stream_bytes: "),
        ("50 GB", "4 MB", r"line \d+: cluster\.stream_bytes: at least 4194304 bytes; got 4000000"),
        (
            'node = "a"',
            'node = "a"\nstream_keep = "46 GB"',
            r"cluster\.stream_keep: .*at most nine tenths of stream_bytes",
        ),
        ('node = "a"', 'node = "a"\nleader = true', r"cluster\.leader: unknown here"),
    ):
        assert old in CONFIGURATION
        with pytest.raises(ConfigError, match=words):
            parse_configuration(CONFIGURATION.replace(old, new).encode(), path)
    (host / "password").chmod(0o644)
    with pytest.raises(ConfigError, match=r"cluster\.password_file: a file for its owner alone: chmod 600"):
        parse_configuration(CONFIGURATION.encode(), path)


def test_a_node_says_what_is_wrong_with_its_certificate_before_it_opens_anything(host: Path) -> None:
    (host / "tls" / "a.example.com.key").chmod(0o604)
    done = ringmain("cluster", "node", host / "ringmain.toml")
    assert done.returncode == 1
    assert b"a.example.com.key: everybody on this machine may read this key: chmod 600" in done.stderr
    assert b"run `ringmain cluster node" in ringmain("serve", host / "ringmain.toml").stderr
