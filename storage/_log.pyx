"""The compiled half of the log: appending frames, finding and checking them. The bytes are log_format.hpp's."""
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

import errno
import os

import numpy as np

from .errors import FormatMismatch, LogFailed

cnp.import_array()

cdef enum:
    SHORT_BYTES = 4096

cdef extern from "crc32c.hpp" namespace "ringmain" nogil:
    uint32_t c_crc32c "ringmain::crc32c"(uint32_t crc, const void *data, size_t bytes)
    uint32_t c_crc32c_portable "ringmain::crc32c_portable"(uint32_t crc, const void *data, size_t bytes)

cdef extern from "log_format.hpp" namespace "ringmain" nogil:
    const uint32_t LOG_VERSION, BYTE_ORDER_MARK, C_GROUP_BYTES_MAX "ringmain::GROUP_BYTES_MAX"
    const uint32_t C_TOPIC_COUNT_MAX "ringmain::TOPIC_COUNT_MAX"
    const size_t C_LOG_HEADER_BYTES "ringmain::LOG_HEADER_BYTES", C_FRAME_HEADER_BYTES "ringmain::FRAME_HEADER_BYTES"
    const char *LOG_MAGIC
    const uint32_t FRAME_MAGIC
    const uint8_t C_FRAME_ROWS "ringmain::FRAME_ROWS", C_FRAME_TOPIC "ringmain::FRAME_TOPIC"
    const uint8_t C_FRAME_MARK "ringmain::FRAME_MARK", C_FRAME_CLOSE "ringmain::FRAME_CLOSE"
    const uint8_t C_FRAME_GAP "ringmain::FRAME_GAP", C_FRAME_TOMBSTONES "ringmain::FRAME_TOMBSTONES"
    const uint8_t C_CONTINUES "ringmain::CONTINUES"
    cdef struct LogFileHeader:
        char magic[8]
        uint32_t version, byte_order
        uint64_t log_id, file_number, start_position, previous_end
        uint32_t epoch, header_bytes
        int64_t created_ns
        uint64_t file_bytes
        char bus[64]
        uint64_t start_bytes
        uint32_t crc
    cdef struct FrameHeader:
        uint32_t magic, crc, frame_bytes
        uint8_t kind, flags
        uint16_t topic
        uint64_t position, first_sequence
        uint32_t row_count, epoch
        uint64_t durable_position
        int64_t first_timestamp_ns
        uint32_t row_bytes, payload_bytes
    uint32_t log_header_crc(const LogFileHeader &header)
    uint32_t frame_crc(const FrameHeader &header, const void *payload)

cdef extern from "log_scan.hpp" namespace "ringmain" nogil:
    cdef struct LogBytes:
        const char *base
        uint64_t limit, start_position
        uint32_t epoch
    cdef struct FrameEntry:
        uint64_t offset
    uint64_t scan_frames(const LogBytes &log, uint64_t offset, vector[FrameEntry] &entries, cbool proven)
    uint64_t c_find_frame "ringmain::find_frame"(const LogBytes &log, uint64_t offset, uint64_t end)

cdef extern from "log_writer.hpp" namespace "ringmain" nogil:
    const int NEEDS_FILE
    cdef struct LogFailure:
        int error
        const char *doing
        uint64_t file_number, offset
    cdef struct LogTopic:
        uint32_t row_bytes
        uint64_t next_sequence
        int64_t last_timestamp_ns
    cdef cppclass LogWriter:
        LogWriter(int, uint64_t, uint32_t, const string &, uint64_t, uint64_t, uint64_t, uint64_t, cbool, cbool) except +
        void add_topic(const string &, uint32_t, uint64_t, int64_t) except +
        int open_first()
        uint64_t group_room_rows(uint32_t)
        int add_rows(uint32_t, const char *, uint64_t, cbool)
        int append_row(uint32_t, const char *, cbool)
        int make_room()
        int write_group()
        int sync()
        int write_mark()
        int finish()
        void close_files()
        uint64_t written_position()
        uint64_t durable_position()
        uint64_t file_number()
        uint64_t offset()
        uint64_t written_bytes()
        uint64_t sync_count()
        cbool is_mapped()
        LogFailure failure()
        const LogTopic &topic(uint32_t)
        void add_spare(int, const string &) except +
        void refuse_spare(int)
        size_t spare_count()
        int wants_spare_fd()

