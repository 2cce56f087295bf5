"""How long things live: what a store hands out outlives it; what it has open ends with it, also where it could not be opened."""

from __future__ import annotations

import gc

import pytest
import ringmain.storage
from ringmain.storage import Schema, Store
from support.sstables import COMPRESSIONS, needs

A = Schema("a", {"key": "u8", "value": "u8"}, key=("key",))


def test_what_a_user_of_the_store_names_is_found_in_storage_itself():
    for name in ("Store", "StoreReader", "Shape", "TopicStats", "Tree", "View", "ViewGone", "ManifestFailed"):
        assert name in ringmain.storage.__all__
        assert getattr(ringmain.storage, name).__name__ == name


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_row_that_was_handed_out_stays_when_what_it_was_found_in_is_gone(tmp_path, compression):
    """It may come from a memtable that is flushed, from tables that are compacted away, or from a store that is closed."""
    settings = {"memtable_bytes": 1 << 16, "compression": needs(compression)}
    held = []
    with Store(tmp_path, [A], **settings) as store:
        tree = store["a"]
        with tree.at(0) as empty:
            assert empty.get(1) is None
        for key in range(50):
            tree.put(key, key + 1000)
        held += [tree.get(key) for key in range(50)]
        with tree.at() as view:
            held += [view.get(key) for key in range(50)]
        for _ in range(3):
            store.compact()
            held += [tree.get(key) for key in range(50)]
            with tree.at() as view:
                held += [view.get(key) for key in range(50)]
            for key in range(5_000):
                tree.put(key + 100, key)
    del store, tree, view, empty
    gc.collect()
    for at, row in enumerate(held):
        assert row is not None
        assert row.flags.owndata
        assert row.item()[2:] == (at % 50, at % 50 + 1000)
