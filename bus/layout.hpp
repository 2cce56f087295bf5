// The bytes of a topic's two shared-memory segments, and of its lanes: the only place in memory that knows them. The prose is FORMAT.md.
//
// 1. The data segment (header, watermarks, slots) is written by one writer only and mapped read-only by everybody else.
// 2. The control segment (attention words, doorbells, reader and lane tables) is written by all; the writer believes nothing in it:
//    a bad value there can cost time or hold the writer back, as a reader may, but never lead to a wrong access.
//    A lane is a data segment that its publisher writes, with its control page inside it. The bus's writer is its reader, raises its
//    watermarks from LOGGED on, and believes nothing in it.
// 3. Words that different processes write never share a cache line; 128 bytes apart, since processors fetch lines in pairs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringmain {

inline constexpr uint32_t RING_VERSION = 1;
inline constexpr uint32_t RING_BYTE_ORDER = 0x01020304u;
inline constexpr char DATA_MAGIC[9] = "RMAINRNG";
inline constexpr char CONTROL_MAGIC[9] = "RMAINCTL";
inline constexpr char BUS_MAGIC[9] = "RMAINBUS";
inline constexpr size_t LINE = 128;
inline constexpr size_t DATA_HEADER_BYTES = 8192;
inline constexpr uint32_t READERS_MAX = 1024;
inline constexpr uint32_t READY = 0x59444552u;  // "REDY"

inline constexpr uint32_t LANES_MAX = 64;  // a topic

enum Watermark : uint32_t {
    CLAIMED = 0, PUBLISHED = 1, LOGGED = 2, DURABLE = 3, INDEXED = 4, REPLICATED = 5, ENDED = 6,
    DRAINED = 7,  // of a lane
};
inline constexpr uint32_t WATERMARK_COUNT = 8;

// Bits of DataHeader::status.
enum Status : uint32_t {
    STATUS_FENCED = 1,      // a newer writer owns this bus; whoever still holds this segment must not publish
    STATUS_LOG_FAILED = 2,  // the log stopped: log_errno says why
    STATUS_CLOSED = 4,      // the writer closed in good order
    STATUS_SETTLED = 8,     // ENDED is final
};

struct alignas(LINE) WatermarkLine {
    uint64_t sequence;
};

// How far a lane has been drained. It lies in the ring that it is drained into, so that a writer which was taken over
// cannot touch what its successor keeps.
struct LanePosition {
    uint64_t lane;        // its number; 0: none
    uint64_t drained;     // the lane's last sequence that is in the ring for sure
    uint64_t topic_last;  // the newest turn: once this is published,
    uint64_t lane_last;   // the lane is drained up to here
};

// Of a topic's ring, or of a lane. A lane's second page is its control page, see `lane_control`.
struct DataHeader {
    char magic[8];           //    0
    uint32_t version;        //    8
    uint32_t byte_order;     //   12
    uint64_t schema_hash;    //   16
    uint32_t schema_bytes;   //   24  JSON, at DATA_HEADER_BYTES
    uint32_t row_bytes;      //   28
    uint64_t slot_count;     //   32  a power of two
    uint64_t slots_offset;   //   40
    uint64_t segment_bytes;  //   48
    uint64_t log_id;         //   56  0: rings only
    uint32_t epoch;          //   64
    uint32_t pid;            //   68
    uint64_t process_start;  //   72  clock ticks since boot
    int64_t created_ns;      //   80
    char bus[64];            //   88
    char topic[64];          //  152
    char data_dir[1024];     //  216  absolute; empty: rings only
    uint32_t ready;          // 1240  stored last
    uint32_t syncs;          // 1244  1: the log is synced, so that records become durable
    uint32_t indexes;        // 1248  1: records are kept by key in the bus's store
    uint32_t lanes;          // 1252  1: other processes may publish, each through a lane
    uint32_t replicates;     // 1256  Replicates: whether other hosts hold the bus as well, so that records become replicated
    uint64_t began;          // 1264  the topic's last sequence when this ring was made
    alignas(LINE) WatermarkLine watermarks[WATERMARK_COUNT];  // 1280
    alignas(LINE) uint32_t status;                            // 2304
    uint32_t log_errno;
    alignas(LINE) int64_t heartbeat_ns;                       // 2432
    char gap[4096 - 2432 - 8];
    LanePosition positions[LANES_MAX];                        // 4096
    char tail[4096 - LANES_MAX * sizeof(LanePosition)];
};
static_assert(offsetof(DataHeader, watermarks) == 1280 && offsetof(DataHeader, status) == 2304);
static_assert(offsetof(DataHeader, lanes) == 1252 && offsetof(DataHeader, positions) == 4096);
static_assert(offsetof(DataHeader, replicates) == 1256 && offsetof(DataHeader, began) == 1264);
static_assert(offsetof(DataHeader, heartbeat_ns) == 2432 && sizeof(DataHeader) == DATA_HEADER_BYTES);

