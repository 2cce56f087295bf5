// What the stress programs share: rows that check themselves, rings in plain memory, seeded chance, and a way to fail.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "pack.hpp"
#include "ring.hpp"

namespace stress {

using namespace ringmain;

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    std::fprintf(stderr, "FAILED: %s\n", text);
    std::fflush(nullptr);
    _exit(1);  // other threads are still at work
}

class Random {  // splitmix64
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    uint64_t below(uint64_t bound) { return next() % bound; }

  private:
    uint64_t state_;
};

// Every word of a payload follows from the row's sequence, and no two rows have one in common.
inline uint64_t word_of(uint64_t sequence, size_t index) {
    return sequence * 0x9e3779b97f4a7c15 ^ (index + 1) * 0xbf58476d1ce4e5b9;
}

inline void fill_payload(char *payload, uint32_t row_bytes, uint64_t sequence) {
    for (size_t index = 0; index < (row_bytes - 16) / 8; ++index) put<uint64_t>(payload + 8 * index, word_of(sequence, index));
}

inline bool row_is_whole(const char *row, uint32_t row_bytes, uint64_t sequence) {
    uint64_t word;
    std::memcpy(&word, row, 8);
    if (word != sequence) return false;
    for (size_t index = 0; index < (row_bytes - 16) / 8; ++index) {
        std::memcpy(&word, row + 16 + 8 * index, 8);
        if (word != word_of(sequence, index)) return false;
    }
    return true;
}

inline size_t ring_bytes(uint32_t row_bytes, uint64_t slot_count) {
    return (DATA_HEADER_BYTES + slot_count * row_bytes + 4095) & ~size_t{4095};
}

// A fresh ring in zeroed memory.
inline void format_ring(char *data, uint32_t row_bytes, uint64_t slot_count) {
    auto *header = reinterpret_cast<DataHeader *>(data);
    header->row_bytes = row_bytes;
    header->slot_count = slot_count;
    header->slots_offset = DATA_HEADER_BYTES;
}

inline char *map_shared(int fd, size_t bytes, int protection) {
    void *at = mmap(nullptr, bytes, protection, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    if (at == MAP_FAILED) fail("mmap of %zu bytes: %s", bytes, std::strerror(errno));
    return static_cast<char *>(at);
}

// Publishes rows in all the ways that RingPublisher does.
class Publisher {
  public:
    Publisher(RingWriter &ring, uint64_t seed) : ring_(ring), random_(seed) {}

    // One publication, chosen by chance. False when nothing made room for it in time, or the status says stop.
    bool publish_some() {
        const uint64_t chunk = ring_.slot_count / 4, half = ring_.slot_count / 2;
        switch (random_.below(8)) {
        case 0: return publish_claim(1 + random_.below(half), 0);
        case 1: {
            const uint64_t count = 1 + random_.below(half);
            return publish_claim(count, 1 + random_.below(count));
        }
        case 2:
        case 3: return publish_batch(1 + random_.below(chunk));
        default:
            for (uint64_t left = 1 + random_.below(chunk); left != 0; --left)
                if (!publish_claim(1, 1)) return false;
            return true;
        }
    }

    Random &random() { return random_; }

  private:
    bool make_room(uint64_t count) {
        if (ring_.may_publish(count)) return true;
        if (load_relaxed(ring_.control->attention.wake[1]) != 0) ring_.rescan();
        return ring_.may_publish(count) || ring_.wait_for_room(count, 20'000'000'000);
    }

    // Claim `count` slots, fill them in place, and make the first `kept` visible; none: abort.
    bool publish_claim(uint64_t count, uint64_t kept) {
        if (!make_room(count)) return false;
        const uint64_t first = ring_.published + 1;
        ring_.claim(ring_.published + count);
        const int64_t stamp = ring_.stamp_ns();
        for (uint64_t sequence = first; sequence < first + count; ++sequence) {
            char *slot = ring_.slot(sequence);
            fill_payload(slot + 16, ring_.row_bytes, sequence);
            put<uint64_t>(slot, sequence);
            put<int64_t>(slot + 8, stamp);
        }
        if (kept != 0) commit(kept);
        return true;
    }

    bool publish_batch(uint64_t count) {
        if (!make_room(count)) return false;
        const size_t payload_bytes = ring_.row_bytes - 16;
        const uint64_t first = ring_.published + 1;
        payloads_.resize(count * payload_bytes);
        for (uint64_t row = 0; row < count; ++row)
            fill_payload(payloads_.data() + row * payload_bytes, ring_.row_bytes, first + row);
        ring_.claim(ring_.published + count);
        const int64_t stamp = ring_.stamp_ns(), stride = static_cast<int64_t>(payload_bytes);
        uint64_t until_end = ring_.slot_count - (first & ring_.mask);
        if (until_end > count) until_end = count;
        copy_rows(ring_.slot(first), ring_.row_bytes, payloads_.data(), stride, until_end, first, stamp);
        copy_rows(ring_.slot(first + until_end), ring_.row_bytes, payloads_.data() + until_end * payload_bytes, stride,
                  count - until_end, first + until_end, stamp);
        commit(count);
        return true;
    }

    void commit(uint64_t count) {
        ring_.publish(ring_.published + count);
        if (ring_.someone_sleeps()) ring_.wake_readers();
    }

    RingWriter &ring_;
    Random random_;
    std::vector<char> payloads_;
};

}  // namespace stress
