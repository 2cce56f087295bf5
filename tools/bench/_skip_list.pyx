"""The skip list of skip_list.hpp for Python, with the memtable's calls."""
cimport numpy as cnp
from libc.stdint cimport uint32_t, uint64_t
from libcpp.memory cimport make_unique, unique_ptr

import numpy as np

cnp.import_array()

cdef extern from "skip_list.hpp" namespace "ringmain" nogil:
    cdef cppclass CSkipList "ringmain::SkipList":
        CSkipList(uint32_t row_bytes, uint32_t key_offset, uint32_t key_bytes) except +
        void insert(const char *row) except +
        uint64_t count()
        void copy_rows(char *out)


cdef class SkipList:
    """Rows of a dtype by one field, whose bytes are compared."""

    cdef unique_ptr[CSkipList] rows_by_key
    cdef object dtype
    cdef uint32_t row_bytes

    def __cinit__(self, dtype, str key):
        field, offset = dtype.fields[key][:2]
        self.dtype, self.row_bytes = dtype, dtype.itemsize
        self.rows_by_key = make_unique[CSkipList](self.row_bytes, <uint32_t>offset, <uint32_t>field.itemsize)

    def __len__(self):
        return self.rows_by_key.get().count()

    def insert(self, rows):
        """Add rows, a contiguous one-dimensional array of the dtype."""
        if not isinstance(rows, np.ndarray) or rows.dtype != self.dtype or rows.ndim != 1 or not rows.flags.c_contiguous:
            raise TypeError(f"a contiguous one-dimensional array of {self.dtype} is needed")
        cdef uint64_t count = len(rows), i
        cdef const char *at = <const char *>cnp.PyArray_DATA(<cnp.ndarray>rows)
        with nogil:
            for i in range(count):
                self.rows_by_key.get().insert(at + i * self.row_bytes)

    def rows(self):
        """A copy of all rows in the order of keys."""
        rows = np.empty(len(self), self.dtype)
        self.rows_by_key.get().copy_rows(<char *>cnp.PyArray_DATA(<cnp.ndarray>rows))
        return rows
