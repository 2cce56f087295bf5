// Where a tree's new rows go: its active memtable, and the newest sequence that reading sees.
//
// Rows come either one call at a time under the interpreter's lock (put), or from one thread without it (the journal of a bus,
// through `add`). Only the latter needs the mutex: the memtable is replaced, under it, between two of its calls.
#pragma once

#include <algorithm>
#include <mutex>

#include "memtable.hpp"

namespace ringmain {

class Feed {
  public:
    Memtable *active() const { return active_; }
    uint64_t visible() const { return load_acquire(visible_); }  // sync VISIBLE
    void set_visible(uint64_t sequence) { store_release(visible_, sequence); }

    void set_active(Memtable *memtable) {
        const std::lock_guard lock(mutex_);
        active_ = memtable;
    }

    // Insert as many of `count` complete rows as there is room for, and let them be read. Returns how many; 0 when the memtable
    // is full, or there is none.
    uint64_t add(const char *rows, uint64_t count) {
        const std::lock_guard lock(mutex_);
        if (active_ == nullptr) return 0;
        count = std::min(count, active_->room());
        if (count == 0) return 0;
        active_->insert(rows, count, false);
        set_visible(row_sequence(rows + (count - 1) * active_->row_bytes()));  // sync VISIBLE: after the rows
        return count;
    }

  private:
    std::mutex mutex_;
    Memtable *active_ = nullptr;
    uint64_t visible_ = 0;
};

}  // namespace ringmain
