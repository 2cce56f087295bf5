"""Storage keeps rows: what a record looks like, the log that holds it, the store that has it by key. It knows no shared memory."""

from .arrow import to_arrow, to_pandas, to_polars
from .engine import StoreSettings, TopicFailure, TopicStats
from .errors import (
    Corruption,
    FormatMismatch,
    LogFailed,
    LogLocked,
    ManifestFailed,
    SchemaError,
    StorageError,
    TablesFailed,
)
from .field_types import FieldType
from .levels import Shape
from .log import Log, Recovered
from .log_reader import HistoryGone, LogReader
from .past import PastReader
from .schema import Field, Schema
from .shipped import ACCOUNTS, ORDERS, QUOTES, SHIPPED, TRADES
from .store import Store
from .store_reader import StoreReader
from .tree import Tree, View, ViewGone

__all__ = [
    "ACCOUNTS",
    "ORDERS",
    "QUOTES",
    "SHIPPED",
    "TRADES",
    "Corruption",
    "Field",
    "FieldType",
    "FormatMismatch",
    "HistoryGone",
    "Log",
    "LogFailed",
    "LogLocked",
    "LogReader",
    "ManifestFailed",
    "PastReader",
    "Recovered",
    "Schema",
    "SchemaError",
    "Shape",
    "StorageError",
    "Store",
    "StoreReader",
    "StoreSettings",
    "TablesFailed",
    "TopicFailure",
    "TopicStats",
    "Tree",
    "View",
    "ViewGone",
    "to_arrow",
    "to_pandas",
    "to_polars",
]
