"""Reading from a ring: the compiled half of every subscriber. The protocol is ring.hpp's.

A cursor holds the segments it points into for as long as it lives, and so do the arrays it hands out: nothing is unmapped
under a view.
"""
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core cimport *

import os

import numpy as np

from ..storage.arrow import to_arrow, to_pandas, to_polars
from .errors import AttachError, Overrun

cnp.import_array()

cdef enum:
    LOOK_ROWS_PER_S = 20_000_000
    NAP_NS_MIN = 200_000
    NAP_NS_MAX = 5_000_000

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        pass

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArray_Descr:
        pass
    object PyArray_NewFromDescr(PyTypeObject *, PyArray_Descr *, int, const cnp.npy_intp *, const cnp.npy_intp *, void *, int,
                                PyObject *)


cdef class Batch:
    """Some consecutive records of a topic, or what a subscriber makes of them: newest rows by key, those that pass a filter.

    first, last: the part of the stream that it covers.
    rows: a read-only numpy array of the schema's dtype. In a ring it is the writer's own memory: valid until the writer comes
    round again, which `validate` tells; from the log it stays valid for as long as you keep it.
    schema: the rows'. lost: records missed before this batch, 0 unless the reader was lapped and no log holds them.
    deliveries: how often a group has handed these rows out, this time included; 0 from other subscribers.
    """

    cdef readonly object rows, schema
    cdef readonly uint64_t first, last
    cdef public uint64_t lost
    cdef public uint32_t deliveries
    cdef RingCursor cursor

    def __len__(self):
        return len(self.rows)

    def head(self, Py_ssize_t count):
        """Its first `count` rows, 1 to all of them, as a batch of their own. The rows must be the records `first` to `last`."""
        cdef Batch head = Batch.__new__(Batch)
        if not 0 < count <= len(self.rows):
            raise ValueError(f"count: 1 to {len(self.rows)} is expected, got {count}")
        head.rows, head.schema, head.cursor = self.rows[:count], self.schema, self.cursor
        head.first, head.last, head.lost = self.first, self.first + count - 1, self.lost
        return head

    def validate(self):
        """Raise Overrun if the writer has overwritten any of these rows meanwhile; what was computed from them is then void.

        The subscriber steps back to before this batch, and delivers its records again from the log if there is one.
        """
        cdef RingCursor cursor = self.cursor
        if cursor is not None and not cursor.ring.intact(self.first):
            if cursor.ring.cursor >= self.first:
                cursor.ring.cursor = self.first - 1
            raise Overrun(self.first, cursor.ring.oldest())

    @property
    def valid(self):
        """Whether the rows were whole until now."""
        return self.cursor is None or self.cursor.ring.intact(self.first)

    def copy(self):
        """The rows as an array of your own, proven whole. Raises Overrun like `validate`."""
        cdef cnp.ndarray source = self.rows
        cdef cnp.ndarray mine = np.empty(len(source), source.dtype)
        memcpy(cnp.PyArray_DATA(mine), cnp.PyArray_DATA(source), cnp.PyArray_NBYTES(source))
        self.validate()
        return mine

    def to_arrow(self):
        """The rows as an Arrow table of its own memory, see storage/arrow.py. Raises Overrun like `validate`."""
        return self._columns(to_arrow)

    def to_pandas(self):
        """The same as a pandas data frame."""
        return self._columns(to_pandas)

    def to_polars(self):
        """The same as a polars data frame."""
        return self._columns(to_polars)

    def _columns(self, convert):
        converted = convert(self.rows, self.schema)  # copies everything, and so can be proven afterwards
        self.validate()
        return converted

    def __repr__(self):
        return f"Batch({self.first}..{self.last}, {self.rows.dtype.names[2:]}{f', lost={self.lost}' if self.lost else ''})"


def log_batch(rows, schema):
    """A Batch over records that nobody overwrites, such as those of the mapped log."""
    return owned_batch(rows, schema, rows["sequence"][0], rows["sequence"][-1], 0)


def owned_batch(rows, schema, uint64_t first, uint64_t last, uint64_t lost):
    """A Batch over rows of any kind that nobody overwrites, made from the records `first` to `last`."""
    cdef Batch batch = Batch.__new__(Batch)
    rows.setflags(write=False)
    batch.rows, batch.schema = rows, schema
    batch.first, batch.last, batch.lost = first, last, lost
    return batch