FRAME_DTYPE = np.dtype([
    ("offset", "<u8"), ("first_sequence", "<u8"), ("durable_position", "<u8"), ("first_timestamp_ns", "<i8"),
    ("row_count", "<u4"), ("row_bytes", "<u4"), ("payload_bytes", "<u4"), ("topic", "<u2"), ("kind", "u1"), ("flags", "u1"),
])
LOST_DTYPE = np.dtype([("first_sequence", "<u8"), ("count", "<u8"), ("topic", "<u4"), ("unused", "<u4")])
if FRAME_DTYPE.itemsize != sizeof(FrameEntry):
    raise ImportError("ringmain was built with another frame layout than it was written for; build it again")

FRAME_ROWS, FRAME_TOPIC, FRAME_MARK, FRAME_CLOSE, FRAME_GAP, FRAME_TOMBSTONES = (
    C_FRAME_ROWS, C_FRAME_TOPIC, C_FRAME_MARK, C_FRAME_CLOSE, C_FRAME_GAP, C_FRAME_TOMBSTONES)
CONTINUES = C_CONTINUES  # of a frame's flags
LOG_HEADER_BYTES = C_LOG_HEADER_BYTES
FRAME_HEADER_BYTES = C_FRAME_HEADER_BYTES
GROUP_BYTES_MAX = C_GROUP_BYTES_MAX
TOPIC_COUNT_MAX = C_TOPIC_COUNT_MAX


cdef class _View:
    """A buffer held for the length of a call."""

    cdef Py_buffer buffer
    cdef bint held

    def __cinit__(self, source):
        PyObject_GetBuffer(source, &self.buffer, PyBUF_SIMPLE)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.buffer)


def crc32c(data, uint32_t crc=0, *, bint portable=False):
    """CRC-32C of a bytes-like object, continued from `crc`. `portable` takes the path without special instructions."""
    cdef _View view = _View(data)
    cdef uint32_t result
    if view.buffer.len <= SHORT_BYTES:  # giving the lock away would take longer
        return (c_crc32c_portable if portable else c_crc32c)(crc, view.buffer.buf, <size_t>view.buffer.len)
    with nogil:
        result = (c_crc32c_portable if portable else c_crc32c)(crc, view.buffer.buf, <size_t>view.buffer.len)
    return result


def decode_file_header(data, path):
    """Check a log file's first 4,096 bytes and return its fields as a dict, or None where they are not a header.

    Raises FormatMismatch for a sound header of a version or byte order that this release does not know.
    """
    cdef _View view = _View(data)
    cdef LogFileHeader header
    if <size_t>view.buffer.len < C_LOG_HEADER_BYTES:
        return None
    memcpy(&header, view.buffer.buf, sizeof(LogFileHeader))
    if memcmp(header.magic, LOG_MAGIC, 8) != 0 or log_header_crc(header) != header.crc:
        return None
    if header.byte_order != BYTE_ORDER_MARK:
        raise FormatMismatch(path, "byte order", "little-endian", "another")
    if header.version != LOG_VERSION:
        raise FormatMismatch(path, "log format version", LOG_VERSION, header.version)
    try:
        bus = (<bytes>header.bus[:64]).rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None
    if header.bus[63] != 0 or "\0" in bus or header.header_bytes != C_LOG_HEADER_BYTES:
        return None
    return {
        "log_id": header.log_id, "file_number": header.file_number, "start_position": header.start_position,
        "previous_end": header.previous_end, "epoch": header.epoch, "created_ns": header.created_ns,
        "file_bytes": header.file_bytes, "start_bytes": header.start_bytes,
        "bus": bus,
    }


def encode_file_header(*, uint64_t log_id, uint64_t file_number, uint64_t start_position, uint64_t previous_end,
                       uint32_t epoch, int64_t created_ns, uint64_t file_bytes, uint64_t start_bytes, str bus):
    """The 4,096 bytes of a log file's header."""
    cdef LogFileHeader header
    cdef bytes name = bus.encode()
    cdef bytearray out = bytearray(C_LOG_HEADER_BYTES)
    cdef char *at = out
    memcpy(&header, at, sizeof(LogFileHeader))
    memcpy(header.magic, LOG_MAGIC, 8)
    header.version, header.byte_order, header.header_bytes = LOG_VERSION, BYTE_ORDER_MARK, <uint32_t>C_LOG_HEADER_BYTES
    header.log_id, header.file_number, header.start_position = log_id, file_number, start_position
    header.previous_end, header.epoch, header.created_ns, header.file_bytes = previous_end, epoch, created_ns, file_bytes
    header.start_bytes = start_bytes
    if len(name) > 63:
        raise ValueError(f"bus: at most 63 bytes fit into a log file's header, got {len(name)}")
    memcpy(header.bus, <char *>name, len(name))
    header.crc = log_header_crc(header)
    memcpy(at, &header, sizeof(LogFileHeader))
    return bytes(out)


