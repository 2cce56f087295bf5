"""Lanes: their table and positions in shared memory, a publisher's way to ring the drain, and the drain. See lanes.hpp.

The table is in a topic's control segment, which anybody may write: what it says is checked by whoever uses it.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from core cimport *

import os

from .errors import AttachError

cdef extern from "journal.hpp" namespace "ringmain" nogil:
    cdef cppclass CJournal "ringmain::Journal":
        pass

cdef extern from "lanes.hpp" namespace "ringmain" nogil:
    uint64_t drained_position(const DataHeader &, const LanePosition &)
    void c_begin_position "ringmain::begin_position"(LanePosition &, uint64_t, uint64_t)
    cdef cppclass CLane "ringmain::Lane":
        uint32_t index
        uint64_t drained, end
        cbool finished()
    cdef cppclass CDrain "ringmain::Drain":
        CDrain(char *, ControlHeader *, uint32_t, cbool, CJournal *, int64_t) except +
        cbool add(uint32_t, char *, size_t, uint64_t, uint64_t, uint64_t, uint64_t, uint32_t, uint64_t) except +
        void end(uint32_t, uint32_t)
        void end_all(uint32_t)
        void remove(uint32_t)
        void raise_known()
        const vector[CLane] &lanes()
        void request_stop(int64_t)
        void hold(cbool)
        cbool holds()
        int run()
    cdef enum:
        C_DRAIN_LOOK "ringmain::DRAIN_LOOK", C_DRAIN_STOPPED "ringmain::DRAIN_STOPPED", C_DRAIN_STUCK "ringmain::DRAIN_STUCK"
        C_DRAIN_FENCED "ringmain::DRAIN_FENCED", C_DRAIN_FAILED "ringmain::DRAIN_FAILED"

LANES_MAX = C_LANES_MAX
FREE, TAKEN, ASKED, OPEN, LEFT, REFUSED = LANE_FREE, LANE_TAKEN, LANE_ASKED, LANE_OPEN, LANE_LEFT, LANE_REFUSED
DRAIN_LOOK, DRAIN_STOPPED, DRAIN_STUCK, DRAIN_FENCED, DRAIN_FAILED = (
    C_DRAIN_LOOK, C_DRAIN_STOPPED, C_DRAIN_STUCK, C_DRAIN_FENCED, C_DRAIN_FAILED)


# --- the table --------------------------------------------------------------------------------------------------------


cdef ControlHeader *_table(HeldBuffer &hold, control, index=0) except NULL:
    hold.hold(control, True)
    if not 0 <= index < C_LANES_MAX:
        raise IndexError(f"lane {index}: a table has {C_LANES_MAX}")
    return <ControlHeader *>hold.data()


def take_entry(control, uint64_t lane):
    """Take a free entry of the lane table for this process; its index, -1 where there is none. State: TAKEN."""
    cdef HeldBuffer hold
    cdef ControlHeader *header = _table(hold, control)
    cdef uint64_t owner
    cdef uint32_t pid = os.getpid()
    for index in range(C_LANES_MAX):
        owner = load_acquire_u64(header.lanes[index].owner)
        if owner_state(owner) == <int>LANE_FREE and compare_exchange_u64(
                header.lanes[index].owner, owner, owner_word(pid, <int>LANE_TAKEN)):
            header.lanes[index].process_start, header.lanes[index].lane = c_process_start(pid), lane
            return index
    return -1


def change_entry(control, int index, uint32_t pid, uint64_t lane, int before, int after, uint64_t why=0):
    """Move the entry of this process and lane from one state to another. False where it is not theirs, or in another state."""
    cdef HeldBuffer hold
    cdef ControlHeader *header = _table(hold, control, index)
    cdef uint64_t owner = owner_word(pid, before)
    if header.lanes[index].lane != lane:
        return False
    if why != 0:
        header.lanes[index].why = why
    return compare_exchange_u64(header.lanes[index].owner, owner, owner_word(pid if after != <int>LANE_FREE else 0, after))


def announce(control):
    """Say that the table has changed, and wake whoever drains the lanes."""
    cdef HeldBuffer hold
    cdef ControlHeader *header = _table(hold, control)
    store_release_u32(header.lanes_changed, 1)
    ring_doorbell(header.drain.want, header.drain.bell)


cdef dict _entry(const ControlHeader *header, int index, uint64_t owner):
    return {"index": index, "pid": owner_pid(owner), "state": owner_state(owner), "lane": header.lanes[index].lane,
            "process_start": header.lanes[index].process_start, "why": header.lanes[index].why}


def read_entry(control, int index):
    """One entry of the table: index, pid, state, lane (its number), process_start, why (of REFUSED). The publisher's own word."""
    cdef HeldBuffer hold
    hold.hold(control, False)
    cdef const ControlHeader *header = <const ControlHeader *>hold.data()
    return _entry(header, index, load_acquire_u64(header.lanes[index].owner))


