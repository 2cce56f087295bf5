"""The compiled half of the bus: publishing into a ring, reading from it, looking at it. The bytes are layout.hpp's.

Everything here works on segments that segment.py has mapped and checked. A cdef class holds the buffers it points into for
as long as it lives, and so do the arrays it hands out: nothing is unmapped under a view.
"""
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

import os

import numpy as np

from .errors import AttachError, Fenced, Overrun, RingFull, WriterFailed

cnp.import_array()

cdef extern from "Python.h":
    ctypedef PyObject *(*PyCFunction)(PyObject *, PyObject *)
    ctypedef struct PyMethodDef:
        const char *ml_name
        PyCFunction ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL, METH_KEYWORDS
    ctypedef struct PyTypeObject:
        pass
    object PyCFunction_New(PyMethodDef *method, object self)
    PyObject *PyLong_FromUnsignedLongLong(unsigned long long)
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArray_Descr:
        pass
    object PyArray_NewFromDescr(PyTypeObject *, PyArray_Descr *, int, const cnp.npy_intp *, const cnp.npy_intp *, void *, int,
                                PyObject *)

cdef extern from "atomics.hpp" namespace "ringmain" nogil:
    uint64_t load_acquire_u64 "ringmain::load_acquire<uint64_t>"(const uint64_t &)
    uint32_t load_relaxed_u32 "ringmain::load_relaxed<uint32_t>"(const uint32_t &)
    uint64_t load_relaxed_u64 "ringmain::load_relaxed<uint64_t>"(const uint64_t &)
    int64_t load_relaxed_i64 "ringmain::load_relaxed<int64_t>"(const int64_t &)
    void store_relaxed_u64 "ringmain::store_relaxed<uint64_t>"(uint64_t &, uint64_t)
    void store_relaxed_i64 "ringmain::store_relaxed<int64_t>"(int64_t &, int64_t)
    void store_release_u32 "ringmain::store_release<uint32_t>"(uint32_t &, uint32_t)
    void store_release_u64 "ringmain::store_release<uint64_t>"(uint64_t &, uint64_t)
    uint32_t or_release_u32 "ringmain::or_release<uint32_t>"(uint32_t &, uint32_t)
    cbool barrier_register()

cdef extern from "layout.hpp" namespace "ringmain" nogil:
    const uint32_t RING_VERSION, RING_BYTE_ORDER, C_READERS_MAX "ringmain::READERS_MAX", READY
    const char *DATA_MAGIC
    const char *CONTROL_MAGIC
    const char *BUS_MAGIC
    const size_t C_DATA_HEADER_BYTES "ringmain::DATA_HEADER_BYTES"
    cdef enum Watermark "ringmain::Watermark":
        W_CLAIMED "ringmain::CLAIMED", W_PUBLISHED "ringmain::PUBLISHED", W_LOGGED "ringmain::LOGGED"
        W_DURABLE "ringmain::DURABLE"
    const uint32_t WATERMARK_COUNT
    cdef enum:
        C_STATUS_FENCED "ringmain::STATUS_FENCED", C_STATUS_LOG_FAILED "ringmain::STATUS_LOG_FAILED"
        C_STATUS_CLOSED "ringmain::STATUS_CLOSED"
        READER_FREE "ringmain::READER_FREE", READER_JOINING "ringmain::READER_JOINING"
        READER_ACTIVE "ringmain::READER_ACTIVE", READER_DROPPED "ringmain::READER_DROPPED"
        LOSSY "ringmain::LOSSY", RELIABLE "ringmain::RELIABLE"
    cdef struct WatermarkLine:
        uint64_t sequence
    cdef struct DataHeader:
        char magic[8]
        uint32_t version, byte_order
        uint64_t schema_hash
        uint32_t schema_bytes, row_bytes
        uint64_t slot_count, slots_offset, segment_bytes, log_id
        uint32_t epoch, pid
        uint64_t process_start
        int64_t created_ns
        char bus[64]
        char topic[64]
        char data_dir[1024]
        uint32_t ready
        WatermarkLine watermarks[8]
        uint32_t status, log_errno
        int64_t heartbeat_ns
    cdef struct BusHeader:
        char magic[8]
        uint32_t version, byte_order, epoch, pid
        uint64_t process_start
        int64_t created_ns
        uint64_t log_id
        char bus[64]
        char data_dir[1024]
        uint32_t ready
    cdef struct Attention:
        uint32_t wake[2]
    cdef struct Doorbell:
        uint32_t want, bell
    cdef struct ReaderEntry:
        uint64_t owner, process_start
        char name[48]
        uint32_t policy, follow
        int64_t attached_ns
        uint64_t consumed, acknowledged
        int64_t heartbeat_ns
        uint64_t overrun_count, lost_count, refilled_count
    cdef struct ControlHeader:
        char magic[8]
        uint32_t version, reader_count_max, ready
        Attention attention
        Doorbell doorbells[8]
        ReaderEntry readers[1024]

