"""Making, checking and looking into the segments of a bus. The bytes are layout.hpp's; segments.py maps them.

Whoever attaches believes nothing: a header is checked here before anything in it is used.
"""
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from core cimport *

import os

from .errors import AttachError

WATERMARKS = ("claimed", "published", "logged", "durable", "indexed", "replicated")
DRAINED = <int>W_DRAINED  # a lane's watermark, by its number
DATA_HEADER_BYTES = C_DATA_HEADER_BYTES
BUS_BYTES = sizeof(BusHeader)
CONTROL_BYTES = sizeof(ControlHeader)
READERS_MAX = C_READERS_MAX
STATUS_FENCED, STATUS_LOG_FAILED, STATUS_CLOSED = C_STATUS_FENCED, C_STATUS_LOG_FAILED, C_STATUS_CLOSED
STATUS_SETTLED = C_STATUS_SETTLED
ROLE_ALONE, ROLE_FOLLOWS, ROLE_LEADS = C_ROLE_ALONE, C_ROLE_FOLLOWS, C_ROLE_LEADS


def process_start(uint32_t pid):
    """When a process began, in clock ticks since boot; 0 where there is no such process, or only a zombie."""
    return c_process_start(pid)


def process_lives(uint32_t pid, uint64_t started):
    """Whether that very process (same start time; 0 for any) still exists."""
    return c_process_lives(pid, started)


# --- headers --------------------------------------------------------------------------------------------------------


cdef int _put_text(char *at, str text, size_t room, str what) except -1:
    cdef bytes encoded = text.encode()
    if <size_t>len(encoded) >= room:
        raise ValueError(f"{what}: at most {room - 1} bytes fit, got {len(encoded)}: {text!r}")
    memset(at, 0, room)
    memcpy(at, <char *>encoded, len(encoded))
    return 0


cdef str _get_text(const char *at, size_t room):
    return (<bytes>at[:room]).split(b"\0")[0].decode("utf-8", "replace")


def data_segment_bytes(schema_bytes, row_bytes, slot_count):
    """(offset of the slots, size of the segment) of a data segment."""
    slots_offset = (C_DATA_HEADER_BYTES + schema_bytes + 4095) & ~4095
    return slots_offset, (slots_offset + slot_count * row_bytes + 4095) & ~4095


def format_data(segment, *, bytes schema_json, uint64_t schema_hash, uint32_t row_bytes, uint64_t slot_count, str bus,
                str topic, str data_dir, uint64_t log_id, uint32_t epoch, bint syncs, bint indexes, bint lanes=False,
                uint32_t replicates=0, uint64_t began=0):
    """Write a fresh data segment's header. It is not ready until `publish_ready`."""
    cdef HeldBuffer hold
    hold.hold(segment, True)
    cdef DataHeader *header = <DataHeader *>hold.data()
    slots_offset, segment_bytes = data_segment_bytes(len(schema_json), row_bytes, slot_count)
    if hold.bytes() < segment_bytes:
        raise ValueError(f"segment: {segment_bytes} bytes are needed, got {hold.bytes()}")
    memset(header, 0, sizeof(DataHeader))
    memcpy(header.magic, DATA_MAGIC, 8)
    header.version, header.byte_order = RING_VERSION, RING_BYTE_ORDER
    header.schema_hash, header.schema_bytes, header.row_bytes = schema_hash, <uint32_t>len(schema_json), row_bytes
    header.slot_count, header.slots_offset, header.segment_bytes = slot_count, slots_offset, segment_bytes
    header.log_id, header.epoch, header.pid, header.syncs = log_id, epoch, os.getpid(), syncs
    header.indexes, header.lanes, header.replicates, header.began = indexes, lanes, replicates, began
    header.process_start, header.created_ns = c_process_start(header.pid), wall_ns()
    header.heartbeat_ns = header.created_ns
    _put_text(header.bus, bus, 64, "bus")
    _put_text(header.topic, topic, 64, "topic")
    _put_text(header.data_dir, data_dir, 1024, "data_dir")
    memcpy(hold.data() + C_DATA_HEADER_BYTES, <char *>schema_json, len(schema_json))