def list_entries(control):
    """All entries that are not free."""
    cdef HeldBuffer hold
    hold.hold(control, False)
    cdef const ControlHeader *header = <const ControlHeader *>hold.data()
    cdef uint64_t owner
    found = []
    for index in range(C_LANES_MAX):
        owner = load_acquire_u64(header.lanes[index].owner)
        if owner_state(owner) != <int>LANE_FREE:
            found.append(_entry(header, index, owner))
    return found


def clear_table(control):
    """For a writer that opens: no lane is anybody's any more. Who has one, or waits for one, asks again."""
    cdef HeldBuffer hold
    cdef ControlHeader *header = _table(hold, control)
    for index in range(C_LANES_MAX):
        store_release_u64(header.lanes[index].owner, 0)


# --- segments ---------------------------------------------------------------------------------------------------------


def format_lane(segment, uint64_t last):
    """Make a lane of a fresh data segment, before it is ready: its control page, and `last` as the sequence before its first."""
    cdef HeldBuffer hold
    hold.hold(segment, True)
    cdef DataHeader *header = <DataHeader *>hold.data()
    cdef ControlHeader *control = lane_control(hold.data())
    memset(control, 0, C_LANE_CONTROL_BYTES)
    memcpy(control.magic, CONTROL_MAGIC, 8)
    control.version, control.ready = RING_VERSION, READY
    store_relaxed_u64(header.watermarks[<int>W_CLAIMED].sequence, last)
    store_relaxed_u64(header.watermarks[<int>W_PUBLISHED].sequence, last)
    store_relaxed_u64(header.watermarks[<int>W_DRAINED].sequence, last)


def control_page(segment):
    """A lane's control page, as a memoryview."""
    return memoryview(segment)[C_LANE_CONTROL_OFFSET:C_LANE_CONTROL_OFFSET + C_LANE_CONTROL_BYTES]


def begin_position(ring, int index, uint64_t lane, uint64_t drained):
    """Enter in a topic's ring how far a lane has been drained, before it is drained into that ring."""
    cdef HeldBuffer hold
    if not 0 <= index < C_LANES_MAX:
        raise IndexError(f"lane {index}: a ring has positions for {C_LANES_MAX}")
    hold.hold(ring, True)
    c_begin_position((<DataHeader *>hold.data()).positions[index], lane, drained)


def find_position(ring, uint64_t lane):
    """How far a lane has been drained into a topic's ring that is fenced; None where the ring knows nothing of it."""
    cdef HeldBuffer hold
    hold.hold(ring, False)
    cdef const DataHeader *header = <const DataHeader *>hold.data()
    for index in range(C_LANES_MAX):
        if load_acquire_u64(header.positions[index].lane) == lane:
            return drained_position(header[0], header.positions[index])
    return None


cdef class LaneDoor:
    """What a lane's publisher has in place of a journal: whoever drains the lane. control: the topic's segment, lane: the lane's."""

    cdef HeldBuffer control, lane
    cdef readonly dict unindexed  # as the Journal's; the writer alone knows

    def __cinit__(self, control, lane):
        self.control.hold(control, True)
        self.lane.hold(lane, True)
        self.unindexed = {}

    def asleep(self):
        """A capsule of the word that says whether a publisher must `kick`; valid while this object lives."""
        return PyCapsule_New(<void *>&(<ControlHeader *>self.control.data()).drain.want, "ringmain.asleep", NULL)

    def kick(self):
        """Wake the drain if it sleeps."""
        wake_drain((<ControlHeader *>self.control.data())[0])

    def failure(self):
        """Why the writer's log has stopped, or None."""
        cdef uint32_t number = load_relaxed_u32((<DataHeader *>self.lane.data()).log_errno)
        return OSError(number, f"the log of the bus's writer has stopped: {os.strerror(number)}") if number else None