cdef extern from "wait.hpp" namespace "ringmain" nogil:
    cdef enum WaitStrategy "ringmain::WaitStrategy":
        WAIT_FUTEX "ringmain::WAIT_FUTEX"
    cdef enum:
        WAIT_MOVED "ringmain::WAIT_MOVED", WAIT_TIMEOUT "ringmain::WAIT_TIMEOUT", WAIT_STATUS "ringmain::WAIT_STATUS"
    const int64_t SLICE_NS
    int wait_for(const DataHeader &, ControlHeader &, Watermark, uint64_t, int64_t, WaitStrategy)
    int64_t wall_ns()
    int64_t monotonic_ns()
    void ring_doorbell(uint32_t &, uint32_t &)

cdef extern from "readers.hpp" namespace "ringmain" nogil:
    uint64_t owner_word(uint32_t, int)
    uint32_t owner_pid(uint64_t)
    int owner_state(uint64_t)
    uint64_t c_process_start "ringmain::process_start"(uint32_t)
    cbool c_process_lives "ringmain::process_lives"(uint32_t, uint64_t)
    int take_reader(ControlHeader &, uint32_t)
    void announce_readers(ControlHeader &)
    void free_reader(ControlHeader &, uint32_t, uint32_t)
    uint32_t free_dead_readers(ControlHeader &)

cdef extern from "ring.hpp" namespace "ringmain" nogil:
    cdef cppclass RingWriter:
        DataHeader *header
        ControlHeader *control
        uint64_t mask, slot_count, published, claimed, limit
        uint32_t row_bytes
        cbool logged
        int64_t last_timestamp_ns
        vector[uint32_t] reliable
        const uint32_t *journal_asleep
        void open(char *, ControlHeader *, cbool)
        char *slot(uint64_t)
        int64_t stamp_ns()
        cbool may_publish(uint64_t)
        void claim(uint64_t)
        void publish(uint64_t)
        cbool someone_sleeps()
        void wake_readers()
        void rescan()
        void update_limit()
        uint64_t journal_allows()
        uint64_t consumed(uint32_t)
        uint32_t drop_slow_readers(uint64_t)
        cbool wait_for_room(uint64_t, int64_t)
    cdef enum:
        POLL_NOTHING "ringmain::POLL_NOTHING", POLL_ROWS "ringmain::POLL_ROWS", POLL_LAPPED "ringmain::POLL_LAPPED"
    cdef cppclass RingReader:
        const DataHeader *header
        ControlHeader *control
        uint64_t mask, slot_count, cursor
        uint32_t row_bytes
        ReaderEntry *entry
        void open(const char *, ControlHeader *, Watermark)
        uint64_t oldest()
        cbool intact(uint64_t)
        int poll(uint64_t, uint64_t &, uint64_t &)
        const char *slot(uint64_t)

cdef extern from "pack.hpp" namespace "ringmain":
    cdef enum FieldKind "ringmain::FieldKind":
        FIELD_SIGNED "ringmain::FIELD_SIGNED", FIELD_UNSIGNED "ringmain::FIELD_UNSIGNED"
        FIELD_FLOAT "ringmain::FIELD_FLOAT", FIELD_BOOL "ringmain::FIELD_BOOL"
        FIELD_BYTES "ringmain::FIELD_BYTES", FIELD_ARRAY "ringmain::FIELD_ARRAY"
    cdef struct FieldStep:
        FieldKind kind
        uint8_t item_bytes
        uint32_t offset, bytes
    cbool pack_field(const FieldStep &, char *, PyObject *)
    void put_u64 "ringmain::put<uint64_t>"(char *, uint64_t) nogil
    void put_i64 "ringmain::put<int64_t>"(char *, int64_t) nogil
    void copy_rows(char *, uint32_t, const char *, int64_t, uint64_t, uint64_t, int64_t) nogil

WATERMARKS = ("claimed", "published", "logged", "durable")
DATA_HEADER_BYTES = C_DATA_HEADER_BYTES
BUS_BYTES = sizeof(BusHeader)
CONTROL_BYTES = sizeof(ControlHeader)
READERS_MAX = C_READERS_MAX
STATUS_FENCED, STATUS_LOG_FAILED, STATUS_CLOSED = C_STATUS_FENCED, C_STATUS_LOG_FAILED, C_STATUS_CLOSED


