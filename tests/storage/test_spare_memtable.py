"""The memtable that is made ready while rows go into the one before it."""

from __future__ import annotations

from typing import Any

from ringmain.storage import Schema
from ringmain.storage.store import Store

BOOK = Schema("book", {"key": "u8"}, key=("key",))


def test_a_spare_that_is_taken_while_it_is_made_ready_is_not_a_spare_any_more(tmp_path):
    with Store(tmp_path, [BOOK], memtable_bytes=1 << 16, log_file_bytes=4 << 20) as store:
        store["book"].put(1)
        writer: Any = store._trees["book"]
        spare = writer._make_memtable()

        class Taken:
            """A spare whose making ready takes so long that the memtable before it is full by then."""

            def touch(self, size_bytes: int) -> None:
                with writer.tree.lock:
                    writer._spare = spare
                    writer.set_aside()

        writer._spare = Taken()
        writer.touch(1 << 20)
        assert writer.active is spare
        assert writer._spare is None
