"""Writing slot files, and keeping a position in one without the interpreter. See slots.hpp."""
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool

from core cimport DataHeader, HeldBuffer

import os

cdef extern from "slots.hpp" namespace "ringmain" nogil:
    const char *C_SLOT_MAGIC "ringmain::SLOT_MAGIC"
    const uint32_t C_SLOT_VERSION "ringmain::SLOT_VERSION"
    cdef cppclass SlotHeader:
        pass
    cdef cppclass PositionHead:
        pass
    cdef cppclass CSlotWriter "ringmain::SlotWriter":
        int descriptor
        uint64_t slot_bytes, generation
        uint32_t place
        int write(const char *, size_t, cbool) except +
    cdef cppclass CKeptPosition "ringmain::KeptPosition":
        void begin(uint64_t, uint64_t, uint64_t)
        cbool move_to(uint64_t, cbool)
        uint64_t done()
        uint64_t stored()
        void set_stored(uint64_t)
        void set_idle(cbool)
        void fail()
        void ask()
        void wait(int64_t)
        int keep(CSlotWriter &, const char *, size_t, const DataHeader &, int64_t, int64_t) except +
    const int C_TELL "ringmain::KeptPosition::TELL"

SLOT_MAGIC = <bytes>C_SLOT_MAGIC
SLOT_VERSION = C_SLOT_VERSION
SLOT_HEADER_BYTES = sizeof(SlotHeader)
cdef double WAIT_S_MAX = 1e9


cdef class SlotWriter:
    """Writes values into an open slot file's two places in turn.

    generation, place: of the newest value there; 0 and 1 in an empty file.
    """

    cdef CSlotWriter slots

    def __cinit__(self, int descriptor, uint64_t slot_bytes, uint64_t generation, uint32_t place):
        self.slots.descriptor, self.slots.slot_bytes = descriptor, slot_bytes
        self.slots.generation, self.slots.place = generation, place

    def write(self, bytes payload, *, cbool sync):
        """Put a value in the place of the older one, with `sync` until it is on the disk. Raises OSError."""
        cdef const char *data = payload
        cdef size_t size = len(payload)
        cdef int failure
        with nogil:
            failure = self.slots.write(data, size, sync)
        if failure != 0:
            raise OSError(failure, os.strerror(failure))


cdef class KeptPosition:
    """Up to where a subscriber is done with a topic, and up to where that is on the disk: two sequences that two threads share."""

    cdef CKeptPosition position

    def begin(self, uint64_t done, uint64_t stored, every_rows=None):
        """Where it begins. every_rows: store as soon as so many are done with."""
        self.position.begin(done, stored, UINT64_MAX if every_rows is None else every_rows)

    def move_to(self, uint64_t sequence, cbool anew=False):
        """Everything up to `sequence` is done with now. True where that is never stored, since `fail` was called.

        anew: there is something to store even if it was done with before.
        """
        return self.position.move_to(sequence, anew)

    @property
    def done(self):
        """Everything up to this sequence is done with."""
        return self.position.done()

    @property
    def stored(self):
        """What was stored last."""
        return self.position.stored()

    @stored.setter
    def stored(self, uint64_t sequence):
        self.position.set_stored(sequence)

    def set_idle(self, cbool idle):
        """Whether moving is to wake the thread that stores."""
        self.position.set_idle(idle)

    def fail(self):
        """Nothing is stored any more."""
        self.position.fail()

    def ask(self):
        """Let the thread that stores come back, at once or when it next waits."""
        self.position.ask()

    def wait(self, double timeout):
        """Wait up to `timeout` seconds until it is asked for, or moves while it is idle."""
        cdef int64_t timeout_ns = _nanoseconds(timeout)
        with nogil:
            self.position.wait(timeout_ns)

    def keep(self, SlotWriter slots, bytes payload, segment, double first_nap, double nap):
        """Nap, store what is done with and safe by then, nap, and so on; where all is stored, sleep until there is more.

        The interpreter is free meanwhile. payload: of a position like those that are to be stored. segment: the topic's data segment,
        which tells what is safe. first_nap, nap: seconds, before the first time and between two.
        True when something was stored that may be told: before it sleeps, and every 0.1 s. False when it was asked for, or what is
        done with is not safe. Raises OSError.
        """
        cdef HeldBuffer held
        cdef const char *data = payload
        cdef size_t size = len(payload)
        cdef int64_t first_nap_ns = _nanoseconds(first_nap), nap_ns = _nanoseconds(nap)
        cdef int result
        if size < sizeof(PositionHead):
            raise ValueError(f"payload: at least {sizeof(PositionHead)} bytes are expected, got {size}")
        held.hold(segment, False)
        with nogil:
            result = self.position.keep(slots.slots, data, size, (<const DataHeader *>held.data())[0], first_nap_ns, nap_ns)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result == C_TELL


cdef int64_t _nanoseconds(double seconds) noexcept:
    return <int64_t>(seconds * 1e9) if seconds < WAIT_S_MAX else INT64_MAX
