// Whether the bus of this host leads, and who does if not: written by the bus's writer alone, read by whoever wants to publish.
//
// The two change together and may be read at any time, so they are behind a turn: it is odd while they change, and who reads sees
// the same even one before and after (sync ROLE). A writer that dies amid a change leaves it odd: then nothing is known.
#pragma once

#include <cstring>

#include "atomics.hpp"
#include "layout.hpp"

namespace ringmain {

// leader: LEADER_WORDS * 8 bytes.
inline void write_role(BusHeader &bus, uint32_t role, const char *leader) {
    const uint32_t turn = (load_relaxed(bus.role_turn) | 1) + 1;  // even
    uint64_t words[LEADER_WORDS];
    std::memcpy(words, leader, sizeof words);
    store_relaxed(bus.role_turn, turn - 1);
    fence_release();  // sync ROLE: the odd turn before what changes
    store_relaxed(bus.role, role);
    for (size_t word = 0; word < LEADER_WORDS; ++word) store_relaxed(bus.leader[word], words[word]);
    store_release(bus.role_turn, turn);  // sync ROLE: the even turn behind it
}

// False where they are changing just now.
inline bool read_role(const BusHeader &bus, uint32_t &role, char *leader) {
    const uint32_t turn = load_acquire(bus.role_turn);  // sync ROLE
    uint64_t words[LEADER_WORDS];
    role = load_relaxed(bus.role);
    for (size_t word = 0; word < LEADER_WORDS; ++word) words[word] = load_relaxed(bus.leader[word]);
    fence_acquire();  // sync ROLE: finish reading before looking at the turn again
    std::memcpy(leader, words, sizeof words);
    return (turn & 1) == 0 && load_relaxed(bus.role_turn) == turn;
}

}  // namespace ringmain
