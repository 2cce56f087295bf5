// Slots on the disk, as FORMAT.md, "Slot file", has them; and a position that a thread keeps in them without the interpreter.
//
// Whoever reads as fast as it can is held up each time that another thread of its process wants the interpreter, and wakes up
// late from that. So while a reader goes on, its position goes to the disk without.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>

#include "clock.hpp"
#include "crc32c.hpp"
#include "ring.hpp"

namespace ringmain {

inline constexpr char SLOT_MAGIC[] = "RMAINPOS";
inline constexpr uint32_t SLOT_VERSION = 1;
inline constexpr int64_t TELL_NS = 100'000'000;  // who keeps a position comes back to tell it at least so often
inline constexpr int64_t SETTLE_NS = 1'000'000;  // who has stored all there was waits so long for more before it tells

struct SlotHeader {
    char magic[8];
    uint32_t checksum;  // of all behind it
    uint32_t version;
    uint64_t generation;
    uint32_t payload_bytes, unused;
};
static_assert(sizeof(SlotHeader) == 32);

// What every payload of a position begins with.
struct PositionHead {
    uint32_t kind, unused;
    uint64_t log_id, sequence;
    char boot[16];
};
static_assert(sizeof(PositionHead) == 40);

// A slot file's two places, written in turn. generation, place: of the newest value.
struct SlotWriter {
    int descriptor;
    uint64_t slot_bytes, generation;
    uint32_t place;

    // Put a value in the place of the older one. 0, or an errno; then nothing has changed, as far as this knows.
    int write(const char *payload, size_t payload_bytes, bool sync) {
        SlotHeader header{{}, 0, SLOT_VERSION, generation + 1, static_cast<uint32_t>(payload_bytes), 0};
        std::memcpy(header.magic, SLOT_MAGIC, sizeof header.magic);
        constexpr size_t unchecked = offsetof(SlotHeader, version);
        const uint32_t head = crc32c(0, reinterpret_cast<const char *>(&header) + unchecked, sizeof header - unchecked);
        header.checksum = crc32c(head, payload, payload_bytes);
        slot_.assign(reinterpret_cast<const char *>(&header), sizeof header);
        slot_.append(payload, payload_bytes);
        auto offset = static_cast<off_t>((1 - place) * slot_bytes);
        for (size_t done = 0; done < slot_.size();) {
            const ssize_t written = pwrite(descriptor, slot_.data() + done, slot_.size() - done, offset + static_cast<off_t>(done));
            if (written >= 0)
                done += static_cast<size_t>(written);
            else if (errno != EINTR)
                return errno;
        }
        while (sync && fdatasync(descriptor) != 0)
            if (errno != EINTR) return errno;
        ++generation;
        place = 1 - place;
        return 0;
    }

  private:
    std::string slot_;
};

// Up to where a subscriber is done with a topic (done), and up to where that is on the disk (stored). Its own thread moves the one,
// another thread stores.
class KeptPosition {
  public:
    enum : uint32_t { MOVED = 1, ASKED = 2 };
    enum : int { ATTEND = 0, TELL = 1 };  // what `keep` returns for

    // every_rows: store as soon as so many are done with.
    void begin(uint64_t done, uint64_t stored, uint64_t every_rows) {
        const std::lock_guard lock(mutex_);
        done_ = done, stored_ = stored, every_rows_ = every_rows;
    }

    // The subscriber is done with everything up to `sequence`; anew: that counts even if it was before. Whether it is to be told
    // that the disk refuses.
    bool move_to(uint64_t sequence, bool anew) {
        const std::lock_guard lock(mutex_);
        if (sequence == done_ && !anew) return false;
        done_ = sequence;
        if (idle_ || done_ - stored_ >= every_rows_) wake(MOVED);
        return failed_;
    }

    uint64_t done() const {
        const std::lock_guard lock(mutex_);
        return done_;
    }
    uint64_t stored() const {
        const std::lock_guard lock(mutex_);
        return stored_;
    }
    void set_stored(uint64_t sequence) {
        const std::lock_guard lock(mutex_);
        stored_ = sequence;
    }
    void set_idle(bool idle) {
        const std::lock_guard lock(mutex_);
        idle_ = idle;
    }
    void fail() {
        const std::lock_guard lock(mutex_);
        failed_ = true;
    }

    // Whoever stores is to see to something else; at once, or when it next waits.
    void ask() {
        const std::lock_guard lock(mutex_);
        wake(ASKED);
    }

    // Wait until it is asked, moves while it is idle, or so much time has passed.
    void wait(int64_t timeout_ns) {
        std::unique_lock lock(mutex_);
        sleep(lock, timeout_ns);
    }

    // Nap, store what is done with and safe by then, nap, and so on; where all is stored, sleep until there is more.
    // payload: of a position that is like those to be stored. first_nap_ns, nap_ns: before the first time, and between two.
    // TELL: something was stored that may be told, before it sleeps and every TELL_NS. ATTEND: asked, or what is done with is not safe.
    // Less than 0: the disk refuses, with this errno.
    int keep(SlotWriter &slots, const char *payload, size_t payload_bytes, const DataHeader &ring, int64_t first_nap_ns, int64_t nap_ns) {
        std::string position(payload, payload_bytes);
        const int64_t begin = monotonic_ns();
        bool untold = false;
        std::unique_lock lock(mutex_);
        for (int64_t next_nap_ns = first_nap_ns;; next_nap_ns = nap_ns) {
            if (sleep(lock, next_nap_ns) & ASKED) return ATTEND;
            if (done_ == stored_) {
                if (untold) return TELL;
                idle_ = true;
                const uint32_t woken_by = sleep(lock, INT64_MAX);
                idle_ = false;
                if (woken_by & ASKED) return ATTEND;
            }
            const uint64_t safe = safe_position(ring), sequence = done_ < safe ? done_ : safe;
            if (sequence == stored_) return ATTEND;
            lock.unlock();
            std::memcpy(position.data() + offsetof(PositionHead, sequence), &sequence, sizeof sequence);
            const int failure = slots.write(position.data(), position.size(), true);
            lock.lock();
            if (failure != 0) return -failure;
            stored_ = sequence;
            untold = true;
            if (monotonic_ns() - begin >= TELL_NS) return TELL;
            if (done_ == stored_) {  // who reads on moves soon
                if (sleep(lock, nap_ns < SETTLE_NS ? nap_ns : SETTLE_NS) & ASKED) return ATTEND;
                if (done_ == stored_) return TELL;
            }
        }
    }

  private:
    void wake(uint32_t why) {
        if (woken_by_ == 0) changed_.notify_one();
        woken_by_ |= why;
    }
    uint32_t sleep(std::unique_lock<std::mutex> &lock, int64_t timeout_ns) {
        const auto woken = [this] { return woken_by_ != 0; };
        if (timeout_ns == INT64_MAX)
            changed_.wait(lock, woken);
        else
            changed_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), woken);
        const uint32_t woken_by = woken_by_;
        woken_by_ = 0;
        return woken_by;
    }

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    uint64_t done_ = 0, stored_ = 0, every_rows_ = UINT64_MAX;
    uint32_t woken_by_ = 0;
    bool idle_ = false, failed_ = false;  // idle: nobody stores anything before it moves
};

}  // namespace ringmain
