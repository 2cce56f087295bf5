"""ringmain.toml: what it can say, and that whatever else it says is refused with the place and what was expected."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ringmain.bus import Writer, attach
from ringmain.storage import SHIPPED, Schema, Shape
from ringmain.storage.log_files import list_files
from ringmain.tools import cluster_table, configuration
from ringmain.tools.configuration import BusPlan, ConfigError, load_configuration, parse_configuration
from ringmain.tools.gateway import table as gateway_table
from ringmain.tools.quantities import read_bytes, read_seconds
from support.example_runs import EXAMPLES

TABLES = {  # in the examples, and the keys that each may have
    "bus.NAME": {*configuration._Bus.__struct_fields__},
    "bus.NAME.topics.NAME": {*configuration._Topic.__struct_fields__},
    "bus.NAME.store": {*configuration._Store.__struct_fields__},
    "bus.NAME.store.shape": {field.name for field in dataclasses.fields(Shape)},
    "gateway": {*gateway_table._Gateway.__struct_fields__},
    "gateway.tokens.NAME": {*gateway_table._Token.__struct_fields__},
    "cluster": {*cluster_table._Cluster.__struct_fields__},
}

WHOLE = """[bus.exchange]
data_dir = "data"
sync = "always"
sync_interval = "2 ms"
slots = 1024
full = "drop"
full_timeout = 1.5
retention_bytes = "10 GB"
retention_age = "30 d"
group_readable = true
lanes = ["ticks"]
[bus.exchange.topics.ticks]
slots = 4096
key = ["instrument"]
description = "ticks"
[bus.exchange.topics.ticks.fields]
instrument = "u4"
price = {type = "i8", unit = "cents"}

[bus.exchange.topics.trades]

[bus.exchange.store]
topics = ["ticks"]
keep_versions = ["ticks"]
memtable_bytes = "64 MiB"
compression = "none"
snapshot_interval = "never"
compaction_bytes_per_s = "unlimited"
shape = {ratio = 4, table_bytes = "1 MiB"}