def encode_frame(uint8_t kind, payload, *, uint64_t position, uint32_t epoch, uint32_t frame_bytes, uint32_t row_count=0,
                 uint16_t topic=0, uint64_t first_sequence=0, uint64_t durable_position=0, int64_t first_timestamp_ns=0,
                 uint32_t row_bytes=0):
    """One frame of `frame_bytes`: a multiple of 8, at most 1 MiB. A gap's payload is filled up with zeros; any other's is padded."""
    cdef bytes body = bytes(payload)
    cdef FrameHeader header
    cdef bytearray out
    cdef char *at
    if frame_bytes % 8 or frame_bytes > C_GROUP_BYTES_MAX or frame_bytes < C_FRAME_HEADER_BYTES + len(body):
        raise ValueError(f"frame_bytes: {frame_bytes} cannot hold a header of {C_FRAME_HEADER_BYTES} and {len(body)} bytes")
    if kind == C_FRAME_GAP:
        body = body.ljust(frame_bytes - C_FRAME_HEADER_BYTES, b"\0")
    elif frame_bytes - C_FRAME_HEADER_BYTES - len(body) >= 8:
        raise ValueError(f"frame_bytes: {frame_bytes} is more than a frame with {len(body)} bytes of payload takes")
    out = bytearray(frame_bytes)
    at = out
    memcpy(&header, at, sizeof(FrameHeader))
    header.magic, header.frame_bytes, header.kind, header.topic = FRAME_MAGIC, frame_bytes, kind, topic
    header.position, header.first_sequence, header.row_count, header.epoch = position, first_sequence, row_count, epoch
    header.durable_position, header.first_timestamp_ns = durable_position, first_timestamp_ns
    header.row_bytes, header.payload_bytes = row_bytes, <uint32_t>len(body)
    header.crc = frame_crc(header, <char *>body)
    memcpy(at, &header, sizeof(FrameHeader))
    memcpy(at + sizeof(FrameHeader), <char *>body, len(body))
    return bytes(out)


cdef LogBytes _log_bytes(_View view, uint64_t start_position, uint32_t epoch, uint64_t limit):
    cdef LogBytes log
    log.base = <const char *>view.buffer.buf
    log.limit = min(<uint64_t>view.buffer.len, limit)
    log.start_position, log.epoch = start_position, epoch
    return log


def scan(data, *, uint64_t start_position, uint32_t epoch, uint64_t offset, uint64_t limit=2**63, bint proven=False):
    """Check the frames of a log file from `offset` on.

    data: the file's bytes, header included. limit: where to stop reading. proven: leave out the checksums, which the caller has
    had proven before.
    Returns (frames, end): an array of FRAME_DTYPE, in file order, every checksum proven, and the offset at which the
    first invalid frame would begin. Runs without the interpreter's lock.
    """
    cdef _View view = _View(data)
    cdef LogBytes log = _log_bytes(view, start_position, epoch, limit)
    cdef vector[FrameEntry] entries
    cdef uint64_t end
    with nogil:
        end = scan_frames(log, offset, entries, proven)
    frames = np.empty(entries.size(), FRAME_DTYPE)
    if entries.size():
        memcpy(cnp.PyArray_DATA(<cnp.ndarray>frames), entries.data(), entries.size() * sizeof(FrameEntry))
    return frames, end


def find_frame(data, *, uint64_t start_position, uint32_t epoch, uint64_t offset, uint64_t end=2**63, uint64_t limit=2**63):
    """The offset of the first valid frame that begins at or behind `offset`, and before `end`, or None.

    limit: where to stop reading. Runs without the interpreter's lock.
    """
    cdef _View view = _View(data)
    cdef LogBytes log = _log_bytes(view, start_position, epoch, limit)
    cdef uint64_t found
    with nogil:
        found = c_find_frame(log, offset, end)
    return None if found >= log.limit else found


