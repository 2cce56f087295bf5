"""The compiled half of the store: memtable, sstables, merging, and looking a key up in all of them.

A tree is one topic's rows by key. The bytes are sstable_format.hpp's, the order of keys key.hpp's.
"""
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_INCREF, PyObject
from libc.errno cimport EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, make_unique, shared_ptr, unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport move
from libcpp.vector cimport vector

import os

import numpy as np

from ._log import FRAME_DTYPE
from .errors import Corruption, FormatMismatch, SchemaError, StorageError
from .files import map_file

cnp.import_array()

include "row_packer.pxi"

cdef extern from "numpy/arrayobject.h":
    object PyArray_Scalar(void *data, cnp.dtype kind, PyObject *base)  # base: NULL copies the data; None would not

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int PROT_READ, MAP_SHARED
    void *MAP_FAILED

cdef extern from "key.hpp" namespace "ringmain" nogil:
    const uint32_t C_KEY_WORDS_MAX "ringmain::KEY_WORDS_MAX"
    cdef enum KeyKind "ringmain::KeyKind":
        KEY_UNSIGNED "ringmain::KEY_UNSIGNED", KEY_SIGNED "ringmain::KEY_SIGNED"
        KEY_FLOAT "ringmain::KEY_FLOAT", KEY_BYTES "ringmain::KEY_BYTES"
    cdef struct KeyField:
        uint32_t offset, bytes
        KeyKind kind
    cdef cppclass KeyLayout:
        KeyLayout(vector[KeyField]) except +
        uint32_t words() const
        uint32_t bytes() const
        void encode(const char *row, uint64_t *key) const
        void decode(const uint64_t *key, char *row) const
    uint64_t hash_key(const uint64_t *key, uint32_t words)
    int compare_keys(const uint64_t *one, const uint64_t *other, uint32_t words)

cdef extern from "memory_pool.hpp" namespace "ringmain" nogil:
    cdef struct Memory:
        char *base
        uint64_t bytes
    cdef cppclass CMemoryPool "ringmain::MemoryPool":
        CMemoryPool(uint64_t)

cdef extern from "memtable.hpp" namespace "ringmain" nogil:
    cdef struct OrderEntry:
        uint64_t key[2]
        uint32_t index
    ctypedef vector[OrderEntry] SortedRun
    cdef struct RowsElsewhere "ringmain::Memtable::RowsElsewhere":
        uint64_t count
    cdef cppclass CMemtable "ringmain::Memtable":
        CMemtable(const KeyLayout &, uint32_t, uint64_t, shared_ptr[CMemoryPool]) except +
        CMemtable(const KeyLayout &, uint32_t, RowsElsewhere, shared_ptr[CMemoryPool]) except +
        uint64_t capacity()
        const Memory &memory()
        uint64_t count()
        uint64_t room()
        uint64_t tombstone_count()
        const char *row(uint64_t)
        cbool is_tombstone(uint64_t)
        char *next_row()
        void commit_row(cbool)
        void insert(const char *, uint64_t, cbool)
        void commit_rows(uint64_t)
        uint64_t touch(uint64_t)
        void prefetch(uint64_t)
        const char *find(const uint64_t *, uint64_t, uint64_t, cbool &)
        vector[shared_ptr[const SortedRun]] order(uint64_t) except +
        shared_ptr[const SortedRun] whole_order() except +
    uint64_t row_sequence(const char *row)

cdef extern from "log_scan.hpp" namespace "ringmain" nogil:
    const size_t C_FRAME_HEADER_BYTES "ringmain::FRAME_HEADER_BYTES"
    cdef struct FrameEntry:
        uint64_t offset
        uint32_t row_count, payload_bytes

cdef extern from "log_replay.hpp" namespace "ringmain" nogil:
    uint64_t rows_between(const FrameEntry &frame, uint64_t first, uint64_t end)
    void replay_frames(CMemtable &, const char *base, const FrameEntry *frames, uint64_t count, uint64_t first, uint64_t end)

cdef extern from "sstable_format.hpp" namespace "ringmain" nogil:
    const char *C_TABLE_MAGIC "ringmain::TABLE_MAGIC"
    const uint32_t TABLE_VERSION, TABLE_BYTE_ORDER
    const uint32_t C_SECTION_BLOOM "ringmain::SECTION_BLOOM", C_SECTION_SCHEMA "ringmain::SECTION_SCHEMA"
    const uint32_t C_SECTION_COUNT "ringmain::SECTION_COUNT"
    const size_t C_TABLE_PAGE_BYTES "ringmain::TABLE_PAGE_BYTES"
    cdef enum TableSection "ringmain::TableSection":
        SECTION_KEYS "ringmain::SECTION_KEYS", SECTION_SCHEMA "ringmain::SECTION_SCHEMA"
    cdef struct BlockEntry:
        uint64_t offset, first_sequence
        uint32_t bytes, crc
    cdef struct SectionEntry:
        uint64_t offset, bytes
        uint32_t crc
    cdef struct TableHeader:
        char magic[8]
        uint32_t version, byte_order
        uint64_t table_number, schema_hash, log_id
        int64_t created_ns
        uint32_t row_bytes, key_bytes, block_rows, compression
        char topic[64]
    cdef struct TableFooter:
        uint64_t file_bytes, row_count, block_count, tombstone_count, shadowed_count, sequence_min, sequence_max
        int64_t timestamp_min_ns, timestamp_max_ns
        uint64_t bloom_lines
        SectionEntry sections[8]
        uint64_t key_min[32]
        uint64_t key_max[32]

cdef extern from "sstable_writer.hpp" namespace "ringmain":
    ctypedef int (*CompressBlock)(void *, const char *, size_t, string &) noexcept nogil
    const int TABLE_OUT_OF_ORDER
    cdef cppclass CTableWriter "ringmain::TableWriter" nogil:
        CTableWriter(int, const KeyLayout &, const TableHeader &, CompressBlock, void *) except +
        int add(const char *, const uint8_t *, uint64_t) except +
        int finish() except +
        void set_schema(const string &) except +
        uint64_t row_count()
        uint64_t data_bytes()
        int error()

cdef extern from "sstable_reader.hpp" namespace "ringmain":
    cdef enum class DamageKind "ringmain::DamageKind":
        NUMBERS, SIZES, MAGICS
    cdef struct TableDamage:
        const char *what
        uint64_t offset, expected, found
        DamageKind kind
    cdef enum class Lookup "ringmain::Lookup":
        ABSENT, FOUND, NEEDS_BLOCK, DAMAGED
    cdef cppclass CTableReader "ringmain::TableReader" nogil:
        CTableReader() except +
        cbool open(const char *, uint64_t, TableDamage &) except +
        const TableHeader &header()
        const TableFooter &footer()
        cbool compressed()
        uint32_t key_words()
        uint64_t row_count()
        uint64_t block_rows()
        const char *section(TableSection)
        uint64_t section_bytes(TableSection)
        void set_layout(const KeyLayout &) except +
        cbool prove_sections(TableDamage &) except +
        cbool prove_section(uint32_t, TableDamage &)
        cbool prove_block(uint64_t, TableDamage &)
        void prefetch_filter(uint64_t)
        cbool may_have(const uint64_t *, uint64_t)
        const BlockEntry *block_entries()
        uint64_t rows_in(uint64_t)
        const char *stored_block(uint64_t)
        const char *base()
        cbool is_tombstone(uint64_t)

