# Packing Python values into a row's payload: what publishing and putting share. Included by the modules that need it, since a
# compiled class cannot be shared between them. Wants `cnp` and `np` in scope.
from cpython.ref cimport PyObject
from libc.string cimport memcpy
from libcpp.vector cimport vector

import operator

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object)
    PyObject *PyErr_Occurred()
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)

cdef extern from "pack.hpp" namespace "ringmain":
    cdef enum FieldKind "ringmain::FieldKind":
        FIELD_SIGNED "ringmain::FIELD_SIGNED", FIELD_UNSIGNED "ringmain::FIELD_UNSIGNED", FIELD_FLOAT "ringmain::FIELD_FLOAT"
        FIELD_BOOL "ringmain::FIELD_BOOL", FIELD_BYTES "ringmain::FIELD_BYTES", FIELD_ARRAY "ringmain::FIELD_ARRAY"
    cdef struct FieldStep:
        FieldKind kind
        unsigned char item_bytes
        unsigned int offset, bytes
    Py_ssize_t pack_fields(const FieldStep *steps, Py_ssize_t start, Py_ssize_t count, char *payload, PyObject *const *values)


cdef int raise_pending() except -1:
    """Raise the error that compiled code has set, if it has."""
    if PyErr_Occurred() != NULL:
        return -1
    return 0


cdef FieldKind field_kind(dtype) except *:
    if dtype.shape:
        return FIELD_ARRAY
    return {"i": FIELD_SIGNED, "u": FIELD_UNSIGNED, "f": FIELD_FLOAT, "b": FIELD_BOOL, "S": FIELD_BYTES}[dtype.kind]


cdef object array_of(value, base, tuple shape):
    """A value for an array field, in the field's type and shape, by the rules that hold for single values.

    Raises TypeError, ValueError or OverflowError.
    """
    given = np.asarray(value) if base.kind != "S" or isinstance(value, np.ndarray) else np.array(value, object)
    if given.dtype.kind not in {"i": "iub", "u": "iub", "f": "iubf", "b": "b", "S": "S"}[base.kind]:
        given = np.array(value, object)  # such as a list of numbers for which numpy has no type that holds all
    if given.shape != shape:
        raise ValueError(f"shape {shape} is needed, got {given.shape}")
    if given.dtype == object:
        given = np.array([_item_of(item, base) for item in given.flat], object).reshape(shape)
    if base.kind in "iu" and given.size:
        bounds = np.iinfo(base)
        if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
            raise OverflowError(f"values from {given.min()} to {given.max()} do not fit into {base}")
    if base.kind == "S" and given.dtype != object and given.size and np.char.str_len(given).max() > base.itemsize:
        raise ValueError(f"{np.char.str_len(given).max()} bytes do not fit into {base.itemsize}")
    with np.errstate(over="ignore"):
        item = given.astype(base)
    if base.kind == "f" and (np.isinf(item) & ~np.isinf(given.astype("f8"))).any():
        raise OverflowError(f"a value is too large for {base.itemsize} bytes")
    return item


cdef object _item_of(item, base):
    """One item of an array that numpy left as an object."""
    if base.kind in "iu":
        try:
            return operator.index(item)
        except TypeError:
            raise TypeError(f"whole numbers are needed, got {type(item).__name__}") from None
    if base.kind == "f":
        if isinstance(item, (str, bytes)) or not hasattr(item, "__float__"):
            raise TypeError(f"numbers are needed, got {type(item).__name__}")
        return float(item)
    if base.kind == "b":
        return bool(item)
    if not isinstance(item, bytes):
        raise TypeError(f"bytes are needed, got {type(item).__name__}" + ("; encode it first" if isinstance(item, str) else ""))
    if len(item) > base.itemsize:
        raise ValueError(f"{len(item)} bytes do not fit into {base.itemsize}")
    return item


cdef class RowPacker:
    """Stores a record's values, given by position or by name, into the bytes of a payload.

    Offsets are those of `payload_dtype`. names: the fields to be given, in order; all of them, or those of a key.
    """

    cdef vector[FieldStep] steps
    cdef Py_ssize_t count
    cdef bint padded
    cdef str topic
    cdef tuple names
    cdef object payload_dtype

    def __cinit__(self, str topic, payload_dtype, tuple names):
        cdef FieldStep step
        self.topic, self.payload_dtype, self.names = topic, payload_dtype, names
        filled = 0
        for name in names:
            field, offset = payload_dtype.fields[name][:2]
            step.kind = field_kind(field)
            step.item_bytes = field.base.itemsize if field.base.kind != "S" else 0
            step.offset, step.bytes = offset, field.itemsize
            filled += field.itemsize
            self.steps.push_back(step)
        self.count = self.steps.size()
        self.padded = filled != payload_dtype.itemsize

    cdef list arrange(self, PyObject *const *args, Py_ssize_t positional, PyObject *kwnames):
        """The values in the order of the fields, from positional and keyword arguments."""
        values = [<object>args[i] for i in range(positional)]
        given = {<object>PyTuple_GET_ITEM(kwnames, i): <object>args[positional + i] for i in range(PyTuple_GET_SIZE(kwnames))}
        if positional > self.count:
            raise TypeError(f"topic {self.topic!r} has {self.count} fields {self.names}, got {positional} values")
        for name in self.names[positional:]:
            if name not in given:
                raise TypeError(f"topic {self.topic!r}: field {name!r} is missing")
            values.append(given.pop(name))
        for name in given:
            if name in self.names:
                raise TypeError(f"topic {self.topic!r}: field {name!r} is given twice, by position and by name")
            raise TypeError(f"topic {self.topic!r} has no field {name!r}; its fields are {', '.join(self.names)}")
        return values

    cdef int pack(self, char *payload, PyObject *const *values) except -1:
        """Store exactly `count` values. Raises TypeError, ValueError or OverflowError naming the field."""
        cdef Py_ssize_t at = pack_fields(self.steps.data(), 0, self.count, payload, values)
        if at < self.count:
            self._pack_rest(at, payload, values)
        return 0

    cdef int _pack_rest(self, Py_ssize_t at, char *payload, PyObject *const *values) except -1:
        """Go on packing where the compiled way has stopped: at an array, or at an error, which is raised naming the field."""
        try:
            raise_pending()
            while at < self.count:
                self._pack_array(at, payload, <object>values[at])
                at = pack_fields(self.steps.data(), at + 1, self.count, payload, values)
                raise_pending()
        except (TypeError, ValueError, OverflowError) as error:
            field = self.payload_dtype.fields[self.names[at]][0]
            kind = field.str if not field.shape else f"{field.shape}{field.base.str}"
            raise type(error)(f"topic {self.topic!r}, field {self.names[at]!r} ({kind}): {error}") from None
        return 0

    cdef int _pack_array(self, Py_ssize_t at, char *payload, value) except -1:
        field = self.payload_dtype.fields[self.names[at]][0]
        item = np.ascontiguousarray(array_of(value, field.base, field.shape))
        memcpy(payload + self.steps[at].offset, cnp.PyArray_DATA(<cnp.ndarray>item), self.steps[at].bytes)
        return 0