def gather(data, cnp.ndarray offsets, cnp.ndarray counts, Py_ssize_t row_bytes, cnp.ndarray out):
    """Copy the rows of several frames behind each other into `out` (one-dimensional, contiguous rows of `row_bytes`).

    offsets, counts: u8 arrays, the frames' places in `data` and their row counts, both from `scan`.
    """
    cdef _View view = _View(data)
    cdef const uint64_t *offset = <const uint64_t *>cnp.PyArray_DATA(offsets)
    cdef const uint64_t *count = <const uint64_t *>cnp.PyArray_DATA(counts)
    cdef Py_ssize_t frames = len(offsets), i
    cdef const char *base = <const char *>view.buffer.buf
    cdef char *to = <char *>cnp.PyArray_DATA(out)
    if offsets.dtype != np.uint64 or counts.dtype != np.uint64 or len(counts) != frames:
        raise ValueError("offsets and counts: two u8 arrays of one length are needed")
    if out.itemsize != row_bytes or int(counts.sum()) > len(out):
        raise ValueError(f"out: room for {int(counts.sum())} rows of {row_bytes} bytes is needed")
    if frames and int((offsets + C_FRAME_HEADER_BYTES + counts * np.uint64(row_bytes)).max()) > <uint64_t>view.buffer.len:
        raise ValueError("offsets: a frame would reach beyond the data")
    with nogil:
        for i in range(frames):
            memcpy(to, base + offset[i] + C_FRAME_HEADER_BYTES, count[i] * <size_t>row_bytes)
            to += count[i] * <size_t>row_bytes