cdef class _Hold:
    """A mapped segment's bytes, held."""

    cdef Py_buffer buffer
    cdef bint held

    def __cinit__(self, source, bint writable=False):
        PyObject_GetBuffer(source, &self.buffer, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)

    cdef char *at(self) noexcept:
        return <char *>self.buffer.buf


def process_start(uint32_t pid):
    """When a process began, in clock ticks since boot; 0 where there is no such process, or only a zombie."""
    return c_process_start(pid)


def process_lives(uint32_t pid, uint64_t started):
    """Whether that very process (same start time; 0 for any) still exists."""
    return c_process_lives(pid, started)


# --- headers --------------------------------------------------------------------------------------------------------


cdef int _put_text(char *at, str text, size_t room, str what) except -1:
    cdef bytes encoded = text.encode()
    if <size_t>len(encoded) >= room:
        raise ValueError(f"{what}: at most {room - 1} bytes fit, got {len(encoded)}: {text!r}")
    memset(at, 0, room)
    memcpy(at, <char *>encoded, len(encoded))
    return 0


cdef str _get_text(const char *at, size_t room):
    return (<bytes>at[:room]).split(b"\0")[0].decode("utf-8", "replace")


def data_segment_bytes(schema_bytes, row_bytes, slot_count):
    """(offset of the slots, size of the segment) of a data segment."""
    slots_offset = (C_DATA_HEADER_BYTES + schema_bytes + 4095) & ~4095
    return slots_offset, (slots_offset + slot_count * row_bytes + 4095) & ~4095


def format_data(segment, *, bytes schema_json, uint64_t schema_hash, uint32_t row_bytes, uint64_t slot_count, str bus,
                str topic, str data_dir, uint64_t log_id, uint32_t epoch):
    """Write a fresh data segment's header. It is not ready until `publish_ready`."""
    cdef _Hold hold = _Hold(segment, True)
    cdef DataHeader *header = <DataHeader *>hold.at()
    slots_offset, segment_bytes = data_segment_bytes(len(schema_json), row_bytes, slot_count)
    if hold.buffer.len < segment_bytes:
        raise ValueError(f"segment: {segment_bytes} bytes are needed, got {hold.buffer.len}")
    memset(header, 0, sizeof(DataHeader))
    memcpy(header.magic, DATA_MAGIC, 8)
    header.version, header.byte_order = RING_VERSION, RING_BYTE_ORDER
    header.schema_hash, header.schema_bytes, header.row_bytes = schema_hash, <uint32_t>len(schema_json), row_bytes
    header.slot_count, header.slots_offset, header.segment_bytes = slot_count, slots_offset, segment_bytes
    header.log_id, header.epoch, header.pid = log_id, epoch, os.getpid()
    header.process_start, header.created_ns = c_process_start(header.pid), wall_ns()
    header.heartbeat_ns = header.created_ns
    _put_text(header.bus, bus, 64, "bus")
    _put_text(header.topic, topic, 64, "topic")
    _put_text(header.data_dir, data_dir, 1024, "data_dir")
    memcpy(hold.at() + C_DATA_HEADER_BYTES, <char *>schema_json, len(schema_json))


cdef object _check_head(const char *at, const char *magic, str name, size_t length, size_t needed):
    cdef uint32_t version, order
    if length < needed:
        raise AttachError(f"segment {name}: {length} bytes are too few for a header of {needed}; not made by ringmain, or cut off")
    if memcmp(at, magic, 8) != 0:
        raise AttachError(f"segment {name}: begins with {bytes(at[:8])!r}, expected {bytes(magic[:8])!r}; not made by ringmain")
    memcpy(&version, at + 8, 4)
    memcpy(&order, at + 12, 4)
    if version != RING_VERSION:
        raise AttachError(f"segment {name}: format version {version}, this release knows {RING_VERSION}; use one release for the writer and its readers")
    return order


