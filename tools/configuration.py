"""ringmain.toml: the buses that `ringmain serve` runs, in one file, checked as a whole before anything is opened.

[bus.exchange]
data_dir = "data"                       # relative to this file; without it: rings only
schemas = "schemas.toml"                # or each topic's fields below, or the name of a topic that ships with ringmain
sync = "interval"                       # interval, always, never
sync_interval = "1 ms"                  # the default, but in a cluster (docs/cluster.md)
slots = 65536
full = "block"                          # block, raise, drop
retention_age = "30 d"
retention_bytes = "500 GB"

[bus.exchange.topics.trades]
slots = 262144
key = ["instrument"]
[bus.exchange.topics.trades.fields]
instrument = "u4"
price = {type = "i8", unit = "1/10,000 CNY"}

[bus.exchange.store]                    # topics that are kept by key; without this table none is
topics = ["trades"]
memtable_bytes = "128 MiB"

[gateway]                               # these buses over WebSocket; see gateway/table.py
port = 8765

[cluster]                               # this host is one of several that hold the bus; see cluster_table.py
node = "a"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from ..bus.segments import check_bus_name
from ..bus.writer import check_slots
from ..storage import SHIPPED, Schema, SchemaError, Shape, StoreSettings
from ..subscribers.health import HEALTH
from .cluster_table import ClusterPlan, read_cluster
from .gateway import GatewaySettings
from .gateway.table import read_gateway
from .quantities import read_bytes, read_seconds
from .toml_document import TomlDocument, TomlError

__all__ = ["BusPlan", "ConfigError", "Configuration", "load_configuration", "parse_configuration"]

Quantity: TypeAlias = str | int | float
Value = TypeVar("Value")


class ConfigError(TomlError):
    """A configuration that is not TOML, or asks for what cannot be."""


@dataclass(frozen=True, slots=True)
class BusPlan:
    """One bus. settings: what Writer is given beside name and schemas."""

    name: str
    schemas: tuple[Schema, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that a file says, checked."""

    path: str
    buses: tuple[BusPlan, ...]
    gateway: GatewaySettings | None
    cluster: ClusterPlan | None