[bus.second]
topics.quotes = {}
"""


def plan_of(text: str, folder: Path = Path("/etc/ringmain")) -> tuple[BusPlan, ...]:
    return parse_configuration(text.encode(), folder / "ringmain.toml").buses


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan_of(text)
    return caught.value


def test_a_file_says_all_that_a_writer_is_given():
    exchange, second = plan_of(WHOLE)
    ticks = Schema("ticks", {"instrument": "u4", "price": "i8"}, ("instrument",), {"price": "cents"}, "ticks")
    assert (exchange.name, exchange.schemas) == ("exchange", (ticks, SHIPPED["trades"]))
    settings: dict[str, Any] = dict(exchange.settings)
    store = settings.pop("store")
    assert settings == {
        "data_dir": Path("/etc/ringmain/data"),
        "sync": "always",
        "sync_interval": 0.002,
        "slots": {"ticks": 4096, "trades": 1024},
        "full": "drop",
        "full_timeout": 1.5,
        "retention_bytes": 10_000_000_000,
        "retention_age": 30 * 86400.0,
        "group_readable": True,
        "lanes": ["ticks"],
    }
    assert (store.topics, store.keep_versions, store.memtable_bytes) == (["ticks"], ["ticks"], 64 << 20)
    assert (store.snapshot_interval, store.compaction_bytes_per_s) == (None, None)
    assert store.shape == Shape(ratio=4, table_bytes=1 << 20)
    assert (second.name, second.schemas, second.settings) == ("second", (SHIPPED["quotes"],), {"lanes": ["quotes"]})


def test_schemas_come_from_a_file_beside_it_too_and_a_topic_there_may_have_slots_here(tmp_path):
    (tmp_path / "schemas.toml").write_text('[topics.a.fields]\nx = "u4"\n[topics.b.fields]\ny = "u4"\n')
    (tmp_path / "ringmain.toml").write_text('[bus.one]\nschemas = "schemas.toml"\ntopics.b.slots = 16\n')
    configuration = load_configuration(tmp_path / "ringmain.toml")
    assert [schema.name for schema in configuration.buses[0].schemas] == ["a", "b"]
    assert configuration.buses[0].settings == {"slots": {"b": 16}, "lanes": ["a", "b"]}


def test_without_topics_of_its_own_a_store_keeps_all_that_are_published():
    store = plan_of('[bus.one]\ndata_dir = "d"\ntopics.orders = {}\ntopics.trades = {}\nstore = {}\n')[0].settings[
        "store"
    ]
    assert store.topics == ["orders", "trades"]


@pytest.mark.parametrize(
    ("old", "new", "line", "where", "expected"),
    [
        ("slots = 1024", "slots = 1000", 5, "bus.exchange.slots", "a power of two"),
        ("slots = 4096", "slots = 0", 13, "bus.exchange.topics.ticks.slots", "a power of two"),
        ("slots = 4096", 'slots = "many"', 13, "bus.exchange.topics.ticks.slots", "Expected `int | null`"),
        ('"u4"', '"u5"', 17, "bus.exchange.topics.ticks.fields.instrument", "type 'u5': allowed are"),
        ('key = ["instrument"]', 'key = ["x"]', 16, "bus.exchange.topics.ticks.fields.x", "not among the fields"),
        ('"always"', '"daily"', 3, "bus.exchange.sync", "Invalid enum value 'daily'"),
        ('"2 ms"', '"2 fortnights"', 4, "bus.exchange.sync_interval", 'text such as "30 d"'),
        ('"2 ms"', "0", 4, "bus.exchange.sync_interval", "a time above 0"),
        ('"10 GB"', '"10 GX"', 8, "bus.exchange.retention_bytes", 'text such as "10 GB"'),
        ("full_timeout", "ful_timeout", 7, "bus.exchange.ful_timeout", "unknown here; expected one of data_dir"),
        (
            "[bus.exchange.topics.trades]",
            "[bus.exchange.topics.trade]",
            20,
            "bus.exchange.topics.trade.fields",
            "ships",
        ),
        ("ratio = 4", "ratio = 1", 29, "bus.exchange.store.shape", "ratio 1 >= 2"),
        ("ratio = 4", "ration = 4", 29, "bus.exchange.store.shape.ration", "expected one of level0_tables"),
        ('topics = ["ticks"]', 'topics = ["tocks"]', 22, "bus.exchange.store", "not among the schemas: tocks"),
        ('data_dir = "data"\n', "", 21, "bus.exchange.store", "data_dir beside it"),
        ('compression = "none"', 'compression = "zip"', 26, "bus.exchange.store.compression", "Invalid enum value"),
        ('lanes = ["ticks"]', 'lanes = ["tacks"]', 11, "bus.exchange.lanes", "one of the bus's topics (ticks, trades)"),
        ("[bus.second]", "[bus.Second]", 31, "bus.Second", "bus"),
        ("[bus.second]", "[buses.second]", 31, "buses", "unknown here; expected one of bus"),
        ("topics.quotes = {}", "", 31, "bus.second.topics", "at least one topic"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line_its_place_and_what_was_expected(old, new, line, where, expected):
    assert old in WHOLE
    error = refused(WHOLE.replace(old, new, 1))
    assert (error.line, error.where) == (line, where), str(error)
    assert expected in error.expected
    assert str(error).startswith(f"/etc/ringmain/ringmain.toml, line {line}: {where}: ")


@pytest.mark.parametrize("text", ["[bus", "bus = 3", "", "[bus]\n", "[bus]\nexchange = 3\n", "\xff"])
def test_what_is_no_configuration_at_all_is_refused_and_named(text):
    with pytest.raises(ConfigError, match=r"^ringmain\.toml"):
        parse_configuration(text.encode("latin-1"), Path("ringmain.toml"))


@pytest.mark.parametrize("text", ["", "bus = {}\n", "[gateway]\nport = 0\n"])
def test_a_file_without_a_bus_is_told_that_one_is_expected(text):
    error = refused(text)
    assert (error.where, error.expected) == ("bus", "at least one table [bus.NAME]")


def gateway_topics(*patterns: str) -> tuple[str, ...]:
    """What the gateway offers with these in `topics`, beside two buses."""
    text = f"{WHOLE}[gateway]\ntopics = {json.dumps(patterns)}\n"
    gateway = parse_configuration(text.encode(), Path("/dev/null/ringmain.toml")).gateway
    assert gateway is not None
    return gateway.topics


@pytest.mark.parametrize(
    "pattern", ["exchange/nope", "exchange/t?cks?", "second/ticks", "exchange", "exchange/", "ticks"]
)
def test_a_gateway_s_pattern_that_matches_no_topic_is_refused_before_a_client_finds_out(pattern):
    with pytest.raises(ConfigError) as caught:
        gateway_topics("exchange/ticks", pattern)
    assert (caught.value.line, caught.value.where) == (34, "gateway.topics")
    topics = "exchange/ticks, exchange/trades, exchange/_health, second/quotes, second/_health"
    expected = (
        f"topics that this file declares ({topics}) or that a bus's log has, or patterns of them, not {pattern!r}"
    )
    assert caught.value.expected == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*/trades",
        "exchange/t?cks",
        "exchange/[a-t]*",
        "ex*s",
        "exchange/_health",
        "third/nope",
        "third*",
        "ex*/nope",
    ],
)
def test_a_gateway_s_pattern_may_match_a_topic_or_be_of_another_process_s_bus(pattern):
    assert gateway_topics(pattern) == (pattern,)


def test_a_gateway_s_pattern_may_match_a_topic_that_only_the_log_of_a_bus_has(tmp_path, bus_name):
    def offered(*patterns: str) -> tuple[str, ...]:
        text = (
            f'[bus.{bus_name}]\ndata_dir = "data"\ntopics.trades = {{}}\n[gateway]\ntopics = {json.dumps(patterns)}\n'
        )
        gateway = parse_configuration(text.encode(), tmp_path / "ringmain.toml").gateway
        assert gateway is not None
        return gateway.topics

    old, other = f"{bus_name}/old", f"{bus_name}/other"
    with pytest.raises(ConfigError, match=f"not '{old}'"):
        offered(old)
    with Writer(bus_name, [Schema("old", {"value": "u8"})], data_dir=tmp_path / "data"):
        pass
    with Writer(bus_name, [SHIPPED["trades"]], data_dir=tmp_path / "data"):
        assert attach(old).topic == "old"  # a ring of its own
    assert offered(old, f"{bus_name}/o*") == (old, f"{bus_name}/o*")
    with pytest.raises(ConfigError, match=f"not '{other}'"):
        offered(other)
    newest = list_files(tmp_path / "data" / "log")[-1][1]
    newest.write_bytes(bytes(4096))  # what it has is not known then; the writer tells what is wrong
    assert offered(other) == (other,)


def test_a_file_of_schemas_that_is_not_there_or_not_sound_is_named(tmp_path):
    path = tmp_path / "ringmain.toml"
    path.write_text('[bus.one]\nschemas = "schemas.toml"\n')
    with pytest.raises(ConfigError, match=r"line 2: bus\.one\.schemas: .*No such file.*schemas\.toml"):
        load_configuration(path)
    (tmp_path / "schemas.toml").write_text('[topics.a.fields]\nx = "u5"\n')
    with pytest.raises(ConfigError, match=r"line 2: bus\.one\.schemas: .*schemas\.toml: topic 'a', field 'x'"):
        load_configuration(path)


def test_amounts_are_read_as_people_write_them():
    assert [read_bytes(given) for given in ("1 B", "1.5 kB", "2MiB", "1 TB", 7)] == [1, 1500, 2 << 20, 10**12, 7]
    assert [read_seconds(given) for given in ("5 us", "1.5 ms", "2 min", "1 h", "1 d", 0.25)] == pytest.approx(
        [5e-6, 0.0015, 120.0, 3600.0, 86400.0, 0.25]
    )
    for wrong in ("", "GB", "1 gb", "-1 GB", "1e3 B", "1 GB ", "١ GB", True, 0, "0 B", "0.2 B"):
        with pytest.raises(ValueError, match="expected"):
            read_bytes(wrong)
    for wrong in ("1 year", "0 s", -1, "s"):
        with pytest.raises(ValueError, match="expected"):
            read_seconds(wrong)


# --- the examples: they are what there is to be read about all keys -----------------------------------------------------


def uncommented(name: str) -> str:
    """An example with the keys and tables that it has in comments; of the two ways to give tokens, the table."""
    text = (EXAMPLES / name).read_text().replace('# tokens = "tokens.toml"', "#")
    return re.sub(r"^# (?=\[[a-z.]+\] |[a-z0-9_]+ = )", "", text, flags=re.MULTILINE)


def keys_of(document: dict[str, Any], table: str) -> set[str]:
    """The keys that such tables have between them. table: its name, with NAME for any."""
    found = [document]
    for part in table.split("."):
        found = [entry for above in found for name, entry in above.items() if part in (name, "NAME")]
    return set().union(*found)


def test_the_examples_name_every_key_that_there_is():
    service, node = (tomllib.loads(uncommented(name)) for name in ("ringmain.toml", "cluster/ringmain.toml"))
    assert service.keys() == {*configuration._Document.__struct_fields__}
    missing = {
        table: sorted(keys - keys_of(node if table == "cluster" else service, table)) for table, keys in TABLES.items()
    }
    assert missing == {table: [] for table in TABLES}


def test_the_keys_in_comments_are_sound_and_have_their_defaults(tmp_path):
    plain = load_configuration(EXAMPLES / "ringmain.toml")
    shutil.copy(EXAMPLES / "schemas.toml", tmp_path)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    text = uncommented("ringmain.toml").replace("\n[cluster]", "\n")
    whole = parse_configuration(text.encode(), tmp_path / "ringmain.toml")
    (before,), (after,) = plain.buses, whole.buses
    assert after.settings["store"] == before.settings["store"]
    added = {name: value for name, value in after.settings.items() if name not in before.settings}
    assert added.pop("full_timeout") > 0  # without it: for ever
    assert added == {"log_file_bytes": inspect.signature(Writer).parameters["log_file_bytes"].default}
    assert plain.gateway is not None
    assert whole.gateway is not None
    assert whole.gateway.cert == tmp_path / "cert.pem"
    assert [(token.name, token.topics) for token in whole.gateway.tokens] == [("dashboard", ("*",))]
    assert dataclasses.replace(whole.gateway, cert=None, key=None, tokens=()) == plain.gateway


def test_the_keys_in_comments_of_a_cluster_s_example_have_their_defaults(tmp_path):
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("secret")
    plain, whole = (
        parse_configuration(text.encode(), tmp_path / "ringmain.toml").cluster
        for text in ((EXAMPLES / "cluster" / "ringmain.toml").read_text(), uncommented("cluster/ringmain.toml"))
    )
    assert plain is not None
    assert whole == plain