def read_data(segment, str name):
    """Check a data segment's header and return its fields as a dict, the schema's JSON among them.

    Raises AttachError naming what is wrong. An unfinished segment is one: its writer died while creating it, or is at it.
    """
    cdef _Hold hold = _Hold(segment)
    cdef const DataHeader *header = <const DataHeader *>hold.at()
    cdef size_t length = hold.buffer.len
    order = _check_head(hold.at(), DATA_MAGIC, name, length, sizeof(DataHeader))
    if order != RING_BYTE_ORDER:
        raise AttachError(f"segment {name}: written with another byte order than this machine's")
    if load_relaxed_u32(header.ready) != READY:
        raise AttachError(f"segment {name}: not ready; its writer is starting, or died while it was")
    slots = header.slot_count
    slots_offset, segment_bytes = data_segment_bytes(header.schema_bytes, header.row_bytes, slots)
    if (slots == 0 or slots & (slots - 1) or header.row_bytes < 24 or header.row_bytes % 8 or header.row_bytes > 65536
            or header.slots_offset != slots_offset or header.segment_bytes != segment_bytes or length < segment_bytes):
        raise AttachError(f"segment {name}: its sizes contradict each other ({slots} slots of {header.row_bytes} bytes from "
                          f"{header.slots_offset} on, {header.segment_bytes} in all, {length} mapped); damaged")
    return {
        "schema_json": <bytes>hold.at()[C_DATA_HEADER_BYTES:C_DATA_HEADER_BYTES + header.schema_bytes],
        "schema_hash": header.schema_hash, "row_bytes": header.row_bytes, "slot_count": slots, "log_id": header.log_id,
        "slots_offset": header.slots_offset, "segment_bytes": header.segment_bytes,
        "epoch": header.epoch, "pid": header.pid, "process_start": header.process_start, "created_ns": header.created_ns,
        "bus": _get_text(header.bus, 64), "topic": _get_text(header.topic, 64),
        "data_dir": _get_text(header.data_dir, 1024),
    }


def read_state(segment):
    """What changes in a data segment, read once: the watermarks by name, status bits, log errno, heartbeat."""
    cdef _Hold hold = _Hold(segment)
    cdef const DataHeader *header = <const DataHeader *>hold.at()
    state = {name: load_acquire_u64(header.watermarks[which].sequence) for which, name in enumerate(WATERMARKS)}
    state["status"] = load_relaxed_u32(header.status)
    state["log_errno"] = load_relaxed_u32(header.log_errno)
    state["heartbeat_ns"] = load_relaxed_i64(header.heartbeat_ns)
    return state


def set_watermarks(segment, *, uint64_t claimed, uint64_t published, uint64_t logged, uint64_t durable):
    """Set a fresh data segment's watermarks, before it is ready."""
    cdef _Hold hold = _Hold(segment, True)
    cdef DataHeader *header = <DataHeader *>hold.at()
    cdef uint64_t[4] values = [claimed, published, logged, durable]
    for which in range(4):
        store_relaxed_u64(header.watermarks[which].sequence, values[which])


def publish_ready(segment):
    """Let a data segment be attached: everything before this store is seen by whoever sees it (sync READY)."""
    cdef _Hold hold = _Hold(segment, True)
    store_release_u32((<DataHeader *>hold.at()).ready, READY)


def add_status(segment, control, uint32_t bits):
    """Set status bits in a data segment and wake everybody who sleeps on the topic."""
    cdef _Hold hold = _Hold(segment, True), control_hold = _Hold(control, True)
    cdef ControlHeader *header = <ControlHeader *>control_hold.at()
    or_release_u32((<DataHeader *>hold.at()).status, bits)
    for which in range(WATERMARK_COUNT):
        ring_doorbell(header.attention.wake[0] if which == W_PUBLISHED else header.doorbells[which].want,
                      header.doorbells[which].bell)


def beat(segment):
    """Store the time as the writer's heartbeat."""
    cdef _Hold hold = _Hold(segment, True)
    store_relaxed_i64((<DataHeader *>hold.at()).heartbeat_ns, wall_ns())


def format_control(segment):
    """Write a fresh control segment."""
    cdef _Hold hold = _Hold(segment, True)
    cdef ControlHeader *header = <ControlHeader *>hold.at()
    if <size_t>hold.buffer.len < sizeof(ControlHeader):
        raise ValueError(f"segment: {sizeof(ControlHeader)} bytes are needed, got {hold.buffer.len}")
    memset(header, 0, sizeof(ControlHeader))
    memcpy(header.magic, CONTROL_MAGIC, 8)
    header.version, header.reader_count_max = RING_VERSION, C_READERS_MAX
    store_release_u32(header.ready, READY)


def check_control(segment, str name):
    """Raise AttachError unless this is a finished control segment of ours."""
    cdef _Hold hold = _Hold(segment)
    _check_head(hold.at(), CONTROL_MAGIC, name, hold.buffer.len, sizeof(ControlHeader))
    if load_relaxed_u32((<const ControlHeader *>hold.at()).ready) != READY:
        raise AttachError(f"segment {name}: not ready; its writer is starting, or died while it was")