cdef extern from "sstable_verify.hpp" namespace "ringmain":
    cdef cppclass TableProof nogil:
        TableProof(CTableReader &) except +
        cbool prove_sections() except +
        cbool prove_stored(uint64_t) except +
        void prove_rows(uint64_t, const char *) except +
        void finish() except +
        const vector[TableDamage] &found()

cdef extern from "merge.hpp" namespace "ringmain":
    ctypedef int (*LoadBlock)(void *, CTableReader *, uint64_t, char *) noexcept nogil
    cdef cppclass MergeSource nogil:
        cbool damaged
    cdef cppclass RunSource(MergeSource) nogil:
        RunSource(const CMemtable &, shared_ptr[const SortedRun], const uint64_t *, const uint64_t *, cbool) except +
    cdef cppclass TableSource(MergeSource) nogil:
        TableSource(CTableReader &, const uint64_t *, const uint64_t *, cbool, LoadBlock, void *) except +
        uint64_t first()
        uint64_t end()
        TableDamage damage
    cdef cppclass CMerge "ringmain::Merge" nogil:
        CMerge(uint32_t, uint32_t, cbool) except +
        void add(unique_ptr[MergeSource]) except +
        void begin_scan(uint64_t, cbool) except +
        void begin_compaction(vector[uint64_t], cbool, cbool) except +
        uint64_t fill(char *, uint8_t *, uint64_t) except +
        cbool within_key()
        const MergeSource *damaged()
        uint64_t read_count()

cdef extern from "lookup.hpp" namespace "ringmain":
    cdef struct Place:
        const char *row
        cbool tombstone
        CTableReader *table
        uint64_t block
        TableDamage damage
    cdef cppclass TreeLookup nogil:
        TreeLookup(const KeyLayout &, uint32_t) except +
        void add_memtable(const CMemtable *) except +
        void add_level(vector[CTableReader *]) except +
        Lookup find(const uint64_t *, uint64_t, uint64_t, Place &, const CTableReader *, uint64_t, const char *)
        uint64_t find_many(const char *, uint64_t, uint64_t, char *, uint8_t *)

cdef extern from "feed.hpp" namespace "ringmain" nogil:
    cdef cppclass Feed:
        CMemtable *active()
        uint64_t visible()
        void set_visible(uint64_t)
        void set_active(CMemtable *)

cdef extern from "log_writer.hpp" namespace "ringmain" nogil:
    const int NEEDS_FILE
    cdef struct LogTopic:
        uint64_t next_sequence
    cdef cppclass LogWriter:
        const LogTopic &topic(uint32_t topic)
        int make_room()
        int append_row(uint32_t topic, const char *row, cbool tombstone)
        uint64_t group_room_rows(uint32_t topic)
        cbool in_use
        uint64_t batch_rows_max(uint32_t topic)
        int begin_batch(uint32_t topic, uint64_t count)
        int add_rows(uint32_t topic, const char *rows, uint64_t count, cbool tombstones, cbool continues)
        int write_group()

cdef extern from "pack.hpp" namespace "ringmain" nogil:
    void copy_rows(char *slot, uint32_t row_bytes, const char *source, int64_t stride, uint64_t count, uint64_t sequence,
                   int64_t timestamp_ns)

cdef extern from "clock.hpp" namespace "ringmain" nogil:
    int64_t wall_ns()

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

KEY_BYTES_MAX = 8 * C_KEY_WORDS_MAX
COMPRESSIONS = ("none", "zstd", "lz4")  # by their numbers in sstable_format.hpp
TABLE_MAGIC = <bytes>C_TABLE_MAGIC[:8]  # what an sstable begins with


cdef class KeyCodec:
    """A schema's key: its fields' places in the row, and how to compare them.

    A topic without a key is kept by its sequence. Raises ValueError where the key is longer than KEY_BYTES_MAX.
    """

    cdef unique_ptr[KeyLayout] layout
    cdef RowPacker packer
    cdef vector[KeyField] fields
    cdef readonly str topic
    cdef readonly tuple names
    cdef readonly object dtype
    cdef readonly uint32_t row_bytes, key_bytes, key_words

    def __cinit__(self, schema):
        cdef KeyField field
        self.topic, self.dtype, self.row_bytes = schema.name, schema.dtype, schema.row_bytes
        self.names = schema.key or ("sequence",)
        for name in self.names:
            kind, offset = schema.dtype.fields[name][:2]
            field.offset, field.bytes = offset, kind.itemsize
            field.kind = {"u": KEY_UNSIGNED, "b": KEY_UNSIGNED, "i": KEY_SIGNED, "f": KEY_FLOAT, "S": KEY_BYTES}[kind.kind]
            self.fields.push_back(field)
            self.key_bytes += field.bytes
        if self.key_bytes > KEY_BYTES_MAX:
            raise SchemaError(f"the key takes {self.key_bytes} bytes; a store takes at most {KEY_BYTES_MAX}", topic=self.topic)
        self.layout = make_unique[KeyLayout](self.fields)
        self.key_words = self.layout.get().words()
        self.packer = RowPacker(self.topic, schema.dtype, self.names)

    cdef int key_of(self, tuple values, char *row, uint64_t *key) except -1:
        """Encode a whole key given by its values. row: scratch of row_bytes."""
        cdef PyObject *at[256]
        cdef Py_ssize_t count = len(values), i
        if count != self.packer.count:
            raise TypeError(f"topic {self.topic!r}: its key is {', '.join(self.names)}; got {count} values")
        for i in range(count):
            at[i] = PyTuple_GET_ITEM(<PyObject *>values, i)
        self.packer.pack(row, at)
        self.layout.get().encode(row, key)
        return 0

    cdef int bound_of(self, object values, bint high, char *row, uint64_t *key) except -1:
        """Encode a bound: the first fields of a key, the others at their least or (high) greatest."""
        cdef PyObject *at[256]
        cdef Py_ssize_t count, i
        cdef RowPacker packer
        if not isinstance(values, tuple):
            values = (values,)
        count = len(values)
        if not 0 < count <= self.packer.count:
            raise TypeError(f"topic {self.topic!r}: a bound has 1 to {self.packer.count} of its key's fields "
                            f"({', '.join(self.names)}); got {count} values")
        memset(row, 0, self.row_bytes)
        packer = self.packer if count == self.packer.count else RowPacker(self.topic, self.dtype, self.names[:count])
        for i in range(count):
            at[i] = PyTuple_GET_ITEM(<PyObject *>values, i)
        packer.pack(row, at)
        self.layout.get().encode(row, key)
        used = sum(self.dtype.fields[name][0].itemsize for name in self.names[:count])
        for i in range(self.key_words):
            for byte in range(8):
                if 8 * i + byte >= used:
                    key[i] = key[i] | (<uint64_t>0xFF << (56 - 8 * byte)) if high and 8 * i + byte < self.key_bytes \
                        else key[i] & ~(<uint64_t>0xFF << (56 - 8 * byte))
        return 0

    def encode(self, rows):
        """The rows' keys as an array of u64, shape (rows, key_words), that compares word by word as the keys do."""
        cdef cnp.ndarray array = _row_array(self, rows)
        cdef uint64_t count = len(array), i
        keys = np.empty((count, self.key_words), "u8")
        cdef uint64_t *to = <uint64_t *>cnp.PyArray_DATA(<cnp.ndarray>keys)
        cdef const char *row = <const char *>cnp.PyArray_DATA(array)
        with nogil:
            for i in range(count):
                self.layout.get().encode(row + i * self.row_bytes, to + i * self.key_words)
        return keys

    def hashes(self, rows):
        """The hash of each row's key, as filter and tags have it: an array of u64."""
        cdef cnp.ndarray array = _row_array(self, rows)
        cdef uint64_t count = len(array), i
        cdef uint64_t key[256]
        hashes = np.empty(count, "u8")
        cdef uint64_t *to = <uint64_t *>cnp.PyArray_DATA(<cnp.ndarray>hashes)
        cdef const char *row = <const char *>cnp.PyArray_DATA(array)
        with nogil:
            for i in range(count):
                self.layout.get().encode(row + i * self.row_bytes, key)
                to[i] = hash_key(key, self.key_words)
        return hashes

    def values(self, key):
        """The values that a key (a sequence of key_words words) stands for, as a tuple."""
        cdef uint64_t words[256]
        scratch = np.zeros(1, self.dtype)
        for i in range(self.key_words):
            words[i] = key[i]
        self.layout.get().decode(words, <char *>cnp.PyArray_DATA(<cnp.ndarray>scratch))
        return tuple([scratch[name][0].item() for name in self.names])