cdef object _check_head(const char *at, const char *magic, str name, size_t length, size_t needed):
    cdef uint32_t version, order
    if length < needed:
        raise AttachError(f"segment {name}: {length} bytes are too few for a header of {needed}; not made by ringmain, or cut off")
    if memcmp(at, magic, 8) != 0:
        raise AttachError(f"segment {name}: begins with {bytes(at[:8])!r}, expected {bytes(magic[:8])!r}; not made by ringmain")
    memcpy(&version, at + 8, 4)
    memcpy(&order, at + 12, 4)
    if version != RING_VERSION:
        raise AttachError(f"segment {name}: format version {version}, this release knows {RING_VERSION}; use one release for "
                          "the writer and its readers")
    return order


def read_data(segment, str name):
    """Check a data segment's header and return its fields as a dict, the schema's JSON among them.

    Raises AttachError naming what is wrong. An unfinished segment is one: its writer died while creating it, or is at it.
    """
    cdef HeldBuffer hold
    hold.hold(segment, False)
    cdef const DataHeader *header = <const DataHeader *>hold.data()
    cdef size_t length = hold.bytes()
    order = _check_head(hold.data(), DATA_MAGIC, name, length, sizeof(DataHeader))
    if order != RING_BYTE_ORDER:
        raise AttachError(f"segment {name}: written with another byte order than this machine's")
    if load_acquire_u32(header.ready) != READY:
        raise AttachError(f"segment {name}: not ready; its writer is starting, or died while it was")
    slots = header.slot_count
    slots_offset, segment_bytes = data_segment_bytes(header.schema_bytes, header.row_bytes, slots)
    if (slots == 0 or slots & (slots - 1) or header.row_bytes < 24 or header.row_bytes % 8 or header.row_bytes > 65536
            or header.slots_offset != slots_offset or header.segment_bytes != segment_bytes or length < segment_bytes):
        raise AttachError(f"segment {name}: its sizes contradict each other ({slots} slots of {header.row_bytes} bytes from "
                          f"{header.slots_offset} on, {header.segment_bytes} in all, {length} mapped); damaged")
    return {
        "schema_json": <bytes>hold.data()[C_DATA_HEADER_BYTES:C_DATA_HEADER_BYTES + header.schema_bytes],
        "schema_hash": header.schema_hash, "row_bytes": header.row_bytes, "slot_count": slots, "log_id": header.log_id,
        "slots_offset": header.slots_offset, "segment_bytes": header.segment_bytes,
        "epoch": header.epoch, "pid": header.pid, "process_start": header.process_start, "created_ns": header.created_ns,
        "syncs": header.syncs != 0, "indexes": header.indexes != 0, "lanes": header.lanes != 0,
        "replicates": header.replicates, "began": header.began,
        "bus": _get_text(header.bus, 64), "topic": _get_text(header.topic, 64),
        "data_dir": _get_text(header.data_dir, 1024),
    }


def read_state(segment):
    """What changes in a data segment, read once: the watermarks by name, where it ended, status bits, log errno, heartbeat."""
    cdef HeldBuffer hold
    hold.hold(segment, False)
    cdef const DataHeader *header = <const DataHeader *>hold.data()
    state = {name: load_acquire_u64(header.watermarks[which].sequence) for which, name in enumerate(WATERMARKS)}
    state["status"] = load_relaxed_u32(header.status)
    state["drained"] = load_acquire_u64(header.watermarks[<int>W_DRAINED].sequence)
    state["ended"] = load_acquire_u64(header.watermarks[<int>W_ENDED].sequence)
    state["log_errno"] = load_relaxed_u32(header.log_errno)
    state["heartbeat_ns"] = load_relaxed_i64(header.heartbeat_ns)
    return state


def read_safe(segment):
    """Up to where a topic's records will not go any more: durable, or logged where the log is never synced, and within the ring's end."""
    cdef HeldBuffer hold
    hold.hold(segment, False)
    return safe_position((<const DataHeader *>hold.data())[0])


def set_watermarks(segment, *, uint64_t claimed, uint64_t published, uint64_t logged, uint64_t durable,
                   uint64_t indexed, uint64_t replicated=0):
    """Set a fresh data segment's watermarks, before it is ready."""
    cdef HeldBuffer hold
    hold.hold(segment, True)
    cdef DataHeader *header = <DataHeader *>hold.data()
    cdef uint64_t[6] values = [claimed, published, logged, durable, indexed, replicated]
    for which in range(6):
        store_relaxed_u64(header.watermarks[which].sequence, values[which])


