// The only file that names a memory order.
//
// Every word that two processes share is a plain integer in a mapped segment, reached through these functions. Readers map
// the data segment read-only; loads of lock-free words never write, so casting the const away for `atomic_ref` is sound.
#pragma once

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace ringmain {

static_assert(std::atomic_ref<uint64_t>::is_always_lock_free && std::atomic_ref<uint32_t>::is_always_lock_free,
              "words shared between processes must be lock-free");

template <typename T>
inline T load_relaxed(const T &word) {
    return std::atomic_ref<T>(const_cast<T &>(word)).load(std::memory_order_relaxed);
}
template <typename T>
inline T load_acquire(const T &word) {
    return std::atomic_ref<T>(const_cast<T &>(word)).load(std::memory_order_acquire);
}
template <typename T>
inline void store_relaxed(T &word, T value) {
    std::atomic_ref<T>(word).store(value, std::memory_order_relaxed);
}
template <typename T>
inline void store_release(T &word, T value) {
    std::atomic_ref<T>(word).store(value, std::memory_order_release);
}
template <typename T>
inline T add_relaxed(T &word, T value) {
    return std::atomic_ref<T>(word).fetch_add(value, std::memory_order_relaxed);
}
template <typename T>
inline T add_release(T &word, T value) {
    return std::atomic_ref<T>(word).fetch_add(value, std::memory_order_release);
}
template <typename T>
inline T or_release(T &word, T bits) {
    return std::atomic_ref<T>(word).fetch_or(bits, std::memory_order_acq_rel);
}
template <typename T>
inline T exchange(T &word, T value) {
    return std::atomic_ref<T>(word).exchange(value, std::memory_order_acq_rel);
}
template <typename T>
inline bool compare_exchange(T &word, T &expected, T desired) {
    return std::atomic_ref<T>(word).compare_exchange_strong(expected, desired, std::memory_order_acq_rel);
}
inline void fence_acquire() { std::atomic_thread_fence(std::memory_order_acquire); }
inline void fence_release() { std::atomic_thread_fence(std::memory_order_release); }

// The rare side of an asymmetric barrier: after it, whatever a writer published before is visible here, and a writer that has
// not yet looked at the attention words will see what was stored here before. It interrupts every core that runs a process
// which called `barrier_register`, so that the frequent side, publishing, pays for no fence at all.
inline bool barrier_register() { return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0; }
inline bool barrier_heavy() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0;
}

}  // namespace ringmain