cdef class RingCursor:
    """The reading end of one topic's ring, in this process: a cursor and an entry in the reader table. One thread at a time.

    segment: the data segment, mapped read-only. control: writable.
    """

    cdef RingReader ring
    cdef HeldBuffer data, control_data
    cdef object schema, dtype, owner  # owner: what the views handed out hold on to
    cdef int slot
    cdef uint32_t pid, polls
    cdef WaitStrategy strategy
    cdef Watermark which

    def __cinit__(self, segment, control, schema, uint32_t follow, uint32_t strategy):
        self.data.hold(segment, False)
        self.control_data.hold(control, True)
        self.owner = memoryview(segment)
        self.schema, self.dtype, self.slot = schema, schema.dtype, -1
        self.which, self.strategy = <Watermark>follow, <WaitStrategy>strategy
        self.ring.open(self.data.data(), <ControlHeader *>self.control_data.data(), self.which)

    def __dealloc__(self):
        self.release()

    def register(self, str name, uint64_t cursor):
        """Take an entry in the reader table, lossy to begin with. Raises AttachError when all are taken."""
        cdef ReaderEntry *entry
        cdef bytes encoded
        self.pid = os.getpid()
        self.slot = take_reader(self.ring.control[0], self.pid)
        if self.slot < 0:
            raise AttachError(f"all {C_READERS_MAX} entries of the reader table are taken by living readers")
        entry = &self.ring.control.readers[self.slot]
        entry.process_start = c_process_start(self.pid)
        encoded = name.encode()[:47]
        memset(entry.name, 0, 48)
        memcpy(entry.name, <char *>encoded, len(encoded))
        entry.policy, entry.follow, entry.attached_ns = LOSSY, self.which, wall_ns()
        entry.acknowledged = entry.overrun_count = entry.lost_count = entry.refilled_count = 0
        self.ring.cursor = cursor
        store_relaxed_u64(entry.consumed, cursor)
        store_relaxed_i64(entry.heartbeat_ns, wall_ns())
        self.ring.entry = entry
        store_release_u64(entry.owner, owner_word(self.pid, READER_ACTIVE))

    def adopt(self, RingCursor former):
        """Go on in the entry of `former`, a cursor in another ring of the topic with the same reader table.

        A reader that holds the writer back does so without a break. False, with nothing changed, where `former` has lost it.
        """
        cdef ReaderEntry *entry
        cdef uint64_t owner
        if former.slot < 0 or former.pid != <uint32_t>os.getpid():
            return False
        entry = &self.ring.control.readers[former.slot]
        owner = load_acquire_u64(entry.owner)
        if owner_pid(owner) != former.pid or owner_state(owner) != READER_ACTIVE:
            return False
        self.pid, self.slot, self.ring.entry = former.pid, former.slot, entry
        self.ring.cursor = former.ring.cursor
        former.slot = -1
        former.ring.entry = NULL
        return True

    def release(self):
        """Give the entry back. The segments stay mapped while views of them live."""
        if self.slot >= 0 and self.pid == <uint32_t>os.getpid():
            free_reader(self.ring.control[0], self.slot, self.pid)
        self.slot = -1
        self.ring.entry = NULL

    def hold_writer(self):
        """Become reliable: from now on the writer does not pass this cursor. False when it is too far behind for that yet.

        A writer that looked at the table just before may still have one claim under way, of up to half the ring and what
        it claims ahead; within a quarter of the ring that cannot reach this cursor (sync REGISTER).
        """
        cdef ReaderEntry *entry = self.ring.entry
        if self.ring.cursor + self.ring.slot_count // 4 < load_acquire_u64(self.ring.header.watermarks[<int>W_PUBLISHED].sequence):
            return False
        store_release_u64(entry.consumed, self.ring.cursor)
        entry.policy = RELIABLE
        announce_readers(self.ring.control[0])
        if (self.ring.cursor + self.ring.slot_count // 4 >= load_acquire_u64(self.ring.header.watermarks[<int>W_PUBLISHED].sequence)
                and self.ring.intact(self.ring.cursor + 1)):
            return True
        entry.policy = LOSSY
        announce_readers(self.ring.control[0])
        return False

    @property
    def dropped(self):
        """Whether the writer has dropped this reader because it was too slow; it is lossy since."""
        return self.slot >= 0 and owner_state(load_acquire_u64(self.ring.entry.owner)) == READER_DROPPED

    @property
    def cursor(self):
        """The last sequence handed out."""
        return self.ring.cursor

    @cursor.setter
    def cursor(self, uint64_t sequence):
        self.ring.cursor = sequence

    @property
    def oldest(self):
        """The oldest sequence still whole in the ring."""
        return self.ring.oldest()

    @property
    def watermark(self):
        """The followed watermark, now; in a fenced ring no more than its end."""
        return self.ring.readable()

    @property
    def next_timestamp_ns(self):
        """When the record behind the cursor was published; 0 where there is none, or it was overwritten."""
        cdef int64_t timestamp_ns
        if self.ring.readable() <= self.ring.cursor:
            return 0
        memcpy(&timestamp_ns, self.ring.slot(self.ring.cursor + 1) + 8, 8)
        return timestamp_ns if self.ring.intact(self.ring.cursor + 1) else 0

    @property
    def published(self):
        return load_acquire_u64(self.ring.header.watermarks[<int>W_PUBLISHED].sequence)

    @property
    def status(self):
        return load_acquire_u32(self.ring.header.status)

    def count_overrun(self, uint64_t lost, uint64_t refilled, bint lapped):
        """Add to the counters in the reader table, which inspect and top show."""
        if self.ring.entry != NULL:
            self.ring.entry.overrun_count += lapped
            self.ring.entry.lost_count += lost
            self.ring.entry.refilled_count += refilled

    def acknowledge(self, uint64_t sequence):
        """Say in the reader table up to where everything is done with for good."""
        if self.ring.entry != NULL:
            store_release_u64(self.ring.entry.acknowledged, sequence)

    def beat(self):
        """Say that this reader lives, and how far it has come."""
        if self.ring.entry != NULL:
            store_relaxed_i64(self.ring.entry.heartbeat_ns, wall_ns())
            store_release_u64(self.ring.entry.consumed, self.ring.cursor)

    cpdef poll(self, uint64_t count_max):
        """The next rows as a Batch, at most `count_max`; None when caught up. Never waits.

        Everything handed out before counts as consumed. Raises Overrun, the cursor unmoved, when the writer has lapped it.
        """
        cdef uint64_t first = 0, count = 0
        cdef cnp.npy_intp dims[1]
        cdef Batch batch
        cdef int result = self.ring.poll(count_max, first, count)
        self.polls += 1
        if self.polls & 255 == 0:
            self.beat()
        if result == POLL_NOTHING:
            return None
        if result == POLL_LAPPED:
            raise Overrun(first, self.ring.oldest())
        dims[0] = count
        Py_INCREF(self.dtype)
        rows = PyArray_NewFromDescr(<PyTypeObject *>cnp.ndarray, <PyArray_Descr *>self.dtype, 1, dims, NULL,
                                    <void *>self.ring.slot(first), cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED, NULL)
        cnp.set_array_base(<cnp.ndarray>rows, self.owner)
        batch = Batch.__new__(Batch)
        batch.rows, batch.schema, batch.cursor = rows, self.schema, self
        batch.first, batch.last = first, first + count - 1
        self.ring.cursor = first + count - 1
        return batch

    def wait(self, double timeout, uint64_t count=1):
        """Wait up to `timeout` seconds for `count` rows behind the cursor, or for `status` to change; True when they are there.

        Nothing is taken: another thread may wait while this reader's own thread does something else. Signals are served.
        For one row it sleeps on the doorbell, for more it looks now and then: so often that even at LOOK_ROWS_PER_S a quarter
        of the ring does not pass in between, as long as the machine lets it run.
        """
        cdef int64_t deadline = monotonic_ns() + <int64_t>(min(timeout, 1e9) * 1e9), left
        cdef int64_t nap = min(max(self.ring.slot_count * <uint64_t>250_000_000 // LOOK_ROWS_PER_S, NAP_NS_MIN), NAP_NS_MAX)
        cdef int result
        while True:
            left = min(SLICE_NS, deadline - monotonic_ns())
            with nogil:
                if count == 1:
                    result = wait_for(self.ring.header[0], self.ring.control[0], self.which, self.ring.cursor, left, self.strategy)
                else:
                    result = wait_for_many(self.ring.header[0], self.which, self.ring.cursor + count, left, nap)
            if result == WAIT_MOVED:
                return True
            self.beat()
            PyErr_CheckSignals()
            if result == WAIT_STATUS or monotonic_ns() >= deadline:
                return False

    def take(self, double timeout, uint64_t count_max):
        """Like `poll`, but wait up to `timeout` seconds for rows. None also when `status` has changed."""
        batch = self.poll(count_max)
        if batch is None and timeout > 0 and self.wait(timeout):
            batch = self.poll(count_max)
        return batch
