// Packing Python values into a row: one step a field, straight into the slot.
#pragma once

#include <Python.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ringmain {

enum FieldKind : uint8_t { FIELD_SIGNED, FIELD_UNSIGNED, FIELD_FLOAT, FIELD_BOOL, FIELD_BYTES, FIELD_ARRAY };

struct FieldStep {
    FieldKind kind;
    uint8_t item_bytes;  // of a number
    uint32_t offset;     // in the payload
    uint32_t bytes;      // of the whole field
};

template <typename T>
inline void put(char *at, T value) {
    std::memcpy(at, &value, sizeof value);
}

inline bool fits_signed(long long value, unsigned bytes) {
    const long long bound = 1ll << (8 * bytes - 1);
    return value >= -bound && value < bound;
}

// Store one value. False with a Python error set where it does not fit; OverflowError, TypeError or ValueError, without the
// field's name, which the caller adds.
inline bool pack_field(const FieldStep &step, char *payload, PyObject *value) {
    char *at = payload + step.offset;
    switch (step.kind) {
    case FIELD_SIGNED: {
        const long long number = PyLong_AsLongLong(value);  // takes __index__, refuses floats
        if (number == -1 && PyErr_Occurred()) return false;
        switch (step.item_bytes) {
        case 8: put<int64_t>(at, number); return true;
        case 4: if (fits_signed(number, 4)) { put<int32_t>(at, static_cast<int32_t>(number)); return true; } break;
        case 2: if (fits_signed(number, 2)) { put<int16_t>(at, static_cast<int16_t>(number)); return true; } break;
        default: if (fits_signed(number, 1)) { put<int8_t>(at, static_cast<int8_t>(number)); return true; } break;
        }
        PyErr_Format(PyExc_OverflowError, "%lld does not fit into %u signed bytes", number, unsigned{step.item_bytes});
        return false;
    }
    case FIELD_UNSIGNED: {
        unsigned long long number;
        if (PyLong_CheckExact(value)) {
            number = PyLong_AsUnsignedLongLong(value);
        } else {
            PyObject *index = PyNumber_Index(value);
            if (index == nullptr) return false;
            number = PyLong_AsUnsignedLongLong(index);
            Py_DECREF(index);
        }
        if (number == static_cast<unsigned long long>(-1) && PyErr_Occurred()) return false;
        switch (step.item_bytes) {
        case 8: put<uint64_t>(at, number); return true;
        case 4: if (number <= UINT32_MAX) { put<uint32_t>(at, static_cast<uint32_t>(number)); return true; } break;
        case 2: if (number <= UINT16_MAX) { put<uint16_t>(at, static_cast<uint16_t>(number)); return true; } break;
        default: if (number <= UINT8_MAX) { put<uint8_t>(at, static_cast<uint8_t>(number)); return true; } break;
        }
        PyErr_Format(PyExc_OverflowError, "%llu does not fit into %u unsigned bytes", number, unsigned{step.item_bytes});
        return false;
    }
    case FIELD_FLOAT: {
        const double number = PyFloat_AsDouble(value);
        if (number == -1.0 && PyErr_Occurred()) return false;
        if (step.item_bytes == 8) {
            put<double>(at, number);
            return true;
        }
        const auto narrow = static_cast<float>(number);
        if (std::isinf(narrow) && !std::isinf(number)) {
            PyErr_SetString(PyExc_OverflowError, "too large for 4 bytes");
            return false;
        }
        put<float>(at, narrow);
        return true;
    }
    case FIELD_BOOL: {
        const int truth = PyObject_IsTrue(value);
        if (truth < 0) return false;
        put<uint8_t>(at, static_cast<uint8_t>(truth));
        return true;
    }
    case FIELD_BYTES: {
        const char *bytes;
        Py_ssize_t length;
        if (PyBytes_Check(value)) {
            bytes = PyBytes_AS_STRING(value);
            length = PyBytes_GET_SIZE(value);
        } else if (PyUnicode_Check(value)) {
            PyErr_SetString(PyExc_TypeError, "bytes are needed, got str; encode it first");
            return false;
        } else {
            PyErr_Format(PyExc_TypeError, "bytes are needed, got %.100s", Py_TYPE(value)->tp_name);
            return false;
        }
        if (length > static_cast<Py_ssize_t>(step.bytes)) {
            PyErr_Format(PyExc_ValueError, "%zd bytes do not fit into %u", length, step.bytes);
            return false;
        }
        std::memcpy(at, bytes, static_cast<size_t>(length));
        std::memset(at + length, 0, step.bytes - static_cast<size_t>(length));
        return true;
    }
    case FIELD_ARRAY: break;
    }
    PyErr_SetString(PyExc_SystemError, "no packing for this kind of field");
    return false;
}

// Store values from `from` on until one needs the caller: returns its index, or `count` when all are stored. A Python error is
// set where the value does not fit; none for a FIELD_ARRAY, which is numpy's business.
inline Py_ssize_t pack_fields(const FieldStep *steps, Py_ssize_t from, Py_ssize_t count, char *payload, PyObject *const *values) {
    for (; from < count; ++from)
        if (steps[from].kind == FIELD_ARRAY || !pack_field(steps[from], payload, values[from])) break;
    return from;
}

// Copy payloads of `payload_bytes` from `source` (one each `stride` bytes) behind fresh stamps into consecutive slots.
inline void copy_rows(char *slot, uint32_t row_bytes, const char *source, int64_t stride, uint64_t count, uint64_t sequence,
                      int64_t timestamp_ns) {
    const size_t words = (row_bytes - 16) / 8;
    for (uint64_t row = 0; row < count; ++row, slot += row_bytes, source += stride) {
        put<uint64_t>(slot, sequence + row);
        put<int64_t>(slot + 8, timestamp_ns);
        char *to = slot + 16;
        const char *from = source;
        size_t left = words;
        for (; left >= 4; left -= 4, to += 32, from += 32) std::memcpy(to, from, 32);
        for (; left != 0; --left, to += 8, from += 8) std::memcpy(to, from, 8);
    }
}

}  // namespace ringmain
