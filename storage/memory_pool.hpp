// Memory for memtables: reserved whole, given by the system page by page, and kept for the next memtable when one is dropped.
//
// 1. A page costs most when it is first touched, much more still where a virtual machine has to ask its host for it. So pages are
//    touched ahead of use by a thread that has nothing else to do, a few MiB at a time, and are not given back needlessly.
// 2. A piece belongs to one memtable at a time. It comes back only when that is destroyed, that is when no reader holds it.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace ringmain {

struct Memory {
    char *base = nullptr;
    uint64_t bytes = 0;
    uint64_t touched_bytes = 0;  // from the base on: the system has given these pages
    bool used = false;           // else it is all zeros
};

class MemoryPool {
  public:
    static constexpr uint64_t STEP_BYTES = 4 << 20;  // other threads may have to wait for the system while it makes so much ready

    // keep_bytes: of memory that nobody uses now; more is given back to the system.
    explicit MemoryPool(uint64_t keep_bytes) : keep_bytes_(keep_bytes) {}

    ~MemoryPool() {
        for (const Memory &memory : kept_) munmap(memory.base, memory.bytes);
    }
    MemoryPool(const MemoryPool &) = delete;
    MemoryPool &operator=(const MemoryPool &) = delete;

    // At least so much, and at most a quarter more. Throws std::bad_alloc.
    Memory take(uint64_t bytes) {
        {
            const std::lock_guard hold(lock_);
            const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Memory &memory) {
                return memory.bytes >= bytes && memory.bytes <= bytes + bytes / 4;
            });
            if (found != kept_.end()) {
                const Memory memory = *found;
                kept_.erase(found);
                kept_bytes_ -= memory.bytes;
                return memory;
            }
        }
        bytes = (bytes + 4095) & ~4095ull;
        void *base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) throw std::bad_alloc();
        madvise(base, bytes, MADV_HUGEPAGE);
        return {static_cast<char *>(base), bytes};
    }

    void give_back(Memory memory) noexcept {
        memory.used = true;
        try {
            const std::lock_guard hold(lock_);
            if (kept_bytes_ < keep_bytes_) {
                kept_.push_back(memory);
                kept_bytes_ += memory.bytes;
                return;
            }
        } catch (const std::bad_alloc &) {  // then the system has it back
        }
        munmap(memory.base, memory.bytes);
    }

    // Have the system give the first `bytes` of it. What it holds stays as it is, so others may use it meanwhile.
    static void touch(Memory &memory, uint64_t bytes) {
        while (memory.touched_bytes < std::min(bytes, memory.bytes)) {
            const uint64_t step = std::min(STEP_BYTES, memory.bytes - memory.touched_bytes);
#ifdef MADV_POPULATE_WRITE
            madvise(memory.base + memory.touched_bytes, step, MADV_POPULATE_WRITE);
#endif
            memory.touched_bytes += step;
        }
    }

  private:
    const uint64_t keep_bytes_;
    std::mutex lock_;
    std::vector<Memory> kept_;
    uint64_t kept_bytes_ = 0;
};

}  // namespace ringmain
