"""A tree: one topic's rows by key, in memory and in sstables.

1. What a reader needs is one State (memtables and open tables), replaced whole; a reader keeps the one it took, and the rows it
   was handed stay valid for as long as it keeps them.
2. A row's sequence decides: the newest at or below the sequence that a reader looks at wins. `visible` is the newest complete one,
   so a batch appears all at once.
3. Rows go active memtable -> immutable memtables -> level 0 -> deeper levels, never the other way. What is dropped on the way is
   seen by no open view (`views`).
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from ._tree import KeyCodec, Memtable, Merge, State, Table, TreeCore
from .errors import StorageError
from .schema import Schema

__all__ = ["KeysAt", "Tree", "View", "ViewGone", "rows_by_sequence"]

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
Bound: TypeAlias = Any  # a value, or a tuple of the key's first values

BATCH_ROWS = 8_192
WINDOW_ROWS = 1 << 20  # sequences that are brought into order together


class ViewGone(StorageError):
    """A sequence lies too far back to be read at: newer rows have replaced what was visible then."""

    def __init__(self, topic: str, sequence: int, oldest: int) -> None:
        self.topic, self.sequence, self.oldest = topic, sequence, oldest
        super().__init__(
            f"topic {topic!r}: nothing can be read as of sequence {sequence} any more; {oldest} is the oldest. Open the view in "
            "time and keep it, or keep all versions of the topic"
        )


class KeysAt:
    """Reading a tree as of a sequence."""

    def __init__(self, tree: Tree, sequence: int | None) -> None:
        self._tree, self._sequence = tree, sequence

    def _now(self) -> tuple[State, int]:
        core = self._tree.core
        state = core.state  # before `visible`: a later state may lack rows that newer ones have replaced since
        visible = core.visible
        return state, visible if self._sequence is None else min(self._sequence, visible)

    def get_many(self, keys: Any) -> tuple[Rows, np.ndarray[Any, np.dtype[np.bool_]]]:
        """(rows, found): the newest rows of many keys, in their order; zeros, and False in `found`, where a key is absent.

        keys: a structured array that has the key's fields (others are not looked at), or for a key of one field an array or a
        sequence of its values. Raises ValueError where the field cannot have such a value: it is never wrapped around, cut off
        or rounded.
        """
        state, visible = self._now()
        return state.get_many(self._tree.key_rows(keys), visible)

    def scan(
        self,
        first: Bound = None,
        last: Bound = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[Rows]:
        """The rows with keys from `first` to `last`, both included, in their order, as arrays of up to `batch_rows` rows.

        first, last: a value, or a tuple of the key's first values; None for no bound. All batches are of the moment of this call,
        whatever is put meanwhile. They are read-only views of the file where one table has it all, else fresh arrays.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit: 0 or more is expected, got {limit}")
        if batch_rows < 2:
            raise ValueError(f"batch_rows: at least 2 are expected, got {batch_rows}")
        state, visible = self._now()
        return _limited(self._tree.scan_state(state, visible, first, last, reverse, batch_rows), limit)

    def by_sequence(self, first: int = 1, last: int | None = None) -> Iterator[Rows]:
        """The rows with sequences from `first` to `last`, both included, in that order, as arrays of any length.

        All there were, where the topic keeps all versions or has no key; otherwise those that nothing newer had replaced at the
        moment of this call (which then takes memory for all of them). Tombstones are left out.
        """
        state, visible = self._now()
        return self._tree.rows_between(state, visible, max(1, first), visible if last is None else min(last, visible))

    def by_time(self, since: int | None = None, until: int | None = None) -> Iterator[Rows]:
        """The rows stamped at or after `since` and before `until` (ns since the Unix epoch; None for no bound), as by_sequence."""
        state, visible = self._now()
        first, last = 1, visible
        for table in state.level0 + _flat(state.levels):  # time never steps back as the sequence rises
            if since is not None and table.timestamp_max_ns < since:
                first = max(first, table.sequence_max + 1)
            if until is not None and table.timestamp_min_ns >= until:
                last = min(last, table.sequence_min - 1)
        for rows in self._tree.rows_between(state, visible, first, last):
            stamps = rows["timestamp_ns"]
            begin = 0 if since is None else int(np.searchsorted(stamps, since))
            end = len(rows) if until is None else int(np.searchsorted(stamps, until))
            if begin < end:
                yield rows[begin:end]

    def history(self, *key: Any) -> Rows:
        """All versions of a key that are kept, the newest first; tombstones are left out."""
        state, visible = self._now()
        merge = Merge(state.codec, _filled(state.memtables), state.level0 + _flat(state.levels), key, key)
        merge.begin_scan(visible, True)
        return _concatenated(_drain(merge, self._tree.schema, BATCH_ROWS), self._tree.schema)