cdef cnp.ndarray _row_array(KeyCodec codec, rows):
    if not isinstance(rows, np.ndarray) or rows.dtype != codec.dtype or rows.ndim != 1 or not rows.flags.c_contiguous:
        raise TypeError(f"topic {codec.topic!r}: a contiguous one-dimensional array of its row dtype is needed")
    return <cnp.ndarray>rows


cdef class MemoryPool:
    """Where memtables take their memory, and give it back when nobody holds them any more. keep_bytes: kept for later ones."""

    cdef shared_ptr[CMemoryPool] pool

    def __cinit__(self, uint64_t keep_bytes=0):
        self.pool = make_shared[CMemoryPool](keep_bytes)


cdef class Memtable:
    """A topic's newest rows in memory, by key. One thread inserts (any thread that holds the interpreter's lock, or the journal).

    budget_bytes: memory for all but the sorted runs that scans make. rows_elsewhere: instead, for so many rows of log files, which
    stay where they are; they come by `replay`.
    """

    cdef unique_ptr[CMemtable] table
    cdef readonly KeyCodec codec
    cdef list held  # the files in which rows lie; None where they are copied

    def __cinit__(self, KeyCodec codec, uint64_t budget_bytes=0, MemoryPool pool=None, *, uint64_t rows_elsewhere=0):
        if pool is None:
            pool = MemoryPool()
        self.codec = codec
        cdef CMemtable *made
        cdef RowsElsewhere elsewhere
        elsewhere.count = rows_elsewhere
        with nogil:
            if rows_elsewhere:
                made = new CMemtable(codec.layout.get()[0], codec.row_bytes, elsewhere, pool.pool)
            else:
                made = new CMemtable(codec.layout.get()[0], codec.row_bytes, budget_bytes, pool.pool)
        self.table.reset(made)
        self.held = [] if rows_elsewhere else None

    def __len__(self):
        return self.table.get().count()

    @property
    def capacity(self):
        return self.table.get().capacity()

    @property
    def room(self):
        return self.table.get().room()

    @property
    def memory_bytes(self):
        return self.table.get().memory().bytes

    @property
    def address(self):
        """Where its memory begins."""
        return <uint64_t>self.table.get().memory().base

    @property
    def tombstone_count(self):
        return self.table.get().tombstone_count()

    @property
    def sequences(self):
        """(first, last) sequence held; (0, 0) when empty."""
        cdef uint64_t count = self.table.get().count()
        if count == 0:
            return 0, 0
        return row_sequence(self.table.get().row(0)), row_sequence(self.table.get().row(count - 1))

    def touch(self, uint64_t ahead_bytes):
        """Have the system give the memory for the next `ahead_bytes` of rows; returns how much of that lies behind the end.

        One thread at a time; another may insert meanwhile, and then meets fewer page faults.
        """
        cdef uint64_t behind
        with nogil:
            behind = self.table.get().touch(ahead_bytes)
        return behind

    def capsule(self):
        """The C++ memtable, for who feeds it without the interpreter; it must not outlive this object."""
        return PyCapsule_New(self.table.get(), "ringmain.Memtable", NULL)

    def insert(self, rows, bint tombstones=False):
        """Add complete rows in the order of their sequences; ValueError where there is no room for all."""
        cdef cnp.ndarray array = _row_array(self.codec, rows)
        cdef uint64_t count = len(array)
        cdef const char *at = <const char *>cnp.PyArray_DATA(array)
        if self.held is not None:
            raise ValueError("rows: this memtable holds none of its own")
        if count > self.table.get().room():
            raise ValueError(f"rows: {count} are more than the {self.table.get().room()} that still fit")
        with nogil:
            self.table.get().insert(at, count, tombstones)

    def replay(self, data, frames, uint64_t first, uint64_t end):
        """Add the rows that these frames of this topic hold with sequences from `first` to before `end`.

        data: a log file, mapped. frames: from a scan of it. Runs without the interpreter's lock. ValueError where there is no room
        for all, or a frame does not lie in the file or has other rows.
        """
        cdef const uint8_t[::1] file_bytes = data
        cdef uint64_t count = len(frames), size = len(file_bytes), row_count = 0, i
        if frames.dtype != FRAME_DTYPE or not frames.flags.c_contiguous:
            raise ValueError("frames: a contiguous array of frames is needed, as a scan of the log gives it")
        cdef const FrameEntry *entries = <const FrameEntry *>cnp.PyArray_DATA(<cnp.ndarray>frames)
        for i in range(count):
            if entries[i].offset > size or entries[i].offset + C_FRAME_HEADER_BYTES + entries[i].payload_bytes > size or \
                    <uint64_t>entries[i].row_count * self.codec.row_bytes != entries[i].payload_bytes:
                raise ValueError(f"frames: number {i} does not hold rows of topic {self.codec.topic!r} within the data")
            row_count += rows_between(entries[i], first, end)
        if row_count > self.table.get().room():
            raise ValueError(f"rows: {row_count} are more than the {self.table.get().room()} that still fit")
        if row_count == 0:
            return
        if self.held is not None:
            self.held.append(data)  # before its rows are there: a reader may come to them at once
        with nogil:
            replay_frames(self.table.get()[0], <const char *>&file_bytes[0], entries, count, first, end)

    def rows(self):
        """A copy of all rows by sequence, and of which are tombstones (bool array)."""
        cdef uint64_t count = self.table.get().count(), i
        rows = np.empty(count, self.codec.dtype)
        cdef char *to = <char *>cnp.PyArray_DATA(<cnp.ndarray>rows)
        flags = np.zeros(count, bool)
        for i in range(count):
            memcpy(to + i * self.codec.row_bytes, self.table.get().row(i), self.codec.row_bytes)
            flags[i] = self.table.get().is_tombstone(i)
        return rows, flags