# --- the drain --------------------------------------------------------------------------------------------------------


cdef class _Held:
    cdef HeldBuffer buffer


cdef class LaneDrain:
    """Moves rows from a topic's lanes into its ring. `run` and what changes the lanes belong to one thread.

    segment, control: the topic's, writable. journal: the writer's, or None. durable, indexed, replicated: whether the topic has that.
    drop: drop slow readers when the ring is full, instead of waiting for them.
    """

    cdef CDrain *drain
    cdef HeldBuffer data, control
    cdef object journal
    cdef dict held

    def __cinit__(self, segment, control, *, journal, bint durable, bint indexed, bint replicated, bint drop,
                  int64_t last_timestamp_ns):
        cdef uint32_t known = 0
        cdef CJournal *c_journal = NULL
        self.data.hold(segment, True)
        self.control.hold(control, True)
        self.journal, self.held = journal, {}
        if journal is not None:
            c_journal = <CJournal *>PyCapsule_GetPointer(journal.capsule(), "ringmain.Journal")
            known = 1 | durable << 1 | indexed << 2 | replicated << 3
        self.drain = new CDrain(self.data.data(), <ControlHeader *>self.control.data(), known, drop, c_journal, last_timestamp_ns)

    def __dealloc__(self):
        del self.drain

    def add(self, int index, segment, *, uint64_t slot_count, uint64_t slots_offset, uint64_t drained, end=None, uint32_t pid=0,
            uint64_t process_start=0):
        """Drain a lane from now on, behind `drained`, and up to `end` where that is known. Raises AttachError for impossible sizes."""
        cdef _Held held = _Held.__new__(_Held)
        if not 0 <= index < C_LANES_MAX:
            raise IndexError(f"lane {index}: there are {C_LANES_MAX}")
        held.buffer.hold(segment, True)
        if not self.drain.add(index, held.buffer.data(), held.buffer.bytes(), slot_count, slots_offset, drained,
                              UINT64_MAX if end is None else <uint64_t>end, pid, process_start):
            raise AttachError(f"lane {index}: {slot_count} slots from {slots_offset} on do not fit into {held.buffer.bytes()} bytes")
        self.held[index] = held

    def end(self, uint32_t index):
        """Let a lane end with what is published in it."""
        with nogil:
            self.drain.end(index, 0)

    def end_all(self, bint closed):
        """Let all lanes end. closed: since the writer closes; else their publishers look for another."""
        with nogil:
            self.drain.end_all(C_STATUS_CLOSED if closed else 0)

    def remove(self, uint32_t index):
        """Forget a lane."""
        self.drain.remove(index)
        del self.held[index]

    def finished(self):
        """The indexes of the lanes that have ended and are drained."""
        cdef size_t at
        return [self.drain.lanes()[at].index for at in range(self.drain.lanes().size()) if self.drain.lanes()[at].finished()]

    def raise_known(self):
        """Tell the lanes what is known of their rows by now; for after the journal's end."""
        self.drain.raise_known()

    def request_stop(self, double patience_s):
        """Ask `run` to return once all lanes have ended and are drained, or after so many seconds. From any thread."""
        self.drain.request_stop(<int64_t>(min(patience_s, 1e9) * 1e9))

    def hold(self, bint held):
        """Take nothing from the lanes for now; those that end meanwhile end where they are drained. From any thread."""
        self.drain.hold(held)

    @property
    def holds(self):
        """Whether nothing is taken any more, since `hold`."""
        return self.drain.holds()

    def run(self):
        """Work, without the interpreter's lock, until there is something to do for the caller. Returns one of DRAIN_…"""
        cdef int event
        with nogil:
            event = self.drain.run()
        return event