class View(KeysAt):
    """A tree as it was at one sequence, for as long as the view is open. Close it: it keeps old rows from being dropped."""

    def __init__(self, tree: Tree, sequence: int) -> None:
        super().__init__(tree, sequence)
        self.sequence = sequence

    def get(self, *key: Any) -> np.void | None:
        """The row that a key had, as a record of its own, or None."""
        state, visible = self._now()
        return state.get(key, visible)

    def close(self) -> None:
        """Let go. Does nothing the second time."""
        if self._sequence is not None:
            self._tree.close_view(self.sequence)
            self._sequence = None

    def _now(self) -> tuple[State, int]:
        if self._sequence is None:
            raise ValueError(f"topic {self._tree.schema.name!r}: this view is closed")
        return super()._now()

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Tree(KeysAt):
    """One topic of a store: `get(*key)`, `get_many`, `scan`, `history`, `at`; in the writing process also `put(*fields, **fields)`,
    `put_batch`, `delete(*key)`.

    get returns a record of its own or None; put and delete return the sequence. Any thread may read; one at a time writes.
    """

    def __init__(self, schema: Schema, codec: KeyCodec, state: State, *, keeps_versions: bool) -> None:
        super().__init__(self, None)
        self.schema, self.codec, self.keeps_versions = schema, codec, keeps_versions
        self.core = TreeCore(codec, schema, state)
        self.get = self.core.get  # the compiled calls themselves
        self.put = self.core.put
        self.delete = self.core.delete
        self.put_batch = self.core.put_batch
        self.lock = threading.RLock()  # held while the state is replaced, and around the views
        self._views: Counter[int] = Counter()
        self.dropped_through = 0  # views older than this may miss rows

    def at(self, sequence: int | None = None) -> View:
        """A view of the tree as of a sequence (now, by default) that stays as it is. Use it in a `with` statement.

        Where a sequence lies ahead, the view ends with the newest one. Raises ViewGone where rows that were visible then may have
        been dropped.
        """
        with self.lock:
            wanted = self.wanted_sequence(sequence, self.core.visible)
            if wanted < self.dropped_through and not self.keeps_versions and wanted not in self._views:
                raise ViewGone(self.schema.name, wanted, self.dropped_through)
            self._views[wanted] += 1
        return View(self, wanted)

    def wanted_sequence(self, sequence: int | None, visible: int) -> int:
        """The sequence that `at` reads at: at most `visible`. Raises ValueError, TypeError for what is no sequence."""
        if sequence is None:
            return visible
        wanted = operator.index(sequence)
        if wanted < 0:
            raise ValueError(f"topic {self.schema.name!r}: at: a sequence, 0 or more, is expected, got {wanted}")
        return min(wanted, visible)

    def close_view(self, sequence: int) -> None:
        """What View.close does."""
        with self.lock:
            self._views[sequence] -= 1
            if not self._views[sequence]:
                del self._views[sequence]

    def views(self) -> list[int]:
        """The sequences that open views look at."""
        with self.lock:
            return list(self._views)

    def droppable(self) -> int:
        """The newest sequence up to which tombstones may go, once nothing older is left for them to hide."""
        with self.lock:
            return 0 if self.keeps_versions else min(self._views, default=self.core.visible)

    def key_rows(self, keys: Any) -> Rows:
        """Keys as rows of the schema's dtype, for get_many."""
        names = self.codec.names
        given: np.ndarray[Any, Any] = _items(keys)
        if given.ndim != 1:
            raise TypeError(
                f"topic {self.schema.name!r}: a one-dimensional array of keys is needed, got {given.ndim} dimensions"
            )
        if given.dtype == self.schema.dtype and given.flags.c_contiguous:
            return given
        rows = np.zeros(len(given), self.schema.dtype)
        if given.dtype.names is None:
            if len(names) != 1:
                raise TypeError(f"topic {self.schema.name!r}: keys are structured arrays with {', '.join(names)}")
            rows[names[0]] = _checked(given, rows.dtype[names[0]], self.schema.name, names[0])
            return rows
        for name in names:
            if name not in given.dtype.names:
                raise TypeError(f"topic {self.schema.name!r}: the keys lack the field {name!r}")
            rows[name] = _checked(given[name], rows.dtype[name], self.schema.name, name)
        return rows

    def rows_between(self, state: State, visible: int, first: int, last: int) -> Iterator[Rows]:
        """What `by_sequence` yields, of one state."""
        tables, memtables = state.level0 + _flat(state.levels), _filled(state.memtables)
        if self.codec.names == ("sequence",):
            yield from self.scan_state(state, visible, first, last, False, BATCH_ROWS)
            return
        step = WINDOW_ROWS if self.keeps_versions else last - first + 1
        while first <= last:
            end = min(first + step - 1, last)
            rows = rows_by_sequence(
                self.codec, self.schema, memtables, tables, visible, first, end, all_versions=self.keeps_versions
            )
            if len(rows):
                yield rows
            first = end + 1

    def scan_state(
        self, state: State, visible: int, first: Bound, last: Bound, reverse: bool, batch_rows: int
    ) -> Iterator[Rows]:
        """What `scan` yields, of one state."""
        memtables = _filled(state.memtables)
        tables = state.level0 + _flat(state.levels)
        views = None if memtables or reverse else _straight(tables, visible)
        if views is not None:
            return _table_views(views, first, last, batch_rows)
        merge = Merge(state.codec, memtables, tables, first, last, reverse)
        merge.begin_scan(visible, False)
        return _drain(merge, self.schema, batch_rows)


