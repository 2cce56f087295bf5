// The clocks, in nanoseconds.
#pragma once

#include <time.h>

#include <cstdint>

namespace ringmain {

inline int64_t clock_ns(clockid_t clock) {
    timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}
inline int64_t wall_ns() { return clock_ns(CLOCK_REALTIME); }  // since the Unix epoch
inline int64_t monotonic_ns() { return clock_ns(CLOCK_MONOTONIC); }

}  // namespace ringmain