cdef class LogAppender:
    """One writer's hold on a log: see log_writer.hpp for who may call what.

    The caller (storage/log.py) has locked the directory, recovered it, and keeps spare files coming.
    """

    cdef LogWriter *writer
    cdef readonly object path
    cdef readonly list row_dtypes

    def __cinit__(self, path, int directory_fd, *, uint64_t log_id, uint32_t epoch, str bus, uint64_t next_file_number,
                  uint64_t start_position, uint64_t previous_end, uint64_t file_bytes, bint sync_files,
                  bint map_small_groups=False):
        self.path = os.fspath(path)
        self.row_dtypes = []
        self.writer = new LogWriter(directory_fd, log_id, epoch, bus.encode(), next_file_number, start_position, previous_end,
                                    file_bytes, sync_files, map_small_groups)

    def __dealloc__(self):
        del self.writer
        self.writer = NULL

    def add_topic(self, bytes schema_json, dtype, uint64_t next_sequence, int64_t last_timestamp_ns):
        """Declare a topic; its number is the count of topics declared before it. Only before `open_first`."""
        self.writer.add_topic(schema_json, dtype.itemsize, next_sequence, last_timestamp_ns)
        self.row_dtypes.append(dtype)

    def capsule(self):
        """The C++ writer, for the journal of the bus, which must not outlive this object."""
        return PyCapsule_New(self.writer, "ringmain.LogWriter", NULL)

    cdef int _check(self, int error) except -1:
        if error != 0:
            raise self.failure()
        return 0

    def failure(self):
        """The LogFailed that stopped this log, or None."""
        cdef LogFailure failure = self.writer.failure()
        if failure.error == 0:
            return None
        place = os.path.join(self.path, f"{failure.file_number:010d}.log")
        return LogFailed(place, failure.doing.decode() + (f" at byte {failure.offset}" if failure.offset else ""),
                         OSError(failure.error, os.strerror(failure.error)))

    def open_first(self):
        """Begin this writer's first file. At least one spare must be there."""
        cdef int error
        with nogil:
            error = self.writer.open_first()
        self._check(error)

    cdef uint32_t _check_rows(self, uint32_t topic, cnp.ndarray rows) except 0:
        """Whether an array is rows of the topic; returns the bytes of one."""
        if topic >= len(self.row_dtypes):
            raise ValueError(f"topic: this log has {len(self.row_dtypes)} topics, number {topic} is not one of them")
        if rows.dtype != self.row_dtypes[topic] or not rows.flags.c_contiguous or rows.ndim != 1:
            raise ValueError(f"rows: a contiguous one-dimensional array of {self.row_dtypes[topic]} is needed, got {rows.dtype}")
        return self.writer.topic(topic).row_bytes

    def append(self, uint32_t topic, cnp.ndarray rows, bint tombstones=False):
        """Append complete rows (stamps included, sequences following the topic's last) and write them. Not yet synced.

        tombstones: each row deletes its key; all but stamp and key fields are zero.
        """
        cdef uint64_t count = len(rows), done = 0, room
        cdef const char *at = <const char *>cnp.PyArray_DATA(rows)
        cdef uint32_t row_bytes = self._check_rows(topic, rows)
        cdef int error = 0
        if count and (rows["sequence"][0] != self.writer.topic(topic).next_sequence or
                      (np.diff(rows["sequence"].astype(np.int64)) != 1).any()):
            raise ValueError(f"rows: sequences must run on from {self.writer.topic(topic).next_sequence}")
        with nogil:
            while error == 0 and done < count:
                room = min(self.writer.group_room_rows(topic), count - done)
                if room:
                    error = self.writer.add_rows(topic, at + done * row_bytes, room, tombstones)
                    done += room
                if error == 0:
                    error = self.writer.write_group()
        self._check(error)

    def append_one(self, uint32_t topic, cnp.ndarray row, bint tombstone=False):
        """As `append`, for an array of one row: what compiled code does with `append_row`, without a group."""
        cdef int error
        self._check_rows(topic, row)
        if len(row) != 1:
            raise ValueError(f"row: an array of one row is needed, got {len(row)}")
        error = self.writer.append_row(topic, <const char *>cnp.PyArray_DATA(row), tombstone)
        if error == NEEDS_FILE:
            self.make_room()
            error = self.writer.append_row(topic, <const char *>cnp.PyArray_DATA(row), tombstone)
        if error == errno.EINVAL and self.failure() is None:
            raise ValueError(f"rows: sequences must run on from {self.writer.topic(topic).next_sequence}")
        self._check(error)

    def make_room(self):
        """Begin the next file if the current one is full. Waits, with the interpreter's lock released, for a spare and the disk."""
        cdef int error
        with nogil:
            error = self.writer.make_room()
        self._check(error)

    def sync(self):
        """Make everything appended so far durable. From any thread, also while another appends."""
        cdef int error
        with nogil:
            error = self.writer.sync()
        self._check(error)

    def sync_behind(self):
        """What `sync` does, under the name that says who calls it: a thread beside the one that appends."""
        self.sync()

    def mark(self):
        """Leave word in the log that everything so far is on the disk, unless the newest frame says so. Not yet synced itself."""
        cdef int error
        with nogil:
            error = self.writer.write_mark()
        self._check(error)

    def finish(self):
        """End the log in good order: everything written, synced, and marked as closed."""
        cdef int error
        with nogil:
            error = self.writer.finish()
        self._check(error)

    def close(self):
        """Let go of the files, whoever still holds this object. Nobody may be appending."""
        with nogil:
            self.writer.close_files()

    def next_sequence(self, uint32_t topic):
        """The sequence that the topic's next appended row must have."""
        if topic >= len(self.row_dtypes):
            raise ValueError(f"topic: this log has {len(self.row_dtypes)} topics, number {topic} is not one of them")
        return self.writer.topic(topic).next_sequence

    def add_spare(self, int fd, str name):
        """Hand over an open, allocated file; the writer closes it."""
        self.writer.add_spare(fd, name.encode())

    def refuse_spare(self, int error):
        """Say that no file could be made (errno); the writer fails when it next needs one."""
        self.writer.refuse_spare(error)

    @property
    def spare_count(self):
        return self.writer.spare_count()

    @property
    def wants_spare_fd(self):
        """An eventfd, readable when a spare was taken or is waited for."""
        return self.writer.wants_spare_fd()

    @property
    def position(self):
        """Behind everything appended."""
        return self.writer.written_position()

    @property
    def durable_position(self):
        return self.writer.durable_position()

    @property
    def file_number(self):
        return self.writer.file_number()

    @property
    def offset(self):
        """Where the next frame goes in the current file, in bytes."""
        return self.writer.offset()

    @property
    def written_bytes(self):
        return self.writer.written_bytes()

    @property
    def sync_count(self):
        return self.writer.sync_count()

    @property
    def is_mapped(self):
        """Whether small groups go into the current file through a map: it was asked for, and the file system allows it."""
        return self.writer.is_mapped()
