// Rows of log files back into a memtable: what recovery does once the log is proven.
#pragma once

#include <algorithm>
#include <cstdint>

#include "log_scan.hpp"
#include "memtable.hpp"

namespace ringmain {

inline constexpr uint64_t REPLAY_ROWS = 512;  // committed together: enough to overlap their cache misses, few enough to stay cached

// How many rows of a frame have sequences from `first` to before `end`.
inline uint64_t rows_between(const FrameEntry &frame, uint64_t first, uint64_t end) {
    const uint64_t from = std::max(frame.first_sequence, first), to = std::min(frame.first_sequence + frame.row_count, end);
    return to > from ? to - from : 0;
}

// Add the rows of these frames of one topic with sequences from `first` to before `end`. There must be room for them, and a table
// of rows that lie elsewhere must be gone before the file is unmapped. `base`: of the mapped file.
inline void replay_frames(Memtable &memtable, const char *base, const FrameEntry *frames, uint64_t count, uint64_t first,
                          uint64_t end) {
    uint64_t placed = 0;
    bool tombstones = false;
    const auto commit = [&] {
        memtable.commit_rows(placed, tombstones);
        placed = 0;
    };
    for (const FrameEntry *frame = frames; frame < frames + count; ++frame) {
        if ((frame->kind == FRAME_TOMBSTONES) != tombstones) commit();
        tombstones = frame->kind == FRAME_TOMBSTONES;
        const char *rows = base + frame->offset + FRAME_HEADER_BYTES;
        if (frame->first_sequence < first) rows += (first - frame->first_sequence) * frame->row_bytes;
        for (uint64_t left = rows_between(*frame, first, end); left > 0;) {
            const uint64_t step = std::min(left, REPLAY_ROWS - placed);
            memtable.place(placed, rows, step);
            rows += step * frame->row_bytes;
            left -= step;
            placed += step;
            if (placed == REPLAY_ROWS) commit();
        }
    }
    commit();
}

}  // namespace ringmain
