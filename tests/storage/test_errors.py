"""Errors say what went wrong, where, and what to do; their fields say the same to a program, in any process."""

import errno
import pickle
from pathlib import Path

import pytest
from ringmain.storage import (
    Corruption,
    FormatMismatch,
    HistoryGone,
    LogFailed,
    LogLocked,
    ManifestFailed,
    SchemaError,
    StorageError,
    TablesFailed,
    ViewGone,
)

LOG = Path("/data/000001.log")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "words", "fields"),
    [
        (
            Corruption(LOG, 4096, "crc 1", "crc 2"),
            ["/data/000001.log", "byte 4096", "expected crc 1, found crc 2", "`ringmain log repair`"],
            {"path": str(LOG), "offset": 4096, "expected": "crc 1", "found": "crc 2"},
        ),
        *(
            (
                Corruption(Path("/data/store") / name, 64, "crc 1", "crc 2"),
                [f"/data/store/{name}", "byte 64", "`ringmain store verify`", "`ringmain store repair`"],
                {"path": f"/data/store/{name}", "offset": 64},
            )
            for name in ("MANIFEST", "0000000001.sst", "0000000001.sst.new")
        ),
        (
            FormatMismatch(LOG, "format version", 1, 2),
            ["/data/000001.log", "format version: expected 1, found 2", "the release that wrote it"],
            {"path": str(LOG), "what": "format version", "expected": 1, "found": 2},
        ),
        (LogLocked("/data", 42), ["/data", "process 42", "data_dir"], {"path": "/data", "pid": 42}),
        (LogLocked("/data"), ["another process"], {"path": "/data", "pid": None}),
        (LogLocked("/data", 42, to_write=False), ["process 42 is writing to this log; stop it first"], {"pid": 42}),
        (
            LogFailed(LOG, "fdatasync", FULL),
            ["/data/000001.log", "fdatasync failed: No space left on device", "open the writer again"],
            {"path": str(LOG), "operation": "fdatasync", "errno": errno.ENOSPC, "reason": "No space left on device"},
        ),
        (LogFailed(LOG, "write", "short write"), ["write failed: short write"], {"errno": None}),
        (
            TablesFailed(Path("/data/1.sst"), "flush", "trades", FULL),
            ["/data/1.sst", "flush of topic 'trades' failed: No space left on device", "stays readable", "Free space"],
            {"path": "/data/1.sst", "operation": "flush", "topic": "trades", "errno": errno.ENOSPC},
        ),
        (
            ManifestFailed(Path("/data/MANIFEST"), "sync", FULL),
            ["/data/MANIFEST", "sync failed: No space left on device", "stays readable", "Free space"],
            {"path": "/data/MANIFEST", "operation": "sync", "errno": errno.ENOSPC},
        ),
        (
            ManifestFailed(Path("/data/MANIFEST"), "commit", "another writer has taken over"),
            ["commit failed: another writer has taken over", "Open the writer again"],
            {"errno": None, "reason": "another writer has taken over"},
        ),
        (
            ViewGone("trades", 5, 9),
            ["topic 'trades'", "as of sequence 5", "9 is the oldest", "keep all versions"],
            {"topic": "trades", "sequence": 5, "oldest": 9},
        ),
        (
            HistoryGone("/data", "trades", 5, 9),
            ["/data: topic 'trades'", "sequence 5 is no longer kept", "oldest record is 9"],
            {"directory": "/data", "topic": "trades", "wanted": 5, "oldest": 9},
        ),
        (
            SchemaError("no such type", topic="trades", field="price", source="mine.toml"),
            ["mine.toml: topic 'trades', field 'price': no such type"],
            {"topic": "trades", "field": "price", "source": "mine.toml", "reason": "no such type"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_names_place_and_remedy_here_and_in_another_process(
    error: StorageError, words: list[str], fields: dict[str, object]
) -> None:
    for received in (error, pickle.loads(pickle.dumps(error))):
        assert type(received) is type(error)
        assert [word for word in words if word not in str(received)] == []
        assert {name: getattr(received, name) for name in fields} == fields
