"""Rows by their key, compiled: group numbers, known keys, partitions. See grouping.hpp."""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport make_unique, unique_ptr
from libcpp.vector cimport vector

import numpy as np

cnp.import_array()

cdef extern from "key.hpp" namespace "ringmain":
    const uint32_t C_KEY_WORDS_MAX "ringmain::KEY_WORDS_MAX"
    cdef enum KeyKind "ringmain::KeyKind":
        KEY_UNSIGNED "ringmain::KEY_UNSIGNED", KEY_SIGNED "ringmain::KEY_SIGNED", KEY_BYTES "ringmain::KEY_BYTES"
    cdef struct KeyField:
        uint32_t offset, bytes
        KeyKind kind
    cdef cppclass KeyLayout:
        KeyLayout(vector[KeyField]) except +

cdef extern from "grouping.hpp" namespace "ringmain":
    cdef struct RowSpan:
        const char *first
        int64_t stride
        uint64_t count
    void mark_partition(const KeyLayout &, RowSpan, uint64_t, uint64_t, cbool *) nogil
    cdef cppclass CGrouping "ringmain::Grouping":
        CGrouping(KeyLayout) except +
        uint64_t count()
        void number(RowSpan, int64_t *) except + nogil
        void mark_known(RowSpan, cbool *) nogil
        void clear() except +

KEY_BYTES_MAX = 8 * C_KEY_WORDS_MAX


cdef class Keys:
    """Where the key lies in rows of a dtype, and which group each key is.

    fields: names in `dtype`, at least one; integers, truth values and bytes, no arrays. Keys are equal where the fields' bytes
    are; floats are refused, since bytes do not tell whether those are equal. One thread at a time.
    Raises ValueError naming the field.
    """

    cdef unique_ptr[KeyLayout] layout
    cdef unique_ptr[CGrouping] grouping
    cdef readonly object dtype
    cdef readonly tuple fields

    def __cinit__(self, dtype, tuple fields):
        cdef vector[KeyField] places
        cdef KeyField place
        cdef uint64_t key_bytes = 0
        if not fields:
            raise ValueError("a key has at least one field")
        for name in fields:
            if not isinstance(name, str) or name not in dtype.fields:
                raise ValueError(f"no field {name!r}; there are {', '.join(dtype.names)}")
            kind, offset = dtype.fields[name][:2]
            if kind.shape or kind.kind not in "iubS":
                raise ValueError(f"field {name!r} is {kind}; a key holds integers, truth values and bytes")
            place.offset, place.bytes = offset, kind.itemsize
            place.kind = {"u": KEY_UNSIGNED, "b": KEY_UNSIGNED, "i": KEY_SIGNED, "S": KEY_BYTES}[kind.kind]
            places.push_back(place)
            key_bytes += place.bytes
        if key_bytes > KEY_BYTES_MAX:
            raise ValueError(f"the key {', '.join(fields)} takes {key_bytes} bytes; at most {KEY_BYTES_MAX} are possible")
        self.dtype, self.fields = dtype, fields
        self.layout = make_unique[KeyLayout](places)
        self.grouping = make_unique[CGrouping](self.layout.get()[0])

    def __len__(self):
        """How many groups there are."""
        return self.grouping.get().count()

    def clear(self):
        """Forget the groups."""
        self.grouping.get().clear()

    def number(self, cnp.ndarray rows not None):
        """Each row's group, int64: 0, 1, 2, … in the order in which their keys were first met since `clear`."""
        cdef RowSpan span = self.span_of(rows)
        cdef cnp.ndarray numbers = np.empty(span.count, np.int64)
        cdef int64_t *to = <int64_t *>cnp.PyArray_DATA(numbers)
        with nogil:
            self.grouping.get().number(span, to)
        return numbers

    def known(self, cnp.ndarray rows not None):
        """Whether each row's key is one of the groups. Adds none."""
        cdef RowSpan span = self.span_of(rows)
        cdef cnp.ndarray marks = np.empty(span.count, np.bool_)
        cdef cbool *to = <cbool *>cnp.PyArray_DATA(marks)
        with nogil:
            self.grouping.get().mark_known(span, to)
        return marks

    def partition(self, cnp.ndarray rows not None, uint64_t index, uint64_t count):
        """Whether each row's key belongs to partition `index` of `count`: its hash leaves that remainder."""
        cdef RowSpan span = self.span_of(rows)
        cdef cnp.ndarray marks = np.empty(span.count, np.bool_)
        cdef cbool *to = <cbool *>cnp.PyArray_DATA(marks)
        if index >= count:
            raise ValueError(f"partition 0 to {count - 1} of {count} is expected, got {index}")
        with nogil:
            mark_partition(self.layout.get()[0], span, index, count, to)
        return marks

    cdef RowSpan span_of(self, cnp.ndarray rows) except *:
        cdef RowSpan span
        if rows.ndim != 1 or (rows.dtype is not self.dtype and rows.dtype != self.dtype):
            raise TypeError(f"one dimension of {self.dtype} is expected, got {rows.ndim} of {rows.dtype}")
        span.first, span.stride, span.count = <const char *>cnp.PyArray_DATA(rows), cnp.PyArray_STRIDE(rows, 0), len(rows)
        return span
