"""The journal's compiled half: one thread that moves rows from the rings into the log. See journal.hpp."""
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int64_t, uint32_t
from libcpp.vector cimport vector

cdef extern from "layout.hpp" namespace "ringmain" nogil:
    cdef struct ControlHeader:
        pass

cdef extern from "log_writer.hpp" namespace "ringmain" nogil:
    cdef cppclass LogWriter:
        pass

cdef extern from "journal.hpp" namespace "ringmain" nogil:
    cdef enum SyncMode "ringmain::SyncMode":
        SYNC_INTERVAL "ringmain::SYNC_INTERVAL"
    cdef cppclass CJournal "ringmain::Journal":
        CJournal(LogWriter *, SyncMode, int64_t) except +
        void add_ring(char *, ControlHeader *) except +
        const uint32_t *asleep()
        void kick()
        void request_stop()
        int run()

SYNC_MODES = ("interval", "always", "never")  # by their numbers in journal.hpp


cdef class Journal:
    """Moves what the rings publish into the log. `run` belongs to one thread; the rest may be called from any.

    Rings must be added in the order in which their topics were declared to the log.
    """

    cdef CJournal *journal
    cdef object appender
    cdef list held
    cdef vector[Py_buffer] buffers

    def __cinit__(self, appender, str sync, double interval):
        self.appender, self.held = appender, []
        self.journal = new CJournal(<LogWriter *>PyCapsule_GetPointer(appender.capsule(), "ringmain.LogWriter"),
                                    <SyncMode><int>SYNC_MODES.index(sync), <int64_t>(interval * 1e9))

    def __dealloc__(self):
        cdef size_t i
        del self.journal
        for i in range(self.buffers.size()):
            PyBuffer_Release(&self.buffers[i])

    cdef char *_hold(self, segment) except NULL:
        cdef Py_buffer buffer
        PyObject_GetBuffer(segment, &buffer, PyBUF_WRITABLE)
        self.buffers.push_back(buffer)
        return <char *>buffer.buf

    def add_ring(self, segment, control):
        """segment, control: the topic's mapped segments, writable."""
        self.journal.add_ring(self._hold(segment), <ControlHeader *>self._hold(control))

    def asleep(self):
        """A capsule of the word that says whether a publisher must `kick`; valid while this object lives."""
        return PyCapsule_New(<void *>self.journal.asleep(), "ringmain.asleep", NULL)

    def kick(self):
        """Wake the journal if it naps."""
        self.journal.kick()

    def failure(self):
        """The LogFailed that stopped the log, or None."""
        return self.appender.failure()

    def request_stop(self):
        """Ask `run` to return once everything published is durable and the log is ended in good order."""
        self.journal.request_stop()

    def run(self):
        """Work until asked to stop, without the interpreter's lock. Returns 0, an errno when the log failed, ESTALE when fenced."""
        cdef int result
        with nogil:
            result = self.journal.run()
        return result
