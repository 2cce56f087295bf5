// A Python buffer held for the life of a C++ value.
#pragma once

#include <Python.h>

namespace ringmain {

class HeldBuffer {
  public:
    HeldBuffer() = default;
    HeldBuffer(const HeldBuffer &) = delete;
    HeldBuffer &operator=(const HeldBuffer &) = delete;
    ~HeldBuffer() { PyBuffer_Release(&buffer_); }

    // 0, or -1 with a Python error set.
    int hold(PyObject *source, bool writable = false) {
        PyBuffer_Release(&buffer_);
        return PyObject_GetBuffer(source, &buffer_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE);
    }
    char *data() const { return static_cast<char *>(buffer_.buf); }
    size_t bytes() const { return static_cast<size_t>(buffer_.len); }

  private:
    Py_buffer buffer_{};
};

}  // namespace ringmain
