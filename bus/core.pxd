# What the compiled parts of the bus use of its C++ headers. Declarations only: nothing here exists at run time.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

cdef extern from "held_buffer.hpp" namespace "ringmain":
    cdef cppclass HeldBuffer:
        int hold(object, cbool) except -1
        char *data() nogil
        size_t bytes() nogil

cdef extern from "atomics.hpp" namespace "ringmain" nogil:
    uint64_t load_acquire_u64 "ringmain::load_acquire<uint64_t>"(const uint64_t &)
    uint32_t load_acquire_u32 "ringmain::load_acquire<uint32_t>"(const uint32_t &)
    uint32_t load_relaxed_u32 "ringmain::load_relaxed<uint32_t>"(const uint32_t &)
    uint64_t load_relaxed_u64 "ringmain::load_relaxed<uint64_t>"(const uint64_t &)
    int64_t load_relaxed_i64 "ringmain::load_relaxed<int64_t>"(const int64_t &)
    void store_relaxed_u64 "ringmain::store_relaxed<uint64_t>"(uint64_t &, uint64_t)
    void store_relaxed_i64 "ringmain::store_relaxed<int64_t>"(int64_t &, int64_t)
    void store_release_u32 "ringmain::store_release<uint32_t>"(uint32_t &, uint32_t)
    void store_release_u64 "ringmain::store_release<uint64_t>"(uint64_t &, uint64_t)
    uint32_t or_release_u32 "ringmain::or_release<uint32_t>"(uint32_t &, uint32_t)
    cbool compare_exchange_u64 "ringmain::compare_exchange<uint64_t>"(uint64_t &, uint64_t &, uint64_t)
    cbool barrier_register()
    cbool barrier_heavy()

cdef extern from "layout.hpp" namespace "ringmain" nogil:
    const uint32_t RING_VERSION, RING_BYTE_ORDER, C_READERS_MAX "ringmain::READERS_MAX", READY
    const uint32_t C_LANES_MAX "ringmain::LANES_MAX"
    const size_t C_LANE_CONTROL_OFFSET "ringmain::LANE_CONTROL_OFFSET", C_LANE_CONTROL_BYTES "ringmain::LANE_CONTROL_BYTES"
    const char *DATA_MAGIC
    const char *CONTROL_MAGIC
    const char *BUS_MAGIC
    const size_t C_DATA_HEADER_BYTES "ringmain::DATA_HEADER_BYTES"
    cdef enum Watermark "ringmain::Watermark":
        W_CLAIMED "ringmain::CLAIMED", W_PUBLISHED "ringmain::PUBLISHED", W_LOGGED "ringmain::LOGGED"
        W_DURABLE "ringmain::DURABLE", W_INDEXED "ringmain::INDEXED", W_REPLICATED "ringmain::REPLICATED", W_ENDED "ringmain::ENDED", W_DRAINED "ringmain::DRAINED"
    const uint32_t WATERMARK_COUNT
    cdef enum:
        C_STATUS_FENCED "ringmain::STATUS_FENCED", C_STATUS_LOG_FAILED "ringmain::STATUS_LOG_FAILED"
        C_STATUS_CLOSED "ringmain::STATUS_CLOSED", C_STATUS_SETTLED "ringmain::STATUS_SETTLED"
        READER_FREE "ringmain::READER_FREE", READER_JOINING "ringmain::READER_JOINING"
        READER_ACTIVE "ringmain::READER_ACTIVE", READER_DROPPED "ringmain::READER_DROPPED"
        LOSSY "ringmain::LOSSY", RELIABLE "ringmain::RELIABLE"
        LANE_FREE "ringmain::LANE_FREE", LANE_TAKEN "ringmain::LANE_TAKEN", LANE_ASKED "ringmain::LANE_ASKED"
        LANE_OPEN "ringmain::LANE_OPEN", LANE_LEFT "ringmain::LANE_LEFT", LANE_REFUSED "ringmain::LANE_REFUSED"
    cdef struct WatermarkLine:
        uint64_t sequence
    cdef struct LanePosition:
        uint64_t lane, drained, topic_last, lane_last
    cdef struct DataHeader:
        char magic[8]
        uint32_t version, byte_order
        uint64_t schema_hash
        uint32_t schema_bytes, row_bytes
        uint64_t slot_count, slots_offset, segment_bytes, log_id
        uint32_t epoch, pid, syncs, indexes, lanes, replicates
        uint64_t process_start, began
        int64_t created_ns
        char bus[64]
        char topic[64]
        char data_dir[1024]
        uint32_t ready
        WatermarkLine watermarks[8]
        uint32_t status, log_errno
        int64_t heartbeat_ns
        LanePosition positions[64]
    cdef struct BusHeader:
        char magic[8]
        uint32_t version, byte_order, epoch, pid
        uint64_t process_start
        int64_t created_ns
        uint64_t log_id
        char bus[64]
        char data_dir[1024]
        uint32_t ready
    cdef struct Attention:
        uint32_t wake[2]
    cdef struct Doorbell:
        uint32_t want, bell
    cdef struct ReaderEntry:
        uint64_t owner, process_start
        char name[48]
        uint32_t policy, follow
        int64_t attached_ns
        uint64_t consumed, acknowledged
        int64_t heartbeat_ns
        uint64_t overrun_count, lost_count, refilled_count
    cdef struct LaneEntry:
        uint64_t owner, process_start, lane, why
    cdef struct ControlHeader:
        char magic[8]
        uint32_t version, reader_count_max, ready, closed_epoch
        Attention attention
        Doorbell doorbells[8]
        Doorbell drain
        uint32_t lanes_changed
        LaneEntry lanes[64]
        ReaderEntry readers[1024]
    ControlHeader *lane_control(char *)

