"""The journal's compiled half: one thread that moves rows from the rings into the log and the memtables. See journal.hpp."""
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int64_t, uint32_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

cdef extern from "layout.hpp" namespace "ringmain" nogil:
    cdef struct ControlHeader:
        pass

cdef extern from "log_writer.hpp" namespace "ringmain" nogil:
    cdef cppclass LogWriter:
        pass

cdef extern from "feed.hpp" namespace "ringmain" nogil:
    cdef cppclass Feed:
        pass

cdef extern from "wait.hpp" namespace "ringmain" nogil:
    cdef struct Rest:
        pass
    const Rest CALM

cdef extern from "journal.hpp" namespace "ringmain":
    ctypedef cbool (*MakeRoom)(void *, uint32_t) noexcept nogil

cdef extern from "journal.hpp" namespace "ringmain" nogil:
    cdef enum SyncMode "ringmain::SyncMode":
        SYNC_INTERVAL "ringmain::SYNC_INTERVAL"
    cdef cppclass CJournal "ringmain::Journal":
        CJournal(LogWriter *, SyncMode, int64_t, const Rest &, MakeRoom, void *) except +
        void add_ring(char *, ControlHeader *, Feed *) except +
        const uint32_t *asleep()
        void kick()
        int event_fd()
        void arm()
        void request_stop()
        int run()
    const Rest QUICK "ringmain::Journal::QUICK"

SYNC_MODES = ("interval", "always", "never")  # by their numbers in journal.hpp


cdef cbool _make_room(void *journal, uint32_t ring) noexcept nogil:
    with gil:
        return (<Journal>journal)._rotate(ring)


cdef class Journal:
    """Moves what the rings publish into the log. `run` belongs to one thread; the rest may be called from any.

    Rings must be added in the order in which their topics were declared to the log.
    calm: rows go on to other hosts, which takes longer; only the writer's own threads publish, who can afford to wake it.
    unindexed: by topic, what made its memtable stay full. Its rows are in the log only from then on.
    """

    cdef CJournal *journal
    cdef object appender
    cdef list rotations, cores
    cdef readonly dict unindexed
    cdef vector[Py_buffer] buffers

    def __cinit__(self, appender, str sync, double interval, *, bint calm=False):
        self.appender, self.rotations, self.cores, self.unindexed = appender, [], [], {}
        self.journal = new CJournal(<LogWriter *>PyCapsule_GetPointer(appender.capsule(), "ringmain.LogWriter"),
                                    <SyncMode><int>SYNC_MODES.index(sync), <int64_t>(interval * 1e9), CALM if calm else QUICK,
                                    _make_room, <void *>self)

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

    def add_ring(self, segment, control, core=None, rotate=None):
        """segment, control: the topic's mapped segments, writable.

        core: the TreeCore of a topic that is kept by key; rotate: called, without arguments, to make room in its memtable.
        """
        cdef Feed *feed = NULL
        if core is not None:
            feed = <Feed *>PyCapsule_GetPointer(core.feed_capsule(), "ringmain.Feed")
        self.journal.add_ring(self._hold(segment), <ControlHeader *>self._hold(control), feed)
        self.cores.append(core)  # so that its feed outlives the journal
        self.rotations.append(rotate)

    cdef bint _rotate(self, uint32_t ring) noexcept:
        try:
            self.rotations[ring]()
        except BaseException as error:
            self.unindexed[self.cores[ring].codec.topic] = error
            return False
        return True

    def asleep(self):
        """A capsule of the word that says whether a publisher must `kick`; valid while this object lives."""
        return PyCapsule_New(<void *>self.journal.asleep(), "ringmain.asleep", NULL)

    def capsule(self):
        """A capsule of the journal itself, for who publishes without the interpreter's lock; valid while this object lives."""
        return PyCapsule_New(<void *>self.journal, "ringmain.Journal", NULL)

    def kick(self):
        """Wake the journal if it naps."""
        self.journal.kick()

    @property
    def event_fd(self):
        """An eventfd that becomes readable once when `logged` or `durable` rises after `arm`, or the journal stops."""
        return self.journal.event_fd()

    def arm(self):
        """Have the event told from now on: look at the watermarks afterwards, they may have risen before."""
        self.journal.arm()

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
