"""Publishing into a ring: the compiled half of publisher.py. The protocol is ring.hpp's."""
cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from core cimport *

import numpy as np

from .errors import Fenced, RingFull, WriterFailed

cnp.import_array()

include "row_packer.pxi"

cdef extern from "Python.h":
    ctypedef PyObject *(*PyCFunction)(PyObject *, PyObject *)
    ctypedef struct PyMethodDef:
        const char *ml_name
        PyCFunction ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL, METH_KEYWORDS
    object PyCFunction_New(PyMethodDef *method, object self)
    PyObject *PyLong_FromUnsignedLongLong(unsigned long long)


cdef str reader_name(const ReaderEntry &entry):
    return (<bytes>entry.name[:48]).split(b"\0")[0].decode("utf-8", "replace")


cdef class RingPublisher:
    """The writing end of one topic's ring, or of a lane. One thread at a time; the writer process is the only one.

    publish(*fields, **fields) -> sequence packs one record and makes it visible.
    """

    cdef RingWriter ring
    cdef RowPacker packer
    cdef readonly bint busy
    cdef bint closed
    cdef readonly bint gave_up  # what was published behind the lane's end: `published` does not count on
    cdef HeldBuffer data, control_data
    cdef readonly object segment
    cdef object control
    cdef readonly object publish
    cdef readonly str topic
    cdef readonly object dtype, payload_dtype
    cdef object journal
    cdef str full
    cdef int64_t full_timeout_ns
    cdef uint64_t chunk_rows
    cdef object mover
    cdef object __weakref__

    def __cinit__(self, segment, control, schema, *, str full, full_timeout, journal=None, asleep=None, mover=None):
        """segment, control: the two mapped segments, writable; a lane has no control segment: None. full: what to do when
        reliable readers leave no room, or a lane has none.

        journal: has `kick()` and `failure()`; asleep: its capsule. None for rings only. A lane's is whoever drains it.
        mover: of a lane, called where it was fenced, with this and whether that was found out behind publishing. Calls `rebind`; or
        says False when what was published is within the lane's end; or raises. None: Fenced is raised.
        """
        self.data.hold(segment, True)
        self.segment, self.control = segment, control
        barrier_register()
        if control is None:
            self.ring.open_lane(self.data.data())
        else:
            self.control_data.hold(control, True)
            self.ring.open(self.data.data(), <ControlHeader *>self.control_data.data(), journal is not None)
        self._set_journal(journal, asleep)
        self.mover, self.topic = mover, schema.name
        self.dtype, self.payload_dtype = schema.dtype, schema.payload_dtype
        self.packer = RowPacker(self.topic, schema.payload_dtype, schema.payload_dtype.names)
        self.full = full
        self.full_timeout_ns = INT64_MAX // 2 if full_timeout is None else int(full_timeout * 1e9)
        self.chunk_rows = max(1, self.ring.slot_count // 4)
        self.publish = PyCFunction_New(&PUBLISH, self)

    cdef int _set_journal(self, journal, asleep) except -1:
        self.journal = journal
        if asleep is not None:
            self.ring.journal_asleep = <const uint32_t *>PyCapsule_GetPointer(asleep, "ringmain.asleep")
        return 0

    def rebind(self, segment, uint64_t ended, journal, asleep):
        """Go on in the lane that follows one that was fenced: `segment`, as large, with `ended` as the sequence before its first.

        What the call under way has put behind the former lane's end goes along, so that it can return as if nothing had happened.
        Not while `busy`.
        """
        former = self.segment  # stays mapped until the rows are copied
        self.data.hold(segment, True)
        self.ring.follow(self.data.data(), ended, not self.gave_up)
        self.segment, self.gave_up = segment, False
        self._set_journal(journal, asleep)
        if self.closed:  # while it moved
            self.ring.limit = 0
        journal.kick()
        del former

    def close(self):
        """Refuse every later call, and the rest of one that is under way in another thread: nothing is published any more.

        The segments stay mapped while anything refers to them.
        """
        self.closed = True
        self.ring.limit = 0  # the fast path ends in _make_room, which says that the topic is closed

    @property
    def watermarks(self):
        """(claimed, published, logged, durable, indexed, replicated), each read once."""
        return tuple([load_acquire_u64(self.ring.header.watermarks[which].sequence) for which in range(6)])

    @property
    def published(self):
        """The last sequence that this end has published, by its own count."""
        return self.ring.published

    @property
    def ended(self):
        """Where the ring, or the lane, has ended, by the same count; None while it goes on, or that is not settled yet."""
        if not load_acquire_u32(self.ring.header.status) & C_STATUS_SETTLED:
            return None
        return load_acquire_u64(self.ring.header.watermarks[<int>W_ENDED].sequence)

    @property
    def slot_count(self):
        return self.ring.slot_count

    def last_payload(self):
        """A copy of the last published record's payload: an item of payload_dtype. For the thread that publishes."""
        return PyBytes_FromStringAndSize(self.ring.slot(self.ring.published) + 16, self.ring.row_bytes - 16)

    def last_timestamp(self, int64_t timestamp_ns):
        """Stamp no record earlier than this."""
        self.ring.last_timestamp_ns = max(self.ring.last_timestamp_ns, timestamp_ns)

    cdef int _refuse(self) except -1:
        """Raise what stands in the way of publishing, if anything does. A lane that was fenced is left for the next one.

        `published` is then what it was. Only for the thread that publishes, between two steps of a call.
        """
        cdef uint32_t status = load_acquire_u32(self.ring.header.status)
        if self.mover is not None and not self.closed and status & C_STATUS_FENCED:
            self._move(False)
            status = 0
        return self._refuse_status(status)

    cdef int _refuse_status(self, uint32_t status) except -1:
        if self.closed:
            raise ValueError(f"topic {self.topic!r}: the {'writer' if self.control is not None else 'lane'} is closed")
        if status & C_STATUS_FENCED:
            raise Fenced(f"topic {self.topic!r}: a newer writer has taken over this bus; close this one")
        if status & C_STATUS_LOG_FAILED:
            raise WriterFailed(f"topic {self.topic!r}: {self.journal.failure()}") from self.journal.failure()
        return 0

    cdef bint _move(self, bint behind) except -1:
        """Leave a lane that was fenced. False where there is no need to: behind publishing, when all of it is within the end."""
        cdef bint busy = self.busy
        self.busy = False
        try:
            return self.mover(self, behind)
        except BaseException:
            self.gave_up = True  # what was put behind the end is nobody's: its caller is told so
            raise
        finally:
            self.busy = busy

    cdef str _holders(self, uint64_t last):
        names = [f"reader {reader_name(self.ring.control.readers[index])!r} (pid {owner_pid(self.ring.control.readers[index].owner)})"
                 for index in self.ring.reliable if self.ring.consumed(index) + self.ring.slot_count < last]
        if self.ring.freed_allows() < last:
            names.append("the log" if self.control is not None else "the bus's writer, which has not drained it")
        return " and ".join(names[:5]) or "nobody any more"

    cdef int _make_room(self, uint64_t count, uint64_t done) except -1:
        """Return once `count` records may be published, by the policy for a full ring."""
        cdef uint64_t last
        cdef int64_t deadline, slice_ns
        if self.busy:
            raise RuntimeError(f"topic {self.topic!r}: another publish, batch or claim is still under way; one at a time")
        self._refuse()
        if load_relaxed_u32(self.ring.control.attention.wake[1]):
            self.ring.rescan()
        if self.ring.may_publish(count):
            return 0
        last = self.ring.published + count
        self.ring.update_limit()
        if last <= self.ring.limit:
            return 0
        if self.control is None and self.full == "raise":
            raise RingFull(self.topic, self._holders(last), done)
        if self.full != "block" and self.ring.freed_allows() >= last:
            free_dead_readers(self.ring.control[0])
            self.ring.rescan()
            if last > self.ring.limit and self.full == "raise":
                raise RingFull(self.topic, self._holders(last), done)
            if last > self.ring.limit:
                self.ring.drop_slow_readers(last)
        deadline = monotonic_ns() + self.full_timeout_ns
        self.busy = True
        try:
            while True:
                slice_ns = min(100_000_000, max(0, deadline - monotonic_ns()))
                with nogil:
                    room = self.ring.wait_for_room(count, slice_ns)
                if self.closed:  # meanwhile, by another thread; the wait has set the limit anew
                    self.ring.limit = 0
                elif room:
                    return 0
                PyErr_CheckSignals()
                self._refuse()
                if self.control is not None and free_dead_readers(self.ring.control[0]):
                    self.ring.rescan()
                    continue
                if self.full == "drop" and self.ring.freed_allows() >= last:
                    self.ring.drop_slow_readers(last)
                if monotonic_ns() >= deadline:
                    raise RingFull(self.topic, self._holders(last), done)
        finally:
            self.busy = False

    cdef int _wake(self) except -1:
        """What is left to do behind a record. Raises Fenced where it came too late: nobody may have seen it."""
        while self.ring.fenced():
            if self.mover is None:
                self._refuse()
            elif not self._move(True):
                return 0
        if self.ring.someone_sleeps():
            self.ring.wake_readers()
        if self.ring.journal_asleep != NULL and load_relaxed_u32(self.ring.journal_asleep[0]):
            self.journal.kick()
        return 0

    cdef bint _must_wake(self) noexcept:
        return (self.ring.fenced() or self.ring.someone_sleeps()
                or (self.ring.journal_asleep != NULL and load_relaxed_u32(self.ring.journal_asleep[0])))

    def publish_batch(self, rows):
        """Publish rows in order: an array of the schema's payload_dtype, or of its dtype (whose stamps are then replaced).

        Returns the last one's sequence (of an empty array: the last published so far). All rows become visible together where
        the array is no longer than a quarter of the ring, otherwise in steps of that size. The array is copied once.
        Raises RingFull, with published_count, when there is no room in time; TypeError for another dtype.
        """
        cdef cnp.ndarray array
        cdef const char *source
        cdef int64_t stride, stamp
        cdef uint64_t count, done = 0, take, first, until_end
        if not isinstance(rows, np.ndarray):
            raise TypeError(f"topic {self.topic!r}: a numpy array is needed, got {type(rows).__name__}")
        array = <cnp.ndarray>rows
        if cnp.PyArray_NDIM(array) != 1:
            raise TypeError(f"topic {self.topic!r}: a one-dimensional array is needed, got {array.ndim} dimensions")
        source = <const char *>cnp.PyArray_DATA(array)
        dtype = array.dtype
        if dtype is not self.payload_dtype and dtype != self.payload_dtype:
            if dtype != self.dtype:
                raise TypeError(f"topic {self.topic!r}: rows of {self.payload_dtype} are needed, got {dtype}")
            source += 16
        count = cnp.PyArray_DIM(array, 0)
        stride = cnp.PyArray_STRIDE(array, 0)
        while done < count:
            take = min(count - done, self.chunk_rows)
            if self.busy or not self.ring.may_publish(take):
                self._make_room(take, done)
            first = self.ring.published + 1
            self.ring.claim(self.ring.published + take)
            stamp = self.ring.stamp_ns()
            until_end = min(take, self.ring.slot_count - (first & self.ring.mask))
            copy_rows(self.ring.slot(first), self.ring.row_bytes, source, stride, until_end, first, stamp)
            if until_end < take:
                copy_rows(self.ring.slot(first + until_end), self.ring.row_bytes, source + <int64_t>until_end * stride, stride,
                          take - until_end, first + until_end, stamp)
            self.ring.publish(self.ring.published + take)
            if self._must_wake():
                self._wake()
            done += take
            source += <int64_t>take * stride
        return self.ring.published

    def apply(self, rows):
        """Publish whole rows, sequences and stamps included, which must go on right behind the last: as many as there is room for now.

        rows: their bytes. Returns how many were published. Never waits. Raises ValueError where they do not go on there (nothing is
        published then), and what stands in the way of publishing.
        """
        cdef HeldBuffer hold
        cdef const char *source
        cdef uint64_t count, done = 0, take, first, until_end, row_bytes = self.ring.row_bytes, sequence, at
        cdef int64_t stamp
        hold.hold(rows, False)
        source, count = hold.data(), hold.bytes() // row_bytes
        self._refuse()
        if hold.bytes() % row_bytes:
            raise ValueError(f"topic {self.topic!r}: whole rows of {row_bytes} bytes are expected, got {hold.bytes()} bytes")
        for at in range(count):
            memcpy(&sequence, source + at * row_bytes, 8)
            if sequence != self.ring.published + 1 + at:
                raise ValueError(f"topic {self.topic!r}: sequence {self.ring.published + 1 + at} is expected, got {sequence}")
        while done < count:
            take = self._room(min(count - done, self.chunk_rows))
            if take == 0:
                break
            first = self.ring.published + 1
            self.ring.claim(self.ring.published + take)
            until_end = min(take, self.ring.slot_count - (first & self.ring.mask))
            memcpy(self.ring.slot(first), source, until_end * row_bytes)
            if until_end < take:
                memcpy(self.ring.slot(first + until_end), source + until_end * row_bytes, (take - until_end) * row_bytes)
            source += take * row_bytes
            memcpy(&stamp, source - row_bytes + 8, 8)
            self.ring.last_timestamp_ns = max(self.ring.last_timestamp_ns, stamp)
            self.ring.publish(self.ring.published + take)
            done += take
            if self._must_wake():
                self._wake()
        return done

    cdef uint64_t _room(self, uint64_t count) noexcept:
        """How many of `count` records may be published now."""
        if self.ring.may_publish(count):
            return count
        if load_relaxed_u32(self.ring.control.attention.wake[1]):
            self.ring.rescan()
        self.ring.update_limit()
        if self.ring.limit <= self.ring.published and free_dead_readers(self.ring.control[0]):
            self.ring.rescan()
        return min(count, self.ring.limit - self.ring.published) if self.ring.limit > self.ring.published else 0

    def begin(self, uint64_t count):
        """Claim `count` slots and return a zeroed writable array over their payloads, for `commit` or `abort`.

        Where the slots run over the end of the ring the array is memory of its own, copied at commit.
        """
        cdef uint64_t first
        if count < 1 or count > max(<uint64_t>1, self.ring.slot_count // 2):
            raise ValueError(f"topic {self.topic!r}: between 1 and {max(1, self.ring.slot_count // 2)} records can be claimed, got {count}")
        if self.busy or not self.ring.may_publish(count):
            self._make_room(count, 0)
        first = self.ring.published + 1
        self.ring.claim(self.ring.published + count)
        self.busy = True
        if count > self.ring.slot_count - (first & self.ring.mask):
            return np.zeros(count, self.payload_dtype)
        offset = self.ring.header.slots_offset + (first & self.ring.mask) * self.ring.row_bytes
        rows = np.ndarray(count, self.payload_dtype, self.segment, offset + 16, self.ring.row_bytes)
        for i in range(count):
            memset(self.ring.slot(first + i), 0, self.ring.row_bytes)
        return rows

    def commit(self, cnp.ndarray rows, uint64_t count):
        """Stamp the first `count` rows of the claim and make them visible; returns the last one's sequence."""
        cdef uint64_t first = self.ring.published + 1, i
        cdef int64_t stamp
        self.busy = False
        self._refuse()
        stamp = self.ring.stamp_ns()
        if cnp.PyArray_DATA(rows) != self.ring.slot(first) + 16:  # they run over the end of the ring, or the lane has changed
            self.ring.claim(self.ring.published + count)
            for i in range(count):
                copy_rows(self.ring.slot(first + i), self.ring.row_bytes,
                          <const char *>cnp.PyArray_DATA(rows) + i * cnp.PyArray_STRIDE(rows, 0), 0, 1, first + i, stamp)
        for i in range(count):
            put_u64(self.ring.slot(first + i), first + i)
            put_i64(self.ring.slot(first + i) + 8, stamp)
        self.ring.publish(self.ring.published + count)
        self._wake()
        return self.ring.published

    def abort(self):
        """Give the claim up: nothing becomes visible, and the next record takes the same sequence."""
        self.busy = False

    def wait(self, uint64_t sequence, uint32_t which, timeout):
        """Wait until watermark number `which` reaches `sequence`; False when `timeout` seconds (None: for ever) passed first."""
        cdef int64_t deadline = INT64_MAX if timeout is None else monotonic_ns() + <int64_t>(timeout * 1e9)
        cdef int64_t left
        cdef int result
        cdef DataHeader *header
        cdef ControlHeader *control
        while True:
            left = min(SLICE_NS, deadline - monotonic_ns())
            segment, header, control = self.segment, self.ring.header, self.ring.control  # another thread may move this to another lane
            with nogil:
                result = wait_for(header[0], control[0], <Watermark>which, sequence - 1, left, WAIT_FUTEX)
            if result == WAIT_MOVED:
                return True
            PyErr_CheckSignals()
            if segment is not self.segment:
                continue
            if not self.closed or load_acquire_u32(self.ring.header.status) & ~<uint32_t>C_STATUS_CLOSED:
                self._refuse_status(load_acquire_u32(header.status))
            elif result == WAIT_STATUS:
                return False
            if which == W_INDEXED and self.topic in self.journal.unindexed:
                failure = self.journal.unindexed[self.topic]
                raise WriterFailed(f"topic {self.topic!r}: nothing more is kept by key: {failure}") from failure
            if monotonic_ns() >= deadline:
                return False


cdef PyObject *_publish(PyObject *self, PyObject *const *args, Py_ssize_t positional, PyObject *kwnames) except NULL:
    cdef RingPublisher topic = <RingPublisher>self
    cdef uint64_t sequence
    cdef char *slot
    cdef RowPacker packer = topic.packer
    cdef list values = None
    if kwnames != NULL:
        values = packer.arrange(args, positional, kwnames)
    elif positional != packer.count:
        raise TypeError(f"topic {topic.topic!r} has {packer.count} fields ({', '.join(packer.names)}), got {positional} values")
    if topic.busy or not topic.ring.may_publish(1):
        topic._make_room(1, 0)
    sequence = topic.ring.published + 1
    topic.ring.claim(sequence)
    slot = topic.ring.slot(sequence)
    if packer.padded:
        memset(slot + 16, 0, topic.ring.row_bytes - 16)
    if values is not None:
        args = PySequence_Fast_ITEMS(values)
    topic.busy = True  # packing may run Python code, and that may come back here
    try:
        packer.pack(slot + 16, args)
    finally:
        topic.busy = False
    if topic.closed:  # meanwhile
        topic._refuse()
    put_u64(slot, sequence)
    put_i64(slot + 8, topic.ring.stamp_ns())
    topic.ring.publish(sequence)
    if topic._must_wake():
        topic._wake()
    return PyLong_FromUnsignedLongLong(sequence)


cdef PyMethodDef PUBLISH
PUBLISH.ml_name = "publish"
PUBLISH.ml_meth = <PyCFunction><void *>_publish
PUBLISH.ml_flags = METH_FASTCALL | METH_KEYWORDS
PUBLISH.ml_doc = (
    b"publish(*fields, **fields)\n\nPack one record, make it visible, and return its sequence. Values stand in the schema's order,\n"
    b"or by name.\n"
    b"Raises TypeError, ValueError or OverflowError naming the field where a value does not fit (nothing is published then),\n"
    b"RingFull when there is no room in time, Fenced when a newer writer took over, WriterFailed when the log has stopped."
)