cdef extern from "role.hpp" namespace "ringmain" nogil:
    cdef enum:
        C_ROLE_ALONE "ringmain::ROLE_ALONE", C_ROLE_FOLLOWS "ringmain::ROLE_FOLLOWS", C_ROLE_LEADS "ringmain::ROLE_LEADS"
    const size_t LEADER_WORDS
    void write_role(BusHeader &, uint32_t, const char *)
    cbool read_role(const BusHeader &, uint32_t &, char *)

cdef extern from "wait.hpp" namespace "ringmain" nogil:
    cdef enum WaitStrategy "ringmain::WaitStrategy":
        WAIT_FUTEX "ringmain::WAIT_FUTEX"
    cdef enum:
        WAIT_MOVED "ringmain::WAIT_MOVED", WAIT_TIMEOUT "ringmain::WAIT_TIMEOUT", WAIT_STATUS "ringmain::WAIT_STATUS"
    const int64_t SLICE_NS
    int wait_for(const DataHeader &, ControlHeader &, Watermark, uint64_t, int64_t, WaitStrategy)
    int wait_for_many(const DataHeader &, Watermark, uint64_t, int64_t, int64_t)
    int64_t wall_ns()
    int64_t monotonic_ns()
    void ring_doorbell(uint32_t &, uint32_t &)
    void wake_drain(ControlHeader &)
    void raise_watermark(DataHeader &, ControlHeader &, Watermark, uint64_t)

cdef extern from "readers.hpp" namespace "ringmain" nogil:
    uint64_t owner_word(uint32_t, int)
    uint32_t owner_pid(uint64_t)
    int owner_state(uint64_t)
    uint64_t c_process_start "ringmain::process_start"(uint32_t)
    cbool c_process_lives "ringmain::process_lives"(uint32_t, uint64_t)
    int take_reader(ControlHeader &, uint32_t)
    void announce_readers(ControlHeader &)
    void free_reader(ControlHeader &, uint32_t, uint32_t)
    uint32_t free_dead_readers(ControlHeader &)

cdef extern from "ring.hpp" namespace "ringmain" nogil:
    uint64_t safe_position(const DataHeader &)
    cdef cppclass RingWriter:
        DataHeader *header
        ControlHeader *control
        uint64_t mask, slot_count, published, claimed, limit
        uint32_t row_bytes
        int64_t last_timestamp_ns
        vector[uint32_t] reliable
        const uint32_t *journal_asleep
        void open(char *, ControlHeader *, cbool)
        void open_lane(char *)
        void follow(char *, uint64_t, cbool)
        char *slot(uint64_t)
        int64_t stamp_ns()
        cbool may_publish(uint64_t)
        void claim(uint64_t)
        void publish(uint64_t)
        cbool fenced()
        cbool someone_sleeps()
        void wake_readers()
        void rescan()
        void update_limit()
        uint64_t freed_allows()
        uint64_t consumed(uint32_t)
        uint32_t drop_slow_readers(uint64_t)
        cbool wait_for_room(uint64_t, int64_t)
    uint64_t fence_ring(DataHeader &, uint32_t, uint64_t)
    cdef enum:
        POLL_NOTHING "ringmain::POLL_NOTHING", POLL_ROWS "ringmain::POLL_ROWS", POLL_LAPPED "ringmain::POLL_LAPPED"
    cdef cppclass RingReader:
        const DataHeader *header
        ControlHeader *control
        uint64_t mask, slot_count, cursor
        uint32_t row_bytes
        ReaderEntry *entry
        void open(const char *, ControlHeader *, Watermark)
        uint64_t oldest()
        cbool intact(uint64_t)
        uint64_t readable()
        int poll(uint64_t, uint64_t &, uint64_t &)
        const char *slot(uint64_t)

cdef extern from "pack.hpp" namespace "ringmain":
    void put_u64 "ringmain::put<uint64_t>"(char *, uint64_t) nogil
    void put_i64 "ringmain::put<int64_t>"(char *, int64_t) nogil
    void copy_rows(char *, uint32_t, const char *, int64_t, uint64_t, uint64_t, int64_t) nogil