def raise_replicated(segment, control, uint64_t sequence):
    """Say that a topic's records up to a sequence, but none behind `published`, are replicated. It never falls."""
    cdef HeldBuffer hold, control_hold
    hold.hold(segment, True)
    control_hold.hold(control, True)
    cdef DataHeader *header = <DataHeader *>hold.data()
    cdef ControlHeader *control_header = <ControlHeader *>control_hold.data()
    sequence = min(sequence, load_acquire_u64(header.watermarks[<int>W_PUBLISHED].sequence))
    if sequence > load_relaxed_u64(header.watermarks[<int>W_REPLICATED].sequence):
        raise_watermark(header[0], control_header[0], W_REPLICATED, sequence)
        wake_drain(control_header[0])


def publish_ready(segment):
    """Let a data segment be attached: everything before this store is seen by whoever sees it (sync READY)."""
    cdef HeldBuffer hold
    hold.hold(segment, True)
    store_release_u32((<DataHeader *>hold.data()).ready, READY)


def add_status(segment, control, uint32_t bits):
    """Set status bits in a data segment and wake everybody who sleeps on the topic."""
    cdef HeldBuffer hold, control_hold
    hold.hold(segment, True)
    control_hold.hold(control, True)
    cdef ControlHeader *header = <ControlHeader *>control_hold.data()
    or_release_u32((<DataHeader *>hold.data()).status, bits)
    for which in range(WATERMARK_COUNT):
        ring_doorbell(header.attention.wake[0] if which == W_PUBLISHED else header.doorbells[which].want,
                      header.doorbells[which].bell)


def fence(segment, control, uint32_t bits=0, uint64_t last=UINT64_MAX):
    """Stop whoever holds a ring from publishing into it, settle where it ends, and wake everybody who sleeps on the topic.

    bits: more for its status. last: it does not end behind this. Returns where it ends. A writer that is in the middle of a call is
    told, whatever it still publishes; nobody reads behind the end (sync FENCE).
    """
    cdef HeldBuffer hold
    cdef uint64_t ended
    hold.hold(segment, True)
    with nogil:
        ended = fence_ring((<DataHeader *>hold.data())[0], C_STATUS_FENCED | bits, last)
    add_status(segment, control, C_STATUS_FENCED)
    return ended


def set_closed(control, uint32_t epoch):
    """Say in a control segment, which readers of older rings still hold, that this writer has closed in good order."""
    cdef HeldBuffer hold
    hold.hold(control, True)
    store_release_u32((<ControlHeader *>hold.data()).closed_epoch, epoch)


def closed_epoch(control):
    """The epoch of the last writer that closed this topic in good order; 0 where none has."""
    cdef HeldBuffer hold
    hold.hold(control, False)
    return load_acquire_u32((<const ControlHeader *>hold.data()).closed_epoch)


def beat(segment):
    """Store the time as the writer's heartbeat."""
    cdef HeldBuffer hold
    hold.hold(segment, True)
    store_relaxed_i64((<DataHeader *>hold.data()).heartbeat_ns, wall_ns())


def format_control(segment):
    """Write a fresh control segment."""
    cdef HeldBuffer hold
    hold.hold(segment, True)
    cdef ControlHeader *header = <ControlHeader *>hold.data()
    if hold.bytes() < sizeof(ControlHeader):
        raise ValueError(f"segment: {sizeof(ControlHeader)} bytes are needed, got {hold.bytes()}")
    memset(header, 0, sizeof(ControlHeader))
    memcpy(header.magic, CONTROL_MAGIC, 8)
    header.version, header.reader_count_max = RING_VERSION, C_READERS_MAX
    store_release_u32(header.ready, READY)


def check_control(segment, str name):
    """Raise AttachError unless this is a finished control segment of ours."""
    cdef HeldBuffer hold
    hold.hold(segment, False)
    _check_head(hold.data(), CONTROL_MAGIC, name, hold.bytes(), sizeof(ControlHeader))
    if load_acquire_u32((<const ControlHeader *>hold.data()).ready) != READY:
        raise AttachError(f"segment {name}: not ready; its writer is starting, or died while it was")


def format_bus(segment, *, str bus, str data_dir, uint64_t log_id, uint32_t epoch, uint32_t role=C_ROLE_ALONE):
    """Write the bus segment's content, in place of an earlier writer's."""
    cdef HeldBuffer hold
    hold.hold(segment, True)
    cdef BusHeader *header = <BusHeader *>hold.data()
    store_release_u32(header.ready, 0)
    memcpy(header.magic, BUS_MAGIC, 8)
    header.version, header.byte_order, header.epoch, header.pid = RING_VERSION, RING_BYTE_ORDER, epoch, os.getpid()
    header.process_start, header.created_ns, header.log_id = c_process_start(header.pid), wall_ns(), log_id
    _put_text(header.bus, bus, 64, "bus")
    _put_text(header.data_dir, data_dir, 1024, "data_dir")
    set_role(segment, role)
    store_release_u32(header.ready, READY)