def format_bus(segment, *, str bus, str data_dir, uint64_t log_id, uint32_t epoch):
    """Write the bus segment's content, in place of an earlier writer's."""
    cdef _Hold hold = _Hold(segment, True)
    cdef BusHeader *header = <BusHeader *>hold.at()
    store_release_u32(header.ready, 0)
    memcpy(header.magic, BUS_MAGIC, 8)
    header.version, header.byte_order, header.epoch, header.pid = RING_VERSION, RING_BYTE_ORDER, epoch, os.getpid()
    header.process_start, header.created_ns, header.log_id = c_process_start(header.pid), wall_ns(), log_id
    _put_text(header.bus, bus, 64, "bus")
    _put_text(header.data_dir, data_dir, 1024, "data_dir")
    store_release_u32(header.ready, READY)


def read_bus(segment, str name):
    """The bus segment's fields as a dict. Raises AttachError where it is not one, or not ready."""
    cdef _Hold hold = _Hold(segment)
    cdef const BusHeader *header = <const BusHeader *>hold.at()
    _check_head(hold.at(), BUS_MAGIC, name, hold.buffer.len, sizeof(BusHeader))
    if load_relaxed_u32(header.ready) != READY:
        raise AttachError(f"segment {name}: not ready; its writer is starting, or died while it was")
    return {"epoch": header.epoch, "pid": header.pid, "process_start": header.process_start, "log_id": header.log_id,
            "created_ns": header.created_ns, "bus": _get_text(header.bus, 64), "data_dir": _get_text(header.data_dir, 1024)}


def copy_slots(source, target, uint64_t first, uint64_t last):
    """Copy the rows first … last from one data segment into another of the same row size; slot counts may differ."""
    cdef _Hold from_hold = _Hold(source), to_hold = _Hold(target, True)
    cdef const DataHeader *old = <const DataHeader *>from_hold.at()
    cdef DataHeader *new = <DataHeader *>to_hold.at()
    cdef uint64_t sequence
    if old.row_bytes != new.row_bytes:
        raise ValueError(f"rows of {old.row_bytes} and {new.row_bytes} bytes cannot be copied")
    for sequence in range(first, last + 1):
        memcpy(to_hold.at() + new.slots_offset + (sequence & (new.slot_count - 1)) * new.row_bytes,
               from_hold.at() + old.slots_offset + (sequence & (old.slot_count - 1)) * old.row_bytes, new.row_bytes)


def list_readers(control):
    """The reader table's taken entries, each a dict. The values are the readers' own word."""
    cdef _Hold hold = _Hold(control)
    cdef const ControlHeader *header = <const ControlHeader *>hold.at()
    cdef const ReaderEntry *entry
    found = []
    for index in range(C_READERS_MAX):
        entry = &header.readers[index]
        owner = load_acquire_u64(entry.owner)
        if owner_state(owner) == READER_FREE:
            continue
        found.append({
            "index": index, "pid": owner_pid(owner), "process_start": entry.process_start,
            "state": {READER_JOINING: "joining", READER_ACTIVE: "active", READER_DROPPED: "dropped"}.get(owner_state(owner), "unknown"),
            "name": _get_text(entry.name, 48), "policy": "reliable" if entry.policy == RELIABLE else "lossy",
            "follow": WATERMARKS[entry.follow] if entry.follow < 4 else "unknown", "attached_ns": entry.attached_ns,
            "consumed": load_acquire_u64(entry.consumed), "heartbeat_ns": load_relaxed_i64(entry.heartbeat_ns),
            "overrun_count": entry.overrun_count, "lost_count": entry.lost_count, "refilled_count": entry.refilled_count,
        })
    return found


def free_dead(control):
    """Free the reader entries of dead processes; returns how many."""
    cdef _Hold hold = _Hold(control, True)
    return free_dead_readers((<ControlHeader *>hold.at())[0])


# --- publishing -----------------------------------------------------------------------------------------------------


cdef FieldKind _kind(dtype) except *:
    if dtype.shape:
        return FIELD_ARRAY
    return {"i": FIELD_SIGNED, "u": FIELD_UNSIGNED, "f": FIELD_FLOAT, "b": FIELD_BOOL, "S": FIELD_BYTES}[dtype.kind]


