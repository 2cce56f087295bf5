// Sleeping until a watermark moves, and waking those who sleep.
//
// A wake call costs the caller some 14 µs, so it is made only when somebody asked for it. The protocol (sync WAKE):
//   sleeper: bell = doorbell; want = 1; heavy barrier; look at the watermark again; sleep while doorbell == bell
//   waker:   store the watermark; if want: want = 0, doorbell += 1 (release: not before the 0), wake all
// A sleeper that dies leaves at most one useless wake behind; a waker that dies between the two leaves sleepers behind, and
// so nobody sleeps longer than a slice at a time. tests/model/wake.pml is the model.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

#include "atomics.hpp"
#include "clock.hpp"
#include "layout.hpp"

namespace ringmain {

inline void futex_wait(const uint32_t &word, uint32_t value, int64_t timeout_ns) {
    timespec limit{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    syscall(SYS_futex, &word, FUTEX_WAIT, value, &limit, nullptr, 0);
}
inline void futex_wake_all(uint32_t &word) { syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

// For the writer's side: `want` was seen set.
inline void ring_doorbell(uint32_t &want, uint32_t &bell) {
    store_relaxed(want, 0u);
    add_release(bell, 1u);
    futex_wake_all(bell);
}

inline void raise_watermark(DataHeader &header, ControlHeader &control, Watermark which, uint64_t sequence) {
    store_release(header.watermarks[which].sequence, sequence);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // sync WAKE: ordered by the sleeper's heavy barrier
    Doorbell &door = control.doorbells[which];
    if (load_relaxed(door.want) != 0) ring_doorbell(door.want, door.bell);
}

// Whoever drains the topic's lanes into its ring sleeps as readers do, on a bell of its own.
inline void wake_drain(ControlHeader &control) {
    std::atomic_signal_fence(std::memory_order_seq_cst);  // sync WAKE
    if (load_relaxed(control.drain.want) != 0) ring_doorbell(control.drain.want, control.drain.bell);
}

enum WaitStrategy : uint32_t { WAIT_FUTEX = 0, WAIT_SPIN = 1, WAIT_YIELD = 2 };
enum WaitResult : int { WAIT_MOVED = 0, WAIT_TIMEOUT = 1, WAIT_STATUS = 2 };

inline constexpr int64_t SLICE_NS = 500'000'000;  // at most this long without looking at status, signals, heartbeat

// How a thread of the writer's waits for more: it naps, at first so long, and so long after the last it sleeps until it is woken.
struct Rest {
    int64_t nap_ns, sleep_after_ns;
};
// In a replicated bus rows are on their way for milliseconds: what naps and wakes more seldom leaves the processor to those they go to.
inline constexpr Rest CALM{300'000, 3'000'000};

// Wait until watermark `which` is above `cursor`. At most one slice: the caller loops, to serve signals and heartbeats.
inline WaitResult wait_for(const DataHeader &header, ControlHeader &control, Watermark which, uint64_t cursor,
                           int64_t timeout_ns, WaitStrategy strategy) {
    const uint64_t &watermark = header.watermarks[which].sequence;
    if (load_acquire(watermark) > cursor) return WAIT_MOVED;
    if (load_acquire(header.status) & (STATUS_CLOSED | STATUS_FENCED)) return WAIT_STATUS;
    if (timeout_ns <= 0) return WAIT_TIMEOUT;
    const int64_t deadline = monotonic_ns() + timeout_ns;
    // Even a sleeper spins first for a moment: a record that is on its way is then read without a wake call.
    const int64_t spin_until = strategy == WAIT_FUTEX ? monotonic_ns() + 5'000 : deadline;
    for (;;) {
        for (int turn = 0; turn < 256; ++turn) {
            if (load_acquire(watermark) > cursor) return WAIT_MOVED;
            if (strategy == WAIT_YIELD)
                sched_yield();
            else
                std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        if (load_acquire(header.status) & (STATUS_CLOSED | STATUS_FENCED)) return WAIT_STATUS;
        if (monotonic_ns() >= spin_until) break;
    }
    if (strategy != WAIT_FUTEX) return WAIT_TIMEOUT;
    Doorbell &door = control.doorbells[which];
    uint32_t &want = which == PUBLISHED ? control.attention.wake[0] : door.want;
    const uint32_t bell = load_acquire(door.bell);
    store_relaxed(want, 1u);
    const bool ordered = barrier_heavy();  // sync WAKE
    if (load_acquire(watermark) > cursor) return WAIT_MOVED;
    if (load_acquire(header.status) & (STATUS_CLOSED | STATUS_FENCED)) return WAIT_STATUS;
    int64_t left = deadline - monotonic_ns();
    if (!ordered && left > 1'000'000) left = 1'000'000;  // without the barrier a wake may be missed: sleep only briefly
    if (left > 0) futex_wait(door.bell, bell, left);
    return load_acquire(watermark) > cursor ? WAIT_MOVED : WAIT_TIMEOUT;
}

// Wait until watermark `which` has reached `last`, looking every `nap_ns`: for who wants many records at once, and would be
// woken again and again for a few of them. At most one slice, and less where a signal comes.
inline WaitResult wait_for_many(const DataHeader &header, Watermark which, uint64_t last, int64_t timeout_ns, int64_t nap_ns) {
    const int64_t deadline = monotonic_ns() + timeout_ns;
    for (;;) {
        if (load_acquire(header.watermarks[which].sequence) >= last) return WAIT_MOVED;
        if (load_acquire(header.status) & (STATUS_CLOSED | STATUS_FENCED)) return WAIT_STATUS;
        const int64_t left = deadline - monotonic_ns();
        if (left <= 0) return WAIT_TIMEOUT;
        const timespec nap{0, left < nap_ns ? left : nap_ns};
        if (nanosleep(&nap, nullptr) != 0) return WAIT_TIMEOUT;
    }
}

}  // namespace ringmain
