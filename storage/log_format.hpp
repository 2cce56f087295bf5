// The bytes of a log file: the only place in memory that knows them. The prose is FORMAT.md; change both together.
//
// 1. A position is a byte's place in the whole log, counted over all files; it is never reused. A frame names its own, so
//    that what an earlier use of a recycled file left behind is never mistaken for a frame of this one.
// 2. A file belongs to one epoch (one life of a writer). A new writer begins a new file, and its header says where the
//    file before ends: whatever a paused writer still writes behind that place does not exist.
// 3. A frame carries the position known to be on the disk when it was written. An invalid place below such a position is
//    damage; an invalid place above every one of them is a torn tail. The header says the same of the file's start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "crc32c.hpp"

namespace ringmain {

inline constexpr uint32_t LOG_VERSION = 1;
inline constexpr uint32_t BYTE_ORDER_MARK = 0x01020304u;
inline constexpr size_t LOG_HEADER_BYTES = 4096;
inline constexpr char LOG_MAGIC[9] = "RMAINLOG";
inline constexpr uint32_t FRAME_MAGIC = 0x31464d52u;  // "RMF1"
inline constexpr uint32_t GROUP_BYTES_MAX = 1u << 20;  // what one write takes, and so the largest frame
inline constexpr uint32_t TOPIC_COUNT_MAX = 256;

// On disk in the field: add new ones, never change or reuse an old one.
enum FrameKind : uint8_t {
    FRAME_ROWS = 1,   // row_count rows of one topic, from first_sequence on
    FRAME_TOPIC = 2,  // schema JSON; first_sequence is the topic's next sequence where this file begins
    FRAME_MARK = 3,   // nothing but a newer durable_position, written when the log falls idle
    FRAME_CLOSE = 4,  // the writer closed in good order; durable_position is this frame's own position
    FRAME_GAP = 5,    // put over a damaged place by repair; payload: LostRange[row_count]
    FRAME_TOMBSTONES = 6,  // as FRAME_ROWS, but each row deletes its key: only stamp and key fields are set
};

// Flags of a frame. CONTINUES: its rows count only together with those of the next frame.
inline constexpr uint8_t CONTINUES = 1;

// Whether a frame's payload is rows of a topic, which take part in its sequences.
inline constexpr bool has_rows(uint8_t kind) { return kind == FRAME_ROWS || kind == FRAME_TOMBSTONES; }

struct LogFileHeader {
    char magic[8];            //  0
    uint32_t version;         //  8
    uint32_t byte_order;      // 12
    uint64_t log_id;          // 16  random, the same in every file of one log
    uint64_t file_number;     // 24
    uint64_t start_position;  // 32  of this file's first byte
    uint64_t previous_end;    // 40  bytes of the file before that count
    uint32_t epoch;           // 48
    uint32_t header_bytes;    // 52
    int64_t created_ns;       // 56
    uint64_t file_bytes;      // 64
    char bus[64];             // 72
    uint64_t start_bytes;     // 136  header and topics: on the disk before the file got its name
    char unused[4096 - 144 - 4];
    uint32_t crc;             // 4092  CRC-32C of everything before it
};
static_assert(sizeof(LogFileHeader) == LOG_HEADER_BYTES && offsetof(LogFileHeader, start_bytes) == 136 &&
              offsetof(LogFileHeader, crc) == 4092);

struct FrameHeader {
    uint32_t magic;               //  0
    uint32_t crc;                 //  4  CRC-32C of the frame from byte 8 to its end
    uint32_t frame_bytes;         //  8  header, payload, padding to a multiple of 8
    uint8_t kind;                 // 12
    uint8_t flags;                // 13  CONTINUES
    uint16_t topic;               // 14  number of the topic within this log
    uint64_t position;            // 16
    uint64_t first_sequence;      // 24
    uint32_t row_count;           // 32
    uint32_t epoch;               // 36
    uint64_t durable_position;    // 40  everything below it was on the disk
    int64_t first_timestamp_ns;   // 48  of the first row; in FRAME_TOPIC, the last one so far
    uint32_t row_bytes;           // 56
    uint32_t payload_bytes;       // 60
};
inline constexpr size_t FRAME_HEADER_BYTES = 64;
static_assert(sizeof(FrameHeader) == FRAME_HEADER_BYTES && offsetof(FrameHeader, position) == 16);

struct LostRange {
    uint64_t first_sequence;
    uint64_t count;
    uint32_t topic;
    uint32_t unused;
};
static_assert(sizeof(LostRange) == 24);

inline constexpr size_t align8(size_t bytes) { return (bytes + 7) & ~size_t{7}; }

inline uint32_t log_header_crc(const LogFileHeader &header) { return crc32c(0, &header, offsetof(LogFileHeader, crc)); }

// A frame's checksum runs over the header behind `crc`, the payload, and the padding (zeros).
inline uint32_t frame_crc(const FrameHeader &header, const void *payload) {
    uint32_t crc = crc32c(0, reinterpret_cast<const char *>(&header) + 8, FRAME_HEADER_BYTES - 8);
    crc = crc32c(crc, payload, header.payload_bytes);
    const uint64_t zeros = 0;
    return crc32c(crc, &zeros, header.frame_bytes - FRAME_HEADER_BYTES - header.payload_bytes);
}

}  // namespace ringmain
