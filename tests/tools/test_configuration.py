"""ringmain.toml: what it can say, and that whatever else it says is refused with the place and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ringmain.storage import SHIPPED, Schema, Shape
from ringmain.tools.configuration import BusPlan, ConfigError, load_configuration, parse_configuration
from ringmain.tools.quantities import read_bytes, read_seconds

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
