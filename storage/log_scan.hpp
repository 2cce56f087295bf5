// Reading frames out of bytes that nobody vouches for.
//
// `read_frame` is the one door: it proves every bound before it believes a length, and the checksum before it believes
// anything else. It is safe on a file that a writer is appending to: an unfinished frame is simply not there yet.
#pragma once

#include <algorithm>
#include <vector>

#include "log_format.hpp"

namespace ringmain {

struct LogBytes {
    const char *base;         // the mapped file, header included
    uint64_t limit;           // bytes that may be read
    uint64_t start_position;  // of base[0]
    uint32_t epoch;
};

// proven: the checksum is known to be right, since somebody who holds the file has proven it before.
inline bool read_frame(const LogBytes &log, uint64_t offset, FrameHeader &header, bool proven = false) {
    if (offset % 8 != 0 || offset > log.limit || log.limit - offset < FRAME_HEADER_BYTES) return false;
    std::memcpy(&header, log.base + offset, FRAME_HEADER_BYTES);
    if (header.magic != FRAME_MAGIC || header.position != log.start_position + offset || header.epoch != log.epoch)
        return false;
    if (header.frame_bytes < FRAME_HEADER_BYTES || header.frame_bytes > GROUP_BYTES_MAX ||
        header.frame_bytes > log.limit - offset ||
        header.frame_bytes != align8(FRAME_HEADER_BYTES + uint64_t{header.payload_bytes}))
        return false;
    if (has_rows(header.kind) &&
        (header.row_count == 0 || uint64_t{header.row_count} * header.row_bytes != header.payload_bytes))
        return false;
    if (header.kind == FRAME_GAP && uint64_t{header.row_count} * sizeof(LostRange) > header.payload_bytes) return false;
    return proven || crc32c(0, log.base + offset + 8, header.frame_bytes - 8) == header.crc;
}

struct FrameEntry {  // mirrored by FRAME_DTYPE in _log.pyx
    uint64_t offset;
    uint64_t first_sequence;
    uint64_t durable_position;
    int64_t first_timestamp_ns;
    uint32_t row_count;
    uint32_t row_bytes;
    uint32_t payload_bytes;
    uint16_t topic;
    uint8_t kind;
    uint8_t flags;
};
static_assert(sizeof(FrameEntry) == 48);

// Appends an entry for each valid frame from `offset` on; returns where the first invalid one would begin.
inline uint64_t scan_frames(const LogBytes &log, uint64_t offset, std::vector<FrameEntry> &entries, bool proven = false) {
    FrameHeader header;
    while (read_frame(log, offset, header, proven)) {
        entries.push_back({offset, header.first_sequence, header.durable_position, header.first_timestamp_ns, header.row_count,
                           header.row_bytes, header.payload_bytes, header.topic, header.kind, header.flags});
        offset += header.frame_bytes;
    }
    return offset;
}

// The first valid frame that begins at or behind `offset` and before `end`, or `log.limit` where there is none. Frames begin at
// multiples of 8.
inline uint64_t find_frame(const LogBytes &log, uint64_t offset, uint64_t end = UINT64_MAX) {
    FrameHeader header;
    end = std::min(end, log.limit);
    if (offset >= end) return log.limit;
    for (offset = align8(offset); offset < end && log.limit - offset >= FRAME_HEADER_BYTES; offset += 8) {
        uint32_t magic;
        std::memcpy(&magic, log.base + offset, sizeof magic);
        if (magic == FRAME_MAGIC && read_frame(log, offset, header)) return offset;
    }
    return log.limit;
}

}  // namespace ringmain