class _Refused(Exception):
    """A package for compression does not take a block. Its own error is the cause."""


cdef object _repacked(call, tuple given):
    """A block compressed or decompressed by a package's call. Raises _Refused where that is what the package says of the block.

    Anything else is raised as it is: memory ran out, or a signal came, and its handler raised something. That can be any exception
    (the call is mostly the first Python code that runs in a merge, where pending signals are handled), but it does not come again.
    """
    try:
        return call(*given)
    except MemoryError:
        raise
    except Exception:
        try:
            call(*given)
        except MemoryError:
            raise
        except Exception as error:
            raise _Refused from error
        raise


cdef int _compress(void *context, const char *block, size_t bytes, string &out) noexcept nogil:
    with gil:
        writer = <TableWriter>context
        try:
            stored = _repacked(writer.compress, ((<const char *>block)[:bytes],))
            out.append(<const char *>stored, len(stored))
            return 0
        except BaseException as error:
            writer.failure = error
            return EIO


cdef class TableWriter:
    """Writes an sstable into an open, empty file. Rows must come in the order of keys, newer ones first within a key.

    compress: takes a block's bytes, returns its stored form; None with compression "none". Where it refuses a block, that is an
    OSError; what else is raised in it (MemoryError, KeyboardInterrupt) is raised here, then and by every later call.
    """

    cdef unique_ptr[CTableWriter] writer
    cdef KeyCodec codec
    cdef object compress, path
    cdef object failure  # what was raised while a block was compressed

    def __cinit__(self, KeyCodec codec, int fd, path, *, schema, uint64_t table_number, uint64_t log_id, int64_t created_ns,
                  uint32_t block_bytes, str compression="none", compress=None):
        cdef TableHeader header
        memset(&header, 0, sizeof(header))
        memcpy(header.magic, C_TABLE_MAGIC, 8)
        header.version, header.byte_order = TABLE_VERSION, TABLE_BYTE_ORDER
        header.table_number, header.schema_hash, header.log_id = table_number, schema.hash, log_id
        header.created_ns, header.row_bytes, header.key_bytes = created_ns, codec.row_bytes, codec.key_bytes
        header.block_rows = max(1, block_bytes // codec.row_bytes)
        header.compression = COMPRESSIONS.index(compression)
        name = codec.topic.encode()
        memcpy(header.topic, <const char *>name, len(name))
        self.codec, self.path, self.compress = codec, path, compress
        cdef CompressBlock compressing = NULL
        if compress is not None:
            compressing = _compress
        self.writer = make_unique[CTableWriter](fd, codec.layout.get()[0], header, compressing, <void *>self)
        self.writer.get().set_schema(schema.to_json())
        self._check(self.writer.get().error())

    cdef int _check(self, int error) except -1:
        if error == TABLE_OUT_OF_ORDER:
            raise ValueError(f"{self.path}: rows must come with keys rising, and sequences falling within a key")
        if isinstance(self.failure, _Refused):
            cause = self.failure.__cause__
            raise OSError(error, f"a block cannot be compressed: {cause}", str(self.path)) from cause
        if self.failure is not None:
            raise self.failure
        if error != 0:
            raise OSError(error, os.strerror(error), str(self.path))
        return 0

    def add(self, rows, flags=None):
        """Append rows. flags: a u8 array that says which are tombstones."""
        cdef cnp.ndarray array = _row_array(self.codec, rows)
        cdef const uint8_t *tombstones = NULL
        cdef uint64_t count = len(array)
        cdef const char *at = <const char *>cnp.PyArray_DATA(array)
        cdef int error
        if flags is not None:
            if flags.dtype != np.uint8 or <uint64_t>len(flags) < count:
                raise ValueError("flags: a u8 array as long as the rows is needed")
            tombstones = <const uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>flags)
        with nogil:
            error = self.writer.get().add(at, tombstones, count)
        self._check(error)

    def finish(self):
        """Write index, filter and footer, and sync the file."""
        cdef int error
        with nogil:
            error = self.writer.get().finish()
        self._check(error)

    @property
    def row_count(self):
        return self.writer.get().row_count()

    @property
    def data_bytes(self):
        return self.writer.get().data_bytes()


