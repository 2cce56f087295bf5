// The memtable: a topic's newest rows in memory, found by key and read in the order of keys.
//
// 1. Rows lie in an arena in the order in which they came, that is by sequence; a row never moves or changes. Or they lie
//    elsewhere, in a mapped log that holds them already: then only their places are kept here.
// 2. A hash table leads from a key to its newest row, and each row to the one before it with the same key. One insert costs one
//    cache miss that matters, whatever the number of rows; a tree or a skip list pays one a level.
// 3. Order is made when it is asked for: the rows that came since the last time become one more sorted run, and runs of
//    similar size are merged. A store that is only written never pays for it until the flush.
// 4. One thread inserts. Any number of threads read meanwhile and never wait for it: a row is complete before the hash table
//    leads to it (sync SLOT), and what a reader may see ends at a sequence that the caller hands in.
// 5. All memory is reserved when it is made; it never grows: `room()` tells. `touch` makes it ready ahead of the rows, from another
//    thread, so that few inserts meet a page fault.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "atomics.hpp"
#include "key.hpp"
#include "memory_pool.hpp"

namespace ringmain {

inline uint64_t row_sequence(const char *row) {
    uint64_t sequence;
    std::memcpy(&sequence, row, 8);
    return sequence;
}

// A row in a sorted run: the first two words of its key, so that most comparisons need not touch the row.
struct OrderEntry {
    uint64_t key[2];
    uint32_t index;
    uint32_t unused;
};

using SortedRun = std::vector<OrderEntry>;

class Memtable {
  public:
    static constexpr uint32_t TOMBSTONE = 1u << 31;
    static constexpr uint64_t ROWS_MAX = TOMBSTONE - 2;
    static constexpr uint64_t AHEAD = 8;  // rows of a batch whose slots are being fetched

    // budget_bytes: memory for everything but sorted runs. pool: where it comes from and goes to. Throws std::bad_alloc.
    Memtable(const KeyLayout &layout, uint32_t row_bytes, uint64_t budget_bytes, std::shared_ptr<MemoryPool> pool)
        : layout_(layout), row_bytes_(row_bytes), pool_(std::move(pool)) {
        slot_count_ = 64;
        for (;;) {  // as many rows as fit beside a hash table of which they fill at most two thirds
            capacity_ = std::min({rows_beside(slot_count_, budget_bytes), slot_count_ * 2 / 3, ROWS_MAX});
            if (rows_beside(slot_count_ * 2, budget_bytes) <= capacity_ || slot_count_ > ROWS_MAX) break;
            slot_count_ *= 2;
        }
        if (capacity_ == 0) capacity_ = 1;
        rows_ = take_memory(row_bytes_);
    }

    // For so many rows that lie elsewhere, and stay there for as long as this is used. Throws std::bad_alloc.
    struct RowsElsewhere {
        uint64_t count;
    };
    Memtable(const KeyLayout &layout, uint32_t row_bytes, RowsElsewhere rows, std::shared_ptr<MemoryPool> pool)
        : layout_(layout), row_bytes_(row_bytes), pool_(std::move(pool)), capacity_(rows.count), slot_count_(64) {
        while (slot_count_ * 2 / 3 < capacity_) slot_count_ *= 2;
        places_ = reinterpret_cast<const char **>(take_memory(sizeof *places_));
    }

    ~Memtable() { pool_->give_back(memory_); }
    Memtable(const Memtable &) = delete;
    Memtable &operator=(const Memtable &) = delete;

    const KeyLayout &layout() const { return layout_; }
    uint32_t row_bytes() const { return row_bytes_; }
    uint64_t capacity() const { return capacity_; }
    const Memory &memory() const { return memory_; }
    uint64_t count() const { return load_acquire(count_); }
    uint64_t room() const { return capacity_ - load_relaxed(count_); }
    uint64_t tombstone_count() const { return load_relaxed(tombstones_); }
    const char *row(uint64_t index) const { return places_ == nullptr ? rows_ + index * row_bytes_ : places_[index]; }
    bool is_tombstone(uint64_t index) const { return (load_relaxed(previous_[index]) & TOMBSTONE) != 0; }

    // --- the writer ------------------------------------------------------------------------------------------------

    // Where the next row goes: fill it, then `commit_row`. There must be room.
    char *next_row() { return rows_ + load_relaxed(count_) * row_bytes_; }

    void commit_row(bool tombstone) {
        const uint64_t index = load_relaxed(count_);
        link(index, key_hash(index), tombstone);
        if (tombstone) store_relaxed(tombstones_, tombstones_ + 1);
        store_release(count_, index + 1);
    }