def set_role(segment, uint32_t role, str leader=""):
    """Say in the bus segment whether this writer follows or leads, and who leads if it follows ("": nobody known)."""
    cdef HeldBuffer hold
    cdef char[64] text
    hold.hold(segment, True)
    _put_text(text, leader, 64, "leader")
    write_role((<BusHeader *>hold.data())[0], role, text)


def read_bus_role(segment):
    """(role, name of the leader) as the bus segment, which was checked, has them; None while they change."""
    cdef HeldBuffer hold
    cdef uint32_t role = 0
    cdef char[64] text
    hold.hold(segment, False)
    if not read_role((<const BusHeader *>hold.data())[0], role, text):
        return None
    return role, _get_text(text, 64)


def read_bus(segment, str name):
    """The bus segment's fields as a dict. Raises AttachError where it is not one, or not ready."""
    cdef HeldBuffer hold
    hold.hold(segment, False)
    cdef const BusHeader *header = <const BusHeader *>hold.data()
    _check_head(hold.data(), BUS_MAGIC, name, hold.bytes(), sizeof(BusHeader))
    if load_acquire_u32(header.ready) != READY:
        raise AttachError(f"segment {name}: not ready; its writer is starting, or died while it was")
    role, leader = read_bus_role(segment) or (C_ROLE_ALONE, "")
    return {"role": role, "leader": leader, "epoch": header.epoch, "pid": header.pid, "process_start": header.process_start,
            "log_id": header.log_id, "created_ns": header.created_ns,
            "bus": _get_text(header.bus, 64), "data_dir": _get_text(header.data_dir, 1024)}


def copy_slots(source, target, uint64_t first, uint64_t last):
    """Copy the rows first … last from one data segment into another of the same row size; slot counts may differ."""
    cdef HeldBuffer from_hold, to_hold
    from_hold.hold(source, False)
    to_hold.hold(target, True)
    cdef const DataHeader *old = <const DataHeader *>from_hold.data()
    cdef DataHeader *new = <DataHeader *>to_hold.data()
    cdef uint64_t sequence
    if old.row_bytes != new.row_bytes:
        raise ValueError(f"rows of {old.row_bytes} and {new.row_bytes} bytes cannot be copied")
    for sequence in range(first, last + 1):
        memcpy(to_hold.data() + new.slots_offset + (sequence & (new.slot_count - 1)) * new.row_bytes,
               from_hold.data() + old.slots_offset + (sequence & (old.slot_count - 1)) * old.row_bytes, new.row_bytes)


def list_readers(control):
    """The reader table's taken entries, each a dict. The values are the readers' own word."""
    cdef HeldBuffer hold
    hold.hold(control, False)
    cdef const ControlHeader *header = <const ControlHeader *>hold.data()
    cdef const ReaderEntry *entry
    found = []
    for index in range(C_READERS_MAX):
        entry = &header.readers[index]
        owner = load_acquire_u64(entry.owner)
        if owner_state(owner) == READER_FREE:
            continue
        found.append({
            "index": index, "pid": owner_pid(owner), "process_start": entry.process_start,
            "state": {READER_JOINING: "joining", READER_ACTIVE: "active", READER_DROPPED: "dropped"}.get(owner_state(owner), "unknown"),
            "name": _get_text(entry.name, 48), "policy": "reliable" if entry.policy == RELIABLE else "lossy",
            "follow": WATERMARKS[entry.follow] if entry.follow < 6 else "unknown", "attached_ns": entry.attached_ns,
            "consumed": load_acquire_u64(entry.consumed), "acknowledged": load_acquire_u64(entry.acknowledged),
            "heartbeat_ns": load_relaxed_i64(entry.heartbeat_ns),
            "overrun_count": entry.overrun_count, "lost_count": entry.lost_count, "refilled_count": entry.refilled_count,
        })
    return found


def free_dead(control):
    """Free the reader entries of dead processes; returns how many."""
    cdef HeldBuffer hold
    hold.hold(control, True)
    return free_dead_readers((<ControlHeader *>hold.data())[0])
