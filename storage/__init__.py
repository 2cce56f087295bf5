"""Storage keeps rows: what a record looks like, and the log that holds it. It knows no shared memory."""

from .errors import Corruption, FormatMismatch, LogFailed, LogLocked, SchemaError, StorageError
from .field_types import FieldType
from .log import Log, Recovered
from .log_reader import HistoryGone, LogReader
from .schema import Field, Schema
from .shipped import ACCOUNTS, ORDERS, QUOTES, SHIPPED, TRADES

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
    "Recovered",
    "Schema",
    "SchemaError",
    "StorageError",
]