    // Add `count` rows, for which there must be room.
    void insert(const char *source, uint64_t count, bool tombstones) {
        place(0, source, count);
        commit_rows(count, tombstones);
    }

    // Put rows where, `ahead` rows before them, those that are not committed yet begin.
    void place(uint64_t ahead, const char *source, uint64_t count) {
        const uint64_t first = load_relaxed(count_) + ahead;
        if (places_ == nullptr) std::memcpy(rows_ + first * row_bytes_, source, count * row_bytes_);
        else for (uint64_t at = 0; at < count; ++at) places_[first + at] = source + at * row_bytes_;
    }

    // Add the `count` rows that were placed, or written from `next_row()` on.
    void commit_rows(uint64_t count, bool tombstones = false) {
        const uint64_t first = load_relaxed(count_);
        uint64_t hashes[AHEAD];
        for (uint64_t at = 0; at < count + AHEAD; ++at) {
            if (at >= AHEAD) {
                const uint64_t done = at - AHEAD;
                link(first + done, hashes[done % AHEAD], tombstones);
            }
            if (at < count) {
                const uint64_t hash = key_hash(first + at);
                __builtin_prefetch(&slots_[hash & (slot_count_ - 1)], 1);
                hashes[at % AHEAD] = hash;
            }
        }
        if (tombstones) store_relaxed(tombstones_, tombstones_ + count);
        store_release(count_, first + count);
    }

    // --- beside the writer, one thread ------------------------------------------------------------------------------

    // Make memory ready for the next `ahead` bytes of rows. Returns how much of that lies behind the end.
    uint64_t touch(uint64_t ahead) {
        const uint64_t rows = count();
        const uint64_t end = ahead + (rows == 0 ? 0 : static_cast<uint64_t>(next_row() - memory_.base));
        MemoryPool::touch(memory_, end);
        return end > memory_.bytes ? end - memory_.bytes : 0;
    }

    // --- readers ---------------------------------------------------------------------------------------------------