class _Store(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    topics: list[str] | None = None
    keep_versions: list[str] = []
    memtable_bytes: Quantity | None = None
    immutable_max: int | None = None
    block_bytes: Quantity | None = None
    compression: Literal["none", "zstd", "lz4"] | None = None
    snapshot_interval: Quantity | Literal["never"] | None = None
    compaction_bytes_per_s: Quantity | Literal["unlimited"] | None = None
    shape: dict[str, Any] | None = None


class _Topic(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    slots: int | None = None
    fields: dict[str, Any] | None = None
    key: list[str] | None = None
    description: str | None = None


class _Bus(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    data_dir: str | None = None
    schemas: str | None = None
    sync: Literal["interval", "always", "never"] | None = None
    sync_interval: Quantity | None = None
    slots: int | None = None
    full: Literal["block", "raise", "drop"] | None = None
    full_timeout: Quantity | None = None
    group_readable: bool | None = None
    retention_bytes: Quantity | None = None
    retention_age: Quantity | None = None
    log_file_bytes: Quantity | None = None
    lanes: bool | list[str] = True
    topics: dict[str, Any] = {}
    store: dict[str, Any] | None = None


class _Document(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    bus: dict[str, Any] = {}
    gateway: dict[str, Any] | None = None
    cluster: dict[str, Any] | None = None


def load_configuration(path: str | Path) -> Configuration:
    """Read and check a file. Raises ConfigError naming the place and what was expected; OSError where it cannot be read."""
    return parse_configuration(Path(path).read_bytes(), Path(path))


def parse_configuration(content: bytes, path: Path) -> Configuration:
    """Check the content of a file; `path` is for the messages, and what is relative is so to its folder. Raises ConfigError."""
    document = TomlDocument(content, str(path), ConfigError)
    tables = document.convert(document.tables, _Document, "")
    if not tables.bus:
        raise document.error("bus", "at least one table [bus.NAME]")
    folder = path.absolute().parent
    checkers = (_BusChecker(document, folder, name) for name in tables.bus)
    plans = tuple(checker.plan(tables.bus[checker.name]) for checker in checkers)
    topics = {plan.name: [*(schema.name for schema in plan.schemas), HEALTH.name] for plan in plans}
    data_dirs = {plan.name: plan.settings["data_dir"] for plan in plans if "data_dir" in plan.settings}
    gateway = None if tables.gateway is None else read_gateway(document, tables.gateway, folder, topics, data_dirs)
    cluster = None if tables.cluster is None else read_cluster(document, tables.cluster, folder, list(tables.bus))
    if cluster is not None and "data_dir" not in plans[0].settings:
        raise document.error(f"bus.{plans[0].name}", "data_dir: a node of a cluster keeps a log")
    if cluster is not None and cluster.acknowledge == "sync" and plans[0].settings.get("sync") == "never":
        raise document.error(
            f"bus.{plans[0].name}.sync",
            '"interval" or "always" beside cluster.acknowledge = "sync": what is acknowledged is on a disk',
        )
    return Configuration(str(path), plans, gateway, cluster)


class _BusChecker:
    """Turns the tables of one bus into a plan."""

    def __init__(self, document: TomlDocument, folder: Path, name: str) -> None:
        self.name, self._document, self._folder = name, document, folder
        self._where = f"bus.{name}"

    def plan(self, given: Any) -> BusPlan:
        self._attempt("", check_bus_name, self.name)
        bus: _Bus = self._document.convert(given, _Bus, self._where)
        topics = {name: self._topic(name, table) for name, table in bus.topics.items()}
        schemas = self._schemas(bus, topics)
        settings: dict[str, Any] = {
            name: value for name in ("sync", "full", "group_readable") if (value := getattr(bus, name)) is not None
        }
        if bus.data_dir is not None:
            settings["data_dir"] = self._folder / bus.data_dir
        for names, read in (
            (("sync_interval", "full_timeout", "retention_age"), read_seconds),
            (("retention_bytes", "log_file_bytes"), read_bytes),
        ):
            for name in names:
                if (value := getattr(bus, name)) is not None:
                    settings[name] = self._attempt(name, read, value)
        settings["lanes"] = list(schemas) if bus.lanes is True else bus.lanes or []
        for name in settings["lanes"]:
            if name not in schemas:
                raise self._error("lanes", f"one of the bus's topics ({', '.join(schemas)}), not {name!r}")
        if slots := self._slots(bus, topics, schemas):
            settings["slots"] = slots
        if bus.store is not None:
            if bus.data_dir is None:
                raise self._error("store", "data_dir beside it: what is kept by key is kept in files")
            settings["store"] = self._store(bus.store, schemas)
        return BusPlan(self.name, tuple(schemas.values()), settings)

    def _topic(self, name: str, table: Any) -> _Topic:
        return self._document.convert(table, _Topic, f"{self._where}.topics.{name}")

    def _schemas(self, bus: _Bus, topics: Mapping[str, _Topic]) -> dict[str, Schema]:
        found: dict[str, Schema] = {}
        if bus.schemas is not None:
            found = self._attempt("schemas", Schema.from_toml, self._folder / bus.schemas)
        for name, topic in topics.items():
            place = f"topics.{name}"
            if topic.fields is None:
                if topic.key is not None or topic.description is not None:
                    raise self._error(f"{place}.fields", "fields beside key and description")
                if name not in found:
                    if name not in SHIPPED:
                        known = (
                            f"a topic of the file in schemas, or one that ships with ringmain ({', '.join(SHIPPED)})"
                        )
                        raise self._error(f"{place}.fields", f"the topic's fields; without them it must be {known}")
                    found[name] = SHIPPED[name]
                continue
            if name in found:
                raise self._error(f"{place}.fields", f"no fields here: {bus.schemas} declares this topic")
            table = {"fields": topic.fields, "key": topic.key or [], "description": topic.description or ""}
            found[name] = self._attempt(place, Schema.from_table, name, table, self._document.path)
        if not found:
            raise self._error("topics", 'at least one topic, or schemas = "FILE.toml"')
        return found

    def _slots(
        self, bus: _Bus, topics: Mapping[str, _Topic], schemas: Mapping[str, Schema]
    ) -> int | dict[str, int] | None:
        if bus.slots is not None:
            self._attempt("slots", check_slots, bus.slots, schemas)
        for name, topic in topics.items():
            if topic.slots is not None:
                self._attempt(f"topics.{name}.slots", check_slots, topic.slots, [name])
        chosen = {name: topic.slots for name, topic in topics.items() if topic.slots is not None}
        if not chosen:
            return bus.slots
        return {name: bus.slots for name in schemas if bus.slots is not None} | chosen

    def _store(self, given: Any, schemas: Mapping[str, Schema]) -> StoreSettings:
        table: _Store = self._document.convert(given, _Store, f"{self._where}.store")
        chosen: dict[str, Any] = {"topics": table.topics or list(schemas), "keep_versions": table.keep_versions}
        if table.compression is not None:
            chosen["compression"] = table.compression
        if table.immutable_max is not None:
            chosen["immutable_max"] = table.immutable_max
        for name, read, none in (
            ("memtable_bytes", read_bytes, None),
            ("block_bytes", read_bytes, None),
            ("snapshot_interval", read_seconds, "never"),
            ("compaction_bytes_per_s", read_bytes, "unlimited"),
        ):
            value = getattr(table, name)
            if value is not None:
                chosen[name] = None if value == none else self._attempt(f"store.{name}", read, value)
        if table.shape is not None:
            chosen["shape"] = self._shape(table.shape)
        settings = StoreSettings(**chosen)
        self._attempt("store", settings.codecs, schemas)
        return settings

    def _shape(self, given: Mapping[str, Any]) -> Shape:
        chosen: dict[str, int] = {}
        names = [field.name for field in fields(Shape)]
        for name, value in given.items():
            if name not in names:
                raise self._error(f"store.shape.{name}", f"unknown here; expected one of {', '.join(names)}")
            count = self._document.convert(value, Quantity, f"{self._where}.store.shape.{name}")
            chosen[name] = self._attempt(f"store.shape.{name}", read_bytes, count)
        return self._attempt("store.shape", lambda: Shape(**chosen))

    def _attempt(self, place: str, call: Callable[..., Value], *arguments: Any) -> Value:
        try:
            return call(*arguments)
        except SchemaError as error:
            if place == "schemas":  # it names the other file
                raise self._error(place, str(error)) from error
            where = place if error.field is None else f"{place}.fields.{error.field}"
            raise self._error(where, error.reason) from error
        except (ValueError, OSError, ModuleNotFoundError) as error:
            raise self._error(place, str(error).removeprefix(f"{place.rpartition('.')[2]}: ")) from error

    def _error(self, place: str, expected: str) -> TomlError:
        return self._document.error(f"{self._where}.{place}".rstrip("."), expected)