enum Replicates : uint32_t { REPLICATES_NOT = 0, REPLICATES_SYNC = 1, REPLICATES_ASYNC = 2 };
enum Role : uint32_t { ROLE_ALONE = 0, ROLE_FOLLOWS = 1, ROLE_LEADS = 2 };

inline constexpr size_t LEADER_WORDS = 8;

// A bus's own small segment: its writer holds flock(2) on it for life, and so is known to live.
struct BusHeader {
    char magic[8];
    uint32_t version;
    uint32_t byte_order;
    uint32_t epoch;
    uint32_t pid;
    uint64_t process_start;
    int64_t created_ns;
    uint64_t log_id;
    char bus[64];
    char data_dir[1024];
    uint32_t ready;                 // 1136
    uint32_t role;                  // 1140  Role; with `leader` it changes while the bus is open, see role.hpp
    uint32_t role_turn;             // 1144  odd while they change
    uint64_t leader[LEADER_WORDS];  // 1152  of ROLE_FOLLOWS: the name of the node that leads, as text; empty: none is known
    char tail[4096 - 1216];
};
static_assert(sizeof(BusHeader) == 4096 && offsetof(BusHeader, ready) == 1136 && offsetof(BusHeader, leader) == 1152);

// Set by readers, cleared by the writer; one line, so that the writer's look at both costs one load.
struct alignas(LINE) Attention {
    uint32_t wake[2];  // [0]: somebody sleeps on PUBLISHED and wants to be woken; [1]: the reader table has changed
};

struct alignas(LINE) Doorbell {
    uint32_t want;  // somebody sleeps here and wants to be woken (for PUBLISHED, Attention::wake[0] is used instead)
    uint32_t bell;  // the futex word
};

enum ReaderState : uint32_t { READER_FREE = 0, READER_JOINING = 1, READER_ACTIVE = 2, READER_DROPPED = 3 };
enum ReaderPolicy : uint32_t { LOSSY = 0, RELIABLE = 1 };

struct ReaderEntry {
    alignas(LINE) uint64_t owner;  // pid << 32 | ReaderState: who holds the entry is known from the same store that takes it
    uint64_t process_start;
    char name[48];
    uint32_t policy;
    uint32_t follow;               // Watermark
    int64_t attached_ns;
    alignas(LINE) uint64_t consumed;
    uint64_t acknowledged;
    int64_t heartbeat_ns;
    uint64_t overrun_count;        // times lapped
    uint64_t lost_count;           // records missed for good
    uint64_t refilled_count;       // records read from the log after being lapped
};
static_assert(sizeof(ReaderEntry) == 256);

enum LaneState : uint32_t { LANE_FREE = 0, LANE_TAKEN = 1, LANE_ASKED = 2, LANE_OPEN = 3, LANE_LEFT = 4, LANE_REFUSED = 5 };

struct LaneEntry {
    uint64_t owner;  // pid << 32 | LaneState, as in a reader's
    uint64_t process_start;
    uint64_t lane;   // its number, and so the name of its segment
    uint64_t why;    // of LANE_REFUSED
};

// Of a topic, or, its first page, of a lane.
struct ControlHeader {
    char magic[8];
    uint32_t version;
    uint32_t reader_count_max;
    uint32_t ready;
    uint32_t closed_epoch;  // of the last writer that closed in good order: who waits in an older ring need not wait for it
    alignas(LINE) Attention attention;
    Doorbell doorbells[WATERMARK_COUNT];  // by Watermark
    Doorbell drain;                       // 1280  want: who drains the lanes sleeps until a lane's publisher rings
    alignas(LINE) uint32_t lanes_changed; // 1408  set by publishers, cleared by the writer: the lane table is to be looked at
    alignas(LINE) LaneEntry lanes[LANES_MAX];  // 1536
    char tail[4096 - 1536 - LANES_MAX * sizeof(LaneEntry)];
    ReaderEntry readers[READERS_MAX];
};
static_assert(offsetof(ControlHeader, drain) == 1280 && offsetof(ControlHeader, lanes) == 1536);
static_assert(offsetof(ControlHeader, attention) == 128 && offsetof(ControlHeader, doorbells) == 256);
static_assert(offsetof(ControlHeader, readers) == 4096);
static_assert(sizeof(ControlHeader) == 4096 + 256 * READERS_MAX);

inline constexpr size_t LANE_CONTROL_OFFSET = 4096;
inline constexpr size_t LANE_CONTROL_BYTES = offsetof(ControlHeader, readers);

// A lane's control page: a control segment without a reader table.
inline ControlHeader *lane_control(char *data) { return reinterpret_cast<ControlHeader *>(data + LANE_CONTROL_OFFSET); }

}  // namespace ringmain