cdef class RingPublisher:
    """The writing end of one topic's ring. One thread at a time; the writer process is the only one.

    publish(*fields, **fields) -> sequence packs one record and makes it visible.
    """

    cdef RingWriter ring
    cdef vector[FieldStep] steps
    cdef Py_ssize_t step_count
    cdef bint busy, closed, padded
    cdef _Hold data, control_hold
    cdef object segment, control
    cdef readonly object publish
    cdef readonly str topic
    cdef readonly object dtype, payload_dtype
    cdef tuple names
    cdef object journal
    cdef str full
    cdef int64_t full_timeout_ns
    cdef uint64_t chunk_rows

    def __cinit__(self, segment, control, schema, *, str full, full_timeout, journal=None, asleep=None):
        """segment, control: the two mapped segments, writable. full: what to do when reliable readers leave no room.

        journal: has `kick()` and `failure()`; asleep: its capsule. None for rings only.
        """
        cdef FieldStep step
        self.data, self.control_hold = _Hold(segment, True), _Hold(control, True)
        self.segment, self.control = segment, control
        barrier_register()
        self.ring.open(self.data.at(), <ControlHeader *>self.control_hold.at(), journal is not None)
        if asleep is not None:
            self.ring.journal_asleep = <const uint32_t *>PyCapsule_GetPointer(asleep, "ringmain.asleep")
        self.journal, self.topic = journal, schema.name
        self.dtype, self.payload_dtype = schema.dtype, schema.payload_dtype
        self.names = schema.payload_dtype.names
        self.full = full
        self.full_timeout_ns = INT64_MAX // 2 if full_timeout is None else int(full_timeout * 1e9)
        self.chunk_rows = max(1, self.ring.slot_count // 4)
        filled = 0
        for name in self.names:
            field, offset = schema.payload_dtype.fields[name][:2]
            step.kind = _kind(field)
            step.item_bytes = field.base.itemsize if field.base.kind != "S" else 0
            step.offset, step.bytes = offset, field.itemsize
            filled += field.itemsize
            self.steps.push_back(step)
        self.padded = filled != schema.payload_dtype.itemsize
        self.step_count = self.steps.size()
        self.publish = PyCFunction_New(&PUBLISH, self)

    def close(self):
        """Refuse every later call. The segments stay mapped while anything refers to them."""
        self.closed = True
        self.ring.limit = 0  # the fast path ends in _make_room, which says that the topic is closed
        self.ring.published = self.ring.published if self.ring.published else 0

    @property
    def watermarks(self):
        """(claimed, published, logged, durable), each read once."""
        return tuple([load_acquire_u64(self.ring.header.watermarks[which].sequence) for which in range(4)])

    @property
    def slot_count(self):
        return self.ring.slot_count

    def last_timestamp(self, int64_t timestamp_ns):
        """Stamp no record earlier than this."""
        self.ring.last_timestamp_ns = max(self.ring.last_timestamp_ns, timestamp_ns)

    cdef int _refuse(self) except -1:
        """Raise what stands in the way of publishing, if anything does."""
        cdef uint32_t status = load_relaxed_u32(self.ring.header.status)
        if self.closed:
            raise ValueError(f"topic {self.topic!r}: the writer is closed")
        if status & C_STATUS_FENCED:
            raise Fenced(f"topic {self.topic!r}: a newer writer has taken over this bus; close this one")
        if status & C_STATUS_LOG_FAILED:
            raise WriterFailed(f"topic {self.topic!r}: {self.journal.failure()}") from self.journal.failure()
        return 0

    cdef str _holders(self, uint64_t last):
        names = [f"reader {_get_text(self.ring.control.readers[index].name, 48)!r} (pid {owner_pid(self.ring.control.readers[index].owner)})"
                 for index in self.ring.reliable if self.ring.consumed(index) + self.ring.slot_count < last]
        if self.ring.journal_allows() < last:
            names.append("the log")
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
        if self.full != "block" and self.ring.journal_allows() >= last:
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
                if room:
                    return 0
                PyErr_CheckSignals()
                self._refuse()
                if free_dead_readers(self.ring.control[0]):
                    self.ring.rescan()
                    continue
                if self.full == "drop" and self.ring.journal_allows() >= last:
                    self.ring.drop_slow_readers(last)
                if monotonic_ns() >= deadline:
                    raise RingFull(self.topic, self._holders(last), done)
        finally:
            self.busy = False

    cdef int _wake(self) except -1:
        if self.ring.someone_sleeps():
            self.ring.wake_readers()
        if self.ring.journal_asleep != NULL and load_relaxed_u32(self.ring.journal_asleep[0]):
            self.journal.kick()
        return 0

    cdef bint _must_wake(self) noexcept:
        return self.ring.someone_sleeps() or (self.ring.journal_asleep != NULL and load_relaxed_u32(self.ring.journal_asleep[0]))

    cdef int _pack_array(self, Py_ssize_t index, char *payload, value) except -1:
        field = self.payload_dtype.fields[self.names[index]][0]
        given = np.asarray(value)
        if given.shape != field.shape:
            raise ValueError(f"shape {field.shape} is needed, got {given.shape}")
        if field.base.kind in "iu" and given.dtype.kind not in "iub":
            raise TypeError(f"whole numbers are needed, got {given.dtype}")
        if field.base.kind in "iu" and given.size:
            bounds = np.iinfo(field.base)
            if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
                raise OverflowError(f"values from {given.min()} to {given.max()} do not fit into {field.base}")
        item = np.ascontiguousarray(given, dtype=field.base)
        memcpy(payload + self.steps[index].offset, cnp.PyArray_DATA(<cnp.ndarray>item), self.steps[index].bytes)
        return 0

    cdef int _pack(self, Py_ssize_t index, char *payload, PyObject *value) except -1:
        """Pack one field; an error names it."""
        try:
            if self.steps[index].kind == FIELD_ARRAY:
                self._pack_array(index, payload, <object>value)
            elif not pack_field(self.steps[index], payload, value):
                pass
        except (TypeError, ValueError, OverflowError) as error:
            field = self.payload_dtype.fields[self.names[index]][0]
            raise type(error)(f"topic {self.topic!r}, field {self.names[index]!r} ({field.str if not field.shape else field}): {error}") from None
        return 0

    cdef object _arrange(self, PyObject *const *args, Py_ssize_t positional, PyObject *kwnames):
        """The values in the order of the fields, from positional and keyword arguments."""
        values = [<object>args[i] for i in range(positional)]
        given = {<object>PyTuple_GET_ITEM(kwnames, i): <object>args[positional + i] for i in range(PyTuple_GET_SIZE(kwnames))}
        if positional > self.step_count:
            raise TypeError(f"topic {self.topic!r} has {self.step_count} fields {self.names}, got {positional} values")
        for name in self.names[positional:]:
            if name not in given:
                raise TypeError(f"topic {self.topic!r}: field {name!r} is missing")
            values.append(given.pop(name))
        for name in given:
            if name in self.names:
                raise TypeError(f"topic {self.topic!r}: field {name!r} is given twice, by position and by name")
            raise TypeError(f"topic {self.topic!r} has no field {name!r}; its fields are {', '.join(self.names)}")
        return values

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

    def begin(self, uint64_t count):
        """Claim `count` slots and return a zeroed writable array over their payloads, for `commit` or `abort`.

        Where the slots run over the end of the ring the array is memory of its own, copied at commit.
        """
        cdef uint64_t first
        cdef cnp.npy_intp dims[1]
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
        if cnp.PyArray_DATA(rows) != self.ring.slot(first) + 16:
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
        while True:
            left = min(SLICE_NS, deadline - monotonic_ns())
            with nogil:
                result = wait_for(self.ring.header[0], self.ring.control[0], <Watermark>which, sequence - 1, left, WAIT_FUTEX)
            if result == WAIT_MOVED:
                return True
            PyErr_CheckSignals()
            if not self.closed or load_relaxed_u32(self.ring.header.status) & ~<uint32_t>C_STATUS_CLOSED:
                self._refuse()
            elif result == WAIT_STATUS:
                return False
            if monotonic_ns() >= deadline:
                return False


cdef PyObject *_publish(PyObject *self, PyObject *const *args, Py_ssize_t positional, PyObject *kwnames) except NULL:
    cdef RingPublisher topic = <RingPublisher>self
    cdef uint64_t sequence
    cdef char *slot
    cdef Py_ssize_t index
    cdef list values = None
    if kwnames != NULL:
        values = topic._arrange(args, positional, kwnames)
    elif positional != topic.step_count:
        raise TypeError(f"topic {topic.topic!r} has {topic.step_count} fields ({', '.join(topic.names)}), got {positional} values")
    if topic.busy or not topic.ring.may_publish(1):
        topic._make_room(1, 0)
    sequence = topic.ring.published + 1
    topic.ring.claim(sequence)
    slot = topic.ring.slot(sequence)
    topic.busy = True  # packing may run Python code, and that may come back here
    try:
        if topic.padded:
            memset(slot + 16, 0, topic.ring.row_bytes - 16)
        for index in range(topic.step_count):
            topic._pack(index, slot + 16, args[index] if values is None else <PyObject *>values[index])
    finally:
        topic.busy = False
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
    b"publish(*fields, **fields)\n\nPack one record, make it visible, and return its sequence. Values stand in the schema's order, or by name.\n"
    b"Raises TypeError, ValueError or OverflowError naming the field where a value does not fit (nothing is published then),\n"
    b"RingFull when there is no room in time, Fenced when a newer writer took over, WriterFailed when the log has stopped."
)