cdef class Table:
    """An sstable, mapped for as long as this object or a view of its rows lives. Any number of threads read it.

    codec: of the schema that it must have. Raises OSError, Corruption, FormatMismatch.
    """

    cdef CTableReader reader
    cdef char *data
    cdef size_t data_bytes
    cdef readonly KeyCodec codec
    cdef readonly object path
    cdef object decompress
    cdef dict blocks  # decompressed, the latest last
    cdef readonly uint64_t number, file_bytes, row_count, block_count, tombstone_count, shadowed_count, schema_hash, log_id
    cdef readonly uint64_t sequence_min, sequence_max
    cdef readonly int64_t timestamp_min_ns, timestamp_max_ns, created_ns
    cdef readonly uint32_t block_rows
    cdef readonly str compression, topic
    cdef readonly tuple key_min, key_max

    def __cinit__(self, path, KeyCodec codec, uint64_t schema_hash):
        cdef TableDamage damage
        cdef const TableHeader *header
        cdef const TableFooter *footer
        cdef void *memory
        self.path, self.codec, self.blocks = path, codec, {}
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.data_bytes = os.fstat(descriptor).st_size
            if self.data_bytes:  # by hand, since Python's mmap would keep the descriptor
                memory = mmap(NULL, self.data_bytes, PROT_READ, MAP_SHARED, descriptor, 0)
                if memory == MAP_FAILED:
                    raise OSError(errno, os.strerror(errno), str(path))
                self.data = <char *>memory
        finally:
            os.close(descriptor)
        if not self.reader.open(self.data, self.data_bytes, damage):
            self._raise(damage)
        header, footer = &self.reader.header(), &self.reader.footer()
        _check_version(path, header)
        if header.schema_hash != schema_hash:
            raise FormatMismatch(path, "schema", hex(schema_hash), hex(header.schema_hash))
        if header.row_bytes != codec.row_bytes or header.key_bytes != codec.key_bytes:
            raise Corruption(path, 48, f"rows of {codec.row_bytes} bytes with a key of {codec.key_bytes}",
                             f"{header.row_bytes} and {header.key_bytes}")
        if header.compression >= len(COMPRESSIONS):
            raise FormatMismatch(path, "compression", ", ".join(COMPRESSIONS), header.compression)
        self.reader.set_layout(codec.layout.get()[0])
        self.number, self.schema_hash, self.log_id = header.table_number, header.schema_hash, header.log_id
        self.created_ns, self.block_rows = header.created_ns, header.block_rows
        self.compression = COMPRESSIONS[<uint32_t>header.compression]
        self.topic = (<bytes>header.topic[:64]).split(b"\0")[0].decode("utf-8", "replace")
        self.file_bytes, self.row_count, self.block_count = footer.file_bytes, footer.row_count, footer.block_count
        self.tombstone_count, self.shadowed_count = footer.tombstone_count, footer.shadowed_count
        self.sequence_min, self.sequence_max = footer.sequence_min, footer.sequence_max
        self.timestamp_min_ns, self.timestamp_max_ns = footer.timestamp_min_ns, footer.timestamp_max_ns
        self.key_min = tuple([footer.key_min[i] for i in range(codec.key_words)])
        self.key_max = tuple([footer.key_max[i] for i in range(codec.key_words)])

    def __dealloc__(self):
        if self.data != NULL:
            munmap(self.data, self.data_bytes)

    def decompress_with(self, decompress):
        """Say how blocks are decompressed: a call with the stored bytes, and the size that they must come to."""
        self.decompress = decompress

    cdef object _error(self, TableDamage damage):
        return _corruption(self.path, damage)

    cdef object _raise(self, TableDamage damage):
        raise self._error(damage)

    cdef int prove_sections(self) except -1:
        cdef TableDamage damage
        cdef cbool sound
        with nogil:
            sound = self.reader.prove_sections(damage)
        if not sound:
            self._raise(damage)
        return 0

    cdef bytes block(self, uint64_t number):
        """A block of a compressed table, decompressed; the last few are kept."""
        cdef const BlockEntry *entry
        cdef TableDamage damage
        cdef bytes rows = self.blocks.get(number)
        if rows is not None:
            return rows
        if not self.reader.prove_block(number, damage):
            self._raise(damage)
        entry = &self.reader.block_entries()[number]
        size = self.reader.rows_in(number) * self.codec.row_bytes
        stored = (<const char *>self.data)[entry.offset:entry.offset + entry.bytes]
        try:
            rows = _repacked(self.decompress, (stored, size))
        except _Refused as refused:
            raise Corruption(self.path, entry.offset, f"a block of {size} bytes, compressed", refused.__cause__) from None
        if len(rows) != size:
            raise Corruption(self.path, entry.offset, f"a block of {size} bytes, compressed", f"{len(rows)} bytes")
        if len(self.blocks) >= 64:
            self.blocks.pop(next(iter(self.blocks)))
        self.blocks[number] = rows
        return rows

    def problems(self):
        """All that is wrong with the file, as Corruption errors, at most about a thousand; empty where it is sound.

        Every checksum, and that index, filter, tags and footer say what the rows do. With a damaged section the blocks are not
        looked at. Runs without the interpreter's lock, but for decompressing.
        """
        cdef unique_ptr[TableProof] proof
        cdef uint64_t block, count = self.block_count
        cdef cbool sound, usable, compressed = self.reader.compressed()
        cdef bytes rows
        cdef const char *at
        proof.reset(new TableProof(self.reader))
        errors = []
        with nogil:
            usable = proof.get().prove_sections()
            if usable and not compressed:
                for block in range(count):
                    if proof.get().prove_stored(block):
                        proof.get().prove_rows(block, self.reader.stored_block(block))
        if usable and compressed:
            for block in range(count):
                with nogil:
                    sound = proof.get().prove_stored(block)
                if not sound:
                    continue
                try:
                    rows = self.block(block)
                except Corruption as error:
                    errors.append(error)
                    continue
                at = rows
                with nogil:
                    proof.get().prove_rows(block, at)
        if usable and not errors:
            proof.get().finish()
        return [self._error(proof.get().found()[place]) for place in range(proof.get().found().size())] + errors

    def verify(self):
        """Raise the first of `problems`, if there are any."""
        for error in self.problems():
            raise error

    def rows(self, uint64_t first=0, end=None):
        """Rows `first` to `end - 1` in the order of keys, checksums proven: a view of the file, or of decompressed memory."""
        cdef TableDamage damage
        cdef uint64_t last = self.row_count if end is None else min(<uint64_t>end, self.row_count), block
        cdef cbool sound = True
        self.prove_sections()
        if first >= last:
            return np.empty(0, self.codec.dtype)
        if self.reader.compressed():
            parts = [self.block(block) for block in range(first // self.block_rows, (last - 1) // self.block_rows + 1)]
            rows = np.frombuffer(b"".join(parts), self.codec.dtype)
            start = first % self.block_rows
            return rows[start:start + last - first]
        with nogil:
            for block in range(first // self.block_rows, (last - 1) // self.block_rows + 1):
                sound = self.reader.prove_block(block, damage)
                if not sound:
                    break
        if not sound:
            self._raise(damage)
        offset = C_TABLE_PAGE_BYTES + first * self.codec.row_bytes
        return np.frombuffer(self, self.codec.dtype, last - first, offset)

    def bounds(self, first=None, last=None):
        """(begin, end): which rows have keys from `first` to `last`, both included; None for no bound."""
        cdef uint64_t low[256]
        cdef uint64_t high[256]
        cdef unique_ptr[TableSource] source
        cdef BlockLoader loader = BlockLoader(self)
        scratch = np.zeros(1, self.codec.dtype)
        cdef char *row = <char *>cnp.PyArray_DATA(<cnp.ndarray>scratch)
        cdef const uint64_t *from_key = NULL
        cdef const uint64_t *to_key = NULL
        if first is not None:
            self.codec.bound_of(first, False, row, low)
            from_key = low
        if last is not None:
            self.codec.bound_of(last, True, row, high)
            to_key = high
        self.prove_sections()
        source.reset(new TableSource(self.reader, from_key, to_key, False, _load_block, <void *>loader))
        loader.check(source.get())
        return source.get().first(), source.get().end()

    def flags(self, uint64_t first, uint64_t end):
        """Which of these rows are tombstones: a u8 array."""
        self.prove_sections()
        flags = np.zeros(end - first, "u1")
        if self.tombstone_count:
            for number in range(first, end):
                flags[number - first] = self.reader.is_tombstone(number)
        return flags

    def schema_json(self):
        """The schema as the file holds it."""
        self.prove_sections()
        return <bytes>self.reader.section(SECTION_SCHEMA)[:self.reader.section_bytes(SECTION_SCHEMA)]

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.data_bytes, 1, flags)


cdef int _check_version(object path, const TableHeader *header) except -1:
    if header.version != TABLE_VERSION:
        raise FormatMismatch(path, "version", TABLE_VERSION, header.version)
    if header.byte_order != TABLE_BYTE_ORDER:
        raise FormatMismatch(path, "byte order", hex(TABLE_BYTE_ORDER), hex(header.byte_order))
    return 0


cdef object _corruption(path, TableDamage damage):
    """The error for a damage, with its two values as people read them."""
    what = damage.what.decode()
    if damage.kind == DamageKind.MAGICS:
        return Corruption(path, damage.offset, f"{what} {<bytes>(<char *>&damage.expected)[:8]!r}",
                          repr(<bytes>(<char *>&damage.found)[:8]))
    if damage.kind == DamageKind.SIZES:
        return Corruption(path, damage.offset, f"{what} {damage.expected} bytes", f"{damage.found}")
    return Corruption(path, damage.offset, f"{what} {damage.expected:#x}", f"{damage.found:#x}")


def table_schema_json(path):
    """The schema that an sstable holds, for who does not know it. Raises Corruption, FileNotFoundError."""
    cdef TableDamage damage
    cdef CTableReader reader
    cdef const uint8_t[::1] data
    cdef const uint8_t *start = NULL
    cdef cbool sound
    mapped = map_file(path)
    if mapped is not None:
        data = mapped
        start = &data[0]
    sound = reader.open(<const char *>start, len(mapped or b""), damage)
    if sound:  # of another version or byte order no more than that is looked at
        _check_version(path, &reader.header())
    if not sound or not reader.prove_section(SECTION_SCHEMA, damage):
        raise _corruption(path, damage)
    return <bytes>reader.section(SECTION_SCHEMA)[:reader.section_bytes(SECTION_SCHEMA)]


cdef class BlockLoader:
    """Hands a table's blocks to one source of a merge, and keeps what was raised meanwhile."""

    cdef Table table
    cdef object failure

    def __cinit__(self, Table table):
        self.table = table

    cdef int check(self, const TableSource *source) except -1:
        """Raise what has stopped the source, if anything has; again and again, since it goes no further."""
        if not source.damaged:
            return 0
        if self.failure is not None:
            raise self.failure
        self.table._raise(source.damage)


cdef int _load_block(void *context, CTableReader *table, uint64_t block, char *out) noexcept nogil:
    with gil:
        loader = <BlockLoader>context
        try:
            rows = loader.table.block(block)
            memcpy(out, <const char *>rows, len(rows))
            return 0
        except BaseException as error:
            loader.failure = error
            return -1


cdef class Merge:
    """Memtables and sstables of one topic as one stream in the order of keys.

    memtables: (memtable, rows of it to read) pairs. first, last: bounds, each a tuple of the key's first values, both included;
    None for no bound. Everything handed in is held.
    """

    cdef unique_ptr[CMerge] merge
    cdef KeyCodec codec
    cdef list held
    cdef vector[TableSource *] table_sources
    cdef list loaders  # of each of them

    def __cinit__(self, KeyCodec codec, memtables, tables, first=None, last=None, bint reverse=False):
        cdef uint64_t low[256]
        cdef uint64_t high[256]
        cdef const uint64_t *from_key = NULL
        cdef const uint64_t *to_key = NULL
        cdef Memtable memtable
        cdef Table table
        cdef vector[shared_ptr[const SortedRun]] runs
        cdef unique_ptr[MergeSource] source
        cdef TableSource *made
        cdef BlockLoader loader
        cdef uint64_t count
        cdef CMemtable *rows
        scratch = np.zeros(1, codec.dtype)
        self.codec, self.held, self.loaders = codec, [], []
        if first is not None:
            codec.bound_of(first, False, <char *>cnp.PyArray_DATA(<cnp.ndarray>scratch), low)
            from_key = low
        if last is not None:
            codec.bound_of(last, True, <char *>cnp.PyArray_DATA(<cnp.ndarray>scratch), high)
            to_key = high
        self.merge = make_unique[CMerge](codec.row_bytes, codec.key_words, reverse)
        for memtable, count in memtables:
            self.held.append(memtable)
            rows = memtable.table.get()
            with nogil:
                runs = rows.order(count)
            for i in range(runs.size()):
                source.reset(new RunSource(rows[0], runs[i], from_key, to_key, reverse))
                self.merge.get().add(move(source))
        for table in tables:
            loader = BlockLoader(table)
            self.loaders.append(loader)
            table.prove_sections()
            made = new TableSource(table.reader, from_key, to_key, reverse, _load_block, <void *>loader)
            source.reset(made)
            self.table_sources.push_back(made)
            self.merge.get().add(move(source))
            self._check_sources()

    cdef int _check_sources(self) except -1:
        for i in range(self.table_sources.size()):
            (<BlockLoader>self.loaders[i]).check(self.table_sources[i])
        return 0

    def begin_scan(self, uint64_t visible, bint all_versions=False):
        """What is visible at a sequence."""
        with nogil:
            self.merge.get().begin_scan(visible, all_versions)
        self._check_sources()

    def begin_compaction(self, views, *, bint all_versions, bint bottom):
        """What must be kept. views: sequences that somebody reads at; bottom: nothing older can be in a table outside."""
        cdef vector[uint64_t] sequences
        for view in sorted(views, reverse=True):
            sequences.push_back(view)
        with nogil:
            self.merge.get().begin_compaction(sequences, all_versions, bottom)
        self._check_sources()

    def fill(self, rows, flags=None):
        """Copy the next rows into an array (of 2 or more); returns how many, 0 at the end. flags: a u8 array for tombstones."""
        cdef cnp.ndarray array = _row_array(self.codec, rows)
        cdef uint64_t count = len(array), filled
        cdef char *to = <char *>cnp.PyArray_DATA(array)
        cdef uint8_t *marks = NULL
        if flags is not None:
            if flags.dtype != np.uint8 or <uint64_t>len(flags) < count:
                raise ValueError("flags: a u8 array as long as the rows is needed")
            marks = <uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>flags)
        with nogil:
            filled = self.merge.get().fill(to, marks, count)
        if self.merge.get().damaged() != NULL:
            self._check_sources()
        return filled

    @property
    def within_key(self):
        """Whether the next row has the key of the last one: a table must not end here."""
        return self.merge.get().within_key()

    @property
    def read_count(self):
        """Rows read from the sources so far."""
        return self.merge.get().read_count()


cdef class State:
    """One state of a tree: where its rows are, the newest first. Never changed, replaced whole; a reader keeps the one it took.

    memtables: newest first. level0: newest first; levels: from level 1 on, each by key, their tables' ranges disjoint.
    """

    cdef unique_ptr[TreeLookup] lookup
    cdef readonly KeyCodec codec
    cdef readonly tuple memtables, level0, levels
    cdef dict tables  # by the address of the compiled reader

    def __cinit__(self, KeyCodec codec, tuple memtables, tuple level0, tuple levels):
        cdef Memtable memtable
        cdef Table table
        cdef vector[CTableReader *] readers
        self.codec, self.memtables, self.level0, self.levels, self.tables = codec, memtables, level0, levels, {}
        self.lookup = make_unique[TreeLookup](codec.layout.get()[0], codec.row_bytes)
        for memtable in memtables:
            self.lookup.get().add_memtable(memtable.table.get())
        for group in [(table,) for table in level0] + [level for level in levels if level]:
            readers.clear()
            for table in group:
                readers.push_back(&table.reader)
                self.tables[<uint64_t>&table.reader] = table
            self.lookup.get().add_level(readers)

    cdef const char *find(self, const uint64_t *key, uint64_t visible, list keep) except? NULL:
        """The newest visible row of a key, or NULL where it is absent or deleted. keep: gets what the row lies in."""
        cdef uint64_t hash = hash_key(key, self.codec.key_words)
        cdef Place place
        cdef Lookup result = self.lookup.get().find(key, hash, visible, place, NULL, 0, NULL)
        cdef Table table
        cdef bytes block
        while result == Lookup.NEEDS_BLOCK:
            table = self.tables[<uint64_t>place.table]
            block = table.block(place.block)
            keep.append(block)
            result = self.lookup.get().find(key, hash, visible, place, place.table, place.block, <const char *>block)
        if result == Lookup.DAMAGED:
            (<Table>self.tables[<uint64_t>place.table])._raise(place.damage)
        if result == Lookup.ABSENT or place.tombstone:
            return NULL
        return place.row

    def get(self, tuple values, uint64_t visible):
        """The newest row of a key with at most that sequence, as a record of its own, or None."""
        cdef uint64_t key[256]
        cdef list keep = []
        cdef const char *row
        scratch = bytearray(self.codec.row_bytes)
        self.codec.key_of(values, scratch, key)
        row = self.find(key, visible, keep)
        return None if row == NULL else PyArray_Scalar(<void *>row, <cnp.dtype>self.codec.dtype, NULL)

    def get_many(self, keys, uint64_t visible=<uint64_t>-1):
        """(rows, found) of many keys: rows of the schema's dtype, zeros where a key is absent, and a bool array.

        keys: an array of the row dtype of which only the key fields count. Runs without the interpreter's lock.
        """
        cdef cnp.ndarray array = _row_array(self.codec, keys)
        cdef uint64_t count = len(array), done = 0, row_bytes = self.codec.row_bytes
        cdef uint64_t key[256]
        cdef const char *source = <const char *>cnp.PyArray_DATA(array)
        cdef const char *row
        rows = np.zeros(count, self.codec.dtype)
        found = np.zeros(count, bool)
        cdef char *to = <char *>cnp.PyArray_DATA(<cnp.ndarray>rows)
        cdef uint8_t *flags = <uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>found)
        while done < count:
            with nogil:
                done += self.lookup.get().find_many(source + done * row_bytes, count - done, visible, to + done * row_bytes,
                                                    flags + done)
            if done < count:
                self.codec.layout.get().encode(source + done * row_bytes, key)
                row = self.find(key, visible, [])
                if row != NULL:
                    memcpy(to + done * row_bytes, row, row_bytes)
                    flags[done] = 1
                done += 1
        return rows, found