def rows_by_sequence(
    codec: KeyCodec,
    schema: Schema,
    memtables: list[tuple[Memtable, int]],
    tables: Iterable[Table],
    visible: int,
    first: int,
    last: int,
    *,
    all_versions: bool,
) -> Rows:
    """The rows with sequences from `first` to `last`, in that order: all of them, or those that are the newest of their key."""
    if all_versions:  # otherwise a newer row elsewhere may have replaced one of these
        tables = [table for table in tables if table.sequence_min <= last and table.sequence_max >= first]
    merge = Merge(codec, memtables, tables)
    merge.begin_scan(visible, all_versions)
    found = [
        rows[(rows["sequence"] >= first) & (rows["sequence"] <= last)] for rows in _drain(merge, schema, BATCH_ROWS)
    ]
    rows = _concatenated(found, schema)
    return rows[np.argsort(rows["sequence"], kind="stable")]


def _items(values: Any) -> np.ndarray[Any, Any]:
    """An array as it is, a sequence as one that has each item: numpy alone makes floats of 1 and 2**63, bytes of b"x" and 5.

    Of scalars of one type it makes an array that has them all, far quicker than one by one.
    """
    array: np.ndarray[Any, Any] = np.asarray(values)
    if isinstance(values, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "fS":
        return array
    types = set(map(type, values))
    is_exact = len(types) == 1 and issubclass(types.pop(), (float, bytes, np.generic))
    return array if is_exact else np.asarray(values, object)


def _checked(values: np.ndarray[Any, Any], dtype: np.dtype[Any], topic: str, name: str) -> np.ndarray[Any, Any]:
    """Values of a key field in its type; ValueError where one would change."""
    if values.dtype == dtype:
        return values
    with np.errstate(all="ignore"):
        if values.dtype.kind == "O":
            turned = _turned_items(values.tolist(), dtype)
        else:
            fits = _bytes_fit if dtype.kind == "S" else _numbers_fit
            turned = values.astype(dtype) if fits(values, dtype) else None
    if turned is None:
        raise ValueError(f"topic {topic!r}, field {name!r}: not all of these keys fit into {dtype}")
    return turned


def _turned_items(items: list[Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """Items in the type of a key field; None where one would change."""
    if dtype.kind == "S":
        fits = all(isinstance(item, bytes) and len(item) <= dtype.itemsize for item in items)
        return np.array(items, dtype) if fits else None
    if not all(isinstance(item, (int, float, np.number, np.bool_)) for item in items):
        return None
    plain: list[Any] = [_plain(item) for item in items]
    try:
        turned = np.array(plain, dtype)
    except (OverflowError, TypeError, ValueError):
        return None
    same = all(new == old or (new != new and old != old) for new, old in zip(turned.tolist(), plain, strict=True))
    return turned if same else None


def _plain(item: Any) -> Any:
    """An item as Python has it: comparing these is exact, whatever the types."""
    scalar: Any = item
    return scalar.item() if isinstance(item, np.generic) else scalar


def _bytes_fit(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> bool:
    """Whether all of an array are bytes, and none are longer than the type allows."""
    if values.dtype.kind != "S":
        return False
    short = values.dtype.itemsize <= dtype.itemsize
    return short or not len(values) or bool(np.char.str_len(values).max() <= dtype.itemsize)


def _numbers_fit(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> bool:
    """Whether all of an array's numbers are the same in another type.

    They are compared with the type's bounds first: what a number beyond them becomes differs between processors, and back again
    it may look unchanged, as -1 does by way of u8.
    """
    if values.dtype.kind not in "biuf":
        return False
    if not len(values):
        return True
    if dtype.kind == "f":
        turned = values.astype(dtype)
        if values.dtype.kind == "f":
            return bool(((turned.astype(values.dtype) == values) | np.isnan(values)).all())
        inside = turned < float(_bounds(values.dtype)[1] + 1)
        return bool((inside & (turned.astype(values.dtype) == values)).all())
    low, high = _bounds(dtype)
    if values.dtype.kind == "f":
        wide = values.astype(np.promote_types(values.dtype, "f8"))
        return bool(((wide >= float(low)) & (wide < float(high + 1)) & (wide == np.trunc(wide))).all())
    return low <= int(values.min()) and int(values.max()) <= high


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the greatest number of a type of whole numbers, or of bool."""
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def _filled(memtables: tuple[Memtable, ...]) -> list[tuple[Memtable, int]]:
    return [(memtable, len(memtable)) for memtable in memtables if len(memtable)]


def _flat(levels: tuple[tuple[Table, ...], ...]) -> tuple[Table, ...]:
    return tuple(table for level in levels for table in level)


def _straight(tables: Iterable[Table], visible: int) -> list[Table] | None:
    """The tables by key, where their rows one after the other are the answer: ranges disjoint, all visible, nothing shadowed."""
    ordered = sorted(tables, key=lambda table: table.key_min)
    for table in ordered:
        if table.tombstone_count or table.shadowed_count or table.sequence_max > visible:
            return None
    for table, following in itertools.pairwise(ordered):
        if table.key_max >= following.key_min:
            return None
    return ordered


def _table_views(tables: list[Table], first: Bound, last: Bound, batch_rows: int) -> Iterator[Rows]:
    for table in tables:
        begin, end = table.bounds(first, last)
        for at in range(begin, end, batch_rows):
            yield table.rows(at, min(at + batch_rows, end))


def _drain(merge: Merge, schema: Schema, batch_rows: int) -> Iterator[Rows]:
    while True:
        rows = np.empty(batch_rows, schema.dtype)
        count = merge.fill(rows)
        if not count:
            return
        yield rows[:count]


def _limited(batches: Iterator[Rows], limit: int | None) -> Iterator[Rows]:
    left = limit
    for rows in batches:
        if left is None:
            yield rows
            continue
        if left <= 0:
            return
        yield rows[:left]
        left -= len(rows)


def _concatenated(batches: Iterable[Rows], schema: Schema) -> Rows:
    parts = list(batches)
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, schema.dtype)