    void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash & (slot_count_ - 1)]); }

    // The newest row of a key with a sequence of at most `visible`, or null; tells whether it is a tombstone.
    const char *find(const uint64_t *key, uint64_t hash, uint64_t visible, bool &tombstone) const {
        uint32_t at = newest(key, hash);
        while (at != 0) {
            const uint64_t index = at - 1;
            const char *found = row(index);
            const uint32_t previous = load_relaxed(previous_[index]);
            if (row_sequence(found) <= visible) {
                tombstone = (previous & TOMBSTONE) != 0;
                return found;
            }
            at = previous & ~TOMBSTONE;
        }
        return nullptr;
    }

    // Rows of the first `count` in sorted runs, keys rising and sequences falling; a few runs that together hold each row once.
    // Any thread; one sorts at a time. Throws std::bad_alloc; no row is missing the next time then.
    std::vector<std::shared_ptr<const SortedRun>> order(uint64_t count) {
        const std::lock_guard hold(order_lock_);
        if (count > ordered_) {
            runs_.push_back(sort_rows(ordered_, count));
            ordered_ = count;  // only now: what throws before leaves the rows to the next call
            while (runs_.size() > 1 && runs_[runs_.size() - 2]->size() < 2 * runs_.back()->size()) merge_last_two();
        }
        return runs_;  // rows behind `count` may be among them: their sequences are not visible
    }

    // The same as one run, for the flush.
    std::shared_ptr<const SortedRun> whole_order() {
        order(count());
        const std::lock_guard hold(order_lock_);
        while (runs_.size() > 1) merge_last_two();
        return runs_.empty() ? std::make_shared<const SortedRun>() : runs_.front();
    }

    // Whether one entry comes before another: by key, then the newer first.
    bool before(const OrderEntry &one, const OrderEntry &other) const {
        if (one.key[0] != other.key[0]) return one.key[0] < other.key[0];
        if (one.key[1] != other.key[1]) return one.key[1] < other.key[1];
        if (layout_.words() > 2) {
            uint64_t left[KEY_WORDS_MAX], right[KEY_WORDS_MAX];
            layout_.encode(row(one.index), left);
            layout_.encode(row(other.index), right);
            const int order = compare_keys(left, right, layout_.words());
            if (order != 0) return order < 0;
        }
        return one.index > other.index;
    }

  private:
    // Memory for slots, links, and so many bytes for each row; returns where those begin.
    char *take_memory(uint64_t each_bytes) {
        const uint64_t slots_bytes = slot_count_ * sizeof(uint64_t), links_bytes = (capacity_ * sizeof(uint32_t) + 63) & ~63ull;
        memory_ = pool_->take(slots_bytes + links_bytes + capacity_ * each_bytes);
        if (memory_.used) std::memset(memory_.base, 0, slots_bytes);
        slots_ = reinterpret_cast<uint64_t *>(memory_.base);
        previous_ = reinterpret_cast<uint32_t *>(memory_.base + slots_bytes);
        return memory_.base + slots_bytes + links_bytes;
    }

    uint64_t rows_beside(uint64_t slot_count, uint64_t budget_bytes) const {
        const uint64_t slots_bytes = slot_count * sizeof(uint64_t);
        return budget_bytes <= slots_bytes ? 0 : (budget_bytes - slots_bytes) / (row_bytes_ + sizeof(uint32_t));
    }

    uint64_t key_hash(uint64_t index) const {
        uint64_t key[KEY_WORDS_MAX];
        layout_.encode(row(index), key);
        return hash_key(key, layout_.words());
    }

    // Let the hash table lead to a row. A slot is the hash's upper half over the row's index plus one.
    void link(uint64_t index, uint64_t hash, bool tombstone) {
        const uint64_t entry = (hash & 0xFFFFFFFF00000000ull) | (index + 1);
        uint64_t at = hash & (slot_count_ - 1);
        uint32_t older = 0;
        for (;; at = (at + 1) & (slot_count_ - 1)) {
            const uint64_t there = load_relaxed(slots_[at]);
            if (there == 0) break;
            if ((there ^ entry) >> 32 == 0 && layout_.same(row(index), row((there & 0xFFFFFFFFu) - 1))) {
                older = static_cast<uint32_t>(there);
                break;
            }
        }
        store_relaxed(previous_[index], older | (tombstone ? TOMBSTONE : 0u));
        store_release(slots_[at], entry);  // sync SLOT: the row and its link first
    }

    uint32_t newest(const uint64_t *key, uint64_t hash) const {
        for (uint64_t at = hash & (slot_count_ - 1);; at = (at + 1) & (slot_count_ - 1)) {
            const uint64_t there = load_acquire(slots_[at]);  // sync SLOT
            if (there == 0) return 0;
            if ((there ^ hash) >> 32 == 0) {
                uint64_t found[KEY_WORDS_MAX];
                layout_.encode(row((there & 0xFFFFFFFFu) - 1), found);
                if (same_key(found, key, layout_.words())) return static_cast<uint32_t>(there);
            }
        }
    }

    std::shared_ptr<const SortedRun> sort_rows(uint64_t first, uint64_t end) const {
        auto run = std::make_shared<SortedRun>(end - first);
        uint64_t key[KEY_WORDS_MAX] = {};
        for (uint64_t index = first; index < end; ++index) {
            layout_.encode(row(index), key);
            (*run)[index - first] = {{key[0], layout_.words() > 1 ? key[1] : 0}, static_cast<uint32_t>(index), 0};
        }
        std::sort(run->begin(), run->end(), [this](const OrderEntry &a, const OrderEntry &b) { return before(a, b); });
        return run;
    }

    // Both runs stay until the joined one is there: memory for it may run out.
    void merge_last_two() {
        const SortedRun &newer = *runs_.back(), &older = *runs_[runs_.size() - 2];
        auto both = std::make_shared<SortedRun>(older.size() + newer.size());
        std::merge(older.begin(), older.end(), newer.begin(), newer.end(), both->begin(),
                   [this](const OrderEntry &a, const OrderEntry &b) { return before(a, b); });
        runs_.pop_back();
        runs_.back() = std::move(both);
    }

    const KeyLayout layout_;
    const uint32_t row_bytes_;
    const std::shared_ptr<MemoryPool> pool_;
    Memory memory_;
    uint64_t capacity_ = 0, slot_count_ = 0;
    uint64_t *slots_ = nullptr;
    uint32_t *previous_ = nullptr;  // by row: index plus one of the row with the same key before it, and TOMBSTONE
    char *rows_ = nullptr;            // in the arena
    const char **places_ = nullptr;  // or where each row lies
    alignas(128) uint64_t count_ = 0;
    uint64_t tombstones_ = 0;
    std::mutex order_lock_;
    std::vector<std::shared_ptr<const SortedRun>> runs_;
    uint64_t ordered_ = 0;  // rows in runs_
};

}  // namespace ringmain