cdef class TreeCore:
    """A tree as a process uses it: its present state, and in the writing process where new rows go.

    get(*key) -> record or None; put(*fields, **fields) -> sequence; delete(*key) -> sequence.
    full: called, without arguments, when the active memtable has no room; must replace `state` and `active`.
    appended: called, without arguments, after each put and delete; None where nothing is to be done then.
    """

    cdef State _state
    cdef Feed feed
    cdef readonly KeyCodec codec
    cdef RowPacker packer
    cdef readonly uint64_t next_sequence
    cdef readonly int64_t last_timestamp_ns
    cdef LogWriter *log
    cdef uint32_t log_topic
    cdef object appender, full, appended, payload_dtype
    cdef bytearray scratch
    cdef char *key_row
    cdef bint busy, has_key
    cdef readonly object get, put, delete

    def __cinit__(self, KeyCodec codec, schema, State state):
        self.codec, self._state = codec, state
        self.payload_dtype, self.has_key = schema.payload_dtype, bool(schema.key)
        self.packer = RowPacker(schema.name, schema.dtype, tuple(schema.payload_dtype.names))
        self.scratch = bytearray(codec.row_bytes)
        self.key_row = self.scratch
        self.get = PyCFunction_New(&GET, self)
        self.put = PyCFunction_New(&PUT, self)
        self.delete = PyCFunction_New(&DELETE, self)

    @property
    def state(self):
        return self._state

    @property
    def visible(self):
        """The newest sequence that reading sees."""
        return self.feed.visible()

    @visible.setter
    def visible(self, uint64_t sequence):
        self.feed.set_visible(sequence)

    def feed_capsule(self):
        """The C++ Feed, for who puts rows in without the interpreter's lock; it must not outlive this object."""
        return PyCapsule_New(&self.feed, "ringmain.Feed", NULL)

    def set_state(self, State state, Memtable active=None):
        """Replace the state; active: the memtable that takes new rows, which must be the state's first.

        False, with nothing changed, while a put is under way that has its place in the active memtable already.
        """
        cdef CMemtable *memtable = NULL
        if self.busy:
            return False
        self._state = state
        if active is not None:
            memtable = active.table.get()
        self.feed.set_active(memtable)
        return True

    def open_log(self, appender, uint32_t topic, uint64_t next_sequence, int64_t last_timestamp_ns, full, appended=None):
        """Let rows be put: they go to the log first."""
        self.appender, self.full, self.appended = appender, full, appended
        self.log = <LogWriter *>PyCapsule_GetPointer(appender.capsule(), "ringmain.LogWriter")
        self.log_topic, self.next_sequence, self.last_timestamp_ns = topic, next_sequence, last_timestamp_ns
        self.feed.set_visible(next_sequence - 1)

    def close_log(self):
        """Refuse every later put. False, with nothing changed, while another thread is writing to the log."""
        if self.log != NULL and self.log.in_use:
            return False
        self.log = NULL
        return True

    cdef int _check_log(self) except -1:
        if self.log == NULL:
            raise ValueError(f"topic {self.codec.topic!r}: nothing can be put: the store is closed, opened for reading only, or a "
                             "bus publishes its rows")
        if self.log.in_use:
            raise RuntimeError(f"topic {self.codec.topic!r}: another thread is putting into this store; one at a time")
        return 0

    cdef char *_begin_row(self) except NULL:
        """The place of the next row in a memtable that has room for it."""
        while True:
            self._check_log()
            if self.busy:
                raise RuntimeError(f"topic {self.codec.topic!r}: another put is still under way; one at a time")
            if self.feed.active().room() != 0:
                return self.feed.active().next_row()
            self.full()

    cdef int _refused(self) except -1:
        """Raise what made the log refuse a row."""
        failure = self.appender.failure()
        if failure is None:
            failure = StorageError(
                f"topic {self.codec.topic!r}: sequence {self.next_sequence} is next here, but "
                f"{self.log.topic(self.log_topic).next_sequence} in the log: something else has appended to it. Open the store again")
        raise failure

    cdef uint64_t _end_row(self, char *row, bint tombstone) except 0:
        """Stamp, log and index the row at `row`."""
        cdef uint64_t sequence = self.next_sequence
        cdef int64_t now_ns = wall_ns()
        cdef int error
        self._check_log()  # again: packing may have run Python code
        self.last_timestamp_ns = max(self.last_timestamp_ns, now_ns)
        memcpy(row, &sequence, 8)
        memcpy(row + 8, &self.last_timestamp_ns, 8)
        error = self.log.append_row(self.log_topic, row, tombstone)
        if error == NEEDS_FILE:
            self.busy = self.log.in_use = True
            with nogil:
                error = self.log.make_room()
            self.busy = self.log.in_use = False
            if error == 0:
                error = self.log.append_row(self.log_topic, row, tombstone)
        if error != 0:
            self._refused()
        self.feed.active().commit_row(tombstone)
        self.next_sequence = sequence + 1
        self.feed.set_visible(sequence)
        if self.appended is not None:
            self.appended()
        return sequence

    def put_batch(self, rows):
        """Store rows in order, all or none: an array of the schema's payload_dtype, or of its dtype (whose stamps are then replaced).

        Returns the last one's sequence (of an empty array: the last so far). Readers see all of them at once. Raises as put does;
        ValueError where a memtable, or a file of the log, cannot hold so many.
        """
        cdef cnp.ndarray array
        cdef const char *source
        cdef char *to
        cdef int64_t stride
        cdef uint64_t count, done = 0, room
        cdef int error = 0
        if not isinstance(rows, np.ndarray) or rows.ndim != 1:
            raise TypeError(f"topic {self.codec.topic!r}: a one-dimensional numpy array is needed, got {type(rows).__name__}")
        array = <cnp.ndarray>rows
        source = <const char *>cnp.PyArray_DATA(array)
        dtype = array.dtype
        if dtype is not self.payload_dtype and dtype != self.payload_dtype:
            if dtype != self.codec.dtype:
                raise TypeError(f"topic {self.codec.topic!r}: rows of {self.payload_dtype} are needed, got {dtype}")
            source += 16
        count = cnp.PyArray_DIM(array, 0)
        stride = cnp.PyArray_STRIDE(array, 0)
        if count == 0:
            return self.next_sequence - 1
        self._begin_row()
        room = min(self.feed.active().capacity(), self.log.batch_rows_max(self.log_topic))
        if count > room:
            raise ValueError(f"rows: {count} at once are more than a memtable, or a file of the log, holds; at most {room}")
        while count > self.feed.active().room():
            self.full()
            self._begin_row()
        if self.log.topic(self.log_topic).next_sequence != self.next_sequence:
            self._refused()
        to = self.feed.active().next_row()
        self.last_timestamp_ns = max(self.last_timestamp_ns, wall_ns())
        self.busy = self.log.in_use = True
        try:
            with nogil:
                copy_rows(to, self.codec.row_bytes, source, stride, count, self.next_sequence, self.last_timestamp_ns)
                error = self.log.begin_batch(self.log_topic, count)
                while error == 0 and done < count:
                    room = min(self.log.group_room_rows(self.log_topic), count - done)
                    if room:
                        error = self.log.add_rows(self.log_topic, to + done * self.codec.row_bytes, room, False,
                                                  done + room < count)
                        done += room
                    if error == 0:
                        error = self.log.write_group()
                if error == 0:
                    self.feed.active().commit_rows(count)
        finally:
            self.busy = self.log.in_use = False
        if error != 0:
            self._refused()
        self.next_sequence += count
        self.feed.set_visible(self.next_sequence - 1)
        if self.appended is not None:
            self.appended()
        return self.next_sequence - 1