# --- reading --------------------------------------------------------------------------------------------------------


cdef class Batch:
    """Some consecutive records of a topic.

    rows: a read-only numpy array of the schema's dtype. In a ring it is the writer's own memory: valid until the writer comes
    round again, which `validate` tells; from the log it stays valid for as long as you keep it.
    lost: records missed before this batch, 0 unless the reader was lapped and no log holds them.
    """

    cdef readonly object rows
    cdef readonly uint64_t first, last
    cdef public uint64_t lost
    cdef RingCursor cursor

    def __len__(self):
        return self.last - self.first + 1

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

    def __repr__(self):
        return f"Batch({self.first}..{self.last}, {self.rows.dtype.names[2:]}{f', lost={self.lost}' if self.lost else ''})"


def log_batch(rows):
    """A Batch over rows that nobody overwrites, such as those of the mapped log."""
    cdef Batch batch = Batch.__new__(Batch)
    batch.rows = rows
    batch.first, batch.last = rows["sequence"][0], rows["sequence"][-1]
    return batch


cdef class RingCursor:
    """The reading end of one topic's ring, in this process: a cursor and an entry in the reader table. One thread at a time.

    segment: the data segment, mapped read-only. control: writable.
    """

    cdef RingReader ring
    cdef _Hold data, control_hold
    cdef object dtype
    cdef int slot
    cdef uint32_t pid, polls
    cdef WaitStrategy strategy
    cdef Watermark which

    def __cinit__(self, segment, control, dtype, uint32_t follow, uint32_t strategy):
        self.data, self.control_hold = _Hold(segment), _Hold(control, True)
        self.dtype, self.which, self.strategy, self.slot = dtype, <Watermark>follow, <WaitStrategy>strategy, -1
        self.ring.open(self.data.at(), <ControlHeader *>self.control_hold.at(), self.which)

    def __dealloc__(self):
        self.release()

    def register(self, str name, uint64_t cursor):
        """Take an entry in the reader table, lossy to begin with. Raises AttachError when all are taken."""
        cdef ReaderEntry *entry
        self.pid = os.getpid()
        self.slot = take_reader(self.ring.control[0], self.pid)
        if self.slot < 0:
            raise AttachError(f"all {C_READERS_MAX} entries of the reader table are taken by living readers")
        entry = &self.ring.control.readers[self.slot]
        entry.process_start = c_process_start(self.pid)
        _put_text(entry.name, name.encode()[:47].decode("utf-8", "ignore"), 48, "name")
        entry.policy, entry.follow, entry.attached_ns = LOSSY, self.which, wall_ns()
        entry.acknowledged = entry.overrun_count = entry.lost_count = entry.refilled_count = 0
        self.ring.cursor = cursor
        store_relaxed_u64(entry.consumed, cursor)
        store_relaxed_i64(entry.heartbeat_ns, wall_ns())
        self.ring.entry = entry
        store_release_u64(entry.owner, owner_word(self.pid, READER_ACTIVE))

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
        """The followed watermark, now."""
        return load_acquire_u64(self.ring.header.watermarks[<int>self.which].sequence)

    @property
    def published(self):
        return load_acquire_u64(self.ring.header.watermarks[<int>W_PUBLISHED].sequence)

    @property
    def status(self):
        return load_relaxed_u32(self.ring.header.status)

    def count_overrun(self, uint64_t lost, uint64_t refilled, bint lapped):
        """Add to the counters in the reader table, which inspect and top show."""
        if self.ring.entry != NULL:
            self.ring.entry.overrun_count += lapped
            self.ring.entry.lost_count += lost
            self.ring.entry.refilled_count += refilled

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
        Py_INCREF(self.data)
        cnp.PyArray_SetBaseObject(<cnp.ndarray>rows, self.data)
        batch = Batch.__new__(Batch)
        batch.rows, batch.first, batch.last, batch.cursor = rows, first, first + count - 1, self
        self.ring.cursor = first + count - 1
        return batch

    def wait(self, double timeout):
        """Wait up to `timeout` seconds for rows behind the cursor, or for `status` to change; True when there are rows.

        Nothing is taken: another thread may wait while this reader's own thread does something else. Signals are served.
        """
        cdef int64_t deadline = monotonic_ns() + <int64_t>(min(timeout, 1e9) * 1e9), left
        cdef int result
        while True:
            left = min(SLICE_NS, deadline - monotonic_ns())
            with nogil:
                result = wait_for(self.ring.header[0], self.ring.control[0], self.which, self.ring.cursor, left, self.strategy)
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
