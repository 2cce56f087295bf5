// The reader table: who reads a topic, how far each has come, and which of them the writer waits for.
//
// 1. An entry is taken and given back by compare-and-swap on `owner`, which carries the pid: the entry of a process that
//    died at any instant is recognised and freed. A pid is believed to be the same process only with the same start time.
// 2. Only the owner writes the rest of its entry; the writer may turn ACTIVE into DROPPED.
// 3. A reader that becomes reliable announces it (sync REGISTER): it stores its entry, sets Attention::wake[1], passes the
//    heavy barrier, and only then trusts that what it has not consumed stays. tests/model/register.pml is the model.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "atomics.hpp"
#include "layout.hpp"
#include "wait.hpp"

namespace ringmain {

inline uint64_t owner_word(uint32_t pid, uint32_t state) { return uint64_t{pid} << 32 | state; }
inline uint32_t owner_pid(uint64_t owner) { return static_cast<uint32_t>(owner >> 32); }
inline ReaderState owner_state(uint64_t owner) { return static_cast<ReaderState>(owner & 0xffffffffu); }

// When the process began, in clock ticks since boot; 0 where there is none (a zombie counts as none).
inline uint64_t process_start(uint32_t pid) {
    char path[32], text[1024];
    std::snprintf(path, sizeof path, "/proc/%u/stat", pid);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    const ssize_t bytes = read(fd, text, sizeof text - 1);
    close(fd);
    if (bytes <= 0) return 0;
    text[bytes] = 0;
    const char *at = std::strrchr(text, ')');  // the command's name may hold blanks and brackets
    if (at == nullptr || at[1] == 0 || at[2] == 'Z' || at[2] == 'X') return 0;
    for (int field = 2; field < 22 && at != nullptr; ++field) at = std::strchr(at + 1, ' ');
    return at == nullptr ? 0 : std::strtoull(at + 1, nullptr, 10);
}

inline bool process_lives(uint32_t pid, uint64_t started) {
    const uint64_t found = process_start(pid);
    return found != 0 && (started == 0 || found == started);
}

// Take a free entry, or one whose owner is dead; -1 when all are taken by the living.
inline int take_reader(ControlHeader &control, uint32_t pid) {
    for (int pass = 0; pass < 2; ++pass) {
        for (uint32_t index = 0; index < READERS_MAX; ++index) {
            ReaderEntry &entry = control.readers[index];
            uint64_t owner = load_acquire(entry.owner);
            if (owner_state(owner) != READER_FREE) {
                if (pass == 0) continue;
                if (process_lives(owner_pid(owner), owner_state(owner) == READER_JOINING ? 0 : entry.process_start)) continue;
            }
            if (!compare_exchange(entry.owner, owner, owner_word(pid, READER_JOINING))) continue;
            if (pass == 1) store_release(control.attention.wake[1], 1u);  // the dead one may have held the writer
            return static_cast<int>(index);
        }
    }
    return -1;
}

inline void announce_readers(ControlHeader &control) {
    store_release(control.attention.wake[1], 1u);
    if (!barrier_heavy()) usleep(10'000);  // sync REGISTER; where it is refused, longer than any store takes to be seen
}

inline void free_reader(ControlHeader &control, uint32_t index, uint32_t pid) {
    ReaderEntry &entry = control.readers[index];
    uint64_t owner = load_acquire(entry.owner);
    if (owner_pid(owner) == pid && owner_state(owner) != READER_FREE &&
        compare_exchange(entry.owner, owner, owner_word(0, READER_FREE)))
        announce_readers(control);
}

// Free the entries of dead processes; returns how many there were.
inline uint32_t free_dead_readers(ControlHeader &control) {
    uint32_t freed = 0;
    for (uint32_t index = 0; index < READERS_MAX; ++index) {
        ReaderEntry &entry = control.readers[index];
        uint64_t owner = load_acquire(entry.owner);
        if (owner_state(owner) == READER_FREE) continue;
        if (process_lives(owner_pid(owner), owner_state(owner) == READER_JOINING ? 0 : entry.process_start)) continue;
        if (compare_exchange(entry.owner, owner, owner_word(0, READER_FREE))) ++freed;
    }
    if (freed != 0) store_release(control.attention.wake[1], 1u);
    return freed;
}

}  // namespace ringmain