cdef PyObject *_get(PyObject *self, PyObject *const *args, Py_ssize_t count) except NULL:
    cdef TreeCore core = <TreeCore>self
    cdef State state = core._state
    cdef uint64_t key[256]
    cdef list keep = []
    cdef const char *row
    if count != core.codec.packer.count:
        raise TypeError(f"topic {core.codec.topic!r}: its key is {', '.join(core.codec.names)}; got {count} values")
    core.codec.packer.pack(core.key_row, args)
    core.codec.layout.get().encode(core.key_row, key)
    row = state.find(key, core.feed.visible(), keep)
    if row == NULL:
        Py_INCREF(None)
        return <PyObject *>None
    found = PyArray_Scalar(<void *>row, <cnp.dtype>core.codec.dtype, NULL)
    Py_INCREF(found)
    return <PyObject *>found


cdef PyObject *_put(PyObject *self, PyObject *const *args, Py_ssize_t positional, PyObject *kwnames) except NULL:
    cdef TreeCore core = <TreeCore>self
    cdef list values = None
    cdef char *row
    if kwnames != NULL:
        values = core.packer.arrange(args, positional, kwnames)
        args = PySequence_Fast_ITEMS(values)
    elif positional != core.packer.count:
        raise TypeError(f"topic {core.codec.topic!r} has {core.packer.count} fields ({', '.join(core.packer.names)}), "
                        f"got {positional} values")
    row = core._begin_row()
    if core.packer.padded:
        memset(row, 0, core.codec.row_bytes)
    core.busy = True  # packing may run Python code, and that may come back here
    try:
        core.packer.pack(row, args)
    finally:
        core.busy = False
    return PyLong_FromUnsignedLongLong(core._end_row(row, False))


cdef PyObject *_delete(PyObject *self, PyObject *const *args, Py_ssize_t count) except NULL:
    cdef TreeCore core = <TreeCore>self
    cdef char *row
    if not core.has_key:
        raise TypeError(f"topic {core.codec.topic!r} has no key: its rows are kept by their sequences, and none can be deleted")
    if count != core.codec.packer.count:
        raise TypeError(f"topic {core.codec.topic!r}: its key is {', '.join(core.codec.names)}; got {count} values")
    row = core._begin_row()
    memset(row, 0, core.codec.row_bytes)
    core.busy = True
    try:
        core.codec.packer.pack(row, args)
    finally:
        core.busy = False
    return PyLong_FromUnsignedLongLong(core._end_row(row, True))


cdef PyMethodDef GET, PUT, DELETE
GET.ml_name, GET.ml_meth, GET.ml_flags = "get", <PyCFunction><void *>_get, METH_FASTCALL
GET.ml_doc = (
    b"get(*key)\n\nThe newest row of a key, as a record of its own (a copy), or None where there is none. Values stand in the\n"
    b"key's order."
)
PUT.ml_name, PUT.ml_meth, PUT.ml_flags = "put", <PyCFunction><void *>_put, METH_FASTCALL | METH_KEYWORDS
PUT.ml_doc = (
    b"put(*fields, **fields)\n\nStore one row, in the place of the one with the same key, and return its sequence. Values stand in the\n"
    b"schema's order, or by name. When it returns, the row survives a kill of the process.\n"
    b"Raises TypeError, ValueError or OverflowError naming the field where a value does not fit (nothing is stored then),\n"
    b"LogFailed when the log has stopped."
)
DELETE.ml_name, DELETE.ml_meth, DELETE.ml_flags = "delete", <PyCFunction><void *>_delete, METH_FASTCALL
DELETE.ml_doc = (
    b"delete(*key)\n\nRemove a key, whether it is there or not; returns the sequence of that. Raises as put does, and TypeError\n"
    b"where the topic has no key."
)
